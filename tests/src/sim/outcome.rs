//! What came of a scenario, as JSON.

use super::checks::PROMISES;
use super::clock::{MS, Ns};
use super::scenario::{Scenario, expect_seen as Seen};
use super::world::World;
use kage_coordinator_core::Severity;
use kage_types::Vip;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything; times in milliseconds since the beginning.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// Its file.
    pub file: String,
    /// By which it ran.
    pub seed: u64,
    /// No promise and no expectation was broken.
    pub passed: bool,
    /// How long it went on.
    pub duration_ms: u64,
    /// By name.
    pub servers: BTreeMap<String, Server>,
    /// VIPs that opened on another machine, in order.
    pub takeovers: Vec<Takeover>,
    /// Power states of each host, as they changed.
    pub power: BTreeMap<String, Vec<Change>>,
    /// What the coordinator alerted about.
    pub alerts: Vec<Said>,
    /// All that it said.
    pub events: Vec<Said>,
    /// How the operator's commands ended.
    pub commands: Vec<Answer>,
    /// Each promise, checked after every event.
    pub promises: Vec<Promise>,
    /// Each `[[expect]]`.
    pub expectations: Vec<Expectation>,
}

/// One server at the end, and its VIPs all along.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// Host, with the domain if it is its double; nowhere: none, or its VIPs are apart.
    pub runs_on: Option<String>,
    /// Of its supervision.
    pub mode: String,
    /// By address.
    pub vips: BTreeMap<String, VipHistory>,
}

/// One VIP.
#[derive(Clone, Debug, Serialize)]
pub struct VipHistory {
    /// Whose packets passed.
    pub owners: Vec<Owner>,
    /// When clients did not get what they wanted.
    pub outages: Vec<Outage>,
    /// Of these the longest.
    pub longest_outage_ms: u64,
}

/// One machine's time with it.
#[derive(Clone, Debug, Serialize)]
pub struct Owner {
    /// Which.
    pub host: String,
    /// Its epoch.
    pub epoch: u64,
    /// Since.
    pub from_ms: u64,
    /// Not any more since; none: at the end.
    pub to_ms: Option<u64>,
}

/// A time without service.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Outage {
    /// Since.
    pub from_ms: u64,
    /// Until.
    pub to_ms: u64,
}

/// A VIP opened elsewhere.
#[derive(Clone, Debug, Serialize)]
pub struct Takeover {
    /// When.
    pub at_ms: u64,
    /// Whose.
    pub server: String,
    /// Which.
    pub vip: String,
    /// The machine before.
    pub from: String,
    /// The machine since.
    pub to: String,
    /// Nobody's packets passed for so long.
    pub gap_ms: u64,
    /// What the coordinator said of it.
    pub reason: String,
}

/// A state since then.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// When.
    pub at_ms: u64,
    /// on, off, asleep, frozen
    pub state: String,
}

/// A line of the coordinator.
#[derive(Clone, Debug, Serialize)]
pub struct Said {
    /// When.
    pub at_ms: u64,
    /// About which.
    pub server: Option<String>,
    /// info, warning, alert
    pub severity: String,
    /// A stable word: docs/events.md.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// An operator's command.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// When it ended.
    pub at_ms: u64,
    /// Its line in the file.
    pub line: usize,
    /// done, or why not.
    pub answer: String,
}

/// A promise.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    /// A word.
    pub name: String,
    /// What it means.
    pub promise: String,
    /// Held; or broken, where the scenario says that it may be.
    pub passed: bool,
    /// The scenario says that it may be broken.
    pub breaks: bool,
    /// So often there was something to check; where it is no count of its own, the events.
    pub checked: u64,
    /// What broke it, and when.
    pub broken_by: Option<String>,
}

/// An expectation.
#[derive(Clone, Debug, Serialize)]
pub struct Expectation {
    /// Its line in the file.
    pub line: usize,
    /// In words.
    pub expect: String,
    /// It was so.
    pub passed: bool,
    /// What was found.
    pub found: String,
}

/// Kinds of events that say why a VIP moves.
const REASONS: [&str; 9] = [
    "confirmed",
    "backup-server",
    "restarts-used-up",
    "failover",
    "failback",
    "returning",
    "going-down",
    "adopted",
    "double-lost",
];

impl Outcome {
    pub(super) fn of(scenario: &Scenario, seed: u64, world: &World, seen: &Seen<'_>) -> Self {
        let ms = |time: Ns| time.saturating_sub(seen.zero) / MS;
        let said = |(at, note): &(Ns, kage_coordinator_core::Note)| Said {
            at_ms: ms(*at),
            server: note.target.as_ref().map(ToString::to_string),
            severity: note.severity.as_str().into(),
            kind: note.kind.clone(),
            text: note.text.clone(),
        };
        let alert = |(_, note): &&(Ns, kage_coordinator_core::Note)| note.severity == Severity::Alert;
        let changes = |changes: &Vec<(Ns, &'static str)>| {
            changes.iter().map(|(at, state)| Change { at_ms: ms(*at), state: (*state).into() }).collect()
        };
        let power = seen.names.iter().map(ToString::to_string).zip(seen.record.power.iter().map(changes)).collect();
        let answers = seen.record.answers.iter().map(|(command, (at, result))| Answer {
            at_ms: ms(*at),
            line: usize::try_from(*command).ok().and_then(|at| world.lines.get(at - 1)).map_or(0, |line| line.number),
            answer: result.as_ref().map_or_else(Clone::clone, |()| "done".into()),
        });
        let promises: Vec<Promise> = PROMISES
            .iter()
            .map(|(broken, word, promise)| {
                let failure = world.checks.failures.get(broken);
                let breaks = scenario.breaks.contains(broken);
                Promise {
                    name: (*word).into(),
                    promise: (*promise).into(),
                    passed: failure.is_none() || breaks,
                    breaks,
                    checked: world.checks.looks.get(broken).copied().unwrap_or(0),
                    broken_by: failure.map(|failure| format!("at {} ms: {}", ms(failure.at), failure.text)),
                }
            })
            .collect();
        let expectations: Vec<Expectation> = scenario
            .expects
            .iter()
            .map(|expect| {
                let (passed, found) = expect.judge(seen);
                Expectation { line: expect.number, expect: expect.text.clone(), passed, found }
            })
            .collect();
        let good = promises.iter().all(|promise| promise.passed) && expectations.iter().all(|expect| expect.passed);
        Self {
            scenario: scenario.name.clone(),
            file: scenario.file.clone(),
            seed,
            passed: good,
            duration_ms: scenario.duration / MS,
            servers: servers(world, seen),
            takeovers: takeovers(world, seen),
            power,
            alerts: seen.record.said.iter().filter(alert).map(said).collect(),
            events: seen.record.said.iter().map(said).collect(),
            commands: answers.collect(),
            promises,
            expectations,
        }
    }

    /// What was broken, in lines.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let promises = self.promises.iter().filter(|promise| !promise.passed).map(|promise| {
            let broken = promise.broken_by.as_deref().unwrap_or_default();
            format!("promise {} ({}) is broken {broken}", promise.name, promise.promise)
        });
        let expectations = self.expectations.iter().filter(|expect| !expect.passed);
        let expectations = expectations
            .map(|expect| format!("line {}: expected {}; found {}", expect.line, expect.expect, expect.found));
        promises.chain(expectations).collect()
    }
}

fn servers(world: &World, seen: &Seen<'_>) -> BTreeMap<String, Server> {
    let ms = |time: Ns| time.saturating_sub(seen.zero) / MS;
    let history = |vip: &Vip| {
        let owned = seen.record.owners.get(vip).into_iter().flatten();
        let owners = owned.map(|owned| Owner {
            host: seen.names[owned.machine].to_string(),
            epoch: owned.epoch.0,
            from_ms: ms(owned.from),
            to_ms: owned.to.map(ms),
        });
        let outages = seen.outages(*vip, seen.zero, seen.end);
        VipHistory {
            owners: owners.collect(),
            longest_outage_ms: outages.iter().map(|(from, to)| (to - from) / MS).max().unwrap_or(0),
            outages: outages.iter().map(|(from, to)| Outage { from_ms: ms(*from), to_ms: ms(*to) }).collect(),
        }
    };
    let server = |(name, target): (&kage_types::TargetName, &kage_coordinator_core::config::Target)| {
        let mut holders: Vec<Option<usize>> = target.vips.iter().map(|vip| world.holder(*vip)).collect();
        holders.dedup();
        let runs_on = match holders[..] {
            [Some(holder)] if seen.names[holder] == target.agent => Some(target.agent.to_string()),
            [Some(holder)] => Some(format!("{}/{}", seen.names[holder], target.backup.domain)),
            _ => None,
        };
        let modes = seen.record.modes.get(name).and_then(|modes| modes.last());
        let mode = modes.map_or_else(|| "unknown".to_owned(), |(_, mode)| mode.clone());
        let vips = target.vips.iter().map(|vip| (vip.to_string(), history(vip))).collect();
        (name.to_string(), Server { runs_on, mode, vips })
    };
    world.cluster.targets.iter().map(server).collect()
}

fn takeovers(world: &World, seen: &Seen<'_>) -> Vec<Takeover> {
    let ms = |time: Ns| time.saturating_sub(seen.zero) / MS;
    let mut takeovers = Vec::new();
    for (name, target) in &world.cluster.targets {
        for vip in &target.vips {
            for (at, from, to, closed) in seen.moves(*vip) {
                let why = seen.record.said.iter().rev().find(|(said, note)| {
                    let about = note.target.as_ref() == Some(name);
                    *said <= at && about && REASONS.contains(&note.kind.as_str())
                });
                takeovers.push(Takeover {
                    at_ms: ms(at),
                    server: name.to_string(),
                    vip: vip.to_string(),
                    from: seen.names[from].to_string(),
                    to: seen.names[to].to_string(),
                    gap_ms: at.saturating_sub(closed) / MS,
                    reason: why.map_or_else(String::new, |(_, note)| note.text.clone()),
                });
            }
        }
    }
    takeovers.sort_by_key(|takeover| takeover.at_ms);
    takeovers
}
