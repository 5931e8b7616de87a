//! What owners ask and coordinators answer.

use crate::{Epoch, Nonce, Term, Vip};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A VIP asked for, with the epoch it is asked under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AskVip {
    /// The address.
    pub vip: Vip,
    /// The epoch under which this agent was told to hold it.
    pub epoch: Epoch,
}

/// The coordinator's word on one VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Good until b + length.
    Granted,
    /// Not now.
    Wait,
    /// A higher epoch exists.
    Superseded,
}

/// One line of a [`Grant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantItem {
    /// The address.
    pub vip: Vip,
    /// The epoch asked under.
    pub epoch: Epoch,
    /// The answer.
    pub verdict: Verdict,
}

/// The coordinator's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Of the request.
    pub nonce: Nonce,
    /// Under which it was decided.
    pub term: Term,
    /// Is that term valid now?
    pub in_authority: bool,
    /// L, or the long lease's length.
    pub length: Duration,
    /// Per VIP.
    pub items: Vec<GrantItem>,
}
