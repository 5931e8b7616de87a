//! Power saving's journal, replayed as it is written: a twin of its core is given nothing but the lines.

use kage_coordinator::saving::journal::Saver;
use kage_coordinator_core::{
    journal::{FORMAT, Head, add_actions, event_line, start_line},
    replay::{Nobody, Place, Replay},
};
use kage_pss_core::{Input, Pss, execute::Action, policy::Policy};
use kage_types::Time;

/// Of one process.
pub struct Journal {
    twin: Replay<Saver>,
    place: Place,
}

fn text(line: serde_json::Result<Vec<u8>>) -> Result<String, String> {
    line.map_err(|error| error.to_string()).and_then(|line| String::from_utf8(line).map_err(|error| error.to_string()))
}

impl Journal {
    /// It begins.
    pub fn start(now: Time, policy: &Policy) -> Result<Self, String> {
        let head = Head { version: "simulated".into(), format: FORMAT, pid: 0, unix_ms: 0 };
        let place = Place { file: "journal-pss.jsonl".into(), line: 0 };
        let mut journal = Self { twin: Replay::new("simulated"), place };
        journal.line(&text(start_line::<Saver>(0, now, &head, policy))?)?;
        Ok(journal)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        self.place.line += 1;
        self.twin.line(&self.place, line, &mut Nobody).map(drop).map_err(|fault| fault.to_string())
    }

    /// An input, before the core is given it.
    pub fn begin(&self, now: Time, input: &Input) -> Option<Vec<u8>> {
        event_line(u64::try_from(self.place.line).unwrap_or(u64::MAX), now, input).ok()
    }

    /// What the core wanted done for it; the twin must want the same, and be in the same state then.
    pub fn end(&mut self, line: Option<Vec<u8>>, actions: &[Action], core: &Pss) -> Result<(), String> {
        let mut line = line.ok_or("an input can't be written")?;
        add_actions::<Saver>(&mut line, actions).map_err(|error| error.to_string())?;
        line.push(b'}');
        self.line(&text(Ok(line))?)?;
        match self.twin.core() {
            Some((Saver(twin), _)) if twin == core => Ok(()),
            Some(_) | None => Err(format!("{}: replayed, power saving is in another state", self.place)),
        }
    }
}
