//! Agents' client: commands, bars, pings and probes. Every call has a deadline and ends as one event.

use crate::driver::Handle;
use kage_coordinator_core::{
    AgentCommand, CheckOutcome, JobId, JobResult,
    config::Cluster,
    probe::{Limits, Probe, Step, Transport},
};
use kage_proto::{
    agent::v1::{
        Authority, BarRequest, GetVoterStateRequest, HoldVipRequest, HostRequest, ListLeasesRequest, ListVmsRequest,
        MigrateVmRequest, PingRequest, ProbeReply, ProbeRequest, ProbeStep, ProbeVipRequest, ReleaseVipRequest,
        RestartServiceRequest, StartVmRequest, VmRequest, VoterState, WakeRequest, agent_client::AgentClient,
        probe_reply::Outcome, probe_request, voter_client::VoterClient,
    },
    channel::{ChannelError, Credentials, Options, channel, reason},
    tls::{Expected, Pki},
};
use kage_types::{AgentId, AskVip, DomainName, Epoch, Term, Vip};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tonic::{Code, Request, Status, transport::Channel};

/// A bar is one write to the voter's disk.
const BAR_DEADLINE: Duration = Duration::from_millis(700);
/// The operator waits for it.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// On top of what the agent itself may take: the way there and back.
const WAY: Duration = Duration::from_millis(200);

/// The ways to all agents. A dead one is noticed within a second, so that no call waits for TCP.
#[derive(Clone)]
pub struct Agents {
    channels: watch::Sender<Channels>,
    pki: Pki,
    handle: Handle,
}

/// One way to each agent, by its address.
type Channels = Arc<BTreeMap<AgentId, (SocketAddr, Channel)>>;

fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Certainly not done, or perhaps done?
fn failure(status: &Status) -> JobResult {
    let unknown = [Code::DeadlineExceeded, Code::Unavailable, Code::Cancelled, Code::Unknown].contains(&status.code());
    if unknown { JobResult::Unknown(reason(status)) } else { JobResult::Failed(reason(status)) }
}

/// A double that is off, or not there, can't be suspended, and need not be: it does nothing.
async fn off_anyway(
    client: &mut AgentClient<Channel>,
    domain: &str,
    refused: Status,
    deadline: Duration,
) -> Result<(), Status> {
    if ![Code::FailedPrecondition, Code::NotFound].contains(&refused.code()) {
        return Err(refused);
    }
    let Ok(listed) = client.list_vms(with_deadline(ListVmsRequest {}, deadline)).await else { return Err(refused) };
    let there = listed.into_inner().vms.into_iter().find(|vm| vm.domain == domain);
    if there.is_none_or(|vm| ["shutoff", "crashed"].contains(&vm.state.as_str())) { Ok(()) } else { Err(refused) }
}

fn vm(authority: Option<Authority>, domain: &DomainName, timeout_ms: u32, job: JobId) -> VmRequest {
    VmRequest { authority, domain: domain.to_string(), timeout_ms, order: job.0, force: false }
}

async fn destroy(client: &mut AgentClient<Channel>, request: VmRequest, deadline: Duration) -> Result<(), Status> {
    let name = request.domain.clone();
    match client.destroy_vm(with_deadline(request, deadline)).await {
        Ok(_) => Ok(()),
        Err(refused) => off_anyway(client, &name, refused, deadline).await,
    }
}

/// In its memory, running or suspended? That it is not, is said for certain: nothing else ends as failed.
async fn find(client: &mut AgentClient<Channel>, domain: &str, deadline: Duration) -> Result<JobResult, Status> {
    let listed = match client.list_vms(with_deadline(ListVmsRequest {}, deadline)).await {
        Ok(listed) => listed.into_inner(),
        Err(status) => return Ok(JobResult::Unknown(reason(&status))),
    };
    let there = listed.vms.into_iter().find(|vm| vm.domain == domain);
    Ok(match there.filter(|vm| !["shutoff", "crashed"].contains(&vm.state.as_str())) {
        Some(_) => JobResult::Done,
        None => JobResult::Failed(format!("{domain} does not run there")),
    })
}

/// How a live migration to this host is asked for. It stays defined where it was: it comes back.
fn migration(cluster: &Cluster, to: &AgentId) -> MigrateVmRequest {
    let saving = &cluster.saving;
    let address = cluster.agents.get(to).map(|machine| machine.address.ip().to_string()).unwrap_or_default();
    MigrateVmRequest {
        destination_uri: saving.migration_uri.replace("{address}", &address),
        bandwidth_mib_s: saving.migration_bandwidth.unwrap_or_default().into(),
        max_downtime_ms: saving.migration_downtime.map(ms).unwrap_or_default(),
        keep_defined: true,
        ..MigrateVmRequest::default()
    }
}

impl Agents {
    /// Channels to all agents of the configuration.
    ///
    /// # Errors
    /// An address or certificate that can't be used.
    pub fn new(cluster: &Cluster, pki: &Pki, handle: Handle) -> Result<Self, ChannelError> {
        let channels = Self::channels(cluster, pki, &BTreeMap::new())?;
        Ok(Self { channels: watch::Sender::new(channels), pki: pki.clone(), handle })
    }

    /// Those of `known` that lead to the same place are kept with their connections.
    fn channels(
        cluster: &Cluster,
        pki: &Pki,
        known: &BTreeMap<AgentId, (SocketAddr, Channel)>,
    ) -> Result<Channels, ChannelError> {
        let options = Options::noticing_within(Duration::from_secs(1));
        let credentials = Credentials::Tls(pki.clone());
        let mut channels = BTreeMap::new();
        for (name, machine) in &cluster.agents {
            let way = match known.get(name).filter(|(address, _)| *address == machine.address) {
                Some((_, way)) => way.clone(),
                None => channel(&machine.address.to_string(), &credentials, Expected::agent(name), &options)?,
            };
            channels.insert(name.clone(), (machine.address, way));
        }
        Ok(Arc::new(channels))
    }

    /// The configuration has changed. A way that can't be described is reported; the others are used.
    pub fn reconfigure(&self, cluster: &Cluster) {
        let known = self.channels.borrow().clone();
        match Self::channels(cluster, &self.pki, &known) {
            Ok(channels) => drop(self.channels.send_replace(channels)),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the agents' addresses are not applied: restart kage-coordinator"
            ),
        }
    }

    fn way(&self, agent: &AgentId) -> Option<Channel> {
        self.channels.borrow().get(agent).map(|(_, way)| way.clone())
    }

    /// One agent's services, if it is configured.
    pub fn agent(&self, agent: &AgentId) -> Option<AgentClient<Channel>> {
        self.way(agent).map(AgentClient::new)
    }

    /// End the job with what this call gives.
    fn run(&self, job: JobId, call: impl Future<Output = Result<JobResult, Status>> + Send + 'static) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let result = call.await.unwrap_or_else(|status| failure(&status));
            handle.ended(job, result).await;
        });
    }

    /// Ask a voter for a bar.
    pub fn bar(&self, job: JobId, term: Term, voter: &AgentId, vip: Vip, floor: Epoch) {
        let client = self.way(voter).map(VoterClient::new);
        self.run(job, async move {
            let mut client = client.ok_or_else(|| Status::not_found("not configured"))?;
            let request = BarRequest { term: term.0, vip: vip.to_string(), floor: floor.0 };
            let reply = client.bar(with_deadline(request, BAR_DEADLINE)).await?.into_inner();
            Ok(JobResult::Barred(Duration::from_millis(reply.last_consent_age_ms)))
        });
    }

    /// What a voter has stored.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn voter_state(&self, voter: &AgentId) -> Result<VoterState, Status> {
        let channel = self.way(voter).ok_or_else(|| Status::not_found("not configured"))?;
        let request = with_deadline(GetVoterStateRequest {}, BAR_DEADLINE);
        Ok(VoterClient::new(channel).get_voter_state(request).await?.into_inner())
    }

    /// The virtual IPs that are open on an agent now.
    ///
    /// # Errors
    /// If it does not answer, or not in words that are known.
    pub async fn holds(&self, agent: &AgentId) -> Result<Vec<AskVip>, Status> {
        let mut client = self.agent(agent).ok_or_else(|| Status::not_found("not configured"))?;
        let reply = client.list_leases(with_deadline(ListLeasesRequest {}, LIST_DEADLINE)).await?.into_inner();
        let open = reply.vips.into_iter().filter(|held| held.state == "live");
        open.map(|held| {
            let vip = held.vip.parse().map_err(|error| Status::internal(format!("{agent}: {error}")))?;
            Ok(AskVip { vip, epoch: Epoch(held.epoch) })
        })
        .collect()
    }

    /// Carry out a command.
    pub fn command(
        &self,
        job: JobId,
        term: Term,
        agent: &AgentId,
        command: AgentCommand,
        timeout: Duration,
        cluster: &Cluster,
    ) {
        let migration =
            if let AgentCommand::MigrateVm { to, .. } = &command { Some(migration(cluster, to)) } else { None };
        let client = self.agent(agent);
        let authority = Some(Authority { term: term.0 });
        let deadline = timeout + WAY;
        self.run(job, async move {
            let mut client = client.ok_or_else(|| Status::not_found("not configured"))?;
            let timeout_ms = ms(timeout);
            match command {
                AgentCommand::Hold { ask, domain } => {
                    let request = HoldVipRequest {
                        term: term.0,
                        vip: ask.vip.to_string(),
                        epoch: ask.epoch.0,
                        domain: domain.map(String::from).unwrap_or_default(),
                        timeout_ms,
                        prepare: false,
                    };
                    let vip = request.vip.clone();
                    let held = client.hold_vip(with_deadline(request, deadline)).await?.into_inner();
                    let (opened, announced) = (held.opened_after_ms, held.announced_after_ms);
                    tracing::info!(vip, opened_after_ms = opened, announced_after_ms = announced, "held");
                }
                AgentCommand::Prepare { vip, domain } => {
                    let request = HoldVipRequest {
                        term: term.0,
                        vip: vip.to_string(),
                        epoch: 0,
                        domain: domain.map(String::from).unwrap_or_default(),
                        timeout_ms,
                        prepare: true,
                    };
                    client.hold_vip(with_deadline(request, deadline)).await?;
                }
                AgentCommand::Release { ask } => {
                    let request = ReleaseVipRequest { term: term.0, vip: ask.vip.to_string(), epoch: ask.epoch.0 };
                    client.release_vip(with_deadline(request, deadline)).await?;
                }
                AgentCommand::ResumeVm { domain } => {
                    let request =
                        VmRequest { authority, domain: domain.into(), timeout_ms, order: job.0, force: false };
                    client.resume_vm(with_deadline(request, deadline)).await?;
                }
                AgentCommand::PauseVm { domain } => {
                    let request =
                        VmRequest { authority, domain: domain.into(), timeout_ms, order: job.0, force: false };
                    let name = request.domain.clone();
                    if let Err(refused) = client.pause_vm(with_deadline(request, deadline)).await {
                        off_anyway(&mut client, &name, refused, deadline).await?;
                    }
                }
                AgentCommand::StartVm { domain } => {
                    let request = StartVmRequest { authority, domain: domain.into(), paused: false, timeout_ms };
                    client.start_vm(with_deadline(request, deadline)).await?;
                }
                AgentCommand::DestroyVm { domain } => {
                    destroy(&mut client, vm(authority, &domain, timeout_ms, job), deadline).await?;
                }
                AgentCommand::RebootVm { domain, force: false } => {
                    let request = vm(authority, &domain, timeout_ms, job);
                    client.reboot_vm(with_deadline(request, deadline)).await?;
                }
                // Its plug is pulled, and put in again.
                AgentCommand::RebootVm { domain, force: true } => {
                    destroy(&mut client, vm(authority, &domain, timeout_ms, job), deadline).await?;
                    let request = StartVmRequest { authority, domain: domain.into(), paused: false, timeout_ms };
                    client.start_vm(with_deadline(request, deadline)).await?;
                }
                AgentCommand::FindVm { domain } => return find(&mut client, domain.as_str(), deadline).await,
                AgentCommand::MigrateVm { domain, .. } => {
                    let request = MigrateVmRequest {
                        authority,
                        domain: domain.into(),
                        timeout_ms,
                        ..migration.unwrap_or_default()
                    };
                    let mut progress = client.migrate_vm(with_deadline(request, deadline)).await?.into_inner();
                    let mut done = false;
                    while let Some(now) = progress.message().await? {
                        done |= now.done;
                    }
                    if !done {
                        return Err(Status::unknown("the agent stopped telling of the migration before its end"));
                    }
                }
                AgentCommand::RestartService { service } => {
                    let request = RestartServiceRequest { authority, service: service.into(), timeout_ms };
                    client.restart_service(with_deadline(request, deadline)).await?;
                }
                AgentCommand::Reboot => {
                    let request = HostRequest { authority, ..HostRequest::default() };
                    client.reboot_host(with_deadline(request, deadline)).await?;
                }
                AgentCommand::Wake { mac } => {
                    let request = WakeRequest { authority, mac, interface: String::new() };
                    client.wake(with_deadline(request, deadline)).await?;
                }
                AgentCommand::ProbeVip { vip, listen } => {
                    let request =
                        ProbeVipRequest { vip: vip.to_string(), listen_ms: ms(listen), except_mac: String::new() };
                    let reply = client.probe_vip(with_deadline(request, deadline)).await?.into_inner();
                    return Ok(JobResult::Answered(Some(reply.answered_by).filter(|mac| !mac.is_empty())));
                }
            }
            Ok(JobResult::Done)
        });
    }

    /// Run a machine's power_status command: done if it prints `off`.
    pub fn read_power(&self, job: JobId, argv: Option<Vec<String>>, timeout: Duration) {
        self.run(job, async move {
            let argv = argv.unwrap_or_default();
            let (program, arguments) =
                argv.split_first().ok_or_else(|| Status::not_found("no power_status configured"))?;
            let mut command = tokio::process::Command::new(program);
            command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
            let output = tokio::time::timeout(timeout, command.output())
                .await
                .map_err(|_| Status::deadline_exceeded(format!("{program} said nothing within {timeout:?}")))?
                .map_err(|error| Status::failed_precondition(format!("{program} can't be run: {error}")))?;
            let said = String::from_utf8_lossy(&output.stdout).trim().to_ascii_lowercase();
            Ok(if output.status.success() && said == "off" {
                JobResult::Done
            } else {
                JobResult::Failed(format!("{program} says {said:?} ({})", output.status))
            })
        });
    }

    /// Run a configured command (power_off, storage_fence, storage_unfence): done if it ends with status 0.
    pub fn run_command(&self, job: JobId, argv: Option<Vec<String>>, about: Option<IpAddr>, timeout: Duration) {
        self.run(job, async move {
            let argv = argv.unwrap_or_default();
            let (program, arguments) = argv.split_first().ok_or_else(|| Status::not_found("no command configured"))?;
            let mut command = tokio::process::Command::new(program);
            command.args(arguments).args(about.map(|address| address.to_string()));
            command.stdin(std::process::Stdio::null()).kill_on_drop(true);
            let output = tokio::time::timeout(timeout, command.output())
                .await
                .map_err(|_| Status::deadline_exceeded(format!("{program} did not end within {timeout:?}")))?
                .map_err(|error| Status::failed_precondition(format!("{program} can't be run: {error}")))?;
            if output.status.success() {
                return Ok(JobResult::Done);
            }
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next_back().unwrap_or_default();
            Ok(JobResult::Failed(format!("{program}: {} ({said})", output.status)))
        });
    }

    /// ICMP echo from an observer: up to `count` requests within `timeout`, good as soon as one is answered.
    pub fn ping(&self, job: JobId, observer: Option<AgentId>, address: IpAddr, count: u16, timeout: Duration) {
        let client = observer.and_then(|observer| self.agent(&observer));
        self.run(job, async move {
            let mut client = client.ok_or_else(|| Status::not_found("no agent to look from"))?;
            let request = PingRequest {
                address: address.to_string(),
                count: count.into(),
                timeout_ms: ms(timeout),
                // The last request, too, has time for its answer.
                interval_ms: ms(timeout / (u32::from(count) + 1)).max(1),
                enough: 1,
                deadline_ms: ms(timeout),
            };
            let reply = client.ping(with_deadline(request, timeout + WAY)).await?.into_inner();
            Ok(JobResult::Check(if reply.received > 0 {
                CheckOutcome::Ok
            } else {
                CheckOutcome::Ng(format!(
                    "none of {} echo requests to {address} answered within {timeout:?}",
                    reply.sent
                ))
            }))
        });
    }

    /// Service probe from an observer.
    pub fn probe(
        &self,
        job: JobId,
        observer: Option<AgentId>,
        address: IpAddr,
        port: u16,
        probe: Probe,
        limits: Limits,
    ) {
        let agents = self.clone();
        self.run(job, async move {
            let reply = agents.ask_probe(observer, address, port, &probe, limits, false).await?;
            let outcome = match reply.outcome() {
                Outcome::Ok => CheckOutcome::Ok,
                Outcome::Error => CheckOutcome::Error(reply.detail),
                Outcome::Ng | Outcome::Unspecified => CheckOutcome::Ng(reply.detail),
            };
            Ok(JobResult::Check(outcome))
        });
    }

    /// Have an observer run a probe; `trace`: and tell each step.
    ///
    /// # Errors
    /// If it can't be asked. Whatever the service does is a reply.
    pub async fn ask_probe(
        &self,
        observer: Option<AgentId>,
        address: IpAddr,
        port: u16,
        probe: &Probe,
        limits: Limits,
        trace: bool,
    ) -> Result<ProbeReply, Status> {
        let client = observer.and_then(|observer| self.agent(&observer));
        let mut client = client.ok_or_else(|| Status::not_found("no agent to look from"))?;
        let step = |step: &Step| ProbeStep {
            send: step.send.clone(),
            expect: step.expect.clone().unwrap_or_default(),
            timeout_ms: ms(step.timeout.unwrap_or(limits.step)),
            wrong: step.wrong.clone().unwrap_or_default(),
        };
        let request = ProbeRequest {
            address: address.to_string(),
            port: port.into(),
            preset: String::new(),
            steps: probe.steps.iter().map(step).collect(),
            timeout_ms: ms(limits.total),
            transport: match probe.transport {
                Transport::Tcp => probe_request::Transport::Tcp,
                Transport::Tls => probe_request::Transport::Tls,
                Transport::Udp => probe_request::Transport::Udp,
            }
            .into(),
            server_name: probe.server_name.clone(),
            connect_timeout_ms: ms(limits.connecting()),
            trace,
        };
        Ok(client.probe(with_deadline(request, limits.total + WAY)).await?.into_inner())
    }
}
