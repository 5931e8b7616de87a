//! Small scope, exhaustively: two owners, three voters, one takeover, on a clock of ticks. Every order of deliveries,
//! losses, effects, timers and stalls within the bounds; states met before are not entered again.
//!
//! The owners and voters are the production cores. The coordinator is rule 5c itself (epoch durable; bars from a
//! majority; patience; told to hold), because the real one has timers of its own that no tick divides: it is under the
//! random search instead.

mod state;

use super::world::Sabotage;
use state::State;
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// K, R, L in ticks of one second: L = 2K + R, the least that rule 3 allows (g = 0).
const ELEMENT: u64 = 2;
const RENEWAL: u64 = 1;
const LEASE: u64 = 5;
/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// The owner is cut from the coordinator and asks the voters; else it asks the coordinator, whose answers are late.
    pub voters: bool,
    /// Ticks.
    pub horizon: u64,
    /// Timers of the old owner that fire; each asks once.
    pub asks: u8,
    /// A question to a voter arrives within so many ticks, or not at all.
    pub question_late: u64,
    /// The takeover begins by then, or not at all.
    pub begun_by: u64,
    /// A rule broken on purpose.
    pub sabotage: Option<Sabotage>,
    /// Give up after so many states.
    pub limit: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Histories in which the new owner opened.
    pub takeovers: usize,
    /// The way to two owners, if there is one.
    pub broken: Option<Vec<String>>,
    /// All of them were explored.
    pub complete: bool,
}

/// Explore the scope.
#[must_use]
pub fn explore(scope: &Scope) -> Verdicts {
    let mut verdicts = Verdicts { complete: true, ..Verdicts::default() };
    let mut seen = HashSet::new();
    let start = State::start(scope);
    seen.insert(start.fingerprint());
    // Depth first: (state, its moves, the next of them).
    let moves = start.moves(scope);
    let mut path = vec![(start, moves, 0usize)];
    while let Some((state, moves, next)) = path.last_mut() {
        let Some(step) = moves.get(*next).cloned() else {
            path.pop();
            continue;
        };
        *next += 1;
        let mut after = state.clone();
        after.make(&step, scope);
        verdicts.steps += 1;
        if after.two_owners() {
            let way = path.iter().map(|(state, moves, next)| format!("{} {:?}", state.tick, moves[next - 1])).collect();
            verdicts.broken = Some(way);
            break;
        }
        if seen.insert(after.fingerprint()) {
            verdicts.takeovers += usize::from(after.opened && !path.last().is_some_and(|(state, ..)| state.opened));
            if seen.len() >= scope.limit {
                verdicts.complete = false;
                break;
            }
            let moves = after.moves(scope);
            path.push((after, moves, 0));
        }
    }
    verdicts.states = seen.len();
    verdicts
}

/// With the coordinator, and with the voters, side by side: as large as a minute allows, or small enough for a test.
#[must_use]
pub fn both(small: bool, sabotage: Option<Sabotage>) -> Vec<(Scope, Verdicts, Duration)> {
    let scope = |voters: bool| Scope {
        voters,
        horizon: LEASE + 2,
        asks: if voters { 1 } else { 2 },
        question_late: if small { 1 } else { 2 },
        begun_by: if voters || small { 1 } else { 2 },
        sabotage,
        limit: 6_000_000,
    };
    std::thread::scope(|threads| {
        let run = |voters: bool| {
            threads.spawn(move || {
                let (scope, began) = (scope(voters), Instant::now());
                let verdicts = explore(&scope);
                (scope, verdicts, began.elapsed())
            })
        };
        let running = [run(false), run(true)];
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}
