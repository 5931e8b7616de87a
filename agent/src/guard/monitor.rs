//! Notices when somebody flushes or edits the guard's tables, and puts them back (safety rule 8).

use super::{
    Guard, GuardError, Health,
    elements::{
        NFT_MSG_DELSETELEM, NFT_MSG_NEWSETELEM, NFTA_SET_ELEM_LIST_SET, NFTA_TABLE_NAME, SUBSYS_NFTABLES, TABLE,
    },
    netlink::{self, Message},
    sys::Socket,
};
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;

/// `NFNLGRP_NFTABLES`, as a bit of the mask.
const GROUP: u32 = 1 << 6;
const NFT_MSG_NEWGEN: u16 = 15;
/// Even without notice the tables are compared this often.
const ROUTINE: Duration = Duration::from_secs(30);
/// After a failed re-installation. The VIPs are unguarded meanwhile.
const RETRY: Duration = Duration::from_secs(1);
const DELETED: &str = "the guard's tables were deleted (nft flush ruleset? docs/hosts.md)";
/// How soon a dropped monitor ends.
const STEP: Duration = Duration::from_millis(250);

/// Somebody changed the guard's tables: to be raised as an alert.
#[derive(Debug)]
pub struct GuardAlert {
    /// What differed.
    pub what: String,
    /// Why the guard could not be put back; tried again every second.
    pub failed: Option<GuardError>,
}

/// A thread that watches one guard. Dropping it ends the watch, not the guard.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts watching, in the caller's network namespace. Others must hold the lock only briefly.
    ///
    /// # Errors
    /// No netlink socket, or no thread.
    pub fn spawn(guard: Arc<Mutex<Guard>>, alerts: UnboundedSender<GuardAlert>) -> io::Result<Self> {
        let socket = Socket::netlink(libc::NETLINK_NETFILTER, GROUP)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("guard-monitor".into())
            .spawn(move || watch(&socket, &guard, &alerts, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(socket: &Socket, guard: &Mutex<Guard>, alerts: &UnboundedSender<GuardAlert>, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    let mut next = Instant::now();
    let mut failing = false;
    while !stop.load(Ordering::Relaxed) {
        let left = next.saturating_duration_since(Instant::now());
        if !left.is_zero() && !suspicious(socket, &mut buffer, left.min(STEP)) {
            continue;
        }
        let alert = match inspect(&mut guard.lock().unwrap_or_else(PoisonError::into_inner)) {
            Ok(alert) => alert,
            Err(error) => Some(GuardAlert { what: "the tables could not be read".to_owned(), failed: Some(error) }),
        };
        let failed = alert.as_ref().is_some_and(|alert| alert.failed.is_some());
        // A failure that lasts is one alert, and so is its end.
        if let Some(alert) = alert.filter(|_| !(failed && failing))
            && alerts.send(alert).is_err()
        {
            return;
        }
        failing = failed;
        next = Instant::now() + if failed { RETRY } else { ROUTINE };
    }
}

/// Compares, and puts back what differs.
fn inspect(guard: &mut Guard) -> Result<Option<GuardAlert>, GuardError> {
    // `nft flush ruleset`: nothing is to be compared, and each millisecond counts. Default deny first; who held a VIP
    // finds its element gone and asks anew.
    if guard.is_gone() {
        return Ok(Some(put_back(guard, DELETED.to_owned())));
    }
    match guard.verify() {
        Ok(Health::Intact) => Ok(None),
        // They went while they were being read.
        Ok(Health::Changed(_)) | Err(_) if guard.is_gone() => Ok(Some(put_back(guard, DELETED.to_owned()))),
        Ok(Health::Changed(what)) => Ok(Some(put_back(guard, what))),
        Err(error) => Err(error),
    }
}

fn put_back(guard: &mut Guard, what: String) -> GuardAlert {
    GuardAlert { what, failed: guard.reinstall().err() }
}

/// Waits up to `limit` for a change of our tables that is no renewal.
fn suspicious(socket: &Socket, buffer: &mut [u8], limit: Duration) -> bool {
    if !socket.wait(limit).unwrap_or(true) {
        return false;
    }
    let mut found = false;
    loop {
        match socket.receive(buffer) {
            Ok(length) => found |= netlink::messages(&buffer[..length]).any(|message| is_foreign(&message)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return found,
            // ENOBUFS: notices were lost.
            Err(_) => return true,
        }
    }
}

/// Every kind of object names its table in the attribute of the same number.
fn is_foreign(message: &Message<'_>) -> bool {
    let kind = message.kind & 0xff;
    if message.kind >> 8 != SUBSYS_NFTABLES || kind == NFT_MSG_NEWGEN {
        return false;
    }
    let body = message.payload.get(4..).unwrap_or(&[]);
    let is = |kind, name: &str| {
        netlink::attribute(body, kind).is_some_and(|value| value.strip_suffix(&[0]) == Some(name.as_bytes()))
    };
    let timed = ["armed4", "armed6", "live4", "live6", "held4", "held6"];
    let element = kind == NFT_MSG_NEWSETELEM || kind == NFT_MSG_DELSETELEM;
    is(NFTA_TABLE_NAME, TABLE) && !(element && timed.iter().any(|set| is(NFTA_SET_ELEM_LIST_SET, set)))
}
