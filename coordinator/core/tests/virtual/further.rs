//! A further backup server takes over from one that stands in for good and can't be cured, and gives back.

use super::hosts::{Hosts, config, n, vip};
use kage_coordinator_core::{Event, config::Cluster};
use kage_types::DomainName;

/// mailb's own address is 10.0.0.63, and mailc on rs2 its further one; more keys of the targets and their services.
fn text(target: &str, service: &str) -> String {
    let quick = config(false).replace("\"20s\"", "\"8s\"").replace("reboot_wait = \"10s\"", "reboot_wait = \"2s\"");
    let with = format!(
        "domain = \"mailb\", address = \"10.0.0.63\", further = {{ agent = \"rs2\", domain = \"mailc\" }} }}\n{target}"
    );
    let quick = quick.replace("domain = \"mailb\" }", &with).replace("port = 25\n", &format!("port = 25\n{service}\n"));
    format!("{quick}[pss]\nmigration_limit = \"10s\"\n")
}

/// Never reset: what does not answer is beyond cure.
const NO_RESET: &str = "budget = { reboots = 0 }";

/// mail1 is beyond repair, and mailb stands in for it on rs3.
fn moved(config: &str) -> Hosts {
    let mut hosts = Hosts::with(config);
    hosts.live("mail1", "rs1", "rs3");
    hosts.broken.insert(n("mail1"));
    hosts.crash("mail1", true);
    hosts.until(200_000, "moved", |hosts| hosts.place("mail1") == "mailb@rs3" && hosts.tables().claims.is_empty());
    hosts.run(1_000);
    hosts.log.clear();
    hosts
}

fn at(hosts: &Hosts, domain: &str) -> String {
    match hosts.domains.get(&n::<DomainName>(domain)) {
        Some((host, true, _)) => host.to_string(),
        Some((host, false, _)) => format!("{host}, suspended"),
        None => "off".to_owned(),
    }
}

fn served_by(hosts: &mut Hosts, who: &str) -> u64 {
    let took = hosts.until(60_000, who, |hosts| [111, 112].iter().all(|last| hosts.holder(*last) == who));
    hosts.until(2_000, "A4", |hosts| hosts.place("mail1") == who);
    took
}

/// mailc serves, as mailb is sick.
fn relieved(config: &str) -> Hosts {
    let mut hosts = moved(config);
    hosts.sick.insert(n("mailb"));
    served_by(&mut hosts, "mailc@rs2");
    hosts.run(1_000);
    hosts
}

/// mail1 is repaired, and the operator says so.
fn repaired(hosts: &mut Hosts) {
    hosts.broken.clear();
    hosts.domains.insert(n("mail1"), (n("rs3"), true, 0));
    hosts.run(6_000);
    hosts.step(Event::Move { command: 1, target: n("mail1"), back: true, force: false });
}

/// Everybody is in place, and sleeps who should.
fn all_at_home(hosts: &mut Hosts) {
    hosts.until(60_000, "home", |hosts| {
        hosts.mode("mail1") == "regular"
            && hosts.tables().claims.is_empty()
            && at(hosts, "mailb") == "mgmt, suspended"
            && at(hosts, "mailc") == "rs2, suspended"
    });
    hosts.run(5_000);
    assert_eq!([hosts.holder(111), hosts.place("mail1")], ["mail1@rs3", "mail1@rs3"]);
}

#[test]
fn it_takes_over_when_the_stand_in_can_not_be_cured() {
    let mut hosts = moved(&text("", ""));
    let epoch = hosts.epochs[&vip(111)].epoch;
    hosts.sick.insert(n("mailb"));
    hosts.until(20_000, "reset", |hosts| hosts.notes("double-normal").len() == 1);
    assert_eq!(hosts.orders(), ["rs3: reset mailb"], "what cures it is enough");
    hosts.run(100);
    // Its reboots are used up.
    hosts.log.clear();
    hosts.sick.insert(n("mailb"));
    let took = served_by(&mut hosts, "mailc@rs2");
    assert!(took < 2_000, "{took}");
    assert_eq!(hosts.orders_about("mailc"), ["rs2: resume mailc"]);
    assert_eq!(hosts.notes("double-relieved"), ["mailc on rs2 takes over from mailb on rs3"]);
    assert!(hosts.notes("double-down").is_empty() && hosts.epochs[&vip(111)].epoch > epoch);
    hosts.run(1_000);
    assert_eq!(
        hosts.signals(),
        [
            "claims of mail1: virtual server mailb",
            "claims of mail1: host rs2, host rs3, virtual server mailb, virtual server mailc",
            "A4 mail1: mailc@rs2",
            "A5 mail1: down@rs2"
        ],
        "SIF forgets where mailb is with A4: claimed before"
    );
    let detail = hosts.core.target(&n("mail1")).unwrap().detail;
    assert!(detail.ends_with("mailb on rs3 is relieved; mailc serves on rs2, supervised"), "{detail}");
    hosts.run(60_000);
    assert_eq!((hosts.holder(111).as_str(), hosts.notes("arranged").len()), ("mailc@rs2", 0));
}

#[test]
fn it_gives_back_when_the_stand_in_serves_again() {
    let mut hosts = relieved(&text(NO_RESET, ""));
    hosts.run(20_000);
    assert_eq!(
        hosts.orders(),
        ["rs2: resume mailc", "rs3: resume mailb"],
        "it may have been off; more its budget does not allow"
    );
    hosts.log.clear();
    hosts.sick.clear();
    let took = served_by(&mut hosts, "mailb@rs3");
    assert!((1_000..3_000).contains(&took), "healthy for a second: {took}");
    assert_eq!(hosts.notes("double-returns"), ["mailb on rs3 serves again: the virtual IPs go back to it from mailc"]);
    hosts.until(5_000, "asleep", |hosts| at(hosts, "mailc") == "rs2, suspended" && hosts.tables().claims.is_empty());
    hosts.run(60_000);
    assert_eq!([hosts.holder(111), hosts.place("mail1")], ["mailb@rs3", "mailb@rs3"]);
    assert_eq!(hosts.orders(), ["rs3: resume mailb", "rs2: pause mailc"]);
    // And the target comes home as ever.
    repaired(&mut hosts);
    all_at_home(&mut hosts);
}

#[test]
fn it_takes_over_when_the_real_server_of_the_stand_in_is_lost_and_gives_back() {
    let mut hosts = moved(&text("", ""));
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
    hosts.power_lost("rs3");
    let took = served_by(&mut hosts, "mailc@rs2");
    assert!(took < 4_000, "{took}");
    hosts.run(30_000);
    assert_eq!(hosts.orders(), ["rs2: resume mailc"]);
    // It is started where it was, and nowhere else.
    hosts.off.clear();
    served_by(&mut hosts, "mailb@rs3");
    assert!(hosts.orders_about("mailb").iter().all(|order| order == "rs3: resume mailb"), "{:?}", hosts.orders());
    hosts.until(5_000, "asleep", |hosts| at(hosts, "mailc") == "rs2, suspended" && hosts.tables().claims.is_empty());
}

#[test]
fn one_that_was_only_cut_off_has_lost_its_leases_before_and_gives_its_place_back() {
    let mut hosts = moved(&text("", ""));
    hosts.cut.insert(n("rs3"));
    hosts.until(10_000, "served", |hosts| hosts.holder(111) == "mailc@rs2");
    hosts.run(10_000);
    hosts.cut.clear();
    served_by(&mut hosts, "mailb@rs3");
    assert!(hosts.orders_about("mailb").iter().all(|order| order.starts_with("rs3: ")), "{:?}", hosts.orders());
}

#[test]
fn the_target_comes_home_from_the_further_one() {
    let mut hosts = relieved(&text(NO_RESET, ""));
    repaired(&mut hosts);
    all_at_home(&mut hosts);
    // And all stand ready again, in their order.
    hosts.log.clear();
    hosts.sick.clear();
    hosts.crash("mail2", true);
    hosts.until(5_000, "served", |hosts| hosts.holder(113) == "mailb@mgmt");
}

#[test]
fn the_target_comes_home_at_whatever_moment() {
    for after in (0..6_000).step_by(430) {
        let mut hosts = moved(&text(NO_RESET, ""));
        hosts.broken.clear();
        hosts.domains.insert(n("mail1"), (n("rs3"), true, 0));
        hosts.run(6_000);
        hosts.sick.insert(n("mailb"));
        hosts.run(after / 2);
        // Half of the time it is well again amid all that.
        if after > 2_000 {
            hosts.sick.clear();
        }
        hosts.run(after - after / 2);
        hosts.step(Event::Move { command: 1, target: n("mail1"), back: true, force: true });
        all_at_home(&mut hosts);
    }
}

#[test]
fn a_second_member_that_fails_meanwhile_goes_to_the_further_one_too() {
    // On rs1: what is on rs2 would be lost with it.
    let config = text(NO_RESET, "").replace("domain = \"mail2\", host = \"rs2\"", "domain = \"mail2\", host = \"rs1\"");
    let mut hosts = relieved(&config);
    hosts.broken.insert(n("mail2"));
    hosts.crash("mail2", true);
    hosts.until(5_000, "A4", |hosts| hosts.holder(113) == "mailc@rs2" && hosts.place("mail2") == "mailc@rs2");
    hosts.until(200_000, "given up", |hosts| hosts.mode("mail2") == "ended");
    hosts.run(5_000);
    assert_eq!([hosts.place("mail1"), hosts.place("mail2")], ["mailc@rs2", "mailc@rs2"]);
    // Both go back with one another.
    hosts.sick.clear();
    served_by(&mut hosts, "mailb@rs3");
    hosts.until(5_000, "A4", |hosts| hosts.holder(113) == "mailb@rs3" && hosts.place("mail2") == "mailb@rs3");
    hosts.until(5_000, "asleep", |hosts| at(hosts, "mailc") == "rs2, suspended" && hosts.tables().claims.is_empty());
}

#[test]
fn one_that_is_only_being_recovered_meanwhile_is_served_from_there_and_returns() {
    let config = text(NO_RESET, "").replace("domain = \"mail2\", host = \"rs2\"", "domain = \"mail2\", host = \"rs1\"");
    let mut hosts = moved(&config);
    hosts.crash("mail2", true);
    hosts.until(5_000, "served", |hosts| hosts.holder(113) == "mailb@rs3");
    hosts.sick.insert(n("mailb"));
    served_by(&mut hosts, "mailc@rs2");
    assert_eq!(hosts.holder(113), "mailc@rs2");
    hosts.until(60_000, "back", |hosts| hosts.mode("mail2") == "regular" && hosts.place("mail2") == "mail2@rs1");
    hosts.run(10_000);
    assert_eq!([hosts.holder(111), hosts.holder(113)], ["mailc@rs2", "mail2@rs1"]);
}

#[test]
fn it_is_lost_in_its_turn_and_the_first_that_is_well_again_serves() {
    let mut hosts = relieved(&text(NO_RESET, ""));
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs2");
    hosts.power_lost("rs2");
    hosts.run(3_000);
    hosts.sick.clear();
    served_by(&mut hosts, "mailb@rs3");
}

#[test]
fn it_is_lost_before_it_has_opened_anything() {
    for after in (0..1_500).step_by(60) {
        let mut hosts = moved(&text(NO_RESET, ""));
        hosts.sick.insert(n("mailb"));
        hosts.run(after);
        hosts.held.retain(|_, (at, ..)| at.as_str() != "rs2");
        hosts.power_lost("rs2");
        hosts.run(5_000);
        hosts.sick.clear();
        served_by(&mut hosts, "mailb@rs3");
    }
}

#[test]
fn a_new_coordinator_goes_on_with_it() {
    for after in (0..3_000).step_by(230) {
        for lost in [false, true] {
            let mut hosts = moved(&text(NO_RESET, ""));
            if lost {
                hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
                hosts.power_lost("rs3");
            } else {
                hosts.sick.insert(n("mailb"));
            }
            hosts.run(after);
            hosts.new_coordinator();
            served_by(&mut hosts, "mailc@rs2");
            hosts.run(10_000);
            assert_eq!((hosts.holder(111).as_str(), hosts.mode("mail1").as_str()), ("mailc@rs2", "ended"));
            hosts.off.clear();
            repaired(&mut hosts);
            all_at_home(&mut hosts);
        }
    }
}

#[test]
fn a_new_coordinator_gives_back_too() {
    for after in (0..3_000).step_by(170) {
        let mut hosts = relieved(&text(NO_RESET, ""));
        hosts.sick.clear();
        hosts.run(after);
        hosts.new_coordinator();
        served_by(&mut hosts, "mailb@rs3");
        let rests = |hosts: &Hosts| at(hosts, "mailc") == "rs2, suspended" && hosts.tables().claims.is_empty();
        hosts.until(30_000, "asleep", rests);
        hosts.run(10_000);
        assert_eq!([hosts.holder(111), hosts.place("mail1")], ["mailb@rs3", "mailb@rs3"]);
    }
}

#[test]
fn the_further_one_is_supervised_as_well() {
    let mut hosts = moved(&text("budget = { reboots = 1 }", ""));
    hosts.sick.insert(n("mailb"));
    hosts.until(20_000, "reset", |hosts| hosts.notes("double-normal").len() == 1);
    hosts.sick.insert(n("mailb"));
    served_by(&mut hosts, "mailc@rs2");
    hosts.log.clear();
    hosts.crash("mailc", true);
    served_by(&mut hosts, "mailc@rs2");
    assert_eq!(hosts.orders_about("mailc"), ["rs2: resume mailc"]);
    hosts.sick.insert(n("mailc"));
    hosts.until(20_000, "reset", |hosts| hosts.orders_about("mailc").contains(&"rs2: reset mailc".to_owned()));
    served_by(&mut hosts, "mailc@rs2");
    // There is nobody behind it.
    hosts.run(10_000);
    hosts.sick.insert(n("mailc"));
    hosts.until(20_000, "told", |hosts| hosts.notes("double-down").len() == 1);
}

#[test]
fn it_waits_for_its_own_real_server_and_takes_over_then() {
    let mut hosts = moved(&text(NO_RESET, ""));
    hosts.off.insert(n("rs2"));
    hosts.sick.insert(n("mailb"));
    hosts.run(20_000);
    assert_eq!(hosts.notes("held"), ["mailc on rs2 does not take over from mailb: rs2 does not answer"]);
    assert_eq!((hosts.notes("double-down").len(), hosts.holder(111).as_str()), (1, "mailb@rs3"));
    hosts.off.clear();
    served_by(&mut hosts, "mailc@rs2");
}

#[test]
fn nothing_is_done_against_an_order() {
    let mut hosts = moved(&text(NO_RESET, ""));
    let order = kage_types::Order {
        scope: kage_types::OrderScope::All,
        who: "me".into(),
        reason: String::new(),
        since_unix_ms: 0,
        until_unix_ms: None,
    };
    hosts.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 1 });
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
    hosts.power_lost("rs3");
    hosts.run(20_000);
    assert!(hosts.orders().is_empty() && hosts.signals().is_empty(), "{:?} {:?}", hosts.orders(), hosts.signals());
}

#[test]
fn a_storm_holds_it() {
    let mut hosts = moved(&text("", ""));
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
    for voter in ["v21", "v22", "v23", "rs1"] {
        hosts.off.insert(n(voter));
    }
    hosts.power_lost("rs3");
    hosts.run(20_000);
    assert!(hosts.core.storm_brake().is_some());
    assert!(hosts.orders_about("mailc").is_empty() && hosts.notes("double-relieved").is_empty());
}

#[test]
fn a_single_writer_is_suspended_before_the_further_one_runs_and_sleeps_until_the_target_is_back() {
    let mut hosts = relieved(&text(NO_RESET, "single_writer = true"));
    assert_eq!(hosts.orders()[..2], ["rs3: pause mailb", "rs2: resume mailc"]);
    hosts.sick.clear();
    hosts.until(10_000, "home", |hosts| at(hosts, "mailb") == "mgmt, suspended");
    hosts.run(20_000);
    assert_eq!((hosts.holder(111).as_str(), at(&hosts, "mailb").as_str()), ("mailc@rs2", "mgmt, suspended"));
    hosts.log.clear();
    repaired(&mut hosts);
    all_at_home(&mut hosts);
    assert_eq!(hosts.orders(), ["rs2: pause mailc"]);
}

#[test]
fn a_single_writer_that_is_lost_out_of_sight_is_not_relieved() {
    let mut hosts = moved(&text("", "single_writer = true"));
    hosts.cut.insert(n("rs3"));
    hosts.run(20_000);
    assert!(hosts.orders_about("mailc").is_empty() && hosts.signals().is_empty());
    assert_eq!(
        hosts.notes("held"),
        ["mailc on rs2 does not take over from mailb: a service of it is single_writer, and on rs3 it may still write"]
    );
    hosts.cut.clear();
    hosts.run(10_000);
    assert_eq!(hosts.holder(111), "mailb@rs3");
}

#[test]
fn one_that_power_saving_was_moving_is_relieved_when_that_is_over_and_looked_for() {
    let mut hosts = moved(&text("", ""));
    let id = hosts.migrate("mailb", "rs3", "rs1");
    // It has switched over, and nobody who saw that is heard.
    hosts.domains.get_mut(&n::<DomainName>("mailb")).unwrap().0 = n("rs1");
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
    hosts.sick.insert(n("mailb"));
    hosts.off.insert(n("rs3"));
    hosts.run(10_000);
    assert!(hosts.orders().is_empty(), "{:?}", hosts.orders());
    hosts.give_up(id);
    served_by(&mut hosts, "mailc@rs2");
    hosts.run(10_000);
    assert!(hosts.orders_about("mailb").is_empty(), "it is not known where it is: {:?}", hosts.orders());
    hosts.off.clear();
    hosts.sick.clear();
    // Found where it runs.
    served_by(&mut hosts, "mailb@rs1");
}

#[test]
fn faults_of_a_further_backup_server_are_told() {
    let faults = |config: &str| {
        let error = Cluster::parse(config).err().map(|error| error.lines()).unwrap_or_default();
        error.into_iter().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let good = text("", "");
    assert!(faults(&good).is_empty(), "{:?}", faults(&good));
    let said = |from: &str, to: &str| faults(&good.replacen(from, to, 1));
    let differs = "mailb is the backup server of mail2 too, which does not say so: write the same there";
    assert_eq!(
        said("agent = \"rs2\", domain = \"mailc\"", "agent = \"mgmt\", domain = \"mailc\"")[0],
        "[[target]] mail1 backup further: agent = \"mgmt\": the machine of the backup server itself, lost with it"
    );
    assert_eq!(
        said("agent = \"rs2\", domain = \"mailc\"", "agent = \"rs1\", domain = \"mailc\"")[0],
        format!("[[target]] mail1 backup: further = \"mailc\": {differs}")
    );
    assert_eq!(
        said("domain = \"mailc\"", "domain = \"mailb\"")[0],
        "[[target]] mail1 backup: further = \"mailb\": it is the backup server of mail1: give another"
    );
    assert!(said("domain = \"mailc\"", "domain = \"mail2\"").iter().any(|fault| {
        fault == "[[target]] mail2 vm: domain = \"mail2\": the backup server of mail1 has that name: give it another"
    }));
    assert_eq!(
        said("agent = \"rs2\", domain = \"mailc\"", "agent = \"v21\", domain = \"mailc\"")[0],
        "[[agent]] v21: guard is missing: it runs the backup VM of [[target]] mail1 and needs guard = \"tap\""
    );
    assert_eq!(
        said("domain = \"mailb\"", "domain = \"postb\"")[0],
        "[[target]] mail1 backup: further = \"mailc\": it is the further one of mail2, which has another backup server: give \
         each its own"
    );
}
