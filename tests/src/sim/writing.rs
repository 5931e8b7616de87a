//! Who can write: targets' single writers, their doubles, the storage that may revoke its access. What an agent does to
//! services without a lease (`on_lease_lost`) is its production core's; here are a service manager and a storage.

use super::agent::{Input, Write};
use super::checks::Broken;
use super::clock::{MS, Ns, SEC};
use super::coordinator::{Notice, Reply};
use super::machine::Vm;
use super::world::{Ev, Sabotage, World};
use kage_agent_core::{Halt, HaltOutcome, LossReason, WriterAction, WriterConfig, WriterEvent, WriterMemory, Writers};
use kage_coordinator_core::{AgentReport, Event, JobId, JobResult, config::Target};
use kage_types::{ServiceName, TargetName, Time, Vip};
use std::{collections::BTreeMap, net::IpAddr};

/// A service that must not write twice, on its target's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It writes whenever its machine gets time.
    Runs,
    /// A boot has started it, its VIP has not been opened since. That it writes until its agent holds it back is not
    /// counted (docs/safety.md, "What this does not protect").
    ByBoot,
    /// Stopped or frozen.
    Down,
}

/// What becomes of a release: its answer waits until nobody here writes any more.
#[derive(Clone, Copy, Debug)]
pub struct Released {
    /// Of this VIP.
    pub vip: Vip,
    /// Whom to tell.
    pub reply: Reply,
}

impl World {
    /// Is any target a single writer?
    #[must_use]
    pub fn fences(&self) -> bool {
        !self.single.is_empty()
    }

    /// The targets with a single writer: by name, its machine, its service, its double's machine.
    #[must_use]
    pub fn single_writers(cluster: &kage_coordinator_core::config::Cluster) -> BTreeMap<TargetName, ServiceName> {
        let single = |target: &Target| target.services.iter().find(|service| service.single_writer).cloned();
        let named = |(name, target): (&TargetName, &Target)| Some((name.clone(), single(target)?.name));
        cluster.targets.iter().filter_map(named).collect()
    }

    /// After each event: never two writers.
    pub(super) fn check_writers(&mut self) {
        for name in self.single.keys() {
            let Some(target) = self.cluster.targets.get(name) else { continue };
            let service = &self.single[name];
            let here = &self.machines[self.index(&target.agent)];
            let writes = here.answers(self.now)
                && here.writing.get(service) == Some(&Writing::Runs)
                && !self.revoked.contains(name);
            let there = &self.machines[self.index(&target.backup.agent)];
            let double = there.answers(self.now) && matches!(there.vm(&target.backup.domain), Vm::Running(_));
            self.checks.looked(Broken::TwoWriters);
            if writes && double {
                let text = format!("{service} of {name} writes, and so does {} ", target.backup.domain);
                self.checks.fail(Broken::TwoWriters, self.now, text);
            }
        }
    }

    /// A single writer that runs, or does not, against its VIP.
    pub(super) fn writes_without_lease(&self) -> Option<String> {
        self.single.iter().find_map(|(name, service)| {
            let target = self.cluster.targets.get(name)?;
            let machine = self.index(&target.agent);
            let here = self.machines[machine].writing.get(service);
            let owns = target.vips.iter().any(|vip| self.holder(*vip) == Some(machine));
            match (here, owns) {
                (Some(Writing::Runs | Writing::ByBoot), false) => {
                    Some(format!("{service} of {name} runs without a lease"))
                }
                (Some(Writing::Down | Writing::ByBoot) | None, true) => {
                    Some(format!("{name} has its lease, but {service} does not run"))
                }
                (Some(Writing::Runs), true) | (Some(Writing::Down) | None, false) => None,
            }
        })
    }

    /// The operator switches on what a fence switched off, and has every single writer fail back.
    pub(super) fn operator_moves_back(&mut self) {
        (0..self.machines.len()).for_each(|machine| self.power_on(machine));
        for name in self.single.clone().into_keys() {
            self.say(|| format!("---- the operator moves {name} back"));
            for slot in [0, 1] {
                if self.coordinators[slot].is_some() {
                    let target = name.clone();
                    self.step_coordinator(slot, Event::Move { command: 0, target, back: true, force: true });
                }
            }
        }
    }

    /// The services of a machine that its agent binds to a lease.
    pub(super) fn bound(&self, machine: usize) -> BTreeMap<ServiceName, WriterConfig> {
        let own = |(name, service): (&TargetName, &ServiceName)| {
            let halt = if self.freezes { Halt::Freeze } else { Halt::Stop };
            (self.cluster.targets.get(name)?.agent == self.names[machine])
                .then(|| (service.clone(), WriterConfig { vips: Default::default(), halt }))
        };
        self.single.iter().filter_map(own).collect()
    }

    /// What an agent's process starts with.
    pub(super) fn writers(&self, machine: usize, time: Time, memory: WriterMemory) -> Writers {
        Writers::new(time, self.bound(machine), memory)
    }

    /// A boot starts what its machine has.
    pub(super) fn writers_boot(&mut self, machine: usize) {
        let services: Vec<ServiceName> = self.bound(machine).into_keys().collect();
        self.machines[machine].stops.clear();
        self.machines[machine].writing = services.into_iter().map(|service| (service, Writing::ByBoot)).collect();
    }

    // ---- the agent's shell (agent/src/driver/writers.rs) ----

    pub(super) fn lease_opened(&mut self, machine: usize, vip: Vip) {
        for writing in self.machines[machine].writing.values_mut().filter(|writing| **writing == Writing::ByBoot) {
            *writing = Writing::Runs;
        }
        self.step_writers(machine, WriterEvent::Opened(vip));
    }

    pub(super) fn lease_lost(&mut self, machine: usize, vip: Vip, reason: &LossReason) {
        let here = &self.machines[machine];
        let Some(agent) = &here.agent else { return };
        let time = here.clock.at(self.now);
        let until = match reason {
            LossReason::Lapsed => agent.owner.owned_until(vip).unwrap_or(time),
            LossReason::Superseded | LossReason::Released | LossReason::ClockJumped | LossReason::SwitchedOver(_) => {
                time
            }
        };
        self.step_writers(machine, WriterEvent::Lost { vip, until });
    }

    /// What is due, leases that were given up or prolonged meanwhile, and releases that waited.
    pub(super) fn writers_due(&mut self, machine: usize) {
        let here = &self.machines[machine];
        let Some(agent) = &here.agent else { return };
        let time = here.clock.at(self.now);
        let doubtful = agent.writers.doubtful();
        let now_owned = doubtful.map(|(vip, until)| (vip, until, agent.owner.owned_until(vip).unwrap_or(time)));
        let changed: Vec<(Vip, Time)> =
            now_owned.filter(|(_, until, owned)| owned != until).map(|(vip, _, owned)| (vip, owned)).collect();
        for (vip, until) in changed {
            self.step_writers(machine, WriterEvent::Lost { vip, until });
        }
        let agent = self.machines[machine].agent.as_ref();
        if agent.and_then(|agent| agent.writers.deadline()).is_some_and(|at| at <= time) {
            self.step_writers(machine, WriterEvent::Tick);
        }
        let Some(agent) = &mut self.machines[machine].agent else { return };
        let releasing = std::mem::take(&mut agent.releasing);
        let (quiet, waits): (Vec<Released>, _) =
            releasing.into_iter().partition(|released| agent.writers.quiet(Some(released.vip)));
        agent.releasing = waits;
        for released in quiet {
            self.answer(machine, released.reply, JobResult::Done);
        }
    }

    /// Nothing that stands behind this VIP, or any, runs here.
    pub(super) fn quiet(&self, machine: usize, vip: Option<Vip>) -> bool {
        let careless = self.sabotage == Some(Sabotage::ReleaseBeforeQuiet);
        careless || self.machines[machine].agent.as_ref().is_none_or(|agent| agent.writers.quiet(vip))
    }

    pub(super) fn step_writers(&mut self, machine: usize, event: WriterEvent) {
        let now = self.now;
        let here = &mut self.machines[machine];
        let time = here.clock.at(now);
        let Some(agent) = &mut here.agent else { return };
        let mut actions = Vec::new();
        agent.writers.step(time, event, &mut actions);
        let asked = (here.boots, agent.process);
        for action in actions {
            match action {
                WriterAction::Halt(service, halt) => {
                    self.say_of(machine, || format!("{service}: {halt:?}"));
                    let takes = match halt {
                        Halt::Stop => self.rng.scale(20 * MS, 3 * SEC),
                        Halt::Freeze => self.rng.range(MS, 10 * MS),
                    };
                    // A unit has one job at a time.
                    let stops = &mut self.machines[machine].stops;
                    let under_way = stops.get(&service).copied().filter(|end| *end > now);
                    let end = under_way.unwrap_or(now + takes);
                    stops.insert(service.clone(), end);
                    self.at(end, Ev::Halted(machine, asked, service, false));
                }
                WriterAction::Resume(service, _) => {
                    // What is being stopped is started when it is down.
                    let down = self.machines[machine].stops.get(&service).copied().unwrap_or(now).max(now);
                    let takes = self.rng.scale(5 * MS, SEC);
                    self.at(down + takes, Ev::Halted(machine, asked, service, true));
                }
                WriterAction::Store(memory) => self.write(machine, 0, Write::Writers(memory)),
                WriterAction::Tell { service, held, detail } => {
                    self.say_of(machine, || format!("{service}: {detail}"));
                    self.tell(machine, AgentReport::ServiceHeld { service, held });
                }
            }
        }
    }

    /// The service manager is done, whatever became of who asked.
    pub(super) fn halted(&mut self, machine: usize, asked: (u64, u64), service: ServiceName, runs: bool) {
        let here = &mut self.machines[machine];
        let (boot, process) = asked;
        if !here.on || here.boots != boot {
            return;
        }
        if !here.answers(self.now) {
            let later = here.frozen_until.max(self.now + 100 * MS);
            return self.at(later, Ev::Halted(machine, asked, service, runs));
        }
        let writing = here.writing.entry(service.clone()).or_insert(Writing::Down);
        let before = std::mem::replace(writing, if runs { Writing::Runs } else { Writing::Down });
        let outcome = if before == Writing::Down && !runs { HaltOutcome::NotRunning } else { HaltOutcome::Done };
        self.say_of(machine, || format!("{service} {}", if runs { "runs" } else { "is down" }));
        self.agent_input(machine, process, Input::Writer(WriterEvent::Ended { service, outcome }));
    }

    // ---- the storage ----

    /// `storage_fence`, `storage_unfence`: a program on the coordinator's machine, that ends what it began.
    pub(super) fn fence(&mut self, slot: usize, job: JobId, address: IpAddr, revoke: bool) {
        let Some(process) = self.coordinators[slot].as_ref().map(|coordinator| coordinator.process) else { return };
        let named = self.cluster.targets.iter().find(|(_, target)| target.address == address);
        let Some(name) = named.map(|(name, _)| name.clone()) else { return };
        if self.rng.percent(self.chances.storage_fails) {
            return self.job_ends(slot, 50 * MS, job, JobResult::Failed("the storage is busy".into()));
        }
        let takes: Ns = self.rng.scale(10 * MS, 4 * SEC);
        self.after(takes, Ev::Fenced(Reply { slot, process, job }, name, revoke));
    }

    pub(super) fn fenced(&mut self, reply: Reply, target: TargetName, revoked: bool) {
        self.say(|| format!("the storage {} {target}", if revoked { "shuts out" } else { "lets in" }));
        if revoked {
            self.revoked.insert(target);
        } else {
            self.revoked.remove(&target);
        }
        let event = Event::Job { job: reply.job, result: JobResult::Done };
        self.coordinator_notice(reply.slot, reply.process, Notice::Core(event));
    }
}
