//! The state directory: what a restarted agent must still know.
//!
//! `voter.json` is durable before a voter answers, `memory.json` before a release is acknowledged (safety rule 7). `owner.json` and `assignment.json` are best effort:
//! safety does not rest on them.

use kage_agent_core::{Assignment, OnCoordinatorLoss, OwnerMemory, Place, VoterStore, WriterMemory};
use kage_types::{AgentId, Epoch, LeaseTiming, Term, Vip};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A state file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("can't {action} {}: {reason}; check the directory `state` of the configuration, its owner and its space", file.display())]
    Io {
        /// "read", "write", "make".
        action: &'static str,
        /// Which.
        file: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// Not what was written. A voter must not begin with an empty memory.
    #[error("{} is damaged: {reason}; restore it, or take this agent out of the voters, move the file away and add it again", file.display())]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Where.
        reason: serde_json::Error,
    },
}

/// A tap, as stored and as resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tap {
    /// `vnet3`.
    pub ifname: String,
    /// The guest's hardware address.
    pub mac: String,
}

/// A VIP this agent holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldEntry {
    /// Which.
    pub vip: Vip,
    /// At which epoch.
    pub epoch: Epoch,
    /// Where.
    pub place: Place,
    /// Of a guest.
    pub tap: Option<Tap>,
}

/// `owner.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerState {
    /// Of the boot in which it was written: taps have other names after the next.
    pub boot_id: String,
    /// What is held.
    pub held: Vec<HeldEntry>,
}

/// `assignment.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentState {
    /// Of the coordinator that sent it.
    pub term: Term,
    /// All guarded VIPs.
    pub vips: BTreeSet<Vip>,
    /// L, K, R, g.
    pub timing: LeaseTiming,
    /// Names and addresses.
    pub voters: BTreeMap<AgentId, String>,
    /// Without a coordinator.
    pub on_coordinator_loss: OnCoordinatorLoss,
}

impl AssignmentState {
    /// As the core wants it.
    #[must_use]
    pub fn to_core(&self) -> Assignment {
        let Self { vips, timing, voters, on_coordinator_loss, .. } = self.clone();
        Assignment { vips, timing, voters, on_coordinator_loss }
    }

    /// To be stored.
    #[must_use]
    pub fn new(term: Term, assignment: &Assignment) -> Self {
        let Assignment { vips, timing, voters, on_coordinator_loss } = assignment.clone();
        Self { term, vips, timing, voters, on_coordinator_loss }
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Makes it if it isn't there.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(dir).map_err(|reason| StateError::Io { action: "make", file: dir.to_owned(), reason })?;
        Ok(Self(dir.to_owned()))
    }

    /// What the voter stored; empty if it never did.
    ///
    /// # Errors
    /// [`StateError`]: a voter that may have forgotten must not vote.
    pub fn voter(&self) -> Result<VoterStore, StateError> {
        Ok(self.read("voter.json")?.unwrap_or_default())
    }

    /// What the owner stored; empty if it never did.
    ///
    /// # Errors
    /// [`StateError`]: an owner that may have forgotten under which term it released must not ask.
    pub fn memory(&self) -> Result<OwnerMemory, StateError> {
        Ok(self.read("memory.json")?.unwrap_or_default())
    }

    /// What was held.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn owner(&self) -> Result<OwnerState, StateError> {
        Ok(self.read("owner.json")?.unwrap_or_default())
    }

    /// The last assignment.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn assignment(&self) -> Result<Option<AssignmentState>, StateError> {
        let stored: Option<AssignmentState> = self.read("assignment.json")?;
        // What the coordinator sent was checked before it was stored.
        if let Some(error) = stored.as_ref().and_then(|stored| stored.timing.check().err()) {
            let reason = serde::de::Error::custom(error);
            return Err(StateError::Damaged { file: self.0.join("assignment.json"), reason });
        }
        Ok(stored)
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// [`StateError::Io`]: what was there before is still there.
    pub fn write_voter(&self, store: &VoterStore) -> Result<(), StateError> {
        self.write("voter.json", store)
    }

    /// Which services are held back for want of a lease.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn writers(&self) -> Result<WriterMemory, StateError> {
        Ok(self.read("services.json")?.unwrap_or_default())
    }

    /// Which services are held back now.
    ///
    /// # Errors
    /// [`StateError::Io`]
    pub fn write_writers(&self, memory: &WriterMemory) -> Result<(), StateError> {
        self.write("services.json", memory)
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// [`StateError::Io`]: what was there before is still there.
    pub fn write_memory(&self, memory: &OwnerMemory) -> Result<(), StateError> {
        self.write("memory.json", memory)
    }

    /// What is held now.
    ///
    /// # Errors
    /// [`StateError::Io`]
    pub fn write_owner(&self, state: &OwnerState) -> Result<(), StateError> {
        self.write("owner.json", state)
    }

    /// For a start without a coordinator.
    ///
    /// # Errors
    /// [`StateError::Io`]
    pub fn write_assignment(&self, state: &AssignmentState) -> Result<(), StateError> {
        self.write("assignment.json", state)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let file = self.0.join(name);
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(reason) => return Err(StateError::Io { action: "read", file, reason }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|reason| StateError::Damaged { file, reason })
    }

    /// Temporary file, fsync, rename, fsync of the directory: after a power loss it is the old or the new.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let file = self.0.join(name);
        let failed = |reason| StateError::Io { action: "write", file: file.clone(), reason };
        let text = serde_json::to_vec(value).map_err(|error| failed(io::Error::other(error)))?;
        let fresh = self.0.join(format!("{name}.new"));
        let mut open = File::create(&fresh).map_err(failed)?;
        open.write_all(&text).and_then(|()| open.sync_all()).map_err(failed)?;
        fs::rename(&fresh, &file).and_then(|()| File::open(&self.0)?.sync_all()).map_err(failed)
    }
}

/// This boot of the machine.
#[must_use]
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let state = StateDir::open(&dir.path().join("a/b")).expect("open");
        assert_eq!(state.voter().expect("none yet"), VoterStore::default());
        let vip: Vip = "10.0.0.1".parse().expect("vip");
        let store = VoterStore { highest_term: Term(3), epochs: [(vip, Epoch(7))].into() };
        state.write_voter(&store).expect("write");
        assert_eq!(state.voter().expect("read"), store);
        fs::write(dir.path().join("a/b/voter.json"), "{\"highest_te").expect("damage");
        assert!(matches!(state.voter(), Err(StateError::Damaged { .. })));
    }
}
