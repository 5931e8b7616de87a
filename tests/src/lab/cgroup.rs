//! A node's power: all its processes are in one version 2 control group.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::dirs;
use super::run::{read, wait_until};

/// The control group of one node.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

fn root() -> PathBuf {
    dirs::cgroups().join(dirs::group())
}

impl Cgroup {
    /// The group of `node`, which may not exist yet.
    #[must_use]
    pub fn of(node: &str) -> Self {
        Self { path: root().join(node) }
    }

    /// All groups of the lab that exist.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(root()) else { return Vec::new() };
        entries
            .filter_map(std::result::Result::ok)
            .filter(|entry| entry.path().is_dir())
            .map(|entry| Self { path: entry.path() })
            .collect()
    }

    /// Makes the group.
    ///
    /// # Errors
    /// The kernel has no version 2 hierarchy here, or we are not root.
    pub fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot make {}; the lab needs root and cgroup v2", self.path.display()))
    }

    /// The file to which a process writes its id to join.
    #[must_use]
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The processes in the group.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let Ok(list) = std::fs::read_to_string(self.procs()) else { return Vec::new() };
        list.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether anything runs (or hangs) in it.
    #[must_use]
    pub fn alive(&self) -> bool {
        !self.pids().is_empty()
    }

    /// Whether it is frozen.
    #[must_use]
    pub fn frozen(&self) -> bool {
        read(&self.path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        std::fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    /// Stops every process in it where it stands, and returns once they all stand.
    ///
    /// # Errors
    /// The group is gone, or something in it can't be frozen within 5 s.
    pub fn freeze(&self) -> Result<()> {
        self.set("cgroup.freeze", "1")?;
        let events = self.path.join("cgroup.events");
        wait_until(Duration::from_secs(5), "the group is frozen", || Ok(read(&events)?.contains("frozen 1")))?;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// The group is gone.
    pub fn thaw(&self) -> Result<()> {
        self.set("cgroup.freeze", "0")
    }

    /// Pulls the plug: SIGKILL to everything in it, frozen or not.
    ///
    /// # Errors
    /// Something survives for 5 s.
    pub fn kill(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.set("cgroup.kill", "1")?;
        wait_until(Duration::from_secs(5), "the group is empty", || Ok(!self.alive()))?;
        self.thaw()
    }

    /// Kills what is in it and removes it.
    ///
    /// # Errors
    /// Something survives, or the group has groups below it.
    pub fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        wait_until(Duration::from_secs(5), "the control group can be removed", || {
            Ok(std::fs::remove_dir(&self.path).is_ok())
        })?;
        let _ = std::fs::remove_dir(root());
        Ok(())
    }
}
