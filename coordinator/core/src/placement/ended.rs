//! What comes of a step of a move: each job ends as one of these.

use super::*;

impl Coordinator {
    pub(crate) fn vip_job_done(
        &mut self,
        now: Time,
        vip: Vip,
        what: VipJob,
        job: JobId,
        result: JobResult,
        actions: &mut Vec<Action>,
    ) {
        if what == VipJob::Quiet {
            self.pausing.retain(|_, pausing| *pausing != job);
        }
        let careless = self.breaks(Sabotage::StrangerIgnored);
        let Some(state) = self.vips.get_mut(&vip) else {
            return;
        };
        let target = state.target.clone();
        let Some(moving) = &mut state.moving else {
            return;
        };
        let again = Try::Idle { not_before: now + RETRY };
        state.wake = now;
        match (&mut moving.stage, what) {
            (Stage::Advancing { step, ahead }, VipJob::Advance) if step.0 == Try::Running(job) => match result {
                JobResult::Epoch(epoch) => {
                    let took = now.since(moving.began);
                    let row = VipRow {
                        vip,
                        epoch,
                        owner: moving.to.agent.clone(),
                        domain: moving.to.domain.clone(),
                        cause: moving.cause,
                        long_lease: state.row.as_ref().is_some_and(|row| row.long_lease),
                    };
                    if state.row.is_none() && epoch > Epoch(1) {
                        // The ledger was lost: somebody may hold an earlier epoch, under a long lease even.
                        let long = LeaseTiming::patience(self.cluster.timing.long_lease + self.cluster.term);
                        state.granted_until = state.granted_until.max(now + long);
                    }
                    let text = format!(
                        "{vip} belongs to {} at epoch {epoch} (durable after {:?})",
                        row.owner,
                        whole_millis(took)
                    );
                    let expected = state.row.as_ref().map_or(Epoch(0), |row| row.epoch).next();
                    // Bars below a lower epoch than this say too little.
                    let ahead = ahead.take().filter(|_| epoch == expected);
                    moving.stage = Stage::Securing(ahead.unwrap_or_else(|| Box::new(Securing::new(now))));
                    state.row = Some(row);
                    state.secured = false;
                    self.note(Some(target), Severity::Info, "epoch-durable", text, actions);
                }
                JobResult::Failed(reason) | JobResult::Unknown(reason) => {
                    step.0 = again;
                    actions.push(Action::ReadLedger);
                    let text = format!("{vip}: SIF did not take the new epoch: {reason}");
                    self.note(Some(target), Severity::Warning, "epoch-refused", text, actions);
                }
                JobResult::Done | JobResult::Barred(_) | JobResult::Check(_) | JobResult::Answered(_) => step.0 = again,
            },
            // One that was asked for before this move began has a lower floor.
            (Stage::Securing(securing) | Stage::Advancing { ahead: Some(securing), .. }, VipJob::Bar(voter)) => {
                let Some(bar) = securing.asking.get_mut(&voter).filter(|bar| **bar == Try::Running(job)) else {
                    return;
                };
                if let JobResult::Barred(age) = result {
                    *bar = Try::Done;
                    securing.bars.insert(voter);
                    let lease = LeaseTiming::patience(self.cluster.timing.lease);
                    let left = lease.saturating_sub(age);
                    securing.consents_until = securing.consents_until.max(now + left);
                    securing.last_consent = securing.last_consent.max(now.before(age));
                } else {
                    *bar = again;
                }
            }
            (Stage::Securing(securing), VipJob::Release) if securing.release == Try::Running(job) => match result {
                JobResult::Done => {
                    securing.release = Try::Done;
                    if moving.from_secured {
                        moving.freed = Freed::Yes;
                        state.granted_until = now;
                    }
                    self.note(Some(target), Severity::Info, "released", format!("{vip} was released"), actions);
                }
                JobResult::Failed(_)
                | JobResult::Unknown(_)
                | JobResult::Epoch(_)
                | JobResult::Barred(_)
                | JobResult::Check(_)
                | JobResult::Answered(_) => securing.release = again,
            },
            // Made ready or not: it is a courtesy.
            (Stage::Securing(securing) | Stage::Advancing { ahead: Some(securing), .. }, VipJob::Prepare) => {
                securing.prepared = Try::Done;
            }
            (Stage::Securing(securing), VipJob::Resume) if securing.vm == Try::Running(job) => {
                let double = moving.to.clone();
                if result == JobResult::Done {
                    securing.vm = Try::Done;
                    let text = format!("the backup server of {vip} runs");
                    self.note(Some(target), Severity::Info, "backup-up", text, actions);
                    self.vips.values_mut().for_each(|state| state.resumed(&double));
                } else {
                    securing.vm = Try::Idle { not_before: now + 4 * RETRY };
                    let text = format!("the backup server of {vip} did not start: {}", describe(&result));
                    self.note(Some(target), Severity::Alert, "backup-failed", text, actions);
                }
                self.wake_moves_to(now, &double);
            }
            (Stage::Securing(securing), VipJob::PowerOff) if securing.writers.power == Try::Running(job) => {
                // Whatever it said: what counts is what the power reads.
                let Some(agent) = moving.from.as_ref().map(|(from, _)| from.agent.clone()) else {
                    securing.writers.power = again;
                    return;
                };
                let read = self.job(JobFor::Vip(vip, VipJob::PowerRead(now)));
                actions.push(Action::ReadPower { job: read, agent, timeout: FENCE_TIMEOUT });
                if let Some(Move { stage: Stage::Securing(securing), .. }) =
                    self.vips.get_mut(&vip).and_then(|state| state.moving.as_mut())
                {
                    securing.writers.power = Try::Running(read);
                }
            }
            (Stage::Securing(securing), VipJob::PowerRead(asked)) if securing.writers.power == Try::Running(job) => {
                if result == JobResult::Done {
                    securing.writers.power = Try::Done;
                    moving.proof = Some(asked);
                } else {
                    securing.writers.power = Try::Idle { not_before: now + Duration::from_secs(1) };
                    let first = !std::mem::replace(&mut securing.writers.told, true);
                    let why = describe(&result);
                    if first {
                        let text = format!("{vip}: not taken over before its owner's power reads off: {why}");
                        self.note(Some(target), Severity::Alert, "not-fenced", text, actions);
                    }
                }
            }
            (Stage::Securing(securing), VipJob::FenceStorage) if securing.writers.storage == Try::Running(job) => {
                if result == JobResult::Done {
                    securing.writers.storage = Try::Done;
                    let text = "the target's access to the storage is revoked".to_owned();
                    self.note(Some(target), Severity::Info, "fenced", text, actions);
                } else {
                    securing.writers.storage = Try::Idle { not_before: now + Duration::from_secs(1) };
                    if !std::mem::replace(&mut securing.writers.told, true) {
                        let text = format!("{vip}: not taken over before storage_fence works: {}", describe(&result));
                        self.note(Some(target), Severity::Alert, "not-fenced", text, actions);
                    }
                }
            }
            (Stage::Securing(securing), VipJob::LetGo) if securing.writers.left == Try::Running(job) => {
                securing.writers.left = if result == JobResult::Done { Try::Done } else { again };
            }
            (Stage::Securing(securing), VipJob::Quiet) if securing.writers.quiet == Try::Running(job) => {
                if result == JobResult::Done {
                    securing.writers.quiet = Try::Done;
                    if securing.writers.told {
                        self.alerts_over(Some(&target));
                    }
                } else {
                    securing.writers.quiet = again;
                    // Where everything has just been started, its host may not be connected yet.
                    let late = now >= securing.since + RELEASE_PATIENCE;
                    if late && !std::mem::replace(&mut securing.writers.told, true) {
                        let why = describe(&result);
                        let text = format!("{vip}: its double may still write, it was not suspended: {why}");
                        self.note(Some(target), Severity::Alert, "not-fenced", text, actions);
                    }
                }
            }
            (Stage::Securing(securing), VipJob::Conflict) if securing.conflict == Try::Running(job) => {
                match result {
                    JobResult::Answered(Some(mac)) if !careless => {
                        securing.conflict = Try::Idle { not_before: now + Duration::from_secs(1) };
                        let text = format!("{vip} still answers from {mac}: not opened; will look again");
                        self.note(Some(target), Severity::Alert, "vip-answers", text, actions);
                    }
                    // Presence can be shown, never absence: silence, or no probe at all, is no hindrance.
                    JobResult::Answered(_)
                    | JobResult::Done
                    | JobResult::Failed(_)
                    | JobResult::Unknown(_)
                    | JobResult::Epoch(_)
                    | JobResult::Barred(_)
                    | JobResult::Check(_) => securing.conflict = Try::Done,
                }
            }
            (Stage::Holding { step }, VipJob::Hold) if step.0 == Try::Running(job) => {
                if result == JobResult::Done {
                    let text = format!(
                        "VIP set: {vip} on {} after {:?}",
                        moving.to.agent,
                        whole_millis(now.since(moving.began))
                    );
                    state.moving = None;
                    state.held = true;
                    state.secured = true;
                    // Whatever long lease an earlier owner had was outlived or released.
                    let long = state.row.as_mut().is_some_and(|row| std::mem::replace(&mut row.long_lease, false));
                    if long {
                        let job = self.job(JobFor::LongReturned(vip));
                        actions.push(Action::SetLongLease { job, vip, outstanding: false });
                    }
                    self.note(Some(target.clone()), Severity::Info, "vip-set", text, actions);
                } else {
                    step.0 = again;
                    let text = format!("{vip}: {} did not open it: {}", moving.to.agent, describe(&result));
                    self.note(Some(target.clone()), Severity::Warning, "hold-failed", text, actions);
                }
                if let Some(dbss) = self.targets.get_mut(&target) {
                    dbss.wake = now;
                }
            }
            (Stage::Advancing { .. } | Stage::Securing(_) | Stage::Holding { .. }, _) => {}
        }
    }
}
