//! The operators' service.

use crate::{
    agents::Agents,
    arranged,
    certificates::Certificates,
    characterise::{Characterise, Store},
    clock::unix_ms,
    driver::{Handle, Input},
    enrol::Enrolment,
    events::{Events, Numbered, Watched},
    orders,
    reload::Reloader,
    why::Why,
};
use kage_coordinator_core::{Coordinator, Event as CoreEvent, config::Service, predict};
use kage_proto::coordinator::v1::{
    AdoptReply, AdoptRequest, AgentStatus, CharacteriseProgress, CharacteriseRequest, CheckReply, CheckRequest,
    ClearOrderRequest, CreateTokenReply, CreateTokenRequest, EndQuarantineReply, EndQuarantineRequest, Event,
    ExplainReply, ExplainRequest, GetCharacteristicsReply, GetCharacteristicsRequest, GetStatusRequest, MoveRequest,
    OrderReply, ProbeTargetReply, ProbeTargetRequest, ProbedService, PutOrderRequest, ReloadReply, ReloadRequest,
    Status as ClusterStatus, TargetStatus, VipStatus, WatchEventsRequest, coordinator_server,
};
use kage_proto::{audit, roles::Peer};
use kage_types::{TargetName, Time};
use std::{pin::Pin, time::Duration};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// Events waiting for one reader.
const STREAM_QUEUE: usize = 256;
/// Kept events that a reader is given at once.
const PAGE: usize = 64;
/// A planned move takes a fraction of a second; one that lasts longer is reported as not finished.
const MOVE_DEADLINE: Duration = Duration::from_secs(30);

/// `kagemusha.coordinator.v1.Coordinator`.
pub struct Operator {
    /// To the driver.
    pub handle: Handle,
    /// What happened.
    pub events: Events,
    /// Tokens.
    pub enrolment: Enrolment,
    /// Reads the configuration again.
    pub reloader: Reloader,
    /// What was measured.
    pub characteristics: Store,
    /// For measuring.
    pub agents: Agents,
    /// When they end.
    pub certificates: Certificates,
    /// Explains what was done.
    pub why: Why,
}

impl Operator {
    async fn probe(&self, request: ProbeTargetRequest) -> Result<ProbeTargetReply, Status> {
        let name: TargetName =
            request.target.parse().map_err(|error| Status::invalid_argument(format!("target: {error}")))?;
        let asked = name.clone();
        let (found, from, profile, detection) = self
            .handle
            .query(move |core, _| {
                let cluster = core.cluster();
                (cluster.targets.get(&asked).cloned(), core.observer().cloned(), cluster.profile, cluster.detection)
            })
            .await?;
        let target = found.ok_or_else(|| Status::not_found(format!("there is no target {name}: `kagectl status`")))?;
        let vip = target.vips.first().map_or(target.address, |vip| vip.address());
        let address = if request.at_target { target.address } else { vip };
        let wanted = |service: &&Service| request.service.is_empty() || service.name.as_str() == request.service;
        let mut services = Vec::new();
        for service in target.services.iter().filter(wanted) {
            let limits = service.probe.limits(profile, &detection);
            let reply =
                self.agents.ask_probe(from.clone(), address, service.port, &service.probe, limits, true).await?;
            services.push(ProbedService {
                service: service.name.to_string(),
                address: address.to_string(),
                port: service.port.into(),
                from: from.as_ref().map(ToString::to_string).unwrap_or_default(),
                probe: service.probe.name().to_owned(),
                reply: Some(reply),
            });
        }
        if services.is_empty() {
            let known: Vec<_> = target.services.iter().map(|service| service.name.as_str()).collect();
            return Err(Status::not_found(match (request.service.as_str(), known.is_empty()) {
                (_, true) => format!("target {name} has no [[target.service]] in cluster.toml"),
                (other, false) => format!("target {name} has no service {other:?}: it has {}", known.join(", ")),
            }));
        }
        Ok(ProbeTargetReply { services })
    }

    async fn move_target(
        &self,
        request: MoveRequest,
        back: bool,
    ) -> Result<ReceiverStream<Result<Event, Status>>, Status> {
        let target: TargetName =
            request.target.parse().map_err(|error| Status::invalid_argument(format!("target: {error}")))?;
        let (done, ended) = oneshot::channel();
        let after = self.events.seq();
        let live = self.events.watch(after, 0).live;
        let (name, force) = (target.clone(), request.force);
        let event = Box::new(move |command| CoreEvent::Move { command, target: name, back, force });
        self.handle.send(Input::Command(event, done)).await;
        ended
            .await
            .map_err(|_| Status::unavailable("the coordinator is stopping"))?
            .map_err(Status::failed_precondition)?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(follow_move(self.handle.clone(), self.events.clone(), after, live, target, sender));
        Ok(ReceiverStream::new(receiver))
    }
}

fn wire_event(numbered: &Numbered) -> Event {
    Event {
        seq: numbered.seq,
        unix_ms: numbered.unix_ms,
        target: numbered.note.target.as_ref().map(ToString::to_string).unwrap_or_default(),
        severity: numbered.note.severity.as_str().into(),
        kind: numbered.note.kind.clone(),
        text: numbered.note.text.clone(),
    }
}

pub(crate) fn settled(core: &Coordinator, target: &TargetName) -> bool {
    let vips = core.cluster().targets.get(target).map(|target| target.vips.clone()).unwrap_or_default();
    vips.into_iter().all(|vip| core.vip(vip).is_some_and(|view| view.moving.is_none() && view.held))
}

/// Pass on a target's events until its VIPs have arrived.
async fn follow_move(
    handle: Handle,
    events: Events,
    after: u64,
    mut live: broadcast::Receiver<Numbered>,
    target: TargetName,
    sender: mpsc::Sender<Result<Event, Status>>,
) {
    let deadline = tokio::time::sleep(MOVE_DEADLINE);
    tokio::pin!(deadline);
    let mut last = after;
    for numbered in events.after(after) {
        last = numbered.seq;
        if numbered.note.target.as_ref() == Some(&target) && sender.send(Ok(wire_event(&numbered))).await.is_err() {
            return;
        }
    }
    loop {
        let name = target.clone();
        if handle.query(move |core, _| settled(core, &name)).await.unwrap_or(true) {
            // What was noted until now is still in the queue.
            while let Ok(numbered) = live.try_recv() {
                if numbered.seq > last && numbered.note.target.as_ref() == Some(&target) {
                    let _ = sender.send(Ok(wire_event(&numbered))).await.is_err();
                }
            }
            return;
        }
        tokio::select! {
            numbered = live.recv() => match numbered {
                Ok(numbered) if numbered.seq > last && numbered.note.target.as_ref() == Some(&target) => {
                    last = numbered.seq;
                    if sender.send(Ok(wire_event(&numbered))).await.is_err() {
                        return;
                    }
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = &mut deadline => {
                let text = format!("{target} has not arrived after {MOVE_DEADLINE:?}; it is still being tried: kagectl status");
                let _ = sender.send(Err(Status::deadline_exceeded(text))).await.is_err();
                return;
            }
        }
    }
}

fn status(core: &Coordinator, now: Time, journal_seq: u64) -> ClusterStatus {
    let cluster = core.cluster();
    let (term, in_authority, sif) = core.authority(now);
    let ago = |at: Time| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
    let targets = cluster
        .targets
        .iter()
        .filter_map(|(name, target)| {
            let view = core.target(name)?;
            let vips = target
                .vips
                .iter()
                .filter_map(|vip| {
                    let state = core.vip(*vip)?;
                    let owner = state.row.as_ref().map(|row| row.owner.clone());
                    let at_home = state.row.as_ref().is_some_and(|row| target.is_served_by(row));
                    let holder = match &owner {
                        None => "nobody",
                        Some(_) if !state.held => "nobody",
                        Some(_) if at_home => "target",
                        Some(_) => "backup",
                    };
                    Some(VipStatus {
                        vip: vip.to_string(),
                        epoch: state.row.as_ref().map_or(0, |row| row.epoch.0),
                        owner: owner.map(String::from).unwrap_or_default(),
                        granted_ms_ago: state.granted.map(ago),
                        holder: holder.into(),
                    })
                })
                .collect();
            Some(TargetStatus {
                target: name.to_string(),
                mode: view.mode.into(),
                detail: view.detail,
                vips,
                agent: target.agent.to_string(),
                backup_agent: core.double_host(target).to_string(),
                backup_domain: target.backup.domain.to_string(),
                ping: view.ping,
                service: view.service,
                mode_for_ms: ago(view.since),
                suspended: core.is_suspended(target),
                vm: target.domain().map(ToString::to_string).unwrap_or_default(),
            })
        })
        .collect();
    let agents = cluster
        .agents
        .iter()
        .map(|(name, machine)| {
            let (connected, asked) = core.agent(name);
            AgentStatus {
                agent: name.to_string(),
                connected,
                voter: machine.voter,
                address: machine.address.to_string(),
                asked_ms_ago: asked.map(ago),
                asleep: core.at_rest(name),
            }
        })
        .collect();
    ClusterStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        profile: cluster.profile.as_str().into(),
        term: term.0,
        in_authority,
        sif: sif.as_ref().map_or_else(Clone::clone, |()| "connected".into()),
        targets,
        agents,
        storm_brake: core.storm_brake().unwrap_or_default().into(),
        alerts: core.alerts(),
        journal_seq,
        on_coordinator_loss: cluster.on_coordinator_loss.as_str().into(),
        orders: orders::status(core, now),
        quarantines: orders::quarantines(core, now),
        certificates: Vec::new(),
        saving: core.tables().and_then(|tables| arranged::status(tables, unix_ms())),
    }
}

/// The end of a stream whose reader was outrun.
fn too_slow(missed: u64, last: u64) -> Status {
    Status::data_loss(format!(
        "{missed} events were missed because they were read too slowly: ask again after seq {last}"
    ))
}

type EventStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

#[tonic::async_trait]
impl coordinator_server::Coordinator for Operator {
    type WatchEventsStream = EventStream;
    type FailoverStream = EventStream;
    type FailbackStream = EventStream;
    type CharacteriseStream = Pin<Box<dyn Stream<Item = Result<CharacteriseProgress, Status>> + Send>>;

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<ClusterStatus>, Status> {
        let seq = self.events.seq();
        let mut status = self.handle.query(move |core, now| status(core, now, seq)).await?;
        status.certificates = self.certificates.status();
        Ok(Response::new(status))
    }

    async fn watch_events(&self, request: Request<WatchEventsRequest>) -> Result<Response<EventStream>, Status> {
        let WatchEventsRequest { after_seq, follow, target } = request.into_inner();
        let events = self.events.clone();
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(async move {
            let wanted = |numbered: &Numbered| {
                target.is_empty() || numbered.note.target.as_ref().is_some_and(|name| name.as_str() == target)
            };
            let mut last = after_seq;
            // What is kept is copied page by page: a reader that reads nothing holds one.
            let mut live = loop {
                let Watched { kept, oldest, live } = events.watch(last, PAGE);
                if last > after_seq && oldest > last.saturating_add(1) {
                    let _ = sender.send(Err(too_slow(oldest - last - 1, last))).await.is_err();
                    return;
                }
                let done = kept.len() < PAGE;
                for numbered in kept {
                    last = numbered.seq;
                    if wanted(&numbered) && sender.send(Ok(wire_event(&numbered))).await.is_err() {
                        return;
                    }
                }
                if done {
                    break live;
                }
            };
            if !follow {
                return;
            }
            loop {
                let numbered = tokio::select! {
                    numbered = live.recv() => numbered,
                    () = sender.closed() => return,
                };
                match numbered {
                    Ok(numbered) if numbered.seq > last && wanted(&numbered) => {
                        last = numbered.seq;
                        if sender.send(Ok(wire_event(&numbered))).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        let _ = sender.send(Err(too_slow(missed, last))).await.is_err();
                        return;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|item| item))))
    }

    async fn failover(&self, request: Request<MoveRequest>) -> Result<Response<EventStream>, Status> {
        audit::about(request.get_ref());
        Ok(Response::new(Box::pin(self.move_target(request.into_inner(), false).await?)))
    }

    async fn failback(&self, request: Request<MoveRequest>) -> Result<Response<EventStream>, Status> {
        audit::about(request.get_ref());
        Ok(Response::new(Box::pin(self.move_target(request.into_inner(), true).await?)))
    }

    async fn put_order(&self, request: Request<PutOrderRequest>) -> Result<Response<OrderReply>, Status> {
        audit::about(request.get_ref());
        let peer = Peer::of(&request)?;
        Ok(Response::new(orders::put(&self.handle, &peer, request.into_inner()).await?))
    }

    async fn clear_order(&self, request: Request<ClearOrderRequest>) -> Result<Response<OrderReply>, Status> {
        audit::about(request.get_ref());
        let peer = Peer::of(&request)?;
        Ok(Response::new(orders::clear(&self.handle, &peer, request.into_inner()).await?))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptReply>, Status> {
        audit::about(request.get_ref());
        let peer = Peer::of(&request)?;
        let reply = orders::adopt(&self.handle, &self.events, &self.agents, &peer, request.into_inner()).await?;
        Ok(Response::new(reply))
    }

    async fn end_quarantine(
        &self,
        request: Request<EndQuarantineRequest>,
    ) -> Result<Response<EndQuarantineReply>, Status> {
        audit::about(request.get_ref());
        let peer = Peer::of(&request)?;
        orders::end_quarantine(&self.handle, &peer, request.into_inner()).await?;
        Ok(Response::new(EndQuarantineReply {}))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        let known = self.characteristics.get();
        let report = self.handle.query(move |core, _| predict::predict(core.cluster(), &known)).await?;
        let report_json = serde_json::to_string(&report).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(CheckReply { report_json }))
    }

    async fn probe_target(&self, request: Request<ProbeTargetRequest>) -> Result<Response<ProbeTargetReply>, Status> {
        Ok(Response::new(self.probe(request.into_inner()).await?))
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadReply>, Status> {
        audit::about(request.get_ref());
        let ReloadRequest { dry_run, force } = request.into_inner();
        Ok(Response::new(self.reloader.reload(dry_run, force).await?))
    }

    async fn characterise(
        &self,
        request: Request<CharacteriseRequest>,
    ) -> Result<Response<Self::CharacteriseStream>, Status> {
        audit::about(request.get_ref());
        let CharacteriseRequest { target, runs, machine_runs } = request.into_inner();
        let target = target.parse().map_err(|error| Status::invalid_argument(format!("target: {error}")))?;
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let (handle, agents, store) = (self.handle.clone(), self.agents.clone(), self.characteristics.clone());
        tokio::spawn(Characterise { handle, agents, store, target, runs, machine_runs }.run(sender));
        let progress = ReceiverStream::new(receiver).map(|text| text.map(|text| CharacteriseProgress { text }));
        Ok(Response::new(Box::pin(progress)))
    }

    async fn get_characteristics(
        &self,
        _: Request<GetCharacteristicsRequest>,
    ) -> Result<Response<GetCharacteristicsReply>, Status> {
        let json =
            serde_json::to_string(&self.characteristics.get()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(GetCharacteristicsReply { json }))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainReply>, Status> {
        Ok(Response::new(self.why.explain(request.into_inner()).await?))
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Result<Response<CreateTokenReply>, Status> {
        audit::about(request.get_ref());
        let token = self.enrolment.create(request.into_inner())?;
        Ok(Response::new(CreateTokenReply { token }))
    }
}
