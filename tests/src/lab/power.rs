//! Power saving on real guests: thesis 4.5's night and morning, with the real magic packet between them, as clients see it
//! through the load balancer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::capture::Capture;
use super::client::{self, Sample};
use super::config::{Profile, SIF_PORT};
use super::daemons::{self, Part};
use super::drill::Poller;
use super::load::{self, Level};
use super::nodes::{Kind, Layout, Spec, find, of};
use super::run::{now_ns, wait_until, write};
use super::spawn::Daemon;
use super::suite::{Say, events_after, kagectl_json, last_event, prepare};
use super::transition::Split;
use super::{balancer, dirs, hypervisor, killed, losses, machine, network, outside, signals, speech, wayhome};

/// As the suite calls it.
pub const NAME: &str = "power saving: a night";

/// The same with nobody who supervises.
const ALONE: &str = "power saving: a night with no MSBS";

/// A transition of all groups with hosts, on two busy cores.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at `kagectl pss`.
const LOOK: Duration = Duration::from_millis(200);
/// How often clients ask an address itself, and how long they wait: emulated guests must look idle.
const DIRECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));
/// The same through the load balancer: it may try again for a while.
const BALANCED: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The thesis's own changes of condition, s (table 4.3).
pub(super) const THESIS_S: (f64, f64) = (6.54, 14.66);
/// A connection that was cut leaves no longer outage than this.
const CUT_MS: f64 = 500.0;
/// The base server of all groups.
pub(super) const BASE: &str = "rs1";

/// Of those, what is run when nothing is asked for: the others take longer than `tests/all` may.
const USUAL: [&str; 5] = [NAME, losses::BY_DAY, losses::BASE_LOST, killed::NAME, wayhome::NAME];

/// Runs those whose name contains `only` (`tests/lab suite "power saving"`, `tests/lab suite signal`), or the usual ones;
/// how many passed, and failed.
pub(super) fn run(only: Option<&str>, say: Say<'_>) -> (usize, usize) {
    let wanted = |name: &str| only.map_or_else(|| USUAL.contains(&name), |only| name.contains(only));
    let (mut passed, mut failed) = (0, 0);
    let mut told = |name: &str, scenario: &mut dyn FnMut(Say<'_>) -> Result<String>| {
        if !wanted(name) {
            return;
        }
        let began = Instant::now();
        let result = scenario(say);
        let took = began.elapsed().as_secs();
        match result {
            Ok(text) => {
                passed += 1;
                say(&format!("ok      {name} ({took} s): {text}"));
            }
            Err(error) => {
                failed += 1;
                say(&format!("FAILED  {name} ({took} s): {error:#}"));
            }
        }
    };
    told(NAME, &mut |say| night(say).map(|night| night.text()));
    told(ALONE, &mut alone);
    for loss in &losses::ALL {
        told(loss.name, &mut |say| losses::run(loss, say));
    }
    told(killed::NAME, &mut killed::run);
    told(wayhome::NAME, &mut wayhome::run);
    told(outside::NAME, &mut outside::run);
    for problem in &signals::ALL {
        told(problem.name, &mut |say| signals::run(problem, say));
    }
    (passed, failed)
}

/// A condition of all groups, and with it what is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Every member at home, every real server awake.
    Moderate,
    /// One member of each group serves, on the base server; the other real servers sleep.
    Light,
}

impl FromStr for Condition {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match [Self::Moderate, Self::Light].into_iter().find(|one| one.name().eq_ignore_ascii_case(word)) {
            Some(condition) => Ok(condition),
            None => bail!("`{word}` is no condition; conditions are moderate, light"),
        }
    }
}

impl Condition {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Moderate => "Moderate",
            Self::Light => "Light",
        }
    }

    /// Who serves the address of this virtual server, and on which real server.
    fn serves(self, server: &'static Spec) -> Result<&'static Spec> {
        match self {
            Self::Moderate => Ok(server),
            Self::Light => load::first(server.group.map(|group| group.name)).next().context("a group has members"),
        }
    }

    /// The real server that it serves on, if it serves at all.
    pub(super) fn host_of(self, server: &'static Spec) -> Result<Option<&'static str>> {
        let serves = self.serves(server)?.name == server.name;
        Ok(serves.then_some(if self == Self::Light { BASE } else { server.host }))
    }

    fn asleep(self, host: &str) -> bool {
        self == Self::Light && host != BASE
    }
}

pub(super) fn rows(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// All groups are in this condition, the hosts sleep that are to, and nothing is under way.
fn arrived(status: &Value, condition: Condition) -> bool {
    let same = |value: &Value, word: &str| value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(word));
    let (groups, hosts) = (rows(&status["groups"]), rows(&status["hosts"]));
    let host = |host: &Value| {
        let asleep = host["host"].as_str().is_some_and(|name| condition.asleep(name));
        same(&host["state"], if asleep { "asleep" } else { "awake" })
    };
    !groups.is_empty()
        && groups.iter().all(|group| same(&group["condition"], condition.name()))
        && hosts.iter().all(host)
        && status["transition"].is_null()
}

/// Are all groups in it now?
pub(super) fn is(condition: Condition) -> bool {
    kagectl_json(&["pss"]).is_ok_and(|status| arrived(&status, condition) && unheld(&status).is_empty())
}

/// Virtual addresses that `kagectl pss` shows with nobody.
fn unheld(status: &Value) -> Vec<String> {
    let members = rows(&status["groups"]).into_iter().flat_map(|group| rows(&group["members"]));
    let held: Vec<Value> = members.flat_map(|member| rows(&member["vips"])).collect();
    let vips = of(Kind::VirtualServer).filter_map(Spec::vip).map(|vip| vip.to_string());
    vips.filter(|vip| !held.iter().any(|held| held.as_str() == Some(vip))).collect()
}

/// What was seen on the way to a condition.
pub(super) struct Way {
    /// `kagectl pss` at its end.
    status: Value,
    /// For how long `kagectl pss` showed each virtual address with nobody, at most: s.
    unheld: BTreeMap<String, f64>,
}

/// Waits for it, and until all addresses are with somebody.
pub(super) fn until(condition: Condition) -> Result<Way> {
    let mut way = Way { status: Value::Null, unheld: BTreeMap::new() };
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    let began = Instant::now();
    loop {
        if let Ok(status) = kagectl_json(&["pss"]) {
            let now = unheld(&status);
            since.retain(|vip, _| now.contains(vip));
            for vip in &now {
                let length = since.entry(vip.clone()).or_insert_with(Instant::now).elapsed().as_secs_f64();
                let longest = way.unheld.entry(vip.clone()).or_default();
                *longest = longest.max(length);
            }
            way.status = status;
            if now.is_empty() && arrived(&way.status, condition) {
                return Ok(way);
            }
        }
        if began.elapsed() > LIMIT {
            bail!("not all groups are {} after {LIMIT:?}: power saving says {}", condition.name(), way.status);
        }
        std::thread::sleep(LOOK);
    }
}

/// Each virtual address is answered by who is to, and the real servers are as they are to be.
fn answered(condition: Condition) -> Result<()> {
    let client = find("client")?;
    for server in of(Kind::VirtualServer) {
        let vip = server.vip().context("it has a VIP")?;
        let who = network::who_serves(client, vip, server.service);
        let wanted = condition.serves(server)?.name;
        ensure!(who.as_deref() == Some(wanted), "{vip} is answered by {who:?}, not by {wanted}");
    }
    for host in of(Kind::RealServer) {
        let wanted = if condition.asleep(host.name) { machine::Power::Asleep } else { machine::Power::On };
        let found = machine::power(host);
        ensure!(found == wanted, "{} is {found:?}, not {wanted:?}", host.name);
    }
    Ok(())
}

pub(super) fn tables() -> Result<Value> {
    kagectl_json(&["tables", "--sif", &format!("{}:{SIF_PORT}", find("mgmt")?.ip())])
}

/// The shared tables say what runs where, and nothing else.
fn tables_match(condition: Condition, tables: &Value) -> Result<()> {
    for server in of(Kind::VirtualServer) {
        let serves = condition.serves(server)?.name == server.name;
        let (table, other) = if serves { ("operation", "suspend") } else { ("suspend", "operation") };
        let find = |table: &str| rows(&tables[table]).into_iter().find(|row| row["place"] == server.name);
        let row = find(table).with_context(|| format!("{} is not in {table}", server.name))?;
        ensure!(find(other).is_none(), "{} is in {other} as well", server.name);
        let host = if condition == Condition::Light && serves { BASE } else { server.host };
        ensure!(row["vm"] == server.name && row["host"] == host, "{} is not on {host}: {row}", server.name);
        let runs = hypervisor::whereabouts(server);
        let there = runs.as_ref().is_some_and(|(place, state)| place.name == host && state == "running");
        ensure!(there || condition.asleep(host), "{} should run on {host}, but is {runs:?}", server.name);
        let mut vips = Vec::new();
        for member in of(Kind::VirtualServer) {
            if condition.serves(member)?.name == server.name {
                vips.extend(member.vip().map(|vip| vip.to_string()));
            }
        }
        let mut holds: Vec<_> = rows(&row["holds"]).iter().filter_map(|vip| vip.as_str().map(str::to_owned)).collect();
        holds.sort();
        vips.sort();
        ensure!(holds == vips, "{} holds {holds:?}, not {vips:?}", server.name);
    }
    for row in rows(&tables["state"]) {
        let base = if condition == Condition::Light { BASE } else { "" };
        ensure!(row["condition"] == condition.name() && row["base"] == base, "State has {row}");
    }
    for row in rows(&tables["rsg"]) {
        let asleep = row["host"].as_str().is_some_and(|host| condition.asleep(host));
        ensure!(row["asleep_since_unix_ms"].is_null() != asleep, "RSG has {row}");
    }
    let light = condition == Condition::Light;
    let away: Vec<_> =
        load::first(None).filter(|server| light && server.host != BASE).map(|server| server.name).collect();
    let migrated: Vec<Value> = rows(&tables["live_migration"]).iter().map(|row| row["place"].clone()).collect();
    ensure!(json!(migrated) == json!(away), "Live migration has {migrated:?}, not {away:?}");
    let placed = rows(&tables["placement"]).len();
    let wanted = if light { of(Kind::VirtualServer).count() - load::first(None).count() } else { 0 };
    ensure!(placed == wanted, "Placement has {placed} rows, not {wanted}");
    for table in ["claims", "trouble"] {
        ensure!(rows(&tables[table]).is_empty(), "{table} has {}", tables[table]);
    }
    ensure!(tables["transition"].is_null(), "a transition is under way: {}", tables["transition"]);
    Ok(())
}

/// What is so now: answers, power, tables.
pub(super) fn proved(condition: Condition, folder: &Path, when: &str) -> Result<()> {
    answered(condition).with_context(|| when.to_owned())?;
    let tables = tables()?;
    write(&folder.join(format!("tables-{}.json", when.replace(' ', "-"))), serde_json::to_string_pretty(&tables)?)?;
    tables_match(condition, &tables).with_context(|| format!("{when}, the tables"))
}

/// One direction, from the change of load to its end.
fn go(condition: Condition, level: Level, thesis_s: f64, say: Say<'_>) -> Result<(Split, Way)> {
    let (after, began) = (last_event()?, now_ns());
    load::set(None, level)?;
    let way = until(condition);
    let events = events_after(after)?;
    let split = Split::of(&events, began / 1_000_000);
    if way.is_err() || !split.problems.is_empty() {
        for event in &events {
            say(&format!("        {event}"));
        }
    }
    let way = way?;
    say(&format!("        to {}: {}", condition.name(), split.line(thesis_s)));
    ensure!(split.problems.is_empty(), "not as planned: {}", split.problems.join("; "));
    Ok((split, way))
}

/// What clients of one address saw.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Seen {
    pub(super) asked: usize,
    pub(super) failed: usize,
    /// The longest outage, ms: 0 if no question failed.
    pub(super) outage_ms: f64,
    /// The longest time between two good answers, ms.
    pub(super) gap_ms: f64,
}

impl Seen {
    fn of(samples: &[Sample]) -> Self {
        Self {
            asked: samples.len(),
            failed: samples.iter().filter(|sample| !sample.ok).count(),
            outage_ms: client::outages(samples).iter().map(|outage| outage.ms).fold(0.0, f64::max),
            gap_ms: client::longest_gap_ms(samples),
        }
    }

    pub(super) fn word(&self) -> String {
        format!(
            "{} of {} failed, longest outage {:.0} ms, gap {:.0} ms",
            self.failed, self.asked, self.outage_ms, self.gap_ms
        )
    }
}

/// By who was asked.
pub(super) type ByName = BTreeMap<&'static str, Seen>;

/// Clients and the capture, from the evening to the morning.
pub(super) struct Clients {
    capture: Capture,
    direct: Vec<(&'static str, Poller)>,
    balanced: Vec<(&'static str, Poller)>,
}

impl Clients {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let capture = Capture::start(&folder.join("capture.pcap"))?;
        let mut direct = Vec::new();
        for server in of(Kind::VirtualServer) {
            let (name, file) = (format!("poller-{}", server.name), folder.join(format!("{}.jsonl", server.name)));
            direct.push((server.name, Poller::start_as(server, &name, &file, DIRECT.0, DIRECT.1)?));
        }
        let balancer = of(Kind::LoadBalancer).next().context("the layout has a load balancer")?;
        let mut balanced = Vec::new();
        for front in balancer::fronts() {
            let (name, file) =
                (format!("poller-{}", front.name), folder.join(format!("balanced-{}.jsonl", front.name)));
            let address = (balancer.ip(), front.port).into();
            let poller = Poller::at(address, front.service, &name, &file, BALANCED.0, BALANCED.1)?;
            balanced.push((front.name, poller));
        }
        Ok(Self { capture, direct, balanced })
    }

    /// What they saw, of the addresses themselves and through the load balancer; and that no address had two owners.
    pub(super) fn end(self, folder: &Path) -> Result<(ByName, ByName, usize)> {
        let seen = |pollers: Vec<(&'static str, Poller)>| {
            pollers.into_iter().map(|(name, poller)| Ok((name, Seen::of(&poller.stop()?)))).collect::<Result<_>>()
        };
        let (direct, balanced) = (seen(self.direct)?, seen(self.balanced)?);
        let frames = self.capture.stop()?;
        let mut changes = 0;
        let mut faults = Vec::new();
        for server in of(Kind::VirtualServer) {
            let speech = speech::analyse(&frames, server.vip().context("it has a VIP")?);
            write(&folder.join(format!("speech-{}.json", server.name)), serde_json::to_string_pretty(&speech)?)?;
            changes += speech.changes;
            if speech.two_owner_ms > 0.0 || speech.stray_count > 0 {
                faults.push(format!(
                    "{}: two owners for {:.1} ms, {} stray frames: {:?}",
                    speech.vip, speech.two_owner_ms, speech.stray_count, speech.strays
                ));
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok((direct, balanced, changes))
    }
}

fn watts(status: &Value) -> String {
    let watts = status["drawn_mw"].as_u64().unwrap_or(0) / 1000;
    format!("{watts} W {}", status["drawn_source"].as_str().unwrap_or("of unknown source"))
}

pub(super) fn folder(name: &str) -> Result<PathBuf> {
    let folder = dirs::lab().join("results").join(format!("{}-{name}", now_ns() / 1_000_000_000));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A night, from Moderate condition to Light and back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Night {
    /// The evening.
    pub to_light: Split,
    /// The morning.
    pub to_moderate: Split,
    /// Drawn at night and by day, and where the figure is from.
    pub drawn: [String; 2],
    /// Connections through the load balancer that were cut as an address moved.
    pub cut: usize,
    /// The longest time between two good answers through the load balancer, ms.
    pub gap_ms: f64,
    /// How often an address changed its owner.
    pub changes: usize,
    /// Real servers awake and virtual servers in service, at night and by day.
    pub awake: [(usize, usize); 2],
}

/// Real servers awake and virtual servers that run on them, as the machine beneath has it.
fn awake() -> (usize, usize) {
    let on = |host: &&Spec| machine::power(host) == machine::Power::On;
    let runs = |server: &&'static Spec| {
        let found = hypervisor::whereabouts(server);
        found.is_some_and(|(host, state)| machine::power(host) == machine::Power::On && state == "running")
    };
    (of(Kind::RealServer).filter(on).count(), of(Kind::VirtualServer).filter(runs).count())
}

impl Night {
    fn text(&self) -> String {
        format!(
            "to Light {}; to Moderate {}; {} and {}; {} changes of owner, never two; {} connections cut as an address moved, no \
             other request failed, longest gap {:.0} ms",
            self.to_light.line(THESIS_S.0),
            self.to_moderate.line(THESIS_S.1),
            self.drawn[0],
            self.drawn[1],
            self.changes,
            self.cut,
            self.gap_ms
        )
    }
}

/// A night with `--controllers pss`: power saving moves, suspends and wakes, and nobody looks whether anything answers.
fn alone(say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    daemons::stop(Part::Coordinator)?;
    daemons::start_controllers("pss")?;
    let done = night(say);
    daemons::stop(Part::Coordinator)?;
    daemons::start(Part::Coordinator)?;
    done.map(|night| night.text())
}

/// One night.
///
/// # Errors
/// The lab does not come up, a condition is not reached, clients or the tables are not as they are to be, two owners.
pub(super) fn night(say: Say<'_>) -> Result<Night> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let folder = folder("night")?;
    load::set(None, Level::Moderate)?;
    until(Condition::Moderate).context("by day")?;
    wait_until(Duration::from_secs(30), "all is at home by day", || Ok(answered(Condition::Moderate).is_ok()))?;
    proved(Condition::Moderate, &folder, "by day")?;
    let clients = Clients::start(&folder)?;
    let first = last_event()?;
    let mut there_and_back = || -> Result<_> {
        // Clients are served before anything changes.
        std::thread::sleep(Duration::from_secs(2));
        let evening = go(Condition::Light, Level::Light, THESIS_S.0, say).context("in the evening")?;
        proved(Condition::Light, &folder, "at night")?;
        let at_night = awake();
        std::thread::sleep(Duration::from_secs(5));
        let morning = go(Condition::Moderate, Level::Moderate, THESIS_S.1, say).context("in the morning")?;
        proved(Condition::Moderate, &folder, "in the morning")?;
        Ok((evening, morning, [at_night, awake()]))
    };
    let done = there_and_back();
    let ended = clients.end(&folder);
    // Whatever failed: the evidence is kept.
    let _ = load::set(None, Level::Light);
    let events = events_after(first).unwrap_or_default();
    write(&folder.join("events.jsonl"), events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    if let Some(node) = of(Kind::LoadBalancer).next() {
        let _ = std::fs::copy(Daemon::new(node, "haproxy").log(), folder.join("haproxy.log"));
    }
    if let Ok((direct, balanced, _)) = &ended {
        for (name, seen) in balanced {
            say(&format!("        {name} through the load balancer: {}", seen.word()));
        }
        for (name, seen) in direct {
            say(&format!("        {name}'s address itself: {}", seen.word()));
        }
    }
    let ((evening, night), (morning, day), awake) = done?;
    let (direct, balanced, changes) = ended?;
    let unheld = [&night.unheld, &day.unheld].into_iter().flatten().fold(BTreeMap::new(), |mut all, (vip, length)| {
        let longest: &mut f64 = all.entry(vip.clone()).or_default();
        *longest = longest.max(*length);
        all
    });
    let report = json!({
        "to_light": evening, "to_moderate": morning, "drawn": [watts(&night.status), watts(&day.status)],
        "balanced": balanced, "direct": direct, "changes_of_owner": changes, "shown_with_nobody_s": unheld,
    });
    write(&folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    for (vip, length) in unheld.iter().filter(|(_, length)| **length >= 1.0) {
        say(&format!("        kagectl pss showed {vip} with nobody for {length:.1} s"));
    }
    // Where bytes are only passed on, what is under way on an address is cut as it moves: one question for each move.
    let most = |name: &str| {
        let front = balancer::fronts().into_iter().find(|front| front.name == name);
        front.filter(|front| !front.asks_again).map_or(0, |_| changes)
    };
    let failed: Vec<_> = balanced
        .iter()
        .filter(|(name, seen)| seen.failed > most(name) || seen.outage_ms > CUT_MS)
        .map(|(name, seen)| format!("{name}: {}", seen.word()))
        .collect();
    ensure!(failed.is_empty(), "requests failed through the load balancer: {}", failed.join("; "));
    let cut: usize = balanced.values().map(|seen| seen.failed).sum();
    let gap = balanced.values().map(|seen| seen.gap_ms).fold(0.0, f64::max);
    Ok(Night {
        to_light: evening,
        to_moderate: morning,
        drawn: [watts(&night.status), watts(&day.status)],
        cut,
        gap_ms: gap,
        changes,
        awake,
    })
}
