//! Every promise that needs a real machine, once: what `tests/all` runs in the lab.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::capture::Capture;
use super::client;
use super::config::Profile;
use super::daemons::{self, Part};
use super::drill::{Drill, Expect, Fault, Poller};
use super::network::Cut;
use super::nodes::{Layout, Spec, find, machine as machine_node};
use super::report::RunReport;
use super::run::{ms, now_ns, wait_until};
use super::{dirs, hypervisor, lifecycle, machine, speech};

/// Long enough for a coordinator that starts anew to have a term and to outwait its predecessor's.
const NEW_TERM: Duration = Duration::from_secs(20);

/// An emulated guest on a busy machine may be slow for this long with nothing wrong; whether a lease lapsed is read from
/// the agent's own reports instead.
pub(super) const HICCUP_MS: f64 = 300.0;

pub(super) type Say<'a> = &'a mut dyn FnMut(&str);

/// One scenario.
struct Scenario {
    name: &'static str,
    run: fn(&'static Spec, Say<'_>) -> Result<String>,
}

const NORMAL: &[Scenario] = &[
    Scenario { name: "crash: power lost", run: |t, s| fault(t, s, "crash", Fault::Crash, LOST) },
    Scenario { name: "hang: frozen, thawed after takeover", run: |t, s| fault(t, s, "hang", Fault::Hang, LOST) },
    Scenario { name: "cut: network lost", run: |t, s| fault(t, s, "cut", Fault::Cut(Cut::Full), LOST) },
    Scenario { name: "cut: heard by nobody", run: |t, s| fault(t, s, "cut-from", Fault::Cut(Cut::FromTarget), LOST) },
    Scenario { name: "cut: hears nobody", run: |t, s| fault(t, s, "cut-to", Fault::Cut(Cut::ToTarget), ONE_WAY) },
    Scenario {
        name: "cut: from the coordinator only",
        run: |t, s| fault(t, s, "cut-coordinator", Fault::Cut(Cut::Coordinator), NOTHING),
    },
    Scenario { name: "stall of 400 ms: no lapse", run: short_stall },
    Scenario { name: "stall of 8 s: lapses, returns or moves, never both", run: long_stall },
    Scenario { name: "service killed: restarted in place", run: |t, s| fault(t, s, "service", Fault::Service, "") },
    Scenario {
        name: "clean shutdown: planned hand-over",
        run: |t, s| fault(t, s, "shutdown", Fault::Shutdown, PLANNED),
    },
    Scenario { name: "proof: the power reads off", run: proof },
    Scenario { name: "planned move and fail-back", run: planned },
    Scenario { name: "agent killed, agent upgraded", run: agent_restarts },
    Scenario { name: "coordinator, SIF, both away", run: away },
    Scenario { name: "agent without its state", run: wiped },
    Scenario { name: "QEMU killed from outside", run: qemu_killed },
    Scenario { name: "coordinator killed at each step of a takeover", run: killed_at_each_step },
    Scenario { name: "QMP stop and cont of the VM that serves", run: qmp_stop },
    Scenario { name: "half of the machines dark at once", run: super::storms::half_dark },
    Scenario { name: "total network loss for 120 s", run: super::storms::total_loss },
    Scenario { name: "upgrade of every part under load", run: super::storms::upgrade },
    Scenario { name: "a stranger's calls", run: strangers },
    Scenario { name: "bad input", run: super::mishaps::all },
];

const FAST: &[Scenario] = &[
    Scenario { name: "fast: power lost", run: |t, s| fault(t, s, "fast-crash", Fault::Crash, LOST) },
    Scenario { name: "fast: frozen", run: |t, s| fault(t, s, "fast-hang", Fault::Hang, LOST) },
    Scenario { name: "fast: clean shutdown", run: |t, s| fault(t, s, "fast-shutdown", Fault::Shutdown, PLANNED) },
    Scenario { name: "fast: hears nobody", run: |t, s| fault(t, s, "fast-cut-to", Fault::Cut(Cut::ToTarget), ONE_WAY) },
];

/// Troubles as `kagectl check` names them.
const LOST: &str = "host lost, frozen or cut off";
const ONE_WAY: &str = "one-way cut";
const PLANNED: &str = "clean shutdown or reboot";
const NOTHING: &str = "coordinator or SIF away";

/// Runs all of them; those whose name contains `only`, if given. True if all passed.
///
/// # Errors
/// The lab does not come up.
pub fn run(only: Option<&str>, say: Say<'_>) -> Result<bool> {
    let (mut passed, mut failed) = (0, 0);
    for (profile, scenarios) in [(Profile::Normal, NORMAL), (Profile::Fast, FAST)] {
        let wanted: Vec<_> = scenarios.iter().filter(|one| only.is_none_or(|only| one.name.contains(only))).collect();
        if wanted.is_empty() {
            continue;
        }
        let layout = Layout::Small;
        prepare(layout, profile, say)?;
        for scenario in wanted {
            let began = Instant::now();
            let target = machine_node("mail")?;
            let result = settled(target).and_then(|()| (scenario.run)(target, say));
            let took = began.elapsed().as_secs();
            match result {
                Ok(text) => {
                    passed += 1;
                    say(&format!("ok      {} ({took} s): {text}", scenario.name));
                }
                Err(error) => {
                    failed += 1;
                    say(&format!("FAILED  {} ({took} s): {error:#}", scenario.name));
                    // The next one deserves a whole lab.
                    lifecycle::down()?;
                    lifecycle::up(layout, profile, say)?;
                }
            }
        }
    }
    let (good, bad) = super::power::run(only, say);
    passed += good;
    failed += bad;
    say(&format!("{passed} passed, {failed} failed"));
    Ok(failed == 0)
}

/// The lab, up with this profile.
///
/// # Errors
/// It does not come up.
pub fn prepare(layout: Layout, profile: Profile, say: Say<'_>) -> Result<()> {
    match lifecycle::memory() {
        Ok(memory) if memory.profile == profile && memory.layout == layout => {
            if memory.built_ns == lifecycle::built_ns() {
                return Ok(());
            }
            say("the lab runs programs that were built anew since: it is brought up again");
            lifecycle::down()?;
            lifecycle::up(layout, profile, say)
        }
        Ok(_) => {
            lifecycle::down()?;
            lifecycle::up(layout, profile, say)
        }
        Err(_) => lifecycle::up(layout, profile, say),
    }
}

/// kagectl's answer as JSON.
///
/// # Errors
/// It fails, or prints something else.
pub fn kagectl_json(arguments: &[&str]) -> Result<Value> {
    let mut words = vec!["--json"];
    words.extend(arguments);
    let text = daemons::kagectl(&words)?;
    serde_json::from_str(&text).with_context(|| format!("kagectl {arguments:?} printed no JSON: {text}"))
}

/// Worst-case outage that `kagectl check` promises for a trouble.
///
/// # Errors
/// It promises nothing for it.
pub fn promised_ms(trouble: &str) -> Result<f64> {
    let report = kagectl_json(&["check"])?;
    report["targets"][0]["troubles"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["trouble"] == trouble)
        .and_then(|row| row["outage_worst_ms"].as_f64())
        .with_context(|| format!("kagectl check promises nothing for {trouble:?}"))
}

/// Wait until the target is in Regular mode and its VIP is held by it.
pub(super) fn settled(target: &'static Spec) -> Result<()> {
    wait_until(Duration::from_secs(60), "the target is in regular mode", || {
        let Ok(status) = kagectl_json(&["status"]) else { return Ok(false) };
        let row = &status["targets"][0];
        Ok(row["mode"] == "regular" && row["vips"][0]["holder"] == "target")
    })?;
    let vip = target.vip().context("it has a VIP")?;
    wait_until(Duration::from_secs(30), "the client is served by the target", || {
        Ok(super::network::who_serves(find("client")?, vip, target.service).as_deref() == Some(target.name))
    })?;
    Ok(())
}

/// One drill, judged against what was promised before it.
fn fault(target: &'static Spec, say: Say<'_>, name: &str, fault: Fault, trouble: &str) -> Result<String> {
    let promised = if trouble.is_empty() { None } else { Some(promised_ms(trouble)?) };
    let report = Drill::new(name, fault, target).run(say)?;
    let run = report.runs.first().context("one run")?;
    judge(run)?;
    if let Some(promised) = promised {
        ensure!(
            run.fault_outage_ms <= promised.max(HICCUP_MS),
            "clients were without service for {:.0} ms; check promised at most {promised:.0}",
            run.fault_outage_ms
        );
    }
    let promise = promised.map_or_else(String::new, |promised| format!(" (promised {promised:.0})"));
    Ok(format!(
        "outage {:.0} ms{promise}, coming home {:.0} ms, two owners {:.1} ms",
        run.fault_outage_ms, run.return_outage_ms, run.speech.two_owner_ms
    ))
}

fn judge(run: &RunReport) -> Result<()> {
    ensure!(run.problems.is_empty(), "{}", run.problems.join("; "));
    ensure!(
        run.good(),
        "two owners for {:.1} ms, {} stray frames: {:?}",
        run.speech.two_owner_ms,
        run.speech.stray_count,
        run.speech.strays
    );
    Ok(())
}

fn short_stall(target: &'static Spec, say: Say<'_>) -> Result<String> {
    let after = last_event()?;
    let mut drill = Drill::new("stall-400", Fault::Stall(Duration::from_millis(400)), target);
    drill.expect = Expect::Stay;
    let report = drill.run(say)?;
    let run = report.runs.first().context("one run")?;
    judge(run)?;
    ensure!(run.speech.changes == 0, "the address moved");
    ensure!(run.fault_outage_ms <= HICCUP_MS, "clients missed it for {:.0} ms", run.fault_outage_ms);
    ensure!(!event_since(after, "vip-closed")?, "its lease lapsed");
    Ok(format!("outage {:.0} ms, no change of owner", run.fault_outage_ms))
}

fn long_stall(target: &'static Spec, say: Say<'_>) -> Result<String> {
    let report = Drill::new("stall-8000", Fault::Stall(Duration::from_secs(8)), target).run(say)?;
    let run = report.runs.first().context("one run")?;
    judge(run)?;
    Ok(format!(
        "outage {:.0} ms, {} changes of owner, two owners {:.1} ms",
        run.fault_outage_ms, run.speech.changes, run.speech.two_owner_ms
    ))
}

/// What a client saw, and who spoke, while something was done.
pub struct Watch {
    poller: Poller,
    capture: Capture,
    target: &'static Spec,
}

impl Watch {
    /// Start client and capture.
    ///
    /// # Errors
    /// The lab is down.
    pub fn start(target: &'static Spec, name: &str) -> Result<Self> {
        let folder: PathBuf = dirs::lab().join("results").join(format!("{}-{name}", now_ns() / 1_000_000_000));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let capture = Capture::start(&folder.join("capture.pcap"))?;
        let poller = Poller::start(target, &folder.join("client.jsonl"))?;
        poller.wait("the client is served", Duration::from_secs(10), |samples| {
            samples.len() >= 50 && samples[samples.len() - 50..].iter().all(|sample| sample.ok)
        })?;
        Ok(Self { poller, capture, target })
    }

    /// End; the longest outage in ms, and the speech.
    ///
    /// # Errors
    /// Two owners, or evidence that can't be read.
    pub fn end(self) -> Result<(f64, speech::Speech)> {
        let vip = self.target.vip().context("it has a VIP")?;
        let samples = self.poller.stop()?;
        let speech = speech::analyse(&self.capture.stop()?, vip);
        ensure!(
            speech.two_owner_ms <= 0.0 && speech.stray_count == 0,
            "two owners for {:.1} ms, {} stray frames",
            speech.two_owner_ms,
            speech.stray_count
        );
        let outage = client::outages(&samples).iter().map(|outage| outage.ms).fold(0.0, f64::max);
        Ok((outage, speech))
    }

    /// When the first good answer to a question asked after `t_ns` came.
    pub(super) fn served_since(&self, t_ns: u64) -> Result<Option<u64>> {
        let samples = self.poller.samples()?;
        Ok(samples.iter().find(|sample| sample.ok && sample.t_ns >= t_ns).map(client::Sample::done_ns))
    }

    /// Who gave the last answer until now.
    fn served_by(&self) -> Option<String> {
        self.poller.samples().ok()?.last()?.server.clone()
    }
}

/// With a power controller to ask nobody waits for the lease to run out.
fn proof(target: &'static Spec, say: Say<'_>) -> Result<String> {
    let file = super::config::cluster_file();
    let usual = super::run::read(&file)?;
    let program = lifecycle::this_program()?;
    let section = format!("[[agent]]\nname = \"{}\"\n", target.name);
    ensure!(usual.contains(&section), "cluster.toml has a section of {}", target.name);
    let readable = format!("{section}power_status = [\"{program}\", \"power\", \"status\", \"{}\"]\n", target.name);
    restart_coordinator(&usual.replace(&section, &readable), target)?;
    let report = Drill::new("proof", Fault::Crash, target).run(say);
    restart_coordinator(&usual, target)?;
    let report = report?;
    let run = report.runs.first().context("one run")?;
    judge(run)?;
    let events = daemons::kagectl(&["--json", "events"])?;
    ensure!(events.contains("proved off"), "the takeover was not by proof");
    Ok(format!("outage {:.0} ms, coming home {:.0} ms", run.fault_outage_ms, run.return_outage_ms))
}

pub(super) fn restart_coordinator(cluster: &str, target: &'static Spec) -> Result<()> {
    super::run::write(&super::config::cluster_file(), cluster)?;
    daemons::stop(Part::Coordinator)?;
    daemons::start(Part::Coordinator)?;
    settled(target)?;
    // What happened before it had outwaited its predecessor would be judged by another rule.
    std::thread::sleep(Duration::from_secs(8));
    Ok(())
}

fn planned(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let promised = promised_ms("planned move, fail-back")?;
    let watch = Watch::start(target, "failover")?;
    daemons::kagectl(&["failover", target.name])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(watch.served_by().as_deref() == Some("mailb"), "the backup server does not serve after the fail-over");
    let (there, _) = watch.end()?;
    let watch = Watch::start(target, "failback")?;
    daemons::kagectl(&["failback", target.name])?;
    std::thread::sleep(Duration::from_secs(2));
    let (back, _) = watch.end()?;
    // A poll each 20 ms with a time-out of 150 ms sees nothing shorter than one lost question.
    ensure!(back <= promised + 150.0, "the fail-back cost {back:.0} ms");
    Ok(format!("fail-over {there:.0} ms, fail-back {back:.0} ms as a client sees it"))
}

fn agent_restarts(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let agent = Part::Agent(target);
    let watch = Watch::start(target, "agent-killed")?;
    daemons::kill(agent)?;
    std::thread::sleep(Duration::from_secs(6));
    // Its elements run out after K. It is back before that, or its address moves: either way once.
    let (killed, _) = watch.end()?;
    ensure!(killed <= promised_ms(LOST)?, "a killed agent cost {killed:.0} ms");
    settled(target)?;
    let after = last_event()?;
    let watch = Watch::start(target, "agent-upgraded")?;
    daemons::stop(agent)?;
    std::thread::sleep(Duration::from_secs(5));
    daemons::start(agent)?;
    std::thread::sleep(Duration::from_secs(5));
    let (stopped, speech) = watch.end()?;
    ensure!(speech.changes == 0, "the address moved while its agent was upgraded");
    ensure!(stopped <= HICCUP_MS, "an upgrade of the agent cost {stopped:.0} ms");
    ensure!(!event_since(after, "vip-closed")?, "the lease lapsed during the upgrade");
    Ok(format!("killed: {killed:.0} ms; stopped for 5 s: {stopped:.0} ms"))
}

/// The coordinator away for 60 s, the SIF for 60 s, and for half a minute both.
fn away(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let half = Duration::from_secs(30);
    let watch = Watch::start(target, "away")?;
    daemons::kill(Part::Coordinator)?;
    std::thread::sleep(half);
    daemons::kill(Part::Sif)?;
    std::thread::sleep(half);
    daemons::start(Part::Coordinator)?;
    std::thread::sleep(half);
    daemons::start(Part::Sif)?;
    std::thread::sleep(Duration::from_secs(8));
    let (outage, speech) = watch.end()?;
    ensure!(outage <= HICCUP_MS && speech.changes == 0, "they were missed for {outage:.0} ms");
    settled(target)?;
    Ok(format!("60 s each, both for 30 s: outage {outage:.0} ms"))
}

/// An agent that knows nothing any more closes what it finds open in the kernel, and begins anew.
fn wiped(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let limit = Duration::from_secs(10);
    let watch = Watch::start(target, "wiped")?;
    let wipe = "touch /run/no-agent; killall -9 kage-agent; rm -rf /var/lib/kagemusha/*; rm /run/no-agent";
    super::console::exec_ok(target, wipe, limit)?;
    std::thread::sleep(Duration::from_secs(6));
    settled(target).context("after the agent's state was wiped")?;
    let (outage, speech) = watch.end()?;
    Ok(format!("outage {outage:.0} ms, {} changes of owner", speech.changes))
}

/// The QEMU of the VM that serves, killed behind libvirt's back: a crash, noticed at once.
fn qemu_killed(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let double = super::nodes::double(target.name).context("it has a double")?;
    let host = find(double.host)?;
    daemons::kagectl(&["failover", target.name])?;
    let watch = Watch::start(target, "qemu-killed")?;
    let after = last_event()?;
    let pid_file = format!("/run/libvirt/qemu/{}.pid", double.name);
    let pid = super::spawn::run_in(host, &["cat", &pid_file])?;
    super::run::run(&["kill", "-9", pid.trim()])?;
    let began = Instant::now();
    let noticed = wait_until(Duration::from_secs(20), "the crash of the VM is reported", || {
        Ok(events_after(after)?.iter().any(|event| {
            event["text"].as_str().is_some_and(|text| text.contains(double.name) && !text.contains("resumed"))
        }))
    })?;
    wait_until(Duration::from_secs(40), "the client is served again", || {
        Ok(watch.served_by().as_deref() == Some(target.name))
    })
    .context("after the QEMU of the double was killed")?;
    let served = began.elapsed();
    // A double again, for the next scenario.
    hypervisor::boot_and_suspend(double, double.boot_limit())?;
    let (outage, _) = watch.end()?;
    settled(target)?;
    Ok(format!("noticed after {noticed:.1?}, served again after {served:.1?}, outage {outage:.0} ms"))
}

/// Whether an event of this kind came after `after`.
pub(super) fn event_since(after: u64, kind: &str) -> Result<bool> {
    let text = daemons::kagectl(&["--json", "events", "--after", &after.to_string()])?;
    Ok(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|event| event["kind"] == kind))
}

/// The coordinator's events after the one with this number.
///
/// # Errors
/// The coordinator does not answer.
pub fn events_after(after: u64) -> Result<Vec<Value>> {
    let text = daemons::kagectl(&["--json", "events", "--after", &after.to_string()])?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The number of the newest event.
///
/// # Errors
/// The coordinator does not answer.
pub fn last_event() -> Result<u64> {
    let text = daemons::kagectl(&["--json", "events"])?;
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    last.and_then(|event| event["seq"].as_u64().or_else(|| event["seq"].as_str()?.parse().ok()))
        .context("there are events, with numbers")
}

fn killed_at_each_step(target: &'static Spec, say: Say<'_>) -> Result<String> {
    let mut seen = Vec::new();
    for step in ["network-trouble", "confirmed", "epoch-durable", "secured", "vip-set"] {
        let watch = Watch::start(target, "coordinator-killed")?;
        let after = last_event()?;
        machine::power_off(target)?;
        let began = Instant::now();
        while !event_since(after, step).unwrap_or(false) {
            ensure!(began.elapsed() < Duration::from_secs(30), "no event {step} after the power was lost");
        }
        daemons::kill(Part::Coordinator)?;
        std::thread::sleep(Duration::from_secs(1));
        daemons::start(Part::Coordinator)?;
        wait_until(NEW_TERM, "the backup server serves", || Ok(watch.served_by().as_deref() == Some("mailb")))
            .with_context(|| format!("coordinator killed after {step}"))?;
        machine::wake(target)?;
        settled(target).with_context(|| format!("coming home after the coordinator was killed after {step}"))?;
        let (outage, _) = watch.end()?;
        say(&format!("        killed after {step}: served again after {outage:.0} ms"));
        seen.push(format!("{step} {outage:.0}"));
    }
    Ok(format!("each completed; outage in ms: {}", seen.join(", ")))
}

fn qmp_stop(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let host = find("mgmt")?;
    daemons::kagectl(&["failover", target.name])?;
    let vip = target.vip().context("it has a VIP")?;
    let capture = Capture::start(&dirs::lab().join("results").join(format!("{}-qmp.pcap", now_ns())))?;
    let stop = |word: &str| {
        hypervisor::virsh(host, &["qemu-monitor-command", "mailb", &format!("{{\"execute\":\"{word}\"}}")])
    };
    stop("stop")?;
    // The coordinator would start it again at once; what it may say then needs a new lease first.
    let stopped_ns = now_ns();
    std::thread::sleep(Duration::from_millis(1500));
    let _already = stop("cont");
    std::thread::sleep(Duration::from_secs(3));
    let words = speech::words(&capture.stop()?, vip);
    let opened = lease_opened_after(stopped_ns)?;
    // Frames already queued on the tap when it was stopped are no new speech.
    let early: Vec<_> = words
        .iter()
        .filter(|word| {
            word.machine == "mailb" && word.t_ns > stopped_ns + 50_000_000 && word.t_ns + 20_000_000 < opened
        })
        .collect();
    ensure!(early.is_empty(), "{} frames as the VIP before a new lease: {early:?}", early.len());
    wait_until(Duration::from_secs(20), "the client is served again", || {
        Ok(super::network::who_serves(find("client")?, vip, target.service).is_some())
    })?;
    daemons::kagectl(&["failback", target.name])?;
    Ok(format!("no frame before the new lease {:.0} ms after the stop", ms(opened.saturating_sub(stopped_ns))))
}

fn lease_opened_after(t_ns: u64) -> Result<u64> {
    let mut found = None;
    wait_until(Duration::from_secs(20), "a new lease", || {
        let text = daemons::kagectl(&["--json", "events"])?;
        found = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| event["kind"] == "vip-open")
            .filter_map(|event| event["unix_ms"].as_u64().or_else(|| event["unix_ms"].as_str()?.parse().ok()))
            .map(|unix_ms| unix_ms * 1_000_000)
            .find(|opened| *opened > t_ns);
        Ok(found.is_some())
    })?;
    found.context("a new lease")
}

fn strangers(_: &'static Spec, _: Say<'_>) -> Result<String> {
    let authority = dirs::lab().join("pki");
    let viewer = authority.join("viewer");
    let refused = |pki: &std::path::Path, arguments: &[&str]| -> Result<()> {
        match daemons::kagectl_as(pki, arguments) {
            Ok(answer) => bail!("kagectl {arguments:?} was allowed: {answer}"),
            Err(_) => Ok(()),
        }
    };
    daemons::kagectl_as(&viewer, &["status"]).context("a viewer may look")?;
    refused(&viewer, &["failover", "mail"]).context("a viewer commands")?;
    let other = dirs::lab().join("results/other-authority");
    let _ = std::fs::remove_dir_all(&other);
    let binary = dirs::binary("kagectl").context("kagectl is built")?;
    super::run::run(&[&super::run::text(&binary), "pki", "init", "--dir", &super::run::text(&other)])?;
    refused(&other.join("operator"), &["status"]).context("another authority's operator")?;
    refused(&super::config::pki("v1"), &["failover", "mail"]).context("an agent commands the coordinator")?;
    let log = super::run::read(&super::spawn::Daemon::new(find("mgmt")?, "coordinator").log())?;
    let audited = log.lines().filter(|line| line.contains("audit")).count();
    ensure!(audited >= 3, "the coordinator's log has {audited} audit lines");
    Ok(format!("viewer, other authority, agent: refused; {audited} audit lines"))
}
