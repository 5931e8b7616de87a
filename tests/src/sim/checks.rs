//! What must hold after every event.

use super::clock::{MS, Ns, SEC};
use kage_agent_core::LossReason;
use kage_sif_core::{Change, Stamped};
use kage_types::{Epoch, Term, Vip};
use std::collections::BTreeMap;

/// Which promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// Two machines' packets pass for one VIP.
    TwoOwners,
    /// Opened while the old owner's lease was valid.
    WrongTakeover,
    /// An epoch or term went back, or was given twice.
    Monotone,
    /// Not served again though nothing is broken any more.
    NotHealed,
    /// Lost though nothing was broken.
    Lapse,
    /// A release was acknowledged under a term that a restart would not know.
    Forgettable,
    /// Believed renewed, but the element is as old as before.
    NotRefreshed,
    /// Much was dark at once, and it was acted on all the same.
    Storm,
    /// Acted on against an operator's order.
    Withheld,
    /// Opened on a double that does not run.
    DoubleAsleep,
    /// Opened while a stranger answered.
    StrangerIgnored,
    /// A single writer and its double both write.
    TwoWriters,
}

/// All promises that a scenario is held to: a word, and what it means.
pub const PROMISES: [(Broken, &str, &str); 12] = [
    (Broken::TwoOwners, "one-owner", "never two owners of a virtual IP"),
    (Broken::TwoWriters, "one-writer", "a single writer and its double never both write"),
    (Broken::WrongTakeover, "right-takeover", "nobody opens while the lease of the owner before is valid"),
    (Broken::Monotone, "numbers-rise", "epochs and terms only rise"),
    (Broken::NotRefreshed, "renewed", "what an agent renews is renewed in its kernel"),
    (Broken::Forgettable, "on-record", "a release is acknowledged only when its term is on the disk"),
    (Broken::Lapse, "no-lapse", "nothing lapses while nothing is broken"),
    (Broken::Storm, "storm-brake", "much dark at once: no takeover without proof"),
    (Broken::Withheld, "orders", "maintenance and disarm withhold restart, reboot and takeover"),
    (Broken::DoubleAsleep, "double-runs", "opened only on a double that runs"),
    (Broken::StrangerIgnored, "no-stranger", "not opened while a stranger answers for it"),
    (Broken::NotHealed, "ends-well", "at the end all is as the scenario says"),
];

/// The word for it.
#[must_use]
pub fn promise(broken: Broken) -> &'static str {
    PROMISES.iter().find(|(known, ..)| *known == broken).map_or("", |(_, word, _)| word)
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which.
    pub broken: Broken,
    /// When.
    pub at: Ns,
    /// For people.
    pub text: String,
}

/// Watches.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
    /// The first of each kind.
    pub failures: BTreeMap<Broken, Failure>,
    /// How often each was looked at.
    pub looks: BTreeMap<Broken, u64>,
    /// Only what endangers data counts: a rule was broken on purpose, and it must show there.
    pub safety_only: bool,
    /// And this, which it is known to cost.
    pub sought: Option<Broken>,
    /// Highest epoch ever opened, and where.
    opened: BTreeMap<Vip, (Epoch, usize)>,
    /// Who acts or acted under a term.
    terms: BTreeMap<Term, u64>,
    /// Highest durable epoch, until the ledger is lost.
    durable: BTreeMap<Vip, Epoch>,
    /// Until when a VIP is served.
    covered: BTreeMap<Vip, Ns>,
    /// How long VIPs were served, together.
    pub served: Ns,
    /// A VIP went from one machine to another.
    pub takeovers: u64,
    /// The kernel stopped serving by itself.
    pub lapses: u64,
}

impl Checks {
    /// That nothing has happened yet.
    #[must_use]
    pub fn new(safety_only: bool, sought: Option<Broken>) -> Self {
        Self { safety_only, sought, ..Self::default() }
    }

    /// It is broken.
    pub(super) fn fail(&mut self, broken: Broken, at: Ns, text: String) {
        let convenience = matches!(broken, Broken::NotHealed | Broken::Lapse);
        if !self.safety_only || !convenience || self.sought == Some(broken) {
            let failure = Failure { broken, at, text };
            self.failures.entry(broken).or_insert_with(|| failure.clone());
            self.failure.get_or_insert(failure);
        }
    }

    /// It was looked at once more.
    pub(super) fn looked(&mut self, broken: Broken) {
        *self.looks.entry(broken).or_default() += 1;
    }

    /// Check 1.
    pub fn two_owners(&mut self, at: Ns, vip: Vip, one: &str, other: &str) {
        self.fail(Broken::TwoOwners, at, format!("{vip}: packets of {one} and of {other} pass"));
    }

    /// Check 2.
    pub fn wrong_takeover(&mut self, at: Ns, vip: Vip, new: &str, old: &str) {
        self.fail(Broken::WrongTakeover, at, format!("{vip}: {new} opens while the lease of {old} is valid"));
    }

    /// Check 3: an element of this epoch opens.
    pub fn opened(&mut self, at: Ns, vip: Vip, epoch: Epoch, machine: usize) {
        self.looked(Broken::Monotone);
        let before = self.opened.insert(vip, (epoch, machine));
        let Some((highest, holder)) = before else { return };
        if epoch < highest {
            self.fail(Broken::Monotone, at, format!("{vip} opens at epoch {epoch} after {highest}"));
        } else if epoch == highest && holder != machine {
            self.fail(Broken::Monotone, at, format!("{vip} opens at epoch {epoch} on a second machine"));
        } else if holder != machine {
            self.takeovers += 1;
        }
    }

    /// Check 3: a process begins to act under a term.
    pub fn acting(&mut self, at: Ns, term: Term, process: u64) {
        if self.terms.insert(term, process).is_some_and(|before| before != process) {
            self.fail(Broken::Monotone, at, format!("term {term} was given twice"));
        }
    }

    /// Check 3: a change is durable.
    pub fn durable(&mut self, change: &Stamped) {
        if let Change::Vip { vip, row } = &change.change {
            let highest = self.durable.entry(*vip).or_default();
            if row.epoch < *highest {
                let text = format!("{vip}: epoch {} is made durable after {highest}", row.epoch);
                self.fail(Broken::Monotone, 0, text);
            } else {
                *highest = row.epoch;
            }
        }
    }

    /// The ledger is lost: what only it knew may come again.
    pub fn ledger_lost(&mut self) {
        self.durable.clear();
    }

    /// Check 5: an owner lost a VIP.
    pub fn lost(&mut self, at: Ns, machine: &str, vip: Vip, reason: &LossReason, calm: bool) {
        if *reason == LossReason::Lapsed {
            self.lapses += 1;
            if calm {
                self.fail(Broken::Lapse, at, format!("{vip} lapses on {machine} though nothing is broken"));
            }
        }
    }

    /// Check 6: a renewal that was reported done.
    pub fn refreshed(&mut self, at: Ns, machine: &str, vip: Vip, end: Option<Ns>, wanted: Ns) {
        self.looked(Broken::NotRefreshed);
        if end.is_none_or(|end| end + MS < wanted) {
            let text = format!("{vip} on {machine}: renewed, but its element ends at {end:?} instead of {wanted}");
            self.fail(Broken::NotRefreshed, at, text);
        }
    }

    /// Check 7: a release under this term is acknowledged; what a process that started now would know.
    pub fn acknowledged(&mut self, at: Ns, machine: &str, term: Term, known: Term) {
        self.looked(Broken::Forgettable);
        if known < term {
            let text = format!("{machine} acknowledges a release under term {term}, its disk knows term {known}");
            self.fail(Broken::Forgettable, at, text);
        }
    }

    /// Check 4.
    pub fn not_healed(&mut self, at: Ns, why: String) {
        self.fail(Broken::NotHealed, at, why);
    }

    /// An element of this VIP changed: what that means for its clients.
    pub fn element(&mut self, now: Ns, vip: Vip, before: Option<Ns>, after: Option<Ns>) {
        let covered = self.covered.entry(vip).or_default();
        match (before, after) {
            (Some(end), None) if end >= *covered && *covered > now => {
                self.served -= *covered - now;
                *covered = now;
            }
            (_, Some(end)) if end > *covered => {
                self.served += end - now.max(*covered);
                *covered = end;
            }
            _ => {}
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {}.{:06}: {}", self.broken, self.at / SEC, self.at % SEC / 1000, self.text)
    }
}
