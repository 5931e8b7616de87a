//! Captures on the switch: every frame where it enters, with its port.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::nodes::find;
use super::pcap::{self, Frame};
use super::run::{run, text, wait_until};
use super::spawn::Daemon;

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Begins a capture into `file`.
    ///
    /// # Errors
    /// The lab is down, or tcpdump does not start within 5 s.
    pub fn start(file: &Path) -> Result<Self> {
        Self::on(Daemon::new(find("sw")?, "tcpdump"), "kage-sw", "br-sw", file)
    }

    /// Begins a capture of a bridge in a namespace, by a process called `daemon`.
    ///
    /// # Errors
    /// There is no such bridge, or tcpdump does not start within 5 s.
    pub fn on(daemon: Daemon, namespace: &str, bridge: &str, file: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(file);
        daemon.stop()?;
        // The bridge's own interface repeats what came in on a port: leave it out.
        let index = format!("/sys/class/net/{bridge}/ifindex");
        let index = run(&["ip", "netns", "exec", namespace, "cat", &index])?;
        let filter = format!("(arp or ip or ip6) and not ifindex {}", index.trim());
        let network = format!("--net=/run/netns/{namespace}");
        let words = [
            "nsenter",
            &network,
            "--",
            "tcpdump",
            "-n",
            "-i",
            "any",
            "-Q",
            "in",
            "-y",
            "LINUX_SLL2",
            "--time-stamp-precision=nano",
            "--immediate-mode",
            "-U",
            "-B",
            "16384",
            "-s",
            "96",
            "-Z",
            "root",
            "-w",
            &text(file),
            &filter,
        ];
        daemon.start_bare(&words.map(str::to_owned))?;
        wait_until(Duration::from_secs(5), "tcpdump captures", || {
            Ok(std::fs::metadata(file).is_ok_and(|meta| meta.len() >= 24))
        })
        .with_context(|| daemon.tail())?;
        Ok(Self { daemon, file: file.to_owned() })
    }

    /// Ends the capture and returns its frames.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn stop(self) -> Result<Vec<Frame>> {
        self.daemon.end(Signal::INT)?;
        load(&self.file)
    }
}

/// The frames of a finished capture.
///
/// # Errors
/// The file is missing or of another format.
pub fn load(file: &Path) -> Result<Vec<Frame>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    pcap::parse(&bytes).with_context(|| format!("in {}", file.display()))
}
