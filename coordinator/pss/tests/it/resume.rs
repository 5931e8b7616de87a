//! A controller that starts again in the middle of a transition.

use crate::support::{at, policy, thesis};
use kage_pss_core::{
    Input, Pss,
    execute::{Action, Event, Recorded, Signal},
    plan::plan,
};
use kage_types::Revision;

fn signals(actions: &[Action]) -> Vec<&Signal> {
    let signal = |action| match action {
        &Action::Signal { ref signal, .. } => Some(signal),
        _ => None,
    };
    actions.iter().filter_map(signal).collect()
}

#[test]
fn nothing_was_begun_so_it_is_rolled_back_and_planned_anew() {
    let inventory = thesis();
    let (plan, _) = plan(&inventory, &policy());
    let steps = plan.steps.len();
    let mut pss = Pss::new(at(10_000), policy());
    let mut actions = Vec::new();
    let resume = |recorded| Input::Resume { plan: Box::new(plan.clone()), recorded };
    pss.step(at(10_000), resume(vec![Recorded::Untouched; steps]), &mut actions);
    assert_eq!(actions, [], "nothing is known yet");
    pss.step(at(10_000), Input::Inventory(Box::new(inventory.clone())), &mut actions);
    pss.step(at(10_000), resume(vec![Recorded::Untouched; steps]), &mut actions);
    assert!(
        matches!(signals(&actions).as_slice(), [Signal::RolledBack { left, .. }] if left.is_empty()),
        "{actions:?}"
    );
    let Some(Action::Signal { id, .. }) = actions.iter().find(|action| matches!(action, Action::Signal { .. })) else {
        panic!("a signal")
    };
    let recorded = Event::Recorded { id: *id, revision: Revision(9) };
    pss.step(at(10_001), Input::Execute(recorded), &mut actions);
    assert_eq!(pss.executor().plan(), None);
}

#[test]
fn what_was_done_is_taken_back_in_the_other_order() {
    let inventory = thesis();
    let (plan, _) = plan(&inventory, &policy());
    let mut recorded = vec![Recorded::Untouched; plan.steps.len()];
    recorded[0] = Recorded::Done;
    let mut pss = Pss::new(at(10_000), policy());
    let mut actions = Vec::new();
    pss.step(at(10_000), Input::Inventory(Box::new(inventory)), &mut actions);
    pss.step(at(10_000), Input::Resume { plan: Box::new(plan), recorded }, &mut actions);
    assert_eq!(signals(&actions), [&Signal::StepBegun { index: 0, undo: true }]);
}
