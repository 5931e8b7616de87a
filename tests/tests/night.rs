//! Power saving and supervision together: a failure during each step of each transition, and a day's load.

use kage_tests::sim::night::{Case, cases, day, run_case, steps};

/// Unoptimised cores are twenty times slower.
const EACH: usize = if cfg!(debug_assertions) { 61 } else { 9 };

#[test]
fn whatever_fails_during_a_transition_everything_is_served_again_and_the_tables_match() {
    let all: Vec<Case> = cases(steps(1).expect("to Light")).into_iter().skip(1).step_by(EACH).collect();
    let half = all.len() / 2;
    let run = |cases: &[Case]| {
        let tried = cases.iter().map(|case| run_case(*case, 1).expect("the configuration").0);
        tried
            .filter_map(|tried| Some(format!("{} ({}): {}", tried.case, tried.what, tried.broken?)))
            .collect::<Vec<_>>()
    };
    let broken = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(&all[..half]));
        let mut broken = run(&all[half..]);
        broken.extend(other.join().expect("no panic"));
        broken
    });
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn a_days_load_does_not_flap() {
    let day = day(1, if cfg!(debug_assertions) { 1 } else { 10 }).expect("nothing that must not be");
    assert!(day.transitions.0 <= 9 && day.transitions.1 <= 9, "three groups, a night and a rest: {day:?}");
    assert!(day.dark_ms < 1_000, "a handful of planned moves: {day:?}");
}
