//! The owner's side of the lease protocol (docs/safety.md, rules 1 to 3, 6, 9).
//!
//! Per VIP: arm the kernel, ask, open within the life of what was armed, then renew for as long as grants come. The
//! kernel's elements do the enforcing; this machine only decides what to ask of it.

use crate::{KernelOp, KernelOutcome, OpId};
use kage_types::{AgentId, AskVip, DomainName, Epoch, Grant, LeaseTiming, Nonce, Term, Time, Verdict, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use memory::Durable;
pub use memory::OwnerMemory;
use switch::Switching;

/// Unanswered requests remembered. At one request per R this is several leases' worth: older answers are void anyway.
const MAX_OUTSTANDING: usize = 64;

/// Ties a command to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommandId(pub u64);

/// Where a VIP lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On this machine itself: host guard.
    Host,
    /// In this virtual machine: tap guard.
    Vm(DomainName),
}

/// What an owner does when neither the coordinator nor a way to it answers (rule 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCoordinatorLoss {
    /// Renew on consents from a majority of the voters.
    #[default]
    Voters,
    /// Go on without anybody's consent: takeover by proof only.
    Keep,
    /// Stop serving.
    Lapse,
}

/// What the coordinator tells each agent of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// All guarded VIPs (default deny).
    pub vips: BTreeSet<Vip>,
    /// L, K, R, g.
    pub timing: LeaseTiming,
    /// Names and addresses (`host:port`) of the voters.
    pub voters: BTreeMap<AgentId, String>,
    /// Without a coordinator.
    pub on_coordinator_loss: OnCoordinatorLoss,
}

/// A live element found at start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The address.
    pub vip: Vip,
    /// As stored by this agent before it stopped.
    pub epoch: Epoch,
    /// As stored.
    pub place: Place,
    /// What is left of the element's life; zero: none found, the VIP is asked for anew.
    pub remaining: Duration,
}

/// What happens to an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerEvent {
    /// At start: VIPs this agent held before.
    Adopt(Vec<Adopted>),
    /// The cluster as the coordinator describes it.
    Assigned(Assignment),
    /// The stream to the coordinator is up or down.
    Session(bool),
    /// The coordinator's answer, direct or relayed.
    Answer {
        /// The answer.
        grant: Grant,
        /// It came by way of a voter.
        relayed: bool,
    },
    /// A voter's consent.
    Consent {
        /// Who.
        voter: AgentId,
        /// To which request.
        nonce: Nonce,
        /// To which VIPs.
        vips: Vec<AskVip>,
    },
    /// Command: hold this VIP.
    Hold {
        /// To be answered.
        command: CommandId,
        /// Whose authority.
        term: Term,
        /// What.
        ask: AskVip,
        /// Where.
        place: Place,
    },
    /// Command: let go of this VIP at this epoch and all below.
    Release {
        /// To be answered.
        command: CommandId,
        /// Whose authority.
        term: Term,
        /// What.
        ask: AskVip,
    },
    /// The process is about to stop and come back: obtain a long lease (rule 9).
    PrepareStop {
        /// To be answered.
        command: CommandId,
    },
    /// The machine is about to stop or sleep, by our doing or another's: let go of everything, and take nothing.
    ReleaseAll {
        /// To be answered.
        command: CommandId,
    },
    /// It does not, or it is back.
    Stays,
    /// A VM of this host is about to be paused, saved or moved: let go of what it holds (rule 8).
    ReleaseVm {
        /// To be answered.
        command: CommandId,
        /// Which.
        domain: DomainName,
    },
    /// A VM has been moved by live migration: it stands still here and runs, or is about to, on another host. What it holds
    /// is over here at this epoch, and said to be once that is durable (rule 8).
    SwitchedOver {
        /// To be answered.
        command: CommandId,
        /// Which.
        domain: DomainName,
        /// Where to, in words.
        to: String,
    },
    /// CLOCK_BOOTTIME jumped: the machine slept, elements did not age.
    ClockJumped,
    /// The guard was removed by somebody and put back: its elements are gone, or may be.
    GuardBack,
    /// A kernel operation ended.
    Kernel {
        /// Which.
        op: OpId,
        /// How.
        outcome: KernelOutcome,
        /// When it was over.
        at: Time,
    },
    /// The memory with this number is on the disk, or could not be written.
    Remembered {
        /// Which.
        version: u64,
        /// Is it?
        ok: bool,
    },
    /// The deadline was reached.
    Tick,
}

/// Why a command to hold was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum HoldRefused {
    /// A higher term was seen.
    #[error("term {given} is over: this agent has seen term {seen}")]
    StaleTerm {
        /// In the command.
        given: Term,
        /// Highest seen.
        seen: Term,
    },
    /// A higher epoch was seen.
    #[error("epoch {given} of {vip} is over: this agent has seen epoch {seen}")]
    StaleEpoch {
        /// Which.
        vip: Vip,
        /// In the command.
        given: Epoch,
        /// Highest seen.
        seen: Epoch,
    },
    /// Not in the assignment: the guard does not cover it.
    #[error("{0} is not guarded here: the coordinator's assignment does not list it")]
    NotGuarded(Vip),
    /// What was released for the machine's end must not come back to it.
    #[error("this machine is going down or to sleep: it takes no virtual IP")]
    Leaving,
    /// Superseded or released while it was being acquired.
    #[error("{0} was given to another, or released, before it was open")]
    Overtaken(Vip),
    /// It was let go of, but not on record.
    #[error(
        "it is closed, but this agent could not write down under which term: see its log and the space on its disk"
    )]
    NotDurable,
}

/// How a command ended.
pub type CommandResult = Result<(), HoldRefused>;

/// Why a VIP is not served any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossReason {
    /// The kernel's element ran out: no grant came in time, or this agent was stalled.
    Lapsed,
    /// Another has a higher epoch.
    Superseded,
    /// As told.
    Released,
    /// The machine slept.
    ClockJumped,
    /// The VM was moved to this host by live migration. The elements are gone and the epoch is over here, durably: as good
    /// as a release that was asked for.
    SwitchedOver(String),
}

/// By whose word the lease was last renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenewedBy {
    /// The coordinator's, directly.
    Coordinator,
    /// The coordinator's, by way of a voter.
    Relay,
    /// A majority of voters'.
    Voters,
    /// Nobody's: `on_coordinator_loss = "keep"`.
    Keep,
}

/// What an owner wants done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerAction {
    /// Send to the coordinator. Never answered is an answer too.
    Ask {
        /// Of this request.
        nonce: Nonce,
        /// The last answer that arrived.
        heard: Nonce,
        /// What for; empty: only to be heard.
        vips: Vec<AskVip>,
        /// A long lease.
        long: bool,
        /// No element of a long lease is left.
        long_surrendered: bool,
    },
    /// Send to every voter.
    AskVoters {
        /// Of this request.
        nonce: Nonce,
        /// The last answer that arrived.
        heard: Nonce,
        /// What for.
        vips: Vec<AskVip>,
    },
    /// Change the guard. Ends as [`OwnerEvent::Kernel`].
    Kernel {
        /// Of this operation.
        op: OpId,
        /// Where.
        place: Place,
        /// What.
        change: KernelOp,
    },
    /// Put the address on the interface (host guard); the guard is still closed.
    PutAddress(Vip),
    /// Take the address off the interface and close its sockets.
    DropAddress(Vip),
    /// GARP or unsolicited NA, repeated (rule 5).
    Announce {
        /// What.
        vip: Vip,
        /// Where.
        place: Place,
    },
    /// Tell the coordinator and whoever watches.
    Opened {
        /// What.
        ask: AskVip,
    },
    /// Tell the coordinator and whoever watches.
    Lost {
        /// What.
        ask: AskVip,
        /// Why.
        reason: LossReason,
        /// The service that must not write without it is to be stopped.
        place: Place,
    },
    /// Store which VIPs are held, for a restart. Best effort: safety does not rest on it.
    Store(Vec<Adopted>),
    /// Write durably; ends as [`OwnerEvent::Remembered`].
    Remember {
        /// Rises by one.
        version: u64,
        /// The whole of it.
        memory: OwnerMemory,
    },
    /// A command ended.
    Done {
        /// Which.
        command: CommandId,
        /// How.
        result: CommandResult,
    },
    /// For the log: the kernel refused.
    KernelTrouble {
        /// What about.
        vip: Vip,
        /// Why.
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// The armed element is being set.
    Arming { op: OpId },
    /// Armed since; asking.
    Asking { armed: Time },
    /// The live element is being set.
    Opening { op: OpId },
    /// Serving.
    Live { renewed: Time, life: Duration, renewing: Option<OpId>, renewed_at: Time },
    /// Both elements are being deleted.
    Closing { op: OpId, then: Then },
    /// The kernel refused; tried again at this time.
    Stuck { until: Time },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Then {
    Forget,
    Acquire,
}

#[derive(Clone, Debug)]
struct Held {
    epoch: Epoch,
    place: Place,
    state: State,
    /// The last grant: sent at, length.
    grant: Option<(Time, Duration)>,
    /// It allows no renewal any more: only a fresher one does.
    spent: bool,
    /// Commands that end when it is open.
    holders: Vec<CommandId>,
    /// Commands that end when it is closed.
    releasers: Vec<CommandId>,
    /// Opened by this process, or found live at its start: `keep` may go on with it.
    may_keep: bool,
}

#[derive(Clone, Debug)]
struct Outstanding {
    sent: Time,
    vips: Vec<AskVip>,
    long: bool,
    consents: BTreeMap<Vip, BTreeSet<AgentId>>,
}

/// One VIP, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipView {
    /// The address.
    pub vip: Vip,
    /// Its epoch here.
    pub epoch: Epoch,
    /// Where.
    pub place: Place,
    /// arming, asking, opening, live, closing, stuck
    pub state: &'static str,
    /// Since the last renewal in the kernel.
    pub renewed: Option<Time>,
}

/// The owner's machine: one per agent, for all its VIPs.
#[derive(Clone, Debug)]
pub struct Owner {
    assignment: Option<Assignment>,
    highest_term: Term,
    /// The last order to each domain.
    orders: BTreeMap<DomainName, (Term, u64)>,
    held: BTreeMap<Vip, Held>,
    /// Epochs below this are over here.
    floors: BTreeMap<Vip, Epoch>,
    outstanding: BTreeMap<Nonce, Outstanding>,
    last_nonce: Nonce,
    heard: Nonce,
    last_op: OpId,
    session: bool,
    /// When the last answered-in-authority request was sent.
    authority: Option<Time>,
    renewed_by: Option<RenewedBy>,
    next_ask: Time,
    long: Long,
    /// The machine was said to stop or sleep; believed until then.
    leaving: Option<Time>,
    durable: Durable,
    switching: Switching,
    #[cfg(feature = "sabotage")]
    sabotage: Option<crate::Sabotage>,
}

/// A machine that still runs so long after it was said to go has not gone, whoever said so.
const LEAVING: Duration = Duration::from_secs(600);

/// The long lease before a planned stop.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Long {
    /// None, and none of its elements is left.
    None,
    /// Elements found at start may be long until each was renewed.
    Adopted(BTreeSet<Vip>),
    /// Wanted.
    Asking(CommandId),
    /// Granted; the kernel is being told.
    Setting { command: CommandId, left: BTreeSet<OpId> },
    /// Set: this process does nothing more.
    Stopping,
}

impl Owner {
    /// An owner of nothing, with what an earlier process stored. `first_nonce` must exceed every nonce of an earlier process of this agent that the
    /// coordinator may remember under the same incarnation; a new incarnation may start at zero.
    #[must_use]
    pub fn new(memory: OwnerMemory) -> Self {
        Self {
            assignment: None,
            highest_term: memory.term,
            orders: BTreeMap::new(),
            held: BTreeMap::new(),
            durable: Durable::new(&memory),
            switching: Switching::default(),
            floors: memory.floors,
            outstanding: BTreeMap::new(),
            last_nonce: Nonce(0),
            heard: Nonce(0),
            last_op: OpId(0),
            session: false,
            authority: None,
            renewed_by: None,
            next_ask: Time::ZERO,
            long: Long::None,
            leaving: None,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }

    /// Break a rule on purpose.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(&mut self, sabotage: crate::Sabotage) {
        self.sabotage = Some(sabotage);
    }

    #[cfg(feature = "sabotage")]
    fn counts_from_receipt(&self) -> bool {
        self.sabotage == Some(crate::Sabotage::GrantFromReceipt)
    }

    #[cfg(not(feature = "sabotage"))]
    #[allow(clippy::unused_self)]
    fn counts_from_receipt(&self) -> bool {
        false
    }

    #[cfg(feature = "sabotage")]
    fn ignores_majority(&self) -> bool {
        self.sabotage == Some(crate::Sabotage::KeepWithoutMajority)
    }

    #[cfg(not(feature = "sabotage"))]
    #[allow(clippy::unused_self)]
    fn ignores_majority(&self) -> bool {
        false
    }

    #[cfg(feature = "sabotage")]
    fn asks_each(&self, renewal: Duration) -> Duration {
        if self.sabotage == Some(crate::Sabotage::AsksTooSeldom) { 5 * renewal } else { renewal }
    }

    #[cfg(not(feature = "sabotage"))]
    #[allow(clippy::unused_self)]
    fn asks_each(&self, renewal: Duration) -> Duration {
        renewal
    }

    /// The highest term seen.
    #[must_use]
    pub fn highest_term(&self) -> Term {
        self.highest_term
    }

    /// Raise the highest term seen (a voter's bar or a command may show one first).
    pub fn saw_term(&mut self, term: Term) {
        self.highest_term = self.highest_term.max(term);
    }

    /// Is an order to this domain, counted within its term, younger than all before it? One that was long on its way must
    /// not start a VM that a later one has suspended. In memory only: no connection survives this process.
    pub fn takes(&mut self, domain: &DomainName, term: Term, order: u64) -> bool {
        let last = self.orders.entry(domain.clone()).or_default();
        let young = (term, order) > *last;
        if young {
            *last = (term, order);
        }
        young
    }

    /// The assignment in force.
    #[must_use]
    pub fn assignment(&self) -> Option<&Assignment> {
        self.assignment.as_ref()
    }

    /// Has the coordinator answered lately, itself and in authority? While it does, this agent as a voter consents
    /// to nothing (rule 6).
    #[must_use]
    pub fn reaches_coordinator(&self, now: Time) -> bool {
        let Some(assignment) = &self.assignment else {
            return self.session;
        };
        self.session && self.authority.is_some_and(|sent| now.since(sent) < 3 * assignment.timing.renewal)
    }

    /// Is the machine about to stop or sleep?
    #[must_use]
    pub fn leaves(&self, now: Time) -> bool {
        self.leaving.is_some_and(|until| now < until)
    }

    /// By whose word the lease was last renewed.
    #[must_use]
    pub fn renewed_by(&self) -> Option<RenewedBy> {
        self.renewed_by
    }

    /// All VIPs, for status.
    pub fn vips(&self) -> impl Iterator<Item = VipView> + '_ {
        self.held.iter().map(|(vip, held)| {
            let (state, renewed) = match &held.state {
                State::Arming { .. } => ("arming", None),
                State::Asking { .. } => ("asking", None),
                State::Opening { .. } => ("opening", None),
                State::Live { renewed, .. } => ("live", Some(*renewed)),
                State::Closing { .. } => ("closing", None),
                State::Stuck { .. } => ("stuck", None),
            };
            VipView { vip: *vip, epoch: held.epoch, place: held.place.clone(), state, renewed }
        })
    }

    /// Until when the lease of a VIP that is asked for or served runs (b + L), if one was ever granted.
    #[must_use]
    pub fn lease_until(&self, vip: Vip) -> Option<Time> {
        let held = self.held.get(&vip)?;
        match held.state {
            State::Asking { .. } | State::Opening { .. } | State::Live { .. } => held.grant.map(|(b, l)| b + l),
            State::Arming { .. } | State::Closing { .. } | State::Stuck { .. } => None,
        }
    }

    /// Until when this agent is the owner of a VIP, served or not: b + L. None: it was given up, or is another's.
    #[must_use]
    pub fn owned_until(&self, vip: Vip) -> Option<Time> {
        let held = self.held.get(&vip).filter(|held| !matches!(held.state, State::Closing { .. }))?;
        held.grant.map(|(b, l)| b + l)
    }

    /// When to call again, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let assignment = self.assignment.as_ref()?;
        if self.long == Long::Stopping {
            return None;
        }
        let timing = &assignment.timing;
        let mut next = (self.next_ask, "ask");
        for held in self.held.values() {
            let candidate = match &held.state {
                State::Live { renewed, life, renewing, renewed_at } => {
                    let lapse = (*renewed + *life + timing.slack, "lapse");
                    let due = *renewed_at + timing.renewal;
                    let may = !held.spent && held.grant.is_some_and(|(b, length)| due <= timing.renew_until(b, length));
                    if renewing.is_none() && may { lapse.min((due, "renew")) } else { lapse }
                }
                State::Stuck { until } => (*until, "retry"),
                State::Arming { .. } | State::Asking { .. } | State::Opening { .. } | State::Closing { .. } => continue,
            };
            next = next.min(candidate);
        }
        Some(next)
    }

    /// One event in, actions out.
    pub fn step(&mut self, now: Time, event: OwnerEvent, actions: &mut Vec<OwnerAction>) {
        match event {
            OwnerEvent::Adopt(adopted) => self.adopt(now, adopted, actions),
            OwnerEvent::Assigned(assignment) => self.assigned(now, assignment, actions),
            OwnerEvent::Session(up) => self.session_changed(now, up),
            OwnerEvent::Answer { grant, relayed } => self.answered(now, &grant, relayed, actions),
            OwnerEvent::Consent { voter, nonce, vips } => self.consented(now, &voter, nonce, &vips, actions),
            OwnerEvent::Hold { command, term, ask, place } => self.hold(now, command, term, ask, place, actions),
            OwnerEvent::Release { command, term, ask } => self.release(command, term, ask, actions),
            OwnerEvent::PrepareStop { command } => self.prepare_stop(now, command, actions),
            OwnerEvent::ReleaseAll { command } => {
                self.leaving = Some(now + LEAVING);
                self.release_where(command, |_| true, actions);
            }
            OwnerEvent::Stays => self.leaving = None,
            OwnerEvent::ReleaseVm { command, domain } => {
                self.release_where(command, |place| *place == Place::Vm(domain.clone()), actions);
            }
            OwnerEvent::SwitchedOver { command, domain, to } => self.switched_over(command, &domain, &to, actions),
            OwnerEvent::ClockJumped => self.clock_jumped(actions),
            OwnerEvent::GuardBack => self.guard_back(now, actions),
            OwnerEvent::Kernel { op, outcome, at } => self.kernel_done(now, op, outcome, at, actions),
            OwnerEvent::Remembered { version, ok } => self.remembered(now, version, ok, actions),
            OwnerEvent::Tick => {}
        }
        self.run_timers(now, actions);
        self.remember(now, actions);
    }
}

mod acquire;
mod memory;
mod renew;
mod switch;
#[cfg(test)]
mod tests;
