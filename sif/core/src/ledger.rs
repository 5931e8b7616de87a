//! The tables, and the changes that lead from one revision to the next.

use crate::{Edit, Shared};
use kage_types::{AgentId, DomainName, Epoch, Order, OrderScope, Revision, TargetName, Term, Vip};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Everything SIF knows. Equal ledgers answer every request alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// One higher with each durable change.
    pub revision: Revision,
    /// The highest term ever given, or reported.
    pub term: Term,
    /// The coordinator that was given `term`; empty if it comes from a report.
    pub coordinator: String,
    /// May terms and epochs be given out?
    pub established: Established,
    /// Who may hold which VIP.
    pub vips: BTreeMap<Vip, VipRow>,
    /// Epochs that are known to have been given, but not to whom: from reports. A VIP is here or in `vips`.
    pub floors: BTreeMap<Vip, Epoch>,
    /// Recoveries under way (thesis 4: Trouble file).
    pub troubles: BTreeMap<TargetName, TroubleRow>,
    /// What operators want not to be acted on.
    pub orders: BTreeMap<OrderScope, Order>,
    /// The shared tables of thesis ch. 4.
    #[serde(default)]
    pub shared: Shared,
}

/// A ledger that is new or restored gives out nothing before a majority has reported (safety rule 7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Established {
    /// New, or proven to be restored from an old backup.
    Fresh {
        /// What has been reported so far.
        reports: BTreeMap<AgentId, Report>,
    },
    /// A majority has reported.
    Established,
}

impl Default for Established {
    fn default() -> Self {
        Established::Fresh { reports: BTreeMap::new() }
    }
}

/// What one agent has stored durably.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The highest term it has seen.
    pub highest_term: Term,
    /// The highest epoch of each VIP it has seen.
    pub epochs: BTreeMap<Vip, Epoch>,
}

impl Report {
    /// Both together: a second report of an agent never lowers its first.
    pub(crate) fn merge(&mut self, other: &Report) {
        self.highest_term = self.highest_term.max(other.highest_term);
        for (vip, epoch) in &other.epochs {
            let known = self.epochs.entry(*vip).or_default();
            *known = (*known).max(*epoch);
        }
    }
}

/// Who may hold a VIP, at which epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRow {
    /// Given to this owner and no other.
    pub epoch: Epoch,
    /// The epoch its request expected: tells a repeated request from a new one.
    pub after: Epoch,
    /// The agent that holds it, for itself or for `domain`.
    pub owner: AgentId,
    /// The VM that serves it, if not the owner's own machine.
    pub domain: Option<DomainName>,
    /// The server whose services the VIP stands for.
    pub target: TargetName,
    /// Why the owner changed last.
    pub cause: Cause,
    /// A long lease (safety rule 9) may be outstanding, with this owner **or an earlier one**: a change of owner does
    /// not end it, only [`crate::Request::SetLongLease`] does.
    pub long_lease: bool,
}

/// A target's recovery under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleRow {
    /// How far it is.
    pub stage: Stage,
    /// For people.
    pub detail: String,
    /// When the stage was entered, on SIF's wall clock, milliseconds since 1970. For display: nothing is decided by it.
    pub since_unix_ms: u64,
}

/// A word that the contract does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no {what}: use one of {known}")]
pub struct UnknownWord {
    /// What it should have been.
    pub what: &'static str,
    /// As given.
    pub word: String,
    /// All that can be given.
    pub known: &'static str,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, $known:literal, $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// As in the contract.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok($name::$variant),)+
                    other => Err(UnknownWord { what: $what, word: other.to_owned(), known: $known }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// Why a VIP changed owner.
    Cause, "cause of a change of owner", "first, takeover, failover, failback, arranged",
    /// It had none.
    First = "first",
    /// The owner was lost.
    Takeover = "takeover",
    /// Planned, to the double.
    Failover = "failover",
    /// Planned, back to the target.
    Failback = "failback",
    /// Planned: power saving moved its virtual server, or it to another.
    Arranged = "arranged",
);

words!(
    /// How far a recovery is.
    Stage, "stage of a recovery", "restarting, backup, waking, recovering, down",
    /// The service or server is being restarted in place.
    Restarting = "restarting",
    /// The double serves.
    Backup = "backup",
    /// A host is being woken for it.
    Waking = "waking",
    /// The target comes back.
    Recovering = "recovering",
    /// Nothing serves.
    Down = "down",
);

/// A change with its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// One above the change before.
    pub revision: Revision,
    /// The change.
    pub change: Change,
}

/// One step of the ledger, with final values: applying it needs no rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A new term was given.
    Term {
        /// Above all before.
        term: Term,
        /// To whom.
        coordinator: String,
    },
    /// A VIP's row is new or changed.
    Vip {
        /// Which.
        vip: Vip,
        /// Its row from now on.
        row: VipRow,
    },
    /// A recovery began or went on.
    Trouble {
        /// Whose.
        target: TargetName,
        /// Its row from now on.
        row: TroubleRow,
    },
    /// A recovery ended.
    TroubleCleared {
        /// Whose.
        target: TargetName,
    },
    /// An order is new or replaced.
    Order {
        /// From now on.
        order: Order,
    },
    /// An order is lifted, or has ended.
    OrderCleared {
        /// Which.
        scope: OrderScope,
    },
    /// An agent has reported to a fresh ledger.
    Reported {
        /// Who.
        reporter: AgentId,
        /// All it has reported.
        report: Report,
    },
    /// A majority has reported.
    Established {
        /// The highest term known.
        term: Term,
        /// VIPs whose highest epoch is known only from reports. A row of theirs is out of date and goes.
        floors: BTreeMap<Vip, Epoch>,
    },
    /// One signal's edits of the shared tables.
    Tables {
        /// Of the tables, by then.
        revision: Revision,
        /// In order.
        edits: Vec<Edit>,
    },
    /// An agent knows more than the established ledger: it is an old backup. Owners and terms given since are
    /// unknown, so a majority must report again.
    Restored {
        /// The highest term known.
        term: Term,
        /// As in [`Change::Established`].
        floors: BTreeMap<Vip, Epoch>,
        /// Who knew more.
        reporter: AgentId,
        /// What it knew.
        report: Report,
    },
}

impl Ledger {
    /// The highest epoch known of a VIP; 0 if none was ever given.
    #[must_use]
    pub fn highest_epoch(&self, vip: &Vip) -> Epoch {
        let row = self.vips.get(vip).map(|row| row.epoch).unwrap_or_default();
        row.max(self.floors.get(vip).copied().unwrap_or_default())
    }

    /// Is there a majority behind it?
    #[must_use]
    pub fn is_established(&self) -> bool {
        match self.established {
            Established::Fresh { .. } => false,
            Established::Established => true,
        }
    }

    /// Makes one change.
    pub fn apply(&mut self, stamped: &Stamped) {
        self.revision = stamped.revision;
        match &stamped.change {
            Change::Term { term, coordinator } => {
                self.term = *term;
                self.coordinator.clone_from(coordinator);
            }
            Change::Vip { vip, row } => {
                self.floors.remove(vip);
                self.vips.insert(*vip, row.clone());
            }
            Change::Trouble { target, row } => {
                self.troubles.insert(target.clone(), row.clone());
            }
            Change::TroubleCleared { target } => {
                self.troubles.remove(target);
            }
            Change::Order { order } => {
                self.orders.insert(order.scope.clone(), order.clone());
            }
            Change::OrderCleared { scope } => {
                self.orders.remove(scope);
            }
            Change::Tables { revision, edits } => {
                edits.iter().for_each(|edit| self.shared.apply(edit));
                self.shared.tables.revision = *revision;
            }
            Change::Reported { reporter, report } => match &mut self.established {
                Established::Fresh { reports } => {
                    reports.insert(reporter.clone(), report.clone());
                }
                // Never decided: an established ledger makes Restored of a report that says anything new.
                Established::Established => {}
            },
            Change::Established { term, floors } => {
                self.raise(*term, floors);
                self.established = Established::Established;
            }
            Change::Restored { term, floors, reporter, report } => {
                self.raise(*term, floors);
                let reports = BTreeMap::from([(reporter.clone(), report.clone())]);
                self.established = Established::Fresh { reports };
            }
        }
    }

    /// The ledger to begin with after this one, an older copy, is all that is left (safety rule 7). Whose the VIPs are may
    /// have changed since, so only their epochs are kept, below which none is ever given again; nothing is given out
    /// before a majority has reported. Operators' orders stand, and the shared tables as they were last known, without what was
    /// under way (transition, claims); recoveries were those of that moment.
    #[must_use]
    pub fn restored(self) -> Self {
        let mut floors = self.floors;
        for (vip, row) in &self.vips {
            let floor = floors.entry(*vip).or_default();
            *floor = (*floor).max(row.epoch);
        }
        Self {
            // Nobody who followed the old one goes on from it as if nothing had been.
            revision: Revision(self.revision.0.saturating_add(crate::UNSEEN_MARGIN)),
            term: self.term,
            coordinator: String::new(),
            established: Established::default(),
            vips: BTreeMap::new(),
            floors,
            troubles: BTreeMap::new(),
            orders: self.orders,
            shared: self.shared.restored(),
        }
    }

    fn raise(&mut self, term: Term, floors: &BTreeMap<Vip, Epoch>) {
        if term > self.term {
            self.term = term;
            self.coordinator.clear();
        }
        for (vip, epoch) in floors {
            self.vips.remove(vip);
            self.floors.insert(*vip, *epoch);
        }
    }
}
