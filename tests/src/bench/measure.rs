//! One fault at a site: what the client missed, and who owned the address meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::site::{BRIDGE, Site};
use super::variant::{Trouble, Variant};
use crate::lab::capture::Capture;
use crate::lab::client::{self, Sample};
use crate::lab::lifecycle::this_program;
use crate::lab::nodes::Spec;
use crate::lab::report::RunReport;
use crate::lab::run::{now_ns, text, wait_until};
use crate::lab::spawn::Daemon;
use crate::lab::speech;

use super::peers::VIP;

/// How long the cut or the standstill goes on after the takeover: whoever does not let go owns the address beside its
/// successor for this long at least.
pub const HOLD: Duration = Duration::from_secs(2);
/// How long the client must be served without a failure, by one machine, before a run ends.
pub const SETTLE: Duration = Duration::from_secs(2);
/// How long service may take to come back.
const LIMIT: Duration = Duration::from_secs(60);
/// The observer beside `a` asks more slowly: it is an owner's trace in the capture, not a measurement of time.
const NEAR_MS: &str = "100";

/// The steps of a takeover by Kagemusha, in milliseconds since the fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// The first note about trouble.
    pub detected: Option<f64>,
    /// The trouble is confirmed.
    pub confirmed: Option<f64>,
    /// The new epoch is durable.
    pub epoch: Option<f64>,
    /// The double runs.
    pub resumed: Option<f64>,
    /// Nobody else can own the address any more: patience, proof or release.
    pub secured: Option<f64>,
    /// The first frame of the new owner as the address: its announcement.
    pub announced: Option<f64>,
    /// The first answer to the client.
    pub answered: Option<f64>,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Of what.
    pub variant: Variant,
    /// By which trouble.
    pub trouble: Trouble,
    /// Of this variant and trouble.
    pub number: u32,
    /// What the client missed by the fault.
    pub outage_ms: f64,
    /// What it missed by healing and coming home.
    pub heal_outage_ms: f64,
    /// Two machines owning the address at once.
    pub two_owner_ms: f64,
    /// Frames of one inside the time of the other.
    pub stray_frames: usize,
    /// Who answered after the fault.
    pub served_by: Option<String>,
    /// Where the time went, for those of whom that is known.
    pub stages: Option<Stages>,
    /// What went wrong.
    pub problems: Vec<String>,
}

impl Run {
    /// A run from the evidence of it.
    #[must_use]
    pub fn new(variant: Variant, trouble: Trouble, number: u32, seen: &RunReport) -> Self {
        let fault = seen
            .outages
            .iter()
            .filter(|outage| outage.start_ns < seen.healed_ns)
            .max_by(|left, right| left.ms.total_cmp(&right.ms));
        Self {
            variant,
            trouble,
            number,
            outage_ms: seen.fault_outage_ms,
            heal_outage_ms: seen.return_outage_ms,
            two_owner_ms: seen.speech.two_owner_ms,
            stray_frames: seen.speech.stray_count,
            served_by: fault.and_then(|outage| outage.after.clone()),
            stages: None,
            problems: seen.problems.clone(),
        }
    }

    /// A run that came to nothing.
    #[must_use]
    pub fn failed(variant: Variant, trouble: Trouble, number: u32, error: &anyhow::Error) -> Self {
        Self {
            variant,
            trouble,
            number,
            outage_ms: 0.0,
            heal_outage_ms: 0.0,
            two_owner_ms: 0.0,
            stray_frames: 0,
            served_by: None,
            stages: None,
            problems: vec![format!("{error:#}")],
        }
    }

    /// The run in a line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "{} {} {}: outage {:.0} ms (then served by {}), after healing {:.0} ms, two owners {:.0} ms",
            self.variant.name(),
            self.trouble.name(),
            self.number,
            self.outage_ms,
            self.served_by.as_deref().unwrap_or("nobody"),
            self.heal_outage_ms,
            self.two_owner_ms,
        );
        for problem in &self.problems {
            line += &format!("; problem: {problem}");
        }
        line
    }
}

/// A client's process, in its own namespace.
pub struct Asker {
    daemon: Daemon,
    file: PathBuf,
}

impl Asker {
    /// Starts asking from `place`.
    ///
    /// # Errors
    /// The place is not there.
    pub fn start(place: &'static Spec, interval_ms: &str, file: &Path) -> Result<Self> {
        let daemon = Daemon::new(place, "asker");
        daemon.stop()?;
        let _ = std::fs::remove_file(file);
        let network = format!("--net=/run/netns/{}", place.namespace());
        let (program, out) = (this_program()?, text(file));
        let argv = ["nsenter", &network, "--", &program, "client", "--service=http", "--vip", VIP];
        let rest = ["--out", &out, "--interval-ms", interval_ms];
        let words: Vec<String> = argv.iter().chain(&rest).map(|&word| word.to_owned()).collect();
        daemon.start_bare(&words)?;
        Ok(Self { daemon, file: file.to_owned() })
    }

    /// The observer beside the machine that the trouble comes to.
    ///
    /// # Errors
    /// The place is not there.
    pub fn near(place: &'static Spec, file: &Path) -> Result<Self> {
        Self::start(place, NEAR_MS, file)
    }

    fn samples(&self) -> Result<Vec<Sample>> {
        if self.file.exists() { client::samples(&self.file) } else { Ok(Vec::new()) }
    }

    fn wait(&self, what: &str, level: impl Fn(&[Sample]) -> bool) -> Result<()> {
        wait_until(LIMIT, what, || Ok(level(&self.samples()?)))?;
        Ok(())
    }

    /// Ends it and returns what it saw.
    ///
    /// # Errors
    /// Its file can't be read.
    pub fn stop(self) -> Result<Vec<Sample>> {
        self.daemon.stop()?;
        client::samples(&self.file)
    }
}

/// Whether the last `count` questions asked after `since_ns` were answered.
fn good_since(samples: &[Sample], since_ns: u64, count: usize) -> bool {
    let last = samples.iter().rev().take(count);
    samples.len() >= count && last.into_iter().all(|sample| sample.ok && sample.t_ns > since_ns)
}

/// Whether one machine has answered every question for `length`, all of it after `since_ns`.
fn settled(samples: &[Sample], since_ns: u64, length: Duration) -> bool {
    let Some(last) = samples.last() else { return false };
    let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    let from = last.t_ns.saturating_sub(length);
    from > since_ns && samples.iter().rev().take_while(|s| s.t_ns >= from).all(|s| s.ok && s.server == last.server)
}

/// Does the trouble to a site that is at home, and leaves it as it then is.
///
/// # Errors
/// The evidence can't be taken.
pub fn once(site: &Site, trouble: Trouble, number: u32, folder: &Path) -> Result<Run> {
    let name = format!("{}-{}-{number}", site.variant.name(), trouble.name());
    let capture = Capture::on(site.capture_daemon(), &site.switch(), BRIDGE, &folder.join(format!("{name}.pcap")))?;
    let asker = Asker::start(site.client(), "20", &folder.join(format!("{name}.jsonl")))?;
    let near = Asker::near(site.near(), &folder.join(format!("{name}-near.jsonl")))?;
    asker.wait("the client is served", |samples| good_since(samples, 0, 25))?;
    let injected_ns = now_ns();
    site.inject(trouble)?;
    let mut problems = Vec::new();
    // A killed service may answer once more from what was accepted before.
    let failed_and_good = |samples: &[Sample]| {
        let failed = samples.iter().any(|sample| sample.t_ns + sample.latency_ns > injected_ns && !sample.ok);
        failed && good_since(samples, injected_ns, 10)
    };
    let floor = site.variant == Variant::HandVip;
    let served =
        |samples: &[Sample]| if floor { good_since(samples, injected_ns, 15) } else { failed_and_good(samples) };
    if let Err(error) = asker.wait("the client is served again", served) {
        problems.push(format!("{error:#}"));
    }
    let heals = matches!(trouble, Trouble::Frozen | Trouble::Cut);
    if heals {
        std::thread::sleep(HOLD);
    }
    let healed_ns = now_ns();
    site.heal(trouble)?;
    if heals && let Err(error) = asker.wait("the client is served after healing", |s| settled(s, healed_ns, SETTLE)) {
        problems.push(format!("{error:#}"));
    }
    near.stop()?;
    let samples = asker.stop()?;
    let frames = capture.stop()?;
    let vip = VIP.parse().context("the address is one")?;
    let speech = speech::analyse(&frames, vip);
    let report = RunReport::new(injected_ns, healed_ns, &samples, speech, problems);
    Ok(Run::new(site.variant, trouble, number, &report))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(t_ms: u64, server: Option<&str>) -> Sample {
        Sample { t_ns: t_ms * 1_000_000, latency_ns: 1, ok: server.is_some(), server: server.map(str::to_owned) }
    }

    #[test]
    fn settled_means_one_server_without_a_failure_all_of_it_after_healing() {
        let length = Duration::from_millis(100);
        let steady: Vec<Sample> = (0..10).map(|i| sample(1_000 + 20 * i, Some("b"))).collect();
        assert!(settled(&steady, 1_000_000_000, length));
        assert!(!settled(&steady, 1_150_000_000, length));
        let mut moved = steady.clone();
        moved.push(sample(1_200, Some("a")));
        assert!(!settled(&moved, 1_000_000_000, length));
        let mut failed = steady;
        failed.push(sample(1_200, None));
        assert!(!settled(&failed, 1_000_000_000, length));
    }
}
