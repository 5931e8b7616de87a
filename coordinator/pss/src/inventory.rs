//! What there is: hosts, virtual servers, service groups and who serves where, at one moment.

use crate::{
    class::Condition,
    load::Usage,
    plan::Step,
    units::{Bytes, Watts},
};
pub use kage_types::Claim;
use kage_types::{AgentId, DomainName, GroupName, Revision, Time, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A host's power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// Its agent answers.
    Awake,
    /// Suspended on purpose (thesis: Suspend file).
    Asleep,
    /// Neither: nothing is planned with it.
    Lost,
}

/// Can it be woken?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WakePath {
    /// It was woken from sleep, and took so long.
    Verified(Duration),
    /// There is a path (a MAC address, a BMC), never proved since it was set up.
    Unproven,
    /// It did not wake when it was last told to.
    Failed,
    /// None.
    None,
}

/// What a host draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostWatts {
    /// Awake.
    pub awake: Watts,
    /// Asleep.
    pub asleep: Watts,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its power.
    pub state: HostState,
    /// Its agent answers, whatever the ledger says of its power.
    #[serde(default)]
    pub answers: bool,
    /// It is asleep in the ledger, and has been answering for a while: it woke by itself, or never slept.
    #[serde(default)]
    pub woke: bool,
    /// It did not wake when it was to, and has not been awake since: that was told.
    #[serde(default)]
    pub slept_on: bool,
    /// Since when it is awake, if it is.
    pub awake_since: Time,
    /// When it went to sleep, in the last 24 h.
    pub sleeps: Vec<Time>,
    /// All of it.
    pub memory: Bytes,
    /// All of them.
    pub cores: u32,
    /// Can it be woken?
    pub wake: WakePath,
    /// Drawn.
    pub watts: HostWatts,
    /// Why it may not sleep: maintenance, work that is not ours, a part of the system itself.
    pub pinned: Option<String>,
}

/// What a virtual server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Its processors run.
    Running,
    /// Paused in its host's memory.
    Suspended,
    /// Takes no memory.
    Stopped,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Its service group; none: not ours to touch.
    pub group: Option<GroupName>,
    /// Where it is.
    pub host: AgentId,
    /// Where it belongs in Moderate condition (thesis: the original host of the Live migration file).
    pub home: AgentId,
    /// Its largest.
    pub memory: Bytes,
    /// What it does.
    pub state: VmState,
    /// Those it holds.
    pub vips: BTreeSet<Vip>,
    /// Those it holds in Moderate condition.
    pub home_vips: BTreeSet<Vip>,
    /// Its disks are where every host reaches them: it can be migrated.
    pub shared_storage: bool,
    /// Lately; none: it can't be measured.
    pub usage: Option<Usage>,
}

/// A service group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// In the order in which they are preferred to stay.
    pub members: Vec<DomainName>,
    /// The arrangement it is in (thesis: State file).
    pub condition: Condition,
    /// The one it should be in, by its judgements and hours.
    pub wanted: Condition,
}

/// All of it, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Of the ledger it was read from: a plan made of it is good for this one only.
    pub generation: Revision,
    /// That moment.
    pub now: Time,
    /// Real servers.
    pub hosts: BTreeMap<AgentId, Host>,
    /// Virtual servers.
    pub vms: BTreeMap<DomainName, Vm>,
    /// Service groups.
    pub groups: BTreeMap<GroupName, Group>,
    /// Not ours for now.
    pub claims: BTreeSet<Claim>,
    /// Virtual servers whose live migration ended unseen, be they members or not; without those under way.
    #[serde(default)]
    pub doubts: BTreeMap<DomainName, Doubt>,
}

/// Where a virtual server may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doubt {
    /// By the ledger.
    pub host: AgentId,
    /// Besides.
    pub others: BTreeSet<AgentId>,
}

impl Doubt {
    /// All of them.
    pub fn hosts(&self) -> impl Iterator<Item = &AgentId> {
        std::iter::once(&self.host).chain(self.others.iter().filter(|other| **other != self.host))
    }

    /// Each two of them, either way round.
    pub(crate) fn pairs(&self) -> Vec<(AgentId, AgentId)> {
        let hosts: Vec<&AgentId> = self.hosts().collect();
        let both = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (*from, *to)));
        both.filter(|(from, to)| from != to).map(|(from, to)| (from.clone(), to.clone())).collect()
    }
}

impl Inventory {
    /// May it be elsewhere than it is taken to be? Nothing is begun with it.
    #[must_use]
    pub fn doubted(&self, name: &DomainName) -> bool {
        self.doubts.contains_key(name)
    }

    /// May one of those be on this host? Asleep, it could not be asked.
    #[must_use]
    pub fn doubted_on(&self, host: &AgentId) -> Option<&DomainName> {
        let mut doubts = self.doubts.iter();
        doubts.find(|(_, doubt)| doubt.hosts().any(|other| other == host)).map(|(name, _)| name)
    }

    /// May it be touched?
    #[must_use]
    pub fn claimed_vm(&self, name: &DomainName) -> bool {
        self.claims.contains(&Claim::Vm(name.clone()))
            || self.vms.get(name).is_some_and(|vm| vm.vips.iter().any(|vip| self.claims.contains(&Claim::Vip(*vip))))
    }

    /// May it be touched?
    #[must_use]
    pub fn claimed_host(&self, name: &AgentId) -> bool {
        self.claims.contains(&Claim::Host(name.clone()))
    }

    /// Awake and not claimed.
    #[must_use]
    pub fn usable(&self, name: &AgentId) -> bool {
        self.hosts.get(name).is_some_and(|host| host.state == HostState::Awake) && !self.claimed_host(name)
    }

    /// The members of a group that hold virtual IPs, in its order.
    #[must_use]
    pub fn serving(&self, group: &Group) -> Vec<DomainName> {
        let serves = |vm: &Vm| vm.state == VmState::Running && !vm.vips.is_empty();
        group.members.iter().filter(|name| self.vms.get(*name).is_some_and(serves)).cloned().collect()
    }

    /// The condition that its load was in last, as far as the ledger tells: a group that is Light by its State, and that
    /// more than one member serves, was on its way back, and something of that failed.
    #[must_use]
    pub fn judged_from(&self, group: &Group) -> Condition {
        match group.condition {
            Condition::Light if self.serving(group).len() > 1 => Condition::Moderate,
            Condition::Light | Condition::Moderate | Condition::Heavy => group.condition,
        }
    }

    /// How it will be after the step: what planners reckon with.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::MoveVip { vip, from, to } => {
                if let Some(vm) = self.vms.get_mut(from) {
                    vm.vips.remove(vip);
                }
                if let Some(vm) = self.vms.get_mut(to) {
                    vm.vips.insert(*vip);
                }
            }
            Step::Migrate { vm, to, .. } => {
                if let Some(vm) = self.vms.get_mut(vm) {
                    vm.host = to.clone();
                }
            }
            Step::SuspendVm { vm, .. } => self.set_vm(vm, VmState::Suspended),
            Step::ResumeVm { vm, .. } => self.set_vm(vm, VmState::Running),
            Step::SuspendHost { host } => self.set_host(host, HostState::Asleep),
            Step::WakeHost { host } => self.set_host(host, HostState::Awake),
        }
    }

    fn set_vm(&mut self, name: &DomainName, state: VmState) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.state = state;
        }
    }

    fn set_host(&mut self, name: &AgentId, state: HostState) {
        if let Some(host) = self.hosts.get_mut(name) {
            host.state = state;
            host.answers = state == HostState::Awake;
        }
    }
}
