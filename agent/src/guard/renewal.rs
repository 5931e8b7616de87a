//! The thread that changes timed elements: in order, on time, without allocating.

use super::{
    Place, Protection,
    elements::Encoder,
    netlink::{self, Writer},
    sys::{Socket, now},
};
use kage_agent_core::{KernelOp, KernelOutcome, OpId};
use kage_types::Time;
use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::mpsc::UnboundedSender;

/// Operations that may wait: several renewal intervals of every VIP an agent could hold.
const QUEUE: usize = 1024;
/// The largest transaction (three groups in three families) is below 2 KiB.
const TRANSACTION: usize = 8 << 10;
/// All acknowledgements of one transaction.
const ANSWER: usize = 16 << 10;
/// On Linux before 6.8 an element may expire between two changes of one transaction; the next try finds it gone.
const TRIES: usize = 3;

/// How one operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewalReport {
    /// Which operation.
    pub id: OpId,
    /// How.
    pub outcome: KernelOutcome,
    /// When: read right after the kernel's answer.
    pub at: Time,
}

/// The queue is full: the thread hasn't run for a long time, or has ended. The operation was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel guard's renewal queue is full: its thread is stalled; VIPs will lapse until it runs again")]
pub struct QueueFull;

struct Order {
    id: OpId,
    op: KernelOp,
    place: Place,
}

/// Handle of the renewal thread. Dropping it ends the thread once its queue is empty.
#[derive(Debug)]
pub struct RenewalThread {
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    protection: Protection,
}

impl RenewalThread {
    /// Starts the thread, in the caller's network namespace. `egress` is [`super::Guard::egress`] of the host guard
    /// (false without one). Every accepted operation is reported to `reports`, in order.
    ///
    /// # Errors
    /// No netlink socket, or no thread.
    pub fn spawn(egress: bool, reports: UnboundedSender<RenewalReport>) -> io::Result<Self> {
        let executor = Executor::new(egress)?;
        let (orders, queue) = sync_channel(QUEUE);
        let (ready, is_ready) = sync_channel(1);
        let thread = thread::Builder::new().name("renewal".into()).spawn(move || {
            let protection = Protection::take();
            let _ = ready.send(protection);
            executor.run(&queue, &reports);
        })?;
        let protection = is_ready.recv().map_err(|_| io::Error::other("the renewal thread ended at once"))?;
        protection.warn();
        Ok(Self { orders: Some(orders), thread: Some(thread), protection })
    }

    /// Queues an operation. Does not block.
    ///
    /// # Errors
    /// [`QueueFull`]: not taken, and will not be reported.
    pub fn submit(&self, id: OpId, op: KernelOp, place: Place) -> Result<(), QueueFull> {
        let orders = self.orders.as_ref().ok_or(QueueFull)?;
        match orders.try_send(Order { id, op, place }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(QueueFull),
        }
    }

    /// What could be had of memory locking, priority and OOM protection; the rest has been logged.
    #[must_use]
    pub fn protection(&self) -> &Protection {
        &self.protection
    }
}

impl Drop for RenewalThread {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Executor {
    socket: Socket,
    transaction: Writer,
    answer: Box<[u8]>,
    egress: bool,
    /// K: the shortest life ordered so far.
    shortest: Duration,
}

impl Executor {
    fn new(egress: bool) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::netlink(libc::NETLINK_NETFILTER, 0)?,
            transaction: Writer::with_capacity(TRANSACTION),
            answer: vec![0; ANSWER].into_boxed_slice(),
            egress,
            shortest: Duration::MAX,
        })
    }

    fn run(mut self, orders: &Receiver<Order>, reports: &UnboundedSender<RenewalReport>) {
        while let Ok(Order { id, op, place }) = orders.recv() {
            let (outcome, at) = self.execute(&op, place);
            if reports.send(RenewalReport { id, outcome, at }).is_err() {
                return;
            }
        }
    }

    fn execute(&mut self, op: &KernelOp, place: Place) -> (KernelOutcome, Time) {
        let (outcome, at) = match op {
            KernelOp::Arm { life, .. } => {
                self.shortest = self.shortest.min(*life);
                self.unconditional(op, place)
            }
            KernelOp::Close { .. } => self.unconditional(op, place),
            KernelOp::Open { life, not_after, .. } | KernelOp::Renew { life, not_after, .. } => {
                self.shortest = self.shortest.min(*life);
                self.conditional(op, place, *not_after)
            }
        };
        (outcome, at)
    }

    fn unconditional(&mut self, op: &KernelOp, place: Place) -> (KernelOutcome, Time) {
        let mut result = Err(libc::ENOENT);
        for _ in 0..TRIES {
            result = self.transact(op, place, Time::FAR);
            if result != Err(libc::ENOENT) {
                break;
            }
        }
        let at = now();
        match result {
            Ok(()) => (KernelOutcome::Done, at),
            Err(code) => (failed(code), at),
        }
    }

    /// `not_after` bounds when the transaction begins; the element it replaces, of life K, bounds when it ends. Only
    /// a stall *inside* the kernel's own microseconds between deletion and addition escapes both: it shows by the
    /// time, and is undone.
    fn conditional(&mut self, op: &KernelOp, place: Place, not_after: Time) -> (KernelOutcome, Time) {
        let result = self.transact(op, place, not_after);
        let at = now();
        match result {
            Ok(()) if at > not_after + self.shortest => {
                let (undone, at) = self.unconditional(&KernelOp::Close { vip: op.vip() }, place);
                let outcome = match undone {
                    KernelOutcome::Done => KernelOutcome::NotFound,
                    KernelOutcome::NotFound | KernelOutcome::TooLate | KernelOutcome::Failed(_) => undone,
                };
                (outcome, at)
            }
            Ok(()) => (KernelOutcome::Done, at),
            Err(libc::ENOENT) => (KernelOutcome::NotFound, at),
            Err(libc::ETIME) => (KernelOutcome::TooLate, at),
            Err(code) => (failed(code), at),
        }
    }

    /// One transaction. `Err` is the first error number; `ETIME`: `not_after` had passed.
    fn transact(&mut self, op: &KernelOp, place: Place, not_after: Time) -> Result<(), i32> {
        let mut missing = Encoder::encode(op, place, self.egress, &mut self.transaction);
        if now() > not_after {
            return Err(libc::ETIME);
        }
        self.socket.send(self.transaction.bytes()).map_err(|error| errno(&error))?;
        let mut result = Ok(());
        // The kernel works in send() and has queued every answer when it returns.
        while missing > 0 {
            let length = match self.socket.receive(&mut self.answer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // A refused commit is answered once only, for the whole.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && result.is_err() => break,
                Err(error) => return Err(errno(&error)),
            };
            for message in netlink::messages(&self.answer[..length]) {
                if !self.transaction.is_mine(message.sequence) {
                    continue;
                }
                match message.errno() {
                    Some(0) => missing -= 1,
                    Some(code) => {
                        missing -= 1;
                        result = result.and(Err(code));
                    }
                    None => {}
                }
            }
        }
        result
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn failed(code: i32) -> KernelOutcome {
    let error = io::Error::from_raw_os_error(code);
    KernelOutcome::Failed(match code {
        libc::ENOENT => "the guard's nftables tables are gone; the monitor puts them back".to_owned(),
        libc::EPERM => format!("nf_tables: {error}; run the agent as root or with CAP_NET_ADMIN"),
        _ => format!("nf_tables: {error}"),
    })
}
