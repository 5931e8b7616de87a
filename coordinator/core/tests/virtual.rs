//! Virtual servers as targets (thesis ch. 4): crash, takeover with all that was held, start where it was, and back.

#![allow(clippy::wildcard_enum_match_arm, reason = "each test names the actions that it is about")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "virtual/beyond_repair.rs"]
mod beyond_repair;
#[path = "virtual/further.rs"]
mod further;
#[path = "virtual/hosts.rs"]
mod hosts;
#[path = "virtual/inside.rs"]
mod inside;
#[path = "virtual/moved_double.rs"]
mod moved_double;
#[path = "virtual/other_power.rs"]
mod other_power;

use hosts::{Hosts, n};
use kage_coordinator_core::{Action, AgentReport, Event};
use kage_types::{DomainName, StepState};

#[test]
fn a_crashed_virtual_server_is_stood_in_for_started_where_it_was_and_takes_its_place_again() {
    let mut hosts = Hosts::new();
    hosts.crash("mail1", false);
    hosts.until(5_000, "the backup serves", |hosts| {
        hosts.holder(111) == "mailb@mgmt" && hosts.holder(112) == "mailb@mgmt"
    });
    hosts.until(1_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    hosts.run(500);
    assert_eq!(
        (hosts.holder(111), hosts.holder(112), hosts.place("mail1")),
        ("mail1@rs1".to_owned(), "mail1@rs1".to_owned(), "mail1@rs1".to_owned())
    );
    assert_eq!(hosts.orders(), ["mgmt: resume mailb", "rs1: start mail1", "mgmt: pause mailb"]);
    let told = hosts.signals();
    assert_eq!(told[1..], ["A4 mail1: mailb@mgmt", "A5 mail1: recovered@rs1", "claims of mail1: "]);
    assert!(hosts.tables().claims.is_empty() && hosts.tables().displaced.is_empty());
    // And nothing is moved again by what the tables said on the way.
    hosts.run(20_000);
    assert_eq!((hosts.mode("mail1").as_str(), hosts.holder(111).as_str()), ("regular", "mail1@rs1"));
    assert!(hosts.notes("arranged").is_empty(), "{:?}", hosts.notes("arranged"));
}

/// mail1 is on rs2 by live migration, with all that it holds.
fn away_from_home() -> Hosts {
    let mut hosts = Hosts::new();
    hosts.live("mail1", "rs1", "rs2");
    assert_eq!((hosts.holder(111).as_str(), hosts.place("mail1").as_str()), ("mail1@rs2", "mail1@rs2"));
    hosts
}

#[test]
fn one_that_hangs_away_from_home_is_started_there_and_nowhere_else() {
    let mut hosts = away_from_home();
    hosts.hang("mail1");
    hosts.until(5_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert_eq!(
        hosts.orders_about("mail1"),
        ["rs2: start mail1", "rs2: reset mail1"],
        "it runs, and is deaf: the start changes nothing"
    );
    hosts.run(500);
    assert_eq!((hosts.holder(111).as_str(), hosts.place("mail1").as_str()), ("mail1@rs2", "mail1@rs2"));
    assert_eq!(hosts.signals().last().unwrap(), "claims of mail1: ");
}

#[test]
fn a_new_coordinator_starts_it_where_it_was_too() {
    let mut hosts = away_from_home();
    hosts.hang("mail1");
    hosts.until(5_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.new_coordinator();
    hosts.until(60_000, "back", |hosts| hosts.place("mail1") == "mail1@rs2" && hosts.mode("mail1") == "regular");
    assert!(hosts.orders_about("mail1").iter().all(|order| order.starts_with("rs2: ")));
}

#[test]
fn a_new_coordinator_tells_what_an_earlier_one_could_not() {
    let mut hosts = Hosts::new();
    hosts.signals_lost = true;
    hosts.crash("mail1", false);
    hosts.until(5_000, "the backup serves", |hosts| hosts.mode("mail1") == "target-server-recovery/awaiting");
    // Nobody knows that power saving has let go of it: it is not started.
    hosts.run(60_000);
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders());
    assert_eq!(hosts.notes("waking").len(), 1, "said once: {:?}", hosts.notes("waking"));
    hosts.new_coordinator();
    hosts.signals_lost = false;
    hosts.until(5_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.until(60_000, "back", |hosts| hosts.place("mail1") == "mail1@rs1" && hosts.mode("mail1") == "regular");
}

#[test]
fn one_whose_migration_nobody_saw_the_end_of_is_switched_off_at_the_other_end_first() {
    let mut hosts = Hosts::new();
    hosts.migrate("mail1", "rs1", "rs2");
    // It has switched over and hangs; whoever would have said so is not heard.
    hosts.domains.get_mut(&n::<DomainName>("mail1")).unwrap().0 = n("rs2");
    hosts.hang("mail1");
    hosts.cut.insert(n("rs2"));
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.run(60_000);
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders_about("mail1"));
    let said: Vec<String> = hosts.notes("waking").into_iter().filter(|text| text.contains("mail1")).collect();
    assert_eq!(
        said,
        ["mail1 may be running on rs2, which is away: it is started on rs1 when it is off there for certain"]
    );
    hosts.cut.clear();
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert_eq!(hosts.orders_about("mail1"), ["rs2: destroy mail1", "rs1: start mail1"]);
}

#[test]
fn a_reset_is_preceded_by_the_plug_pulled_at_the_other_end_too() {
    let mut hosts = Hosts::new();
    hosts.migrate("mail1", "rs1", "rs2");
    hosts.sick.insert(n("mail1"));
    hosts.until(60_000, "back", |hosts| hosts.notes("regular").len() == 1);
    assert_eq!(hosts.orders_about("mail1"), ["rs2: destroy mail1", "rs1: reset mail1"]);
}

#[test]
fn what_power_saving_says_of_a_migration_counts_after_the_takeover() {
    let mut hosts = Hosts::new();
    let id = hosts.migrate("mail1", "rs1", "rs2");
    hosts.domains.get_mut(&n::<DomainName>("mail1")).unwrap().0 = n("rs2");
    hosts.hang("mail1");
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.migration(id, StepState::Done);
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    hosts.run(500);
    assert_eq!((hosts.holder(111).as_str(), hosts.place("mail1").as_str()), ("mail1@rs2", "mail1@rs2"));
    assert_eq!(hosts.orders_about("mail1"), ["rs2: start mail1", "rs2: reset mail1"]);
}

#[test]
fn one_whose_real_server_is_away_waits_for_it_and_that_is_said_once() {
    let mut hosts = away_from_home();
    hosts.power_lost("rs2");
    hosts.until(10_000, "the backup serves", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.run(120_000);
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders_about("mail1"));
    let said: Vec<String> = hosts.notes("waking").into_iter().filter(|text| text.contains("mail1")).collect();
    assert_eq!(said, ["its real server rs2 is away: mail1 is started when that is back"]);
    hosts.off.clear();
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert_eq!(hosts.orders_about("mail1"), ["rs2: start mail1"]);
}

#[test]
fn one_whose_restarts_do_not_help_is_reset_where_it_is_and_given_up_there() {
    let mut hosts = away_from_home();
    hosts.sick.insert(n("mail1"));
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert!(hosts.orders().contains(&"rs2: reset mail1".to_owned()), "{:?}", hosts.orders());
    // Once more within the window: beyond repair.
    hosts.run(500);
    hosts.log.clear();
    hosts.sick.insert(n("mail1"));
    hosts.until(60_000, "given up", |hosts| hosts.mode("mail1") == "ended");
    hosts.run(10_000);
    let told = hosts.signals();
    assert!(told.contains(&"A5 mail1: down@mgmt".to_owned()), "{told:?}");
    assert_eq!(told.last().unwrap(), "claims of mail1: ");
    assert_eq!((hosts.holder(111).as_str(), hosts.place("mail1").as_str()), ("mailb@mgmt", "mailb@mgmt"));
    assert!(hosts.tables().claims.is_empty());
    hosts.run(60_000);
    assert!(hosts.orders_about("mail1").is_empty(), "nothing is done to it any more");
    // Repaired, the operator starts it again: it is where it was.
    hosts.sick.clear();
    hosts.run(6_000);
    hosts.step(kage_coordinator_core::Event::Move { command: 1, target: n("mail1"), back: true, force: false });
    hosts.until(5_000, "back", |hosts| hosts.place("mail1") == "mail1@rs2" && hosts.holder(112) == "mail1@rs2");
}

#[test]
fn a_real_server_that_dies_with_its_guests_is_one_failure_domain() {
    let rack = "failure_domain = \"rack\"\n";
    let config = hosts::config(true)
        .replace("voter = true\n", &format!("voter = true\n{rack}"))
        .replace("10.0.0.13:7702\"\n", &format!("10.0.0.13:7702\"\n{rack}"));
    let mut hosts = Hosts::with(&config);
    hosts.live("mail1", "rs1", "rs2");
    hosts.power_lost("rs2");
    hosts.until(10_000, "both are served", |hosts| {
        [111, 112, 113].iter().all(|last| hosts.holder(*last) == "mailb@mgmt")
    });
    assert_eq!(hosts.core.storm_brake(), None);
    // Two real servers at once are a storm all the same.
    hosts.off.clear();
    hosts.until(120_000, "back", |hosts| hosts.mode("mail1") == "regular" && hosts.mode("mail2") == "regular");
    hosts.power_lost("rs1");
    hosts.power_lost("rs2");
    hosts.run(1_000);
    assert!(hosts.core.storm_brake().is_some());
}

#[test]
fn a_virtual_server_that_holds_nothing_is_looked_at_at_its_own_address() {
    let mut hosts = Hosts::new();
    hosts.put(113, "mail2", "mail1");
    hosts.until(2_000, "moved", |hosts| hosts.holder(113) == "mail1@rs1");
    hosts.crash("mail2", false);
    hosts.until(60_000, "started", |hosts| hosts.orders_about("mail2") == ["rs2: start mail2"]);
    hosts.until(60_000, "back", |hosts| hosts.mode("mail2") == "regular");
    hosts.run(500);
    assert_eq!((hosts.holder(113).as_str(), hosts.place("mail2").as_str()), ("mail1@rs1", "mail2@rs2"));
}

/// 113, mail2's own, is on mail1 though it belongs elsewhere: mail2 is being recovered, and what is arranged waits.
fn holding_for_another() -> Hosts {
    let mut hosts = Hosts::new();
    hosts.put(113, "mail2", "mail1");
    hosts.until(2_000, "moved", |hosts| hosts.holder(113) == "mail1@rs1");
    hosts.broken.insert(n("mail2"));
    hosts.crash("mail2", false);
    hosts.until(10_000, "A4 of mail2", |hosts| hosts.place("mail2") == "mailb@mgmt");
    hosts.put(113, "mail1", "mailb");
    hosts.run(500);
    assert_eq!((hosts.holder(113).as_str(), hosts.tables().placement.len()), ("mail1@rs1", 0));
    hosts.log.clear();
    hosts
}

#[test]
fn a_claim_covers_what_the_failed_one_really_held_and_the_backups_host() {
    let mut hosts = holding_for_another();
    hosts.crash("mail1", false);
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    assert_eq!(
        hosts.signals()[0],
        "claims of mail1: host mgmt, virtual server mail1, virtual IP 10.0.0.111, virtual IP 10.0.0.112, virtual IP \
         10.0.0.113"
    );
}

#[test]
fn a4_is_sent_when_all_that_was_held_has_moved() {
    let mut hosts = holding_for_another();
    hosts.slow.insert(hosts::vip(113));
    hosts.crash("mail1", false);
    hosts.until(10_000, "A4", |hosts| hosts.signals().iter().any(|signal| signal.starts_with("A4 mail1")));
    assert_eq!([111, 112, 113].map(|last| hosts.holder(last)), ["mailb@mgmt"; 3]);
}

#[test]
fn a_crash_that_is_told_is_acted_on_at_once() {
    let mut hosts = Hosts::new();
    hosts.crash("mail1", true);
    let took = hosts.until(5_000, "the backup serves", |hosts| {
        hosts.holder(111) == "mailb@mgmt" && hosts.holder(112) == "mailb@mgmt"
    });
    assert!(took <= 200, "resuming the backup, and no more: {took}");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    hosts.run(500);
    assert_eq!(
        (hosts.orders_about("mail1"), hosts.place("mail1")),
        (vec!["rs1: start mail1".into()], "mail1@rs1".into())
    );
    // Told by a real server that it is not on, it is no news.
    let report = AgentReport::VmCrashed { domain: n("mail1"), detail: "the incoming end".into() };
    hosts.step(Event::Report { agent: n("rs2"), report });
    hosts.run(1_000);
    assert_eq!(hosts.mode("mail1"), "regular");
}

#[test]
fn a_guest_that_says_it_goes_down_is_handed_over_at_once() {
    let mut hosts = Hosts::with(&hosts::config(true));
    let report = AgentReport::GoingDown { machine: true, what: "reboot".into() };
    hosts.step(Event::Report { agent: n("mail1g"), report });
    let took = hosts.until(5_000, "the backup serves", |hosts| hosts.holder(111) == "mailb@mgmt");
    assert!(took <= 200, "{took}");
    assert_eq!(hosts.mode("mail2"), "regular");
    hosts.crash("mail1", false);
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
}

#[test]
fn a_service_that_a_guest_holds_back_is_its_targets() {
    let mut hosts = Hosts::with(&hosts::config(true));
    for agent in ["mail1g", "rs1"] {
        let report = AgentReport::ServiceHeld { service: n("smtp"), held: true };
        hosts.step(Event::Report { agent: n(agent), report });
    }
    let about = hosts.log.iter().filter_map(|(_, action)| match action {
        Action::Note(note) if note.kind == "service-held" => Some(note.target.as_ref().map(ToString::to_string)),
        _ => None,
    });
    assert_eq!(about.collect::<Vec<_>>(), [Some("mail1".to_owned()), None]);
}

#[test]
fn a_short_silence_in_a_live_migration_is_no_trouble_and_a_long_one_is() {
    let mut hosts = Hosts::new();
    hosts.migrate("mail1", "rs1", "rs2");
    hosts.hang("mail1");
    hosts.run(2_500);
    hosts.domains.get_mut(&n::<DomainName>("mail1")).unwrap().2 = 0;
    hosts.run(10_000);
    assert_eq!((hosts.mode("mail1").as_str(), hosts.notes("network-trouble").len()), ("regular", 0));
    hosts.hang("mail1");
    let took = hosts.until(20_000, "the backup serves", |hosts| hosts.holder(111) == "mailb@mgmt");
    assert!(took < 8_000, "{took}");
    // Without one there is no such grace.
    hosts.hang("mail2");
    let took = hosts.until(20_000, "the backup serves", |hosts| hosts.holder(113) == "mailb@mgmt");
    assert!(took < 2_500, "{took}");
}

#[test]
fn a_backup_server_that_crashes_serves_all_that_it_held_anew() {
    // mail2, whose virtual IP it holds, has another one.
    let config = hosts::config(false);
    let (mail1, mail2) = config.split_once("name = \"mail2\"").unwrap();
    let mut hosts = Hosts::with(&format!("{mail1}name = \"mail2\"{}", mail2.replace("mailb", "mailc")));
    hosts.put(113, "mail2", "mail1");
    hosts.until(2_000, "moved", |hosts| hosts.holder(113) == "mail1@rs1");
    hosts.broken.insert(n("mail1"));
    hosts.crash("mail1", false);
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.run(200);
    let before = [111, 112, 113].map(|last| hosts.epochs[&hosts::vip(last)].epoch.next());
    hosts.crash("mailb", true);
    hosts.until(2_000, "served anew", |hosts| [111, 112, 113].iter().all(|last| hosts.holder(*last) == "mailb@mgmt"));
    assert_eq!([111, 112, 113].map(|last| hosts.epochs[&hosts::vip(last)].epoch), before);
}

#[test]
fn a_new_coordinator_tells_of_a_return_that_an_earlier_one_could_not() {
    let mut hosts = Hosts::new();
    hosts.crash("mail1", true);
    hosts.until(30_000, "started", |hosts| !hosts.orders_about("mail1").is_empty());
    hosts.signals_lost = true;
    hosts.until(30_000, "back", |hosts| hosts.mode("mail1") == "regular");
    hosts.run(500);
    assert_eq!(hosts.place("mail1"), "mailb@mgmt");
    hosts.new_coordinator();
    hosts.signals_lost = false;
    hosts.run(10_000);
    assert_eq!((hosts.mode("mail1").as_str(), hosts.place("mail1").as_str()), ("regular", "mail1@rs1"));
    assert!(hosts.tables().claims.is_empty(), "{:?}", hosts.tables().claims);
    assert_eq!((hosts.holder(111).as_str(), hosts.notes("arranged").len()), ("mail1@rs1", 0));
}

/// Power saving was moving mail1 from rs1 to rs2; it has arrived there and hangs, and nobody saw that before the transition
/// was ended.
fn given_up_unseen() -> Hosts {
    let mut hosts = Hosts::new();
    let id = hosts.migrate("mail1", "rs1", "rs2");
    hosts.domains.get_mut(&n::<DomainName>("mail1")).unwrap().0 = n("rs2");
    hosts.hang("mail1");
    hosts.cut.insert(n("rs2"));
    hosts.give_up(id);
    hosts.until(10_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts
}

#[test]
fn one_whose_migration_was_given_up_unseen_is_not_started_while_the_other_end_is_cut_off() {
    let mut hosts = given_up_unseen();
    hosts.run(120_000);
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders_about("mail1"));
    // Nor by the next coordinator.
    hosts.new_coordinator();
    hosts.run(120_000);
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders_about("mail1"));
    hosts.cut.clear();
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert_eq!(hosts.orders_about("mail1"), ["rs2: destroy mail1", "rs1: start mail1"]);
    hosts.run(500);
    assert!(hosts.tables().may_be_on.is_empty(), "{:?}", hosts.tables().may_be_on);
}

#[test]
fn that_it_does_not_run_at_the_other_end_is_durable_before_it_is_started() {
    let mut hosts = given_up_unseen();
    hosts.signals_lost = true;
    hosts.cut.clear();
    hosts.run(15_000);
    assert_eq!(hosts.orders_about("mail1")[..1], ["rs2: destroy mail1"]);
    assert!(!hosts.orders_about("mail1").iter().any(|order| order.starts_with("rs1")), "{:?}", hosts.orders());
    hosts.signals_lost = false;
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert!(hosts.signals().contains(&"moved mail1@rs1, not on rs2".to_owned()), "{:?}", hosts.signals());
    // The next time, nothing is asked of the other end.
    hosts.run(500);
    hosts.log.clear();
    hosts.cut.insert(n("rs2"));
    hosts.crash("mail1", false);
    hosts.until(60_000, "back", |hosts| hosts.notes("regular").len() == 1);
    assert_eq!(hosts.orders_about("mail1"), ["rs1: start mail1"]);
}

#[test]
fn one_that_power_saving_finds_at_the_other_end_is_recovered_there() {
    let mut hosts = given_up_unseen();
    hosts.run(20_000);
    hosts.cut.clear();
    hosts.found("mail1", "rs2", "rs1");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    hosts.run(500);
    assert_eq!((hosts.holder(111).as_str(), hosts.place("mail1").as_str()), ("mail1@rs2", "mail1@rs2"));
    assert!(hosts.orders_about("mail1").iter().all(|order| order.starts_with("rs2: ")), "{:?}", hosts.orders());
    assert!(hosts.tables().may_be_on.is_empty());
}

#[test]
fn a_real_server_that_is_configured_no_more_is_not_waited_for() {
    let mut hosts = given_up_unseen();
    hosts.run(20_000);
    assert!(hosts.orders_about("mail1").is_empty());
    // The operator has scrapped it; what was there is no more.
    hosts.domains.remove(&n::<DomainName>("mail1"));
    let config = hosts::config(false).replace("host = \"rs2\"", "host = \"rs3\"");
    let (before, rest) = config.split_once("[[agent]]\nname = \"rs2\"").unwrap();
    let after = rest.split_once("[[agent]]").unwrap().1;
    hosts.restart_with(&format!("{before}[[agent]]{after}"));
    hosts.until(90_000, "back", |hosts| hosts.mode("mail1") == "regular");
    assert_eq!(hosts.orders_about("mail1"), ["rs1: start mail1"]);
    assert!(hosts.tables().may_be_on.is_empty());
}

#[test]
fn one_that_answers_though_its_real_server_is_cut_off_waits_to_be_found() {
    let mut hosts = Hosts::new();
    let id = hosts.migrate("mail1", "rs1", "rs2");
    // It has switched over, and the source could not say so any more.
    hosts.domains.get_mut(&n::<DomainName>("mail1")).unwrap().0 = n("rs2");
    hosts.cut.insert(n("rs1"));
    hosts.until(20_000, "A4", |hosts| hosts.place("mail1") == "mailb@mgmt");
    hosts.give_up(id);
    hosts.run(120_000);
    assert_ne!(hosts.mode("mail1"), "ended");
    let said: Vec<String> = hosts.notes("waking").into_iter().filter(|text| text.contains("ended unseen")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    hosts.cut.clear();
    hosts.found("mail1", "rs2", "rs1");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail1") == "regular");
    hosts.run(500);
    assert_eq!((hosts.holder(111).as_str(), hosts.place("mail1").as_str()), ("mail1@rs2", "mail1@rs2"));
    assert!(hosts.orders_about("mail1").is_empty(), "{:?}", hosts.orders_about("mail1"));
}

#[test]
fn a_backup_server_that_has_moved_with_a_place_stands_in_from_where_it_is() {
    let mut hosts = Hosts::new();
    hosts.broken.insert(n("mail1"));
    hosts.crash("mail1", false);
    hosts.until(200_000, "given up", |hosts| hosts.mode("mail1") == "ended");
    hosts.until(60_000, "A5", |hosts| hosts.tables().claims.is_empty());
    let at = hosts.domains[&n::<DomainName>("mailb")].0.to_string();
    hosts.live("mailb", &at, "rs3");
    assert_eq!([111, 112].map(|last| hosts.holder(last)), ["mailb@rs3"; 2]);
    // Resumed where it was once, it would run twice.
    hosts.crash("mail2", true);
    hosts.until(10_000, "A4", |hosts| hosts.place("mail2") == "mailb@rs3");
    assert_eq!(hosts.holder(113), "mailb@rs3");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail2") == "regular");
    hosts.run(10_000);
    assert_eq!([111, 112].map(|last| hosts.holder(last)), ["mailb@rs3"; 2]);
    assert_eq!(hosts.orders_about("mailb"), ["rs3: resume mailb"]);
}
