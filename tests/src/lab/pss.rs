//! The campaign `pss`: changes of condition (table 4.3), and the six troubles in both conditions (table 4.4), beside the
//! thesis. Resumable.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::campaign::{commit, conditions, file, footer, known, stale};
use super::power::{self, Condition, Night, THESIS_S};
use super::report::spread;
use super::run::write;
use super::standard::{self, Case, CaseRun};
use super::suite::Say;
use super::transition::Split;
use super::{balancer, lifecycle};

/// The measurement file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The code that was measured.
    pub commit: String,
    /// The machine and the circumstances.
    pub conditions: BTreeMap<String, String>,
    /// Changes of condition.
    pub nights: Vec<Night>,
    /// Troubles.
    pub runs: Vec<CaseRun>,
}

const NAME: &str = "pss";
/// Both conditions, Moderate first.
const CONDITIONS: [Condition; 2] = [Condition::Moderate, Condition::Light];

/// Measures `runs` nights, and as many of each trouble in each condition.
///
/// # Errors
/// The file can't be written.
pub fn measure(runs: u32, say: Say<'_>) -> Result<()> {
    let path = file(NAME)?;
    let mut measurement = match known(&path, |known: &Measurement| &known.commit)? {
        Some(known) => known,
        None => {
            let mut conditions = conditions()?;
            conditions.insert(
                "client".into(),
                "each group's front at the load balancer each 100 ms, time-out 5 s; each VIP once a second".into(),
            );
            conditions.insert("guests".into(), "busybox with httpd and an agent, 640 MiB, one processor".into());
            conditions.insert("profile".into(), "normal".into());
            Measurement { commit: commit()?, conditions, nights: Vec::new(), runs: Vec::new() }
        }
    };
    // Round by round, so that whatever there is time for is spread over all kinds.
    for number in 1..=runs {
        if measurement.nights.len() < usize::try_from(number).unwrap_or(usize::MAX) {
            match power::night(say) {
                Ok(night) => measurement.nights.push(night),
                Err(error) => fresh(&format!("the night: {error:#}"), say)?,
            }
            write(&path, serde_json::to_string_pretty(&measurement)? + "\n")?;
        }
        for condition in CONDITIONS {
            let light = condition == Condition::Light;
            for case in Case::ALL {
                let same = |run: &CaseRun| run.case == case && run.light == light && run.number == number;
                if measurement.runs.iter().any(same) {
                    continue;
                }
                match standard::run(case, condition, number, say) {
                    Ok(run) => {
                        say(&run.line());
                        let whole = run.problems.is_empty();
                        measurement.runs.push(run);
                        write(&path, serde_json::to_string_pretty(&measurement)? + "\n")?;
                        if !whole {
                            lifecycle::down()?;
                        }
                    }
                    // Not a measurement: the lab was not at rest. Run again for it.
                    Err(error) => fresh(&format!("{case} in {}: {error:#}", condition.name()), say)?,
                }
            }
        }
    }
    say(&table(&measurement, None));
    Ok(())
}

fn fresh(why: &str, say: Say<'_>) -> Result<()> {
    say(&format!("could not be run: {why}"));
    lifecycle::down()
}

fn show(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
}

/// Median and worst of what there is.
fn middle(values: impl Iterator<Item = Option<f64>>) -> String {
    let values: Vec<f64> = values.flatten().collect();
    if values.is_empty() {
        return "–".into();
    }
    let (median, _, worst) = spread(values.iter().copied());
    format!("{median:.2} ({worst:.2})")
}

/// One direction of table 4.3.
fn direction(name: &str, thesis_s: f64, splits: &[&Split], text: &mut String) {
    let mut kinds: Vec<&String> = splits.iter().flat_map(|split| split.done.keys()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let _ = writeln!(
        text,
        "| {name}: whole change, from the decision | {} | {thesis_s:.2} |\n| – judgement before it | {} | |",
        middle(splits.iter().map(|split| Some(split.took_s))),
        middle(splits.iter().map(|split| Some(split.judged_s))),
    );
    for kind in kinds {
        let ends = splits.iter().map(|split| split.done.get(kind).map(|(_, at)| *at));
        let counts: Vec<_> = splits.iter().filter_map(|split| Some(split.done.get(kind)?.0.to_string())).collect();
        let count = counts.first().map_or("", String::as_str);
        let _ = writeln!(text, "| – {kind} ({count}), the last one's end | {} | |", middle(ends));
    }
}

/// The tables, in Markdown.
#[must_use]
pub fn table(measurement: &Measurement, stale: Option<&str>) -> String {
    let mut text = String::new();
    let nights = &measurement.nights;
    let _ = write!(
        text,
        "## Table 4.3: changes of condition\n\nSeconds, median (worst) of {} nights.\n\n| What | measured | thesis |\n|---|---|---|\n",
        nights.len()
    );
    direction(
        "Moderate → Light",
        THESIS_S.0,
        &nights.iter().map(|night| &night.to_light).collect::<Vec<_>>(),
        &mut text,
    );
    direction(
        "Light → Moderate",
        THESIS_S.1,
        &nights.iter().map(|night| &night.to_moderate).collect::<Vec<_>>(),
        &mut text,
    );
    if let Some(night) = nights.last() {
        let [light, moderate] = &night.drawn;
        let _ = writeln!(text, "| power in Moderate | {moderate} | 263 W |\n| power in Light | {light} | 93 W |");
        let [(night_hosts, night_servers), (day_hosts, day_servers)] = night.awake;
        let _ = writeln!(
            text,
            "| real servers awake, Moderate / Light | {day_hosts} / {night_hosts} | 3 / 1 |\n\
             | virtual servers in service, Moderate / Light | {day_servers} / {night_servers} | 6 / 3 |"
        );
        let gap = middle(nights.iter().map(|night| Some(night.gap_ms / 1e3)));
        let _ = writeln!(text, "| longest gap of clients through the load balancer | {gap} | |");
        let cut: usize = nights.iter().map(|night| night.cut).sum();
        let _ = writeln!(text, "| connections cut as an address moved, all nights | {cut} | |");
    }
    text.push_str(
        "\n## Table 4.4: troubles\n\nSeconds, median (worst) measured, and the thesis's. *Function*: from detection until every \
         VIP concerned is set; *target*: until everybody concerned is in regular mode again; *client*: the longest time in \
         which every request of a group through the load balancer failed, 0 if none did; *gap*: the longest time between two \
         good answers. A real server that was shut down has its power again 10 s later, one that reboots 5 s later, and \
         one that was lost 10 s later. *Failed, HTTP*: requests of all runs that failed where the load balancer knows the \
         protocol and asks elsewhere (web); *TCP*: where it passes bytes on, so that what is under way as an address moves \
         is cut (mail, ftp).\n\n\
         | Trouble | Condition | Runs | Detection | Function | thesis | Target | thesis | Client | thesis | Gap | Failed, HTTP | \
         TCP | All as before | Runs with problems |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for case in Case::ALL {
        for (condition, thesis) in CONDITIONS.iter().zip(case.thesis()) {
            let light = *condition == Condition::Light;
            let all: Vec<&CaseRun> =
                measurement.runs.iter().filter(|run| run.case == case && run.light == light).collect();
            if all.is_empty() {
                continue;
            }
            let good: Vec<&&CaseRun> = all.iter().filter(|run| run.problems.is_empty()).collect();
            let of = |what: fn(&CaseRun) -> Option<f64>| middle(good.iter().map(|run| what(run)));
            let failed = |again: bool| {
                let requests = good.iter().flat_map(|run| &run.requests);
                let of_kind = requests.filter(|(name, _)| balancer::asks_again(name) == again);
                let (failed, asked) = of_kind.fold((0, 0), |sum, (_, it)| (sum.0 + it.0, sum.1 + it.1));
                format!("{failed} of {asked}")
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                case.about(),
                condition.name(),
                all.len(),
                of(|run| run.detection_s),
                of(|run| run.function_s),
                show(thesis[0]),
                of(|run| run.target_s),
                show(thesis[1]),
                of(|run| Some(run.client_s)),
                show(thesis[2]),
                of(|run| Some(run.gap_s)),
                failed(true),
                failed(false),
                of(|run| run.as_before_s),
                all.len() - good.len(),
            );
        }
    }
    text.push('\n');
    goals(measurement, &mut text);
    footer(&mut text, &measurement.commit, &measurement.conditions, stale);
    text
}

/// What was to be reached: medians.
fn goals(measurement: &Measurement, text: &mut String) {
    let median = |values: &mut dyn Iterator<Item = f64>| spread(values).0;
    // The way back begins with the wakes.
    let awake_s = |split: &Split| split.done.get("hosts awake").map_or(0.0, |(_, at)| *at);
    let nights = || measurement.nights.iter();
    let lost = |light: bool| {
        let runs = measurement.runs.iter().filter(move |run| run.case == Case::Lost && run.light == light);
        runs.map(|run| run.gap_s)
    };
    let busy = "three doubles are resumed on two cores, and clients of a load balancer wait for its next try";
    let rows = [
        (
            "Moderate → Light, at most 3 s without live migrations: the whole, with them",
            3.0,
            median(&mut nights().map(|night| night.to_light.took_s)),
            "this figure has the live migrations in it, which the goal leaves out: a second and more of it",
        ),
        (
            "Light → Moderate, at most 3 s and the wakes: after them",
            3.0,
            median(&mut nights().map(|night| night.to_moderate.took_s - awake_s(&night.to_moderate))),
            "it has live migrations as well",
        ),
        ("real server lost in Moderate, longest gap, at most 2.5 s", 2.5, median(&mut lost(false)), busy),
        ("base server lost in Light with all groups, longest gap, at most 2.5 s", 2.5, median(&mut lost(true)), busy),
    ];
    super::report::goals(&rows, text);
}

/// Writes `docs/measurements/pss.md` from `pss.json`.
///
/// # Errors
/// There is no such measurement.
pub fn document() -> Result<PathBuf> {
    let path = file(NAME)?;
    let text = std::fs::read_to_string(&path).context("there is no measurement yet: run tests/campaign pss")?;
    let measurement: Measurement =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let stale = stale(&measurement.commit)?;
    let out = path.with_extension("md");
    let page = format!(
        "# Measurement: {NAME}\n\nGenerated by `tests/campaign {NAME} --table` from `{NAME}.json`.\n\n{}",
        table(&measurement, stale)
    );
    write(&out, page)?;
    Ok(out)
}
