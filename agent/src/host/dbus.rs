//! The system bus: one connection for the whole agent, made when first needed and again when it was lost.

use std::{sync::OnceLock, time::Duration};
use tokio::{sync::Mutex, time::timeout};
use zbus::{Connection, DynamicType, Message};

/// A bus that does not answer in so long is taken for none: a local socket answers in microseconds.
const CONNECT: Duration = Duration::from_secs(5);

static SYSTEM: OnceLock<Mutex<Option<Connection>>> = OnceLock::new();

/// No talking over the system bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No connection.
    #[error(
        "can't connect to the system bus (DBUS_SYSTEM_BUS_ADDRESS, or /run/dbus/system_bus_socket); is dbus running?"
    )]
    Connect(#[source] zbus::Error),
    /// No answer.
    #[error("{0} did not answer within {1:?}")]
    Timeout(String, Duration),
    /// The other side refused, or is not there.
    #[error("{0} refused")]
    Call(String, #[source] zbus::Error),
}

/// The shared connection. It is cheap to clone, and calls over it may run side by side.
///
/// # Errors
/// [`BusError`] within 5 s.
pub async fn system() -> Result<Connection, BusError> {
    let mut shared = SYSTEM.get_or_init(|| Mutex::new(None)).lock().await;
    if let Some(connection) = shared.as_ref().filter(|connection| !connection.is_closed()) {
        return Ok(connection.clone());
    }
    *shared = None;
    let connection = match timeout(CONNECT, Connection::system()).await {
        Ok(made) => made.map_err(BusError::Connect)?,
        Err(_) => return Err(BusError::Timeout("the system bus".to_owned(), CONNECT)),
    };
    Ok(shared.insert(connection).clone())
}

/// What is talked to: a service of the bus, one of its objects, and an interface of that.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// `org.freedesktop.login1`
    pub service: &'a str,
    /// `/org/freedesktop/login1`
    pub path: &'a str,
    /// `org.freedesktop.login1.Manager`
    pub interface: &'a str,
}

impl Object<'_> {
    /// Calls `method` and waits for its reply: `reply.body().deserialize()`. An agent is never asked for a password.
    ///
    /// # Errors
    /// [`BusError`] within `deadline`.
    pub async fn call<B>(
        &self,
        bus: &Connection,
        method: &str,
        body: &B,
        deadline: Duration,
    ) -> Result<Message, BusError>
    where
        B: serde::Serialize + DynamicType + Sync,
    {
        let call = bus.call_method(Some(self.service), self.path, Some(self.interface), method, body);
        let name = || format!("{} ({method})", self.service);
        match timeout(deadline, call).await {
            Ok(reply) => reply.map_err(|error| BusError::Call(name(), error)),
            Err(_) => Err(BusError::Timeout(name(), deadline)),
        }
    }
}
