//! What a change of condition was made of, from the coordinator's events: pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Beginnings of what a step is called in its event, and what that is for people.
const KINDS: [(&str, &str); 6] = [
    ("wake host", "hosts awake"),
    ("resume", "members resumed"),
    ("virtual IP", "VIPs moved"),
    ("live migration", "live migrations"),
    ("suspend host", "hosts asleep"),
    ("suspend", "members suspended"),
];

/// One direction: what was done, and when. All in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// From the change of load to the beginning of the first transition: measuring, and equal judgements running.
    pub judged_s: f64,
    /// From there to the end of the last transition.
    pub took_s: f64,
    /// How many transitions that took.
    pub transitions: usize,
    /// Of each kind of step: how many, and from the beginning to the last one's end.
    pub done: BTreeMap<String, (usize, f64)>,
    /// Steps that failed or were taken back, refusals.
    pub problems: Vec<String>,
}

fn at_ms(event: &Value) -> u64 {
    event["unix_ms"].as_u64().or_else(|| event["unix_ms"].as_str()?.parse().ok()).unwrap_or(0)
}

impl Split {
    /// From the events since `since_ms` (milliseconds since 1970), in order.
    #[must_use]
    pub fn of(events: &[Value], since_ms: u64) -> Self {
        let mut split = Self::default();
        let mut begun = None;
        for event in events {
            let (kind, text) = (event["kind"].as_str().unwrap_or(""), event["text"].as_str().unwrap_or(""));
            let at = at_ms(event);
            let since = |then: u64| std::time::Duration::from_millis(at.saturating_sub(then)).as_secs_f64();
            match kind {
                "pss-begun" => {
                    split.transitions += 1;
                    if begun.is_none() {
                        begun = Some(at);
                        split.judged_s = since(since_ms);
                    }
                }
                "pss-committed" => split.took_s = begun.map_or(0.0, since),
                "pss-step-done" => {
                    let step = text.trim_start_matches("done: ");
                    if let Some((_, name)) = KINDS.iter().find(|(word, _)| step.starts_with(word)) {
                        let done = split.done.entry((*name).to_owned()).or_default();
                        *done = (done.0 + 1, begun.map_or(0.0, since));
                    }
                }
                "pss-step-failed" | "pss-step-undone" | "pss-no-wake" | "pss-stuck" | "pss-rolled-back"
                | "pss-refused" => split.problems.push(format!("{kind}: {text}")),
                _ => {}
            }
        }
        split
    }

    /// For people, beside what the thesis measured.
    #[must_use]
    pub fn line(&self, thesis_s: f64) -> String {
        let mut done: Vec<_> = self.done.iter().collect();
        done.sort_by(|one, other| one.1.1.total_cmp(&other.1.1));
        let done: Vec<_> = done.iter().map(|(name, (count, at))| format!("{count} {name} at {at:.2} s")).collect();
        format!(
            "{:.2} s (thesis {thesis_s:.2} s) after {:.1} s of judgement: {}",
            self.took_s,
            self.judged_s,
            done.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_transition_is_split_by_kinds_of_steps() {
        let event = |unix_ms: u64, kind: &str, text: &str| json!({"unix_ms": unix_ms, "kind": kind, "text": text});
        let split = Split::of(
            &[
                event(8_000, "pss-begun", "mail Moderate -> Light"),
                event(8_200, "pss-step-done", "done: virtual IP 10.77.0.112: mail2 -> mail1"),
                event(8_300, "arranged", "other"),
                event(8_400, "pss-step-done", "done: suspend mail2 on rs2"),
                event(8_900, "pss-step-done", "done: suspend host rs2"),
                event(9_000, "pss-step-failed", "live migration of ftp1: rs2 -> rs1: no memory"),
                event(9_100, "pss-committed", "done"),
            ],
            2_000,
        );
        assert!((split.judged_s - 6.0).abs() < 1e-9 && (split.took_s - 1.1).abs() < 1e-9, "{split:?}");
        let counts: Vec<_> = split.done.iter().map(|(name, (count, _))| (name.as_str(), *count)).collect();
        assert_eq!(counts, [("VIPs moved", 1), ("hosts asleep", 1), ("members suspended", 1)]);
        assert_eq!(split.problems.len(), 1);
        let line = split.line(6.54);
        assert!(line.starts_with("1.10 s (thesis 6.54 s) after 6.0 s of judgement: 1 VIPs moved at 0.20 s"), "{line}");
    }
}
