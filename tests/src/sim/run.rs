//! One seed: episodes of trouble, each followed by healing and a quiet time that need not be stepped through.

use super::checks::{Broken, Failure};
use super::clock::{MS, Ns, SEC, ns};
use super::faults::episode;
use super::net::Weather;
use super::world::{Sabotage, World};
use std::collections::BTreeMap;

/// How much, how hard.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Hours of the cluster's life per seed.
    pub hours: f64,
    /// At most so many faults together.
    pub intensity: u32,
    /// Mean time between episodes in hours.
    pub gap: f64,
    /// How much is lost while there is trouble.
    pub weather: Weather,
    /// A rule broken on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Default for Options {
    fn default() -> Self {
        Self { hours: 20.0, intensity: 4, gap: 1.0, weather: Weather::Bursts(1_000_000), sabotage: None }
    }
}

/// What came of a seed, or of many.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Hours of hosts' lives, quiet time included.
    pub host_hours: f64,
    /// Of these, stepped through.
    pub stepped_host_hours: f64,
    /// Processed.
    pub events: u64,
    /// Of trouble.
    pub episodes: u64,
    /// A VIP went from one machine to another.
    pub takeovers: u64,
    /// The kernel stopped serving by itself, in trouble.
    pub lapses: u64,
    /// Served part of the time stepped through, all VIPs together.
    pub served: Ns,
    /// Time stepped through, times VIPs.
    pub wanted: Ns,
    /// First broken promise.
    pub failure: Option<(u64, Failure)>,
    /// Every seed's first broken promise.
    pub failures: Vec<(u64, Failure)>,
    /// How often each promise was looked at.
    pub looks: BTreeMap<Broken, u64>,
    /// Times that everything was repaired and healed.
    pub heals: u64,
    /// The slowest of them.
    pub slowest_heal: Ns,
    /// All of them together.
    pub healing: Ns,
    /// Times that only the operator's fail-back healed a single writer.
    pub helped: u64,
    /// Of the host-hours, in clusters with a single writer.
    pub writer_host_hours: f64,
}

impl Outcome {
    /// Both together.
    pub fn add(&mut self, other: Outcome) {
        self.host_hours += other.host_hours;
        self.stepped_host_hours += other.stepped_host_hours;
        self.events += other.events;
        self.episodes += other.episodes;
        self.takeovers += other.takeovers;
        self.lapses += other.lapses;
        self.served += other.served;
        self.wanted += other.wanted;
        self.failures.extend(other.failures);
        for (broken, looks) in other.looks {
            *self.looks.entry(broken).or_default() += looks;
        }
        self.heals += other.heals;
        self.slowest_heal = self.slowest_heal.max(other.slowest_heal);
        self.healing += other.healing;
        self.helped += other.helped;
        self.writer_host_hours += other.writer_host_hours;
        let earlier = |failure: &(u64, Failure)| self.failure.as_ref().is_none_or(|(seed, _)| failure.0 < *seed);
        if let Some(failure) = other.failure.filter(earlier) {
            self.failure = Some(failure);
        }
    }
}

/// Everything is well again within this, or something does not heal: a long lease (30 s), a lost term (10 s), a wait
/// after a new one (7 s), a machine that is woken (10 s) may come one after another.
pub const HEALS_WITHIN: Ns = 150 * SEC;
/// A single writer whose coordinator died while it moved, or whose machine a fence has switched off, may wait for its
/// operator, who comes so late.
const HELPED_AFTER: Ns = 40 * SEC;
/// It must stay well for so long.
const STAYS_WELL: Ns = 1500 * MS;
/// Looked at so often.
const LOOK: Ns = 100 * MS;

/// The whole history of a seed.
#[must_use]
pub fn seed(seed: u64, options: &Options) -> Outcome {
    history(&mut World::new(seed, options.sabotage), seed, options)
}

/// The same with the last lines of its trace.
#[must_use]
pub fn traced(seed: u64, options: &Options, lines: usize) -> (Outcome, Vec<String>) {
    let mut world = World::new(seed, options.sabotage);
    world.keep_trace(lines);
    let outcome = history(&mut world, seed, options);
    let trace = world.trace().cloned().collect();
    (outcome, trace)
}

/// The same with the coordinators' journals, and the world as it is then.
#[must_use]
pub fn journalled(seed: u64, options: &Options) -> (Outcome, World) {
    let mut world = World::new(seed, options.sabotage);
    world.keep_journals();
    let outcome = history(&mut world, seed, options);
    (outcome, world)
}

fn history(world: &mut World, seed: u64, options: &Options) -> Outcome {
    let hour = 3600.0;
    let mut quiet = 0.0;
    let (mut episodes, mut heals) = (0, Vec::new());
    world.weather = options.weather;
    world.calm = false;
    heal(world);
    let tolerance = ns(world.cluster.timing.stall_tolerance()).saturating_sub(2 * MS);
    while world.checks.failure.is_none() && quiet < options.hours * hour {
        #[allow(clippy::cast_precision_loss)]
        let chance = (world.rng.range(1, 1_000_001) as f64) / 1_000_000.0;
        quiet += -chance.ln() * options.gap * hour;
        world.calm = true;
        let phase = world.rng.range(300 * MS, 2 * SEC);
        world.run(world.now + phase);
        let (faults, harmless) = episode(&mut world.rng, &world.shape, world.now, tolerance, options.intensity);
        episodes += 1;
        world.calm = harmless && options.weather.loss(None) == 0;
        let end = world.arrange(faults);
        world.run(end);
        world.repair();
        heals.extend(heal(world));
    }
    #[allow(clippy::cast_precision_loss)]
    let stepped = world.now as f64 / 1e9;
    #[allow(clippy::cast_precision_loss)]
    let hosts = world.machines.len() as f64 / hour;
    Outcome {
        host_hours: (quiet + stepped) * hosts,
        writer_host_hours: if world.fences() { (quiet + stepped) * hosts } else { 0.0 },
        stepped_host_hours: stepped * hosts,
        events: world.events,
        episodes,
        takeovers: world.checks.takeovers,
        lapses: world.checks.lapses,
        served: world.checks.served,
        wanted: world.now * world.vips.len() as u64,
        failure: world.checks.failure.clone().map(|failure| (seed, failure)),
        failures: world.checks.failure.iter().map(|failure| (seed, failure.clone())).collect(),
        looks: world.checks.looks.clone(),
        heals: heals.len() as u64,
        slowest_heal: heals.iter().copied().max().unwrap_or(0),
        healing: heals.iter().sum(),
        helped: world.helped,
    }
}

/// Until all is well: how long that took, if it came to that.
fn heal(world: &mut World) -> Option<Ns> {
    let began = world.now;
    let end = began + HEALS_WITHIN;
    let mut helps = began + HELPED_AFTER;
    let mut well_since = None;
    while world.checks.failure.is_none() {
        let next = world.now + LOOK;
        world.run(next);
        match ill(world) {
            None => {
                let since = *well_since.get_or_insert(world.now);
                if world.now - since >= STAYS_WELL {
                    return Some(since - began);
                }
            }
            Some(why) => {
                well_since = None;
                if world.fences() && world.now > helps {
                    helps += HELPED_AFTER;
                    world.helped += 1;
                    world.operator_moves_back();
                }
                if world.now > end {
                    world.checks.not_healed(world.now, why);
                    return None;
                }
            }
        }
    }
    None
}

/// Why the world is not as it should be.
pub(super) fn ill(world: &World) -> Option<String> {
    if world.sif.core.is_none() {
        return Some("SIF is down".into());
    }
    let mut running = world.coordinators.iter().enumerate().filter_map(|(slot, c)| c.as_ref().map(|c| (slot, c)));
    let (Some((slot, coordinator)), None) = (running.next(), running.next()) else {
        return Some("not one coordinator".into());
    };
    let time = world.coordinator_clocks[slot].at(world.now);
    if !coordinator.core.authority(time).1 {
        return Some("the coordinator has no term".into());
    }
    for (machine, name) in world.machines.iter().zip(&world.names) {
        if !machine.up() || machine.agent.as_ref().is_none_or(|agent| !agent.session || agent.stopping) {
            return Some(format!("{name} is not up or not connected"));
        }
    }
    if let Some(storm) = coordinator.core.storm_brake() {
        return Some(format!("storm brake: {storm}"));
    }
    for vip in &world.vips {
        let live: Vec<usize> = (0..world.machines.len())
            .filter(|machine| world.machines[*machine].kernel.live_until(world.now, *vip).is_some())
            .collect();
        let [holder] = live[..] else {
            return Some(format!("{vip} is live on {} machines", live.len()));
        };
        let Some(view) = coordinator.core.vip(*vip) else { continue };
        let owner = view.row.map(|row| row.owner);
        if owner.as_ref() != world.names.get(holder) || view.moving.is_some() || !view.held {
            return Some(format!(
                "{vip} is live on {}, but owned by {owner:?} ({:?})",
                world.names[holder], view.moving
            ));
        }
        let set = world.machines[holder].kernel.elements.get(vip).map_or(0, |elements| elements.set);
        if world.now - set > 2 * ns(world.cluster.timing.renewal) {
            return Some(format!("{vip} on {} is not renewed", world.names[holder]));
        }
        let views = |machine: &super::machine::Machine| {
            machine.agent.as_ref().is_some_and(|agent| agent.owner.vips().any(|view| view.vip == *vip))
        };
        if world.machines.iter().filter(|machine| views(machine)).count() != 1 {
            return Some(format!("{vip}: more than its owner believe in it"));
        }
    }
    if let Some(why) = world.writes_without_lease() {
        return Some(why);
    }
    for name in world.cluster.targets.keys() {
        let Some(target) = coordinator.core.target(name) else { continue };
        let rests = match target.mode {
            "regular" | "ended" => true,
            "target-server-recovery" => target.step == "moved-by-operator",
            _ => false,
        };
        if !rests {
            return Some(format!("{name} is in mode {} ({})", target.mode, target.detail));
        }
    }
    None
}
