//! The connection that carries lifecycle events: opened, watched, opened again.

use super::{
    link::Link,
    sys::Subscription,
    types::{ConnectionState, DomainEvent, VmError, VmEvent},
};
use crate::host::clock;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::{broadcast, watch};

/// How soon a closed connection is noticed: only this process's memory is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// The wait before the first further attempt; doubled after each.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest wait between attempts: a restarted libvirtd is found again within it.
const LAST_BACKOFF: Duration = Duration::from_secs(2);
/// Events kept for a slow reader before it loses some (and must list anew): more than a host's domains twice over.
const BACKLOG: usize = 1024;

/// What the event thread shares.
pub(super) struct Events {
    pub(super) sender: broadcast::Sender<VmEvent>,
    pub(super) state: watch::Sender<ConnectionState>,
    /// Rises with each event and connection: what was known of definitions is to be read anew.
    pub(super) changes: AtomicU64,
    pub(super) closed: AtomicBool,
}

impl Events {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread to be had.
    pub(super) fn start(uri: String) -> io::Result<Arc<Self>> {
        let events = Arc::new(Self {
            sender: broadcast::channel(BACKLOG).0,
            state: watch::channel(ConnectionState::Connecting { since: clock::now() }).0,
            changes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let ours = Arc::clone(&events);
        thread::Builder::new().name("libvirt-watch".to_owned()).spawn(move || ours.run(&uri))?;
        Ok(events)
    }

    fn run(self: &Arc<Self>, uri: &str) {
        let mut backoff = FIRST_BACKOFF;
        while !self.closed.load(Ordering::Relaxed) {
            let reason = match Link::open(uri).and_then(|link| self.follow(&link)) {
                Ok(()) => {
                    backoff = FIRST_BACKOFF;
                    "the connection was closed (libvirtd stopped, or did not answer for 8 s)".to_owned()
                }
                Err(error) => error.to_string(),
            };
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            self.lost(reason);
            thread::sleep(backoff);
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Until the connection ends.
    fn follow(self: &Arc<Self>, link: &Link) -> Result<(), VmError> {
        let events = Arc::clone(self);
        let listener = move |event: DomainEvent| {
            events.changes.fetch_add(1, Ordering::Relaxed);
            let _ = events.sender.send(VmEvent::Domain(event));
        };
        let _subscription =
            Subscription::new(link.connect(), Box::new(listener)).map_err(|error| link.fault("*", "watch", &error))?;
        let at = clock::now();
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.state.send_replace(ConnectionState::Connected { since: at });
        let _ = self.sender.send(VmEvent::Connected { at });
        tracing::info!("connected to libvirt");
        while link.is_alive() && !self.closed.load(Ordering::Relaxed) {
            thread::sleep(WATCH_INTERVAL);
        }
        Ok(())
    }

    fn lost(&self, reason: String) {
        let at = clock::now();
        let mut news = true;
        self.state.send_modify(|state| {
            let since = match state {
                ConnectionState::Disconnected { since, reason: _ } => {
                    news = false;
                    *since
                }
                ConnectionState::Connecting { .. } | ConnectionState::Connected { .. } => at,
            };
            *state = ConnectionState::Disconnected { since, reason: reason.clone() };
        });
        if news {
            tracing::warn!(reason, "no connection to libvirt");
            let _ = self.sender.send(VmEvent::Disconnected { at, reason });
        }
    }
}
