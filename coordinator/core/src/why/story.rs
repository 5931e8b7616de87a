//! Stories: from the first sign of trouble of a target until all is well again, as the replayed core lives through them.

use super::{
    Earlier, Entry, Explanation, MoveStory, Outcome, Question, Source,
    moves::{self, Following, after, ms_between},
    rules,
};
use crate::{
    Coordinator, Note,
    core::{JobFor, TargetJob, VipJob},
    event::{Action, AgentReport, CheckOutcome, Event, JobResult},
    placement::describe,
    replay::{Wall, Watch},
};
use kage_types::{AgentId, TargetName, Time, Vip, whole_millis};
use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

/// What was seen so long before the first sign belongs to the story.
const BEFORE: Duration = Duration::from_secs(5);
/// Of that, at most so much.
const KEPT_BEFORE: usize = 24;
/// A story of a machine that is away for days has more than anybody reads.
const MAX_ENTRIES: usize = 400;
/// Stories kept.
const MAX_STORIES: usize = 100;

/// An entry before it is told when it was.
#[derive(Clone, Debug)]
struct Line {
    at: Time,
    seq: u64,
    source: Source,
    text: String,
    kind: Option<String>,
    rule: Option<&'static str>,
    again: Option<(u32, Time)>,
    /// Of a check that is repeated: only news is told.
    check: bool,
}

/// One story, as it goes on.
#[derive(Clone, Debug)]
pub(super) struct Story {
    began: Time,
    seq: u64,
    /// It had begun before the journal did, or before where replaying began.
    pub partial: bool,
    ended: Option<Time>,
    heard: Option<Time>,
    lines: Vec<Line>,
    left_out: u32,
    moves: Vec<Following>,
    wall: Option<Wall>,
    mode: &'static str,
}

/// Looks on while a journal is replayed, and tells the story.
#[derive(Debug)]
pub struct Teller {
    question: Question,
    target: Result<TargetName, String>,
    seq: u64,
    wall: Option<Wall>,
    recent: VecDeque<Line>,
    stories: VecDeque<Story>,
    open: Option<Story>,
    pending: Vec<Line>,
    heard: Option<Time>,
    first: Option<Time>,
    /// The target as it was at the moment that was asked for.
    then: Option<String>,
}

impl Teller {
    /// To answer this.
    #[must_use]
    pub fn new(question: Question) -> Self {
        Self {
            question,
            target: Err("the journal is empty".into()),
            seq: 0,
            wall: None,
            recent: VecDeque::new(),
            stories: VecDeque::new(),
            open: None,
            pending: Vec::new(),
            heard: None,
            first: None,
            then: None,
        }
    }

    fn tell(&mut self, at: Time, source: Source, text: String) {
        let line = Line { at, seq: self.seq, source, text, kind: None, rule: None, again: None, check: false };
        self.pending.push(line);
    }

    fn check(&mut self, at: Time, source: Source, text: String) {
        self.tell(at, source, text);
        if let Some(line) = self.pending.last_mut() {
            line.check = true;
        }
    }

    fn observe(&mut self, core: &Coordinator, name: &TargetName, now: Time, event: &Event) {
        let Some(target) = core.cluster().targets.get(name) else { return };
        let (agent, backup) = (&target.agent, &target.backup.agent);
        let ours = |other: &AgentId| other == agent || other == backup;
        let by = |agent: &AgentId| Source::Agent(agent.to_string());
        match event {
            Event::Ask { agent: asker, via: None, .. } if asker == agent => {
                if self.open.is_some() && core.silent(now, agent) > core.silence_limit() {
                    let silent = whole_millis(core.silent(now, agent));
                    self.tell(now, Source::Lease, format!("{agent} asks again, after {silent:?} of silence"));
                }
            }
            Event::Ask { agent: asker, via: Some(voter), .. } if asker == agent => {
                self.check(
                    now,
                    Source::Lease,
                    format!("{agent} asks through {voter}: it can't reach the coordinator itself"),
                );
            }
            Event::Ask { .. } | Event::TermRenewed { .. } | Event::LedgerRead { .. } | Event::Tick => {}
            Event::AgentUp { agent, .. } if ours(agent) => {
                self.tell(now, by(agent), format!("the stream of {agent} is up"));
            }
            Event::AgentDown { agent, .. } if ours(agent) => {
                self.tell(now, by(agent), format!("the stream of {agent} ended"));
            }
            Event::AgentUp { .. } | Event::AgentDown { .. } => {}
            Event::Report { agent, report } => {
                let (relevant, text) = reported(report, &target.vips);
                if relevant && ours(agent) {
                    self.tell(now, by(agent), text);
                }
            }
            Event::TermAcquired { term, .. } => {
                self.tell(now, Source::Sif, format!("gives this coordinator term {term}"))
            }
            Event::TermLost { reason, .. } => self.tell(now, Source::Sif, format!("the term is over: {reason}")),
            Event::TermFailed { reason } => self.check(now, Source::Sif, format!("does not answer: {reason}")),
            Event::Move { target, back, force, .. } if target == name => {
                let what = if *back { "failback" } else { "failover" };
                let force = if *force { " --force" } else { "" };
                self.tell(now, Source::Operator, format!("kagectl {what} {target}{force}"));
            }
            Event::PutOrder { order, .. } => {
                self.tell(now, Source::Operator, format!("order {} by {}: {}", order.scope, order.who, order.reason));
            }
            Event::ClearOrder { scope, who, .. } => {
                self.tell(now, Source::Operator, format!("order {scope} lifted by {who}"));
            }
            Event::Adopt { target, who, .. } if target == name => {
                self.tell(now, Source::Operator, format!("kagectl adopt {target}, by {who}"));
            }
            Event::Reload { .. } => self.tell(now, Source::Operator, "the configuration is read again".into()),
            Event::Move { .. } | Event::Adopt { .. } | Event::OrdersRead { .. } => {}
            Event::Job { job, result } => {
                if let Some(what) = core.jobs.get(job) {
                    self.answered(core, name, now, what, result);
                }
            }
        }
    }

    fn answered(&mut self, core: &Coordinator, name: &TargetName, now: Time, what: &JobFor, result: &JobResult) {
        let Some(target) = core.cluster().targets.get(name) else { return };
        match what {
            JobFor::Target(of, job) if of == name => {
                let (source, check) = match job {
                    TargetJob::Ping => (Source::Ping, true),
                    TargetJob::Probe(index) => {
                        let service = target.services.get(*index).map_or("?", |service| service.name.as_str());
                        (Source::Probe(service.to_owned()), true)
                    }
                    TargetJob::Power(_) => (Source::Power, true),
                    TargetJob::Restart | TargetJob::Reboot => (Source::Agent(target.agent.to_string()), false),
                    TargetJob::Wake => (Source::Agent(target.backup.agent.to_string()), false),
                    TargetJob::Unfence => (Source::Storage, false),
                };
                let what = match job {
                    TargetJob::Ping | TargetJob::Probe(_) => checked(result),
                    TargetJob::Power(_) => power(result),
                    TargetJob::Restart => format!("restart: {}", describe(result)),
                    TargetJob::Reboot => format!("reboot: {}", describe(result)),
                    TargetJob::Wake => format!("magic packet: {}", describe(result)),
                    TargetJob::Unfence => format!("access given back: {}", describe(result)),
                };
                if check { self.check(now, source, what) } else { self.tell(now, source, what) }
            }
            JobFor::Vip(vip, job) if target.vips.contains(vip) => {
                let owner = core.vips.get(vip).and_then(|state| state.moving.as_ref());
                let to = owner.map_or_else(String::new, |moving| moving.to.agent.to_string());
                let from = owner.and_then(|moving| moving.from.as_ref());
                let from = from.map_or_else(String::new, |(from, _)| from.agent.to_string());
                let (source, text) = match job {
                    VipJob::Advance => (Source::Sif, format!("{vip}: {}", describe(result))),
                    VipJob::Bar(voter) => (Source::Voter(voter.to_string()), describe(result)),
                    VipJob::Release => (Source::Agent(from), format!("release of {vip}: {}", describe(result))),
                    VipJob::Prepare => (Source::Agent(to), format!("{vip} made ready: {}", describe(result))),
                    VipJob::Resume => (Source::Agent(to), format!("double resumed: {}", describe(result))),
                    VipJob::Conflict => (Source::Agent(to), looked(*vip, result)),
                    VipJob::Hold => (Source::Agent(to), format!("hold {vip}: {}", describe(result))),
                    VipJob::PowerOff => (Source::Power, format!("switched off: {}", describe(result))),
                    VipJob::PowerRead(_) => (Source::Power, power(result)),
                    VipJob::FenceStorage => (Source::Storage, format!("access revoked: {}", describe(result))),
                    VipJob::Quiet => (
                        Source::Agent(target.backup.agent.to_string()),
                        format!("double suspended: {}", describe(result)),
                    ),
                };
                self.tell(now, source, text);
            }
            JobFor::Ready { target: of, .. } if of == name => {
                let backup = target.backup.agent.to_string();
                self.tell(
                    now,
                    Source::Agent(backup),
                    format!("double resumed for the fail-over: {}", describe(result)),
                );
            }
            JobFor::Target(..)
            | JobFor::Vip(..)
            | JobFor::Ready { .. }
            | JobFor::LongLease(_)
            | JobFor::LongReturned(_)
            | JobFor::Pause(..)
            | JobFor::Order(_) => {}
        }
    }

    /// What the core noted about the target, or about what concerns every target.
    fn noted(&mut self, core: &Coordinator, name: &TargetName, now: Time, note: &Note) {
        const COMMON: [&str; 6] = ["storm-brake", "storm-over", "stalled", "term-lost", "sif-away", "order-given"];
        let concerns = match &note.target {
            Some(target) => target == name,
            None => COMMON.contains(&note.kind.as_str()),
        };
        // Those are agents' words, and told as such.
        if !concerns || ["vip-open", "vip-closed", "service-held"].contains(&note.kind.as_str()) {
            return;
        }
        self.tell(now, Source::Decision, note.text.clone());
        if let Some(line) = self.pending.last_mut() {
            line.kind = Some(note.kind.clone());
            line.rule = rules::of_note(note, core, name);
        }
    }

    fn add(story: &mut Story, line: Line) {
        if line.check
            && let Some(known) = story.lines.iter_mut().rev().find(|known| known.source == line.source)
            && known.text == line.text
        {
            let (times, _) = known.again.unwrap_or((0, line.at));
            known.again = Some((times + 1, line.at));
            return;
        }
        if story.lines.len() >= MAX_ENTRIES {
            story.left_out += 1;
            return;
        }
        story.lines.push(line);
    }

    fn close(&mut self, now: Time) {
        if let Some(mut story) = self.open.take() {
            story.ended = Some(now);
            self.stories.push_back(story);
            if self.stories.len() > MAX_STORIES {
                self.stories.pop_front();
            }
        }
    }

    fn begin(&mut self, now: Time, partial: bool, mode: &'static str) {
        let mut story = Story {
            began: now,
            seq: self.seq,
            partial,
            ended: None,
            heard: self.heard,
            lines: Vec::new(),
            left_out: 0,
            moves: Vec::new(),
            wall: self.wall,
            mode,
        };
        for line in self.recent.drain(..).filter(|line| now.since(line.at) <= BEFORE) {
            Self::add(&mut story, line);
        }
        self.open = Some(story);
    }

    /// Is the answer known from here on, or does it begin before?
    pub(super) fn begins_before(&self) -> bool {
        match self.chosen() {
            Some(story) => story.partial,
            None => self.question.at.is_some() && self.then.is_none(),
        }
    }

    /// The chosen story: the one at that moment, else the last; none: nothing happened.
    pub(super) fn chosen(&self) -> Option<&Story> {
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
    pub(super) fn explanation(&self, core: &Coordinator, now: Time) -> Result<Explanation, String> {
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

impl Watch for Teller {
    fn origin(&mut self, core: &Coordinator, now: Time, fresh: bool, wall: Option<Wall>) {
        self.wall = wall;
        self.target = super::resolve(core.cluster(), &self.question.name);
        let first = self.first.is_none();
        self.first.get_or_insert(now);
        let Ok(name) = self.target.clone() else { return };
        if fresh {
            self.heard = None;
            if let Some(mut story) = self.open.take() {
                for following in &mut story.moves {
                    following.ended = true;
                }
                story.wall = wall;
                self.open = Some(story);
                self.tell(
                    now,
                    Source::Decision,
                    "a coordinator's process starts: it knows only what the ledger says".into(),
                );
            }
        } else if first && troubled(core, &name) {
            let mode = core.target(&name).map_or("", |view| view.mode);
            self.begin(now, true, mode);
        }
    }

    fn before(&mut self, core: &Coordinator, seq: u64, now: Time, event: &Event) {
        self.seq = seq;
        let Ok(name) = self.target.clone() else { return };
        if let Some(story) = &mut self.open {
            moves::before(&mut story.moves, core, now, event);
        }
        if let Some(at) = self.question.at
            && self.then.is_none()
            && at.is_before(self.seq, now, self.wall)
            && self.first.is_some_and(|first| !at.is_before(0, first, self.wall))
        {
            self.then = Some(standing(core, &name, now));
        }
        self.observe(core, &name, now, event);
    }

    fn after(&mut self, core: &Coordinator, now: Time, actions: &[Action]) {
        let Ok(name) = self.target.clone() else { return };
        for action in actions {
            match action {
                Action::Note(note) => self.noted(core, &name, now, note),
                Action::Configured => self.target = super::resolve(core.cluster(), &self.question.name),
                _ => {}
            }
        }
        let troubled = troubled(core, &name);
        let mode = core.target(&name).map_or("", |view| view.mode);
        if self.open.is_none() && troubled {
            self.begin(now, false, mode);
        }
        let pending = std::mem::take(&mut self.pending);
        if let Some(story) = &mut self.open {
            for line in pending {
                Self::add(story, line);
            }
            let vips = core.cluster().targets.get(&name).map(|target| target.vips.clone()).unwrap_or_default();
            moves::after_step(&mut story.moves, core, now, vips.into_iter(), actions);
            story.mode = mode;
            if !troubled && mode != "starting" {
                self.close(now);
            }
        } else {
            for line in pending {
                // Of a check that is repeated, the last.
                self.recent.retain(|known| !line.check || known.source != line.source || known.text != line.text);
                self.recent.push_back(line);
            }
            while self.recent.len() > KEPT_BEFORE {
                self.recent.pop_front();
            }
        }
        let agent = core.cluster().targets.get(&name).map(|target| &target.agent);
        self.heard =
            if self.open.is_some() { self.heard } else { agent.and_then(|agent| core.agents.get(agent)?.alive) };
    }
}

/// Is there something to be told of?
fn troubled(core: &Coordinator, name: &TargetName) -> bool {
    let Some(view) = core.target(name) else { return false };
    let vips = core.cluster().targets.get(name).map(|target| &target.vips);
    let moving =
        vips.is_some_and(|vips| vips.iter().any(|vip| core.vips.get(vip).is_some_and(|state| state.moving.is_some())));
    moving || core.alarmed(name) || core.holds_back(name) || !["starting", "regular"].contains(&view.mode)
}

/// How a target is, in a sentence.
fn standing(core: &Coordinator, name: &TargetName, now: Time) -> String {
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

fn reported(report: &AgentReport, vips: &BTreeSet<Vip>) -> (bool, String) {
    match report {
        AgentReport::Opened(ask) => (vips.contains(&ask.vip), format!("{} is open at epoch {}", ask.vip, ask.epoch)),
        AgentReport::Lost { ask, reason } => {
            (vips.contains(&ask.vip), format!("{} is closed at epoch {}: {reason}", ask.vip, ask.epoch))
        }
        AgentReport::GoingDown { machine: true, what } => (true, format!("its machine is going down ({what})")),
        AgentReport::GoingDown { machine: false, what } => (true, format!("only the agent is stopping ({what})")),
        AgentReport::ServiceDown { service, detail } => (true, format!("service {service} is down: {detail}")),
        AgentReport::ServiceHeld { service, held: true } => (true, format!("holds {service} back for want of a lease")),
        AgentReport::ServiceHeld { service, held: false } => (true, format!("lets go of {service}")),
        AgentReport::VmCrashed { domain, detail } => (true, format!("VM {domain} crashed: {detail}")),
        AgentReport::Other(text) => (true, text.clone()),
    }
}

fn checked(result: &JobResult) -> String {
    match result {
        JobResult::Check(CheckOutcome::Ok) => "OK".into(),
        JobResult::Check(CheckOutcome::Error(why)) => format!("ERROR: {why}"),
        JobResult::Check(CheckOutcome::Ng(why)) => format!("NG: {why}"),
        JobResult::Done
        | JobResult::Failed(_)
        | JobResult::Unknown(_)
        | JobResult::Epoch(_)
        | JobResult::Barred(_)
        | JobResult::Answered(_) => format!("could not look: {}", describe(result)),
    }
}

fn power(result: &JobResult) -> String {
    if *result == JobResult::Done { "reads off".into() } else { format!("not read off: {}", describe(result)) }
}

fn looked(vip: Vip, result: &JobResult) -> String {
    match result {
        JobResult::Answered(None) => format!("nobody answers for {vip} (RFC 5227)"),
        JobResult::Answered(Some(mac)) => format!("{vip} still answers, from {mac}"),
        JobResult::Done
        | JobResult::Failed(_)
        | JobResult::Unknown(_)
        | JobResult::Epoch(_)
        | JobResult::Barred(_)
        | JobResult::Check(_) => format!("could not look who answers for {vip}: {}", describe(result)),
    }
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
                Some(super::Freed::Release) => "its owner had released it",
                Some(super::Freed::Proof) => "its owner was proved off",
                Some(super::Freed::Patience) | None => "its owner's lease had been outlived",
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
        &["held-down", "down", "withheld", "cannot-wake", "target-away", "target-up", "target-back", "waking"],
    ) {
        Some(line) => format!("it does not serve again yet: {}", line.text),
        None => "it does not serve again yet".to_owned(),
    }
}
