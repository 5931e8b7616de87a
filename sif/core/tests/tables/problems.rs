//! The four problems of running both controllers, and their answers (thesis fig. 4.6), in the tables.

use crate::desk::{Desk, fold, migrate, n, unfold};
use kage_sif_core::{held, holder};
use kage_types::{Condition, StepState};

/// (a) PSS moves VIP4 to M1: DBSS(M1) must take it along, and finds it in M1's rows.
#[test]
fn a_a_virtual_ip_that_was_put_on_the_target_goes_to_its_backup_and_back() {
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    assert_eq!(held(desk.tables(), &n("mail1")), [n("10.0.0.1"), n("10.0.0.4")].into());
    assert!(held(desk.tables(), &n("mail2")).is_empty());
    desk.a4("mail1", "mailb").unwrap();
    assert_eq!(held(desk.tables(), &n("mailb")), [n("10.0.0.1"), n("10.0.0.4")].into());
    assert_eq!(desk.placement(), ["4:mailb", "5:web1"]);
    desk.a5("mail1", true, "rs1").unwrap();
    assert_eq!(held(desk.tables(), &n("mail1")), [n("10.0.0.1"), n("10.0.0.4")].into());
}

/// (b) PSS suspends RS2: M2 is in Suspend before the host is told, and until it is back.
#[test]
fn b_a_virtual_server_is_in_suspend_before_its_host_is_told() {
    let mut desk = Desk::new();
    let id = desk.begin(&fold()).unwrap();
    (0..3).for_each(|index| desk.do_step(id, index));
    assert_eq!((desk.at("mail2").as_str(), desk.asleep().len()), ("mail2@rs2", 0));
    desk.step(id, 3, StepState::Begun).unwrap();
    assert_eq!((desk.at("mail2").as_str(), desk.asleep()), ("(mail2@rs2)", vec!["rs2".to_owned()]));
    assert_eq!((desk.at("web2").as_str(), desk.at("ftp1").as_str()), ("(web2@rs2)", "ftp1@rs1"));
    desk.step(id, 3, StepState::Done).unwrap();
    desk.end(id, Condition::Light).unwrap();
    let id = desk.begin(&unfold()).unwrap();
    desk.step(id, 0, StepState::Begun).unwrap();
    assert_eq!(desk.at("mail2"), "(mail2@rs2)", "on its way back");
    desk.step(id, 0, StepState::Done).unwrap();
    assert_eq!((desk.at("mail2").as_str(), desk.asleep().len()), ("mail2@rs2", 0));
    assert_eq!(desk.tables().real_servers[&n("rs2")].wake_took_ms, Some(8090));
}

/// (c) M1 fails: PSS measures the group by who fills its places.
#[test]
fn c_the_backup_fills_the_place_until_the_target_is_back() {
    let mut desk = Desk::new();
    desk.a4("mail1", "mailb").unwrap();
    assert_eq!(desk.at("mail1"), "mailb@mgmt");
    assert_eq!(holder(desk.tables(), &n("10.0.0.1")), Some(&n("mailb")));
    // One backup may stand for several members.
    desk.a4("mail2", "mailb").unwrap();
    assert_eq!((desk.at("mail2").as_str(), held(desk.tables(), &n("mailb")).len()), ("mailb@mgmt", 2));
    desk.a5("mail1", true, "rs1").unwrap();
    assert_eq!((desk.at("mail1").as_str(), desk.at("mail2").as_str()), ("mail1@rs1", "mailb@mgmt"));
    desk.a5("mail2", true, "rs2").unwrap();
    assert_eq!((desk.at("mail2").as_str(), desk.placement().len(), desk.away().len()), ("mail2@rs2", 0, 0));
}

/// (d) F1, migrated to RS1, fails beyond repair: Fb takes its place in the Live migration table, too.
#[test]
fn d_the_backup_of_a_migrated_target_goes_where_the_target_would_have_gone() {
    let mut desk = Desk::new();
    desk.transition(&fold(), Condition::Light);
    assert_eq!((desk.at("ftp1").as_str(), desk.away()), ("ftp1@rs1", vec!["ftp1=ftp1>rs2".to_owned()]));
    desk.a4("ftp1", "ftpb").unwrap();
    assert_eq!(desk.away(), ["ftp1=ftp1>rs2"], "not before the verdict");
    desk.a5("ftp1", false, "rs1").unwrap();
    assert_eq!((desk.at("ftp1").as_str(), desk.away()), ("ftpb@rs1", vec!["ftp1=ftpb>rs2".to_owned()]));
    let mut back = unfold();
    back[1] = migrate("ftpb", "rs1", "rs2");
    desk.transition(&back, Condition::Moderate);
    assert_eq!((desk.at("ftp1").as_str(), desk.away().len(), desk.placement().len()), ("ftpb@rs2", 0, 0));
}
