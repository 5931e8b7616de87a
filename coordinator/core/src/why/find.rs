//! Finds where in a journal the answer is, and replays from the start or snapshot before it.

use super::{Explanation, Question, resolve, story::Teller};
use crate::{
    Coordinator,
    config::Cluster,
    journal::{self, What},
    replay::{Fault, Flow, Input, Replayer, Wall},
};
use kage_types::Time;
use std::collections::BTreeMap;

/// Notes that make a story, or are a part of one.
const KINDS: [&str; 12] = [
    "network-trouble",
    "service-down",
    "service-trouble",
    "alarm",
    "held",
    "withheld",
    "backup-server",
    "failover",
    "failback",
    "returning",
    "secured",
    "vip-set",
];

/// Where replaying can begin.
#[derive(Clone, Copy, Debug)]
struct Origin {
    index: usize,
    seq: u64,
    now: Time,
    wall: Option<Wall>,
}

/// Looks through a journal without replaying it.
#[derive(Debug, Default)]
pub struct Finder {
    lines: usize,
    origins: Vec<Origin>,
    last_origin: String,
    /// The last line in which each target's trouble is noted.
    noted: BTreeMap<String, usize>,
    with_actions: bool,
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = text.split_once(key)?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

impl Finder {
    /// The next line.
    pub fn line(&mut self, text: &str) {
        let index = self.lines;
        self.lines += 1;
        let head: String = text.chars().take(400).collect();
        if head.contains("\"start\":{") || head.contains("\"snapshot\":{") {
            let (seq, now) = (number_after(&head, "\"seq\":"), number_after(&head, "\"now\":"));
            let unix_ms = number_after(&head, "\"unix_ms\":");
            if let (Some(seq), Some(now)) = (seq, now.map(Time::from_nanos)) {
                self.origins.push(Origin { index, seq, now, wall: unix_ms.map(|unix_ms| Wall::new(now, unix_ms)) });
                text.clone_into(&mut self.last_origin);
            }
            return;
        }
        let Some((_, actions)) = text.split_once(",\"actions\":[") else { return };
        self.with_actions = true;
        for note in actions.split("\"note\":{\"target\":\"").skip(1) {
            let Some((target, rest)) = note.split_once('"') else { continue };
            let kind = rest.split_once("\"kind\":\"").and_then(|(_, rest)| rest.split_once('"'));
            if kind.is_some_and(|(kind, _)| KINDS.contains(&kind)) {
                self.noted.insert(target.to_owned(), index);
            }
        }
    }

    /// Lines to be passed over, the best first: each later one begins earlier.
    fn beginnings(&self, question: &Question) -> Vec<usize> {
        let mut all: Vec<Origin> = self.origins.clone();
        if let Some(at) = question.at {
            let by_then = |origin: &Origin| !at.is_before(origin.seq, origin.now, origin.wall);
            let count = all.iter().rposition(by_then).map_or(1, |last| last + 1);
            all.truncate(count);
        } else {
            let target = match journal::read::<Coordinator>(&self.last_origin).map(|record| record.what) {
                Ok(What::Start(_, cluster)) => resolve(&cluster, &question.name).ok(),
                Ok(What::Snapshot(_, core)) => resolve(core.cluster(), &question.name).ok(),
                Ok(What::Foreign(..) | What::Event(..)) | Err(_) => None,
            };
            let last = target.and_then(|target| self.noted.get(target.as_str()).copied());
            let needed = |origin: &Origin| last.is_none_or(|line| origin.index < line);
            if !self.with_actions {
                // Nothing says where: everything is replayed.
                all.truncate(1);
            } else if let Some(last) = all.iter().rposition(needed) {
                all.truncate(last + 1);
            }
        }
        let mut beginnings: Vec<usize> = all.into_iter().rev().map(|origin| origin.index).collect();
        if beginnings.is_empty() {
            beginnings.push(0);
        }
        beginnings
    }
}

/// Explains. `open` gives the journal from its beginning, each time anew.
///
/// # Errors
/// The journal can't be read or replayed; there is no such target. In words.
pub fn explain<I, E>(
    mut open: impl FnMut() -> Result<I, E>,
    question: &Question,
    version: &str,
    config: Option<&Cluster>,
) -> Result<Explanation, String>
where
    I: Iterator<Item = Result<Input, E>>,
    E: std::fmt::Display,
{
    let mut finder = Finder::default();
    for input in open().map_err(|error| error.to_string())? {
        if let Input::Line(_, text) = input.map_err(|error| error.to_string())? {
            finder.line(&text);
        }
    }
    let beginnings = finder.beginnings(question);
    let mut foreign = None;
    for (index, skip) in beginnings.iter().enumerate() {
        let last = index + 1 == beginnings.len();
        let lines = open().map_err(|error| error.to_string())?;
        match tell(lines, *skip, question, version, config) {
            Ok((teller, _, _)) if teller.begins_before() && !last => {}
            Ok((teller, replayer, stopped)) => {
                let Some((core, now)) = replayer.core() else { return Err("the journal is empty".into()) };
                let mut explanation = teller.explanation(core, now)?;
                explanation.remarks.extend(replayer.remarks().iter().cloned());
                explanation.remarks.extend(stopped);
                return Ok(explanation);
            }
            Err(Failed::Words(words)) => return Err(words),
            // A snapshot of another version: an earlier start may do.
            Err(Failed::Fault(fault @ Fault::Foreign { .. })) if !last => foreign = Some(fault),
            Err(Failed::Fault(fault)) => return Err(foreign.unwrap_or(fault).to_string()),
        }
    }
    Err("the journal is empty".into())
}

enum Failed {
    Words(String),
    Fault(Fault),
}

fn tell<E: std::fmt::Display>(
    lines: impl Iterator<Item = Result<Input, E>>,
    skip: usize,
    question: &Question,
    version: &str,
    config: Option<&Cluster>,
) -> Result<(Teller, Replayer, Option<String>), Failed> {
    let mut replayer = Replayer::new(version).config(config.cloned());
    let mut teller = Teller::new(question.clone());
    let mut left = skip;
    for input in lines {
        match input.map_err(|error| Failed::Words(error.to_string()))? {
            Input::Line(..) if left > 0 => left -= 1,
            Input::Line(place, text) => match replayer.line(&place, &text, &mut teller) {
                Ok(Flow::Go | Flow::Enough) => {}
                Err(Fault::Difference(difference)) => {
                    let text = format!(
                        "replaying ended at event {} ({}): the core of this version decides otherwise than was recorded; \
                         what follows is not explained",
                        difference.seq, difference.place
                    );
                    return Ok((teller, replayer, Some(text)));
                }
                Err(fault) => return Err(Failed::Fault(fault)),
            },
            Input::EndOfFile => replayer.end_of_file(),
        }
    }
    Ok((teller, replayer, None))
}
