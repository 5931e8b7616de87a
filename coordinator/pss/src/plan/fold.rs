//! Towards Light condition: gather each group on one member, empty hosts, let them sleep (thesis 4.2.3, fig. 4.4).

use super::{
    Direction, GroupStays, HostStays, Kind, Plan, Reason, Report, Step, Steps,
    draft::{Draft, in_service},
};
use crate::{
    class::Condition,
    inventory::{Claim, Group, Host, HostState, Inventory, Vm, VmState, WakePath},
    load::{Load, Usage},
    policy::Policy,
    units::{Bytes, Watts},
};
use kage_types::{AgentId, DomainName, GroupName};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Over which [`Policy::sleeps_a_day`] counts.
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Hosts that one plan lets sleep: each is weighed against the loss of any other, and thousands are better done in
/// several plans, each with new judgements before it, than in one that takes long to undo.
const MOST_ASLEEP: usize = 32;

/// How a group would be served in Light condition.
struct Gathered {
    stays: DomainName,
    base: AgentId,
}

pub(super) fn fold(inventory: &Inventory, policy: &Policy, report: &mut Report) -> Plan {
    let light = gather(inventory, policy, report);
    let mut planner = Folder {
        draft: Draft::new(inventory, policy),
        policy,
        bases: light.values().map(|gathered| gathered.base.clone()).collect(),
        light,
        folded: BTreeSet::new(),
        migrations: BTreeMap::new(),
        asleep: BTreeMap::new(),
        unsurvivable: BTreeSet::new(),
    };
    planner.unsurvivable = planner.draft.unsurvivable().into_keys().collect();
    if !planner.light.is_empty() {
        for host in planner.candidates(report) {
            if planner.asleep.len() >= MOST_ASLEEP {
                report.add(Reason::HostStays(host, HostStays::NextTime(MOST_ASLEEP)));
                break;
            }
            if let Err(why) = planner.try_host(&host) {
                report.add(Reason::HostStays(host, why));
            }
        }
    }
    for name in planner.light.keys().filter(|name| !planner.folded.contains(*name)) {
        if inventory.groups.get(name).is_some_and(|group| group.condition != Condition::Light) {
            report.add(Reason::GroupStays(name.clone(), GroupStays::NothingGained));
        }
    }
    planner.plan(inventory)
}

/// The member that stays and the base server of each group that is to be Light.
fn gather(inventory: &Inventory, policy: &Policy, report: &mut Report) -> BTreeMap<GroupName, Gathered> {
    let mut light = BTreeMap::new();
    let mut choice = Choice::new(inventory, policy);
    for (name, group) in inventory.groups.iter().filter(|(_, group)| group.wanted == Condition::Light) {
        match gather_one(inventory, policy, name, group, &choice) {
            Ok(gathered) => {
                choice.took(&gathered);
                light.insert(name.clone(), gathered);
            }
            Err(why) => report.add(Reason::GroupStays(name.clone(), why)),
        }
    }
    light
}

fn gather_one(
    inventory: &Inventory,
    policy: &Policy,
    name: &GroupName,
    group: &Group,
    choice: &Choice<'_>,
) -> Result<Gathered, GroupStays> {
    for member in &group.members {
        let Some(vm) = inventory.vms.get(member) else { return Err(GroupStays::NotRunning(member.clone())) };
        if inventory.claimed_vm(member) || inventory.claimed_host(&vm.host) {
            return Err(GroupStays::Claimed(member.clone()));
        }
        if inventory.doubted(member) {
            return Err(GroupStays::Doubted(member.clone()));
        }
        if vm.state == VmState::Stopped && !vm.home_vips.is_empty() {
            return Err(GroupStays::NotRunning(member.clone()));
        }
    }
    let serving = inventory.serving(group);
    let first = serving.first().ok_or(GroupStays::NobodyServes)?;
    let base = match policy.group(name).base.or_else(|| policy.base.clone()) {
        Some(base) if !inventory.hosts.contains_key(&base) => return Err(GroupStays::NoSuchBase(base)),
        Some(base) if !inventory.usable(&base) => return Err(GroupStays::BaseAway(base)),
        Some(base) => base,
        None => choice.base(&serving).ok_or(GroupStays::NoBase)?,
    };
    let there = serving.iter().find(|member| inventory.vms.get(*member).is_some_and(|vm| vm.host == base));
    let stays = there.unwrap_or(first).clone();
    if serving.len() > 1 {
        bearable(inventory, policy, name, &serving, &stays)?;
    }
    Ok(Gathered { stays, base })
}

/// Would one member alone be judged Moderate at once? Then the group would go back and forth for ever.
fn bearable(
    inventory: &Inventory,
    policy: &Policy,
    name: &GroupName,
    serving: &[DomainName],
    stays: &DomainName,
) -> Result<(), GroupStays> {
    let usage = |vm: &DomainName| {
        let usage = inventory.vms.get(vm).and_then(|vm| vm.usage);
        usage.ok_or_else(|| GroupStays::Unmeasured(vm.clone()))
    };
    let members = serving.iter().map(usage).collect::<Result<Vec<Usage>, GroupStays>>()?;
    let load = Load::gathered(&usage(stays)?, &members).ok_or_else(|| GroupStays::Unmeasured(stays.clone()))?;
    let thresholds = policy.group(name).thresholds;
    for (kind, load, limit) in [
        (Kind::Memory, load.memory, thresholds.memory.moderate1),
        (Kind::Cpu, load.cpu, thresholds.cpu.moderate1),
        (Kind::Network, load.network, thresholds.network.moderate1),
    ] {
        if load >= limit {
            return Err(GroupStays::TooMuch { vm: stays.clone(), kind, load, limit });
        }
    }
    Ok(())
}

/// Chooses base servers where none is configured: as few as possible, first hosts that can't sleep anyway.
struct Choice<'a> {
    inventory: &'a Inventory,
    /// Those that can be one; the first are the better by name.
    hosts: Vec<Candidate>,
    bases: BTreeSet<AgentId>,
}

struct Candidate {
    name: AgentId,
    /// It can't sleep anyway.
    stays: bool,
    /// Virtual servers in service on it.
    serving: usize,
    /// Memory left for what moves there.
    room: Bytes,
}

impl<'a> Choice<'a> {
    fn new(inventory: &'a Inventory, policy: &Policy) -> Self {
        let draft = Draft::new(inventory, policy);
        let folds = |group: Option<&GroupName>| {
            let group = group.and_then(|name| inventory.groups.get(name));
            group.is_some_and(|group| group.wanted == Condition::Light)
        };
        let candidate = |(name, host): (&AgentId, &Host)| Candidate {
            name: name.clone(),
            stays: may_sleep(inventory, policy, name, host).is_err()
                || draft.on(name).any(|(_, vm)| in_service(vm) && !folds(vm.group.as_ref())),
            serving: draft.on(name).filter(|(_, vm)| in_service(vm)).count(),
            room: draft.free(name),
        };
        let hosts = inventory.hosts.iter().filter(|(name, _)| inventory.usable(name)).map(candidate).collect();
        Self { inventory, hosts, bases: BTreeSet::new() }
    }

    fn took(&mut self, gathered: &Gathered) {
        self.bases.insert(gathered.base.clone());
        if let Some(vm) = self.inventory.vms.get(&gathered.stays)
            && vm.host != gathered.base
            && let Some(base) = self.hosts.iter_mut().find(|host| host.name == gathered.base)
        {
            base.room = base.room.minus(vm.memory);
        }
    }

    /// The best for a group with these members in service: a base or a host that can't sleep, then little to migrate,
    /// then where most is that may fold, then by name.
    fn base(&self, serving: &[DomainName]) -> Option<AgentId> {
        let members: Vec<&Vm> = serving.iter().filter_map(|name| self.inventory.vms.get(name)).collect();
        let first = members.first()?;
        let best = self.hosts.iter().filter_map(|host| {
            let there = members.iter().any(|vm| vm.host == host.name);
            let fits = there || first.shared_storage && host.room >= first.memory;
            let bytes = if there { Bytes(0) } else { first.memory };
            let moves = !(host.stays || self.bases.contains(&host.name));
            fits.then_some((moves, bytes, Reverse(host.serving), &host.name))
        });
        best.min().map(|(_, _, _, name)| name.clone())
    }
}

/// May it sleep, whatever runs on it?
fn may_sleep(inventory: &Inventory, policy: &Policy, name: &AgentId, host: &Host) -> Result<(), HostStays> {
    if let Some(why) = &host.pinned {
        return Err(HostStays::Pinned(why.clone()));
    }
    if inventory.claimed_host(name) {
        return Err(HostStays::Claimed);
    }
    if let Some(vm) = inventory.doubted_on(name) {
        return Err(HostStays::Doubted(vm.clone()));
    }
    match host.wake {
        WakePath::Verified(_) => {}
        WakePath::Unproven | WakePath::Failed | WakePath::None => return Err(HostStays::NoVerifiedWake),
    }
    let awake = inventory.now.since(host.awake_since);
    if awake < policy.awake_for {
        return Err(HostStays::JustWoken(policy.awake_for.saturating_sub(awake)));
    }
    let slept = host.sleeps.iter().filter(|at| inventory.now.since(**at) < DAY).count();
    if slept >= usize::try_from(policy.sleeps_a_day).unwrap_or(usize::MAX) {
        return Err(HostStays::SleptEnough(policy.sleeps_a_day));
    }
    Ok(())
}

struct Folder<'a> {
    draft: Draft<'a>,
    policy: &'a Policy,
    light: BTreeMap<GroupName, Gathered>,
    bases: BTreeSet<AgentId>,
    folded: BTreeSet<GroupName>,
    /// Which virtual server goes from where to where.
    migrations: BTreeMap<DomainName, (AgentId, AgentId)>,
    /// And what each saves.
    asleep: BTreeMap<AgentId, Watts>,
    /// What could not be survived before any of this.
    unsurvivable: BTreeSet<AgentId>,
}

impl Folder<'_> {
    /// Hosts that may sleep if nothing in service is left on them: first those with least to move, then the thirstiest.
    fn candidates(&self, report: &mut Report) -> Vec<AgentId> {
        let mut found = Vec::new();
        let folds = |group: &Option<GroupName>| group.as_ref().is_some_and(|group| self.light.contains_key(group));
        let vms = self.draft.inventory.vms.values().filter(|vm| folds(&vm.group));
        let needed: BTreeSet<&AgentId> = vms.flat_map(|vm| [&vm.host, &vm.home]).collect();
        for (name, host) in &self.draft.inventory.hosts {
            if host.state != HostState::Awake || self.bases.contains(name) {
                continue;
            }
            if !needed.contains(name) {
                // Nobody would wake it when groups are back in Moderate condition.
                report.add(Reason::HostStays(name.clone(), HostStays::Unused));
                continue;
            }
            match may_sleep(&self.draft.inventory, self.policy, name, host).and_then(|()| self.empties(name)) {
                Ok(bytes) => found.push((bytes, Reverse(saved(host)), name.clone())),
                Err(why) => report.add(Reason::HostStays(name.clone(), why)),
            }
        }
        found.sort();
        found.into_iter().map(|(_, _, name)| name).collect()
    }

    /// What must be migrated to empty it.
    fn empties(&self, host: &AgentId) -> Result<Bytes, HostStays> {
        let mut bytes = Bytes(0);
        for (name, vm) in self.draft.on(host) {
            if self.draft.inventory.claimed_vm(name) {
                return Err(HostStays::Claimed);
            }
            match vm.state {
                VmState::Suspended | VmState::Stopped => {
                    let folds = vm.group.as_ref().is_none_or(|group| self.light.contains_key(group));
                    if vm.home_vips.is_empty() || folds {
                        continue;
                    }
                    return Err(HostStays::Awaits(name.clone()));
                }
                VmState::Running => {}
            }
            let gathered = vm.group.as_ref().and_then(|group| self.light.get(group));
            let gathered = gathered.ok_or_else(|| HostStays::Serves(name.clone()))?;
            if gathered.stays == *name {
                if !vm.shared_storage {
                    return Err(HostStays::NotShared(name.clone()));
                }
                bytes = bytes.plus(vm.memory);
            }
        }
        Ok(bytes)
    }

    /// Add it to those that sleep, if all still holds.
    fn try_host(&mut self, host: &AgentId) -> Result<(), HostStays> {
        let mark = self.draft.mark();
        let tried = self.try_steps(host);
        match tried {
            Ok((groups, migrations, watts)) => {
                self.folded.extend(groups);
                self.migrations.extend(migrations);
                self.asleep.insert(host.clone(), watts);
                Ok(())
            }
            Err(why) => {
                self.draft.go_back(mark);
                Err(why)
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "three parts of one answer, taken apart at once")]
    fn try_steps(
        &mut self,
        host: &AgentId,
    ) -> Result<(BTreeSet<GroupName>, BTreeMap<DomainName, (AgentId, AgentId)>, Watts), HostStays> {
        let groups: BTreeSet<GroupName> = self
            .draft
            .on(host)
            .filter(|(_, vm)| vm.state == VmState::Running)
            .filter_map(|(_, vm)| vm.group.clone())
            .filter(|group| !self.folded.contains(group))
            .collect();
        for group in &groups {
            for step in self.vip_moves(group).into_iter().chain(self.suspensions(group)) {
                self.draft.apply(&step);
            }
        }
        let mut migrations = BTreeMap::new();
        let mut bytes = Bytes(0);
        let stay: Vec<(DomainName, Bytes, AgentId)> = self
            .draft
            .on(host)
            .filter(|(_, vm)| vm.state == VmState::Running)
            .filter_map(|(name, vm)| Some((name.clone(), vm.memory, self.light.get(vm.group.as_ref()?)?.base.clone())))
            .collect();
        for (vm, memory, base) in stay {
            let room = self.draft.free(&base);
            if room < memory {
                return Err(HostStays::NoMemory { vm, on: base, short: memory.minus(room) });
            }
            let (from, to) = (host.clone(), base);
            self.draft.apply(&Step::Migrate { vm: vm.clone(), from: from.clone(), to: to.clone() });
            let cpu = self.draft.cpu(&to);
            if cpu > self.policy.base_cpu {
                return Err(HostStays::BaseBusy { on: to, cpu });
            }
            bytes = bytes.plus(memory);
            migrations.insert(vm, (from, to));
        }
        let watts = self.draft.inventory.hosts.get(host).map_or(Watts(0), saved);
        let price = u128::from(self.policy.watts_per_gib.0) * u128::from(bytes.0);
        if watts == Watts(0) || u128::from(watts.0) * u128::from(Bytes::gib(1).0) < price {
            return Err(HostStays::NotWorth { watts, bytes });
        }
        self.draft.apply(&Step::SuspendHost { host: host.clone() });
        if self.draft.awake() < usize::try_from(self.policy.awake_hosts).unwrap_or(usize::MAX) {
            return Err(HostStays::TooFewAwake(self.policy.awake_hosts));
        }
        match self.draft.unsurvivable().into_iter().find(|(lost, _)| !self.unsurvivable.contains(lost)) {
            Some((host, vm)) => Err(HostStays::NotSurvivable { host, vm }),
            None => Ok((groups, migrations, watts)),
        }
    }

    /// The virtual IPs of the other members go to the one that stays.
    fn vip_moves(&self, group: &GroupName) -> Vec<Step> {
        let inventory = &self.draft.inventory;
        let Some((stays, members)) = self.members(inventory, group) else { return Vec::new() };
        let mut steps = Vec::new();
        for from in members.iter().filter(|member| **member != stays) {
            let vips = inventory.vms.get(from).map(|vm| vm.vips.clone()).unwrap_or_default();
            steps.extend(vips.into_iter().map(|vip| Step::MoveVip { vip, from: from.clone(), to: stays.clone() }));
        }
        steps
    }

    /// Then the others are suspended.
    fn suspensions(&self, group: &GroupName) -> Vec<Step> {
        let inventory = &self.draft.inventory;
        let Some((stays, members)) = self.members(inventory, group) else { return Vec::new() };
        let others = members.into_iter().filter(|member| *member != stays);
        others
            .filter_map(|vm| {
                let there = inventory.vms.get(&vm).filter(|vm| vm.state == VmState::Running)?;
                Some(Step::SuspendVm { host: there.host.clone(), vm })
            })
            .collect()
    }

    fn members(&self, inventory: &Inventory, group: &GroupName) -> Option<(DomainName, Vec<DomainName>)> {
        Some((self.light.get(group)?.stays.clone(), inventory.groups.get(group)?.members.clone()))
    }

    /// Thesis, table 4.3: "set virtual IP addresses → execute live migration → suspend real servers".
    fn plan(mut self, inventory: &Inventory) -> Plan {
        let after = std::mem::replace(&mut self.draft, Draft::new(inventory, self.policy));
        drop(after);
        let mut steps = Steps::new();
        let host_of = |vm: &DomainName| inventory.vms.get(vm).map(|vm| Claim::Host(vm.host.clone()));
        for group in &self.folded {
            for step in self.vip_moves(group) {
                let mut about = BTreeSet::new();
                if let Step::MoveVip { from, to, .. } = &step {
                    about.extend(host_of(from).into_iter().chain(host_of(to)));
                }
                steps.push(step, [group.clone()].into(), about, |_| false);
            }
        }
        let mut migrated = Bytes(0);
        for (vm, (from, to)) in &self.migrations {
            let there = inventory.vms.get(vm);
            let groups: BTreeSet<GroupName> = there.and_then(|vm| vm.group.clone()).into_iter().collect();
            let members =
                groups.iter().filter_map(|group| inventory.groups.get(group)).flat_map(|group| &group.members);
            let carried = members.filter_map(|name| inventory.vms.get(name)).flat_map(|vm| vm.vips.iter());
            let about = carried.map(|vip| Claim::Vip(*vip)).collect();
            migrated = migrated.plus(there.map_or(Bytes(0), |vm| vm.memory));
            let step = Step::Migrate { vm: vm.clone(), from: from.clone(), to: to.clone() };
            steps.push(step, groups, about, |earlier| match earlier {
                Step::MoveVip { to, .. } => to == vm,
                Step::Migrate { .. }
                | Step::SuspendVm { .. }
                | Step::ResumeVm { .. }
                | Step::SuspendHost { .. }
                | Step::WakeHost { .. } => false,
            });
        }
        for group in &self.folded {
            let stays = self.light.get(group).map(|gathered| &gathered.stays);
            for step in self.suspensions(group) {
                let given_up = match &step {
                    Step::SuspendVm { vm, .. } => Some(vm.clone()),
                    Step::MoveVip { .. }
                    | Step::Migrate { .. }
                    | Step::ResumeVm { .. }
                    | Step::SuspendHost { .. }
                    | Step::WakeHost { .. } => None,
                };
                // While the one that stays is on its way, the other could still take its virtual IP back.
                steps.push(step, [group.clone()].into(), BTreeSet::new(), |earlier| match earlier {
                    Step::MoveVip { from, .. } => Some(from) == given_up.as_ref(),
                    Step::Migrate { vm, .. } => Some(vm) == stays,
                    Step::SuspendVm { .. }
                    | Step::ResumeVm { .. }
                    | Step::SuspendHost { .. }
                    | Step::WakeHost { .. } => false,
                });
            }
        }
        for host in self.asleep.keys() {
            let groups = self.draft.on(host).filter_map(|(_, vm)| vm.group.clone());
            let groups = groups.filter(|group| self.folded.contains(group)).collect();
            steps.push(Step::SuspendHost { host: host.clone() }, groups, BTreeSet::new(), |earlier| match earlier {
                Step::Migrate { from, .. } => from == host,
                Step::SuspendVm { host: there, .. } => there == host,
                Step::MoveVip { .. } | Step::ResumeVm { .. } | Step::SuspendHost { .. } | Step::WakeHost { .. } => {
                    false
                }
            });
        }
        let changed = self.folded.iter().filter_map(|name| Some((name, inventory.groups.get(name)?.condition)));
        Plan {
            generation: inventory.generation,
            direction: Direction::Fold,
            groups: changed
                .filter(|(_, condition)| *condition != Condition::Light)
                .map(|(name, condition)| (name.clone(), (condition, Condition::Light)))
                .collect(),
            steps: steps.finish(),
            watts: self.asleep.values().fold(Watts(0), |sum, watts| sum.plus(*watts)),
            migrated,
        }
    }
}

pub(super) fn saved(host: &Host) -> Watts {
    host.watts.awake.minus(host.watts.asleep)
}
