//! Keeps the guard: installs it, changes its list before the driver hears of an assignment, and puts it back when
//! somebody removed it (docs/safety.md, rules 3 and 8).

use crate::{
    driver::{Handle, Input},
    events::Events,
    guard::{Guard, GuardAlert, GuardError, GuardKind, LiveElement, Monitor, RenewalReport, RenewalThread},
    state::{AssignmentState, StateDir},
};
use kage_agent_core::Assignment;
use kage_proto::agent::v1::{GuardReinstalled, agent_event::Event};
use kage_types::{Term, Vip};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};

/// Assignments that wait: the coordinator sends one when it changes.
pub const QUEUE: usize = 16;
/// A guard that could not be installed is tried again after this.
const RETRY_INSTALL: Duration = Duration::from_secs(10);
/// A list that could not be changed is tried again after this.
const RETRY_LIST: Duration = Duration::from_secs(1);
/// How long VIPs that are guarded no more may take to be let go of.
const LET_GO: Duration = Duration::from_secs(5);

/// An assignment as it came from the coordinator, checked.
#[derive(Debug)]
pub struct Told {
    /// Over which stream.
    pub stream: u64,
    /// Of the coordinator.
    pub term: Term,
    /// What it says.
    pub assignment: Assignment,
}

/// Does the guard stand?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardStatus {
    /// None is wanted.
    Witness,
    /// On this machine's own VIPs.
    Host,
    /// On its guests'.
    Tap,
    /// It can't be installed (rule 10), or could not be put back.
    Missing(String),
}

impl GuardStatus {
    fn standing(kind: &GuardKind) -> Self {
        match kind {
            GuardKind::Host { .. } => GuardStatus::Host,
            GuardKind::Tap { .. } => GuardStatus::Tap,
        }
    }

    /// As `GetFacts` tells it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            GuardStatus::Witness => "none: a witness holds no VIPs".to_owned(),
            GuardStatus::Host => "host".to_owned(),
            GuardStatus::Tap => "tap".to_owned(),
            GuardStatus::Missing(reason) => format!("none: {reason}"),
        }
    }
}

/// The guard and all that hangs on it.
pub struct Keeper {
    kind: Option<GuardKind>,
    guard: Option<Arc<Mutex<Guard>>>,
    monitor: Option<Monitor>,
    alerts: (mpsc::UnboundedSender<GuardAlert>, mpsc::UnboundedReceiver<GuardAlert>),
    reports: mpsc::UnboundedSender<RenewalReport>,
    status: watch::Sender<GuardStatus>,
    state: StateDir,
    stored: Option<AssignmentState>,
}

impl Keeper {
    /// Nothing is done yet. `stored`: the last assignment.
    #[must_use]
    pub fn new(
        kind: Option<GuardKind>,
        reports: mpsc::UnboundedSender<RenewalReport>,
        state: StateDir,
        stored: Option<AssignmentState>,
    ) -> Self {
        let missing = GuardStatus::Missing("not installed yet".to_owned());
        let status = watch::Sender::new(if kind.is_some() { missing } else { GuardStatus::Witness });
        Self { kind, guard: None, monitor: None, alerts: mpsc::unbounded_channel(), reports, status, state, stored }
    }

    /// Does the guard stand?
    #[must_use]
    pub fn status(&self) -> watch::Receiver<GuardStatus> {
        self.status.subscribe()
    }

    /// Installs the guard with the stored assignment's VIPs and starts the renewal thread; blocks for some 50 ms.
    /// Returns the elements found in force. None: a witness, or no guard to be had (tried again by [`Keeper::run`]).
    pub fn begin(&mut self) -> Option<(RenewalThread, Vec<LiveElement>)> {
        let listed = self.stored.as_ref().map(|stored| stored.vips.clone()).unwrap_or_default();
        let kind = self.kind.clone()?;
        let begun = install(kind.clone(), listed, self.reports.clone(), self.alerts.0.clone());
        match begun {
            Ok(begun) => Some(self.install_done(&kind, begun)),
            Err(error) => {
                self.missing(&error);
                None
            }
        }
    }

    fn install_done(&mut self, kind: &GuardKind, begun: Begun) -> (RenewalThread, Vec<LiveElement>) {
        tracing::info!(?kind, live = begun.live.len(), "guard installed");
        self.guard = Some(begun.guard);
        self.monitor = Some(begun.monitor);
        self.status.send_replace(GuardStatus::standing(kind));
        (begun.renewal, begun.live)
    }

    fn missing(&self, error: &GuardError) {
        let reason = error.to_string();
        let status = GuardStatus::Missing(reason.clone());
        if self.status.send_replace(status.clone()) != status {
            tracing::error!(reason, "no guard: this agent takes no VIP until it can be installed");
        }
    }

    /// Runs until the senders of assignments are gone.
    pub async fn run(mut self, mut assignments: mpsc::Receiver<Told>, handle: Handle, events: Events) {
        let mut again = Instant::now() + RETRY_INSTALL;
        loop {
            let wanting = self.kind.is_some() && self.guard.is_none();
            tokio::select! {
                told = assignments.recv() => match told {
                    Some(told) => self.assign(told, &handle).await,
                    None => return,
                },
                Some(alert) = self.alerts.1.recv() => self.alert(alert, &handle, &events).await,
                () = sleep_until(again), if wanting => {
                    again = Instant::now() + RETRY_INSTALL;
                    self.install_late(&handle).await;
                }
            }
        }
    }

    async fn install_late(&mut self, handle: &Handle) {
        let Some(kind) = self.kind.clone() else { return };
        let listed = self.stored.as_ref().map(|stored| stored.vips.clone()).unwrap_or_default();
        let (reports, alerts, wanted) = (self.reports.clone(), self.alerts.0.clone(), kind.clone());
        match spawn_blocking(move || install(wanted, listed, reports, alerts)).await {
            Ok(Ok(begun)) => {
                let (renewal, _) = self.install_done(&kind, begun);
                let _ = handle.tell(Input::KernelUp(renewal)).await;
            }
            Ok(Err(error)) => self.missing(&error),
            Err(error) => tracing::error!(%error, "installing the guard"),
        }
    }

    /// VIPs that come are guarded before the driver hears of them; those that go are let go of before they are open.
    async fn assign(&mut self, told: Told, handle: &Handle) {
        let Told { stream, term, assignment } = told;
        let before = self.stored.as_ref().map(|stored| stored.vips.clone()).unwrap_or_default();
        let wanted = assignment.vips.clone();
        let both: BTreeSet<Vip> = before.union(&wanted).copied().collect();
        while let Err(error) = self.list(both.clone()).await {
            tracing::error!(%error, "the guard's list could not be changed; the assignment waits");
            sleep(RETRY_LIST).await;
        }
        let state = AssignmentState::new(term, &assignment);
        if handle.tell(Input::Assigned { stream: Some(stream), term, assignment }).await.is_err() {
            return;
        }
        if self.stored.as_ref() != Some(&state) {
            let (dir, copy) = (self.state.clone(), state.clone());
            if let Ok(Err(error)) = spawn_blocking(move || dir.write_assignment(&copy)).await {
                tracing::error!(%error, "a restart without the coordinator would begin with an older assignment");
            }
        }
        self.stored = Some(state);
        if both != wanted {
            let gone: BTreeSet<Vip> = before.difference(&wanted).copied().collect();
            let end = Instant::now() + LET_GO;
            while Instant::now() < end {
                match handle.leases().await {
                    Ok(leases) if leases.vips.iter().any(|view| gone.contains(&view.vip)) => {
                        sleep(Duration::from_millis(20)).await;
                    }
                    Ok(_) | Err(_) => break,
                }
            }
            if let Err(error) = self.list(wanted).await {
                tracing::error!(%error, ?gone, "still guarded though no longer assigned");
            }
        }
    }

    async fn list(&self, listed: BTreeSet<Vip>) -> Result<(), GuardError> {
        let Some(guard) = self.guard.clone() else { return Ok(()) };
        let change = move || {
            let mut guard = guard.lock().unwrap_or_else(PoisonError::into_inner);
            if *guard.listed() == listed { Ok(()) } else { guard.set_listed(listed) }
        };
        spawn_blocking(change).await.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }

    async fn alert(&self, alert: GuardAlert, handle: &Handle, events: &Events) {
        let GuardAlert { what, failed } = alert;
        let status = match (&failed, &self.kind) {
            (Some(error), _) => GuardStatus::Missing(error.to_string()),
            (None, Some(kind)) => GuardStatus::standing(kind),
            (None, None) => GuardStatus::Witness,
        };
        self.status.send_replace(status);
        match failed {
            None => {
                // First: who served is silent until its elements are back.
                let _ = handle.tell(Input::GuardBack).await;
                tracing::error!(what, "the guard had been changed; it was put back");
                events.publish(Event::GuardReinstalled(GuardReinstalled { reason: what }));
            }
            Some(error) => tracing::error!(what, %error, "the guard was changed and can't be put back; trying on"),
        }
    }
}

struct Begun {
    guard: Arc<Mutex<Guard>>,
    renewal: RenewalThread,
    monitor: Monitor,
    live: Vec<LiveElement>,
}

fn install(
    kind: GuardKind,
    listed: BTreeSet<Vip>,
    reports: mpsc::UnboundedSender<RenewalReport>,
    alerts: mpsc::UnboundedSender<GuardAlert>,
) -> Result<Begun, GuardError> {
    let guard = Guard::install(kind, listed)?;
    let renewal = RenewalThread::spawn(guard.egress(), reports)?;
    let live = guard.live()?;
    let guard = Arc::new(Mutex::new(guard));
    let monitor = Monitor::spawn(Arc::clone(&guard), alerts)?;
    Ok(Begun { guard, renewal, monitor, live })
}
