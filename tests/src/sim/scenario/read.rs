//! A scenario file → [`Scenario`]: every fault found at once, with its line.

use super::expect::{Expect, read_expect};
use super::keys::{self, Word};
use super::places::{MACHINES, Places};
use super::what::{Libvirt, Operator, What};
use super::{Ends, Facts, Line, Scenario, json};
use crate::sim::checks::PROMISES;
use crate::sim::clock::{Ns, SEC, ns};
use crate::sim::machine::{Cure, Health};
use kage_coordinator_core::config::{
    Cluster, ConfigError, Fault,
    read::{Faults, Given, Table, nearest},
};
use kage_coordinator_core::probe::PRESETS;
use kage_types::{AgentId, OrderScope, ServiceName, TargetName, Vip};
use std::{collections::BTreeMap, path::Path};
use toml::de::{DeTable, DeValue};

const A_NAME: &str = "no name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit";
const A_VIP: &str = "no IP address such as \"192.0.2.100\"";
const LONGEST: Ns = 24 * 3600 * SEC;
const WORDS: &[(&str, &str)] = &[("thesis", "thesis"), ("normal", "normal"), ("fast", "fast")];
const LOSSES: &[(&str, &str)] = &[("voters", "voters"), ("keep", "keep"), ("lapse", "lapse")];
const ENDS: &[(&str, Ends)] = &[("serving", Ends::Serving), ("well", Ends::Well), ("any", Ends::Any)];
const CURES: &[(&str, Cure)] = &[("restart", Cure::Restart), ("reboot", Cure::Reboot), ("nothing", Cure::Nothing)];
const FAILBACKS: &[(&str, &str)] = &[("auto", "auto"), ("manual", "manual")];
const POWERS: &[(&str, u8)] = &[("none", 0), ("status", 1), ("control", 2)];
const STATES: &[(&str, bool)] = &[("on", false), ("off", true)];
const DIRECTIONS: &[(&str, (bool, bool))] = &[("both", (true, true)), ("in", (true, false)), ("out", (false, true))];

/// Read and check a file; its name ends in `.json`, or it is TOML.
///
/// # Errors
/// Every fault found, each with its line.
pub fn load(file: &Path) -> Result<Scenario, ConfigError> {
    let name = file.display().to_string();
    let one = |line, text| ConfigError { file: name.clone(), faults: vec![Fault { line, text }] };
    let text = std::fs::read_to_string(file).map_err(|error| one(1, format!("it can't be read: {error}")))?;
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let text = if is_json { json::to_toml(&text).map_err(|(line, reason)| one(line, reason))? } else { text };
    parse(&name, &text, is_json, file.parent())
}

fn parse(file: &str, text: &str, wrapped: bool, beside: Option<&Path>) -> Result<Scenario, ConfigError> {
    let mut faults = Faults::new(text);
    let document = faults.document();
    let entries: &DeTable<'_> = match document.get_ref().get("scenario").map(|value| value.get_ref()) {
        Some(DeValue::Table(entries)) if wrapped => entries,
        Some(_) | None => document.get_ref(),
    };
    let root = Table::root(&mut faults, &keys::ROOT, entries);
    let scenario = read(&mut faults, &root, file, beside);
    match (faults.end(), scenario) {
        (Err(faults), _) => Err(ConfigError { file: file.to_owned(), faults }),
        (Ok(()), Some(scenario)) => Ok(scenario),
        (Ok(()), None) => Err(ConfigError { file: file.to_owned(), faults: Vec::new() }),
    }
}

fn read(faults: &mut Faults<'_>, root: &Table<'_, '_>, file: &str, beside: Option<&Path>) -> Option<Scenario> {
    let name = root.string(faults, "name");
    let name = root.required(faults, "name", name);
    let duration = root.duration(faults, "duration");
    let duration = root.required(faults, "duration", duration);
    if let Some(long) = duration.as_ref().filter(|duration| ns(*duration.get_ref()) > LONGEST) {
        faults.value(&root.place, "duration", long.span(), "give at most 24h");
    }
    let seed = root.integer(faults, "seed", 0..4_000_000_001).map_or(1, Given::into_inner);
    let ends = root.choice(faults, "ends", ENDS).unwrap_or_default();
    let breaks: Option<Vec<Given<String>>> = root.list(faults, "breaks", "");
    let mut broken = Vec::new();
    for word in breaks.into_iter().flatten() {
        match PROMISES.iter().find(|(_, name, _)| name == word.get_ref()) {
            Some((promise, ..)) => broken.push(*promise),
            None => {
                let names = PROMISES.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ");
                faults.value(&root.place, "breaks", word.span(), format!("none of {names}"));
            }
        }
    }
    let hosts = hosts(faults, root);
    let seats = [seat(faults, root, "coordinator"), seat(faults, root, "sif")];
    let cluster = cluster(faults, root, &hosts, &seats, beside)?;
    for seat in seats.iter().flatten().filter(|seat| !cluster.agents.contains_key(seat)) {
        faults.missing(0..0, format!("top level: there is no host {seat} for coordinator or SIF to live on"));
    }
    if cluster.agents.len() > MACHINES {
        faults.missing(0..0, format!("{} hosts, the simulator takes at most {MACHINES}", cluster.agents.len()));
        return None;
    }
    let places = Places::new(&cluster, &seats);
    let mut lines = Vec::new();
    for table in root.tables(faults, "event", &keys::EVENT) {
        lines.extend(event(faults, &table, &cluster, &places));
    }
    let mut expects: Vec<Expect> = Vec::new();
    for table in root.tables(faults, "expect", &keys::EXPECT) {
        expects.extend(read_expect(faults, &table, &cluster, &places));
    }
    let facts = hosts.into_iter().map(|(name, host)| (name, host.facts)).collect();
    let (name, duration) = (name?.into_inner(), ns(duration?.into_inner()));
    Some(Scenario {
        file: file.to_owned(),
        name,
        seed: seed.into(),
        duration,
        ends,
        breaks: broken,
        cluster,
        seats,
        facts,
        lines,
        expects,
    })
}

fn seat(faults: &mut Faults<'_>, root: &Table<'_, '_>, key: &str) -> Option<AgentId> {
    root.parsed(faults, key, A_NAME).map(Given::into_inner)
}

struct Host {
    voter: bool,
    domain: Option<String>,
    power: u8,
    facts: Facts,
}

fn hosts(faults: &mut Faults<'_>, root: &Table<'_, '_>) -> BTreeMap<AgentId, Host> {
    let mut hosts = BTreeMap::new();
    for table in root.tables(faults, "host", &keys::HOST) {
        let name: Option<Given<AgentId>> = table.parsed(faults, "name", A_NAME);
        let name = table.required(faults, "name", name);
        let facts = Facts {
            boot: table.duration(faults, "boot").map_or(10 * SEC, |boot| ns(boot.into_inner())),
            wakes: table.boolean(faults, "wakes").unwrap_or(true),
            off: table.choice(faults, "state", STATES).unwrap_or_default(),
        };
        let host = Host {
            voter: table.boolean(faults, "voter").unwrap_or_default(),
            domain: table.string(faults, "failure_domain").map(Given::into_inner),
            power: table.choice(faults, "power", POWERS).unwrap_or_default(),
            facts,
        };
        let Some(name) = name else { continue };
        if hosts.insert(name.get_ref().clone(), host).is_some() {
            faults.value(&table.place, "name", name.span(), "stands twice");
        }
    }
    hosts
}

/// The configuration that production would read.
fn cluster(
    faults: &mut Faults<'_>,
    root: &Table<'_, '_>,
    hosts: &BTreeMap<AgentId, Host>,
    seats: &[Option<AgentId>; 2],
    beside: Option<&Path>,
) -> Option<Cluster> {
    if let Some(path) = root.string(faults, "cluster") {
        if root.has("server") {
            faults.value(&root.place, "cluster", path.span(), "servers are its own: leave [[server]] out");
        }
        let full = beside.unwrap_or(Path::new(".")).join(path.get_ref());
        let parsed = std::fs::read_to_string(&full)
            .map_err(|error| vec![error.to_string()])
            .and_then(|text| Cluster::parse_file(&full, &text).map_err(|error| error.lines()));
        return match parsed {
            Ok(cluster) => Some(cluster),
            Err(reasons) => {
                reasons.iter().for_each(|reason| faults.value(&root.place, "cluster", path.span(), reason));
                None
            }
        };
    }
    let before = faults.count();
    let profile = root.choice(faults, "profile", WORDS).unwrap_or("normal");
    let loss = root.choice(faults, "on_coordinator_loss", LOSSES).unwrap_or("voters");
    let mut servers = String::new();
    let mut hypervisors = Vec::new();
    for (index, table) in root.tables(faults, "server", &keys::SERVER).iter().enumerate() {
        servers += &server(faults, table, index, hosts, &mut hypervisors);
    }
    let mut text = format!("[cluster]\nname = \"scenario\"\nprofile = \"{profile}\"\non_coordinator_loss = \"{loss}\"\n");
    let address = |seat: &Option<AgentId>, other: &str| {
        let index = seat.as_ref().and_then(|seat| hosts.keys().position(|name| name == seat));
        index.map_or_else(|| other.to_owned(), |index| format!("10.77.0.{}", index + 11))
    };
    text += &format!("[coordinator]\nlisten = \"{}:7700\"\n", address(&seats[0], "10.77.0.3"));
    text += &format!("[sif]\nlisten = \"{}:7701\"\n", address(&seats[1], "10.77.0.3"));
    for (index, (name, host)) in hosts.iter().enumerate() {
        let guard = if hypervisors.contains(name) { "tap" } else { "host" };
        text += &format!(
            "[[agent]]\nname = \"{name}\"\naddress = \"10.77.0.{}:7702\"\nvoter = {}\nguard = \"{guard}\"\n\
             mac = \"52:54:00:77:00:{:02x}\"\n",
            index + 11,
            host.voter,
            index + 11
        );
        if let Some(domain) = &host.domain {
            text += &format!("failure_domain = {domain:?}\n");
        }
        text += ["", "power_status = [\"read\"]\n", "power_status = [\"read\"]\npower_off = [\"off\"]\n"][usize::from(host.power)];
    }
    if faults.count() > before || faults.is_broken() {
        return None;
    }
    // What is left to complain about is what production says of such a cluster.
    match Cluster::parse(&(text + &servers)) {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            error.faults.into_iter().for_each(|fault| faults.missing(0..0, fault.text));
            None
        }
    }
}

fn known_host<'h>(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    key: &str,
    hosts: &'h BTreeMap<AgentId, Host>,
) -> Option<&'h AgentId> {
    let given: Option<Given<AgentId>> = table.parsed(faults, key, A_NAME);
    let given = table.required(faults, key, given)?;
    let found = hosts.get_key_value(given.get_ref()).map(|(name, _)| name);
    if found.is_none() {
        let near = nearest(given.get_ref().as_str(), hosts.keys().map(AgentId::as_str));
        let hint = near.map_or_else(|| "add one".to_owned(), |near| format!("did you mean {near:?}?"));
        faults.value(&table.place, key, given.span(), format!("there is no [[host]] of that name: {hint}"));
    }
    found
}

/// A `[[target]]` of this server; empty where it can't be.
fn server(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    index: usize,
    hosts: &BTreeMap<AgentId, Host>,
    hypervisors: &mut Vec<AgentId>,
) -> String {
    let name: Option<Given<TargetName>> = table.parsed(faults, "name", A_NAME);
    let name = table.required(faults, "name", name);
    let host = known_host(faults, table, "host", hosts);
    let standby = table.table(faults, "standby", &keys::STANDBY);
    let standby = table.required(faults, "standby", standby);
    let hypervisor = standby.as_ref().and_then(|standby| known_host(faults, standby, "host", hosts));
    let domain: Option<Given<kage_types::DomainName>> =
        standby.as_ref().and_then(|standby| standby.parsed(faults, "domain", A_NAME));
    let vips: Option<Vec<Given<Vip>>> = table.list(faults, "vips", A_VIP);
    let services: Option<Vec<Given<String>>> = table.list(faults, "services", "");
    let failback = table.choice(faults, "failback", FAILBACKS);
    let waits = ["healthy_for", "reboot_wait", "start_wait"].map(|key| (key, table.duration(faults, key)));
    let budget = ["restarts", "reboots", "takeovers"].map(|key| {
        let least = u32::from(key == "takeovers");
        (key, table.integer(faults, key, least..1001))
    });
    let (Some(name), Some(host), Some(hypervisor)) = (name, host, hypervisor) else { return String::new() };
    hypervisors.push(hypervisor.clone());
    let name = name.into_inner();
    let domain = domain.map_or_else(|| format!("{name}b"), |domain| domain.into_inner().to_string());
    let vips = vips.map_or_else(
        || format!("\"10.78.0.{}\"", index + 1),
        |vips| vips.iter().map(|vip| format!("\"{}\"", vip.get_ref())).collect::<Vec<_>>().join(", "),
    );
    let mut text = format!(
        "[[target]]\nname = \"{name}\"\nagent = \"{host}\"\nvips = [{vips}]\n\
         backup = {{ agent = \"{hypervisor}\", domain = \"{domain}\" }}\n"
    );
    if let Some(failback) = failback {
        text += &format!("failback = \"{failback}\"\n");
    }
    for (key, wait) in waits.iter().filter_map(|(key, wait)| Some((key, wait.as_ref()?))) {
        text += &format!("{key} = \"{}ms\"\n", wait.get_ref().as_millis());
    }
    let budget: Vec<String> =
        budget.iter().filter_map(|(key, count)| Some(format!("{key} = {}", count.as_ref()?.get_ref()))).collect();
    text += &format!("budget = {{ {} }}\n", budget.join(", "));
    let default = || vec![Given::new(table.span.clone(), "http".to_owned())];
    for service in services.unwrap_or_else(default) {
        let preset = PRESETS.iter().find(|preset| preset.name == service.get_ref() && preset.port.is_some());
        let Some(preset) = preset else {
            let names = PRESETS.iter().filter(|preset| preset.port.is_some()).map(|preset| preset.name);
            let reason = format!("none of {}", names.collect::<Vec<_>>().join(", "));
            faults.value(&table.place, "services", service.span(), reason);
            continue;
        };
        text += &format!("[[target.service]]\nname = \"{0}\"\nprobe = \"{0}\"\n", preset.name);
    }
    text
}

// ---- events ----

/// The word, if there is such a one and it has its keys and no others.
pub(super) fn word<'w>(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    words: &'w [Word],
    always: &[&str],
    all: &[kage_coordinator_core::config::keys::Key],
) -> Option<&'w Word> {
    let what = table.string(faults, "what");
    let what = table.required(faults, "what", what)?;
    let Some(word) = words.iter().find(|word| word.name == what.get_ref()) else {
        let near = nearest(what.get_ref(), words.iter().map(|word| word.name));
        let all = || words.iter().map(|word| word.name).collect::<Vec<_>>().join(", ");
        let hint = near.map_or_else(|| format!("one of {}", all()), |near| format!("did you mean {near:?}?"));
        faults.value(&table.place, "what", what.span(), format!("there is nothing of that name: {hint}"));
        return None;
    };
    let before = faults.count();
    for key in word.needs.iter().filter(|key| !table.has(key)) {
        faults.missing(table.span.clone(), format!("{}: {} needs {key}", table.place, word.name));
    }
    for key in all.iter().map(|key| key.name).filter(|key| table.has(key)) {
        if !always.contains(&key) && !word.needs.contains(&key) && !word.may.contains(&key) {
            faults.at(table.span_of(key), format!("{}: {key} has no meaning for {}", table.place, word.name));
        }
    }
    (faults.count() == before).then_some(word)
}

/// A server by name.
pub(super) fn known_server(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    key: &str,
    cluster: &Cluster,
) -> Option<TargetName> {
    let given: Given<TargetName> = table.parsed(faults, key, A_NAME)?;
    if cluster.targets.contains_key(given.get_ref()) {
        return Some(given.into_inner());
    }
    let near = nearest(given.get_ref().as_str(), cluster.targets.keys().map(TargetName::as_str));
    let hint = near.map_or_else(|| "see [[server]]".to_owned(), |near| format!("did you mean {near:?}?"));
    faults.value(&table.place, key, given.span(), format!("there is no server of that name: {hint}"));
    None
}

fn event(faults: &mut Faults<'_>, table: &Table<'_, '_>, cluster: &Cluster, places: &Places) -> Option<Line> {
    let word = word(faults, table, keys::EVENTS, &["what", "at", "on", "about"], keys::EVENT.keys)?;
    let before = faults.count();
    let at = table.duration(faults, "at").map_or(0, |at| ns(at.into_inner()));
    let lasts = table.duration(faults, "for").map(|lasts| ns(lasts.into_inner()));
    let on: Option<Vec<Given<String>>> = table.list(faults, "on", "");
    let about = known_server(faults, table, "about", cluster);
    let what = what(faults, table, word.name, lasts, cluster, places);
    if faults.count() > before {
        return None;
    }
    // An order ends by itself in the coordinator.
    let ends_itself = matches!(word.name, "maintenance" | "disarm");
    Some(Line {
        number: faults.line(table.span.start),
        at,
        lasts: lasts.filter(|_| !ends_itself),
        on: on.into_iter().flatten().map(Given::into_inner).collect(),
        about,
        what: what?,
    })
}

fn named<T>(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    key: &str,
    known: &[&str],
    find: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let given: Option<Vec<Given<String>>> = table.list(faults, key, "");
    let mut found = Vec::new();
    for name in given.into_iter().flatten() {
        match find(name.get_ref()) {
            Some(place) => found.push(place),
            None => {
                let near = nearest(name.get_ref(), known.iter().copied());
                let hint = near.map_or_else(|| format!("one of {}", known.join(", ")), |n| format!("did you mean {n:?}?"));
                faults.value(&table.place, key, name.span(), format!("there is no host of that name: {hint}"));
            }
        }
    }
    found
}

fn machines(faults: &mut Faults<'_>, table: &Table<'_, '_>, places: &Places) -> Vec<usize> {
    let mut known: Vec<&str> = places.machines.iter().map(String::as_str).collect();
    known.push("all");
    let all = || (0..places.machines.len()).collect::<Vec<_>>();
    let find = |name: &str| if name == "all" { Some(all()) } else { places.machine(name).map(|index| vec![index]) };
    named(faults, table, "hosts", &known, find).concat()
}

/// Target's machine and one of its services.
fn service(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    cluster: &Cluster,
    places: &Places,
) -> Option<(usize, ServiceName)> {
    let target = &cluster.targets[&known_server(faults, table, "server", cluster)?];
    let machine = places.machine(target.agent.as_str())?;
    let Some(given): Option<Given<ServiceName>> = table.parsed(faults, "service", A_NAME) else {
        let first = target.services.first().map(|service| service.name.clone());
        if first.is_none() {
            faults.at(table.span_of("server"), format!("{}: this server has no service", table.place));
        }
        return Some((machine, first?));
    };
    if target.services.iter().all(|service| service.name != *given.get_ref()) {
        let names: Vec<&str> = target.services.iter().map(|service| service.name.as_str()).collect();
        faults.value(&table.place, "service", given.span(), format!("this server has: {}", names.join(", ")));
    }
    Some((machine, given.into_inner()))
}

fn what(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    word: &str,
    lasts: Option<Ns>,
    cluster: &Cluster,
    places: &Places,
) -> Option<What> {
    let hosts = machines_of(faults, table, word, places);
    let delay = table.duration(faults, "delay").map(|delay| ns(delay.into_inner()));
    let what = match word {
        "power-off" => What::PowerOff(hosts),
        "power-on" => What::PowerOn(hosts),
        "freeze" => What::Freeze(hosts),
        "network-off" => return network_off(faults, table, places),
        "network-on" => What::NetworkOn(nodes(faults, table, "hosts", places)),
        "loss" => What::Loss(table.integer(faults, "percent", 1..100)?.into_inner() * 10_000),
        "slow" => What::Slow(delay?),
        "agent-stall" => What::AgentStall(hosts),
        "agent-kill" => What::AgentKill(hosts),
        "agent-stop" => What::AgentStop(hosts),
        "reboot" => What::Reboot(hosts),
        "shutdown" => What::Shutdown(hosts),
        "suspend" => What::Suspend(hosts, table.boolean(faults, "announced").unwrap_or(true)),
        "flush" => What::Flush(hosts),
        "service-crash" | "service-hang" | "service-repair" => {
            let cure = table.choice(faults, "cure", CURES).unwrap_or(Cure::Restart);
            let (machine, name) = service(faults, table, cluster, places)?;
            let health = match word {
                "service-crash" => Health::Gone(cure),
                "service-hang" => Health::Hung(cure),
                _ => Health::Good,
            };
            What::Service(machine, name, health)
        }
        "double-crash" => {
            let target = &cluster.targets[&known_server(faults, table, "server", cluster)?];
            What::DoubleCrash(places.machine(target.backup.agent.as_str())?, target.backup.domain.clone())
        }
        "libvirt-hang" => What::LibvirtTrouble(hosts, Libvirt::Hangs),
        "libvirt-slow" => What::LibvirtTrouble(hosts, Libvirt::Slow(delay?)),
        "libvirt-fail" => What::LibvirtTrouble(hosts, Libvirt::Fails),
        "power-reads-off" => What::PowerReads(hosts, true),
        "power-reads-on" => What::PowerReads(hosts, false),
        "announcements-lost" => What::AnnouncementsLost(hosts),
        "stranger" => return stranger(faults, table, cluster),
        "coordinator-kill" => What::CoordinatorKill,
        "coordinator-start" => What::CoordinatorStart,
        "coordinator-stall" => What::CoordinatorStall,
        "sif-kill" => What::SifKill(table.boolean(faults, "lose").unwrap_or_default()),
        "sif-start" => What::SifStart,
        "maintenance" | "disarm" | "end-maintenance" | "arm" => {
            let scope = scope(faults, table, cluster)?;
            let reason = table.string(faults, "reason").map(Given::into_inner).unwrap_or_default();
            What::Operator(match word {
                "maintenance" | "disarm" => Operator::Order(scope, reason, lasts),
                _ => Operator::Lift(scope),
            })
        }
        "failover" | "failback" => {
            let server = known_server(faults, table, "server", cluster)?;
            let force = table.boolean(faults, "force").unwrap_or_default();
            What::Operator(Operator::Move(server, word == "failback", force))
        }
        _ => return None,
    };
    Some(what)
}

/// Of an event that has them and is not about the network alone.
fn machines_of(faults: &mut Faults<'_>, table: &Table<'_, '_>, word: &str, places: &Places) -> Vec<usize> {
    if !table.has("hosts") || word.starts_with("network") {
        return Vec::new();
    }
    let hosts = machines(faults, table, places);
    let seated = hosts.iter().any(|host| places.houses(*host));
    if word == "suspend" && seated {
        let text = format!("{}: the coordinator or SIF lives there: such a machine does not sleep", table.place);
        faults.at(table.span_of("hosts"), text);
    }
    hosts
}

fn nodes(faults: &mut Faults<'_>, table: &Table<'_, '_>, key: &str, places: &Places) -> u64 {
    let known: Vec<&str> = places.nodes().collect();
    named(faults, table, key, &known, |name| places.node(name)).into_iter().fold(0, |all, node| all | node)
}

fn network_off(faults: &mut Faults<'_>, table: &Table<'_, '_>, places: &Places) -> Option<What> {
    let hosts = nodes(faults, table, "hosts", places);
    let others = if table.has("from") { nodes(faults, table, "from", places) } else { places.node("all")? };
    let (reached, heard) = table.choice(faults, "direction", DIRECTIONS).unwrap_or((true, true));
    let mut cuts = Vec::new();
    if reached {
        cuts.push((others, hosts));
    }
    if heard {
        cuts.push((hosts, others));
    }
    Some(What::NetworkOff(hosts, cuts))
}

fn stranger(faults: &mut Faults<'_>, table: &Table<'_, '_>, cluster: &Cluster) -> Option<What> {
    let vips: Vec<Given<Vip>> = table.list(faults, "vips", A_VIP)?;
    for vip in vips.iter().filter(|vip| cluster.vips().all(|(known, _)| known != *vip.get_ref())) {
        faults.value(&table.place, "vips", vip.span(), "no server has it");
    }
    Some(What::Stranger(vips.into_iter().map(Given::into_inner).collect()))
}

fn scope(faults: &mut Faults<'_>, table: &Table<'_, '_>, cluster: &Cluster) -> Option<OrderScope> {
    if !table.has("scope") {
        return Some(OrderScope::All);
    }
    let given: Given<OrderScope> = table.parsed(faults, "scope", "use all, target:NAME or agent:NAME")?;
    let known = match given.get_ref() {
        OrderScope::All => true,
        OrderScope::Target(name) => cluster.targets.contains_key(name),
        OrderScope::Agent(name) => cluster.agents.contains_key(name),
    };
    if !known {
        faults.value(&table.place, "scope", given.span(), "there is no server or host of that name");
    }
    Some(given.into_inner())
}
