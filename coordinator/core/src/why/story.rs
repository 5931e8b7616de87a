//! Stories: from the first sign of trouble of a target until all is well again, as the replayed core lives through them.

mod answer;
mod seen;

use super::{
    Earlier, Entry, Explanation, MoveStory, Outcome, Question, Source,
    moves::{self, Following, after, ms_between},
};
use crate::{
    Coordinator,
    event::{Action, Event},
    replay::{Wall, Watch},
};
use answer::standing;
use kage_types::{TargetName, Time};
use std::{collections::VecDeque, time::Duration};

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
    /// The operator's command about the target that is being carried out.
    command: Option<u64>,
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
            command: None,
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
            if let Action::Note(note) = action {
                self.noted(core, &name, now, note);
            } else if let Action::Moved { command, result: Err(why) } = action
                && self.command == Some(*command)
            {
                self.tell(now, Source::Decision, format!("refused: {why}"));
            } else if *action == Action::Configured {
                self.target = super::resolve(core.cluster(), &self.question.name);
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
