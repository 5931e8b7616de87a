use super::*;
use crate::pss::{inventory::plan_of, tests::ledger};
use kage_types::StepState as State;

fn row() -> TransitionRow {
    let host: AgentId = "rs2".parse().expect("name");
    TransitionRow {
        id: 4,
        by: "earlier".into(),
        plan: String::new(),
        steps: vec![(Step::SuspendHost { host: host.clone() }, State::Done), (Step::WakeHost { host }, State::Planned)],
        groups: [("mail".parse().expect("name"), (Condition::Moderate, Condition::Light))].into(),
    }
}

#[test]
fn a_wake_is_told_with_its_time_forwards_and_backwards() {
    let plan = plan_of(&row());
    let took = [("rs2".parse().expect("name"), 8_090)].into();
    let told = |signal: Signal| match message(&signal, "me", Some(4), Some(&plan), &took) {
        Message::Step(step) => (step.id, step.index, step.state(), step.took_ms),
        other @ (Message::Begin(_) | Message::End(_) | Message::Found(_)) => panic!("{other:?}"),
    };
    let done = |index, undo| told(Signal::StepDone { index, undo });
    assert_eq!(done(0, false), (4, 0, StepState::Done, None));
    assert_eq!(done(0, true), (4, 0, StepState::Undone, Some(8_090)));
    assert_eq!(done(1, false), (4, 1, StepState::Done, Some(8_090)));
    assert_eq!(done(1, true), (4, 1, StepState::Undone, None));
    assert_eq!(told(Signal::StepBegun { index: 1, undo: true }), (4, 1, StepState::UndoBegun, None));
}

#[test]
fn a_transition_is_told_whole_and_its_end_with_base_servers() {
    let plan = plan_of(&row());
    let began = message(&Signal::TransitionBegun { plan: plan.clone() }, "me", None, None, &BTreeMap::new());
    let Message::Begin(request) = began else { panic!("{began:?}") };
    assert_eq!((request.steps.len(), request.groups.len(), request.by.as_str()), (2, 1, "me"));
    assert_eq!(serde_json::from_str::<Plan>(&request.plan).expect("a plan"), plan);
    let conditions = [("mail".parse().expect("name"), Condition::Light)].into();
    let ended = Signal::Committed { conditions, missing: BTreeSet::new() };
    let Message::End(mut request) = message(&ended, "me", Some(4), Some(&plan), &BTreeMap::new()) else {
        panic!("an end")
    };
    put_bases(&mut request, &ledger());
    assert!(request.committed && request.state[0].base == "rs1", "{request:?}");
}

#[test]
fn what_may_have_been_done_is_asked_again_and_a_refusal_is_one() {
    for (code, unknown) in [
        (Code::Unavailable, true),
        (Code::DeadlineExceeded, true),
        (Code::Aborted, false),
        (Code::NotFound, false),
        (Code::FailedPrecondition, false),
    ] {
        let answer = failure(&Status::new(code, "x"));
        assert_eq!(matches!(answer, Answer::Unknown(_)), unknown, "{code}");
    }
}

#[test]
fn a_signal_is_not_sent_twice_at_a_time() {
    let mut flights = Flights::default();
    assert!(flights.begin(SignalId(1)) && !flights.begin(SignalId(1)) && flights.begin(SignalId(2)));
    flights.end(SignalId(1));
    assert!(flights.begin(SignalId(1)));
}
