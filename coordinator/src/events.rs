//! The log that operators read: notes of the core, numbered, kept over restarts.

use crate::clock::unix_ms;
use anyhow::Context as _;
use kage_coordinator_core::{Note, Severity};
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::broadcast;

/// Notes kept in memory and shown by `kagectl events`; the file has more.
const KEPT: usize = 10_000;
/// At start, a file larger than this is moved aside.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A numbered note.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbered {
    /// Rises by one, over restarts too.
    pub seq: u64,
    /// Wall clock, for people.
    pub unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub note: Note,
}

/// All of them.
#[derive(Clone)]
pub struct Events(Arc<Mutex<Inner>>);

/// What a watcher is given.
pub struct Watched {
    /// Some of what is kept.
    pub kept: Vec<Numbered>,
    /// Number of the oldest that is kept.
    pub oldest: u64,
    /// What comes.
    pub live: broadcast::Receiver<Numbered>,
}

struct Inner {
    kept: VecDeque<Numbered>,
    seq: u64,
    live: broadcast::Sender<Numbered>,
    file: File,
    path: PathBuf,
    broken: bool,
}

impl Events {
    /// Reads `events.jsonl` in the state directory.
    ///
    /// # Errors
    /// If it can't be opened for writing.
    pub fn load(state: &Path) -> anyhow::Result<Self> {
        let path = state.join("events.jsonl");
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_BYTES) {
            std::fs::rename(&path, state.join("events.1.jsonl"))
                .with_context(|| format!("{} can't be moved aside", path.display()))?;
        }
        let mut kept = VecDeque::new();
        let mut whole = true;
        if let Ok(file) = File::open(&path) {
            // A line cut short by a crash, or spoilt by a bad disk, is skipped: bytes, as it may be no text at all.
            for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
                let read = serde_json::from_slice::<Numbered>(&line);
                whole = read.is_ok();
                kept.extend(read);
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{} can't be opened", path.display()))?;
        if !whole {
            // What comes next is not to be lost with it.
            let _ended = writeln!(file);
        }
        // A number that a bad disk has spoilt stands where it belongs now.
        kept.make_contiguous().sort_by_key(|kept: &Numbered| kept.seq);
        let seq = kept.back().map_or(0, |kept| kept.seq);
        let (live, _) = broadcast::channel(1024);
        Ok(Self(Arc::new(Mutex::new(Inner { kept, seq, live, file, path, broken: false }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Log, keep, publish.
    pub fn add(&self, note: Note) {
        let target = note.target.as_ref().map_or("-", |target| target.as_str());
        match note.severity {
            Severity::Info => tracing::info!(target, kind = note.kind, "{}", note.text),
            Severity::Warning => tracing::warn!(target, kind = note.kind, "{}", note.text),
            Severity::Alert => tracing::error!(target, kind = note.kind, "{}", note.text),
        }
        let mut inner = self.lock();
        inner.seq = inner.seq.saturating_add(1);
        let numbered = Numbered { seq: inner.seq, unix_ms: unix_ms(), note };
        let line = serde_json::to_string(&numbered).unwrap_or_default();
        let written = writeln!(inner.file, "{line}");
        if written.is_err() != inner.broken {
            inner.broken = written.is_err();
            if inner.broken {
                tracing::error!(path = %inner.path.display(), "events can't be written; supervision goes on: free space on its disk");
            }
        }
        inner.kept.push_back(numbered.clone());
        if inner.kept.len() > KEPT {
            inner.kept.pop_front();
        }
        // Nobody listening is fine.
        let _listeners = inner.live.send(numbered);
    }

    /// The first of what is kept above a number, and what comes.
    pub fn watch(&self, after: u64, most: usize) -> Watched {
        let inner = self.lock();
        let from = inner.kept.partition_point(|kept| kept.seq <= after);
        Watched {
            kept: inner.kept.range(from..).take(most).cloned().collect(),
            oldest: inner.kept.front().map_or(0, |kept| kept.seq),
            live: inner.live.subscribe(),
        }
    }

    /// All that is kept above a number.
    pub fn after(&self, after: u64) -> Vec<Numbered> {
        self.watch(after, usize::MAX).kept
    }

    /// Number of the last one.
    pub fn seq(&self) -> u64 {
        self.lock().seq
    }
}
