//! What is lost by day and at night (thesis table 4.4): virtual servers, real servers, the base server with everything on
//! it. Clients are served again by doubles, and when what was lost is there again everything is as before.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::load::{self, Level};
use super::nodes::{Kind, Layout, Spec, find, of};
use super::power::{BASE, Clients, Condition, folder, proved, until};
use super::run::{wait_until, write};
use super::suite::{Say, events_after, last_event, prepare};
use super::{config::Profile, hypervisor, machine, network};

/// At the profile `normal`: detection, patience, up to three doubles resumed on two cores; or a load balancer that asks
/// elsewhere.
pub(super) const GAP_MS: f64 = 6_000.0;
/// Until somebody serves each address.
const SERVED: Duration = Duration::from_secs(60);
/// A host boots, and emulated guests on it.
pub(super) const BACK: Duration = Duration::from_secs(240);
/// Without what was lost.
const AWAY: Duration = Duration::from_secs(5);

/// What is lost.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// The process of a virtual server.
    Server(&'static str),
    /// The power of a real server; it has it again after a while.
    Host(&'static str),
}

/// A loss.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// As the suite calls it.
    pub name: &'static str,
    night: bool,
    what: What,
}

/// No request may fail through the load balancer.
pub const BY_DAY: &str = "power saving: a virtual server lost by day";
/// With all groups on it.
pub const BASE_LOST: &str = "power saving: the base server lost at night";

/// All of them.
pub const ALL: [Loss; 4] = [
    Loss { name: BY_DAY, night: false, what: What::Server("web2") },
    Loss { name: "power saving: a real server lost by day", night: false, what: What::Host("rs2") },
    Loss { name: "power saving: a virtual server lost at night", night: true, what: What::Server("web1") },
    Loss { name: BASE_LOST, night: true, what: What::Host(BASE) },
];

impl What {
    fn strike(self) -> Result<()> {
        match self {
            Self::Host(name) => machine::power_off(find(name)?),
            Self::Server(name) => hypervisor::kill(find(name)?),
        }
    }

    fn repair(self) -> Result<()> {
        match self {
            Self::Host(name) => machine::power_on(find(name)?),
            Self::Server(_) => Ok(()),
        }
    }
}

/// One of them; what clients saw of it.
///
/// # Errors
/// The lab does not come up; somebody is not served, or not as before; two owners; the storm brake held.
pub fn run(loss: &Loss, say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let folder = folder(&loss.name.replace([' ', ':'], "-"))?;
    let (condition, level) =
        if loss.night { (Condition::Light, Level::Light) } else { (Condition::Moderate, Level::Moderate) };
    load::set(None, level)?;
    until(condition)?;
    wait_until(Duration::from_secs(30), "all is in its place", || Ok(proved(condition, &folder, "before").is_ok()))?;
    let clients = Clients::start(&folder)?;
    let (client, first) = (find("client")?, last_event()?);
    let away_and_back = || -> Result<Duration> {
        std::thread::sleep(Duration::from_secs(2));
        loss.what.strike()?;
        // Of who was lost it is seen that another answers, of all others that somebody does.
        std::thread::sleep(Duration::from_secs(1));
        let served = |server: &'static Spec| {
            server.vip().is_some_and(|vip| network::who_serves(client, vip, server.service).is_some())
        };
        wait_until(SERVED, "all addresses are served", || Ok(of(Kind::VirtualServer).all(served)))?;
        std::thread::sleep(AWAY);
        loss.what.repair()?;
        let began = Instant::now();
        if wait_until(BACK, "everything is as before", || Ok(proved(condition, &folder, "after").is_ok())).is_err() {
            proved(condition, &folder, "after")?;
        }
        Ok(began.elapsed())
    };
    let done = away_and_back();
    let ended = clients.end(&folder);
    let _ = load::set(None, Level::Light);
    let events = events_after(first).unwrap_or_default();
    write(&folder.join("events.jsonl"), events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    let back = match done {
        Ok(back) => back,
        Err(error) => {
            events.iter().for_each(|event| say(&format!("        {event}")));
            bail!("{error:#}");
        }
    };
    let (direct, balanced, changes) = ended?;
    for (name, seen) in &balanced {
        say(&format!("        {name} through the load balancer: {}", seen.word()));
    }
    let report = json!({ "direct": direct, "balanced": balanced, "back_s": back.as_secs_f64() });
    write(&folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    ensure!(events.iter().any(|event| event["kind"] == "backup-server"), "nobody took over: was anything lost at all?");
    // One machine, whatever ran on it.
    let braked: Vec<_> =
        events.iter().filter(|event| ["storm-brake", "held"].iter().any(|kind| event["kind"] == *kind)).collect();
    ensure!(braked.is_empty(), "the storm brake held it up: {braked:?}");
    let gap = balanced.values().map(|seen| seen.gap_ms).fold(0.0, f64::max);
    let failed: usize = balanced.values().map(|seen| seen.failed).sum();
    ensure!(gap <= GAP_MS, "clients waited for {gap:.0} ms");
    ensure!(
        loss.name != BY_DAY || failed == 0,
        "{failed} requests failed, where the load balancer could ask elsewhere"
    );
    Ok(format!(
        "{failed} requests failed through the load balancer, longest gap {gap:.0} ms; as before {:.1} s later; {changes} changes \
         of owner, never two; the storm brake held nothing up",
        back.as_secs_f64()
    ))
}
