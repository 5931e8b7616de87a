//! A journal is replayed to the same actions and the same state; what differs, or is missing, is said.

mod support;

use jiff::tz::TimeZone;
use kage_coordinator_core::{
    Coordinator, Event,
    journal::Because,
    replay::{Input, Moment, Place, Replayer, replay},
};
use kage_types::Time;
use std::convert::Infallible;
use support::{Cure, World, head, target, with_target};

const KEYS: &str = "healthy_for = \"2s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";

fn world() -> World {
    World::journalled(&(head("normal") + &with_target("mail", 100, "mailb", KEYS, &[25])))
}

/// Loss, wake, return; a service; a planned move; orders; a new term; a changed configuration.
fn eventful() -> World {
    let mut world = world();
    world.power_lost("mail");
    world.until(120_000, "back", |world| world.notes("regular").len() == 1);
    world.snapshot(Because::Length);
    world.service_down("mail", 25, Cure::Restart);
    world.service_reported("mail", 25);
    world.run(5_000);
    world.step(Event::Move { command: 1, target: target("mail"), back: false, force: false });
    world.run(1_000);
    world.snapshot(Because::Length);
    world.run(4_000);
    world.step(Event::Move { command: 2, target: target("mail"), back: true, force: true });
    world.run(5_000);
    let order = kage_types::Order {
        scope: kage_types::OrderScope::All,
        reason: "rack moves".into(),
        who: "operator root".into(),
        since_unix_ms: 5,
        until_unix_ms: Some(60_005),
    };
    world.step(Event::PutOrder { command: 3, order: order.clone() });
    world.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 10 });
    world.step(Event::TermLost { term: kage_types::Term(1), reason: "another".into() });
    world.snapshot(Because::Rotation);
    let rows = world.epochs.values().cloned().collect();
    let (term, sent) = (kage_types::Term(2), Time::from_millis(world.now));
    world.step(Event::TermAcquired { term, sent, length: std::time::Duration::from_secs(5), rows });
    world.run(30_000);
    let config = head("normal")
        + &with_target("mail", 100, "mailb", KEYS, &[25, 143])
        + &with_target("web", 101, "webb", KEYS, &[80]);
    let cluster = Box::new(kage_coordinator_core::config::Cluster::parse(&config).expect("config"));
    world.step(Event::Reload { command: 4, cluster, force: true });
    world.snapshot(Because::Length);
    world.step(Event::TermFailed { reason: "no answer".into() });
    world
}

fn inputs(lines: &[String]) -> impl Iterator<Item = Result<Input, Infallible>> {
    let place = |line| Place { file: "journal.jsonl".into(), line };
    let lines = lines.iter().cloned().zip(1..).map(move |(text, line)| Ok(Input::Line(place(line), text)));
    lines.chain([Ok(Input::EndOfFile)])
}

fn replayed(lines: &[String]) -> Result<Replayer, String> {
    let mut replayer = Replayer::new("1.2.3");
    replay(inputs(lines), &mut replayer).map(|()| replayer)
}

fn state(replayer: &Replayer) -> &Coordinator {
    replayer.core().expect("a state").0
}

#[test]
fn a_journal_is_replayed_to_the_same_actions_and_the_same_state() {
    let world = eventful();
    let lines = world.journal.as_ref().expect("journal");
    let replayer = replayed(lines).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(*state(&replayer), world.core);
    let counts = replayer.counts();
    assert_eq!((counts.events, counts.snapshots, counts.processes, counts.skipped), (lines.len() as u64 - 5, 4, 1, 0));
    assert_eq!(counts.compared, counts.events);
    let summary = replayer.summary(&TimeZone::UTC);
    assert!(summary.contains("mail: regular for 0ns: disarmed") && summary.contains("SIF: no answer"), "{summary}");
    assert!(summary.contains("10.0.0.100: mail at epoch"), "{summary}");
}

#[test]
fn replaying_begins_at_any_snapshot() {
    let world = eventful();
    let lines = world.journal.as_ref().expect("journal");
    let snapshots = lines.iter().enumerate().filter(|(_, line)| line.contains("\"snapshot\":{"));
    for (index, _) in snapshots {
        let replayer = replayed(&lines[index..]).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(*state(&replayer), world.core);
    }
    let fault = replayed(&lines[5..]).expect_err("in the middle");
    assert!(
        fault.starts_with("journal.jsonl:1: the journal begins in the middle") && fault.contains("event 5"),
        "{fault}"
    );
}

#[test]
fn the_first_difference_is_shown_with_its_event() {
    let world = eventful();
    let mut lines = world.journal.clone().expect("journal");
    let index = lines.iter().position(|line| line.contains("\"kind\":\"confirmed\"")).expect("confirmed");
    lines[index] = lines[index].replace("\"kind\":\"confirmed\"", "\"kind\":\"invented\"");
    let fault = replayed(&lines).expect_err("a difference");
    assert!(fault.starts_with(&format!("journal.jsonl:{}: event {index} at ", index + 1)), "{fault}");
    for part in ["leads to other actions", "\n  event:    {\"job\"", "invented", "\n  got:      {\"note\"", "confirmed"]
    {
        assert!(fault.contains(part), "{part}: {fault}");
    }
    // An action that is missing, and a grant that is not the same.
    let mut fewer = world.journal.clone().expect("journal");
    let ends = fewer[index].find(",\"actions\":[").expect("actions");
    fewer[index].truncate(ends);
    fewer[index] += ",\"actions\":[]}";
    assert!(replayed(&fewer).expect_err("fewer").contains("expected: nothing more"));
    let mut grants = world.journal.clone().expect("journal");
    let index = grants.iter().position(|line| line.contains(" granted")).expect("a grant");
    grants[index] = grants[index].replace(" granted", " superseded");
    assert!(replayed(&grants).expect_err("grant").contains("superseded"));
}

#[test]
fn another_state_than_a_snapshots_is_noticed() {
    let world = eventful();
    let mut lines = world.journal.clone().expect("journal");
    let index = lines.iter().position(|line| line.contains("\"snapshot\":{")).expect("snapshot");
    lines[index] = lines[index].replace("\"brake\":null", "\"brake\":[1,\"much is dark\"]");
    let fault = replayed(&lines).expect_err("state");
    assert!(
        fault.contains(
            "is not that of the snapshot\n  snapshot: brake = [1,\"much is dark\"]\n  replayed: brake = null"
        ),
        "{fault}"
    );
}

#[test]
fn a_line_cut_short_is_allowed_where_a_crash_leaves_one() {
    let world = eventful();
    let mut lines = world.journal.clone().expect("journal");
    let last = lines.last_mut().expect("line");
    last.truncate(last.len() / 2);
    let replayer = replayed(&lines).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(
        replayer.remarks()[0].starts_with(&format!("journal.jsonl:{}: cut short", lines.len())),
        "{:?}",
        replayer.remarks()
    );
    // Another process goes on after it.
    let mut both = lines.clone();
    let begins = lines[0].replace("\"seq\":0", "\"seq\":4000");
    both.push(begins);
    assert_eq!(replayed(&both).map(|replayer| replayer.counts().processes), Ok(2));
    // In the middle it is no crash.
    let mut middle = world.journal.clone().expect("journal");
    middle[7].truncate(20);
    let fault = replayed(&middle).expect_err("a bad line");
    assert!(fault.starts_with("journal.jsonl:8: no line of a journal"), "{fault}");
    // Nor is what another version wrote, even at the end.
    let mut newer = world.journal.clone().expect("journal");
    newer.push("{\"seq\":9,\"now\":9,\"event\":\"sunrise\"}".into());
    assert!(replayed(&newer).expect_err("unknown").contains("this version does not know it"));
}

#[test]
fn what_is_missing_is_said_and_replaying_goes_on_at_the_next_snapshot() {
    let world = eventful();
    let mut lines = world.journal.clone().expect("journal");
    lines.drain(10..13);
    let replayer = replayed(&lines).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(*state(&replayer), world.core);
    let remarks = replayer.remarks().join("\n");
    assert!(remarks.contains("journal.jsonl:11: event 13 follows 9"), "{remarks}");
    assert!(remarks.contains("goes on from the snapshot"), "{remarks}");
    assert!(replayer.counts().skipped > 0);
}

#[test]
fn it_stops_where_it_is_told_to() {
    let world = eventful();
    let lines = world.journal.as_ref().expect("journal");
    for (until, seq) in
        [(Moment::Event(40), 40), (Moment::Clock(Time::from_millis(2_000)), 0), (Moment::Wall(1_795_386_902_000), 0)]
    {
        let mut replayer = Replayer::new("1.2.3").until(Some(until));
        replay(inputs(lines), &mut replayer).unwrap_or_else(|fault| panic!("{fault}"));
        let (_, now) = replayer.core().expect("state");
        assert!(now <= Time::from_millis(30_000) && replayer.counts().events >= seq.max(10), "{until:?} {now}");
        assert!(seq == 0 || replayer.counts().events == seq);
    }
}

#[test]
fn a_journal_of_before_starts_were_recorded_needs_the_configuration() {
    let config = head("normal") + &with_target("mail", 100, "mailb", KEYS, &[25]);
    let mut world = World::journalled(&config);
    world.power_lost("mail");
    world.run(5_000);
    let old: Vec<String> = world.journal.as_ref().expect("journal")[1..]
        .iter()
        .map(|line| line.split(",\"actions\":[").next().expect("event").to_owned() + "}")
        .collect();
    assert!(replayed(&old).expect_err("no start").contains("--config"));
    let cluster = kage_coordinator_core::config::Cluster::parse(&config).expect("config");
    let mut replayer = Replayer::new("1.2.3").config(Some(cluster));
    replay(inputs(&old), &mut replayer).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(
        state(&replayer).target(&target("mail")).map(|view| view.mode),
        world.core.target(&target("mail")).map(|view| view.mode)
    );
    assert!(replayer.summary(&TimeZone::UTC).contains("nothing was compared"));
}

#[test]
fn another_version_is_told_of() {
    let world = eventful();
    let lines: Vec<String> =
        world.journal.as_ref().expect("journal").iter().map(|line| line.replace("\"1.2.3\"", "\"1.0.0\"")).collect();
    let replayer = replayed(&lines).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(
        replayer.remarks(),
        ["written by kage-coordinator 1.0.0, replayed by 1.2.3: a difference may be a change of the program"]
    );
}
