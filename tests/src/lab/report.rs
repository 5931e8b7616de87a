//! What a drill found.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::client::{self, Outage, Sample};
use super::run::{ms, text};
use super::speech::Speech;

/// Frames past the guard of a machine when it froze leave it this soon after the thaw, or a rule is broken.
pub const QUEUED_MS: f64 = 20.0;

/// One run of a drill.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// When the fault was injected, nanoseconds since 1970.
    pub injected_ns: u64,
    /// When it was healed.
    pub healed_ns: u64,
    /// Every outage that clients saw.
    pub outages: Vec<Outage>,
    /// The longest that began before the fault was healed: the fault's cost.
    pub fault_outage_ms: f64,
    /// The longest that began afterwards: the cost of healing and coming home.
    pub return_outage_ms: f64,
    /// The longest time between two good answers in the whole run.
    pub longest_gap_ms: f64,
    /// Questions asked, and answered.
    pub asked: usize,
    /// Questions answered in time.
    pub answered: usize,
    /// Who spoke as the address.
    pub speech: Speech,
    /// It was frozen: frames that were already past its guard may leave within [`QUEUED_MS`] of the thaw.
    pub thawed: bool,
    /// What did not go as expected, apart from the figures.
    pub problems: Vec<String>,
}

impl RunReport {
    /// Puts a run's evidence together.
    #[must_use]
    pub fn new(injected_ns: u64, healed_ns: u64, samples: &[Sample], speech: Speech, problems: Vec<String>) -> Self {
        let outages = client::outages(samples);
        let longest = |after: bool| {
            outages
                .iter()
                .filter(|outage| (outage.start_ns >= healed_ns) == after)
                .map(|outage| outage.ms)
                .fold(0.0, f64::max)
        };
        Self {
            injected_ns,
            healed_ns,
            fault_outage_ms: longest(false),
            return_outage_ms: longest(true),
            longest_gap_ms: client::longest_gap_ms(samples),
            asked: samples.len(),
            answered: samples.iter().filter(|sample| sample.ok).count(),
            outages,
            thawed: false,
            speech,
            problems,
        }
    }

    /// Whether nothing went wrong: service came back and home, and never two owners.
    #[must_use]
    pub fn good(&self) -> bool {
        let queued =
            |stray: &super::speech::Word| stray.t_ns >= self.healed_ns && ms(stray.t_ns - self.healed_ns) <= QUEUED_MS;
        let all_shown = self.speech.stray_count == self.speech.strays.len();
        let harmless = self.thawed && all_shown && self.speech.strays.iter().all(queued);
        self.problems.is_empty() && (harmless || self.speech.stray_count == 0 && self.speech.two_owner_ms <= 0.0)
    }

    /// The run in a line, and its faults below.
    #[must_use]
    pub fn line(&self, number: u32) -> String {
        let owners: Vec<String> = self
            .speech
            .intervals
            .iter()
            .map(|interval| {
                let start = (ms(interval.start_ns) - ms(self.injected_ns)) / 1e3;
                let end = (ms(interval.end_ns) - ms(self.injected_ns)) / 1e3;
                format!("{} {start:+.2}..{end:+.2}s", interval.machine)
            })
            .collect();
        let mut line = format!(
            "run {number}: outage {:.0} ms, coming home {:.0} ms, two owners {:.3} ms ({} frames); {}",
            self.fault_outage_ms,
            self.return_outage_ms,
            self.speech.two_owner_ms,
            self.speech.stray_count,
            owners.join(", "),
        );
        for stray in self.speech.strays.iter().take(5) {
            let at = (ms(stray.t_ns) - ms(self.injected_ns)) / 1e3;
            let _ = write!(line, "\n  stray: {} sent {} at {at:+.3} s", stray.machine, stray.kind);
        }
        for problem in &self.problems {
            let _ = write!(line, "\n  problem: {problem}");
        }
        line
    }
}

/// All runs of a drill.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The drill.
    pub drill: String,
    /// Its target.
    pub target: String,
    /// Where captures, samples and single reports are.
    pub folder: String,
    /// The runs.
    pub runs: Vec<RunReport>,
}

/// The middle of `values`, and their ends: (median, least, greatest); zeros if there are none.
#[must_use]
pub fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.last()) {
        (Some(&least), Some(&greatest)) => {
            let middle = values.len() / 2;
            let median =
                if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
            (median, least, greatest)
        }
        _ => (0.0, 0.0, 0.0),
    }
}

/// Goals beside what was reached, and where a goal was not: why. (goal, limit, reached, why not).
pub fn goals(rows: &[(&str, f64, f64, &str)], text: &mut String) {
    text.push_str("### Goals\n\n| Goal | reached | |\n|---|---|---|\n");
    for (goal, limit, value, why) in rows {
        let (mark, why) = if value <= limit { ("yes", "") } else { ("no", *why) };
        let _ = writeln!(text, "| {goal} | {mark}: {value:.2} | {why} |");
    }
    text.push('\n');
}

impl Report {
    /// A report without runs yet.
    #[must_use]
    pub fn new(drill: &str, target: &str, folder: &Path) -> Self {
        Self { drill: drill.to_owned(), target: target.to_owned(), folder: text(folder), runs: Vec::new() }
    }

    /// Whether every run was good.
    #[must_use]
    pub fn good(&self) -> bool {
        self.runs.iter().all(RunReport::good)
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// None in practice.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("cannot write the report as JSON")
    }

    /// The report in a few lines.
    #[must_use]
    pub fn summary(&self) -> String {
        let (median, least, greatest) = spread(self.runs.iter().map(|run| run.fault_outage_ms));
        let (home, _, home_worst) = spread(self.runs.iter().map(|run| run.return_outage_ms));
        let (_, _, two) = spread(self.runs.iter().map(|run| run.speech.two_owner_ms));
        format!(
            "{} of {}: {} of {} runs good; outage median {median:.0} ms ({least:.0}..{greatest:.0}); \
             coming home median {home:.0} ms (worst {home_worst:.0}); two owners worst {two:.3} ms\nevidence: {}",
            self.drill,
            self.target,
            self.runs.iter().filter(|run| run.good()).count(),
            self.runs.len(),
            self.folder,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(spread([4.0, 1.0, 2.0, 3.0].into_iter()), (2.5, 1.0, 4.0));
        assert_eq!(spread(std::iter::empty()), (0.0, 0.0, 0.0));
    }
}
