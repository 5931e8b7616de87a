//! The thesis's six troubles of chapter 4 (table 4.4), in Moderate and in Light condition: of a virtual server and of a
//! real server; and one more, a real server that is lost without notice. At a random moment of the check interval, as clients see them through the load balancer.
//!
//! The thesis strikes FTP1 and RS2 with base server RS2; here it is the member on the base server that stays when its group
//! is gathered, and the base server.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::Profile;
use super::load::{self, Level};
use super::nodes::{Kind, Layout, Spec, find, of};
use super::power::{BASE, Clients, Condition, folder, proved, until};
use super::run::{now_ns, wait_until, write};
use super::suite::{Say, events_after, last_event, prepare};
use super::trouble::{Trouble, events_of, first_trouble, interval, seconds, timeline};
use super::{console, daemons, machine, network};

/// Whom a virtual server's trouble strikes: on the base server, and all of its group's in Light condition.
pub const STRUCK: &str = "mail1";
/// How long a host that reboots is without its system: of its power and firmware the lab knows nothing (the thesis: 46.9 s).
const REBOOT: Duration = Duration::from_secs(5);
/// How long one that was shut down stays off.
const OFF: Duration = Duration::from_secs(10);
/// Its agent gives up what it holds.
const GOES_DOWN: Duration = Duration::from_secs(10);
/// Until somebody serves each address.
const SERVED: Duration = Duration::from_secs(90);
/// A host boots, and emulated guests on it; or a guest shuts down, is waited for and started.
const BACK: Duration = Duration::from_secs(300);

/// Whom a trouble strikes, and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Case {
    /// A virtual server's.
    Virtual(Trouble),
    /// A real server's: Nt1 or Nt2.
    Real(Trouble),
    /// Its power fails, and nobody says so before. Not in the thesis.
    Lost,
}

impl Case {
    /// In table 4.4's order, then what it does not have.
    pub const ALL: [Self; 7] = [
        Self::Virtual(Trouble::St1),
        Self::Virtual(Trouble::St2),
        Self::Virtual(Trouble::Nt1),
        Self::Virtual(Trouble::Nt2),
        Self::Real(Trouble::Nt1),
        Self::Real(Trouble::Nt2),
        Self::Lost,
    ];

    /// The thesis's figures for both conditions, in seconds: function, target, client.
    #[must_use]
    pub const fn thesis(self) -> [[Option<f64>; 3]; 2] {
        const fn row(function: Option<f64>, target: Option<f64>, client: f64) -> [Option<f64>; 3] {
            [function, target, Some(client)]
        }
        match self {
            Self::Virtual(Trouble::St1) => [row(None, Some(0.84), 0.0), row(None, Some(0.84), 6.08)],
            Self::Virtual(Trouble::St2) => [row(Some(5.21), Some(73.67), 0.0), row(Some(5.78), Some(73.60), 10.83)],
            Self::Virtual(Trouble::Nt1) => [row(Some(3.91), Some(61.82), 0.0), row(Some(4.28), Some(61.74), 11.29)],
            Self::Virtual(Trouble::Nt2) => [row(Some(3.89), Some(154.19), 0.0), row(Some(4.16), Some(154.34), 11.17)],
            Self::Real(Trouble::Nt1) => [row(Some(4.11), Some(102.34), 0.0), row(Some(4.14), Some(102.04), 11.15)],
            Self::Real(Trouble::St1 | Trouble::St2 | Trouble::Nt2) => {
                [row(Some(3.83), None, 0.0), row(Some(4.04), None, 11.05)]
            }
            Self::Lost => [[None; 3]; 2],
        }
    }

    /// What it is, as table 4.4 has it.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Virtual(Trouble::St1) => "service, restart cures",
            Self::Virtual(Trouble::St2) => "service, reboot cures",
            Self::Virtual(Trouble::Nt1) => "virtual server rebooted",
            Self::Virtual(Trouble::Nt2) => "virtual server shut down",
            Self::Real(Trouble::Nt1) => "real server rebooted",
            Self::Real(Trouble::St1 | Trouble::St2 | Trouble::Nt2) => "real server shut down",
            Self::Lost => "real server lost",
        }
    }

    /// Whom it strikes.
    ///
    /// # Errors
    /// The lab has another layout.
    fn struck(self, condition: Condition) -> Result<Vec<&'static Spec>> {
        match self {
            Self::Virtual(_) => Ok(vec![find(STRUCK)?]),
            Self::Real(_) | Self::Lost => Ok(of(Kind::VirtualServer)
                .filter(|server| condition.host_of(server).is_ok_and(|host| host == Some(BASE)))
                .collect()),
        }
    }

    fn strike(self) -> Result<()> {
        match self {
            Self::Virtual(trouble) => {
                let server = find(STRUCK)?;
                // One that goes down may not live to say how the command ended.
                let _ = console::exec(server, &trouble.command(server), Duration::from_secs(10));
                Ok(())
            }
            Self::Real(_) => {
                let host = find(BASE)?;
                daemons::go_down(host, GOES_DOWN)?;
                machine::power_off(host)
            }
            Self::Lost => machine::power_off(find(BASE)?),
        }
    }

    /// What ends it from outside, if that is not left to Kagemusha.
    fn repair(self) -> Result<()> {
        match self {
            Self::Virtual(_) => Ok(()),
            Self::Real(Trouble::Nt1) => Self::power_after(REBOOT),
            Self::Real(Trouble::St1 | Trouble::St2 | Trouble::Nt2) | Self::Lost => Self::power_after(OFF),
        }
    }

    fn power_after(time: Duration) -> Result<()> {
        std::thread::sleep(time);
        machine::power_on(find(BASE)?)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Virtual(trouble) => write!(to, "{}", trouble.name()),
            Self::Real(trouble) => write!(to, "Rs{}", trouble.name()),
            Self::Lost => write!(to, "RsLost"),
        }
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|case| case.to_string().eq_ignore_ascii_case(word)) {
            Some(case) => Ok(case),
            None => {
                bail!(
                    "`{word}` is no trouble of virtual or real servers; they are St1, St2, Nt1, Nt2, RsNt1, RsNt2, \
                     RsLost"
                )
            }
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaseRun {
    /// What was done.
    pub case: Case,
    /// In Light condition; else in Moderate.
    pub light: bool,
    /// Of this kind, from 1.
    pub number: u32,
    /// How far into a check interval the trouble came, at random, s.
    pub phase_s: f64,
    /// When, nanoseconds since 1970.
    pub injected_ns: u64,
    /// From the injection to the first line that tells of it, s.
    pub detection_s: Option<f64>,
    /// Recovery of function: from there until all VIPs of whom it struck are set, s.
    pub function_s: Option<f64>,
    /// Recovery of target: from there until everybody whom it struck is in regular mode again, s.
    pub target_s: Option<f64>,
    /// Until everything is as before, power saving's arrangement included, s after the injection.
    pub as_before_s: Option<f64>,
    /// Requests through the load balancer that failed, and all, by group.
    pub requests: BTreeMap<String, (usize, usize)>,
    /// Access disconnection through the load balancer: the longest time in which every request of a group failed, s.
    pub client_s: f64,
    /// The longest time between two good answers through the load balancer, s.
    pub gap_s: f64,
    /// The coordinator's own log: milliseconds after the injection, target, kind, text.
    pub log: Vec<(i64, String, String, String)>,
    /// Where captures and samples are.
    pub folder: PathBuf,
    /// What did not go as expected.
    pub problems: Vec<String>,
}

impl CaseRun {
    /// The run in a line.
    #[must_use]
    pub fn line(&self) -> String {
        let show = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2} s"));
        let mut line = format!(
            "run {}: {} ({}) in {}: detected after {}, function {}, target {}, as before after {}; through the load balancer \
             {} requests failed, disconnected {:.2} s, longest gap {:.2} s",
            self.number,
            self.case,
            self.case.about(),
            if self.light { "Light" } else { "Moderate" },
            show(self.detection_s),
            show(self.function_s),
            show(self.target_s),
            show(self.as_before_s),
            self.requests.values().map(|(failed, _)| failed).sum::<usize>(),
            self.client_s,
            self.gap_s,
        );
        for problem in &self.problems {
            line.push_str("\n  problem: ");
            line.push_str(problem);
        }
        line
    }
}

/// One run of one trouble in one condition, from a lab that is brought up if it is not.
///
/// # Errors
/// The lab does not come up, or is not at rest before the trouble.
pub fn run(case: Case, condition: Condition, number: u32, say: Say<'_>) -> Result<CaseRun> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let folder = folder(&format!("{case}-{}-{number}", condition.name()))?;
    load::set(None, condition.level())?;
    until(condition)?;
    wait_until(Duration::from_secs(60), "all is in its place", || Ok(proved(condition, &folder, "before").is_ok()))
        .or_else(|_| proved(condition, &folder, "before").map(|()| Duration::ZERO))?;
    let struck = case.struck(condition)?;
    let after = last_event()?;
    let clients = Clients::start(&folder)?;
    std::thread::sleep(Duration::from_secs(2));
    let span = interval(Profile::Normal);
    let phase = Duration::from_nanos(now_ns() % u64::try_from(span.as_nanos()).unwrap_or(1).max(1));
    std::thread::sleep(phase);
    let injected_ns = now_ns();
    let mut problems = Vec::new();
    let as_before = there_and_back(case, condition, &struck, after, injected_ns, &folder);
    if let Err(error) = &as_before {
        problems.push(format!("{error:#}"));
    }
    let ended = clients.end(&folder);
    let events = events_after(after)?;
    write(&folder.join("events.jsonl"), events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    let balanced = match ended {
        Ok((_, balanced, _)) => balanced,
        Err(error) => {
            problems.push(format!("{error:#}"));
            super::power::ByName::new()
        }
    };
    problems.extend(
        events
            .iter()
            .filter(|event| ["storm-brake", "held"].iter().any(|kind| event["kind"] == *kind))
            .map(|event| format!("the storm brake held it up: {event}")),
    );
    let [detection_s, function_s, target_s] = judge(case, &struck, &events, injected_ns);
    if detection_s.is_none() {
        problems.push("nobody noticed: was anything in trouble at all?".into());
    }
    let worst = |of: fn(&super::power::Seen) -> f64| balanced.values().map(of).fold(0.0, f64::max) / 1e3;
    let run = CaseRun {
        case,
        light: condition == Condition::Light,
        number,
        phase_s: phase.as_secs_f64(),
        injected_ns,
        detection_s,
        function_s,
        target_s,
        as_before_s: as_before.ok(),
        requests: balanced.iter().map(|(name, seen)| ((*name).to_owned(), (seen.failed, seen.asked))).collect(),
        client_s: worst(|seen| seen.outage_ms),
        gap_s: worst(|seen| seen.gap_ms),
        log: timeline(&events, injected_ns),
        folder: folder.clone(),
        problems,
    };
    write(&folder.join("run.json"), serde_json::to_string_pretty(&run)?)?;
    Ok(run)
}

/// The trouble, its end, and until everything is as before: s after the injection.
fn there_and_back(
    case: Case,
    condition: Condition,
    struck: &[&'static Spec],
    after: u64,
    injected_ns: u64,
    folder: &std::path::Path,
) -> Result<f64> {
    case.strike()?;
    wait_until(SERVED, "the trouble is noticed", || {
        let events = events_after(after).unwrap_or_default();
        Ok(struck.iter().any(|server| first_trouble(&events, server.name, injected_ns).is_some()))
    })?;
    let client = find("client")?;
    let served = |server: &'static Spec| {
        server.vip().is_some_and(|vip| network::who_serves(client, vip, server.service).is_some())
    };
    wait_until(SERVED, "all addresses are served", || Ok(of(Kind::VirtualServer).all(served)))?;
    case.repair()?;
    let began = Instant::now();
    loop {
        let found = recovered(case, struck, after, injected_ns).and_then(|()| proved(condition, folder, "after"));
        match found {
            Ok(()) => return Ok(seconds(injected_ns, now_ns())),
            Err(error) if began.elapsed() > BACK => return Err(error).context(format!("not as before after {BACK:?}")),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// Everybody's log ends in regular mode.
fn recovered(case: Case, struck: &[&'static Spec], after: u64, injected_ns: u64) -> Result<()> {
    let events = events_after(after)?;
    for server in struck {
        if first_trouble(&events, server.name, injected_ns).is_none() {
            continue;
        }
        let last = ended(case, &events, server.name, injected_ns);
        last.with_context(|| format!("{} is not in regular mode again", server.name))?;
    }
    Ok(())
}

/// When it was in regular mode again, or its service was restarted, for the last time.
fn ended(case: Case, events: &[Value], target: &str, injected_ns: u64) -> Option<u64> {
    let began = first_trouble(events, target, injected_ns)?;
    let cured = |kind: &str| kind == "regular" || case == Case::Virtual(Trouble::St1) && kind == "service-normal";
    let mut last = events_of(events, target, injected_ns).filter(|(at, kind, _)| *at >= began && cured(kind));
    last.next_back().map(|(at, ..)| at)
}

/// Detection, recovery of function, recovery of target.
fn judge(case: Case, struck: &[&'static Spec], events: &[Value], injected_ns: u64) -> [Option<f64>; 3] {
    let troubled: Vec<(&str, u64)> = struck
        .iter()
        .filter_map(|server| Some((server.name, first_trouble(events, server.name, injected_ns)?)))
        .collect();
    let Some(first) = troubled.iter().map(|(_, at)| *at).min() else { return [None; 3] };
    let since = |at: Option<u64>| at.map(|at| seconds(first, at));
    let set = troubled.iter().filter_map(|(name, began)| {
        events_of(events, name, injected_ns).find(|(at, kind, _)| *kind == "vip-set" && at >= began).map(|(at, ..)| at)
    });
    let over = troubled.iter().filter_map(|(name, _)| ended(case, events, name, injected_ns));
    [Some(seconds(injected_ns, first)), since(set.max()), since(over.max())]
}

/// The load that brings all groups to a condition and keeps them there.
impl Condition {
    pub(super) const fn level(self) -> Level {
        match self {
            Self::Moderate => Level::Moderate,
            Self::Light => Level::Light,
        }
    }
}
