//! The audit log: who called what from where, and what came of it. Lines have the tracing target `audit`.

use crate::{
    limits::AUDITED_REFUSALS_PER_SECOND,
    roles::{Caller, Peer},
};
use std::{
    fmt::Write as _,
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

/// How an allowed call ended: for a stream, whether it began.
pub(crate) fn ended(peer: &Peer, rpc: &str, about: &str, took: Duration, end: Result<(), &tonic::Status>) {
    let limited = peer.caller == Caller::Anonymous;
    let Some(left_out) = (if limited { turn() } else { Some(0) }) else { return };
    let (role, took_ms) = (role(peer), took.as_millis());
    match end {
        Ok(()) => tracing::info!(
            target: TARGET, who = %peer, role, rpc, from = %peer.address, about, outcome = "done", took_ms, left_out
        ),
        Err(status) => tracing::warn!(
            target: TARGET, who = %peer, role, rpc, from = %peer.address, about, outcome = "failed", took_ms,
            code = ?status.code(), reason = status.message(), left_out
        ),
    }
}

/// Bytes of what a call is about.
const MAX_ABOUT: usize = 256;

tokio::task_local! {
    static ABOUT: std::cell::RefCell<String>;
}

/// Takes so much and no more: what follows is not even written.
struct Beginning(String);

impl std::fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = MAX_ABOUT - self.0.len();
        let end = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.0.push_str(&text[..end]);
        if end == text.len() { Ok(()) } else { Err(std::fmt::Error) }
    }
}

/// Said by a handler: what its call is about, for the audit log; nothing secret. Only its beginning is kept.
pub fn about(what: &impl std::fmt::Debug) {
    let _outside_of_a_call = ABOUT.try_with(|about| {
        let mut text = Beginning(String::new());
        if write!(text, "{what:?}").is_err() {
            text.0.push('…');
        }
        *about.borrow_mut() = text.0;
    });
}

/// Runs a call; returns what its handler said it is about.
#[cfg(feature = "server")]
pub(crate) async fn listening<T>(call: impl Future<Output = T>) -> (T, String) {
    ABOUT
        .scope(std::cell::RefCell::default(), async {
            let answer = call.await;
            (answer, ABOUT.with(|about| about.take()))
        })
        .await
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
