//! Which rule of docs/safety.md a decision rests on.

use super::Rule;
use crate::{Coordinator, Note, config::Guard};
use kage_types::TargetName;

/// Names and texts; the names are what entries refer to.
const RULES: &[(&str, &str)] = &[
    ("1", "A command confers nothing: told to hold, the new owner asks for a lease and is granted it."),
    (
        "5",
        "Takeover: the next epoch is durable in SIF; then release, proof or patience. Somebody who still answers stops it.",
    ),
    ("5a", "The owner acknowledged that it let go: nothing need be outlived."),
    ("5b", "Its power reads off, and no grant or consent is younger than the reading: a dead machine serves nothing."),
    (
        "5c",
        "Patience: every grant and every consent is older than L(1 + 2ρ), so its kernel has closed the address itself.",
    ),
    ("6", "Bars from a majority of voters: no consent below the new epoch from now on, and when the last was given."),
    ("7", "A coordinator acts only under a term of SIF; after a new one it outwaits what an earlier may have granted."),
    ("9", "A planned stop is no failure: a machine that goes down releases first."),
    ("10", "A machine without a guard in its kernel: takeover after release or proof only."),
    ("conviction", "Silence of the lease and a bad ping or probe convict; neither alone does (\"When to act\")."),
    (
        "storm brake",
        "More than half of the failure domains dark at once, or all: hold and alert; only proof counts (\"When to act\").",
    ),
    ("own stall", "A coordinator that was itself stalled discards what it saw (\"When to act\")."),
    ("order", "Maintenance and disarm withhold action; leases, grants and observation go on (README, \"Day to day\")."),
    ("graded", "Restart, then reboot, then the backup: what cures with less is tried first (docs/modes.md)."),
    (
        "budget",
        "Each rung only so often within a window; out of takeovers, the backup keeps serving (docs/configuration.md).",
    ),
    (
        "hold-down",
        "Taken over too often: it does not return by itself before the window is over (docs/configuration.md).",
    ),
    (
        "quarantine",
        "A machine that comes and goes: nothing is brought to it while there is another place (docs/operations.md).",
    ),
    (
        "hours",
        "It returns by itself only in failback_hours, and with failback = \"manual\" or \"keep\" never (docs/operations.md).",
    ),
    (
        "one writer",
        "No double of a single writer runs before release, proof or its writer_fence (\"Never two writers\").",
    ),
];

/// The rule of that name.
pub(super) fn rule(name: &str) -> Option<Rule> {
    let (name, text) = RULES.iter().find(|(known, _)| *known == name)?;
    Some(Rule { name: (*name).to_owned(), text: (*text).to_owned() })
}

/// In the order of the list.
pub(super) fn order(name: &str) -> usize {
    RULES.iter().position(|(known, _)| *known == name).unwrap_or(RULES.len())
}

/// What a note rests on.
pub(super) fn of_note(note: &Note, core: &Coordinator, target: &TargetName) -> Option<&'static str> {
    Some(match note.kind.as_str() {
        "network-trouble" | "network-normal" | "alarm" => "conviction",
        "confirmed" if note.text.starts_with("lost") => "conviction",
        "confirmed" | "service-down" | "service-trouble" | "restarting" | "service-normal" | "rebooting" => "graded",
        "restarts-used-up" | "down" => "budget",
        "held-down" => "hold-down",
        "quarantine" | "quarantine-over" | "only-place" => "quarantine",
        "held" | "waits" if note.text.contains("in quarantine") => "quarantine",
        "waits" | "kept" => "hours",
        "double-lost" => "conviction",
        "held" => held(core, target),
        "storm-brake" | "storm-over" => "storm brake",
        "stalled" => "own stall",
        "withheld" | "order-given" | "order-lifted" | "order-stands" | "unprotected" => "order",
        "epoch-durable" | "epoch-refused" | "vip-answers" => "5",
        "released" => "5a",
        "secured" => secured(&note.text),
        "vip-set" | "hold-failed" => "1",
        "term" | "term-lost" | "sif-away" => "7",
        "going-down" => "9",
        "not-fenced" | "fenced" | "unfence-failed" => "one writer",
        _ => return None,
    })
}

fn secured(text: &str) -> &'static str {
    if text.contains(": released;") {
        "5a"
    } else if text.contains("proved off") {
        "5b"
    } else {
        "5c"
    }
}

/// Why it is held, in the order in which the core asks.
fn held(core: &Coordinator, target: &TargetName) -> &'static str {
    if core.storm_brake().is_some() {
        return "storm brake";
    }
    let agent = core.cluster().targets.get(target).map(|target| &target.agent);
    if !core.patience_allowed(agent) {
        let machine = agent.and_then(|agent| core.cluster().agents.get(agent));
        return if machine.is_some_and(|machine| machine.guard == Guard::None) { "10" } else { "6" };
    }
    "one writer"
}
