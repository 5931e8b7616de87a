//! An inventory as it would be after some steps, with what planners ask of it: room, CPU, N+1.

use super::Step;
use crate::{
    inventory::{Host, HostState, Inventory, Vm, VmState, WakePath},
    policy::Policy,
    units::{Bytes, Percent},
};
use kage_types::{AgentId, DomainName};
use std::collections::{BTreeMap, BTreeSet};

/// How something was before a step, to go back to.
enum Before {
    Vm(DomainName, Vm, u128),
    Host(AgentId, HostState),
}

pub(super) struct Draft<'a> {
    pub inventory: Inventory,
    policy: &'a Policy,
    on: BTreeMap<AgentId, BTreeSet<DomainName>>,
    /// Cuse·Ccor of each, with the work that came with others' virtual IPs.
    work: BTreeMap<DomainName, u128>,
    trail: Vec<Before>,
}

impl<'a> Draft<'a> {
    pub fn new(inventory: &Inventory, policy: &'a Policy) -> Self {
        let mut on: BTreeMap<AgentId, BTreeSet<DomainName>> = BTreeMap::new();
        let mut work = BTreeMap::new();
        for (name, vm) in &inventory.vms {
            on.entry(vm.host.clone()).or_default().insert(name.clone());
            let used = vm.usage.map_or(0, |usage| u128::from(usage.cpu.0) * u128::from(usage.cores));
            work.insert(name.clone(), used);
        }
        Self { inventory: inventory.clone(), policy, on, work, trail: Vec::new() }
    }

    /// The virtual servers on a host.
    pub fn on<'s>(&'s self, host: &AgentId) -> impl Iterator<Item = (&'s DomainName, &'s Vm)> + use<'s> {
        let names = self.on.get(host);
        names.into_iter().flatten().filter_map(|name| Some((name, self.inventory.vms.get(name)?)))
    }

    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::MoveVip { from, to, .. } => {
                self.keep_vm(from);
                self.keep_vm(to);
            }
            Step::Migrate { vm, from, to } => {
                self.keep_vm(vm);
                self.place(vm, from, to);
            }
            Step::SuspendVm { vm, .. } | Step::ResumeVm { vm, .. } => self.keep_vm(vm),
            Step::SuspendHost { host } | Step::WakeHost { host } => {
                if let Some(state) = self.inventory.hosts.get(host).map(|host| host.state) {
                    self.trail.push(Before::Host(host.clone(), state));
                }
            }
        }
        self.inventory.apply(step);
        if let Step::MoveVip { from, to, .. } = step
            && self.inventory.vms.get(from).is_some_and(|vm| vm.vips.is_empty())
        {
            let moved = self.work.insert(from.clone(), 0).unwrap_or_default();
            *self.work.entry(to.clone()).or_default() += moved;
        }
    }

    /// A place to go back to.
    pub fn mark(&self) -> usize {
        self.trail.len()
    }

    pub fn go_back(&mut self, mark: usize) {
        while self.trail.len() > mark {
            match self.trail.pop() {
                Some(Before::Vm(name, before, work)) => {
                    if let Some(now) = self.inventory.vms.get(&name).map(|vm| vm.host.clone()) {
                        self.place(&name, &now, &before.host);
                    }
                    self.work.insert(name.clone(), work);
                    self.inventory.vms.insert(name, before);
                }
                Some(Before::Host(name, before)) => {
                    if let Some(host) = self.inventory.hosts.get_mut(&name) {
                        host.state = before;
                    }
                }
                None => return,
            }
        }
    }

    fn keep_vm(&mut self, name: &DomainName) {
        if let Some(vm) = self.inventory.vms.get(name) {
            let work = self.work.get(name).copied().unwrap_or_default();
            self.trail.push(Before::Vm(name.clone(), vm.clone(), work));
        }
    }

    fn place(&mut self, vm: &DomainName, from: &AgentId, to: &AgentId) {
        if let Some(names) = self.on.get_mut(from) {
            names.remove(vm);
        }
        self.on.entry(to.clone()).or_default().insert(vm.clone());
    }

    /// Memory left for virtual servers. A suspended one keeps its own.
    pub fn free(&self, name: &AgentId) -> Bytes {
        let Some(host) = self.inventory.hosts.get(name) else { return Bytes(0) };
        let used = self
            .on(name)
            .filter(|(_, vm)| takes_memory(vm))
            .fold(self.policy.host_memory, |sum, (_, vm)| sum.plus(vm.memory));
        host.memory.minus(used)
    }

    /// Of a host's cores, by the virtual servers on it.
    pub fn cpu(&self, name: &AgentId) -> Percent {
        let cores = self.inventory.hosts.get(name).map_or(0, |host| host.cores);
        let work: u128 = self.on(name).filter_map(|(vm, _)| self.work.get(vm)).sum();
        work.checked_div(cores.into()).map_or(Percent(u32::MAX), |cpu| Percent(u32::try_from(cpu).unwrap_or(u32::MAX)))
    }

    /// Hosts awake and free to use.
    pub fn awake(&self) -> usize {
        self.inventory.hosts.keys().filter(|name| self.inventory.usable(name)).count()
    }

    /// Does it count when another is lost? A sleeping one does if it wakes in time.
    fn counts(&self, name: &AgentId, host: &Host) -> bool {
        !self.inventory.claimed_host(name)
            && match (host.state, host.wake) {
                (HostState::Awake, WakePath::Verified(_) | WakePath::Unproven | WakePath::Failed | WakePath::None) => {
                    true
                }
                (HostState::Asleep, WakePath::Verified(took)) => took <= self.policy.wake_within,
                (HostState::Asleep, WakePath::Unproven | WakePath::Failed | WakePath::None) => false,
                (HostState::Lost, WakePath::Verified(_) | WakePath::Unproven | WakePath::Failed | WakePath::None) => {
                    false
                }
            }
    }

    /// Hosts that could not be lost now without leaving something in service without a place, and what (N+1). What has
    /// another member of its group on a host that counts is in good hands there; all else needs memory.
    pub fn unsurvivable(&self) -> BTreeMap<AgentId, DomainName> {
        let mut found = BTreeMap::new();
        if !self.policy.survive_host {
            return found;
        }
        for (lost, host) in &self.inventory.hosts {
            if host.state == HostState::Awake
                && let Some(vm) = self.without_place(lost)
            {
                found.insert(lost.clone(), vm);
            }
        }
        found
    }

    fn without_place(&self, lost: &AgentId) -> Option<DomainName> {
        let mut orphans: Vec<(&DomainName, &Vm)> =
            self.on(lost).filter(|(name, vm)| in_service(vm) && !self.stands_elsewhere(name, vm)).collect();
        if orphans.is_empty() {
            return None;
        }
        orphans.sort_by_key(|(name, vm)| (std::cmp::Reverse(vm.memory), *name));
        let counting = self.inventory.hosts.iter().filter(|(name, host)| *name != lost && self.counts(name, host));
        let mut room: Vec<Bytes> = counting.map(|(name, _)| self.free(name)).collect();
        for (name, vm) in orphans {
            match room.iter_mut().find(|room| vm.shared_storage && **room >= vm.memory) {
                Some(room) => *room = room.minus(vm.memory),
                None => return Some(name.clone()),
            }
        }
        None
    }

    /// Is there another member of its group that could serve for it?
    fn stands_elsewhere(&self, name: &DomainName, vm: &Vm) -> bool {
        let members = vm.group.as_ref().and_then(|group| self.inventory.groups.get(group));
        members.into_iter().flat_map(|group| &group.members).filter(|other| *other != name).any(|other| {
            self.inventory.vms.get(other).is_some_and(|other_vm| {
                let host = self.inventory.hosts.get(&other_vm.host);
                other_vm.host != vm.host
                    && takes_memory(other_vm)
                    && !self.inventory.claimed_vm(other)
                    && !self.inventory.doubted(other)
                    && host.is_some_and(|host| self.counts(&other_vm.host, host))
            })
        })
    }
}

pub(super) fn takes_memory(vm: &Vm) -> bool {
    match vm.state {
        VmState::Running | VmState::Suspended => true,
        VmState::Stopped => false,
    }
}

/// Would its loss be felt? What belongs to no group of ours may serve anybody.
pub(super) fn in_service(vm: &Vm) -> bool {
    vm.state == VmState::Running && (vm.group.is_none() || !vm.vips.is_empty())
}
