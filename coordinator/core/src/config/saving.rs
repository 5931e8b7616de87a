//! `[[host]]`, `[[group]]` and `[pss]`: what power saving is told. Plain figures: the controller that they are for turns
//! them into its own policy, and this crate knows of none.

use super::{
    Guard, Hours, Machine, Target, keys,
    parse::{A_NAME, command, windows},
    read::{Faults, Given, Table, nearest},
};
use kage_types::{AgentId, GroupName, TargetName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::Range, time::Duration};

/// A real server of power saving.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Host {
    /// Watts drawn awake, and asleep.
    pub watts: Option<(u32, u32)>,
    /// Why it never sleeps.
    pub pinned: Option<String>,
    /// Program and arguments that wake it, instead of a magic packet.
    pub wake: Option<Vec<String>>,
    /// The operator has woken it, and it took so long: a proof until it is woken by us.
    pub wakes_in: Option<Duration>,
}

/// Thresholds of one kind of load, percent: rising.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Below: Light.
    pub light: u32,
    /// From here: Moderate, on the way up.
    pub moderate1: u32,
    /// Below: Moderate, on the way down.
    pub moderate2: u32,
    /// From here: Heavy.
    pub heavy: u32,
}

/// A service group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Targets, in the order in which they are preferred to stay.
    pub members: Vec<TargetName>,
    /// Where it is gathered; none: that of `[pss]`, else chosen.
    pub base: Option<AgentId>,
    /// For memory, CPU and network.
    pub memory: Thresholds,
    /// For CPU.
    pub cpu: Thresholds,
    /// For network.
    pub network: Thresholds,
    /// Equal judgements running, for Light, Moderate and Heavy.
    pub repeats: (u32, u32, u32),
    /// It keeps its members in these hours; [`Hours::is_always`] of it: in none.
    pub awake: Hours,
    /// Of each member's NIC, Mbit/s; none: its host's.
    pub rated: Option<u32>,
    /// Its disks are where every host reaches them.
    pub shared_storage: bool,
}

/// `[pss]`: for all groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saving {
    /// Between judgements.
    pub interval: Duration,
    /// An older measurement says nothing.
    pub fresh: Duration,
    /// Base server of every group that names none.
    pub base: Option<AgentId>,
    /// So many hosts are always awake.
    pub awake_hosts: u32,
    /// A woken host stays awake for so long.
    pub awake_for: Duration,
    /// A host goes to sleep at most so often in 24 h.
    pub sleeps_a_day: u32,
    /// Live migrations at the same time.
    pub migrations: u32,
    /// Of one live migration, MiB/s.
    pub migration_bandwidth: Option<u32>,
    /// The longest pause at its end.
    pub migration_downtime: Option<Duration>,
    /// Where the hypervisor of a host is reached by another; `{address}` is its agent's address.
    pub migration_uri: String,
    /// MiB of each host that no virtual server gets.
    pub host_memory: u32,
    /// Of a base server's cores, percent.
    pub base_cpu: u32,
    /// A host that sleeps wakes by its own clock after this.
    pub alarm: Duration,
    /// Any one host may be lost after every step.
    pub survive_host: bool,
    /// Hosts that sleep count in that only if they woke within this.
    pub wake_within: Duration,
    /// What a host that sleeps must save for each GiB migrated.
    pub watts_per_gib: u32,
    /// Nothing sleeps in these hours; [`Hours::is_always`] of it: in none.
    pub awake: Hours,
    /// After a plan that had to be undone.
    pub backoff: Duration,
    /// The longest such wait.
    pub patience: Duration,
    /// A virtual IP's move.
    pub vip_limit: Duration,
    /// A live migration.
    pub migration_limit: Duration,
    /// Suspending or resuming a virtual server.
    pub vm_limit: Duration,
    /// Suspending a host.
    pub suspend_limit: Duration,
    /// The usual time of waking a host that was never measured.
    pub wake_limit: Duration,
}

impl Default for Thresholds {
    /// Of CPU and network.
    fn default() -> Self {
        Self { light: 20, moderate1: 50, moderate2: 70, heavy: 85 }
    }
}

/// Of memory.
const MEMORY: Thresholds = Thresholds { light: 60, moderate1: 75, moderate2: 85, heavy: 95 };

/// The thesis's repeats (fig. 4.10).
const REPEATS: (u32, u32, u32) = (6, 3, 3);

/// A longer interval, wait or limit is a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Default for Saving {
    /// The same as the controller's own, which tells the reasons.
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            interval: s(10),
            fresh: s(30),
            base: None,
            awake_hosts: 1,
            awake_for: s(15 * 60),
            sleeps_a_day: 6,
            migrations: 2,
            migration_bandwidth: None,
            migration_downtime: None,
            migration_uri: "qemu+tcp://{address}/system".to_owned(),
            host_memory: 1024,
            base_cpu: 70,
            alarm: s(12 * 3600),
            survive_host: true,
            wake_within: s(30),
            watts_per_gib: 1,
            awake: Hours::default(),
            backoff: s(5 * 60),
            patience: s(60 * 60),
            vip_limit: s(30),
            migration_limit: s(300),
            vm_limit: s(15),
            suspend_limit: s(30),
            wake_limit: s(10),
        }
    }
}

/// What the other sections say.
pub(super) struct Others<'a> {
    pub agents: &'a BTreeMap<AgentId, Machine>,
    pub targets: &'a BTreeMap<TargetName, Target>,
}

/// All three.
pub(super) fn saving(
    faults: &mut Faults<'_>,
    root: &Table<'_, '_>,
    others: &Others<'_>,
) -> (BTreeMap<AgentId, Host>, BTreeMap<GroupName, Group>, Saving) {
    let hosts = hosts(faults, root, others);
    let groups = groups(faults, root, others, &hosts);
    let saving = general(faults, root, &hosts);
    let Some(table) = root.table(faults, "pss", &keys::PSS) else { return (hosts, groups, saving) };
    if !hosts.is_empty() && usize::try_from(saving.awake_hosts).is_ok_and(|least| least > hosts.len()) {
        let reason = format!("there are only {} [[host]]: none would ever sleep", hosts.len());
        faults.value(&table.place, "awake_hosts", table.span_of("awake_hosts"), reason);
    }
    for (name, group) in groups.iter().filter(|(_, group)| group.base.is_none() && !group.shared_storage) {
        if let Some(base) = saving.base.as_ref().filter(|base| !at_home(others, &group.members, base)) {
            let reason = format!("{}: name another, or give the group a base of its own", strange(name, base));
            faults.value(&table.place, "base", table.span_of("base"), reason);
        }
    }
    (hosts, groups, saving)
}

/// Does one of them belong on this real server?
fn at_home(others: &Others<'_>, members: &[TargetName], host: &AgentId) -> bool {
    members.iter().any(|member| others.targets.get(member).is_none_or(|target| target.agent == *host))
}

/// Nothing of a group without shared storage can be gathered where no member belongs.
fn strange(group: &GroupName, base: &AgentId) -> String {
    format!("group {group} has no shared_storage, and no member of it belongs on {base}")
}

fn hosts(faults: &mut Faults<'_>, root: &Table<'_, '_>, others: &Others<'_>) -> BTreeMap<AgentId, Host> {
    let mut hosts = BTreeMap::new();
    for table in root.tables(faults, "host", &keys::HOST) {
        let agent: Option<Given<AgentId>> = table.parsed(faults, "agent", A_NAME);
        let agent = table.required(faults, "agent", agent);
        let pinned = table.string(faults, "pinned").map(Given::into_inner);
        let wake = command(faults, &table, "wake");
        let wakes_in = table.duration(faults, "wakes_in").map(Given::into_inner);
        let watts = table.table(faults, "watts", &keys::WATTS).and_then(|watts| {
            let mut figure = |key| {
                let given = watts.integer(faults, key, 0..100_001);
                watts.required(faults, key, given).map(Given::into_inner)
            };
            let (awake, asleep) = (figure("awake")?, figure("asleep")?);
            if asleep >= awake {
                faults.value(
                    &watts.place,
                    "asleep",
                    watts.span_of("asleep"),
                    "not below awake: sleep would save nothing",
                );
            }
            Some((awake, asleep))
        });
        let Some(agent) = agent else { continue };
        let (name, span) = (agent.get_ref().clone(), agent.span());
        match others.agents.get(&name) {
            None => unknown(
                faults,
                &table.place,
                "agent",
                &span,
                name.as_str(),
                others.agents.keys().map(AgentId::as_str),
                "[[agent]]",
            ),
            Some(machine) if machine.voter => {
                let reason = "a voter must stay awake: take another machine as voter, or leave this one out";
                faults.value(&table.place, "agent", span, reason);
            }
            Some(machine) if machine.guard != Guard::Tap => {
                let reason = "its agent's guard is not \"tap\": a real server of power saving runs virtual servers";
                faults.value(&table.place, "agent", span, reason);
            }
            Some(_) => {}
        }
        if hosts.insert(name, Host { watts, pinned, wake, wakes_in }).is_some() {
            faults.value(&table.place, "agent", agent.span(), "stands twice");
        }
    }
    hosts
}

fn groups(
    faults: &mut Faults<'_>,
    root: &Table<'_, '_>,
    others: &Others<'_>,
    hosts: &BTreeMap<AgentId, Host>,
) -> BTreeMap<GroupName, Group> {
    let mut groups: BTreeMap<GroupName, Group> = BTreeMap::new();
    let mut taken: BTreeMap<TargetName, GroupName> = BTreeMap::new();
    let mut seen: BTreeMap<GroupName, Range<usize>> = BTreeMap::new();
    for table in root.tables(faults, "group", &keys::GROUP) {
        let name: Option<Given<GroupName>> = table.parsed(faults, "name", A_NAME);
        let name = table.required(faults, "name", name);
        let members: Option<Vec<Given<TargetName>>> = table.list(faults, "members", A_NAME);
        let members = table.required(faults, "members", members).unwrap_or_default();
        let base = base(faults, &table, hosts);
        let thresholds = table.table(faults, "thresholds", &keys::THRESHOLDS);
        let mut kind = |key, default| {
            let given = thresholds.as_ref().and_then(|table| table.table(faults, key, &keys::LOAD));
            given.map_or(default, |table| rising(faults, &table, default))
        };
        let (memory, cpu) = (kind("memory", MEMORY), kind("cpu", Thresholds::default()));
        let network = kind("network", Thresholds::default());
        let repeats = repeats(faults, &table);
        let awake = windows(faults, &table, "awake");
        let rated = table.integer(faults, "rated", 1..10_000_001).map(Given::into_inner);
        let shared_storage = table.boolean(faults, "shared_storage").unwrap_or(true);
        let Some(name) = name else { continue };
        if let Some(first) = seen.insert(name.get_ref().clone(), name.span()) {
            faults.twice(&table.place, name.span(), first);
            continue;
        }
        if table.has("members") && members.is_empty() {
            faults.value(&table.place, "members", table.span_of("members"), "give the targets that offer its service");
        }
        for member in &members {
            let target = member.get_ref();
            match others.targets.get(target) {
                None => {
                    let known = others.targets.keys().map(TargetName::as_str);
                    unknown(faults, &table.place, "members", &member.span(), target.as_str(), known, "[[target]]");
                }
                Some(it) if it.vm.is_none() => {
                    let reason = "this target is no virtual server: give it vm = { domain, host }, or leave it out";
                    faults.value(&table.place, "members", member.span(), reason);
                }
                Some(it) if !hosts.contains_key(&it.agent) => {
                    let reason = format!("its real server {} is no [[host]]: add one", it.agent);
                    faults.value(&table.place, "members", member.span(), reason);
                }
                Some(_) => {}
            }
            if let Some(other) = taken.insert(target.clone(), name.get_ref().clone()) {
                faults.value(&table.place, "members", member.span(), format!("also a member of group {other}"));
            }
        }
        let members: Vec<TargetName> = members.into_iter().map(Given::into_inner).collect();
        if let Some(base) = base.as_ref().filter(|base| !shared_storage && hosts.contains_key(*base))
            && !at_home(others, &members, base)
        {
            let reason = format!("{}: name the real server of a member", strange(name.get_ref(), base));
            faults.value(&table.place, "base", table.span_of("base"), reason);
        }
        let group = Group { members, base, memory, cpu, network, repeats, awake, rated, shared_storage };
        groups.insert(name.into_inner(), group);
    }
    groups
}

fn unknown<'n>(
    faults: &mut Faults<'_>,
    place: &str,
    key: &str,
    span: &Range<usize>,
    name: &str,
    known: impl Iterator<Item = &'n str>,
    heading: &str,
) {
    let hint = nearest(name, known)
        .map_or_else(|| "add one, or correct the name".to_owned(), |near| format!("did you mean {near:?}?"));
    if !faults.is_broken() {
        faults.value(place, key, span.clone(), format!("there is no {heading} of that name: {hint}"));
    }
}

fn base(faults: &mut Faults<'_>, table: &Table<'_, '_>, hosts: &BTreeMap<AgentId, Host>) -> Option<AgentId> {
    let base: Given<AgentId> = table.parsed(faults, "base", A_NAME)?;
    if !hosts.contains_key(base.get_ref()) {
        let known = hosts.keys().map(AgentId::as_str);
        unknown(faults, &table.place, "base", &base.span(), base.get_ref().as_str(), known, "[[host]]");
    }
    Some(base.into_inner())
}

/// They must rise, or a group would be in two classes at once.
fn rising(faults: &mut Faults<'_>, table: &Table<'_, '_>, default: Thresholds) -> Thresholds {
    let mut figure = |key, default| table.integer(faults, key, 1..101).map_or(default, Given::into_inner);
    let thresholds = Thresholds {
        light: figure("light", default.light),
        moderate1: figure("moderate1", default.moderate1),
        moderate2: figure("moderate2", default.moderate2),
        heavy: figure("heavy", default.heavy),
    };
    let Thresholds { light, moderate1, moderate2, heavy } = thresholds;
    let all = [("light", light), ("moderate1", moderate1), ("moderate2", moderate2), ("heavy", heavy)];
    for pair in all.windows(2) {
        if let [(lower, below), (upper, above)] = *pair
            && below >= above
        {
            let (key, other, figure) = if table.has(upper) { (upper, lower, below) } else { (lower, upper, above) };
            let side = if key == upper { "above" } else { "below" };
            faults.value(&table.place, key, table.span_of(key), format!("must be {side} {other}, which is {figure}"));
        }
    }
    thresholds
}

fn repeats(faults: &mut Faults<'_>, group: &Table<'_, '_>) -> (u32, u32, u32) {
    let Some(table) = group.table(faults, "repeats", &keys::REPEATS) else { return REPEATS };
    let mut count = |key, default| table.integer(faults, key, 1..100_001).map_or(default, Given::into_inner);
    let (light, moderate, heavy) = (count("light", REPEATS.0), count("moderate", REPEATS.1), count("heavy", REPEATS.2));
    if light < moderate {
        let reason = format!("fewer than {moderate} for moderate: capacity must come back quicker than it goes");
        faults.value(&table.place, "light", table.span_of("light"), reason);
    }
    (light, moderate, heavy)
}

fn general(faults: &mut Faults<'_>, root: &Table<'_, '_>, hosts: &BTreeMap<AgentId, Host>) -> Saving {
    let default = Saving::default();
    let Some(table) = root.table(faults, "pss", &keys::PSS) else { return default };
    let base = base(faults, &table, hosts);
    let migration_uri = table.string(faults, "migration_uri");
    if let Some(uri) = migration_uri.as_ref().filter(|uri| !uri.get_ref().contains("{address}")) {
        faults.value(&table.place, "migration_uri", uri.span(), "has no {address}: every host would be the same one");
    }
    let mut count = |key, limits, default| table.integer(faults, key, limits).map_or(default, Given::into_inner);
    let (awake_hosts, sleeps_a_day) =
        (count("awake_hosts", 1..100_001, default.awake_hosts), count("sleeps_a_day", 1..1001, default.sleeps_a_day));
    let migrations = count("migrations", 1..1001, default.migrations);
    let host_memory = count("host_memory", 0..100_000_001, default.host_memory);
    let base_cpu = count("base_cpu", 1..101, default.base_cpu);
    let watts_per_gib = count("watts_per_gib", 0..100_001, default.watts_per_gib);
    let migration_bandwidth = table.integer(faults, "migration_bandwidth", 1..1_000_001).map(Given::into_inner);
    let survive_host = table.boolean(faults, "survive_host").unwrap_or(default.survive_host);
    let awake = windows(faults, &table, "awake");
    let migration_downtime = table.duration(faults, "migration_downtime").map(Given::into_inner);
    let mut time = |key, default| match table.duration(faults, key) {
        None => default,
        Some(given) => {
            if *given.get_ref() > LONGEST {
                faults.value(&table.place, key, given.span(), "more than a day");
            }
            given.into_inner()
        }
    };
    let interval = time("interval", default.interval);
    let saving = Saving {
        interval,
        fresh: time("fresh", default.fresh.max(interval.saturating_mul(3).min(LONGEST))),
        base,
        awake_hosts,
        awake_for: time("awake_for", default.awake_for),
        sleeps_a_day,
        migrations,
        migration_bandwidth,
        migration_downtime,
        migration_uri: migration_uri.map_or(default.migration_uri, Given::into_inner),
        host_memory,
        base_cpu,
        alarm: time("alarm", default.alarm),
        survive_host,
        wake_within: time("wake_within", default.wake_within),
        watts_per_gib,
        awake,
        backoff: time("backoff", default.backoff),
        patience: time("patience", default.patience),
        vip_limit: time("vip_limit", default.vip_limit),
        migration_limit: time("migration_limit", default.migration_limit),
        vm_limit: time("vm_limit", default.vm_limit),
        suspend_limit: time("suspend_limit", default.suspend_limit),
        wake_limit: time("wake_limit", default.wake_limit),
    };
    if saving.fresh < saving.interval {
        let reason = format!("shorter than interval ({:?}): nothing would ever be judged", saving.interval);
        faults.value(&table.place, "fresh", table.span_of("fresh"), reason);
    }
    if saving.patience < saving.backoff {
        let key = if table.has("patience") { "patience" } else { "backoff" };
        let reason = format!("patience ({:?}) is shorter than backoff ({:?})", saving.patience, saving.backoff);
        faults.value(&table.place, key, table.span_of(key), reason);
    }
    saving
}
