//! Looks for virtual servers whose live migration ended unseen, until they are found: a transition that was given up does
//! not wait for hosts that are cut off, and whoever recovers such a virtual server waits for the other end.

use super::{
    Action, Event, Ids, JobResult, Kind, Note, Severity, Signal, SignalId,
    run::{GRACE, Job, LOOK, Pending},
};
use crate::{
    inventory::{Doubt, Inventory},
    plan::{Plan, Step},
    policy::Policy,
};
use kage_types::{AgentId, DomainName, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// Not found; looked for again then.
    Resting { until: Time },
    /// Is it on the one host of this pair, and not on the other?
    Looking { job: Job, pair: usize },
    /// The ledger is told.
    Telling { pending: Pending, signal: Signal },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sought {
    doubt: Doubt,
    /// Those that can be asked.
    answering: BTreeSet<AgentId>,
    stage: Stage,
}

/// All that is looked for.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Search(BTreeMap<DomainName, Sought>);

impl Search {
    /// What is in doubt now. What a plan under way migrates is its business.
    pub fn observe(&mut self, now: Time, inventory: &Inventory, plan: Option<&Plan>) {
        let planned = |name: &DomainName| {
            let mut steps = plan.into_iter().flat_map(Plan::steps);
            steps.any(|step| matches!(step, Step::Migrate { vm, .. } if vm == name))
        };
        let sought = |name: &DomainName| inventory.doubts.get(name).filter(|_| !planned(name));
        self.0.retain(|name, known| sought(name) == Some(&known.doubt));
        for (name, doubt) in inventory.doubts.iter().filter(|(name, _)| !planned(name)) {
            let answers = |host: &&AgentId| inventory.hosts.get(*host).is_some_and(|host| host.answers);
            let answering = doubt.hosts().filter(answers).cloned().collect();
            let new =
                || Sought { doubt: doubt.clone(), answering: BTreeSet::new(), stage: Stage::Resting { until: now } };
            self.0.entry(name.clone()).or_insert_with(new).answering = answering;
        }
    }

    pub fn deadline(&self) -> Option<(Time, &'static str)> {
        let of = |sought: &Sought| match &sought.stage {
            Stage::Resting { until } => (*until, "a virtual server is looked for"),
            Stage::Looking { job, .. } => (job.until, "a job's time-out"),
            Stage::Telling { pending, .. } => (pending.again, "signal to the ledger again"),
        };
        self.0.values().map(of).min_by_key(|(time, _)| *time)
    }

    /// True: it was about this.
    pub fn step(
        &mut self,
        now: Time,
        event: &Event,
        policy: &Policy,
        ids: &mut Ids,
        actions: &mut Vec<Action>,
    ) -> bool {
        match event {
            Event::Tick => {
                for (name, sought) in &mut self.0 {
                    sought.tick(now, name, policy, ids, actions);
                }
                false
            }
            Event::Ended { job, result } => {
                let of =
                    |sought: &Sought| matches!(&sought.stage, Stage::Looking { job: there, .. } if there.id == *job);
                let Some((name, sought)) = self.0.iter_mut().find(|(_, sought)| of(sought)) else { return false };
                sought.looked(now, name, *result == JobResult::Done, policy, ids, actions);
                true
            }
            Event::Recorded { id, .. } => self.told(now, *id, None, policy, actions),
            Event::Refused { id, why } => self.told(now, *id, Some(why), policy, actions),
            Event::Claimed(_) | Event::Unclaimed(_) | Event::Cancel(_) => false,
        }
    }

    /// The tables show it, or show what is so instead.
    fn told(
        &mut self,
        now: Time,
        id: SignalId,
        refused: Option<&str>,
        policy: &Policy,
        actions: &mut Vec<Action>,
    ) -> bool {
        let of = |sought: &Sought| matches!(&sought.stage, Stage::Telling { pending, .. } if pending.id == id);
        let Some((name, sought)) = self.0.iter_mut().find(|(_, sought)| of(sought)) else { return false };
        let Stage::Telling { signal, .. } = &sought.stage else { return false };
        let (severity, kind, text) = match (refused, signal) {
            (Some(why), _) => {
                (Severity::Warning, Kind::Refused, format!("the ledger refuses where {name} was found: {why}"))
            }
            (None, Signal::Found { host, not_on, .. }) => {
                let not_on: Vec<&str> = not_on.iter().map(AgentId::as_str).collect();
                let text = format!("{name} was found on {host}; it does not run on {}", not_on.join(", "));
                (Severity::Info, Kind::Found, text)
            }
            (
                None,
                Signal::TransitionBegun { .. }
                | Signal::StepBegun { .. }
                | Signal::StepDone { .. }
                | Signal::Committed { .. }
                | Signal::RolledBack { .. },
            ) => return false,
        };
        actions.push(Action::Note(Note { severity, kind, text }));
        sought.stage = Stage::Resting { until: now + policy.interval };
        true
    }
}

impl Sought {
    fn tick(&mut self, now: Time, name: &DomainName, policy: &Policy, ids: &mut Ids, actions: &mut Vec<Action>) {
        match &mut self.stage {
            Stage::Resting { until } if now >= *until => self.look(now, name, 0, policy, ids, actions),
            Stage::Looking { job, .. } if now >= job.until => self.looked(now, name, false, policy, ids, actions),
            Stage::Telling { pending, signal } => pending.repeat(now, || signal.clone(), actions),
            Stage::Resting { .. } | Stage::Looking { .. } => {}
        }
    }

    /// The next pair that can be asked: one of its hosts has it and the other has not, or neither is so.
    fn look(
        &mut self,
        now: Time,
        name: &DomainName,
        from_pair: usize,
        policy: &Policy,
        ids: &mut Ids,
        actions: &mut Vec<Action>,
    ) {
        let answering = |(_, (from, to)): &(usize, (AgentId, AgentId))| {
            self.answering.contains(from) && self.answering.contains(to)
        };
        let next = self.doubt.pairs().into_iter().enumerate().skip(from_pair).find(answering);
        self.stage = match next {
            Some((pair, (from, to))) => {
                let job = Job { id: ids.job(), until: now + LOOK + GRACE };
                let step = Step::Migrate { vm: name.clone(), from, to };
                actions.push(Action::Look { job: job.id, step, timeout: LOOK });
                Stage::Looking { job, pair }
            }
            None => Stage::Resting { until: now + policy.interval },
        };
    }

    fn looked(
        &mut self,
        now: Time,
        name: &DomainName,
        is_so: bool,
        policy: &Policy,
        ids: &mut Ids,
        actions: &mut Vec<Action>,
    ) {
        let Stage::Looking { pair, .. } = self.stage else { return };
        let found = self.doubt.pairs().into_iter().nth(pair).filter(|_| is_so);
        let Some((from, to)) = found else { return self.look(now, name, pair + 1, policy, ids, actions) };
        let signal = Signal::Found { vm: name.clone(), host: to, not_on: [from].into() };
        self.stage = Stage::Telling { pending: Pending::send(now, signal.clone(), ids, actions), signal };
    }
}
