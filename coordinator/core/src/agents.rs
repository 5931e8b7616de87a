//! What is known of each agent, and which of its requests may be granted.

use crate::{core::Coordinator, event::SessionId};
use kage_types::{AgentId, Nonce, Time};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One agent as the coordinator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentView {
    /// Its stream, if it is up.
    pub session: Option<SessionId>,
    /// The last request that arrived, by any way.
    pub asked: Option<Time>,
    /// The last request that showed that our answers arrive too.
    pub alive: Option<Time>,
    /// Since when it has been heard without a gap of a renewal or three.
    pub steady_since: Option<Time>,
    incarnation: u64,
    last_nonce: Nonce,
    /// Granted and not yet known to have arrived: the first such request, and when.
    unheard: Option<(Nonce, Time)>,
}

impl AgentView {
    /// A request arrived. May it be granted?
    ///
    /// An owner that can speak but not hear would renew nothing, yet each grant would prolong everybody's patience:
    /// after a grant the next is given only when the asker shows that an answer reached it, or within half a renewal.
    pub fn asked(&mut self, now: Time, incarnation: u64, nonce: Nonce, heard: Nonce, renewal: Duration) -> bool {
        if incarnation != self.incarnation {
            self.incarnation = incarnation;
            self.last_nonce = Nonce(0);
            self.unheard = None;
        }
        self.asked = Some(now);
        if self.unheard.is_some_and(|(first, _)| heard >= first) {
            self.unheard = None;
        }
        self.last_nonce = self.last_nonce.max(nonce);
        let hears = self.unheard.is_none_or(|(_, since)| now.since(since) < renewal / 2);
        if hears {
            let gap = self.alive.is_none_or(|alive| now.since(alive) > 4 * renewal);
            if gap || self.steady_since.is_none() {
                self.steady_since = Some(now);
            }
            self.alive = Some(now);
        }
        hears
    }

    /// An answer with a grant is on its way.
    pub fn granted(&mut self, now: Time, nonce: Nonce) {
        self.unheard.get_or_insert((nonce, now));
    }

    /// How long it has not been heard in a way that counts.
    pub fn silent_for(&self, now: Time, listening_since: Time) -> Duration {
        now.since(self.alive.unwrap_or(listening_since))
    }
}

impl Coordinator {
    /// Whose agent pings and probes for this coordinator: the one on its own machine, a voter, one that is no target's
    /// machine, any other, the first that is connected and not silent.
    #[must_use]
    pub fn observer(&self) -> Option<&AgentId> {
        let here =
            self.cluster.agents.iter().find(|(_, machine)| machine.address.ip() == self.cluster.coordinator.ip());
        let here = here.map(|(name, _)| name);
        let serves = |name: &&AgentId| self.cluster.targets.values().any(|target| target.agent == **name);
        let names = || self.cluster.agents.keys();
        let order: Vec<&AgentId> = here
            .into_iter()
            .chain(self.cluster.voters())
            .chain(names().filter(|name| !serves(name)))
            .chain(names())
            .collect();
        let view = |name: &AgentId| self.agents.get(name).filter(|view| view.session.is_some());
        // A machine that lost its power keeps its stream for seconds: one that fell behind the others is not asked.
        let latest = self.agents.values().filter_map(|view| view.alive).max();
        let behind = |view: &AgentView| {
            latest.zip(view.alive).is_some_and(|(latest, alive)| latest.since(alive) > self.silence_limit())
        };
        let fresh = order.iter().find(|name| view(name).is_some_and(|view| !behind(view)));
        let any = || order.iter().find(|name| view(name).is_some());
        // Its stream is down, but it may serve all the same.
        fresh.or_else(any).copied().or(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Duration = Duration::from_millis(200);

    #[test]
    fn an_asker_that_hears_nothing_is_granted_once_not_for_ever() {
        let mut view = AgentView::default();
        let mut granted = 0;
        for round in 0..20u64 {
            let now = Time::from_millis(1000 + 200 * round);
            if view.asked(now, 1, Nonce(round + 1), Nonce(0), R) {
                view.granted(now, Nonce(round + 1));
                granted += 1;
            }
        }
        assert_eq!(granted, 1);
        // It hears a refusal: the way back is open again.
        assert!(view.asked(Time::from_millis(6000), 1, Nonce(30), Nonce(20), R));
    }

    #[test]
    fn one_that_hears_is_granted_every_time_and_twice_in_a_row() {
        let mut view = AgentView::default();
        for round in 1..20u64 {
            let now = Time::from_millis(1000 + 200 * round);
            assert!(view.asked(now, 1, Nonce(2 * round), Nonce(2 * round - 1), R));
            view.granted(now, Nonce(2 * round));
            // Armed in between: a second request before the first answer has arrived.
            assert!(view.asked(now + Duration::from_millis(5), 1, Nonce(2 * round + 1), Nonce(2 * round - 1), R));
        }
    }
}
