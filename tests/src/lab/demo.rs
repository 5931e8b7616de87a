//! The main job in front of somebody's eyes: Mail loses power, its double stands in, it is woken and takes its place. Then
//! a night: three groups are gathered on one real server, two sleep, and are woken when their load returns.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::capture::Capture;
use super::config::Profile;
use super::drill::Poller;
use super::load::{self, Level};
use super::nodes::{Layout, machine as machine_node};
use super::power::{self, Clients, Condition};
use super::report::RunReport;
use super::run::{ms, now_ns, wait_until};
use super::suite::{events_after, last_event, prepare, promised_ms, settled};
use super::{daemons, dirs, machine, speech};

/// A transition of all groups with hosts, on two busy cores.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs both. True if everything went as promised.
///
/// # Errors
/// A lab does not come up; Mail does not come home; the groups are not gathered, or not brought back.
pub fn run(profile: Profile, say: &mut dyn FnMut(&str)) -> Result<bool> {
    Ok(takeover(profile, say)? & night(say)?)
}

fn takeover(profile: Profile, say: &mut dyn FnMut(&str)) -> Result<bool> {
    prepare(Layout::Small, profile, say)?;
    let target = machine_node("mail")?;
    let vip = target.vip().context("mail has a VIP")?;
    settled(target)?;
    say(&daemons::kagectl(&["status"])?);
    let promised = promised_ms("host lost, frozen or cut off")?;
    let folder = dirs::lab().join("results").join(format!("{}-demo", now_ns() / 1_000_000_000));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let capture = Capture::start(&folder.join("capture.pcap"))?;
    let poller = Poller::start(target, &folder.join("client.jsonl"))?;
    poller.wait("the client is served", Duration::from_secs(10), |samples| samples.len() > 50)?;

    say(&format!("Mail serves {vip}; a client asks it 50 times a second. Its power is cut NOW."));
    let mut timeline = Timeline::begin()?;
    let injected_ns = timeline.injected_ns;
    machine::power_off(target)?;
    let began = Instant::now();
    let (mut woken, mut server) = (None, Some("mail".to_owned()));
    loop {
        let kinds = timeline.show(say)?;
        timeline.show_client(&poller, &mut server, say)?;
        if woken.is_none() && kinds.contains("waking") {
            woken = Some(now_ns());
        }
        if kinds.contains("regular") && server.as_deref() == Some("mail") {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(120), "Mail is not home after 120 s: tests/lab status");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(2));
    let samples = poller.stop()?;
    let speech = speech::analyse(&capture.stop()?, vip);
    let run = RunReport::new(injected_ns, woken.unwrap_or(injected_ns), &samples, speech, Vec::new());
    let good = run.fault_outage_ms <= promised && run.good();
    let row = |what: &str, value: String, goal: &str| format!("{what:44} {value:>12}   {goal}");
    say("");
    say(&row("What clients saw", "measured".into(), "promised"));
    say(&row(
        "outage when Mail lost its power",
        format!("{:.0} ms", run.fault_outage_ms),
        &format!("at most {promised:.0} ms (kagectl check)"),
    ));
    say(&row("outage when Mail took its place again", format!("{:.0} ms", run.return_outage_ms), "at most 150 ms"));
    say(&row("two machines answering at once", format!("{:.1} ms", run.speech.two_owner_ms), "0 ms"));
    say(&row("requests answered", format!("{} of {}", run.answered, run.asked), ""));
    say(&format!("\nEvidence (capture of the switch, every request): {}", folder.display()));
    Ok(good)
}

/// Two conditions of three groups on three real servers, behind a load balancer.
fn night(say: &mut dyn FnMut(&str)) -> Result<bool> {
    say("\nSix virtual servers on three real ones now, behind HAProxy; clients ask each group ten times a second.");
    prepare(Layout::Pss, Profile::Normal, say)?;
    let folder = power::folder("demo-night")?;
    load::set(None, Level::Moderate)?;
    power::until(Condition::Moderate)?;
    wait_until(Duration::from_secs(30), "all is at home", || {
        Ok(power::proved(Condition::Moderate, &folder, "before").is_ok())
    })?;
    say(&daemons::kagectl(&["pss"])?);
    let clients = Clients::start(&folder)?;
    let mut changes = || -> Result<()> {
        say("Night comes: the load of all groups falls NOW.");
        change(Condition::Light, Level::Light, say)?;
        say(&daemons::kagectl(&["pss"])?);
        say("Morning: the load returns NOW.");
        change(Condition::Moderate, Level::Moderate, say)?;
        wait_until(Duration::from_secs(30), "all is at home", || {
            Ok(power::proved(Condition::Moderate, &folder, "after").is_ok())
        })?;
        Ok(())
    };
    let changed = changes();
    let ended = clients.end(&folder);
    load::set(None, Level::Light)?;
    changed?;
    let (_, balanced, moves) = ended?;
    say("\nWhat clients saw through the load balancer");
    for (name, seen) in &balanced {
        say(&format!("{name:6} {}", seen.word()));
    }
    say(&format!("addresses moved {moves} times, never with two owners\n\nEvidence: {}", folder.display()));
    // What is under way where bytes are only passed on is cut as an address moves.
    Ok(balanced.values().all(|seen| seen.failed <= moves))
}

/// The load changes, and what follows is shown as it happens.
fn change(condition: Condition, level: Level, say: &mut dyn FnMut(&str)) -> Result<()> {
    let mut timeline = Timeline::begin()?;
    load::set(None, level)?;
    let began = Instant::now();
    loop {
        timeline.show(say)?;
        if power::is(condition) {
            timeline.show(say)?;
            return Ok(());
        }
        ensure!(began.elapsed() < LIMIT, "the groups are not {} after {LIMIT:?}: kagectl pss", condition.name());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

struct Timeline {
    after: u64,
    injected_ns: u64,
    seen: BTreeSet<String>,
}

impl Timeline {
    /// From now on.
    fn begin() -> Result<Self> {
        let after = last_event()?;
        Ok(Self { after, injected_ns: now_ns(), seen: BTreeSet::new() })
    }

    /// Print the coordinator's new events; the kinds of all so far.
    fn show(&mut self, say: &mut dyn FnMut(&str)) -> Result<BTreeSet<String>> {
        for event in events_after(self.after)? {
            self.after = self.after.max(number(&event["seq"]));
            let at = number(&event["unix_ms"]) * 1_000_000;
            let [target, text] = ["target", "text"].map(|key| event[key].as_str().unwrap_or_default());
            // Most say of whom they tell.
            let text = if text.contains(target) { text.to_owned() } else { format!("{target}: {text}") };
            self.line(at, "kagemusha", &text, say);
            if let Some(kind) = event["kind"].as_str() {
                self.seen.insert(kind.to_owned());
            }
        }
        Ok(self.seen.clone())
    }

    /// Print who answers the client, if that has changed.
    fn show_client(&self, poller: &Poller, server: &mut Option<String>, say: &mut dyn FnMut(&str)) -> Result<()> {
        let samples = poller.samples()?;
        if let Some(last) = samples.last().filter(|last| last.t_ns > self.injected_ns)
            && last.server != *server
        {
            let text = match &last.server {
                Some(server) => format!("is served by {server}"),
                None => "gets no answer".to_owned(),
            };
            server.clone_from(&last.server);
            self.line(last.t_ns, "the client", &text, say);
        }
        Ok(())
    }

    fn line(&self, at_ns: u64, who: &str, text: &str, say: &mut dyn FnMut(&str)) {
        let seconds = (ms(at_ns) - ms(self.injected_ns)) / 1e3;
        say(&format!("{seconds:+8.2} s  {who:10} {text}"));
    }
}
