//! Whose reports make a new or restored ledger trustworthy (safety rules 6 and 7).

use kage_types::AgentId;
use std::collections::BTreeSet;

/// From this many voters on, the voters decide; with fewer, all agents do (safety rule 6).
pub const VOTERS_FOR_MAJORITY: usize = 3;

/// The agents of the cluster and which of them vote; from configuration, not from the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    agents: BTreeSet<AgentId>,
    voters: BTreeSet<AgentId>,
}

impl Electorate {
    /// From (name, is a voter).
    pub fn new(agents: impl IntoIterator<Item = (AgentId, bool)>) -> Self {
        let mut electorate = Self::default();
        for (name, voter) in agents {
            if voter {
                electorate.voters.insert(name.clone());
            }
            electorate.agents.insert(name);
        }
        electorate
    }

    /// Is this an agent of the cluster?
    #[must_use]
    pub fn knows(&self, agent: &AgentId) -> bool {
        self.agents.contains(agent)
    }

    /// Those whose majority counts: the voters if there are three or more, otherwise all agents.
    #[must_use]
    pub fn counted(&self) -> &BTreeSet<AgentId> {
        if self.voters.len() >= VOTERS_FOR_MAJORITY { &self.voters } else { &self.agents }
    }

    /// How many reports are still missing when these have reported. At least one for an empty cluster: nobody can
    /// vouch for it.
    #[must_use]
    pub fn missing<'a>(&self, reported: impl IntoIterator<Item = &'a AgentId>) -> u32 {
        let counted = self.counted();
        let have = reported.into_iter().filter(|name| counted.contains(*name)).count();
        u32::try_from((counted.len() / 2 + 1).saturating_sub(have)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> AgentId {
        AgentId::new(name).unwrap()
    }

    #[test]
    fn three_voters_decide_alone() {
        let all = ["a", "b", "c", "d", "e", "f"].map(|n| (name(n), n < "d"));
        let electorate = Electorate::new(all);
        assert_eq!(electorate.missing([]), 2);
        assert_eq!(electorate.missing([&name("d"), &name("e"), &name("f")]), 2);
        assert_eq!(electorate.missing([&name("a"), &name("c")]), 0);
    }

    #[test]
    fn with_two_voters_all_agents_decide() {
        let electorate = Electorate::new(["a", "b", "c", "d"].map(|n| (name(n), n < "c")));
        assert_eq!(electorate.missing([&name("a"), &name("b")]), 1);
        assert_eq!(electorate.missing([&name("a"), &name("b"), &name("d")]), 0);
    }

    #[test]
    fn nobody_vouches_for_an_empty_cluster() {
        assert_eq!(Electorate::default().missing([]), 1);
    }
}
