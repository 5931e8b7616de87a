//! What a scenario expects, and whether it was so.

use super::event::{known_server, word};
use super::keys;
use super::places::Places;
use crate::sim::clock::{MS, Ns, ns};
use crate::sim::record::Record;
use kage_coordinator_core::config::{
    Cluster,
    read::{Faults, Given, Table},
};
use kage_coordinator_core::{AgentCommand, Severity};
use kage_types::{TargetName, Vip};

/// One expectation.
#[derive(Clone, Debug)]
pub struct Expect {
    /// Where it stands in the file.
    pub number: usize,
    /// In words.
    pub text: String,
    /// Of these servers.
    servers: Vec<TargetName>,
    /// In this time.
    from: Ns,
    until: Ns,
    wanted: Wanted,
}

/// What.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// No VIP opens on another machine.
    NoTakeover,
    /// One opens on its double's host.
    Takeover,
    /// At `until`: open there; nowhere.
    Owner(Option<usize>),
    /// At `until`: served.
    Served(bool),
    /// The longest outage.
    Outage(Ns, Ns),
    /// Two machines' packets passed.
    TwoOwners(Ns),
    /// Said: kind, alerts only, wanted.
    Said(Option<String>, bool, bool),
    /// Boots of a machine.
    Boots(usize, usize),
    /// At `until`.
    Power(usize, String),
    /// At `until`.
    Mode(String),
    /// Restarts of its services, or reboots.
    Commands(bool, usize),
    /// Of the last operator's command.
    Answer(String),
}

const POWERS: &[&str] = &["on", "off", "asleep", "frozen"];

pub(super) fn read_expect(
    faults: &mut Faults<'_>,
    table: &Table<'_, '_>,
    cluster: &Cluster,
    places: &Places,
) -> Option<Expect> {
    let word = word(faults, table, keys::EXPECTATIONS, &["what"], keys::EXPECT.keys)?;
    let before = faults.count();
    let server = known_server(faults, table, "server", cluster);
    let servers = server.map_or_else(|| cluster.targets.keys().cloned().collect(), |server| vec![server]);
    let mut time = |key, other| table.duration(faults, key).map_or(other, |time| ns(time.into_inner()));
    let (from, until) = (time("from", 0), time("until", Ns::MAX));
    let until = time("at", until);
    let wanted = wanted(faults, table, word.name, places);
    if faults.count() > before {
        return None;
    }
    let mut text = word.name.to_owned();
    for key in word.needs.iter().chain(word.may).filter(|key| table.has(key)) {
        text += &format!(" {key} {}", faults.source(table.span_of(key)));
    }
    let number = faults.line(table.span.start);
    Some(Expect { number, text, servers, from, until, wanted: wanted? })
}

fn wanted(faults: &mut Faults<'_>, table: &Table<'_, '_>, word: &str, places: &Places) -> Option<Wanted> {
    let wanted = match word {
        "no-takeover" => Wanted::NoTakeover,
        "takeover" => Wanted::Takeover,
        "owner" => match is(faults, table)?.as_str() {
            "nobody" => Wanted::Owner(None),
            name => Wanted::Owner(Some(host(faults, table, "is", name, places)?)),
        },
        "served" => Wanted::Served(true),
        "not-served" => Wanted::Served(false),
        "outage" => {
            let min = table.duration(faults, "min").map_or(0, |min| ns(min.into_inner()));
            Wanted::Outage(min, ns(table.duration(faults, "max")?.into_inner()))
        }
        "two-owners" => Wanted::TwoOwners(ns(table.duration(faults, "max")?.into_inner())),
        "event" | "alert" | "no-alert" => {
            let kind = table.string(faults, "kind").map(Given::into_inner);
            Wanted::Said(kind, word != "event", word != "no-alert")
        }
        "boots" => {
            let name = table.string(faults, "host")?.into_inner();
            Wanted::Boots(host(faults, table, "host", &name, places)?, count(faults, table)?)
        }
        "power" => {
            let name = table.string(faults, "host")?.into_inner();
            let state = is(faults, table)?;
            if !POWERS.contains(&state.as_str()) {
                faults.value(&table.place, "is", table.span_of("is"), format!("none of {}", POWERS.join(", ")));
            }
            Wanted::Power(host(faults, table, "host", &name, places)?, state)
        }
        "mode" => Wanted::Mode(is(faults, table)?),
        "restarts" => Wanted::Commands(true, count(faults, table)?),
        "reboots" => Wanted::Commands(false, count(faults, table)?),
        "answer" => Wanted::Answer(is(faults, table)?),
        _ => return None,
    };
    Some(wanted)
}

fn is(faults: &mut Faults<'_>, table: &Table<'_, '_>) -> Option<String> {
    table.string(faults, "is").map(Given::into_inner)
}

fn count(faults: &mut Faults<'_>, table: &Table<'_, '_>) -> Option<usize> {
    table.integer(faults, "is", 0..100_000).and_then(|count| usize::try_from(count.into_inner()).ok())
}

fn host(faults: &mut Faults<'_>, table: &Table<'_, '_>, key: &str, name: &str, places: &Places) -> Option<usize> {
    let found = places.machine(name);
    if found.is_none() {
        faults.value(&table.place, key, table.span_of(key), "there is no host of that name");
    }
    found
}

/// What is judged.
pub(crate) struct Seen<'w> {
    pub record: &'w Record,
    pub cluster: &'w Cluster,
    pub names: &'w [kage_types::AgentId],
    pub boots: &'w [u64],
    pub zero: Ns,
    pub end: Ns,
}

impl Seen<'_> {
    fn ms(&self, time: Ns) -> u64 {
        time.saturating_sub(self.zero) / MS
    }

    /// Times without service within a window.
    pub fn outages(&self, vip: Vip, from: Ns, until: Ns) -> Vec<(Ns, Ns)> {
        let mut outages = Vec::new();
        let mut dark = from;
        for (begin, end) in self.record.served.get(&vip).into_iter().flatten() {
            if *begin > dark && *begin <= until {
                outages.push((dark, *begin));
            }
            dark = dark.max(end.unwrap_or(Ns::MAX));
            if *begin > until {
                break;
            }
        }
        if dark < until {
            outages.push((dark, until));
        }
        outages
    }

    fn owner(&self, vip: Vip, at: Ns) -> Option<usize> {
        let there = |owned: &&crate::sim::record::Owned| owned.from <= at && owned.to.is_none_or(|to| to > at);
        self.record.owners.get(&vip)?.iter().find(there).map(|owned| owned.machine)
    }

    /// Openings on another machine than the one before: when, from, to.
    pub fn moves(&self, vip: Vip) -> impl Iterator<Item = (Ns, usize, usize, Ns)> {
        let owned = self.record.owners.get(&vip).map(Vec::as_slice).unwrap_or_default();
        let pairs = owned.windows(2).filter(|pair| pair[0].machine != pair[1].machine);
        pairs.map(|pair| (pair[1].from, pair[0].machine, pair[1].machine, pair[0].to.unwrap_or(pair[1].from)))
    }
}

impl Expect {
    /// Was it so? And what was found.
    pub(crate) fn judge(&self, seen: &Seen<'_>) -> (bool, String) {
        let (from, until) = (seen.zero + self.from, seen.zero.saturating_add(self.until).min(seen.end));
        let vips = || {
            let targets = self.servers.iter().filter_map(|server| seen.cluster.targets.get(server));
            targets.flat_map(|target| target.vips.iter().map(move |vip| (*vip, target)))
        };
        let name = |machine: usize| seen.names[machine].as_str();
        match &self.wanted {
            Wanted::NoTakeover => {
                let found: Vec<String> = vips()
                    .flat_map(|(vip, _)| seen.moves(vip).map(move |moved| (vip, moved)))
                    .filter(|(_, (at, ..))| (from..=until).contains(at))
                    .map(|(vip, (at, old, new, _))| {
                        format!("{vip}: {} to {} at {} ms", name(old), name(new), seen.ms(at))
                    })
                    .collect();
                (found.is_empty(), if found.is_empty() { "none".into() } else { found.join("; ") })
            }
            Wanted::Takeover => {
                let found = vips().find_map(|(vip, target)| {
                    let mut there = seen.moves(vip).filter(|(at, _, new, _)| {
                        (from..=until).contains(at) && seen.names[*new] == target.backup.agent
                    });
                    there.next().map(|(at, ..)| format!("{vip} at {} ms", seen.ms(at)))
                });
                (found.is_some(), found.unwrap_or_else(|| "none".into()))
            }
            Wanted::Owner(owner) => {
                let found: Vec<Option<usize>> = vips().map(|(vip, _)| seen.owner(vip, until)).collect();
                let words = found.iter().map(|found| found.map_or("nobody", name)).collect::<Vec<_>>();
                (found.iter().all(|found| found == owner), words.join(", "))
            }
            Wanted::Served(wanted) => {
                let served = |vip| {
                    let spans = seen.record.served.get(&vip).into_iter().flatten();
                    spans.into_iter().any(|(begin, end)| *begin <= until && end.is_none_or(|end| end > until))
                };
                let dark: Vec<String> =
                    vips().filter(|(vip, _)| !served(*vip)).map(|(vip, _)| vip.to_string()).collect();
                let good = if *wanted { dark.is_empty() } else { dark.len() == vips().count() };
                (good, if dark.is_empty() { "served".into() } else { format!("not served: {}", dark.join(", ")) })
            }
            Wanted::Outage(min, max) => {
                let all = vips().flat_map(|(vip, _)| seen.outages(vip, from, until));
                let (length, at) = all.map(|(begin, end)| (end - begin, begin)).max().unwrap_or((0, from));
                ((*min..=*max).contains(&length), format!("{} ms from {} ms on", length / MS, seen.ms(at)))
            }
            Wanted::TwoOwners(max) => {
                let longest = vips().filter_map(|(vip, _)| seen.record.doubled.get(&vip)).max().copied().unwrap_or(0);
                (longest <= *max, format!("{} ms", longest / MS))
            }
            Wanted::Said(kind, alerts, wanted) => {
                let one = self.servers.len() < seen.cluster.targets.len() || seen.cluster.targets.len() == 1;
                let about = |target: &Option<TargetName>| {
                    target
                        .as_ref()
                        .map_or(!one || self.text.find(" server ").is_none(), |target| self.servers.contains(target))
                };
                let found = seen.record.said.iter().find(|(at, note)| {
                    (from..=until).contains(at)
                        && kind.as_ref().is_none_or(|kind| *kind == note.kind)
                        && (!alerts || note.severity == Severity::Alert)
                        && about(&note.target)
                });
                let words = found.map(|(at, note)| format!("{} at {} ms: {}", note.kind, seen.ms(*at), note.text));
                (found.is_some() == *wanted, words.unwrap_or_else(|| "none".into()))
            }
            Wanted::Boots(machine, count) => {
                let boots = usize::try_from(seen.boots[*machine]).unwrap_or(usize::MAX);
                (boots == *count, boots.to_string())
            }
            Wanted::Power(machine, wanted) => {
                let mut states = seen.record.power.get(*machine).into_iter().flatten();
                let state = states.rfind(|(at, _)| *at <= until).map_or("unknown", |(_, state)| state);
                (state == wanted, state.to_owned())
            }
            Wanted::Mode(wanted) => {
                let mut modes =
                    self.servers.first().and_then(|server| seen.record.modes.get(server)).into_iter().flatten();
                let mode = modes.rfind(|(at, _)| *at <= until).map_or("unknown", |(_, mode)| mode.as_str());
                (mode == wanted || mode.split('/').next() == Some(wanted), mode.to_owned())
            }
            Wanted::Commands(restarts, count) => {
                let there = |agent: &kage_types::AgentId| {
                    let mut targets = self.servers.iter().filter_map(|server| seen.cluster.targets.get(server));
                    targets.any(|target| target.agent == *agent)
                };
                let commands = seen.record.commands.iter().filter(|(_, agent, command)| {
                    let kind = match command {
                        AgentCommand::RestartService { .. } => *restarts,
                        AgentCommand::Reboot => !*restarts,
                        AgentCommand::Hold { .. }
                        | AgentCommand::Prepare { .. }
                        | AgentCommand::Release { .. }
                        | AgentCommand::ResumeVm { .. }
                        | AgentCommand::PauseVm { .. }
                        | AgentCommand::StartVm { .. }
                        | AgentCommand::DestroyVm { .. }
                        | AgentCommand::RebootVm { .. }
                        | AgentCommand::MigrateVm { .. }
                        | AgentCommand::FindVm { .. }
                        | AgentCommand::Wake { .. }
                        | AgentCommand::ProbeVip { .. } => false,
                    };
                    kind && there(agent)
                });
                let found = commands.count();
                (found == *count, found.to_string())
            }
            Wanted::Answer(wanted) => {
                let last = seen.record.answers.values().filter(|(at, _)| *at <= until).max_by_key(|(at, _)| *at);
                let text = match last {
                    Some((_, Ok(()))) => "done".to_owned(),
                    Some((_, Err(reason))) => reason.clone(),
                    None => "none".to_owned(),
                };
                (text.contains(wanted.as_str()), text)
            }
        }
    }
}
