//! The explanation for people, at most 100 columns wide.

use super::{Entry, Explanation, MoveStory, Outcome, Source};
use crate::replay::stamp;
use jiff::tz::TimeZone;
use std::fmt::Write as _;

/// Longest line.
const WIDTH: usize = 100;

impl Outcome {
    /// In a word or two.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::TakenOver => "taken over",
            Outcome::BeingTakenOver => "being taken over",
            Outcome::MovedByOperator => "moved by the operator",
            Outcome::NotTakenOver => "not taken over",
            Outcome::Cured => "cured by a restart",
            Outcome::FalseAlarm => "false alarm",
            Outcome::Placed => "placed",
            Outcome::Undecided => "not decided",
            Outcome::Quiet => "nothing happened",
        }
    }
}

impl Source {
    fn words(&self) -> String {
        match self {
            Source::Lease => "lease".into(),
            Source::Ping => "ping".into(),
            Source::Probe(service) => format!("probe {service}"),
            Source::Agent(name) => format!("agent {name}"),
            Source::Power => "power".into(),
            Source::Storage => "storage".into(),
            Source::Voter(name) => format!("voter {name}"),
            Source::Sif => "SIF".into(),
            Source::Operator => "operator".into(),
            Source::Decision => "decision".into(),
        }
    }
}

impl Explanation {
    /// Everything, wrapped.
    #[must_use]
    pub fn to_text(&self, zone: &TimeZone) -> String {
        let mut text = String::new();
        paragraph(&mut text, &format!("{}: ", self.outcome.as_str().to_uppercase()), &self.summary);
        let when = self.unix_ms.map_or_else(String::new, |unix_ms| format!("{}, ", stamp(unix_ms, zone)));
        let lasted = match self.lasted_ms {
            Some(ms) => format!("; over at {}", offset(ms)),
            None => String::new(),
        };
        if !self.entries.is_empty() {
            let _ = writeln!(text, "+0 ms is {when}clock {:.3} s{lasted}", self.clock_ms / 1000.0);
        }
        for remark in &self.remarks {
            paragraph(&mut text, "note: ", remark);
        }
        if !self.entries.is_empty() {
            text.push_str("\nWhat was seen and decided\n");
        }
        for entry in &self.entries {
            paragraph(&mut text, &begin(entry), &line(entry));
        }
        self.moves.iter().for_each(|story| told(&mut text, story));
        if !self.rules.is_empty() {
            text.push_str("\nRules (docs/safety.md)\n");
            for rule in &self.rules {
                paragraph(&mut text, &format!("  {:<12} ", rule.name), &rule.text);
            }
        }
        if !self.earlier.is_empty() {
            text.push_str("\nEarlier: --at NUMBER explains them\n");
            for earlier in self.earlier.iter().rev().take(10) {
                let when = earlier.unix_ms.map_or_else(String::new, |unix_ms| format!("{}  ", stamp(unix_ms, zone)));
                let _ = writeln!(text, "  {:>8}  {when}{}", earlier.seq, earlier.outcome.as_str());
            }
        }
        text
    }
}

fn told(text: &mut String, story: &MoveStory) {
    let MoveStory { vip, cause, from, to, epoch, lease, waits_for, stages, .. } = story;
    let epoch = epoch.map_or_else(|| "a new epoch, not durable yet".into(), |epoch| format!("epoch {epoch}"));
    text.push('\n');
    paragraph(text, "", &format!("Move of {vip} ({cause}): from {from} to {to} at {epoch}"));
    text.push_str("  Lease\n");
    lease.iter().for_each(|line| paragraph(text, "    ", line));
    for wait in waits_for {
        paragraph(text, "    waits for ", wait);
    }
    text.push_str("  Stages                                   at         took\n");
    for stage in stages {
        let _ = writeln!(text, "    {:<32} {:>12} {:>9.1} ms", stage.name, offset(stage.ms), stage.took_ms);
    }
}

fn offset(ms: f64) -> String {
    if ms.abs() >= 100_000.0 { format!("{:+.1} s", ms / 1000.0) } else { format!("{ms:+.1} ms") }
}

fn begin(entry: &Entry) -> String {
    let source = entry.source.words();
    format!("{:>12}  {source:<13} ", offset(entry.ms))
}

fn line(entry: &Entry) -> String {
    let Entry { text, kind, rule, again, .. } = entry;
    let mut line = match kind {
        Some(kind) => format!("{kind}: {text}"),
        None => text.clone(),
    };
    if let Some((times, ms)) = again {
        let _ = write!(line, " (again ×{times}, last {})", offset(*ms));
    }
    if let Some(rule) = rule {
        let _ = write!(line, " [{rule}]");
    }
    line
}

/// Words on lines that fit, the first after `first`, the others under its end.
fn paragraph(text: &mut String, first: &str, words: &str) {
    let indent = first.chars().count();
    text.push_str(first);
    let mut column = indent;
    for (index, word) in words.split_whitespace().enumerate() {
        let width = word.chars().count();
        if index > 0 && column + 1 + width > WIDTH && column > indent {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}
