//! A simulated coordinator's journal, as its shell writes it to a disk that never fails.

use kage_coordinator_core::{
    Action, Coordinator, Event,
    config::Cluster,
    journal::{Because, FORMAT, Head, add_actions, event_line, snapshot_line, start_line},
};
use kage_types::Time;

/// Events between snapshots.
const BETWEEN_SNAPSHOTS: u64 = 1000;

/// The lines of one machine's file: those of all processes that ran there.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// In order.
    pub lines: Vec<String>,
    seq: u64,
}

fn head(process: u64) -> Head {
    Head { version: "simulated".into(), format: FORMAT, pid: u32::try_from(process).unwrap_or(0), unix_ms: 0 }
}

impl Journal {
    fn push(&mut self, line: serde_json::Result<Vec<u8>>) {
        let line = line.ok().and_then(|line| String::from_utf8(line).ok());
        self.lines.extend(line);
    }

    /// A process begins.
    pub fn start(&mut self, process: u64, now: Time, cluster: &Cluster) {
        self.push(start_line::<Coordinator>(self.seq, now, &head(process), cluster));
    }

    /// One event, and what its core wants done.
    pub fn event(&mut self, now: Time, event: &Event, actions: &[Action]) {
        self.seq += 1;
        let line = event_line(self.seq, now, event).and_then(|mut line| {
            add_actions::<Coordinator>(&mut line, actions)?;
            line.push(b'}');
            Ok(line)
        });
        self.push(line);
    }

    /// After some events, the state.
    pub fn snapshot(&mut self, process: u64, now: Time, core: &Coordinator) {
        if self.seq.is_multiple_of(BETWEEN_SNAPSHOTS) {
            self.push(snapshot_line(self.seq, now, &head(process), Because::Length, core));
        }
    }
}
