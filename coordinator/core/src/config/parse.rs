//! `cluster.toml` → [`Cluster`]: each section with its readers, then what the sections say of each other.

use super::{
    Budget, Cluster, ConfigError, Detection, Failback, Guard, Hours, Machine, OnCoordinatorLoss, Quarantine, Target,
    VirtualServer,
    backup::backup,
    is_mac, keys,
    read::{Faults, Given, Table},
    saving::{Others, saving},
    service::services,
    vm::{self, Inside, Named, Taken},
};
use kage_types::{AgentId, LeaseTiming, Profile, TargetName, Vip};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

/// T unless given.
const TERM: Duration = Duration::from_secs(5);
/// A shorter term ends during an ordinary delay of SIF; a longer one makes each takeover after the loss of a
/// coordinator wait for minutes.
const TERM_LIMITS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

pub(super) const A_NAME: &str =
    "no name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit";
const AN_ADDRESS: &str = "no IP:PORT such as \"192.0.2.21:7702\"";
pub(super) const AN_IP: &str = "no IP address such as \"192.0.2.21\"";
const A_VIP: &str = "no virtual IP: give one unicast IPv4 or IPv6 address without prefix length";

const PROFILES: &[(&str, Profile)] =
    &[("thesis", Profile::Thesis), ("normal", Profile::Normal), ("fast", Profile::Fast)];
const LOSSES: &[(&str, OnCoordinatorLoss)] =
    &[("voters", OnCoordinatorLoss::Voters), ("keep", OnCoordinatorLoss::Keep), ("lapse", OnCoordinatorLoss::Lapse)];
const GUARDS: &[(&str, Guard)] = &[("host", Guard::Host), ("tap", Guard::Tap), ("none", Guard::None)];
const FAILBACKS: &[(&str, Failback)] =
    &[("auto", Failback::Auto), ("manual", Failback::Manual), ("keep", Failback::Keep)];

/// Read and check; `file` is named in faults.
pub(super) fn parse(file: &str, text: &str) -> Result<Cluster, ConfigError> {
    let mut faults = Faults::new(text);
    let document = faults.document();
    let root = Table::root(&mut faults, &keys::ROOT, document.get_ref());
    let cluster = read(&mut faults, &root);
    let ended = faults.end().map_err(|faults| ConfigError { file: file.to_owned(), faults });
    match (ended, cluster) {
        (Err(error), _) => Err(error),
        (Ok(()), Some(cluster)) => Ok(cluster),
        // Every `None` on the way was reported; this is for a mistake in this file.
        (Ok(()), None) => Err(ConfigError { file: file.to_owned(), faults: Vec::new() }),
    }
}

fn read(faults: &mut Faults<'_>, root: &Table<'_, '_>) -> Option<Cluster> {
    let table = root.table(faults, "cluster", &keys::CLUSTER);
    let general = root.required(faults, "cluster", table);
    let name = general.as_ref().and_then(|table| {
        let name = table.string(faults, "name");
        table.required(faults, "name", name)
    });
    let profile = general.as_ref().and_then(|table| table.choice(faults, "profile", PROFILES)).unwrap_or_default();
    let loss = general.as_ref().and_then(|table| table.choice(faults, "on_coordinator_loss", LOSSES));
    let timing = timing(faults, root, profile);
    let quarantine = quarantine(faults, root);
    let coordinator = listen(faults, root, "coordinator", &keys::COORDINATOR);
    let sif = listen(faults, root, "sif", &keys::SIF);
    let term = sif.as_ref().and_then(|(table, _)| table.duration(faults, "term"));
    if let (Some((table, _)), Some(term)) = (&sif, &term)
        && !TERM_LIMITS.contains(term.get_ref())
    {
        faults.value(
            &table.place,
            "term",
            term.span(),
            "give 1s to 60s: less would make every delay of SIF cost authority",
        );
    }
    let mut argv = |key| coordinator.as_ref().and_then(|(table, _)| command(faults, table, key));
    let (storage_fence, storage_unfence) = (argv("storage_fence"), argv("storage_unfence"));
    let coordinator = coordinator.and_then(|(_, listen)| listen);
    let sif = sif.and_then(|(_, listen)| listen);
    if let (Some(one), Some(other)) = (&coordinator, &sif)
        && one.get_ref() == other.get_ref()
    {
        faults.value("[sif]", "listen", other.span(), "the coordinator's own: give another port");
    }
    let mut places = Places::default();
    let agents = agents(faults, root, &mut places);
    let targets = targets(faults, root, profile, &agents, &places);
    for (name, target) in &targets {
        let Some(writers) = target.writers() else { continue };
        let machine = agents.get(&target.agent).filter(|_| target.vm.is_none());
        if writers.power && machine.is_some_and(|machine| machine.power_status.is_none()) {
            let agent = &target.agent;
            let text = format!("[[target]] {name}: writer_fence = \"power\" needs power_status of [[agent]] {agent}");
            faults.missing(0..0, text);
        }
        if writers.storage && (storage_fence.is_none() || storage_unfence.is_none()) {
            let needs = "needs storage_fence and storage_unfence in [coordinator]";
            faults.missing(0..0, format!("[[target]] {name}: writer_fence = \"storage\" {needs}"));
        }
    }
    let (hosts, groups, saving) = saving(faults, root, &Others { agents: &agents, targets: &targets });
    let voters = agents.values().filter(|machine| machine.voter).count();
    let on_coordinator_loss = loss.unwrap_or_default();
    // A section or word that can't be read was complained about.
    let chosen = general.as_ref().filter(|table| loss.is_some() || !table.has("on_coordinator_loss"));
    if let Some(table) = chosen.filter(|_| on_coordinator_loss == OnCoordinatorLoss::Voters && voters < 3) {
        let span = table.span_of("on_coordinator_loss");
        faults.missing(
            span,
            format!(
                "[cluster]: on_coordinator_loss = \"voters\" needs three agents with voter = true, there are {voters}: \
                 add witnesses, or choose \"keep\" (takeover by proof only) or \"lapse\" (services stop with the coordinator)"
            ),
        );
    }
    Some(Cluster {
        name: name?.into_inner(),
        profile,
        timing,
        detection: Detection::of(profile),
        on_coordinator_loss,
        coordinator: coordinator?.into_inner(),
        sif: sif?.into_inner(),
        storage_fence,
        storage_unfence,
        term: term.map_or(TERM, Given::into_inner),
        quarantine,
        agents,
        targets,
        hosts,
        groups,
        saving,
        supervise: true,
    })
}

/// A section with an address to listen at.
fn listen<'a, 'i>(
    faults: &mut Faults<'_>,
    root: &Table<'a, 'i>,
    key: &str,
    section: &'static keys::Section,
) -> Option<(Table<'a, 'i>, Option<Given<SocketAddr>>)> {
    let table = root.table(faults, key, section);
    let table = root.required(faults, key, table)?;
    let listen = table.parsed(faults, "listen", AN_ADDRESS);
    let listen = table.required(faults, "listen", listen);
    Some((table, listen))
}

fn timing(faults: &mut Faults<'_>, root: &Table<'_, '_>, profile: Profile) -> LeaseTiming {
    let base = LeaseTiming::of(profile);
    let Some(table) = root.table(faults, "lease", &keys::LEASE) else { return base };
    let mut duration = |key, default| table.duration(faults, key).map_or(default, Given::into_inner);
    let timing = LeaseTiming {
        lease: duration("lease", base.lease),
        element: duration("element", base.element),
        renewal: duration("renewal", base.renewal),
        slack: duration("slack", base.slack),
        long_lease: duration("long_lease", base.long_lease),
    };
    if let Err(error) = timing.check() {
        faults.at(table.span.clone(), format!("[lease]: {error}"));
    }
    timing
}

fn quarantine(faults: &mut Faults<'_>, root: &Table<'_, '_>) -> Quarantine {
    let default = Quarantine::default();
    let Some(table) = root.table(faults, "quarantine", &keys::QUARANTINE) else { return default };
    let lapses = table.integer(faults, "lapses", 0..1001).map_or(default.lapses, Given::into_inner);
    let mut duration = |key, default| table.duration(faults, key).map_or(default, Given::into_inner);
    let (within, hold) = (duration("within", default.within), duration("hold", default.hold));
    let hold_limit = duration("hold_limit", default.hold_limit.max(hold));
    if hold_limit < hold {
        let reason = format!("shorter than hold ({hold:?}): give as much or more");
        faults.value(&table.place, "hold_limit", table.span_of("hold_limit"), reason);
    }
    Quarantine { lapses, within, hold, hold_limit }
}

/// What is named where, good or not: what a fault hides elsewhere is not a fault here.
#[derive(Default)]
pub(super) struct Places {
    pub agents: BTreeMap<AgentId, Range<usize>>,
    addresses: BTreeMap<SocketAddr, AgentId>,
    /// Of those with `guard` given.
    pub guards: BTreeMap<AgentId, Range<usize>>,
}

fn agents(faults: &mut Faults<'_>, root: &Table<'_, '_>, places: &mut Places) -> BTreeMap<AgentId, Machine> {
    let mut agents = BTreeMap::new();
    for table in root.tables(faults, "agent", &keys::AGENT) {
        let name: Option<Given<AgentId>> = table.parsed(faults, "name", A_NAME);
        let name = table.required(faults, "name", name);
        let address = table.parsed(faults, "address", AN_ADDRESS);
        let address = table.required(faults, "address", address);
        let failure_domain = table.string(faults, "failure_domain").map(Given::into_inner);
        let voter = table.boolean(faults, "voter").unwrap_or_default();
        let mac = table.string(faults, "mac");
        if let Some(mac) = mac.as_ref().filter(|mac| !is_mac(mac.get_ref())) {
            faults.value(&table.place, "mac", mac.span(), "no MAC address such as \"52:54:00:12:34:56\"");
        }
        let guard = table.choice(faults, "guard", GUARDS);
        let power_status = command(faults, &table, "power_status");
        let power_off = command(faults, &table, "power_off");
        let Some(name) = name else { continue };
        if let Some(first) = places.agents.insert(name.get_ref().clone(), name.span()) {
            faults.twice(&table.place, name.span(), first);
            continue;
        }
        let name = name.into_inner();
        if table.has("guard") {
            places.guards.insert(name.clone(), table.span_of("guard"));
        }
        let Some(address) = address else { continue };
        if let Some(other) = places.addresses.insert(*address.get_ref(), name.clone()) {
            faults.value(&table.place, "address", address.span(), format!("agent {other} has it already"));
        }
        let machine = Machine {
            address: address.into_inner(),
            failure_domain: failure_domain.unwrap_or_else(|| name.to_string()),
            voter,
            mac: mac.map(Given::into_inner),
            guard: guard.unwrap_or_default(),
            power_status,
            power_off,
        };
        agents.insert(name, machine);
    }
    agents
}

fn targets(
    faults: &mut Faults<'_>,
    root: &Table<'_, '_>,
    profile: Profile,
    agents: &BTreeMap<AgentId, Machine>,
    places: &Places,
) -> BTreeMap<TargetName, Target> {
    let mut targets = BTreeMap::new();
    let mut seen: BTreeMap<TargetName, Range<usize>> = BTreeMap::new();
    let mut taken: BTreeMap<Vip, TargetName> = BTreeMap::new();
    let mut domains = Taken::new();
    let mut inside = Inside::new();
    for table in root.tables(faults, "target", &keys::TARGET) {
        let name: Option<Given<TargetName>> = table.parsed(faults, "name", A_NAME);
        let name = table.required(faults, "name", name);
        let vm = vm::vm(faults, &table, name.as_ref().map(Given::get_ref), agents, places, &mut domains);
        let inner: Option<Given<AgentId>> = table.parsed(faults, "agent", A_NAME);
        let inner = if table.has("vm") { inner } else { table.required(faults, "agent", inner) };
        known(faults, &table, "agent", inner.as_ref(), places);
        let backup = backup(faults, &table, vm.as_ref().map(|vm| &vm.host).or(inner.as_ref()), agents, places);
        let (backup, named) = backup.map_or((None, Named::default()), |(backup, named)| (Some(backup), named));
        let address: Option<Given<IpAddr>> = table.parsed(faults, "address", AN_IP);
        if table.has("vm") {
            vm::guest(faults, &table, "agent", inner.as_ref(), agents);
        }
        if table.has("vm") && !table.has("agent") && !table.has("address") {
            let text = format!(
                "{}: address is missing: a virtual server without an agent of its own is pinged there",
                table.place
            );
            faults.missing(table.span.clone(), text);
        }
        let vips = vips(faults, &table, name.as_ref().map(Given::get_ref), agents, &mut taken);
        let host = vips.first().map(|vip| crate::probe::host(vip.address())).unwrap_or_default();
        let services = services(faults, &table, &host);
        let failback = table.choice(faults, "failback", FAILBACKS).unwrap_or_default();
        let failback_hours = hours(faults, &table, failback);
        let budget = budget(faults, &table);
        let mut wait =
            |key, default| table.duration(faults, key).map_or(Duration::from_secs(default), Given::into_inner);
        // Thesis: back at once when the verdict is up.
        let healthy_for = if profile == Profile::Thesis { 0 } else { 10 };
        let (healthy_for, reboot_wait, start_wait) =
            (wait("healthy_for", healthy_for), wait("reboot_wait", 60), wait("start_wait", 90));
        if let Some(name) = &name
            && let Some(first) = seen.insert(name.get_ref().clone(), name.span())
        {
            faults.twice(&table.place, name.span(), first);
            continue;
        }
        let inner = inner.map(Given::into_inner);
        let own = inner.as_ref().and_then(|agent| agents.get(agent)).map(|machine| machine.address.ip());
        let (agent, vm) = match vm {
            Some(vm) => {
                let server = VirtualServer { domain: vm.domain.into_inner(), guest: inner };
                (Some(vm.host.into_inner()), Some(server))
            }
            None => (inner.filter(|_| !table.has("vm")), None),
        };
        let (Some(name), Some(agent), Some(backup)) = (name, agent, backup) else { continue };
        let Some(address) = address.map(Given::into_inner).or(own) else { continue };
        let target = Target {
            agent,
            vm,
            address,
            vips,
            backup,
            services,
            failback,
            failback_hours,
            healthy_for,
            reboot_wait,
            start_wait,
            budget,
        };
        inside.insert(name.get_ref().clone(), named);
        targets.insert(name.into_inner(), target);
    }
    vm::check(faults, &targets, &domains);
    vm::check_inside(faults, &targets, &inside);
    targets
}

fn hours(faults: &mut Faults<'_>, target: &Table<'_, '_>, failback: Failback) -> Hours {
    const KEY: &str = "failback_hours";
    let before = faults.count();
    let hours = windows(faults, target, KEY);
    if target.has(KEY) && faults.count() == before && failback != Failback::Auto {
        faults.value(&target.place, KEY, target.span_of(KEY), "only failback = \"auto\" has hours: leave it out");
    }
    hours
}

/// Hours of the week.
pub(super) fn windows(faults: &mut Faults<'_>, table: &Table<'_, '_>, key: &str) -> Hours {
    let given: Option<Vec<Given<String>>> = table.list(faults, key, "");
    let Some(given) = given else { return Hours::default() };
    let mut windows = Vec::new();
    for text in &given {
        match text.get_ref().parse() {
            Ok(window) => windows.push(window),
            Err(reason) => faults.value(&table.place, key, text.span(), reason),
        }
    }
    if given.is_empty() {
        faults.value(&table.place, key, table.span_of(key), "leave it out, or give one window");
    }
    Hours::new(windows)
}

fn budget(faults: &mut Faults<'_>, target: &Table<'_, '_>) -> Budget {
    let default = Budget::default();
    let Some(table) = target.table(faults, "budget", &keys::BUDGET) else { return default };
    let mut count = |key, least, default| table.integer(faults, key, least..1001).map_or(default, Given::into_inner);
    Budget {
        restarts: count("restarts", 0, default.restarts),
        reboots: count("reboots", 0, default.reboots),
        takeovers: count("takeovers", 1, default.takeovers),
        within: table.duration(faults, "within").map_or(default.within, Given::into_inner),
    }
}

/// Program and arguments.
pub(super) fn command(faults: &mut Faults<'_>, table: &Table<'_, '_>, key: &str) -> Option<Vec<String>> {
    let words: Vec<Given<String>> = table.list(faults, key, "")?;
    if words.is_empty() {
        faults.value(&table.place, key, table.span_of(key), "give program and arguments, or leave it out");
        return None;
    }
    Some(words.into_iter().map(Given::into_inner).collect())
}

pub(super) fn known(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    key: &str,
    agent: Option<&Given<AgentId>>,
    places: &Places,
) {
    if let Some(agent) = agent.filter(|agent| !places.agents.contains_key(agent.get_ref())) {
        faults.unknown_agent(&table.place, key, agent, places.agents.keys());
    }
}

fn vips(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    target: Option<&TargetName>,
    agents: &BTreeMap<AgentId, Machine>,
    taken: &mut BTreeMap<Vip, TargetName>,
) -> std::collections::BTreeSet<Vip> {
    let vips: Option<Vec<Given<Vip>>> = table.list(faults, "vips", A_VIP);
    let Some(vips) = table.required(faults, "vips", vips) else { return Default::default() };
    if vips.is_empty() {
        faults.at(table.span_of("vips"), format!("{}: vips is empty: give the address its clients use", table.place));
    }
    for vip in &vips {
        let address = vip.get_ref();
        if let Some((machine, _)) = agents.iter().find(|(_, machine)| machine.address.ip() == address.address()) {
            faults.value(&table.place, "vips", vip.span(), format!("the own address of agent {machine}"));
        }
        let Some(target) = target else { continue };
        match taken.insert(*address, target.clone()) {
            Some(other) if other == *target => faults.value(&table.place, "vips", vip.span(), "stands there twice"),
            Some(other) => faults.value(&table.place, "vips", vip.span(), format!("also given to target {other}")),
            None => {}
        }
    }
    vips.into_iter().map(Given::into_inner).collect()
}

impl Faults<'_> {
    /// A name that was given away above.
    pub(super) fn twice(&mut self, place: &str, span: Range<usize>, first: Range<usize>) {
        let line = self.line(first.start);
        self.value(place, "name", span, format!("stands twice, first in line {line}"));
    }

    fn unknown_agent<'n>(
        &mut self,
        place: &str,
        key: &str,
        agent: &Given<AgentId>,
        known: impl Iterator<Item = &'n AgentId>,
    ) {
        let hint = super::read::nearest(agent.get_ref().as_str(), known.map(AgentId::as_str))
            .map_or_else(|| "add one, or correct the name".to_owned(), |near| format!("did you mean {near:?}?"));
        if !self.is_broken() {
            self.value(place, key, agent.span(), format!("there is no [[agent]] of that name: {hint}"));
        }
    }
}
