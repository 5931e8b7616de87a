//! The one task that owns the core, and the thread that waits for the disk.

use crate::store::{CHANGES_KEPT, Contents, Store};
use kage_sif_core::{
    Action, Alert, Change, CommitId, Core, Electorate, Event, Ledger, Refusal, Reply, Request, RequestId, Stamped,
};
use kage_types::Revision;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, mpsc as jobs},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// Commands on their way to the driver, which never blocks: enough for a burst of one per service host.
const COMMANDS: usize = 1024;

/// Changes a subscriber may be behind before it is cut off: one failed-over host's worth, several times over.
const SUBSCRIBER_LAG: usize = 1024;

/// Subscribers: the coordinator, its successor, and people who look.
pub const SUBSCRIBER_LIMIT: usize = 64;

/// First and longest wait before a failed disk is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// A commit that takes longer is worth a warning: takeovers wait for it.
const SLOW_COMMIT: Duration = Duration::from_millis(250);

/// The driver is gone: SIF stops, or its store's thread died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kage-sif is stopping: repeat the request when it is back")]
pub struct Stopped;

/// Why there is no subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// See there.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// Too far behind, ahead, or from before a restored backup.
    #[error(
        "changes after revision {after} are not known one by one (the ledger is at {revision}): read it with GetLedger and subscribe from its revision"
    )]
    Unknown {
        /// As asked.
        after: Revision,
        /// The ledger's.
        revision: Revision,
    },
    /// A named limit.
    #[error("{SUBSCRIBER_LIMIT} subscribers are connected already: close one")]
    Full,
}

/// Changes from a revision on.
#[derive(Debug)]
pub struct Subscription {
    /// Made already, in order.
    pub past: Vec<Arc<Stamped>>,
    /// Those that follow, without gap.
    pub live: broadcast::Receiver<Arc<Stamped>>,
}

/// An answer; with the ledger as it was just then if it gives a term.
pub type Answer = Result<(Reply, Option<Box<Ledger>>), Refusal>;

enum Command {
    Ask { request: Request, answer: oneshot::Sender<Answer> },
    Read { answer: oneshot::Sender<Ledger> },
    Subscribe { after: Revision, answer: oneshot::Sender<Result<Subscription, SubscribeError>> },
    Watch { answer: oneshot::Sender<Result<watch::Receiver<Arc<Ledger>>, SubscribeError>> },
}

/// How the RPCs reach the driver.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Asks the core.
    ///
    /// # Errors
    /// [`Stopped`]. A change may have been made all the same: repeat it.
    pub async fn ask(&self, request: Request) -> Result<Answer, Stopped> {
        self.call(|answer| Command::Ask { request, answer }).await
    }

    /// The durable ledger.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn read(&self) -> Result<Ledger, Stopped> {
        self.call(|answer| Command::Read { answer }).await
    }

    /// Changes above a revision.
    ///
    /// # Errors
    /// All of [`SubscribeError`].
    pub async fn subscribe(&self, after: Revision) -> Result<Subscription, SubscribeError> {
        self.call(|answer| Command::Subscribe { after, answer }).await?
    }

    /// The shared tables, with who holds which VIP, as they are durable, now and after each change; who looks late sees the last one.
    ///
    /// # Errors
    /// [`SubscribeError::Full`], [`SubscribeError::Stopped`].
    pub async fn watch(&self) -> Result<watch::Receiver<Arc<Ledger>>, SubscribeError> {
        self.call(|answer| Command::Watch { answer }).await?
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

/// Begins to drive a ledger. The task ends when all handles are gone and the last commit is made.
///
/// # Errors
/// The thread can't be started.
pub fn start(
    store: Store,
    contents: Contents,
    electorate: Electorate,
) -> std::io::Result<(Handle, tokio::task::JoinHandle<Result<(), StoreDied>>)> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (jobs, work) = jobs::channel();
    let (outcome, outcomes) = mpsc::channel(1);
    let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || serve(store, &work, &outcome))?;
    let tables = watch::Sender::new(Arc::new(contents.ledger.clone()));
    let driver = Driver {
        tables,
        core: Core::new(contents.ledger, electorate),
        jobs,
        open: BTreeMap::new(),
        last_id: 0,
        log: contents.changes.into_iter().map(Arc::new).collect(),
        live: broadcast::channel(SUBSCRIBER_LAG).0,
    };
    let task = tokio::spawn(async move {
        let result = driver.run(inbox, outcomes).await;
        // Closes the file, so that the next start need not check it; a hung disk is left behind.
        if result.is_ok() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        result
    });
    Ok((Handle { commands }, task))
}

/// A bug: the store's thread ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger's thread died: see the log before this; kage-sif must be started again")]
pub struct StoreDied;

struct Driver {
    core: Core,
    jobs: jobs::Sender<Job>,
    open: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    last_id: u64,
    log: VecDeque<Arc<Stamped>>,
    live: broadcast::Sender<Arc<Stamped>>,
    tables: watch::Sender<Arc<Ledger>>,
}

impl Driver {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut outcomes: mpsc::Receiver<Event>,
    ) -> Result<(), StoreDied> {
        let mut open = true;
        while open || !self.core.is_idle() {
            tokio::select! {
                command = inbox.recv(), if open => match command {
                    Some(command) => self.command(command)?,
                    None => open = false,
                },
                outcome = outcomes.recv() => self.event(outcome.ok_or(StoreDied)?)?,
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> Result<(), StoreDied> {
        match command {
            Command::Ask { request, answer } => {
                self.last_id += 1;
                let id = RequestId(self.last_id);
                self.open.insert(id, answer);
                self.event(Event::Request { id, request })?;
            }
            // Who asked may have gone away: no concern of the others.
            Command::Read { answer } => drop(answer.send(self.core.ledger().clone())),
            Command::Subscribe { after, answer } => drop(answer.send(self.subscribe(after))),
            Command::Watch { answer } => {
                let full = self.tables.receiver_count() >= SUBSCRIBER_LIMIT;
                drop(answer.send(if full { Err(SubscribeError::Full) } else { Ok(self.tables.subscribe()) }));
            }
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<(), StoreDied> {
        let mut actions = Vec::new();
        let mut changed = false;
        self.core.step(event, &mut actions);
        for action in actions {
            match action {
                Action::Persist { commit, changes } => {
                    self.jobs.send(Job::Commit { commit, changes }).map_err(|_| StoreDied)?;
                }
                Action::Reload => self.jobs.send(Job::Reload).map_err(|_| StoreDied)?,
                Action::Reply { id, result } => self.reply(id, result),
                Action::Publish { change } => {
                    changed = true;
                    self.publish(change);
                }
                Action::Alert { alert: alert @ Alert::StoreRecovered { .. } } => {
                    tracing::info!(alert = %alert, "ledger")
                }
                Action::Alert { alert } => tracing::error!(alert = %alert, "ledger"),
            }
        }
        if changed {
            let now = self.core.ledger();
            self.tables.send_if_modified(|before| {
                let seen =
                    |ledger: &Ledger| (ledger.shared.tables.clone(), ledger.vips.clone(), ledger.troubles.clone());
                let differs = seen(before) != seen(now);
                if differs {
                    *before = Arc::new(now.clone());
                }
                differs
            });
        }
        Ok(())
    }

    fn reply(&mut self, id: RequestId, result: Result<Reply, Refusal>) {
        let Some(answer) = self.open.remove(&id) else { return };
        let answered = result.map(|reply| {
            let ledger = matches!(reply, Reply::Term { .. }).then(|| Box::new(self.core.ledger().clone()));
            (reply, ledger)
        });
        drop(answer.send(answered));
    }

    fn publish(&mut self, change: Stamped) {
        tracing::debug!(revision = %change.revision, change = ?change.change, "durable");
        let change = Arc::new(change);
        if self.log.len() >= CHANGES_KEPT {
            self.log.pop_front();
        }
        self.log.push_back(Arc::clone(&change));
        // Nobody may be listening.
        let _ = self.live.send(change);
    }

    fn subscribe(&self, after: Revision) -> Result<Subscription, SubscribeError> {
        if self.live.receiver_count() >= SUBSCRIBER_LIMIT {
            return Err(SubscribeError::Full);
        }
        let revision = self.core.ledger().revision;
        let first = self.log.front().map_or(revision.0, |change| change.revision.0.saturating_sub(1));
        let past: Vec<_> = self.log.iter().filter(|change| change.revision > after).cloned().collect();
        let restored = past.iter().any(|change| matches!(change.change, Change::Restored { .. }));
        if after > revision || after.0 < first || restored {
            return Err(SubscribeError::Unknown { after, revision });
        }
        Ok(Subscription { past, live: self.live.subscribe() })
    }
}

enum Job {
    Commit { commit: CommitId, changes: Vec<Stamped> },
    Reload,
}

/// The store's thread. One job at a time, one outcome for each.
fn serve(mut store: Store, work: &jobs::Receiver<Job>, outcome: &mpsc::Sender<Event>) {
    while let Ok(job) = work.recv() {
        let event = match job {
            Job::Commit { commit, changes } => commit_one(&mut store, commit, &changes),
            Job::Reload => match reload(&mut store, work) {
                Some(event) => event,
                None => return,
            },
        };
        if outcome.blocking_send(event).is_err() {
            return;
        }
    }
}

fn commit_one(store: &mut Store, commit: CommitId, changes: &[Stamped]) -> Event {
    let begun = Instant::now();
    let result = store.commit(changes);
    let took = begun.elapsed();
    if took > SLOW_COMMIT {
        tracing::warn!(
            ms = took.as_secs_f64() * 1e3,
            changes = changes.len(),
            "slow disk: the ledger's commit took long"
        );
    } else {
        tracing::debug!(ms = took.as_secs_f64() * 1e3, changes = changes.len(), "committed");
    }
    match result {
        Ok(()) => Event::Persisted { commit },
        Err(error) => Event::PersistFailed { commit, reason: error.chain() },
    }
}

/// Until the file can be read again; none if SIF stops meanwhile. No job comes while one is under way.
fn reload(store: &mut Store, work: &jobs::Receiver<Job>) -> Option<Event> {
    let mut wait = RETRY_FIRST;
    loop {
        if let Err(jobs::RecvTimeoutError::Disconnected) = work.recv_timeout(wait) {
            return None;
        }
        match store.reopen() {
            Ok(contents) => return Some(Event::Reloaded { ledger: Box::new(contents.ledger) }),
            Err(error) => {
                tracing::warn!(error = error.chain(), retry_ms = wait.as_millis(), "the ledger can't be read")
            }
        }
        wait = (wait * 2).min(RETRY_LONGEST);
    }
}
