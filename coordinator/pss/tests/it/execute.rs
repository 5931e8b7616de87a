//! Transitions: exact actions, every failure, claims, the ledger's silence.

use crate::support::{Lab, Wrong, after, at, group, holds, host, light, policy, secs, show, thesis, vip, vm, want};
use kage_pss_core::{
    class::Condition,
    execute::{Action, Event, Executor, JobId, JobResult, NotBegun, Outcome, Signal, SignalId},
    inventory::{Claim, Inventory},
    plan::{Plan, Step, plan},
};
use kage_types::{Revision, Time};

fn fold() -> (Inventory, Plan) {
    let inventory = thesis();
    let (plan, _) = plan(&inventory, &policy());
    (inventory, plan)
}

fn unfold() -> (Inventory, Plan) {
    let mut inventory = light();
    want(&mut inventory, Condition::Moderate);
    let (plan, _) = plan(&inventory, &policy());
    (inventory, plan)
}

fn lab((inventory, plan): (Inventory, Plan), wrong: &[(Step, Wrong)]) -> Lab {
    let mut lab = Lab::new(inventory, policy());
    lab.wrong = wrong.to_vec();
    lab.begin(&plan).expect("it is there");
    lab
}

/// One migration and nothing else, to see every action.
fn small() -> (Inventory, Plan) {
    let (inventory, mut plan) = fold();
    plan.steps.retain(|planned| planned.step.to_string().starts_with("live"));
    plan.steps[0].needs.clear();
    (inventory, plan)
}

#[test]
fn nothing_is_done_before_the_ledger_has_it() {
    let (inventory, plan) = small();
    let (policy, mut actions) = (policy(), Vec::new());
    let mut executor = Executor::default();
    executor.begin(at(0), plan, &inventory, &policy, &mut actions).expect("it is there");
    let mut log = Vec::new();
    let mut step = |executor: &mut Executor, now: Time, event: Event| {
        let end = executor.step(now, event, &policy, &mut actions);
        log.extend(actions.drain(..).filter(|action| !matches!(action, Action::Note(_))).map(|action| show(&action)));
        log.push(format!("-- {now}"));
        end
    };
    let recorded = |id| Event::Recorded { id: SignalId(id), revision: Revision(10 + id) };
    assert_eq!(step(&mut executor, at(1), Event::Tick), None);
    assert_eq!(executor.deadline(), Some((at(2), "signal to the ledger again")));
    step(&mut executor, at(2), Event::Tick);
    step(&mut executor, at(3), recorded(1));
    step(&mut executor, at(3), recorded(1));
    step(&mut executor, at(4), recorded(2));
    assert_eq!(executor.deadline(), Some((at(306), "a job's time-out")));
    step(&mut executor, at(9), Event::Ended { job: JobId(1), result: JobResult::Done });
    step(&mut executor, at(9), Event::Ended { job: JobId(1), result: JobResult::Failed("twice".into()) });
    step(&mut executor, at(10), Event::Ended { job: JobId(2), result: JobResult::Done });
    step(&mut executor, at(11), recorded(3));
    let end = step(&mut executor, at(12), recorded(4)).expect("it is there");
    assert_eq!((end.outcome, end.revision), (Outcome::Complete, Some(Revision(14))));
    assert_eq!((executor.deadline(), executor.plan()), (None, None));
    assert_eq!(
        log,
        [
            "signal 1: transition begun, 1 steps",
            "-- 1.000",
            "signal 1: transition begun, 1 steps",
            "-- 2.000",
            "signal 2: step 0 begun",
            "-- 3.000",
            "-- 3.000",
            "job 1: live migration of ftp1: rs2 -> rs1, None None, within 300s",
            "-- 4.000",
            "job 2: look for live migration of ftp1: rs2 -> rs1, within 300s",
            "-- 9.000",
            "-- 9.000",
            "signal 3: step 0 done",
            "-- 10.000",
            "signal 4: committed {ftp: (Light), mail: (Light), web: (Light)}, missing {}"
                .replace("(Light)", "Light")
                .as_str(),
            "-- 11.000",
            "-- 12.000",
        ]
    );
}

#[test]
fn the_thesis_there_and_back() {
    let mut there = lab(fold(), &[]);
    there.run();
    assert_eq!(there.end.as_ref().expect("it is there").outcome, Outcome::Complete);
    assert_eq!(Inventory { generation: light().generation, ..there.truth.clone() }, light());
    let mut back = lab(unfold(), &[]);
    back.run();
    assert_eq!(back.end.as_ref().expect("it is there").outcome, Outcome::Complete);
    assert_eq!(back.truth.hosts, thesis().hosts);
    assert_eq!(back.truth.vms, thesis().vms);
    // VIPs side by side, then the migration; hosts woken side by side.
    let first = there.actions.iter().filter_map(|action| {
        if let Action::Signal { signal: Signal::StepBegun { index, .. }, .. } = action { Some(*index) } else { None }
    });
    assert_eq!(first.take(3).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(
        back.done()[..2],
        ["wake host rs2, packet 1, within 4.726666666s", "wake host rs3, packet 1, within 4.726666666s"]
    );
}

#[test]
fn any_step_that_fails_undoes_all() {
    let (inventory, plan) = fold();
    for step in plan.steps() {
        for wrong in [Wrong::Fails, Wrong::Nothing] {
            let mut lab = lab(fold(), &[(step.clone(), wrong)]);
            lab.run();
            assert_eq!(lab.end.as_ref().expect("it is there").outcome, Outcome::Failed, "{step} {wrong:?}");
            assert_eq!(lab.truth, inventory, "{step} {wrong:?}: {:?}", lab.lines());
        }
        for wrong in [Wrong::Lies, Wrong::Silent] {
            let mut lab = lab(fold(), &[(step.clone(), wrong)]);
            lab.run();
            assert_eq!(
                lab.end.as_ref().expect("it is there").outcome,
                Outcome::Complete,
                "{step} {wrong:?}: it was done"
            );
        }
    }
}

#[test]
fn what_is_undone_is_undone_in_reverse() {
    let last = Step::SuspendHost { host: host("rs3") };
    let mut lab = lab(fold(), &[(last, Wrong::Fails)]);
    lab.run();
    let done = lab.done();
    assert_eq!(done[8], "suspend host rs3, alarm after 43200s, within 30s");
    let undone: Vec<&str> = done.iter().skip(9).map(String::as_str).collect();
    assert_eq!(
        undone,
        [
            "wake host rs2, packet 1, within 4.726666666s",
            "resume web2 on rs3, within 15s",
            "resume ftp2 on rs3, within 15s",
            "resume mail2 on rs2, within 15s",
            "virtual IP 172.21.14.105: web1 -> web2, within 30s",
            "live migration of ftp1: rs1 -> rs2, None None, within 300s",
            "virtual IP 172.21.14.104: mail1 -> mail2, within 30s",
            "virtual IP 172.21.14.106: ftp1 -> ftp2, within 30s",
        ]
    );
    assert!(lab.notes().last().expect("it is there").contains("transition undone: suspend host rs3: broken"));
}

#[test]
fn what_can_not_be_undone_is_said_and_nothing_hangs_in_the_air() {
    // rs3 does not go to sleep; rs2 does, and does not wake again.
    let wrong =
        [(Step::SuspendHost { host: host("rs3") }, Wrong::Fails), (Step::WakeHost { host: host("rs2") }, Wrong::Fails)];
    let mut lab = lab(fold(), &wrong);
    lab.run();
    let end = lab.end.clone().expect("it is there");
    assert_eq!((end.outcome, end.no_wake.len()), (Outcome::Failed, 1));
    let held = |name: &str| lab.truth.vms[&vm(name)].vips.len();
    assert_eq!((held("mail1"), held("mail2")), (2, 0), "mail2 sleeps with rs2: mail1 keeps its address");
    assert_eq!((held("web1"), held("web2")), (1, 1), "what does not hang on rs2 is back");
    assert_eq!((held("ftp1"), held("ftp2")), (2, 0), "ftp1 can't go back to rs2, and serves where it is");
    let condition = |name: &str| lab.truth.groups[&group(name)].condition;
    assert_eq!(
        [condition("web"), condition("mail"), condition("ftp")],
        [Condition::Moderate, Condition::Light, Condition::Light]
    );
    assert!(lab.notes().iter().any(|note| note.contains("Alert Stuck: wake host rs2")), "{:?}", lab.notes());
}

#[test]
fn a_wake_is_tried_three_times_and_noticed_within_twice_the_usual() {
    let wake = Step::WakeHost { host: host("rs3") };
    for wrong in [Wrong::Fails, Wrong::Nothing] {
        let mut lab = lab(unfold(), &[(wake.clone(), wrong)]);
        let begun = lab.now;
        let mut noticed = None;
        while lab.end.is_none() && lab.once() {
            if noticed.is_none() && lab.notes().iter().any(|note| note.contains("Alert NoWake: rs3")) {
                noticed = Some(lab.now.since(begun));
            }
        }
        let packets = lab.done().iter().filter(|line| line.starts_with("wake host rs3")).count();
        assert_eq!(packets, 3);
        // Each job's end may itself come late by the grace of two seconds.
        let late = if wrong == Wrong::Nothing { secs(6) } else { secs(0) };
        assert!(noticed.expect("it is there") <= secs(2 * 8) + secs(1) + late, "{noticed:?}");
        assert_eq!(lab.end.as_ref().expect("it is there").outcome, Outcome::Partial);
        assert_eq!(lab.truth.vms[&vm("mail2")].vips.len(), 1, "mail is back all the same");
        assert_eq!(lab.truth.vms[&vm("ftp1")].host, host("rs1"), "ftp1 still serves for ftp2 and stays");
        let condition = |name: &str| lab.truth.groups[&group(name)].condition;
        assert_eq!(condition("mail"), Condition::Moderate);
        assert_eq!((condition("ftp"), condition("web")), (Condition::Light, Condition::Light));
    }
}

#[test]
fn relief_goes_on_around_any_failure_and_every_address_has_one_holder() {
    let (_, plan) = unfold();
    for step in plan.steps() {
        for wrong in [Wrong::Fails, Wrong::Nothing] {
            let mut lab = lab(unfold(), &[(step.clone(), wrong)]);
            lab.run();
            assert_eq!(lab.end.as_ref().expect("it is there").outcome, Outcome::Partial, "{step}");
            for last in 101..=106 {
                let holders = lab.truth.vms.values().filter(|vm| vm.vips.contains(&vip(last))).count();
                assert_eq!(holders, 1, "{step}: 172.21.14.{last}");
            }
            let others = plan.steps().filter(|other| holds(&lab.truth, other)).count();
            assert!(others >= 3, "{step}: {:?}", lab.lines());
        }
    }
}

#[test]
fn a_claim_is_yielded_at_every_moment_and_the_rest_is_brought_back() {
    let claims = [
        Claim::Vm(vm("mail1")),
        Claim::Vm(vm("ftp1")),
        Claim::Host(host("rs1")),
        Claim::Host(host("rs2")),
        Claim::Vip(vip(105)),
    ];
    for claim in claims {
        for moment in 0..200 {
            let mut lab = lab(fold(), &[]);
            for _ in 0..moment {
                if lab.end.is_some() {
                    break;
                }
                lab.once();
            }
            if lab.end.is_some() {
                break;
            }
            let before = lab.actions.len();
            lab.event(Event::Claimed(claim.clone()));
            lab.run();
            let since = &lab.actions[before..];
            assert!(since.contains(&Action::Yield(claim.clone())), "{claim} at {moment} is not yielded");
            // Where a live migration has left its virtual server is looked for, as whoever claimed it must know.
            let touching = since.iter().filter(|action| match action {
                Action::Do { step, .. } => step.touches(&claim),
                Action::Look { step, .. } => step.touches(&claim) && !matches!(step, Step::Migrate { .. }),
                Action::Signal { .. } | Action::Abort { .. } | Action::Yield(_) | Action::Note(_) => false,
            });
            assert_eq!(touching.count(), 0, "{claim} at {moment}: {:?}", lab.lines());
            assert!(lab.end.is_some());
            for host in lab.truth.hosts.keys().filter(|host| claim != Claim::Host((*host).clone())) {
                let asleep = holds(&lab.truth, &Step::SuspendHost { host: host.clone() });
                let over = lab.end.as_ref().expect("it is there").outcome == Outcome::Complete;
                let hangs_on_it =
                    lab.lines().iter().any(|line| line.contains("rolled back, left {") && !line.contains("left {}"));
                assert!(!asleep || over || hangs_on_it, "{claim} at {moment}: {host} still sleeps: {:?}", lab.lines());
            }
        }
    }
}

#[test]
fn a_claim_elsewhere_disturbs_nothing_and_is_yielded_at_once() {
    let mut lab = lab(fold(), &[]);
    lab.event(Event::Claimed(Claim::Host(host("rs7"))));
    assert_eq!(lab.actions.last(), Some(&Action::Yield(Claim::Host(host("rs7")))));
    lab.run();
    assert_eq!(lab.end.expect("it is there").outcome, Outcome::Complete);
}

#[test]
fn a_job_under_way_on_what_is_claimed_is_aborted_and_its_end_awaited() {
    let (inventory, plan) = small();
    let (policy, mut actions) = (policy(), Vec::new());
    let mut executor = Executor::default();
    executor.begin(at(0), plan, &inventory, &policy, &mut actions).expect("it is there");
    let recorded = |id| Event::Recorded { id: SignalId(id), revision: Revision(id) };
    executor.step(at(0), recorded(1), &policy, &mut actions);
    executor.step(at(0), recorded(2), &policy, &mut actions);
    actions.clear();
    let claim = Claim::Vm(vm("ftp1"));
    executor.step(at(1), Event::Claimed(claim.clone()), &policy, &mut actions);
    let lines: Vec<String> = actions.drain(..).map(|action| show(&action)).collect();
    assert_eq!(lines, ["abort job 1", "Info Yielded: virtual server ftp1 is part of a recovery: let go"]);
    executor.step(at(2), Event::Ended { job: JobId(1), result: JobResult::Done }, &policy, &mut actions);
    // What became of it is found out, and told.
    let lines: Vec<String> = actions.drain(..).map(|action| show(&action)).collect();
    assert_eq!(lines, ["job 2: look for live migration of ftp1: rs2 -> rs1, within 2s", "yield virtual server ftp1"]);
    let away = || JobResult::Failed("rs2 does not answer".into());
    executor.step(at(4), Event::Ended { job: JobId(2), result: away() }, &policy, &mut actions);
    let lines: Vec<String> = actions.drain(..).map(|action| show(&action)).collect();
    assert_eq!(lines, ["job 3: look for live migration of ftp1: rs1 -> rs2, within 2s"]);
    executor.step(at(6), Event::Ended { job: JobId(3), result: away() }, &policy, &mut actions);
    executor.step(at(7), Event::Ended { job: JobId(4), result: JobResult::Done }, &policy, &mut actions);
    let lines: Vec<String> = actions.drain(..).map(|action| show(&action)).collect();
    assert_eq!(lines, ["job 4: look for live migration of ftp1: rs2 -> rs1, within 2s", "signal 3: step 0 done"]);
    executor.step(at(7), recorded(3), &policy, &mut actions);
    let lines: Vec<String> = actions.drain(..).map(|action| show(&action)).collect();
    assert_eq!(
        lines,
        [
            "Info Yielded: left to a recovery, and found: live migration of ftp1: rs2 -> rs1",
            "Warning RolledBack: transition undone but for live migration of ftp1: rs2 -> rs1: virtual server ftp1 is part of a recovery",
            "signal 4: rolled back, left {0}: virtual server ftp1 is part of a recovery",
        ]
    );
    let end = executor.step(at(8), recorded(4), &policy, &mut actions).expect("it is there");
    assert_eq!(end.outcome, Outcome::GivenUp);
}

#[test]
fn stale_and_claimed_plans_are_not_begun_and_two_at_once_are_not() {
    let (mut inventory, plan) = fold();
    inventory.generation = Revision(2);
    let stale = Lab::new(inventory, policy()).begin(&plan);
    assert_eq!(stale, Err(NotBegun::Stale { plan: Revision(1), now: Revision(2) }));
    let mut claimed = thesis();
    claimed.claims.insert(Claim::Host(host("rs3")));
    assert_eq!(Lab::new(claimed, policy()).begin(&plan), Err(NotBegun::Claimed(Claim::Host(host("rs3")))));
    let mut busy = lab(fold(), &[]);
    assert_eq!(busy.begin(&plan), Err(NotBegun::Busy));
}

#[test]
fn what_the_ledger_refuses_is_not_done() {
    let (inventory, plan) = fold();
    let (policy, mut actions) = (policy(), Vec::new());
    let mut executor = Executor::default();
    executor.begin(at(0), plan, &inventory, &policy, &mut actions).expect("it is there");
    let refused = Event::Refused { id: SignalId(1), why: "generation 2 is there".into() };
    let end = executor.step(at(1), refused, &policy, &mut actions).expect("it is there");
    assert_eq!((end.outcome, end.revision), (Outcome::GivenUp, None));
    assert!(!actions.iter().any(|action| matches!(action, Action::Do { .. })));
}

#[test]
fn capacity_wanted_again_undoes_a_fold_at_any_moment() {
    for moment in 0..60 {
        let mut lab = lab(fold(), &[]);
        for _ in 0..moment {
            lab.once();
        }
        lab.event(Event::Cancel("web is wanted in Moderate condition".into()));
        lab.run();
        match lab.end.as_ref().expect("it is there").outcome {
            Outcome::GivenUp => assert_eq!(lab.truth, thesis(), "{moment}"),
            Outcome::Complete => assert!(moment > 20),
            Outcome::Partial | Outcome::Failed => panic!("{moment}: {:?}", lab.lines()),
        }
    }
}

#[test]
fn no_more_live_migrations_at_a_time_than_allowed() {
    let (inventory, plan) = small();
    let mut many = plan.clone();
    for name in ["mail2", "mail1", "web1"] {
        let mut planned = plan.steps[0].clone();
        planned.step = Step::Migrate { vm: vm(name), from: host("rs2"), to: host("rs3") };
        many.steps.push(planned);
    }
    let mut lab = Lab::new(inventory, policy());
    lab.begin(&many).expect("it is there");
    let mut most = 0i32;
    let (mut under_way, mut seen) = (0i32, 0);
    while lab.end.is_none() && lab.once() {
        for action in &lab.actions[seen..] {
            under_way += i32::from(matches!(action, Action::Signal { signal: Signal::StepBegun { .. }, .. }));
            under_way -= i32::from(matches!(action, Action::Signal { signal: Signal::StepDone { .. }, .. }));
            most = most.max(under_way);
        }
        seen = lab.actions.len();
    }
    assert_eq!((most, lab.done().len()), (2, 4));
}

#[test]
fn a_controller_that_starts_again_undoes_a_fold_and_finishes_an_unfold() {
    for (start, wanted) in [(fold(), thesis()), (unfold(), thesis())] {
        for moment in 0..80 {
            let (_, plan) = start.clone();
            let mut lab = lab(start.clone(), &[]);
            for _ in 0..moment {
                if lab.end.is_none() {
                    lab.once();
                }
            }
            if lab.end.is_some() {
                break;
            }
            // What was under way may have been done, and nobody heard.
            let mut again = Lab::new(lab.truth.clone(), policy());
            again.recorded = lab.recorded.clone();
            let mut actions = Vec::new();
            again.end = again.executor.resume(at(20_000), plan, &lab.recorded, &lab.truth, &policy(), &mut actions);
            again.took(actions);
            again.run();
            assert!(again.end.is_some(), "{moment}");
            assert_eq!(again.truth.vms, wanted.vms, "{moment}: {:?}", again.lines());
            assert_eq!(again.truth.hosts, wanted.hosts, "{moment}");
        }
    }
}

#[test]
fn after_is_what_the_lab_comes_to() {
    let (inventory, plan) = fold();
    let mut lab = lab(fold(), &[]);
    lab.run();
    assert_eq!(Inventory { generation: Revision(2), ..lab.truth }, after(inventory, &plan));
}
