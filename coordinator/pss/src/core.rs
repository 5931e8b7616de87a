//! The whole of it: samples and what there is come in, judgements are made at intervals, plans begun and carried out.

mod sight;

use sight::Sight;

use crate::{
    class::{Class, Condition},
    execute::{Action, End, Event, Executor, Kind, Note, Outcome, Recorded, Severity},
    inventory::{Claim, HostState, Inventory, WakePath},
    judge::{Judge, Judgement},
    load::{Load, Meter, Sample},
    plan::{self, Direction, Plan, Reason, Report, Step},
    policy::{Policy, Wall},
    power::PowerMeter,
    trouble::Troubles,
    units::Watts,
};
use kage_types::{AgentId, DomainName, GroupName, Revision, Time};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// Time went by; and what the clock on the wall says.
    Tick(Wall),
    /// What there is, as the ledger and the agents have it. `now`, `wanted`, `usage`, `awake_since`, `sleeps` and `woke` in it
    /// are put in here; a claim in it stands as long as the ledger has it.
    Inventory(Box<Inventory>),
    /// Counters of a virtual server.
    Sample {
        /// Whose.
        vm: DomainName,
        /// They.
        sample: Box<Sample>,
    },
    /// Other figures from now on; a transition under way goes on.
    Configure(Box<Policy>),
    /// A measurement of what a host draws.
    Power {
        /// Which.
        host: AgentId,
        /// Drawn.
        watts: Watts,
    },
    /// For the transition under way; and claims, at any time.
    Execute(Event),
    /// An earlier controller ended in the middle of this: go on with it. After the first inventory, before anything was
    /// begun.
    Resume {
        /// Its plan.
        plan: Box<Plan>,
        /// How far each step is, as the ledger has it.
        recorded: Vec<Recorded>,
    },
}

/// What is known of a group's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Its load; none: it can't be measured.
    pub load: Option<Load>,
    /// The class that its load is in by itself; none: it can't be measured.
    pub class: Option<Class>,
    /// What the judgement led to.
    pub judgement: Judgement,
}

/// What is remembered of a host between two inventories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    state: HostState,
    awake_since: Time,
    sleeps: Vec<Time>,
    /// It did not wake when told to.
    no_wake: Option<Time>,
    /// Since when it answers though it is asleep in the ledger.
    #[serde(default)]
    answers: Option<Time>,
}

/// What a transition is about.
#[derive(Default)]
struct Changes {
    groups: Vec<GroupName>,
    steps: Vec<Step>,
}

impl Changes {
    fn of(plan: &Plan) -> Self {
        Self { groups: plan.groups.keys().cloned().collect(), steps: plan.steps().cloned().collect() }
    }
}

/// Is something left to do of what was judged?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Left {
    /// No.
    #[default]
    Nothing,
    /// Planned as soon as the ledger shows what was done.
    Rest,
    /// Nothing of it could be done the last time: planned at the next judgement.
    All,
}

/// After plans that had to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Backoff {
    wait: Duration,
    until: Time,
}

/// Power saving of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pss {
    policy: Policy,
    inventory: Option<Inventory>,
    hosts: BTreeMap<AgentId, Seen>,
    meters: BTreeMap<DomainName, Meter>,
    judges: BTreeMap<GroupName, Judge>,
    wanted: BTreeMap<GroupName, Condition>,
    claims: BTreeSet<Claim>,
    executor: Executor,
    power: PowerMeter,
    next_round: Time,
    /// The ledger's revision that shows what was done last.
    shown: Revision,
    /// Absent in snapshots of before it was there.
    #[serde(default)]
    left: Left,
    backoff: Backoff,
    troubles: Troubles,
    judged: Report,
    planned: Report,
    last: BTreeMap<GroupName, Judged>,
    sights: BTreeMap<GroupName, Sight>,
}

impl Pss {
    /// One with this policy, which has no [`Policy::faults`]. Its first judgement is due at once.
    #[must_use]
    pub fn new(now: Time, policy: Policy) -> Self {
        Self {
            policy,
            inventory: None,
            hosts: BTreeMap::new(),
            meters: BTreeMap::new(),
            judges: BTreeMap::new(),
            wanted: BTreeMap::new(),
            claims: BTreeSet::new(),
            executor: Executor::default(),
            power: PowerMeter::default(),
            next_round: now,
            shown: Revision::default(),
            left: Left::Nothing,
            backoff: Backoff::default(),
            troubles: Troubles::default(),
            judged: Report::default(),
            planned: Report::default(),
            last: BTreeMap::new(),
            sights: BTreeMap::new(),
        }
    }

    /// Why nothing, or nothing more, was done at the last judgement.
    #[must_use]
    pub fn report(&self, now: Time) -> Report {
        let mut report = self.judged.clone();
        // A transition that has ended since is no reason any more.
        let ended = |reason: &&Reason| matches!(reason, Reason::Busy(_)) && self.executor.plan().is_none();
        for reason in self.planned.reasons.iter().filter(|reason| !ended(reason)) {
            report.add(reason.clone());
        }
        self.troubles.report(now, &mut report);
        report
    }

    /// What the last judgement of each group was made of.
    #[must_use]
    pub fn judged(&self) -> &BTreeMap<GroupName, Judged> {
        &self.last
    }

    /// The figures it goes by.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What there is, as it was told last.
    #[must_use]
    pub fn inventory(&self) -> Option<&Inventory> {
        self.inventory.as_ref()
    }

    /// What the hosts draw and have used.
    #[must_use]
    pub fn power(&self) -> &PowerMeter {
        &self.power
    }

    /// The transition under way.
    #[must_use]
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// When to send [`Input::Tick`] at the latest, and why.
    #[must_use]
    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let round = (self.next_round, "next judgement");
        Some(self.executor.deadline().filter(|(time, _)| *time < round.0).unwrap_or(round))
    }

    /// One input.
    pub fn step(&mut self, now: Time, input: Input, actions: &mut Vec<Action>) {
        match input {
            Input::Tick(wall) => {
                self.execute(now, Event::Tick, actions);
                if now >= self.next_round {
                    self.next_round = now + self.policy.interval;
                    match self.left {
                        Left::All => self.left = Left::Rest,
                        Left::Nothing | Left::Rest => {}
                    }
                    self.judge(now, wall, actions);
                    self.plan(now, actions);
                }
            }
            Input::Inventory(inventory) => {
                self.observe(now, *inventory, actions);
                match self.left {
                    Left::Rest => self.plan(now, actions),
                    Left::Nothing | Left::All => {}
                }
            }
            Input::Sample { vm, sample } => {
                let there = self.inventory.as_ref().and_then(|inventory| inventory.vms.get(&vm));
                if let Some(group) = there.and_then(|vm| vm.group.as_ref()) {
                    let rated = self.policy.group(group).rated;
                    self.meters.entry(vm).or_default().take(now, *sample, self.policy.fresh, rated);
                }
            }
            Input::Configure(policy) => self.policy = *policy,
            Input::Power { host, watts } => self.power.measured(now, &host, watts),
            Input::Execute(event) => {
                match &event {
                    Event::Claimed(claim) => {
                        self.claims.insert(claim.clone());
                    }
                    Event::Unclaimed(claim) => {
                        self.claims.remove(claim);
                    }
                    Event::Tick
                    | Event::Ended { .. }
                    | Event::Recorded { .. }
                    | Event::Refused { .. }
                    | Event::Cancel(_) => {}
                }
                self.execute(now, event, actions);
            }
            Input::Resume { plan, recorded } => {
                let Some(inventory) = self.inventory.as_ref().filter(|_| self.executor.plan().is_none()) else {
                    return;
                };
                let changes = Changes::of(&plan);
                // Judged so before it was begun; between the thresholds nothing else tells.
                for (name, (from, to)) in plan.groups.iter().filter(|(_, (from, to))| to > from) {
                    if inventory.groups.get(name).is_some_and(|group| group.condition == *from) {
                        self.judges.insert(name.clone(), Judge::new(*to));
                    }
                }
                if let Some(end) = self.executor.resume(now, *plan, &recorded, inventory, &self.policy, actions) {
                    self.ended(now, &end, &changes, actions);
                }
            }
        }
    }

    fn execute(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        let changes = self.executor.plan().map(Changes::of).unwrap_or_default();
        if let Some(end) = self.executor.step(now, event, &self.policy, actions) {
            self.ended(now, &end, &changes, actions);
        }
    }

    fn ended(&mut self, now: Time, end: &End, Changes { groups, steps }: &Changes, actions: &mut Vec<Action>) {
        self.shown = self.shown.max(end.revision.unwrap_or_default());
        for host in &end.no_wake {
            if let Some(seen) = self.hosts.get_mut(host) {
                seen.no_wake = Some(now);
            }
        }
        self.left = match (end.direction, end.outcome) {
            (Direction::Unfold, Outcome::Partial) if groups.is_empty() => Left::Nothing,
            (Direction::Unfold, Outcome::Partial) if end.done.is_empty() => Left::All,
            (Direction::Unfold, Outcome::Partial) => Left::Rest,
            (Direction::Fold | Direction::Unfold, Outcome::Complete | Outcome::Failed | Outcome::GivenUp)
            | (Direction::Fold, Outcome::Partial) => Left::Nothing,
        };
        self.backoff = match (end.direction, end.outcome) {
            (Direction::Fold, Outcome::Complete) => Backoff::default(),
            (Direction::Fold, Outcome::Failed) => {
                let wait = self.backoff.wait.saturating_mul(2).clamp(self.policy.backoff, self.policy.patience);
                Backoff { wait, until: now + wait }
            }
            // To put things in their places costs nobody anything if it waits.
            (Direction::Unfold, Outcome::Partial | Outcome::Failed) if groups.is_empty() => {
                let wait = self.backoff.wait.saturating_mul(2).clamp(self.policy.backoff, self.policy.patience);
                Backoff { wait, until: now + wait }
            }
            // Something was in its way, and may be so for a while; a plan that was only late is made again at once.
            (Direction::Fold, Outcome::GivenUp) if end.revision.is_some() => {
                Backoff { until: now + self.policy.backoff, ..self.backoff }
            }
            (Direction::Fold, Outcome::Partial | Outcome::GivenUp) | (Direction::Unfold, _) => self.backoff,
        };
        self.troubles.ended(now, end, steps, self.backoff.until, &self.policy, actions);
        if self.left == Left::Nothing {
            for group in groups {
                if let Some(judge) = self.judges.get_mut(group) {
                    judge.changed();
                }
                self.wanted.remove(group);
            }
        }
    }

    fn observe(&mut self, now: Time, inventory: Inventory, actions: &mut Vec<Action>) {
        for (name, host) in &inventory.hosts {
            let new = || Seen { state: host.state, awake_since: now, sleeps: Vec::new(), no_wake: None, answers: None };
            let seen = self.hosts.entry(name.clone()).or_insert_with(new);
            match (seen.state, host.state) {
                (HostState::Asleep | HostState::Lost, HostState::Awake) => {
                    (seen.awake_since, seen.no_wake) = (now, None);
                }
                (HostState::Awake | HostState::Lost, HostState::Asleep) => seen.sleeps.push(now),
                (HostState::Awake, HostState::Awake | HostState::Lost)
                | (HostState::Asleep, HostState::Asleep | HostState::Lost)
                | (HostState::Lost, HostState::Lost) => {}
            }
            seen.state = host.state;
            let odd = host.state == HostState::Asleep && host.answers;
            seen.answers = if odd { seen.answers.or(Some(now)) } else { None };
            seen.sleeps.retain(|at| now.since(*at) < plan::DAY);
        }
        self.hosts.retain(|name, _| inventory.hosts.contains_key(name));
        self.meters.retain(|name, _| inventory.vms.contains_key(name));
        self.judges.retain(|name, _| inventory.groups.contains_key(name));
        self.wanted.retain(|name, _| inventory.groups.contains_key(name));
        self.last.retain(|name, _| inventory.groups.contains_key(name));
        self.sights.retain(|name, _| inventory.groups.contains_key(name));
        self.power.observe(now, &inventory.hosts);
        // A claim may reach us through the ledger first.
        let known = self.inventory.as_ref().map(|before| before.claims.clone()).unwrap_or_default();
        let new: Vec<Claim> = inventory.claims.iter().filter(|claim| !known.contains(claim)).cloned().collect();
        self.executor.observe(now, &inventory);
        self.inventory = Some(inventory);
        for claim in new.into_iter().filter(|claim| !self.claims.contains(claim)).collect::<Vec<_>>() {
            self.execute(now, Event::Claimed(claim), actions);
        }
    }

    /// One judgement of each group.
    fn judge(&mut self, now: Time, wall: Wall, actions: &mut Vec<Action>) {
        let Some(inventory) = self.inventory.take() else { return };
        self.judged = Report::default();
        for (name, group) in &inventory.groups {
            let policy = self.policy.group(name);
            let load = self.load(now, &inventory, name, group, actions);
            // Halfway back it is not Light any more: what would suit that does not suit it.
            let from = inventory.judged_from(group);
            let judge = self.judges.entry(name.clone()).or_insert_with(|| Judge::new(from));
            let judgement = judge.round(from, load.as_ref(), &policy.thresholds, &policy.repeats);
            let class = load.map(|_| judge.class());
            if let (Judgement::Due { to }, Some(load)) = (judgement, load)
                && self.last.get(name).is_none_or(|last| last.judgement != judgement)
            {
                let (count, Load { memory, cpu, network }) = (policy.repeats.of(to), load);
                let text = format!(
                    "{name}: {to} load class, {count} judgements running; memory {memory}, CPU {cpu}, network {network}"
                );
                actions.push(Action::Note(Note { severity: Severity::Info, kind: Kind::Judged, text }));
            }
            self.last.insert(name.clone(), Judged { load, class, judgement });
            let mut wanted = match judgement {
                Judgement::Unmeasured => None,
                Judgement::Suits => Some(from),
                Judgement::Waiting { to, more } => {
                    let class: Class = to;
                    self.judged.add(Reason::Waiting { group: name.clone(), more, class });
                    Some(from)
                }
                Judgement::Due { to } => Some(to),
            };
            if self.policy.keeps_awake(name, wall) && wanted.unwrap_or(group.condition) == Condition::Light {
                self.judged.add(Reason::Hours(name.clone()));
                wanted = Some(Condition::Moderate);
            }
            self.fold_unwanted(now, name, wanted, actions);
            match wanted {
                Some(wanted) => self.wanted.insert(name.clone(), wanted),
                None => self.wanted.remove(name),
            };
        }
        self.inventory = Some(inventory);
    }

    /// Relief at once: capacity is not given up any further when it is wanted again.
    fn fold_unwanted(&mut self, now: Time, name: &GroupName, wanted: Option<Condition>, actions: &mut Vec<Action>) {
        let folds =
            self.executor.plan().is_some_and(|plan| plan.groups.get(name).is_some_and(|to| to.1 == Condition::Light));
        if let Some(wanted) = wanted.filter(|wanted| folds && *wanted > Condition::Light) {
            self.execute(now, Event::Cancel(format!("{name} is wanted in {wanted} condition")), actions);
        }
    }

    /// Begin what the last judgements want.
    fn plan(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.planned = Report::default();
        let Some(inventory) = self.inventory.as_ref().map(|inventory| self.complete(now, inventory)) else { return };
        if let Some(plan) = self.executor.plan() {
            let to = match plan.direction {
                Direction::Fold => Condition::Light,
                Direction::Unfold => Condition::Moderate,
            };
            self.planned.add(Reason::Busy(to));
            return;
        }
        if inventory.generation < self.shown {
            self.planned.add(Reason::Behind);
            return;
        }
        self.left = Left::Nothing;
        let (plan, report) = plan::plan(&inventory, &self.policy);
        self.planned = report;
        self.troubles.obstacles(now, &self.planned, actions);
        if plan.is_empty() {
            return;
        }
        if (plan.direction == Direction::Fold || plan.groups.is_empty()) && now < self.backoff.until {
            self.planned.add(Reason::Backoff(self.backoff.until.since(now)));
            return;
        }
        if plan.direction == Direction::Unfold && self.troubles.hold(now, &plan) {
            return;
        }
        if let Err(why) = self.executor.begin(now, plan, &inventory, &self.policy, actions) {
            self.planned.add(Reason::NotBegun(why));
        }
    }

    /// With what only we know.
    fn complete(&self, now: Time, inventory: &Inventory) -> Inventory {
        let mut inventory = inventory.clone();
        inventory.now = now;
        inventory.claims.extend(self.claims.iter().cloned());
        for (name, host) in &mut inventory.hosts {
            let Some(seen) = self.hosts.get(name) else { continue };
            host.awake_since = seen.awake_since;
            host.sleeps = seen.sleeps.clone();
            // A host that has just been told to sleep answers for a moment.
            host.woke = seen.answers.is_some_and(|since| now.since(since) >= self.policy.fresh);
            host.slept_on = seen.no_wake.is_some();
            if seen.no_wake.is_some_and(|at| now.since(at) < self.policy.patience) {
                host.wake = WakePath::Failed;
            }
        }
        for (name, vm) in &mut inventory.vms {
            vm.usage = self.usage(now, name);
        }
        for (name, group) in &mut inventory.groups {
            group.wanted = self.wanted.get(name).copied().unwrap_or(group.condition);
        }
        inventory
    }
}
