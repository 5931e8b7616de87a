//! The thesis's arrangement (fig. 4.4), and a cluster that does what it is told unless it is told not to.

#![allow(dead_code, reason = "each test file uses its part")]

use kage_pss_core::{
    class::Condition,
    execute::{Action, End, Event, Executor, How, JobResult, NotBegun, Recorded, Signal},
    inventory::{Group, Host, HostState, HostWatts, Inventory, Vm, VmState, WakePath},
    load::Usage,
    plan::{Plan, Step, plan},
    policy::Policy,
    units::{Bytes, BytesPerSecond, Percent, Watts},
};
use kage_types::{AgentId, DomainName, GroupName, Revision, Time, Vip};
use std::{collections::BTreeSet, time::Duration};

pub fn host(name: &str) -> AgentId {
    name.parse().expect("it is there")
}

pub fn vm(name: &str) -> DomainName {
    name.parse().expect("it is there")
}

pub fn group(name: &str) -> GroupName {
    name.parse().expect("it is there")
}

pub fn vip(last: u8) -> Vip {
    format!("172.21.14.{last}").parse().expect("it is there")
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1000)
}

pub fn usage(cpu: u32) -> Usage {
    Usage {
        memory_used: Bytes::mib(500),
        memory_max: Bytes::gib(2),
        cpu: Percent::of(cpu),
        cores: 1,
        network: BytesPerSecond(1_000_000),
        rated: BytesPerSecond::rated(1000),
    }
}

/// Tables 4.2 and 4.3: 8 GiB, woken in 8.09 s, 263 W for three awake and 93 W for one awake and two asleep.
pub fn thesis_host() -> Host {
    Host {
        state: HostState::Awake,
        answers: true,
        woke: false,
        slept_on: false,
        awake_since: Time::ZERO,
        sleeps: Vec::new(),
        memory: Bytes::gib(8),
        cores: 4,
        wake: WakePath::Verified(Duration::from_millis(8_090)),
        watts: HostWatts { awake: Watts(87_667), asleep: Watts(2_667) },
        pinned: None,
    }
}

pub fn member(of: &str, on: &str, address: u8) -> Vm {
    Vm {
        group: Some(group(of)),
        host: host(on),
        home: host(on),
        memory: Bytes::gib(2),
        state: VmState::Running,
        vips: BTreeSet::from([vip(address)]),
        home_vips: BTreeSet::from([vip(address)]),
        shared_storage: true,
        usage: Some(usage(5)),
    }
}

/// RS1 M1 W1, RS2 M2 F1, RS3 W2 F2; all Moderate, all wanted Light.
pub fn thesis() -> Inventory {
    let vms = [
        ("mail1", "mail", "rs1", 101),
        ("web1", "web", "rs1", 102),
        ("ftp1", "ftp", "rs2", 103),
        ("mail2", "mail", "rs2", 104),
        ("web2", "web", "rs3", 105),
        ("ftp2", "ftp", "rs3", 106),
    ];
    let group_of = |names: [&str; 2]| Group {
        members: names.map(vm).into(),
        condition: Condition::Moderate,
        wanted: Condition::Light,
    };
    Inventory {
        generation: Revision(1),
        now: at(10_000),
        hosts: ["rs1", "rs2", "rs3"].into_iter().map(|name| (host(name), thesis_host())).collect(),
        vms: vms.into_iter().map(|(name, of, on, address)| (vm(name), member(of, on, address))).collect(),
        groups: [
            (group("mail"), group_of(["mail1", "mail2"])),
            (group("web"), group_of(["web1", "web2"])),
            (group("ftp"), group_of(["ftp1", "ftp2"])),
        ]
        .into(),
        claims: BTreeSet::new(),
        doubts: [].into(),
    }
}

pub fn policy() -> Policy {
    Policy { base: Some(host("rs1")), ..Policy::default() }
}

pub fn steps(plan: &Plan) -> Vec<String> {
    plan.steps().map(ToString::to_string).collect()
}

/// Done all at once, as the ledger has it afterwards.
pub fn after(mut inventory: Inventory, plan: &Plan) -> Inventory {
    for step in plan.steps() {
        inventory.apply(step);
    }
    for (name, (_, to)) in &plan.groups {
        inventory.groups.get_mut(name).expect("it is there").condition = *to;
    }
    inventory.generation = inventory.generation.next();
    inventory
}

pub fn want(inventory: &mut Inventory, wanted: Condition) {
    for group in inventory.groups.values_mut() {
        group.wanted = wanted;
    }
}

/// The thesis's arrangement in Light condition.
pub fn light() -> Inventory {
    let start = thesis();
    let (plan, _) = plan(&start, &policy());
    after(start, &plan)
}

pub fn holds(truth: &Inventory, step: &Step) -> bool {
    match step {
        Step::MoveVip { vip, from, to } => truth.vms[to].vips.contains(vip) && !truth.vms[from].vips.contains(vip),
        Step::Migrate { vm, to, .. } => truth.vms[vm].host == *to,
        Step::SuspendVm { vm, .. } => truth.vms[vm].state == VmState::Suspended,
        Step::ResumeVm { vm, .. } => truth.vms[vm].state == VmState::Running,
        Step::SuspendHost { host } => truth.hosts[host].state == HostState::Asleep,
        Step::WakeHost { host } => truth.hosts[host].state == HostState::Awake,
    }
}

/// Nothing is done to what sleeps, and no address goes to what does not run.
pub fn possible(truth: &Inventory, step: &Step) -> bool {
    let awake = |host: &AgentId| truth.hosts[host].state == HostState::Awake;
    let runs = |vm: &DomainName| truth.vms[vm].state == VmState::Running && awake(&truth.vms[vm].host);
    match step {
        Step::MoveVip { from, to, .. } => runs(from) && runs(to),
        Step::Migrate { vm, from, to } => runs(vm) && awake(from) && awake(to),
        Step::SuspendVm { vm, host } => awake(host) && truth.vms[vm].vips.is_empty(),
        Step::ResumeVm { host, .. } => awake(host),
        Step::SuspendHost { host } => {
            let mut there = truth.vms.values().filter(|vm| vm.host == *host);
            there.all(|vm| vm.vips.is_empty() && vm.state != VmState::Running)
        }
        Step::WakeHost { .. } => true,
    }
}

pub fn show(action: &Action) -> String {
    match action {
        Action::Signal { id, signal } => {
            let what = match signal {
                Signal::TransitionBegun { plan } => format!("transition begun, {} steps", plan.steps.len()),
                Signal::StepBegun { index, undo: false } => format!("step {index} begun"),
                Signal::StepBegun { index, undo: true } => format!("undo of step {index} begun"),
                Signal::StepDone { index, undo: false } => format!("step {index} done"),
                Signal::StepDone { index, undo: true } => format!("step {index} undone"),
                Signal::Committed { conditions, missing } => format!("committed {conditions:?}, missing {missing:?}"),
                Signal::Found { vm, host, not_on } => format!("{vm} is on {host}, not on {not_on:?}"),
                Signal::RolledBack { left, why, .. } => format!("rolled back, left {left:?}: {why}"),
            };
            format!("signal {}: {what}", id.0)
        }
        Action::Do { job, step, how, timeout } => {
            let how = match how {
                How::Plain => String::new(),
                How::Migration { bandwidth, downtime } => format!(", {bandwidth:?} {downtime:?}"),
                How::Sleep { alarm } => format!(", alarm after {alarm:?}"),
                How::Wake { attempt } => format!(", packet {attempt}"),
            };
            format!("job {}: {step}{how}, within {timeout:?}", job.0)
        }
        Action::Look { job, step, timeout } => format!("job {}: look for {step}, within {timeout:?}", job.0),
        Action::Abort { job } => format!("abort job {}", job.0),
        Action::Yield(claim) => format!("yield {claim}"),
        Action::Note(note) => format!("{:?} {:?}: {}", note.severity, note.kind, note.text),
    }
}

/// What goes wrong with a step when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not done, and says so.
    Fails,
    /// It is done, and says that it is not.
    Lies,
    /// It is done, and nobody hears.
    Silent,
    /// It is not done, and nobody hears.
    Nothing,
}

pub struct Lab {
    pub now: Time,
    pub truth: Inventory,
    pub policy: Policy,
    pub executor: Executor,
    pub wrong: Vec<(Step, Wrong)>,
    pub actions: Vec<Action>,
    pub end: Option<End>,
    /// As the ledger has the steps.
    pub recorded: Vec<Recorded>,
    queue: Vec<Action>,
    revision: u64,
}

impl Lab {
    pub fn new(truth: Inventory, policy: Policy) -> Self {
        let revision = truth.generation.0;
        Self {
            now: truth.now,
            truth,
            policy,
            executor: Executor::default(),
            wrong: Vec::new(),
            actions: Vec::new(),
            end: None,
            recorded: Vec::new(),
            queue: Vec::new(),
            revision,
        }
    }

    pub fn begin(&mut self, plan: &Plan) -> Result<(), NotBegun> {
        self.recorded = vec![Recorded::Untouched; plan.steps.len()];
        let mut actions = Vec::new();
        let begun = self.executor.begin(self.now, plan.clone(), &self.truth, &self.policy, &mut actions);
        self.took(actions);
        begun
    }

    pub fn took(&mut self, actions: Vec<Action>) {
        self.actions.extend(actions.iter().cloned());
        self.queue.extend(actions);
    }

    pub fn event(&mut self, event: Event) {
        let mut actions = Vec::new();
        let end = self.executor.step(self.now, event, &self.policy, &mut actions);
        self.took(actions);
        self.end = self.end.take().or(end);
    }

    /// Answer one action, or let time go by to the deadline. False: nothing is left to happen.
    pub fn once(&mut self) -> bool {
        if self.queue.is_empty() {
            let Some((deadline, _)) = self.executor.deadline() else { return false };
            self.now = deadline.max(self.now);
            self.event(Event::Tick);
            return true;
        }
        match self.queue.remove(0) {
            Action::Signal { id, signal } => {
                match signal {
                    Signal::StepBegun { index, .. } => self.recorded[index] = Recorded::Begun,
                    Signal::StepDone { index, undo } => {
                        self.recorded[index] = if undo { Recorded::Undone } else { Recorded::Done };
                    }
                    Signal::Committed { conditions, .. } | Signal::RolledBack { conditions, .. } => {
                        for (name, condition) in conditions {
                            self.truth.groups.get_mut(&name).expect("it is there").condition = condition;
                        }
                    }
                    Signal::TransitionBegun { .. } | Signal::Found { .. } => {}
                }
                self.revision += 1;
                self.event(Event::Recorded { id, revision: Revision(self.revision) });
            }
            Action::Do { job, step, .. } => {
                assert!(possible(&self.truth, &step), "{step} can't be done now: {:?}", self.lines());
                let wrong = self.wrong.iter().find(|(there, _)| *there == step).map(|(_, wrong)| *wrong);
                let (done, result) = match wrong {
                    None => (true, Some(JobResult::Done)),
                    Some(Wrong::Fails) => (false, Some(JobResult::Failed("broken".into()))),
                    Some(Wrong::Lies) => (true, Some(JobResult::Failed("it seems".into()))),
                    Some(Wrong::Silent) => (true, None),
                    Some(Wrong::Nothing) => (false, None),
                };
                if done {
                    self.truth.apply(&step);
                }
                if let Some(result) = result {
                    self.event(Event::Ended { job, result });
                }
            }
            Action::Look { job, step, .. } => {
                let so = holds(&self.truth, &step);
                let result = if so { JobResult::Done } else { JobResult::Failed("not so".into()) };
                self.event(Event::Ended { job, result });
            }
            Action::Abort { .. } | Action::Yield(_) | Action::Note(_) => {}
        }
        true
    }

    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if self.end.is_some() || !self.once() {
                return;
            }
        }
        panic!("it never ends: {:?}", self.lines());
    }

    pub fn lines(&self) -> Vec<String> {
        self.actions.iter().map(show).collect()
    }

    /// What was done, without what was said about it.
    pub fn done(&self) -> Vec<String> {
        let does = |action: &&Action| matches!(action, Action::Do { .. });
        self.actions
            .iter()
            .filter(does)
            .map(show)
            .map(|line| line.split_once(": ").expect("it is there").1.to_owned())
            .collect()
    }

    pub fn notes(&self) -> Vec<String> {
        self.actions.iter().filter(|action| matches!(action, Action::Note(_))).map(show).collect()
    }
}
