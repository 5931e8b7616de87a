//! Who stands in for a target: `backup = { … }`, with a `further` one.

use super::{
    Backup, Further, Guard, Machine, keys,
    parse::{A_NAME, AN_IP, Places, known},
    read::{Faults, Given, Table},
    vm::{self, Named},
};
use kage_types::AgentId;
use std::collections::BTreeMap;

/// The backup server, and where what more it has is named.
pub(super) fn backup(
    faults: &mut Faults<'_>,
    target: &Table<'_, '_>,
    own: Option<&Given<AgentId>>,
    agents: &BTreeMap<AgentId, Machine>,
    places: &Places,
) -> Option<(Backup, Named)> {
    let table = target.table(faults, "backup", &keys::BACKUP);
    let table = target.required(faults, "backup", table)?;
    let agent: Option<Given<AgentId>> = table.parsed(faults, "agent", A_NAME);
    let agent = table.required(faults, "agent", agent);
    let domain = table.parsed(faults, "domain", A_NAME);
    let domain = table.required(faults, "domain", domain);
    let address = table.parsed(faults, "address", AN_IP).map(Given::into_inner);
    let guest: Option<Given<AgentId>> = table.parsed(faults, "guest", A_NAME);
    known(faults, &table, "agent", agent.as_ref(), places);
    known(faults, &table, "guest", guest.as_ref(), places);
    vm::guest(faults, &table, "guest", guest.as_ref(), agents);
    let agent = agent?;
    if own.is_some_and(|own| own.get_ref() == agent.get_ref()) {
        faults.value(&table.place, "agent", agent.span(), "the very machine that its backup server stands in for");
    } else {
        guards_doubles(faults, target, &agent, agents, places);
    }
    let (further, mut named) = further(faults, target, &table, &agent, agents, places);
    named.guest = guest.as_ref().map(Given::span);
    let (agent, guest) = (agent.into_inner(), guest.map(Given::into_inner));
    Some((Backup { agent, domain: domain?.into_inner(), address, guest, further }, named))
}

/// What runs on this machine is guarded from outside.
fn guards_doubles(
    faults: &mut Faults<'_>,
    target: &Table<'_, '_>,
    agent: &Given<AgentId>,
    agents: &BTreeMap<AgentId, Machine>,
    places: &Places,
) {
    let name = agent.get_ref();
    if agents.get(name).is_none_or(|machine| machine.guard == Guard::Tap) {
        return;
    }
    let (span, what) = match places.guards.get(name) {
        Some(span) => (span.clone(), "not \"tap\""),
        None => (places.agents.get(name).cloned().unwrap_or_else(|| agent.span()), "missing"),
    };
    let text = format!(
        "[[agent]] {name}: guard is {what}: it runs the backup VM of {} and needs guard = \"tap\"",
        target.place
    );
    faults.at(span, text);
}

/// The further backup server, if there is one.
fn further(
    faults: &mut Faults<'_>,
    target: &Table<'_, '_>,
    backup: &Table<'_, '_>,
    own: &Given<AgentId>,
    agents: &BTreeMap<AgentId, Machine>,
    places: &Places,
) -> (Option<Further>, Named) {
    let Some(table) = backup.table(faults, "further", &keys::FURTHER) else { return (None, Named::default()) };
    let agent: Option<Given<AgentId>> = table.parsed(faults, "agent", A_NAME);
    let agent = table.required(faults, "agent", agent);
    let domain = table.parsed(faults, "domain", A_NAME);
    let domain = table.required(faults, "domain", domain);
    let guest: Option<Given<AgentId>> = table.parsed(faults, "guest", A_NAME);
    known(faults, &table, "agent", agent.as_ref(), places);
    known(faults, &table, "guest", guest.as_ref(), places);
    vm::guest(faults, &table, "guest", guest.as_ref(), agents);
    let named = Named {
        guest: None,
        further: domain.as_ref().map(Given::span),
        further_guest: guest.as_ref().map(Given::span),
    };
    let (Some(agent), Some(domain)) = (agent, domain) else { return (None, named) };
    if agent.get_ref() == own.get_ref() {
        faults.value(&table.place, "agent", agent.span(), "the machine of the backup server itself, lost with it");
    } else {
        guards_doubles(faults, target, &agent, agents, places);
    }
    let further =
        Further { agent: agent.into_inner(), domain: domain.into_inner(), guest: guest.map(Given::into_inner) };
    (Some(further), named)
}
