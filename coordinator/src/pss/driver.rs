//! The one task that owns power saving's core: inputs in, actions out. It awaits nothing but its next input.

use super::{
    act::{self, Context, Jobs, Ways},
    inventory::{self, Ledger, Seen, SeenHost, SeenVm},
    notes, policy,
    signal::{self, Answer, Flights, Sif},
    view, watch as follow,
};
use crate::{
    clock::{now, unix_ms},
    events::Events,
    journal::Journal,
};
use kage_coordinator::saving::journal::Saver;
use kage_coordinator_core::config::Cluster;
use kage_proto::{agent::v1::agent_client::AgentClient, coordinator::v1::PowerSavingStatus, tls::Pki};
use kage_pss_core::{
    Input as Core, Pss,
    execute::{Action, Event, JobId, JobResult, Recorded, SignalId},
    inventory::{Claim, VmState},
    load::Sample,
};
use kage_types::{AgentId, DomainName, StepState, Time, TransitionRow};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// Inputs waiting for the driver: several seconds' worth of a hundred hosts. A sender that finds it full waits.
const QUEUE: usize = 4096;
/// The driver looks at the clock at least this often.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// From one attempt to take over an earlier process's transition to the next.
const TAKE_AGAIN: Duration = Duration::from_secs(2);

/// What the driver is given.
pub enum Input {
    /// The shared tables.
    Ledger(Arc<Ledger>),
    /// They can't be followed, and why.
    SifAway(String),
    /// What a host is and runs.
    Host(AgentId, Box<SeenHost>),
    /// What runs there, as a step's look found it.
    Vms(AgentId, BTreeMap<DomainName, SeenVm>),
    /// Its agent does not answer.
    HostAway(AgentId),
    /// Counters of a virtual server.
    Sample(DomainName, Box<Sample>),
    /// What a host draws.
    Power(AgentId, kage_pss_core::units::Watts),
    /// Of a signal.
    Answered(SignalId, Answer),
    /// Of taking over a transition.
    Taken(Box<TransitionRow>, Answer),
    /// Of a job.
    Ended(JobId, JobResult),
    /// A host answers again, so long after it was called.
    Woke(AgentId, u32),
    /// The configuration has changed.
    Configure(Box<Cluster>),
    /// For people.
    Ask(oneshot::Sender<PowerSavingStatus>),
}

/// The way to the driver.
#[derive(Clone)]
pub struct Sender(mpsc::Sender<Input>);

impl Sender {
    pub async fn send(&self, input: Input) {
        if self.0.send(input).await.is_err() {
            tracing::debug!("power saving has ended");
        }
    }

    /// Without waiting: for a configuration, which another driver passes on.
    pub fn configure(&self, cluster: &Cluster) {
        if self.0.try_send(Input::Configure(Box::new(cluster.clone()))).is_err() {
            tracing::error!("power saving was not told of the new configuration: restart kage-coordinator");
        }
    }
}

/// How far we are with what an earlier process left.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start {
    /// No tables yet.
    Waiting,
    /// A transition is being taken over.
    Taking,
    /// It could not be: again then.
    Again(Time),
    /// Nothing is left.
    Ready,
}

/// What it takes.
pub struct Setup {
    pub cluster: Cluster,
    pub pki: Pki,
    pub events: Events,
    pub sif: tonic::transport::Channel,
    pub by: String,
    /// What was known of the hosts is kept there.
    pub file: PathBuf,
    pub journal: Journal<Saver>,
}

/// Power saving's shell.
pub struct Driver {
    core: Saver,
    journal: Journal<Saver>,
    cluster: Arc<Cluster>,
    pki: Pki,
    events: Events,
    sif: Sif,
    sif_away: Option<String>,
    ways: Ways,
    ledger: watch::Receiver<Arc<Ledger>>,
    seen: Seen,
    file: PathBuf,
    claims: BTreeSet<Claim>,
    start: Start,
    /// The transition under way, as SIF numbers it.
    transition: Option<u64>,
    flights: Flights,
    jobs: Jobs,
    took: BTreeMap<AgentId, u32>,
    followers: Vec<JoinHandle<()>>,
    inputs: Sender,
}

/// Start it.
///
/// # Errors
/// If a channel to an agent can't be described.
pub fn spawn(setup: Setup) -> anyhow::Result<Sender> {
    let Setup { cluster, pki, events, sif, by, file, mut journal } = setup;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let inputs = Sender(sender);
    let sif = Sif::new(sif, by, inputs.clone());
    let (tables, ledger) = watch::channel(Arc::new(Ledger::default()));
    tokio::spawn(follow::tables(sif.client(), tables, inputs.clone()));
    let seen = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let (started, policy) = (now(), policy::policy(&cluster));
    journal.start(started, &policy);
    let mut driver = Driver {
        core: Saver(Pss::new(started, policy)),
        journal,
        ways: act::ways(&cluster, &pki, &Ways::new())?,
        cluster: Arc::new(cluster),
        pki,
        events,
        sif,
        sif_away: Some("not heard yet".to_owned()),
        ledger,
        seen,
        file,
        claims: BTreeSet::new(),
        start: Start::Waiting,
        transition: None,
        flights: Flights::default(),
        jobs: Jobs::default(),
        took: BTreeMap::new(),
        followers: Vec::new(),
        inputs: inputs.clone(),
    };
    driver.follow();
    tokio::spawn(driver.run(receiver));
    Ok(inputs)
}

impl Driver {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        loop {
            let due = self.core.0.deadline().map_or(HEARTBEAT, |(due, _)| due.since(now()));
            tokio::select! {
                biased;
                input = inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                () = tokio::time::sleep(due.min(HEARTBEAT)) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        match self.start {
            Start::Again(at) if now() >= at => {
                self.start = Start::Waiting;
                self.begin();
            }
            Start::Waiting | Start::Taking | Start::Again(_) => {}
            Start::Ready => {
                if self.core.0.deadline().is_some_and(|(due, _)| due <= now()) {
                    self.step(Core::Tick(policy::wall(unix_ms())));
                }
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Ledger(ledger) => {
                if self.sif_away.take().is_some() {
                    tracing::info!(revision = %ledger.tables.revision, "power saving follows the shared tables");
                }
                self.observe();
                self.begin();
                self.unclaimed(&ledger);
            }
            Input::SifAway(why) => {
                if self.sif_away.is_none() {
                    tracing::warn!(why, "power saving does not hear SIF: nothing is begun");
                }
                self.sif_away = Some(why);
            }
            Input::Host(name, host) => {
                if self.seen.hosts.get(&name) != Some(&host) {
                    self.seen.hosts.insert(name, *host);
                    self.keep();
                    self.observe();
                }
            }
            Input::Vms(name, vms) => {
                if let Some(there) = self.seen.hosts.get_mut(&name).filter(|there| there.vms != vms) {
                    there.vms = vms;
                    self.keep();
                    self.observe();
                }
            }
            Input::HostAway(name) => {
                if let Some(there) = self.seen.hosts.get_mut(&name).filter(|there| there.up) {
                    there.up = false;
                    self.observe();
                }
            }
            Input::Sample(vm, sample) => self.step(Core::Sample { vm, sample }),
            Input::Power(host, watts) => self.step(Core::Power { host, watts }),
            Input::Answered(id, answer) => self.answered(id, answer),
            Input::Taken(row, answer) => self.taken(&row, answer),
            Input::Ended(job, result) => {
                self.jobs.ended(job);
                self.step(Core::Execute(Event::Ended { job, result }));
            }
            Input::Woke(host, took_ms) => {
                self.took.insert(host, took_ms);
            }
            Input::Configure(cluster) => self.configure(*cluster),
            Input::Ask(answer) => {
                let ledger = self.ledger.borrow().clone();
                let view = view::status(&self.core.0, &ledger, now(), self.sif_away.as_deref());
                // Whoever asked may have gone.
                let _ = answer.send(view).is_err();
            }
        }
    }

    fn answered(&mut self, id: SignalId, answer: Answer) {
        self.flights.end(id);
        match answer {
            Answer::Recorded(revision, transition) => {
                self.transition = transition.or(self.transition);
                self.step(Core::Execute(Event::Recorded { id, revision }));
            }
            Answer::Refused(why) => self.step(Core::Execute(Event::Refused { id, why })),
            Answer::Unknown(why) => tracing::debug!(?id, why, "a signal to the ledger is sent again"),
        }
    }

    /// What there is, to the core: at each change.
    fn observe(&mut self) {
        let ledger = self.ledger.borrow().clone();
        if ledger.tables == Default::default() {
            return;
        }
        let inventory = inventory::inventory(now(), &self.cluster, &ledger, &self.seen);
        self.step(Core::Inventory(Box::new(inventory)));
    }

    /// What an earlier process left is gone on with before anything of our own.
    fn begin(&mut self) {
        if self.start != Start::Waiting || self.sif_away.is_some() {
            return;
        }
        let transition = self.ledger.borrow().tables.transition.clone();
        match transition {
            None => self.start = Start::Ready,
            Some(row) => {
                self.start = Start::Taking;
                self.sif.take(row);
            }
        }
    }

    fn taken(&mut self, row: &TransitionRow, answer: Answer) {
        match answer {
            Answer::Recorded(_, id) => {
                self.transition = id;
                self.start = Start::Ready;
                self.events.add(notes::resumed(row));
                let recorded = row.steps.iter().map(|(_, state)| recorded(*state)).collect();
                self.step(Core::Resume { plan: Box::new(inventory::plan_of(row)), recorded });
            }
            Answer::Refused(why) | Answer::Unknown(why) => {
                tracing::warn!(why, id = row.id, "the transition of an earlier process is not ours yet");
                self.start = Start::Again(now() + TAKE_AGAIN);
            }
        }
    }

    /// Claims that are gone; new ones are in the inventory.
    fn unclaimed(&mut self, ledger: &Ledger) {
        let claims: BTreeSet<Claim> = ledger.tables.claims.keys().cloned().collect();
        let gone: Vec<Claim> = self.claims.difference(&claims).cloned().collect();
        self.claims = claims;
        for claim in gone {
            self.step(Core::Execute(Event::Unclaimed(claim)));
        }
    }

    fn configure(&mut self, cluster: Cluster) {
        match act::ways(&cluster, &self.pki, &self.ways) {
            Ok(ways) => self.ways = ways,
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the agents' addresses are not applied: restart kage-coordinator"
            ),
        }
        self.cluster = Arc::new(cluster);
        self.step(Core::Configure(Box::new(policy::policy(&self.cluster))));
        self.seen.hosts.retain(|name, _| self.cluster.hosts.contains_key(name));
        self.follow();
        self.observe();
    }

    /// Follow the machines' agents, anew.
    fn follow(&mut self) {
        self.followers.drain(..).for_each(|follower| follower.abort());
        // Two samples in each interval, so that each judgement has a fresh one.
        let interval = (self.cluster.saving.interval / 2).max(Duration::from_millis(200));
        for (name, what) in follow::machines(&self.cluster) {
            let Some((_, way)) = self.ways.get(name) else { continue };
            let client = AgentClient::new(way.clone());
            let followed = follow::machine(what, name.clone(), client, interval, self.inputs.clone());
            self.followers.push(tokio::spawn(followed));
        }
    }

    fn keep(&self) {
        let (file, seen) = (self.file.clone(), self.seen.clone());
        tokio::task::spawn_blocking(move || {
            let new = file.with_extension("new");
            let text = serde_json::to_vec_pretty(&seen).unwrap_or_default();
            if let Err(error) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &file)) {
                tracing::warn!(%error, file = %file.display(), "what is known of the hosts was not kept");
            }
        });
    }

    fn step(&mut self, input: Core) {
        let at = now();
        let pending = self.journal.begin(at, &self.core, &input);
        let mut actions = Vec::new();
        self.core.0.step(at, input, &mut actions);
        pending.end(&actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Signal { id, signal } => {
                if self.flights.begin(id) {
                    let plan = self.core.0.executor().plan();
                    let message = signal::message(&signal, &self.sif.by, self.transition, plan, &self.took);
                    self.sif.send(id, message);
                }
            }
            Action::Do { job, step, how, timeout } => {
                let context = self.context();
                self.jobs.begin(job, timeout, self.inputs.clone(), context.act(step, how, timeout));
            }
            Action::Look { job, step, timeout } => {
                let context = self.context();
                // It answers by itself when its time is over, with what it saw last.
                let longest = timeout + follow::ANSWER;
                self.jobs.begin(job, longest, self.inputs.clone(), context.look(step, timeout));
            }
            Action::Abort { job } => self.jobs.abort(job),
            Action::Yield(claim) => tracing::info!(%claim, "power saving has let go"),
            Action::Note(note) => self.events.add(notes::note(&note)),
        }
    }

    fn context(&self) -> Context {
        let macs = self.cluster.hosts.keys();
        let macs = macs.filter_map(|name| Some((name.clone(), inventory::mac(&self.cluster, &self.seen, name)?)));
        let suspended = |there: &SeenHost| {
            let paused = there.vms.iter().filter(|(_, vm)| vm.state == VmState::Suspended);
            paused.map(|(name, _)| name.clone()).collect()
        };
        Context {
            ways: self.ways.clone(),
            sif: self.sif.clone(),
            ledger: self.ledger.clone(),
            cluster: self.cluster.clone(),
            macs: macs.collect(),
            paused: self.seen.hosts.iter().map(|(name, there)| (name.clone(), suspended(there))).collect(),
            inputs: self.inputs.clone(),
        }
    }
}

fn recorded(state: StepState) -> Recorded {
    match state {
        StepState::Planned => Recorded::Untouched,
        StepState::Begun | StepState::UndoBegun => Recorded::Begun,
        StepState::Done => Recorded::Done,
        StepState::Undone => Recorded::Undone,
    }
}
