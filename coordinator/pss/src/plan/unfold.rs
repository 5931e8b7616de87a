//! Back to Moderate condition: wake hosts, resume members, virtual IPs back, live migrations back (thesis, table 4.3).

use super::{
    Direction, GroupStays, Plan, Reason, Report, Step, Steps,
    draft::{Draft, takes_memory},
    fold::saved,
};
use crate::{
    class::Condition,
    inventory::{Claim, Group, HostState, Inventory, Vm, VmState, WakePath},
    policy::Policy,
    units::{Bytes, Watts},
};
use kage_types::{AgentId, DomainName, GroupName, Vip};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn unfold(inventory: &Inventory, policy: &Policy, report: &mut Report) -> Plan {
    let mut holders = BTreeMap::new();
    for (name, vm) in &inventory.vms {
        holders.extend(vm.vips.iter().map(|vip| (*vip, name.clone())));
    }
    let mut planner = Unfolder { inventory, draft: Draft::new(inventory, policy), holders, parts: Parts::default() };
    let mut groups = BTreeMap::new();
    for (name, group) in &inventory.groups {
        if group.wanted == Condition::Light {
            continue;
        }
        if group.condition == Condition::Light {
            if planner.group(name, group, report) {
                groups.insert(name.clone(), (group.condition, Condition::Moderate));
            }
        } else if planner.scattered(group) {
            // A recovery left it where it is.
            planner.group(name, group, report);
        }
    }
    // Marked awake, it counts, and may be suspended anew.
    for (name, _) in inventory.hosts.iter().filter(|(name, host)| host.woke && !inventory.claimed_host(name)) {
        planner.parts.wakes.entry(name.clone()).or_default();
    }
    planner.plan(groups)
}

type Groups = BTreeSet<GroupName>;

#[derive(Default)]
struct Parts {
    wakes: BTreeMap<AgentId, Groups>,
    resumes: Vec<(DomainName, AgentId, GroupName)>,
    vips: Vec<(Vip, DomainName, DomainName, GroupName)>,
    migrations: Vec<(DomainName, AgentId, AgentId, GroupName)>,
}

struct Unfolder<'a> {
    inventory: &'a Inventory,
    draft: Draft<'a>,
    holders: BTreeMap<Vip, DomainName>,
    parts: Parts,
}

impl Unfolder<'_> {
    /// All its members to their places; false if one can't be.
    fn group(&mut self, name: &GroupName, group: &Group, report: &mut Report) -> bool {
        let mut all = true;
        for member in &group.members {
            let Some(vm) = self.inventory.vms.get(member) else { continue };
            if let Err(why) = self.member(name, group, member, vm, report) {
                all = false;
                report.add(why);
            }
        }
        all
    }

    /// In Moderate condition, and not all of it in its place?
    fn scattered(&self, group: &Group) -> bool {
        let elsewhere = |vip: &Vip, member: &DomainName| {
            self.holders.get(vip).is_some_and(|holder| holder != member && group.members.contains(holder))
        };
        group
            .members
            .iter()
            .filter_map(|member| Some((member, self.inventory.vms.get(member)?)))
            .any(|(member, vm)| vm.host != vm.home || vm.home_vips.iter().any(|vip| elsewhere(vip, member)))
    }

    fn member(
        &mut self,
        name: &GroupName,
        group: &Group,
        member: &DomainName,
        vm: &Vm,
        report: &mut Report,
    ) -> Result<(), Reason> {
        if vm.home_vips.is_empty() && vm.vips.is_empty() && vm.host == vm.home {
            return Ok(());
        }
        let stays = |why: GroupStays| Reason::GroupStays(name.clone(), why);
        if self.inventory.claimed_vm(member) || self.inventory.claimed_host(&vm.host) {
            return Err(stays(GroupStays::Claimed(member.clone())));
        }
        if self.inventory.doubted(member) {
            return Err(stays(GroupStays::Doubted(member.clone())));
        }
        match vm.state {
            VmState::Running | VmState::Suspended => {}
            // Suspended on purpose, and then its host lost its power.
            VmState::Stopped if vm.vips.is_empty() => {}
            VmState::Stopped => return Err(stays(GroupStays::NotRunning(member.clone()))),
        }
        if !self.wake(&vm.host, name) {
            return Err(Reason::Instead { host: vm.host.clone(), vm: member.clone(), to: None });
        }
        if vm.state != VmState::Running {
            self.parts.resumes.push((member.clone(), vm.host.clone(), name.clone()));
        }
        for vip in &vm.home_vips {
            let Some(holder) = self.holders.get(vip).filter(|holder| *holder != member) else { continue };
            // What somebody outside the group holds is not ours to take back.
            let ours = group.members.contains(holder);
            if !ours || self.inventory.claimed_vm(holder) || self.inventory.claims.contains(&Claim::Vip(*vip)) {
                return Err(stays(GroupStays::Claimed(holder.clone())));
            }
            self.parts.vips.push((*vip, holder.clone(), member.clone(), name.clone()));
        }
        if vm.host == vm.home { Ok(()) } else { self.home(name, group, member, vm, report) }
    }

    /// Can it be reckoned with? If it sleeps, it is to be woken.
    fn wake(&mut self, host: &AgentId, group: &GroupName) -> bool {
        if self.inventory.claimed_host(host) {
            return false;
        }
        let Some(there) = self.inventory.hosts.get(host) else { return false };
        match (there.state, there.wake) {
            (HostState::Awake, WakePath::Verified(_) | WakePath::Unproven | WakePath::Failed | WakePath::None) => true,
            (HostState::Asleep, WakePath::Verified(_) | WakePath::Unproven) => {
                self.parts.wakes.entry(host.clone()).or_default().insert(group.clone());
                true
            }
            (HostState::Asleep, WakePath::Failed | WakePath::None) => false,
            (HostState::Lost, WakePath::Verified(_) | WakePath::Unproven | WakePath::Failed | WakePath::None) => false,
        }
    }

    /// Two members on one host would be lost together (fig. 3.9).
    fn free_of(&self, group: &Group, host: &AgentId) -> bool {
        !self.draft.on(host).any(|(name, _)| group.members.contains(name))
    }

    /// Live migration to where it belongs; if that host does not wake, to another.
    fn home(
        &mut self,
        name: &GroupName,
        group: &Group,
        member: &DomainName,
        vm: &Vm,
        report: &mut Report,
    ) -> Result<(), Reason> {
        let fits = |draft: &Draft<'_>, host: &AgentId| draft.free(host) >= vm.memory;
        let short = vm.memory.minus(self.draft.free(&vm.home));
        let to = if short == Bytes(0) && self.wake(&vm.home, name) {
            vm.home.clone()
        } else {
            let woken = self
                .inventory
                .hosts
                .keys()
                .filter(|host| self.inventory.usable(host) || self.parts.wakes.contains_key(*host));
            let others: Vec<AgentId> = woken.chain(self.inventory.hosts.keys()).cloned().collect();
            let mut others = others.into_iter().filter(|host| *host != vm.host && *host != vm.home);
            let found =
                others.find(|host| self.free_of(group, host) && fits(&self.draft, host) && self.wake(host, name));
            let (host, vm, to) = (vm.home.clone(), member.clone(), found.clone());
            let instead = match short {
                Bytes(0) => Reason::Instead { host, vm, to },
                short => Reason::NoRoom { host, vm, short, to },
            };
            let Some(found) = found else { return Err(instead) };
            report.add(instead);
            found
        };
        let step = Step::Migrate { vm: member.clone(), from: vm.host.clone(), to: to.clone() };
        self.draft.apply(&step);
        self.parts.migrations.push((member.clone(), vm.host.clone(), to, name.clone()));
        Ok(())
    }

    fn plan(self, groups: BTreeMap<GroupName, (Condition, Condition)>) -> Plan {
        let inventory = self.inventory;
        let mut steps = Steps::new();
        let mut watts = Watts(0);
        for (host, groups) in self.parts.wakes {
            watts = watts.plus(inventory.hosts.get(&host).map_or(Watts(0), saved));
            steps.push(Step::WakeHost { host }, groups, BTreeSet::new(), |_| false);
        }
        for (vm, host, group) in self.parts.resumes {
            let step = Step::ResumeVm { vm, host: host.clone() };
            steps.push(step, [group].into(), BTreeSet::new(), |earlier| wakes(earlier, &host));
        }
        let host_of = |vm: &DomainName| inventory.vms.get(vm).map(|vm| vm.host.clone());
        for (vip, from, to, group) in self.parts.vips {
            let there = host_of(&to);
            let about = there.iter().cloned().chain(host_of(&from)).map(Claim::Host).collect();
            let step = Step::MoveVip { vip, from, to: to.clone() };
            steps.push(step, [group].into(), about, |earlier| {
                there.as_ref().is_some_and(|host| wakes(earlier, host)) || resumes(earlier, &to)
            });
        }
        let mut migrated = Bytes(0);
        for (vm, from, to, group) in self.parts.migrations {
            let there = inventory.vms.get(&vm).filter(|vm| takes_memory(vm));
            migrated = migrated.plus(there.map_or(Bytes(0), |vm| vm.memory));
            let about = there.iter().flat_map(|vm| &vm.vips).map(|vip| Claim::Vip(*vip)).collect();
            let step = Step::Migrate { vm: vm.clone(), from, to: to.clone() };
            steps.push(step, [group].into(), about, |earlier| {
                wakes(earlier, &to) || resumes(earlier, &vm) || moves(earlier, &vm)
            });
        }
        let steps = steps.finish();
        Plan { generation: inventory.generation, direction: Direction::Unfold, groups, steps, watts, migrated }
    }
}

fn wakes(step: &Step, host: &AgentId) -> bool {
    *step == Step::WakeHost { host: host.clone() }
}

fn resumes(step: &Step, name: &DomainName) -> bool {
    matches!(step, Step::ResumeVm { vm, .. } if vm == name)
}

/// A virtual IP to or from it: one thing at a time is done to a virtual server.
fn moves(step: &Step, name: &DomainName) -> bool {
    matches!(step, Step::MoveVip { from, to, .. } if from == name || to == name)
}
