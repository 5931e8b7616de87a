//! The agents' streams.

use crate::{
    certificates::Certificates,
    clock::now,
    driver::{Handle, Input},
};
use kage_coordinator_core::{AgentReport, Event, SessionId, config::Cluster};
use kage_proto::{
    agent::v1 as wire,
    coordinator::v1::{
        AgentMessage, Ask, Assignment, CoordinatorMessage, VoterAddress, agent_message::Message as FromAgent,
        coordinator_message::Message as ToAgent, lease_server::Lease,
    },
    roles::Peer,
    too_large,
};
use kage_types::{AgentId, AskVip, Epoch, Grant, Nonce, Verdict};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Answers waiting on one stream. More than that means that the agent does not read.
const STREAM_QUEUE: usize = 64;
/// VIPs in one request: more than a machine has.
const MAX_VIPS: usize = 4096;
/// The first message must come soon.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// `kagemusha.coordinator.v1.Lease`.
pub struct LeaseService {
    handle: Handle,
    certificates: Certificates,
    last_session: AtomicU64,
}

impl LeaseService {
    /// For the agents of the configuration in force.
    pub fn new(handle: Handle, certificates: Certificates) -> Self {
        Self { handle, certificates, last_session: AtomicU64::new(now().as_nanos()) }
    }
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A grant on the wire.
pub fn wire_grant(grant: &Grant) -> wire::Grant {
    wire::Grant {
        nonce: grant.nonce.0,
        term: grant.term.0,
        in_authority: grant.in_authority,
        length_ms: ms(grant.length),
        items: grant
            .items
            .iter()
            .map(|item| wire::GrantItem {
                vip: item.vip.to_string(),
                epoch: item.epoch.0,
                verdict: match item.verdict {
                    Verdict::Granted => wire::grant_item::Verdict::Granted,
                    Verdict::Wait => wire::grant_item::Verdict::Wait,
                    Verdict::Superseded => wire::grant_item::Verdict::Superseded,
                }
                .into(),
            })
            .collect(),
    }
}

/// What an agent is told of the configuration.
pub fn assignment(cluster: &Cluster, term: u64) -> CoordinatorMessage {
    let timing = cluster.timing;
    let voters = if cluster.bars_needed() == 0 { Vec::new() } else { cluster.voters().collect() };
    let assignment = Assignment {
        term,
        vips: cluster.vips().map(|(vip, _)| vip.to_string()).collect(),
        lease_ms: ms(timing.lease),
        element_ms: ms(timing.element),
        renewal_ms: ms(timing.renewal),
        slack_ms: ms(timing.slack),
        long_lease_ms: ms(timing.long_lease),
        voters: voters
            .into_iter()
            .filter_map(|voter| {
                let machine = cluster.agents.get(voter)?;
                Some(VoterAddress { agent: voter.to_string(), address: machine.address.to_string() })
            })
            .collect(),
        on_coordinator_loss: cluster.on_coordinator_loss.as_str().into(),
    };
    CoordinatorMessage { message: Some(ToAgent::Assignment(assignment)) }
}

fn ask_vips(vips: &[wire::AskVip]) -> Result<Vec<AskVip>, Status> {
    if vips.len() > MAX_VIPS {
        return Err(Status::invalid_argument(format!("{} VIPs in one request, {MAX_VIPS} at most", vips.len())));
    }
    vips.iter()
        .map(|item| {
            let vip = item.vip.parse().map_err(|error| Status::invalid_argument(format!("vips: {error}")))?;
            Ok(AskVip { vip, epoch: Epoch(item.epoch) })
        })
        .collect()
}

pub(crate) fn ask_event(agent: AgentId, session: SessionId, via: Option<AgentId>, ask: &Ask) -> Result<Event, Status> {
    Ok(Event::Ask {
        agent,
        session,
        via,
        incarnation: ask.incarnation,
        nonce: Nonce(ask.nonce),
        heard: Nonce(ask.heard),
        vips: ask_vips(&ask.vips)?,
        long: ask.long,
        long_surrendered: ask.long_surrendered,
    })
}

/// Bytes of what an agent says for people. Events are kept by the ten thousand: a longer text is cut.
const MAX_TEXT: usize = 1024;

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What happened longer ago is history: the agent could not tell it in time, and the checks have seen more since.
const STALE_MS: u32 = 3000;

pub(crate) fn report(event: wire::AgentEvent) -> Option<AgentReport> {
    let age = event.age_ms;
    let report = fresh(event)?;
    if age <= STALE_MS {
        return Some(report);
    }
    let text = match report {
        // How things are, not what happened: the last word counts.
        AgentReport::ServiceHeld { .. } => return Some(report),
        AgentReport::Opened(ask) => format!("{} was opened at epoch {}", ask.vip, ask.epoch),
        AgentReport::Lost { ask, reason } => format!("{} was closed at epoch {}: {reason}", ask.vip, ask.epoch),
        AgentReport::GoingDown { what, .. } => format!("it was going down ({what})"),
        AgentReport::ServiceDown { service, detail } => format!("service {service} was down: {detail}"),
        AgentReport::VmCrashed { domain, detail } => format!("VM {domain} crashed ({detail})"),
        AgentReport::Other(text) => text,
    };
    Some(AgentReport::Other(format!("{text} ({} s ago)", age / 1000)))
}

fn fresh(event: wire::AgentEvent) -> Option<AgentReport> {
    use wire::agent_event::Event as E;
    let ask = |vip: &str, epoch: u64| Some(AskVip { vip: vip.parse().ok()?, epoch: Epoch(epoch) });
    Some(match event.event? {
        E::Vm(vm) if vm.event == "crashed" => {
            AgentReport::VmCrashed { domain: vm.domain.parse().ok()?, detail: cut(vm.detail) }
        }
        E::Vm(vm) => AgentReport::Other(cut(format!("VM {} {} ({})", vm.domain, vm.event, vm.detail))),
        E::Service(state) if state.held.is_some() => {
            AgentReport::ServiceHeld { service: state.service.parse().ok()?, held: state.held() }
        }
        E::Service(state) if state.state == "running" => {
            AgentReport::Other(cut(format!("service {} runs", state.service)))
        }
        E::Service(state) if state.state == "held" => {
            AgentReport::Other(cut(format!("service {} is {}", state.service, state.detail)))
        }
        E::Service(state) => {
            AgentReport::ServiceDown { service: state.service.parse().ok()?, detail: cut(state.detail) }
        }
        E::LeaseLost(lost) => AgentReport::Lost { ask: ask(&lost.vip, lost.epoch)?, reason: cut(lost.reason) },
        E::LeaseOpened(opened) => AgentReport::Opened(ask(&opened.vip, opened.epoch)?),
        E::GoingDown(going) => AgentReport::GoingDown { machine: going.what != "agent", what: cut(going.what) },
        E::GuardReinstalled(guard) => AgentReport::Other(cut(format!("the guard was put back: {}", guard.reason))),
        E::AddressRestored(put) => {
            AgentReport::Other(cut(format!("the address {} was put back: somebody had taken it off", put.vip)))
        }
        E::Warning(warning) => AgentReport::Other(cut(warning.text)),
        E::Woke(woke) if !woke.failed.is_empty() => {
            AgentReport::Other(cut(format!("its machine did not sleep: {}", woke.failed)))
        }
        E::Woke(woke) => AgentReport::Other(format!("its machine slept for {} s and is back", woke.slept_ms / 1000)),
        E::Missed(count) => AgentReport::Other(format!("{count} events were dropped")),
    })
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type AttendStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn attend(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::AttendStream>, Status> {
        let agent = Peer::of(&request)?.agent()?;
        let name = agent.clone();
        if !self.handle.query(move |core, _| core.cluster().agents.contains_key(&name)).await? {
            return Err(Status::permission_denied(format!(
                "{agent} is not in the coordinator's configuration: add an [[agent]] section for it"
            )));
        }
        let session = SessionId(self.last_session.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let (handle, certificates) = (self.handle.clone(), self.certificates.clone());
        let inbound = request.into_inner();
        tokio::spawn(async move {
            let result = attend(&handle, &certificates, agent.clone(), session, inbound, sender.clone()).await;
            if let Err(status) = result {
                tracing::debug!(%agent, reason = status.message(), "a stream ended");
                // It may have gone already.
                let _ = sender.try_send(Err(status)).is_err();
            }
            handle.event(Event::AgentDown { agent, session }).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn attend(
    handle: &Handle,
    certificates: &Certificates,
    agent: AgentId,
    session: SessionId,
    mut inbound: Streaming<AgentMessage>,
    sender: mpsc::Sender<Result<CoordinatorMessage, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, inbound.next())
        .await
        .map_err(|_| Status::deadline_exceeded("no hello within 5 s"))?
        .ok_or_else(|| Status::aborted("the stream ended before its hello"))??;
    let Some(FromAgent::Hello(hello)) = first.message else {
        return Err(Status::invalid_argument("the first message must be a hello"));
    };
    // The driver sends it its assignment, now and whenever that changes: none is missed in between.
    handle.send(Input::Session(session, agent.clone(), sender)).await;
    tracing::info!(%agent, version = hello.version, boot_id = hello.boot_id, "an agent attends");
    handle.event(Event::AgentUp { agent: agent.clone(), session, incarnation: hello.incarnation }).await;
    while let Some(message) = inbound.next().await {
        let message = message.map_err(|status| too_large(&status).unwrap_or(status))?;
        let event = match message.message {
            Some(FromAgent::Ask(ask)) => ask_event(agent.clone(), session, None, &ask)?,
            Some(FromAgent::RelayedAsk(relayed)) => {
                let origin =
                    relayed.origin.parse().map_err(|error| Status::invalid_argument(format!("origin: {error}")))?;
                let ask = relayed.ask.ok_or_else(|| Status::invalid_argument("a relayed request without request"))?;
                ask_event(origin, session, Some(agent.clone()), &ask)?
            }
            Some(FromAgent::Event(event)) => match report(event) {
                Some(report) => Event::Report { agent: agent.clone(), report },
                None => continue,
            },
            Some(FromAgent::CertificateEndsUnixS(ends)) => {
                certificates.told(format!("agent {agent}"), ends);
                continue;
            }
            Some(FromAgent::Hello(_)) => return Err(Status::invalid_argument("one hello per stream")),
            // A newer agent may say what this coordinator does not know.
            None => continue,
        };
        handle.event(event).await;
    }
    Ok(())
}
