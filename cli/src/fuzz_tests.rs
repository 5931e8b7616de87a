//! What a coordinator answers and what its files hold: printed within the width, or refused; never a panic.

use crate::{events, status, style::Style, thesis};
use kage_proto::coordinator::v1::{AgentStatus, OrderStatus, Status, TargetStatus, VipStatus};
use proptest::prelude::*;

#[path = "../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

const EVENTS: &[u8] = include_bytes!("../tests/fixtures/events.jsonl");

#[test]
fn a_spoilt_line_costs_itself_only() {
    let (events, spoilt) = events::parse(EVENTS).expect("fixture");
    let mut bytes = EVENTS.to_vec();
    bytes[100] = 0xff;
    let (left, more) = events::parse(&bytes).expect("all but one");
    assert_eq!((left.len(), more.len()), (events.len() - 1, spoilt.len() + 1));
    assert!(events::parse(b"\x7fELF").is_err_and(|reason| reason.starts_with("line 1: ")));
}

proptest! {
    #[test]
    fn no_damage_breaks_the_logs(edits in prop::collection::vec(any::<Edit>(), 0..6), words in r"([A-Za-z0-9_:.()>-]|\n| |\PC){0,80}") {
        let Ok((events, _)) = events::parse(&mangle(EVENTS, &edits)) else { return Ok(()) };
        prop_assert!(thesis::logs(&events, None).len() < 1 << 20);
        for event in &events {
            for format in [events::Format::Text, events::Format::Json] {
                prop_assert!(!events::line(event, format).is_empty());
            }
        }
        let _ = events::parse(words.as_bytes());
    }

    #[test]
    fn no_status_breaks_the_page(
        texts in prop::collection::vec(r"\PC{0,90}|[a-z ]{0,300}", 12), number in any::<u64>(), width in 20..200usize,
    ) {
        let text = |index: usize| texts[index].clone();
        let vip = VipStatus { vip: text(0), epoch: number, owner: text(1), granted_ms_ago: Some(number), holder: text(2) };
        let status = Status {
            version: text(3),
            term: number,
            sif: text(4),
            storm_brake: text(5),
            alerts: vec![text(6)],
            orders: vec![OrderStatus { scope: text(7), reason: text(8), age_ms: number, ends_in_ms: Some(number), ..Default::default() }],
            targets: vec![TargetStatus { target: text(9), mode: text(10), mode_for_ms: number, service: text(11), vips: vec![vip], ..Default::default() }],
            agents: vec![AgentStatus { agent: text(0), address: text(1), asked_ms_ago: Some(number), ..Default::default() }],
            ..Default::default()
        };
        let page = status::to_text(&status, Style { colour: false, width });
        prop_assert!(!page.is_empty());
        prop_assert!(status::to_json(&status).is_object());
    }
}
