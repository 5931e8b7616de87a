//! What the hosts draw, and what sleeping saves against never sleeping.

use crate::{
    inventory::{Host, HostState, HostWatts},
    units::{Energy, Watts},
};
use kage_types::{AgentId, Time};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// A measurement holds for this long, then the configured figure does again.
pub const MEASURED_FOR: Duration = Duration::from_secs(60);

/// Where a figure comes from. Say so wherever it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// All of it measured (RAPL, an outlet).
    Measured,
    /// At least part of it is the configured figure for the host's state.
    Modelled,
}

impl Source {
    /// Stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Measured => "measured",
            Source::Modelled => "modelled",
        }
    }
}

/// What is drawn now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draw {
    /// By all hosts.
    pub watts: Watts,
    /// Where that comes from.
    pub source: Source,
    /// If all of them were awake (modelled).
    pub always_on: Watts,
}

/// What was used since the meter's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// By all hosts.
    pub energy: Energy,
    /// Where that comes from.
    pub source: Source,
    /// What sleeping saved: for the time each host slept, the difference of its two figures (always modelled, as
    /// nobody can measure what would have been).
    pub saved: Energy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HostPower {
    state: HostState,
    watts: HostWatts,
    measured: Option<(Time, Watts)>,
    settled: Time,
    energy: Energy,
    saved: Energy,
    source: Source,
}

impl HostPower {
    /// From the last moment accounted for to this one.
    fn settle(&mut self, now: Time) {
        if let Some((at, watts)) = self.measured {
            let until = now.min(at + MEASURED_FOR);
            self.add(until, watts, Source::Measured);
        }
        self.add(now, self.modelled(), Source::Modelled);
    }

    fn add(&mut self, until: Time, watts: Watts, source: Source) {
        if until <= self.settled {
            return;
        }
        let time = until.since(self.settled);
        self.energy = self.energy.plus(watts.over(time));
        self.source = self.source.max(source);
        self.saved = match self.state {
            HostState::Asleep => self.saved.plus(self.watts.awake.minus(self.watts.asleep).over(time)),
            HostState::Awake | HostState::Lost => self.saved,
        };
        self.settled = until;
    }

    /// A host nobody hears may well be on.
    fn modelled(&self) -> Watts {
        match self.state {
            HostState::Awake | HostState::Lost => self.watts.awake,
            HostState::Asleep => self.watts.asleep,
        }
    }
}

/// Sums up what all hosts draw.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PowerMeter {
    hosts: BTreeMap<AgentId, HostPower>,
}

impl PowerMeter {
    /// The hosts are like this from now on. One that is gone keeps what it used.
    pub fn observe(&mut self, now: Time, hosts: &BTreeMap<AgentId, Host>) {
        for (name, host) in hosts {
            let there = self.hosts.entry(name.clone()).or_insert(HostPower {
                state: host.state,
                watts: host.watts,
                measured: None,
                settled: now,
                energy: Energy::default(),
                saved: Energy::default(),
                source: Source::Measured,
            });
            there.settle(now);
            if there.state != host.state {
                there.measured = None;
            }
            (there.state, there.watts) = (host.state, host.watts);
        }
        for (name, there) in &mut self.hosts {
            if !hosts.contains_key(name) {
                there.settle(now);
                (there.state, there.watts, there.measured) = (HostState::Lost, HostWatts::default(), None);
            }
        }
    }

    /// A measurement of one host that is awake.
    pub fn measured(&mut self, now: Time, host: &AgentId, watts: Watts) {
        if let Some(there) = self.hosts.get_mut(host)
            && there.state == HostState::Awake
        {
            there.settle(now);
            there.measured = Some((now, watts));
        }
    }

    /// Now.
    #[must_use]
    pub fn draw(&self, now: Time) -> Draw {
        let mut draw = Draw { watts: Watts(0), source: Source::Measured, always_on: Watts(0) };
        for host in self.hosts.values() {
            let (watts, source) = match host.measured {
                Some((at, watts)) if now.since(at) < MEASURED_FOR => (watts, Source::Measured),
                Some(_) | None => (host.modelled(), Source::Modelled),
            };
            draw.watts = draw.watts.plus(watts);
            draw.source = draw.source.max(source);
            draw.always_on = draw.always_on.plus(host.watts.awake);
        }
        draw
    }

    /// Since the start.
    #[must_use]
    pub fn used(&self, now: Time) -> Used {
        let mut used = Used { energy: Energy::default(), source: Source::Measured, saved: Energy::default() };
        for host in self.hosts.values() {
            let mut host = *host;
            host.settle(now);
            used.energy = used.energy.plus(host.energy);
            used.saved = used.saved.plus(host.saved);
            used.source = used.source.max(host.source);
        }
        used
    }
}
