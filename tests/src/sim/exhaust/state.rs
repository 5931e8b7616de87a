//! One state of the small world, and the steps out of it.

use super::{ELEMENT, LEASE, Model, RENEWAL, Scope};
use crate::sim::clock::{Clock, Ns, SEC};
use crate::sim::kernel::Kernel;
use crate::sim::world::Sabotage;
use kage_agent_core::{
    Assignment, CommandId, KernelOp, KernelOutcome, OnCoordinatorLoss, OpId, Owner, OwnerAction, OwnerEvent,
    OwnerMemory, Place, Voter, VoterAction, VoterEvent, VoterStore,
};
use kage_types::{AgentId, AskVip, Epoch, Grant, GrantItem, LeaseTiming, Nonce, Term, Time, Verdict, Vip};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Message {
    Vote { to: usize, nonce: Nonce, vips: Vec<AskVip> },
    Consent { from: usize, nonce: Nonce, vips: Vec<AskVip> },
    Ask { from: usize, nonce: Nonce, epoch: Epoch },
    Grant { to: usize, nonce: Nonce, epoch: Epoch, granted: bool },
    Bar { to: usize },
    Barred { from: usize, consented: u64 },
    Hold,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    tick: u64,
    owners: [Owner; 2],
    kernels: [Kernel; 2],
    /// Waiting operations; the head may have been checked.
    queues: [Vec<(OpId, KernelOp, bool)>; 2],
    fired: [bool; 2],
    asks: u8,
    voters: Vec<Voter>,
    consented: [u64; 3],
    /// With the tick each was sent at.
    messages: BTreeSet<(Message, u64)>,
    /// The coordinator: the takeover's epoch is durable; end of all grants; bars, and the end of all consents.
    begun: bool,
    granted_until: u64,
    barred: BTreeMap<usize, u64>,
    told: bool,
    opened: bool,
    /// Consents that reached the old owner.
    heard: BTreeMap<Nonce, u8>,
    /// Of the owners and voters as they are: hashed when they change, not with every state.
    parts: [u64; 5],
}

#[derive(Clone, Debug)]
pub(super) enum Move {
    Tick,
    Fire(usize),
    Check(usize),
    Effect(usize),
    Deliver(Message, u64),
    Begin,
    Tell,
}

fn vip() -> Vip {
    match Vip::new([10, 0, 0, 1].into()) {
        Ok(vip) => vip,
        Err(error) => unreachable!("{error}"),
    }
}

fn hash(value: &impl std::fmt::Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{value:?}").hash(&mut hasher);
    hasher.finish()
}

fn voter(index: usize) -> AgentId {
    match AgentId::new(format!("v{index}")) {
        Ok(name) => name,
        Err(error) => unreachable!("{error}"),
    }
}

impl State {
    fn time(&self) -> Time {
        Time::from_nanos(self.tick * SEC)
    }

    fn now(&self) -> Ns {
        self.tick * SEC
    }

    fn owner(&mut self, who: usize, event: OwnerEvent, scope: &Scope) {
        let mut actions = Vec::new();
        let time = self.time();
        self.owners[who].step(time, event, &mut actions);
        self.parts[who] = hash(&self.owners[who]);
        for action in actions {
            match action {
                OwnerAction::Kernel { op, change, .. } => self.queues[who].push((op, change, false)),
                // Beyond the bound, requests of the old owner are lost.
                OwnerAction::Ask { .. } | OwnerAction::AskVoters { .. } if who == 0 && self.asks >= scope.asks => {}
                OwnerAction::Ask { nonce, vips, .. } => {
                    self.asks += u8::from(who == 0 && !scope.voters);
                    if let (Some(ask), true) = (vips.first(), !scope.voters || who == 1) {
                        self.send(Message::Ask { from: who, nonce, epoch: ask.epoch });
                    }
                }
                OwnerAction::AskVoters { nonce, vips, .. } if scope.voters && who == 0 => {
                    self.asks += 1;
                    for to in 0..3 {
                        self.send(Message::Vote { to, nonce, vips: vips.clone() });
                    }
                }
                OwnerAction::Opened { .. } => self.opened |= who == 1,
                OwnerAction::AskVoters { .. }
                | OwnerAction::PutAddress(_)
                | OwnerAction::DropAddress(_)
                | OwnerAction::Announce { .. }
                | OwnerAction::Lost { .. }
                | OwnerAction::Store(_)
                | OwnerAction::Remember { .. }
                | OwnerAction::Done { .. }
                | OwnerAction::KernelTrouble { .. } => {}
            }
        }
    }

    fn send(&mut self, message: Message) {
        self.messages.insert((message, self.tick));
    }

    fn voter(&mut self, index: usize, event: VoterEvent, nonce: Nonce) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            let time = self.time();
            self.voters[index].step(time, event, &mut actions);
            self.parts[2 + index] = hash(&self.voters[index]);
            for action in actions {
                match action {
                    VoterAction::Store { version, .. } => events.push(VoterEvent::Stored { version, ok: true }),
                    VoterAction::Consent { vips, .. } => {
                        if !vips.is_empty() {
                            self.consented[index] = self.tick;
                            self.send(Message::Consent { from: index, nonce, vips });
                        }
                    }
                    VoterAction::Barred { last_consent_age, .. } => {
                        let consented = self.tick.saturating_sub(last_consent_age.as_secs());
                        self.send(Message::Barred { from: index, consented });
                    }
                    VoterAction::Relay { .. } | VoterAction::Refuse { .. } => {}
                }
            }
        }
    }

    /// What comes at once. The new owner and the coordinator act as early as they may: later only gives the old owner's
    /// element more time to run out, and nothing that they do helps it to live.
    fn eager(&self, scope: &Scope) -> Option<Move> {
        if self.owners[1].deadline().is_some_and(|(time, _)| time <= self.time()) && !self.fired[1] && !self.opened {
            return Some(Move::Fire(1));
        }
        match self.queues[1].first() {
            Some((.., false)) => return Some(Move::Check(1)),
            Some((.., true)) => return Some(Move::Effect(1)),
            None => {}
        }
        let patience = self.barred.values().copied().max().unwrap_or(0).max(self.granted_until);
        let barred = !scope.voters || self.barred.len() >= 2;
        if self.begun && !self.told && barred && self.tick >= patience {
            return Some(Move::Tell);
        }
        let quick = |(message, sent): &(Message, u64)| match message {
            Message::Hold | Message::Barred { .. } | Message::Ask { from: 1, .. } | Message::Grant { to: 1, .. } => {
                Some(Move::Deliver(message.clone(), *sent))
            }
            Message::Vote { .. }
            | Message::Consent { .. }
            | Message::Ask { .. }
            | Message::Grant { .. }
            | Message::Bar { .. } => None,
        };
        self.messages.iter().find_map(quick)
    }

    /// Can these voters change places? Then what one may do next stands for the other.
    fn alike(&self, one: usize, other: usize) -> bool {
        let messages = |who: usize| -> Vec<(Message, u64)> {
            let about = |(message, sent): &(Message, u64)| match message {
                Message::Vote { to, nonce, vips } if *to == who => {
                    Some((Message::Vote { to: 0, nonce: *nonce, vips: vips.clone() }, *sent))
                }
                Message::Consent { from, nonce, vips } if *from == who => {
                    Some((Message::Consent { from: 0, nonce: *nonce, vips: vips.clone() }, *sent))
                }
                Message::Bar { to } if *to == who => Some((Message::Bar { to: 0 }, *sent)),
                Message::Vote { .. } | Message::Consent { .. } | Message::Bar { .. } => None,
                Message::Ask { .. } | Message::Grant { .. } | Message::Barred { .. } | Message::Hold => None,
            };
            self.messages.iter().filter_map(about).collect()
        };
        messages(one) == messages(other)
            && self.barred.get(&one) == self.barred.get(&other)
            && self.consented[one] == self.consented[other]
            && self.parts[2 + one] == self.parts[2 + other]
    }

    fn deliver(&mut self, message: &Message, scope: &Scope) {
        match message {
            Message::Vote { to, nonce, vips } => {
                let event = VoterEvent::Vote {
                    id: 0,
                    from: voter(9),
                    nonce: *nonce,
                    vips: vips.clone(),
                    reaches_coordinator: false,
                };
                self.voter(*to, event, *nonce);
            }
            Message::Consent { from, nonce, vips } => {
                self.owner(0, OwnerEvent::Consent { voter: voter(*from), nonce: *nonce, vips: vips.clone() }, scope);
                // With two consents the request is granted: a third could only make the coordinator wait longer.
                let heard = self.heard.entry(*nonce).or_default();
                *heard += 1;
                if *heard >= 2 {
                    self.messages.retain(|(message, _)| match message {
                        Message::Vote { nonce: other, .. } | Message::Consent { nonce: other, .. } => other != nonce,
                        Message::Ask { .. } | Message::Grant { .. } => true,
                        Message::Bar { .. } | Message::Barred { .. } | Message::Hold => true,
                    });
                }
            }
            Message::Ask { from, nonce, epoch } => {
                let current = Epoch(1 + u64::from(self.begun));
                let granted = *epoch == current && *from == usize::from(self.begun);
                if granted {
                    self.granted_until = self.granted_until.max(self.tick + LEASE);
                }
                self.send(Message::Grant { to: *from, nonce: *nonce, epoch: *epoch, granted });
            }
            Message::Grant { to, nonce, epoch, granted } => {
                let verdict = if *granted { Verdict::Granted } else { Verdict::Superseded };
                let items = vec![GrantItem { vip: vip(), epoch: *epoch, verdict }];
                let length = Duration::from_secs(LEASE);
                let grant = Grant { nonce: *nonce, term: Term(1), in_authority: true, length, items };
                self.owner(*to, OwnerEvent::Answer { grant, relayed: false }, scope);
            }
            Message::Bar { to } => {
                self.voter(*to, VoterEvent::Bar { id: 1, term: Term(1), vip: vip(), floor: Epoch(2) }, Nonce(0));
            }
            Message::Barred { from, consented } => {
                self.barred.insert(*from, consented + LEASE);
                // Two bars are a majority: a third could only make the coordinator wait longer.
                if self.barred.len() >= 2 {
                    self.messages
                        .retain(|(message, _)| !matches!(message, Message::Bar { .. } | Message::Barred { .. }));
                }
            }
            Message::Hold => self.hold(1, Epoch(2), scope),
        }
    }

    fn hold(&mut self, who: usize, epoch: Epoch, scope: &Scope) {
        let ask = AskVip { vip: vip(), epoch };
        self.owner(
            who,
            OwnerEvent::Hold { command: CommandId(epoch.0), term: Term(1), ask, place: Place::Host },
            scope,
        );
    }

    /// The first owner serves on a grant that was asked for and decided at tick 0.
    pub(super) fn start(scope: &Scope) -> Self {
        let seconds = Duration::from_secs;
        let timing = LeaseTiming {
            lease: seconds(LEASE),
            element: seconds(ELEMENT),
            renewal: seconds(RENEWAL),
            slack: Duration::ZERO,
            long_lease: seconds(100),
        };
        let assignment = Assignment {
            vips: [vip()].into(),
            timing,
            voters: (0..3).map(|index| (voter(index), String::new())).collect(),
            on_coordinator_loss: OnCoordinatorLoss::Voters,
        };
        let mut owner = Owner::new(OwnerMemory { term: Term(1), ..OwnerMemory::default() });
        if let Some(Sabotage::Agent(sabotage)) = scope.sabotage {
            owner.sabotage(sabotage);
        }
        let mut kernel = Kernel::default();
        if let Some(Sabotage::Kernel(sabotage)) = scope.sabotage {
            kernel.sabotage = Some(sabotage);
        }
        let mut state = State {
            tick: 0,
            owners: [owner.clone(), owner],
            kernels: [kernel.clone(), kernel],
            queues: [Vec::new(), Vec::new()],
            fired: [false; 2],
            asks: 0,
            voters: vec![Voter::new(Time::ZERO, VoterStore::default()); 3],
            consented: [0; 3],
            messages: BTreeSet::new(),
            begun: false,
            granted_until: 0,
            barred: BTreeMap::new(),
            told: false,
            opened: false,
            heard: BTreeMap::new(),
            parts: [0; 5],
        };
        for who in 0..2 {
            state.owner(who, OwnerEvent::Assigned(assignment.clone()), scope);
            state.owner(who, OwnerEvent::Session(true), scope);
        }
        let open = Scope { voters: false, ..*scope };
        state.messages.clear();
        state.hold(0, Epoch(1), &open);
        for _ in 0..8 {
            let next = state
                .moves(&open)
                .into_iter()
                .find(|step| matches!(step, Move::Check(_) | Move::Effect(_) | Move::Deliver(..)));
            if let Some(step) = next {
                state.make(&step, &open);
            }
        }
        state.messages.clear();
        state.fired = [true; 2];
        if scope.voters {
            state.owner(0, OwnerEvent::Session(false), scope);
        }
        state.asks = 0;
        state
    }
}

impl Model for State {
    type Move = Move;

    fn moves(&self, scope: &Scope) -> Vec<Move> {
        if let Some(step) = self.eager(scope) {
            return vec![step];
        }
        let mut moves = Vec::new();
        let due = self.owners[0].deadline().is_some_and(|(time, _)| time <= self.time());
        if due && !self.fired[0] && self.asks < scope.asks {
            moves.push(Move::Fire(0));
        }
        match self.queues[0].first() {
            Some((.., false)) => moves.push(Move::Check(0)),
            Some((.., true)) => moves.push(Move::Effect(0)),
            None => {}
        }
        let twins: Vec<bool> = (0..3).map(|one| (0..one).any(|other| self.alike(one, other))).collect();
        for (message, sent) in &self.messages {
            let twin = match message {
                Message::Vote { to, .. } | Message::Bar { to } => twins[*to],
                Message::Consent { from, .. } => twins[*from],
                Message::Ask { .. } | Message::Grant { .. } | Message::Barred { .. } | Message::Hold => false,
            };
            if !twin {
                moves.push(Move::Deliver(message.clone(), *sent));
            }
        }
        if !self.begun && self.tick <= scope.begun_by {
            moves.push(Move::Begin);
        }
        // Once the new owner has opened, the old one must not: what it needs for that is there by then.
        if self.tick < scope.horizon {
            moves.push(Move::Tick);
        }
        moves
    }

    fn make(&mut self, step: &Move, scope: &Scope) {
        match step {
            Move::Tick => {
                self.tick += 1;
                self.fired = [false; 2];
                // An answer later than that changes nothing: each grant counts from when it was asked for. That questions
                // get lost sooner is a bound of the scope.
                let tick = self.tick;
                self.messages.retain(|(message, sent)| {
                    let limit = match message {
                        Message::Vote { .. } | Message::Bar { .. } => scope.question_late,
                        Message::Consent { .. } | Message::Ask { .. } | Message::Grant { .. } => LEASE,
                        Message::Barred { .. } | Message::Hold => LEASE,
                    };
                    tick - sent <= limit
                });
            }
            Move::Fire(who) => {
                self.fired[*who] = true;
                self.owner(*who, OwnerEvent::Tick, scope);
            }
            Move::Check(who) => {
                let time = self.time();
                let Some((op, change, checked)) = self.queues[*who].first_mut() else { return };
                let late = match change {
                    KernelOp::Open { not_after, .. } | KernelOp::Renew { not_after, .. } => time > *not_after,
                    KernelOp::Arm { .. } | KernelOp::Close { .. } => false,
                };
                *checked = true;
                if late {
                    let op = *op;
                    self.queues[*who].remove(0);
                    self.owner(*who, OwnerEvent::Kernel { op, outcome: KernelOutcome::TooLate, at: time }, scope);
                }
            }
            Move::Effect(who) => {
                let (op, change, _) = self.queues[*who].remove(0);
                let (now, time) = (self.now(), self.time());
                let outcome = self.kernels[*who].apply(now, &Clock::new(0, 0, 0), &change, Duration::ZERO);
                self.owner(*who, OwnerEvent::Kernel { op, outcome, at: time }, scope);
            }
            Move::Deliver(message, sent) => {
                self.messages.remove(&(message.clone(), *sent));
                self.deliver(message, scope);
            }
            Move::Begin => {
                self.begun = true;
                if scope.voters {
                    (0..3).for_each(|to| self.send(Message::Bar { to }));
                }
            }
            Move::Tell => {
                self.told = true;
                self.send(Message::Hold);
            }
        }
    }

    fn two_owners(&self) -> bool {
        self.kernels.iter().all(|kernel| kernel.live_until(self.now(), vip()).is_some())
    }

    /// Everything that decides what can follow.
    fn fingerprint(&self) -> u64 {
        let kernels = self.kernels.each_ref().map(|kernel| &kernel.elements);
        let clocks = (self.tick, self.fired, self.asks, self.consented, &self.heard);
        let coordinator = (self.begun, self.granted_until, &self.barred, self.told, self.opened);
        hash(&(&self.parts, kernels, &self.queues, clocks, &self.messages, coordinator))
    }

    fn taken_over(&self) -> bool {
        self.opened
    }

    fn when(&self) -> String {
        self.tick.to_string()
    }
}
