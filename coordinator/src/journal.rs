//! The journal: every event that the core was given, in order, so that its decisions can be replayed.

use anyhow::Context as _;
use kage_coordinator_core::Event;
use kage_types::Time;
use serde::Serialize;
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Two files of this size are kept: some hours of a thousand agents, months of ten.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Lines waiting for the disk. When it hangs for longer, lines are lost and counted; deciding never waits.
const QUEUE: usize = 8192;

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    now: Time,
    event: &'a Event,
}

/// Where events go. Writing happens on a thread of its own.
pub struct Journal {
    lines: mpsc::SyncSender<String>,
    seq: u64,
    lost: u64,
}

impl Journal {
    /// Opens `journal.jsonl` in the state directory.
    ///
    /// # Errors
    /// If it can't be opened for writing.
    pub fn open(state: &Path) -> anyhow::Result<Self> {
        let path = state.join("journal.jsonl");
        let file = open(&path)?;
        let (lines, queue) = mpsc::sync_channel(QUEUE);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(&path, file, &queue))
            .context("the journal's thread can't be started")?;
        Ok(Self { lines, seq: 0, lost: 0 })
    }

    /// Append one event.
    pub fn append(&mut self, now: Time, event: &Event) {
        self.seq += 1;
        let Ok(line) = serde_json::to_string(&Line { seq: self.seq, now, event }) else { return };
        if self.lines.try_send(line).is_err() {
            self.lost += 1;
            if self.lost.is_power_of_two() {
                tracing::warn!(lost = self.lost, "the journal's disk does not keep up: events are not journalled");
            }
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("the journal {} can't be opened", path.display()))
}

fn write(path: &PathBuf, file: File, queue: &mpsc::Receiver<String>) {
    let mut size = file.metadata().map_or(0, |meta| meta.len());
    let mut out = BufWriter::new(file);
    let mut broken = false;
    loop {
        let line = match queue.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _flushed = out.flush();
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        size += line.len() as u64 + 1;
        let written = writeln!(out, "{line}");
        if let Err(error) = &written
            && !std::mem::replace(&mut broken, true)
        {
            tracing::error!(path = %path.display(), %error, "the journal can't be written; supervision goes on: free space on its disk");
        }
        if written.is_ok() && broken {
            broken = false;
            tracing::info!(path = %path.display(), "the journal is written again");
        }
        if size > MAX_BYTES {
            let _flushed = out.flush();
            let old = path.with_extension("1.jsonl");
            match std::fs::rename(path, &old).map_err(anyhow::Error::from).and_then(|()| open(path)) {
                Ok(file) => {
                    out = BufWriter::new(file);
                    size = 0;
                }
                Err(error) => tracing::error!(%error, "the journal can't be rotated"),
            }
        }
    }
}
