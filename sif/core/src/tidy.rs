//! What always holds of the shared tables, whatever signals came in whatever order; and whose a virtual IP is by them.

use crate::Shared;
use kage_types::{DomainName, OperationRow, Tables, Vip};
use std::collections::{BTreeMap, BTreeSet};

/// All places: a place is in operation or suspended, never both.
pub(crate) fn places(tables: &Tables) -> impl Iterator<Item = (&DomainName, &OperationRow)> {
    tables.operation.iter().chain(&tables.suspend)
}

/// The virtual server that a virtual IP belongs on: where power saving wants it, else who fills the place it is of.
#[must_use]
pub fn holder<'a>(tables: &'a Tables, vip: &Vip) -> Option<&'a DomainName> {
    tables.placement.get(vip).or_else(|| home(tables, vip).map(|row| &row.vm))
}

/// The virtual IPs that belong on a virtual server (A1).
#[must_use]
pub fn held(tables: &Tables, vm: &DomainName) -> BTreeSet<Vip> {
    let own = places(tables).filter(|(_, row)| row.vm == *vm).flat_map(|(_, row)| &row.home_vips);
    let own = own.filter(|vip| !tables.placement.contains_key(*vip));
    own.chain(tables.placement.iter().filter(|(_, at)| *at == vm).map(|(vip, _)| vip)).copied().collect()
}

/// The place that a virtual IP is of.
pub(crate) fn home<'a>(tables: &'a Tables, vip: &Vip) -> Option<&'a OperationRow> {
    places(tables).map(|(_, row)| row).find(|row| row.home_vips.contains(vip))
}

/// Is its real server meant to sleep?
pub(crate) fn asleep(tables: &Tables, host: &kage_types::AgentId) -> bool {
    tables.real_servers.get(host).is_some_and(|row| row.asleep_since_unix_ms.is_some())
}

/// Brings about what always holds, after a signal changed what it is about.
pub(crate) fn tidy(shared: &mut Shared) {
    let Shared { tables, paused, .. } = shared;
    // Suspended: on a real server that sleeps, or paused itself.
    let is_awake = |place: &DomainName, row: &OperationRow| !paused.contains(place) && !asleep(tables, &row.host);
    let awake: Vec<DomainName> =
        tables.suspend.iter().filter(|(place, row)| is_awake(place, row)).map(|(place, _)| place.clone()).collect();
    for place in awake {
        if let Some(row) = tables.suspend.remove(&place) {
            tables.operation.insert(place, row);
        }
    }
    paused.retain(|place| tables.suspend.contains_key(place));

    // Away from home, or on the way.
    let rows: BTreeMap<_, _> = std::mem::take(&mut tables.live_migration);
    let away = |place: &DomainName, original: &kage_types::AgentId| {
        let row = tables.operation.get(place).or_else(|| tables.suspend.get(place));
        row.is_some_and(|row| row.host != *original || tables.migrating(&row.vm).is_some())
    };
    let rows = rows.into_iter().filter(|(place, row)| away(place, &row.original_host)).collect();
    tables.live_migration = rows;

    // Of a place that another fills.
    let displaced = std::mem::take(&mut tables.displaced);
    let another = |place: &DomainName| places(tables).any(|(name, row)| name == place && row.vm != *place);
    tables.displaced = displaced.into_iter().filter(|(place, _)| another(place)).collect();

    // Besides where it is; of one that is somewhere.
    let mut doubts = std::mem::take(&mut tables.may_be_on);
    doubts.retain(|vm, hosts| match tables.host_of(vm) {
        Some(host) => {
            hosts.remove(host);
            !hosts.is_empty()
        }
        None => false,
    });
    tables.may_be_on = doubts;

    // Elsewhere than at home, on a virtual server that fills a place.
    let mut homes: BTreeMap<Vip, &DomainName> = BTreeMap::new();
    let mut known: BTreeSet<&DomainName> = BTreeSet::new();
    for (_, row) in places(tables) {
        known.insert(&row.vm);
        homes.extend(row.home_vips.iter().map(|vip| (*vip, &row.vm)));
    }
    let elsewhere = |vip: &Vip, vm: &DomainName| known.contains(vm) && homes.get(vip).is_some_and(|home| *home != vm);
    let placement = tables.placement.iter().filter(|(vip, vm)| elsewhere(vip, vm));
    tables.placement = placement.map(|(vip, vm)| (*vip, vm.clone())).collect();
}
