//! The few keys of `cluster.toml` that SIF needs. Other keys are the coordinator's, who checks them.

use kage_sif_core::Electorate;
use kage_types::AgentId;
use serde::Deserialize;
use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

/// Length of a term if `[sif] term` does not say: long against a restart of SIF (0.1 s), short against a wait (T + L)
/// after the coordinator is lost.
const TERM_DEFAULT: Duration = Duration::from_secs(5);

/// A shorter term ends during an ordinary stall of the disk.
const TERM_SHORTEST: Duration = Duration::from_secs(1);

/// A longer one makes every takeover after the loss of a coordinator wait for minutes.
const TERM_LONGEST: Duration = Duration::from_secs(60);

/// What SIF is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// T: a term is good for this long from when its coordinator asked.
    pub term: Duration,
    /// Whose reports establish a new ledger.
    pub electorate: Electorate,
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{file} can't be read: give the cluster's configuration with --config")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, or a key has the wrong type.
    #[error("{file} can't be understood: correct the line shown")]
    Parse {
        /// The file.
        file: String,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that SIF can't use.
    #[error("{file}: {key} = {value}: {next}")]
    Value {
        /// The file.
        file: String,
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// What it should be.
        next: String,
    },
}

#[derive(Deserialize)]
struct Keys {
    sif: SifKeys,
    #[serde(default)]
    agent: Vec<AgentKeys>,
}

#[derive(Deserialize)]
struct SifKeys {
    listen: SocketAddr,
    term: Option<String>,
}

#[derive(Deserialize)]
struct AgentKeys {
    name: AgentId,
    #[serde(default)]
    voter: bool,
}

impl Config {
    /// From `cluster.toml`.
    ///
    /// # Errors
    /// A file that can't be read, or a key SIF needs that is missing or wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { file: file.clone(), source })?;
        Self::parse(&file, &text)
    }

    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let keys: Keys = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { file: file.to_owned(), source: Box::new(source) })?;
        let fault = |key, value: &str, next: &str| ConfigError::Value {
            file: file.to_owned(),
            key,
            value: value.to_owned(),
            next: next.to_owned(),
        };
        let term = match &keys.sif.term {
            None => TERM_DEFAULT,
            Some(text) => duration(text)
                .filter(|term| (TERM_SHORTEST..=TERM_LONGEST).contains(term))
                .ok_or_else(|| fault("[sif] term", text, "give 1s to 60s, for example \"5s\""))?,
        };
        if keys.agent.is_empty() {
            return Err(fault(
                "[[agent]]",
                "(none)",
                "list the agents: without reports of theirs no term is ever given",
            ));
        }
        let mut names = BTreeSet::new();
        for agent in &keys.agent {
            if !names.insert(&agent.name) {
                return Err(fault("[[agent]] name", agent.name.as_str(), "listed twice: every agent has its own name"));
            }
        }
        let electorate = Electorate::new(keys.agent.into_iter().map(|agent| (agent.name, agent.voter)));
        Ok(Self { listen: keys.sif.listen, term, electorate })
    }
}

/// "500ms", "5s", "1m".
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit.trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_keys_are_left_to_the_coordinator() {
        let text = "name = 'x'\n[sif]\nlisten = '127.0.0.1:7'\nterm = '2500ms'\n[[agent]]\nname = 'a'\naddress = '10.0.0.1:1'\n";
        let config = Config::parse("cluster.toml", text).unwrap();
        assert_eq!(config.term, Duration::from_millis(2500));
        assert_eq!(config.electorate.missing([]), 1);
    }

    #[test]
    fn faults_name_the_key() {
        for (text, part) in [
            ("[sif]\nlisten = '1.2.3.4:5'\nterm = '0s'\n[[agent]]\nname='a'", "[sif] term = 0s"),
            ("[sif]\nlisten = '1.2.3.4:5'", "[[agent]]"),
            ("[sif]\nlisten = '1.2.3.4:5'\n[[agent]]\nname='a'\n[[agent]]\nname='a'", "listed twice"),
        ] {
            let error = Config::parse("cluster.toml", text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
