//! How service groups are arranged: conditions, steps from one to another, and the shared tables of thesis ch. 4 that
//! controllers read and only SIF edits.

use crate::{AgentId, DomainName, GroupName, Revision, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Load class, and the condition (arrangement) a service group is in for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// One member is enough.
    Light,
    /// The redundant arrangement the system starts in.
    Moderate,
    /// More members are wanted (chapter 3 only).
    Heavy,
}

/// The arrangement a service group is in. One word with [`Class`]: a condition is named after the class it is for.
pub type Condition = Class;

impl Class {
    /// The thesis's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Light => "Light",
            Class::Moderate => "Moderate",
            Class::Heavy => "Heavy",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something another controller has taken in hand to bring back a service: power saving lets go of it at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Claim {
    /// A host.
    Host(AgentId),
    /// A virtual server.
    Vm(DomainName),
    /// A virtual IP.
    Vip(Vip),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Host(name) => write!(f, "host {name}"),
            Claim::Vm(name) => write!(f, "virtual server {name}"),
            Claim::Vip(vip) => write!(f, "virtual IP {vip}"),
        }
    }
}

/// One thing done to one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A virtual IP goes from one virtual server to another.
    MoveVip {
        /// The address.
        vip: Vip,
        /// Its holder.
        from: DomainName,
        /// Its next holder.
        to: DomainName,
    },
    /// Live migration.
    Migrate {
        /// The virtual server.
        vm: DomainName,
        /// Its host.
        from: AgentId,
        /// Its next host.
        to: AgentId,
    },
    /// A virtual server that serves no more is paused.
    SuspendVm {
        /// The virtual server.
        vm: DomainName,
        /// Its host.
        host: AgentId,
    },
    /// It goes on.
    ResumeVm {
        /// The virtual server.
        vm: DomainName,
        /// Its host.
        host: AgentId,
    },
    /// An emptied host goes to sleep.
    SuspendHost {
        /// The host.
        host: AgentId,
    },
    /// It is woken.
    WakeHost {
        /// The host.
        host: AgentId,
    },
}

impl Step {
    /// What takes it back.
    #[must_use]
    pub fn inverse(&self) -> Step {
        match self.clone() {
            Step::MoveVip { vip, from, to } => Step::MoveVip { vip, from: to, to: from },
            Step::Migrate { vm, from, to } => Step::Migrate { vm, from: to, to: from },
            Step::SuspendVm { vm, host } => Step::ResumeVm { vm, host },
            Step::ResumeVm { vm, host } => Step::SuspendVm { vm, host },
            Step::SuspendHost { host } => Step::WakeHost { host },
            Step::WakeHost { host } => Step::SuspendHost { host },
        }
    }

    /// Is it about what is claimed?
    #[must_use]
    pub fn touches(&self, claim: &Claim) -> bool {
        match (self, claim) {
            (Step::MoveVip { vip, .. }, Claim::Vip(claimed)) => vip == claimed,
            (Step::MoveVip { from, to, .. }, Claim::Vm(vm)) => from == vm || to == vm,
            (Step::Migrate { vm, .. } | Step::SuspendVm { vm, .. } | Step::ResumeVm { vm, .. }, Claim::Vm(claimed)) => {
                vm == claimed
            }
            (Step::Migrate { from, to, .. }, Claim::Host(host)) => from == host || to == host,
            (
                Step::SuspendVm { host, .. }
                | Step::ResumeVm { host, .. }
                | Step::SuspendHost { host }
                | Step::WakeHost { host },
                Claim::Host(claimed),
            ) => host == claimed,
            (Step::MoveVip { .. }, Claim::Host(_))
            | (Step::SuspendHost { .. } | Step::WakeHost { .. }, Claim::Vm(_) | Claim::Vip(_))
            | (Step::Migrate { .. } | Step::SuspendVm { .. } | Step::ResumeVm { .. }, Claim::Vip(_)) => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::MoveVip { vip, from, to } => write!(f, "virtual IP {vip}: {from} -> {to}"),
            Step::Migrate { vm, from, to } => write!(f, "live migration of {vm}: {from} -> {to}"),
            Step::SuspendVm { vm, host } => write!(f, "suspend {vm} on {host}"),
            Step::ResumeVm { vm, host } => write!(f, "resume {vm} on {host}"),
            Step::SuspendHost { host } => write!(f, "suspend host {host}"),
            Step::WakeHost { host } => write!(f, "wake host {host}"),
        }
    }
}

/// A virtual server's place in a service group, and who fills it (thesis table 4.1: Operation file).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRow {
    /// Its service group; none: it belongs to none, and power saving leaves it alone.
    pub group: Option<GroupName>,
    /// The virtual server in this place: its own, or after A4 the backup that stands in for it.
    pub vm: DomainName,
    /// The real server it runs on.
    pub host: AgentId,
    /// The real server it belongs on in Moderate condition.
    pub home: AgentId,
    /// The virtual IPs of this place in Moderate condition.
    pub home_vips: BTreeSet<Vip>,
}

/// Thesis table 4.1, Live migration file: a virtual server that is away from its real server. In Moderate condition it
/// goes back there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRow {
    /// The virtual server that is to go back: the migrated one, or after its end the backup in its place.
    pub vm: DomainName,
    /// Where to.
    pub original_host: AgentId,
}

/// Thesis table 4.1, RSG file; and whether it is meant to be awake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServerRow {
    /// Suspended on purpose, or about to be: since when, on SIF's wall clock, milliseconds since 1970. For display.
    pub asleep_since_unix_ms: Option<u64>,
    /// How long its last wake took, milliseconds; none: its wake path was never proved, or failed last.
    pub wake_took_ms: Option<u32>,
}

/// Thesis table 4.1, State file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRow {
    /// The arrangement it is in.
    pub condition: Condition,
    /// The base server in Light condition; none in Moderate.
    pub base: Option<AgentId>,
}

/// Who needs something to bring a service back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRow {
    /// Which recovery: the target's name.
    pub by: String,
    /// For people.
    pub why: String,
}

/// How far a step of a transition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// No word of it.
    Planned,
    /// It will be done: intent.
    Begun,
    /// It is done, and was looked at.
    Done,
    /// It will be taken back: intent.
    UndoBegun,
    /// It is taken back.
    Undone,
}

/// A transition of power saving under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransitionRow {
    /// Given by SIF; the next one is higher.
    pub id: u64,
    /// The process that carries it out; another may take it over when that one is gone.
    pub by: String,
    /// The plan as its author wrote it: SIF does not look into it.
    pub plan: String,
    /// Its steps in order, and how far each is.
    pub steps: Vec<(Step, StepState)>,
    /// The condition of each group it changes, before and after.
    pub groups: BTreeMap<GroupName, (Condition, Condition)>,
}

/// The shared tables of thesis ch. 4 at one revision. Virtual IPs, epochs and the Trouble table are
/// tables of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// Of the tables: one higher with each signal that changed them, and with nothing else.
    pub revision: Revision,
    /// By place: the name of the virtual server whose place it is.
    pub operation: BTreeMap<DomainName, OperationRow>,
    /// Rows taken out of `operation` while their real server sleeps, or they are suspended themselves.
    pub suspend: BTreeMap<DomainName, OperationRow>,
    /// By place.
    pub live_migration: BTreeMap<DomainName, MigrationRow>,
    /// By place that another virtual server fills: the real server that its own was on last. It is nowhere else, so it may
    /// be started there without becoming two. Absent in ledgers and journals of before it was there.
    #[serde(default)]
    pub displaced: BTreeMap<DomainName, AgentId>,
    /// By virtual server: where it may be running besides, as a live migration of it was begun and its end not seen. It is
    /// there from the intent until somebody has seen where it is, whatever becomes of the transition; it is started only
    /// once it is known not to run there. Absent in ledgers and journals of before it was there.
    #[serde(default)]
    pub may_be_on: BTreeMap<DomainName, BTreeSet<AgentId>>,
    /// RSG.
    pub real_servers: BTreeMap<AgentId, RealServerRow>,
    /// By service group.
    pub state: BTreeMap<GroupName, StateRow>,
    /// Virtual IPs that power saving wants on another virtual server than the one they belong to.
    pub placement: BTreeMap<Vip, DomainName>,
    /// Recoveries under way that power saving must leave alone.
    #[serde(with = "crate::pairs")]
    pub claims: BTreeMap<Claim, ClaimRow>,
    /// Power saving under way.
    pub transition: Option<TransitionRow>,
}

impl Tables {
    /// The place that a virtual server fills, and its row: in operation or suspended.
    #[must_use]
    pub fn place_of(&self, vm: &DomainName) -> Option<(&DomainName, &OperationRow)> {
        self.operation.iter().chain(&self.suspend).find(|(_, row)| row.vm == *vm)
    }

    /// The real server that a virtual server is on, or, while another fills its place, was on last.
    #[must_use]
    pub fn host_of(&self, vm: &DomainName) -> Option<&AgentId> {
        self.place_of(vm).map(|(_, row)| &row.host).or_else(|| self.displaced.get(vm))
    }

    /// A1, A2: is it suspended on purpose, or about to be, or being brought back?
    #[must_use]
    pub fn is_suspended(&self, vm: &DomainName) -> bool {
        self.suspend.values().any(|row| row.vm == *vm)
    }

    /// The live migration of it that is under way: from, to.
    #[must_use]
    pub fn migrating(&self, vm: &DomainName) -> Option<(&AgentId, &AgentId)> {
        self.transition.iter().flat_map(|transition| &transition.steps).find_map(|(step, state)| match (step, state) {
            (Step::Migrate { vm: moved, from, to }, StepState::Begun) if moved == vm => Some((from, to)),
            (Step::Migrate { vm: moved, from, to }, StepState::UndoBegun) if moved == vm => Some((to, from)),
            (
                Step::Migrate { .. }
                | Step::MoveVip { .. }
                | Step::SuspendVm { .. }
                | Step::ResumeVm { .. }
                | Step::SuspendHost { .. }
                | Step::WakeHost { .. },
                StepState::Planned | StepState::Begun | StepState::Done | StepState::UndoBegun | StepState::Undone,
            ) => None,
        })
    }
}
