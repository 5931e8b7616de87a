//! What is seen from this machine, of itself and of others.

use super::{Many, Shared, chain, invalid, limit, vms};
use crate::{
    guard::{Link, MacAddr, conflict},
    host::{
        facts::Facts,
        load::{HostLoad, Sampler},
        nic::Nic,
        ping::{PingError, Pinger},
        probe::{Probe, ProbeError, ProbeResult, Step},
    },
    wire,
};
use kage_proto::agent::v1::{self, probe_reply::Outcome};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Samples if the caller does not say how often, and at most.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));
/// libvirt is not asked more often.
const VM_INTERVAL: Duration = Duration::from_secs(1);
/// A slow reader misses samples, not memory.
const BACKLOG: usize = 4;
/// One probe, one echo.
const USUAL: Duration = Duration::from_secs(1);

impl Shared {
    pub(super) async fn facts(&self) -> Result<v1::Facts, Status> {
        let facts = spawn_blocking(Facts::read).await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(v1::Facts {
            agent: self.config.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: facts.hostname,
            os: format!("{} {}", facts.os_id, facts.os_version).trim().to_owned(),
            kernel: facts.kernel,
            arch: facts.architecture,
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            init: facts.init.to_string(),
            nics: facts.nics.iter().map(nic).collect(),
            sleep_states: facts.sleep_states,
            boot_id: facts.boot_id,
            uptime_ms: u64::try_from(facts.uptime.as_millis()).unwrap_or(u64::MAX),
            guard: self.guard.borrow().describe(),
            libvirt: self.vms.connection(),
            witness: self.config.witness,
        })
    }

    pub(super) async fn probe_vip(&self, request: v1::ProbeVipRequest) -> Result<v1::ProbeVipReply, Status> {
        let vip = wire::vip(&request.vip).map_err(invalid)?;
        let except = match request.except_mac.as_str() {
            "" => None,
            mac => Some(mac.parse::<MacAddr>().map_err(invalid)?),
        };
        let interface =
            self.interface.ok_or_else(|| Status::failed_precondition("a witness has no interface to probe from"))?;
        let listen = limit(request.listen_ms, Duration::from_millis(200)).min(Duration::from_secs(5));
        let probed = spawn_blocking(move || conflict::probe(&Link::find(interface)?, vip, listen)).await;
        let answered = probed.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| {
            Status::failed_precondition(format!("can't probe for {vip} on {interface}: {error}; check `ip link`"))
        })?;
        let answered_by = answered.filter(|mac| Some(*mac) != except).map(|mac| mac.to_string()).unwrap_or_default();
        Ok(v1::ProbeVipReply { answered_by })
    }
}

fn nic(nic: &Nic) -> v1::Nic {
    v1::Nic {
        name: nic.name.clone(),
        mac: nic.mac.clone(),
        addresses: nic.addresses.iter().map(IpAddr::to_string).collect(),
        speed_mbit: nic.speed_mbps.unwrap_or(0),
        up: nic.up,
        wake_on: nic.wake_on.map(|wake| wake.enabled.to_string()).unwrap_or_default(),
    }
}

pub(super) fn watch_events(shared: &Shared) -> Many<v1::AgentEvent> {
    let (send, stream) = mpsc::channel(BACKLOG);
    let mut events = shared.events.subscribe();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = send.closed() => return,
            };
            let Some(event) = event else { return };
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

pub(super) fn watch_load(shared: &Arc<Shared>, interval_ms: u32) -> Result<Many<v1::LoadSample>, Status> {
    let every = limit(interval_ms, INTERVAL.0);
    if every < INTERVAL.1 {
        return Err(invalid(format!(
            "interval_ms = {interval_ms} is too short: give at least {}",
            INTERVAL.1.as_millis()
        )));
    }
    let mut sampler = Sampler::new().map_err(|error| Status::internal(chain(&error)))?;
    let (send, stream) = mpsc::channel(BACKLOG);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut vms, mut listed) = (Vec::new(), None::<Instant>);
        loop {
            ticks.tick().await;
            if shared.vms.are_here() && listed.is_none_or(|at| at.elapsed() >= VM_INTERVAL) {
                listed = Some(Instant::now());
                vms = shared.vms.list().await.unwrap_or_default();
            }
            // Reading /proc takes some 0.1 ms and never blocks.
            let sample = sampler.sample().map_err(|error| Status::internal(chain(&error)));
            let sample = sample
                .map(|load| v1::LoadSample { vms: vms.iter().map(vms::to_sample).collect(), ..load_sample(load) });
            let ended = sample.is_err();
            if send.send(sample).await.is_err() || ended {
                return;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

fn load_sample(load: HostLoad) -> v1::LoadSample {
    let ticks = load.ticks;
    v1::LoadSample {
        at_ns: load.at.as_nanos(),
        cpu: Some(v1::CpuJiffies {
            user: ticks.user,
            nice: ticks.nice,
            system: ticks.system,
            idle: ticks.idle,
            iowait: ticks.iowait,
            irq: ticks.irq,
            softirq: ticks.softirq,
            steal: ticks.steal,
        }),
        cpus: load.cpus,
        memory_total_bytes: load.memory.total_bytes,
        memory_available_bytes: load.memory.available_bytes,
        nics: load
            .nics
            .into_iter()
            .map(|nic| v1::NicCounters { name: nic.name, received_bytes: nic.rx_bytes, sent_bytes: nic.tx_bytes })
            .collect(),
        vms: Vec::new(),
    }
}

pub(super) async fn ping(request: v1::PingRequest) -> Result<v1::PingReply, Status> {
    let target: IpAddr =
        request.address.parse().map_err(|_| invalid(format!("{:?} is no IP address", request.address)))?;
    let count = u16::try_from(request.count.max(1)).unwrap_or(u16::MAX);
    let (timeout, every) = (limit(request.timeout_ms, USUAL), limit(request.interval_ms, Duration::from_millis(100)));
    let report = Pinger::new().ping(target, count, every, timeout).await.map_err(|error| match &error {
        PingError::Count(_) => invalid(&error),
        PingError::NotAllowed(_) | PingError::Socket(_) => Status::failed_precondition(chain(&error)),
    })?;
    let rtt_us = |rtt: Duration| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
    Ok(v1::PingReply {
        sent: u32::try_from(report.sent()).unwrap_or(u32::MAX),
        received: u32::try_from(report.received()).unwrap_or(u32::MAX),
        rtt_us: report.round_trips.iter().flatten().map(|rtt| rtt_us(*rtt)).collect(),
    })
}

pub(super) async fn probe(request: v1::ProbeRequest) -> Result<v1::ProbeReply, Status> {
    let address: IpAddr =
        request.address.parse().map_err(|_| invalid(format!("{:?} is no IP address", request.address)))?;
    let port = u16::try_from(request.port).map_err(|_| invalid(format!("{} is no port", request.port)))?;
    let deadline = limit(request.timeout_ms, USUAL);
    let probe = match request.preset.as_str() {
        "tcp" => Probe::tcp(deadline),
        "http" => Probe::http(&host_header(address), "/", deadline).map_err(invalid)?,
        "smtp" => Probe::smtp(deadline),
        "" => steps(&request.steps, deadline)?,
        other => return Err(invalid(format!("preset {other:?} is none of tcp, http, smtp"))),
    };
    let begun = Instant::now();
    let found = probe.run(SocketAddr::new(address, port)).await.map_err(|error| match &error {
        ProbeError::Pattern { .. } | ProbeError::Http(_) => invalid(chain(&error)),
    })?;
    let took_ms = wire::to_millis(begun.elapsed());
    let (outcome, detail) = match found {
        ProbeResult::Ok { .. } => (Outcome::Ok, String::new()),
        ProbeResult::WrongReply { step, reply } => (Outcome::Error, format!("step {step}: {reply:?}")),
        ProbeResult::NoReply { step: Some(step), cause } => (Outcome::Ng, format!("step {step}: {cause}")),
        ProbeResult::NoReply { step: None, cause } => (Outcome::Ng, cause),
    };
    Ok(v1::ProbeReply { outcome: outcome.into(), detail, took_ms })
}

fn host_header(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn steps(wire: &[v1::ProbeStep], deadline: Duration) -> Result<Probe, Status> {
    let mut steps = Vec::new();
    let mut step_timeout = Duration::ZERO;
    for step in wire {
        step_timeout = step_timeout.max(limit(step.timeout_ms, deadline));
        if !step.send.is_empty() {
            let text = String::from_utf8(step.send.clone()).map_err(|_| invalid("what a step sends must be UTF-8"))?;
            steps.push(Step::Send(text));
        }
        if !step.expect.is_empty() {
            steps.push(Step::ExpectLine(step.expect.clone()));
        }
    }
    let step_timeout = if step_timeout.is_zero() { deadline } else { step_timeout };
    Ok(Probe { steps, step_timeout, deadline })
}
