//! A virtual server whose live migration ended unseen is looked for until it is found, and left alone until then.

use crate::support::{at, group, host, policy, steps, thesis, vm, want};
use kage_pss_core::{
    Input, Pss,
    class::Condition,
    execute::{Action, Event, JobId, JobResult, Kind, Signal},
    inventory::{Doubt, Inventory},
    plan::plan,
};
use kage_types::{Revision, Step};
use std::time::Duration;

/// ftp1 may be on rs3, too.
fn doubted() -> Inventory {
    let mut inventory = thesis();
    want(&mut inventory, Condition::Moderate);
    inventory.hosts.values_mut().for_each(|host| host.answers = true);
    inventory.doubts.insert(vm("ftp1"), Doubt { host: host("rs2"), others: [host("rs3")].into() });
    inventory
}

struct Seeker {
    pss: Pss,
    now: u64,
    actions: Vec<Action>,
}

impl Seeker {
    fn new(inventory: Inventory) -> Self {
        let policy = kage_pss_core::policy::Policy { interval: Duration::from_secs(10), ..policy() };
        let mut seeker = Self { pss: Pss::new(at(10_000), policy), now: 10_000, actions: Vec::new() };
        seeker.input(Input::Inventory(Box::new(inventory)));
        seeker
    }

    fn input(&mut self, input: Input) {
        self.pss.step(at(self.now), input, &mut self.actions);
    }

    fn tick(&mut self) {
        self.input(Input::Execute(Event::Tick));
    }

    fn look(&mut self) -> Option<(JobId, String)> {
        let mut found = None;
        for action in self.actions.drain(..) {
            if let Action::Look { job, step, .. } = action {
                found = found.or(Some((job, step.to_string())));
            }
        }
        found
    }

    fn answer(&mut self, job: JobId, so: bool) {
        let result = if so { JobResult::Done } else { JobResult::Failed("not so".into()) };
        self.input(Input::Execute(Event::Ended { job, result }));
    }
}

#[test]
fn it_is_looked_for_either_way_round_until_it_is_found_and_told_until_that_is_known() {
    let mut seeker = Seeker::new(doubted());
    seeker.tick();
    for round in 0..3 {
        let (job, what) = seeker.look().expect("a look");
        assert_eq!(what, "live migration of ftp1: rs2 -> rs3", "round {round}");
        seeker.answer(job, false);
        let (job, what) = seeker.look().expect("the other way round");
        assert_eq!(what, "live migration of ftp1: rs3 -> rs2");
        // Nobody answers, in the second round.
        if round == 1 {
            seeker.now += 4;
            seeker.tick();
        } else {
            seeker.answer(job, false);
        }
        assert_eq!(seeker.look(), None, "not again at once");
        assert!(seeker.pss.deadline().is_some_and(|(due, _)| due <= at(seeker.now + 10)));
        seeker.now += 10;
        seeker.tick();
    }
    let (job, _) = seeker.look().expect("a look");
    seeker.answer(job, true);
    let told = |actions: &[Action]| match actions {
        [Action::Signal { id, signal }] => Some((*id, signal.clone())),
        _ => None,
    };
    let (id, signal) = told(&seeker.actions).expect("the ledger is told");
    assert_eq!(signal, Signal::Found { vm: vm("ftp1"), host: host("rs3"), not_on: [host("rs2")].into() });
    seeker.actions.clear();
    seeker.now += 2;
    seeker.tick();
    assert_eq!(told(&seeker.actions), Some((id, signal)), "without an answer, again");
    seeker.actions.clear();
    seeker.input(Input::Execute(Event::Recorded { id, revision: Revision(9) }));
    assert!(
        matches!(seeker.actions.as_slice(), [Action::Note(note)] if note.kind == Kind::Found),
        "{:?}",
        seeker.actions
    );
    seeker.actions.clear();
    seeker.input(Input::Inventory(Box::new(Inventory { doubts: [].into(), ..doubted() })));
    seeker.now += 60;
    seeker.tick();
    assert_eq!(seeker.look(), None);
}

#[test]
fn a_host_that_does_not_answer_is_not_asked() {
    let mut inventory = doubted();
    inventory.hosts.get_mut(&host("rs3")).unwrap().answers = false;
    let mut seeker = Seeker::new(inventory);
    seeker.tick();
    assert_eq!(seeker.look(), None);
    seeker.input(Input::Inventory(Box::new(doubted())));
    seeker.now += 10;
    seeker.tick();
    assert!(seeker.look().is_some());
}

#[test]
fn its_group_and_both_hosts_stay_as_they_are() {
    let mut inventory = doubted();
    want(&mut inventory, Condition::Light);
    let (fold, report) = plan(&inventory, &policy());
    assert_eq!(steps(&fold), Vec::<String>::new());
    let report = report.to_string();
    for why in [
        "ftp stays: ftp1 is looked for, as its live migration ended unseen",
        "rs2 stays awake: ftp1 may be there, whose live migration ended unseen",
        "rs3 stays awake: ftp1 may be there",
    ] {
        assert!(report.contains(why), "{report}");
    }
    // On the way up, the others are brought back.
    let mut light = crate::support::light();
    want(&mut light, Condition::Moderate);
    let (before, _) = plan(&light, &policy());
    let moved = vm("ftp1");
    assert!(
        before.steps().any(|step| matches!(step, Step::Migrate { vm, .. } if *vm == moved)),
        "{:?}",
        steps(&before)
    );
    light.doubts.insert(moved.clone(), Doubt { host: host("rs1"), others: [host("rs2")].into() });
    let (unfold, report) = plan(&light, &policy());
    assert!(
        !unfold.steps().any(|step| matches!(step, Step::Migrate { vm, .. } if *vm == moved)),
        "{:?}",
        steps(&unfold)
    );
    assert!(!unfold.groups.contains_key(&group("ftp")) && unfold.groups.contains_key(&group("mail")));
    assert!(report.to_string().contains("ftp stays: ftp1 is looked for"), "{report}");
}
