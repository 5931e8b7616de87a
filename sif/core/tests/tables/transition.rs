//! Signals of power saving.

use crate::desk::{Desk, begin, end, fold, migrate, move_vip, n, sleep, unfold, wake};
use kage_sif_core::{PLAN_LIMIT, Refusal, Reply, Request, STEP_LIMIT, Signal};
use kage_types::{Condition, Order, OrderScope, Revision, Step, StepState, Term};

#[test]
fn light_and_back_leaves_nothing_behind() {
    let mut desk = Desk::new();
    let before = desk.tables().clone();
    desk.transition(&fold(), Condition::Light);
    assert_eq!(desk.placement(), ["4:mail1", "5:web1"]);
    assert_eq!((desk.away(), desk.asleep()), (vec!["ftp1=ftp1>rs2".to_owned()], vec!["rs2".to_owned()]));
    let state = &desk.tables().state[&n("mail")];
    assert_eq!((state.condition, state.base.clone()), (Condition::Light, Some(n("rs1"))));
    desk.transition(&unfold(), Condition::Moderate);
    let mut after = desk.tables().clone();
    after.revision = before.revision;
    after.real_servers.get_mut(&n("rs2")).unwrap().wake_took_ms = None;
    assert_eq!(after, before);
}

#[test]
fn a_transition_that_is_undone_at_any_step_leaves_nothing_behind() {
    for failed in 0..fold().len() {
        for done in [false, true] {
            let mut desk = Desk::new();
            let before = desk.tables().clone();
            let id = desk.begin(&fold()).unwrap();
            (0..failed).for_each(|index| desk.do_step(id, index));
            desk.step(id, failed, StepState::Begun).unwrap();
            if done {
                desk.step(id, failed, StepState::Done).unwrap();
            }
            for index in (0..=failed).rev() {
                desk.step(id, index, StepState::UndoBegun).unwrap();
                desk.step(id, index, StepState::Undone).unwrap();
            }
            desk.end(id, Condition::Moderate).unwrap();
            let mut after = desk.tables().clone();
            after.revision = before.revision;
            after.real_servers.get_mut(&n("rs2")).unwrap().wake_took_ms = None;
            assert_eq!(after, before, "step {failed}, done: {done}");
        }
    }
}

#[test]
fn the_copy_of_a_migrated_row_is_there_while_it_is_under_way() {
    let mut desk = Desk::new();
    let id = desk.begin(&[migrate("ftp1", "rs2", "rs1"), migrate("ftp1", "rs1", "rs2")]).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!((desk.at("ftp1").as_str(), desk.away()), ("ftp1@rs2", vec!["ftp1=ftp1>rs2".to_owned()]));
    assert_eq!(desk.tables().migrating(&n("ftp1")), Some((&n("rs2"), &n("rs1"))));
    desk.step(id, 0, StepState::Done).unwrap();
    desk.step(id, 1, StepState::Begun).unwrap();
    assert_eq!((desk.at("ftp1").as_str(), desk.away().len()), ("ftp1@rs1", 1));
    desk.step(id, 1, StepState::Done).unwrap();
    assert_eq!((desk.at("ftp1").as_str(), desk.away().len()), ("ftp1@rs2", 0));
    // Taken back: away again.
    desk.step(id, 1, StepState::UndoBegun).unwrap();
    assert_eq!((desk.at("ftp1").as_str(), desk.away().len()), ("ftp1@rs2", 1));
    desk.step(id, 1, StepState::Undone).unwrap();
    assert_eq!((desk.at("ftp1").as_str(), desk.away().len()), ("ftp1@rs1", 1));
}

#[test]
fn a_light_group_goes_with_the_member_that_it_was_gathered_on() {
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    let base = |desk: &Desk| desk.tables().state[&n("mail")].base.clone();
    assert_eq!((desk.at("mail1").as_str(), base(&desk)), ("mail1@rs1", Some(n("rs1"))));
    // For another group's sake, by a plan that changes none of its conditions.
    let id = desk.begin(&[wake("rs3"), migrate("mail1", "rs1", "rs3")]).unwrap();
    for step in [0, 1] {
        desk.step(id, step, StepState::Begun).unwrap();
        desk.step(id, step, StepState::Done).unwrap();
    }
    assert_eq!((desk.at("mail1").as_str(), base(&desk)), ("mail1@rs3", Some(n("rs3"))));
    desk.step(id, 1, StepState::UndoBegun).unwrap();
    desk.step(id, 1, StepState::Undone).unwrap();
    assert_eq!((desk.at("mail1").as_str(), base(&desk)), ("mail1@rs1", Some(n("rs1"))));
}

#[test]
fn a_paused_virtual_server_stays_suspended_when_its_host_wakes() {
    let mut desk = Desk::new();
    let pause = Step::SuspendVm { vm: n("mail2"), host: n("rs2") };
    let mut steps = fold();
    steps.insert(3, pause.clone());
    desk.transition(&steps, Condition::Light);
    let resume = [wake("rs2"), pause.inverse()];
    let id = desk.begin(&resume).unwrap();
    desk.do_step(id, 0);
    assert_eq!((desk.at("mail2").as_str(), desk.at("web2").as_str()), ("(mail2@rs2)", "web2@rs2"));
    desk.step(id, 1, StepState::Begun).unwrap();
    assert_eq!(desk.at("mail2"), "(mail2@rs2)");
    desk.step(id, 1, StepState::Done).unwrap();
    assert_eq!(desk.at("mail2"), "mail2@rs2");
    desk.step(id, 1, StepState::UndoBegun).unwrap();
    assert_eq!(desk.at("mail2"), "(mail2@rs2)");
}

#[test]
fn a_step_whose_ground_has_changed_is_refused() {
    let cases: [(Step, &str); 9] = [
        (sleep("rs2"), "on rs2 still serves 10.0.0."),
        (Step::SuspendVm { vm: n("mail2"), host: n("rs2") }, "mail2 still serves 10.0.0.4"),
        (migrate("ftp1", "rs1", "rs3"), "ftp1 is on rs2, not on rs1"),
        (migrate("mailb", "mgmt", "rs3"), "the tables know no virtual server mailb in any place"),
        (move_vip(4, "mail1", "web1"), "10.0.0.4 is on mail2, not on mail1"),
        (move_vip(9, "mail1", "web1"), "the tables know no virtual IP 10.0.0.9 of any place"),
        (move_vip(4, "mail2", "mailb"), "the tables know no virtual server mailb in any place"),
        (sleep("mgmt"), "the tables know no real server mgmt"),
        (wake("mgmt"), "the tables know no real server mgmt"),
    ];
    for (step, why) in cases {
        let mut desk = Desk::new();
        let id = desk.begin(std::slice::from_ref(&step)).unwrap();
        let before = desk.tables().clone();
        let refused = desk.step(id, 0, StepState::Begun).unwrap_err();
        assert!(refused.to_string().contains(why), "{step}: {refused}");
        assert_eq!(*desk.tables(), before);
    }
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    let id = desk.begin(&[migrate("ftp2", "rs3", "rs2"), move_vip(6, "ftp2", "mail2")]).unwrap();
    let refused = desk.step(id, 0, StepState::Begun).unwrap_err();
    assert!(refused.to_string().contains("rs2 is asleep"), "{refused}");
    let refused = desk.step(id, 1, StepState::Begun).unwrap_err();
    assert!(refused.to_string().contains("mail2 is suspended"), "{refused}");
}

#[test]
fn no_host_sleeps_with_a_migration_under_way() {
    let mut desk = Desk::new();
    let steps = [move_vip(6, "ftp2", "ftp1"), migrate("mail2", "rs2", "rs3"), sleep("rs3")];
    let id = desk.begin(&steps).unwrap();
    desk.do_step(id, 0);
    desk.step(id, 1, StepState::Begun).unwrap();
    let refused = desk.step(id, 2, StepState::Begun).unwrap_err();
    assert!(refused.to_string().contains("mail2 is on its way from rs2 to rs3"), "{refused}");
}

#[test]
fn steps_go_forth_and_back_and_not_crosswise() {
    let mut desk = Desk::new();
    let id = desk.begin(&fold()).unwrap();
    let why = "step 0 can't become Planned: it is Begun".to_owned();
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!(desk.step(id, 0, StepState::Planned), Err(Refusal::NotAsPlanned { why }));
    desk.step(id, 0, StepState::Done).unwrap();
    let before = desk.tables().clone();
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!(*desk.tables(), before, "it took effect already");
    desk.step(id, 0, StepState::UndoBegun).unwrap();
    let why = "step 0 can't become Done: it is UndoBegun".to_owned();
    assert_eq!(desk.step(id, 0, StepState::Done), Err(Refusal::NotAsPlanned { why }));
    desk.step(id, 0, StepState::Undone).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!(desk.placement(), ["4:mail1"], "once more");
    let why = format!("step 4 of transition {id}, which has 4 steps, counted from 0");
    assert_eq!(desk.step(id, 4, StepState::Begun), Err(Refusal::Invalid { why }));
}

#[test]
fn a_plan_of_older_tables_is_refused_and_other_writes_make_none_older() {
    let mut desk = Desk::new();
    let generation = desk.tables().revision;
    // Terms, orders, epochs: not the tables'.
    let order = Order {
        scope: OrderScope::All,
        reason: "disk".to_owned(),
        who: "operator a".to_owned(),
        since_unix_ms: 1,
        until_unix_ms: None,
    };
    desk.ask(Request::PutOrder { term: Term(1), order }).unwrap();
    assert_eq!(desk.tables().revision, generation);
    desk.moved("mail1", "rs3").unwrap();
    let stale = Refusal::StaleGeneration { given: generation, current: generation.next() };
    assert_eq!(desk.ask(Request::Signal(begin(generation, &fold()))), Err(stale));
    let id = desk.begin(&fold()).unwrap();
    let under_way = Refusal::UnderWay { id, by: "pss".to_owned() };
    assert_eq!(desk.ask(Request::Signal(begin(desk.tables().revision, &fold()))), Err(under_way));
}

#[test]
fn another_process_takes_a_transition_over_and_the_first_stops() {
    let mut desk = Desk::new();
    let id = desk.begin(&fold()).unwrap();
    let take = |id, from: &str| Signal::TakeTransition { id, from: from.to_owned(), by: "pss2".to_owned() };
    let other = |by: &str, given: &str| Refusal::OtherProcess { id, by: by.to_owned(), given: given.to_owned() };
    assert_eq!(desk.put(take(id, "pss0")), Err(other("pss", "pss0")));
    assert_eq!(desk.put(take(id + 1, "pss")), Err(Refusal::NoTransition { given: id + 1, under_way: Some(id) }));
    let revision = desk.tables().revision.next();
    assert_eq!(desk.signal(take(id, "pss")), Ok(Reply::Transition { revision, id }));
    assert_eq!(desk.step(id, 0, StepState::Begun), Err(other("pss2", "pss")));
    assert_eq!(desk.end(id, Condition::Light), Err(other("pss2", "pss")));
    let Signal::EndTransition { state, .. } = end(id, Condition::Moderate) else { unreachable!() };
    let (by, why) = ("pss2".to_owned(), String::new());
    desk.put(Signal::EndTransition { id, by, committed: false, state, why }).unwrap();
    assert_eq!(desk.step(id, 0, StepState::Begun), Err(Refusal::NoTransition { given: id, under_way: None }));
    assert_eq!(desk.end(id, Condition::Moderate), Err(Refusal::NoTransition { given: id, under_way: None }));
}

/// What it takes may have been done by others: a recovery, an operator.
#[test]
fn a_condition_may_change_without_a_step() {
    let mut desk = Desk::new();
    let signal = Signal::BeginTransition {
        by: "pss".to_owned(),
        generation: desk.tables().revision,
        plan: "x".to_owned(),
        steps: Vec::new(),
        groups: [(n("mail"), (Condition::Moderate, Condition::Light))].into(),
    };
    let Ok(Reply::Transition { id, .. }) = desk.signal(signal) else { panic!("refused") };
    desk.end(id, Condition::Light).unwrap();
    assert_eq!(desk.tables().state[&n("mail")].condition, Condition::Light);
}

#[test]
fn what_is_too_much_or_means_nothing_is_refused() {
    let mut desk = Desk::new();
    let mut refused = |steps: Vec<Step>, plan: usize, by: &str, group: &str| {
        let signal = Signal::BeginTransition {
            by: by.to_owned(),
            generation: Revision(1),
            plan: "x".repeat(plan),
            steps,
            groups: Some(group)
                .filter(|group| !group.is_empty())
                .map(|group| (n(group), (Condition::Moderate, Condition::Light)))
                .into_iter()
                .collect(),
        };
        desk.put(signal).unwrap_err().to_string()
    };
    assert!(refused(vec![sleep("rs2"); STEP_LIMIT + 1], 0, "pss", "mail").contains("steps of a transition"));
    assert!(refused(fold(), PLAN_LIMIT + 1, "pss", "mail").contains("a plan in bytes"));
    assert!(refused(Vec::new(), 0, "pss", "").contains("without a step"));
    assert!(refused(fold(), 0, "", "mail").contains("which process"));
    assert!(refused(fold(), 0, "pss", "dns").contains("service group dns"));
}
