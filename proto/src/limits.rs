//! Bounds of a server and a channel, each with its reason.

use std::time::Duration;

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A TLS handshake takes a round trip and some milliseconds; one that lasts longer is given up.
    pub handshake: Duration,
    /// Handshakes at a time: a thousand agents may reconnect at once after a restart. More are closed and audited.
    pub handshakes: usize,
    /// Handshakes at a time from one address (loopback excepted), so that one machine can't take them all.
    pub handshakes_per_address: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Of these without a certificate: machines that are enrolling.
    pub anonymous_connections: usize,
    /// Calls at a time on one connection, streams included.
    pub calls_per_connection: u32,
    /// A quiet connection is asked for a sign of life (HTTP/2 ping) this often …
    pub keepalive_interval: Duration,
    /// … and closed if none comes in this time. Sent data must be acknowledged within both (TCP_USER_TIMEOUT).
    pub keepalive_timeout: Duration,
    /// At a stop, calls under way get this long to end; streams that don't are cut.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            handshakes: 1024,
            handshakes_per_address: 64,
            connections: 4096,
            anonymous_connections: 64,
            calls_per_connection: 256,
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            drain: Duration::from_millis(500),
        }
    }
}

/// Largest message that is read: tonic's own limit, repeated in `docs`. A plan of 1,000 hosts is a tenth of it.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Audit lines of refusals in one second; what is above is counted, so that a flood of them fills no disk.
pub(crate) const AUDITED_REFUSALS_PER_SECOND: u32 = 50;
