//! A live migration that nobody saw the end of, and one end of it that has no power: what is off runs nothing.

use super::hosts::{Hosts, config, n};
use kage_coordinator_core::Action;
use kage_types::DomainName;

/// mail1 was on its way to rs2, whose power can be read; nobody moves it any more.
fn left_amid_it(there: bool) -> Hosts {
    let rs2 = "address = \"10.0.0.12:7702\"\n";
    let mut hosts = Hosts::with(&config(false).replace(rs2, &format!("{rs2}power_status = [\"status\"]\n")));
    let id = hosts.migrate("mail1", "rs1", "rs2");
    if there {
        hosts.domains.get_mut(&n::<DomainName>("mail1")).unwrap().0 = n("rs2");
        hosts.hang("mail1");
    }
    hosts.give_up(id);
    hosts
}

fn doubted(hosts: &Hosts) -> bool {
    hosts.tables().may_be_on.contains_key(&n::<DomainName>("mail1"))
}

fn readings(hosts: &Hosts) -> usize {
    hosts.log.iter().filter(|(_, action)| matches!(action, Action::ReadPower { .. })).count()
}

const PROOF: &str = "mail1 does not run on rs2: its power reads off";

#[test]
fn it_is_started_where_it_was_though_the_other_end_stays_away() {
    let mut hosts = left_amid_it(true);
    hosts.power_lost("rs2");
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular" && hosts.holder(111) == "mail1@rs1");
    assert_eq!(hosts.orders_about("mail1"), ["rs1: start mail1"]);
    assert_eq!(hosts.notes("switched-off"), [PROOF]);
    assert!(hosts.signals().contains(&"moved mail1@rs1, not on rs2".to_owned()), "{:?}", hosts.signals());
    assert!(!doubted(&hosts));
}

#[test]
fn one_that_is_only_cut_off_may_run_it_still() {
    let mut hosts = left_amid_it(true);
    hosts.cut.insert(n("rs2"));
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.run(60_000);
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders_about("mail1"));
    assert!(doubted(&hosts) && readings(&hosts) > 0);
}

#[test]
fn a_reading_from_before_it_was_on_again_proves_nothing() {
    let mut hosts = left_amid_it(true);
    hosts.power_lost("rs2");
    // Nobody could say so until now.
    hosts.until(30_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    let read = readings(&hosts);
    hosts.until(30_000, "read again", |hosts| readings(hosts) > read);
    hosts.off.clear();
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert!(hosts.notes("switched-off").iter().all(|text| text != PROOF), "{:?}", hosts.notes("switched-off"));
    assert_eq!(hosts.orders_about("mail1"), ["rs2: destroy mail1", "rs1: start mail1"]);
}

#[test]
fn one_that_serves_where_the_tables_have_it_is_in_doubt_no_more() {
    let mut hosts = left_amid_it(false);
    hosts.run(5_000);
    assert!(doubted(&hosts) && readings(&hosts) == 0, "rs2 answers: power saving looks there");
    hosts.power_lost("rs2");
    hosts.until(20_000, "proved", |hosts| !doubted(hosts));
    let place = (hosts.mode("mail1"), hosts.place("mail1"), hosts.holder(111));
    assert_eq!(place, ("regular".into(), "mail1@rs1".into(), "mail1@rs1".into()));
    // While its migration is under way power saving sees to that.
    let id = hosts.migrate("mail1", "rs1", "rs3");
    hosts.run(1_000);
    assert!(doubted(&hosts));
    hosts.migration(id, kage_types::StepState::Undone);
}
