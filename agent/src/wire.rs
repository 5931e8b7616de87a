//! Between the contract's messages and the cores' values. What comes from outside is checked here.

use kage_agent_core::{AskVip, Assignment, Grant, GrantItem, LossReason, OnCoordinatorLoss, RenewedBy, Verdict};
use kage_proto::{
    agent::v1 as agent,
    coordinator::v1::{self as coordinator, VoterAddress},
};
use kage_types::{AgentId, Epoch, LeaseTiming, Nonce, Term, Vip};
use std::{borrow::Cow, collections::BTreeMap, time::Duration};

/// The most VIPs one agent is given; a longer list is a mistake.
const MAX_VIPS: usize = 4096;
/// The most voters: each is asked several times a second by a task of its own. Three or five are usual.
const MAX_VOTERS: usize = 256;

/// A message that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// An address, name or number in it.
    #[error("{what} is no good: {reason}")]
    Bad {
        /// Which field.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

fn bad(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> WireError {
    move |reason| WireError::Bad { what, reason: reason.to_string() }
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// Milliseconds, saturating.
#[must_use]
pub fn to_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// One VIP address.
///
/// # Errors
/// Not an address a service can have.
pub fn vip(text: &str) -> Result<Vip, WireError> {
    text.parse::<Vip>().map_err(|error| bad("vip")(&error))
}

/// The coordinator's description of the cluster, with its term.
///
/// # Errors
/// An address, a name or timings that could not keep one owner.
pub fn assignment(wire: &coordinator::Assignment) -> Result<(Term, Assignment), WireError> {
    if wire.vips.len() > MAX_VIPS {
        return Err(bad("vips")(&format!("{} of them, at most {MAX_VIPS}", wire.vips.len())));
    }
    if wire.voters.len() > MAX_VOTERS {
        return Err(bad("voters")(&format!("{} of them, at most {MAX_VOTERS}", wire.voters.len())));
    }
    let timing = LeaseTiming {
        lease: millis(wire.lease_ms),
        element: millis(wire.element_ms),
        renewal: millis(wire.renewal_ms),
        slack: millis(wire.slack_ms),
        long_lease: millis(wire.long_lease_ms),
    };
    timing.check().map_err(|error| bad("timing")(&error))?;
    let voter = |voter: &VoterAddress| {
        let name = AgentId::new(voter.agent.as_str()).map_err(|error| bad("voter")(&error))?;
        Ok((name, voter.address.clone()))
    };
    let on_coordinator_loss = match wire.on_coordinator_loss.as_str() {
        "voters" => OnCoordinatorLoss::Voters,
        "keep" => OnCoordinatorLoss::Keep,
        "lapse" => OnCoordinatorLoss::Lapse,
        other => return Err(bad("on_coordinator_loss")(&format!("{other:?} is none of voters, keep, lapse"))),
    };
    let assignment = Assignment {
        vips: wire.vips.iter().map(|text| vip(text)).collect::<Result<_, _>>()?,
        timing,
        voters: wire.voters.iter().map(voter).collect::<Result<BTreeMap<_, _>, WireError>>()?,
        on_coordinator_loss,
    };
    Ok((Term(wire.term), assignment))
}

/// The VIPs of a question.
///
/// # Errors
/// Not an address, or too many.
pub fn asks(wire: &[agent::AskVip]) -> Result<Vec<AskVip>, WireError> {
    if wire.len() > MAX_VIPS {
        return Err(bad("vips")(&format!("{} of them, at most {MAX_VIPS}", wire.len())));
    }
    wire.iter().map(|ask| Ok(AskVip { vip: vip(&ask.vip)?, epoch: Epoch(ask.epoch) })).collect()
}

/// The VIPs of a question, for sending.
#[must_use]
pub fn to_asks(asks: &[AskVip]) -> Vec<agent::AskVip> {
    asks.iter().map(|ask| agent::AskVip { vip: ask.vip.to_string(), epoch: ask.epoch.0 }).collect()
}

/// A grant. A line about something that is no VIP is left out: it can't be one that was asked for.
#[must_use]
pub fn grant(wire: &agent::Grant) -> Grant {
    let item = |item: &agent::GrantItem| {
        let verdict = match item.verdict() {
            agent::grant_item::Verdict::Granted => Verdict::Granted,
            agent::grant_item::Verdict::Superseded => Verdict::Superseded,
            agent::grant_item::Verdict::Wait | agent::grant_item::Verdict::Unspecified => Verdict::Wait,
        };
        Some(GrantItem { vip: vip(&item.vip).ok()?, epoch: Epoch(item.epoch), verdict })
    };
    Grant {
        nonce: Nonce(wire.nonce),
        term: Term(wire.term),
        in_authority: wire.in_authority,
        length: millis(wire.length_ms),
        items: wire.items.iter().filter_map(item).collect(),
    }
}

/// As an event tells it.
#[must_use]
pub fn loss(reason: &LossReason) -> Cow<'static, str> {
    match reason {
        LossReason::Lapsed => "lapsed".into(),
        LossReason::Superseded => "superseded".into(),
        LossReason::Released => "released".into(),
        LossReason::ClockJumped => "clock-jumped".into(),
        // The coordinator knows it by its beginning.
        LossReason::SwitchedOver(to) => format!("switched over to {to}").into(),
    }
}

/// As status tells it.
#[must_use]
pub fn renewed_by(by: Option<RenewedBy>) -> &'static str {
    match by {
        Some(RenewedBy::Coordinator) => "coordinator",
        Some(RenewedBy::Relay) => "relay",
        Some(RenewedBy::Voters) => "voters",
        Some(RenewedBy::Keep) => "keep",
        None => "none",
    }
}

/// As status and log tell it.
#[must_use]
pub fn loss_policy(policy: OnCoordinatorLoss) -> &'static str {
    match policy {
        OnCoordinatorLoss::Voters => "voters",
        OnCoordinatorLoss::Keep => "keep",
        OnCoordinatorLoss::Lapse => "lapse",
    }
}
