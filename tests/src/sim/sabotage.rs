//! Every rule broken once, to prove that the checks would notice.

use super::checks::Failure;
use super::kernel::KernelSabotage;
use super::run::Options;
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
