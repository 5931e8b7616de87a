//! Kagemusha's own rows: the lab's drills, with an observer beside the target, and where the time went.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::measure::{Asker, HOLD, Run, Stages};
use super::variant::{Trouble, Variant};
use crate::lab::drill::{Drill, Fault, Return};
use crate::lab::network::{Cut, NEAR_PORT};
use crate::lab::nodes::{Kind, Layout, Spec, double, machine, visitor};
use crate::lab::report::RunReport;
use crate::lab::run::{ms, now_ns, read, run, shell, text};
use crate::lab::suite::prepare;
use crate::lab::{dirs, lifecycle};

/// The machine that the trouble comes to.
const TARGET: &str = "mail";

static NEAR: Spec = visitor("near", Kind::Client, 51);

/// Brings the lab up for a variant, with the observer.
///
/// # Errors
/// It does not come up.
pub fn up(variant: Variant, say: &mut dyn FnMut(&str)) -> Result<()> {
    match variant.profile() {
        Some(profile) => prepare(Layout::Small, profile, say)?,
        // By hand: a lab without the product, as if nothing of it were built.
        None => {
            lifecycle::down()?;
            let elsewhere = format!("KAGE_PROJECT={}", text(&dirs::lab().join("nothing-built")));
            run(&["env", "-u", "KAGE_BIN_DIR", &elsewhere, &lifecycle::this_program()?, "up"])?;
        }
    }
    near_up()
}

fn near_up() -> Result<()> {
    if run(&["ip", "-n", "kage-sw", "link", "show", NEAR_PORT]).is_ok() {
        return Ok(());
    }
    let (ns, target) = (NEAR.namespace(), machine(TARGET)?.port());
    shell(&format!(
        "ip netns add {ns}; ip -n {ns} link set lo up
         ip netns exec {ns} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
         ip link add eth0 address {mac} netns {ns} type veth peer name {NEAR_PORT} netns kage-sw
         ip -n {ns} link set eth0 up
         ip -n {ns} address add {ip}/24 dev eth0
         ip -n kage-sw link set {NEAR_PORT} master br-sw up
         ip netns exec kage-sw nft -f - <<'END'
table bridge bench {{
    chain near {{
        type filter hook forward priority -10; policy accept;
        iifname {NEAR_PORT} oifname != {target} drop
        iifname != {target} oifname {NEAR_PORT} drop
    }}
}}
END",
        mac = NEAR.mac_text(),
        ip = NEAR.ip(),
    ))?;
    Ok(())
}

/// One run; the lab must be up for the variant.
///
/// # Errors
/// The lab is down, or the service was not at home.
pub fn once(variant: Variant, trouble: Trouble, number: u32, say: &mut dyn FnMut(&str)) -> Result<Run> {
    let fault = match trouble {
        Trouble::Service => Fault::Service,
        Trouble::Power => Fault::Crash,
        Trouble::Frozen => Fault::Hang,
        Trouble::Cut => Fault::Cut(Cut::Full),
    };
    let name = format!("bench-{}-{}-{number}", variant.name(), trouble.name());
    let mut drill = Drill::new(&name, fault, machine(TARGET)?);
    drill.hold = if matches!(trouble, Trouble::Frozen | Trouble::Cut) { HOLD } else { Duration::from_millis(500) };
    if variant == Variant::HandVm {
        drill.back = Return::ByHand;
    }
    let near = Asker::near(&NEAR, &dirs::node(NEAR.name).join("near.jsonl"))?;
    let began_ns = now_ns();
    let report = drill.run(say);
    near.stop()?;
    let report = report?;
    let seen = report.runs.first().context("a drill of one run has one")?;
    let mut run = Run::new(variant, trouble, number, seen);
    if variant.profile().is_some() && trouble != Trouble::Service {
        run.stages = Some(stages(seen, began_ns)?);
    }
    Ok(run)
}

/// A note of the coordinator's log, as far as it matters here.
#[derive(Deserialize)]
struct Note {
    unix_ms: u64,
    kind: String,
    target: Option<String>,
}

fn stages(seen: &RunReport, began_ns: u64) -> Result<Stages> {
    let log = read(&dirs::node("mgmt").join("coordinator/events.jsonl"))?;
    let notes: Vec<Note> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let notes: Vec<Note> =
        notes.into_iter().filter(|note| note.unix_ms.saturating_mul(1_000_000) >= began_ns).collect();
    Ok(dissect(seen, &notes))
}

fn dissect(seen: &RunReport, notes: &[Note]) -> Stages {
    let since = |t_ns: u64| (ms(t_ns) - ms(seen.injected_ns)).max(0.0);
    let fault_ms = seen.injected_ns / 1_000_000;
    let during = |note: &&Note| note.unix_ms >= fault_ms && note.unix_ms.saturating_mul(1_000_000) < seen.healed_ns;
    let about = |note: &&Note| note.target.as_deref() == Some(TARGET);
    let at = |kinds: &[&str]| {
        let first = notes.iter().filter(during).filter(about).find(|note| kinds.contains(&note.kind.as_str()));
        first.map(|note| since(note.unix_ms.saturating_mul(1_000_000)))
    };
    let successor = double(TARGET).map(|double| double.name);
    let announced = seen
        .speech
        .intervals
        .iter()
        .find(|interval| Some(interval.machine.as_str()) == successor && interval.start_ns >= seen.injected_ns);
    let outage = seen
        .outages
        .iter()
        .filter(|outage| outage.start_ns < seen.healed_ns && outage.ms >= seen.fault_outage_ms)
        .find_map(|outage| outage.end_ns);
    Stages {
        detected: at(&["service-trouble", "network-trouble", "alarm", "vip-closed", "service-down"]),
        confirmed: at(&["confirmed"]),
        epoch: at(&["epoch-durable"]),
        resumed: at(&["backup-up"]),
        secured: at(&["secured"]),
        announced: announced.map(|interval| since(interval.start_ns)),
        answered: outage.map(since),
    }
}
