//! What agents and SIF send and what is left on the disk: converted or refused, never a panic, and bounded.

use crate::{characterise, enrol::Enrolment, events::Events, lease, sif};
use kage_coordinator_core::{AgentReport, Note, SessionId, Severity, config::Cluster};
use kage_proto::{
    agent::v1 as wire,
    coordinator::v1 as proto,
    sif::v1::{Ledger, OrderRow, VipRow},
};
use kage_types::AgentId;
use proptest::prelude::*;
use std::fs;

#[path = "../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

const EXAMPLE: &str = include_str!("../../deploy/cluster.toml");

fn note(text: &str) -> Note {
    let target = Some("mail".parse().expect("name"));
    Note { target, severity: Severity::Info, kind: "regular".into(), text: text.into() }
}

fn texts(events: &Events) -> Vec<String> {
    events.after(0).into_iter().map(|numbered| numbered.note.text).collect()
}

#[test]
fn a_torn_line_costs_itself_only() {
    let dir = tempfile::tempdir().expect("dir");
    let events = Events::load(dir.path()).expect("load");
    ["one", "two", "three"].into_iter().for_each(|text| events.add(note(text)));
    drop(events);
    let file = dir.path().join("events.jsonl");
    let whole = fs::read(&file).expect("file");
    // The last line was cut by a crash, the middle of the second by a bad disk.
    let mut torn = whole[..whole.len() - 20].to_vec();
    let second = torn.iter().position(|byte| *byte == b'\n').expect("line") + 30;
    torn[second] = 0xff;
    fs::write(&file, torn).expect("write");
    let events = Events::load(dir.path()).expect("load");
    assert_eq!(texts(&events), ["one"]);
    events.add(note("four"));
    drop(events);
    let events = Events::load(dir.path()).expect("load");
    assert_eq!(texts(&events), ["one", "four"], "what follows a torn line is a line of its own");
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![r"[a-z0-9.:_-]{0,12}", r"\PC{0,30}", Just("10.0.0.1".to_owned()), Just("x".repeat(20_000))]
}

fn event() -> impl Strategy<Value = wire::AgentEvent> {
    use wire::agent_event::Event as E;
    let kind = (any_text(), any_text(), any::<u64>(), 0..10u8).prop_map(|(a, b, number, kind)| match kind {
        0 => E::Vm(wire::VmLifecycle { domain: a, event: "crashed".into(), detail: b }),
        1 => E::Vm(wire::VmLifecycle { domain: a, event: b.clone(), detail: b }),
        2 => E::Service(wire::ServiceState { service: a, state: b.clone(), detail: b, ..Default::default() }),
        3 => E::LeaseLost(wire::LeaseLost { vip: a, epoch: number, reason: b }),
        4 => E::LeaseOpened(wire::LeaseOpened { vip: a, epoch: number }),
        5 => E::GoingDown(wire::GoingDown { what: b }),
        6 => E::GuardReinstalled(wire::GuardReinstalled { reason: b }),
        7 => E::Warning(wire::Warning { text: b }),
        8 => E::Woke(wire::Woke { slept_ms: number, failed: b }),
        _ => E::Missed(number),
    });
    (kind, any::<u32>()).prop_map(|(event, age_ms)| wire::AgentEvent {
        event: Some(event),
        age_ms,
        ..Default::default()
    })
}

proptest! {
    #[test]
    fn no_event_of_an_agent_grows_the_log(event in event()) {
        let Some(report) = lease::report(event) else { return Ok(()) };
        let length = match report {
            AgentReport::Opened(_) => 0,
            AgentReport::Lost { reason, .. } => reason.len(),
            AgentReport::GoingDown { what, .. } => what.len(),
            AgentReport::ServiceDown { detail, .. } | AgentReport::VmCrashed { detail, .. } => detail.len(),
            AgentReport::ServiceHeld { .. } => 0,
            AgentReport::Other(text) => text.len(),
        };
        prop_assert!(length <= 3 * 1024, "{length} bytes");
    }

    #[test]
    fn no_request_of_an_agent_breaks_the_conversion(
        vip in r"[a-z0-9.:%/]{0,16}|10\.0\.0\.[1-9]", number in any::<u64>(), count in prop_oneof![9 => 0..20usize, 1 => 4090..4100usize],
    ) {
        let agent = AgentId::new("a").expect("name");
        let vips = vec![wire::AskVip { vip, epoch: number }; count];
        let ask = proto::Ask { nonce: number, heard: number, incarnation: number, vips, ..Default::default() };
        if lease::ask_event(agent, SessionId(number), None, &ask).is_ok() {
            prop_assert!(count <= 4096);
        }
    }

    #[test]
    fn no_ledger_breaks_the_conversion(a in any_text(), b in any_text(), number in any::<u64>()) {
        let vip = VipRow {
            vip: a.clone(),
            epoch: number,
            owner: b.clone(),
            domain: b.clone(),
            target: a.clone(),
            cause: "first".into(),
            long_lease: true,
        };
        let order = OrderRow { scope: a, reason: b.clone(), who: b, since_unix_ms: number, until_unix_ms: Some(number) };
        let ledger = Ledger { vips: vec![vip], orders: vec![order], ..Default::default() };
        let _ = (sif::rows(&ledger), sif::orders(&ledger));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_damage_breaks_the_state(edits in prop::collection::vec(any::<Edit>(), 1..5)) {
        let dir = tempfile::tempdir().expect("dir");
        let events = Events::load(dir.path()).expect("load");
        (0..5).for_each(|n| events.add(note(&format!("text {n}"))));
        drop(events);
        let file = dir.path().join("events.jsonl");
        fs::write(&file, mangle(&fs::read(&file).expect("file"), &edits)).expect("write");
        let events = Events::load(dir.path()).expect("a damaged log of events keeps nobody from supervising");
        events.add(note("the newest"));
        let seen = events.after(0);
        prop_assert_eq!(seen.last().map(|numbered| numbered.note.text.as_str()), Some("the newest"));

        let tokens = br#"{"ab":{"role":"agent","name":"x","addresses":["10.0.0.1"],"until_unix_ms":18,"used":null}}"#;
        fs::write(dir.path().join("tokens.json"), mangle(tokens, &edits)).expect("write");
        let _ = Enrolment::load(None, dir.path(), &Cluster::parse(EXAMPLE).expect("example"));
        let figures = br#"{"targets":{"mail":{"tvs":{"runs":3,"typical_ms":400,"worst_ms":500}}}}"#;
        fs::write(dir.path().join("characteristics.json"), mangle(figures, &edits)).expect("write");
        let _ = characterise::Store::load(dir.path());
    }
}
