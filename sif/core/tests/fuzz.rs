//! Numbers of any size and texts of any kind, from the disk or from a coordinator: refused or decided, never a panic, and
//! the ledger stays within its limits.

use kage_sif_core::{Action, Cause, Core, Electorate, Event, Ledger, Report, Request, RequestId, Stage};
use kage_types::{AgentId, Epoch, Order, OrderScope, TargetName, Term, Vip};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[path = "../../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

fn agent(name: &str) -> AgentId {
    AgentId::new(name).expect("name")
}

fn requests() -> Vec<Vec<u8>> {
    let vip: Vip = "10.0.0.1".parse().expect("vip");
    let target = TargetName::new("mail").expect("name");
    let report = Report { highest_term: Term(3), epochs: BTreeMap::from([(vip, Epoch(4))]) };
    let term = Term(1003);
    let order = Order {
        scope: OrderScope::All,
        reason: "disk".into(),
        who: "operator a".into(),
        since_unix_ms: 1,
        until_unix_ms: Some(2),
    };
    [
        Request::ReportVoter { reporter: agent("a"), report: report.clone() },
        Request::ReportVoter { reporter: agent("b"), report },
        Request::AcquireTerm { coordinator: "c".into() },
        Request::RenewTerm { term },
        Request::AdvanceEpoch {
            term,
            vip,
            expected: Epoch(0),
            owner: agent("a"),
            domain: None,
            target: target.clone(),
            cause: Cause::First,
        },
        Request::SetLongLease { term, vip, outstanding: true, sequence: 9 },
        Request::PutTrouble { term, target, stage: Some(Stage::Backup), detail: "x".into(), now_unix_ms: 5 },
        Request::PutOrder { term, order },
        Request::ClearOrder { term, scope: OrderScope::All },
    ]
    .iter()
    .map(|request| serde_json::to_vec(request).expect("json"))
    .collect()
}

/// Every commit succeeds.
fn drive(core: &mut Core, event: Event) {
    let mut events = vec![event];
    while let Some(event) = events.pop() {
        let mut actions = Vec::new();
        core.step(event, &mut actions);
        for action in actions {
            if let Action::Persist { commit, .. } = action {
                events.push(Event::Persisted { commit });
            }
        }
    }
}

proptest! {
    #[test]
    fn no_request_breaks_the_core(
        order in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<Edit>(), 0..3)), 1..60),
    ) {
        let good = requests();
        let mut core = Core::new(Ledger::default(), Electorate::new(["a", "b", "c"].map(|name| (agent(name), true))));
        // First as they are, so that the rest meets a ledger at work.
        let spoilt = order.iter().map(|(index, edits)| mangle(index.get::<Vec<u8>>(&good), edits));
        let all: Vec<_> = good.iter().cloned().chain(spoilt).collect();
        let mut highest = Term(0);
        for (id, json) in all.iter().enumerate() {
            let Ok(request) = serde_json::from_slice::<Request>(json) else { continue };
            drive(&mut core, Event::Request { id: RequestId(id as u64), request });
            prop_assert!(core.ledger().term >= highest, "a term went down");
            highest = core.ledger().term;
        }
        prop_assert!(highest > Term(1000), "the ledger was at work");
    }
}
