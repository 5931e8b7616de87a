//! Small scope, exhaustively: two owners, three voters, one takeover, on a clock of ticks. Every order of deliveries,
//! losses, effects, timers and stalls within the bounds; states met before are not entered again.
//!
//! Twice: `state` has the production cores of the agents under rule 5c itself as the coordinator (epoch durable; bars
//! from a majority; patience; told to hold), the most eager one that the rule allows. `whole` has the production cores
//! of coordinator and SIF as well, at their own times between the ticks, and one death of the coordinator.

mod state;
mod whole;

use super::kernel::KernelSabotage;
use super::world::Sabotage;
use state::State;
use std::{
    collections::{HashSet, VecDeque},
    fmt,
    time::{Duration, Instant},
};
use whole::Whole;

/// K, R, L in ticks of one second: L = 2K + R, the least that rule 3 allows (g = 0).
const ELEMENT: u64 = 2;
const RENEWAL: u64 = 1;
const LEASE: u64 = 5;

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// What it is called.
    pub name: &'static str,
    /// Coordinator and SIF are the production cores too.
    pub whole: bool,
    /// The owner is cut from the coordinator and asks the voters; else it asks the coordinator, whose answers are late.
    pub voters: bool,
    /// The coordinator may die once.
    pub crash: bool,
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
    /// Of the longest history.
    pub depth: usize,
    /// Histories in which the new owner opened.
    pub takeovers: usize,
    /// The way to two owners, if there is one.
    pub broken: Option<Vec<String>>,
    /// All of them were explored.
    pub complete: bool,
}

/// A small world.
pub(crate) trait Model: Clone {
    /// A step of it.
    type Move: Clone + fmt::Debug;
    /// All that may come next.
    fn moves(&self, scope: &Scope) -> Vec<Self::Move>;
    /// It does.
    fn make(&mut self, step: &Self::Move, scope: &Scope);
    /// The promise is broken.
    fn two_owners(&self) -> bool;
    /// The new owner has opened.
    fn taken_over(&self) -> bool;
    /// For people.
    fn when(&self) -> String;
    /// Of everything that decides what can follow.
    fn fingerprint(&self) -> u64;
}

/// Explore the scope.
#[must_use]
pub fn explore(scope: &Scope) -> Verdicts {
    if scope.whole { deep(Whole::start(scope), scope) } else { deep(State::start(scope), scope) }
}

/// The shortest way to two owners, if there is one within the limit.
#[must_use]
pub fn shortest(scope: &Scope) -> Verdicts {
    if scope.whole { broad(Whole::start(scope), scope) } else { broad(State::start(scope), scope) }
}

/// Depth first: little memory.
fn deep<M: Model>(start: M, scope: &Scope) -> Verdicts {
    let mut verdicts = Verdicts { complete: true, ..Verdicts::default() };
    let mut seen = HashSet::from([start.fingerprint()]);
    // (state, its moves, the next of them).
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
            let way =
                path.iter().map(|(state, moves, next)| format!("{} {:?}", state.when(), moves[next - 1])).collect();
            verdicts.broken = Some(way);
            break;
        }
        if seen.insert(after.fingerprint()) {
            let before = path.last().is_some_and(|(state, ..)| state.taken_over());
            verdicts.takeovers += usize::from(after.taken_over() && !before);
            if seen.len() >= scope.limit {
                verdicts.complete = false;
                break;
            }
            let moves = after.moves(scope);
            path.push((after, moves, 0));
            verdicts.depth = verdicts.depth.max(path.len() - 1);
        }
    }
    verdicts.states = seen.len();
    verdicts
}

/// Breadth first: the shortest way.
fn broad<M: Model>(start: M, scope: &Scope) -> Verdicts {
    let mut verdicts = Verdicts { complete: true, ..Verdicts::default() };
    let mut seen = HashSet::from([start.fingerprint()]);
    // How each state was reached: from which, when, by what.
    let mut ways: Vec<Option<(usize, String, M::Move)>> = vec![None];
    let mut queue = VecDeque::from([(0, 0, start)]);
    'search: while let Some((number, depth, state)) = queue.pop_front() {
        for step in state.moves(scope) {
            let mut after = state.clone();
            after.make(&step, scope);
            verdicts.steps += 1;
            let broken = after.two_owners();
            if !broken && !seen.insert(after.fingerprint()) {
                continue;
            }
            verdicts.takeovers += usize::from(after.taken_over() && !state.taken_over());
            verdicts.depth = depth + 1;
            ways.push(Some((number, state.when(), step)));
            if broken {
                let mut way = Vec::new();
                let mut last = ways.len() - 1;
                while let Some((from, when, step)) = &ways[last] {
                    way.push(format!("{when} {step:?}"));
                    last = *from;
                }
                way.reverse();
                verdicts.broken = Some(way);
                break 'search;
            }
            if seen.len() >= scope.limit {
                verdicts.complete = false;
                break 'search;
            }
            queue.push_back((ways.len() - 1, depth + 1, after));
        }
    }
    verdicts.states = seen.len();
    verdicts
}

/// As large as some minutes allow, or small enough for a test.
#[must_use]
pub fn scopes(small: bool, sabotage: Option<Sabotage>) -> Vec<Scope> {
    let scope = |name, voters: bool| Scope {
        name,
        whole: false,
        voters,
        crash: false,
        horizon: LEASE + 2,
        asks: if voters { 1 } else { 2 },
        question_late: if small { 1 } else { 2 },
        begun_by: if voters || small { 1 } else { 2 },
        sabotage,
        limit: 6_000_000,
    };
    let whole = |name, voters, crash: bool| Scope {
        whole: true,
        crash,
        // A new term waits T + L.
        horizon: if crash { LEASE + 6 } else { LEASE + 2 },
        begun_by: u64::from(!small || !crash),
        asks: if small || voters { 1 } else { 2 },
        question_late: if small { 0 } else { 1 },
        limit: if small && (voters || crash) { GLANCE } else { 6_000_000 },
        ..scope(name, voters)
    };
    vec![
        scope("rule 5c, coordinator", false),
        scope("rule 5c, voters", true),
        whole("real coordinator", false, false),
        whole("real coordinator, voters", true, false),
        whole("real coordinator dies", false, true),
        whole("real coordinator dies, voters", true, true),
    ]
}

/// All of these, by so many threads.
#[must_use]
pub fn all(scopes: &[Scope], jobs: usize) -> Vec<(Scope, Verdicts, Duration)> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|threads| {
        for _ in 0..jobs.max(1) {
            threads.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(scope) = scopes.get(index) else { return };
                    let began = Instant::now();
                    let verdicts = explore(scope);
                    let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    found.push((index, (*scope, verdicts, began.elapsed())));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, verdicts)| verdicts).collect()
}

/// States met before two owners were found: more than that are not looked at, where all is real and where it is not.
const HUNT: [usize; 2] = [120_000, 400_000];
/// States of the scopes that no test has the time to explore.
const GLANCE: usize = 40_000;

/// Where a sabotage may show: the others know nothing of what it breaks.
fn fitting(sabotage: Sabotage) -> &'static [&'static str] {
    use kage_agent_core::Sabotage as Agent;
    use kage_coordinator_core::Sabotage as Core;
    match sabotage {
        Sabotage::Agent(Agent::GrantFromReceipt)
        | Sabotage::Kernel(KernelSabotage::UnconditionalRenewal | KernelSabotage::LiveWithoutArmed) => {
            &["rule 5c, coordinator", "real coordinator"]
        }
        Sabotage::Agent(Agent::KeepWithoutMajority) => &["rule 5c, voters", "real coordinator, voters"],
        Sabotage::Coordinator(Core::OpenBeforeDurable) => &["real coordinator"],
        Sabotage::Coordinator(Core::PatienceWithoutBars) => &["real coordinator, voters"],
        Sabotage::Coordinator(Core::NoWaitAfterNewTerm) => &["real coordinator dies"],
        Sabotage::Agent(Agent::ReleaseBeforeDurable | Agent::AsksTooSeldom)
        | Sabotage::Kernel(KernelSabotage::AddTakenForRefresh)
        | Sabotage::Coordinator(
            Core::NoStormBrake
            | Core::OrdersIgnored
            | Core::OpenBeforeDoubleRuns
            | Core::StrangerIgnored
            | Core::WriterUnproven
            | Core::NotToldAgain
            | Core::SignalA1
            | Core::SignalA2
            | Core::SignalA4
            | Core::SignalA5,
        )
        | Sabotage::Sif(_)
        | Sabotage::ReleaseBeforeQuiet => &[],
    }
}

fn broken_scopes(sabotage: Sabotage) -> impl Iterator<Item = Scope> {
    let scopes = scopes(true, Some(sabotage));
    let bounded = |scope: &Scope| Scope { limit: HUNT[usize::from(!scope.whole)], ..*scope };
    fitting(sabotage).iter().filter_map(move |name| scopes.iter().find(|scope| scope.name == *name).map(bounded))
}

/// Does it show anywhere? Depth first, which is sooner for what lies deep; else breadth first.
#[must_use]
pub fn shows(sabotage: Sabotage) -> bool {
    broken_scopes(sabotage).any(|scope| explore(&scope).broken.is_some() || shortest(&scope).broken.is_some())
}

/// The first scope in which this sabotage shows: its name, the states met until then, the shortest way; or some way, if
/// that is too far to be found breadth first.
#[must_use]
pub fn found(sabotage: Sabotage) -> Option<(String, usize, Vec<String>)> {
    broken_scopes(sabotage).find_map(|scope| {
        let verdicts = shortest(&scope);
        if let Some(way) = verdicts.broken {
            return Some((scope.name.to_owned(), verdicts.states, way));
        }
        let verdicts = explore(&scope);
        Some((format!("{}; depth first, not the shortest", scope.name), verdicts.states, verdicts.broken?))
    })
}
