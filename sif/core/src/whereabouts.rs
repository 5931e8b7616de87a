//! Where a virtual server is, and where else it may be as long as nobody has seen the end of its live migration. The doubt
//! begins with the intent and ends with evidence, not with the transition: who ends that may have seen nothing.

use crate::{Refusal, tidy::places};
use kage_types::{AgentId, DomainName, Step, Tables};
use std::collections::BTreeSet;

/// A virtual server is in one spot, however many places it fills. As long as that is in doubt, the spot where it was taken
/// to be is one of those where it may be.
pub(crate) fn is_on(tables: &mut Tables, vm: &DomainName, host: &AgentId) {
    let before = tables.host_of(vm).cloned();
    let Tables { operation, suspend, displaced, may_be_on, .. } = tables;
    if let Some(doubts) = may_be_on.get_mut(vm) {
        doubts.extend(before);
        doubts.remove(host);
    }
    if let Some(at) = displaced.get_mut(vm) {
        at.clone_from(host);
    }
    for row in operation.values_mut().chain(suspend.values_mut()).filter(|row| row.vm == *vm) {
        row.host.clone_from(host);
    }
}

/// A live migration is about to begin, or to be taken back: it may be at either end.
pub(crate) fn doubt(tables: &mut Tables, step: &Step) {
    if let Step::Migrate { vm, from, to } = step {
        tables.may_be_on.entry(vm.clone()).or_default().extend([from.clone(), to.clone()]);
    }
}

/// Does nobody doubt where it is that this is about?
pub(crate) fn settled(tables: &Tables, step: &Step) -> bool {
    matches!(step, Step::Migrate { vm, .. } if !tables.may_be_on.contains_key(vm))
}

/// Who moves it has seen it there. Where a recovery has seen to it since the step was begun, and has it elsewhere, the one
/// word is as good as the other: it may be there, too, until somebody looks again.
pub(crate) fn migrated(tables: &mut Tables, vm: &DomainName, to: &AgentId, begun: bool) {
    if begun && !tables.may_be_on.contains_key(vm) {
        if tables.host_of(vm).is_some_and(|host| host != to) {
            tables.may_be_on.insert(vm.clone(), [to.clone()].into());
        }
        return;
    }
    is_on(tables, vm, to);
    tables.may_be_on.remove(vm);
}

/// It is there, and known not to be on those. Where else it may be stays in doubt.
pub(crate) fn located(tables: &mut Tables, vm: &DomainName, host: &AgentId, not_on: &BTreeSet<AgentId>) {
    is_on(tables, vm, host);
    if let Some(doubts) = tables.may_be_on.get_mut(vm) {
        doubts.retain(|other| !not_on.contains(other));
    }
}

/// Is what is found of it still asked for? A look that a recovery has overtaken says nothing.
pub(crate) fn still_doubted(tables: &Tables, vm: &DomainName, host: &AgentId) -> Result<(), Refusal> {
    let Some(known) = tables.host_of(vm) else {
        return Err(Refusal::Unknown { what: format!("virtual server {vm} in any place") });
    };
    match tables.may_be_on.get(vm) {
        Some(doubts) if known == host || doubts.contains(host) => Ok(()),
        // Repeated.
        None if known == host => Ok(()),
        Some(_) | None => {
            Err(Refusal::NotAsPlanned { why: format!("{vm} is on {known}, and nobody takes it to be on {host}") })
        }
    }
}

/// Nothing is begun with one that may be elsewhere: what is started here might be a second one.
pub(crate) fn not_elsewhere(tables: &Tables, vm: &DomainName, besides: &[&AgentId]) -> Result<(), Refusal> {
    let other = tables.may_be_on.get(vm).and_then(|doubts| doubts.iter().find(|host| !besides.contains(host)));
    match other {
        Some(other) => Err(Refusal::NotAsPlanned { why: format!("{vm} may be on {other}") }),
        None => Ok(()),
    }
}

/// One that may be on this real server, or is there by the tables, and nobody moves it any more.
pub(crate) fn perhaps_on<'a>(tables: &'a Tables, host: &AgentId) -> Option<&'a DomainName> {
    let doubted = |vm: &&DomainName| {
        tables.may_be_on.get(*vm).is_some_and(|doubts| doubts.contains(host)) || tables.host_of(vm) == Some(host)
    };
    let still = |vm: &&DomainName| tables.migrating(vm).is_none() || tables.place_of(vm).is_none();
    tables.may_be_on.keys().filter(still).find(doubted)
}

/// Is it of any place?
pub(crate) fn known(tables: &Tables, vm: &DomainName) -> bool {
    places(tables).any(|(_, row)| row.vm == *vm) || tables.displaced.contains_key(vm)
}
