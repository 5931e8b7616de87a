//! Signals: is it the agent that stops, or the machine?

use crate::{
    driver::{Command, Handle},
    events::Events,
    guard::unprotect_child,
    hands::{Hands, Order},
    storage::{Storage, Write},
};
use kage_proto::agent::v1::{GoingDown, agent_event::Event};
use std::time::Duration;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// For a long lease before the agent stops.
const LONG_LEASE: Duration = Duration::from_millis(1500);
/// The coordinator's request for a release arrives within some tens of milliseconds of its being told; a machine on its
/// way down can be slow.
pub(super) const HANDOVER: Duration = Duration::from_millis(700);
/// The driver answers at once.
const ANSWER: Duration = Duration::from_millis(500);
/// For all elements to be deleted before the machine goes down, and for services to stop that must not run without
/// them. With what follows less than logind waits (InhibitDelayMaxSec: 5 s).
pub(super) const RELEASE: Duration = Duration::from_millis(3500);
/// For what was said to reach the coordinator.
pub(super) const FLUSH: Duration = Duration::from_secs(2);
/// systemd answers at once, but a small machine on its way down can be busy for seconds. Leases are renewed meanwhile, so
/// that waiting costs nothing; a machine's end taken for the agent's would leave a long lease behind.
const ASK_SYSTEMD: Duration = Duration::from_secs(5);

/// The signals that end the agent.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The machine goes down: for init systems that can't be asked (ExecStop, a shutdown script).
    machine: Signal,
    /// As before, by the power supply (SIGPWR).
    power: Signal,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            machine: signal(SignalKind::user_defined1())?,
            power: signal(SignalKind::from_raw(libc::SIGPWR))?,
        })
    }
}

/// Tells the service manager, and feeds its watchdog for as long as the driver answers. Must be called within a tokio
/// runtime.
pub(super) fn notify_ready(handle: Handle) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if let Some(period) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            loop {
                if matches!(timeout(period / 3, handle.leases()).await, Ok(Ok(_))) {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                }
                sleep(period / 3).await;
            }
        });
    }
}

enum Why {
    Agent,
    Machine(&'static str),
}

/// Waits for a signal or the server's failure, and ends in good order.
pub(super) async fn wait(
    mut signals: Signals,
    mut serving: JoinHandle<anyhow::Result<()>>,
    handle: &Handle,
    events: &Events,
    hands: &Hands,
    storage: &Storage,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut ended = Ok(());
    let why = tokio::select! {
        _ = signals.terminate.recv() => machine_stops(handle).await.map_or(Why::Agent, Why::Machine),
        _ = signals.interrupt.recv() => Why::Agent,
        _ = signals.machine.recv() => Why::Machine("power-off"),
        _ = signals.power.recv() => Why::Machine("power-off"),
        served = &mut serving => {
            ended = served.unwrap_or_else(|error| Err(error.into()));
            Why::Agent
        }
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    match why {
        Why::Agent => {
            tracing::info!("the agent stops and leaves its VIPs to its successor");
            events.publish(Event::GoingDown(GoingDown { what: "agent".to_owned() }));
            match timeout(LONG_LEASE, handle.command(Command::PrepareStop)).await {
                Ok(_) => tracing::info!("ready to stop"),
                Err(_) => tracing::warn!("no long lease was granted: VIPs lapse unless the agent is back at once"),
            }
        }
        Why::Machine(what) => {
            tracing::warn!(what, "the machine goes down: all VIPs are released");
            events.publish(Event::GoingDown(GoingDown { what: what.to_owned() }));
            if !matches!(timeout(RELEASE, handle.command(Command::ReleaseAll)).await, Ok(Ok(()))) {
                tracing::error!("not all VIPs were released in time");
            }
            // The coordinator, told above, asks for their release itself: its proof that the double may serve at once.
            tokio::time::sleep(HANDOVER).await;
        }
    }
    let (reply, flushed) = oneshot::channel();
    hands.order(Order::Flush(reply));
    let _ = timeout(Duration::from_millis(500), flushed).await;
    // What is held back must be known to the next process: it would not be brought up again.
    let (reply, flushed) = oneshot::channel();
    if storage.write(Write::Flush(reply)) {
        let _ = timeout(Duration::from_millis(500), flushed).await;
    }
    stop.cancel();
    ended
}

/// Is systemd taking the machine down, and to where? None: no, or there is no systemd.
async fn machine_stops(handle: &Handle) -> Option<&'static str> {
    if matches!(timeout(ANSWER, handle.leases()).await, Ok(Ok(leases)) if leases.leaving) {
        return Some("power-off"); // said already, by logind or by us
    }
    match timeout(ASK_SYSTEMD, spawn_blocking(ask_systemd)).await {
        Ok(answer) => answer.ok()?,
        // A release in vain costs a planned move; a long lease that the machine takes with it costs half a minute.
        Err(_) => Some("power-off"),
    }
}

fn ask_systemd() -> Option<&'static str> {
    if !std::path::Path::new("/run/systemd/system").exists() {
        return None;
    }
    let output = |arguments: &[&str]| {
        let mut command = std::process::Command::new("systemctl");
        let output = unprotect_child(command.args(arguments)).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if output(&["is-system-running"])?.trim() != "stopping" {
        return None;
    }
    let jobs = output(&["list-jobs", "--no-legend", "--plain"]).unwrap_or_default();
    Some(if jobs.contains("reboot.target") || jobs.contains("kexec.target") { "reboot" } else { "power-off" })
}
