//! Bounds of a server and a channel, each with its reason.

use std::time::Duration;

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A TLS handshake takes a round trip and some milliseconds; one that lasts longer is given up. So is a connection
    /// that says nothing for as long after it.
    pub handshake: Duration,
    /// Handshakes at a time: a thousand agents may reconnect at once after a restart. Above that, the oldest of the address
    /// that has the most gives way to one of an address that has fewer; others are closed. Both are audited.
    pub handshakes: usize,
    /// Handshakes at a time from one address (loopback excepted), so that one machine can't take them all.
    pub handshakes_per_address: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Of these without a certificate: machines that are enrolling.
    pub anonymous_connections: usize,
    /// Each of these is closed after so long: twice what an enrolment may take.
    pub anonymous_stay: Duration,
    /// Calls at a time on one connection, streams included. More are refused with RESOURCE_EXHAUSTED.
    pub calls_per_connection: u32,
    /// Commands (what is audited) of one operator, viewer or stranger. Coordinator, SIF and agents are not limited: a
    /// recovery of many must not wait.
    pub commands: Rate,
    /// Other calls of such a caller.
    pub looks: Rate,
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
            anonymous_stay: Duration::from_secs(30),
            calls_per_connection: 256,
            // A person's script, or a drill; not a loop gone wild.
            commands: Rate { per_second: 20, burst: 100 },
            // `kagectl watch` and a dashboard or two.
            looks: Rate { per_second: 200, burst: 1000 },
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
            drain: Duration::from_millis(500),
        }
    }
}

#[cfg(feature = "server")]
impl Limits {
    /// As many connections as a process with so many descriptors can have, and still open files and call others; strangers
    /// at most half of them.
    pub(crate) fn within(mut self, descriptors: usize) -> Self {
        self.connections = self.connections.min(descriptors / 4 * 3);
        self.handshakes = self.handshakes.min(self.connections / 2).max(1);
        self
    }
}

/// How often one caller may call: so many at once, and so many a second in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

/// Largest message that is read where nothing else is said: a lease's and the ledger's. A plan of 1,000 hosts is a tenth
/// of it.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Of commands and questions: the largest is a probe with 64 steps, or a vote on 4096 virtual IPs.
pub const MAX_COMMAND_BYTES: usize = 512 * 1024;
/// Of operators' commands to the coordinator.
pub const MAX_OPERATOR_BYTES: usize = 64 * 1024;
/// Of strangers: a token's secret and a signing request.
pub const MAX_ENROLMENT_BYTES: usize = 16 * 1024;

/// Callers of which the rate is remembered. Strangers come from any number of addresses.
#[cfg(feature = "server")]
pub(crate) const MAX_RATED: usize = 4096;

/// Audit lines of refusals in one second; what is above is counted, so that a flood of them fills no disk.
pub(crate) const AUDITED_REFUSALS_PER_SECOND: u32 = 50;

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;

    #[test]
    fn strangers_never_take_all_that_the_descriptors_allow() {
        let within = |descriptors| {
            let limits = Limits::default().within(descriptors);
            (limits.connections, limits.handshakes)
        };
        assert_eq!(within(8192), (4096, 1024));
        assert_eq!(within(1024), (768, 384));
        assert_eq!(within(usize::MAX), (4096, 1024));
    }
}
