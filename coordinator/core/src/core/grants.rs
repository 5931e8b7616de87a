//! Leases: who is granted one, short or long.

use super::*;

impl Coordinator {
    pub(super) fn ask(&mut self, now: Time, agent: &AgentId, ask: Asked, actions: &mut Vec<Action>) {
        let timing = self.cluster.timing;
        let in_authority = self.in_authority(now);
        let Some(view) = self.agents.get_mut(agent) else {
            return;
        };
        let before = view.alive;
        let hears = view.asked(now, ask.incarnation, ask.nonce, ask.heard, timing.renewal);
        if let Some(before) = before.filter(|_| hears) {
            self.heard_again(now, agent, before, actions);
        }
        for (vip, state) in &mut self.vips {
            if state.row.as_ref().is_some_and(|row| row.owner == *agent) {
                state.owner_asked(now, ask.vips.iter().any(|asked| asked.vip == *vip), hears);
            }
        }
        if ask.long && ask.via.is_none() && in_authority && hears {
            return self.note_long_lease(agent, &ask, actions);
        }
        let later = self
            .last_long
            .get(agent)
            .is_none_or(|(incarnation, nonce)| ask.incarnation != *incarnation || ask.nonce > *nonce);
        if ask.via.is_none() && ask.long_surrendered && in_authority && hears && later {
            self.long_returned(now, agent, actions);
        }
        let origin = ask.via.is_some().then(|| agent.clone());
        let grant = self.decide(now, agent, ask.nonce, &ask.vips, hears, timing.lease, actions);
        actions.push(Action::Reply { session: ask.session, origin, grant });
    }

    /// The one place where leases are granted.
    #[allow(clippy::too_many_arguments)]
    fn decide(
        &mut self,
        now: Time,
        agent: &AgentId,
        nonce: Nonce,
        vips: &[AskVip],
        hears: bool,
        length: Duration,
        actions: &mut Vec<Action>,
    ) -> Grant {
        let in_authority = self.in_authority(now);
        let mut items = Vec::with_capacity(vips.len());
        let mut granted = false;
        for ask in vips {
            let verdict = match self.vips.get_mut(&ask.vip) {
                Some(state) => state.verdict(now, agent, ask.epoch, in_authority && hears, length),
                None => Verdict::Superseded,
            };
            granted |= verdict == Verdict::Granted;
            items.push(GrantItem { vip: ask.vip, epoch: ask.epoch, verdict });
            if self.vips.get(&ask.vip).is_some_and(|state| state.row.as_ref().is_some_and(|row| row.epoch < ask.epoch))
            {
                actions.push(Action::ReadLedger);
            }
        }
        if let Some(view) = self.agents.get_mut(agent).filter(|_| granted) {
            view.granted(now, nonce);
        }
        Grant { nonce, term: self.current_term(), in_authority, length, items }
    }

    // ---- long leases (rule 9) ----

    fn note_long_lease(&mut self, agent: &AgentId, ask: &Asked, actions: &mut Vec<Action>) {
        self.last_long.insert(agent.clone(), (ask.incarnation, ask.nonce));
        let mut left = BTreeSet::new();
        for item in &ask.vips {
            let job = self.job(JobFor::LongLease(agent.clone()));
            left.insert(job);
            actions.push(Action::SetLongLease { job, vip: item.vip, outstanding: true });
        }
        let long = LongAsk { session: ask.session, nonce: ask.nonce, vips: ask.vips.clone(), left, noted: true };
        self.long_asks.insert(agent.clone(), long);
    }

    /// A new coordinator must know how long to wait: the long lease is granted when every VIP of it is noted.
    pub(super) fn long_noted(
        &mut self,
        now: Time,
        agent: &AgentId,
        job: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(long) = self.long_asks.get_mut(agent) else {
            return;
        };
        if !long.left.remove(&job) {
            return;
        }
        long.noted &= matches!(result, JobResult::Done);
        if !long.left.is_empty() {
            return;
        }
        let Some(long) = self.long_asks.remove(agent) else {
            return;
        };
        for item in &long.vips {
            if let Some(row) = self.vips.get_mut(&item.vip).and_then(|state| state.row.as_mut()) {
                row.long_lease = true;
            }
        }
        let timing = self.cluster.timing;
        let length = if long.noted { timing.long_lease } else { timing.lease };
        let grant = self.decide(now, agent, long.nonce, &long.vips, true, length, actions);
        actions.push(Action::Reply { session: long.session, origin: None, grant });
    }

    fn long_returned(&mut self, now: Time, agent: &AgentId, actions: &mut Vec<Action>) {
        let timing = self.cluster.timing;
        let TermState::Held { floor, .. } = self.term else {
            return;
        };
        let mut returned = Vec::new();
        for (vip, state) in &mut self.vips {
            // It may be an earlier owner's, of which this one knows nothing, until none can be left.
            let theirs = state.only_its_owner_is_left();
            let Some(row) = &mut state.row else { continue };
            if row.owner == *agent && row.long_lease && theirs {
                row.long_lease = false;
                state.granted_until = floor.max(now + LeaseTiming::patience(timing.lease));
                returned.push(*vip);
            }
        }
        for vip in returned {
            let job = self.job(JobFor::LongReturned(vip));
            actions.push(Action::SetLongLease { job, vip, outstanding: false });
        }
    }
}

/// A request, taken apart.
pub(super) struct Asked {
    pub session: SessionId,
    pub via: Option<AgentId>,
    pub incarnation: u64,
    pub nonce: Nonce,
    pub heard: Nonce,
    pub vips: Vec<AskVip>,
    pub long: bool,
    pub long_surrendered: bool,
}
