//! Signals of the term's holder.

use crate::desk::{Desk, PLACES, arrangement, begin, fold, migrate, move_vip, n, row, sleep};
use kage_sif_core::{Refusal, Request, Signal};
use kage_types::{Claim, Condition, Revision, StateRow, StepState, Term};

#[test]
fn what_is_configured_begins_at_home_in_moderate_condition() {
    let desk = Desk::new();
    assert_eq!(desk.tables().operation, PLACES.map(|(place, home, vip)| (n(place), row(place, home, vip))).into());
    assert_eq!(desk.tables().revision, Revision(1));
    let moderate = StateRow { condition: Condition::Moderate, base: None };
    assert!(desk.tables().state.values().all(|row| *row == moderate) && desk.tables().state.len() == 3);
    assert!(desk.asleep().is_empty() && desk.tables().real_servers.len() == 3);
}

#[test]
fn a_new_configuration_leaves_known_rows_where_they_are() {
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    desk.a4("mail1", "mailb").unwrap();
    let before = desk.tables().clone();
    desk.put(arrangement(1)).unwrap();
    assert_eq!(*desk.tables(), before);
    let Signal::PutArrangement { mut operation, real_servers, mut groups, .. } = arrangement(1) else { unreachable!() };
    operation.remove(&n("web1"));
    operation.remove(&n("web2"));
    groups.remove(&n("web"));
    groups.insert(n("dns"));
    operation.insert(n("dns1"), row("dns1", "rs2", "10.0.0.9"));
    let mail1 = operation.get_mut(&n("mail1")).unwrap();
    mail1.home_vips.insert(n("10.0.0.7"));
    let ftp1 = operation.get_mut(&n("ftp1")).unwrap();
    ftp1.home = n("rs3");
    ftp1.host = n("rs3");
    let signal = Signal::PutArrangement { term: Term(1), operation, real_servers, groups };
    desk.put(signal).unwrap();
    assert_eq!((desk.at("mail1").as_str(), desk.at("ftp1").as_str()), ("mailb@mgmt", "ftp1@rs1"));
    assert_eq!(desk.at("dns1"), "(dns1@rs2)", "its real server sleeps");
    assert_eq!((desk.placement(), desk.away()), (vec!["4:mailb".to_owned()], vec!["ftp1=ftp1>rs3".to_owned()]));
    assert!(!desk.tables().operation.contains_key(&n("web1")) && !desk.tables().suspend.contains_key(&n("web2")));
    let state: Vec<_> = desk.tables().state.iter().map(|(group, row)| format!("{group} {}", row.condition)).collect();
    assert_eq!(state, ["dns Moderate", "ftp Moderate", "mail Light"]);
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let mut desk = Desk::new();
    let before = desk.tables().clone();
    let Signal::PutArrangement { operation, real_servers, groups, .. } = arrangement(1) else { unreachable!() };
    let mut twice = operation.clone();
    twice.get_mut(&n("ftp1")).unwrap().home_vips.insert(n("10.0.0.1"));
    let put = |operation, groups| Signal::PutArrangement {
        term: Term(1),
        operation,
        real_servers: real_servers.clone(),
        groups,
    };
    let why = "10.0.0.1 is of ftp1 and of mail1".to_owned();
    assert_eq!(desk.put(put(twice, groups)), Err(Refusal::Invalid { why }));
    let refused = desk.put(put(operation, [n("mail")].into())).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "ftp1 is of group ftp, which is not among the groups: this signal can't be meant so"
    );
    assert_eq!(*desk.tables(), before);
}

#[test]
fn signals_of_recoveries_need_the_term() {
    let mut desk = Desk::new();
    let stale = Refusal::StaleTerm { given: Term(0), current: Term(1) };
    assert_eq!(desk.put(arrangement(0)), Err(stale));
    let unknown = Refusal::UnknownTerm { given: Term(7), current: Term(1) };
    assert_eq!(
        desk.put(Signal::MovedTo { term: Term(7), vm: n("mail1"), host: n("rs2"), not_on: [].into() }),
        Err(unknown)
    );
    let place = Refusal::Unknown { what: "place mailb".to_owned() };
    assert_eq!(desk.a4("mailb", "mail1"), Err(place.clone()));
    assert_eq!(desk.a5("mailb", true, "rs1"), Err(place.clone()));
    assert_eq!(desk.a5("mailb", false, "rs1"), Err(place));
    let what = "virtual server mailb in any place".to_owned();
    assert_eq!(desk.moved("mailb", "rs1"), Err(Refusal::Unknown { what }));
}

#[test]
fn beyond_repair_without_a_backup_changes_nothing() {
    let mut desk = Desk::new();
    let before = desk.tables().clone();
    desk.a5("mail1", false, "rs3").unwrap();
    assert_eq!(*desk.tables(), before);
}

#[test]
fn beyond_repair_the_backup_stays_where_it_went() {
    let mut desk = Desk::new();
    desk.a4("mail1", "mailb").unwrap();
    desk.a4("mail2", "mailb").unwrap();
    desk.a5("mail1", false, "rs1").unwrap();
    // It is one virtual server: it left the other place's spot, too.
    assert_eq!((desk.at("mail1").as_str(), desk.at("mail2").as_str()), ("mailb@rs1", "mailb@rs1"));
    assert!(desk.away().is_empty());
}

#[test]
fn a_virtual_server_that_was_started_elsewhere_is_to_go_home() {
    let mut desk = Desk::new();
    desk.moved("mail2", "rs3").unwrap();
    assert_eq!((desk.at("mail2").as_str(), desk.away()), ("mail2@rs3", vec!["mail2=mail2>rs2".to_owned()]));
    desk.moved("mail2", "rs2").unwrap();
    assert!(desk.away().is_empty());
    // A backup belongs nowhere.
    desk.a4("mail2", "mailb").unwrap();
    desk.moved("mailb", "rs3").unwrap();
    assert_eq!((desk.at("mail2").as_str(), desk.away().len()), ("mailb@rs3", 0));
    desk.a5("mail2", true, "rs1").unwrap();
    assert_eq!(desk.away(), ["mail2=mail2>rs2"], "recovered on another real server");
}

#[test]
fn found_on_a_host_that_is_awake_it_is_no_longer_suspended() {
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    assert_eq!(desk.at("mail2"), "(mail2@rs2)");
    desk.moved("mail2", "rs1").unwrap();
    assert_eq!(
        (desk.at("mail2").as_str(), desk.away()),
        ("mail2@rs1", vec!["ftp1=ftp1>rs2".to_owned(), "mail2=mail2>rs2".to_owned()])
    );
    desk.a4("web2", "webb").unwrap();
    assert_eq!(desk.at("web2"), "webb@mgmt");
}

#[test]
fn what_is_claimed_power_saving_leaves_alone() {
    let mut desk = Desk::new();
    let id = desk.begin(&fold()).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    desk.claim("mail2", &[Claim::Vm(n("mail2")), Claim::Vip(n("10.0.0.4"))]);
    let claimed = |claim| Err(Refusal::Claimed { claim, by: "mail2".to_owned() });
    // Recoveries win over what is under way: it can be reported, but not gone on with.
    desk.step(id, 0, StepState::Done).unwrap();
    assert_eq!(desk.step(id, 0, StepState::UndoBegun), claimed(Claim::Vm(n("mail2"))));
    desk.do_step(id, 1);
    desk.do_step(id, 2);
    // Nor does a host sleep with it.
    assert_eq!(desk.step(id, 3, StepState::Begun), claimed(Claim::Vm(n("mail2"))));
    desk.claim("ftp2", &[Claim::Host(n("rs2"))]);
    desk.claim("mail2", &[]);
    assert_eq!(
        desk.step(id, 3, StepState::Begun),
        Err(Refusal::Claimed { claim: Claim::Host(n("rs2")), by: "ftp2".to_owned() })
    );
    desk.end(id, Condition::Moderate).unwrap();
    let generation = desk.tables().revision;
    for (steps, refused) in [
        (vec![sleep("rs2")], true),
        (vec![migrate("ftp2", "rs3", "rs2")], true),
        (vec![move_vip(4, "mail1", "mail2")], false),
    ] {
        let answer = desk.ask(Request::Signal(begin(generation, &steps)));
        assert_eq!(matches!(answer, Err(Refusal::Claimed { .. })), refused, "{steps:?}: {answer:?}");
    }
}

#[test]
fn what_two_recoveries_claim_is_free_when_both_are_over() {
    let mut desk = Desk::new();
    let host = Claim::Host(n("mgmt"));
    desk.claim("mail1", std::slice::from_ref(&host));
    desk.claim("mail2", &[host.clone(), Claim::Vm(n("mail2"))]);
    assert_eq!(desk.tables().claims[&host].by, "mail1");
    desk.claim("mail1", &[]);
    assert_eq!((desk.tables().claims[&host].by.as_str(), desk.tables().claims.len()), ("mail2", 2));
    desk.claim("mail2", &[Claim::Vm(n("mail2"))]);
    assert_eq!(desk.tables().claims.keys().collect::<Vec<_>>(), [&Claim::Vm(n("mail2"))]);
    desk.claim("mail2", &[]);
    assert!(desk.tables().claims.is_empty() && desk.shared().recoveries.is_empty());
}

#[test]
fn a_restored_ledger_has_the_tables_and_nothing_under_way() {
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    desk.claim("mail2", &[Claim::Vm(n("mail2"))]);
    desk.begin(&[migrate("ftp2", "rs3", "rs1")]).unwrap();
    let old = desk.core.ledger().clone();
    let new = old.clone().restored();
    let (was, is) = (&old.shared.tables, &new.shared.tables);
    assert_eq!((&was.operation, &was.suspend, &was.state), (&is.operation, &is.suspend, &is.state));
    assert_eq!((&was.live_migration, &was.placement), (&is.live_migration, &is.placement));
    assert_eq!(was.real_servers, is.real_servers);
    assert!(is.claims.is_empty() && is.transition.is_none() && new.shared.ended.is_none());
    assert_eq!(is.revision.0, was.revision.0 + kage_sif_core::UNSEEN_MARGIN);
    assert_eq!((old.shared.check(), new.shared.check()), (Ok(()), Ok(())));
}

#[test]
fn where_a_failed_virtual_server_is_is_known_until_it_fills_its_place_again() {
    let mut desk = Desk::new();
    desk.transition(&[migrate("ftp2", "rs3", "rs1")], Condition::Light);
    let known = |desk: &Desk| desk.tables().host_of(&n("ftp2")).map(ToString::to_string);
    desk.a4("ftp2", "ftpb").unwrap();
    assert_eq!((known(&desk).as_deref(), desk.tables().displaced.len()), (Some("rs1"), 1));
    // Another stands in for the one that stood in.
    desk.a4("ftp2", "mailb").unwrap();
    assert_eq!(known(&desk).as_deref(), Some("rs1"));
    // Beyond repair, it is there still; only where it was started anew counts then.
    desk.a5("ftp2", false, "mgmt").unwrap();
    assert_eq!(known(&desk).as_deref(), Some("rs1"));
    desk.moved("ftp2", "rs2").unwrap();
    assert_eq!(known(&desk).as_deref(), Some("rs2"));
    assert_eq!(desk.core.ledger().clone().restored().shared.tables.displaced, desk.tables().displaced);
    // Its real server does not go to sleep with it while a recovery claims it.
    desk.claim("ftp2", &[Claim::Vm(n("ftp2"))]);
    assert!(matches!(desk.begin(&[sleep("rs2")]), Err(Refusal::Claimed { .. })));
    desk.claim("ftp2", &[]);
    desk.a5("ftp2", true, "rs2").unwrap();
    assert!(desk.tables().displaced.is_empty());
    assert_eq!(known(&desk).as_deref(), Some("rs2"));
}

#[test]
fn a_report_of_a_migration_says_where_a_failed_virtual_server_is() {
    let mut desk = Desk::new();
    let known = |desk: &Desk| desk.tables().host_of(&n("ftp2")).map(ToString::to_string);
    let id = desk.begin(&[migrate("ftp2", "rs3", "rs1")]).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    desk.a4("ftp2", "ftpb").unwrap();
    assert_eq!(known(&desk).as_deref(), Some("rs3"));
    desk.step(id, 0, StepState::Done).unwrap();
    assert_eq!(known(&desk).as_deref(), Some("rs1"));
}
