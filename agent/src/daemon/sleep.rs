//! Before this machine sleeps or goes down by anybody's doing, its VIPs are given back (docs/safety.md, rule 9): logind
//! waits for whoever holds a delay inhibitor. A machine without logind tells nobody beforehand; the jump of its clock
//! when it wakes voids all leases.

use super::stop::{HANDOVER, RELEASE};
use crate::{
    driver::{Command, Handle, Input},
    events::Events,
    host::dbus::{self, BusError, Object},
};
use kage_proto::agent::v1::{GoingDown, agent_event::Event};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use zbus::{Connection, MatchRule, MessageStream, OwnedFd, message::Type};

const LOGIND: Object<'_> = Object {
    service: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};
/// logind answers in milliseconds.
const ANSWER: Duration = Duration::from_secs(5);
/// A bus or a logind that is not there may be installed, or started, later.
const AGAIN: Duration = Duration::from_secs(60);

/// Gives the VIPs back whenever logind says that the machine is about to sleep or go down. Never ends.
pub(super) async fn watch(handle: Handle, events: Events) {
    let tell = |going| told(handle.clone(), events.clone(), going);
    let mut said = false;
    loop {
        let error = match dbus::system().await {
            Ok(bus) => attend(&bus, &tell).await,
            Err(error) => error,
        };
        if !std::mem::replace(&mut said, true) {
            tracing::debug!(%error, "logind does not tell of sleep and shutdown here");
        }
        sleep(AGAIN).await;
    }
}

async fn told(handle: Handle, events: Events, going: Option<&'static str>) {
    let Some(what) = going else {
        // Ends with the agent.
        let _ = handle.tell(Input::Stays).await;
        return;
    };
    tracing::warn!(what, "logind says that this machine is about to go: all VIPs are released");
    events.publish(Event::GoingDown(GoingDown { what: what.to_owned() }));
    if !matches!(timeout(RELEASE, handle.command(Command::ReleaseAll)).await, Ok(Ok(()))) {
        tracing::error!("not all VIPs were released in time");
    }
    // The coordinator, told above, asks for their release itself: its proof that the double may serve at once.
    sleep(HANDOVER).await;
}

/// Holds a delay inhibitor, and lets go of it when what the machine is about to do was told; none: it stays, or is back.
/// Ends with the bus or logind.
async fn attend<F: Future<Output = ()>>(bus: &Connection, tell: &impl Fn(Option<&'static str>) -> F) -> BusError {
    match attend_until(bus, tell).await {
        Ok(()) => BusError::Timeout("org.freedesktop.login1: the bus was lost; it".to_owned(), Duration::ZERO),
        Err(error) => error,
    }
}

async fn attend_until<F: Future<Output = ()>>(
    bus: &Connection,
    tell: &impl Fn(Option<&'static str>) -> F,
) -> Result<(), BusError> {
    let failed = |error| BusError::Call("the system bus".to_owned(), error);
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(LOGIND.service)
        .path(LOGIND.path)
        .interface(LOGIND.interface)
        .build()
        .map_err(failed)?;
    // Before the inhibitor, so that nothing is missed.
    let mut signals = MessageStream::for_match_rule(rule, bus, None).await.map_err(failed)?;
    let mut inhibitor = Some(inhibit(bus).await?);
    // What was said before this bus came up, or while it was away, is over: logind would not have let us in.
    tell(None).await;
    tracing::info!("logind waits for this agent before the machine sleeps or goes down");
    while let Some(signal) = signals.next().await {
        let signal = signal.map_err(failed)?;
        let header = signal.header();
        let what = match header.member().map(|member| member.as_str()) {
            Some("PrepareForSleep") => "suspend",
            // Or a reboot: who is told of it does the same.
            Some("PrepareForShutdown") => "power-off",
            Some(_) | None => continue,
        };
        let Ok(begins) = signal.body().deserialize::<bool>() else { continue };
        if begins {
            tell(Some(what)).await;
            // The machine goes on its way now.
            inhibitor = None;
        } else if inhibitor.is_none() {
            // It woke up, or the shutdown was called off.
            tell(None).await;
            inhibitor = Some(inhibit(bus).await?);
        }
    }
    Ok(())
}

async fn inhibit(bus: &Connection) -> Result<OwnedFd, BusError> {
    let request = ("sleep:shutdown", "kage-agent", "virtual IPs are given back first", "delay");
    let reply = LOGIND.call(bus, "Inhibit", &request, ANSWER).await?;
    let answer = reply.body().deserialize::<OwnedFd>();
    answer.map_err(|error| BusError::Call("logind's answer to Inhibit".to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader, PipeReader, Read},
        process::{Child, Command as Program, Stdio},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    struct Bus(Child, String);

    impl Drop for Bus {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn bus() -> Option<Bus> {
        let arguments = ["--session", "--nofork", "--nopidfile", "--print-address"];
        let mut child = Program::new("dbus-daemon").args(arguments).stdout(Stdio::piped()).spawn().ok()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut address).ok()?;
        Some(Bus(child, address.trim().to_owned()))
    }

    async fn connect(bus: &Bus) -> Connection {
        zbus::connection::Builder::address(bus.1.as_str()).build().await.expect("bus")
    }

    /// Answers one request for an inhibitor; the reader ends when the inhibitor is given back.
    async fn grant(logind: &Connection, calls: &mut MessageStream) -> PipeReader {
        loop {
            let call = calls.next().await.expect("bus").expect("message");
            if call.header().member().is_some_and(|member| member.as_str() == "Inhibit") {
                let (reader, writer) = std::io::pipe().expect("pipe");
                let fd = OwnedFd::from(std::os::fd::OwnedFd::from(writer));
                logind.reply(&call.header(), &fd).await.expect("reply");
                return reader;
            }
        }
    }

    #[tokio::test]
    async fn logind_waits_until_the_vips_are_given_back() {
        let Some(bus) = bus() else {
            println!("skipped: no dbus-daemon");
            return;
        };
        let logind = connect(&bus).await;
        let mut calls = MessageStream::from(&logind);
        logind.request_name(LOGIND.service).await.expect("name");
        let agent = connect(&bus).await;
        let released = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&released);
        let task = tokio::spawn(async move {
            let tell = move |going: Option<&'static str>| {
                let seen = Arc::clone(&seen);
                async move {
                    assert!(going.is_none_or(|what| what == "suspend"));
                    sleep(Duration::from_millis(100)).await;
                    seen.store(going.is_some(), Ordering::SeqCst);
                }
            };
            attend(&agent, &tell).await
        });
        for begins in [true, false] {
            let mut inhibitor = grant(&logind, &mut calls).await;
            if !begins {
                assert!(!released.load(Ordering::SeqCst), "it is back: VIPs may come again");
                break;
            }
            let signal =
                logind.emit_signal(None::<&str>, LOGIND.path, LOGIND.interface, "PrepareForSleep", &true).await;
            signal.expect("signal");
            let ended = tokio::task::spawn_blocking(move || inhibitor.read(&mut [0]));
            assert_eq!(
                timeout(Duration::from_secs(10), ended).await.expect("given back").expect("task").expect("read"),
                0
            );
            assert!(released.load(Ordering::SeqCst), "not before the VIPs were released");
            let woke = logind.emit_signal(None::<&str>, LOGIND.path, LOGIND.interface, "PrepareForSleep", &false).await;
            woke.expect("signal");
        }
        task.abort();
    }
}
