//! A scenario file → [`Scenario`]: every fault found at once, with its line.

use super::event::event;
use super::expect::{Expect, read_expect};
use super::keys;
use super::places::{MACHINES, Places};
use super::{Ends, Facts, Scenario, json};
use crate::sim::checks::PROMISES;
use crate::sim::clock::{Ns, SEC, ns};
use kage_coordinator_core::config::{
    Cluster, ConfigError, Fault,
    keys::QUARANTINE,
    read::{Faults, Given, Table, nearest},
};
use kage_coordinator_core::probe::PRESETS;
use kage_types::{AgentId, TargetName, Vip};
use std::{collections::BTreeMap, ops::Range, path::Path};
use toml::de::{DeTable, DeValue};

pub(super) const A_NAME: &str =
    "no name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit";
pub(super) const A_VIP: &str = "no IP address such as \"192.0.2.100\"";
const LONGEST: Ns = 24 * 3600 * SEC;
const WORDS: &[(&str, &str)] = &[("thesis", "thesis"), ("normal", "normal"), ("fast", "fast")];
const LOSSES: &[(&str, &str)] = &[("voters", "voters"), ("keep", "keep"), ("lapse", "lapse")];
const ENDS: &[(&str, Ends)] = &[("serving", Ends::Serving), ("well", Ends::Well), ("any", Ends::Any)];
const FENCES: &[(&str, &str)] = &[("none", "none"), ("power", "power"), ("storage", "storage")];
const FAILBACKS: &[(&str, &str)] = &[("auto", "auto"), ("manual", "manual"), ("keep", "keep")];
const POWERS: &[(&str, u8)] = &[("none", 0), ("status", 1), ("control", 2)];
const STATES: &[(&str, bool)] = &[("on", false), ("off", true)];

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
    let given = [seat(faults, root, "coordinator"), seat(faults, root, "sif")];
    let cluster = cluster(faults, root, &hosts, &given, beside)?;
    let seats = if root.has("cluster") { housed(faults, root, &hosts, &cluster) } else { given };
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
    /// Where it stands, and a key that a cluster.toml has.
    span: Range<usize>,
    configures: Option<&'static str>,
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
            span: table.span.clone(),
            configures: ["voter", "failure_domain", "power"].into_iter().find(|key| table.has(key)),
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

/// With a cluster.toml: where coordinator and SIF live follows from their addresses, and hosts are its agents.
fn housed(
    faults: &mut Faults<'_>,
    root: &Table<'_, '_>,
    hosts: &BTreeMap<AgentId, Host>,
    cluster: &Cluster,
) -> [Option<AgentId>; 2] {
    for key in ["coordinator", "sif"].into_iter().filter(|key| root.has(key)) {
        let text = format!("top level: {key} has no meaning with `cluster`: it lives where its address is");
        faults.at(root.span_of(key), text);
    }
    for (name, host) in hosts {
        if !cluster.agents.contains_key(name) {
            faults.at(host.span.clone(), format!("[[host]] {name}: the cluster has no agent of that name"));
        }
        if let Some(key) = host.configures {
            faults
                .at(host.span.clone(), format!("[[host]] {name}: {key} has no meaning with `cluster`, which says so"));
        }
    }
    [cluster.coordinator.ip(), cluster.sif.ip()].map(|address| {
        let there = cluster.agents.iter().find(|(_, machine)| machine.address.ip() == address);
        there.map(|(name, _)| name.clone())
    })
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
        if root.has("quarantine") {
            faults.value(&root.place, "cluster", path.span(), "its [quarantine] is what counts: leave it out here");
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
    let mut text =
        format!("[cluster]\nname = \"scenario\"\nprofile = \"{profile}\"\non_coordinator_loss = \"{loss}\"\n");
    let address = |seat: &Option<AgentId>, other: &str| {
        let index = seat.as_ref().and_then(|seat| hosts.keys().position(|name| name == seat));
        index.map_or_else(|| other.to_owned(), |index| format!("10.77.0.{}", index + 11))
    };
    text += &quarantine(faults, root);
    text += &format!("[coordinator]\nlisten = \"{}:7700\"\n", address(&seats[0], "10.77.0.3"));
    if servers.contains("writer_fence = \"storage\"") {
        text += "storage_fence = [\"out\"]\nstorage_unfence = [\"in\"]\n";
    }
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
        text += ["", "power_status = [\"read\"]\n", "power_status = [\"read\"]\npower_off = [\"off\"]\n"]
            [usize::from(host.power)];
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

/// `[quarantine]` as in cluster.toml.
fn quarantine(faults: &mut Faults<'_>, root: &Table<'_, '_>) -> String {
    let Some(table) = root.table(faults, "quarantine", &QUARANTINE) else { return String::new() };
    let lapses = table.integer(faults, "lapses", 0..1001).map(|lapses| format!("lapses = {}\n", lapses.get_ref()));
    let times = ["within", "hold", "hold_limit"].map(|key| {
        let time = table.duration(faults, key);
        time.map(|time| format!("{key} = \"{}ms\"\n", time.get_ref().as_millis()))
    });
    let lines: Vec<String> = lapses.into_iter().chain(times.into_iter().flatten()).collect();
    format!("[quarantine]\n{}", lines.concat())
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
    let hours: Option<Vec<Given<String>>> = table.list(faults, "failback_hours", "");
    let fence = table.choice(faults, "writer_fence", FENCES);
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
    if let Some(hours) = hours {
        let hours: Vec<&String> = hours.iter().map(Given::get_ref).collect();
        text += &format!("failback_hours = {hours:?}\n");
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
        if let Some(fence) = fence {
            text += &format!("single_writer = true\nwriter_fence = \"{fence}\"\n");
        }
    }
    text
}
