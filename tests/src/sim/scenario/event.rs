//! Reads `[[event]]`.

use super::Line;
use super::keys::{self, Word};
use super::places::Places;
use super::read::{A_NAME, A_VIP};
use super::what::{Libvirt, Operator, What};
use crate::sim::clock::{Ns, ns};
use crate::sim::machine::{Cure, Health};
use kage_coordinator_core::config::{
    Cluster,
    keys::Key,
    read::{Faults, Given, Table, nearest},
};
use kage_types::{OrderScope, ServiceName, TargetName, Vip};

const CURES: &[(&str, Cure)] = &[("restart", Cure::Restart), ("reboot", Cure::Reboot), ("nothing", Cure::Nothing)];
const DIRECTIONS: &[(&str, (bool, bool))] = &[("both", (true, true)), ("in", (true, false)), ("out", (false, true))];

/// The word, if there is such a one and it has its keys and no others.
pub(super) fn word<'w>(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    words: &'w [Word],
    always: &[&str],
    all: &[Key],
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

pub(super) fn event(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    cluster: &Cluster,
    places: &Places,
) -> Option<Line> {
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
                let hint =
                    near.map_or_else(|| format!("one of {}", known.join(", ")), |n| format!("did you mean {n:?}?"));
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
