//! What there is, made of the shared tables, the configuration and what agents told: pure.

use kage_coordinator_core::config::Cluster;
use kage_pss_core::{
    class::Condition,
    inventory::{Doubt, Group, Host, HostState, HostWatts, Inventory, Vm, VmState, WakePath},
    units::{Bytes, Watts},
};
use kage_types::{AgentId, DomainName, GroupName, OperationRow, Tables, Time, TransitionRow, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Drawn by a host that nobody measured: a small server of table 4.2's kind, awake and suspended.
const USUAL: HostWatts = HostWatts { awake: Watts::of(60), asleep: Watts::of(3) };

/// The ledger, as far as power saving reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Thesis table 4.1.
    pub tables: Tables,
    /// Who holds each virtual IP: the agent, and its virtual server if not itself.
    pub vips: BTreeMap<Vip, (AgentId, Option<DomainName>)>,
}

impl Ledger {
    /// Where a virtual server is.
    pub fn host_of(&self, vm: &DomainName) -> Option<&AgentId> {
        self.tables.place_of(vm).map(|(_, row)| &row.host)
    }

    /// Does it hold this?
    pub fn holds(&self, vip: Vip, vm: &DomainName) -> bool {
        self.vips.get(&vip).is_some_and(|(owner, domain)| {
            domain.as_ref() == Some(vm) && self.host_of(vm).is_none_or(|host| host == owner)
        })
    }

    /// The base server of a group that is to be in this condition: as it is, or where the member is that stays.
    pub fn base_of(&self, group: &GroupName, condition: Condition) -> Option<AgentId> {
        let Condition::Light = condition else { return None };
        let known = self.tables.state.get(group).and_then(|row| row.base.clone());
        let serving = || {
            let of = |row: &&OperationRow| row.group.as_ref() == Some(group);
            let holds = |row: &&OperationRow| self.vips.values().any(|(_, domain)| domain.as_ref() == Some(&row.vm));
            let rows: Vec<&OperationRow> = self.tables.operation.values().filter(of).collect();
            rows.iter().find(|row| holds(row)).or(rows.first()).map(|row| row.host.clone())
        };
        known.or_else(serving)
    }
}

/// What is known of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenVm {
    /// What it did when last looked at.
    pub state: VmState,
    /// Its largest.
    pub memory: Bytes,
}

/// What an agent told of its host.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeenHost {
    /// It answers.
    #[serde(skip)]
    pub up: bool,
    /// All of it.
    pub memory: Bytes,
    /// All of them.
    pub cores: u32,
    /// Of its fastest NIC, Mbit/s; 0: unknown.
    pub speed_mbit: u32,
    /// Of a NIC that can wake it.
    pub mac: Option<String>,
    /// What runs there, or is defined there.
    pub vms: BTreeMap<DomainName, SeenVm>,
}

/// All hosts, kept over restarts: one that sleeps can't be asked.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seen {
    /// By its agent.
    pub hosts: BTreeMap<AgentId, SeenHost>,
}

/// One moment. What only the core knows (`wanted`, `usage`, `awake_since`, `sleeps`, `woke`) is put in there.
pub fn inventory(now: Time, cluster: &Cluster, ledger: &Ledger, seen: &Seen) -> Inventory {
    let tables = &ledger.tables;
    let hosts: BTreeMap<AgentId, Host> =
        cluster.hosts.keys().map(|name| (name.clone(), host(cluster, tables, seen, name))).collect();
    let mut vms: BTreeMap<DomainName, Vm> = BTreeMap::new();
    // What agents see and no table has: nobody's to touch, and it keeps its host awake while it runs.
    for (host, there) in seen.hosts.iter().filter(|(host, _)| hosts.contains_key(*host)) {
        for (name, vm) in &there.vms {
            let foreign = Vm {
                group: None,
                host: host.clone(),
                home: host.clone(),
                memory: vm.memory,
                state: vm.state,
                vips: held(ledger, host, name),
                home_vips: BTreeSet::new(),
                shared_storage: false,
                usage: None,
            };
            // Defined on two hosts: where it takes memory is where it is.
            let better = vms.get(name).is_none_or(|other| other.state == VmState::Stopped);
            if better {
                vms.insert(name.clone(), foreign);
            }
        }
    }
    for (place, row) in tables.operation.iter().chain(&tables.suspend) {
        vms.insert(row.vm.clone(), member(cluster, ledger, seen, place, row));
    }
    let groups = cluster.groups.iter().map(|(name, group)| {
        let rows = |place: &DomainName| tables.operation.get(place).or_else(|| tables.suspend.get(place));
        let places = group.members.iter().filter_map(|member| cluster.targets.get(member)?.domain());
        let members = places.filter_map(|place| rows(place).map(|row| row.vm.clone())).collect();
        let condition = tables.state.get(name).map_or(Condition::Moderate, |row| row.condition);
        (name.clone(), Group { members, condition, wanted: condition })
    });
    Inventory {
        generation: tables.revision,
        now,
        groups: groups.collect(),
        hosts,
        vms,
        claims: tables.claims.keys().cloned().collect(),
        doubts: doubts(tables),
    }
}

/// What nobody moves any more, and may be on more than one host.
fn doubts(tables: &Tables) -> BTreeMap<DomainName, Doubt> {
    let left = tables.may_be_on.iter().filter(|(vm, _)| tables.migrating(vm).is_none());
    let doubt = |(vm, others): (&DomainName, &BTreeSet<AgentId>)| {
        let host = tables.host_of(vm)?.clone();
        Some((vm.clone(), Doubt { host, others: others.clone() }))
    };
    left.filter_map(doubt).collect()
}

fn host(cluster: &Cluster, tables: &Tables, seen: &Seen, name: &AgentId) -> Host {
    let configured = cluster.hosts.get(name).cloned().unwrap_or_default();
    let row = tables.real_servers.get(name);
    let there = seen.hosts.get(name).cloned().unwrap_or_default();
    let state = match row.is_some_and(|row| row.asleep_since_unix_ms.is_some()) {
        true => HostState::Asleep,
        false if there.up => HostState::Awake,
        false => HostState::Lost,
    };
    let path = configured.wake.is_some() || mac(cluster, seen, name).is_some();
    let proved = row.and_then(|row| row.wake_took_ms).map(|took| Duration::from_millis(took.into()));
    let wake = match (path, proved.or(configured.wakes_in)) {
        (true, Some(took)) => WakePath::Verified(took),
        (true, None) => WakePath::Unproven,
        (false, _) => WakePath::None,
    };
    let of =
        |(awake, asleep): (u32, u32)| HostWatts { awake: Watts::of(awake.into()), asleep: Watts::of(asleep.into()) };
    Host {
        state,
        answers: there.up,
        woke: false,
        slept_on: false,
        awake_since: Time::ZERO,
        sleeps: Vec::new(),
        memory: there.memory,
        cores: there.cores,
        wake,
        watts: configured.watts.map_or(USUAL, of),
        pinned: configured.pinned,
    }
}

/// Where a magic packet for this host goes.
pub fn mac(cluster: &Cluster, seen: &Seen, name: &AgentId) -> Option<String> {
    let configured = cluster.agents.get(name).and_then(|machine| machine.mac.clone());
    configured.or_else(|| seen.hosts.get(name).and_then(|there| there.mac.clone()))
}

fn held(ledger: &Ledger, host: &AgentId, vm: &DomainName) -> BTreeSet<Vip> {
    let by = |(owner, domain): &(AgentId, Option<DomainName>)| owner == host && domain.as_ref() == Some(vm);
    ledger.vips.iter().filter(|(_, holder)| by(holder)).map(|(vip, _)| *vip).collect()
}

fn member(cluster: &Cluster, ledger: &Ledger, seen: &Seen, place: &DomainName, row: &OperationRow) -> Vm {
    let there = seen.hosts.get(&row.host);
    let known = there.and_then(|there| there.vms.get(&row.vm)).copied();
    let elsewhere = || seen.hosts.values().find_map(|other| other.vms.get(&row.vm)).map(|vm| vm.memory);
    let asleep =
        |host: &AgentId| ledger.tables.real_servers.get(host).is_some_and(|row| row.asleep_since_unix_ms.is_some());
    let suspended = ledger.tables.suspend.contains_key(place);
    let runs = |host: &SeenHost| {
        let seen = host.vms.get(&row.vm).filter(|_| host.up);
        seen.is_some_and(|vm| matches!(vm.state, VmState::Running | VmState::Suspended))
    };
    let state = match (known, there) {
        // Off where the tables have it, but not elsewhere: nobody is to start it a second time.
        (Some(SeenVm { state: VmState::Stopped, .. }) | None, _) if seen.hosts.values().any(runs) => VmState::Running,
        // What was seen last of a host that sleeps may be older than what was done there: its members were suspended, and
        // to resume one that runs does no harm.
        (None, _) if asleep(&row.host) && suspended => VmState::Suspended,
        // And who resumed it may not have heard that it was: as long as the tables have it suspended, nothing is put on it.
        (Some(SeenVm { state: VmState::Running, .. }), _) if suspended => VmState::Suspended,
        (Some(vm), _) => vm.state,
        // Its host told what it has, and it is not there.
        (None, Some(there)) if there.up => VmState::Stopped,
        (None, _) => VmState::Running,
    };
    let home = ledger.tables.live_migration.get(place).filter(|away| away.vm == row.vm);
    let group = row.group.clone().filter(|group| cluster.groups.contains_key(group));
    Vm {
        home: home.map_or_else(|| row.home.clone(), |away| away.original_host.clone()),
        host: row.host.clone(),
        memory: known.map(|vm| vm.memory).or_else(elsewhere).unwrap_or_default(),
        state,
        vips: held(ledger, &row.host, &row.vm),
        home_vips: row.home_vips.clone(),
        shared_storage: group.as_ref().and_then(|group| cluster.groups.get(group)).is_some_and(|it| it.shared_storage),
        group,
        usage: None,
    }
}

/// The plan of a transition that an earlier version wrote and this one can't read: its steps one after another.
pub fn plan_of(row: &TransitionRow) -> kage_pss_core::plan::Plan {
    use kage_pss_core::plan::{Direction, Plan, Planned};
    if let Ok(plan) = serde_json::from_str::<Plan>(&row.plan)
        && plan.steps().eq(row.steps.iter().map(|(step, _)| step))
    {
        return plan;
    }
    let folds = row.groups.values().any(|(before, after)| after < before);
    let steps = row.steps.iter().enumerate().map(|(index, (step, _))| Planned {
        step: step.clone(),
        needs: (0..index).collect(),
        groups: row.groups.keys().cloned().collect(),
        about: BTreeSet::new(),
    });
    Plan {
        generation: kage_types::Revision::default(),
        direction: if folds { Direction::Fold } else { Direction::Unfold },
        groups: row.groups.clone(),
        steps: steps.collect(),
        watts: Watts(0),
        migrated: Bytes(0),
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
