//! What is seen from this machine, of itself and of others.

use super::{Many, Shared, chain, invalid, limit, vms};
use crate::{
    guard::{Link, MacAddr, conflict},
    host::{
        facts::Facts,
        load::{HostLoad, Sampler},
        nic::Nic,
        os::services::Verb,
        ping::{PingError, Pinger, Series},
        probe::{self, Outcome, Probe, Step, Transport},
        service::Service,
    },
    wire,
};
use kage_proto::agent::v1;
use std::{
    collections::BTreeMap,
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
/// A tick may come a little early.
const SLACK: Duration = Duration::from_millis(50);
/// A slow reader misses samples, not memory.
const BACKLOG: usize = 4;
/// One probe, one echo.
const USUAL: Duration = Duration::from_secs(1);
/// A probe that lasts longer says nothing about now.
const LONGEST: Duration = Duration::from_secs(60);

impl Shared {
    pub(super) async fn facts(&self) -> Result<v1::Facts, Status> {
        let index = self.interface.and_then(|interface| Link::find(interface).ok()).map(|link| link.index);
        let facts = spawn_blocking(move || Facts::for_interface(index)).await;
        let facts = facts.map_err(|error| Status::internal(error.to_string()))?;
        let [reboot, power_off, suspend] = self.power.ways();
        let parties = |found: BTreeMap<String, String>| {
            found.into_iter().map(|(name, reason)| v1::Party { name, reason }).collect()
        };
        Ok(v1::Facts {
            agent: self.config.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: facts.hostname,
            os: format!("{} {}", facts.os_id, facts.os_version).trim().to_owned(),
            kernel: facts.kernel,
            arch: facts.architecture,
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            init: self.services.system().manager.to_string(),
            nics: facts.nics.iter().map(nic).collect(),
            sleep_states: facts.sleep_states,
            boot_id: facts.boot_id,
            uptime_ms: u64::try_from(facts.uptime.as_millis()).unwrap_or(u64::MAX),
            guard: self.guard.borrow().describe(),
            libvirt: self.vms.connection(),
            witness: self.config.witness,
            init_reason: self.services.system().reason.clone(),
            services: self.services.all().map(ways).collect(),
            reboot,
            power_off,
            suspend,
            network_managers: parties(facts.network_managers),
            firewalls: parties(facts.firewalls),
            nf_tables: facts.nf_tables,
            clock: facts.clock,
            alarm: self.power.alarm_way(),
            wake: self.power.wake_way(&facts.nics, &self.reached_by()),
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

fn ways(service: &Service) -> v1::ServiceWays {
    v1::ServiceWays {
        service: service.name.to_string(),
        unit: service.unit.clone().unwrap_or_default(),
        watched: service.watched(),
        check: service.way(Verb::Status),
        restart: service.way(Verb::Restart),
        start: service.way(Verb::Start),
        stop: service.way(Verb::Stop),
        freeze: service.way(Verb::Freeze),
        thaw: service.way(Verb::Thaw),
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
        let mut listed = None::<Instant>;
        loop {
            ticks.tick().await;
            // Each reading once: told again at a later time, it would look as if nothing had been done meanwhile.
            let mut vms = Vec::new();
            if shared.vms.are_here() && listed.is_none_or(|at| at.elapsed() + SLACK >= VM_INTERVAL) {
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
        energy_uj: load.energy_uj,
    }
}

pub(super) async fn ping(request: v1::PingRequest) -> Result<v1::PingReply, Status> {
    let target: IpAddr =
        request.address.parse().map_err(|_| invalid(format!("{:?} is no IP address", request.address)))?;
    let some = |ms: u32| (ms != 0).then(|| Duration::from_millis(ms.into()));
    let series = Series {
        count: u16::try_from(request.count.max(1)).unwrap_or(u16::MAX),
        interval: limit(request.interval_ms, Duration::from_millis(100)),
        timeout: limit(request.timeout_ms, USUAL),
        enough: u16::try_from(request.enough).ok().filter(|enough| *enough != 0),
        deadline: some(request.deadline_ms),
    };
    let report = Pinger::new().ping(target, series).await.map_err(|error| match &error {
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
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| invalid(format!("port {} is none: give 1 to 65535", request.port)))?;
    let report = checked(&request)?.run(SocketAddr::new(address, port)).await;
    let told = if request.trace { report.steps } else { Vec::new() };
    Ok(v1::ProbeReply {
        outcome: outcome(report.outcome).into(),
        detail: report.detail,
        took_ms: wire::to_millis(report.took),
        steps: told
            .into_iter()
            .map(|step| v1::ProbedStep {
                step: step.step,
                outcome: outcome(step.outcome).into(),
                took_us: u32::try_from(step.took.as_micros()).unwrap_or(u32::MAX),
                heard: step.heard,
            })
            .collect(),
    })
}

fn outcome(outcome: Outcome) -> v1::probe_reply::Outcome {
    match outcome {
        Outcome::Ok => v1::probe_reply::Outcome::Ok,
        Outcome::Error => v1::probe_reply::Outcome::Error,
        Outcome::Ng => v1::probe_reply::Outcome::Ng,
    }
}

fn checked(request: &v1::ProbeRequest) -> Result<Probe, Status> {
    if !request.preset.is_empty() {
        return Err(invalid(format!(
            "preset {:?}: agents know steps only; `kagectl probe --list-presets` prints them",
            request.preset
        )));
    }
    if request.steps.len() > probe::MAX_STEPS {
        return Err(invalid(format!("{} steps: at most {}", request.steps.len(), probe::MAX_STEPS)));
    }
    let deadline = limit(request.timeout_ms, USUAL).min(LONGEST);
    let transport = match request.transport() {
        v1::probe_request::Transport::Tcp => Transport::Tcp,
        v1::probe_request::Transport::Tls => {
            Transport::Tls(Some(request.server_name.clone()).filter(|name| !name.is_empty()))
        }
        v1::probe_request::Transport::Udp => Transport::Udp,
    };
    let pattern = |text: &str| match text {
        "" => Ok(None),
        text => probe::pattern(text).map(Some).map_err(|error| invalid(chain(&error))),
    };
    let step = |step: &v1::ProbeStep| {
        Ok(Step {
            send: step.send.clone(),
            expect: pattern(&step.expect)?,
            wrong: pattern(&step.wrong)?,
            timeout: limit(step.timeout_ms, deadline),
        })
    };
    Ok(Probe {
        transport,
        steps: request.steps.iter().map(step).collect::<Result<_, Status>>()?,
        connect_timeout: limit(request.connect_timeout_ms, deadline),
        deadline,
    })
}
