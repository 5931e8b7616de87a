//! The audit log: who called what from where, and what came of it. Lines have the tracing target `audit`.

use crate::{
    limits::AUDITED_REFUSALS_PER_SECOND,
    roles::{Caller, Peer},
};
use std::{
    net::SocketAddr,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The target of audit lines.
pub const TARGET: &str = "audit";

/// A call that may go ahead. Strangers' calls are limited as refusals are: they can enrol, or try to, for ever.
pub fn allowed(peer: &Peer, rpc: &str) {
    let limited = peer.caller == Caller::Anonymous;
    let Some(left_out) = (if limited { turn() } else { Some(0) }) else { return };
    tracing::info!(target: TARGET, who = %peer, role = role(peer), rpc, from = %peer.address, outcome = "allowed", left_out);
}

/// A call that may not. Limited to a number of lines per second, with a count of those left out.
pub fn refused(peer: &Peer, rpc: &str, reason: &str) {
    if let Some(left_out) = turn() {
        tracing::warn!(
            target: TARGET, who = %peer, role = role(peer), rpc, from = %peer.address, outcome = "refused", reason, left_out
        );
    }
}

/// A connection that never became one. Limited as [`refused`].
pub(crate) fn no_connection(from: SocketAddr, reason: &str) {
    if let Some(left_out) = turn() {
        tracing::warn!(target: TARGET, who = "unknown", %from, outcome = "refused", rpc = "handshake", reason, left_out);
    }
}

fn role(peer: &Peer) -> &'static str {
    peer.role().map_or("none", crate::roles::Role::as_str)
}

struct Window {
    began: Instant,
    written: u32,
    left_out: u64,
}

static WINDOW: LazyLock<Mutex<Window>> =
    LazyLock::new(|| Mutex::new(Window { began: Instant::now(), written: 0, left_out: 0 }));

/// May a refusal be written now? Then with how many left out before it.
fn turn() -> Option<u64> {
    let mut window = WINDOW.lock().unwrap_or_else(PoisonError::into_inner);
    if window.began.elapsed() >= Duration::from_secs(1) {
        window.began = Instant::now();
        window.written = 0;
    }
    if window.written >= AUDITED_REFUSALS_PER_SECOND {
        window.left_out += 1;
        return None;
    }
    window.written += 1;
    Some(std::mem::take(&mut window.left_out))
}
