//! Signals of the holder of the term: what is configured, and what recoveries (DBSS) tell.

use crate::{
    DETAIL_LIMIT, Recovery, Refusal, Shared,
    tidy::{asleep, home, places},
    whereabouts::{self, is_on, known},
};
use kage_types::{
    AgentId, Claim, Condition, DomainName, GroupName, MigrationRow, OperationRow, RealServerRow, StateRow, Tables, Vip,
};
use std::collections::{BTreeMap, BTreeSet};

/// Places (virtual servers in operation), real servers, service groups: several times the 1,000 hosts one coordinator is
/// built for (design §6). Bounds the tables, which are sent whole, to the 4 MB that gRPC clients accept.
pub const PLACE_LIMIT: usize = 8192;

/// Virtual IPs of all places together; for the same reason.
pub const HOME_VIP_LIMIT: usize = 16_384;

/// Claims of one recovery: its target, its virtual IPs, and a host or two.
pub const CLAIM_LIMIT: usize = 1024;

/// Recoveries that claim something at a time: every place at once.
pub const RECOVERY_LIMIT: usize = PLACE_LIMIT;

pub(crate) fn arrangement(
    shared: &mut Shared,
    operation: BTreeMap<DomainName, OperationRow>,
    real_servers: &BTreeSet<AgentId>,
    groups: &BTreeSet<GroupName>,
) -> Result<(), Refusal> {
    check(&operation, real_servers, groups)?;
    let tables = &mut shared.tables;
    tables.real_servers.retain(|host, _| real_servers.contains(host));
    for host in real_servers {
        let row = || RealServerRow { asleep_since_unix_ms: None, wake_took_ms: None };
        tables.real_servers.entry(host.clone()).or_insert_with(row);
    }
    tables.state.retain(|group, _| groups.contains(group));
    for group in groups {
        let row = || StateRow { condition: Condition::Moderate, base: None };
        tables.state.entry(group.clone()).or_insert_with(row);
    }
    tables.operation.retain(|place, _| operation.contains_key(place));
    tables.suspend.retain(|place, _| operation.contains_key(place));
    tables.live_migration.retain(|place, _| operation.contains_key(place));
    for (place, row) in operation {
        if let Some(known) = tables.operation.get_mut(&place).or_else(|| tables.suspend.get_mut(&place)) {
            if known.home != row.home
                && let Some(migrated) = tables.live_migration.get_mut(&place)
            {
                migrated.original_host = row.home.clone();
            }
            *known = OperationRow { vm: known.vm.clone(), host: known.host.clone(), ..row };
        } else if asleep(tables, &row.host) {
            tables.suspend.insert(place, row);
        } else {
            tables.operation.insert(place, row);
        }
    }
    Ok(())
}

fn check(
    operation: &BTreeMap<DomainName, OperationRow>,
    real_servers: &BTreeSet<AgentId>,
    groups: &BTreeSet<GroupName>,
) -> Result<(), Refusal> {
    let vips: usize = operation.values().map(|row| row.home_vips.len()).sum();
    for (what, count, limit) in [
        ("places", operation.len(), PLACE_LIMIT),
        ("real servers", real_servers.len(), PLACE_LIMIT),
        ("service groups", groups.len(), PLACE_LIMIT),
        ("virtual IPs of places", vips, HOME_VIP_LIMIT),
    ] {
        if count > limit {
            let next = "spread the services over two clusters".to_owned();
            return Err(Refusal::TooMuch { what: what.to_owned(), limit, next });
        }
    }
    let mut owners: BTreeMap<Vip, &DomainName> = BTreeMap::new();
    for (place, row) in operation {
        if let Some(group) = row.group.as_ref().filter(|group| !groups.contains(*group)) {
            return Err(Refusal::Invalid {
                why: format!("{place} is of group {group}, which is not among the groups"),
            });
        }
        for vip in &row.home_vips {
            if let Some(other) = owners.insert(*vip, place) {
                return Err(Refusal::Invalid { why: format!("{vip} is of {other} and of {place}") });
            }
        }
    }
    Ok(())
}

/// A place's row for change, in operation from now on.
fn in_operation<'a>(shared: &'a mut Shared, place: &DomainName) -> Result<&'a mut OperationRow, Refusal> {
    let tables = &mut shared.tables;
    if let Some(row) = tables.suspend.remove(place) {
        shared.paused.remove(place);
        tables.operation.insert(place.clone(), row);
    }
    tables.operation.get_mut(place).ok_or_else(|| Refusal::Unknown { what: format!("place {place}") })
}

/// A4. Also what power saving had put on the target goes to who stands in for it: problem (a) of fig. 4.6.
pub(crate) fn function_restored(
    shared: &mut Shared,
    place: &DomainName,
    backup: &DomainName,
    host: AgentId,
) -> Result<(), Refusal> {
    let row = in_operation(shared, place)?;
    let was_on = row.host.clone();
    let old = std::mem::replace(&mut row.vm, backup.clone());
    let group = row.group.clone();
    // Where it failed nothing else says from now on.
    if old == *place {
        shared.tables.displaced.insert(place.clone(), was_on);
    }
    redirect(&mut shared.tables, &old, backup, group.as_ref());
    is_on(&mut shared.tables, backup, &host);
    Ok(())
}

/// A5.
pub(crate) fn verdict(shared: &mut Shared, place: &DomainName, recovered: bool, host: &AgentId) -> Result<(), Refusal> {
    if !recovered {
        let row = places(&shared.tables).find(|(name, _)| *name == place).map(|(_, row)| row.clone());
        let row = row.ok_or_else(|| Refusal::Unknown { what: format!("place {place}") })?;
        // Without a backup nothing fills the place, and nothing moved.
        if row.vm == *place {
            return Ok(());
        }
        in_operation(shared, place)?;
        is_on(&mut shared.tables, &row.vm, host);
        // Problem (d): in Moderate condition the backup goes where the target would have gone.
        if let Some(migrated) = shared.tables.live_migration.get_mut(place) {
            migrated.vm = row.vm;
        }
        return Ok(());
    }
    let was_on = shared.tables.displaced.get(place).cloned();
    let row = in_operation(shared, place)?;
    let old = std::mem::replace(&mut row.vm, place.clone());
    if let Some(was_on) = was_on {
        row.host = was_on;
    }
    let (home, group) = (row.home.clone(), row.group.clone());
    redirect(&mut shared.tables, &old, place, group.as_ref());
    is_on(&mut shared.tables, place, host);
    remember(&mut shared.tables, place, place, host, home);
    Ok(())
}

/// A virtual server that is back elsewhere than at home is to go there.
fn remember(tables: &mut Tables, place: &DomainName, vm: &DomainName, host: &AgentId, home: AgentId) {
    if *host != home {
        let row = MigrationRow { vm: vm.clone(), original_host: home };
        tables.live_migration.insert(place.clone(), row);
    }
}

/// Virtual IPs of this group that power saving had put on one virtual server are on another.
fn redirect(tables: &mut Tables, from: &DomainName, to: &DomainName, group: Option<&GroupName>) {
    let moved: Vec<Vip> = (tables.placement.iter())
        .filter(|(vip, vm)| *vm == from && home(tables, vip).is_some_and(|row| row.group.as_ref() == group))
        .map(|(vip, _)| *vip)
        .collect();
    for vip in moved {
        tables.placement.insert(vip, to.clone());
    }
}

pub(crate) fn moved_to(
    shared: &mut Shared,
    vm: &DomainName,
    host: &AgentId,
    not_on: &BTreeSet<AgentId>,
) -> Result<(), Refusal> {
    if !known(&shared.tables, vm) {
        return Err(Refusal::Unknown { what: format!("virtual server {vm} in any place") });
    }
    whereabouts::located(&mut shared.tables, vm, host, not_on);
    let filled: Vec<(DomainName, AgentId)> = (places(&shared.tables))
        .filter(|(_, row)| row.vm == *vm)
        .map(|(place, row)| (place.clone(), row.home.clone()))
        .collect();
    // A backup stays where it stands in, unless power saving had moved whom it stands in for.
    for (place, home) in filled {
        if place == *vm || shared.tables.live_migration.contains_key(&place) {
            remember(&mut shared.tables, &place, vm, host, home);
        }
    }
    Ok(())
}

/// By power saving, which looks for what it could not see the end of.
pub(crate) fn found(
    shared: &mut Shared,
    vm: &DomainName,
    host: &AgentId,
    not_on: &BTreeSet<AgentId>,
) -> Result<(), Refusal> {
    whereabouts::still_doubted(&shared.tables, vm, host)?;
    moved_to(shared, vm, host, not_on)
}

/// Recoveries win: whatever power saving is about, it lets go when it sees this.
pub(crate) fn claims(shared: &mut Shared, by: String, why: String, claims: BTreeSet<Claim>) -> Result<(), Refusal> {
    if by.is_empty() {
        return Err(Refusal::Invalid { why: "by: say which recovery claims".to_owned() });
    }
    if by.len() > DETAIL_LIMIT || why.len() > DETAIL_LIMIT {
        let what = "who claims, or why, in bytes".to_owned();
        return Err(Refusal::TooMuch { what, limit: DETAIL_LIMIT, next: "shorten it".to_owned() });
    }
    if claims.len() > CLAIM_LIMIT {
        let next = "claim only what the recovery needs".to_owned();
        return Err(Refusal::TooMuch { what: "claims of a recovery".to_owned(), limit: CLAIM_LIMIT, next });
    }
    if claims.is_empty() {
        shared.recoveries.remove(&by);
    } else if shared.recoveries.len() >= RECOVERY_LIMIT && !shared.recoveries.contains_key(&by) {
        let next = "give back the claims of recoveries that are over".to_owned();
        return Err(Refusal::TooMuch { what: "recoveries with claims".to_owned(), limit: RECOVERY_LIMIT, next });
    } else {
        shared.recoveries.insert(by, Recovery { why, claims });
    }
    shared.name_claims();
    Ok(())
}
