//! The measurement as a file and as tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::measure::{Run, Stages};
use super::variant::{Trouble, Variant};
use crate::lab::campaign::footer;
use crate::lab::report::spread;

/// What the part above detection may take (docs/safety.md's takeover: resume, VIP, announcement).
const GOAL_MS: f64 = 250.0;

/// A measurement file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    /// The code that was measured.
    pub commit: String,
    /// The machine and the circumstances.
    pub conditions: BTreeMap<String, String>,
    /// Every run.
    pub runs: Vec<Run>,
}

/// Both tables in Markdown, and under what conditions they were measured.
#[must_use]
pub fn failover(measurement: &Measurement) -> String {
    let mut text = outages(measurement);
    text.push_str("\n## Where Kagemusha's time goes\n\n");
    text.push_str(&breakdown(measurement));
    text.push('\n');
    footer(&mut text, &measurement.commit, &measurement.conditions, None);
    for run in measurement.runs.iter().filter(|run| !run.problems.is_empty()) {
        let _ = writeln!(
            text,
            "\nFailed: {} {} {}: {}.",
            run.variant.name(),
            run.trouble.name(),
            run.number,
            run.problems.join("; ")
        );
    }
    text
}

fn of(measurement: &Measurement, variant: Variant, trouble: Trouble) -> Vec<&Run> {
    measurement.runs.iter().filter(|run| run.variant == variant && run.trouble == trouble).collect()
}

fn outages(measurement: &Measurement) -> String {
    let mut text = String::from(
        "Milliseconds without an answer, median (worst). *Two owners*: how long both machines spoke as the address at \
         once, by a capture on the switch, worst run. *After healing*: the worst outage that the end of the fault \
         caused by itself.\n\n\
         | | service crash | power lost | frozen | cut | two owners: frozen | cut | after healing: frozen | cut | runs (failed) |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for variant in Variant::ALL {
        let all: Vec<&Run> = measurement.runs.iter().filter(|run| run.variant == variant).collect();
        if all.is_empty() {
            continue;
        }
        let good = |trouble| -> Vec<&Run> {
            of(measurement, variant, trouble).into_iter().filter(|run| run.problems.is_empty()).collect()
        };
        let outage = |trouble| {
            let runs = good(trouble);
            let (median, _, worst) = spread(runs.iter().map(|run| run.outage_ms));
            if runs.is_empty() { "–".to_owned() } else { format!("{median:.0} ({worst:.0})") }
        };
        let worst = |trouble, of: fn(&Run) -> f64| {
            let runs = good(trouble);
            let (_, _, worst) = spread(runs.iter().map(|run| of(run)));
            if runs.is_empty() { "–".to_owned() } else { format!("{worst:.0}") }
        };
        let failed = all.iter().filter(|run| !run.problems.is_empty()).count();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} ({failed}) |",
            variant.title(),
            outage(Trouble::Service),
            outage(Trouble::Power),
            outage(Trouble::Frozen),
            outage(Trouble::Cut),
            worst(Trouble::Frozen, |run| run.two_owner_ms),
            worst(Trouble::Cut, |run| run.two_owner_ms),
            worst(Trouble::Frozen, |run| run.heal_outage_ms),
            worst(Trouble::Cut, |run| run.heal_outage_ms),
            all.len(),
        );
    }
    text
}

/// A step's name and how it is read.
type Step = (&'static str, fn(&Stages) -> Option<f64>);

const STEPS: [Step; 7] = [
    ("detected", |stages| stages.detected),
    ("confirmed", |stages| stages.confirmed),
    ("epoch durable", |stages| stages.epoch),
    ("double resumed", |stages| stages.resumed),
    ("secured", |stages| stages.secured),
    ("announced", |stages| stages.announced),
    ("first answer", |stages| stages.answered),
];

fn breakdown(measurement: &Measurement) -> String {
    let mut text = String::from(
        "Milliseconds since the fault, medians. *Secured*: the old owner's lease is outlived, nobody else can own the \
         address; until then it is detection and patience, what comes after is *added*.\n\n| |",
    );
    for (name, _) in STEPS {
        let _ = write!(text, " {name} |");
    }
    text.push_str(" added, median (worst) | goal |\n|---|");
    text.push_str(&"---|".repeat(STEPS.len() + 2));
    text.push('\n');
    for variant in Variant::ALL {
        for trouble in Trouble::ALL {
            let runs = of(measurement, variant, trouble);
            let stages: Vec<&Stages> =
                runs.iter().filter(|run| run.problems.is_empty()).filter_map(|run| run.stages.as_ref()).collect();
            if stages.is_empty() {
                continue;
            }
            let _ = write!(text, "| {}, {} |", variant.title(), trouble.title());
            for (_, read) in STEPS {
                let times: Vec<f64> = stages.iter().filter_map(|stages| read(stages)).collect();
                let (median, _, _) = spread(times.iter().copied());
                let _ = if times.is_empty() { write!(text, " – |") } else { write!(text, " {median:.0} |") };
            }
            let added = stages.iter().filter_map(|stages| Some(stages.answered? - stages.secured?));
            let (median, _, worst) = spread(added);
            let met = if median <= GOAL_MS { "met" } else { "missed" };
            let _ = writeln!(text, " {median:.0} ({worst:.0}) | {GOAL_MS:.0}: {met} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(variant: Variant, trouble: Trouble, outage_ms: f64, stages: Option<Stages>) -> Run {
        Run {
            variant,
            trouble,
            number: 1,
            outage_ms,
            heal_outage_ms: 7.0,
            two_owner_ms: 0.0,
            stray_frames: 0,
            served_by: None,
            stages,
            problems: vec![],
        }
    }

    #[test]
    fn the_tables_show_medians_and_what_is_added() {
        let stages = Stages { secured: Some(1_800.0), answered: Some(1_900.0), ..Stages::default() };
        let measurement = Measurement {
            commit: "abc".into(),
            conditions: BTreeMap::new(),
            runs: vec![
                run(Variant::KagemushaNormal, Trouble::Power, 1_900.0, Some(stages)),
                run(Variant::KeepalivedDefault, Trouble::Power, 3_000.0, None),
                run(Variant::KeepalivedDefault, Trouble::Power, 3_400.0, None),
            ],
        };
        let text = failover(&measurement);
        assert!(text.contains("| **Kagemusha, `normal`** | – | 1900 (1900) | – |"), "{text}");
        assert!(text.contains("| keepalived | – | 3200 (3400) |"), "{text}");
        assert!(text.contains("| 1800 | – | 1900 | 100 (100) | 250: met |"), "{text}");
        assert!(!text.contains("Pacemaker"), "{text}");
    }
}
