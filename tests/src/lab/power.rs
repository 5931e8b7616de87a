//! Power saving on real guests: thesis 4.5's night and morning, with the real magic packet between them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::capture::Capture;
use super::config::Profile;
use super::drill::Poller;
use super::nodes::{Kind, Layout, Spec, find, of};
use super::run::{now_ns, wait_until, write};
use super::suite::{Say, events_after, kagectl_json, last_event, prepare};
use super::{client, console, dirs, hypervisor, machine, network, speech};

/// As the suite calls it.
pub const NAME: &str = "power saving: a night";

/// A transition of all groups with hosts, on two busy cores.
const LIMIT: Duration = Duration::from_secs(240);
/// How often clients ask, and how long they wait: emulated guests must look idle.
const POLL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// Work for about half of the time.
const WORK: &str = "while :; do i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; usleep 20000; done";

/// Runs it if it is asked for by name (`tests/lab suite "power saving"`); whether it passed.
pub(super) fn run(only: Option<&str>, say: Say<'_>) -> Option<bool> {
    if only.is_none_or(|only| !NAME.contains(only)) {
        return None;
    }
    let began = Instant::now();
    let result = night(say);
    let took = began.elapsed().as_secs();
    match &result {
        Ok(text) => say(&format!("ok      {NAME} ({took} s): {text}")),
        Err(error) => say(&format!("FAILED  {NAME} ({took} s): {error:#}")),
    }
    Some(result.is_ok())
}

/// First members: they stay when their group is gathered.
fn stay() -> impl Iterator<Item = &'static Spec> {
    of(Kind::VirtualServer).filter(|server| server.name.ends_with('1'))
}

fn load(on: bool) -> Result<()> {
    for server in stay() {
        let command = if on {
            format!("[ -e /run/work ] || {{ ({WORK}) > /dev/null 2>&1 & echo $! > /run/work; }}")
        } else {
            "[ ! -e /run/work ] || { kill $(cat /run/work); rm /run/work; }".to_owned()
        };
        console::exec_ok(server, &command, Duration::from_secs(20))?;
    }
    Ok(())
}

/// All groups are in this condition, and hosts other than the base server in this state.
fn arrived(status: &Value, condition: &str, others: &str) -> bool {
    let rows = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let same = |value: &Value, word: &str| value.as_str().is_some_and(|value| value.eq_ignore_ascii_case(word));
    let (groups, hosts) = (rows("groups"), rows("hosts"));
    !groups.is_empty()
        && groups.iter().all(|group| same(&group["condition"], condition))
        && hosts.iter().all(|host| same(&host["state"], if host["host"] == "rs1" { "awake" } else { others }))
        && status["transition"].is_null()
}

/// Waits for it; the last status.
fn until(condition: &str, others: &str) -> Result<(Duration, Value)> {
    let mut last = Value::Null;
    let took = wait_until(LIMIT, &format!("all groups are {condition} and the other hosts {others}"), || {
        if let Ok(status) = kagectl_json(&["pss"]) {
            last = status;
        }
        Ok(arrived(&last, condition, others))
    });
    let took = took.with_context(|| format!("power saving says {last}"))?;
    Ok((took, last))
}

/// Who answers on each virtual address.
fn served() -> Result<BTreeMap<String, String>> {
    let client = find("client")?;
    let mut served = BTreeMap::new();
    for server in of(Kind::VirtualServer) {
        let vip = server.vip().context("it has a VIP")?;
        let who = network::who_serves(client, vip, server.service);
        served.insert(vip.to_string(), who.with_context(|| format!("nobody answers on {vip}"))?);
    }
    Ok(served)
}

/// Each virtual address is answered by whom `who` says.
fn answered(who: impl Fn(&Spec) -> String) -> Result<()> {
    let wanted: BTreeMap<String, String> =
        of(Kind::VirtualServer).filter_map(|server| Some((server.vip()?.to_string(), who(server)))).collect();
    let served = served()?;
    ensure!(served == wanted, "served are {served:?}, not {wanted:?}");
    Ok(())
}

/// What was done between two moments, in seconds since the first.
fn steps(after: u64, since_ns: u64, say: Say<'_>) -> Result<()> {
    for event in events_after(after)? {
        let kind = event["kind"].as_str().unwrap_or_default();
        let at = event["unix_ms"].as_u64().or_else(|| event["unix_ms"].as_str()?.parse().ok()).unwrap_or(0);
        let at = std::time::Duration::from_millis(at.saturating_sub(since_ns / 1_000_000)).as_secs_f64();
        if kind.starts_with("pss-") {
            say(&format!("        {at:6.2} s {kind}: {}", event["text"].as_str().unwrap_or_default()));
        }
    }
    Ok(())
}

fn night(say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let folder: PathBuf = dirs::lab().join("results").join(format!("{}-night", now_ns() / 1_000_000_000));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    load(true)?;
    until("moderate", "awake").context("by day")?;
    answered(|server| server.name.to_owned()).context("by day")?;
    let capture = Capture::start(&folder.join("capture.pcap"))?;
    let mut pollers = Vec::new();
    for server in of(Kind::VirtualServer) {
        let file = folder.join(format!("{}.jsonl", server.name));
        pollers.push((server, Poller::start_as(server, &format!("poller-{}", server.name), &file, POLL.0, POLL.1)?));
    }
    let (after, began) = (last_event()?, now_ns());
    load(false)?;
    let (folded, status) = until("light", "asleep").context("in the evening")?;
    steps(after, began, say)?;
    let watts = status["drawn_mw"].as_u64().unwrap_or(0) / 1000;
    answered(|server| format!("{}1", server.group.map_or("", |group| group.name))).context("at night")?;
    for host in of(Kind::RealServer) {
        let wanted = if host.name == "rs1" { machine::Power::On } else { machine::Power::Asleep };
        ensure!(machine::power(host) == wanted, "{} is {:?} at night", host.name, machine::power(host));
    }
    let ftp = hypervisor::whereabouts(find("ftp1")?).map(|(host, _)| host.name);
    ensure!(ftp == Some("rs1"), "ftp1 is on {ftp:?} at night");
    let (after, began) = (last_event()?, now_ns());
    load(true)?;
    let (unfolded, day) = until("moderate", "awake").context("in the morning")?;
    steps(after, began, say)?;
    answered(|server| server.name.to_owned()).context("in the morning")?;
    load(false)?;
    let mut outages = BTreeMap::new();
    for (server, poller) in pollers {
        let samples = poller.stop()?;
        let longest = client::outages(&samples).iter().map(|outage| outage.ms).fold(0.0, f64::max);
        outages.insert(server.name, longest);
    }
    let frames = capture.stop()?;
    let mut changes = 0;
    for server in of(Kind::VirtualServer) {
        let speech = speech::analyse(&frames, server.vip().context("it has a VIP")?);
        write(&folder.join(format!("speech-{}.json", server.name)), serde_json::to_string_pretty(&speech)?)?;
        changes += speech.changes;
        ensure!(
            speech.two_owner_ms <= 0.0 && speech.stray_count == 0,
            "{}: two owners for {:.1} ms, {} stray frames: {:?}",
            speech.vip,
            speech.two_owner_ms,
            speech.stray_count,
            speech.strays
        );
    }
    Ok(format!(
        "Moderate to Light {:.1} s, {} W of {} W; Light to Moderate {:.1} s; {changes} changes of owner, never two; \
         longest outages in ms: {outages:.0?}",
        folded.as_secs_f64(),
        watts,
        day["drawn_mw"].as_u64().unwrap_or(0) / 1000,
        unfolded.as_secs_f64(),
    ))
}
