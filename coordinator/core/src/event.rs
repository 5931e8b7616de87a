//! What happens to the coordinator, and what it wants done. Both are serialisable: the journal is made of them.

use crate::{
    arrangement::Arrangement,
    probe::{Limits, Probe},
};
use kage_types::{
    AgentId, AskVip, Claim, DomainName, Epoch, Grant, Nonce, Order, OrderScope, ServiceName, Tables, TargetName, Term,
    Time, Vip,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

/// Ties an action that starts something to the one event that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// One agent's stream, as numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// A row of SIF's VIP table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRow {
    /// Which.
    pub vip: Vip,
    /// The owner's.
    pub epoch: Epoch,
    /// Its agent.
    pub owner: AgentId,
    /// Its VM, if not the machine itself.
    pub domain: Option<DomainName>,
    /// Why it owns it.
    pub cause: Cause,
    /// A long lease may be out.
    pub long_lease: bool,
}

/// Why a VIP changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Never owned before.
    First,
    /// The target failed.
    Takeover,
    /// The operator moved it.
    Failover,
    /// Back to the target.
    Failback,
    /// Where its virtual server is, or which one serves it, changed as planned: power saving.
    Arranged,
}

impl Cause {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::First => "first",
            Cause::Takeover => "takeover",
            Cause::Failover => "failover",
            Cause::Failback => "failback",
            Cause::Arranged => "arranged",
        }
    }
}

impl std::str::FromStr for Cause {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Cause::First, Cause::Takeover, Cause::Failover, Cause::Failback, Cause::Arranged]
            .into_iter()
            .find(|cause| cause.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no cause of ownership"))
    }
}

/// What an agent reports of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentReport {
    /// A VIP is open there.
    Opened(AskVip),
    /// A VIP is not served there any more.
    Lost {
        /// Which.
        ask: AskVip,
        /// For people.
        reason: String,
    },
    /// The machine, or only the agent, is about to stop.
    GoingDown {
        /// The machine itself, not only the agent.
        machine: bool,
        /// agent, reboot, power-off, suspend
        what: String,
    },
    /// A service's process is gone, or its manager says so.
    ServiceDown {
        /// Which.
        service: ServiceName,
        /// For people.
        detail: String,
    },
    /// A service is held back for want of a lease, or not any more.
    ServiceHeld {
        /// Which.
        service: ServiceName,
        /// Is it?
        held: bool,
    },
    /// A VM's process is gone, or the guest gave up: nobody stopped it on purpose.
    VmCrashed {
        /// Which.
        domain: DomainName,
        /// For people.
        detail: String,
    },
    /// Something for the log only.
    Other(String),
}

/// How a check ended (thesis: OK, ERROR, NG).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    /// As expected.
    Ok,
    /// A wrong reply.
    Error(String),
    /// No reply in time.
    Ng(String),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobResult {
    /// Done.
    Done,
    /// Not done, for certain; or (epochs) refused.
    Failed(String),
    /// Perhaps done: no answer.
    Unknown(String),
    /// Of [`Action::AdvanceEpoch`].
    Epoch(Epoch),
    /// Of [`Action::Bar`]: age of the last consent.
    Barred(Duration),
    /// Of a ping or probe.
    Check(CheckOutcome),
    /// Of [`AgentCommand::ProbeVip`]: who answered.
    Answered(Option<String>),
}

/// What an agent says it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Which.
    pub agent: AgentId,
    /// Open there; or why it could not be asked.
    pub vips: Result<Vec<AskVip>, String>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// SIF gave this process a new term.
    TermAcquired {
        /// Which.
        term: Term,
        /// When it was asked for.
        sent: Time,
        /// T.
        length: Duration,
        /// The ledger at that revision.
        rows: Vec<VipRow>,
    },
    /// SIF prolonged it.
    TermRenewed {
        /// Which.
        term: Term,
        /// When that was asked for.
        sent: Time,
        /// T.
        length: Duration,
    },
    /// SIF has given a higher term to another.
    TermLost {
        /// Which was lost.
        term: Term,
        /// For people.
        reason: String,
    },
    /// SIF did not answer, or could not.
    TermFailed {
        /// For people.
        reason: String,
    },
    /// The ledger was read again.
    LedgerRead {
        /// All VIP rows.
        rows: Vec<VipRow>,
    },
    /// An agent's stream is up, its assignment sent.
    AgentUp {
        /// Who.
        agent: AgentId,
        /// By which stream.
        session: SessionId,
        /// Which process of it.
        incarnation: u64,
    },
    /// An agent's stream ended.
    AgentDown {
        /// Who.
        agent: AgentId,
        /// Which stream.
        session: SessionId,
    },
    /// An agent asks for its lease.
    Ask {
        /// Who.
        agent: AgentId,
        /// Where the answer goes.
        session: SessionId,
        /// The voter that relayed it; `session` is then the voter's.
        via: Option<AgentId>,
        /// Which process of the agent.
        incarnation: u64,
        /// Of the request.
        nonce: Nonce,
        /// The last answer that reached it.
        heard: Nonce,
        /// For what.
        vips: Vec<AskVip>,
        /// A long lease.
        long: bool,
        /// No long element is left there.
        long_surrendered: bool,
    },
    /// An agent reports.
    Report {
        /// Who.
        agent: AgentId,
        /// What.
        report: AgentReport,
    },
    /// A job ended.
    Job {
        /// Which.
        job: JobId,
        /// How.
        result: JobResult,
    },
    /// The operator wants a planned move.
    Move {
        /// To be answered.
        command: u64,
        /// Which.
        target: TargetName,
        /// To the backup server, or back.
        back: bool,
        /// Even if the destination looks bad.
        force: bool,
    },
    /// The orders in the ledger: before each term, so that nothing is done against one.
    OrdersRead {
        /// All rows.
        orders: Vec<Order>,
        /// The wall clock, milliseconds since 1970: how long an order still stands is counted from here.
        now_unix_ms: u64,
    },
    /// The ledger's Trouble table, before each term: targets that were given up stay with their doubles.
    TroublesRead {
        /// Those with verdict down, and why.
        down: Vec<(TargetName, String)>,
    },
    /// The shared tables of thesis ch. 4: before each term, and after every change of them.
    TablesRead {
        /// All of them, at one revision.
        tables: Box<Tables>,
    },
    /// The operator gives an order, or replaces one of the same scope.
    PutOrder {
        /// To be answered.
        command: u64,
        /// Since now.
        order: Order,
    },
    /// The operator lifts an order.
    ClearOrder {
        /// To be answered.
        command: u64,
        /// Which.
        scope: OrderScope,
        /// By whom.
        who: String,
    },
    /// The operator has changed things by hand: what there is now is accepted.
    Adopt {
        /// To be answered.
        command: u64,
        /// Which.
        target: TargetName,
        /// By whom.
        who: String,
        /// What the agents of target and backup say.
        found: Vec<Holding>,
    },
    /// The operator ends a machine's quarantine.
    EndQuarantine {
        /// To be answered.
        command: u64,
        /// Which.
        agent: AgentId,
        /// By whom.
        who: String,
    },
    /// The wall clock, now and then: the core has none of its own, and only `failback_hours` ask for it.
    WallClock {
        /// Milliseconds since 1970.
        now_unix_ms: u64,
    },
    /// The operator wants a changed configuration applied.
    Reload {
        /// To be answered.
        command: u64,
        /// As the file says, checked.
        cluster: Box<crate::config::Cluster>,
        /// Even where a target is away from home.
        force: bool,
    },
    /// The deadline was reached.
    Tick,
}

/// What an agent is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentCommand {
    /// Acquire.
    Hold {
        /// What.
        ask: AskVip,
        /// In which VM.
        domain: Option<DomainName>,
    },
    /// Make ready to hold, without asking for anything.
    Prepare {
        /// What.
        vip: Vip,
        /// In which VM.
        domain: Option<DomainName>,
    },
    /// Let go; done when the kernel's element is gone.
    Release {
        /// What.
        ask: AskVip,
    },
    /// Resume (or start) the double.
    ResumeVm {
        /// Which.
        domain: DomainName,
    },
    /// Suspend the double again.
    PauseVm {
        /// Which.
        domain: DomainName,
    },
    /// Start a virtual server that is off. Done when it runs.
    StartVm {
        /// Which.
        domain: DomainName,
    },
    /// Is it in that host's memory, be it suspended? Failed: certainly not.
    FindVm {
        /// Which.
        domain: DomainName,
    },
    /// Pull its plug. Done when it is off, as one is that was off before.
    DestroyVm {
        /// Which.
        domain: DomainName,
    },
    /// Reboot it: its guest is asked to.
    RebootVm {
        /// Which.
        domain: DomainName,
        /// Reset it instead, without asking.
        force: bool,
    },
    /// Live migration, from the commanded agent's host. Done when it runs there.
    MigrateVm {
        /// Which.
        domain: DomainName,
        /// To which agent's host.
        to: AgentId,
    },
    /// Restart a service.
    RestartService {
        /// Which.
        service: ServiceName,
    },
    /// Reboot the machine.
    Reboot,
    /// Send the magic packet.
    Wake {
        /// To.
        mac: String,
    },
    /// RFC 5227 section 2.1.1, before opening.
    ProbeVip {
        /// What.
        vip: Vip,
        /// How long to listen.
        listen: Duration,
    },
}

/// How bad a note is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As planned.
    Info,
    /// Worth knowing.
    Warning,
    /// Somebody should look.
    Alert,
}

impl Severity {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Alert => "alert",
        }
    }
}

/// A line of the log that operators read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// About which; none: about the coordinator.
    pub target: Option<TargetName>,
    /// How bad.
    pub severity: Severity,
    /// A stable word.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// What is to be done. Everything with a job ends as one [`Event::Job`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Answer a request for a lease.
    Reply {
        /// By which stream.
        session: SessionId,
        /// To whom, if the stream is a relay's.
        origin: Option<AgentId>,
        /// The answer.
        grant: Grant,
    },
    /// Ask SIF for a new term (after collecting voters' states where it says so).
    AcquireTerm,
    /// Prolong it.
    RenewTerm {
        /// Which.
        term: Term,
    },
    /// Read the ledger again.
    ReadLedger,
    /// Change the owner of a VIP, durably.
    AdvanceEpoch {
        /// To be ended.
        job: JobId,
        /// Which.
        vip: Vip,
        /// The epoch it has.
        expected: Epoch,
        /// The new owner.
        owner: AgentId,
        /// Its VM.
        domain: Option<DomainName>,
        /// Whose VIP.
        target: TargetName,
        /// Why.
        cause: Cause,
    },
    /// Note durably that a long lease is out, or is not any more.
    SetLongLease {
        /// To be ended.
        job: JobId,
        /// Which.
        vip: Vip,
        /// Is one out?
        outstanding: bool,
    },
    /// Ask a voter for a bar.
    Bar {
        /// To be ended.
        job: JobId,
        /// Whom.
        voter: AgentId,
        /// Which.
        vip: Vip,
        /// No consent below.
        floor: Epoch,
    },
    /// Command an agent.
    Command {
        /// To be ended.
        job: JobId,
        /// Whom.
        agent: AgentId,
        /// What.
        command: AgentCommand,
        /// Give up after.
        timeout: Duration,
    },
    /// ICMP echo from here; good as soon as one answer comes.
    Ping {
        /// To be ended.
        job: JobId,
        /// Whom.
        address: IpAddr,
        /// Requests at most, spread over the time.
        count: u16,
        /// All of it.
        timeout: Duration,
    },
    /// Expect-style probe from here.
    Probe {
        /// To be ended.
        job: JobId,
        /// Where.
        address: IpAddr,
        /// Where.
        port: u16,
        /// What is said and must be answered.
        probe: Probe,
        /// How long it may take.
        limits: Limits,
    },
    /// Read a machine's power by its configured command: [`JobResult::Done`] if it is off, else failed.
    ReadPower {
        /// To be ended.
        job: JobId,
        /// Whose.
        agent: AgentId,
        /// Give up after.
        timeout: Duration,
    },
    /// Switch a machine's power off by its configured command.
    PowerOff {
        /// To be ended.
        job: JobId,
        /// Whose.
        agent: AgentId,
        /// Give up after.
        timeout: Duration,
    },
    /// Revoke a machine's access to the storage by the configured command, or give it back.
    FenceStorage {
        /// To be ended.
        job: JobId,
        /// Its address.
        address: IpAddr,
        /// Revoke, or give back.
        revoke: bool,
        /// Give up after.
        timeout: Duration,
    },
    /// Thesis: Trouble file. An empty stage clears the row.
    PutTrouble {
        /// Whose.
        target: TargetName,
        /// restarting, backup, waking, recovering, down
        stage: String,
        /// For people.
        detail: String,
    },
    /// Tell SIF what the configuration says there is.
    PutArrangement {
        /// To be ended.
        job: JobId,
        /// What.
        arrangement: Box<Arrangement>,
    },
    /// A4: the function of a virtual server is restored, by its backup server.
    FunctionRestored {
        /// To be ended.
        job: JobId,
        /// Whose place.
        place: DomainName,
        /// Who fills it now.
        backup: DomainName,
        /// On which real server.
        host: AgentId,
    },
    /// A5: the verdict about a virtual server.
    TargetVerdict {
        /// To be ended.
        job: JobId,
        /// Whose place.
        place: DomainName,
        /// It fills its place again; or it is beyond repair, and the backup keeps that.
        recovered: bool,
        /// Where the one or the other is now.
        host: AgentId,
    },
    /// What a recovery needs from now on, in place of what it needed before; nothing: it is over.
    PutClaims {
        /// To be ended.
        job: JobId,
        /// Whose recovery.
        target: TargetName,
        /// For people.
        why: String,
        /// All of it.
        claims: BTreeSet<Claim>,
    },
    /// A virtual server was found, or is to be started anew, on this real server.
    MovedTo {
        /// To be ended.
        job: JobId,
        /// Which.
        vm: DomainName,
        /// Where.
        host: AgentId,
        /// Where it is known not to run. Absent in journals of before it was there.
        #[serde(default)]
        not_on: BTreeSet<AgentId>,
    },
    /// Note an operator's order durably.
    PutOrder {
        /// To be ended.
        job: JobId,
        /// What.
        order: Order,
    },
    /// It is lifted, or has ended.
    ClearOrder {
        /// To be ended.
        job: JobId,
        /// Which.
        scope: OrderScope,
    },
    /// Tell operators.
    Note(Note),
    /// The configuration has changed: agents get their new assignment, and those that are listed no more are left.
    Configured,
    /// An operator's command ended.
    Moved {
        /// Which.
        command: u64,
        /// How.
        result: Result<(), String>,
    },
}
