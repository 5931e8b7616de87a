//! The log of power saving (fig. 4.10 and 4.11): judgements, conditions and steps, of our own kinds and texts.

use super::{HUNDREDTHS, clock};
use kage_proto::coordinator::v1::Event;
use std::fmt::Write as _;

/// Of all its events.
pub fn log(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        for line in lines(event) {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{} {line}", clock(event.unix_ms, HUNDREDTHS));
        }
    }
    text
}

/// Of one event.
fn lines(event: &Event) -> Vec<String> {
    let text = event.text.as_str();
    match event.kind.as_str() {
        "pss-judged" => judged(text).into_iter().collect(),
        "pss-unmeasured" => unmeasured(text).into_iter().collect(),
        "pss-measured" => {
            let group = text.split_once(" is measured again");
            group.map(|(group, _)| format!("{group}_is_normal")).into_iter().collect()
        }
        "pss-begun" => {
            let changes = text.split_once(": ").map_or("", |(_, rest)| rest);
            let changes = changes.split_once(';').map_or(changes, |(changes, _)| changes);
            let line = |(group, from, to)| format!("Change_of_condition:_{group}_({from}->{to})");
            parse(changes).map(line).collect()
        }
        "pss-step-begun" => begun(text.trim_start_matches("begun: ")).into_iter().collect(),
        "pss-step-done" | "pss-step-undone" => done(text.trim_start_matches("done: ")).into_iter().collect(),
        "pss-committed" => {
            // But for some steps: not complete.
            let Some(changes) = text.strip_prefix("transition done: ") else { return Vec::new() };
            let conditions = parse(changes).map(|(group, _, to)| format!("{to}_condition_({group})"));
            ["Change_of_condition_Complete".to_owned()].into_iter().chain(conditions).collect()
        }
        _ => Vec::new(),
    }
}

/// `mail Moderate -> Light, web Moderate -> Light`
fn parse(changes: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    changes.split(", ").filter_map(|change| {
        let (group, classes) = change.split_once(' ')?;
        let (from, to) = classes.split_once(" -> ")?;
        Some((group, from, to))
    })
}

/// `mail: Light load class, 6 judgements running; …`
fn judged(text: &str) -> Option<String> {
    let (group, rest) = text.split_once(": ")?;
    let (class, rest) = rest.split_once(" load class, ")?;
    let (count, _) = rest.split_once(' ')?;
    Some(format!("{class}_load_class_({group}):_{count}"))
}

/// `ftp1 can't be measured: ftp can't be judged`
fn unmeasured(text: &str) -> Option<String> {
    let (vm, rest) = text.split_once(" can't be measured: ")?;
    let (group, _) = rest.split_once(' ')?;
    Some(format!("Cannot_measure_load_of_{vm}_({group})"))
}

fn begun(step: &str) -> Option<String> {
    let words: Vec<&str> = step.split(' ').collect();
    match words.as_slice() {
        ["live", "migration", "of", vm, from, "->", to] => {
            Some(format!("Start_of_live_migration:_{}_({from}->{to})", vm.trim_end_matches(':')))
        }
        ["suspend", "host", host] => Some(format!("Start_to_suspend_{host}")),
        ["wake", "host", host] => Some(format!("Start_to_activate_{host}")),
        _ => None,
    }
}

fn done(step: &str) -> Option<String> {
    let words: Vec<&str> = step.split(' ').collect();
    match words.as_slice() {
        ["virtual", "IP", vip, from, "->", to] => {
            Some(format!("Virtual_IP:_{}_({from}->{to})", vip.trim_end_matches(':')))
        }
        ["live", "migration", "of", vm, from, "->", to] => {
            Some(format!("Live_migration:_{}_({from}->{to})", vm.trim_end_matches(':')))
        }
        ["suspend", "host", host] => Some(format!("Suspend_{host}")),
        ["wake", "host", host] => Some(format!("Activate_suspended_{host}")),
        ["suspend", vm, "on", _] => Some(format!("Suspend_{vm}")),
        ["resume", vm, "on", _] => Some(format!("Resume_{vm}")),
        _ => None,
    }
}
