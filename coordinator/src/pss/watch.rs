//! Follows the shared tables and the hosts' agents. Whatever ends is begun again.

use super::{
    driver::{Input, Sender},
    inventory::{Ledger, SeenHost, SeenVm},
    wire,
};
use crate::clock::now;
use kage_coordinator_core::config::Cluster;
use kage_proto::{
    agent::v1::{
        Facts, GetFactsRequest, ListVmsRequest, LoadSample, Vm, VmSample, WatchLoadRequest, agent_client::AgentClient,
    },
    channel::reason,
    sif::v1::{WatchTablesRequest, sif_client::SifClient},
};
use kage_pss_core::{
    inventory::VmState,
    load::{CpuCounter, Sample},
    units::{Bytes, BytesPerSecond, Watts},
};
use kage_types::{AgentId, DomainName, Time};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use tonic::{Request, Status, transport::Channel};

/// From the end of a stream to the next attempt.
const AGAIN: Duration = Duration::from_secs(1);
/// What runs on a host is looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// An agent answers within this or is away.
pub const ANSWER: Duration = Duration::from_secs(2);

pub fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// The shared tables, as they change: to the driver, and to whoever waits for a change.
pub async fn tables(mut client: SifClient<Channel>, ledger: watch::Sender<Arc<Ledger>>, inputs: Sender) {
    loop {
        let ended = follow_tables(&mut client, &ledger, &inputs).await;
        let why = ended.err().map_or_else(|| "its stream has ended".to_owned(), |status| reason(&status));
        inputs.send(Input::SifAway(why)).await;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow_tables(
    client: &mut SifClient<Channel>,
    ledger: &watch::Sender<Arc<Ledger>>,
    inputs: &Sender,
) -> Result<(), Status> {
    let mut stream = client.watch_tables(WatchTablesRequest {}).await?.into_inner();
    while let Some(tables) = stream.message().await? {
        let read = Arc::new(wire::ledger(&tables)?);
        ledger.send_replace(read.clone());
        inputs.send(Input::Ledger(read)).await;
    }
    Ok(())
}

/// What of a machine is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A host: what it is, what runs there, what it draws, and the counters of that.
    Host,
    /// One that is no host, as on it backup servers take the places of members: their counters.
    Counters,
}

/// All hosts, and machines on which backup servers of virtual servers are: one that has taken a member's place is measured
/// in its stead (problem c of thesis ch. 4).
pub fn machines(cluster: &Cluster) -> BTreeMap<&AgentId, What> {
    let hosts = cluster.hosts.keys().map(|name| (name, What::Host));
    let backups = cluster.targets.values().filter(|target| target.vm.is_some());
    let backups = backups.map(|target| &target.backup).flat_map(|backup| {
        let further = backup.further.iter().map(|further| &further.agent);
        std::iter::once(&backup.agent).chain(further)
    });
    let backups = backups.map(|agent| (agent, What::Counters));
    // Whatever is a host is followed as one.
    backups.chain(hosts).collect()
}

/// One machine.
pub async fn machine(what: What, name: AgentId, mut client: AgentClient<Channel>, interval: Duration, inputs: Sender) {
    let mut stream = 0;
    loop {
        // Rises with each connection, over restarts of this process too.
        stream = now().as_nanos().max(stream + 1);
        if let Err(status) = follow_machine(what, &name, &mut client, interval, stream, &inputs).await {
            tracing::debug!(host = %name, reason = reason(&status), "power saving does not hear this host");
        }
        if what == What::Host {
            inputs.send(Input::HostAway(name.clone())).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn follow_machine(
    what: What,
    name: &AgentId,
    client: &mut AgentClient<Channel>,
    interval: Duration,
    stream: u64,
    inputs: &Sender,
) -> Result<(), Status> {
    let facts = client.get_facts(with_deadline(GetFactsRequest {}, ANSWER)).await?.into_inner();
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX).max(100);
    let mut samples = client.watch_load(WatchLoadRequest { interval_ms }).await?.into_inner();
    let silent = (interval * 3).max(ANSWER);
    let mut looked: Option<Time> = None;
    let mut energy = None;
    let rated = Some(speed(&facts)).filter(|speed| *speed > 0).map(|speed| BytesPerSecond::rated(speed.into()));
    loop {
        if what == What::Host && looked.is_none_or(|at| now().since(at) >= LOOK) {
            let vms = client.list_vms(with_deadline(ListVmsRequest {}, ANSWER)).await?.into_inner().vms;
            inputs.send(Input::Host(name.clone(), Box::new(seen(&facts, &vms)))).await;
            looked = Some(now());
        }
        let sample = tokio::time::timeout(silent, samples.message())
            .await
            .map_err(|_| Status::unavailable(format!("no sample within {silent:?}")))??;
        let Some(sample) = sample else { return Ok(()) };
        let metered = sample.energy_uj.map(|energy| (sample.at_ns, energy));
        if let Some(watts) = drawn(energy, metered).filter(|_| what == What::Host) {
            inputs.send(Input::Power(name.clone(), watts)).await;
        }
        energy = metered;
        for vm in &sample.vms {
            if let Some((domain, read)) = read_sample(name, stream, &sample, vm, rated) {
                inputs.send(Input::Sample(domain, Box::new(read))).await;
            }
        }
    }
}

/// By the energy used between two samples, each nanoseconds and microjoules; none: not metered, or the meter began anew.
pub fn drawn(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<Watts> {
    let ((then, first), (at, last)) = (before?, after?);
    let (millis, used) = (at.checked_sub(then)? / 1_000_000, last.checked_sub(first)?);
    used.checked_div(millis).map(Watts)
}

/// Of the fastest NIC that is up, Mbit/s; 0: unknown.
fn speed(facts: &Facts) -> u32 {
    facts.nics.iter().filter(|nic| nic.up).map(|nic| nic.speed_mbit).max().unwrap_or(0)
}

/// What an agent tells of its host.
pub fn seen(facts: &Facts, vms: &[Vm]) -> SeenHost {
    let wakes = facts.nics.iter().find(|nic| nic.wake_on.contains('g') && !nic.mac.is_empty());
    SeenHost {
        up: true,
        memory: Bytes(facts.memory_bytes),
        cores: facts.cpus,
        speed_mbit: speed(facts),
        mac: wakes.map(|nic| nic.mac.clone()),
        vms: seen_vms(vms),
    }
}

/// What an agent tells of what runs there, or is defined there.
pub fn seen_vms(vms: &[Vm]) -> BTreeMap<DomainName, SeenVm> {
    let seen = |vm: &Vm| {
        Some((vm.domain.parse().ok()?, SeenVm { state: state(&vm.state), memory: Bytes(vm.memory_max_bytes) }))
    };
    vms.iter().filter_map(seen).collect()
}

/// libvirt's word. One that is not known counts as running: nothing is put to sleep under it.
pub fn state(word: &str) -> VmState {
    match word {
        "paused" | "pmsuspended" => VmState::Suspended,
        "shutoff" | "crashed" => VmState::Stopped,
        _ => VmState::Running,
    }
}

/// Counters of one virtual server; none if it does not run.
pub fn read_sample(
    host: &AgentId,
    stream: u64,
    sample: &LoadSample,
    vm: &VmSample,
    rated: Option<BytesPerSecond>,
) -> Option<(DomainName, Sample)> {
    if state(&vm.state) != VmState::Running {
        return None;
    }
    let read = Sample {
        source: host.clone(),
        stream,
        at: Time::from_nanos(sample.at_ns),
        cpu: CpuCounter::DomainNanos(vm.cpu_time_ns),
        cores: vm.vcpus,
        memory_used: Bytes(vm.memory_used_bytes),
        memory_max: Bytes(vm.memory_max_bytes),
        received: Bytes(vm.received_bytes),
        sent: Bytes(vm.sent_bytes),
        rated,
    };
    Some((vm.domain.parse().ok()?, read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_proto::agent::v1::Nic;

    #[test]
    fn backup_servers_are_counted_where_they_are() {
        let agents = [("rs1", "tap"), ("rs2", "tap"), ("mgmt", "tap"), ("web", "host")];
        let agents = agents.iter().enumerate().map(|(index, (name, guard))| {
            format!("[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{index}:7702\"\nguard = \"{guard}\"\n")
        });
        let target = |name: &str, of: &str, address: u8, backup: &str| {
            format!(
                "[[target]]\nname = \"{name}\"\n{of}\nvips = [\"10.0.0.{address}\"]\n\
                 backup = {{ agent = \"{backup}\", domain = \"{name}b\" }}\n\
                 [[target.service]]\nname = \"smtp\"\nprobe = \"smtp\"\n"
            )
        };
        let text = format!(
            "[cluster]\nname = \"test\"\non_coordinator_loss = \"keep\"\n[coordinator]\nlisten = \"10.0.0.9:7700\"\n[sif]\nlisten = \"10.0.0.9:7701\"\n\
             {}{}{}{}[[host]]\nagent = \"rs1\"\n[[host]]\nagent = \"rs2\"\n",
            agents.collect::<String>(),
            target("mail1", "vm = { domain = \"mail1\", host = \"rs1\" }\naddress = \"10.0.0.61\"", 111, "mgmt"),
            target("mail2", "vm = { domain = \"mail2\", host = \"rs2\" }\naddress = \"10.0.0.62\"", 112, "rs1"),
            target("web", "agent = \"web\"", 113, "mgmt"),
        );
        let cluster = Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let what: Vec<(&str, What)> =
            machines(&cluster).into_iter().map(|(name, what)| (name.as_str(), what)).collect();
        assert_eq!(what, [("mgmt", What::Counters), ("rs1", What::Host), ("rs2", What::Host)]);
    }

    #[test]
    fn samples_of_what_runs_are_read() {
        let host = "rs1".parse().expect("name");
        let sample = LoadSample { at_ns: 5_000_000_000, ..LoadSample::default() };
        let vm = |state: &str| VmSample {
            domain: "mail1".into(),
            state: state.into(),
            cpu_time_ns: 7,
            vcpus: 2,
            memory_max_bytes: 2 << 30,
            memory_used_bytes: 1 << 30,
            received_bytes: 10,
            sent_bytes: 20,
        };
        let (domain, read) = read_sample(&host, 3, &sample, &vm("running"), None).expect("a sample");
        assert_eq!(domain.as_str(), "mail1");
        assert_eq!((read.stream, read.at, read.cpu), (3, Time::from_millis(5_000), CpuCounter::DomainNanos(7)));
        assert_eq!((read.memory_used, read.memory_max, read.cores), (Bytes::gib(1), Bytes::gib(2), 2));
        assert!(read_sample(&host, 3, &sample, &vm("paused"), None).is_none());
        assert!(
            read_sample(&host, 3, &sample, &VmSample { domain: "no name".into(), ..vm("running") }, None).is_none()
        );
    }

    #[test]
    fn a_host_tells_its_speed_its_mac_and_what_it_runs() {
        let nic = |up, speed_mbit, mac: &str, wake_on: &str| Nic {
            up,
            speed_mbit,
            mac: mac.into(),
            wake_on: wake_on.into(),
            ..Nic::default()
        };
        let nics = vec![nic(true, 1000, "a", "d"), nic(false, 10_000, "b", "g"), nic(true, 100, "c", "pumbg")];
        let facts = Facts { cpus: 4, memory_bytes: 8 << 30, nics, ..Facts::default() };
        let vm = |domain: &str, state: &str| Vm { domain: domain.into(), state: state.into(), ..Vm::default() };
        let vms = [vm("mail1", "running"), vm("mail2", "paused"), vm("old", "shutoff"), vm("odd", "blocked")];
        let seen = seen(&facts, &vms);
        assert_eq!((seen.speed_mbit, seen.mac.as_deref(), seen.cores), (1000, Some("b"), 4));
        let states: Vec<VmState> = seen.vms.values().map(|vm| vm.state).collect();
        assert_eq!(states, [VmState::Running, VmState::Suspended, VmState::Running, VmState::Stopped]);
    }

    #[test]
    fn watts_are_energy_over_time() {
        // 35 J in 500 ms.
        assert_eq!(drawn(Some((0, 5)), Some((500_000_000, 35_000_005))), Some(Watts(70_000)));
        assert_eq!(drawn(Some((0, 5)), Some((500_000_000, 4))), None, "the meter began anew");
        assert_eq!(drawn(None, Some((1, 1))), None);
        assert_eq!(drawn(Some((1, 1)), Some((2, 2))), None, "no time went by");
    }
}
