//! A voter's side of the lease protocol (docs/safety.md, rules 6 and 7).

use kage_types::{AgentId, AskVip, Epoch, Nonce, Term, Time, Vip};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Questions waiting for the disk or the coordinator. More than that at once means a broken asker: refused.
const MAX_WAITING: usize = 256;

/// What a voter remembers for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterStore {
    /// The highest term in any bar.
    pub highest_term: Term,
    /// The highest epoch of each VIP in any bar or consent. Below it: no consent, ever.
    pub epochs: BTreeMap<Vip, Epoch>,
}

/// What happens to a voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VoterEvent {
    /// An owner asks.
    Vote {
        /// Of this question, for the reply.
        id: u64,
        /// The owner.
        from: AgentId,
        /// Of its request.
        nonce: Nonce,
        /// For which VIPs.
        vips: Vec<AskVip>,
        /// Does this machine reach a coordinator in authority? Then it consents to nothing.
        reaches_coordinator: bool,
    },
    /// The coordinator bars.
    Bar {
        /// Of this question, for the reply.
        id: u64,
        /// Whose authority.
        term: Term,
        /// Which VIP.
        vip: Vip,
        /// No consent below this.
        floor: Epoch,
    },
    /// The store with this number is on the disk, or could not be written.
    Stored {
        /// Which.
        version: u64,
        /// Is it?
        ok: bool,
    },
}

/// What a voter wants done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VoterAction {
    /// Write durably; ends as [`VoterEvent::Stored`].
    Store {
        /// Rises by one.
        version: u64,
        /// The whole of it.
        store: VoterStore,
    },
    /// Pass the question on to the coordinator and its answer back.
    Relay {
        /// Of the question.
        id: u64,
    },
    /// Answer an owner.
    Consent {
        /// Of the question.
        id: u64,
        /// Consented to.
        vips: Vec<AskVip>,
        /// Not.
        barred: Vec<AskVip>,
    },
    /// Answer a coordinator.
    Barred {
        /// Of the question.
        id: u64,
        /// How long ago the last consent for this VIP was given, at least.
        last_consent_age: Duration,
    },
    /// Refuse a question.
    Refuse {
        /// Of the question.
        id: u64,
        /// Why, for a person.
        reason: String,
    },
}

#[derive(Clone, Debug)]
enum Waiting {
    Vote { id: u64, vips: Vec<AskVip>, barred: Vec<AskVip> },
    Bar { id: u64, vip: Vip },
}

/// A voter's machine.
#[derive(Clone, Debug)]
pub struct Voter {
    store: VoterStore,
    /// Versions handed out and on the disk.
    version: u64,
    stored: u64,
    /// When the last consent was decided, in this process.
    consents: BTreeMap<Vip, Time>,
    started: Time,
    waiting: Vec<(u64, Waiting)>,
}

impl Voter {
    /// A voter that begins at `started` with what an earlier process stored.
    #[must_use]
    pub fn new(started: Time, store: VoterStore) -> Self {
        Self { store, version: 0, stored: 0, consents: BTreeMap::new(), started, waiting: Vec::new() }
    }

    /// What is remembered.
    #[must_use]
    pub fn remembered(&self) -> &VoterStore {
        &self.store
    }

    /// One event in, actions out.
    pub fn step(&mut self, now: Time, event: VoterEvent, actions: &mut Vec<VoterAction>) {
        match event {
            VoterEvent::Vote { id, vips, reaches_coordinator, .. } => {
                self.vote(now, id, vips, reaches_coordinator, actions);
            }
            VoterEvent::Bar { id, term, vip, floor } => self.bar(now, id, term, vip, floor, actions),
            VoterEvent::Stored { version, ok } => self.stored(now, version, ok, actions),
        }
    }

    fn vote(&mut self, now: Time, id: u64, vips: Vec<AskVip>, reaches: bool, actions: &mut Vec<VoterAction>) {
        if reaches {
            actions.push(VoterAction::Relay { id });
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            actions.push(VoterAction::Refuse { id, reason: "too many questions wait for this voter's disk".into() });
            return;
        }
        let mut changed = false;
        let (mut consented, mut barred) = (Vec::new(), Vec::new());
        for ask in vips {
            let highest = self.store.epochs.get(&ask.vip).copied().unwrap_or_default();
            if ask.epoch < highest {
                barred.push(ask);
                continue;
            }
            if ask.epoch > highest {
                self.store.epochs.insert(ask.vip, ask.epoch);
                changed = true;
            }
            // Counted from the decision, whenever the answer leaves.
            self.consents.insert(ask.vip, now);
            consented.push(ask);
        }
        self.after_store(now, changed, Waiting::Vote { id, vips: consented, barred }, actions);
    }

    fn bar(&mut self, now: Time, id: u64, term: Term, vip: Vip, floor: Epoch, actions: &mut Vec<VoterAction>) {
        if term < self.store.highest_term {
            let seen = self.store.highest_term;
            actions
                .push(VoterAction::Refuse { id, reason: format!("term {term} is over: this voter has seen {seen}") });
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            actions.push(VoterAction::Refuse { id, reason: "too many questions wait for this voter's disk".into() });
            return;
        }
        let highest = self.store.epochs.get(&vip).copied().unwrap_or_default();
        let changed = term > self.store.highest_term || floor > highest;
        self.store.highest_term = term;
        if floor > highest {
            self.store.epochs.insert(vip, floor);
        }
        self.after_store(now, changed, Waiting::Bar { id, vip }, actions);
    }

    /// Answer when everything remembered so far is on the disk.
    fn after_store(&mut self, now: Time, changed: bool, waiting: Waiting, actions: &mut Vec<VoterAction>) {
        // After a failed write memory is stricter than the disk: it is written again with the next question.
        if changed || (self.version != self.stored && self.waiting.is_empty()) {
            self.version += 1;
            actions.push(VoterAction::Store { version: self.version, store: self.store.clone() });
        }
        if self.version == self.stored {
            self.answer(now, waiting, actions);
        } else {
            self.waiting.push((self.version, waiting));
        }
    }

    fn stored(&mut self, now: Time, version: u64, ok: bool, actions: &mut Vec<VoterAction>) {
        if ok {
            self.stored = self.stored.max(version);
        }
        let all = std::mem::take(&mut self.waiting);
        let (ready, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(needed, _)| *needed <= version);
        self.waiting = rest;
        for (_, waiting) in ready {
            if ok {
                self.answer(now, waiting, actions);
            } else {
                let (Waiting::Vote { id, .. } | Waiting::Bar { id, .. }) = waiting;
                let reason = "this voter could not write its state: see its log and the space on its disk".into();
                actions.push(VoterAction::Refuse { id, reason });
            }
        }
    }

    fn answer(&self, now: Time, waiting: Waiting, actions: &mut Vec<VoterAction>) {
        match waiting {
            Waiting::Vote { id, vips, barred } => actions.push(VoterAction::Consent { id, vips, barred }),
            Waiting::Bar { id, vip } => {
                let last = self.consents.get(&vip).copied().unwrap_or(self.started);
                actions.push(VoterAction::Barred { id, last_consent_age: now.since(last) });
            }
        }
    }
}

#[cfg(test)]
mod tests;
