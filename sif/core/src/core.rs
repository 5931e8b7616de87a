//! Order and durability: requests in, commits out, answers after.

use crate::decide::{Key, Verdict, decide, key, renew};
use crate::{Alert, Electorate, Ledger, Refusal, Reply, Request, Shared, Stamped};
use kage_types::{Term, Vip};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Requests that wait for the disk. With commits of some ms this is seconds of work: whoever comes later is better
/// told to come back than left to time out.
pub const QUEUE_LIMIT: usize = 1024;

/// Requests made durable by one commit. Those that arrive while the disk is busy share the next commit, so that a
/// lost host's VIPs don't wait for one fsync each; bounded, so that the first of them does not wait for long.
pub const BATCH_LIMIT: usize = 64;

/// Ties an answer to its request; chosen by whoever drives the core, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// Ties the outcome of a commit to it. Rises by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommitId(pub u64);

/// What happens to the core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Answered by exactly one [`Action::Reply`].
    Request {
        /// Comes back with the answer.
        id: RequestId,
        /// What is asked.
        request: Request,
    },
    /// The commit is on disk.
    Persisted {
        /// Which.
        commit: CommitId,
    },
    /// The commit failed; it may or may not be on disk.
    PersistFailed {
        /// Which.
        commit: CommitId,
        /// Why, for people.
        reason: String,
    },
    /// The disk works again; this is what it holds. Answers [`Action::Reload`].
    Reloaded {
        /// As read from disk.
        ledger: Box<Ledger>,
    },
}

/// What the core wants done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Make these durable, all or none; then say [`Event::Persisted`] or [`Event::PersistFailed`]. At most one at a
    /// time.
    Persist {
        /// Comes back with the outcome.
        commit: CommitId,
        /// In order, without gap from the last.
        changes: Vec<Stamped>,
    },
    /// Answer.
    Reply {
        /// Whom.
        id: RequestId,
        /// With what.
        result: Result<Reply, Refusal>,
    },
    /// Tell subscribers.
    Publish {
        /// A durable change, in order.
        change: Stamped,
    },
    /// Open the store again, however long it takes, and say [`Event::Reloaded`].
    Reload,
    /// Tell people.
    Alert {
        /// What.
        alert: Alert,
    },
}

/// A rule broken on purpose, to prove that the simulator's checks can fail.
#[cfg(feature = "sabotage")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Answers before the change is durable.
    ReplyBeforeDurable,
}

/// The state machine. It owns the ledger; whoever drives it owns the disk and the network.
#[derive(Clone, Debug)]
pub struct Core {
    ledger: Ledger,
    electorate: Electorate,
    mode: Mode,
    queue: VecDeque<(RequestId, Request)>,
    last_commit: CommitId,
    long_leases: LongLeases,
    #[cfg(feature = "sabotage")]
    sabotage: Option<Sabotage>,
}

/// The latest request for each VIP's long lease. Kept in memory alone: what was sent to an earlier process of SIF ended
/// with its connection.
#[derive(Clone, Debug, Default)]
struct LongLeases {
    term: Term,
    latest: BTreeMap<Vip, u64>,
}

impl LongLeases {
    /// Notes the request's place; refuses it if a later one came before it.
    fn in_order(&mut self, ledger: &Ledger, request: &Request) -> Result<(), Refusal> {
        let Request::SetLongLease { term, vip, sequence, .. } = *request else {
            return Ok(());
        };
        if term != ledger.term || !ledger.vips.contains_key(&vip) {
            return Ok(()); // refused by the decision
        }
        if self.term != term {
            *self = Self { term, latest: BTreeMap::new() };
        }
        let latest = self.latest.entry(vip).or_default();
        if sequence != 0 && sequence < *latest {
            return Err(Refusal::Overtaken { vip, given: sequence, latest: *latest });
        }
        *latest = (*latest).max(sequence);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Mode {
    /// The disk is free; the queue is empty.
    Ready,
    /// The disk is at work.
    Persisting(Batch),
    /// The disk has failed; what it holds is not known until it is read again.
    Broken { reason: String, in_doubt: Vec<Stamped> },
}

#[derive(Clone, Debug, Default)]
struct Batch {
    changes: Vec<Stamped>,
    answers: Vec<(RequestId, Result<Reply, Refusal>)>,
    alerts: Vec<Alert>,
    touched: BTreeSet<Key>,
    /// The shared tables as the signals of this batch leave them, if they change.
    shared: Option<Box<Shared>>,
}

impl Core {
    /// Over a ledger as read from disk.
    #[must_use]
    pub fn new(ledger: Ledger, electorate: Electorate) -> Self {
        Self {
            ledger,
            electorate,
            mode: Mode::Ready,
            queue: VecDeque::new(),
            last_commit: CommitId::default(),
            long_leases: LongLeases::default(),
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }

    /// Breaks a rule from now on.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(&mut self, sabotage: Sabotage) {
        self.sabotage = Some(sabotage);
    }

    /// The durable ledger.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Is every request answered, and nothing on its way to the disk?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && !matches!(self.mode, Mode::Persisting(_))
    }

    /// Takes one event; appends what is to be done, in order.
    pub fn step(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Request { id, request } => self.request(id, request, actions),
            Event::Persisted { commit } => {
                if commit == self.last_commit
                    && let Mode::Persisting(batch) = std::mem::replace(&mut self.mode, Mode::Ready)
                {
                    self.persisted(batch, actions);
                }
            }
            Event::PersistFailed { commit, reason } => {
                if commit == self.last_commit
                    && let Mode::Persisting(batch) = std::mem::replace(&mut self.mode, Mode::Ready)
                {
                    self.persist_failed(batch, reason, actions);
                }
            }
            Event::Reloaded { ledger } => self.reloaded(&ledger, actions),
        }
    }

    fn request(&mut self, id: RequestId, request: Request, actions: &mut Vec<Action>) {
        // A renewal is a read. It does not wait: a slow or full disk must not cost a coordinator its term.
        if let Request::RenewTerm { term } = request {
            actions.push(Action::Reply { id, result: renew(&self.ledger, &self.electorate, term) });
            return;
        }
        match &self.mode {
            Mode::Ready | Mode::Persisting(_) if self.queue.len() >= QUEUE_LIMIT => {
                actions.push(Action::Reply { id, result: Err(Refusal::Busy { limit: QUEUE_LIMIT }) });
            }
            Mode::Ready | Mode::Persisting(_) => {
                self.queue.push_back((id, request));
                self.pump(actions);
            }
            Mode::Broken { reason, .. } => {
                actions.push(Action::Reply { id, result: Err(Refusal::Unavailable { reason: reason.clone() }) });
            }
        }
    }

    fn persisted(&mut self, batch: Batch, actions: &mut Vec<Action>) {
        self.make_public(&batch.changes, actions);
        actions.extend(batch.alerts.into_iter().map(|alert| Action::Alert { alert }));
        actions.extend(batch.answers.into_iter().map(|(id, result)| Action::Reply { id, result }));
        self.pump(actions);
    }

    fn make_public(&mut self, changes: &[Stamped], actions: &mut Vec<Action>) {
        for change in changes {
            self.ledger.apply(change);
            actions.push(Action::Publish { change: change.clone() });
        }
    }

    fn persist_failed(&mut self, batch: Batch, reason: String, actions: &mut Vec<Action>) {
        let waiting = std::mem::take(&mut self.queue);
        // Even answers that need no change: they were decided in the order of the batch, so let all be asked again.
        let ids = batch.answers.iter().map(|(id, _)| *id).chain(waiting.into_iter().map(|(id, _)| id));
        for id in ids {
            actions.push(Action::Reply { id, result: Err(Refusal::Unavailable { reason: reason.clone() }) });
        }
        actions.push(Action::Alert { alert: Alert::StoreFailed { reason: reason.clone() } });
        actions.push(Action::Reload);
        self.mode = Mode::Broken { reason, in_doubt: batch.changes };
    }

    /// The disk holds the batch in doubt or it does not; both are good, anything else is another ledger.
    fn reloaded(&mut self, disk: &Ledger, actions: &mut Vec<Action>) {
        let in_doubt = match &mut self.mode {
            Mode::Ready | Mode::Persisting(_) => return,
            Mode::Broken { in_doubt, .. } => std::mem::take(in_doubt),
        };
        let mut with = self.ledger.clone();
        in_doubt.iter().for_each(|change| with.apply(change));
        if *disk == with {
            self.make_public(&in_doubt, actions);
        } else if *disk != self.ledger {
            let alert = Alert::Diverged { disk: disk.revision, memory: self.ledger.revision };
            self.mode = Mode::Broken { reason: alert.to_string(), in_doubt: Vec::new() };
            actions.push(Action::Alert { alert });
            return;
        }
        self.mode = Mode::Ready;
        actions.push(Action::Alert { alert: Alert::StoreRecovered { revision: self.ledger.revision } });
    }

    /// Turns what waits into commits and answers, as long as the disk is free.
    fn pump(&mut self, actions: &mut Vec<Action>) {
        while matches!(self.mode, Mode::Ready) && !self.queue.is_empty() {
            let mut batch = self.next_batch();
            #[cfg(feature = "sabotage")]
            if self.sabotage == Some(Sabotage::ReplyBeforeDurable) {
                let answers = std::mem::take(&mut batch.answers);
                actions.extend(answers.into_iter().map(|(id, result)| Action::Reply { id, result }));
            }
            if batch.changes.is_empty() {
                let answers = std::mem::take(&mut batch.answers);
                actions.extend(answers.into_iter().map(|(id, result)| Action::Reply { id, result }));
            } else {
                self.last_commit = CommitId(self.last_commit.0.saturating_add(1));
                actions.push(Action::Persist { commit: self.last_commit, changes: batch.changes.clone() });
                self.mode = Mode::Persisting(batch);
            }
        }
    }

    /// As many requests from the head of the queue as don't see each other.
    fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut revision = self.ledger.revision;
        while batch.answers.len() < BATCH_LIMIT
            && let Some((id, request)) = self.queue.pop_front()
        {
            let key = key(&request);
            if !batch.independent(&key) {
                self.queue.push_front((id, request));
                break;
            }
            // Reads and refusals count, too: an answer must not come after a change that makes it untrue.
            batch.touched.insert(key);
            if let Err(refusal) = self.long_leases.in_order(&self.ledger, &request) {
                batch.answers.push((id, Err(refusal)));
                continue;
            }
            match decide(&self.ledger, &self.electorate, revision, &mut batch.shared, request) {
                Verdict::Answer(result) => batch.answers.push((id, result)),
                Verdict::Change { changes, reply, alert } => {
                    for change in changes {
                        revision = revision.next();
                        batch.changes.push(Stamped { revision, change });
                    }
                    batch.answers.push((id, Ok(reply)));
                    batch.alerts.extend(alert);
                }
            }
        }
        batch
    }
}

impl Batch {
    fn independent(&self, key: &Key) -> bool {
        self.touched.is_empty()
            || (*key != Key::Whole
                && !self.touched.contains(&Key::Whole)
                && (*key == Key::Tables || !self.touched.contains(key)))
    }
}
