//! A machine besides its agent: power, boots, sleep, what runs on it.

use super::agent::{Agent, Disk, Ending, Input};
use super::clock::{Clock, MS, Ns, SEC};
use super::coordinator::Reply;
use super::kernel::Kernel;
use super::net::Up;
use super::world::{Ev, World};
use super::writing::Writing;
use kage_agent_core::{OwnerEvent, WriterEvent};
use kage_coordinator_core::{AgentReport, JobResult};
use kage_types::{DomainName, ServiceName};
use std::collections::BTreeMap;

/// A service of a machine that just booted answers after this.
const SERVICES_START: Ns = SEC;
/// A double that was not suspended but off serves so long after it was started.
const DOUBLE_BOOTS: Ns = 5 * SEC;

/// What brings a service back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// A restart of it.
    Restart,
    /// A reboot of its machine.
    Reboot,
    /// Only its repair.
    Nothing,
}

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Good,
    /// It answers from then on.
    Starting(Ns),
    /// Its process is gone: connections are refused, and its agent hears of it.
    Gone(Cure),
    /// It takes connections and says nothing.
    Hung(Cure),
}

/// A double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vm {
    /// Its machine had no power since, or its process died.
    Off,
    /// Paused.
    Suspended,
    /// It serves from then on.
    Running(Ns),
}

/// What an agent has others do on its machine; it is done, or not, whatever becomes of the agent.
#[derive(Clone, Debug)]
pub enum Errand {
    /// Libvirt resumes (or starts) a double, or suspends it.
    Vm(DomainName, bool),
    /// The service manager restarts a service.
    Restart(ServiceName),
}

/// How a machine's libvirt does what it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Libvirt {
    /// Nothing is done before; then all of it.
    pub hangs_until: Ns,
    /// Each call takes this much longer.
    pub slow: Ns,
    /// Each call fails.
    pub fails: bool,
}

/// A machine with an agent.
#[derive(Debug)]
pub struct Machine {
    /// Its CLOCK_BOOTTIME.
    pub clock: Clock,
    /// Has it power?
    pub on: bool,
    /// Since when it sleeps.
    pub asleep: Option<Ns>,
    /// Its guard.
    pub kernel: Kernel,
    /// What its disk holds.
    pub disk: Disk,
    /// The agent's process.
    pub agent: Option<Agent>,
    /// The process gets no time before.
    pub stalled_until: Ns,
    /// Nor does its kernel thread.
    pub kernel_stalled_until: Ns,
    /// Nothing on it gets any time before; elements run out all the same.
    pub frozen_until: Ns,
    /// The next kernel operation of this kind waits so long between check and effect.
    pub stall_op: Option<(bool, Ns)>,
    /// Each write to its disk takes up to so much longer.
    pub slow_disk: Ns,
    /// The next step waits so long between reading the clock and acting.
    pub stall_step: Ns,
    /// Boots so far.
    pub boots: u64,
    /// It will have booted then.
    boot_at: Option<Ns>,
    /// From power to its agent; none: by chance.
    pub boot_takes: Option<Ns>,
    /// A magic packet starts it.
    pub wakes: bool,
    /// Its power reads so, whatever it is: off?
    pub reads: Option<bool>,
    /// Its doubles; those not listed are suspended.
    pub vms: BTreeMap<DomainName, Vm>,
    /// Its libvirt.
    pub libvirt: Libvirt,
    /// When what was begun with a VM ends: what comes after it waits, as in the agent and in libvirt.
    pub vm_ends: BTreeMap<DomainName, Ns>,
    /// Its services; those not listed are good.
    pub services: BTreeMap<ServiceName, Health>,
    /// Neighbours do not hear what it announces.
    pub unheard: bool,
    /// Its services that must not write twice.
    pub writing: BTreeMap<ServiceName, Writing>,
    /// Until when its service manager stops them: who asks for it once more waits for the same end.
    pub stops: BTreeMap<ServiceName, Ns>,
}

impl Machine {
    /// Switched on, nothing on its disk.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            on: true,
            asleep: None,
            kernel: Kernel::default(),
            disk: Disk::default(),
            agent: None,
            stalled_until: 0,
            kernel_stalled_until: 0,
            frozen_until: 0,
            stall_op: None,
            slow_disk: 0,
            stall_step: 0,
            boots: 1,
            boot_at: None,
            boot_takes: None,
            wakes: true,
            reads: None,
            vms: BTreeMap::new(),
            libvirt: Libvirt::default(),
            vm_ends: BTreeMap::new(),
            services: BTreeMap::new(),
            unheard: false,
            writing: BTreeMap::new(),
            stops: BTreeMap::new(),
        }
    }

    /// Does it run, as seen from outside?
    #[must_use]
    pub fn up(&self) -> bool {
        self.on && self.asleep.is_none()
    }

    /// Does it run, and do anything?
    #[must_use]
    pub fn answers(&self, now: Ns) -> bool {
        self.up() && self.frozen_until <= now
    }

    /// How a service of it is.
    #[must_use]
    pub fn health(&self, now: Ns, service: &ServiceName) -> Health {
        match self.services.get(service) {
            Some(Health::Starting(from)) if *from <= now => Health::Good,
            Some(health) => *health,
            None => Health::Good,
        }
    }

    /// A double of it.
    #[must_use]
    pub fn vm(&self, domain: &DomainName) -> Vm {
        self.vms.get(domain).copied().unwrap_or(Vm::Suspended)
    }
}

impl World {
    /// `nft flush ruleset`: the elements are gone. The monitor puts the guard back and says so.
    pub fn flush(&mut self, machine: usize) {
        self.say_of(machine, || "guard flushed".into());
        self.elements_gone(machine);
        let noticed = self.rng.range(5 * MS, 80 * MS);
        let process = self.process(machine);
        self.after(noticed, Ev::Agent(machine, process, Box::new(Input::Owner(OwnerEvent::GuardBack))));
    }

    fn elements_gone(&mut self, machine: usize) {
        for vip in self.vips.clone() {
            let before = self.machines[machine].kernel.live_until(self.now, vip);
            self.checks.element(self.now, vip, before, None);
        }
        self.machines[machine].kernel.elements.clear();
    }

    /// No power: the kernel forgets everything. Power again after `down`; [`Ns::MAX`]: not by itself.
    pub fn power_off(&mut self, machine: usize, down: Ns) {
        if !self.machines[machine].on {
            return;
        }
        self.say_of(machine, || "has no power".into());
        self.end_process(machine, true);
        self.elements_gone(machine);
        let doubles: Vec<DomainName> = self.doubles(machine).collect();
        let here = &mut self.machines[machine];
        here.on = false;
        here.asleep = None;
        here.frozen_until = 0;
        here.vms = doubles.into_iter().map(|domain| (domain, Vm::Off)).collect();
        self.seats_lost(machine);
        self.boot_after(machine, down);
    }

    fn boot_after(&mut self, machine: usize, down: Ns) {
        let at = self.now.saturating_add(down);
        self.machines[machine].boot_at = Some(at).filter(|at| *at < Ns::MAX);
        if at < Ns::MAX {
            self.at(at, Ev::Boot(machine));
        }
    }

    /// The doubles that a machine may run.
    fn doubles(&self, machine: usize) -> impl Iterator<Item = DomainName> {
        let here = &self.names[machine];
        let domain = |target: &kage_coordinator_core::config::Target| {
            (target.backup.agent == *here).then(|| target.backup.domain.clone())
        };
        self.cluster.targets.values().filter_map(domain).collect::<Vec<_>>().into_iter()
    }

    /// Power, and a machine that starts.
    pub(super) fn power_on(&mut self, machine: usize) {
        let by_chance = self.rng.range(SEC, 4 * SEC);
        let here = &self.machines[machine];
        let boot = here.boot_takes.unwrap_or(by_chance);
        if !here.on && here.boot_at.is_none_or(|at| at > self.now + boot) {
            self.boot_after(machine, boot);
        }
    }

    /// The machine has started.
    pub(super) fn boot(&mut self, machine: usize) {
        let now = self.now;
        let here = &mut self.machines[machine];
        if here.on || here.boot_at.is_none_or(|at| at > now) {
            return;
        }
        here.on = true;
        here.boot_at = None;
        here.boots += 1;
        here.clock = here.clock.restarted(now);
        for health in here.services.values_mut() {
            *health = match *health {
                Health::Gone(Cure::Nothing) => Health::Gone(Cure::Nothing),
                Health::Hung(Cure::Nothing) => Health::Hung(Cure::Nothing),
                Health::Good | Health::Starting(_) | Health::Gone(_) | Health::Hung(_) => {
                    Health::Starting(now + SERVICES_START)
                }
            };
        }
        self.writers_boot(machine);
        self.say_of(machine, || "boots".into());
        self.seats_back(machine);
        self.start_agent(machine);
    }

    /// The coordinator and SIF that live there die with it.
    fn seats_lost(&mut self, machine: usize) {
        for slot in [0, 1] {
            if self.net.coordinators[slot] == machine {
                self.crash_coordinator(slot, true);
            }
        }
        if self.net.sif == machine && self.sif.core.is_some() {
            self.crash_sif(false);
        }
    }

    fn seats_back(&mut self, machine: usize) {
        if self.net.sif == machine {
            self.start_sif();
        }
        if self.net.coordinators[0] == machine {
            self.start_coordinator(0);
        }
    }

    /// Nothing there gets any time before then.
    pub fn freeze(&mut self, machine: usize, until: Ns) {
        self.say_of(machine, || "is frozen".into());
        let here = &mut self.machines[machine];
        here.frozen_until = until;
        here.stalled_until = here.stalled_until.max(until);
        here.kernel_stalled_until = here.kernel_stalled_until.max(until);
        if self.net.coordinators[0] == machine
            && let Some(coordinator) = &mut self.coordinators[0]
        {
            coordinator.stalled_until = until;
        }
    }

    /// Everything was let go, or nobody asked: the machine sleeps.
    pub(super) fn sleep(&mut self, machine: usize, length: Ns) {
        let now = self.now;
        let here = &mut self.machines[machine];
        if here.up() {
            here.asleep = Some(now);
            self.say_of(machine, || "sleeps".into());
            self.after(length, Ev::Wake(machine, now));
        }
    }

    /// It wakes: elements did not age, the clock went on.
    pub(super) fn wake(&mut self, machine: usize, since: Ns) {
        let now = self.now;
        let here = &mut self.machines[machine];
        if here.asleep != Some(since) {
            return;
        }
        here.asleep = None;
        here.kernel.slept(since, now);
        if let Some(agent) = &mut here.agent {
            agent.stopping = false;
            agent.tick = Ns::MAX;
        }
        self.say_of(machine, || "wakes".into());
        for vip in self.vips.clone() {
            if self.machines[machine].kernel.live_until(now, vip).is_some() {
                self.check_owners(machine, vip);
            }
        }
        self.step_owner(machine, OwnerEvent::ClockJumped);
    }

    /// Begin what the operator or the system wants of a machine.
    pub fn plan(&mut self, machine: usize, ending: Ending) {
        let process = self.process(machine);
        let a_target = self.cluster.targets.values().any(|target| target.agent == self.names[machine]);
        if process > 0 && self.machines[machine].up() {
            self.say_of(machine, || format!("is told: {ending:?}"));
            self.agent_input(machine, process, Input::Plan(ending));
        } else if matches!(ending, Ending::Down(_)) && a_target {
            self.power_off(machine, SEC);
        }
    }

    // ---- what runs on it ----

    /// A service falls ill; a process that is gone is noticed by the machine's agent.
    pub fn service_fails(&mut self, machine: usize, service: &ServiceName, health: Health) {
        self.say_of(machine, || format!("{service} is {health:?}"));
        self.machines[machine].services.insert(service.clone(), health);
        if let Health::Gone(_) = health {
            let noticed = self.rng.range(5 * MS, 50 * MS);
            let process = self.process(machine);
            let report = AgentReport::ServiceDown { service: service.clone(), detail: "its process is gone".into() };
            self.after(noticed, Ev::Agent(machine, process, Box::new(Input::Tell(report))));
        }
    }

    /// What the agent had begun ends, unless the machine was switched off meanwhile.
    pub(super) fn errand(&mut self, machine: usize, boot: u64, errand: Errand, reply: Reply) {
        let here = &self.machines[machine];
        if here.boots != boot || !here.on {
            return;
        }
        if !here.answers(self.now) {
            let later = here.frozen_until.max(self.now + 100 * MS);
            return self.at(later, Ev::Errand(machine, boot, errand, reply));
        }
        let (done, why) = match &errand {
            Errand::Vm(domain, runs) => (self.set_vm(machine, domain, *runs), "libvirt refuses"),
            Errand::Restart(service) => (self.service_restarted(machine, service), "it ended at once"),
        };
        self.answer(machine, reply, if done { JobResult::Done } else { JobResult::Failed(why.into()) });
    }

    /// The end of a restart: true if it answers now.
    fn service_restarted(&mut self, machine: usize, service: &ServiceName) -> bool {
        let (now, here) = (self.now, &mut self.machines[machine]);
        let cured = match here.health(now, service) {
            Health::Good | Health::Starting(_) => true,
            Health::Gone(cure) | Health::Hung(cure) => cure == Cure::Restart,
        };
        if !cured {
            return false;
        }
        here.services.insert(service.clone(), Health::Good);
        // One that is stopped is started, unless its agent holds it back.
        if here.writing.get(service) == Some(&Writing::Down) {
            if here.agent.as_ref().is_none_or(|agent| agent.writers.holds(service)) {
                return false;
            }
            here.writing.insert(service.clone(), Writing::Runs);
            self.step_writers(machine, WriterEvent::CameUp(service.clone()));
        }
        true
    }

    /// A double's process dies.
    pub fn double_crashes(&mut self, machine: usize, domain: &DomainName) {
        self.say_of(machine, || format!("{domain} crashes"));
        self.machines[machine].vms.insert(domain.clone(), Vm::Off);
        let noticed = self.rng.range(5 * MS, 50 * MS);
        let process = self.process(machine);
        let report = AgentReport::VmCrashed { domain: domain.clone(), detail: "its process is gone".into() };
        self.after(noticed, Ev::Agent(machine, process, Box::new(Input::Tell(report))));
    }

    /// When a call to libvirt that begins now ends.
    pub(super) fn libvirt_call(&mut self, machine: usize, takes: Ns) -> Ns {
        let libvirt = self.machines[machine].libvirt;
        (self.now + takes + libvirt.slow).max(libvirt.hangs_until)
    }

    /// A double is resumed, or suspended; false if libvirt can't.
    fn set_vm(&mut self, machine: usize, domain: &DomainName, runs: bool) -> bool {
        let now = self.now;
        let here = &mut self.machines[machine];
        if here.libvirt.fails || self.rng.percent(self.chances.libvirt_fails) {
            return false;
        }
        let next = match (here.vm(domain), runs) {
            (Vm::Off, true) => Vm::Running(now + DOUBLE_BOOTS),
            (Vm::Suspended, true) => Vm::Running(now),
            (Vm::Running(since), true) => Vm::Running(since),
            (Vm::Off, false) => Vm::Off,
            (Vm::Suspended | Vm::Running(_), false) => Vm::Suspended,
        };
        here.vms.insert(domain.clone(), next);
        true
    }

    /// An agent reports.
    pub(super) fn tell(&mut self, machine: usize, report: AgentReport) {
        self.send_up(machine, Up::Report(report));
    }
}
