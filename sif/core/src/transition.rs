//! Signals of power saving (PSS): a transition, its steps and its end.

use crate::{
    DETAIL_LIMIT, Ended, Refusal, Shared,
    tidy::{asleep, held, holder, home, places},
    whereabouts,
};
use kage_types::{
    AgentId, Claim, Condition, DomainName, GroupName, MigrationRow, OperationRow, Revision, StateRow, Step, StepState,
    Tables, TransitionRow, Vip,
};
use std::collections::BTreeMap;

/// Steps of a transition: two for each of the 1,000 hosts one coordinator is built for (design §6), and more.
pub const STEP_LIMIT: usize = 4096;

/// Bytes of a plan: hundreds for each step. It is pushed to everybody with the tables.
pub const PLAN_LIMIT: usize = 256 << 10;

/// What a step is about, and when.
pub(crate) struct StepWord {
    pub index: usize,
    pub state: StepState,
    pub took_ms: Option<u32>,
    pub now_unix_ms: u64,
}

pub(crate) fn begin(shared: &mut Shared, generation: Revision, row: TransitionRow) -> Result<u64, Refusal> {
    check(&row)?;
    let tables = &mut shared.tables;
    let row = TransitionRow { id: generation.next().0, ..row };
    if let Some(old) = &tables.transition {
        let steps = |row: &TransitionRow| row.steps.iter().map(|(step, _)| step.clone()).collect::<Vec<_>>();
        let same = old.id == row.id && old.by == row.by && old.plan == row.plan && old.groups == row.groups;
        if same && steps(old) == steps(&row) {
            return Ok(old.id);
        }
        return Err(Refusal::UnderWay { id: old.id, by: old.by.clone() });
    }
    if generation != tables.revision {
        return Err(Refusal::StaleGeneration { given: generation, current: tables.revision });
    }
    if let Some(group) = row.groups.keys().find(|group| !tables.state.contains_key(*group)) {
        return Err(Refusal::Unknown { what: format!("service group {group}") });
    }
    for (step, _) in &row.steps {
        unclaimed(tables, step)?;
    }
    let id = row.id;
    tables.transition = Some(row);
    Ok(id)
}

fn check(row: &TransitionRow) -> Result<(), Refusal> {
    named(&row.by)?;
    for (what, count, limit) in [
        ("steps of a transition", row.steps.len(), STEP_LIMIT),
        ("a plan in bytes", row.plan.len(), PLAN_LIMIT),
        ("groups of a transition", row.groups.len(), crate::PLACE_LIMIT),
    ] {
        if count > limit {
            let next = "change fewer groups at a time".to_owned();
            return Err(Refusal::TooMuch { what: what.to_owned(), limit, next });
        }
    }
    // Without a step a group's condition may change all the same: what it takes may have been done by others.
    if row.steps.is_empty() && row.groups.is_empty() {
        return Err(Refusal::Invalid {
            why: "a transition without a step or a group: nothing is to be done".to_owned(),
        });
    }
    Ok(())
}

fn named(by: &str) -> Result<(), Refusal> {
    if by.is_empty() {
        return Err(Refusal::Invalid { why: "by: say which process carries out the transition".to_owned() });
    }
    if by.len() > DETAIL_LIMIT {
        let what = "the name of a process in bytes".to_owned();
        return Err(Refusal::TooMuch { what, limit: DETAIL_LIMIT, next: "shorten it".to_owned() });
    }
    Ok(())
}

pub(crate) fn take(shared: &mut Shared, id: u64, from: &str, by: String) -> Result<u64, Refusal> {
    named(&by)?;
    let row = current(shared, id)?;
    if row.by != by {
        if row.by != from {
            return Err(Refusal::OtherProcess { id, by: row.by.clone(), given: from.to_owned() });
        }
        row.by = by;
    }
    Ok(id)
}

fn current(shared: &mut Shared, id: u64) -> Result<&mut TransitionRow, Refusal> {
    let under_way = shared.tables.transition.as_ref().map(|row| row.id);
    shared.tables.transition.as_mut().filter(|row| row.id == id).ok_or(Refusal::NoTransition { given: id, under_way })
}

fn own<'a>(shared: &'a mut Shared, id: u64, by: &str) -> Result<&'a mut TransitionRow, Refusal> {
    let row = current(shared, id)?;
    if row.by != by {
        return Err(Refusal::OtherProcess { id, by: row.by.clone(), given: by.to_owned() });
    }
    Ok(row)
}

pub(crate) fn end(shared: &mut Shared, ended: Ended) -> Result<(), Refusal> {
    if shared.ended.as_ref() == Some(&ended) {
        return Ok(());
    }
    own(shared, ended.id, &ended.by)?;
    let tables = &mut shared.tables;
    if let Some(group) = ended.state.keys().find(|group| !tables.state.contains_key(*group)) {
        return Err(Refusal::Unknown { what: format!("service group {group}") });
    }
    tables.state.extend(ended.state.clone());
    tables.transition = None;
    shared.ended = Some(ended);
    Ok(())
}

pub(crate) fn put_step(shared: &mut Shared, id: u64, by: &str, word: &StepWord) -> Result<(), Refusal> {
    let StepWord { index, state, .. } = *word;
    let row = own(shared, id, by)?;
    let count = row.steps.len();
    let Some((step, old)) = row.steps.get_mut(index) else {
        let why = format!("step {index} of transition {id}, which has {count} steps, counted from 0");
        return Err(Refusal::Invalid { why });
    };
    let (step, old) = (step.clone(), *old);
    let out_of_turn = || Refusal::NotAsPlanned { why: format!("step {index} can't become {state:?}: it is {old:?}") };
    match (old, state) {
        // Took effect already.
        (StepState::Done, StepState::Begun) | (StepState::Undone, StepState::UndoBegun) => return Ok(()),
        // It may be done again, though a recovery has seen meanwhile to where it is.
        (StepState::Begun | StepState::UndoBegun, state) if old == state => {
            if whereabouts::settled(&shared.tables, &step) {
                unclaimed(&shared.tables, &step)?;
                whereabouts::doubt(&mut shared.tables, &step);
            }
            return Ok(());
        }
        (old, state) if old == state => return Ok(()),
        (_, StepState::Planned) | (StepState::UndoBegun | StepState::Undone, StepState::Done) => {
            return Err(out_of_turn());
        }
        (_, StepState::Begun) => {
            unclaimed(&shared.tables, &step)?;
            possible(&shared.tables, &step)?;
        }
        (_, StepState::UndoBegun) => unclaimed(&shared.tables, &step)?,
        // A report: it is so, whatever was thought of it.
        (_, StepState::Done | StepState::Undone) => {}
    }
    own(shared, id, by)?.steps[index].1 = state;
    let was_begun = old != StepState::Planned;
    match state {
        StepState::Planned => {}
        StepState::Begun => {
            begun(shared, &step, word);
            whereabouts::doubt(&mut shared.tables, &step);
        }
        StepState::Done => {
            begun(shared, &step, word);
            done(shared, &step, word, was_begun);
        }
        StepState::UndoBegun => {
            begun(shared, &step.inverse(), word);
            whereabouts::doubt(&mut shared.tables, &step);
        }
        StepState::Undone => {
            begun(shared, &step.inverse(), word);
            done(shared, &step.inverse(), word, was_begun);
        }
    }
    Ok(())
}

/// What a recovery needs is not touched; nor does a host sleep with it.
fn unclaimed(tables: &Tables, step: &Step) -> Result<(), Refusal> {
    let on_board = |claim: &Claim| match (step, claim) {
        (Step::SuspendHost { host }, Claim::Vm(vm)) => {
            let filled = places(tables).any(|(place, row)| row.host == *host && (row.vm == *vm || place == vm));
            filled
                || tables.displaced.get(vm) == Some(host)
                || tables.may_be_on.get(vm).is_some_and(|doubts| doubts.contains(host))
        }
        (
            Step::MoveVip { .. }
            | Step::Migrate { .. }
            | Step::SuspendVm { .. }
            | Step::ResumeVm { .. }
            | Step::SuspendHost { .. }
            | Step::WakeHost { .. },
            Claim::Host(_) | Claim::Vm(_) | Claim::Vip(_),
        ) => false,
    };
    match tables.claims.iter().find(|(claim, _)| step.touches(claim) || on_board(claim)) {
        Some((claim, row)) => Err(Refusal::Claimed { claim: claim.clone(), by: row.by.clone() }),
        None => Ok(()),
    }
}

/// Are things still as the plan took them to be?
fn possible(tables: &Tables, step: &Step) -> Result<(), Refusal> {
    let not = |why: String| Err(Refusal::NotAsPlanned { why });
    let filled = |vm: &DomainName| match tables.place_of(vm) {
        Some((_, row)) => Ok(row),
        None => Err(Refusal::Unknown { what: format!("virtual server {vm} in any place") }),
    };
    let is_on = |vm: &DomainName, host: &AgentId| match filled(vm)? {
        row if row.host == *host => Ok(()),
        row => not(format!("{vm} is on {}, not on {host}", row.host)),
    };
    let serves = |vm: &DomainName| held(tables, vm).pop_first();
    match step {
        Step::MoveVip { vip, from, to } => {
            filled(to)?;
            match holder(tables, vip) {
                None => return Err(Refusal::Unknown { what: format!("virtual IP {vip} of any place") }),
                Some(now) if now != from && now != to => return not(format!("{vip} is on {now}, not on {from}")),
                Some(_) => {}
            }
            if tables.is_suspended(to) {
                return not(format!("{to} is suspended and would not answer at {vip}"));
            }
            Ok(())
        }
        Step::Migrate { vm, from, to } => {
            whereabouts::not_elsewhere(tables, vm, &[from, to])?;
            if asleep(tables, to) {
                return not(format!("{to} is asleep"));
            }
            // A repetition after its end was lost.
            if is_on(vm, to).is_ok() { Ok(()) } else { is_on(vm, from) }
        }
        // Resumed, it is started where it is off.
        Step::ResumeVm { vm, host } => {
            is_on(vm, host)?;
            whereabouts::not_elsewhere(tables, vm, &[host])
        }
        Step::SuspendVm { vm, host } => {
            is_on(vm, host)?;
            whereabouts::not_elsewhere(tables, vm, &[host])?;
            match serves(vm) {
                Some(vip) => not(format!("{vm} still serves {vip}")),
                None => Ok(()),
            }
        }
        Step::SuspendHost { host } => {
            known(tables, host)?;
            // Asleep, it could not be asked.
            if let Some(vm) = whereabouts::perhaps_on(tables, host) {
                return not(format!("{vm} may be on {host}: nobody has seen the end of its live migration"));
            }
            for (_, row) in places(tables) {
                if let Some((from, to)) = tables.migrating(&row.vm).filter(|(from, to)| [*from, *to].contains(&host)) {
                    return not(format!("{} is on its way from {from} to {to}", row.vm));
                }
                if row.host == *host
                    && let Some(vip) = serves(&row.vm)
                {
                    return not(format!("{} on {host} still serves {vip}", row.vm));
                }
            }
            Ok(())
        }
        Step::WakeHost { host } => known(tables, host),
    }
}

fn known(tables: &Tables, host: &AgentId) -> Result<(), Refusal> {
    if tables.real_servers.contains_key(host) {
        Ok(())
    } else {
        Err(Refusal::Unknown { what: format!("real server {host}") })
    }
}

/// It will be done. What is not known any more is left alone: recoveries and configuration go first.
fn begun(shared: &mut Shared, step: &Step, word: &StepWord) {
    let tables = &mut shared.tables;
    match step {
        Step::MoveVip { vip, to, .. } => place(tables, *vip, to),
        // A copy of the row with its original host (thesis 4.3.2).
        Step::Migrate { vm, .. } => {
            let rows: Vec<(DomainName, MigrationRow)> = (places(tables))
                .filter(|(_, row)| row.vm == *vm)
                .map(|(name, row)| (name.clone(), MigrationRow { vm: vm.clone(), original_host: row.home.clone() }))
                .collect();
            tables.live_migration.extend(rows);
        }
        Step::SuspendVm { vm, .. } => {
            for (name, row) in tables.operation.extract_if(.., |_, row| row.vm == *vm) {
                tables.suspend.insert(name, row);
            }
            let paused = tables.suspend.iter().filter(|(_, row)| row.vm == *vm).map(|(name, _)| name.clone());
            shared.paused.extend(paused);
        }
        // Before the host is told: problem (b) of fig. 4.6.
        Step::SuspendHost { host } => {
            let Some(server) = tables.real_servers.get_mut(host) else { return };
            server.asleep_since_unix_ms.get_or_insert(word.now_unix_ms);
            let rows: Vec<(DomainName, OperationRow)> =
                tables.operation.extract_if(.., |_, row| row.host == *host).collect();
            tables.suspend.extend(rows);
        }
        // Still suspended as long as they are on their way back.
        Step::ResumeVm { .. } | Step::WakeHost { .. } => {}
    }
}

/// To this virtual server; or, if another stands in for it now, to that one.
fn place(tables: &mut Tables, vip: Vip, to: &DomainName) {
    let stand_in = |row: Option<(&DomainName, &OperationRow)>| row.map(|(_, row)| row.vm.clone());
    let vm = stand_in(tables.place_of(to)).or_else(|| stand_in(places(tables).find(|(name, _)| *name == to)));
    match vm {
        Some(vm) if home(tables, &vip).is_some_and(|row| row.vm != vm) => drop(tables.placement.insert(vip, vm)),
        Some(_) | None => drop(tables.placement.remove(&vip)),
    }
}

/// It is done. Rows come back, or lose what they were copied for, in [`crate::tidy`].
fn done(shared: &mut Shared, step: &Step, word: &StepWord, was_begun: bool) {
    let tables = &mut shared.tables;
    match step {
        Step::Migrate { vm, from, to } => {
            whereabouts::migrated(tables, vm, to, was_begun);
            gathered(tables, vm, from, to);
        }
        Step::ResumeVm { vm, .. } => {
            let resumed = places(tables).filter(|(_, row)| row.vm == *vm).map(|(name, _)| name);
            for name in resumed {
                shared.paused.remove(name);
            }
        }
        Step::WakeHost { host } => {
            if let Some(server) = tables.real_servers.get_mut(host) {
                server.asleep_since_unix_ms = None;
                server.wake_took_ms = word.took_ms.or(server.wake_took_ms);
            }
        }
        Step::MoveVip { .. } | Step::SuspendVm { .. } | Step::SuspendHost { .. } => {}
    }
}

/// A group that is Light goes with the member that it was gathered on, be it for another group's sake.
fn gathered(tables: &mut Tables, vm: &DomainName, from: &AgentId, to: &AgentId) {
    let Some((_, row)) = tables.place_of(vm).filter(|(_, row)| row.host == *to) else { return };
    let Some(state) = row.group.clone().and_then(|group| tables.state.get_mut(&group)) else { return };
    if state.condition == Condition::Light && state.base.as_ref() == Some(from) {
        state.base = Some(to.clone());
    }
}

/// The words of a request as a row that is not yet begun.
pub(crate) fn planned(
    by: String,
    plan: String,
    steps: Vec<Step>,
    groups: BTreeMap<GroupName, (Condition, Condition)>,
) -> TransitionRow {
    TransitionRow { id: 0, by, plan, steps: steps.into_iter().map(|step| (step, StepState::Planned)).collect(), groups }
}

/// How a transition ended, as told.
pub(crate) fn ended(id: u64, by: String, committed: bool, state: BTreeMap<GroupName, StateRow>) -> Ended {
    Ended { id, by, committed, state }
}
