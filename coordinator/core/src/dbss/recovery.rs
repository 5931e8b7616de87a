//! Backup server mode, and the way back.

use super::*;
use crate::placement::{FENCE_TIMEOUT, LET_GO};
use kage_types::DomainName;
use kage_types::{AskVip, Epoch};

impl Coordinator {
    // ---- Backup server mode ----

    pub(crate) fn take_over(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        why: Why,
        actions: &mut Vec<Action>,
    ) {
        if self.stays_regular(now, name, Act::TakeOver, why.as_str(), actions) {
            return;
        }
        self.claim(name, target, why.as_str());
        let to = self.at_backup(target);
        let (reason, planned) = (why.as_str(), why.planned());
        let text = format!("{} on {} takes over ({reason})", self.double_of(target), to.agent);
        self.note(Some(name.clone()), Severity::Info, "backup-server", text, actions);
        self.only_place(name, &to.agent, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "backup".into(), detail: reason.into() });
        if why.is_failure() {
            self.dbss(name).budgets.count_takeover(now, &target.budget);
        }
        self.move_all(now, target, &to, Cause::Takeover, planned);
        self.enter(now, name, Mode::BackupServer { why });
    }

    /// A clean stop is a planned hand-over: the owner releases as it goes, the backup serves at once.
    pub(crate) fn going_down(&mut self, now: Time, agent: &AgentId, actions: &mut Vec<Action>) {
        let names: Vec<(TargetName, Target)> = self
            .cluster
            .targets
            .iter()
            .map(|(name, target)| (name.clone(), self.as_it_is(target)))
            .filter(|(_, target)| target.agent == *agent || target.inner_agent() == Some(agent))
            .filter(|(_, target)| !self.is_suspended(target))
            .collect();
        for (name, target) in names {
            match self.dbss(&name).mode {
                Mode::Regular { .. }
                | Mode::ServiceRecovery { .. }
                | Mode::NetworkExamination { .. }
                | Mode::Returning { unfencing: None } => {
                    self.take_over(now, &name, &target, Why::GoingDown, actions);
                }
                Mode::TargetServerRecovery {
                    background:
                        Background::Healthy { .. } | Background::Settling { .. } | Background::DoubleSilent { .. },
                }
                | Mode::Returning { unfencing: Some(_) } => {
                    let until = now + target.reboot_wait;
                    let background = Background::AwaitReboot { job: Job::Return, until, left: false };
                    self.enter(now, &name, Mode::TargetServerRecovery { background });
                }
                // Expected, the operator's business, or nothing is being served there.
                Mode::TargetServerRecovery {
                    background: Background::AwaitReboot { .. } | Background::Waking { .. } | Background::Operator { .. },
                }
                | Mode::Starting
                | Mode::BackupServer { .. }
                | Mode::Ended { .. } => {}
            }
        }
    }

    pub(crate) fn backup_server(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        why: Why,
        actions: &mut Vec<Action>,
    ) {
        if self.taken_over(target) {
            return self.begin_background(now, name, target, why, actions);
        }
        // Not durable yet, and the target is back: roll back.
        let fresh = self.cluster.detection.push && self.connected(now, &target.agent) && !why.planned();
        let steady = self.agents.get(&target.agent).and_then(|view| view.steady_since);
        let back = fresh && steady.is_some_and(|since| since > self.dbss(name).since);
        if back && self.at_home_but_for_moves(target) && self.cancel_moves(&self.vips_at_stake(target)) {
            let text = "its lease is renewed again before anything was moved: rolled back".to_owned();
            self.unclaim(name, target);
            self.note(Some(name.clone()), Severity::Info, "rolled-back", text, actions);
            actions.push(Action::PutTrouble { target: name.clone(), stage: String::new(), detail: String::new() });
            return self.enter_regular(now, name);
        }
        self.wake_at(name, now + self.cluster.timing.renewal);
    }

    /// Does every VIP still belong to the target, whatever is being done about it?
    fn at_home_but_for_moves(&self, target: &Target) -> bool {
        let home = self.home_owner(target);
        let row = |vip| self.vips.get(vip).and_then(|state| state.row.as_ref());
        let there = |vip| row(vip).is_some_and(|row| row.owner == home.agent && row.domain == home.domain);
        self.vips_at_stake(target).iter().all(there)
    }

    /// Does its backup server have all that it held? What belongs to it may be less, and the rest be on its way still.
    fn taken_over(&self, target: &Target) -> bool {
        let backup = self.at_backup(target);
        let done = |vip| {
            self.vips.get(vip).is_some_and(|state| {
                let theirs = [target.domain(), backup.domain.as_ref()];
                // Of a virtual server: it would have been arranged here, and is with a third one.
                let another = state.row.as_ref().is_some_and(|row| !theirs.contains(&row.domain.as_ref()));
                state.settled_on(&backup) || target.vm.is_some() && another && state.moving.is_none()
            })
        };
        self.vips_at_stake(target).iter().all(done)
    }

    /// The double is gone while it may be serving: the target takes its place again if it can, else the double is
    /// started anew, under a new epoch as in every move.
    pub(crate) fn double_crashed(
        &mut self,
        now: Time,
        agent: &AgentId,
        domain: &DomainName,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let doubles = |target: &Target| self.double_of(target) == domain && self.double_host(target) == *agent;
        let targets: Vec<(TargetName, Target)> = self
            .cluster
            .targets
            .iter()
            .filter(|(_, target)| doubles(target))
            .map(|(name, target)| (name.clone(), target.clone()))
            .collect();
        for (name, target) in targets {
            let text = format!("{domain} on {agent} crashed: {detail}");
            self.note(Some(name.clone()), Severity::Alert, "double-crashed", text, actions);
            let backup = self.at_backup(&target);
            // Told, and no more: in maintenance, disarmed, or where pushed events are not acted on (profile thesis).
            let idle = self.withheld(&name).is_some() || !self.cluster.detection.push;
            if idle || !self.all_settled_on(&target, &backup) {
                continue;
            }
            let healthy = matches!(
                self.dbss(&name).mode,
                Mode::TargetServerRecovery {
                    background: Background::Healthy { .. }
                        | Background::Operator { healthy: true }
                        | Background::DoubleSilent { .. }
                }
            );
            if healthy {
                let text = "its double is gone and it is healthy: going back at once".to_owned();
                self.note(Some(name.clone()), Severity::Info, "returning", text, actions);
                self.begin_return(now, &name, &target, Cause::Failback, actions);
            } else if self.stands_in(domain) {
                self.stand_in_crashed(now, domain, detail, actions);
            } else {
                // Also what it took over with the target, and is of others.
                let vips = self.vips_of(&target);
                vips.union(&target.vips).for_each(|vip| self.serve_anew(now, *vip, backup.clone()));
            }
        }
    }

    // ---- the way back ----

    pub(crate) fn go_back(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        let text = "healthy for long enough: going back".to_owned();
        self.note(Some(name.clone()), Severity::Info, "returning", text, actions);
        self.begin_return(now, name, target, Cause::Failback, actions);
    }

    /// The VIPs go back, once the target may reach the storage again.
    pub(crate) fn begin_return(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        cause: Cause,
        actions: &mut Vec<Action>,
    ) {
        if target.writers().is_none_or(|writers| !writers.storage) {
            self.move_all(now, target, &self.home_owner(target), cause, true);
            return self.enter(now, name, Mode::Returning { unfencing: None });
        }
        self.enter(now, name, Mode::Returning { unfencing: Some(cause) });
        self.let_go(name, target, 0, actions);
    }

    /// It was shut out while it wrote, and may be doing so still: a service that is slow to stop, an agent that stalled.
    /// It gets the storage back when its agent has acknowledged that nothing behind its VIPs runs.
    fn let_go(&mut self, name: &TargetName, target: &Target, index: usize, actions: &mut Vec<Action>) {
        let home = self.home_owner(target);
        for (at, vip) in target.vips.iter().enumerate().skip(index) {
            let Some(row) = self.vips.get(vip).and_then(|state| state.row.as_ref()) else { continue };
            // What it owns again it may write behind.
            if row.owner == home.agent && row.domain == home.domain {
                continue;
            }
            let ask = AskVip { vip: *vip, epoch: Epoch(row.epoch.0.saturating_sub(1)) };
            let job = self.job(JobFor::Target(name.clone(), TargetJob::LetGo(at)));
            let command = AgentCommand::Release { ask };
            actions.push(Action::Command { job, agent: target.agent.clone(), command, timeout: LET_GO });
            return;
        }
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Unfence));
        let (address, timeout) = (target.address, FENCE_TIMEOUT);
        actions.push(Action::FenceStorage { job, address, revoke: false, timeout });
    }

    pub(crate) fn let_go_done(
        &mut self,
        now: Time,
        name: &TargetName,
        index: usize,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            return;
        };
        let Mode::Returning { unfencing: Some(_) } = self.dbss(name).mode else {
            return;
        };
        if *result == JobResult::Done {
            return self.let_go(name, &target, index + 1, actions);
        }
        let text = format!("it does not say that its services are down: {}; asked again", describe(result));
        self.note(Some(name.clone()), Severity::Warning, "unfence-failed", text, actions);
        let background = Background::Healthy { since: now, waits: Waits::Steadiness };
        self.enter(now, name, Mode::TargetServerRecovery { background });
    }

    pub(crate) fn unfence_done(&mut self, now: Time, name: &TargetName, result: &JobResult, actions: &mut Vec<Action>) {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            return;
        };
        let Mode::Returning { unfencing: Some(cause) } = self.dbss(name).mode else {
            return;
        };
        if *result == JobResult::Done {
            self.move_all(now, &target, &self.home_owner(&target), cause, true);
            return self.enter(now, name, Mode::Returning { unfencing: None });
        }
        let text = format!("storage_unfence: {}: the target does not return; repair that command", describe(result));
        self.note(Some(name.clone()), Severity::Alert, "unfence-failed", text, actions);
        let background = Background::Healthy { since: now, waits: Waits::Steadiness };
        self.enter(now, name, Mode::TargetServerRecovery { background });
    }

    pub(crate) fn returning(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        unfencing: Option<Cause>,
        actions: &mut Vec<Action>,
    ) {
        if unfencing.is_some() {
            return;
        }
        if self.all_settled_on(target, &self.home_owner(target)) {
            let took = now.since(self.dbss(name).since);
            let text = format!("the target serves again (moved back within {:?})", whole_millis(took));
            self.note(Some(name.clone()), Severity::Info, "regular", text, actions);
            actions.push(Action::PutTrouble { target: name.clone(), stage: String::new(), detail: String::new() });
            self.verdict(now, name, target, true);
            self.suspend_double(target, name, actions);
            return self.enter_regular(now, name);
        }
        if self.silent(now, &target.agent) >= self.cluster.detection.confirm.max(self.silence_limit()) {
            let text = "the target fell silent again while its virtual IPs were on their way".to_owned();
            if self.stays_regular(now, name, Act::TakeOver, &text, actions) {
                return;
            }
            self.note(Some(name.clone()), Severity::Alert, "confirmed", text, actions);
            return self.take_over(now, name, target, Why::LostReturning, actions);
        }
        self.wake_at(name, now + self.cluster.timing.renewal);
    }

    /// Down: checked now and then for `status` and for the operator's fail-back; nothing is done.
    pub(crate) fn ended(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        /// Between two looks at a target that was given up.
        const LOOK: Duration = Duration::from_secs(5);
        let dbss = self.dbss(name);
        dbss.round_over();
        if dbss.round != Round::Idle {
            return;
        }
        let next = dbss.round_ended + LOOK;
        if now >= next {
            self.begin_round(now, name, target, Look::AtTarget, actions);
        } else {
            self.wake_at(name, next);
        }
    }
}
