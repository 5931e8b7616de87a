//! The journal: every event that the core was given, in order, and what it wanted done, so that its decisions can be
//! replayed and explained. The lines are the core's ([`kage_coordinator_core::journal`]); this is where they go.

use crate::clock::unix_ms;
use anyhow::Context as _;
use kage_coordinator_core::{
    Coordinator,
    journal::{self, Because, Core, FORMAT, Head},
};
use kage_types::Time;
use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// A journal's name, and how much of it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its file in the state directory.
    pub file: &'static str,
    /// Two files of this size are kept.
    pub bytes: u64,
    /// What does not wait for its disk.
    pub goes_on: &'static str,
}

/// Of the lease authority and supervision: some hours of a thousand agents, months of ten.
pub const SUPERVISION: Kind = Kind { file: "journal.jsonl", bytes: 256 * 1024 * 1024, goes_on: "supervision" };
/// Of power saving: counters of a virtual server, twice in each interval, are most of it; a week of twelve at 10 s.
pub const SAVING: Kind = Kind { file: "journal-pss.jsonl", bytes: 128 * 1024 * 1024, goes_on: "power saving" };

/// Lines waiting for the disk. When it hangs for longer, lines are lost and counted; deciding never waits.
const QUEUE: usize = 8192;
/// A snapshot after this much, so that an explanation need not replay everything; more, where snapshots are large:
/// one byte in sixteen at most.
const BETWEEN_SNAPSHOTS: u64 = 16 * 1024 * 1024;
/// Written together.
const BUFFER: usize = 32 * 1024;
/// While the disk is full, this much is kept for when it is not.
const KEPT: usize = 256 * 1024;
/// A line is on its way to the disk after this long.
const FLUSH: Duration = Duration::from_millis(200);
/// Events between two tries to send a snapshot to a writer that does not keep up: copying the state costs.
const TRY_AGAIN: u64 = 1000;

/// Something for the thread that writes.
enum Entry<C> {
    Line(Vec<u8>),
    Snapshot(Box<(u64, Time, Because, C)>),
    Flush(mpsc::SyncSender<()>),
}

/// Why the writer wants a snapshot; 0: it does not.
const LENGTH: u8 = 1;
const ROTATION: u8 = 2;
const GAP: u8 = 3;

/// Where events go. Writing happens on a thread of its own.
pub struct Journal<C: Core = Coordinator> {
    entries: mpsc::SyncSender<Entry<C>>,
    wanted: Arc<AtomicU8>,
    path: PathBuf,
    seq: u64,
    lost: u64,
    /// Lines were lost here; a snapshot is tried with this event.
    gap: Option<u64>,
}

impl<C: Core + Send + 'static> Journal<C> {
    /// Opens its file in the state directory; numbers go on from its last.
    ///
    /// # Errors
    /// If it can't be opened for writing.
    pub fn open(state: &Path, kind: Kind) -> anyhow::Result<Self> {
        let path = state.join(kind.file);
        let last = |path: &Path| last_number(path, kind.bytes);
        let seq = last(&path).or_else(|| last(&older(&path))).unwrap_or(0);
        let file = open(&path)?;
        let (entries, queue) = mpsc::sync_channel(QUEUE);
        let wanted = Arc::new(AtomicU8::new(0));
        let writer = Writer::new(path.clone(), file, wanted.clone(), kind);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&queue))
            .context("the journal's thread can't be started")?;
        Ok(Self { entries, wanted, path, seq, lost: 0, gap: None })
    }

    /// A process begins, with a core that was made at that time of this.
    pub fn start(&mut self, now: Time, config: &C::Config) {
        if let Ok(line) = journal::start_line::<C>(self.seq, now, &head(), config) {
            self.send(Entry::Line(line));
        }
    }

    /// An event, before the core is given it. What the core wants done is added with [`Pending::end`].
    pub fn begin(&mut self, now: Time, core: &C, event: &C::Event) -> Pending<'_, C> {
        self.snapshot_if_wanted(now, core);
        self.seq += 1;
        // Every event can be written.
        let line = journal::event_line(self.seq, now, event).unwrap_or_default();
        Pending { journal: self, line }
    }

    /// Reads what is written.
    pub fn reader(&self) -> Reader<C> {
        Reader { entries: self.entries.clone(), path: self.path.clone() }
    }

    fn snapshot_if_wanted(&mut self, now: Time, core: &C) {
        let because = match (self.wanted.load(Ordering::Relaxed), self.gap) {
            (_, Some(at)) if self.seq < at => return,
            (ROTATION, _) => Because::Rotation,
            (GAP, _) | (_, Some(_)) => Because::Gap,
            (0, None) => return,
            (_, None) => Because::Length,
        };
        self.wanted.store(0, Ordering::Relaxed);
        self.gap = None;
        self.send(Entry::Snapshot(Box::new((self.seq, now, because, core.clone()))));
    }
}

impl<C: Core> Journal<C> {
    fn send(&mut self, entry: Entry<C>) {
        if self.entries.try_send(entry).is_err() {
            self.lost += 1;
            self.gap = Some(self.seq + TRY_AGAIN);
            if self.lost.is_power_of_two() {
                tracing::warn!(lost = self.lost, "the journal's disk does not keep up: events are not journalled");
            }
        }
    }
}

impl<C: Core> Drop for Journal<C> {
    /// What was decided last is wanted most: the process does not end before it is written, if that is a matter of
    /// milliseconds.
    fn drop(&mut self) {
        flush(&self.entries, FLUSH);
    }
}

fn flush<C>(entries: &mpsc::SyncSender<Entry<C>>, patience: Duration) {
    let (done, written) = mpsc::sync_channel(1);
    if entries.try_send(Entry::Flush(done)).is_ok() {
        // A disk that hangs is not waited for.
        let _ = written.recv_timeout(patience).is_ok();
    }
}

/// An event that the core is being given. If the core does not survive it, it is journalled all the same.
pub struct Pending<'a, C: Core> {
    journal: &'a mut Journal<C>,
    line: Vec<u8>,
}

impl<C: Core> Pending<'_, C> {
    /// This is what the core wants done.
    pub fn end(mut self, actions: &[C::Action]) {
        if journal::add_actions::<C>(&mut self.line, actions).is_err() {
            // Half a list is no list.
            self.line.clear();
        }
    }
}

impl<C: Core> Drop for Pending<'_, C> {
    fn drop(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            line.push(b'}');
            self.journal.send(Entry::Line(line));
        }
    }
}

fn head() -> Head {
    Head { version: env!("CARGO_PKG_VERSION").into(), format: FORMAT, pid: std::process::id(), unix_ms: unix_ms() }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("1.jsonl")
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("the journal {} can't be opened", path.display()))
}

/// The number of the last whole line.
fn last_number(path: &Path, most: u64) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // A snapshot may be long.
    for part in [256 * 1024, 16 * 1024 * 1024, most] {
        file.seek(SeekFrom::Start(length.saturating_sub(part))).ok()?;
        let mut end = Vec::new();
        (&file).take(part).read_to_end(&mut end).ok()?;
        let text = String::from_utf8_lossy(&end);
        if let Some(number) = text.lines().rev().find_map(journal::number) {
            return Some(number);
        }
    }
    None
}

/// Reads the journal while it is being written.
pub struct Reader<C = Coordinator> {
    entries: mpsc::SyncSender<Entry<C>>,
    path: PathBuf,
}

impl<C> Clone for Reader<C> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), path: self.path.clone() }
    }
}

impl<C> Reader<C> {
    /// The files as they are now, the older first.
    ///
    /// # Errors
    /// If the newer can't be read.
    pub fn files(&self) -> anyhow::Result<Vec<(String, File)>> {
        flush(&self.entries, Duration::from_secs(1));
        let name = |path: &Path| path.display().to_string();
        let newer = File::open(&self.path).with_context(|| format!("{} can't be read", name(&self.path)))?;
        let older = older(&self.path);
        let older = File::open(&older).ok().map(|file| (name(&older), file));
        Ok(older.into_iter().chain([(name(&self.path), newer)]).collect())
    }
}

struct Writer {
    kind: Kind,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    flushed: Instant,
    size: u64,
    /// Written since the last start or snapshot, and how long that was.
    since: u64,
    longest: u64,
    rotate_at: u64,
    wanted: Arc<AtomicU8>,
    broken: bool,
    /// Lines were dropped.
    gap: bool,
}

impl Writer {
    fn new(path: PathBuf, mut file: File, wanted: Arc<AtomicU8>, kind: Kind) -> Self {
        let size = file.metadata().map_or(0, |meta| meta.len());
        let buffer = if ends_in_a_line(&path, size) {
            Vec::new()
        } else {
            // Cut short by a crash: what comes is a line of its own.
            b"\n".to_vec()
        };
        let _ = file.seek(SeekFrom::End(0)).is_ok();
        Self {
            kind,
            path,
            file,
            buffer,
            flushed: Instant::now(),
            size,
            since: 0,
            longest: 0,
            rotate_at: kind.bytes,
            wanted,
            broken: false,
            gap: false,
        }
    }

    fn run<C: Core>(mut self, queue: &mpsc::Receiver<Entry<C>>) {
        loop {
            match queue.recv_timeout(FLUSH) {
                Ok(Entry::Line(line)) => self.line(&line),
                Ok(Entry::Snapshot(snapshot)) => self.snapshot(&snapshot),
                Ok(Entry::Flush(done)) => {
                    self.flush();
                    // Whoever asked may have gone.
                    let _ = done.try_send(()).is_ok();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.flush(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.flush(),
            }
            if self.flushed.elapsed() >= FLUSH {
                self.flush();
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        if self.buffer.len() + line.len() > BUFFER {
            self.flush();
        }
        if self.broken && self.buffer.len() + line.len() > KEPT {
            self.gap = true;
            return;
        }
        self.buffer.extend_from_slice(line);
        self.buffer.push(b'\n');
        let length = line.len() as u64 + 1;
        self.size += length;
        self.since += length;
        if self.size > self.rotate_at {
            self.wanted.store(ROTATION, Ordering::Relaxed);
        } else if self.since > BETWEEN_SNAPSHOTS.max(16 * self.longest) {
            self.wanted.store(LENGTH, Ordering::Relaxed);
        }
    }

    fn snapshot<C: Core>(&mut self, snapshot: &(u64, Time, Because, C)) {
        let (seq, now, because, core) = snapshot;
        if *because == Because::Rotation {
            self.rotate();
        }
        let Ok(line) = journal::snapshot_line(*seq, *now, &head(), *because, core) else { return };
        self.line(&line);
        (self.since, self.longest) = (0, line.len() as u64);
        self.wanted.store(0, Ordering::Relaxed);
        self.flush();
    }

    fn rotate(&mut self) {
        self.flush();
        match std::fs::rename(&self.path, older(&self.path))
            .map_err(anyhow::Error::from)
            .and_then(|()| open(&self.path))
        {
            Ok(file) => {
                self.file = file;
                (self.size, self.rotate_at) = (0, self.kind.bytes);
            }
            Err(error) => {
                tracing::error!(%error, "the journal can't be rotated; it grows, and this is tried again");
                self.rotate_at = self.size + self.kind.bytes / 16;
            }
        }
    }

    /// Byte by byte in order: what a full disk does not take now it gets later, so that no line is broken.
    fn flush(&mut self) {
        self.flushed = Instant::now();
        while !self.buffer.is_empty() {
            let written = match self.file.write(&self.buffer) {
                Ok(0) => Err(std::io::ErrorKind::WriteZero.into()),
                other => other,
            };
            match written {
                Ok(count) => drop(self.buffer.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.broken, true) {
                        let goes_on = self.kind.goes_on;
                        tracing::error!(path = %self.path.display(), %error, "the journal can't be written; {goes_on} goes on: free space on its disk");
                    }
                    return;
                }
            }
        }
        if std::mem::take(&mut self.broken) {
            tracing::info!(path = %self.path.display(), "the journal is written again");
            if std::mem::take(&mut self.gap) {
                self.wanted.store(GAP, Ordering::Relaxed);
            }
        }
    }
}

fn ends_in_a_line(path: &Path, size: u64) -> bool {
    let last = || {
        let mut file = File::open(path).ok()?;
        file.seek(SeekFrom::Start(size.checked_sub(1)?)).ok()?;
        let mut byte = [0];
        file.read_exact(&mut byte).ok()?;
        Some(byte[0])
    };
    last().is_none_or(|byte| byte == b'\n')
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
