//! What went wrong lately: told to people once, shown until it works, and not tried again at once.

use crate::{
    execute::{Action, End, Kind, Note, Severity},
    plan::{Direction, GroupStays, HostStays, Plan, Reason, Report, Step},
    policy::Policy,
};
use kage_types::Time;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// So long is remembered what did not work, or stood in the way, and was not seen again.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    why: String,
    times: u32,
    last: Time,
    /// Nothing is begun for its sake alone before.
    until: Time,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Troubles {
    #[serde(with = "kage_types::pairs")]
    steps: BTreeMap<Step, Failed>,
    /// What keeps power saving from its work until somebody does something, and when it was last in the way.
    obstacles: BTreeMap<String, Time>,
}

impl Troubles {
    /// A transition has ended. `again`: what gave capacity up and failed is tried again then.
    pub fn ended(
        &mut self,
        now: Time,
        end: &End,
        steps: &[Step],
        again: Time,
        policy: &Policy,
        actions: &mut Vec<Action>,
    ) {
        for step in steps.iter().filter(|step| !end.failed.contains_key(*step)) {
            if end.done.contains(step) {
                self.steps.remove(step);
            }
        }
        for (step, why) in &end.failed {
            let times = self.steps.get(step).map_or(0, |failed| failed.times).saturating_add(1);
            let until = match end.direction {
                Direction::Fold => again,
                // Capacity is wanted: soon, then later and later.
                Direction::Unfold => {
                    let longest = policy.backoff.max(policy.interval);
                    let doubled = 1 << times.saturating_sub(1).min(16);
                    now + policy.interval.saturating_mul(doubled).min(longest)
                }
            };
            let before = self.steps.insert(step.clone(), Failed { why: why.clone(), times, last: now, until });
            // That a host does not wake was said.
            let said = before.is_some() || matches!(step, Step::WakeHost { .. });
            if !said {
                actions.push(Action::Note(Note {
                    severity: Severity::Alert,
                    kind: Kind::Trouble,
                    text: alert(step, why, end.direction, until.since(now)),
                }));
            }
        }
        self.steps.retain(|_, failed| now.since(failed.last) < REMEMBERED);
    }

    /// Is all of it what failed just now, or hangs on that?
    pub fn hold(&self, now: Time, plan: &Plan) -> bool {
        let mut held: Vec<bool> = Vec::with_capacity(plan.steps.len());
        for planned in &plan.steps {
            let own = self.steps.get(&planned.step).is_some_and(|failed| now < failed.until);
            let needs = planned.needs.iter().any(|need| held.get(*need).copied().unwrap_or(false));
            held.push(own || needs);
        }
        !held.is_empty() && held.iter().all(|held| *held)
    }

    pub fn report(&self, now: Time, report: &mut Report) {
        for (step, failed) in &self.steps {
            report.add(Reason::Failed {
                step: step.clone(),
                why: failed.why.clone(),
                times: failed.times,
                again: failed.until.since(now),
            });
        }
    }

    /// What stands in the way until somebody does something is told when it first does.
    pub fn obstacles(&mut self, now: Time, report: &Report, actions: &mut Vec<Action>) {
        for reason in &report.reasons {
            let Some((key, next)) = obstacle(reason) else { continue };
            if self.obstacles.insert(key, now).is_none() {
                let text = format!("{reason}: {next}");
                actions.push(Action::Note(Note { severity: Severity::Alert, kind: Kind::Obstacle, text }));
            }
        }
        self.obstacles.retain(|_, last| now.since(*last) < REMEMBERED);
    }
}

fn alert(step: &Step, why: &str, direction: Direction, again: Duration) -> String {
    let safe = match direction {
        Direction::Fold => "all of the transition is taken back, and nothing sleeps for it",
        Direction::Unfold => "what hangs on it stays as it was, and serves on",
    };
    let seconds = again.as_secs();
    format!(
        "{step} failed ({why}): {safe}; tried again in {seconds} s at the earliest: mend it, then see `kagectl pss`"
    )
}

/// A name for it, without figures that change, and what to do about it; none: it passes by itself, or is as wanted.
fn obstacle(reason: &Reason) -> Option<(String, &'static str)> {
    match reason {
        Reason::HostStays(host, HostStays::NoVerifiedWake) => {
            Some((format!("{host} wake"), "suspend and wake it once, and give wakes_in; it needs mac or wake"))
        }
        Reason::HostStays(host, HostStays::NotShared(vm)) => {
            Some((format!("{host} {vm} disks"), "put them on storage that every host reaches under the same path"))
        }
        Reason::HostStays(host, HostStays::NoMemory { vm, on, .. }) => {
            Some((format!("{host} {vm} {on} memory"), "choose a larger base server, or smaller virtual servers"))
        }
        Reason::GroupStays(_, GroupStays::Doubted(vm)) => Some((
            format!("{vm} whereabouts"),
            "see `kagectl tables may-be-on`, and bring those hosts back; if it runs on both, end one by hand",
        )),
        Reason::GroupStays(group, GroupStays::NoSuchBase(base)) => Some((format!("{group} {base}"), "kagectl check")),
        Reason::HostStays(
            _,
            HostStays::Pinned(_)
            | HostStays::Claimed
            | HostStays::Doubted(_)
            | HostStays::JustWoken(_)
            | HostStays::SleptEnough(_)
            | HostStays::Serves(_)
            | HostStays::Awaits(_)
            | HostStays::Unused
            | HostStays::NextTime(_)
            | HostStays::BaseBusy { .. }
            | HostStays::NotSurvivable { .. }
            | HostStays::TooFewAwake(_)
            | HostStays::NotWorth { .. },
        )
        | Reason::GroupStays(
            _,
            GroupStays::BaseAway(_)
            | GroupStays::NoBase
            | GroupStays::Claimed(_)
            | GroupStays::NobodyServes
            | GroupStays::NotRunning(_)
            | GroupStays::Unmeasured(_)
            | GroupStays::TooMuch { .. }
            | GroupStays::NothingGained
            | GroupStays::NothingToAdd,
        )
        | Reason::Waiting { .. }
        | Reason::Hours(_)
        | Reason::Unjudged(_, _)
        | Reason::Behind
        | Reason::Backoff(_)
        | Reason::Busy(_)
        | Reason::NotBegun(_)
        | Reason::Failed { .. }
        | Reason::NoRoom { .. }
        | Reason::Instead { .. } => None,
    }
}
