//! Carries out what power saving's core wants done: agents' calls, each ending as one input.

use super::{
    driver::{Input, Sender},
    inventory::Ledger,
    signal::Sif,
    watch::{ANSWER, seen_vms, state, with_deadline},
};
use crate::clock::now;
use kage_coordinator_core::config::Cluster;
use kage_proto::{
    agent::v1::{
        Authority, GetFactsRequest, HostRequest, ListLeasesRequest, ListVmsRequest, MigrateVmRequest, StartVmRequest,
        VmRequest, WakeRequest, agent_client::AgentClient,
    },
    channel::{ChannelError, Credentials, Options, channel, reason},
    tls::{Expected, Pki},
};
use kage_pss_core::{
    execute::{How, JobId, JobResult},
    inventory::VmState,
    units::BytesPerSecond,
};
use kage_types::{AgentId, DomainName, Step, Vip};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{oneshot, watch};
use tonic::{Code, Status, transport::Channel};

/// Between two looks at something that takes a moment.
const POLL: Duration = Duration::from_millis(250);
/// Nothing wakes and answers as quickly as this.
const NO_WAKE: Duration = Duration::from_millis(500);
/// An agent that sleeps answers nobody: this long per question.
const ASLEEP: Duration = Duration::from_millis(700);

/// One way to each agent, by its address.
pub type Ways = BTreeMap<AgentId, (SocketAddr, Channel)>;

/// Those of `known` that lead to the same place are kept with their connections.
///
/// # Errors
/// An address or certificate that can't be used.
pub fn ways(cluster: &Cluster, pki: &Pki, known: &Ways) -> Result<Ways, ChannelError> {
    let options = Options::noticing_within(Duration::from_secs(1));
    let credentials = Credentials::Tls(pki.clone());
    let way = |name: &AgentId, address: &SocketAddr| match known.get(name).filter(|(there, _)| there == address) {
        Some(known) => Ok(known.clone()),
        None => channel(&address.to_string(), &credentials, Expected::agent(name), &options).map(|way| (*address, way)),
    };
    cluster.agents.iter().map(|(name, machine)| Ok((name.clone(), way(name, &machine.address)?))).collect()
}

/// The libvirt URI of a host.
pub fn destination(template: &str, address: IpAddr) -> String {
    let address = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    template.replace("{address}", &address)
}

/// What jobs need to know; the same for all that begin between two inputs.
#[derive(Clone)]
pub struct Context {
    pub ways: Ways,
    pub sif: Sif,
    pub ledger: watch::Receiver<Arc<Ledger>>,
    pub cluster: Arc<Cluster>,
    /// Where the magic packet of each host goes.
    pub macs: BTreeMap<AgentId, String>,
    /// What was paused on each host when last looked at.
    pub paused: BTreeMap<AgentId, Vec<DomainName>>,
    pub inputs: Sender,
}

/// Jobs under way.
#[derive(Default)]
pub struct Jobs(BTreeMap<JobId, oneshot::Sender<()>>);

impl Jobs {
    /// Begin it: it ends as one input, at the latest after `timeout`.
    pub fn begin(
        &mut self,
        job: JobId,
        timeout: Duration,
        inputs: Sender,
        work: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) {
        let (stop, stopped) = oneshot::channel();
        self.0.insert(job, stop);
        tokio::spawn(async move {
            let work = tokio::time::timeout(timeout, work);
            let result = tokio::select! {
                ended = work => match ended {
                    Ok(Ok(())) => JobResult::Done,
                    Ok(Err(status)) => JobResult::Failed(reason(&status)),
                    Err(_) => JobResult::TimedOut,
                },
                // The driver forgot it only if it ends itself.
                Ok(()) = stopped => JobResult::Failed("given up".to_owned()),
            };
            inputs.send(Input::Ended(job, result)).await;
        });
    }

    /// Stop it. What the other side began ends there by its own rules; a live migration is cancelled.
    pub fn abort(&mut self, job: JobId) {
        if let Some(stop) = self.0.remove(&job) {
            let _ = stop.send(()).is_err();
        }
    }

    pub fn ended(&mut self, job: JobId) {
        self.0.remove(&job);
    }
}

fn bandwidth(limit: Option<BytesPerSecond>) -> u64 {
    limit.map_or(0, |limit| (limit.0 >> 20).max(1))
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl Context {
    fn agent(&self, name: &AgentId) -> Result<AgentClient<Channel>, Status> {
        let way = self.ways.get(name).map(|(_, way)| AgentClient::new(way.clone()));
        way.ok_or_else(|| Status::not_found(format!("{name} is not configured")))
    }

    async fn authority(&self) -> Result<Option<Authority>, Status> {
        Ok(Some(Authority { term: self.sif.term().await?.0 }))
    }

    /// Do it.
    ///
    /// # Errors
    /// It was not done, or nobody knows: whoever asked looks.
    pub async fn act(self, step: Step, how: How, timeout: Duration) -> Result<(), Status> {
        match step {
            // The intent is the order: whoever grants leases moves it.
            Step::MoveVip { vip, to, .. } => self.moved(vip, &to).await,
            Step::Migrate { vm, from, to } => self.migrate(&vm, &from, &to, how, timeout).await,
            Step::SuspendVm { vm, host } => {
                let (mut agent, authority) = (self.agent(&host)?, self.authority().await?);
                let request = VmRequest { authority, domain: vm.into(), timeout_ms: ms(timeout), ..Default::default() };
                agent.pause_vm(with_deadline(request, timeout)).await.map(drop)
            }
            Step::ResumeVm { vm, host } => {
                let (mut agent, authority) = (self.agent(&host)?, self.authority().await?);
                let (domain, timeout_ms) = (vm.to_string(), ms(timeout));
                let request = VmRequest { authority, domain: domain.clone(), timeout_ms, ..Default::default() };
                let Err(refused) = agent.resume_vm(with_deadline(request, timeout)).await else { return Ok(()) };
                // Its host has lost its power since it was suspended.
                if self.vm(&vm, &host).await? != Some(VmState::Stopped) {
                    return Err(refused);
                }
                let request = StartVmRequest { authority, domain, paused: false, timeout_ms };
                agent.start_vm(with_deadline(request, timeout)).await.map(drop)
            }
            Step::SuspendHost { host } => self.suspend(&host, how, timeout).await,
            Step::WakeHost { host } => self.wake(&host, how).await,
        }
    }

    /// Is it as the step leaves it? Answers as soon as it is.
    ///
    /// # Errors
    /// It is not so now; asked until the time is over.
    pub async fn look(self, step: Step, timeout: Duration) -> Result<(), Status> {
        let until = now() + timeout;
        loop {
            let found = self.is_so(&step).await;
            let Err(not) = found else { return Ok(()) };
            if now() + POLL >= until {
                return Err(not);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn is_so(&self, step: &Step) -> Result<(), Status> {
        match step {
            Step::MoveVip { vip, to, .. } => self.held(*vip, to).await,
            Step::Migrate { vm, from, to } => {
                let (there, here) = (self.vm(vm, to).await?, self.vm(vm, from).await?);
                match (there, here) {
                    (Some(VmState::Running | VmState::Suspended), None | Some(VmState::Stopped)) => Ok(()),
                    (_, Some(VmState::Running | VmState::Suspended)) => {
                        Err(Status::failed_precondition(format!("{vm} is on {from}")))
                    }
                    (_, None | Some(VmState::Stopped)) => {
                        Err(Status::failed_precondition(format!("{vm} does not run on {to}")))
                    }
                }
            }
            Step::SuspendVm { vm, host } => self.vm_is(vm, host, VmState::Suspended).await,
            Step::ResumeVm { vm, host } => self.vm_is(vm, host, VmState::Running).await,
            Step::SuspendHost { host } => {
                if self.answers(host).await || self.answers(host).await {
                    return Err(Status::failed_precondition(format!("{host} still answers")));
                }
                Ok(())
            }
            Step::WakeHost { host } => {
                let silent = || Status::failed_precondition(format!("{host} does not answer"));
                if self.answers(host).await { Ok(()) } else { Err(silent()) }
            }
        }
    }

    async fn answers(&self, host: &AgentId) -> bool {
        let Ok(mut agent) = self.agent(host) else { return false };
        let asked = agent.get_facts(with_deadline(GetFactsRequest {}, ASLEEP));
        // A request's own deadline does not count the time until it is connected.
        let Ok(answer) = tokio::time::timeout(ASLEEP, asked).await else { return false };
        // Whatever else keeps the answer from us, a sleeping host does not refuse.
        match answer {
            Ok(_) => true,
            Err(status) => {
                let silent = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
                !silent.contains(&status.code())
            }
        }
    }

    async fn vm(&self, vm: &DomainName, host: &AgentId) -> Result<Option<VmState>, Status> {
        let listed = self.agent(host)?.list_vms(with_deadline(ListVmsRequest {}, ANSWER)).await?.into_inner();
        // A host that sleeps next can't be asked what was done to it last.
        self.inputs.send(Input::Vms(host.clone(), seen_vms(&listed.vms))).await;
        Ok(listed.vms.iter().find(|there| there.domain == vm.as_str()).map(|there| state(&there.state)))
    }

    async fn vm_is(&self, vm: &DomainName, host: &AgentId, wanted: VmState) -> Result<(), Status> {
        match self.vm(vm, host).await? {
            Some(found) if found == wanted => Ok(()),
            Some(found) => Err(Status::failed_precondition(format!("{vm} on {host} is {found:?}"))),
            None => Err(Status::failed_precondition(format!("{vm} is not on {host}"))),
        }
    }

    /// Until the ledger says that it holds the address.
    async fn moved(&self, vip: Vip, to: &DomainName) -> Result<(), Status> {
        let mut ledger = self.ledger.clone();
        let arrived = ledger.wait_for(|ledger| ledger.holds(vip, to)).await;
        arrived.map(drop).map_err(|_| Status::unavailable("the coordinator is stopping"))
    }

    /// The ledger says so, and the guard at its host is open.
    async fn held(&self, vip: Vip, to: &DomainName) -> Result<(), Status> {
        let ledger = self.ledger.borrow().clone();
        let host = ledger.host_of(to).filter(|_| ledger.holds(vip, to)).cloned();
        let Some(host) = host else { return Err(Status::failed_precondition(format!("{to} does not hold {vip}"))) };
        let leases = self.agent(&host)?.list_leases(with_deadline(ListLeasesRequest {}, ANSWER)).await?.into_inner();
        let (address, domain) = (vip.to_string(), to.as_str());
        let open = leases.vips.iter().any(|held| held.vip == address && held.domain == domain && held.state == "live");
        let shut = || Status::failed_precondition(format!("{vip} is not open for {to} on {host} yet"));
        if open { Ok(()) } else { Err(shut()) }
    }

    async fn migrate(
        &self,
        vm: &DomainName,
        from: &AgentId,
        to: &AgentId,
        how: How,
        timeout: Duration,
    ) -> Result<(), Status> {
        let (limit, downtime) = match how {
            How::Migration { bandwidth, downtime } => (bandwidth, downtime),
            How::Plain | How::Sleep { .. } | How::Wake { .. } => (None, None),
        };
        let machine = self.cluster.agents.get(to);
        let address = machine.map(|machine| machine.address.ip());
        let address = address.ok_or_else(|| Status::not_found(format!("{to} is not configured")))?;
        let request = MigrateVmRequest {
            authority: self.authority().await?,
            domain: vm.to_string(),
            destination_uri: destination(&self.cluster.saving.migration_uri, address),
            bandwidth_mib_s: bandwidth(limit),
            max_downtime_ms: downtime.map_or(0, ms),
            // Every real server knows every virtual server: it goes back, and may be started where it was.
            keep_defined: true,
            timeout_ms: ms(timeout),
            data_uri: String::new(),
        };
        let mut progress = self.agent(from)?.migrate_vm(with_deadline(request, timeout)).await?.into_inner();
        let mut done = false;
        while let Some(step) = progress.message().await? {
            tracing::debug!(%vm, %from, %to, remaining = step.remaining_bytes, total = step.total_bytes, "live migration");
            done = step.done;
        }
        let lost = || Status::unavailable(format!("{from} ended the live migration of {vm} without a word"));
        if done { Ok(()) } else { Err(lost()) }
    }

    async fn suspend(&self, host: &AgentId, how: How, timeout: Duration) -> Result<(), Status> {
        let request = self.sleep_request(host, how).await?;
        match self.agent(host)?.suspend_host(with_deadline(request, timeout)).await {
            Ok(_) => Ok(()),
            // It may have gone to sleep with the answer on its lips: the look decides.
            Err(status) if [Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&status.code()) => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// What may sleep along: what has its place there, or is paused; the planner saw that none of it serves.
    async fn sleep_request(&self, host: &AgentId, how: How) -> Result<HostRequest, Status> {
        let alarm_ms = match how {
            How::Sleep { alarm } => u64::try_from(alarm.as_millis()).unwrap_or(u64::MAX),
            How::Plain | How::Migration { .. } | How::Wake { .. } => 0,
        };
        let authority = self.authority().await?;
        let ledger = self.ledger.borrow().clone();
        let rows = ledger.tables.operation.values().chain(ledger.tables.suspend.values());
        let places = rows.filter(|row| row.host == *host).map(|row| row.vm.to_string());
        let paused = self.paused.get(host).into_iter().flatten().map(ToString::to_string);
        let expect_idle = places.chain(paused).collect();
        Ok(HostRequest { authority, force: false, alarm_ms, expect_idle })
    }

    async fn wake(&self, host: &AgentId, how: How) -> Result<(), Status> {
        let begun = now();
        let awake = async {
            while !self.answers(host).await {
                tokio::time::sleep(POLL).await;
            }
        };
        // Called at once: one that is awake already takes no harm, and a sleeper's silence takes its time.
        tokio::pin!(awake);
        tokio::select! {
            () = &mut awake => {}
            called = self.call(host) => {
                called?;
                awake.await;
            }
        }
        // A later attempt's time says less: earlier packets may have done it.
        // One that was awake all the time proves nothing.
        let took = now().since(begun);
        if took >= NO_WAKE && matches!(how, How::Wake { attempt: 1 }) {
            self.inputs.send(Input::Woke(host.clone(), ms(took))).await;
        }
        Ok(())
    }

    /// By its own command, or by magic packets from another machine of its network.
    async fn call(&self, host: &AgentId) -> Result<(), Status> {
        if let Some(argv) = self.cluster.hosts.get(host).and_then(|host| host.wake.clone()) {
            return run(&argv).await;
        }
        let mac = self.macs.get(host).cloned();
        let mac = mac.ok_or_else(|| Status::not_found(format!("{host} has no mac in the configuration")))?;
        let authority = self.authority().await?;
        let mut last = Status::unavailable(format!("no agent could send a magic packet to {host}"));
        for helper in helpers(&self.cluster, host) {
            let request = WakeRequest { authority, mac: mac.clone(), interface: String::new() };
            let Ok(mut agent) = self.agent(&helper) else { continue };
            match agent.wake(with_deadline(request, ANSWER)).await {
                Ok(_) => return Ok(()),
                Err(status) => last = status,
            }
        }
        Err(last)
    }
}

/// Who may send a magic packet for it: those in its network first.
pub fn helpers(cluster: &Cluster, host: &AgentId) -> Vec<AgentId> {
    let own = cluster.agents.get(host).map(|machine| machine.address.ip());
    let near = |other: IpAddr| match (own, other) {
        (Some(IpAddr::V4(own)), IpAddr::V4(other)) => (u32::from(own) ^ u32::from(other)).leading_zeros(),
        (Some(IpAddr::V6(own)), IpAddr::V6(other)) => (u128::from(own) ^ u128::from(other)).leading_zeros(),
        (Some(IpAddr::V4(_)), IpAddr::V6(_)) | (Some(IpAddr::V6(_)), IpAddr::V4(_)) | (None, _) => 0,
    };
    let mut others: Vec<_> = cluster.agents.iter().filter(|(name, _)| *name != host).collect();
    // Real servers last: they may sleep themselves.
    let order = |name: &AgentId, address: IpAddr| (cluster.hosts.contains_key(name), std::cmp::Reverse(near(address)));
    others.sort_by_key(|(name, machine)| order(name, machine.address.ip()));
    others.into_iter().map(|(name, _)| name.clone()).collect()
}

async fn run(argv: &[String]) -> Result<(), Status> {
    let (program, arguments) = argv.split_first().ok_or_else(|| Status::not_found("no command configured"))?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = command
        .output()
        .await
        .map_err(|error| Status::failed_precondition(format!("{program} can't be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next_back().unwrap_or_default();
    Err(Status::failed_precondition(format!("{program}: {} ({said})", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pss::tests::cluster;

    #[test]
    fn a_uri_names_the_destination() {
        let template = "qemu+tcp://{address}/system";
        assert_eq!(destination(template, "10.0.0.3".parse().expect("ip")), "qemu+tcp://10.0.0.3/system");
        assert_eq!(destination(template, "fd00::3".parse().expect("ip")), "qemu+tcp://[fd00::3]/system");
    }

    #[test]
    fn a_magic_packet_comes_from_a_machine_that_does_not_sleep() {
        let host = "rs2".parse().expect("name");
        let order: Vec<String> = helpers(&cluster(), &host).into_iter().map(String::from).collect();
        assert!(
            !order.contains(&"rs2".to_owned()) && order.last().is_some_and(|last| last.starts_with("rs")),
            "{order:?}"
        );
        assert!(
            order.iter().position(|name| name == "mgmt") < order.iter().position(|name| name == "rs1"),
            "{order:?}"
        );
    }
}
