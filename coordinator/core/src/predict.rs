//! What a configuration promises, before it is applied: worst-case client outage per trouble, by the thesis's
//! (2.7)–(2.9) generalised to leases.

mod thesis;

use crate::{
    characteristics::{Characteristics, Figures},
    config::{Cluster, Detection, Guard, OnCoordinatorLoss},
};
use kage_types::LeaseTiming;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};

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
    /// St1 … Nt2 of the thesis; host lost, one-way cut, planned move …
    pub trouble: String,
    /// Recovery of server function: from detection to the backup server's answer; none: there is no such recovery.
    pub function_ms: Option<Range>,
    /// Recovery of the target server: from detection to its own answer on its VIP.
    pub target_ms: Option<Range>,
    /// Usual client outage; none: not predicted.
    pub outage_typical_ms: Option<u64>,
    /// Client outage in the worst phase.
    pub outage_worst_ms: Option<u64>,
    /// How it was computed.
    pub formula: String,
    /// Figures without which something here is not predicted.
    pub not_characterised: Vec<String>,
}

/// A predicted time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// With trouble in the middle of the interval and median figures.
    pub typical: u64,
    /// With trouble in the worst phase and the worst figures measured.
    pub worst: u64,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Predict for a checked configuration, from what was measured of its targets.
#[must_use]
pub fn predict(cluster: &Cluster, characteristics: &Characteristics) -> Report {
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
    for (name, target) in &cluster.targets {
        if let Some(service) = target.writers().and_then(|writers| writers.unfenced) {
            not_protected.push(format!(
                "{name}: {service} is single_writer without writer_fence: a machine that is lost or cut off is not taken \
                 over without release or proof of power"
            ));
        }
    }
    not_protected.push("SIF away: leases go on, but no takeover is possible until it is back".into());
    not_protected.push(
        "the coordinator's own machine also runs the doubles named there: both lost at once means no takeover".into(),
    );

    let nothing = Figures::default();
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
            let machine = cluster.agents.get(&target.agent).filter(|_| target.vm.is_none());
            if machine.is_some_and(|machine| machine.mac.is_none()) {
                notes.push(format!("{} has no mac: once it is off it must be switched on by hand", target.agent));
            }
            let figures = characteristics.targets.get(name).unwrap_or(&nothing);
            let mut troubles = thesis::troubles(patience, cluster.profile, &detection, target, figures);
            let check = detection.ping_timeout.max(target.longest_silence(cluster.profile, &detection));
            troubles.extend(others(patience, &timing, &detection, check, figures));
            let missing: BTreeSet<&str> =
                troubles.iter().flat_map(|row| &row.not_characterised).map(String::as_str).collect();
            if !missing.is_empty() {
                let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
                notes.push(format!("not characterised: {missing}; run kagectl characterise {name}"));
            }
            TargetReport { target: name.to_string(), troubles, notes }
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

/// What the lease promises, whatever was measured; a double that is known to be slow makes it worse. `check` is the
/// longest that a ping or a probe waits for a machine that has fallen silent.
fn others(
    patience: Duration,
    timing: &LeaseTiming,
    detection: &Detection,
    check: Duration,
    figures: &Figures,
) -> Vec<TroubleReport> {
    let tvs = figures.tvs.as_ref().map_or(Duration::ZERO, |tvs| Duration::from_millis(tvs.worst_ms));
    let takeover = TAKEOVER.max(tvs);
    // Confirmed when the lease has been silent for `confirm` and a check made since then, or under way, is bad.
    let detect = if detection.push {
        detection.confirm.max(3 * timing.renewal + check) + check
    } else {
        detection.interval + check + check
    };
    // The last grant is at most R older than the trouble; detection runs beside patience.
    let lost_worst = patience.max(detect) + takeover;
    let lost_typical = patience.max(detect).saturating_sub(timing.renewal / 2) + takeover / 2;
    // An owner that can speak but not hear gets one more grant, and half a renewal's doubt.
    let one_way = patience.max(detect) + timing.renewal + timing.renewal / 2 + takeover;
    let row = |trouble: &str, typical: Duration, worst: Duration, formula: &str| TroubleReport {
        trouble: trouble.into(),
        function_ms: None,
        target_ms: None,
        outage_typical_ms: Some(ms(typical)),
        outage_worst_ms: Some(ms(worst)),
        formula: formula.into(),
        not_characterised: Vec::new(),
    };
    // Without the hand-over a clean stop is found like a lost machine.
    let (clean_typical, clean_worst, clean) = if detection.push {
        (PLANNED, PLANNED + takeover, "release + double resumed + takeover")
    } else {
        (lost_typical, lost_worst, "as a lost host: this profile hands nothing over")
    };
    vec![
        row("host lost, frozen or cut off", lost_typical, lost_worst, "max(L(1+2ρ), detection) + takeover; cf. (2.9)"),
        row("one-way cut", lost_typical + timing.renewal / 2, one_way, "max(L(1+2ρ), detection) + 1.5 R + takeover"),
        row("clean shutdown or reboot", clean_typical, clean_worst, clean),
        row("planned move, fail-back", PLANNED / 2, PLANNED, "release + hold"),
        row("owner stalled up to K - R", Duration::ZERO, Duration::ZERO, "the kernel's element outlives the stall"),
        row("coordinator or SIF away", Duration::ZERO, Duration::ZERO, "voters' consents carry the lease"),
    ]
}

#[cfg(test)]
mod tests;
