//! What the rest of the agent uses.

use super::{
    calls::{self, Lister},
    events::Events,
    lane::Lane,
    link::Link,
    migrate::Migration,
    types::{ConnectionState, DomainInfo, JobProgress, MigrateOptions, Outcome, VmError, VmEvent},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};

/// How long libvirt may take for a command that takes milliseconds.
const QUICK: Duration = Duration::from_secs(5);
/// libvirt itself kills a QEMU that ignores SIGTERM (stopped, or stuck on storage) after 10 s.
const DESTROY: Duration = Duration::from_secs(30);
/// How often a shutdown is looked for where its event is missing.
const SHUTDOWN_POLL: Duration = Duration::from_secs(1);

/// How to reach libvirt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// libvirt URI (`qemu+unix:///system?socket=/run/libvirt/libvirt-sock` for a socket of your own).
    pub uri: String,
    /// Migrations out of this host at a time; further ones wait.
    pub migrations: usize,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self { uri: "qemu:///system".to_owned(), migrations: 2 }
    }
}

/// The virtual machines of this host. Cheap to clone; the threads end with the last clone.
///
/// Every command is idempotent: [`Outcome::Already`] where there was nothing to do. Commands to one domain should be
/// given one after another; those to different domains run side by side. A command that ends in [`VmError::Timeout`]
/// or [`VmError::Lost`] may still take effect.
#[derive(Clone)]
pub struct Vm {
    inner: Arc<Inner>,
}

struct Inner {
    events: Arc<Events>,
    lister: Arc<Mutex<Lister>>,
    /// Listing and job progress.
    query: Arc<Lane>,
    /// Milliseconds each.
    quick: Arc<Lane>,
    /// Destroy and cancel: nothing may be in their way.
    kill: Arc<Lane>,
    /// Start, save, restore: a second or so. And guest agents, which may not answer.
    slow: Arc<Lane>,
    migrate: Arc<Lane>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.events.closed.store(true, Ordering::Relaxed);
        for lane in [&self.query, &self.quick, &self.kill, &self.slow, &self.migrate] {
            lane.close();
        }
    }
}

impl Vm {
    /// Connects in the background: an absent libvirtd is no error here.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(config: &VmConfig) -> io::Result<Self> {
        let lane = |name, width| Lane::new(name, &config.uri, width);
        Ok(Self {
            inner: Arc::new(Inner {
                events: Events::start(config.uri.clone())?,
                lister: Arc::default(),
                query: lane("query", 1),
                quick: lane("quick", 2),
                kill: lane("kill", 2),
                slow: lane("slow", 3),
                migrate: lane("migrate", config.migrations.max(1)),
            }),
        })
    }

    /// Events from now on. A reader that lags more than 1024 events behind, and one that sees
    /// [`VmEvent::Connected`], must list anew.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<VmEvent> {
        self.inner.events.sender.subscribe()
    }

    /// The connection's state, and its changes.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<ConnectionState> {
        self.inner.events.state.subscribe()
    }

    /// All domains, by name, active or not. Never waits for a domain that is busy or hangs.
    ///
    /// # Errors
    /// [`VmError`], within 5 s.
    pub async fn list(&self) -> Result<Vec<DomainInfo>, VmError> {
        let (lister, events) = (Arc::clone(&self.inner.lister), Arc::clone(&self.inner.events));
        let list = move |link: &Link| {
            // Taken out, so that a call that hangs leaves its successor an empty one and no lock.
            let mut ours = std::mem::take(&mut *lister.lock().unwrap_or_else(PoisonError::into_inner));
            let result = ours.list(link, events.changes.load(Ordering::Relaxed));
            *lister.lock().unwrap_or_else(PoisonError::into_inner) = ours;
            result
        };
        self.inner.query.call(QUICK, list).await
    }

    /// Starts a domain, from its saved image if there is one; `paused`: its CPUs don't run yet. A running one is left
    /// running even so; a paused one is resumed unless `paused`.
    ///
    /// # Errors
    /// [`VmError`], within `deadline`.
    pub async fn start_domain(&self, domain: &str, paused: bool, deadline: Duration) -> Result<Outcome, VmError> {
        run(&self.inner.slow, domain, deadline, move |link, name| calls::start(link, name, paused)).await
    }

    /// Lets a paused domain run, and wakes one that its guest put to sleep.
    ///
    /// # Errors
    /// [`VmError`], within 5 s.
    pub async fn resume(&self, domain: &str) -> Result<Outcome, VmError> {
        run(&self.inner.quick, domain, QUICK, calls::resume).await
    }

    /// Stops a domain's CPUs; it stays in memory.
    ///
    /// # Errors
    /// [`VmError`], within 5 s.
    pub async fn pause(&self, domain: &str) -> Result<Outcome, VmError> {
        run(&self.inner.quick, domain, QUICK, calls::pause).await
    }

    /// Saves memory to disk and ends the domain; the next start continues where it was.
    ///
    /// # Errors
    /// [`VmError`], within `deadline`.
    pub async fn save(&self, domain: &str, deadline: Duration) -> Result<Outcome, VmError> {
        run(&self.inner.slow, domain, deadline, calls::save).await
    }

    /// Starts a domain from its saved image; an error where there is none.
    ///
    /// # Errors
    /// [`VmError`], within `deadline`.
    pub async fn restore(&self, domain: &str, paused: bool, deadline: Duration) -> Result<Outcome, VmError> {
        run(&self.inner.slow, domain, deadline, move |link, name| calls::restore(link, name, paused)).await
    }

    /// Asks the guest to shut down and waits until it has.
    ///
    /// # Errors
    /// [`VmError::StillRunning`] after `deadline`: nothing is forced. Others within 5 s.
    pub async fn shutdown(&self, domain: &str, deadline: Duration) -> Result<Outcome, VmError> {
        let end = Instant::now() + deadline;
        let mut events = self.events();
        if run(&self.inner.quick, domain, QUICK.min(deadline), calls::shutdown).await? == Outcome::Already {
            return Ok(Outcome::Already);
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VmError::StillRunning { domain: domain.to_owned(), after: deadline });
            }
            // Any event of this domain, or a second, is a reason to look.
            let _ = timeout(left.min(SHUTDOWN_POLL), async {
                while let Ok(event) = events.recv().await {
                    if matches!(event, VmEvent::Domain(event) if event.domain == domain) {
                        return;
                    }
                }
                // Lagged or closed: the poll will do.
                std::future::pending().await
            })
            .await;
            if run(&self.inner.quick, domain, QUICK, calls::is_off).await? {
                return Ok(Outcome::Done);
            }
        }
    }

    /// Ends a domain at once, as by pulling the plug. Ok is proof that it runs here no more.
    ///
    /// # Errors
    /// [`VmError`], within 30 s: libvirt kills a QEMU that does not react after 10 s.
    pub async fn destroy(&self, domain: &str) -> Result<Outcome, VmError> {
        run(&self.inner.kill, domain, DESTROY, calls::destroy).await
    }

    /// Asks the guest to reboot; does not wait for it.
    ///
    /// # Errors
    /// [`VmError`], within 5 s.
    pub async fn reboot(&self, domain: &str) -> Result<Outcome, VmError> {
        run(&self.inner.quick, domain, QUICK, calls::reboot).await
    }

    /// Resets a domain, as by its button: no guest can ignore it.
    ///
    /// # Errors
    /// [`VmError`], within 30 s.
    pub async fn reset(&self, domain: &str) -> Result<Outcome, VmError> {
        run(&self.inner.kill, domain, DESTROY, calls::reset).await
    }

    /// Sets the guest's clock to ours through its agent. [`Outcome::Already`]: there is no agent that could.
    ///
    /// # Errors
    /// [`VmError`], within `deadline`; a Timeout is the guest agent's as a rule.
    pub async fn set_time(&self, domain: &str, deadline: Duration) -> Result<Outcome, VmError> {
        let set = |link: &Link, name: &str| {
            // Read as late as possible: the call may have waited.
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            calls::set_time(link, name, unix)
        };
        run(&self.inner.slow, domain, deadline, set).await
    }

    /// Begins a live migration. It goes on if the handle is dropped.
    ///
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn migrate(&self, domain: &str, options: MigrateOptions) -> Migration {
        Migration::begin(self.clone(), domain.to_owned(), options)
    }

    /// The progress of the migration or save a domain is in, if any.
    ///
    /// # Errors
    /// [`VmError`], within 5 s.
    pub async fn job(&self, domain: &str) -> Result<Option<JobProgress>, VmError> {
        run(&self.inner.query, domain, QUICK, calls::job).await
    }

    /// Cancels the migration or save a domain is in, whoever began it.
    ///
    /// # Errors
    /// [`VmError`], within 5 s.
    pub async fn cancel_job(&self, domain: &str) -> Result<(), VmError> {
        run(&self.inner.kill, domain, QUICK, calls::abort_job).await
    }

    pub(super) async fn migrate_call(
        &self,
        domain: &str,
        options: MigrateOptions,
        deadline: Duration,
    ) -> Result<(), VmError> {
        run(&self.inner.migrate, domain, deadline, move |link, name| calls::migrate(link, name, &options)).await
    }
}

async fn run<T: Send + 'static>(
    lane: &Arc<Lane>,
    domain: &str,
    deadline: Duration,
    call: impl FnOnce(&Link, &str) -> Result<T, VmError> + Send + 'static,
) -> Result<T, VmError> {
    let name = domain.to_owned();
    lane.call(deadline, move |link| call(link, &name)).await
}
