//! Backup server and Target server recovery mode, the way back, and the operator's moves.

use super::*;

impl Coordinator {
    // ---- Backup server mode ----

    pub(crate) fn take_over(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        planned: bool,
        why: &str,
        actions: &mut Vec<Action>,
    ) {
        let to = Self::at_backup(target);
        let text = format!("{} on {} takes over ({why})", target.backup.domain, target.backup.agent);
        self.note(Some(name.clone()), Severity::Info, "backup-server", text, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "backup".into(), detail: why.into() });
        self.move_all(now, target, &to, Cause::Takeover, planned);
        self.enter(now, name, Mode::BackupServer { planned });
        if planned && why == "service trouble" {
            // Background job 1 begins when the VIPs are away: see `backup_server`.
            self.dbss(name).alarmed = false;
        }
    }

    /// A clean stop is a planned hand-over: the owner releases as it goes, the backup serves at once.
    pub(crate) fn going_down(&mut self, now: Time, agent: &AgentId, actions: &mut Vec<Action>) {
        let names: Vec<(TargetName, Target)> = self
            .cluster
            .targets
            .iter()
            .filter(|(_, target)| target.agent == *agent)
            .map(|(name, target)| (name.clone(), target.clone()))
            .collect();
        for (name, target) in names {
            let here = matches!(
                self.dbss(&name).mode,
                Mode::Regular { .. } | Mode::ServiceRecovery { .. } | Mode::NetworkExamination { .. }
            );
            if here {
                self.take_over(now, &name, &target, false, "it is going down", actions);
            }
        }
    }

    pub(crate) fn backup_server(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        planned: bool,
        actions: &mut Vec<Action>,
    ) {
        let backup = Self::at_backup(target);
        if self.all_settled_on(target, &backup) {
            let manual = target.vips.iter().any(|vip| {
                self.vips.get(vip).and_then(|state| state.row.as_ref()).is_some_and(|row| row.cause == Cause::Failover)
            });
            if planned && !manual {
                // Background job 1: the service could not be cured by its restart, perhaps a reboot cures it.
                self.note(Some(name.clone()), Severity::Info, "rebooting", "rebooting the target".into(), actions);
                let job = self.job(JobFor::Target(name.clone(), TargetJob::Reboot));
                let timeout = Duration::from_secs(5);
                actions.push(Action::Command {
                    job,
                    agent: target.agent.clone(),
                    command: AgentCommand::Reboot,
                    timeout,
                });
            }
            let background = Background::AwaitReboot { until: now + target.reboot_wait };
            return self.enter(now, name, Mode::TargetServerRecovery { background, manual });
        }
        // Not durable yet, and the target is back: roll back.
        let fresh = self.cluster.detection.push && self.connected(now, &target.agent) && !planned;
        let steady = self.agents.get(&target.agent).and_then(|view| view.steady_since);
        let back = fresh && steady.is_some_and(|since| since > self.dbss(name).since);
        if back && self.at_home_but_for_moves(target) && self.cancel_moves(&target.vips) {
            let text = "its lease is renewed again before anything was moved: rolled back".to_owned();
            self.note(Some(name.clone()), Severity::Info, "rolled-back", text, actions);
            actions.push(Action::PutTrouble { target: name.clone(), stage: String::new(), detail: String::new() });
            return self.enter(now, name, Mode::Regular { next: now + self.cluster.detection.interval });
        }
        self.wake_at(name, now + self.cluster.timing.renewal);
    }

    /// Does every VIP still belong to the target, whatever is being done about it?
    fn at_home_but_for_moves(&self, target: &Target) -> bool {
        let home = |vip| self.vips.get(vip).and_then(|state| state.row.as_ref());
        target.vips.iter().all(|vip| home(vip).is_some_and(|row| row.owner == target.agent && row.domain.is_none()))
    }

    // ---- Target server recovery mode ----

    pub(crate) fn target_server_recovery(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        background: &Background,
        manual: bool,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        let interval = detection.interval.min(Duration::from_secs(1));
        let connected = self.connected(now, &target.agent);
        let dbss = self.dbss(name);
        if !dbss.checks.is_empty() {
            return;
        }
        if dbss.rounds == 0 {
            if now >= dbss.round_ended + interval || dbss.round_ended == dbss.since {
                self.check_round(name, target, false, actions);
            } else {
                let next = dbss.round_ended + interval;
                self.wake_at(name, next);
            }
            return;
        }
        dbss.rounds = 0;
        let healthy = connected && dbss.services_good(target.services.len()) && (dbss.ping.good() || detection.push);
        let alive = dbss.ping.good() || connected;
        let next = match background {
            _ if healthy && !matches!(background, Background::Healthy { .. }) => {
                self.note(
                    Some(name.clone()),
                    Severity::Info,
                    "target-up",
                    "the target is up and answers".into(),
                    actions,
                );
                Background::Healthy { since: now }
            }
            Background::Healthy { since } if healthy => {
                if now.since(*since) >= target.healthy_for && target.failback == Failback::Auto && !manual {
                    return self.go_back(now, name, target, actions);
                }
                Background::Healthy { since: *since }
            }
            Background::Healthy { .. } => {
                self.note(
                    Some(name.clone()),
                    Severity::Info,
                    "target-away",
                    "the target is away again".into(),
                    actions,
                );
                Background::AwaitReboot { until: now + target.reboot_wait }
            }
            Background::AwaitReboot { until } if now >= *until && !alive && !manual => {
                self.wake_target(now, name, target, 1, actions)
            }
            Background::Waking { attempt, until } if now >= *until && !alive => {
                if *attempt >= MAX_WAKES {
                    let text = "the target did not come back: the backup keeps serving".to_owned();
                    self.note(Some(name.clone()), Severity::Alert, "down", text, actions);
                    actions.push(Action::PutTrouble {
                        target: name.clone(),
                        stage: "down".into(),
                        detail: "did not come back after Wake-on-LAN".into(),
                    });
                    return self.enter(now, name, Mode::Ended);
                }
                self.wake_target(now, name, target, attempt + 1, actions)
            }
            Background::AwaitReboot { .. } | Background::Waking { .. } => background.clone(),
        };
        let dbss = self.dbss(name);
        dbss.mode = Mode::TargetServerRecovery { background: next, manual };
        let at = dbss.round_ended + interval;
        self.wake_at(name, at);
    }

    /// Wake-on-LAN, from the backup's host and from every other agent that is up (one of them shares its segment).
    fn wake_target(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        attempt: u32,
        actions: &mut Vec<Action>,
    ) -> Background {
        let until = now + target.start_wait;
        let mac = self.cluster.agents.get(&target.agent).and_then(|machine| machine.mac.clone());
        let Some(mac) = mac else {
            let text = "the target is down and has no mac in the configuration: switch it on by hand".to_owned();
            self.note(Some(name.clone()), Severity::Alert, "cannot-wake", text, actions);
            return Background::Waking { attempt: MAX_WAKES, until };
        };
        let text = format!("the target is down: Wake-on-LAN to {mac} (attempt {attempt})");
        self.note(Some(name.clone()), Severity::Info, "waking", text, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "waking".into(), detail: mac.clone() });
        let mut from: Vec<AgentId> = vec![target.backup.agent.clone()];
        from.extend(self.cluster.voters().filter(|voter| self.connected(now, voter)).take(1).cloned());
        for agent in from {
            let job = self.job(JobFor::Target(name.clone(), TargetJob::Wake));
            let command = AgentCommand::Wake { mac: mac.clone() };
            actions.push(Action::Command { job, agent, command, timeout: Duration::from_secs(3) });
        }
        Background::Waking { attempt, until }
    }

    fn go_back(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        self.note(
            Some(name.clone()),
            Severity::Info,
            "returning",
            "healthy for long enough: going back".into(),
            actions,
        );
        self.move_all(now, target, &Self::at_home(target), Cause::Failback, true);
        self.enter(now, name, Mode::Returning);
    }

    pub(crate) fn returning(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        if self.all_settled_on(target, &Self::at_home(target)) {
            let took = now.since(self.dbss(name).since);
            let text = format!("the target serves again (moved back within {took:?})");
            self.note(Some(name.clone()), Severity::Info, "regular", text, actions);
            actions.push(Action::PutTrouble { target: name.clone(), stage: String::new(), detail: String::new() });
            self.suspend_double(target, name, actions);
            let next = now + self.cluster.detection.interval;
            return self.enter(now, name, Mode::Regular { next });
        }
        if self.silent(now, &target.agent) >= self.cluster.detection.confirm.max(self.silence_limit()) {
            let text = "the target fell silent again while its virtual IPs were on their way".to_owned();
            self.note(Some(name.clone()), Severity::Alert, "confirmed", text, actions);
            return self.take_over(now, name, target, false, "lost while returning", actions);
        }
        self.wake_at(name, now + self.cluster.timing.renewal);
    }

    /// Its last VIP has left: the double sleeps again.
    fn suspend_double(&mut self, target: &Target, name: &TargetName, actions: &mut Vec<Action>) {
        let backup = Self::at_backup(target);
        let serves = self.vips.values().any(|state| {
            state.row.as_ref().is_some_and(|row| row.owner == backup.agent && row.domain == backup.domain)
                || state.moving.as_ref().is_some_and(|moving| moving.to == backup)
        });
        if serves {
            return;
        }
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Pause));
        let command = AgentCommand::PauseVm { domain: target.backup.domain.clone() };
        actions.push(Action::Command { job, agent: backup.agent, command, timeout: Duration::from_secs(10) });
    }

    // ---- operators ----

    pub(crate) fn operator_move(
        &mut self,
        now: Time,
        command: u64,
        name: &TargetName,
        back: bool,
        force: bool,
        actions: &mut Vec<Action>,
    ) {
        let result = self.try_operator_move(now, name, back, force, actions);
        actions.push(Action::Moved { command, result });
    }

    fn try_operator_move(
        &mut self,
        now: Time,
        name: &TargetName,
        back: bool,
        force: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            let known: Vec<&str> = self.cluster.targets.keys().map(TargetName::as_str).collect();
            return Err(format!("there is no target {name:?}; the configuration has: {}", known.join(", ")));
        };
        if !self.in_authority(now) {
            return Err("this coordinator has no valid term: is SIF up? (kagectl status)".into());
        }
        let to = if back { Self::at_home(&target) } else { Self::at_backup(&target) };
        if self.all_settled_on(&target, &to) {
            return Err(format!("{name} is already served by {}", to.agent));
        }
        if !self.connected(now, &to.agent) {
            return Err(format!("the agent of {} does not answer: bring it up first", to.agent));
        }
        let healthy = self.dbss(name).services_good(target.services.len());
        if back && !healthy && !force {
            return Err(format!(
                "the services of {name} do not answer on its own address: repair them, or use --force"
            ));
        }
        let owner = target.agent.clone();
        let gone = !back && !self.connected(now, &owner);
        let cause = if back { Cause::Failback } else { Cause::Failover };
        let words = if back { "failback asked for by the operator" } else { "failover asked for by the operator" };
        self.note(
            Some(name.clone()),
            Severity::Info,
            if back { "failback" } else { "failover" },
            words.into(),
            actions,
        );
        self.move_all(now, &target, &to, cause, !gone);
        self.enter(now, name, if back { Mode::Returning } else { Mode::BackupServer { planned: !gone } });
        Ok(())
    }
}
