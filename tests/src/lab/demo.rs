//! The main job in front of somebody's eyes: Mail loses power, its double stands in, it is woken and takes its place.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::capture::Capture;
use super::config::Profile;
use super::drill::Poller;
use super::nodes::{Layout, machine as machine_node};
use super::report::RunReport;
use super::run::{ms, now_ns};
use super::suite::{kagectl_json, prepare, promised_ms};
use super::{daemons, dirs, machine, speech};

/// Runs it. True if everything went as promised.
///
/// # Errors
/// The lab does not come up, or Mail does not come home.
pub fn run(profile: Profile, say: &mut dyn FnMut(&str)) -> Result<bool> {
    prepare(Layout::Small, profile, say)?;
    let target = machine_node("mail")?;
    let vip = target.vip().context("mail has a VIP")?;
    super::run::wait_until(Duration::from_secs(60), "mail is in regular mode", || {
        Ok(kagectl_json(&["status"]).is_ok_and(|status| status["targets"][0]["mode"] == "regular"))
    })?;
    say(&daemons::kagectl(&["status"])?);
    let promised = promised_ms("host lost, frozen or cut off")?;
    let folder = dirs::lab().join("results").join(format!("{}-demo", now_ns() / 1_000_000_000));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let capture = Capture::start(&folder.join("capture.pcap"))?;
    let poller = Poller::start(target, &folder.join("client.jsonl"))?;
    poller.wait("the client is served", Duration::from_secs(10), |samples| samples.len() > 50)?;

    say(&format!("Mail serves {vip}; a client asks it 50 times a second. Its power is cut NOW."));
    let after = newest_event()?;
    let injected_ns = now_ns();
    machine::power_off(target)?;
    let mut timeline = Timeline { after, injected_ns, seen: BTreeSet::new(), server: Some("mail".into()) };
    let began = Instant::now();
    let mut woken = None;
    loop {
        let kinds = timeline.show(&poller, say)?;
        if woken.is_none() && kinds.contains("waking") {
            woken = Some(now_ns());
        }
        if kinds.contains("regular") && timeline.server.as_deref() == Some("mail") {
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

fn newest_event() -> Result<u64> {
    Ok(events(0)?.last().map_or(0, |event| number(&event["seq"])))
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn events(after: u64) -> Result<Vec<Value>> {
    let text = daemons::kagectl(&["--json", "events", "--after", &after.to_string()])?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

struct Timeline {
    after: u64,
    injected_ns: u64,
    seen: BTreeSet<String>,
    server: Option<String>,
}

impl Timeline {
    /// Print what is new: the coordinator's events, and who answers the client.
    fn show(&mut self, poller: &Poller, say: &mut dyn FnMut(&str)) -> Result<BTreeSet<String>> {
        for event in events(self.after)? {
            self.after = self.after.max(number(&event["seq"]));
            let at = number(&event["unix_ms"]) * 1_000_000;
            self.line(at, "kagemusha", event["text"].as_str().unwrap_or_default(), say);
            if let Some(kind) = event["kind"].as_str() {
                self.seen.insert(kind.to_owned());
            }
        }
        let samples = poller.samples()?;
        if let Some(last) = samples.last().filter(|last| last.t_ns > self.injected_ns)
            && last.server != self.server
        {
            let text = match &last.server {
                Some(server) => format!("is served by {server}"),
                None => "gets no answer".to_owned(),
            };
            let at = last.t_ns;
            self.server.clone_from(&last.server);
            self.line(at, "the client", &text, say);
        }
        Ok(self.seen.clone())
    }

    fn line(&self, at_ns: u64, who: &str, text: &str, say: &mut dyn FnMut(&str)) {
        let seconds = (ms(at_ns) - ms(self.injected_ns)) / 1e3;
        say(&format!("{seconds:+8.2} s  {who:10} {text}"));
    }
}
