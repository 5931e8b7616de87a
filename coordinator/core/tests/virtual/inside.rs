//! An agent inside a backup server that is supervised itself: services that do not answer are restarted before it is reset.

use super::hosts::{Hosts, config, n, vip};
use kage_coordinator_core::{AgentReport, Event, config::Cluster};
use kage_types::DomainName;

/// With an agent in mailb, and more keys of its targets and services.
fn text(target: &str, service: &str) -> String {
    let quick = config(false).replace("\"20s\"", "\"8s\"").replace("reboot_wait = \"10s\"", "reboot_wait = \"2s\"");
    let inside = quick.replace("domain = \"mailb\" }", &format!("domain = \"mailb\", guest = \"mailbg\" }}\n{target}"));
    let inside = inside.replace("port = 25\n", &format!("port = 25\n{service}\n"));
    format!(
        "{inside}[[agent]]\nname = \"mailbg\"\naddress = \"10.0.0.63:7702\"\nguard = \"none\"\n[pss]\n\
         migration_limit = \"10s\"\n"
    )
}

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

/// Its services go down, and a restart cures them when so many have not.
fn sick(hosts: &mut Hosts, restarts: Option<u32>) {
    hosts.sick.insert(n("mailb"));
    hosts.curable = restarts.map(|failing| (n("mailb"), failing)).into_iter().collect();
}

fn well(hosts: &mut Hosts, times: usize) -> u64 {
    hosts.until(60_000, "well", |hosts| hosts.notes("double-normal").len() == times)
}

#[test]
fn its_service_is_restarted_by_the_agent_inside_it_and_nothing_moves() {
    let mut hosts = moved(&text("", ""));
    let epoch = hosts.epochs[&vip(111)].epoch;
    sick(&mut hosts, Some(0));
    let took = well(&mut hosts, 1);
    assert!(took < 1_200, "{took}");
    assert_eq!(hosts.orders(), ["mailbg: restart smtp"]);
    assert_eq!(
        (hosts.notes("double-trouble"), hosts.notes("double-restarting"), hosts.notes("double-normal")),
        (
            vec!["mailb on rs3 is in trouble: connection refused".to_owned()],
            vec!["smtp in mailb on rs3 is restarted".to_owned()],
            vec!["mailb on rs3 answers again".to_owned()]
        )
    );
    hosts.run(30_000);
    assert_eq!((hosts.holder(111).as_str(), hosts.epochs[&vip(111)].epoch), ("mailb@rs3", epoch), "never closed");
    assert!(hosts.signals().is_empty() && hosts.tables().claims.is_empty(), "{:?}", hosts.signals());
    let detail = hosts.core.target(&n("mail1")).unwrap().detail;
    assert!(detail.ends_with("; mailb serves on rs3, supervised"), "{detail}");
}

#[test]
fn one_that_the_agent_inside_reports_is_restarted_at_once() {
    let mut hosts = moved(&text("", ""));
    sick(&mut hosts, Some(0));
    let report = |service: &str| AgentReport::ServiceDown { service: n(service), detail: "its process ended".into() };
    hosts.step(Event::Report { agent: n("mailbg"), report: report("smtp") });
    assert_eq!(hosts.orders(), ["mailbg: restart smtp"]);
    assert_eq!(hosts.notes("service-down"), ["service smtp in mailb is down: its process ended"]);
    // What is being restarted goes down, too.
    hosts.step(Event::Report { agent: n("mailbg"), report: report("smtp") });
    well(&mut hosts, 1);
    // Nobody is served by that one.
    hosts.step(Event::Report { agent: n("mailbg"), report: report("cups") });
    hosts.run(10_000);
    assert_eq!(hosts.orders().len(), 1);
}

#[test]
fn it_is_reset_where_a_restart_does_not_cure_it() {
    let mut hosts = moved(&text("", ""));
    sick(&mut hosts, None);
    well(&mut hosts, 1);
    assert_eq!(hosts.orders()[..2], ["mailbg: restart smtp", "rs3: reset mailb"]);
    let (ordered, reset) = (hosts.time_of("restart"), hosts.time_of("reset"));
    assert!((3_000..4_500).contains(&(reset - ordered)), "patience: {ordered} {reset}");
    assert_eq!(hosts.holder(111), "mailb@rs3");
}

#[test]
fn it_is_reset_at_once_where_the_restart_fails() {
    let mut hosts = moved(&text("", ""));
    hosts.refuses.insert(n("mailbg"));
    sick(&mut hosts, None);
    well(&mut hosts, 1);
    assert_eq!(hosts.orders()[..2], ["mailbg: restart smtp", "rs3: reset mailb"]);
    assert_eq!(hosts.notes("restart-failed"), ["smtp in mailb could not be restarted: unit not found"]);
    assert!(hosts.time_of("reset") - hosts.time_of("restart") < 500);
}

#[test]
fn restarts_are_damped_by_the_budget_then_it_is_reset_then_nothing_is_done() {
    let mut hosts = moved(&text("budget = { restarts = 2, reboots = 1 }", ""));
    for times in 1..=2 {
        sick(&mut hosts, Some(0));
        well(&mut hosts, times);
        hosts.run(1_000);
    }
    sick(&mut hosts, Some(0));
    well(&mut hosts, 3);
    let orders = ["mailbg: restart smtp", "rs3: reset mailb"];
    assert_eq!(hosts.orders()[..2], orders, "two restarts, told as one");
    assert_eq!(hosts.notes("double-restarting").len(), 3);
    assert_eq!(
        hosts.notes("restarts-used-up"),
        ["smtp in mailb was restarted 2 times within 3600s and is down again: restarts do not cure it"]
    );
    hosts.log.clear();
    sick(&mut hosts, Some(0));
    hosts.until(20_000, "told", |hosts| hosts.notes("double-down").len() == 1);
    hosts.run(60_000);
    assert!(hosts.orders().is_empty(), "{:?}", hosts.orders());
    assert_eq!(hosts.notes("restarts-used-up").len(), 1);
}

#[test]
fn it_is_reset_where_nobody_inside_can_restart_anything() {
    // No agent is configured; its service is not to be restarted; it hangs, and with it its agent.
    let without = text("", "").replace(", guest = \"mailbg\"", "");
    for (config, hangs) in [(without, false), (text("", "restart = false"), false), (text("", ""), true)] {
        let mut hosts = moved(&config);
        if hangs {
            hosts.hang("mailb");
        } else {
            sick(&mut hosts, Some(0));
        }
        well(&mut hosts, 1);
        assert_eq!(hosts.orders()[0], "rs3: reset mailb", "{hangs}: {:?}", hosts.orders());
        assert!(hosts.notes("restarts-used-up").is_empty());
    }
}

#[test]
fn two_services_are_restarted_one_after_the_other() {
    let mut hosts = moved(&text("", "[[target.service]]\nname = \"imap\"\nprobe = \"tcp\"\nport = 143"));
    hosts.deaf = [(n("mailb"), 25), (n("mailb"), 143)].into();
    let took = well(&mut hosts, 1);
    assert!(took < 1_500, "{took}");
    assert_eq!(hosts.orders(), ["mailbg: restart imap", "mailbg: restart smtp"]);
    // And each has a budget of its own: three more of one of them are two too many.
    for times in 2..=3 {
        hosts.run(1_000);
        hosts.deaf = [(n("mailb"), 25)].into();
        well(&mut hosts, times);
    }
    assert!(hosts.notes("restarts-used-up").is_empty());
}

#[test]
fn it_is_started_where_it_crashes_amid_a_restart() {
    let mut hosts = moved(&text("", ""));
    sick(&mut hosts, None);
    hosts.until(5_000, "ordered", |hosts| !hosts.orders().is_empty());
    hosts.run(500);
    hosts.crash("mailb", true);
    hosts.sick.clear();
    well(&mut hosts, 1);
    assert_eq!(hosts.orders(), ["mailbg: restart smtp", "rs3: resume mailb"]);
    assert_eq!(hosts.holder(111), "mailb@rs3");
}

#[test]
fn its_real_server_is_lost_amid_a_restart() {
    let mut hosts = moved(&text("", ""));
    sick(&mut hosts, None);
    hosts.until(5_000, "ordered", |hosts| !hosts.orders().is_empty());
    hosts.held.retain(|_, (at, ..)| at.as_str() != "rs3");
    hosts.power_lost("rs3");
    hosts.run(20_000);
    assert_eq!(hosts.orders(), ["mailbg: restart smtp"]);
    assert!(hosts.core.target(&n("mail1")).unwrap().detail.contains("mailb on rs3 is in trouble"));
    hosts.off.clear();
    hosts.until(30_000, "served", |hosts| hosts.holder(111) == "mailb@rs3");
}

#[test]
fn its_target_returns_amid_a_restart_and_it_goes_home() {
    let mut hosts = moved(&text("", ""));
    hosts.broken.clear();
    hosts.domains.insert(n("mail1"), (n("rs3"), true, 0));
    hosts.run(6_000);
    sick(&mut hosts, None);
    hosts.until(5_000, "ordered", |hosts| !hosts.orders().is_empty());
    hosts.step(Event::Move { command: 1, target: n("mail1"), back: true, force: false });
    hosts.until(10_000, "home", |hosts| {
        let (at, runs, _) = &hosts.domains[&n::<DomainName>("mailb")];
        at.as_str() == "mgmt" && !runs && hosts.tables().claims.is_empty()
    });
    assert_eq!((hosts.holder(111).as_str(), hosts.mode("mail1").as_str()), ("mail1@rs3", "regular"));
    assert!(!hosts.orders().contains(&"rs3: reset mailb".to_owned()), "{:?}", hosts.orders());
}

#[test]
fn nothing_is_restarted_against_an_order() {
    let mut hosts = moved(&text("", ""));
    let order = kage_types::Order {
        scope: kage_types::OrderScope::Target(n("mail1")),
        who: "me".into(),
        reason: String::new(),
        since_unix_ms: 0,
        until_unix_ms: None,
    };
    hosts.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 1 });
    sick(&mut hosts, Some(0));
    hosts.run(20_000);
    assert!(hosts.orders().is_empty(), "{:?}", hosts.orders());
    assert_eq!(hosts.notes("withheld").len(), 1);
    assert!(hosts.notes("withheld")[0].contains("would have restarted its service"), "{:?}", hosts.notes("withheld"));
    hosts.step(Event::OrdersRead { orders: vec![], now_unix_ms: 2 });
    well(&mut hosts, 1);
    assert_eq!(hosts.orders(), ["mailbg: restart smtp"]);
}

#[test]
fn a_new_coordinator_waits_for_the_agent_inside_before_it_resets() {
    let mut hosts = moved(&text("", ""));
    sick(&mut hosts, Some(0));
    hosts.new_coordinator();
    well(&mut hosts, 1);
    assert_eq!(hosts.orders(), ["mailbg: restart smtp"]);
}

#[test]
fn the_agent_inside_one_that_sleeps_is_neither_dark_nor_flaky() {
    let mut hosts = Hosts::with(&text("budget = { takeovers = 10 }", ""));
    for _ in 0..5 {
        hosts.crash("mail2", true);
        hosts.until(60_000, "back", |hosts| hosts.mode("mail2") == "regular");
        hosts.run(2_000);
    }
    assert!(!hosts.domains[&n::<DomainName>("mailb")].1, "it sleeps");
    assert!(hosts.notes("quarantine").is_empty());
    // Three of six are no storm: that of the management server does not count, and its suspended guest says nothing of it.
    for name in ["rs3", "v21", "v22"] {
        hosts.off.insert(n(name));
    }
    hosts.run(5_000);
    assert_eq!(hosts.core.storm_brake(), None);
}

#[test]
fn faults_of_an_agent_inside_a_backup_server_are_told_with_their_line() {
    let faults = |config: &str| {
        let error = Cluster::parse(config).err().map(|error| error.lines()).unwrap_or_default();
        error.into_iter().map(|line| line.split_once(": ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    let good = text("", "");
    assert!(faults(&good).is_empty(), "{:?}", faults(&good));
    let said = |from: &str, to: &str| faults(&good.replacen(from, to, 1));
    assert_eq!(
        said("guest = \"mailbg\"", "guest = \"mailgb\""),
        [
            "[[target]] mail1 backup: guest = \"mailgb\": there is no [[agent]] of that name: did you mean \"mailbg\"?",
            "[[target]] mail1 backup: guest = \"mailgb\": mailb is the backup server of mail2 too, which does not say so: \
             write the same there",
            "[[target]] mail2 backup: guest = \"mailbg\": mailb is the backup server of mail1 too, which does not say so: \
             write the same there",
        ]
    );
    assert_eq!(
        said("domain = \"mailb\", guest", "domain = \"postb\", guest"),
        [
            "[[target]] mail1 backup: guest = \"mailbg\": it is inside mailb, the backup server of mail2: name the one \
             inside postb",
            "[[target]] mail2 backup: guest = \"mailbg\": it is inside postb, the backup server of mail1: name the one \
             inside mailb",
        ]
    );
    assert_eq!(
        said("guard = \"none\"", "guard = \"tap\""),
        [
            "[[target]] mail1 backup: guest = \"mailbg\": [[agent]] mailbg needs guard = \"none\": its host guards its \
             virtual IPs from outside",
            "[[target]] mail2 backup: guest = \"mailbg\": [[agent]] mailbg needs guard = \"none\": its host guards its \
             virtual IPs from outside",
        ]
    );
    let shared = good.replace("address = \"10.0.0.61\"", "agent = \"mailbg\"");
    let told = faults(&shared);
    assert_eq!(
        told[0],
        "[[target]] mail1 backup: guest = \"mailbg\": it is the agent of target mail1: name the one inside mailb"
    );
    let machine = good.replace("vm = { domain = \"mail2\", host = \"rs2\" }", "agent = \"rs2\"");
    assert_eq!(
        faults(&machine),
        [
            "[[target]] mail2 backup: guest = \"mailbg\": only the backup server of a virtual server is supervised itself: \
             leave it out"
        ]
    );
}
