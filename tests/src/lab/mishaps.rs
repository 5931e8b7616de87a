//! What goes wrong around the product: a VM that is not there, an agent that is not there, libvirtd killed, a full disk.
//! Each is said clearly, and the target goes on being served.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::daemons::{self, Part};
use super::nodes::{Spec, double, find};
use super::run::{read, text};
use super::spawn::{Daemon, run_in};
use super::suite::{HICCUP_MS, Say, Watch, event_since, last_event, restart_coordinator, settled};
use super::{config, dirs, hypervisor};

/// All of them, one after the other.
///
/// # Errors
/// One is not said, or costs service.
pub fn all(target: &'static Spec, say: Say<'_>) -> Result<String> {
    let usual = read(&config::cluster_file())?;
    let missing = missing_vm(target, &usual).context("a VM that is not there");
    restart_coordinator(&usual, target)?;
    say(&format!("        {}", missing?));
    let absent = absent_agent(target, &usual).context("an agent that is not there");
    restart_coordinator(&usual, target)?;
    say(&format!("        {}", absent?));
    say(&format!("        {}", libvirtd_killed(target).context("libvirtd killed")?));
    say(&format!("        {}", full_disk(target).context("the journal's disk is full")?));
    say(&format!("        {}", clock_set(target).context("the target's clock is set")?));
    Ok("each said, none missed by a client".to_owned())
}

fn unharmed(watch: Watch, what: &str) -> Result<f64> {
    let (outage, speech) = watch.end()?;
    ensure!(outage <= HICCUP_MS && speech.changes == 0, "{what}: clients missed {outage:.0} ms");
    Ok(outage)
}

fn missing_vm(target: &'static Spec, usual: &str) -> Result<String> {
    let double = double(target.name).context("it has a double")?;
    restart_coordinator(&usual.replace(&format!("\"{}\"", double.name), "\"nobody\""), target)?;
    let watch = Watch::start(target, "missing-vm")?;
    let said = match daemons::kagectl(&["failover", target.name]) {
        Ok(answer) => bail!("a fail-over to a VM that does not exist was done: {answer}"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(said.contains("nobody"), "the missing VM is not named: {said}");
    settled(target)?;
    unharmed(watch, "missing VM")?;
    Ok(format!("missing VM: {}", said.lines().last().unwrap_or_default()))
}

fn absent_agent(target: &'static Spec, usual: &str) -> Result<String> {
    let ghost = format!(
        "{usual}\n[[agent]]\nname = \"ghost\"\naddress = \"10.77.0.99:{}\"\nguard = \"host\"\n",
        config::AGENT_PORT
    );
    restart_coordinator(&ghost, target)?;
    let watch = Watch::start(target, "absent-agent")?;
    std::thread::sleep(Duration::from_secs(3));
    let status = daemons::kagectl(&["status"])?;
    let line = status.lines().find(|line| line.contains("ghost")).context("status does not show the absent agent")?;
    unharmed(watch, "absent agent")?;
    Ok(format!("absent agent: {}", line.trim()))
}

fn libvirtd_killed(target: &'static Spec) -> Result<String> {
    let host = find("mgmt")?;
    let watch = Watch::start(target, "libvirtd-killed")?;
    let pid = run_in(host, &["cat", "/run/libvirt/libvirtd.pid"])?;
    super::run::run(&["kill", "-9", pid.trim()])?;
    std::thread::sleep(Duration::from_secs(3));
    hypervisor::libvirtd(host).end(Signal::TERM)?;
    hypervisor::start_libvirtd(host)?;
    settled(target)?;
    let outage = unharmed(watch, "libvirtd killed")?;
    // The agent must have found it again.
    std::thread::sleep(Duration::from_secs(5));
    daemons::kagectl(&["failover", target.name]).context("a fail-over after libvirtd was killed")?;
    daemons::kagectl(&["failback", target.name]).context("the way back")?;
    settled(target)?;
    Ok(format!("libvirtd killed and started: outage {outage:.0} ms, then moved there and back"))
}

/// A megabyte for the coordinator's state, filled to the brim.
fn full_disk(target: &'static Spec) -> Result<String> {
    let host = find("mgmt")?;
    let folder = text(&dirs::node("mgmt").join("coordinator"));
    daemons::stop(Part::Coordinator)?;
    run_in(host, &["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", &folder])?;
    let found = (|| {
        daemons::start(Part::Coordinator)?;
        settled(target)?;
        let watch = Watch::start(target, "full-disk")?;
        // Ends with "no space left", as it should.
        let _full = run_in(host, &["dd", "if=/dev/zero", &format!("of={folder}/ballast"), "bs=4k"]);
        std::thread::sleep(Duration::from_secs(5));
        daemons::kagectl(&["status"]).context("it answers no more")?;
        let log = read(&Daemon::new(host, "coordinator").log())?;
        ensure!(log.contains("the journal can't be written"), "the coordinator's log says nothing of the full disk");
        run_in(host, &["rm", &format!("{folder}/ballast")])?;
        unharmed(watch, "full disk")
    })();
    daemons::stop(Part::Coordinator)?;
    run_in(host, &["umount", &folder])?;
    daemons::start(Part::Coordinator)?;
    settled(target)?;
    Ok(format!("full disk: supervision went on, outage {:.0} ms", found?))
}

/// The target's wall clock is set back by a day, and forward again: leases are counted by another clock.
fn clock_set(target: &'static Spec) -> Result<String> {
    let watch = Watch::start(target, "clock-set")?;
    let after = last_event()?;
    let seconds = super::console::exec_ok(target, "date +%s", Duration::from_secs(5))?;
    let now: u64 = seconds.trim().parse().with_context(|| format!("the guest's clock reads {seconds}"))?;
    let set = |to: u64| super::console::exec_ok(target, &format!("date -s @{to}"), Duration::from_secs(5));
    set(now.saturating_sub(86_400))?;
    std::thread::sleep(Duration::from_secs(5));
    set(now.saturating_add(7 * 86_400))?;
    std::thread::sleep(Duration::from_secs(5));
    set(now.saturating_add(10))?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(!event_since(after, "vip-closed")?, "the lease lapsed");
    let outage = unharmed(watch, "clock set")?;
    Ok(format!("clock set back by a day, then on by a week: outage {outage:.0} ms, no lapse"))
}
