//! What an owner does besides the guard: the address, announcements, closing sockets. One thread, in order: an
//! address that was dropped is never put back by an older order (docs/safety.md, rule 4).

use crate::{
    events::Events,
    guard::{IfName, Link, MacAddr, address, announce, now, removals, sockets},
};
use kage_agent_core::HoldRefused;
use kage_proto::agent::v1::{AddressRestored, agent_event::Event};
use kage_types::{Time, Vip};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};
use tokio::{runtime::Handle, sync::oneshot};

/// Several orders for every VIP an agent could hold.
const QUEUE: usize = 1024;
/// Without an order for so long, there is time to tidy up.
const IDLE: Duration = Duration::from_millis(20);
/// Somebody who takes an address off again and again is not fought more often; the renewal of each second goes on.
const RESTORE_AGAIN: Duration = Duration::from_millis(100);

/// The VIPs that are live now; asked before an announcement is repeated.
#[derive(Clone, Debug, Default)]
pub struct LiveVips(Arc<Mutex<BTreeSet<Vip>>>);

impl LiveVips {
    /// These and no others.
    pub fn set(&self, vips: BTreeSet<Vip>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = vips;
    }

    fn contains(&self, vip: Vip) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&vip)
    }
}

/// When a VIP was open, and first announced.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The guard's element was in force and known to be.
    pub opened: Time,
    /// None: could not be announced.
    pub announced: Option<Time>,
}

/// One order.
#[derive(Debug)]
pub enum Order {
    /// The address on the interface, for so long.
    Put(Vip, Duration),
    /// Longer.
    Refresh(Vec<Vip>, Duration),
    /// Somebody took it off: back on the interface, if it was put there, is live, and the kernel says so too.
    Restore(Vip),
    /// Off the interface, its connections closed.
    Drop(Vip),
    /// Its connections closed.
    Close(Vip),
    /// Announced with this hardware address; none: the interface's own.
    Announce(Vip, Option<MacAddr>),
    /// After all orders before it: a VIP is open since then.
    Tell(Vip, Time, oneshot::Sender<Result<Opened, HoldRefused>>),
    /// After all orders before it.
    Flush(oneshot::Sender<()>),
}

/// Handle of the thread.
#[derive(Clone, Debug)]
pub struct Hands(Option<SyncSender<Order>>);

impl Hands {
    /// Starts the thread. `interface`: where the host guard's VIPs are and announcements leave; none for a witness.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn spawn(interface: Option<IfName>, live: LiveVips, events: Events) -> io::Result<Self> {
        let Some(interface) = interface else { return Ok(Self(None)) };
        let (orders, queue) = sync_channel(QUEUE);
        let thread = Worker {
            interface,
            live,
            events,
            held: BTreeMap::new(),
            restored: BTreeMap::new(),
            orders: orders.clone(),
            announced: BTreeMap::new(),
            spent: Vec::new(),
            runtime: Handle::current(),
        };
        let restore = orders.clone();
        let removed = move |vip| !matches!(restore.try_send(Order::Restore(vip)), Err(TrySendError::Disconnected(_)));
        if let Err(error) = removals::watch(interface, removed) {
            tracing::warn!(%error, "an address that somebody takes off is noticed after a second only");
        }
        thread::Builder::new().name("hands".into()).stack_size(256 << 10).spawn(move || thread.run(&queue))?;
        Ok(Self(Some(orders)))
    }

    /// Queues an order; never blocks.
    pub fn order(&self, order: Order) {
        let Some(orders) = &self.0 else { return };
        match orders.try_send(order) {
            Ok(()) => {}
            Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) => {
                tracing::error!(
                    ?order,
                    "not done: the thread for addresses is stalled; restart the agent if this goes on"
                );
            }
        }
    }
}

struct Worker {
    interface: IfName,
    live: LiveVips,
    events: Events,
    /// On the interface by our orders, and for how long.
    held: BTreeMap<Vip, Duration>,
    restored: BTreeMap<Vip, Time>,
    /// To look again later.
    orders: SyncSender<Order>,
    announced: BTreeMap<Vip, Time>,
    /// Closed when nothing else is to be done: that takes longer than all the rest.
    spent: Vec<announce::Sent>,
    runtime: Handle,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Order>) {
        loop {
            match queue.recv_timeout(IDLE) {
                Ok(order) => self.carry_out(order),
                Err(RecvTimeoutError::Timeout) => {
                    self.spent.clear();
                    let Ok(order) = queue.recv() else { return };
                    self.carry_out(order);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Put(vip, life) => {
                self.held.insert(vip, life);
                self.with_link("put the address on", vip, |link| address::hold(link, vip, life));
            }
            Order::Refresh(vips, life) => {
                for vip in vips {
                    self.held.insert(vip, life);
                    self.with_link("renew the address on", vip, |link| address::hold(link, vip, life));
                }
            }
            Order::Restore(vip) => self.restore(vip),
            Order::Drop(vip) => {
                self.held.remove(&vip);
                self.restored.remove(&vip);
                self.announced.remove(&vip);
                self.with_link("take the address off", vip, |link| address::release(link, vip));
                close(vip);
            }
            Order::Close(vip) => close(vip),
            Order::Announce(vip, mac) => self.announce(vip, mac),
            Order::Tell(vip, opened, reply) => {
                let announced = self.announced.get(&vip).copied().filter(|announced| *announced >= opened);
                let _ = reply.send(Ok(Opened { opened, announced }));
            }
            Order::Flush(reply) => {
                let _ = reply.send(());
            }
        }
    }

    /// Neighbours still know the hardware address, so nothing is announced.
    fn restore(&mut self, vip: Vip) {
        let Some(life) = self.held.get(&vip).copied() else { return };
        // Rule 4: never put back without a live element. The kernel's word, as ours may be older than a flush.
        if !self.live.contains(vip) || !removals::is_live(vip).unwrap_or(false) {
            return;
        }
        // Several removals may have been queued; one that was made good already is no news.
        if Link::find(self.interface)
            .and_then(|link| address::present(&link, [vip]))
            .is_ok_and(|there| !there.is_empty())
        {
            return;
        }
        // `ip addr flush` looks again and again until all are gone.
        if self.restored.get(&vip).is_some_and(|last| now().since(*last) < RESTORE_AGAIN) {
            let orders = self.orders.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(RESTORE_AGAIN).await;
                let _ = orders.try_send(Order::Restore(vip));
            });
            return;
        }
        self.restored.insert(vip, now());
        tracing::warn!(%vip, interface = %self.interface, "somebody took the address off; it is put back (a network manager? docs/hosts.md)");
        self.with_link("put the address back on", vip, |link| address::hold(link, vip, life));
        self.events.publish(Event::AddressRestored(AddressRestored { vip: vip.to_string() }));
    }

    fn with_link(&self, what: &'static str, vip: Vip, act: impl FnOnce(&Link) -> io::Result<()>) {
        if let Err(error) = Link::find(self.interface).and_then(|link| act(&link)) {
            tracing::error!(%vip, interface = %self.interface, %error, "can't {what} the interface; check it with `ip link`");
        }
    }

    fn announce(&mut self, vip: Vip, mac: Option<MacAddr>) {
        let link = match Link::find(self.interface) {
            Ok(link) => link,
            Err(error) => {
                tracing::error!(%vip, interface = %self.interface, %error, "not announced: no interface");
                return;
            }
        };
        let mac = mac.unwrap_or(link.mac);
        match announce::announce_once(&link, mac, vip) {
            Ok(sent) => {
                self.announced.insert(vip, now());
                self.spent.push(sent);
            }
            Err(error) => tracing::warn!(%vip, %error, "not announced; clients find it when their caches age"),
        }
        let live = self.live.clone();
        self.runtime.spawn(async move {
            for pause in announce::PAUSES.into_iter().filter(|pause| !pause.is_zero()) {
                tokio::time::sleep(pause).await;
                if !live.contains(vip) {
                    return;
                }
                // Closing the socket blocks for some 10 ms.
                let again =
                    tokio::task::spawn_blocking(move || announce::announce_once(&link, mac, vip).map(drop)).await;
                if let Ok(Err(error)) = again {
                    tracing::debug!(%vip, %error, "announcement not repeated");
                }
            }
        });
    }
}

fn close(vip: Vip) {
    match sockets::close_connections(vip) {
        Ok(0) => {}
        Ok(closed) => tracing::info!(%vip, closed, "connections closed"),
        Err(error) => tracing::warn!(%vip, %error, "connections not closed: their clients wait for a timeout"),
    }
}
