//! Asking, and what the answers allow.

use super::*;

impl Owner {
    pub(super) fn session_changed(&mut self, now: Time, up: bool) {
        self.session = up;
        // Up: be heard at once. Down: ask the voters at once.
        self.next_ask = now;
    }

    pub(super) fn run_timers(&mut self, now: Time, actions: &mut Vec<OwnerAction>) {
        let Some(assignment) = &self.assignment else {
            return;
        };
        if self.long == Long::Stopping {
            return;
        }
        let timing = assignment.timing;
        if now >= self.next_ask {
            self.ask(now, actions);
        }
        let vips: Vec<Vip> = self.held.keys().copied().collect();
        for vip in vips {
            let Some(held) = self.held.get(&vip) else {
                continue;
            };
            match held.state {
                State::Live { renewed, life, .. } if now >= renewed + life + timing.slack => self.lapse(vip, actions),
                State::Live { renewed_at, .. } if now >= renewed_at + timing.renewal => self.renew(now, vip, actions),
                State::Stuck { until } if now >= until => self.rearm(vip, actions),
                State::Live { .. }
                | State::Stuck { .. }
                | State::Arming { .. }
                | State::Asking { .. }
                | State::Opening { .. }
                | State::Closing { .. } => {}
            }
        }
    }

    /// Send a request for everything armed or live.
    pub(super) fn ask(&mut self, now: Time, actions: &mut Vec<OwnerAction>) {
        let Some(assignment) = &self.assignment else {
            return;
        };
        let timing = assignment.timing;
        let policy = assignment.on_coordinator_loss;
        let voters = !assignment.voters.is_empty();
        self.next_ask = now + self.asks_each(timing.renewal);
        // What was armed long ago would run out before the answer: arm again, and ask when that is done.
        let stale: Vec<Vip> = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held.state, State::Asking { armed } if now.since(armed) > timing.element / 2))
            .map(|(vip, _)| *vip)
            .collect();
        for vip in stale {
            self.rearm(vip, actions);
        }
        let vips: Vec<AskVip> = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held.state, State::Asking { .. } | State::Live { .. } | State::Opening { .. }))
            .map(|(vip, held)| AskVip { vip: *vip, epoch: held.epoch })
            .collect();
        self.last_nonce = self.last_nonce.next();
        let (nonce, heard) = (self.last_nonce, self.heard);
        let long = matches!(self.long, Long::Asking(_));
        let outstanding = Outstanding { sent: now, vips: vips.clone(), long, consents: BTreeMap::new() };
        self.outstanding.insert(nonce, outstanding);
        while self.outstanding.len() > MAX_OUTSTANDING {
            self.outstanding.pop_first();
        }
        let silent = self.authority.is_none_or(|sent| now.since(sent) > timing.renewal + timing.renewal / 2);
        if self.session {
            let long_surrendered = self.long == Long::None;
            actions.push(OwnerAction::Ask { nonce, heard, vips: vips.clone(), long, long_surrendered });
        }
        if vips.is_empty() || (self.session && !silent) {
            return;
        }
        match policy {
            OnCoordinatorLoss::Voters if voters => actions.push(OwnerAction::AskVoters { nonce, heard, vips }),
            OnCoordinatorLoss::Keep => {
                let keep: Vec<AskVip> =
                    vips.into_iter().filter(|ask| self.held.get(&ask.vip).is_some_and(|held| held.may_keep)).collect();
                if !keep.is_empty() {
                    self.renewed_by = Some(RenewedBy::Keep);
                }
                for ask in keep {
                    self.granted(now, ask, now, timing.lease, actions);
                }
            }
            OnCoordinatorLoss::Voters | OnCoordinatorLoss::Lapse => {}
        }
    }

    pub(super) fn answered(&mut self, now: Time, grant: &Grant, relayed: bool, actions: &mut Vec<OwnerAction>) {
        self.heard = self.heard.max(grant.nonce);
        if grant.term < self.highest_term || !grant.in_authority {
            return;
        }
        self.highest_term = grant.term;
        let Some(outstanding) = self.outstanding.get(&grant.nonce) else {
            return;
        };
        let (sent, long) = (outstanding.sent, outstanding.long);
        let asked = outstanding.vips.clone();
        if !relayed {
            self.authority = self.authority.max(Some(sent));
        }
        let counted_from = if self.counts_from_receipt() { now } else { sent };
        for item in &grant.items {
            let ask = AskVip { vip: item.vip, epoch: item.epoch };
            if !asked.contains(&ask) {
                continue;
            }
            match item.verdict {
                Verdict::Granted => {
                    self.renewed_by = Some(if relayed { RenewedBy::Relay } else { RenewedBy::Coordinator });
                    self.granted(now, ask, counted_from, grant.length, actions);
                }
                Verdict::Superseded => {
                    let floor = self.floors.entry(item.vip).or_default();
                    *floor = (*floor).max(item.epoch.next());
                    if self.held.get(&item.vip).is_some_and(|held| held.epoch == item.epoch) {
                        self.close(item.vip, Then::Forget, LossReason::Superseded, actions);
                    }
                }
                Verdict::Wait => {}
            }
        }
        if long {
            self.long_granted(sent, grant.length, actions);
        }
    }

    pub(super) fn consented(
        &mut self,
        now: Time,
        voter: &AgentId,
        nonce: Nonce,
        vips: &[AskVip],
        actions: &mut Vec<OwnerAction>,
    ) {
        let Some(assignment) = &self.assignment else {
            return;
        };
        if assignment.on_coordinator_loss != OnCoordinatorLoss::Voters || !assignment.voters.contains_key(voter) {
            return;
        }
        let length = assignment.timing.lease;
        let majority = if self.ignores_majority() { 1 } else { assignment.voters.len() / 2 + 1 };
        let Some(outstanding) = self.outstanding.get_mut(&nonce) else {
            return;
        };
        let sent = outstanding.sent;
        let mut carried = Vec::new();
        for ask in vips {
            if !outstanding.vips.contains(ask) {
                continue;
            }
            let consents = outstanding.consents.entry(ask.vip).or_default();
            if consents.insert(voter.clone()) && consents.len() == majority {
                carried.push(*ask);
            }
        }
        for ask in carried {
            self.renewed_by = Some(RenewedBy::Voters);
            self.granted(now, ask, sent, length, actions);
        }
    }

    /// A grant for one VIP, of this length, counted from when its request was sent.
    fn granted(&mut self, now: Time, ask: AskVip, sent: Time, length: Duration, actions: &mut Vec<OwnerAction>) {
        let Some(timing) = self.assignment.as_ref().map(|assignment| assignment.timing) else {
            return;
        };
        let Some(held) = self.held.get_mut(&ask.vip) else {
            return;
        };
        if held.epoch != ask.epoch {
            return;
        }
        let better = held.grant.is_none_or(|(b, l)| sent + length > b + l);
        if better {
            held.grant = Some((sent, length));
            held.spent = false;
        }
        match held.state {
            // Armed before the request was sent: what is opened from it ends by b + 2K + 2g.
            State::Asking { armed } if armed <= sent => {
                let change =
                    KernelOp::Open { vip: ask.vip, life: timing.element, not_after: timing.renew_until(sent, length) };
                let place = held.place.clone();
                let op = self.kernel(place, change, actions);
                if let Some(held) = self.held.get_mut(&ask.vip) {
                    held.state = State::Opening { op };
                }
            }
            State::Live { renewed_at, .. } if now >= renewed_at + timing.renewal / 2 => {
                self.renew(now, ask.vip, actions);
            }
            State::Asking { .. }
            | State::Live { .. }
            | State::Arming { .. }
            | State::Opening { .. }
            | State::Closing { .. }
            | State::Stuck { .. } => {}
        }
    }

    /// Tell the kernel again, if the last grant still allows it.
    fn renew(&mut self, now: Time, vip: Vip, actions: &mut Vec<OwnerAction>) {
        if !matches!(self.long, Long::None | Long::Adopted(_) | Long::Asking(_)) {
            return;
        }
        let Some(timing) = self.assignment.as_ref().map(|assignment| assignment.timing) else {
            return;
        };
        let Some(held) = self.held.get(&vip) else {
            return;
        };
        let State::Live { renewing: None, .. } = held.state else {
            return;
        };
        let Some((sent, length)) = held.grant else {
            return;
        };
        let not_after = timing.renew_until(sent, length);
        if now > not_after {
            if let Some(held) = self.held.get_mut(&vip) {
                held.spent = true;
            }
            return;
        }
        let place = held.place.clone();
        let op = self.kernel(place, KernelOp::Renew { vip, life: timing.element, not_after }, actions);
        if let Some(Held { state: State::Live { renewing, renewed_at, .. }, .. }) = self.held.get_mut(&vip) {
            *renewing = Some(op);
            *renewed_at = now;
        }
    }

    /// Renews at once instead of after R. The renewal is conditional: an element that is there is none the worse for
    /// it, and for one that is gone the VIP is asked for anew. This is a hint, nothing is taken for granted from it.
    pub(super) fn guard_back(&mut self, now: Time, actions: &mut Vec<OwnerAction>) {
        if self.long == Long::Stopping {
            return;
        }
        let vips: Vec<Vip> = self.held.keys().copied().collect();
        for vip in vips {
            match self.held.get(&vip).map(|held| &held.state) {
                Some(State::Live { .. }) => self.renew(now, vip, actions),
                // The armed element went with it, or could not be set meanwhile.
                Some(State::Asking { .. } | State::Stuck { .. }) => self.rearm(vip, actions),
                // Their operation under way ends by itself: not found, or failed.
                Some(State::Arming { .. } | State::Opening { .. } | State::Closing { .. }) | None => {}
            }
        }
    }

    pub(super) fn prepare_stop(&mut self, now: Time, command: CommandId, actions: &mut Vec<OwnerAction>) {
        let live = self.held.values().any(|held| matches!(held.state, State::Live { .. }));
        if !live || !self.session {
            actions.push(OwnerAction::Done { command, result: Ok(()) });
            return;
        }
        self.long = Long::Asking(command);
        self.ask(now, actions);
    }

    /// The long lease is given: set long elements. They end K + g before it does ([`LeaseTiming::long_element`]).
    fn long_granted(&mut self, sent: Time, length: Duration, actions: &mut Vec<OwnerAction>) {
        let Long::Asking(command) = self.long else {
            return;
        };
        let Some(timing) = self.assignment.as_ref().map(|assignment| assignment.timing) else {
            return;
        };
        if length < timing.long_lease {
            return;
        }
        let life = timing.long_element();
        let live: Vec<(Vip, Place)> = self
            .held
            .iter()
            .filter(|(_, held)| matches!(held.state, State::Live { .. }) && held.grant == Some((sent, length)))
            .map(|(vip, held)| (*vip, held.place.clone()))
            .collect();
        let mut left = BTreeSet::new();
        for (vip, place) in live {
            let op = self.kernel(place, KernelOp::Renew { vip, life, not_after: sent + timing.lease }, actions);
            left.insert(op);
            if let Some(Held { state: State::Live { renewing, .. }, .. }) = self.held.get_mut(&vip) {
                *renewing = Some(op);
            }
        }
        if left.is_empty() {
            actions.push(OwnerAction::Done { command, result: Ok(()) });
            self.long = Long::None;
        } else {
            self.long = Long::Setting { command, left };
        }
    }
}
