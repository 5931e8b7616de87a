//! What the core is asked, and what it answers.

use crate::{Cause, Report, Signal, Stage};
use kage_types::{AgentId, Claim, DomainName, Epoch, Order, OrderScope, Revision, TargetName, Term, Vip};
use serde::{Deserialize, Serialize};

/// A request of a coordinator. Reads are not here: they take [`crate::Core::ledger`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Give a term above all before.
    AcquireTerm {
        /// Who asks; kept for display.
        coordinator: String,
    },
    /// Is this still the current term?
    RenewTerm {
        /// The asker's.
        term: Term,
    },
    /// What an agent has stored.
    ReportVoter {
        /// The agent.
        reporter: AgentId,
        /// What it has stored.
        report: Report,
    },
    /// Compare-and-set: from the expected epoch to the next, with this owner.
    AdvanceEpoch {
        /// The asker's.
        term: Term,
        /// Which VIP.
        vip: Vip,
        /// 0 for a VIP without owner.
        expected: Epoch,
        /// The new owner.
        owner: AgentId,
        /// Its VM that serves, if not itself.
        domain: Option<DomainName>,
        /// The server the VIP stands for.
        target: TargetName,
        /// Why.
        cause: Cause,
    },
    /// A long lease is about to be granted, or can't be outstanding any more.
    SetLongLease {
        /// The asker's.
        term: Term,
        /// Which VIP.
        vip: Vip,
        /// May one be outstanding?
        outstanding: bool,
        /// Rises with each request of this term for this VIP; 0 if its sender does not number them.
        sequence: u64,
    },
    /// A recovery begins, goes on or (no stage) ends.
    PutTrouble {
        /// The asker's.
        term: Term,
        /// Whose.
        target: TargetName,
        /// How far; none clears the row.
        stage: Option<Stage>,
        /// For people.
        detail: String,
        /// Now, on the wall clock of whoever drives the core, milliseconds since 1970.
        now_unix_ms: u64,
    },
    /// An operator's order; one of the same scope is replaced.
    PutOrder {
        /// The asker's.
        term: Term,
        /// What.
        order: Order,
    },
    /// An order is lifted, or has ended.
    ClearOrder {
        /// The asker's.
        term: Term,
        /// Which.
        scope: OrderScope,
    },
    /// About the shared tables.
    Signal(Signal),
}

/// Done, and durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A new term.
    Term {
        /// Above all before.
        term: Term,
    },
    /// The term is still current.
    Renewed,
    /// The report is counted.
    Reported {
        /// May terms be given?
        established: bool,
        /// If not: how many more must report.
        needed: u32,
    },
    /// The VIP has this owner at this epoch.
    Epoch {
        /// Of the ledger by then.
        revision: Revision,
        /// The epoch given.
        epoch: Epoch,
    },
    /// The row is as asked.
    Written {
        /// Of the ledger by then.
        revision: Revision,
    },
    /// The shared tables say so.
    Tables {
        /// Of the tables by then.
        revision: Revision,
    },
    /// The transition is the asker's.
    Transition {
        /// Of the tables by then.
        revision: Revision,
        /// Which.
        id: u64,
    },
}

/// Not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Safety rule 7.
    #[error(
        "the ledger is new or restored and gives out no term: {needed} more of the voters (with fewer than three voters: of the agents) must report what they have stored; report them with ReportVoter, then ask again"
    )]
    NeedsReports {
        /// How many more.
        needed: u32,
    },
    /// Another coordinator took over.
    #[error("term {given} is over, the current one is {current}: acquire a new term before writing")]
    StaleTerm {
        /// The asker's.
        given: Term,
        /// The ledger's.
        current: Term,
    },
    /// The ledger is older than its asker.
    #[error(
        "term {given} was never given by this ledger, whose highest is {current}: it was restored from an old backup; report the voters with ReportVoter and acquire a new term"
    )]
    UnknownTerm {
        /// The asker's.
        given: Term,
        /// The ledger's.
        current: Term,
    },
    /// Compare-and-set.
    #[error("{vip} is at epoch {current}, not {expected}: read the ledger and decide again")]
    Conflict {
        /// Which VIP.
        vip: Vip,
        /// What the request expected.
        expected: Epoch,
        /// 0 for a VIP without owner.
        current: Epoch,
    },
    /// No owner yet.
    #[error("{vip} has no owner in the ledger: give it one with AdvanceEpoch first")]
    UnknownVip {
        /// Which VIP.
        vip: Vip,
    },
    /// A late "none is outstanding" must not hide a lease that was granted since.
    #[error("request {given} for the long lease of {vip} was overtaken by {latest}: nothing is to be done")]
    Overtaken {
        /// Which VIP.
        vip: Vip,
        /// The request's place.
        given: u64,
        /// The latest seen in this term.
        latest: u64,
    },
    /// A plan made of tables that have changed since.
    #[error("the tables are at revision {current}, the plan was made of {given}: plan again")]
    StaleGeneration {
        /// The plan's.
        given: Revision,
        /// Of the tables.
        current: Revision,
    },
    /// One at a time.
    #[error("transition {id} of {by} is under way: wait for its end, or take it over with TakeTransition")]
    UnderWay {
        /// Which.
        id: u64,
        /// Whose.
        by: String,
    },
    /// Recoveries go first.
    #[error("{claim} is claimed by the recovery of {by}: leave it alone until that is over")]
    Claimed {
        /// What.
        claim: Claim,
        /// Which recovery.
        by: String,
    },
    /// Ended, or of a lost ledger.
    #[error("transition {given} is not under way{}: stop carrying it out and look at the tables", .under_way.map(|id| format!(", but {id}")).unwrap_or_default())]
    NoTransition {
        /// As given.
        given: u64,
        /// The one that is.
        under_way: Option<u64>,
    },
    /// It was taken over.
    #[error("transition {id} is carried out by {by}, not by {given}: stop carrying it out")]
    OtherProcess {
        /// Which.
        id: u64,
        /// Whose it is.
        by: String,
        /// As given.
        given: String,
    },
    /// Nothing of that name in the tables.
    #[error("the tables know no {what}: put what is configured with PutArrangement, or plan again")]
    Unknown {
        /// What.
        what: String,
    },
    /// A step whose ground has changed.
    #[error("not as planned: {why}; look at the tables and plan again")]
    NotAsPlanned {
        /// What is otherwise.
        why: String,
    },
    /// A signal that contradicts itself.
    #[error("{why}: this signal can't be meant so")]
    Invalid {
        /// How.
        why: String,
    },
    /// Not in configuration.
    #[error("{reporter} is no agent of this cluster: list it as [[agent]] in cluster.toml and restart kage-sif")]
    UnknownReporter {
        /// Who.
        reporter: AgentId,
    },
    /// A report that would use up the numbers.
    #[error(
        "{reporter} reports the number {number}, which no cluster reaches: its store is damaged; remove it and enrol the agent again"
    )]
    Implausible {
        /// Who.
        reporter: AgentId,
        /// The number.
        number: u64,
    },
    /// A named limit.
    #[error("{what} would exceed the limit of {limit}: {next}")]
    TooMuch {
        /// What is limited.
        what: String,
        /// The limit.
        limit: usize,
        /// What to do.
        next: String,
    },
    /// The queue is full.
    #[error("{limit} requests wait for the disk already: ask again later, and look at the disk of kage-sif")]
    Busy {
        /// The limit.
        limit: usize,
    },
    /// The change is not known to be durable.
    #[error("the ledger can't be written ({reason}): free or repair the disk of kage-sif, then repeat the request")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// For people: something that should not happen has been noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Alert {
    /// A report was above an established ledger.
    #[error(
        "{reporter} has stored {what} {reported}, but the ledger is at {known}: the ledger was restored from an old backup. It gives out nothing until a majority has reported; the current term is over"
    )]
    OldBackup {
        /// Who.
        reporter: AgentId,
        /// "term" or "epoch of VIP".
        what: String,
        /// Its number.
        reported: u64,
        /// Ours.
        known: u64,
    },
    /// A commit failed.
    #[error(
        "the ledger can't be written: {reason}. Writes are refused and reads served until it can: free or repair the disk"
    )]
    StoreFailed {
        /// Why.
        reason: String,
    },
    /// The disk holds another ledger than the one that was acknowledged.
    #[error(
        "the ledger read again from disk (revision {disk}) is not the one in memory (revision {memory}): writes stay refused. Stop kage-sif, restore the file or remove it, and start again"
    )]
    Diverged {
        /// On disk.
        disk: Revision,
        /// In memory.
        memory: Revision,
    },
    /// The disk works again.
    #[error("the ledger can be written again, at revision {revision}")]
    StoreRecovered {
        /// Of the ledger.
        revision: Revision,
    },
}
