//! ICMP echo.

use serde::{Deserialize, Serialize};
use std::{
    io,
    net::IpAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};
use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence, SurgeError};
use tokio::{task::JoinSet, time::timeout_at};

/// More in one request is a flood.
const MAX_COUNT: u16 = 100;
/// As `ping` sends.
const PAYLOAD: [u8; 56] = [0x6b; 56];

/// A series of echo requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// Requests at most.
    pub count: u16,
    /// From one request to the next.
    pub interval: Duration,
    /// Wait for each answer.
    pub timeout: Duration,
    /// After so many answers the series is over; None: all are sent and awaited.
    pub enough: Option<u16>,
    /// All is over then.
    pub deadline: Option<Duration>,
}

/// The answers to a series of echo requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingReport {
    /// Round-trip time of each request in the order of sending; None: no answer in time.
    pub round_trips: Vec<Option<Duration>>,
}

impl PingReport {
    /// Requests sent.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.round_trips.len()
    }

    /// Answers received.
    #[must_use]
    pub fn received(&self) -> usize {
        self.round_trips.iter().flatten().count()
    }

    /// Share of requests without an answer, 0.0 to 1.0.
    #[must_use]
    pub fn loss(&self) -> f64 {
        let lost = self.sent() - self.received();
        if self.sent() == 0 { 0.0 } else { lost as f64 / self.sent() as f64 }
    }
}

/// Why nothing could be sent. Silence of the other side is no error.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// Neither raw nor datagram ICMP sockets are allowed.
    #[error("not allowed to send ICMP; give kage-agent CAP_NET_RAW, or its group net.ipv4.ping_group_range")]
    NotAllowed(#[source] io::Error),
    /// No socket for another reason (no IPv6, say).
    #[error("cannot open an ICMP socket")]
    Socket(#[source] io::Error),
    /// Too many in one request, or none.
    #[error("a ping of {0} requests; give 1 to {MAX_COUNT}")]
    Count(u16),
}

/// An ICMP socket of each family, opened when needed.
#[derive(Default)]
pub struct Pinger {
    v4: Option<Client>,
    v6: Option<Client>,
}

impl Pinger {
    /// Must be used within one tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends the series and waits for the answers. A request that can't be sent (no route, host unreachable) counts as
    /// unanswered.
    ///
    /// # Errors
    /// [`PingError`].
    pub async fn ping(&mut self, target: IpAddr, series: Series) -> Result<PingReport, PingError> {
        // One identifier per request: an answer to an earlier series is never taken for ours.
        static IDENTIFIER: AtomicU16 = AtomicU16::new(0);
        let Series { count, interval, timeout, enough, deadline } = series;
        if count == 0 || count > MAX_COUNT {
            return Err(PingError::Count(count));
        }
        let client = self.client(target)?;
        let begun = Instant::now();
        // Dropped with the requests still under way.
        let mut requests = JoinSet::new();
        for index in 0..count {
            let own = std::process::id().to_le_bytes();
            let identifier = IDENTIFIER.fetch_add(1, Ordering::Relaxed) ^ u16::from_le_bytes([own[0], own[1]]);
            let mut pinger = client.pinger(target, PingIdentifier(identifier)).await;
            pinger.timeout(timeout);
            requests.spawn(async move {
                tokio::time::sleep_until((begun + interval * u32::from(index)).into()).await;
                (index, pinger.ping(PingSequence(index), &PAYLOAD).await)
            });
        }
        let mut round_trips = vec![None; usize::from(count)];
        let mut answered = 0;
        let end = deadline.map(|deadline| begun + deadline);
        loop {
            let next = requests.join_next();
            let done = match end {
                Some(end) => timeout_at(end.into(), next).await.unwrap_or(None),
                None => next.await,
            };
            match done {
                Some(Ok((index, Ok((_, round_trip))))) => {
                    round_trips[usize::from(index)] = Some(round_trip);
                    answered += 1;
                }
                Some(Ok((_, Err(SurgeError::IOError(error))))) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(PingError::NotAllowed(error));
                }
                Some(Ok((_, Err(error)))) => tracing::debug!(%target, %error, "ping"),
                Some(Err(error)) => tracing::error!(%error, "a ping's task"),
                None => break,
            }
            if enough.is_some_and(|enough| answered >= enough) {
                break;
            }
        }
        // Those whose turn had come.
        let due = begun.elapsed().as_nanos() / interval.as_nanos().max(1) + 1;
        round_trips.truncate(usize::try_from(due).unwrap_or(usize::MAX));
        Ok(PingReport { round_trips })
    }

    fn client(&mut self, target: IpAddr) -> Result<Client, PingError> {
        let (kept, kind) = match target {
            IpAddr::V4(_) => (&mut self.v4, ICMP::V4),
            IpAddr::V6(_) => (&mut self.v6, ICMP::V6),
        };
        if let Some(client) = kept {
            return Ok(client.clone());
        }
        let client = Client::new(&Config::builder().kind(kind).build()).map_err(|error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            if denied { PingError::NotAllowed(error) } else { PingError::Socket(error) }
        })?;
        *kept = Some(client.clone());
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const SERIES: Series = Series { count: 3, interval: ms(10), timeout: ms(1000), enough: None, deadline: None };

    #[tokio::test]
    async fn loopback_answers() {
        let mut pinger = Pinger::new();
        for target in ["127.0.0.1", "::1"] {
            let target: IpAddr = target.parse().expect("address");
            if target.is_ipv6() && std::net::TcpListener::bind("[::1]:0").is_err() {
                println!("skipped: no IPv6 here");
                continue;
            }
            match pinger.ping(target, SERIES).await {
                Err(PingError::NotAllowed(error)) => println!("skipped: {error}"),
                report => {
                    let report = report.expect("ping");
                    assert_eq!((report.sent(), report.received(), report.loss()), (3, 3, 0.0));
                }
            }
        }
        let none = Series { count: 0, ..SERIES };
        assert!(matches!(pinger.ping(IpAddr::from([127, 0, 0, 1]), none).await, Err(PingError::Count(0))));
    }

    #[tokio::test]
    async fn one_answer_is_enough() {
        let mut pinger = Pinger::new();
        let once = Series { count: 5, interval: ms(200), enough: Some(1), deadline: Some(ms(1000)), ..SERIES };
        let begun = Instant::now();
        match pinger.ping(IpAddr::from([127, 0, 0, 1]), once).await {
            Err(PingError::NotAllowed(error)) => return println!("skipped: {error}"),
            report => assert_eq!(report.expect("ping").received(), 1),
        }
        assert!(begun.elapsed() < ms(200), "no wait for the second request");
    }
}
