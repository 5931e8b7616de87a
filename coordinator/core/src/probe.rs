//! Service probes: what is said to a service, and what it must answer (thesis §2: an expect script).
//!
//! The agent that looks knows no presets: it is sent the steps. Patterns are `regex-lite` on both sides, applied to
//! bytes as if each were one character (U+0000 to U+00FF), so that `\xff` is a byte.

mod escape;
mod file;
mod preset;

pub use escape::{escape, unescape};
pub use file::{Fault, FileProbe, FileStep};
pub use preset::{PRESETS, Preset, listing, table, times};

use crate::config::Detection;
use kage_types::Profile;
use regex_lite::RegexBuilder;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

/// More steps are no probe but a session.
pub const MAX_STEPS: usize = 32;
/// What one step sends: a request, not an upload.
pub const MAX_SEND: usize = 4096;
/// Length of one pattern.
pub const MAX_PATTERN: usize = 1024;
/// Size of a compiled pattern, in bytes; the agent has the same limit.
pub const PATTERN_SIZE: usize = 256 * 1024;
/// Depth of a pattern; the agent has the same limit.
pub const PATTERN_DEPTH: u32 = 32;
/// A probe that lasts longer says nothing about now.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// What carries the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A TCP connection.
    #[default]
    Tcp,
    /// TLS over TCP. The certificate is not verified: the question is whether the service serves.
    Tls,
    /// Datagrams; what a step sends is repeated until it is answered.
    Udp,
}

/// Send something, then wait for something; either may be missing, not both.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Step {
    /// Sent first.
    pub send: Vec<u8>,
    /// Then read on until this matches. Lines: `^` and `$` match at line breaks, CRLF counts as one.
    pub expect: Option<String>,
    /// If this matches while `expect` does not, the reply is wrong at once, not when the time is over.
    pub wrong: Option<String>,
    /// Instead of the usual.
    pub timeout: Option<Duration>,
}

/// A checked probe.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Probe {
    /// Name of the preset it was made from; empty: written by hand.
    pub preset: String,
    /// What carries it.
    pub transport: Transport,
    /// The name asked for in a TLS handshake (SNI); empty: none.
    pub server_name: String,
    /// In this order, once connected. None: the connection is all.
    pub steps: Vec<Step>,
    /// For all of it, instead of the profile's.
    pub timeout: Option<Duration>,
}

/// How long a probe may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Connecting, and each step without a time-out of its own.
    pub step: Duration,
    /// All of it.
    pub total: Duration,
    /// Connecting, if that must be quicker than a step. Absent in journals of before it was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
}

impl Limits {
    /// Connecting.
    #[must_use]
    pub fn connecting(&self) -> Duration {
        self.connect.unwrap_or(self.step)
    }

    /// Of a machine whose lease is silent: a service may take its time to answer, but the kernel beneath it takes a
    /// connection at once or is not there.
    #[must_use]
    pub fn of_silent_machine(self, detection: &Detection) -> Self {
        let connect = detection.probe_timeout;
        Self { connect: (connect < self.step).then_some(connect), ..self }
    }
}

impl Probe {
    /// Its time-outs under a profile. Thesis: each step has its own 3 s. Else all of it has `probe_timeout`, unless
    /// steps have time-outs of their own, which then add up.
    #[must_use]
    pub fn limits(&self, profile: Profile, detection: &Detection) -> Limits {
        let step = self.timeout.unwrap_or(detection.probe_timeout);
        let own = self.steps.iter().any(|step| step.timeout.is_some());
        let sum = || {
            let waits = self.steps.iter().filter(|step| step.expect.is_some() || step.timeout.is_some());
            step + waits.map(|wait| wait.timeout.unwrap_or(step)).sum::<Duration>()
        };
        let total = match (self.timeout, profile) {
            (Some(total), _) => total,
            (None, Profile::Thesis) => sum(),
            (None, Profile::Normal | Profile::Fast) if own => sum(),
            (None, Profile::Normal | Profile::Fast) => step,
        };
        Limits { step: step.min(MAX_TIMEOUT), total: total.min(MAX_TIMEOUT), connect: None }
    }

    /// The longest it waits for one answer: what it adds to the detection of a machine that falls silent meanwhile.
    #[must_use]
    pub fn longest_wait(&self, profile: Profile, detection: &Detection) -> Duration {
        let Limits { step, total, connect: _ } = self.limits(profile, detection);
        let own = self.steps.iter().filter_map(|step| step.timeout).max();
        own.map_or(step, |own| own.max(step)).min(total)
    }

    /// The longest it waits for a machine whose lease is silent, and which is not there: for its connection, or for an
    /// answer where there is none to be made.
    #[must_use]
    pub fn longest_silence(&self, profile: Profile, detection: &Detection) -> Duration {
        match self.transport {
            Transport::Tcp | Transport::Tls => {
                self.limits(profile, detection).of_silent_machine(detection).connecting()
            }
            Transport::Udp => self.longest_wait(profile, detection),
        }
    }

    /// As status and listings name it.
    #[must_use]
    pub fn name(&self) -> &str {
        if self.preset.is_empty() { "steps" } else { &self.preset }
    }
}

/// An address as an HTTP request names it (RFC 3986 §3.2.2).
#[must_use]
pub fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Can this pattern be used, by the agent as well?
///
/// # Errors
/// One sentence.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("a pattern of {} bytes is too long: at most {MAX_PATTERN}", pattern.len()));
    }
    if let Some(other) = pattern.chars().find(|c| !c.is_ascii()) {
        let bytes: String = other.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect();
        return Err(format!("patterns are ASCII; write {other:?} as its bytes, '{bytes}' in UTF-8"));
    }
    let regex = RegexBuilder::new(pattern)
        .multi_line(true)
        .crlf(true)
        .size_limit(PATTERN_SIZE)
        .nest_limit(PATTERN_DEPTH)
        .build()
        .map_err(|error| format!("no regular expression: {error}"))?;
    if regex.is_match("") {
        return Err("it matches silence; give something that must be said".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
