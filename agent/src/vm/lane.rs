//! Threads that call libvirt, and how async code waits for them.
//!
//! A lane is a queue with a few workers, each with a connection of its own (libvirtd answers at most five calls of
//! one connection at a time). Commands of different weight go to different lanes, so that a pause never waits behind
//! a migration. A worker whose call has outlived its deadline is written off and replaced; it ends when its call does.

use super::{link::Link, types::VmError};
use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time::timeout};

/// Longer than any healthy host's backlog; beyond it the caller is told at once.
const MAX_WAITING: usize = 256;
/// Threads of a lane that may hang at a time: each costs a stack and a libvirtd worker (libvirtd has 20).
const MAX_HANGING: usize = 4;
/// How often a waiting caller looks whether a worker is overdue.
const OVERDUE_CHECK: Duration = Duration::from_millis(250);

type Run = Box<dyn FnOnce(Result<&Link, VmError>) + Send>;

struct Job {
    deadline: Instant,
    run: Run,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// By number; with the deadline of the call it is in, if any.
    workers: BTreeMap<u64, Option<Instant>>,
    next_worker: u64,
    hanging: usize,
    closed: bool,
}

/// See the module.
pub(super) struct Lane {
    name: &'static str,
    uri: String,
    width: usize,
    state: Mutex<State>,
    work: Condvar,
}

impl Lane {
    /// At most `width` calls at a time; threads are started when needed.
    pub(super) fn new(name: &'static str, uri: &str, width: usize) -> Arc<Self> {
        Arc::new(Self { name, uri: uri.to_owned(), width, state: Mutex::default(), work: Condvar::new() })
    }

    /// Runs `call` on a worker.
    ///
    /// # Errors
    /// Those of `call`; [`VmError::Timeout`] after `deadline`, when a call that has begun may still take effect and
    /// one that has not never will; Unreachable, Hanging, Busy.
    pub(super) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Duration,
        call: impl FnOnce(&Link) -> Result<T, VmError> + Send + 'static,
    ) -> Result<T, VmError> {
        let end = Instant::now() + deadline;
        let (sender, mut receiver) = oneshot::channel();
        let run: Run = Box::new(move |link| {
            if !sender.is_closed() {
                let _ = sender.send(link.and_then(call));
            }
        });
        self.submit(Job { deadline: end, run })?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match timeout(left.min(OVERDUE_CHECK), &mut receiver).await {
                Ok(Ok(result)) => return result,
                Ok(Err(_)) => return Err(VmError::Internal(format!("a call in lane {} panicked", self.name))),
                Err(_) => self.tend(&mut self.lock()),
            }
            if Instant::now() >= end {
                return Err(VmError::Timeout { after: deadline });
            }
        }
    }

    /// Lets idle workers end, and the others after their call.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }

    fn submit(self: &Arc<Self>, job: Job) -> Result<(), VmError> {
        let mut state = self.lock();
        let (waiting, hanging) = (state.waiting.len(), state.hanging);
        if waiting >= MAX_WAITING {
            return Err(VmError::Busy { waiting });
        }
        state.waiting.push_back(job);
        self.tend(&mut state);
        if state.workers.is_empty() {
            state.waiting.pop_back();
            return Err(VmError::Hanging { hanging: hanging.max(state.hanging) });
        }
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Writes off overdue workers and starts those that are needed and allowed.
    fn tend(self: &Arc<Self>, state: &mut State) {
        let now = Instant::now();
        let before = state.workers.len();
        state.workers.retain(|_, deadline| deadline.is_none_or(|deadline| now < deadline));
        let overdue = before - state.workers.len();
        if overdue > 0 {
            state.hanging += overdue;
            tracing::warn!(lane = self.name, hanging = state.hanging, "calls to libvirt hang");
        }
        let idle = state.workers.values().filter(|deadline| deadline.is_none()).count();
        let wanted = state.waiting.len().saturating_sub(idle).min(self.width - state.workers.len());
        for _ in 0..wanted.min(MAX_HANGING.saturating_sub(state.hanging)) {
            let number = state.next_worker;
            state.next_worker += 1;
            state.workers.insert(number, None);
            let lane = Arc::clone(self);
            let spawned =
                thread::Builder::new().name(format!("libvirt-{}", self.name)).spawn(move || lane.work(number));
            if let Err(error) = spawned {
                state.workers.remove(&number);
                tracing::error!(%error, "starting a thread for libvirt");
            }
        }
    }

    fn work(&self, number: u64) {
        let mut link: Option<Link> = None;
        let mut state = self.lock();
        loop {
            if state.closed {
                state.workers.remove(&number);
                return;
            }
            let Some(job) = state.waiting.pop_front() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.workers.insert(number, Some(job.deadline));
            drop(state);
            self.run(&mut link, job.run);
            state = self.lock();
            match state.workers.get_mut(&number) {
                Some(deadline) => *deadline = None,
                None => {
                    state.hanging -= 1;
                    tracing::info!(lane = self.name, "a call to libvirt that hung has ended");
                    return;
                }
            }
        }
    }

    fn run(&self, link: &mut Option<Link>, run: Run) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            if link.as_ref().is_some_and(|link| !link.is_alive()) {
                *link = None;
            }
            let opened = match link {
                Some(link) => Ok(&*link),
                None => Link::open(&self.uri).map(|opened| &*link.insert(opened)),
            };
            run(opened);
        }));
        if done.is_err() {
            tracing::error!(lane = self.name, "a libvirt call panicked");
            *link = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; if something did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const URI: &str = "test:///default";
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_hung_call_times_out_and_is_replaced() {
        let lane = Lane::new("test", URI, 1);
        let (release, hold) = mpsc::channel::<()>();
        let short = Duration::from_millis(50);
        let hung = lane.call(short, move |_| Ok(hold.recv().is_ok())).await;
        assert_eq!(hung, Err(VmError::Timeout { after: short }));
        assert_eq!(lane.call(LONG, |link| Ok(link.is_alive())).await, Ok(true));
        assert_eq!(lane.lock().hanging, 1);
        drop(release);
        while lane.lock().hanging != 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_call_given_up_while_waiting_is_never_made() {
        let lane = Lane::new("test", URI, 1);
        let (release, hold) = mpsc::channel::<()>();
        let first = {
            let lane = Arc::clone(&lane);
            tokio::spawn(async move { lane.call(LONG, move |_| Ok(hold.recv().is_ok())).await })
        };
        while lane.lock().workers.values().flatten().count() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (made, seen) = mpsc::channel::<()>();
        let second = lane.call(Duration::from_millis(20), move |_| Ok(made.send(()).is_ok())).await;
        assert!(matches!(second, Err(VmError::Timeout { .. })));
        drop(release);
        assert_eq!(first.await.expect("join"), Ok(false));
        assert_eq!(lane.call(LONG, |_| Ok(())).await, Ok(()));
        assert!(seen.try_recv().is_err());
    }

    #[tokio::test]
    async fn too_many_hung_calls_are_refused_and_a_panic_is_an_error() {
        let lane = Lane::new("test", URI, 1);
        let panicked: Result<(), _> = lane.call(LONG, |_| panic!("on purpose")).await;
        assert!(matches!(panicked, Err(VmError::Internal(_))));
        let mut holds = Vec::new();
        for _ in 0..MAX_HANGING {
            let (release, hold) = mpsc::channel::<()>();
            holds.push(release);
            let _ = lane.call(Duration::from_millis(10), move |_| Ok(hold.recv().is_ok())).await;
        }
        assert_eq!(lane.call(LONG, |_| Ok(())).await, Err(VmError::Hanging { hanging: MAX_HANGING }));
    }

    #[tokio::test]
    async fn no_libvirtd_is_a_clear_error() {
        let lane = Lane::new("test", "qemu+unix:///system?socket=/nonexistent/libvirt-sock", 1);
        let error = lane.call(LONG, |_| Ok(())).await.expect_err("nobody listens");
        assert!(error.to_string().contains("systemctl status libvirtd"), "{error}");
    }
}
