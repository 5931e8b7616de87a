//! Any signals in any order: what always holds of the tables, and of the edits that lead to them.

use crate::desk::{Desk, PLACES, arrangement, migrate, move_vip, n, sleep};
use kage_sif_core::{Shared, Signal};
use kage_types::{AgentId, Claim, Condition, DomainName, OperationRow, Step, StepState, Tables, Term};
use proptest::prelude::*;
use std::collections::BTreeSet;

const HOSTS: [&str; 4] = ["rs1", "rs2", "rs3", "mgmt"];
const BACKUPS: [&str; 2] = ["mailb", "webb"];
const STATES: [StepState; 5] =
    [StepState::Planned, StepState::Begun, StepState::Done, StepState::UndoBegun, StepState::Undone];

#[derive(Clone, Debug)]
enum Op {
    Arrange {
        without: BTreeSet<usize>,
        moved_home: Option<(usize, usize)>,
    },
    Restored {
        place: usize,
        backup: usize,
    },
    Verdict {
        place: usize,
        recovered: bool,
        host: usize,
    },
    Claim {
        by: usize,
        claims: Vec<Claim>,
    },
    Moved {
        vm: usize,
        host: usize,
        not_on: Option<usize>,
    },
    Found {
        vm: usize,
        host: usize,
        not_on: usize,
    },
    Begin {
        steps: Vec<Step>,
    },
    Put {
        index: usize,
        state: usize,
    },
    /// The next sensible word on a step.
    On {
        index: usize,
        back: bool,
    },
    End {
        light: bool,
    },
    Take,
    Restore,
}

/// A place's own virtual server, or a backup.
fn vm(index: usize) -> &'static str {
    PLACES.get(index).map_or_else(|| BACKUPS[index - PLACES.len()], |(name, ..)| *name)
}

fn step() -> impl Strategy<Value = Step> {
    let vms = || (0..PLACES.len() + BACKUPS.len()).prop_map(vm);
    let hosts = || (0..3usize).prop_map(|index| HOSTS[index]);
    prop_oneof![
        4 => (1..8u8, vms(), vms()).prop_map(|(vip, from, to)| move_vip(vip, from, to)),
        4 => (vms(), hosts(), hosts()).prop_map(|(vm, from, to)| migrate(vm, from, to)),
        2 => (vms(), hosts()).prop_map(|(vm, host)| Step::SuspendVm { vm: n(vm), host: n(host) }),
        1 => (vms(), hosts()).prop_map(|(vm, host)| Step::ResumeVm { vm: n(vm), host: n(host) }),
        2 => hosts().prop_map(sleep),
        2 => hosts().prop_map(|host| sleep(host).inverse()),
    ]
}

/// Plans that can be carried out whole, too.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![
        Just(crate::desk::fold()),
        Just(crate::desk::unfold()),
        Just(vec![move_vip(6, "ftp2", "ftp1"), sleep("rs3")]),
        Just(vec![move_vip(4, "mail2", "mail1"), Step::SuspendVm { vm: n("mail2"), host: n("rs2") }]),
        prop::collection::vec(step(), 1..5),
    ]
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        (0..4usize).prop_map(|index| Claim::Host(n(HOSTS[index]))),
        (0..6usize).prop_map(|index| Claim::Vm(n(vm(index)))),
        (1..7u8).prop_map(|vip| Claim::Vip(n(&format!("10.0.0.{vip}")))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (prop::collection::btree_set(0..6usize, 0..2), prop::option::of((0..6usize, 0..3usize)))
            .prop_map(|(without, moved_home)| Op::Arrange { without, moved_home }),
        3 => (0..6usize, 0..2usize).prop_map(|(place, backup)| Op::Restored { place, backup }),
        3 => (0..6usize, any::<bool>(), 0..4usize)
            .prop_map(|(place, recovered, host)| Op::Verdict { place, recovered, host }),
        2 => (0..2usize, prop::collection::vec(claim(), 0..2)).prop_map(|(by, claims)| Op::Claim { by, claims }),
        2 => (0..8usize, 0..4usize, prop::option::of(0..4usize))
            .prop_map(|(vm, host, not_on)| Op::Moved { vm, host, not_on }),
        2 => (0..8usize, 0..4usize, 0..4usize).prop_map(|(vm, host, not_on)| Op::Found { vm, host, not_on }),
        4 => steps().prop_map(|steps| Op::Begin { steps }),
        3 => (0..5usize, 0..5usize).prop_map(|(index, state)| Op::Put { index, state }),
        20 => (0..4usize, prop::bool::weighted(0.2)).prop_map(|(index, back)| Op::On { index, back }),
        2 => any::<bool>().prop_map(|light| Op::End { light }),
        1 => Just(Op::Take),
        1 => Just(Op::Restore),
    ]
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(index: usize) -> T {
    n(vm(index))
}

fn signal(op: Op, tables: &Tables, now_unix_ms: u64) -> Option<Signal> {
    let term = Term(1);
    let id = tables.transition.as_ref().map_or(0, |row| row.id);
    let by = tables.transition.as_ref().map_or_else(|| "pss".to_owned(), |row| row.by.clone());
    Some(match op {
        Op::Arrange { without, moved_home } => {
            let Signal::PutArrangement { mut operation, real_servers, groups, .. } = arrangement(1) else {
                unreachable!()
            };
            without.iter().for_each(|index| drop(operation.remove(&name::<DomainName>(*index))));
            if let Some((place, host)) = moved_home
                && let Some(row) = operation.get_mut(&name::<DomainName>(place))
            {
                row.home = n(HOSTS[host]);
            }
            Signal::PutArrangement { term, operation, real_servers, groups }
        }
        Op::Restored { place, backup } => {
            Signal::FunctionRestored { term, place: name(place), backup: n(BACKUPS[backup]), host: n("mgmt") }
        }
        Op::Verdict { place, recovered, host } => {
            Signal::TargetVerdict { term, place: name(place), recovered, host: n(HOSTS[host]) }
        }
        Op::Claim { by, claims } => {
            let claims = claims.into_iter().collect();
            Signal::PutClaims { term, by: vm(by).to_owned(), why: "down".to_owned(), claims }
        }
        Op::Moved { vm, host, not_on } => {
            let not_on = not_on.map(|other| n(HOSTS[other])).into_iter().collect();
            Signal::MovedTo { term, vm: name(vm), host: n(HOSTS[host]), not_on }
        }
        Op::Found { vm, host, not_on } => {
            Signal::Found { by, vm: name(vm), host: n(HOSTS[host]), not_on: [n(HOSTS[not_on])].into() }
        }
        Op::Begin { steps } => crate::desk::begin(tables.revision, &steps),
        Op::Put { index, state } => {
            Signal::PutStep { id, by, index, state: STATES[state], took_ms: Some(5), now_unix_ms }
        }
        Op::On { index, back } => {
            let (_, state) = tables.transition.as_ref()?.steps.get(index)?;
            let state = match (state, back) {
                (StepState::Planned | StepState::Undone, _) => StepState::Begun,
                (StepState::Begun, false) => StepState::Done,
                (StepState::Begun | StepState::Done, _) => StepState::UndoBegun,
                (StepState::UndoBegun, _) => StepState::Undone,
            };
            Signal::PutStep { id, by, index, state, took_ms: None, now_unix_ms }
        }
        Op::End { light } => {
            let condition = if light { Condition::Light } else { Condition::Moderate };
            let Signal::EndTransition { committed, state, why, .. } = crate::desk::end(id, condition) else {
                unreachable!()
            };
            Signal::EndTransition { id, by, committed, state, why }
        }
        Op::Take => Signal::TakeTransition { id, from: by, by: "pss2".to_owned() },
        Op::Restore => return None,
    })
}

fn holds(shared: &Shared) -> Result<(), TestCaseError> {
    let Tables { operation, suspend, live_migration, displaced, real_servers, placement, claims, .. } = &shared.tables;
    let asleep = |host: &AgentId| real_servers.get(host).is_some_and(|row| row.asleep_since_unix_ms.is_some());
    for (place, row) in suspend {
        prop_assert!(!operation.contains_key(place), "{place} is in operation and suspended");
        prop_assert!(asleep(&row.host) || shared.paused.contains(place), "{place} is suspended on {}", row.host);
    }
    prop_assert!(shared.paused.iter().all(|place| suspend.contains_key(place)));
    let all: Vec<(&DomainName, &OperationRow)> = operation.iter().chain(suspend).collect();
    for (place, row) in live_migration {
        let Some((_, filled)) = all.iter().find(|(name, _)| *name == place) else {
            return Err(TestCaseError::fail(format!("{place} is no place")));
        };
        let under_way = shared.tables.migrating(&filled.vm).is_some();
        prop_assert!(filled.host != row.original_host || under_way, "{place} is at home");
        prop_assert_eq!(&row.original_host, &filled.home);
    }
    for (place, row) in &all {
        let known = displaced.contains_key(*place);
        prop_assert_eq!(known, row.vm != **place, "{} is filled by {}: is it known where its own is?", place, row.vm);
    }
    prop_assert!(displaced.keys().all(|place| all.iter().any(|(name, _)| *name == place)));
    for (vip, vm) in placement {
        prop_assert!(all.iter().any(|(_, row)| row.vm == *vm), "{vip} is on {vm}");
        let home = all.iter().find(|(_, row)| row.home_vips.contains(vip));
        prop_assert!(home.is_some_and(|(_, row)| row.vm != *vm), "{vip} belongs on {vm}");
    }
    // One virtual server is in one spot.
    for (_, row) in &all {
        prop_assert!(all.iter().all(|(_, other)| other.vm != row.vm || other.host == row.host), "{} is in two", row.vm);
    }
    for (vm, hosts) in &shared.tables.may_be_on {
        let at = shared.tables.host_of(vm);
        prop_assert!(!hosts.is_empty() && at.is_some_and(|at| !hosts.contains(at)), "{vm}: {at:?} or {hosts:?}");
    }
    prop_assert!(claims.iter().all(|(claim, row)| shared.recoveries[&row.by].claims.contains(claim)));
    prop_assert!(shared.recoveries.values().flat_map(|recovery| &recovery.claims).all(|c| claims.contains_key(c)));
    prop_assert_eq!(shared.check(), Ok(()));
    Ok(())
}

/// Where a virtual server may be, before and after a signal: no end of a migration is forgotten but by evidence.
fn doubts(before: &Tables, after: &Tables, signal: &Signal) -> Result<(), TestCaseError> {
    let word = match signal {
        Signal::PutStep { index, state, .. } => before.transition.as_ref().and_then(|row| {
            let (step, _) = row.steps.get(*index)?;
            match step {
                Step::Migrate { vm, from, to } => Some((vm, from, to, *state)),
                _ => None,
            }
        }),
        _ => None,
    };
    if let Some((vm, from, to, StepState::Begun | StepState::UndoBegun)) = word
        && before != after
        && let Some(at) = after.host_of(vm)
    {
        let known = |host: &AgentId| host == at || after.may_be_on.get(vm).is_some_and(|hosts| hosts.contains(host));
        prop_assert!(known(from) && known(to), "{vm} is on its way from {from} to {to}");
    }
    for (vm, hosts) in &before.may_be_on {
        let Some(at) = after.host_of(vm) else { continue };
        for host in hosts {
            let still = host == at || after.may_be_on.get(vm).is_some_and(|hosts| hosts.contains(host));
            let evidence = match signal {
                Signal::MovedTo { vm: moved, not_on, .. } | Signal::Found { vm: moved, not_on, .. } => {
                    moved == vm && not_on.contains(host)
                }
                _ => word.is_some_and(|(moved, _, _, state)| {
                    moved == vm && matches!(state, StepState::Done | StepState::Undone)
                }),
            };
            prop_assert!(still || evidence, "{vm} may still be on {host}: {signal:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_order_of_signals_keeps_what_always_holds(ops in prop::collection::vec(op(), 1..60)) {
        let mut desk = Desk::new();
        for (now, op) in (0..).zip(ops) {
            let before = desk.shared().clone();
            let restore = matches!(op, Op::Restore);
            if let Some(signal) = signal(op, &before.tables, now) {
                // Refused or not, and repeated: the desk sees to it that the second time is as the first.
                let refused = desk.put(signal.clone()).is_err();
                prop_assert!(!refused || *desk.shared() == before, "a refusal changes nothing");
                doubts(&before.tables, desk.tables(), &signal)?;
            }
            let shared = if restore { desk.core.ledger().clone().restored().shared } else { desk.shared().clone() };
            holds(&shared)?;
            let changed = shared != before;
            prop_assert_eq!(changed, shared.tables.revision > before.tables.revision);
            // What is written is what is there: from before, and from nothing.
            for from in [before, Shared::default()] {
                let mut written = from.clone();
                from.edits_to(&shared).iter().for_each(|edit| written.apply(edit));
                written.tables.revision = shared.tables.revision;
                prop_assert_eq!(&written, &shared);
            }
        }
    }
}
