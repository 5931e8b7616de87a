//! Every rule broken once, to prove that the checks would notice.

use super::checks::{Broken, Failure, PROMISES};
use super::kernel::KernelSabotage;
use super::run::Options;
use super::scenario::Scenario;
use super::search::search;
use super::world::Sabotage;

/// All of them, with the rule of docs/safety.md that each breaks.
pub const ALL: [(&str, Sabotage); 10] = [
    ("grant counted from receipt (rule 2)", Sabotage::Agent(kage_agent_core::Sabotage::GrantFromReceipt)),
    ("unconditional renewal (rule 3)", Sabotage::Kernel(KernelSabotage::UnconditionalRenewal)),
    ("live without armed (rule 3)", Sabotage::Kernel(KernelSabotage::LiveWithoutArmed)),
    ("add taken for refresh (rule 3)", Sabotage::Kernel(KernelSabotage::AddTakenForRefresh)),
    ("keep without majority (rule 6)", Sabotage::Agent(kage_agent_core::Sabotage::KeepWithoutMajority)),
    ("patience without bars (rule 6)", Sabotage::Coordinator(kage_coordinator_core::Sabotage::PatienceWithoutBars)),
    ("no wait after a new term (rule 7)", Sabotage::Coordinator(kage_coordinator_core::Sabotage::NoWaitAfterNewTerm)),
    (
        "guard opened before the epoch is durable (rule 5)",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::OpenBeforeDurable),
    ),
    (
        "release acknowledged before its term is durable (rule 7)",
        Sabotage::Agent(kage_agent_core::Sabotage::ReleaseBeforeDurable),
    ),
    ("SIF answers before the disk (rule 5)", Sabotage::Sif(kage_sif_core::Sabotage::ReplyBeforeDurable)),
];

/// Rules that the random search does not look at: the promise, the scenario of `tests/scenarios` that notices.
pub const SCENARIOS: [(&str, Sabotage, Broken, &str); 4] = [
    (
        "no storm brake",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::NoStormBrake),
        Broken::Storm,
        "half-dark.toml",
    ),
    (
        "orders ignored",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::OrdersIgnored),
        Broken::Withheld,
        "maintenance.toml",
    ),
    (
        "opened before the double runs",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::OpenBeforeDoubleRuns),
        Broken::DoubleAsleep,
        "libvirt-hangs.toml",
    ),
    (
        "stranger ignored",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::StrangerIgnored),
        Broken::StrangerIgnored,
        "stranger.toml",
    ),
];

/// A sabotage by words of its name.
#[must_use]
pub fn named(words: &str) -> Option<Sabotage> {
    let all = ALL.iter().map(|(name, broken)| (name, broken));
    let scenarios = SCENARIOS.iter().map(|(name, broken, ..)| (name, broken));
    all.chain(scenarios).find(|(name, _)| name.contains(words)).map(|(_, broken)| *broken)
}

/// The first seed by which this scenario notices it, within so many, and how.
#[must_use]
pub fn noticed(scenario: &Scenario, sabotage: Sabotage, promise: Broken, seeds: u64) -> Option<(u64, String)> {
    let (_, name, _) = PROMISES.iter().find(|(broken, ..)| *broken == promise)?;
    (1..=seeds).find_map(|seed| {
        let (outcome, _) = super::scenario::run(scenario, seed, Some(sabotage), 0).ok()?;
        let broken = outcome.promises.into_iter().find(|promise| promise.name == *name)?;
        Some((seed, broken.broken_by?))
    })
}

/// The first seed that catches it, within so many, and how.
#[must_use]
pub fn caught(sabotage: Sabotage, options: &Options, seeds: u64, jobs: usize) -> Option<(u64, Failure)> {
    let options = Options { sabotage: Some(sabotage), ..*options };
    // In slices: the first seed is wanted, not all of them.
    let slice = 16;
    (0..seeds.div_ceil(slice)).find_map(|index| {
        let first = 1 + index * slice;
        search(first, (first + slice - 1).min(seeds), &options, jobs, false).0.failure
    })
}
