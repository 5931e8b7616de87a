//! A backup server that power saving moves while it fills a place: it is kept in sight, and goes home when it is free.

use super::hosts::{Hosts, config, n, vip};
use kage_coordinator_core::{AgentReport, Event};
use kage_sif_core::Signal;
use kage_types::{AskVip, DomainName, StepState, Term};

/// mail1 is served by mailb, on mgmt, as the operator wants it. The ledger was restored since, and knows of no claim.
fn failed_over() -> Hosts {
    let mut hosts = Hosts::with(&format!("{}[pss]\nmigration_limit = \"10s\"\n", config(false)));
    hosts.step(Event::Move { command: 1, target: n("mail1"), back: false, force: false });
    hosts.until(5_000, "failed over", |hosts| {
        hosts.place("mail1") == "mailb@mgmt" && hosts.holder(111) == "mailb@mgmt" && hosts.holder(112) == "mailb@mgmt"
    });
    hosts.run(6_000);
    let (by, why) = ("mail1".to_owned(), String::new());
    hosts.signal(Signal::PutClaims { term: Term(1), by, why, claims: [].into() }).unwrap();
    hosts.run(100);
    hosts.log.clear();
    hosts
}

#[test]
fn what_the_operator_has_moved_is_claimed_until_it_is_back() {
    let mut hosts = Hosts::new();
    hosts.step(Event::Move { command: 1, target: n("mail1"), back: false, force: false });
    hosts.until(5_000, "failed over", |hosts| hosts.place("mail1") == "mailb@mgmt");
    for _ in 0..2 {
        hosts.run(20_000);
        let claims: Vec<String> = hosts.tables().claims.keys().map(ToString::to_string).collect();
        assert_eq!(claims, ["virtual server mail1", "virtual IP 10.0.0.111", "virtual IP 10.0.0.112"]);
        hosts.new_coordinator();
    }
    hosts.run(20_000);
    fail_back(&mut hosts);
    all_home(&mut hosts);
}

fn fail_back(hosts: &mut Hosts) {
    hosts.step(Event::Move { command: 2, target: n("mail1"), back: true, force: true });
}

fn at(hosts: &Hosts) -> String {
    let (host, runs, _) = &hosts.domains[&n::<DomainName>("mailb")];
    format!("{host}{}", if *runs { "" } else { ", suspended" })
}

/// mail1 serves again, mailb sleeps at home, and neither was told anything anywhere else than where it was.
fn all_home(hosts: &mut Hosts) {
    hosts.until(60_000, "home", |hosts| {
        at(hosts) == "mgmt, suspended"
            && hosts.holder(111) == "mail1@rs1"
            && hosts.holder(112) == "mail1@rs1"
            && hosts.tables().claims.is_empty()
    });
    assert_eq!((hosts.place("mail1"), hosts.mode("mail1")), ("mail1@rs1".into(), "regular".into()));
    assert!(hosts.notes("command-failed").is_empty(), "{:?}", hosts.notes("command-failed"));
}

#[test]
fn its_virtual_ips_go_with_it() {
    let mut hosts = failed_over();
    hosts.live("mailb", "mgmt", "rs3");
    hosts.until(3_000, "they follow", |hosts| hosts.holder(111) == "mailb@rs3" && hosts.holder(112) == "mailb@rs3");
    hosts.run(10_000);
    assert_eq!((at(&hosts), hosts.place("mail1")), ("rs3".into(), "mailb@rs3".into()));
}

#[test]
fn it_goes_home_when_its_target_is_back() {
    let mut hosts = failed_over();
    hosts.live("mailb", "mgmt", "rs3");
    hosts.run(3_000);
    hosts.log.clear();
    fail_back(&mut hosts);
    all_home(&mut hosts);
    assert_eq!(hosts.orders_about("mailb"), ["rs3: migrate to mgmt mailb", "mgmt: pause mailb"]);
    // And stands in again, from there.
    hosts.crash("mail2", true);
    hosts.until(5_000, "A4", |hosts| hosts.place("mail2") == "mailb@mgmt" && hosts.holder(113) == "mailb@mgmt");
}

#[test]
fn a_new_coordinator_brings_it_home_too() {
    for after in [0, 500, 2_000, 4_000] {
        let mut hosts = failed_over();
        hosts.live("mailb", "mgmt", "rs3");
        hosts.run(3_000);
        fail_back(&mut hosts);
        hosts.run(after);
        hosts.new_coordinator();
        if hosts.holder(111) != "mail1@rs1" {
            hosts.run(20_000);
            fail_back(&mut hosts);
        }
        all_home(&mut hosts);
    }
}

#[test]
fn its_target_returns_amid_the_migration() {
    for (switched, told) in [(false, false), (true, false), (true, true)] {
        let mut hosts = failed_over();
        let id = hosts.migrate("mailb", "mgmt", "rs3");
        if switched {
            hosts.domains.get_mut(&n::<DomainName>("mailb")).unwrap().0 = n("rs3");
            for (vip, epoch) in hosts.held_by("mailb") {
                hosts.held.remove(&vip);
                let reason = "switched over to rs3".to_owned();
                let report = AgentReport::Lost { ask: AskVip { vip, epoch }, reason };
                if told {
                    hosts.step(Event::Report { agent: n("mgmt"), report });
                }
            }
        }
        fail_back(&mut hosts);
        hosts.until(20_000, "back", |hosts| hosts.holder(111) == "mail1@rs1" && hosts.mode("mail1") == "regular");
        hosts.run(2_000);
        hosts.migration(id, if switched { StepState::Done } else { StepState::Undone });
        all_home(&mut hosts);
        let about = hosts.orders_about("mailb");
        let astray = if switched { "mgmt: pause mailb" } else { "rs3: " };
        assert!(!about.first().unwrap().starts_with(astray), "{switched} {told}: {about:?}");
    }
}

#[test]
fn one_whose_virtual_ips_are_gathered_elsewhere_stays_in_the_place_that_it_fills() {
    let mut hosts = super::beyond_repair::moved();
    hosts.log.clear();
    // To Light condition: mail2 has all of it.
    hosts.put(111, "mailb", "mail2");
    hosts.put(112, "mailb", "mail2");
    hosts.until(5_000, "gathered", |hosts| hosts.held_by("mail2").len() == 3);
    hosts.run(20_000);
    assert!(hosts.tables().claims.is_empty(), "nothing is in power saving's way: {:?}", hosts.tables().claims);
    assert_eq!((at(&hosts), hosts.place("mail1")), ("rs3".into(), "mailb@rs3".into()));
    assert!(hosts.orders_about("mailb").is_empty(), "{:?}", hosts.orders_about("mailb"));
    // Nor does a new coordinator take it for back.
    hosts.new_coordinator();
    hosts.run(20_000);
    assert_eq!((hosts.mode("mail1"), hosts.place("mail1")), ("ended".into(), "mailb@rs3".into()));
    // And back.
    hosts.put(111, "mail2", "mailb");
    hosts.put(112, "mail2", "mailb");
    hosts.until(5_000, "back", |hosts| hosts.holder(111) == "mailb@rs3" && hosts.holder(112) == "mailb@rs3");
    assert!(hosts.epochs[&vip(113)].domain == Some(n("mail2")));
}
