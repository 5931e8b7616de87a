//! The one task that owns the core: events in, actions out. It awaits nothing but its next input.

use crate::{
    agents::Agents,
    certificates::Certificates,
    clock::{now, unix_ms},
    events::Events,
    journal::Journal,
    sif::Sif,
};
use kage_coordinator_core::{
    Action, Coordinator, Event, JobId, JobResult, SessionId, arrangement::Arrangement, config::Cluster,
};
use kage_proto::{
    channel::ChannelError,
    coordinator::v1::{CoordinatorMessage, RelayedGrant, coordinator_message::Message},
    tls::Pki,
};
use kage_types::{AgentId, Time};
use std::{collections::BTreeMap, time::Duration};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Inputs waiting for the driver: a second's worth of a thousand agents. A sender that finds it full waits.
const QUEUE: usize = 8192;
/// The driver looks at the clock at least this often, so that a stall is noticed.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The core is told the wall clock so often, where a target has hours: somebody may set it.
const WALL_CLOCK: Duration = Duration::from_secs(60);

type Query = Box<dyn FnOnce(&Coordinator, Time) + Send>;
type SessionSender = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// What the driver is given.
pub enum Input {
    /// For the core.
    Event(Event),
    /// An agent's stream; its messages go there.
    Session(SessionId, AgentId, SessionSender),
    /// An operator's command, and where its end goes.
    Command(Box<dyn FnOnce(u64) -> Event + Send>, oneshot::Sender<Result<(), String>>),
    /// Look at the core.
    Query(Query),
}

/// What it takes.
pub struct Setup {
    pub cluster: Cluster,
    pub pki: Pki,
    pub events: Events,
    pub journal: Journal,
    pub certificates: Certificates,
    /// Power saving, if it runs in this process: it has the same configuration.
    pub saving: Option<crate::pss::Sender>,
}

/// The way to the driver.
#[derive(Clone)]
pub struct Handle(mpsc::Sender<Input>);

impl Handle {
    /// Give an event to the core.
    pub async fn event(&self, event: Event) {
        self.send(Input::Event(event)).await;
    }

    /// Give anything to the driver.
    pub async fn send(&self, input: Input) {
        if self.0.send(input).await.is_err() {
            tracing::debug!("the driver has ended");
        }
    }

    /// End a job.
    pub async fn ended(&self, job: JobId, result: JobResult) {
        self.event(Event::Job { job, result }).await;
    }

    /// Ask the core.
    ///
    /// # Errors
    /// UNAVAILABLE while the coordinator stops.
    pub async fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Coordinator, Time) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let query: Query = Box::new(move |core, now| {
            // Whoever asked may have gone.
            let _ = answer.send(ask(core, now)).is_err();
        });
        self.send(Input::Query(query)).await;
        answered.await.map_err(|_| Status::unavailable("the coordinator is stopping"))
    }
}

struct Driver {
    core: Coordinator,
    events: Events,
    journal: Journal,
    sif: Sif,
    agents: Agents,
    sessions: BTreeMap<SessionId, (AgentId, SessionSender)>,
    commands: BTreeMap<u64, oneshot::Sender<Result<(), String>>>,
    last_command: u64,
    /// When the core is told the wall clock next.
    wall_clock: Time,
    saving: Option<crate::pss::Sender>,
}

/// Start the driver; also gives the way to the agents.
///
/// # Errors
/// If a channel to an agent or to SIF can't be described.
pub fn spawn(setup: Setup) -> Result<(Handle, Agents), ChannelError> {
    let Setup { cluster, pki, events, mut journal, certificates, saving } = setup;
    let (sender, inputs) = mpsc::channel(QUEUE);
    let handle = Handle(sender);
    let agents = Agents::new(&cluster, &pki, handle.clone())?;
    let sif = Sif::new(&cluster, &pki, handle.clone(), agents.clone(), certificates)?;
    let started = now();
    journal.start(started, &cluster);
    #[allow(unused_mut, reason = "only what tests build is changed")]
    let mut core = Coordinator::new(started, cluster);
    #[cfg(feature = "sabotage")]
    sabotage(&mut core);
    let driver = Driver {
        core,
        events,
        journal,
        sif,
        agents: agents.clone(),
        sessions: BTreeMap::new(),
        commands: BTreeMap::new(),
        last_command: 0,
        wall_clock: started,
        saving,
    };
    let agents = driver.agents.clone();
    tokio::spawn(driver.run(inputs));
    Ok((handle, agents))
}

/// What `$KAGE_SABOTAGE` names is broken on purpose: tests see that it is missed.
#[cfg(feature = "sabotage")]
fn sabotage(core: &mut Coordinator) {
    use kage_coordinator_core::Sabotage;
    let rule = match std::env::var("KAGE_SABOTAGE").as_deref() {
        Ok("a1") => Sabotage::SignalA1,
        Ok("a2") => Sabotage::SignalA2,
        Ok("a4") => Sabotage::SignalA4,
        Ok("a5") => Sabotage::SignalA5,
        Ok(_) | Err(_) => return,
    };
    tracing::error!(?rule, "BROKEN ON PURPOSE: this is no coordinator to work with");
    core.sabotage(rule);
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        self.follow_tables();
        self.step(Event::Tick);
        loop {
            self.tell_wall_clock();
            let wait = self.core.deadline().map_or(HEARTBEAT, |(due, _)| due.since(now())).min(HEARTBEAT);
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(Input::Event(event)) => self.step(event),
                    Some(Input::Session(id, agent, sender)) => self.attend(id, agent, sender),
                    Some(Input::Command(event, done)) => {
                        self.last_command += 1;
                        self.commands.insert(self.last_command, done);
                        let event = event(self.last_command);
                        self.step(event);
                    }
                    Some(Input::Query(query)) => query(&self.core, now()),
                    None => return,
                },
                () = tokio::time::sleep(wait) => self.step(Event::Tick),
            }
        }
    }

    /// Without virtual servers nobody asks what the shared tables say.
    fn follow_tables(&self) {
        if !Arrangement::of(self.core.cluster()).is_empty() {
            self.sif.follow_tables();
        }
    }

    fn tell_wall_clock(&mut self) {
        let at = now();
        if at < self.wall_clock {
            return;
        }
        self.wall_clock = at + WALL_CLOCK;
        if self.core.cluster().targets.values().any(|target| !target.failback_hours.is_always()) {
            self.step(Event::WallClock { now_unix_ms: unix_ms() });
        }
    }

    fn step(&mut self, event: Event) {
        let at = now();
        if let Event::AgentDown { session, .. } = &event {
            self.sessions.remove(session);
        }
        // A tick that finds nothing due tells a replay nothing.
        let idle = event == Event::Tick && self.core.deadline().is_some_and(|(due, _)| due > at);
        if idle {
            return;
        }
        let pending = self.journal.begin(at, &self.core, &event);
        let mut actions = Vec::new();
        self.core.step(at, event, &mut actions);
        pending.end(&actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Reply { session, origin, grant } => {
                let grant = crate::lease::wire_grant(&grant);
                let message = match origin {
                    None => Message::Grant(grant),
                    Some(origin) => Message::RelayedGrant(RelayedGrant { origin: origin.into(), grant: Some(grant) }),
                };
                if let Some((_, sender)) = self.sessions.get(&session) {
                    // A stream that does not drain is a dead agent: what it misses it asks for again.
                    if sender.try_send(Ok(CoordinatorMessage { message: Some(message) })).is_err() {
                        tracing::debug!(?session, "an answer was dropped: the stream is full or gone");
                    }
                }
            }
            Action::AcquireTerm => self.sif.acquire_term(),
            Action::RenewTerm { term } => self.sif.renew_term(term),
            Action::ReadLedger => self.sif.read_ledger(),
            Action::AdvanceEpoch { job, vip, expected, owner, domain, target, cause } => {
                let term = self.term();
                self.sif.advance_epoch(job, term, vip, expected, owner, domain, target, cause);
            }
            Action::SetLongLease { job, vip, outstanding } => {
                let term = self.term();
                self.sif.set_long_lease(job, term, vip, outstanding);
            }
            Action::PutTrouble { target, stage, detail } => {
                let term = self.term();
                self.sif.put_trouble(term, target, stage, detail);
            }
            Action::PutOrder { job, order } => {
                let term = self.term();
                self.sif.put_order(job, term, order);
            }
            Action::ClearOrder { job, scope } => {
                let term = self.term();
                self.sif.clear_order(job, term, &scope);
            }
            Action::PutArrangement { job, arrangement } => self.sif.put_arrangement(job, self.term(), &arrangement),
            Action::FunctionRestored { job, place, backup, host } => {
                self.sif.function_restored(job, self.term(), place, backup, host);
            }
            Action::TargetVerdict { job, place, recovered, host } => {
                self.sif.target_verdict(job, self.term(), place, recovered, host);
            }
            Action::PutClaims { job, target, why, claims } => {
                self.sif.put_claims(job, self.term(), target, why, &claims);
            }
            Action::MovedTo { job, vm, host, not_on } => self.sif.moved_to(job, self.term(), vm, host, &not_on),
            Action::Bar { job, voter, vip, floor } => self.agents.bar(job, self.term(), &voter, vip, floor),
            Action::Command { job, agent, command, timeout } => {
                self.agents.command(job, self.term(), &agent, command, timeout, self.core.cluster());
            }
            Action::ReadPower { job, agent, timeout } => {
                let machine = self.core.cluster().agents.get(&agent);
                self.agents.read_power(job, machine.and_then(|machine| machine.power_status.clone()), timeout);
            }
            Action::PowerOff { job, agent, timeout } => {
                let machine = self.core.cluster().agents.get(&agent);
                self.agents.run_command(job, machine.and_then(|machine| machine.power_off.clone()), None, timeout);
            }
            Action::FenceStorage { job, address, revoke, timeout } => {
                let cluster = self.core.cluster();
                let argv = if revoke { &cluster.storage_fence } else { &cluster.storage_unfence };
                self.agents.run_command(job, argv.clone(), Some(address), timeout);
            }
            Action::Ping { job, address, count, timeout } => {
                self.agents.ping(job, self.core.observer().cloned(), address, count, timeout);
            }
            Action::Probe { job, address, port, probe, limits } => {
                self.agents.probe(job, self.core.observer().cloned(), address, port, probe, limits);
            }
            Action::Note(note) => self.events.add(note),
            Action::Configured => self.configured(),
            Action::Moved { command, result } => {
                if let Some(done) = self.commands.remove(&command) {
                    // The operator may have gone.
                    let _ = done.send(result).is_err();
                }
            }
        }
    }

    /// An agent's stream is up: its assignment is the first it hears.
    fn attend(&mut self, id: SessionId, agent: AgentId, sender: SessionSender) {
        let assignment = crate::lease::assignment(self.core.cluster(), self.term().0);
        // Nothing waits in a new stream.
        let _ = sender.try_send(Ok(assignment)).is_err();
        self.sessions.insert(id, (agent, sender));
    }

    /// Agents that are listed no more are left; the others are told what is to be guarded now.
    fn configured(&mut self) {
        self.follow_tables();
        self.agents.reconfigure(self.core.cluster());
        if let Some(saving) = &self.saving {
            saving.configure(self.core.cluster());
        }
        let assignment = crate::lease::assignment(self.core.cluster(), self.term().0);
        for (agent, sender) in self.sessions.values() {
            let message = if self.core.cluster().agents.contains_key(agent) {
                Ok(assignment.clone())
            } else {
                Err(Status::permission_denied(format!("{agent} was removed from the coordinator's configuration")))
            };
            if sender.try_send(message).is_err() {
                tracing::warn!(%agent, "its new assignment was not sent: its stream is full or gone; it gets it when it connects again");
            }
        }
    }

    fn term(&self) -> kage_types::Term {
        self.core.authority(now()).0
    }
}
