//! The thesis's four standard troubles, at a random moment of the check interval, on one target or several at once.
//!
//! Recovery of function: first detection line → VIP set. Recovery of target: first detection line → regular again.
//! Access disconnection: a client's first failure → its first success, asked once a second as in the thesis, and many
//! times a second.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::capture::Capture;
use super::client::{self, Sample};
use super::config::Profile;
use super::drill::Poller;
use super::nodes::{Spec, System, double};
use super::run::{ms, now_ns, wait_until, write};
use super::suite::{events_after, kagectl_json, last_event};
use super::{console, dirs, hypervisor, speech};

/// A standard trouble (thesis §0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Trouble {
    /// The service program has stopped; its restart cures it.
    St1,
    /// The service program has stopped; only a reboot of the server cures it.
    St2,
    /// The server is rebooted on purpose.
    Nt1,
    /// The server is shut down.
    Nt2,
}

impl Trouble {
    /// All four, in the thesis's order.
    pub const ALL: [Self; 4] = [Self::St1, Self::St2, Self::Nt1, Self::Nt2];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::St1 => "St1",
            Self::St2 => "St2",
            Self::Nt1 => "Nt1",
            Self::Nt2 => "Nt2",
        }
    }

    /// What the machine or virtual server runs to get into it.
    pub(super) fn command(self, target: &Spec) -> String {
        let stop = match (target.system, target.service.port()) {
            (System::Busybox, _) => "killall -9 httpd",
            (System::Debian, 25) => "systemctl kill -s KILL postfix@-.service",
            (System::Debian, _) => "systemctl kill -s KILL nginx.service",
        };
        match (self, target.system) {
            (Self::St1, _) => stop.to_owned(),
            (Self::St2, _) => format!("touch /run/kage-broken; {stop}"),
            (Self::Nt1, System::Busybox) => "kill -TERM 1".to_owned(),
            (Self::Nt2, System::Busybox) => "kill -USR2 1".to_owned(),
            (Self::Nt1, System::Debian) => "systemctl reboot --no-block".to_owned(),
            (Self::Nt2, System::Debian) => "systemctl poweroff --no-block".to_owned(),
        }
    }
}

impl FromStr for Trouble {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|trouble| trouble.name().eq_ignore_ascii_case(word)) {
            Some(trouble) => Ok(trouble),
            None => bail!("`{word}` is no standard trouble; they are St1, St2, Nt1, Nt2"),
        }
    }
}

/// What one target and its clients went through.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetRun {
    /// The target.
    pub target: String,
    /// From the injection to the first detection line.
    pub detection_s: Option<f64>,
    /// Recovery of function; none for a trouble that a restart cures.
    pub function_s: Option<f64>,
    /// Recovery of target.
    pub target_s: Option<f64>,
    /// From the double's hold of the VIP to its first good answer there, as the fine client sees it.
    #[serde(default)]
    pub reply_s: Option<f64>,
    /// Access disconnection of the client that asks once a second.
    pub client_s: f64,
    /// The longest outage of the client that asks all the time, before the way home began.
    pub client_fine_s: f64,
    /// The longest outage afterwards: coming home.
    pub return_fine_s: f64,
    /// Two machines speaking as the VIP at once.
    pub two_owner_ms: f64,
    /// The coordinator's own log of it: milliseconds after the injection, kind, text.
    pub log: Vec<(i64, String, String)>,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TroubleRun {
    /// The trouble, or one for each target.
    pub troubles: Vec<Trouble>,
    /// The lab's profile.
    pub profile: Profile,
    /// How far into a check interval the trouble came, at random.
    pub phase_s: f64,
    /// When, nanoseconds since 1970.
    pub injected_ns: u64,
    /// Where samples, clients' logs and the capture are.
    pub folder: PathBuf,
    /// What each went through.
    pub targets: Vec<TargetRun>,
    /// What did not go as expected.
    pub problems: Vec<String>,
}

/// How long a target may take to be in service again: the thesis's longest is Tnd + Trc + Trs + Tsw.
const LIMIT: Duration = Duration::from_secs(300);

/// The check interval of a profile: the span over which the moment of the trouble is spread.
#[must_use]
pub const fn interval(profile: Profile) -> Duration {
    match profile {
        Profile::Thesis => Duration::from_secs(10),
        Profile::Normal => Duration::from_millis(500),
        Profile::Fast => Duration::from_millis(100),
    }
}

struct Clients {
    target: &'static Spec,
    fine: Poller,
    second: Poller,
}

impl Clients {
    fn start(target: &'static Spec, folder: &Path) -> Result<Self> {
        let file = |kind: &str| folder.join(format!("client-{}-{kind}.jsonl", target.name));
        let (often, wait) = target.service.poll();
        let second = Duration::from_secs(1);
        Ok(Self {
            target,
            fine: Poller::start_as(target, &format!("poller-{}", target.name), &file("fine"), often, wait)?,
            second: Poller::start_as(target, &format!("second-{}", target.name), &file("second"), second, second)?,
        })
    }
}

/// Wait until every target is in Regular mode, serves itself, and its double rests.
///
/// # Errors
/// Not within `limit`.
pub fn all_regular(targets: &[&'static Spec], limit: Duration) -> Result<()> {
    wait_until(limit, "every target is in regular mode, served by itself, its double at rest", || {
        let Ok(status) = kagectl_json(&["status"]) else { return Ok(false) };
        Ok(targets.iter().all(|target| {
            let row = status["targets"].as_array().into_iter().flatten().find(|row| row["target"] == target.name);
            row.is_some_and(|row| row["mode"] == "regular" && row["vips"][0]["holder"] == "target")
                && double(target.name)
                    .is_none_or(|double| hypervisor::state(double).is_ok_and(|state| state == "paused"))
        }))
    })?;
    Ok(())
}

/// One run: `troubles[i]` happens to `targets[i]`, all at the same moment. Writes everything below the lab's `results/`.
///
/// # Errors
/// The lab is down, or not at rest before the trouble.
pub fn run(profile: Profile, troubles: &[Trouble], targets: &[&'static Spec], number: u32) -> Result<TroubleRun> {
    all_regular(targets, Duration::from_secs(120)).context("before a drill")?;
    let name = troubles.iter().map(|trouble| trouble.name()).collect::<Vec<_>>().join("-");
    let folder = dirs::lab().join("results").join(format!("{}-{name}-{number}", now_ns() / 1_000_000_000));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let capture = Capture::start(&folder.join("capture.pcap"))?;
    let clients: Vec<Clients> = targets.iter().map(|target| Clients::start(target, &folder)).collect::<Result<_>>()?;
    for clients in &clients {
        clients.fine.wait("the client is served", Duration::from_secs(20), |samples| served_at_end(samples, 10))?;
    }
    let after = last_event()?;
    // Not a multiple of anything the product does; random enough for the phase of a check.
    let span = interval(profile);
    let phase = Duration::from_nanos(now_ns() % u64::try_from(span.as_nanos()).unwrap_or(1).max(1));
    std::thread::sleep(phase);
    let injected_ns = now_ns();
    let mut problems = Vec::new();
    std::thread::scope(|scope| {
        let injections: Vec<_> = troubles
            .iter()
            .zip(targets)
            .map(|(trouble, target)| {
                scope.spawn(|| console::exec(target, &trouble.command(target), Duration::from_secs(10)))
            })
            .collect();
        for injection in injections {
            // A machine that goes down may not live to say how the command ended.
            if let Ok(Ok(answer)) = injection.join()
                && answer.status != 0
            {
                problems.push(format!("the injection ended with {}: {}", answer.status, answer.output.trim()));
            }
        }
    });
    if let Err(error) = wait_recovered(troubles, targets, after, injected_ns) {
        problems.push(format!("{error:#}"));
    }
    // What coming home breaks shows itself here.
    std::thread::sleep(Duration::from_secs(3));
    let events = events_after(after)?;
    write(&folder.join("events.json"), serde_json::to_string_pretty(&events)?)?;
    let mut seen = Vec::new();
    let mut samples = BTreeMap::new();
    for clients in clients {
        let (fine, second) = (clients.fine.stop()?, clients.second.stop()?);
        write(&folder.join(format!("client-{}.log", clients.target.name)), client::thesis_log(&second))?;
        samples.insert(clients.target.name, (fine, second));
    }
    let frames = capture.stop()?;
    for target in targets {
        let vip = target.vip().context("it has a VIP")?;
        let (fine, second) = &samples[target.name];
        let speech = speech::analyse(&frames, vip);
        if speech.two_owner_ms > 0.0 || speech.stray_count > 0 {
            problems
                .push(format!("two owners of {vip} for {:.1} ms, {} frames", speech.two_owner_ms, speech.stray_count));
        }
        seen.push(judge(target, &events, injected_ns, fine, second, speech.two_owner_ms));
    }
    let run = TroubleRun {
        troubles: troubles.to_vec(),
        profile,
        phase_s: phase.as_secs_f64(),
        injected_ns,
        folder: folder.clone(),
        targets: seen,
        problems,
    };
    write(&folder.join("run.json"), serde_json::to_string_pretty(&run)?)?;
    Ok(run)
}

fn served_at_end(samples: &[Sample], count: usize) -> bool {
    samples.len() >= count && samples[samples.len() - count..].iter().all(|sample| sample.ok)
}

/// When the log first tells of a trouble of this target: ns since 1970.
pub(super) fn first_trouble(events: &[Value], target: &str, injected_ns: u64) -> Option<u64> {
    events_of(events, target, injected_ns).find(|(_, kind, _)| detects(kind)).map(|(at, ..)| at)
}

/// The log since then: milliseconds after the injection, target, kind, text.
pub(super) fn timeline(events: &[Value], injected_ns: u64) -> Vec<(i64, String, String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .map(|event| {
            let after = seconds(injected_ns, number(&event["unix_ms"]).saturating_mul(1_000_000)) * 1e3;
            #[allow(clippy::cast_possible_truncation, reason = "minutes in milliseconds")]
            (after.round() as i64, word(&event["target"]), word(&event["kind"]), word(&event["text"]))
        })
        .collect()
}

/// First lines of the log that tell of a trouble.
fn detects(kind: &str) -> bool {
    matches!(kind, "service-down" | "service-trouble" | "network-trouble" | "confirmed" | "backup-server")
}

fn recovers(trouble: Trouble, kind: &str) -> bool {
    kind == "regular" || trouble == Trouble::St1 && kind == "service-normal"
}

/// What the log says of one target since then: when (ns since 1970), kind, event.
pub(super) fn events_of<'a>(
    events: &'a [Value],
    target: &'a str,
    injected_ns: u64,
) -> impl DoubleEndedIterator<Item = (u64, &'a str, &'a Value)> {
    events.iter().filter_map(move |event| {
        let at = number(&event["unix_ms"]).saturating_mul(1_000_000);
        // The log's clock has milliseconds.
        (event["target"] == target && at.saturating_add(1_000_000) >= injected_ns)
            .then(|| event["kind"].as_str().map(|kind| (at, kind, event)))
            .flatten()
    })
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn wait_recovered(troubles: &[Trouble], targets: &[&'static Spec], after: u64, injected_ns: u64) -> Result<()> {
    let began = Instant::now();
    for (trouble, target) in troubles.iter().zip(targets) {
        loop {
            let events = events_after(after).unwrap_or_default();
            let mut found = events_of(&events, target.name, injected_ns).skip_while(|(_, kind, _)| !detects(kind));
            if found.any(|(_, kind, _)| recovers(*trouble, kind)) {
                break;
            }
            if began.elapsed() > LIMIT {
                bail!("{} is not in service again {LIMIT:?} after {}", target.name, trouble.name());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    all_regular(targets, Duration::from_secs(30))
}

/// From `set`, whose clock has milliseconds, to the first good answer that came after it.
fn first_reply(fine: &[Sample], set: u64) -> Option<f64> {
    let answered = fine.iter().filter(|sample| sample.ok).map(Sample::done_ns);
    answered.filter(|done| *done >= set).min().map(|done| seconds(set, done))
}

/// From one moment to another, both in ns since 1970.
#[allow(clippy::cast_precision_loss, reason = "spans of minutes")]
pub(super) fn seconds(from: u64, to: u64) -> f64 {
    (to as i64 - from as i64) as f64 / 1e9
}

fn judge(
    target: &Spec,
    events: &[Value],
    injected_ns: u64,
    fine: &[Sample],
    second: &[Sample],
    two_owner_ms: f64,
) -> TargetRun {
    let log: Vec<(u64, &str, &Value)> = events_of(events, target.name, injected_ns).collect();
    let detected = log.iter().find(|(_, kind, _)| detects(kind)).map(|(at, ..)| *at);
    let since = |at: u64| detected.map(|detected| seconds(detected, at));
    let later = |wanted: &[&str]| {
        log.iter().find(|(at, kind, _)| wanted.contains(kind) && Some(*at) >= detected).map(|(at, ..)| *at)
    };
    // Before and after the way home began: the trouble's outage, in pieces perhaps, and that of coming home.
    let returning = log.iter().find(|(_, kind, _)| *kind == "returning").map_or(u64::MAX, |(at, ..)| *at);
    let outages = client::outages(fine);
    let of_trouble = || outages.iter().filter(|outage| outage.start_ns + 2_000_000_000 >= injected_ns);
    let longest = |home: bool| {
        let of = of_trouble().filter(|outage| (outage.start_ns + 500_000_000 >= returning) == home);
        of.map(|outage| outage.ms).fold(0.0, f64::max) / 1e3
    };
    TargetRun {
        target: target.name.to_owned(),
        detection_s: detected.map(|at| seconds(injected_ns, at)),
        function_s: later(&["vip-set"]).and_then(since),
        target_s: later(&["regular", "service-normal"]).and_then(since),
        reply_s: later(&["vip-set"]).and_then(|set| first_reply(fine, set)),
        client_s: client::disconnection_s(second, injected_ns),
        client_fine_s: longest(false),
        return_fine_s: longest(true),
        two_owner_ms,
        log: log
            .iter()
            .map(|(at, kind, event)| {
                let after = (ms(*at) - ms(injected_ns)).round();
                #[allow(clippy::cast_possible_truncation, reason = "minutes in milliseconds")]
                (after as i64, (*kind).to_owned(), event["text"].as_str().unwrap_or_default().to_owned())
            })
            .collect(),
    }
}

impl TroubleRun {
    /// The run in a line for each target.
    #[must_use]
    pub fn line(&self, number: u32) -> String {
        let show = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2} s"));
        let mut lines = Vec::new();
        for (trouble, seen) in self.troubles.iter().zip(&self.targets) {
            lines.push(format!(
                "run {number}: {} of {} at phase {:.1} s: detected after {}, function {}, target {}, client {:.1} s ({:.2} s), coming home {:.2} s, two owners {:.1} ms",
                trouble.name(),
                seen.target,
                self.phase_s,
                show(seen.detection_s),
                show(seen.function_s),
                show(seen.target_s),
                seen.client_s,
                seen.client_fine_s,
                seen.return_fine_s,
                seen.two_owner_ms,
            ));
        }
        lines.extend(self.problems.iter().map(|problem| format!("  problem: {problem}")));
        lines.join("\n")
    }
}
