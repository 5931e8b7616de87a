//! What controllers tell SIF about the shared tables (thesis ch. 4). They send signals; the tables are edited here alone.

use kage_types::{
    AgentId, Claim, Condition, DomainName, GroupName, OperationRow, Revision, StateRow, Step, StepState, Term,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A signal. Those of the holder of the term carry it; those of power saving name the process that carries out the
/// transition, because it may be another one, without a term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// What the configuration says there is. Where known rows are, and in which condition, stays.
    PutArrangement {
        /// The asker's.
        term: Term,
        /// By place. `vm` and `host` count for new places only.
        operation: BTreeMap<DomainName, OperationRow>,
        /// All real servers of power saving.
        real_servers: BTreeSet<AgentId>,
        /// All service groups.
        groups: BTreeSet<GroupName>,
    },
    /// A4: the backup fills the target's place.
    FunctionRestored {
        /// The asker's.
        term: Term,
        /// The target.
        place: DomainName,
        /// Who stands in for it.
        backup: DomainName,
        /// Where that is.
        host: AgentId,
    },
    /// A5: the target is back, or will not come back.
    TargetVerdict {
        /// The asker's.
        term: Term,
        /// The target.
        place: DomainName,
        /// Does it fill its place again? Otherwise the backup keeps it.
        recovered: bool,
        /// Where whoever fills the place now is.
        host: AgentId,
    },
    /// What a recovery needs; all it claimed before is given back. None: it is over.
    PutClaims {
        /// The asker's.
        term: Term,
        /// Which recovery.
        by: String,
        /// For people.
        why: String,
        /// All its claims.
        claims: BTreeSet<Claim>,
    },
    /// A virtual server was found, or is to be started anew, on this real server.
    MovedTo {
        /// The asker's.
        term: Term,
        /// Which.
        vm: DomainName,
        /// Where.
        host: AgentId,
        /// Where it is known not to run: its plug was pulled there.
        not_on: BTreeSet<AgentId>,
    },
    /// Power saving has found a virtual server whose live migration it could not see the end of.
    Found {
        /// Which process.
        by: String,
        /// Which.
        vm: DomainName,
        /// Where.
        host: AgentId,
        /// Where it looked too, and it does not run.
        not_on: BTreeSet<AgentId>,
    },
    /// Power saving is about to change the arrangement.
    BeginTransition {
        /// Which process carries it out.
        by: String,
        /// The revision of the tables that the plan was made of.
        generation: Revision,
        /// As its author wrote it.
        plan: String,
        /// In order.
        steps: Vec<Step>,
        /// The condition of each group it changes, before and after.
        groups: BTreeMap<GroupName, (Condition, Condition)>,
    },
    /// Another process goes on with it.
    TakeTransition {
        /// Which.
        id: u64,
        /// Whose it was.
        from: String,
        /// Whose it is from now on.
        by: String,
    },
    /// A step will be done or taken back, or is.
    PutStep {
        /// Of which transition.
        id: u64,
        /// The process that carries it out.
        by: String,
        /// Which step.
        index: usize,
        /// How far it is.
        state: StepState,
        /// Of a host that was woken: how long that took, milliseconds.
        took_ms: Option<u32>,
        /// Now, on the wall clock of whoever drives the core, milliseconds since 1970.
        now_unix_ms: u64,
    },
    /// The transition is over.
    EndTransition {
        /// Which.
        id: u64,
        /// The process that carried it out.
        by: String,
        /// Is everything as planned? Otherwise taken back.
        committed: bool,
        /// The groups' arrangements now.
        state: BTreeMap<GroupName, StateRow>,
        /// For people.
        why: String,
    },
}

impl Signal {
    /// The term it needs; none for those of power saving.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        match self {
            Signal::PutArrangement { term, .. }
            | Signal::FunctionRestored { term, .. }
            | Signal::TargetVerdict { term, .. }
            | Signal::PutClaims { term, .. }
            | Signal::MovedTo { term, .. } => Some(*term),
            Signal::BeginTransition { .. }
            | Signal::TakeTransition { .. }
            | Signal::Found { .. }
            | Signal::PutStep { .. }
            | Signal::EndTransition { .. } => None,
        }
    }
}
