//! Where a virtual server may be whose live migration's end nobody saw.

use crate::desk::{Desk, migrate, n, sleep};
use kage_sif_core::Refusal;
use kage_types::{Claim, Condition, Step, StepState, Tables};

/// ftp1 was being migrated from rs2 to rs1, and the transition is over.
fn given_up() -> Desk {
    let mut desk = Desk::new();
    let id = desk.begin(&[migrate("ftp1", "rs2", "rs1")]).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"], "from the intent on");
    desk.end(id, Condition::Light).unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"], "whoever ended it saw nothing");
    desk
}

#[test]
fn a_migration_whose_end_was_seen_leaves_no_doubt() {
    for (first, last, at) in [
        (StepState::Begun, StepState::Done, "ftp1@rs1"),
        (StepState::Begun, StepState::Undone, "ftp1@rs2"),
        (StepState::UndoBegun, StepState::Undone, "ftp1@rs2"),
    ] {
        let mut desk = Desk::new();
        let id = desk.begin(&[migrate("ftp1", "rs2", "rs1")]).unwrap();
        desk.step(id, 0, StepState::Begun).unwrap();
        desk.step(id, 0, first).unwrap();
        desk.step(id, 0, last).unwrap();
        assert_eq!((desk.doubts().len(), desk.at("ftp1").as_str()), (0, at));
    }
}

#[test]
fn one_that_is_not_taken_back_to_the_end_may_still_be_there() {
    let mut desk = Desk::new();
    let id = desk.begin(&[migrate("ftp1", "rs2", "rs1")]).unwrap();
    desk.do_step(id, 0);
    desk.step(id, 0, StepState::UndoBegun).unwrap();
    desk.end(id, Condition::Light).unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs1, or rs2"]);
}

#[test]
fn what_power_saving_finds_is_believed_once() {
    let mut desk = given_up();
    desk.found("ftp1", "rs1", "rs2").unwrap();
    assert_eq!((desk.doubts().len(), desk.at("ftp1").as_str()), (0, "ftp1@rs1"));
    assert_eq!(desk.away(), ["ftp1=ftp1>rs2"], "it is to go home");
    // A look that was overtaken.
    assert!(matches!(desk.found("ftp1", "rs2", "rs1"), Err(Refusal::NotAsPlanned { .. })));
    assert_eq!(desk.at("ftp1"), "ftp1@rs1");
    assert!(matches!(given_up().found("ftp1", "rs3", "rs1"), Err(Refusal::NotAsPlanned { .. })));
    assert!(matches!(given_up().found("mailb", "rs1", "rs2"), Err(Refusal::Unknown { .. })));
    // Found where the tables have it.
    let mut desk = given_up();
    desk.found("ftp1", "rs2", "rs1").unwrap();
    assert_eq!((desk.doubts().len(), desk.at("ftp1").as_str(), desk.away().len()), (0, "ftp1@rs2", 0));
}

#[test]
fn a_recovery_that_pulled_the_plug_there_ends_it_and_one_that_was_only_told_does_not() {
    let mut desk = given_up();
    // What an agent said of the switch-over is no proof that it stays so.
    desk.moved("ftp1", "rs1").unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs1, or rs2"]);
    desk.cleared("ftp1", "rs1", "rs3").unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs1, or rs2"]);
    desk.cleared("ftp1", "rs1", "rs2").unwrap();
    assert_eq!((desk.doubts().len(), desk.at("ftp1").as_str()), (0, "ftp1@rs1"));
}

#[test]
fn it_is_kept_while_a_backup_server_fills_the_place_and_when_the_verdict_is_given() {
    let mut desk = given_up();
    desk.a4("ftp1", "mailb").unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"]);
    desk.a5("ftp1", false, "mgmt").unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"]);
    desk.a5("ftp1", true, "rs2").unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"], "that it serves there says nothing of the other end");
    desk.a4("ftp1", "mailb").unwrap();
    desk.found("ftp1", "rs1", "rs2").unwrap();
    assert_eq!((desk.doubts().len(), desk.tables().displaced[&n("ftp1")].as_str()), (0, "rs1"));
}

#[test]
fn nothing_is_begun_with_one_that_may_be_elsewhere_and_neither_host_sleeps() {
    let steps = [
        migrate("ftp1", "rs2", "rs3"),
        Step::SuspendVm { vm: n("ftp1"), host: n("rs2") },
        Step::ResumeVm { vm: n("ftp1"), host: n("rs2") },
        sleep("rs1"),
        sleep("rs2"),
    ];
    for step in steps {
        let mut desk = given_up();
        let id = desk.begin(std::slice::from_ref(&step)).unwrap();
        let refused = desk.step(id, 0, StepState::Begun).unwrap_err().to_string();
        assert!(refused.contains("ftp1 may be on rs"), "{step}: {refused}");
        desk.end(id, Condition::Moderate).unwrap();
        desk.found("ftp1", "rs2", "rs1").unwrap();
        let id = desk.begin(std::slice::from_ref(&step)).unwrap();
        let after = desk.step(id, 0, StepState::Begun).err().map(|refused| refused.to_string());
        assert!(after.is_none_or(|refused| refused.contains("still serves")), "{step}");
    }
}

#[test]
fn a_recovery_and_power_saving_that_contradict_each_other_leave_it_in_doubt() {
    let mut desk = Desk::new();
    let id = desk.begin(&[migrate("ftp1", "rs2", "rs1")]).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    desk.claim("ftp1", &[Claim::Vm(n("ftp1"))]);
    desk.cleared("ftp1", "rs2", "rs1").unwrap();
    assert!(desk.doubts().is_empty());
    // It had looked before the plug was pulled, or it arrived after that.
    desk.step(id, 0, StepState::Done).unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"]);
    desk.cleared("ftp1", "rs2", "rs1").unwrap();
    desk.end(id, Condition::Light).unwrap();
    assert_eq!((desk.doubts().len(), desk.at("ftp1").as_str()), (0, "ftp1@rs2"));
}

#[test]
fn an_intent_that_is_repeated_after_a_recovery_saw_to_it_is_one_anew() {
    let mut desk = Desk::new();
    let id = desk.begin(&[migrate("ftp1", "rs2", "rs1")]).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    desk.claim("ftp1", &[Claim::Vm(n("ftp1"))]);
    desk.cleared("ftp1", "rs2", "rs1").unwrap();
    assert!(matches!(desk.step(id, 0, StepState::Begun), Err(Refusal::Claimed { .. })));
    desk.claim("ftp1", &[]);
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!(desk.doubts(), ["ftp1@rs2, or rs1"]);
}

#[test]
fn a_restored_ledger_and_one_of_an_earlier_version_doubt_what_was_under_way() {
    let mut desk = Desk::new();
    let id = desk.begin(&[migrate("ftp1", "rs2", "rs1")]).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    let mut old = desk.core.ledger().clone();
    old.shared.tables.may_be_on.clear();
    let doubts = |tables: &Tables| {
        tables.may_be_on.get(&n("ftp1")).map(|hosts| hosts.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(doubts(&old.clone().restored().shared.tables), Some(vec!["rs1".to_owned()]));
    old.shared.doubt_migrations();
    assert_eq!(doubts(&old.shared.tables), Some(vec!["rs1".to_owned()]));
}
