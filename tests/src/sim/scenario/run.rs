//! One run of a scenario.

use super::expect::Seen;
use super::{Ends, Scenario, places};
use crate::sim::checks::Broken;
use crate::sim::clock::{MS, Ns, SEC};
use crate::sim::outcome::Outcome;
use crate::sim::record::Record;
use crate::sim::rng::Rng;
use crate::sim::run::ill;
use crate::sim::world::{Chances, Sabotage, World};

/// Everything is up and served within this, or the scenario does not begin.
const BEGINS_WITHIN: Ns = 180 * SEC;
/// And has been for so long.
const STEADY: Ns = 3 * SEC;

/// Run it by this seed; also the last lines of its trace.
///
/// # Errors
/// If it never comes to the beginning: why.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    sabotage: Option<Sabotage>,
    trace: usize,
) -> Result<(Outcome, Vec<String>), String> {
    let mut world = world(scenario, seed, sabotage);
    if trace > 0 {
        world.keep_trace(trace);
    }
    begin(&mut world)?;
    let zero = world.now;
    let boots: Vec<u64> = world.machines.iter().map(|machine| machine.boots).collect();
    // What went wrong on the way here went wrong for good.
    world.calm = true;
    world.record = Some(Box::new(Record::since(zero)));
    world.observe();
    world.arrange_lines();
    let end = zero + scenario.duration;
    while world.step(end) {
        world.observe();
        if let Some(record) = &world.record {
            world.calm = world.now >= record.calm_from;
        }
    }
    world.observe();
    world.checks.looked(Broken::NotHealed);
    if let Some(why) = not_as_it_should_end(&world, scenario.ends) {
        world.checks.not_healed(end, why);
    }
    let boots: Vec<u64> = world.machines.iter().zip(boots).map(|(machine, before)| machine.boots - before).collect();
    let record = world.record.take().unwrap_or_default();
    let seen = Seen { record: &record, cluster: &world.cluster, names: &world.names, boots: &boots, zero, end };
    let outcome = Outcome::of(scenario, seed, &world, &seen);
    Ok((outcome, world.trace().cloned().collect()))
}

fn world(scenario: &Scenario, seed: u64, sabotage: Option<Sabotage>) -> World {
    let mut world = World::of(scenario.cluster.clone(), Rng::new(seed), sabotage);
    let names: Vec<String> = world.names.iter().map(ToString::to_string).collect();
    world.net = places::seated(&names, &scenario.seats);
    world.chances = Chances { libvirt_fails: 0, disk_fails: 0, storage_fails: 0, keeps: 100 };
    world.probe_sees = true;
    world.checks.safety_only = false;
    world.lines = scenario.lines.clone();
    for (index, name) in world.names.iter().enumerate() {
        let machine = &mut world.machines[index];
        machine.boot_takes = Some(10 * SEC);
        if let Some(facts) = scenario.facts.get(name) {
            machine.boot_takes = Some(facts.boot);
            machine.wakes = facts.wakes;
            machine.on = !facts.off;
        }
    }
    world.calm = false;
    world.start();
    world
}

/// Until all that has power is up and every VIP is served.
fn begin(world: &mut World) -> Result<(), String> {
    let blank = Record::default();
    let mut since = None;
    loop {
        let next = world.now + 100 * MS;
        while world.step(next) {}
        let why = not_begun(world, &blank);
        if let Some(failure) = &world.checks.failure {
            return Err(format!("before its beginning: {failure}"));
        }
        match why {
            None if since.is_some_and(|since| world.now - since >= STEADY) => return Ok(()),
            None => {
                since.get_or_insert(world.now);
            }
            Some(why) if world.now > BEGINS_WITHIN => {
                return Err(format!("not begun: {} s after everything was started {why}", BEGINS_WITHIN / SEC));
            }
            Some(_) => since = None,
        }
    }
}

fn not_begun(world: &World, blank: &Record) -> Option<String> {
    let Some(coordinator) = &world.coordinators[0] else { return Some("there is no coordinator".into()) };
    if !coordinator.core.authority(world.coordinator_clocks[0].at(world.now)).1 {
        return Some("the coordinator has no term".into());
    }
    for (machine, name) in world.machines.iter().zip(&world.names).filter(|(machine, _)| machine.on) {
        if machine.agent.as_ref().is_none_or(|agent| !agent.session) {
            return Some(format!("{name} is not connected"));
        }
    }
    let dark = world.vips.iter().find(|vip| !world.serves(**vip, blank));
    dark.map(|vip| format!("{vip} is not served"))
}

fn not_as_it_should_end(world: &World, ends: Ends) -> Option<String> {
    let blank = Record::default();
    match ends {
        Ends::Any => None,
        Ends::Well => ill(world),
        Ends::Serving => {
            let record = world.record.as_deref().unwrap_or(&blank);
            let dark = world.vips.iter().find(|vip| !world.serves(**vip, record));
            dark.map(|vip| format!("{vip} is not served"))
        }
    }
}
