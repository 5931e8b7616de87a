//! An operator's standing orders: what is not to be acted on, and by whose will.

use crate::{AgentId, IdError, TargetName};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Bytes of an order's reason: a line for people.
pub const REASON_LIMIT: usize = 256;

/// What an order covers. One order for each: a second replaces the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OrderScope {
    /// Everything: the cluster is disarmed.
    All,
    /// One target is in maintenance.
    Target(TargetName),
    /// One machine is in maintenance: every target on it, and it as a backup host.
    Agent(AgentId),
}

/// A scope that isn't one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderScopeError {
    /// No such word.
    #[error("{0:?} is no scope of an order: use all, target:NAME or agent:NAME")]
    Unknown(String),
    /// After the colon.
    #[error(transparent)]
    BadName(#[from] IdError),
}

impl FromStr for OrderScope {
    type Err = OrderScopeError;
    fn from_str(text: &str) -> Result<Self, OrderScopeError> {
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("target", name)) => Ok(Self::Target(name.parse()?)),
            Some(("agent", name)) => Ok(Self::Agent(name.parse()?)),
            Some(_) | None => Err(OrderScopeError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for OrderScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OrderScope::All => f.write_str("all"),
            OrderScope::Target(name) => write!(f, "target:{name}"),
            OrderScope::Agent(name) => write!(f, "agent:{name}"),
        }
    }
}

impl TryFrom<String> for OrderScope {
    type Error = OrderScopeError;
    fn try_from(text: String) -> Result<Self, OrderScopeError> {
        text.parse()
    }
}

impl From<OrderScope> for String {
    fn from(scope: OrderScope) -> String {
        scope.to_string()
    }
}

/// One standing order. Times are on the wall clock of whoever gave it, milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What it covers.
    pub scope: OrderScope,
    /// For people; may be empty.
    pub reason: String,
    /// Who gave it: role and name of the certificate.
    pub who: String,
    /// Since when.
    pub since_unix_ms: u64,
    /// It ends by itself then; none: when it is lifted.
    pub until_unix_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_written_and_read_back() {
        for text in ["all", "target:mail1", "agent:rs1"] {
            assert_eq!(text.parse::<OrderScope>().map(|scope| scope.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "mail1", "all:x", "group:g", "target:", "agent:-x", "target:a:b"] {
            assert!(text.parse::<OrderScope>().is_err(), "{text}");
        }
    }
}
