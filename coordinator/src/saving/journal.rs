//! Power saving's journal: its core as one whose inputs are journalled and replayed, and a replay told to people.

use jiff::tz::TimeZone;
use kage_coordinator_core::{
    journal::Core,
    replay::{Replay, Wall, Watch, stamp},
};
use kage_pss_core::{
    Input, Pss,
    execute::{Action, Severity},
    judge::Judgement,
    plan::Reason,
    policy::Policy,
};
use kage_types::{GroupName, Time};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::BufRead,
};

/// Power saving's core. Neither it nor the journal knows of the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Saver(pub Pss);

impl Core for Saver {
    type Event = Input;
    type Action = Action;
    type Config = Policy;
    type Brief<'a> = &'a Action;
    const CONFIG: &'static str = "policy";
    const STATE: &'static str = "pss";

    fn begin(now: Time, policy: Policy) -> Self {
        Self(Pss::new(now, policy))
    }

    fn take(&mut self, now: Time, input: Input, actions: &mut Vec<Action>) {
        self.0.step(now, input, actions);
    }

    fn brief(action: &Action) -> &Action {
        action
    }
}

/// Is it power saving's? By the first line: every file begins with a start or a snapshot.
pub fn is_journal(mut file: impl BufRead) -> bool {
    let mut line = String::new();
    // What can't be read is told by whoever reads all of it.
    let first: serde_json::Value = match file.read_line(&mut line) {
        Ok(_) => serde_json::from_str(&line).unwrap_or_default(),
        Err(_) => return false,
    };
    first.pointer("/start/policy").or(first.pointer("/snapshot/pss")).is_some()
}

/// Tells what was done and why nothing more was, whenever that changes.
pub struct Story<'a> {
    zone: &'a TimeZone,
    wall: Option<Wall>,
    seq: u64,
    conditions: BTreeMap<GroupName, String>,
    reasons: BTreeSet<String>,
    say: &'a mut dyn FnMut(String),
}

impl<'a> Story<'a> {
    /// Line by line to `say`, with times of this zone.
    pub fn new(zone: &'a TimeZone, say: &'a mut dyn FnMut(String)) -> Self {
        Self { zone, wall: None, seq: 0, conditions: BTreeMap::new(), reasons: BTreeSet::new(), say }
    }

    fn tell(&mut self, now: Time, text: &str) {
        let at = self.wall.map_or_else(|| now.to_string(), |wall| stamp(wall.at(now), self.zone));
        (self.say)(format!("{at}  {:>7}  {text}", self.seq));
    }

    fn conditions(&mut self, core: &Pss, now: Time) {
        let Some(inventory) = core.inventory() else { return };
        let found: BTreeMap<GroupName, String> =
            inventory.groups.iter().map(|(name, group)| (name.clone(), group.condition.to_string())).collect();
        for (name, condition) in &found {
            let before = self.conditions.get(name).cloned();
            match before {
                Some(before) if before == *condition => {}
                Some(before) => self.tell(now, &format!("{name}: {before} -> {condition} condition")),
                None => self.tell(now, &format!("{name}: {condition} condition")),
            }
        }
        self.conditions = found;
    }

    /// Only those that are new: figures that count down are the same reason.
    fn reasons(&mut self, core: &Pss, now: Time) {
        let reasons = core.report(now).reasons;
        let new: Vec<&Reason> = reasons.iter().filter(|reason| !self.reasons.contains(&steady(reason))).collect();
        for reason in new {
            self.tell(now, &format!("why: {reason}"));
        }
        self.reasons = reasons.iter().map(steady).collect();
    }
}

/// Without figures, but for those of judgements that are waited for.
fn steady(reason: &Reason) -> String {
    let text = reason.to_string();
    if let Reason::Waiting { .. } = reason {
        return text;
    }
    let figure = |word: &str| word.trim_start_matches('(').starts_with(|first: char| first.is_ascii_digit());
    text.split(' ').map(|word| if figure(word) { "#" } else { word }).collect::<Vec<_>>().join(" ")
}

impl Watch<Saver> for Story<'_> {
    fn origin(&mut self, core: &Saver, now: Time, fresh: bool, wall: Option<Wall>) {
        self.wall = wall;
        if fresh {
            self.reasons.clear();
            self.tell(now, "power saving begins");
        }
        self.conditions(&core.0, now);
    }

    fn before(&mut self, _: &Saver, seq: u64, now: Time, input: &Input) {
        self.seq = seq;
        if let Input::Configure(_) = input {
            self.tell(now, "its figures are changed");
        }
    }

    fn after(&mut self, core: &Saver, now: Time, actions: &[Action]) {
        for action in actions {
            if let Action::Note(note) = action {
                let severity = match note.severity {
                    Severity::Info => "",
                    Severity::Warning => "warning: ",
                    Severity::Alert => "ALERT: ",
                };
                self.tell(now, &format!("{severity}{}", note.text));
            }
        }
        self.conditions(&core.0, now);
        self.reasons(&core.0, now);
    }
}

/// What a replay reached, for people.
#[must_use]
pub fn summary(replay: &Replay<Saver>, zone: &TimeZone) -> String {
    let mut text = replay.heading(zone);
    let Some((Saver(core), now)) = replay.core() else { return text };
    for (name, group) in core.inventory().iter().flat_map(|there| &there.groups) {
        let judged = core.judged().get(name);
        let class = judged.and_then(|judged| judged.class);
        let class = class.map_or_else(|| "not measured".to_owned(), |class| format!("{class} load class"));
        let more = match judged.map(|judged| judged.judgement) {
            Some(Judgement::Waiting { to, more }) => format!(", {more} more judgements to {to}"),
            Some(Judgement::Due { to }) => format!(", {to} is due"),
            Some(Judgement::Unmeasured | Judgement::Suits) | None => String::new(),
        };
        let _ = writeln!(text, "  {name}: {} condition, {class}{more}", group.condition);
    }
    for (name, host) in core.inventory().iter().flat_map(|there| &there.hosts) {
        let _ = writeln!(text, "  {name}: {:?}", host.state);
    }
    if let Some(plan) = core.executor().plan() {
        let _ = writeln!(text, "  a transition of {} steps is under way", plan.steps.len());
    }
    for reason in core.report(now).reasons {
        let _ = writeln!(text, "  why: {reason}");
    }
    text
}
