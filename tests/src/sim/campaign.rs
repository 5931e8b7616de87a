//! `simulate campaign`: many seeds in four kinds of weather, resumable; docs/measurements/sim.json and its table.

use super::checks::{Broken, PROMISES, promise};
use super::clock::SEC;
use super::net::Weather;
use super::run::{HEALS_WITHIN, Options, Outcome};
use super::search::search;
use crate::lab::{campaign as measured, dirs, run};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, time::Instant};

/// Each seed is run in each of these: what it is called, its loss, and whether wrong takeovers are promised not to be.
pub const WEATHERS: [(&str, Weather, bool); 4] = [
    ("none, or up to 5 % now and then", Weather::Bursts(50_000), true),
    ("1 %", Weather::Steady(10_000), true),
    ("5 %", Weather::Steady(50_000), true),
    ("30 %", Weather::Steady(300_000), false),
];
/// Seeds between two times that the file is written.
const BATCH: u64 = 20;
/// Broken promises that are kept with their seed.
const KEPT: usize = 20;
/// Code whose change makes a measurement old.
const CODE: [&str; 4] = ["agent/core", "coordinator/core", "sif/core", "tests/src/sim"];

/// What came of all seeds in one weather.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Loss while there is trouble.
    pub loss: String,
    /// Hours of hosts' lives.
    pub host_hours: f64,
    /// Of these, stepped through event by event; the others are quiet, and skipped.
    pub stepped_host_hours: f64,
    /// Of all, in clusters with a single writer.
    pub writer_host_hours: f64,
    /// Stepped through.
    pub events: u64,
    /// Of trouble.
    pub episodes: u64,
    /// A VIP went from one machine to another.
    pub takeovers: u64,
    /// The kernel stopped serving by itself, in trouble.
    pub lapses: u64,
    /// After how many episodes everything was repaired and healed.
    pub heals: u64,
    /// Times that only the operator's fail-back healed a single writer.
    pub helped: u64,
    /// The slowest of them.
    pub slowest_heal_s: f64,
    /// All together.
    pub healing_s: f64,
    /// How often a promise was looked at, by its word.
    pub looks: BTreeMap<String, u64>,
    /// Seeds that broke a promise, by its word.
    pub broken: BTreeMap<String, u64>,
    /// The first of them: seed, and what was seen.
    pub found: Vec<(u64, String)>,
}

/// The measurement file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The code that was measured.
    pub commit: String,
    /// The machine and the circumstances.
    pub conditions: BTreeMap<String, String>,
    /// Hours of the cluster's life per seed.
    pub hours: f64,
    /// Mean hours between episodes.
    pub gap: f64,
    /// At most so many faults at once.
    pub intensity: u32,
    /// Seeds 1 to this were run, in every weather.
    pub seeds: u64,
    /// Wall time.
    pub wall_s: f64,
    /// By weather.
    pub weathers: Vec<Tally>,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.host_hours += outcome.host_hours;
        self.stepped_host_hours += outcome.stepped_host_hours;
        self.writer_host_hours += outcome.writer_host_hours;
        self.events += outcome.events;
        self.episodes += outcome.episodes;
        self.takeovers += outcome.takeovers;
        self.lapses += outcome.lapses;
        self.helped += outcome.helped;
        self.heals += outcome.heals;
        #[allow(clippy::cast_precision_loss)]
        let seconds = |ns: u64| ns as f64 / SEC as f64;
        self.slowest_heal_s = self.slowest_heal_s.max(seconds(outcome.slowest_heal));
        self.healing_s += seconds(outcome.healing);
        for (broken, looks) in &outcome.looks {
            *self.looks.entry(promise(*broken).to_owned()).or_default() += looks;
        }
        for (seed, failure) in &outcome.failures {
            *self.broken.entry(promise(failure.broken).to_owned()).or_default() += 1;
            self.found.push((*seed, failure.to_string()));
        }
        // Threads end in any order.
        self.found.sort();
        self.found.truncate(KEPT);
    }

    fn count(&self, broken: Broken) -> u64 {
        self.broken.get(promise(broken)).copied().unwrap_or(0)
    }
}

fn file() -> Result<PathBuf> {
    Ok(dirs::project()?.join("docs/measurements/sim.json"))
}

fn stale(commit: &str) -> Result<bool> {
    let project = dirs::project()?;
    let project = project.to_string_lossy().into_owned();
    let mut words = vec!["git", "-C", &project, "diff", "--stat", commit, "--"];
    words.extend(CODE);
    Ok(run::run(&words).map_or(true, |diff| !diff.trim().is_empty()))
}

fn known(options: &Options) -> Result<Option<Measurement>> {
    let Ok(text) = fs::read_to_string(file()?) else { return Ok(None) };
    let Ok(known) = serde_json::from_str::<Measurement>(&text) else { return Ok(None) };
    #[allow(clippy::float_cmp)]
    let alike = known.hours == options.hours && known.gap == options.gap && known.intensity == options.intensity;
    Ok(if alike && !stale(&known.commit)? { Some(known) } else { None })
}

fn conditions(jobs: usize) -> Result<BTreeMap<String, String>> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(BTreeMap::from([
        ("cores".to_owned(), cores.to_string()),
        ("threads".to_owned(), jobs.to_string()),
        ("host kernel".to_owned(), run::run(&["uname", "-r"])?.trim().to_owned()),
        ("date".to_owned(), run::run(&["date", "-u", "+%F"])?.trim().to_owned()),
    ]))
}

/// Until so many host-hours are in the file, or so many seconds are over. Goes on where it was stopped, if the code and
/// the options are the same.
///
/// # Errors
/// The file can't be written, or the tree is no git repository.
pub fn campaign(wanted: f64, seconds: f64, options: &Options, jobs: usize, say: &mut dyn FnMut(&str)) -> Result<bool> {
    let began = Instant::now();
    let fresh = || -> Result<Measurement> {
        let tally = |(loss, ..): &(&str, Weather, bool)| Tally { loss: (*loss).to_owned(), ..Tally::default() };
        Ok(Measurement {
            commit: measured::commit()?,
            conditions: conditions(jobs)?,
            hours: options.hours,
            gap: options.gap,
            intensity: options.intensity,
            seeds: 0,
            wall_s: 0.0,
            weathers: WEATHERS.iter().map(tally).collect(),
        })
    };
    let mut measurement = known(options)?.map_or_else(fresh, Ok)?;
    loop {
        let hours: f64 = measurement.weathers.iter().map(|tally| tally.host_hours).sum();
        if hours >= wanted || began.elapsed().as_secs_f64() >= seconds {
            break;
        }
        let batch = Instant::now();
        let (first, last) = (measurement.seeds + 1, measurement.seeds + BATCH);
        for (tally, (_, weather, _)) in measurement.weathers.iter_mut().zip(WEATHERS) {
            let (outcome, _) = search(first, last, &Options { weather, ..*options }, jobs, false);
            tally.add(&outcome);
        }
        measurement.seeds = last;
        measurement.wall_s += batch.elapsed().as_secs_f64();
        let path = file()?;
        let text = serde_json::to_string_pretty(&measurement)? + "\n";
        let new = path.with_extension("json.new");
        fs::write(&new, text).with_context(|| format!("{}: can't be written", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("{}: can't be written", path.display()))?;
        let hours: f64 = measurement.weathers.iter().map(|tally| tally.host_hours).sum();
        let broken: u64 = measurement.weathers.iter().flat_map(|tally| tally.broken.values()).sum();
        say(&format!("seeds 1..{last}: {hours:.0} of {wanted:.0} host-hours, {broken} seeds broke a promise"));
    }
    Ok(measurement.weathers.iter().all(|tally| tally.broken.is_empty()))
}

/// Writes `docs/measurements/sim.md` from `sim.json`.
///
/// # Errors
/// There is no such measurement, or it can't be written.
pub fn document() -> Result<PathBuf> {
    let path = file()?;
    let text =
        fs::read_to_string(&path).with_context(|| format!("there is no {}: run tests/campaign sim", path.display()))?;
    let measurement: Measurement =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let mut page = table(&measurement);
    if stale(&measurement.commit)? {
        page += "\n**Older than the code it measures:** the cores or the simulator have changed since.\n";
    }
    let out = path.with_extension("md");
    fs::write(&out, page).with_context(|| format!("{}: can't be written", out.display()))?;
    Ok(out)
}

/// Three divided by what was seen: if it happened more often than that, once at least would have been seen, by 95 %.
fn bound(events: u64, of: f64) -> String {
    if events > 0 { format!("{events} seen") } else { format!("0; less than {:.1e}", 3.0 / of.max(f64::MIN_POSITIVE)) }
}

fn row(page: &mut String, what: &str, cells: &[String]) {
    let _ = writeln!(page, "| {what} | {} |", cells.join(" | "));
}

#[allow(clippy::cast_precision_loss)]
fn table(measurement: &Measurement) -> String {
    let Measurement { hours, gap, intensity, seeds, wall_s, weathers, .. } = measurement;
    let all = |of: fn(&Tally) -> f64| weathers.iter().map(of).sum::<f64>();
    let (host_hours, stepped) = (all(|tally| tally.host_hours), all(|tally| tally.stepped_host_hours));
    let runs = *seeds as f64 * weathers.len() as f64;
    let mut page = format!(
        "# Measurement: sim\n\nGenerated by `tests/campaign sim --table` from `sim.json`: the random search of\n\
         [simulation.md](../simulation.md), every seed in every weather.\n\n\
         **{host_hours:.0} host-hours**: {stepped:.0} stepped through event by event (trouble, healing, and the time around),\n\
         {:.0} of quiet between two episodes, skipped: everything is at rest then and only renews.\n\
         Seeds 1 to {seeds}, {hours} h of a cluster's life each, an episode of up to {intensity} faults every {gap} h on average;\n\
         {wall_s:.0} s of wall time, {:.1} seeds/s.\n\n",
        host_hours - stepped,
        runs / wall_s.max(1e-9),
    );
    let text = |of: &dyn Fn(&Tally) -> String| weathers.iter().map(of).collect::<Vec<String>>();
    row(&mut page, "Loss while there is trouble", &text(&|tally| tally.loss.clone()));
    row(&mut page, "---", &text(&|_| "---".to_owned()));
    row(&mut page, "Host-hours", &text(&|tally| format!("{:.0}", tally.host_hours)));
    row(&mut page, "of these stepped through", &text(&|tally| format!("{:.1}", tally.stepped_host_hours)));
    row(&mut page, "Events", &text(&|tally| tally.events.to_string()));
    row(&mut page, "Episodes of trouble", &text(&|tally| tally.episodes.to_string()));
    row(&mut page, "Takeovers and fail-backs", &text(&|tally| tally.takeovers.to_string()));
    row(&mut page, "Lapses (served by nobody for a while, in trouble)", &text(&|tally| tally.lapses.to_string()));
    for (broken, what) in [
        (Broken::TwoOwners, "Two-owner instants"),
        (Broken::TwoWriters, "Two-writer instants"),
        (Broken::WrongTakeover, "Wrong takeovers"),
    ] {
        let cell = |tally: &Tally| {
            let looks = tally.looks.get(promise(broken)).copied().unwrap_or(0);
            format!("{} (looked {looks} times)", tally.count(broken))
        };
        row(&mut page, what, &text(&cell));
    }
    let named = [Broken::TwoOwners, Broken::TwoWriters, Broken::WrongTakeover, Broken::NotHealed];
    let others = |tally: &Tally| {
        let others = PROMISES.iter().filter(|(broken, ..)| !named.contains(broken));
        others.map(|(broken, ..)| tally.count(*broken)).sum::<u64>().to_string()
    };
    row(&mut page, "Other promises broken", &text(&others));
    let healed = |tally: &Tally| format!("{} of {}", tally.heals, tally.heals + tally.count(Broken::NotHealed));
    row(&mut page, &format!("Everything restored within {} s of the repair", HEALS_WITHIN / SEC), &text(&healed));
    row(&mut page, "of these a single writer by its operator's fail-back", &text(&|tally| tally.helped.to_string()));
    let mean = |tally: &Tally| {
        format!("{:.1} s, {:.1} s", tally.healing_s / (tally.heals.max(1) as f64), tally.slowest_heal_s)
    };
    row(&mut page, "restored after: mean, slowest", &text(&mean));
    let good = || weathers.iter().zip(WEATHERS).filter(|(_, (.., promised))| *promised).map(|(tally, _)| tally);
    let sum = |broken| weathers.iter().map(|tally| tally.count(broken)).sum::<u64>();
    let _ = writeln!(
        page,
        "\n95 % upper bounds (3/N), per host-hour, quiet ones included: two owners {}; two writers {} (host-hours of\n\
         clusters with a single writer); wrong takeovers at up to 5 % loss {}. Per episode of trouble: two owners {}.\n\
         The faults are chosen to hurt, and far denser than life: an episode {gap} h, not months, after the last.\n",
        bound(sum(Broken::TwoOwners), host_hours),
        bound(sum(Broken::TwoWriters), all(|tally| tally.writer_host_hours)),
        bound(good().map(|tally| tally.count(Broken::WrongTakeover)).sum(), good().map(|tally| tally.host_hours).sum()),
        bound(sum(Broken::TwoOwners), all(|tally| tally.episodes as f64)),
    );
    for (tally, (_, weather, _)) in weathers.iter().zip(WEATHERS) {
        let flag = match weather {
            Weather::Bursts(ppm) => format!("--bursts {}", ppm / 10_000),
            Weather::Steady(ppm) => format!("--loss {}", ppm / 10_000),
        };
        for (seed, text) in &tally.found {
            let _ = writeln!(page, "- `simulate lease --trace {seed} --hours {hours} --gap {gap} {flag}`: {text}");
        }
    }
    let _ = write!(page, "\nMeasured at commit {}", measurement.commit);
    for (name, value) in &measurement.conditions {
        let _ = write!(page, "; {name}: {value}");
    }
    page + ".\n"
}
