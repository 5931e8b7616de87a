//! The answer: which story, how it ended, and why.

use super::{
    BEFORE, Earlier, Entry, Explanation, Following, Line, MoveStory, Outcome, Source, Story, Teller, after, ms_between,
};
use crate::{
    Coordinator,
    why::{Freed, moves, rules},
};
use kage_types::{TargetName, Time, whole_millis};
use std::collections::BTreeSet;

impl Teller {
    /// Is the answer known from here on, or does it begin before?
    pub(in crate::why) fn begins_before(&self) -> bool {
        match self.chosen() {
            Some(story) => story.partial,
            None => self.question.at.is_some() && self.then.is_none(),
        }
    }

    /// The chosen story: the one at that moment, else the last; none: nothing happened.
    pub(in crate::why) fn chosen(&self) -> Option<&Story> {
        let all = || self.stories.iter().chain(&self.open);
        let Some(at) = self.question.at else { return all().next_back() };
        // One that has begun by then, and had not ended long before.
        all().rev().find(|story| {
            let begun = !at.is_before(story.seq, story.began.before(BEFORE), story.wall);
            begun && story.ended.is_none_or(|end| at.is_before(u64::MAX, end + BEFORE, story.wall))
        })
    }

    /// The answer, with the core as it was at the journal's end.
    ///
    /// # Errors
    /// In words: there is no such target.
    pub(in crate::why) fn explanation(&self, core: &Coordinator, now: Time) -> Result<Explanation, String> {
        let name = self.target.clone()?;
        let Some(story) = self.chosen() else { return Ok(self.quiet(core, &name, now)) };
        let t0 = story.began;
        let wall = |at: Time| story.wall.map(|wall| wall.at(at));
        let mut entries: Vec<Entry> = Vec::new();
        let silent = Line {
            at: story.heard.unwrap_or(t0),
            seq: story.seq,
            source: Source::Lease,
            text: "the last request for its lease, before".into(),
            kind: None,
            rule: None,
            again: None,
            check: false,
        };
        let mut lines: Vec<&Line> = story.lines.iter().collect();
        if story.heard.is_some() {
            lines.push(&silent);
        }
        lines.sort_by_key(|line| line.at);
        for line in lines {
            entries.push(Entry {
                ms: ms_between(t0, line.at),
                unix_ms: wall(line.at),
                seq: line.seq,
                source: line.source.clone(),
                text: line.text.clone(),
                kind: line.kind.clone(),
                rule: line.rule.map(str::to_owned),
                again: line.again.map(|(times, at)| (times, ms_between(t0, at))),
            });
        }
        let moves: Vec<MoveStory> = story
            .moves
            .iter()
            .map(|following| following.story(core, t0, &self.stages_before(story, following)))
            .collect();
        let mut used: BTreeSet<(usize, &str)> =
            entries.iter().filter_map(|entry| entry.rule.as_deref()).map(|rule| (rules::order(rule), rule)).collect();
        if moves.iter().any(|story| story.freed.is_some() && story.lease.iter().any(|line| line.contains("barred"))) {
            used.insert((rules::order("6"), "6"));
        }
        let outcome = outcome(story, &moves);
        let mut remarks = Vec::new();
        if story.partial {
            remarks.push("the journal begins in the middle of this story".to_owned());
        }
        if story.left_out > 0 {
            remarks.push(format!("{} more observations are left out", story.left_out));
        }
        if self.question.at.is_none() && story.ended.is_some() {
            remarks.push(format!("this is the last that happened; now {}", standing(core, &name, now)));
        }
        let earlier = self.stories.iter().filter(|other| other.seq < story.seq);
        let earlier = earlier.map(|other| Earlier {
            seq: other.seq,
            unix_ms: other.wall.map(|wall| wall.at(other.began)),
            outcome: outcome_of(core, other),
        });
        Ok(Explanation {
            summary: summary(&name, story, outcome, &moves),
            target: name,
            outcome,
            clock_ms: ms_between(Time::ZERO, t0),
            unix_ms: wall(t0),
            lasted_ms: story.ended.map(|end| ms_between(t0, end)),
            remarks,
            rules: used.into_iter().filter_map(|(_, name)| rules::rule(name)).collect(),
            entries,
            earlier: earlier.collect(),
            moves,
        })
    }

    /// Nothing happened: how it is.
    fn quiet(&self, core: &Coordinator, name: &TargetName, now: Time) -> Explanation {
        let since = self.first.unwrap_or(now);
        let at = if self.question.at.is_some() { now } else { since };
        let mut remarks = Vec::new();
        let summary = match (&self.then, self.question.at) {
            (Some(then), Some(_)) => {
                remarks.push(format!("at the journal's end {}", standing(core, name, now)));
                format!("nothing was happening to {name} then: {then}")
            }
            (None, Some(_)) => {
                format!("the journal says nothing of that time; at its end {}", standing(core, name, now))
            }
            (_, None) => {
                format!(
                    "nothing happened to {name} in the {:?} of this journal: {}",
                    whole_millis(now.since(since)),
                    standing(core, name, now)
                )
            }
        };
        let earlier = self.stories.iter().chain(&self.open);
        Explanation {
            target: name.clone(),
            outcome: Outcome::Quiet,
            summary,
            clock_ms: ms_between(Time::ZERO, at),
            unix_ms: self.wall.map(|wall| wall.at(at)),
            lasted_ms: None,
            remarks,
            entries: Vec::new(),
            moves: Vec::new(),
            rules: Vec::new(),
            earlier: earlier
                .map(|other| Earlier {
                    seq: other.seq,
                    unix_ms: other.wall.map(|wall| wall.at(other.began)),
                    outcome: outcome_of(core, other),
                })
                .collect(),
        }
    }

    /// What led to a move.
    fn stages_before(&self, story: &Story, following: &Following) -> Vec<(&'static str, Time)> {
        let noted = |kinds: &[&str]| {
            let kind = |line: &&Line| {
                line.kind.as_deref().is_some_and(|kind| kinds.contains(&kind)) && line.at <= following.began
            };
            story.lines.iter().rev().find(kind).map(|line| line.at)
        };
        let first = |kinds: &[&str]| {
            let kind = |line: &&Line| {
                line.kind.as_deref().is_some_and(|kind| kinds.contains(&kind)) && line.at <= following.began
            };
            story.lines.iter().find(kind).map(|line| line.at)
        };
        let mut stages = Vec::new();
        if following.told_again {
            return stages;
        }
        let mut push = |name, at: Option<Time>| stages.extend(at.map(|at| (name, at)));
        match following.cause {
            "takeover" => {
                push("last heard", story.heard);
                push("noticed", first(&["network-trouble", "service-down", "service-trouble"]).or(Some(story.began)));
                push("confirmed", noted(&["confirmed", "restarts-used-up", "backup-server"]));
            }
            "failover" => push("asked for", noted(&["failover"])),
            "failback" => {
                push("healthy", noted(&["target-up"]));
                push("returning", noted(&["returning", "failback"]));
            }
            _ => {}
        }
        stages
    }
}

/// How a target is, in a sentence.
pub(super) fn standing(core: &Coordinator, name: &TargetName, now: Time) -> String {
    let (Some(view), Some(target)) = (core.target(name), core.cluster().targets.get(name)) else {
        return format!("{name} is not configured");
    };
    let mut text = format!("{name} is in mode {} for {:?}", view.mode, whole_millis(now.since(view.since)));
    if !view.detail.is_empty() {
        text += &format!(" ({})", view.detail);
    }
    for vip in &target.vips {
        if let Some(row) = core.vip(*vip).and_then(|state| state.row) {
            text += &format!("; {vip} belongs to {} at epoch {}", row.owner, row.epoch);
        }
    }
    let asked = core.agent(&target.agent).1;
    let asked = asked.map_or_else(
        || "never asked for its lease".into(),
        |at| format!("asked {:?} ago", whole_millis(now.since(at))),
    );
    format!("{text}; {} {asked}; ping {}, service {}", target.agent, view.ping, view.service)
}
fn last_of<'a>(story: &'a Story, kinds: &[&str]) -> Option<&'a Line> {
    story.lines.iter().rev().find(|line| line.kind.as_deref().is_some_and(|kind| kinds.contains(&kind)))
}

fn outcome(story: &Story, moves: &[MoveStory]) -> Outcome {
    let moved = |cause: &str| moves.iter().find(|story| story.cause == cause);
    if let Some(takeover) = moved("takeover") {
        let done = moves.iter().any(|story| story.cause == "takeover" && story.done) || takeover.freed.is_some();
        return if done {
            Outcome::TakenOver
        } else if story.ended.is_some() {
            Outcome::FalseAlarm
        } else {
            Outcome::BeingTakenOver
        };
    }
    if moved("failover").is_some() {
        return Outcome::MovedByOperator;
    }
    if let Some(line) = last_of(story, &["held", "withheld", "service-normal", "network-normal", "alarm"]) {
        return match line.kind.as_deref() {
            Some("held" | "withheld") => Outcome::NotTakenOver,
            Some("service-normal") => Outcome::Cured,
            Some(_) | None => Outcome::FalseAlarm,
        };
    }
    match story.mode {
        "target-server-recovery" | "ended" => Outcome::TakenOver,
        _ if !moves.is_empty() => Outcome::Placed,
        _ if story.ended.is_some() => Outcome::FalseAlarm,
        _ => Outcome::Undecided,
    }
}

/// Of another story.
fn outcome_of(core: &Coordinator, story: &Story) -> Outcome {
    let moves: Vec<MoveStory> = story.moves.iter().map(|following| following.story(core, story.began, &[])).collect();
    outcome(story, &moves)
}

fn summary(name: &TargetName, story: &Story, outcome: Outcome, moves: &[MoveStory]) -> String {
    let text_of = |kinds: &[&str]| last_of(story, kinds).map(|line| line.text.clone()).unwrap_or_default();
    let mut text = match outcome {
        Outcome::TakenOver => {
            let takeover = moves.iter().find(|story| story.cause == "takeover");
            let Some(takeover) = takeover else {
                return format!("{name} had been taken over before; {}", ending(story, name));
            };
            let how = match takeover.freed {
                Some(Freed::Release) => "its owner had released it",
                Some(Freed::Proof) => "its owner was proved off",
                Some(Freed::Patience) | None => "its owner's lease had been outlived",
            };
            let why = text_of(&["backup-server"]);
            let why = why.rsplit_once('(').map_or(why.as_str(), |(_, why)| why.trim_end_matches(')'));
            let stage = takeover.stages.iter().find(|stage| stage.name == moves::SET).or(takeover.stages.last());
            let served = stage.map_or(0.0, |stage| stage.ms);
            format!(
                "{name} was taken over ({why}): {} served {} {served:.0} ms after the first sign; {how}",
                takeover.to, takeover.vip
            )
        }
        Outcome::BeingTakenOver => {
            let waits: Vec<&str> = moves.iter().flat_map(|story| story.waits_for.iter().map(String::as_str)).collect();
            format!("{name} is being taken over; it waits for {}", waits.join("; "))
        }
        Outcome::MovedByOperator => format!("{name} was moved to its double because the operator asked for it"),
        Outcome::NotTakenOver => format!("{name} was not taken over: {}", text_of(&["held", "withheld"])),
        Outcome::Cured => {
            format!("{name} was not taken over: a restart cured it ({})", text_of(&["service-down", "service-trouble"]))
        }
        Outcome::FalseAlarm => {
            let why = text_of(&["network-normal", "alarm", "rolled-back"]);
            let why = if why.is_empty() { "it was well again before anything was done".to_owned() } else { why };
            format!("{name} was not taken over: {why}")
        }
        Outcome::Placed if story.ended.is_none() => {
            let waits: Vec<&str> = moves.iter().flat_map(|story| story.waits_for.iter().map(String::as_str)).collect();
            format!("the virtual IPs of {name} are being put in their place; that waits for {}", waits.join("; "))
        }
        Outcome::Placed => format!("the virtual IPs of {name} were put in their place"),
        Outcome::Undecided => {
            format!("{name} is being looked at: {}", text_of(&["network-trouble", "service-trouble"]))
        }
        Outcome::Quiet => format!("nothing happened to {name}"),
    };
    if matches!(outcome, Outcome::TakenOver | Outcome::MovedByOperator) {
        text += "; ";
        text += &ending(story, name);
    }
    text
}

/// How it stands at the story's end.
fn ending(story: &Story, name: &TargetName) -> String {
    let t0 = story.began;
    if let Some(end) = story.ended {
        let home = story.moves.iter().any(|following| following.cause == "failback");
        return if home {
            format!("{name} serves again since {}", after(end, t0))
        } else {
            format!("over at {}", after(end, t0))
        };
    }
    match last_of(
        story,
        &[
            "held-down",
            "waits",
            "kept",
            "down",
            "withheld",
            "cannot-wake",
            "target-away",
            "target-up",
            "target-back",
            "waking",
        ],
    ) {
        Some(line) => format!("it does not serve again yet: {}", line.text),
        None => "it does not serve again yet".to_owned(),
    }
}
