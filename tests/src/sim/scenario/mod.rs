//! Scenarios: a written-down history of faults and operator's commands over the same world, with what is expected of it
//! (format: docs/simulation.md).

mod event;
mod expect;
pub mod json;
pub mod keys;
mod lines;
mod places;
mod read;
mod run;
mod what;

use super::checks::Broken;
use super::clock::Ns;
use kage_coordinator_core::config::Cluster;
use kage_types::{AgentId, TargetName};
use std::collections::{BTreeMap, BTreeSet};

pub(super) use expect::Seen as expect_seen;
pub use expect::{Expect, Wanted};
pub use read::load;
pub use run::run;
pub use what::{Libvirt, Operator, What};

/// A checked scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its file.
    pub file: String,
    /// For people.
    pub name: String,
    /// Unless another is asked for.
    pub seed: u64,
    /// From the time when all is well to the end.
    pub duration: Ns,
    /// How it must be at the end.
    pub ends: Ends,
    /// Promises that may be broken here: docs/safety.md says so.
    pub breaks: Vec<Broken>,
    /// As configured in production.
    pub cluster: Cluster,
    /// Machines on which the coordinator and SIF live; none: on one of its own.
    pub seats: [Option<AgentId>; 2],
    /// What configuration does not say of a machine.
    pub facts: BTreeMap<AgentId, Facts>,
    /// What happens.
    pub lines: Vec<Line>,
    /// What must come of it.
    pub expects: Vec<Expect>,
}

/// How it must be at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ends {
    /// Every VIP is served, by whomever.
    #[default]
    Serving,
    /// And every machine, SIF and the coordinator are up, and no recovery is under way.
    Well,
    /// It does not matter.
    Any,
}

/// What configuration does not say of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// From power to its agent.
    pub boot: Ns,
    /// A magic packet starts it.
    pub wakes: bool,
    /// It has no power at the beginning.
    pub off: bool,
}

/// One event of the file.
#[derive(Clone, Debug)]
pub struct Line {
    /// Where it stands in the file.
    pub number: usize,
    /// Since the beginning; where it waits for a word: not before.
    pub at: Ns,
    /// It ends by itself after this.
    pub lasts: Option<Ns>,
    /// It waits for these kinds of events of the coordinator, and happens once for each.
    pub on: BTreeSet<String>,
    /// About this server.
    pub about: Option<TargetName>,
    /// What happens.
    pub what: What,
}
