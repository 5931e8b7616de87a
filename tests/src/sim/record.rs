//! What happened in a scenario, as clients, operators and a clock on the wall saw it; and the promises that only it can
//! check. A random search keeps no record.

use super::checks::Broken;
use super::clock::{MS, Ns, SEC, ns};
use super::look::NEIGHBOURS_FORGET;
use super::world::World;
use kage_coordinator_core::{AgentCommand, Note, config::Target};
use kage_sif_core::{Cause, Request};
use kage_types::{AgentId, Epoch, OrderScope, TargetName, Vip};
use std::collections::{BTreeMap, BTreeSet};

/// Modes are looked at at least so often.
const LOOK: Ns = 20 * MS;
/// An order is heeded this long after it is durable, at the latest.
const HEEDED: Ns = SEC;

/// One machine's time with a VIP.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// Whose.
    pub machine: usize,
    /// As opened.
    pub epoch: Epoch,
    /// Its packets pass.
    pub from: Ns,
    /// They don't any more.
    pub to: Option<Ns>,
}

/// Everything that a scenario's outcome tells.
#[derive(Debug, Default)]
pub struct Record {
    /// What the coordinators said.
    pub said: Vec<(Ns, Note)>,
    /// Who owned each VIP.
    pub owners: BTreeMap<Vip, Vec<Owned>>,
    /// When each VIP was served to clients.
    pub served: BTreeMap<Vip, Vec<(Ns, Option<Ns>)>>,
    /// When a machine went on, off, to sleep, was frozen.
    pub power: Vec<Vec<(Ns, &'static str)>>,
    /// When a target entered a mode.
    pub modes: BTreeMap<TargetName, Vec<(Ns, String)>>,
    /// What coordinators commanded agents: when, whom, what.
    pub commands: Vec<(Ns, AgentId, AgentCommand)>,
    /// How the operator's commands ended, by number.
    pub answers: BTreeMap<u64, (Ns, Result<(), String>)>,
    /// Lines that wait for a word of the coordinator: the line, the words left, about which target.
    pub waiting: Vec<(usize, BTreeSet<String>, Option<TargetName>, Ns)>,
    /// What was broken is over since then, and has settled.
    pub calm_from: Ns,
    /// Two machines' packets passed for so long, together.
    pub doubled: BTreeMap<Vip, Ns>,
    observed: Ns,
    /// The end of the element seen last.
    ends: BTreeMap<Vip, Ns>,
    looked: Ns,
    /// Where clients send what is for a VIP, since when.
    neighbours: BTreeMap<Vip, (usize, Ns)>,
    /// Since when the coordinator can't reach a machine's agent.
    dark: Vec<Option<Ns>>,
    orders: BTreeMap<OrderScope, Ns>,
    strange: BTreeMap<Vip, Ns>,
    judged: BTreeSet<(Vip, Epoch)>,
}

impl Record {
    /// That nothing has happened yet.
    #[must_use]
    pub fn since(now: Ns) -> Self {
        Self { calm_from: now, observed: now, ..Self::default() }
    }

    /// Would clients' packets go to this machine?
    #[must_use]
    pub fn believed(&self, vip: Vip, machine: usize, now: Ns) -> bool {
        self.neighbours.get(&vip).is_none_or(|(known, since)| *known == machine || now > since + NEIGHBOURS_FORGET)
    }

    /// Neighbours were told.
    pub(super) fn heard(&mut self, vip: Vip, machine: usize, now: Ns) {
        self.neighbours.insert(vip, (machine, now));
    }

    /// Look at the world after an event.
    pub(super) fn observe(&mut self, world: &World) {
        for vip in &world.vips {
            self.observe_vip(world, *vip);
            // Of the time since the last look, that in which the second of them was live.
            let ends = world.machines.iter().filter(|machine| machine.up());
            let mut ends: Vec<Ns> = ends.filter_map(|machine| machine.kernel.elements.get(vip)?.live).collect();
            ends.sort_unstable();
            if let [.., second, _] = ends[..] {
                let both = second.min(world.now).saturating_sub(self.observed);
                *self.doubled.entry(*vip).or_default() += both;
            }
        }
        self.observed = world.now;
        self.power.resize(world.machines.len(), Vec::new());
        self.dark.resize(world.machines.len(), None);
        for (index, machine) in world.machines.iter().enumerate() {
            let state = match (machine.on, machine.asleep.is_some(), machine.frozen_until > world.now) {
                (false, ..) => "off",
                (true, true, _) => "asleep",
                (true, false, true) => "frozen",
                (true, false, false) => "on",
            };
            if self.power[index].last().is_none_or(|(_, known)| *known != state) {
                self.power[index].push((world.now, state));
            }
            let heard = machine.agent.is_some()
                && machine.answers(world.now)
                && machine.stalled_until <= world.now
                && world.net.both(index, world.net.coordinators[0]);
            let dark = &mut self.dark[index];
            *dark = if heard { None } else { dark.or(Some(world.now)) };
        }
        let scopes = &world.sif.disk.orders;
        self.orders.retain(|scope, _| scopes.contains_key(scope));
        for scope in scopes.keys() {
            self.orders.entry(scope.clone()).or_insert(world.now);
        }
        self.strange.retain(|vip, _| world.strangers.contains(vip));
        for vip in &world.strangers {
            self.strange.entry(*vip).or_insert(world.now);
        }
        if world.now >= self.looked + LOOK {
            self.looked = world.now;
            self.observe_modes(world);
        }
    }

    fn observe_vip(&mut self, world: &World, vip: Vip) {
        let now = world.now;
        let holder = world.holder(vip);
        let end = self.ends.remove(&vip);
        let owned = self.owners.entry(vip).or_default();
        let lapsed = end.map_or(now, |end| end.min(now));
        if let Some(last) = owned.last_mut().filter(|last| last.to.is_none() && Some(last.machine) != holder) {
            last.to = Some(lapsed);
        }
        if let Some(holder) = holder {
            if owned.last().is_none_or(|last| last.to.is_some()) {
                let row = world.sif.disk.vips.get(&vip).map_or(Epoch(0), |row| row.epoch);
                owned.push(Owned { machine: holder, epoch: row, from: now, to: None });
            }
            let end = world.machines[holder].kernel.live_until(now, vip);
            self.ends.insert(vip, end.unwrap_or(now));
        }
        let serves = world.serves(vip, self);
        let served = self.served.entry(vip).or_default();
        match served.last_mut() {
            Some((_, to @ None)) if !serves => *to = Some(if holder.is_none() { lapsed } else { now }),
            Some((_, None)) => {}
            Some((_, Some(_))) | None if serves => served.push((now, None)),
            Some((_, Some(_))) | None => {}
        }
    }

    fn observe_modes(&mut self, world: &World) {
        let Some(coordinator) = &world.coordinators[0] else { return };
        for name in world.cluster.targets.keys() {
            let Some(view) = coordinator.core.target(name) else { continue };
            let mode = if view.step.is_empty() { view.mode.to_owned() } else { format!("{}/{}", view.mode, view.step) };
            let modes = self.modes.entry(name.clone()).or_default();
            if modes.last().is_none_or(|(_, known)| *known != mode) {
                modes.push((world.now, mode));
            }
        }
    }

    /// In force long enough to be heeded?
    fn stands(&self, now: Ns, scope: &OrderScope) -> bool {
        self.orders.get(scope).is_some_and(|since| now > since + HEEDED)
    }

    fn withheld(&self, now: Ns, name: &TargetName, target: &Target, takeover: bool) -> Option<OrderScope> {
        let mut scopes =
            vec![OrderScope::All, OrderScope::Target(name.clone()), OrderScope::Agent(target.agent.clone())];
        if takeover {
            scopes.push(OrderScope::Agent(target.backup.agent.clone()));
        }
        scopes.into_iter().find(|scope| self.stands(now, scope))
    }

    /// How many failure domains have been dark for longer than it takes to notice, of how many.
    fn dark(&self, world: &World) -> (usize, usize) {
        let limit = 7 * ns(world.cluster.timing.renewal) / 2 + 50 * MS;
        let mut domains: BTreeMap<&str, bool> = BTreeMap::new();
        for (index, machine) in world.cluster.agents.values().enumerate() {
            if machine.address.ip() == world.cluster.coordinator.ip() {
                continue;
            }
            let dark = self.dark[index].is_some_and(|since| world.now > since + limit);
            *domains.entry(machine.failure_domain.as_str()).or_insert(true) &= dark;
        }
        (domains.values().filter(|dark| **dark).count(), domains.len())
    }
}

impl World {
    /// After an event, where a record is kept.
    pub(super) fn observe(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.observe(self);
            self.record = Some(record);
        }
    }

    /// A coordinator said something: kept, and perhaps waited for.
    pub(super) fn noted(&mut self, slot: usize, note: Note) {
        let now = self.now;
        let Some(record) = self.record.as_mut().filter(|_| slot == 0) else { return };
        let mut due = Vec::new();
        for (line, words, about, from) in &mut record.waiting {
            if now >= *from && (about.is_none() || *about == note.target) && words.remove(&note.kind) {
                due.push(*line);
            }
        }
        record.waiting.retain(|(_, words, ..)| !words.is_empty());
        record.said.push((now, note));
        for line in due {
            self.at(now, super::world::Ev::Line(line, true));
        }
    }

    /// An operator's command ended.
    pub(super) fn answered(&mut self, command: u64, result: Result<(), String>) {
        let now = self.now;
        if let Some(record) = self.record.as_mut() {
            record.answers.insert(command, (now, result));
        }
    }

    /// A new epoch is wanted: may it be?
    pub(super) fn watch_advance(&mut self, slot: usize, request: &Request) {
        let Request::AdvanceEpoch { vip, expected, target: name, cause: Cause::Takeover, .. } = request else { return };
        let Some(mut record) = self.record.take() else { return };
        if slot == 0
            && record.judged.insert((*vip, *expected))
            && let Some(target) = self.cluster.targets.get(name)
        {
            self.checks.looked(Broken::Withheld);
            if let Some(scope) = record.withheld(self.now, name, target, true) {
                self.checks.fail(Broken::Withheld, self.now, format!("{name} is taken over in spite of {scope}"));
            }
            let home = self.index(&target.agent);
            let (dark, of) = record.dark(self);
            let proof = !self.machines[home].on && self.cluster.agents[&target.agent].power_status.is_some();
            let lost = record.dark[home].is_some();
            self.checks.looked(Broken::Storm);
            if lost && !proof && dark >= 2 && dark * 2 > of {
                let text = format!("{name} is taken over without proof while {dark} of {of} failure domains are dark");
                self.checks.fail(Broken::Storm, self.now, text);
            }
        }
        self.record = Some(record);
    }

    /// An agent is commanded: may it be?
    pub(super) fn watch_command(&mut self, agent: &AgentId, command: &AgentCommand) {
        let Some(mut record) = self.record.take() else { return };
        if let AgentCommand::RestartService { .. } | AgentCommand::Reboot = command {
            self.checks.looked(Broken::Withheld);
            for (name, target) in self.cluster.targets.iter().filter(|(_, target)| target.agent == *agent) {
                if let Some(scope) = record.withheld(self.now, name, target, false) {
                    let text = format!("{agent} is told {command:?} in spite of {scope}");
                    self.checks.fail(Broken::Withheld, self.now, text);
                }
            }
        }
        record.commands.push((self.now, agent.clone(), command.clone()));
        self.record = Some(record);
    }

    /// A VIP opens: does its double run, and does nobody else answer for it?
    pub(super) fn watch_opening(&mut self, machine: usize, vip: Vip) {
        let Some(record) = self.record.take() else { return };
        if let Some((_, target)) = self.cluster.targets.iter().find(|(_, target)| target.vips.contains(&vip)) {
            self.checks.looked(Broken::DoubleAsleep);
            let domain = &target.backup.domain;
            let runs = matches!(self.machines[machine].vm(domain), super::machine::Vm::Running(_));
            if self.names[machine] != target.agent && !runs {
                let text = format!("{vip} opens on {} though {domain} does not run", self.names[machine]);
                self.checks.fail(Broken::DoubleAsleep, self.now, text);
            }
        }
        self.checks.looked(Broken::StrangerIgnored);
        if record.strange.get(&vip).is_some_and(|since| self.now > since + SEC) {
            let text = format!("{vip} opens on {} though a stranger answers for it", self.names[machine]);
            self.checks.fail(Broken::StrangerIgnored, self.now, text);
        }
        self.record = Some(record);
    }
}
