//! Expect-style probes: say something to a service, see whether it answers as it should (thesis §2).
//!
//! Presets are the coordinator's: here are only steps. Each side of a conversation is bytes; patterns see every byte as
//! one character (U+0000 to U+00FF).

mod conversation;
mod link;

use conversation::Conversation;
use regex_lite::{Regex, RegexBuilder};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// A request with more steps is a mistake.
pub const MAX_STEPS: usize = 64;
/// Size of a compiled pattern and its depth: as the coordinator checks them.
const PATTERN_SIZE: usize = 256 * 1024;
const PATTERN_DEPTH: u32 = 32;
/// A service that says more before it says what is expected is taken to say the wrong thing.
const MAX_HEARD: usize = 16 * 1024;
/// Of what was heard, so much is reported.
const SHOWN_BYTES: usize = 200;

/// What carries the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A connection.
    Tcp,
    /// TLS, certificates not verified; asked for by this name.
    Tls(Option<String>),
    /// Datagrams.
    Udp,
}

/// One step of a probe.
#[derive(Clone, Debug)]
pub struct Step {
    /// Sent first; may be empty.
    pub send: Vec<u8>,
    /// Then read on until this matches.
    pub expect: Option<Regex>,
    /// If this matches instead, the reply is wrong at once.
    pub wrong: Option<Regex>,
    /// The longest wait, for sending and reply together.
    pub timeout: Duration,
}

/// What to ask, and how long to wait.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What carries it.
    pub transport: Transport,
    /// In this order, after the connection is made. None: the connection is all.
    pub steps: Vec<Step>,
    /// For connecting, TLS included.
    pub connect_timeout: Duration,
    /// For everything.
    pub deadline: Duration,
}

/// What was found (thesis: OK, ERROR, NG).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All went as expected.
    Ok,
    /// Something answers, but not what it should.
    Error,
    /// Nothing answers in time.
    Ng,
}

/// One step as it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepReport {
    /// What was tried, for people.
    pub step: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// The beginning of what was heard, escaped.
    pub heard: String,
}

/// A probe as it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Which step failed, and how; empty: none.
    pub detail: String,
    /// From the beginning to the last expected byte.
    pub took: Duration,
    /// All steps until it ended, connecting first.
    pub steps: Vec<StepReport>,
}

/// A pattern that can't be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "pattern {pattern:?} can't be used: give a regex-lite expression in ASCII, within {PATTERN_SIZE} bytes compiled"
)]
pub struct PatternError {
    /// As given.
    pub pattern: String,
    /// Where and why.
    pub source: regex_lite::Error,
}

/// Compile a pattern as the coordinator checks it: `^` and `$` match at line breaks, CRLF counts as one.
///
/// # Errors
/// A fault in it, or too large.
pub fn pattern(pattern: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern)
        .multi_line(true)
        .crlf(true)
        .size_limit(PATTERN_SIZE)
        .nest_limit(PATTERN_DEPTH)
        .build()
        .map_err(|source| PatternError { pattern: pattern.to_owned(), source })
}

impl Probe {
    /// Ask `target`. Whatever it does is a report.
    pub async fn run(&self, target: SocketAddr) -> Report {
        let begin = Instant::now();
        let mut conversation = Conversation::new(self, begin + self.deadline);
        let ended = conversation.hold(target).await;
        let took = begin.elapsed();
        let steps = conversation.end();
        match ended {
            Ok(()) => Report { outcome: Outcome::Ok, detail: String::new(), took, steps },
            Err((outcome, detail)) => Report { outcome, detail, took, steps },
        }
    }
}

/// The beginning of some bytes, for people.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let more = bytes.len() - cut.len();
    let text = cut.escape_ascii();
    if more == 0 { format!("\"{text}\"") } else { format!("\"{text}\" and {more} bytes more") }
}

#[cfg(test)]
mod tests;
