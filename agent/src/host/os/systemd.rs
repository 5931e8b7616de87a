//! systemd over the system bus: a job's end and result as they happen, a unit's changes as they happen.

use super::services::unit_state;
use crate::host::{
    dbus::{self, BusError, Object},
    service::ServiceStatus,
};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::StreamExt as _;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, message::Type};

const MANAGER: Object<'_> = Object {
    service: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// For a question; jobs have the caller's deadline.
const ANSWER: Duration = Duration::from_secs(5);

/// systemd did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It could not be asked, or refused.
    #[error("systemd could not be asked")]
    Bus(#[from] BusError),
    /// The job ended badly.
    #[error("{method} of {unit} ended with {result} (the unit: {detail}); see `journalctl -u {unit}`")]
    Job {
        /// The unit.
        unit: String,
        /// `RestartUnit`
        method: &'static str,
        /// `failed`, `timeout`, `canceled`, `dependency`, `skipped`
        result: String,
        /// The unit's state since.
        detail: String,
    },
    /// The job goes on.
    #[error("{method} of {unit} had not ended after {after:?}; see `systemctl list-jobs`")]
    Late {
        /// The unit.
        unit: String,
        /// `RestartUnit`
        method: &'static str,
        /// The deadline.
        after: Duration,
    },
}

impl SystemdError {
    /// There is no bus to ask over: `systemctl` may do, by systemd's private socket.
    #[must_use]
    pub fn is_no_bus(&self) -> bool {
        matches!(self, SystemdError::Bus(BusError::Connect(_)))
    }
}

fn answer(what: &str, error: zbus::Error) -> SystemdError {
    SystemdError::Bus(BusError::Call(format!("systemd's answer to {what}"), error))
}

/// Asks for a job (`RestartUnit`, `StartUnit`, `StopUnit`) and waits for its end.
///
/// # Errors
/// [`SystemdError`] within `deadline`.
pub async fn job(unit: &str, method: &'static str, deadline: Duration) -> Result<(), SystemdError> {
    job_over(&dbus::system().await?, unit, method, deadline).await
}

async fn job_over(bus: &Connection, unit: &str, method: &'static str, deadline: Duration) -> Result<(), SystemdError> {
    let end = Instant::now() + deadline;
    // Before asking, so that no end is missed.
    let mut ends = signals(bus, MANAGER.path, MANAGER.interface, "JobRemoved").await?;
    // Without a subscriber systemd tells nobody. It is kept for the life of the connection.
    MANAGER.call(bus, "Subscribe", &(), ANSWER).await.map(drop).or_else(already_subscribed)?;
    if method != "StopUnit" {
        // A unit that failed too often refuses to start until this; it fails where there is nothing to reset.
        let _ = MANAGER.call(bus, "ResetFailedUnit", &(unit,), ANSWER).await;
    }
    let reply = MANAGER.call(bus, method, &(unit, "replace"), deadline).await?;
    let mine: OwnedObjectPath = reply.body().deserialize().map_err(|error| answer(method, error))?;
    let late = || SystemdError::Late { unit: unit.to_owned(), method, after: deadline };
    loop {
        let Some(signal) = timeout_at(end, ends.next()).await.map_err(|_| late())? else { return Err(late()) };
        let signal = signal.map_err(|error| answer(method, error))?;
        let body = signal.body();
        let Ok((_, path, _, result)) = body.deserialize::<(u32, OwnedObjectPath, String, String)>() else { continue };
        if path != mine {
            continue;
        }
        if result == "done" {
            return Ok(());
        }
        let detail = status_over(bus, unit).await.map_or_else(|error| error.to_string(), |status| status.detail);
        return Err(SystemdError::Job { unit: unit.to_owned(), method, result, detail });
    }
}

fn already_subscribed(error: BusError) -> Result<(), BusError> {
    match &error {
        BusError::Call(_, zbus::Error::MethodError(name, ..)) if name.as_str().ends_with(".AlreadySubscribed") => {
            Ok(())
        }
        BusError::Call(..) | BusError::Connect(_) | BusError::Timeout(..) => Err(error),
    }
}

async fn signals(bus: &Connection, path: &str, interface: &str, member: &str) -> Result<MessageStream, SystemdError> {
    let rule = || {
        let rule = MatchRule::builder().msg_type(Type::Signal).sender(MANAGER.service).path(path.to_owned());
        rule.interface(interface.to_owned()).member(member.to_owned()).build()
    };
    let stream = MessageStream::for_match_rule(rule().map_err(|error| answer(member, error))?.to_owned(), bus, None);
    match timeout(ANSWER, stream).await {
        Ok(stream) => stream.map_err(|error| answer(member, error)),
        Err(_) => Err(BusError::Timeout("the system bus".to_owned(), ANSWER).into()),
    }
}

/// Freezes or thaws all processes of the unit: systemd answers when none runs (246 and later, control groups v2).
///
/// # Errors
/// [`SystemdError`].
pub async fn set_frozen(unit: &str, frozen: bool, deadline: Duration) -> Result<(), SystemdError> {
    let method = if frozen { "FreezeUnit" } else { "ThawUnit" };
    MANAGER.call(&dbus::system().await?, method, &(unit,), deadline).await?;
    Ok(())
}

/// How the unit is.
///
/// # Errors
/// [`SystemdError`].
pub async fn status(unit: &str) -> Result<ServiceStatus, SystemdError> {
    status_over(&dbus::system().await?, unit).await
}

async fn status_over(bus: &Connection, unit: &str) -> Result<ServiceStatus, SystemdError> {
    let path = load(bus, unit).await?;
    let text = async |interface, name| property(bus, &path, interface, name).await.and_then(text);
    let loaded = text(UNIT, "LoadState").await?;
    // A unit that isn't a service has no result.
    let result = text(SERVICE, "Result").await.unwrap_or_default();
    Ok(unit_state(&loaded, &text(UNIT, "ActiveState").await?, &text(UNIT, "SubState").await?, &result))
}

/// The unit's main process; None: it has none now.
///
/// # Errors
/// [`SystemdError`].
pub async fn main_pid(unit: &str) -> Result<Option<i32>, SystemdError> {
    let bus = dbus::system().await?;
    let path = load(&bus, unit).await?;
    let pid = property(&bus, &path, SERVICE, "MainPID").await?;
    let pid = u32::try_from(pid).map_err(|error| answer("MainPID", error))?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid > 0))
}

/// The unit's changes, as they happen.
pub struct Changes(MessageStream);

impl Changes {
    /// From now on.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn of(unit: &str) -> Result<Self, SystemdError> {
        let bus = dbus::system().await?;
        let path = load(&bus, unit).await?;
        let changes = signals(&bus, &path, PROPERTIES, "PropertiesChanged").await?;
        MANAGER.call(&bus, "Subscribe", &(), ANSWER).await.map(drop).or_else(already_subscribed)?;
        Ok(Self(changes))
    }

    /// Waits for one; false: the bus is gone.
    pub async fn next(&mut self) -> bool {
        matches!(self.0.next().await, Some(Ok(_)))
    }
}

async fn load(bus: &Connection, unit: &str) -> Result<OwnedObjectPath, SystemdError> {
    let reply = MANAGER.call(bus, "LoadUnit", &(unit,), ANSWER).await?;
    reply.body().deserialize().map_err(|error| answer("LoadUnit", error))
}

async fn property(bus: &Connection, path: &str, interface: &str, name: &str) -> Result<OwnedVariant, SystemdError> {
    let object = Object { service: MANAGER.service, path, interface: PROPERTIES };
    let reply = object.call(bus, "Get", &(interface, name), ANSWER).await?;
    reply.body().deserialize().map_err(|error| answer(name, error))
}

fn text(value: OwnedVariant) -> Result<String, SystemdError> {
    String::try_from(value).map_err(|error| answer("a property", error))
}
