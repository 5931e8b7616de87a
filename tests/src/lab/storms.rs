//! Much at once: no network at all, half of the machines dark, every part of the product replaced while clients ask.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::config::{self, Profile};
use super::console;
use super::daemons::{self, Part};
use super::drill::{Drill, Fault, Poller};
use super::network::{self, Cut};
use super::nodes::{Kind, Layout, Spec, machine, of};
use super::run::{ms, now_ns, wait_until};
use super::suite::{HICCUP_MS, Say, Watch, event_since, events_after, kagectl_json, last_event, settled};
use super::{dirs, lifecycle};

/// How long every cable is out.
const TOTAL_LOSS: Duration = Duration::from_secs(120);
/// How long half of the machines are dark: well beyond every wait that ends in a takeover.
const HALF_DARK: Duration = Duration::from_secs(20);
/// From the cut to the alert.
const ALERT_MS: f64 = 2000.0;
/// From the healing until clients are served.
const BACK_MS: f64 = 1000.0;
/// Clients beside the one whose samples are judged, and how often each asks: an emulated guest bears no more.
const LOAD: u32 = 3;
const LOAD_EVERY: Duration = Duration::from_millis(150);
const ANSWER: Duration = Duration::from_millis(500);

/// Severs all of them, and joins them when it goes.
struct Dark(Vec<&'static Spec>);

impl Dark {
    fn new(nodes: Vec<&'static Spec>) -> Result<Self> {
        let dark = Self(nodes);
        dark.0.iter().try_for_each(|node| network::cut(node, Cut::Full))?;
        Ok(dark)
    }

    fn heal(mut self) -> Result<()> {
        std::mem::take(&mut self.0).into_iter().try_for_each(network::heal)
    }
}

impl Drop for Dark {
    fn drop(&mut self) {
        for node in &self.0 {
            let _ = network::heal(node);
        }
    }
}

fn boot_id(node: &Spec) -> Result<String> {
    console::exec_ok(node, "cat /proc/sys/kernel/random/boot_id", Duration::from_secs(5))
}

fn alerted_after(after: u64, kind: &str, begun_ns: u64) -> Result<f64> {
    let event = events_after(after)?
        .into_iter()
        .find(|event| event["kind"] == kind)
        .with_context(|| format!("no event {kind}"))?;
    let unix_ms = event["unix_ms"].as_u64().or_else(|| event["unix_ms"].as_str()?.parse().ok());
    let unix_ms = unix_ms.context("an event has its time")?;
    Ok(ms((unix_ms * 1_000_000).saturating_sub(begun_ns)))
}

/// All events after `after`, in a line.
fn told_since(after: u64) -> Result<String> {
    let told = events_after(after)?.into_iter().map(|event| {
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", event["unix_ms"], word("kind"), word("text"))
    });
    Ok(told.collect::<Vec<_>>().join("; "))
}

fn nothing_done(after: u64) -> Result<()> {
    for event in events_after(after)? {
        let kind = event["kind"].as_str().unwrap_or_default();
        ensure!(
            !matches!(kind, "backup-server" | "rebooting" | "restarting" | "waking"),
            "the coordinator acted: {kind}: {}",
            event["text"].as_str().unwrap_or_default()
        );
    }
    Ok(())
}

/// Every machine of the product loses its network for two minutes: nobody is dead, so nothing is rebooted or taken over,
/// and clients are served within a second after the healing.
///
/// # Errors
/// One of that is not so.
pub fn total_loss(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let before = boot_id(target)?;
    let after = last_event()?;
    let watch = Watch::start(target, "total-loss")?;
    let begun_ns = now_ns();
    let dark = Dark::new(config::agents().collect())?;
    std::thread::sleep(TOTAL_LOSS);
    let alert = alerted_after(after, "storm-brake", begun_ns)?;
    nothing_done(after)?;
    let healed_ns = now_ns();
    dark.heal()?;
    let waited = wait_until(Duration::from_secs(30), "clients are served after the healing", || {
        Ok(watch.served_since(healed_ns)?.is_some())
    });
    let back = watch.served_since(healed_ns)?.map_or(f64::INFINITY, |first| ms(first.saturating_sub(healed_ns)));
    waited?;
    settled(target)?;
    let (outage, speech) = watch.end()?;
    nothing_done(after)?;
    ensure!(boot_id(target)? == before, "{} was rebooted", target.name);
    ensure!(speech.changes == 0, "the address moved");
    ensure!(alert <= ALERT_MS, "the storm brake's alert came after {alert:.0} ms");
    ensure!(back <= BACK_MS, "clients were served {back:.0} ms after the healing");
    Ok(format!("alert after {alert:.0} ms, dark for {outage:.0} ms, served {back:.0} ms after the healing"))
}

/// The target and two of three voters dark at once: more than half of the failure domains, so the coordinator holds and
/// alerts, however long it lasts.
///
/// # Errors
/// It acts, or says nothing in time.
pub fn half_dark(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let after = last_event()?;
    let watch = Watch::start(target, "half-dark")?;
    let begun_ns = now_ns();
    let dark = Dark::new(of(Kind::Voter).take(2).chain([target]).collect())?;
    std::thread::sleep(HALF_DARK);
    let alert = alerted_after(after, "storm-brake", begun_ns)?;
    nothing_done(after)?;
    let healed_ns = now_ns();
    dark.heal()?;
    settled(target)?;
    wait_until(Duration::from_secs(30), "the storm brake is released", || event_since(after, "storm-over"))?;
    let back = watch.served_since(healed_ns)?.map_or(f64::INFINITY, |first| ms(first.saturating_sub(healed_ns)));
    let (_, speech) = watch.end()?;
    ensure!(speech.changes == 0, "the address moved");
    ensure!(alert <= ALERT_MS, "the storm brake's alert came after {alert:.0} ms");
    Ok(format!("alert after {alert:.0} ms, held for {HALF_DARK:?}, served {back:.0} ms after the healing"))
}

/// Who is asked for what while parts are replaced.
struct Load(Vec<Poller>);

impl Load {
    fn start(target: &'static Spec) -> Result<Self> {
        let folder = dirs::lab().join("results");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let pollers = (0..LOAD).map(|number| {
            let name = format!("load-{number}");
            let file = folder.join(format!("{name}.jsonl"));
            Poller::start_as(target, &name, &file, LOAD_EVERY, ANSWER)
        });
        Ok(Self(pollers.collect::<Result<_>>()?))
    }

    /// Answers that they got.
    fn end(self) -> Result<usize> {
        let mut answers = 0;
        for poller in self.0 {
            answers += poller.stop()?.iter().filter(|sample| sample.ok).count();
        }
        Ok(answers)
    }
}

/// All parts in the order of docs/operations.md: ledger, controller, then agent by agent.
fn parts(target: &'static Spec) -> Result<Vec<Part>> {
    let mut parts = daemons::outside()?;
    parts.push(Part::Agent(target));
    Ok(parts)
}

/// Every agent attends again.
fn complete() -> Result<()> {
    wait_until(Duration::from_secs(30), "every agent is connected", || {
        let Ok(status) = kagectl_json(&["status"]) else { return Ok(false) };
        let agents = status["agents"].as_array().cloned().unwrap_or_default();
        Ok(!agents.is_empty() && agents.iter().all(|agent| agent["connected"] == Value::Bool(true)))
    })?;
    Ok(())
}

/// Each part stopped as its service manager would for an upgrade, and started again, while clients ask.
///
/// # Errors
/// Clients miss anything.
pub fn upgrade(target: &'static Spec, _: Say<'_>) -> Result<String> {
    let after = last_event()?;
    let load = Load::start(target)?;
    let watch = Watch::start(target, "upgrade")?;
    for part in parts(target)? {
        daemons::stop(part)?;
        std::thread::sleep(Duration::from_secs(2));
        daemons::start(part)?;
        complete().with_context(|| format!("after the upgrade of {}", part.name()))?;
    }
    settled(target)?;
    let (outage, speech) = watch.end()?;
    let answers = load.end()?;
    ensure!(speech.changes == 0, "the address moved: {}", told_since(after)?);
    ensure!(outage <= HICCUP_MS, "clients missed it for {outage:.0} ms: {}", told_since(after)?);
    ensure!(!event_since(after, "vip-closed")?, "a lease lapsed");
    ensure!(answers > 0, "the load got no answer");
    Ok(format!("every part once, {answers} other answers meanwhile, longest outage {outage:.0} ms"))
}

/// Brings a lab up with the binaries of `$KAGE_BIN_DIR`, an older version; part by part they are replaced by those of this
/// tree. After each step a planned move there and back with the versions mixed, and once a crash.
///
/// # Errors
/// Clients miss anything but the moves and the crash, or a part does not work with the others' versions.
pub fn from_older(say: Say<'_>) -> Result<()> {
    std::env::var_os("KAGE_BIN_DIR").context("tests/lab upgrade builds the older version and says where it is")?;
    lifecycle::up(Layout::Small, Profile::Normal, say)?;
    let done = one_by_one(machine("mail")?, say);
    let down = lifecycle::down();
    done.and(down)
}

fn one_by_one(target: &'static Spec, say: Say<'_>) -> Result<()> {
    settled(target)?;
    for part in parts(target)? {
        let load = Load::start(target)?;
        let watch = Watch::start(target, "mixed")?;
        let after = last_event()?;
        part.replace()?;
        complete().with_context(|| format!("after the upgrade of {}", part.name()))?;
        settled(target)?;
        std::thread::sleep(Duration::from_secs(2));
        let lapsed = event_since(after, "vip-closed")?;
        let (outage, speech) = watch.end()?;
        let answers = load.end()?;
        if lapsed || speech.changes > 0 || outage > HICCUP_MS {
            bail!("the upgrade of {} cost {outage:.0} ms, {} changes of owner", part.name(), speech.changes);
        }
        let began = Instant::now();
        daemons::kagectl(&["failover", target.name]).with_context(|| format!("fail-over, {} new", part.name()))?;
        daemons::kagectl(&["failback", target.name]).with_context(|| format!("fail-back, {} new", part.name()))?;
        settled(target)?;
        say(&format!(
            "{} is new: outage {outage:.0} ms, {answers} other answers; moved there and back in {:.1?}",
            part.name(),
            began.elapsed()
        ));
        if part == Part::Coordinator {
            let run = Drill::new("mixed-crash", Fault::Crash, target).run(say)?;
            let run = run.runs.first().context("one run")?;
            ensure!(run.good() && run.problems.is_empty(), "crash with old agents: {}", run.problems.join("; "));
            say(&format!("crash, new coordinator and old agents: outage {:.0} ms", run.fault_outage_ms));
        }
    }
    Ok(())
}
