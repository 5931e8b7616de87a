//! What SIF is told for the shared tables of thesis ch. 4: one signal after another, each until SIF has answered, so that
//! none overtakes another.

use super::*;
use crate::{arrangement::Arrangement, placement::describe, sabotage::Sabotage};
use kage_types::{Claim, DomainName};
use std::collections::VecDeque;

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(300);

/// One of them. Repeating one that took effect changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Signal {
    /// What the configuration says there is, when it is sent.
    Arrangement,
    /// A4: the backup server fills this place.
    FunctionRestored { place: DomainName, backup: DomainName, host: AgentId },
    /// A5.
    TargetVerdict { place: DomainName, recovered: bool, host: AgentId },
    /// What this target's recovery needs; nothing: it is over.
    Claims { target: TargetName, why: String, claims: BTreeSet<Claim> },
    /// A virtual server was found, or is to be started anew, there; and does not run on those.
    MovedTo {
        vm: DomainName,
        host: AgentId,
        #[serde(default)]
        not_on: BTreeSet<AgentId>,
    },
}

impl Signal {
    /// Does this one make an older one of the queue superfluous?
    fn replaces(&self, older: &Signal) -> bool {
        match (self, older) {
            (Signal::Arrangement, Signal::Arrangement) => true,
            (Signal::Claims { target, .. }, Signal::Claims { target: older, .. }) => target == older,
            (Signal::MovedTo { vm, .. }, Signal::MovedTo { vm: older, .. }) => vm == older,
            (
                Signal::Arrangement
                | Signal::FunctionRestored { .. }
                | Signal::TargetVerdict { .. }
                | Signal::Claims { .. }
                | Signal::MovedTo { .. },
                _,
            ) => false,
        }
    }

    fn action(&self, job: JobId, cluster: &Cluster) -> Action {
        match self.clone() {
            Signal::Arrangement => Action::PutArrangement { job, arrangement: Box::new(Arrangement::of(cluster)) },
            Signal::FunctionRestored { place, backup, host } => Action::FunctionRestored { job, place, backup, host },
            Signal::TargetVerdict { place, recovered, host } => Action::TargetVerdict { job, place, recovered, host },
            Signal::Claims { target, why, claims } => Action::PutClaims { job, target, why, claims },
            Signal::MovedTo { vm, host, not_on } => Action::MovedTo { job, vm, host, not_on },
        }
    }
}

/// Those that SIF has not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signals {
    queue: VecDeque<Signal>,
    /// The first of the queue is on its way.
    running: Option<JobId>,
    not_before: Time,
}

impl Signals {
    pub fn deadline(&self) -> Option<Time> {
        (self.running.is_none() && !self.queue.is_empty()).then_some(self.not_before)
    }

    /// Another coordinator acts now: what is to be told is its business.
    pub fn forget(&mut self) {
        self.queue.clear();
        self.running = None;
    }
}

impl Coordinator {
    /// Has SIF answered all that it was told?
    pub(crate) fn signals_told(&self) -> bool {
        self.signals.queue.is_empty()
    }

    /// Tell SIF, after what it is still to be told.
    pub(crate) fn signal(&mut self, signal: Signal) {
        match &signal {
            Signal::FunctionRestored { .. } if self.breaks(Sabotage::SignalA4) => return,
            Signal::TargetVerdict { .. } if self.breaks(Sabotage::SignalA5) => return,
            Signal::FunctionRestored { .. }
            | Signal::TargetVerdict { .. }
            | Signal::Arrangement
            | Signal::Claims { .. }
            | Signal::MovedTo { .. } => {}
        }
        let running = usize::from(self.signals.running.is_some());
        let (sent, waiting): (VecDeque<Signal>, VecDeque<Signal>) = {
            let mut queue = std::mem::take(&mut self.signals.queue);
            let waiting = queue.split_off(running.min(queue.len()));
            (queue, waiting)
        };
        self.signals.queue = sent;
        self.signals.queue.extend(waiting.into_iter().filter(|older| !signal.replaces(older)));
        self.signals.queue.push_back(signal);
    }

    pub(super) fn send_signals(&mut self, now: Time, actions: &mut Vec<Action>) {
        if self.signals.deadline().is_none_or(|due| now < due) {
            return;
        }
        if !self.in_authority(now) {
            self.signals.not_before = now + AGAIN;
            return;
        }
        let job = self.job(JobFor::Signal);
        if let Some(signal) = self.signals.queue.front() {
            actions.push(signal.action(job, &self.cluster));
            self.signals.running = Some(job);
        }
    }

    pub(super) fn signal_done(&mut self, now: Time, job: JobId, result: &JobResult, actions: &mut Vec<Action>) {
        if self.signals.running != Some(job) {
            return;
        }
        self.signals.running = None;
        match result {
            JobResult::Unknown(_) => self.signals.not_before = now + AGAIN,
            JobResult::Failed(_)
            | JobResult::Done
            | JobResult::Epoch(_)
            | JobResult::Barred(_)
            | JobResult::Check(_)
            | JobResult::Answered(_) => {
                self.signals.queue.pop_front();
                self.signals.not_before = now;
            }
        }
        if let JobResult::Failed(_) = result {
            let text = format!("SIF did not take a change of the shared tables: {}", describe(result));
            self.note(None, Severity::Warning, "signal-refused", text, actions);
        }
        self.give_orders(now, actions);
        // Who waits for its signal looks again.
        for (name, _) in self.cluster.targets.iter().filter(|(_, target)| target.vm.is_some()) {
            if let Some(dbss) = self.targets.get_mut(name) {
                dbss.wake = now;
            }
        }
        self.stand_ins.values_mut().for_each(|stand_in| stand_in.wake = now);
    }
}
