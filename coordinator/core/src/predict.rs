//! What a configuration promises, before it is applied: worst-case client outage per trouble, by the thesis's
//! (2.7)–(2.9) generalised to leases.

use crate::config::{Cluster, Guard, OnCoordinatorLoss};
use kage_types::LeaseTiming;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a takeover adds above detection and patience: epoch durable, double resumed, guard opened, GARP sent, and the
/// client's next try (design: goal 0.25 s).
const TAKEOVER: Duration = Duration::from_millis(250);
/// A planned move's gap: release acknowledged, then hold (design: goal 0.15 s).
const PLANNED: Duration = Duration::from_millis(150);

/// The report of `kagectl check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// thesis, normal, fast
    pub profile: String,
    /// L, K, R, g in milliseconds.
    pub timing: Timing,
    /// Per target.
    pub targets: Vec<TargetReport>,
    /// What is not protected, and what would.
    pub not_protected: Vec<String>,
    /// No fault found.
    pub ok: bool,
}

/// The five figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// L
    pub lease_ms: u64,
    /// K
    pub element_ms: u64,
    /// R
    pub renewal_ms: u64,
    /// g
    pub slack_ms: u64,
    /// ρ, as one in so many.
    pub drift_one_in: u64,
    /// K − R: a stall of an owner that costs nothing.
    pub stall_tolerance_ms: u64,
}

/// One target's promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    /// Its name.
    pub target: String,
    /// Per trouble.
    pub troubles: Vec<TroubleReport>,
    /// For people.
    pub notes: Vec<String>,
}

/// One trouble's prediction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleReport {
    /// host-lost, one-way-cut, agent-stalled, planned-move
    pub trouble: String,
    /// Usual client outage.
    pub outage_typical_ms: u64,
    /// Client outage in the worst phase.
    pub outage_worst_ms: u64,
    /// How it was computed.
    pub formula: String,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Predict for a checked configuration.
#[must_use]
pub fn predict(cluster: &Cluster) -> Report {
    let timing = cluster.timing;
    let detection = cluster.detection;
    let patience = LeaseTiming::patience(timing.lease);
    let mut not_protected = Vec::new();
    match cluster.on_coordinator_loss {
        OnCoordinatorLoss::Voters => {}
        OnCoordinatorLoss::Keep => not_protected.push(
            "on_coordinator_loss = \"keep\": a lost host is taken over only after proof (released or switched off); \
             three voters would allow takeover by patience"
                .into(),
        ),
        OnCoordinatorLoss::Lapse => not_protected.push(format!(
            "on_coordinator_loss = \"lapse\": all services stop within {:?} when the coordinator is away; three voters \
             would carry them",
            timing.lease
        )),
    }
    not_protected
        .push("the disks: data on a target's own disk is not moved; use shared storage or a stateless service".into());
    not_protected.push("SIF away: leases go on, but no takeover is possible until it is back".into());
    not_protected.push(
        "the coordinator's own machine also runs the doubles named there: both lost at once means no takeover".into(),
    );

    let targets = cluster
        .targets
        .iter()
        .map(|(name, target)| {
            let mut notes = Vec::new();
            let guard = cluster.agents.get(&target.agent).map_or(Guard::None, |machine| machine.guard);
            if guard == Guard::None {
                notes.push(format!("{} has no guard: takeover by release or proof only", target.agent));
            }
            if target.services.is_empty() {
                notes.push("no [[target.service]]: only the machine and its lease are watched".into());
            }
            TargetReport { target: name.to_string(), troubles: troubles(patience, &timing, &detection), notes }
        })
        .collect();
    Report {
        profile: cluster.profile.as_str().into(),
        timing: Timing {
            lease_ms: ms(timing.lease),
            element_ms: ms(timing.element),
            renewal_ms: ms(timing.renewal),
            slack_ms: ms(timing.slack),
            drift_one_in: 1000,
            stall_tolerance_ms: ms(timing.stall_tolerance()),
        },
        targets,
        not_protected,
        ok: true,
    }
}

fn troubles(patience: Duration, timing: &LeaseTiming, detection: &crate::config::Detection) -> Vec<TroubleReport> {
    // Confirmed when the lease has been silent for `confirm` and a check made since then, or under way, is bad.
    let check = detection.ping_timeout.max(detection.probe_timeout);
    let detect = if detection.push {
        detection.confirm.max(3 * timing.renewal + check) + check
    } else {
        detection.interval + check + check
    };
    // The last grant is at most R older than the trouble; detection runs beside patience.
    let lost_worst = patience.max(detect) + TAKEOVER;
    let lost_typical = patience.max(detect).saturating_sub(timing.renewal / 2) + TAKEOVER / 2;
    // An owner that can speak but not hear gets one more grant, and half a renewal's doubt.
    let one_way = patience.max(detect) + timing.renewal + timing.renewal / 2 + TAKEOVER;
    let row = |trouble: &str, typical: Duration, worst: Duration, formula: &str| TroubleReport {
        trouble: trouble.into(),
        outage_typical_ms: ms(typical),
        outage_worst_ms: ms(worst),
        formula: formula.into(),
    };
    vec![
        row("host lost, frozen or cut off", lost_typical, lost_worst, "max(L(1+2ρ), detection) + takeover; cf. (2.9)"),
        row("one-way cut", lost_typical + timing.renewal / 2, one_way, "max(L(1+2ρ), detection) + 1.5 R + takeover"),
        row("clean shutdown or reboot", PLANNED, PLANNED + TAKEOVER, "release + double resumed + takeover"),
        row("planned move, fail-back", PLANNED / 2, PLANNED, "release + hold"),
        row("owner stalled up to K - R", Duration::ZERO, Duration::ZERO, "the kernel's element outlives the stall"),
        row("coordinator or SIF away", Duration::ZERO, Duration::ZERO, "voters' consents carry the lease"),
    ]
}
