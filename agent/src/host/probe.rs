//! Expect-style probes: say something to a service, see whether it answers as it should.

use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout_at,
};

/// A service that says more before it says what is expected is taken to say the wrong thing.
const MAX_READ: usize = 64 * 1024;
/// Of a wrong answer, so much is reported.
const SHOWN_BYTES: usize = 200;

/// One step of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Send this.
    Send(String),
    /// Read on until this text turns up.
    Expect(String),
    /// The next line must match this pattern (`regex-lite` syntax).
    ExpectLine(String),
}

/// What to ask, and how long to wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// In this order, after the connection is made. None: the connection is all.
    pub steps: Vec<Step>,
    /// The longest silence within a step, connecting included.
    pub step_timeout: Duration,
    /// For everything.
    pub deadline: Duration,
}

/// What a probe found (thesis: OK, ERROR, NG).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum ProbeResult {
    /// All went as expected.
    Ok {
        /// From the beginning to the last expected byte.
        took: Duration,
    },
    /// ERROR: something answers, but not what it should.
    WrongReply {
        /// Number of the step, from 0.
        step: usize,
        /// The beginning of what it said.
        reply: String,
    },
    /// NG: nothing answers.
    NoReply {
        /// Number of the step, from 0; None: no connection.
        step: Option<usize>,
        /// "connection refused", "silent for 1s".
        cause: String,
    },
}

/// A probe that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The pattern has a fault.
    #[error("pattern {pattern:?} cannot be used")]
    Pattern {
        /// As given.
        pattern: String,
        /// Where and why.
        source: regex_lite::Error,
    },
    /// It would send something else than asked.
    #[error("{0:?} cannot be part of an HTTP request; leave out spaces and line breaks")]
    Http(String),
}

impl Probe {
    /// The port accepts a connection.
    #[must_use]
    pub fn tcp(timeout: Duration) -> Self {
        Self { steps: Vec::new(), step_timeout: timeout, deadline: timeout }
    }

    /// `GET path` is answered with a status of 200 to 399.
    ///
    /// # Errors
    /// [`ProbeError::Http`]: white space in host or path.
    pub fn http(host: &str, path: &str, timeout: Duration) -> Result<Self, ProbeError> {
        for part in [host, path] {
            if part.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(ProbeError::Http(part.to_owned()));
            }
        }
        let path = if path.is_empty() { "/" } else { path };
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kagemusha\r\nConnection: close\r\n\r\n");
        let steps = vec![Step::Send(request), Step::ExpectLine(r"^HTTP/1\.[01] [23]\d\d".to_owned())];
        Ok(Self { steps, step_timeout: timeout, deadline: timeout })
    }

    /// A mail server greets and answers HELO (RFC 5321 §4.1.1.1).
    #[must_use]
    pub fn smtp(timeout: Duration) -> Self {
        let steps = vec![
            Step::ExpectLine(r"^220[ -]".to_owned()),
            Step::Send("HELO kagemusha.invalid\r\n".to_owned()),
            Step::Expect("250".to_owned()),
            Step::Send("QUIT\r\n".to_owned()),
        ];
        Self { steps, step_timeout: timeout, deadline: timeout }
    }

    /// Asks `target`.
    ///
    /// # Errors
    /// [`ProbeError::Pattern`]; whatever the target does is a [`ProbeResult`].
    pub async fn run(&self, target: SocketAddr) -> Result<ProbeResult, ProbeError> {
        let patterns = self.steps.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
        let begin = Instant::now();
        let mut conversation = Conversation { heard: Vec::new(), read: 0, probe: self, end: begin + self.deadline };
        let ended = conversation.hold(target, &patterns).await;
        Ok(ended.err().unwrap_or_else(|| ProbeResult::Ok { took: begin.elapsed() }))
    }
}

fn pattern(step: &Step) -> Result<Option<Regex>, ProbeError> {
    match step {
        Step::ExpectLine(pattern) => {
            Regex::new(pattern).map(Some).map_err(|source| ProbeError::Pattern { pattern: pattern.clone(), source })
        }
        Step::Send(_) | Step::Expect(_) => Ok(None),
    }
}

struct Conversation<'probe> {
    /// Not yet consumed by a step.
    heard: Vec<u8>,
    read: usize,
    probe: &'probe Probe,
    end: Instant,
}

impl Conversation<'_> {
    async fn hold(&mut self, target: SocketAddr, patterns: &[Option<Regex>]) -> Result<(), ProbeResult> {
        let no_reply = |step, cause| ProbeResult::NoReply { step, cause };
        let mut stream = match timeout_at(self.limit(), TcpStream::connect(target)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(no_reply(None, error.to_string())),
            Err(_) => return Err(no_reply(None, self.silence())),
        };
        for (number, (step, pattern)) in self.probe.steps.iter().zip(patterns).enumerate() {
            match (step, pattern) {
                (Step::Send(text), _) => match timeout_at(self.limit(), stream.write_all(text.as_bytes())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Err(no_reply(Some(number), error.to_string())),
                    Err(_) => return Err(no_reply(Some(number), self.silence())),
                },
                (Step::Expect(text), _) => loop {
                    if let Some(at) = find(&self.heard, text.as_bytes()) {
                        self.heard.drain(..at + text.len());
                        break;
                    }
                    self.hear(&mut stream, number).await?;
                },
                (Step::ExpectLine(_), Some(pattern)) => {
                    let end = loop {
                        if let Some(at) = self.heard.iter().position(|byte| *byte == b'\n') {
                            break at + 1;
                        }
                        self.hear(&mut stream, number).await?;
                    };
                    let line = String::from_utf8_lossy(&self.heard[..end]).into_owned();
                    if !pattern.is_match(line.trim_end_matches(['\r', '\n'])) {
                        return Err(self.wrong(number));
                    }
                    self.heard.drain(..end);
                }
                (Step::ExpectLine(_), None) => {}
            }
        }
        Ok(())
    }

    /// Reads some more, or says why there is none.
    async fn hear(&mut self, stream: &mut TcpStream, step: usize) -> Result<(), ProbeResult> {
        let mut chunk = [0; 4096];
        let cause = match timeout_at(self.limit(), stream.read(&mut chunk)).await {
            Ok(Ok(0)) => "connection closed".to_owned(),
            Ok(Ok(read)) => {
                self.heard.extend_from_slice(&chunk[..read]);
                self.read += read;
                return if self.read > MAX_READ { Err(self.wrong(step)) } else { Ok(()) };
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => self.silence(),
        };
        Err(if self.heard.is_empty() { ProbeResult::NoReply { step: Some(step), cause } } else { self.wrong(step) })
    }

    fn limit(&self) -> tokio::time::Instant {
        self.end.min(Instant::now() + self.probe.step_timeout).into()
    }

    fn silence(&self) -> String {
        format!("silent for {:?}", self.probe.step_timeout.min(self.probe.deadline))
    }

    fn wrong(&self, step: usize) -> ProbeResult {
        let shown = &self.heard[..self.heard.len().min(SHOWN_BYTES)];
        ProbeResult::WrongReply { step, reply: String::from_utf8_lossy(shown).into_owned() }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() { Some(0) } else { text.windows(part.len()).position(|window| window == part) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(10);

    /// Says these lines, each after it has heard something (the first at once if `greets`).
    async fn server(greets: bool, lines: &'static [&'static str], hold: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut chunk = [0; 512];
            for (index, line) in lines.iter().enumerate() {
                if index > 0 || !greets {
                    assert!(stream.read(&mut chunk).await.expect("read") > 0);
                }
                // Byte by byte: the probe must put lines together.
                for byte in line.bytes() {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
            if hold {
                std::future::pending::<()>().await;
            }
            let _ = stream.read(&mut chunk).await;
        });
        address
    }

    #[tokio::test]
    async fn presets_find_good_services_good() {
        let address = server(false, &["HTTP/1.1 204 No Content\r\n\r\n"], true).await;
        let probe = Probe::http("www", "", LONG).expect("probe");
        assert!(matches!(probe.run(address).await.expect("run"), ProbeResult::Ok { .. }));
        let address = server(true, &["220-a\r\n220 b\r\n", "250 hello\r\n"], true).await;
        assert!(matches!(Probe::smtp(LONG).run(address).await.expect("run"), ProbeResult::Ok { .. }));
        let address = server(true, &[], true).await;
        assert!(matches!(Probe::tcp(LONG).run(address).await.expect("run"), ProbeResult::Ok { .. }));
    }

    #[tokio::test]
    async fn wrong_and_no_replies_are_told_apart() {
        let probe = Probe::http("www", "/", LONG).expect("probe");
        let begin = Instant::now();
        let address = server(false, &["HTTP/1.1 503 Busy\r\n"], true).await;
        let found = probe.run(address).await.expect("run");
        assert!(matches!(&found, ProbeResult::WrongReply { step: 1, reply } if reply.contains("503")), "{found:?}");
        assert!(begin.elapsed() < LONG, "a wrong line is told at once");

        let address = server(false, &[], true).await;
        let silent = Probe { step_timeout: SHORT, ..probe.clone() }.run(address).await.expect("run");
        assert!(matches!(silent, ProbeResult::NoReply { step: Some(1), .. }), "{silent:?}");

        let address = server(true, &["220"], true).await;
        let half = Probe::smtp(SHORT).run(address).await.expect("run");
        assert!(matches!(half, ProbeResult::WrongReply { step: 0, .. }), "{half:?}");

        let free = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
        let refused = Probe::tcp(LONG).run(free).await.expect("run");
        assert!(matches!(refused, ProbeResult::NoReply { step: None, .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn an_endless_reply_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let found = Probe::smtp(LONG).run(address).await.expect("run");
        assert!(matches!(found, ProbeResult::WrongReply { step: 0, .. }));
    }

    #[test]
    fn faults_of_configuration() {
        assert!(Probe::http("a b", "/", LONG).is_err() && Probe::http("a", "/\r\nX: y", LONG).is_err());
        assert!(pattern(&Step::ExpectLine("(".into())).is_err());
    }
}
