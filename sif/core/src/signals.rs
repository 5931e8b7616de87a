//! One signal against the shared tables: who may send it, what becomes of it.

use crate::{
    Change, Electorate, Ledger, Refusal, Reply, Shared, Signal,
    decide::{Verdict, established, writer},
    recovery,
    tidy::tidy,
    transition::{self, StepWord},
};

/// `shared` is what the signals before it in the same commit leave, together with which it becomes durable or not; with
/// the verdict, what this one leaves, if anything changes.
pub(crate) fn decide(
    ledger: &Ledger,
    electorate: &Electorate,
    shared: &Shared,
    signal: Signal,
) -> (Verdict, Option<Shared>) {
    let allowed = match signal.term() {
        Some(term) => writer(ledger, electorate, term),
        None => established(ledger, electorate),
    };
    let mut next = shared.clone();
    let id = match allowed.and_then(|()| edit(&mut next, signal)) {
        Ok(id) => id,
        Err(refusal) => return (Verdict::Answer(Err(refusal)), None),
    };
    tidy(&mut next);
    let edits = shared.edits_to(&next);
    let changed = !edits.is_empty();
    if changed {
        next.tables.revision = shared.tables.revision.next();
    }
    let revision = next.tables.revision;
    let reply = match id {
        Some(id) => Reply::Transition { revision, id },
        None => Reply::Tables { revision },
    };
    if changed {
        let changes = vec![Change::Tables { revision, edits }];
        (Verdict::Change { changes, reply, alert: None }, Some(next))
    } else {
        (Verdict::Answer(Ok(reply)), None)
    }
}

/// The id of a transition that is begun or taken.
fn edit(shared: &mut Shared, signal: Signal) -> Result<Option<u64>, Refusal> {
    match signal {
        Signal::PutArrangement { operation, real_servers, groups, .. } => {
            recovery::arrangement(shared, operation, &real_servers, &groups).map(|()| None)
        }
        Signal::FunctionRestored { place, backup, host, .. } => {
            recovery::function_restored(shared, &place, &backup, host).map(|()| None)
        }
        Signal::TargetVerdict { place, recovered, host, .. } => {
            recovery::verdict(shared, &place, recovered, &host).map(|()| None)
        }
        Signal::PutClaims { by, why, claims, .. } => recovery::claims(shared, by, why, claims).map(|()| None),
        Signal::MovedTo { vm, host, not_on, .. } => recovery::moved_to(shared, &vm, &host, &not_on).map(|()| None),
        // Who is for the log.
        Signal::Found { vm, host, not_on, by: _ } => recovery::found(shared, &vm, &host, &not_on).map(|()| None),
        Signal::BeginTransition { by, generation, plan, steps, groups } => {
            transition::begin(shared, generation, transition::planned(by, plan, steps, groups)).map(Some)
        }
        Signal::TakeTransition { id, from, by } => transition::take(shared, id, &from, by).map(Some),
        Signal::PutStep { id, by, index, state, took_ms, now_unix_ms } => {
            let word = StepWord { index, state, took_ms, now_unix_ms };
            transition::put_step(shared, id, &by, &word).map(|()| None)
        }
        // Why is for the log.
        Signal::EndTransition { id, by, committed, state, why: _ } => {
            transition::end(shared, transition::ended(id, by, committed, state)).map(|()| None)
        }
    }
}
