//! `simulate night --table`: docs/measurements/night.json, and its page.

use super::{Day, Tried, cases, day, matrix::Victim, run_case, steps};
use crate::lab::{campaign as measured, dirs, run};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

/// Hours of load.
const HOURS: u64 = 24;
/// Code whose change makes a measurement old.
const CODE: [&str; 6] = [
    "coordinator/core",
    "coordinator/pss",
    "coordinator/src/saving",
    "coordinator/src/saving.rs",
    "sif/core",
    "tests/src/sim/night",
];

/// The measurement file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The code that was measured.
    pub commit: String,
    /// The machine and the circumstances.
    pub conditions: BTreeMap<String, String>,
    /// Of chance.
    pub seed: u64,
    /// Every pair.
    pub pairs: Vec<Tried>,
    /// A day's load.
    pub day: Day,
}

fn file() -> Result<PathBuf> {
    Ok(dirs::project()?.join("docs/measurements/night.json"))
}

/// Every pair and a day, written down. True: nothing was broken.
///
/// # Errors
/// The configuration's; something that must not be was, on the day; a file that can't be written.
pub fn measure(seed: u64, say: &mut dyn FnMut(&str)) -> Result<bool> {
    let mut pairs = Vec::new();
    for case in cases(steps(seed)?) {
        let (tried, _) = run_case(case, seed)?;
        if let Some(broken) = &tried.broken {
            say(&format!("BROKEN {case} ({}): {broken}", tried.what));
        }
        pairs.push(tried);
    }
    let good = pairs.iter().all(|tried| tried.broken.is_none());
    say(&format!("{} pairs", pairs.len()));
    let conditions = BTreeMap::from([
        ("date".to_owned(), run::run(&["date", "-u", "+%F"])?.trim().to_owned()),
        ("hosts, hypervisors, guests".to_owned(), "modelled".to_owned()),
    ]);
    let measurement = Measurement { commit: measured::commit()?, conditions, seed, pairs, day: day(seed, HOURS)? };
    let path = file()?;
    fs::write(&path, serde_json::to_string_pretty(&measurement)? + "\n")
        .with_context(|| format!("{}: can't be written", path.display()))?;
    Ok(good)
}

/// Writes `docs/measurements/night.md` from `night.json`.
///
/// # Errors
/// There is no such measurement, or it can't be written.
pub fn document() -> Result<PathBuf> {
    let path = file()?;
    let text = fs::read_to_string(&path)
        .with_context(|| format!("there is no {}: run tests/campaign night", path.display()))?;
    let measurement: Measurement =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let mut page = table(&measurement);
    let project = dirs::project()?.to_string_lossy().into_owned();
    let mut words = vec!["git", "-C", &project, "diff", "--stat", &measurement.commit, "--"];
    words.extend(CODE);
    if run::run(&words).map_or(true, |diff| !diff.trim().is_empty()) {
        page += "\n**Older than the code it measures:** the cores or the simulator have changed since.\n";
    }
    let out = path.with_extension("md");
    fs::write(&out, page).with_context(|| format!("{}: can't be written", out.display()))?;
    Ok(out)
}

fn name(victim: Victim) -> &'static str {
    match victim {
        Victim::Vm => "virtual server of the step",
        Victim::Host => "host of the step",
        Victim::Source => "host that a live migration leaves",
        Victim::Base => "base server",
        Victim::CutHost => "host of the step, cut off but for its storage",
        Victim::CutSource => "host that a live migration leaves, cut off",
        Victim::CutBase => "base server, cut off",
        Victim::CutArrived => "host that a live migration leads to, cut off after the switch-over",
        Victim::CutUnsaid => "the same, and the agent of the one that it leaves crashes before it says so",
        Victim::CutLeft => "host that it leaves, cut off after the switch-over",
        Victim::Agent => "agent of the host",
        Victim::Coordinator => "coordinator, both controllers",
        Victim::Saving => "power saving's process",
        Victim::Sif => "SIF",
        Victim::Beyond => "virtual server of the step, for good",
        Victim::BeyondCoordinator => "the same, and the coordinator while its double moves",
        Victim::BeyondHost => "the same, and the host that its double goes to",
        Victim::BeyondDouble => "the same, and its double",
        Victim::BeyondService => "the same, and a service in its double, which serves there",
        Victim::BeyondFurther => "the same, and the host that its double serves on",
        Victim::Moved => "nothing: the operator moves the virtual server of the step to its backup, and back",
        Victim::MovedForgotten => "the same, and SIF forgets the claims",
    }
}

#[allow(clippy::cast_precision_loss)]
fn table(measurement: &Measurement) -> String {
    let Measurement { pairs, day, .. } = measurement;
    let mut page = String::from(
        "# Measurement: night\n\nGenerated by `tests/campaign night --table` from `night.json`: power saving and supervision\n\
         together, over their production cores ([simulation.md](../simulation.md)); everything else is modelled.\n\n\
         ## A failure during each step of each transition\n\n\
         Each pair in a night of its own. *Without an answer*: the virtual IP that was worst off, all gaps together, from the\n\
         fault until everything is restored; hosts have power again after 60 s.\n\n\
         | What fails | to Light: pairs (broken) | without an answer, s: median, worst | to Moderate: pairs (broken) | without an answer, s: median, worst |\n|---|---|---|---|---|\n",
    );
    for victim in super::matrix::VICTIMS {
        let _ = write!(page, "| {} ", name(victim));
        for fold in [true, false] {
            let of: Vec<&Tried> = pairs
                .iter()
                .filter(|tried| tried.struck && tried.case.fold == fold && tried.case.victim == victim)
                .collect();
            let broken = of.iter().filter(|tried| tried.broken.is_some()).count();
            let mut dark: Vec<u64> = of.iter().map(|tried| tried.dark).collect();
            dark.sort_unstable();
            let median = dark.get(dark.len() / 2).copied().unwrap_or(0);
            let worst = dark.last().copied().unwrap_or(0);
            let (median, worst) = (median as f64 / 1000.0, worst as f64 / 1000.0);
            let _ = write!(page, "| {} ({broken}) | {median:.2}, {worst:.2} ", of.len());
        }
        page.push_str("|\n");
    }
    let Day { hours, transitions, watt_hours, asleep_s, overload_s, dark_ms } = day;
    let _ = write!(
        page,
        "\n## A day's load\n\n{hours} h of a load that is little at night and peaks before noon and in the evening, with noise, at the\n\
         default figures of `[pss]`; energy is modelled.\n\n\
         | Groups to Light | to Moderate | energy | always on | saved | hosts asleep | members at 90 % or more | a virtual IP without an answer |\n|---|---|---|---|---|---|---|---|\n\
         | {} | {} | {:.0} Wh | {:.0} Wh | {:.0} % | {:.1} h | {overload_s} s | {:.2} s |\n",
        transitions.0,
        transitions.1,
        watt_hours.0,
        watt_hours.1,
        100.0 * (1.0 - watt_hours.0 / watt_hours.1.max(1e-9)),
        *asleep_s as f64 / 3600.0,
        *dark_ms as f64 / 1000.0,
    );
    for tried in pairs.iter().filter(|tried| tried.broken.is_some()) {
        let _ = writeln!(page, "\n- {}: {}", tried.case, tried.broken.as_deref().unwrap_or_default());
    }
    let _ = write!(page, "\nMeasured at commit {}; seed {}", measurement.commit, measurement.seed);
    for (name, value) in &measurement.conditions {
        let _ = write!(page, "; {name}: {value}");
    }
    page + ".\n"
}
