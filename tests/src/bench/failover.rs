//! `tests/bench failover`: every variant, every trouble, some runs of each; goes on where it was stopped.
//!
//! The peers' sites stand side by side; while one boots, others are measured, [`PERMITS`] at a time. Kagemusha's and
//! the paused VM's runs come afterwards, alone: their machines are emulated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::kagemusha;
use super::measure::{self, Run};
use super::site::Site;
use super::table::{self, Measurement};
use super::variant::{Trouble, Variant};
use crate::lab::lifecycle;
use crate::lab::run::{now_ns, read, run, write};
use crate::lab::{campaign, dirs};

/// Sites that are measured at the same time: their faults are waits, not work, but two cores have limits.
const PERMITS: u32 = 2;
/// A cluster that has just come to rest is not yet a usual one.
const REST: Duration = Duration::from_secs(1);
/// Seconds to bring the lab up.
const LAB_SECONDS: u32 = 40;

/// One run to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    variant: Variant,
    trouble: Trouble,
    number: u32,
}

impl Cell {
    fn is(self, run: &Run) -> bool {
        run.variant == self.variant && run.trouble == self.trouble && run.number == self.number
    }

    fn name(self) -> String {
        format!("{} {}", self.variant.name(), self.trouble.name())
    }
}

fn plan(runs: u32, only: Option<&str>) -> Vec<Cell> {
    let mut cells = Vec::new();
    for number in 1..=runs {
        for variant in Variant::ALL {
            cells.extend(variant.troubles().iter().map(|&trouble| Cell { variant, trouble, number }));
        }
    }
    cells.retain(|cell| only.is_none_or(|words| words.split_whitespace().all(|word| cell.name().contains(word))));
    cells
}

/// About how long these runs take.
fn estimate(cells: &[Cell]) -> Duration {
    let (mut alone, mut measured, mut lanes) = (0, 0, BTreeMap::<Variant, u32>::new());
    for cell in cells {
        let (watched, between) = cell.variant.seconds();
        if cell.variant.on_namespaces() {
            measured += watched;
            *lanes.entry(cell.variant).or_default() += watched + between;
        } else {
            alone += watched + between;
        }
    }
    let mut labs: Vec<Variant> = cells.iter().map(|cell| cell.variant).filter(|v| !v.on_namespaces()).collect();
    labs.dedup();
    labs.sort_unstable();
    labs.dedup();
    let labs = u32::try_from(labs.len()).unwrap_or(0) * LAB_SECONDS;
    let beside = lanes.values().copied().max().unwrap_or(0).max(measured / PERMITS);
    Duration::from_secs(u64::from(alone + beside + labs))
}

/// The right to measure now.
#[derive(Default)]
struct Permits {
    taken: Mutex<u32>,
    returned: Condvar,
}

impl Permits {
    fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        let lock = || self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut taken = lock();
        while *taken >= PERMITS {
            taken = self.returned.wait(taken).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *taken += 1;
        drop(taken);
        let result = work();
        *lock() -= 1;
        self.returned.notify_one();
        result
    }
}

fn file() -> Result<PathBuf> {
    Ok(dirs::project()?.join("docs/measurements/failover.json"))
}

fn conditions() -> Result<BTreeMap<String, String>> {
    let mut conditions = crate::lab::campaign::conditions()?;
    let packages = ["keepalived", "pacemaker", "corosync", "resource-agents"];
    for package in packages {
        let version = run(&["dpkg-query", "-W", "-f=${Version}", package])
            .with_context(|| format!("{package} is not installed; call tests/bench, which installs it"))?;
        conditions.insert(package.to_owned(), version.trim().to_owned());
    }
    conditions.insert("cut and frozen".into(), format!("healed {} s after the takeover", measure::HOLD.as_secs()));
    Ok(conditions)
}

/// Measures what is still missing, and writes `docs/measurements/failover.json` after every run.
///
/// # Errors
/// The lab is up already with something else, or does not come up; the file can't be written.
pub fn failover(runs: u32, only: Option<&str>, say: &mut dyn FnMut(&str)) -> Result<()> {
    let path = file()?;
    let mut measurement = match campaign::known(&path, |known: &Measurement| &known.commit)? {
        Some(known) => known,
        None => Measurement { commit: campaign::commit()?, conditions: conditions()?, runs: vec![] },
    };
    // What came to nothing before the fault was done says nothing about anybody: it is made again.
    measurement.runs.retain(|run| run.problems.is_empty() || run.served_by.is_some() || run.outage_ms > 0.0);
    let mut cells = plan(runs, only);
    if cells.is_empty() {
        bail!("nothing is called `{}`; names are like `pacemaker-tuned cut`", only.unwrap_or_default());
    }
    cells.retain(|&cell| !measurement.runs.iter().any(|run| cell.is(run)));
    say(&format!("{} runs to be made, about {} minutes", cells.len(), estimate(&cells).as_secs().div_ceil(60)));
    let folder = dirs::lab().join("results").join(format!("{}-bench", now_ns() / 1_000_000_000));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut keep = |run: Run, say: &mut dyn FnMut(&str)| {
        say(&run.line());
        measurement.runs.push(run);
        write(&path, serde_json::to_string_pretty(&measurement)? + "\n")
    };
    beside(&cells, &folder, &mut keep, say)?;
    alone(&cells, &mut keep, say)?;
    say(&table::failover(&measurement));
    say(&format!("captures and samples: {}", folder.display()));
    Ok(())
}

type Keep<'a> = &'a mut dyn FnMut(Run, &mut dyn FnMut(&str)) -> Result<()>;

fn beside(cells: &[Cell], folder: &Path, keep: Keep<'_>, say: &mut dyn FnMut(&str)) -> Result<()> {
    let lanes: Vec<(Variant, Vec<Cell>)> = Variant::ALL
        .into_iter()
        .filter(|variant| variant.on_namespaces())
        .map(|variant| (variant, cells.iter().copied().filter(|cell| cell.variant == variant).collect::<Vec<_>>()))
        .filter(|(_, cells)| !cells.is_empty())
        .collect();
    if lanes.is_empty() {
        return Ok(());
    }
    let permits = Permits::default();
    let (done, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for (variant, cells) in lanes {
            let (done, permits) = (done.clone(), &permits);
            scope.spawn(move || lane(variant, &cells, folder, permits, &done));
        }
        drop(done);
        for result in results {
            match result {
                Ok(run) => keep(run, say)?,
                Err(error) => say(&format!("{error:#}")),
            }
        }
        Ok(())
    })
}

fn lane(variant: Variant, cells: &[Cell], folder: &Path, permits: &Permits, done: &mpsc::Sender<Result<Run>>) {
    let site = Site::new(variant);
    // What a run that was stopped has left. The lab itself is in nobody's way.
    let result = site.down().and_then(|()| site.up()).map(|()| {
        for cell in cells {
            let run = one(&site, *cell, folder, permits)
                .unwrap_or_else(|error| Run::failed(variant, cell.trouble, cell.number, &error));
            if done.send(Ok(run)).is_err() {
                break;
            }
        }
    });
    if let Err(error) = result.and_then(|()| site.down()) {
        // The receiver lives as long as any lane does.
        let _ = done.send(Err(error.context(format!("the site of {}", variant.name()))));
    }
}

fn one(site: &Site, cell: Cell, folder: &Path, permits: &Permits) -> Result<Run> {
    site.boot()?;
    std::thread::sleep(REST + phase(cell));
    permits.with(|| measure::once(site, cell.trouble, cell.number, folder))
}

/// A random part of the variant's longest interval: a fault knows nothing of anybody's timers.
fn phase(cell: Cell) -> Duration {
    let checks_slowly = cell.variant == Variant::PacemakerDefault && cell.trouble == Trouble::Service;
    let interval = if checks_slowly { 10_000 } else { 1_000 };
    Duration::from_millis(now_ns() / 1_000 % interval)
}

fn alone(cells: &[Cell], keep: Keep<'_>, say: &mut dyn FnMut(&str)) -> Result<()> {
    for variant in Variant::ALL.into_iter().filter(|variant| !variant.on_namespaces()) {
        let mut cells = cells.iter().copied().filter(|cell| cell.variant == variant).peekable();
        if cells.peek().is_none() {
            continue;
        }
        kagemusha::up(variant, say)?;
        for cell in cells {
            let run = kagemusha::once(variant, cell.trouble, cell.number, &mut |_| {})
                .unwrap_or_else(|error| Run::failed(variant, cell.trouble, cell.number, &error));
            let broken = !run.problems.is_empty();
            keep(run, say)?;
            if broken {
                lifecycle::down()?;
                kagemusha::up(variant, say)?;
            }
        }
        lifecycle::down()?;
    }
    Ok(())
}

/// Writes `docs/measurements/failover.md` from `failover.json`.
///
/// # Errors
/// There is no such measurement.
pub fn document() -> Result<PathBuf> {
    let path = file()?;
    let json = read(&path).context("run tests/bench failover first")?;
    let measurement: Measurement =
        serde_json::from_str(&json).with_context(|| format!("{} is damaged", path.display()))?;
    let mut page = format!(
        "# Measurement: failover\n\nGenerated by `tests/bench failover --table` from `failover.json`.\n\n{}",
        table::failover(&measurement)
    );
    if let Some(reason) = campaign::stale(&measurement.commit)? {
        page += &format!("\n**Older than the code it measures:** {reason}.\n");
    }
    let out = path.with_extension("md");
    write(&out, page)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_goes_round_by_round_and_can_be_narrowed() {
        let all = plan(5, None);
        assert_eq!(all.len(), 5 * (7 * 4 + 2 + 1));
        assert_eq!(plan(2, Some("pacemaker-tuned cut")).len(), 2);
        assert_eq!(plan(1, Some("keepalived")).len(), 8);
        assert!(plan(1, Some("heartbeat")).is_empty());
        assert_eq!(all.first().map(|cell| cell.number), Some(1));
    }

    #[test]
    fn five_runs_of_everything_take_no_more_than_twenty_five_minutes() {
        assert!(estimate(&plan(5, None)) <= Duration::from_secs(25 * 60), "{:?}", estimate(&plan(5, None)));
    }

    #[test]
    fn no_more_permits_than_there_are() {
        let permits = Permits::default();
        let most = Mutex::new((0, 0));
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    permits.with(|| {
                        let mut counts = most.lock().unwrap();
                        counts.0 += 1;
                        counts.1 = counts.1.max(counts.0);
                        drop(counts);
                        std::thread::sleep(Duration::from_millis(5));
                        most.lock().unwrap().0 -= 1;
                    });
                });
            }
        });
        assert!(most.into_inner().unwrap().1 <= PERMITS);
    }
}
