//! Commands, and the way of a VIP from nothing to live and back.

use super::*;

impl Owner {
    fn next_op(&mut self) -> OpId {
        self.last_op = OpId(self.last_op.0 + 1);
        self.last_op
    }

    fn element_life(&self) -> Duration {
        self.assignment.as_ref().map_or(Duration::ZERO, |assignment| assignment.timing.element)
    }

    pub(super) fn adopt(&mut self, now: Time, adopted: Vec<Adopted>, actions: &mut Vec<OwnerAction>) {
        let mut long = BTreeSet::new();
        let mut over = Vec::new();
        for Adopted { vip, epoch, place, remaining } in adopted {
            if self.floors.get(&vip).is_some_and(|floor| epoch < *floor) {
                over.push(vip);
            }
            let live = !remaining.is_zero();
            let state = if live {
                if remaining > self.element_life() {
                    long.insert(vip);
                }
                State::Live { renewed: now, life: remaining, renewing: None, renewed_at: now }
            } else {
                State::Stuck { until: now }
            };
            let held = Held {
                epoch,
                place,
                state,
                grant: None,
                spent: false,
                holders: vec![],
                releasers: vec![],
                may_keep: live,
            };
            self.held.insert(vip, held);
            let floor = self.floors.entry(vip).or_default();
            *floor = (*floor).max(epoch);
        }
        for vip in over {
            self.close(vip, Then::Forget, LossReason::Superseded, actions);
        }
        if !long.is_empty() {
            self.long = Long::Adopted(long);
        }
        self.next_ask = now;
        self.store(actions);
    }

    pub(super) fn assigned(&mut self, now: Time, assignment: Assignment, actions: &mut Vec<OwnerAction>) {
        let gone: Vec<Vip> = self.held.keys().copied().filter(|vip| !assignment.vips.contains(vip)).collect();
        if self.assignment.is_none() {
            self.next_ask = now;
        }
        self.assignment = Some(assignment);
        for vip in gone {
            self.close(vip, Then::Forget, LossReason::Released, actions);
        }
    }

    pub(super) fn hold(
        &mut self,
        now: Time,
        command: CommandId,
        term: Term,
        ask: AskVip,
        place: Place,
        actions: &mut Vec<OwnerAction>,
    ) {
        let refuse = |result, actions: &mut Vec<OwnerAction>| {
            actions.push(OwnerAction::Done { command, result: Err(result) });
        };
        if term < self.highest_term {
            return refuse(HoldRefused::StaleTerm { given: term, seen: self.highest_term }, actions);
        }
        self.highest_term = term;
        if self.leaves(now) {
            return refuse(HoldRefused::Leaving, actions);
        }
        let AskVip { vip, epoch } = ask;
        let seen = self.floors.get(&vip).copied().unwrap_or_default();
        if epoch < seen {
            return refuse(HoldRefused::StaleEpoch { vip, given: epoch, seen }, actions);
        }
        if !self.assignment.as_ref().is_some_and(|assignment| assignment.vips.contains(&vip)) {
            return refuse(HoldRefused::NotGuarded(vip), actions);
        }
        self.floors.insert(vip, epoch);
        match self.held.get_mut(&vip) {
            Some(held) if held.epoch == epoch && held.place == place => match held.state {
                State::Live { .. } => actions.push(OwnerAction::Done { command, result: Ok(()) }),
                State::Closing { ref mut then, .. } => {
                    *then = Then::Acquire;
                    held.holders.push(command);
                }
                State::Arming { .. } | State::Asking { .. } | State::Opening { .. } => held.holders.push(command),
                State::Stuck { ref mut until } => {
                    *until = now;
                    held.holders.push(command);
                }
            },
            Some(held) => {
                // Another epoch or place: nothing of the old may be left before the new begins.
                for old in held.holders.drain(..) {
                    actions.push(OwnerAction::Done { command: old, result: Err(HoldRefused::Overtaken(vip)) });
                }
                self.close(vip, Then::Acquire, LossReason::Superseded, actions);
                if let Some(held) = self.held.get_mut(&vip) {
                    held.epoch = epoch;
                    held.place = place;
                    held.grant = None;
                    held.holders.push(command);
                }
                self.store(actions);
            }
            None => {
                let op = self.arm(vip, &place, actions);
                if place == Place::Host {
                    actions.push(OwnerAction::PutAddress(vip));
                }
                let held = Held {
                    epoch,
                    place,
                    state: State::Arming { op },
                    grant: None,
                    spent: false,
                    holders: vec![command],
                    releasers: vec![],
                    may_keep: false,
                };
                self.held.insert(vip, held);
                self.store(actions);
            }
        }
    }

    pub(super) fn release(&mut self, command: CommandId, term: Term, ask: AskVip, actions: &mut Vec<OwnerAction>) {
        if term < self.highest_term {
            let result = Err(HoldRefused::StaleTerm { given: term, seen: self.highest_term });
            actions.push(OwnerAction::Done { command, result });
            return;
        }
        self.highest_term = term;
        let AskVip { vip, epoch } = ask;
        let floor = self.floors.entry(vip).or_default();
        let newer = self.held.get(&vip).is_some_and(|held| held.epoch > epoch);
        if newer {
            let result = Err(HoldRefused::StaleEpoch { vip, given: epoch, seen: *floor });
            actions.push(OwnerAction::Done { command, result });
            return;
        }
        *floor = (*floor).max(epoch.next());
        self.release_begins(command, term);
        if !self.held.contains_key(&vip) {
            self.released(command, actions);
            return;
        }
        self.close(vip, Then::Forget, LossReason::Released, actions);
        if let Some(held) = self.held.get_mut(&vip) {
            held.releasers.push(command);
        }
    }

    /// Let go of all VIPs whose place matches; the command ends when the last is closed.
    pub(super) fn release_where(
        &mut self,
        command: CommandId,
        matches: impl Fn(&Place) -> bool,
        actions: &mut Vec<OwnerAction>,
    ) {
        let vips: Vec<Vip> = self.held.iter().filter(|(_, held)| matches(&held.place)).map(|(vip, _)| *vip).collect();
        if vips.is_empty() {
            actions.push(OwnerAction::Done { command, result: Ok(()) });
            return;
        }
        for vip in vips {
            self.close(vip, Then::Forget, LossReason::Released, actions);
            if let Some(held) = self.held.get_mut(&vip) {
                held.releasers.push(command);
            }
        }
    }

    pub(super) fn clock_jumped(&mut self, actions: &mut Vec<OwnerAction>) {
        self.leaving = None; // it slept, and is back
        self.outstanding.clear();
        self.authority = None;
        let vips: Vec<Vip> = self.held.keys().copied().collect();
        for vip in vips {
            if let Some(held) = self.held.get_mut(&vip) {
                held.grant = None;
            }
            self.close(vip, Then::Acquire, LossReason::ClockJumped, actions);
        }
    }

    pub(super) fn arm(&mut self, vip: Vip, place: &Place, actions: &mut Vec<OwnerAction>) -> OpId {
        let op = self.next_op();
        let change = KernelOp::Arm { vip, life: self.element_life() };
        actions.push(OwnerAction::Kernel { op, place: place.clone(), change });
        op
    }

    pub(super) fn kernel(&mut self, place: Place, change: KernelOp, actions: &mut Vec<OwnerAction>) -> OpId {
        let op = self.next_op();
        actions.push(OwnerAction::Kernel { op, place, change });
        op
    }

    /// Delete both elements, whatever state the VIP is in. Idempotent.
    pub(super) fn close(&mut self, vip: Vip, then: Then, reason: LossReason, actions: &mut Vec<OwnerAction>) {
        let op = self.next_op();
        let Some(held) = self.held.get_mut(&vip) else {
            return;
        };
        let served = match held.state {
            State::Closing { then: ref mut before, .. } => {
                *before = then;
                return;
            }
            State::Live { .. } | State::Opening { .. } => true,
            State::Arming { .. } | State::Asking { .. } | State::Stuck { .. } => false,
        };
        held.state = State::Closing { op, then };
        let place = held.place.clone();
        actions.push(OwnerAction::Kernel { op, place: place.clone(), change: KernelOp::Close { vip } });
        // A switch-over is told when the kernel and the disk have said so: it counts as a release.
        if served && !matches!(reason, LossReason::SwitchedOver(_)) {
            actions.push(OwnerAction::Lost { ask: AskVip { vip, epoch: held.epoch }, reason, place });
        }
    }

    pub(super) fn kernel_done(
        &mut self,
        now: Time,
        op: OpId,
        outcome: KernelOutcome,
        at: Time,
        actions: &mut Vec<OwnerAction>,
    ) {
        // The stop waits for each long element to be set or refused, whatever became of its VIP meanwhile.
        if let Long::Setting { command, left } = &mut self.long
            && left.remove(&op)
            && left.is_empty()
        {
            actions.push(OwnerAction::Done { command: *command, result: Ok(()) });
            self.long = Long::Stopping;
        }
        let vip = self.held.iter().find_map(|(vip, held)| match &held.state {
            State::Arming { op: waiting } | State::Opening { op: waiting } | State::Closing { op: waiting, .. }
                if *waiting == op =>
            {
                Some(*vip)
            }
            State::Live { renewing: Some(waiting), .. } if *waiting == op => Some(*vip),
            State::Arming { .. }
            | State::Opening { .. }
            | State::Closing { .. }
            | State::Live { .. }
            | State::Asking { .. }
            | State::Stuck { .. } => None,
        });
        // An operation overtaken by a later one of the same VIP: the later one's outcome counts.
        let Some(vip) = vip else { return };
        if let KernelOutcome::Failed(reason) = &outcome {
            actions.push(OwnerAction::KernelTrouble { vip, reason: reason.clone() });
        }
        let renewal = self.assignment.as_ref().map_or(Duration::from_secs(1), |a| a.timing.renewal);
        let Some(held) = self.held.get_mut(&vip) else {
            return;
        };
        let done = outcome == KernelOutcome::Done;
        match &mut held.state {
            State::Arming { .. } if done => {
                held.state = State::Asking { armed: at };
                self.ask(now, actions);
            }
            State::Arming { .. } => held.state = State::Stuck { until: now + renewal },
            State::Opening { .. } if done => {
                let life = self.assignment.as_ref().map_or(Duration::ZERO, |a| a.timing.element);
                held.state = State::Live { renewed: at, life, renewing: None, renewed_at: now };
                held.may_keep = true;
                actions.push(OwnerAction::Announce { vip, place: held.place.clone() });
                actions.push(OwnerAction::Opened { ask: AskVip { vip, epoch: held.epoch } });
                for command in held.holders.drain(..) {
                    actions.push(OwnerAction::Done { command, result: Ok(()) });
                }
            }
            // The armed element ran out, or the grant did: begin again.
            State::Opening { .. } => self.rearm(vip, actions),
            State::Closing { then, .. } => {
                if let KernelOutcome::Failed(_) = outcome {
                    // Not let go until the kernel says so: the elements run out by themselves within K.
                    let (place, then) = (held.place.clone(), then.clone());
                    let again = self.kernel(place, KernelOp::Close { vip }, actions);
                    if let Some(held) = self.held.get_mut(&vip) {
                        held.state = State::Closing { op: again, then };
                    }
                    return;
                }
                self.closed(vip, actions);
            }
            State::Live { renewed, life, renewing, .. } => {
                *renewing = None;
                match outcome {
                    KernelOutcome::Done => {
                        *renewed = at;
                        if matches!(self.long, Long::Setting { .. } | Long::Stopping) {
                            return;
                        }
                        *life = self.assignment.as_ref().map_or(*life, |a| a.timing.element);
                        if let Long::Adopted(left) = &mut self.long {
                            left.remove(&vip);
                            if left.is_empty() {
                                self.long = Long::None;
                            }
                        }
                    }
                    KernelOutcome::NotFound => self.lapse(vip, actions),
                    // The element runs out unless a fresher grant comes first.
                    KernelOutcome::TooLate | KernelOutcome::Failed(_) => {}
                }
            }
            State::Asking { .. } | State::Stuck { .. } => {}
        }
    }

    fn closed(&mut self, vip: Vip, actions: &mut Vec<OwnerAction>) {
        self.switch_closed(vip, actions);
        let Some(held) = self.held.get_mut(&vip) else {
            return;
        };
        let State::Closing { then, .. } = held.state.clone() else {
            return;
        };
        for command in std::mem::take(&mut held.releasers) {
            let waiting = self.held.iter().any(|(other, held)| *other != vip && held.releasers.contains(&command));
            if !waiting {
                self.released(command, actions);
            }
        }
        match then {
            Then::Acquire => self.rearm(vip, actions),
            Then::Forget => {
                if let Some(held) = self.held.remove(&vip) {
                    if held.place == Place::Host {
                        actions.push(OwnerAction::DropAddress(vip));
                    }
                    for command in held.holders {
                        actions.push(OwnerAction::Done { command, result: Err(HoldRefused::Overtaken(vip)) });
                    }
                }
                if let Long::Adopted(left) = &mut self.long {
                    left.remove(&vip);
                    if left.is_empty() {
                        self.long = Long::None;
                    }
                }
                self.store(actions);
            }
        }
    }

    /// The kernel stopped serving by itself. What was lost may come back under the same epoch: begin again at rule 1.
    pub(super) fn lapse(&mut self, vip: Vip, actions: &mut Vec<OwnerAction>) {
        let Some(held) = self.held.get_mut(&vip) else {
            return;
        };
        held.may_keep = self.assignment.as_ref().is_some_and(|a| a.on_coordinator_loss == OnCoordinatorLoss::Keep);
        let (ask, place) = (AskVip { vip, epoch: held.epoch }, held.place.clone());
        if place == Place::Host {
            actions.push(OwnerAction::DropAddress(vip));
        }
        actions.push(OwnerAction::Lost { ask, reason: LossReason::Lapsed, place });
        if let Long::Adopted(left) = &mut self.long {
            left.remove(&vip);
            if left.is_empty() {
                self.long = Long::None;
            }
        }
        self.rearm(vip, actions);
    }

    pub(super) fn rearm(&mut self, vip: Vip, actions: &mut Vec<OwnerAction>) {
        let Some(held) = self.held.get(&vip) else {
            return;
        };
        let place = held.place.clone();
        let op = self.arm(vip, &place, actions);
        if place == Place::Host {
            actions.push(OwnerAction::PutAddress(vip));
        }
        if let Some(held) = self.held.get_mut(&vip) {
            held.state = State::Arming { op };
        }
    }

    pub(super) fn store(&self, actions: &mut Vec<OwnerAction>) {
        let stored = self
            .held
            .iter()
            .map(|(vip, held)| Adopted {
                vip: *vip,
                epoch: held.epoch,
                place: held.place.clone(),
                remaining: Duration::ZERO,
            })
            .collect();
        actions.push(OwnerAction::Store(stored));
    }
}
