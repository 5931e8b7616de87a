//! A day's load: no flapping, what it costs against always-on, and for how long too much was asked of too few.

use super::world::{Ms, Night, Power};
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// As configured by default, but for what a day of 24 hours needs.
const PSS: &str = "[pss]\nhost_memory = 256\n";
const HOUR: Ms = 3_600_000;
/// The load changes this often.
const STEP: Ms = 60_000;
/// From here on a member is overloaded, percent.
const OVERLOAD: u64 = 90;

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Day {
    /// Hours that were run.
    pub hours: u64,
    /// Transitions that ended, to Light and to Moderate.
    pub transitions: (u32, u32),
    /// Modelled: used, and had everything been awake.
    pub watt_hours: (f64, f64),
    /// Host-seconds asleep.
    pub asleep_s: u64,
    /// Member-seconds of 90 % and more.
    pub overload_s: u64,
    /// The longest that a virtual IP was without an answer in all, milliseconds.
    pub dark_ms: Ms,
}

/// Percent of one member: little at night, a peak before noon and one in the evening, with noise on it.
fn curve(minute: u64, noise: u64) -> u64 {
    let hour = (minute / 60) % 24;
    let base: u64 = match hour {
        0..=5 => 6,
        6 | 7 => 18,
        8 | 13 | 14 => 55,
        9..=12 => 95,
        15..=18 => 60,
        19..=21 => 85,
        _ => 12,
    };
    base + noise % (base / 4 + 2)
}

/// Days of it, from midnight on.
///
/// # Errors
/// The configuration's; something that must not be was.
pub fn day(seed: u64, hours: u64) -> Result<Day> {
    let mut night = Night::new(seed, PSS)?;
    if night.until(60_000, |night| night.held.keys().all(|vip| night.served(*vip))).is_none() {
        bail!("it does not start: {:?}", night.failure);
    }
    let before: BTreeMap<_, _> = night.dark.clone();
    let watts = |night: &Night| -> (f64, f64) {
        let of =
            |name: &kage_types::AgentId| night.cluster.hosts.get(name).and_then(|host| host.watts).unwrap_or_default();
        let now = night.machines.iter().map(|(name, machine)| match machine.power {
            Power::On => of(name).0,
            Power::Asleep => of(name).1,
            Power::Off => 0,
        });
        let all = night.cluster.hosts.keys().map(|name| of(name).0);
        (f64::from(now.sum::<u32>()), f64::from(all.sum::<u32>()))
    };
    let mut day = Day { hours, ..Day::default() };
    let mut state = night.sif.disk.shared.tables.state.clone();
    let began = night.now;
    while night.now < began + hours * HOUR {
        let minute = (night.now - began) / STEP;
        for group in night.cluster.groups.keys().cloned().collect::<Vec<_>>() {
            let noise = night.rng.next_u64();
            night.load.insert(group, curve(minute, noise));
        }
        for _ in 0..STEP / 1_000 {
            night.run(1_000);
            let (now, all) = watts(&night);
            day.watt_hours.0 += now / 3_600.0;
            day.watt_hours.1 += all / 3_600.0;
            let asleep = night.machines.values().filter(|machine| machine.power == Power::Asleep).count();
            day.asleep_s += asleep as u64;
            let overloaded = night.vms.keys().filter(|vm| night.share(vm) >= OVERLOAD).count();
            day.overload_s += overloaded as u64;
            let tables = &night.sif.disk.shared.tables;
            if tables.state != state {
                for (group, row) in &tables.state {
                    let was = state.get(group).map(|row| row.condition);
                    if was.is_some_and(|was| was != row.condition) {
                        let counted =
                            if was > Some(row.condition) { &mut day.transitions.0 } else { &mut day.transitions.1 };
                        *counted += 1;
                    }
                }
                state = tables.state.clone();
            }
        }
        if let Some(broken) = &night.failure {
            bail!("{broken}");
        }
    }
    day.dark_ms = night.dark.iter().map(|(vip, dark)| dark - before.get(vip).copied().unwrap_or(0)).max().unwrap_or(0);
    Ok(day)
}
