//! Replaying a journal: the same core is stepped with the recorded events and must want the same done.
//!
//! Lines are fed one by one ([`Replayer::line`]); where they come from is the caller's business.

mod difference;
mod moment;
mod summary;

pub use difference::Difference;
pub use moment::{Moment, stamp};

use crate::{
    Coordinator,
    journal::{self, Core, Head, Record, Unread, What, brief},
};
use kage_types::Time;
use serde_json::Value;
use std::{
    fmt,
    io::{self, BufRead},
    sync::Arc,
};

/// Where a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its file, as it was given.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Why a journal can't be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// In the middle: not what a crash or a full disk leaves.
    #[error("{place}: no line of a journal: {why}")]
    Bad {
        /// Where.
        place: Place,
        /// The parser's words.
        why: String,
    },
    /// Neither start nor snapshot before the first event.
    #[error(
        "{place}: the journal begins in the middle: there is neither a start nor a snapshot before event {seq}; give the file \
         before it first (journal.1.jsonl), or, if it was written by a version that recorded no starts, the cluster.toml \
         of that time with --config"
    )]
    NoBeginning {
        /// Where.
        place: Place,
        /// The first event.
        seq: u64,
    },
    /// Written by another version.
    #[error("{place}: written by kage-coordinator {version}, and {why}; replay it with that version")]
    Foreign {
        /// Where.
        place: Place,
        /// The writer's.
        version: String,
        /// What is not understood.
        why: String,
    },
    /// The replayed core wants something else done.
    #[error(transparent)]
    Difference(Box<Difference>),
}

/// Looks on while a journal is replayed.
pub trait Watch<C: Core = Coordinator> {
    /// A process begins, or replaying begins at a snapshot; `wall` turns its clock into the wall clock's.
    fn origin(&mut self, core: &C, now: Time, fresh: bool, wall: Option<Wall>) {
        let _ = (core, now, fresh, wall);
    }
    /// This is about to happen, as event `seq`.
    fn before(&mut self, core: &C, seq: u64, now: Time, event: &C::Event) {
        let _ = (core, seq, now, event);
    }
    /// It has happened.
    fn after(&mut self, core: &C, now: Time, actions: &[C::Action]) {
        let _ = (core, now, actions);
    }
}

/// Nobody looks on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;
impl<C: Core> Watch<C> for Nobody {}

/// A piece of a journal.
#[derive(Clone, Debug)]
pub enum Input {
    /// A line and where it is.
    Line(Place, String),
    /// A file ends.
    EndOfFile,
}

/// A file's lines, whatever carries them.
pub fn inputs<R: BufRead>(name: &str, reader: R) -> impl Iterator<Item = io::Result<Input>> + use<R> {
    let file: Arc<str> = name.into();
    let named = move |error: io::Error| io::Error::new(error.kind(), format!("{file} can't be read: {error}"));
    let (file, mut place) = (Arc::<str>::from(name), 0);
    let lines = reader.split(b'\n').map(move |line| {
        place += 1;
        let line = line.map_err(&named)?;
        let text = String::from_utf8(line).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
        Ok(Input::Line(Place { file: file.clone(), line: place }, text))
    });
    lines.chain([Ok(Input::EndOfFile)])
}

/// Replays everything and compares.
///
/// # Errors
/// As [`Replayer::line`]; and what `lines` says of files that can't be read.
pub fn replay<C: Core, E: fmt::Display>(
    lines: impl Iterator<Item = Result<Input, E>>,
    replayer: &mut Replay<C>,
) -> Result<(), String> {
    replay_watched(lines, replayer, &mut Nobody)
}

/// The same, and somebody looks on.
///
/// # Errors
/// As [`replay`].
pub fn replay_watched<C: Core, E: fmt::Display>(
    lines: impl Iterator<Item = Result<Input, E>>,
    replayer: &mut Replay<C>,
    watch: &mut dyn Watch<C>,
) -> Result<(), String> {
    for input in lines {
        match input.map_err(|error| error.to_string())? {
            Input::Line(place, text) => {
                if replayer.line(&place, &text, watch).map_err(|fault| fault.to_string())? == Flow::Enough {
                    return Ok(());
                }
            }
            Input::EndOfFile => replayer.end_of_file(),
        }
    }
    Ok(())
}

/// One instant on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wall {
    now: Time,
    unix_ms: u64,
}

impl Wall {
    /// They were read together.
    #[must_use]
    pub fn new(now: Time, unix_ms: u64) -> Self {
        Self { now, unix_ms }
    }

    /// When that was, milliseconds since 1970.
    #[must_use]
    pub fn at(self, time: Time) -> u64 {
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        (self.unix_ms + ms(time.since(self.now))).saturating_sub(ms(self.now.since(time)))
    }
}

/// Is there more to be done?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next line.
    Go,
    /// What was asked for is reached; this line was not done.
    Enough,
}

/// Counts of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events replayed.
    pub events: u64,
    /// Of these, with recorded actions, all the same.
    pub compared: u64,
    /// Snapshots that were compared with the state reached.
    pub snapshots: u64,
    /// Events that could not be replayed, because lines before them are missing.
    pub skipped: u64,
    /// Processes.
    pub processes: u64,
}

/// Replays the coordinator's journal.
pub type Replayer = Replay<Coordinator>;

/// Replays a journal, line by line.
#[derive(Debug)]
pub struct Replay<C: Core = Coordinator> {
    core: Option<C>,
    seq: u64,
    now: Time,
    head: Option<Head>,
    wall: Option<Wall>,
    /// What may be the end of a file that was cut short.
    doubtful: Option<(Place, String)>,
    /// Lines are missing: nothing is replayed before the next start or snapshot.
    lost: bool,
    until: Option<Moment>,
    version: String,
    config: Option<C::Config>,
    counts: Counts,
    remarks: Vec<String>,
}

impl<C: Core> Replay<C> {
    /// By a program of this version.
    #[must_use]
    pub fn new(version: &str) -> Self {
        Self {
            core: None,
            seq: 0,
            now: Time::ZERO,
            head: None,
            wall: None,
            doubtful: None,
            lost: false,
            until: None,
            version: version.to_owned(),
            config: None,
            counts: Counts::default(),
            remarks: Vec::new(),
        }
    }

    /// Not further than this.
    #[must_use]
    pub fn until(mut self, until: Option<Moment>) -> Self {
        self.until = until;
        self
    }

    /// The configuration of processes whose start was not recorded.
    #[must_use]
    pub fn config(mut self, config: Option<C::Config>) -> Self {
        self.config = config;
        self
    }

    /// What was reached.
    #[must_use]
    pub fn core(&self) -> Option<(&C, Time)> {
        self.core.as_ref().map(|core| (core, self.now))
    }

    /// What was done.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What there is to be said beside.
    #[must_use]
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The next line.
    ///
    /// # Errors
    /// It can't be replayed, or leads to something else than recorded.
    pub fn line(&mut self, place: &Place, text: &str, watch: &mut dyn Watch<C>) -> Result<Flow, Fault> {
        if text.trim().is_empty() {
            return Ok(Flow::Go);
        }
        let record = match journal::read::<C>(text) {
            Ok(record) => record,
            Err(Unread::Unknown(why)) => {
                self.certain()?;
                return Err(Fault::Bad { place: place.clone(), why });
            }
            Err(Unread::Torn(why)) => {
                self.certain()?;
                self.doubtful = Some((place.clone(), why));
                return Ok(Flow::Go);
            }
        };
        if !matches!(record.what, What::Event(..)) {
            self.torn();
        }
        self.certain()?;
        let Record { seq, now, what } = record;
        match what {
            What::Start(head, config) => self.start(seq, now, head, *config, watch),
            What::Snapshot(head, core) => self.snapshot(place, seq, now, head, *core, watch)?,
            What::Foreign(head, why) => {
                // Reached by replaying, it is not needed.
                let reached = self.core.is_some() && !self.lost && seq == self.seq;
                if !reached {
                    return Err(Fault::Foreign { place: place.clone(), version: head.version, why });
                }
                self.remarks
                    .push(format!("{place}: a start or snapshot of version {} is passed over: {why}", head.version));
            }
            What::Event(event, actions) => return self.event(place, seq, now, *event, actions, watch),
        }
        Ok(Flow::Go)
    }

    /// A file ends: its last line may have been cut short by a crash.
    pub fn end_of_file(&mut self) {
        self.torn();
    }

    fn torn(&mut self) {
        if let Some((place, _)) = self.doubtful.take() {
            self.remarks.push(format!("{place}: cut short: the process was killed, or its disk was full; passed over"));
        }
    }

    fn certain(&mut self) -> Result<(), Fault> {
        match self.doubtful.take() {
            Some((place, why)) => Err(Fault::Bad { place, why }),
            None => Ok(()),
        }
    }

    fn begin(&mut self, seq: u64, now: Time, head: Option<Head>, core: C) {
        self.wall = head.as_ref().map(|head| Wall { now, unix_ms: head.unix_ms });
        if let Some(head) = head.as_ref().filter(|head| head.version != self.version) {
            let text = format!(
                "written by kage-coordinator {}, replayed by {}: a difference may be a change of the program",
                head.version, self.version
            );
            if !self.remarks.contains(&text) {
                self.remarks.push(text);
            }
        }
        (self.seq, self.now, self.head, self.lost) = (seq, now, head, false);
        self.core = Some(core);
    }

    fn start(&mut self, seq: u64, now: Time, head: Head, config: C::Config, watch: &mut dyn Watch<C>) {
        self.counts.processes += 1;
        let core = C::begin(now, config);
        self.begin(seq, now, Some(head), core.clone());
        watch.origin(&core, now, true, self.wall);
    }

    fn snapshot(
        &mut self,
        place: &Place,
        seq: u64,
        now: Time,
        head: Head,
        snapshot: C,
        watch: &mut dyn Watch<C>,
    ) -> Result<(), Fault> {
        match &self.core {
            Some(core) if !self.lost && seq == self.seq => {
                if *core != snapshot {
                    let state = |core: &C| vec![serde_json::to_value(core).unwrap_or(Value::Null)];
                    let (expected, got) = (state(&snapshot), state(core));
                    let place = place.clone();
                    let difference = Difference { place, seq, now, event: None, expected, got };
                    return Err(Fault::Difference(Box::new(difference)));
                }
                self.counts.snapshots += 1;
            }
            Some(_) | None => {
                if self.core.is_some() {
                    self.remarks.push(format!("{place}: replaying goes on from the snapshot after event {seq}"));
                } else {
                    self.counts.processes += 1;
                }
                self.begin(seq, now, Some(head), snapshot.clone());
                watch.origin(&snapshot, now, false, self.wall);
            }
        }
        Ok(())
    }

    fn event(
        &mut self,
        place: &Place,
        seq: u64,
        now: Time,
        event: C::Event,
        recorded: Option<Vec<Value>>,
        watch: &mut dyn Watch<C>,
    ) -> Result<Flow, Fault> {
        let wall = self.wall;
        if self.until.is_some_and(|until| until.is_before(seq, now, wall)) {
            return Ok(Flow::Enough);
        }
        // Before starts were recorded every process began with number 1.
        if seq == 1 && (self.core.is_none() || self.head.is_none()) {
            let Some(config) = self.config.clone() else {
                return Err(Fault::NoBeginning { place: place.clone(), seq });
            };
            self.counts.processes += 1;
            let core = C::begin(now, config);
            self.begin(0, now, None, core.clone());
            watch.origin(&core, now, true, None);
        }
        if self.core.is_none() && self.config.is_some() {
            self.counts.skipped += 1;
            return Ok(Flow::Go);
        }
        let Some(core) = self.core.as_mut() else {
            return Err(Fault::NoBeginning { place: place.clone(), seq });
        };
        if self.lost {
            self.counts.skipped += 1;
            return Ok(Flow::Go);
        }
        if seq != self.seq + 1 {
            self.lost = true;
            self.counts.skipped += 1;
            self.remarks.push(format!(
                "{place}: event {seq} follows {}: what is between is missing (full or slow disk, or a file left out); \
                 replaying goes on at the next start or snapshot",
                self.seq
            ));
            return Ok(Flow::Go);
        }
        if let (Some(unix_ms), None) = (C::wall(&event), self.wall) {
            self.wall = Some(Wall { now, unix_ms });
            watch.origin(core, now, false, self.wall);
        }
        watch.before(core, seq, now, &event);
        let shown = recorded.is_some().then(|| event.clone());
        let mut actions = Vec::new();
        core.take(now, event, &mut actions);
        (self.seq, self.now) = (seq, now);
        self.counts.events += 1;
        if let (Some(expected), Some(event)) = (recorded, shown) {
            let got: Vec<Value> = actions.iter().map(brief::<C>).collect();
            if got != expected {
                let event = serde_json::to_value(&event).ok();
                let difference = Difference { place: place.clone(), seq, now, event, expected, got };
                return Err(Fault::Difference(Box::new(difference)));
            }
            self.counts.compared += 1;
        }
        watch.after(core, now, &actions);
        Ok(Flow::Go)
    }
}
