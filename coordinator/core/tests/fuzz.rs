//! Whatever a configuration or a journal says: faults with their lines, or a cluster that can be predicted and driven;
//! never a panic.

use kage_coordinator_core::{
    AgentReport, Cause, CheckOutcome, Coordinator, Event, Holding, JobId, JobResult, SessionId, VipRow,
    config::Cluster, predict::predict,
};
use kage_types::{AgentId, AskVip, Epoch, Nonce, Order, OrderScope, TargetName, Term, Time, Vip};
use proptest::prelude::*;
use std::time::Duration;

#[path = "../../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

const EXAMPLE: &str = include_str!("../../../deploy/cluster.toml");

/// The example with every key that it only mentions.
fn full() -> String {
    let mut text = EXAMPLE.to_owned();
    for key in ["storage_fence", "storage_unfence", "[lease]", "lease", "element", "renewal", "slack", "long_lease"] {
        text = text.replace(&format!("\n# {key}"), &format!("\n{key}"));
    }
    for key in ["power_status", "power_off", "address", "single_writer", "writer_fence", "timeout", "tls"] {
        text = text.replace(&format!("\n# {key}"), &format!("\n{key}"));
    }
    text
}

/// Everything that is computed from a configuration.
fn used(text: &str) -> bool {
    let Ok(cluster) = Cluster::parse(text) else { return false };
    let report = predict(&cluster, &kage_coordinator_core::characteristics::Characteristics::default());
    assert!(serde_json::to_string(&report).is_ok());
    let mut core = Coordinator::new(Time::from_millis(1000), cluster);
    let mut actions = Vec::new();
    for seconds in [1, 2, 3, 100] {
        core.step(Time::from_millis(seconds * 1000), Event::Tick, &mut actions);
        let _ = core.deadline();
    }
    true
}

#[test]
fn the_examples_are_good() {
    assert!(used(EXAMPLE));
    assert!(used(&full()), "{:?}", Cluster::parse(&full()).err());
}

#[test]
fn no_duration_is_too_long_for_the_arithmetic() {
    let text = full();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((key, _)) = line.split_once(" = \"") else { continue };
        for value in ["2562047788015215h", "-2562047788015215h", "8784h", "23h", "1ns", "106751991167d"] {
            let _ = used(&text.replacen(line, &format!("{key} = \"{value}\""), 1));
        }
    }
    let all =
        ["lease", "element", "renewal", "slack", "long_lease", "healthy_for", "reboot_wait", "start_wait", "timeout"];
    for value in ["8784h", "2562047788015215h"] {
        let long = text.lines().map(|line| match all.iter().find(|key| line.starts_with(&format!("{key} = \""))) {
            Some(key) => format!("{key} = \"{value}\"\n"),
            None => format!("{line}\n"),
        });
        let _ = used(&long.collect::<String>());
    }
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).expect("name")
}

/// One event of every kind that comes from outside.
fn journal() -> Vec<Vec<u8>> {
    let vip: Vip = "192.0.2.100".parse().expect("vip");
    let mail: TargetName = "mail".parse().expect("name");
    let ask = AskVip { vip, epoch: Epoch(3) };
    let row =
        VipRow { vip, epoch: Epoch(3), owner: agent("mail"), domain: None, cause: Cause::First, long_lease: true };
    let order = Order {
        scope: OrderScope::Target(mail.clone()),
        reason: "disk".into(),
        who: "operator a".into(),
        since_unix_ms: 1_700_000_000_000,
        until_unix_ms: Some(1_700_000_600_000),
    };
    let (sent, length) = (Time::from_millis(1000), Duration::from_secs(5));
    let up = |name: &str, session| Event::AgentUp { agent: agent(name), session: SessionId(session), incarnation: 1 };
    let asked = |long| Event::Ask {
        agent: agent("mail"),
        session: SessionId(1),
        via: None,
        incarnation: 1,
        nonce: Nonce(7),
        heard: Nonce(6),
        vips: vec![ask],
        long,
        long_surrendered: !long,
    };
    let report = |report| Event::Report { agent: agent("mail"), report };
    let job = |job, result| Event::Job { job: JobId(job), result };
    let mut events = vec![
        Event::OrdersRead { orders: vec![order.clone()], now_unix_ms: 1_700_000_000_001 },
        Event::TermAcquired { term: Term(4), sent, length, rows: vec![row.clone()] },
        up("mail", 1),
        up("mgmt", 2),
        up("w1", 3),
        Event::TermRenewed { term: Term(4), sent, length },
        asked(false),
        asked(true),
        report(AgentReport::Opened(ask)),
        report(AgentReport::GoingDown { machine: true, what: "reboot".into() }),
        report(AgentReport::Lost { ask, reason: "lapsed".into() }),
        Event::LedgerRead { rows: vec![row] },
        Event::PutOrder { command: 1, order },
        Event::ClearOrder { command: 2, scope: OrderScope::All, who: "operator a".into() },
        Event::Move { command: 3, target: mail.clone(), back: false, force: true },
        Event::Adopt {
            command: 4,
            target: mail,
            who: "operator a".into(),
            found: vec![Holding { agent: agent("mail"), vips: Ok(vec![ask]) }],
        },
        Event::EndQuarantine { command: 5, agent: agent("mail"), who: "operator a".into() },
        Event::WallClock { now_unix_ms: 1_700_000_060_000 },
        Event::AgentDown { agent: agent("mail"), session: SessionId(1) },
        Event::TermLost { term: Term(4), reason: "x".into() },
    ];
    for number in 1..12 {
        let result = match number % 6 {
            0 => JobResult::Done,
            1 => JobResult::Epoch(Epoch(4)),
            2 => JobResult::Barred(Duration::from_millis(300)),
            3 => JobResult::Check(CheckOutcome::Ng("no reply".into())),
            4 => JobResult::Answered(Some("52:54:00:12:34:56".into())),
            _ => JobResult::Unknown("no answer".into()),
        };
        events.push(job(number, result));
    }
    events.iter().map(|event| serde_json::to_vec(event).expect("json")).collect()
}

#[test]
fn every_line_of_a_journal_reads_back() {
    for line in journal() {
        let event: Event = serde_json::from_slice(&line).expect("read back");
        assert_eq!(serde_json::to_vec(&event).expect("json"), line);
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_configuration(text in r"(\[\[?(cluster|agent|target|lease)\]?\]|[a-z_]{1,9} = |[0-9-]{1,22}|'[a-z0-9.:]{0,12}'|\{|\}|\n|\PC){0,60}") {
        let _ = used(&text);
    }

    #[test]
    fn no_slip_breaks_the_configuration(edits in prop::collection::vec(any::<Edit>(), 1..5), all in any::<bool>()) {
        let text = if all { full() } else { EXAMPLE.to_owned() };
        let spoilt = mangle(text.as_bytes(), &edits);
        let _ = used(&String::from_utf8_lossy(&spoilt));
    }

    /// Numbers of any size in any place: what a lying agent or SIF sends reaches the core as such an event.
    #[test]
    fn no_event_breaks_the_core(
        order in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<Edit>(), 0..3), 0..20_000u64), 1..40),
    ) {
        let lines = journal();
        let mut core = Coordinator::new(Time::from_millis(1000), Cluster::parse(EXAMPLE).expect("example"));
        let (mut now, mut actions) = (1000, Vec::new());
        for (index, edits, wait) in order {
            now += wait;
            let line = mangle(index.get::<Vec<u8>>(&lines), &edits.iter().map(|(kind, at, by)| (6 + kind % 2, *at, *by)).collect::<Vec<_>>());
            let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
            actions.clear();
            core.step(Time::from_millis(now), event, &mut actions);
            let _ = core.deadline();
            prop_assert!(actions.len() < 1000);
        }
    }

    #[test]
    fn no_torn_line_breaks_the_reader(index in any::<prop::sample::Index>(), edits in prop::collection::vec(any::<Edit>(), 1..6)) {
        let lines = journal();
        let _ = serde_json::from_slice::<Event>(&mangle(index.get::<Vec<u8>>(&lines), &edits));
    }
}
