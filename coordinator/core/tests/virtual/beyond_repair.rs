//! Thesis ch. 4, verdict *down*: the backup server leaves the management server for where its target was, is supervised
//! there, and goes home when its target is back.

use super::hosts::{Hosts, config, n, vip};
use kage_coordinator_core::{AgentCommand, AgentReport, Event};
use kage_types::DomainName;

/// mail1's starts do not help; it is where the tables have it, rs3, and not where it is configured. Just given up.
fn given_up() -> Hosts {
    given_up_by(Hosts::with(&text()))
}

/// A live migration that is not heard of is given up after ten seconds.
fn text() -> String {
    let quick = config(false).replace("\"20s\"", "\"8s\"").replace("reboot_wait = \"10s\"", "reboot_wait = \"2s\"");
    format!("{quick}[pss]\nmigration_limit = \"10s\"\n")
}

fn given_up_by(mut hosts: Hosts) -> Hosts {
    hosts.live("mail1", "rs1", "rs3");
    lose(&mut hosts, "mail1");
    hosts
}

fn lose(hosts: &mut Hosts, target: &str) {
    hosts.broken.insert(n(target));
    hosts.crash(target, true);
    hosts.until(200_000, "given up", |hosts| hosts.mode(target) == "ended");
}

/// mailb has left for rs3, and everything is said.
pub fn moved() -> Hosts {
    let mut hosts = given_up();
    hosts.until(10_000, "moved", |hosts| hosts.place("mail1") == "mailb@rs3" && hosts.tables().claims.is_empty());
    hosts.run(1_000);
    hosts
}

fn repaired(hosts: &mut Hosts, target: &str) {
    hosts.broken.clear();
    let (host, ..) = hosts.domains[&n::<DomainName>(target)].clone();
    hosts.domains.insert(n(target), (host, true, 0));
    hosts.run(6_000);
    hosts.step(Event::Move { command: 1, target: n(target), back: true, force: false });
}

fn at(hosts: &Hosts, domain: &str) -> String {
    let (host, runs, _) = &hosts.domains[&n::<DomainName>(domain)];
    format!("{host}{}", if *runs { "" } else { ", suspended" })
}

#[test]
fn it_goes_where_its_target_was_and_the_virtual_ips_follow_at_the_switch_over() {
    let mut hosts = given_up();
    let before = hosts.epochs[&vip(111)].epoch;
    hosts.until(5_000, "moved", |hosts| hosts.holder(111) == "mailb@rs3" && hosts.holder(112) == "mailb@rs3");
    assert!(hosts.epochs[&vip(111)].epoch > before);
    assert_eq!(hosts.notes("switched-off").len() + hosts.notes("double-crashed").len(), 0);
    hosts.until(1_000, "A5", |hosts| hosts.place("mail1") == "mailb@rs3");
    hosts.until(1_000, "no claims", |hosts| hosts.tables().claims.is_empty());
    assert_eq!(hosts.orders_about("mailb"), ["mgmt: resume mailb", "mgmt: migrate to rs3 mailb"]);
    let told = hosts.signals();
    assert_eq!(
        told[2..],
        [
            "claims of mail1: host mgmt, host rs3, virtual server mail1, virtual server mailb, virtual IP 10.0.0.111, \
             virtual IP 10.0.0.112",
            "A5 mail1: down@rs3",
            "claims of mail1: host rs3, virtual server mailb",
            "claims of mail1: "
        ]
    );
    // mail1 had been away: in Moderate condition its backup server goes where it would have gone.
    let row = &hosts.tables().live_migration[&n::<DomainName>("mail1")];
    assert_eq!((row.vm.as_str(), row.original_host.as_str()), ("mailb", "rs1"));
    let detail = hosts.core.target(&n("mail1")).unwrap().detail;
    assert!(detail.ends_with("; mailb serves on rs3, supervised"), "{detail}");
    hosts.run(60_000);
    assert_eq!((hosts.holder(111).as_str(), hosts.notes("double-trouble").len()), ("mailb@rs3", 0));
}

#[test]
fn it_leaves_only_once_power_saving_has_ended_what_it_had_begun() {
    let mut hosts = Hosts::with(&text());
    hosts.live("mail1", "rs1", "rs3");
    hosts.broken.insert(n("mail1"));
    hosts.crash("mail1", true);
    hosts.run(1_000);
    let id = hosts.migrate("mail2", "rs2", "rs1");
    hosts.until(200_000, "given up", |hosts| hosts.mode("mail1") == "ended");
    hosts.run(20_000);
    assert_eq!(at(&hosts, "mailb"), "mgmt");
    let said = ["mailb goes from mgmt to rs3 later: power saving is under way"];
    assert_eq!(hosts.notes("double-leaves"), said);
    hosts.migration(id, kage_types::StepState::Undone);
    hosts.until(10_000, "moved", |hosts| hosts.place("mail1") == "mailb@rs3");
}

#[test]
fn it_does_not_go_beside_another_whose_backup_server_it_is() {
    let mut hosts = Hosts::with(&text());
    hosts.live("mail1", "rs1", "rs2");
    lose(&mut hosts, "mail1");
    hosts.run(20_000);
    let why = "mailb stays on mgmt and is supervised there: it is the backup server of mail2 too, which is on rs2";
    assert_eq!((hosts.notes("double-stays"), at(&hosts, "mailb")), (vec![why.to_owned()], "mgmt".to_owned()));
}

#[test]
fn it_stays_where_the_host_of_its_target_is_what_failed() {
    let mut hosts = Hosts::with(&text());
    hosts.live("mail1", "rs1", "rs3");
    hosts.broken.insert(n("mail1"));
    hosts.crash("mail1", true);
    hosts.until(200_000, "the last start", |hosts| hosts.notes("waking").len() == 3);
    hosts.run(4_000);
    hosts.power_lost("rs3");
    hosts.until(20_000, "given up", |hosts| hosts.mode("mail1") == "ended");
    hosts.run(20_000);
    assert_eq!((hosts.holder(111), hosts.place("mail1")), ("mailb@mgmt".to_owned(), "mailb@mgmt".to_owned()));
    assert_eq!(
        hosts.notes("double-stays"),
        ["mailb stays on mgmt and is supervised there: rs3, where its target was, does not answer"]
    );
    assert!(hosts.signals().contains(&"A5 mail1: down@mgmt".to_owned()), "{:?}", hosts.signals());
    assert!(!hosts.orders().iter().any(|order| order.contains("migrate")), "{:?}", hosts.orders());
    assert!(hosts.tables().claims.values().all(|row| row.by != "mail1"));
}

#[test]
fn a_migration_that_is_refused_leaves_it_serving_and_is_said() {
    let mut hosts = Hosts::with(&text());
    hosts.refusal = Some("the destination lacks memory".into());
    let mut hosts = given_up_by(hosts);
    let epoch = hosts.epochs[&vip(111)].epoch;
    hosts.until(5_000, "A5", |hosts| hosts.signals().contains(&"A5 mail1: down@mgmt".to_owned()));
    hosts.run(60_000);
    assert_eq!((hosts.holder(111), hosts.place("mail1")), ("mailb@mgmt".to_owned(), "mailb@mgmt".to_owned()));
    assert_eq!(hosts.epochs[&vip(111)].epoch, epoch, "never closed");
    assert_eq!(
        hosts.notes("double-stays"),
        ["mailb stays on mgmt and is supervised there: the destination lacks memory"]
    );
    assert!(hosts.tables().claims.is_empty());
}

#[test]
fn one_whose_migration_nobody_saw_the_end_of_is_looked_for() {
    let mut hosts = given_up();
    hosts.unseen = true;
    hosts.until(5_000, "switched over", |hosts| at(hosts, "mailb") == "rs3");
    let took = hosts.until(5_000, "it is served", |hosts| hosts.holder(111) == "mailb@rs3");
    assert!(took < 2_500, "{took}");
    hosts.until(2_000, "A5", |hosts| hosts.place("mail1") == "mailb@rs3");
    hosts.run(60_000);
    assert!(hosts.tables().claims.is_empty());
}

#[test]
fn one_that_is_not_seen_to_leave_is_looked_for_after_its_time() {
    let mut hosts = given_up();
    hosts.until(5_000, "begun", |hosts| !hosts.migrations.is_empty());
    // It never ends: its host is cut off amid it.
    hosts.migrations.clear();
    hosts.unseen = true;
    hosts.cut.insert(n("rs3"));
    hosts.run(20_000);
    assert_eq!(hosts.notes("double-sought"), ["where mailb is, is not known: rs3 does not answer"], "said once");
    assert_eq!(hosts.holder(111), "mailb@mgmt");
    hosts.cut.clear();
    hosts.until(10_000, "A5", |hosts| hosts.signals().contains(&"A5 mail1: down@mgmt".to_owned()));
}

#[test]
fn a_new_coordinator_finds_it_on_its_way_and_goes_on() {
    for after in [0, 500, 2_000, 2_990, 3_100, 4_000] {
        for lost in [false, true] {
            let mut hosts = given_up();
            hosts.run(after);
            // What is said while there is none is lost.
            hosts.unseen = lost;
            hosts.new_coordinator();
            hosts.until(30_000, "moved", |hosts| {
                hosts.place("mail1") == "mailb@rs3" && hosts.tables().claims.is_empty()
            });
            hosts.run(5_000);
            assert_eq!((hosts.holder(111), at(&hosts, "mailb")), ("mailb@rs3".into(), "rs3".into()), "{after} {lost}");
            assert_eq!(hosts.mode("mail1"), "ended");
        }
    }
}

#[test]
fn a_claim_tells_the_verdict_too() {
    let mut hosts = given_up();
    hosts.run(1_000);
    hosts.troubles.clear();
    hosts.new_coordinator();
    hosts.until(10_000, "moved", |hosts| hosts.place("mail1") == "mailb@rs3" && hosts.tables().claims.is_empty());
    assert_eq!(hosts.mode("mail1"), "ended");
}

#[test]
fn a_crash_of_it_amid_the_migration_is_cured_at_home() {
    let mut hosts = given_up();
    hosts.until(5_000, "begun", |hosts| !hosts.migrations.is_empty());
    hosts.run(1_000);
    hosts.crash("mailb", true);
    hosts.until(20_000, "served", |hosts| hosts.holder(111) == "mailb@mgmt" && hosts.holder(112) == "mailb@mgmt");
    hosts.until(10_000, "over", |hosts| hosts.tables().claims.is_empty());
    assert!(hosts.signals().contains(&"A5 mail1: down@mgmt".to_owned()));
    hosts.run(30_000);
    assert_eq!(at(&hosts, "mailb"), "mgmt");
}

#[test]
fn a_second_member_fails_amid_the_migration_and_goes_with_it() {
    for after in (0..4_000).step_by(400) {
        let mut hosts = given_up();
        hosts.run(after);
        hosts.broken.insert(n("mail2"));
        hosts.crash("mail2", true);
        hosts.until(8_000, "all is served there", |hosts| {
            [111, 112, 113].iter().all(|last| hosts.holder(*last) == "mailb@rs3")
        });
        hosts.until(5_000, "A4", |hosts| hosts.place("mail2") == "mailb@rs3");
        // It is beyond repair too, and nothing moves any more.
        hosts.until(200_000, "given up", |hosts| hosts.mode("mail2") == "ended");
        hosts.run(5_000);
        assert!(hosts.tables().claims.is_empty(), "{:?}", hosts.tables().claims);
        assert_eq!([hosts.place("mail1"), hosts.place("mail2")], ["mailb@rs3", "mailb@rs3"]);
        let left = hosts.orders().iter().filter(|order| order.contains("migrate")).count();
        assert_eq!(left, 1, "{after}");
    }
}

#[test]
fn two_members_return_one_after_the_other_and_it_goes_home_with_the_last() {
    let mut hosts = moved();
    lose(&mut hosts, "mail2");
    hosts.run(5_000);
    assert_eq!([111, 113].map(|last| hosts.holder(last)), ["mailb@rs3"; 2]);
    repaired(&mut hosts, "mail1");
    hosts.until(5_000, "back", |hosts| hosts.holder(111) == "mail1@rs3" && hosts.mode("mail1") == "regular");
    hosts.run(30_000);
    assert_eq!((at(&hosts, "mailb"), hosts.holder(113)), ("rs3".into(), "mailb@rs3".into()));
    repaired(&mut hosts, "mail2");
    hosts.until(10_000, "home", |hosts| at(hosts, "mailb") == "mgmt, suspended");
    assert_eq!(hosts.holder(113), "mail2@rs2");
}

#[test]
fn its_target_repaired_it_goes_home_and_sleeps() {
    let mut hosts = moved();
    hosts.log.clear();
    repaired(&mut hosts, "mail1");
    hosts.until(5_000, "back", |hosts| hosts.holder(111) == "mail1@rs3" && hosts.mode("mail1") == "regular");
    hosts.until(10_000, "home", |hosts| at(hosts, "mailb") == "mgmt, suspended");
    hosts.run(2_000);
    assert_eq!(hosts.orders_about("mailb"), ["rs3: migrate to mgmt mailb", "mgmt: pause mailb"]);
    let told = hosts.signals();
    assert_eq!(
        told,
        ["claims of mail1: host mgmt, host rs3, virtual server mailb", "A5 mail1: recovered@rs3", "claims of mail1: "],
        "SIF forgets where it is with A5: claimed before, and until it is home"
    );
    assert!(hosts.tables().claims.is_empty());
    // And it stands in again, from there.
    hosts.crash("mail2", true);
    hosts.until(5_000, "A4", |hosts| hosts.place("mail2") == "mailb@mgmt" && hosts.holder(113) == "mailb@mgmt");
}

#[test]
fn a_new_coordinator_brings_it_home() {
    for after in [0, 100, 500, 2_000, 3_500, 5_000] {
        for lost in [false, true] {
            let mut hosts = moved();
            repaired(&mut hosts, "mail1");
            hosts.until(5_000, "back", |hosts| hosts.mode("mail1") == "regular");
            hosts.run(after);
            hosts.unseen = lost;
            hosts.new_coordinator();
            hosts.run(3_000);
            hosts.unseen = false;
            hosts.until(60_000, "home", |hosts| {
                at(hosts, "mailb") == "mgmt, suspended" && hosts.tables().claims.is_empty()
            });
            assert_eq!((hosts.holder(111), hosts.mode("mail1")), ("mail1@rs3".into(), "regular".into()));
        }
    }
}

#[test]
fn it_is_needed_again_on_its_way_home() {
    for after in (0..5_000).step_by(400) {
        let mut hosts = moved();
        repaired(&mut hosts, "mail1");
        hosts.until(5_000, "back", |hosts| hosts.mode("mail1") == "regular");
        hosts.run(after);
        hosts.crash("mail2", true);
        hosts.until(10_000, "served", |hosts| hosts.holder(113).starts_with("mailb@"));
        hosts.until(60_000, "back", |hosts| hosts.mode("mail2") == "regular" && hosts.holder(113) == "mail2@rs2");
        hosts
            .until(60_000, "home", |hosts| at(hosts, "mailb") == "mgmt, suspended" && hosts.tables().claims.is_empty());
    }
}

#[test]
fn a_way_home_that_fails_is_tried_again_and_it_sleeps_meanwhile() {
    let mut hosts = moved();
    hosts.refusal = Some("the destination lacks memory".into());
    repaired(&mut hosts, "mail1");
    hosts.until(10_000, "suspended", |hosts| at(hosts, "mailb") == "rs3, suspended");
    hosts.run(5_000);
    // It stands in from there, too.
    hosts.crash("mail2", true);
    hosts.until(5_000, "served", |hosts| hosts.holder(113) == "mailb@rs3");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail2") == "regular");
    hosts.refusal = None;
    hosts.until(120_000, "home", |hosts| at(hosts, "mailb") == "mgmt, suspended");
}

#[test]
fn one_that_stayed_at_home_only_sleeps() {
    let mut hosts = Hosts::with(&text());
    hosts.refusal = Some("the destination lacks memory".into());
    let mut hosts = given_up_by(hosts);
    hosts.run(10_000);
    repaired(&mut hosts, "mail1");
    hosts.until(5_000, "asleep", |hosts| at(hosts, "mailb") == "mgmt, suspended");
    assert_eq!((hosts.holder(111), hosts.mode("mail1")), ("mail1@rs3".into(), "regular".into()));
}

#[test]
fn the_operator_may_be_quicker_than_the_migration() {
    for after in (0..4_000).step_by(400) {
        let mut hosts = given_up();
        hosts.domains.insert(n("mail1"), (n("rs3"), true, 0));
        hosts.broken.clear();
        hosts.run(after);
        hosts.step(Event::Move { command: 1, target: n("mail1"), back: true, force: true });
        hosts.until(15_000, "back", |hosts| hosts.holder(111) == "mail1@rs3" && hosts.mode("mail1") == "regular");
        hosts
            .until(30_000, "home", |hosts| at(hosts, "mailb") == "mgmt, suspended" && hosts.tables().claims.is_empty());
    }
}

// ---- a DBSS of its own ----

#[test]
fn one_that_crashes_is_started_where_it_is() {
    let mut hosts = moved();
    hosts.log.clear();
    hosts.crash("mailb", true);
    hosts.until(10_000, "served", |hosts| hosts.holder(111) == "mailb@rs3" && hosts.holder(112) == "mailb@rs3");
    hosts.until(10_000, "well", |hosts| hosts.notes("double-normal").len() == 1);
    assert_eq!(hosts.orders_about("mailb"), ["rs3: resume mailb"]);
    hosts.run(1_000);
    assert!(hosts.tables().claims.is_empty());
}

#[test]
fn one_whose_services_do_not_answer_is_reset_once_and_then_told_of() {
    let mut hosts = moved();
    hosts.log.clear();
    hosts.sick.insert(n("mailb"));
    hosts.until(10_000, "reset", |hosts| hosts.orders_about("mailb") == ["rs3: reset mailb"]);
    hosts.until(20_000, "well", |hosts| hosts.notes("double-normal").len() == 1);
    assert_eq!(hosts.holder(111), "mailb@rs3");
    // Its reboots are used up.
    hosts.sick.insert(n("mailb"));
    hosts.until(20_000, "told", |hosts| hosts.notes("double-down").len() == 1);
    hosts.run(60_000);
    assert_eq!((hosts.orders_about("mailb").len(), hosts.notes("double-down").len()), (1, 1));
    let detail = hosts.core.target(&n("mail1")).unwrap().detail;
    assert!(detail.contains("mailb on rs3 is in trouble"), "{detail}");
    hosts.sick.clear();
    hosts.until(5_000, "well", |hosts| hosts.notes("double-normal").len() == 2);
}

#[test]
fn one_whose_host_is_lost_is_started_there_when_that_is_back() {
    let mut hosts = moved();
    hosts.log.clear();
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
    hosts.power_lost("rs3");
    hosts.run(60_000);
    assert!(hosts.orders_about("mailb").is_empty(), "{:?}", hosts.orders_about("mailb"));
    hosts.off.clear();
    hosts.until(30_000, "served", |hosts| hosts.holder(111) == "mailb@rs3");
    assert!(hosts.orders_about("mailb").iter().all(|order| order.starts_with("rs3: ")));
}

#[test]
fn nothing_is_done_to_it_against_an_order() {
    let mut hosts = moved();
    let order = kage_types::Order {
        scope: kage_types::OrderScope::All,
        who: "me".into(),
        reason: String::new(),
        since_unix_ms: 0,
        until_unix_ms: None,
    };
    hosts.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 1 });
    hosts.log.clear();
    hosts.sick.insert(n("mailb"));
    hosts.run(20_000);
    assert!(hosts.orders_about("mailb").is_empty());
    assert_eq!(hosts.notes("withheld").len(), 1);
}

#[test]
fn what_an_agent_that_it_is_not_on_says_of_it_is_no_news() {
    let mut hosts = moved();
    hosts.log.clear();
    let report = AgentReport::VmCrashed { domain: n("mailb"), detail: "the other end".into() };
    hosts.step(Event::Report { agent: n("mgmt"), report });
    hosts.run(5_000);
    assert!(hosts.orders_about("mailb").is_empty());
    let migrates = |command: &AgentCommand| matches!(command, AgentCommand::MigrateVm { .. });
    assert!(!hosts.commands(migrates));
}
