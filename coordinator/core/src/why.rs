//! Why a target was taken over, or was not: from a journal, every observation with its source, the rule that was applied,
//! the arithmetic of the lease, and the milliseconds of each stage.
//!
//! The journal is replayed ([`crate::replay`]) while a [`Watch`](crate::replay::Watch) looks at what goes in and out of the
//! core and at its state. Nothing here decides anything.

mod find;
mod moves;
mod rules;
mod story;
mod text;

pub use find::{Finder, explain};

use crate::{config::Cluster, replay::Moment};
use kage_types::TargetName;
use serde::{Deserialize, Serialize};

/// What is to be explained.
#[derive(Clone, Debug)]
pub struct Question {
    /// A target, one of its virtual IPs, or a service that only one target has.
    pub name: String,
    /// What was going on then; none: the last that happened.
    pub at: Option<Moment>,
}

/// How it ended, or how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It failed, its double serves or served.
    TakenOver,
    /// Its double is on its way.
    BeingTakenOver,
    /// The operator's doing.
    MovedByOperator,
    /// It looked lost, and was left alone.
    NotTakenOver,
    /// A restart was enough.
    Cured,
    /// It looked bad, and was well.
    FalseAlarm,
    /// Its virtual IPs were put in their place, or put back.
    Placed,
    /// Still being looked at.
    Undecided,
    /// Nothing happened to it.
    Quiet,
}

/// Who said something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from", content = "name")]
pub enum Source {
    /// Its lease: requests, or their absence.
    Lease,
    /// An echo request.
    Ping,
    /// A service's probe.
    Probe(String),
    /// An agent's report, or the answer to a command.
    Agent(String),
    /// The reading of a machine's power.
    Power,
    /// A command that revokes access to the storage.
    Storage,
    /// A voter's bar.
    Voter(String),
    /// The ledger.
    Sif,
    /// A person.
    Operator,
    /// This coordinator's own decision.
    Decision,
}

/// One line of the story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds after the story's beginning; negative: before.
    pub ms: f64,
    /// Wall clock, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_ms: Option<u64>,
    /// The event's number in the journal.
    pub seq: u64,
    /// Whose word it is.
    pub source: Source,
    /// For people.
    pub text: String,
    /// The kind of note, for decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The rule that was applied: a name of [`Explanation::rules`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The same once more, so many times, the last at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<(u32, f64)>,
}

/// A rule that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Short.
    pub name: String,
    /// In docs/safety.md, or a page named.
    pub text: String,
}

/// A step of a move, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Which.
    pub name: String,
    /// When it was reached, milliseconds after the story's beginning.
    pub ms: f64,
    /// Since the stage before.
    pub took_ms: f64,
}

/// How a virtual IP came free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freed {
    /// Rule 5a.
    Release,
    /// Rule 5b.
    Proof,
    /// Rule 5c.
    Patience,
}

/// A virtual IP changed hands, or was on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveStory {
    /// Which.
    pub vip: String,
    /// takeover, failover, failback, first
    pub cause: String,
    /// Its owner before, with its epoch.
    pub from: String,
    /// Its new owner.
    pub to: String,
    /// Its new epoch; none: not durable.
    pub epoch: Option<u64>,
    /// None: not yet.
    pub freed: Option<Freed>,
    /// It ended: the new owner serves.
    pub done: bool,
    /// The arithmetic of the lease, a line each.
    pub lease: Vec<String>,
    /// What it still waits for, when the journal ends before the move does.
    pub waits_for: Vec<String>,
    /// Milliseconds per stage.
    pub stages: Vec<Stage>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// About which.
    pub target: TargetName,
    /// How it ended.
    pub outcome: Outcome,
    /// One sentence or two.
    pub summary: String,
    /// The story's beginning, on the coordinator's CLOCK_BOOTTIME, in milliseconds.
    pub clock_ms: f64,
    /// The same on the wall clock, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_ms: Option<u64>,
    /// How long it lasted; none: it lasts.
    pub lasted_ms: Option<f64>,
    /// What there is to be known beside: a journal that begins too late, what was left out.
    pub remarks: Vec<String>,
    /// What was seen and decided, in order.
    pub entries: Vec<Entry>,
    /// The virtual IPs' moves.
    pub moves: Vec<MoveStory>,
    /// The rules that were applied.
    pub rules: Vec<Rule>,
    /// Earlier ones: when they began, and how they ended.
    pub earlier: Vec<Earlier>,
}

/// Another story of the same target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// Number of its first event: `--at` takes it.
    pub seq: u64,
    /// Wall clock, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_ms: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// The target that is meant.
///
/// # Errors
/// In words, with the names there are.
pub fn resolve(cluster: &Cluster, name: &str) -> Result<TargetName, String> {
    if let Some((target, _)) = cluster.targets.iter().find(|(target, _)| target.as_str() == name) {
        return Ok(target.clone());
    }
    let offers = |target: &crate::config::Target| {
        target.services.iter().any(|service| service.name.as_str() == name)
            || target.vips.iter().any(|vip| vip.to_string() == name)
    };
    let found: Vec<&TargetName> =
        cluster.targets.iter().filter(|(_, target)| offers(target)).map(|(name, _)| name).collect();
    let list = |names: &[&TargetName]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    match found[..] {
        [one] => Ok(one.clone()),
        [] => {
            let known: Vec<&TargetName> = cluster.targets.keys().collect();
            Err(format!("there is no target, service or virtual IP {name:?}; targets: {}", list(&known)))
        }
        _ => Err(format!("several targets have a service {name}: {}; say which target", list(&found))),
    }
}
