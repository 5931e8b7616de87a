//! Machines that come and go: a flaky link, a stalling hypervisor. One that comes back from silence again and again is
//! put into quarantine: nothing is brought to it, while there is another place, until it has been quiet for a while.
//!
//! Counted is what came *back*: a machine that stays away is lost, not flaky. Not counted is silence that was announced,
//! that fell into maintenance, or that was ours (a storm brake, a stalled coordinator).

use crate::{
    config::Quarantine,
    core::{Coordinator, span},
    event::{Action, Severity},
};
use kage_types::{AgentId, TargetName, Time, whole_millis};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// A machine goes down within this time of saying so: its services are stopped first.
const ANNOUNCED_FOR: Duration = Duration::from_secs(90);

/// Of all machines that have come back from silence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quarantines {
    machines: BTreeMap<AgentId, Machine>,
    /// The storm brake was on: silence that began before then was no fault of the machine's.
    braked: Option<Time>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    /// When it last said that it goes.
    announced: Option<Time>,
    /// How often it has come into quarantine without a long time of quiet in between.
    times: u32,
    standing: Standing,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    /// As any other.
    Trusted {
        /// Returns from silence within the window.
        lapses: Vec<Time>,
        /// Its last quarantine's end.
        released: Option<Time>,
    },
    /// In quarantine.
    Held {
        since: Time,
        /// Unless it lapses again.
        until: Time,
        why: String,
        /// As it was alerted, to be taken back.
        alert: String,
    },
}

impl Default for Standing {
    fn default() -> Self {
        Standing::Trusted { lapses: Vec::new(), released: None }
    }
}

/// A machine in quarantine, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineView {
    /// Which.
    pub agent: AgentId,
    /// For people.
    pub why: String,
    /// How long it has been there.
    pub age: Duration,
    /// How long it must still be quiet.
    pub left: Duration,
}

/// Twice as long each time.
fn hold(settings: &Quarantine, times: u32) -> Duration {
    let doubled = 2u32.saturating_pow(times.saturating_sub(1));
    settings.hold.saturating_mul(doubled).min(settings.hold_limit)
}

impl Quarantines {
    /// When the next may end.
    pub fn deadline(&self) -> Option<Time> {
        let until = |machine: &Machine| match &machine.standing {
            Standing::Held { until, .. } => Some(*until),
            Standing::Trusted { .. } => None,
        };
        self.machines.values().filter_map(until).min()
    }

    /// The storm brake is on.
    pub fn braked(&mut self, now: Time) {
        self.braked = Some(now);
    }

    /// Only machines that are configured.
    pub fn retain(&mut self, known: impl Fn(&AgentId) -> bool) {
        self.machines.retain(|name, _| known(name));
    }
}

impl Coordinator {
    /// Until when this machine is in quarantine, and why.
    pub(crate) fn quarantined(&self, agent: &AgentId) -> Option<(Time, &str)> {
        match &self.quarantines.machines.get(agent)?.standing {
            Standing::Held { until, why, .. } => Some((*until, why)),
            Standing::Trusted { .. } => None,
        }
    }

    /// All machines in quarantine.
    pub fn quarantines(&self, now: Time) -> impl Iterator<Item = QuarantineView> {
        self.quarantines.machines.iter().filter_map(move |(agent, machine)| match &machine.standing {
            Standing::Held { since, until, why, .. } => Some(QuarantineView {
                agent: agent.clone(),
                why: why.clone(),
                age: now.since(*since),
                left: until.since(now),
            }),
            Standing::Trusted { .. } => None,
        })
    }

    /// After so long without a grant its kernel has closed everything: L − K − 2g after the last request that was
    /// granted. Shorter silence costs nobody anything.
    fn lapses_after(&self) -> Duration {
        let timing = self.cluster.timing;
        timing.lease.saturating_sub(timing.element).saturating_sub(2 * timing.slack)
    }

    /// It says that it goes: the silence that follows is no lapse.
    pub(crate) fn silence_announced(&mut self, now: Time, agent: &AgentId) {
        if self.cluster.quarantine.lapses > 0 {
            self.quarantines.machines.entry(agent.clone()).or_default().announced = Some(now);
        }
    }

    /// A request arrived that counts; the one before arrived then.
    pub(crate) fn heard_again(&mut self, now: Time, agent: &AgentId, before: Time, actions: &mut Vec<Action>) {
        let silent = now.since(before).min(self.orders.evidence(now, agent));
        if silent <= self.lapses_after() || !self.lapse_counts(agent, before) {
            return;
        }
        let settings = self.cluster.quarantine;
        let machine = self.quarantines.machines.entry(agent.clone()).or_default();
        let (count, released) = match &mut machine.standing {
            Standing::Held { until, .. } => {
                *until = now + hold(&settings, machine.times);
                return;
            }
            Standing::Trusted { lapses, released } => {
                lapses.retain(|at| now.since(*at) < settings.within);
                lapses.push(now);
                (u32::try_from(lapses.len()).unwrap_or(u32::MAX), *released)
            }
        };
        if count < settings.lapses {
            return;
        }
        if released.is_none_or(|at| now.since(at) > settings.hold_limit) {
            machine.times = 0;
        }
        machine.times = machine.times.saturating_add(1);
        let length = hold(&settings, machine.times);
        let why = format!(
            "it came back from silence {count} times within {}, of {:?} the last time",
            span(settings.within),
            whole_millis(silent)
        );
        let alert = format!(
            "{agent} is in quarantine: {why}; nothing is brought to it while there is another place, until it has been \
             quiet for {} (`kagectl quarantine off {agent}` ends that)",
            span(length)
        );
        machine.standing = Standing::Held { since: now, until: now + length, why, alert: alert.clone() };
        self.note(None, Severity::Alert, "quarantine", alert, actions);
    }

    /// Is this silence one that says something about the machine?
    fn lapse_counts(&self, agent: &AgentId, before: Time) -> bool {
        let cluster = &self.cluster;
        let mut targets = cluster.targets.values();
        let announced = self.quarantines.machines.get(agent).and_then(|machine| machine.announced);
        cluster.quarantine.lapses > 0
            && targets.any(|target| self.concerns(target, agent))
            && self.brake.is_none()
            && self.quarantines.braked.is_none_or(|braked| before > braked)
            && announced.is_none_or(|at| before.since(at) > ANNOUNCED_FOR)
            && !self.left_alone(agent)
            && !self.at_rest(agent)
    }

    /// Those whose time is over. One that is silent just now has not been quiet.
    pub(crate) fn end_quarantines(&mut self, now: Time, actions: &mut Vec<Action>) {
        let settings = self.cluster.quarantine;
        let due = |(name, machine): (&AgentId, &Machine)| match &machine.standing {
            Standing::Held { until, .. } if now >= *until || settings.lapses == 0 => Some(name.clone()),
            Standing::Held { .. } | Standing::Trusted { .. } => None,
        };
        for agent in self.quarantines.machines.iter().filter_map(due).collect::<Vec<_>>() {
            let silent = self.fell_silent(now, &agent);
            let Some(machine) = self.quarantines.machines.get_mut(&agent) else { continue };
            let length = hold(&settings, machine.times);
            match &mut machine.standing {
                Standing::Held { until, .. } if silent && settings.lapses > 0 => *until = now + length,
                Standing::Held { .. } | Standing::Trusted { .. } => {
                    let how =
                        if settings.lapses == 0 { "by the configuration" } else { "it has been quiet for long enough" };
                    self.release(now, &agent, how, actions);
                }
            }
        }
    }

    fn release(&mut self, now: Time, agent: &AgentId, how: &str, actions: &mut Vec<Action>) {
        let Some(machine) = self.quarantines.machines.get_mut(agent) else { return };
        let released = Standing::Trusted { lapses: Vec::new(), released: Some(now) };
        if let Standing::Held { alert, .. } = std::mem::replace(&mut machine.standing, released) {
            self.alert_over(&alert);
        }
        self.note(
            None,
            Severity::Info,
            "quarantine-over",
            format!("{agent} is no longer in quarantine: {how}"),
            actions,
        );
        self.wake_targets_of(agent, now);
    }

    /// The operator ends it; what was counted is forgotten.
    pub(crate) fn end_quarantine(
        &mut self,
        now: Time,
        command: u64,
        agent: &AgentId,
        who: &str,
        actions: &mut Vec<Action>,
    ) {
        let result = if self.quarantines(now).any(|view| view.agent == *agent) {
            self.release(now, agent, &format!("ended by {who}"), actions);
            self.quarantines.machines.remove(agent);
            Ok(())
        } else if self.cluster.agents.contains_key(agent) {
            Err(format!("{agent} is not in quarantine; what is: kagectl status"))
        } else {
            let known: Vec<&str> = self.cluster.agents.keys().map(AgentId::as_str).collect();
            Err(format!("there is no agent {:?}; the configuration has: {}", agent.as_str(), known.join(", ")))
        };
        actions.push(Action::Moved { command, result });
    }

    /// Why nothing is taken over to a double, though it is the only place: its host is in quarantine and silent just now,
    /// so that nobody would be served there, and the target may well be back first.
    pub(crate) fn double_away(&self, now: Time, host: &AgentId) -> Option<String> {
        self.quarantined(host).filter(|_| self.fell_silent(now, host)).map(|_| {
            format!("its backup host {host} is in quarantine and silent: nothing is taken over to it before it answers")
        })
    }

    /// A takeover goes there all the same: clients come first. It is said.
    pub(crate) fn only_place(&mut self, name: &TargetName, host: &AgentId, actions: &mut Vec<Action>) {
        if let Some((_, why)) = self.quarantined(host) {
            let text =
                format!("{host} is in quarantine ({why}), but there is no other place for {name}: it goes there");
            self.note(Some(name.clone()), Severity::Warning, "only-place", text, actions);
        }
    }
}
