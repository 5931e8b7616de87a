//! Long measurements, resumable: every finished run is in the file at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::config::Profile;
use super::drill::{Drill, Fault};
use super::network::Cut;
use super::nodes::{Layout, machine as machine_node};
use super::report::spread;
use super::run::{run, write};
use super::suite::{prepare, promised_ms};
use super::{dirs, image, lifecycle};

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The profile.
    pub profile: String,
    /// The drill.
    pub drill: String,
    /// Of this drill.
    pub number: u32,
    /// What clients missed by the fault.
    pub outage_ms: f64,
    /// What clients missed when the target came home.
    pub return_ms: f64,
    /// Two machines speaking as the VIP at once.
    pub two_owner_ms: f64,
    /// Frames of one inside the time of another.
    pub stray_frames: usize,
    /// What `kagectl check` promised.
    pub promised_ms: f64,
    /// What went wrong.
    pub problems: Vec<String>,
}

/// A measurement file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The campaign.
    pub name: String,
    /// The code that was measured.
    pub commit: String,
    /// The machine and the circumstances.
    pub conditions: BTreeMap<String, String>,
    /// Every run.
    pub runs: Vec<Run>,
}

const LEASE: &[(&str, Fault, &str)] = &[
    ("crash", Fault::Crash, "host lost, frozen or cut off"),
    ("hang", Fault::Hang, "host lost, frozen or cut off"),
    ("cut", Fault::Cut(Cut::Full), "host lost, frozen or cut off"),
    ("cut-to", Fault::Cut(Cut::ToTarget), "one-way cut"),
    ("cut-coordinator", Fault::Cut(Cut::Coordinator), "coordinator or SIF away"),
    ("stall-8s", Fault::Stall(Duration::from_secs(8)), "host lost, frozen or cut off"),
    ("service", Fault::Service, "service killed"),
    ("shutdown", Fault::Shutdown, "clean shutdown or reboot"),
];

pub(super) fn file(name: &str) -> Result<PathBuf> {
    Ok(dirs::project()?.join("docs/measurements").join(format!("{name}.json")))
}

/// The code that is measured.
///
/// # Errors
/// The tree is no git repository.
pub fn commit() -> Result<String> {
    let project = dirs::project()?;
    Ok(run(&["git", "-C", &super::run::text(&project), "rev-parse", "--short=12", "HEAD"])?.trim().to_owned())
}

/// The machine and the client.
///
/// # Errors
/// The lab could not work here.
pub fn conditions() -> Result<BTreeMap<String, String>> {
    let mut conditions = BTreeMap::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = image::kernel()?;
    conditions.insert("cores".into(), cores.to_string());
    conditions.insert("host kernel".into(), run(&["uname", "-r"])?.trim().to_owned());
    conditions.insert("guest kernel".into(), kernel.release.clone());
    conditions.insert("guests run under".into(), image::accelerator(&kernel)?.to_owned());
    conditions.insert("client".into(), "one HTTP request each 20 ms, given up after 150 ms".into());
    conditions.insert("date".into(), run(&["date", "-u", "+%F"])?.trim().to_owned());
    Ok(conditions)
}

/// The `lease` campaign: every fault at `normal` and `fast`, `runs` times each. Goes on where it was stopped, if the
/// code is the same.
///
/// # Errors
/// The lab does not come up, or the file can't be written.
pub fn lease(runs: u32, say: &mut dyn FnMut(&str)) -> Result<()> {
    let path = file("lease")?;
    std::fs::create_dir_all(path.parent().context("it has a folder")?)?;
    let mut measurement = match known(&path, |known: &Measurement| &known.commit)? {
        Some(known) => known,
        None => Measurement { name: "lease".into(), commit: commit()?, conditions: conditions()?, runs: vec![] },
    };
    for profile in [Profile::Normal, Profile::Fast] {
        prepare(Layout::Small, profile, say)?;
        for number in 1..=runs {
            for (name, fault, trouble) in LEASE {
                // The faults that the lease is for, each `runs` times; the others once, to see that they stay good.
                let lost = matches!(fault, Fault::Crash | Fault::Hang | Fault::Cut(_));
                if !lost && number > runs.min(1) {
                    continue;
                }
                let done = |run: &Run| run.profile == profile.name() && run.drill == *name && run.number == number;
                if measurement.runs.iter().any(done) {
                    continue;
                }
                let run = one(profile, name, *fault, trouble, number, say)?;
                let broken = !run.problems.is_empty();
                measurement.runs.push(run);
                write(&path, serde_json::to_string_pretty(&measurement)? + "\n")?;
                if broken {
                    lifecycle::down()?;
                    lifecycle::up(Layout::Small, profile, say)?;
                }
            }
        }
    }
    say(&table(&measurement, None));
    Ok(())
}

fn one(
    profile: Profile,
    name: &str,
    fault: Fault,
    trouble: &str,
    number: u32,
    say: &mut dyn FnMut(&str),
) -> Result<Run> {
    let promised = if fault == Fault::Service { 0.0 } else { promised_ms(trouble)? };
    let mut run = Run {
        profile: profile.name().into(),
        drill: name.into(),
        number,
        outage_ms: 0.0,
        return_ms: 0.0,
        two_owner_ms: 0.0,
        stray_frames: 0,
        promised_ms: promised,
        problems: Vec::new(),
    };
    let mut drill = Drill::new(name, fault, machine_node("mail")?);
    drill.hold = Duration::from_millis(500);
    match drill.run(say) {
        Ok(report) => {
            let seen = report.runs.first().context("one run")?;
            run.outage_ms = seen.fault_outage_ms;
            run.return_ms = seen.return_outage_ms;
            run.two_owner_ms = seen.speech.two_owner_ms;
            run.stray_frames = seen.speech.stray_count;
            run.problems.clone_from(&seen.problems);
            if seen.problems.is_empty() && !seen.good() {
                run.problems.push(format!("{} stray frames", seen.speech.stray_count));
            }
        }
        Err(error) => run.problems.push(format!("{error:#}")),
    }
    Ok(run)
}

/// The table of a measurement, in Markdown; flagged if `current` is another commit's code.
#[must_use]
pub fn table(measurement: &Measurement, stale: Option<&str>) -> String {
    let mut text = String::from(
        "| Profile | Fault | Runs | Outage median | Outage worst | `check` promised | Coming home median | worst | Two owners, worst | Failed runs |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut groups: BTreeMap<(String, usize), Vec<&Run>> = BTreeMap::new();
    for run in &measurement.runs {
        let order = LEASE.iter().position(|(name, ..)| *name == run.drill).unwrap_or(LEASE.len());
        groups.entry((run.profile.clone(), order)).or_default().push(run);
    }
    for ((profile, _), runs) in &groups {
        let Some(first) = runs.first() else { continue };
        let good: Vec<&&Run> = runs.iter().filter(|run| run.problems.is_empty()).collect();
        let (outage, _, worst) = spread(good.iter().map(|run| run.outage_ms));
        let (home, _, home_worst) = spread(good.iter().map(|run| run.return_ms));
        let (_, _, two) = spread(good.iter().map(|run| run.two_owner_ms));
        let promised = if first.promised_ms > 0.0 { format!("{:.0} ms", first.promised_ms) } else { "–".to_owned() };
        text.push_str(&format!(
            "| {profile} | {} | {} | {outage:.0} ms | {worst:.0} ms | {promised} | {home:.0} ms | {home_worst:.0} ms | {two:.1} ms | {} |\n",
            first.drill,
            runs.len(),
            runs.len() - good.len(),
        ));
    }
    text.push('\n');
    footer(&mut text, &measurement.commit, &measurement.conditions, stale);
    text
}

/// Below every table: what was measured and how; flagged if the code has changed since.
pub fn footer(text: &mut String, commit: &str, conditions: &BTreeMap<String, String>, stale: Option<&str>) {
    text.push_str(&format!("Measured at commit {commit}"));
    for (name, value) in conditions {
        text.push_str(&format!("; {name}: {value}"));
    }
    text.push_str(".\n");
    if let Some(reason) = stale {
        text.push_str(&format!("\n**Older than the code it measures:** {reason}.\n"));
    }
}

/// Why a measurement of `commit` says nothing of the code as it is, if so.
pub fn stale(commit: &str) -> Result<Option<&'static str>> {
    let project = super::run::text(&dirs::project()?);
    let mut words = vec!["git", "-C", &project, "diff", "--stat", commit, "--"];
    words.extend(["agent", "coordinator", "sif", "proto", ":(exclude)*/tests/*"]);
    let changed = run(&words).map(|diff| !diff.trim().is_empty()).unwrap_or(true);
    Ok(changed.then_some("agent, coordinator, sif or proto have changed since"))
}

/// The measurement in `file`, if the code is still what was measured.
///
/// # Errors
/// The tree is no git repository.
pub fn known<T: serde::de::DeserializeOwned>(file: &Path, commit: impl Fn(&T) -> &str) -> Result<Option<T>> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(None) };
    let Ok(known) = serde_json::from_str::<T>(&text) else { return Ok(None) };
    Ok(if stale(commit(&known))?.is_none() { Some(known) } else { None })
}

/// Writes `docs/measurements/NAME.md` from `NAME.json`.
///
/// # Errors
/// There is no such measurement.
pub fn document(name: &str) -> Result<PathBuf> {
    let path = file(name)?;
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("there is no {}: run tests/campaign {name}", path.display()))?;
    let measurement: Measurement =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let stale = stale(&measurement.commit)?;
    let out = path.with_extension("md");
    let page = format!(
        "# Measurement: {name}\n\nGenerated by `tests/campaign {name} --table` from `{name}.json`.\n\n{}",
        table(&measurement, stale)
    );
    write(&out, page)?;
    Ok(out)
}
