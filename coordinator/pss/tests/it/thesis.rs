//! Chapter 4's experiment through the whole core: samples in, the log of fig. 4.10 out.

use crate::support::{at, group, holds, host, policy, show, thesis, vm};
use kage_pss_core::{
    Input, Pss,
    class::Condition,
    execute::{Action, Event, JobResult, Signal},
    inventory::{Claim, Inventory},
    load::{CpuCounter, Sample},
    plan::Step,
    policy::{Day, Hours, Policy, Wall},
    units::{Bytes, BytesPerSecond},
};
use kage_types::{DomainName, Revision, Time};
use std::collections::BTreeMap;

/// The cluster, its ledger and its agents, around the core.
pub struct Night {
    pub pss: Pss,
    pub truth: Inventory,
    pub now: Time,
    wall: Wall,
    /// CPU time used, ns, and the present load in percent, by group.
    used: BTreeMap<DomainName, u64>,
    loads: BTreeMap<String, u64>,
    dead: Vec<DomainName>,
    pub log: Vec<String>,
    sleeps: usize,
    no_wake: bool,
    /// These are not done, and why.
    pub broken: Vec<(Step, &'static str)>,
    /// rs3 does not go to sleep.
    no_sleep: bool,
    /// Live migrations do not end until they are let.
    slow: bool,
    held: Vec<Input>,
    /// The ledger's changes are not pushed.
    lag: bool,
    /// The ledger takes no step's intent.
    refuses: bool,
}

impl Night {
    pub fn new(policy: Policy) -> Self {
        let mut truth = thesis();
        truth.now = at(1000);
        let mut night = Self {
            pss: Pss::new(at(1000), policy),
            truth: truth.clone(),
            now: at(1000),
            wall: Wall { day: Day::Monday, minute: 0 },
            used: BTreeMap::new(),
            loads: ["mail", "web", "ftp"].map(|name| (name.to_owned(), 40)).into(),
            dead: Vec::new(),
            log: Vec::new(),
            sleeps: 0,
            no_wake: false,
            broken: Vec::new(),
            no_sleep: false,
            slow: false,
            held: Vec::new(),
            lag: false,
            refuses: false,
        };
        night.input(Input::Inventory(Box::new(truth)));
        night
    }

    pub fn load(&mut self, of: &str, percent: u64) {
        self.loads.insert(of.to_owned(), percent);
    }

    pub fn all(&mut self, percent: u64) {
        for of in ["mail", "web", "ftp"] {
            self.load(of, percent);
        }
    }

    pub fn input(&mut self, input: Input) {
        let mut queue = vec![input];
        let mut steps = 0;
        while !queue.is_empty() {
            steps += 1;
            assert!(steps < 10_000, "round and round: {:?}", self.log.iter().rev().take(10).collect::<Vec<_>>());
            let mut actions = Vec::new();
            let input = queue.remove(0);
            self.pss.step(self.now, input, &mut actions);
            for action in actions {
                queue.extend(self.answer(action));
            }
        }
    }

    fn ledger(&mut self) -> Vec<Input> {
        self.truth.generation = self.truth.generation.next();
        if self.lag { Vec::new() } else { vec![Input::Inventory(Box::new(self.truth.clone()))] }
    }

    fn answer(&mut self, action: Action) -> Vec<Input> {
        match action {
            Action::Signal { id, signal: Signal::StepBegun { .. } } if self.refuses => {
                vec![Input::Execute(Event::Refused { id, why: "not as planned".into() })]
            }
            Action::Signal { id, signal } => {
                if let Signal::Committed { conditions, .. } | Signal::RolledBack { conditions, .. } = signal {
                    for (name, condition) in conditions {
                        self.truth.groups.get_mut(&name).expect("it is there").condition = condition;
                    }
                }
                let shown = self.ledger();
                let revision: Revision = self.truth.generation;
                let recorded = Input::Execute(Event::Recorded { id, revision });
                [recorded].into_iter().chain(shown).collect()
            }
            Action::Do { job, step, .. } => {
                if let Step::SuspendHost { host } = &step {
                    self.sleeps += 1;
                    for vm in self.truth.vms.values().filter(|vm| vm.host == *host) {
                        assert!(vm.vips.is_empty(), "a host sleeps with something in service");
                    }
                }
                if self.slow && matches!(step, Step::Migrate { .. }) {
                    let ended = Input::Execute(Event::Ended { job, result: JobResult::Done });
                    self.truth.apply(&step);
                    self.held.push(ended);
                    return Vec::new();
                }
                if let Some((_, why)) = self.broken.iter().find(|(broken, _)| *broken == step) {
                    return vec![Input::Execute(Event::Ended { job, result: JobResult::Failed((*why).into()) })];
                }
                if self.no_sleep && step == (Step::SuspendHost { host: host("rs3") }) {
                    let result = JobResult::Failed("the kernel refused".into());
                    return vec![Input::Execute(Event::Ended { job, result })];
                }
                let result = if self.no_wake && step == (Step::WakeHost { host: host("rs2") }) {
                    JobResult::Failed("no packet came through".into())
                } else {
                    self.truth.apply(&step);
                    self.log.push(step.to_string());
                    JobResult::Done
                };
                let ended = Input::Execute(Event::Ended { job, result });
                self.ledger().into_iter().chain([ended]).collect()
            }
            Action::Look { job, step, .. } => {
                let so = holds(&self.truth, &step);
                let result = if so { JobResult::Done } else { JobResult::Failed("not so".into()) };
                vec![Input::Execute(Event::Ended { job, result })]
            }
            Action::Note(_) => {
                self.log.push(show(&action));
                Vec::new()
            }
            Action::Abort { .. } | Action::Yield(_) => Vec::new(),
        }
    }

    /// One second: every running virtual server counts, those that serve share their group's load.
    fn second(&mut self) {
        self.now = self.now + std::time::Duration::from_secs(1);
        let vms: Vec<(DomainName, kage_pss_core::inventory::Vm)> =
            self.truth.vms.iter().map(|(name, vm)| (name.clone(), vm.clone())).collect();
        for (name, there) in vms {
            let name_of = there.group.clone().expect("it is there");
            let all: usize = self.truth.vms.values().filter(|vm| vm.group == there.group).map(|vm| vm.vips.len()).sum();
            let share = self.loads[name_of.as_str()] * 2 * there.vips.len() as u64 / all.max(1) as u64;
            *self.used.entry(name.clone()).or_default() += share.min(100) * 10_000_000;
            let asleep = holds(&self.truth, &Step::SuspendHost { host: there.host.clone() });
            if asleep || self.dead.contains(&name) {
                continue;
            }
            let sample = Sample {
                source: there.host.clone(),
                stream: 1,
                at: self.now,
                cpu: CpuCounter::DomainNanos(self.used[&name]),
                cores: 1,
                memory_used: Bytes::mib(500),
                memory_max: Bytes::gib(2),
                received: Bytes(0),
                sent: Bytes(0),
                rated: Some(BytesPerSecond::rated(1000)),
            };
            self.input(Input::Sample { vm: name, sample: Box::new(sample) });
        }
        while self.pss.deadline().is_some_and(|(time, _)| time <= self.now) {
            self.input(Input::Tick(self.wall));
        }
    }

    pub fn seconds(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.second();
        }
    }

    pub fn conditions(&self) -> Vec<Condition> {
        self.truth.groups.values().map(|group| group.condition).collect()
    }

    pub fn report(&self) -> String {
        self.pss.report(self.now).to_string()
    }
}

/// The thesis has no least time awake.
pub fn chapter_4() -> Policy {
    Policy { awake_for: std::time::Duration::ZERO, ..policy() }
}

#[test]
fn six_light_judgements_fold_and_three_moderate_ones_unfold() {
    let mut night = Night::new(chapter_4());
    night.seconds(60);
    assert!(night.log.is_empty());
    night.all(10);
    // Judgements are 10 s apart; the first below the threshold is within 10 s.
    night.seconds(50);
    assert!(night.log.is_empty());
    assert!(night.report().contains("waiting for 1 more Light judgement"), "{}", night.report());
    night.seconds(10);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    let steps: Vec<&str> = night.log.iter().map(String::as_str).filter(|line| !line.contains(": done")).collect();
    assert_eq!(
        steps,
        [
            "Info Judged: ftp: Light load class, 6 judgements running; memory 24.41 %, CPU 10.00 %, network 0.00 %",
            "Info Judged: mail: Light load class, 6 judgements running; memory 24.41 %, CPU 10.00 %, network 0.00 %",
            "Info Judged: web: Light load class, 6 judgements running; memory 24.41 %, CPU 10.00 %, network 0.00 %",
            "Info Begun: transition begun (9 steps): ftp Moderate -> Light, mail Moderate -> Light, web Moderate -> Light; saves 170.0 W (modelled), migrates 2048 MiB",
            "virtual IP 172.21.14.106: ftp2 -> ftp1",
            "virtual IP 172.21.14.104: mail2 -> mail1",
            "virtual IP 172.21.14.105: web2 -> web1",
            "Info StepBegun: begun: live migration of ftp1: rs2 -> rs1",
            "live migration of ftp1: rs2 -> rs1",
            "suspend mail2 on rs2",
            "suspend web2 on rs3",
            "suspend ftp2 on rs3",
            "Info StepBegun: begun: suspend host rs2",
            "suspend host rs2",
            "Info StepBegun: begun: suspend host rs3",
            "suspend host rs3",
            "Info Committed: transition done: ftp Moderate -> Light, mail Moderate -> Light, web Moderate -> Light",
        ]
    );
    assert_eq!(night.pss.power().draw(night.now).watts.to_string(), "93.0 W");
    night.log.clear();
    night.seconds(300);
    assert!(night.log.is_empty(), "Light stays Light: {:?}", night.log);
    night.all(45);
    night.seconds(20);
    assert!(night.log.is_empty());
    assert!(night.report().contains("waiting for 1 more Moderate judgement"), "{}", night.report());
    night.seconds(10);
    assert_eq!(night.conditions(), [Condition::Moderate; 3]);
    assert_eq!(night.truth.vms, thesis().vms);
    assert_eq!(night.pss.power().draw(night.now).watts.to_string(), "263.0 W");
    assert_eq!(night.sleeps, 2);
}

#[test]
fn a_member_that_can_not_be_measured_holds_its_group() {
    // Fig. 4.11: FTP can't be judged while FTP1 is down.
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.dead.push(vm("ftp1"));
    night.seconds(300);
    assert!(night.report().contains("ftp can't be judged: ftp1 can't be measured"), "{}", night.report());
    assert_eq!(night.conditions(), [Condition::Moderate; 3]);
    assert!(!night.log.iter().any(|line| line.contains("measured")), "it never was: {:?}", night.log);
    night.dead.clear();
    night.seconds(80);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    // One that was measured before: said once, and when it is again.
    let mut night = Night::new(chapter_4());
    night.seconds(60);
    night.dead.push(vm("ftp1"));
    night.seconds(300);
    night.dead.clear();
    night.seconds(60);
    assert_eq!(
        night.log,
        [
            "Warning Unmeasured: ftp1 can't be measured: ftp can't be judged",
            "Info Measured: ftp is measured again, all of it",
        ]
    );
    // Shut off, and it still holds its virtual IP: the other's load is not the group's.
    let mut night = Night::new(chapter_4());
    night.seconds(60);
    night.truth.vms.get_mut(&vm("ftp1")).expect("it is there").state = kage_pss_core::inventory::VmState::Stopped;
    night.input(Input::Inventory(Box::new(night.truth.clone())));
    night.all(10);
    night.seconds(100);
    assert!(night.report().contains("ftp can't be judged: ftp1 can't be measured"), "{}", night.report());
}

#[test]
fn hours_bring_capacity_back_and_keep_it() {
    let office = Hours { days: Vec::new(), from: 8 * 60, to: 18 * 60 };
    let mut night = Night::new(Policy { awake: vec![office], ..chapter_4() });
    night.all(5);
    night.seconds(100);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    night.wall.minute = 8 * 60;
    night.seconds(10);
    assert_eq!(night.conditions(), [Condition::Moderate; 3], "at once, not after repeats");
    night.seconds(300);
    assert_eq!(night.conditions(), [Condition::Moderate; 3]);
    assert!(night.report().contains("web keeps its members in these hours"), "{}", night.report());
    night.wall.minute = 18 * 60;
    night.seconds(20);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
}

#[test]
fn a_claim_before_the_plan_keeps_its_group_and_after_it_all_goes_on() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    let claim = Claim::Vm(vm("web1"));
    night.input(Input::Execute(Event::Claimed(claim.clone())));
    night.seconds(100);
    assert_eq!(night.truth.groups[&group("web")].condition, Condition::Moderate);
    assert_eq!(night.truth.groups[&group("mail")].condition, Condition::Light, "rs2 sleeps for mail and ftp");
    night.input(Input::Execute(Event::Unclaimed(claim)));
    night.seconds(20);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
}

#[test]
fn a_host_that_does_not_wake_is_left_out_and_tried_again_later() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.seconds(100);
    night.no_wake = true;
    night.all(45);
    night.seconds(60);
    assert!(night.log.iter().any(|line| line.contains("Alert NoWake: rs2")), "{:?}", night.log);
    let condition = |night: &Night, name: &str| night.truth.groups[&group(name)].condition;
    assert_eq!(condition(&night, "web"), Condition::Moderate, "{:?}", night.log);
    assert_eq!(condition(&night, "mail"), Condition::Light);
    assert!(night.report().contains("rs2 does not wake"), "{}", night.report());
    let alerts = |night: &Night| night.log.iter().filter(|line| line.contains("Alert NoWake")).count();
    let tries = |night: &Night| night.log.iter().filter(|line| line.contains("wake host rs2 failed")).count();
    night.seconds(3600);
    assert!(tries(&night) > 1, "it is tried again: {:?}", night.log);
    assert_eq!(alerts(&night), 1, "told once");
    night.no_wake = false;
    night.seconds(3600);
    assert_eq!(night.conditions(), [Condition::Moderate; 3]);
}

#[test]
fn a_day_of_load_does_not_flap() {
    // An hour in ten minutes: night, morning, a noon with gusts, evening, night.
    let mut night = Night::new(Policy { sleeps_a_day: 3, ..chapter_4() });
    let mut overloaded = 0;
    for minute in 0..240u64 {
        let curve = match minute {
            0..=60 => 5,
            61..=90 => 5 + (minute - 60),
            91..=150 => 40 + minute % 7 * 4,
            151..=180 => 40 - (minute - 150),
            _ => 6,
        };
        night.all(curve);
        night.seconds(60);
        overloaded += u64::from(night.conditions() == [Condition::Light; 3] && curve > 45) * 60;
    }
    assert_eq!(night.sleeps, 4, "two hosts, two nights");
    assert!(overloaded <= 60, "{overloaded} s");
    let used = night.pss.power().used(night.now);
    assert!(used.saved.watt_hours() > 200, "{} saved, {} used", used.saved, used.energy);
}

pub fn begun(night: &Night) -> usize {
    night.log.iter().filter(|line| line.contains("Info Begun")).count()
}

#[test]
fn load_that_rises_during_a_fold_undoes_it() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.slow = true;
    night.seconds(70);
    assert_eq!((begun(&night), night.held.len()), (1, 1), "ftp1 is on its way");
    night.all(45);
    night.seconds(10);
    night.slow = false;
    for ended in std::mem::take(&mut night.held) {
        night.input(ended);
    }
    assert_eq!(night.truth.vms, thesis().vms, "{:?}", night.log);
    assert_eq!((night.conditions(), night.sleeps), (vec![Condition::Moderate; 3], 0));
    assert!(night.log.last().is_some_and(|line| line.contains("is wanted in Moderate condition")), "{:?}", night.log);
}

#[test]
fn what_had_to_be_undone_is_tried_again_later_and_later() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.no_sleep = true;
    night.seconds(250);
    assert_eq!(begun(&night), 1);
    assert!(night.report().contains("the last plan had to be undone: next try in"), "{}", night.report());
    assert_eq!(night.truth.vms, thesis().vms);
    night.seconds(150);
    assert_eq!(begun(&night), 2, "after five minutes");
    night.seconds(550);
    assert_eq!(begun(&night), 2);
    night.no_sleep = false;
    night.seconds(100);
    assert_eq!((begun(&night), night.conditions()), (3, vec![Condition::Light; 3]), "after ten more");
}

#[test]
fn nothing_is_planned_of_what_the_ledger_has_not_shown_yet() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.lag = true;
    night.seconds(300);
    assert_eq!(begun(&night), 1);
    assert!(night.report().contains("waiting for the ledger to show"), "{}", night.report());
}

#[test]
fn a_way_up_of_which_nothing_can_be_begun_is_planned_anew_at_the_next_judgement_only() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.seconds(100);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    night.refuses = true;
    night.all(45);
    let before = begun(&night);
    night.seconds(60);
    assert!((before + 1..=before + 7).contains(&begun(&night)), "{}", begun(&night) - before);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    night.refuses = false;
    night.seconds(20);
    assert_eq!(night.conditions(), [Condition::Moderate; 3]);
}
