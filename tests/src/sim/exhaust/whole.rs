//! One state of the small world in which everything is real: coordinator, SIF, two owners, three voters. The new owner,
//! SIF and the coordinator act at once and at their own times; what the old owner does, what reaches it or is heard of
//! it, and when the coordinator dies, is chosen.

mod parts;

use super::{ELEMENT, LEASE, Model, RENEWAL, Scope};
use crate::sim::clock::{Clock, MS, Ns, SEC, ns};
use crate::sim::kernel::Kernel;
use crate::sim::sif::rows;
use crate::sim::world::Sabotage;
use kage_agent_core::{
    Assignment, CommandId, KernelOp, KernelOutcome, OnCoordinatorLoss, OpId, Owner, OwnerAction, OwnerEvent,
    OwnerMemory, Place, Voter, VoterAction, VoterEvent, VoterStore,
};
use kage_coordinator_core::{
    Action, AgentCommand, CheckOutcome, Coordinator, Event, JobId, JobResult, SessionId, config::Cluster,
};
use kage_sif_core::{Cause, Core as Sif, Electorate, Ledger, Refusal, Report, Request, RequestId};
use kage_types::{AgentId, AskVip, Epoch, Grant, GrantItem, LeaseTiming, Nonce, TargetName, Term, Time, Verdict, Vip};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hasher as _},
    rc::Rc,
    time::Duration,
};

/// The target's machine, its double's, the voters.
const NAMES: [&str; 5] = ["mail", "mgmt", "v1", "v2", "v3"];
/// T.
const TERM: u64 = 2;
/// Everything is served within this, from the start.
const BEGINS_WITHIN: Ns = 60 * SEC;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Message {
    Vote { to: usize, nonce: Nonce, vips: Vec<AskVip> },
    Consent { from: usize, nonce: Nonce, vips: Vec<AskVip> },
    Ask { nonce: Nonce, heard: Nonce, vips: Vec<AskVip>, surrendered: bool },
    Grant { nonce: Nonce, term: Term, authority: bool, items: Vec<(Epoch, u8)> },
    Bar { to: usize, job: u64, term: Term, floor: Epoch },
    Release { job: u64, term: Term, ask: AskVip },
}

#[derive(Clone, Debug)]
pub(super) enum Move {
    /// A second passes.
    Tick,
    /// The old owner's timer.
    Fire,
    /// Its kernel thread looks at the clock, or makes the change.
    Check,
    Effect,
    Deliver(Message, Ns),
    /// The operator moves the target to its double.
    Begin,
    /// The coordinator dies, and another process of it starts.
    Crash,
}

#[derive(Clone, Debug)]
pub(super) struct Whole {
    began: Ns,
    now: Ns,
    coordinator: Rc<Coordinator>,
    life: u64,
    sif: Rc<Sif>,
    disk: Rc<Ledger>,
    requests: u64,
    owners: [Rc<Owner>; 2],
    kernels: [Kernel; 2],
    /// Waiting operations; the head may have been checked.
    queues: [Vec<(OpId, KernelOp, bool)>; 2],
    voters: Vec<Rc<Voter>>,
    messages: BTreeSet<(Message, Ns)>,
    /// When jobs of the coordinator end.
    due: Vec<(Ns, JobId, JobResult)>,
    /// What is handled at this instant.
    inbox: VecDeque<Event>,
    handed: VecDeque<(usize, OwnerEvent)>,
    /// The old owner is well: all this is only the way to the beginning.
    well: bool,
    fired: bool,
    asks: u8,
    begun: bool,
    crashed: bool,
    released: bool,
    opened: bool,
    two: bool,
    /// Consents that reached the old owner; voters that are barred.
    heard: BTreeMap<Nonce, u8>,
    barred: [bool; 3],
    /// A bar was lost on the way: the next is not, a bound of the scope.
    lost: [bool; 3],
    /// Of the parts as they are: coordinator, ledger, owners, voters.
    parts: [u64; 7],
}

thread_local! {
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

fn hash(value: &impl fmt::Debug) -> u64 {
    TEXT.with_borrow_mut(|text| {
        text.clear();
        // It never fails.
        let _ = write!(text, "{value:?}");
        let mut hasher = DefaultHasher::new();
        hasher.write(text.as_bytes());
        hasher.finish()
    })
}

fn agent(index: usize) -> AgentId {
    match AgentId::new(NAMES[index].to_owned()) {
        Ok(name) => name,
        Err(error) => unreachable!("{error}"),
    }
}

fn target() -> TargetName {
    match TargetName::new("mail".to_owned()) {
        Ok(name) => name,
        Err(error) => unreachable!("{error}"),
    }
}

fn cluster() -> Cluster {
    let mut text = format!(
        "[cluster]\nname = \"small\"\n[coordinator]\nlisten = \"10.0.0.3:7700\"\n\
         [sif]\nlisten = \"10.0.0.3:7701\"\nterm = \"{TERM}s\"\n"
    );
    for (index, name) in NAMES.iter().enumerate() {
        let (guard, voter) = (if index == 1 { "tap" } else { "host" }, index > 1);
        text += &format!(
            "[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{}:7702\"\nvoter = {voter}\nguard = \"{guard}\"\n",
            11 + index
        );
    }
    text += "[[target]]\nname = \"mail\"\nagent = \"mail\"\nvips = [\"10.0.0.100\"]\n\
             backup = { agent = \"mgmt\", domain = \"mailb\" }\nfailback = \"manual\"\n";
    let seconds = Duration::from_secs;
    match Cluster::parse(&text) {
        Ok(mut cluster) => {
            cluster.timing = LeaseTiming {
                lease: seconds(LEASE),
                element: seconds(ELEMENT),
                renewal: seconds(RENEWAL),
                slack: Duration::ZERO,
                long_lease: seconds(100),
            };
            cluster
        }
        Err(error) => unreachable!("{error}"),
    }
}

impl Whole {
    fn time(&self) -> Time {
        Time::from_nanos(self.now)
    }

    fn vip(&self) -> Vip {
        match Vip::new([10, 0, 0, 100].into()) {
            Ok(vip) => vip,
            Err(error) => unreachable!("{error}"),
        }
    }

    fn session(&self, index: usize) -> SessionId {
        SessionId(10 * self.life + index as u64)
    }

    // ---- time ----

    /// Everything that happens at this instant by itself.
    fn settle(&mut self, scope: &Scope) {
        loop {
            if let Some(event) = self.inbox.pop_front() {
                let mut actions = Vec::new();
                let time = self.time();
                Rc::make_mut(&mut self.coordinator).step(time, event, &mut actions);
                actions.into_iter().for_each(|action| self.act(action, scope));
            } else if let Some((who, event)) = self.handed.pop_front() {
                self.owner(who, event, scope);
            } else if let Some(who) =
                [1, 0].into_iter().find(|who| (*who == 1 || self.well) && !self.queues[*who].is_empty())
            {
                let event = self.check(who).map_or_else(|| self.effect(who), |(_, late)| late);
                self.owner(who, event, scope);
            } else {
                break;
            }
        }
        self.parts[0] = hash(&self.coordinator);
    }

    /// Until then, each part at its own times.
    fn advance(&mut self, to: Ns, scope: &Scope) {
        loop {
            let timer = |owner: &Owner| owner.deadline().map_or(Ns::MAX, |(time, _)| time.as_nanos());
            // What it wants at once it has just been given.
            let own = self.coordinator.deadline().map_or(Ns::MAX, |(time, _)| time.as_nanos().max(self.now + 1));
            let job = self.due.first().map_or(Ns::MAX, |(at, ..)| *at);
            let new = timer(&self.owners[1]);
            let old = if self.well { timer(&self.owners[0]) } else { Ns::MAX };
            let next = own.min(job).min(new).min(old);
            if next > to {
                break;
            }
            self.now = self.now.max(next);
            if job <= self.now {
                let (_, job, result) = self.due.remove(0);
                self.inbox.push_back(Event::Job { job, result });
            } else if new <= self.now {
                self.handed.push_back((1, OwnerEvent::Tick));
            } else if old <= self.now {
                self.handed.push_back((0, OwnerEvent::Tick));
            } else {
                self.inbox.push_back(Event::Tick);
            }
            self.settle(scope);
        }
        self.now = to;
        // The voters' agents are heard, too.
        for index in 2..5 {
            let (nonce, heard) = (Nonce(self.now / SEC + 1), Nonce(self.now / SEC));
            let (agent, session) = (agent(index), self.session(index));
            let vips = Vec::new();
            self.inbox.push_back(Event::Ask {
                agent,
                session,
                via: None,
                incarnation: 1,
                nonce,
                heard,
                vips,
                long: false,
                long_surrendered: true,
            });
        }
        self.settle(scope);
    }

    fn process(&mut self, scope: &Scope) {
        let mut core = Coordinator::new(self.time(), cluster());
        if let Some(Sabotage::Coordinator(sabotage)) = scope.sabotage {
            core.sabotage(sabotage);
        }
        self.life += 1;
        self.coordinator = Rc::new(core);
        self.inbox.push_back(Event::Tick);
        for index in (0..5).filter(|index| *index > 0 || self.well) {
            let up = Event::AgentUp { agent: agent(index), session: self.session(index), incarnation: 1 };
            self.inbox.push_back(up);
        }
    }

    /// The first owner serves on a grant that it has just got.
    pub(super) fn start(scope: &Scope) -> Self {
        let cluster = cluster();
        let vip = cluster.vips().map(|(vip, _)| vip).next();
        let assignment = Assignment {
            vips: vip.into_iter().collect(),
            timing: cluster.timing,
            voters: (2..5).map(|index| (agent(index), String::new())).collect(),
            on_coordinator_loss: OnCoordinatorLoss::Voters,
        };
        let mut owner = Owner::new(OwnerMemory::default());
        if let Some(Sabotage::Agent(sabotage)) = scope.sabotage {
            owner.sabotage(sabotage);
        }
        let mut kernel = Kernel::default();
        if let Some(Sabotage::Kernel(sabotage)) = scope.sabotage {
            kernel.sabotage = Some(sabotage);
        }
        let electorate = Electorate::new(cluster.agents.iter().map(|(name, machine)| (name.clone(), machine.voter)));
        let mut sif = Sif::new(Ledger::default(), electorate);
        if let Some(Sabotage::Sif(sabotage)) = scope.sabotage {
            sif.sabotage(sabotage);
        }
        let mut state = Self {
            began: 0,
            now: SEC,
            coordinator: Rc::new(Coordinator::new(Time::from_nanos(SEC), cluster)),
            life: 0,
            sif: Rc::new(sif),
            disk: Rc::new(Ledger::default()),
            requests: 0,
            owners: [Rc::new(owner.clone()), Rc::new(owner)],
            kernels: [kernel.clone(), kernel],
            queues: [Vec::new(), Vec::new()],
            voters: (0..3).map(|_| Rc::new(Voter::new(Time::ZERO, VoterStore::default()))).collect(),
            messages: BTreeSet::new(),
            due: Vec::new(),
            inbox: VecDeque::new(),
            handed: VecDeque::new(),
            well: true,
            fired: true,
            asks: 0,
            begun: false,
            crashed: false,
            released: false,
            opened: false,
            two: false,
            heard: BTreeMap::new(),
            barred: [false; 3],
            lost: [false; 3],
            parts: [0; 7],
        };
        state.process(scope);
        for who in 0..2 {
            state.handed.push_back((who, OwnerEvent::Assigned(assignment.clone())));
            state.handed.push_back((who, OwnerEvent::Session(true)));
        }
        state.settle(scope);
        while !state.served() && state.now < BEGINS_WITHIN {
            state.advance(state.now + SEC, scope);
        }
        // From a request of the old owner on.
        let next = state.owners[0].deadline().map_or(state.now, |(time, _)| time.as_nanos().max(state.now));
        state.advance(next, scope);
        state.began = state.now;
        state.well = false;
        state.messages.clear();
        if scope.voters {
            state.owner(0, OwnerEvent::Session(false), scope);
            state.inbox.push_back(Event::AgentDown { agent: agent(0), session: state.session(0) });
            state.settle(scope);
        }
        (state.asks, state.barred, state.opened) = (0, [false; 3], false);
        state
    }

    /// Is this the beginning that was wanted?
    pub(super) fn served(&self) -> bool {
        let view = self.coordinator.vip(self.vip());
        self.kernels[0].live_until(self.now, self.vip()).is_some()
            && view.is_some_and(|view| view.held && view.moving.is_none())
            && self.coordinator.target(&target()).is_some_and(|target| target.mode == "regular")
    }

    /// Can these voters change places? Then what one may do next stands for the other.
    fn alike(&self, one: usize, other: usize) -> bool {
        let messages = |who: usize| -> Vec<(Message, Ns)> {
            let about = |(message, sent): &(Message, Ns)| match message {
                Message::Vote { to, nonce, vips } if *to == who => {
                    Some((Message::Vote { to: 0, nonce: *nonce, vips: vips.clone() }, *sent))
                }
                Message::Consent { from, nonce, vips } if *from == who => {
                    Some((Message::Consent { from: 0, nonce: *nonce, vips: vips.clone() }, *sent))
                }
                Message::Bar { to, term, floor, .. } if *to == who => {
                    Some((Message::Bar { to: 0, job: 0, term: *term, floor: *floor }, *sent))
                }
                Message::Vote { .. } | Message::Consent { .. } | Message::Bar { .. } => None,
                Message::Ask { .. } | Message::Grant { .. } | Message::Release { .. } => None,
            };
            self.messages.iter().filter_map(about).collect()
        };
        messages(one) == messages(other)
            && (self.barred[one], self.lost[one]) == (self.barred[other], self.lost[other])
            && self.parts[4 + one] == self.parts[4 + other]
    }
}

impl Model for Whole {
    type Move = Move;

    fn moves(&self, scope: &Scope) -> Vec<Move> {
        let mut moves = Vec::new();
        let due = self.owners[0].deadline().is_some_and(|(time, _)| time <= self.time());
        if due && !self.fired && self.asks < scope.asks {
            moves.push(Move::Fire);
        }
        match self.queues[0].first() {
            Some((.., false)) => moves.push(Move::Check),
            Some((.., true)) => moves.push(Move::Effect),
            None => {}
        }
        let twins: Vec<bool> = (0..3).map(|one| (0..one).any(|other| self.alike(one, other))).collect();
        for (message, sent) in &self.messages {
            let twin = match message {
                Message::Vote { to, .. } | Message::Bar { to, .. } => twins[*to],
                Message::Consent { from, .. } => twins[*from],
                Message::Ask { .. } | Message::Grant { .. } | Message::Release { .. } => false,
            };
            if !twin {
                moves.push(Move::Deliver(message.clone(), *sent));
            }
        }
        let ticks = (self.now - self.began) / SEC;
        if !self.begun && ticks <= scope.begun_by {
            moves.push(Move::Begin);
        }
        if scope.crash && !self.crashed && ticks <= scope.begun_by + 1 {
            moves.push(Move::Crash);
        }
        if ticks < scope.horizon {
            moves.push(Move::Tick);
        }
        moves
    }

    fn make(&mut self, step: &Move, scope: &Scope) {
        match step {
            Move::Tick => {
                self.fired = false;
                self.advance(self.now + SEC, scope);
                let (now, due, lost) = (self.now, &self.due, &mut self.lost);
                self.messages.retain(|(message, sent)| {
                    let limit = match message {
                        Message::Vote { .. } => scope.question_late,
                        // The coordinator waits no longer.
                        Message::Bar { to, job, .. } => {
                            let waits = due.iter().any(|(_, waits, _)| waits.0 == *job);
                            lost[*to] |= !waits;
                            return waits;
                        }
                        // Later than that it is only superseded, or what is known is.
                        Message::Ask { .. } | Message::Consent { .. } | Message::Release { .. } => {
                            scope.question_late + 1
                        }
                        Message::Grant { .. } => LEASE,
                    };
                    now - sent <= limit * SEC
                });
            }
            Move::Fire => {
                self.fired = true;
                self.owner(0, OwnerEvent::Tick, scope);
            }
            Move::Check => {
                if let Some((_, late)) = self.check(0) {
                    self.owner(0, late, scope);
                }
            }
            Move::Effect => {
                let event = self.effect(0);
                self.owner(0, event, scope);
            }
            Move::Deliver(message, sent) => {
                self.messages.remove(&(message.clone(), *sent));
                if let Some(event) = self.deliver(message) {
                    self.owner(0, event, scope);
                }
            }
            Move::Begin => {
                self.begun = true;
                self.inbox.push_back(Event::Move { command: 1, target: target(), back: false, force: true });
            }
            Move::Crash => {
                self.crashed = true;
                self.due.clear();
                self.messages.retain(|(message, _)| match message {
                    Message::Ask { .. } | Message::Bar { .. } | Message::Release { .. } => false,
                    Message::Vote { .. } | Message::Consent { .. } | Message::Grant { .. } => true,
                });
                self.process(scope);
                self.handed.push_back((1, OwnerEvent::Session(false)));
                self.handed.push_back((1, OwnerEvent::Session(true)));
            }
        }
        self.settle(scope);
    }

    fn two_owners(&self) -> bool {
        self.two
    }

    fn taken_over(&self) -> bool {
        self.opened
    }

    fn when(&self) -> String {
        format!("{}", (self.now - self.began) / SEC)
    }

    /// Everything that decides what can follow.
    fn fingerprint(&self) -> u64 {
        let kernels = self.kernels.each_ref().map(|kernel| &kernel.elements);
        let flags =
            (self.fired, self.asks, self.begun, self.crashed, self.released, self.opened, self.barred, self.lost);
        hash(&(self.now, &self.parts, kernels, &self.queues, &self.messages, &self.due, &self.heard, flags))
    }
}
