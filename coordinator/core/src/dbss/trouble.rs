//! Network examination and Service recovery mode: is it trouble, and does a restart cure it?

use super::*;
use crate::sabotage::Sabotage;

/// Time-out of a service restart, generous: restarts of real services take seconds.
pub(crate) const RESTART_TIMEOUT: Duration = Duration::from_secs(20);
/// Between probes after a restart.
pub(crate) const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// How long a restarted service may take to answer.
pub(crate) const RESTART_PATIENCE: Duration = Duration::from_secs(3);

/// Why a single writer without a fence is not taken over.
pub(crate) fn unfenced(service: &ServiceName) -> String {
    format!(
        "{service} is single_writer and has no writer_fence: it does not answer, but may still write, so its double is not \
         started; switch the target off where power_status shows it, shut it down cleanly, or configure writer_fence"
    )
}

impl Coordinator {
    // ---- Network examination mode ----

    pub(crate) fn network_examination(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        proof: Option<Time>,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        let silent = self.silent_as(now, name, target);
        let of_host = self.silent(now, &target.agent);
        // Heard of since its power read off, it is on again.
        let proof = proof.filter(|read| now.before(of_host) < *read);
        let dbss = self.dbss(name);
        match dbss.round {
            Round::Idle => return self.begin_round(now, name, target, Look::Lost, actions),
            Round::Running { .. } => return,
            Round::Ended => {}
        }
        let ping_bad = dbss.ping.bad();
        let probe_bad = !dbss.bad_services().is_empty();
        let all_good = dbss.ping.good() && dbss.services_good(target.services.len());
        if detection.push {
            let fresh = of_host <= self.silence_limit();
            if fresh && (!ping_bad || !probe_bad) {
                // A virtual server has no lease of its own: what is renewed is its real server's.
                let text = match target.vm {
                    None => "false alarm: its lease is renewed".to_owned(),
                    Some(_) => format!("false alarm: it answers, and {} renews its lease", target.agent),
                };
                self.note(Some(name.clone()), Severity::Info, "network-normal", text, actions);
                return self.enter_regular(now, name);
            }
            if silent < detection.confirm {
                let look = now + (detection.confirm - silent);
                return self.look_again(name, look);
            }
            if !ping_bad && !probe_bad && !all_good && proof.is_none() {
                // Nobody could look: silence alone convicts nobody; its power, read off, does.
                return self.look_again(name, now + detection.interval / 2);
            }
            if all_good {
                // Its agent is silent, its service answers: nothing is lost yet.
                let text = format!("its agent has been silent for {:?}, its service answers", whole_millis(silent));
                self.alarm_once(name, text, actions);
                return self.look_again(name, now + detection.interval / 2);
            }
        } else if !ping_bad {
            self.note(Some(name.clone()), Severity::Info, "network-normal", "Network_is_normal".into(), actions);
            return self.enter_regular(now, name);
        }
        if let Some(text) = self.held_back(now, target).filter(|_| proof.is_none()) {
            if let Mode::NetworkExamination { told, .. } = &mut self.dbss(name).mode
                && !std::mem::replace(told, true)
            {
                self.note(Some(name.clone()), Severity::Alert, "held", text, actions);
            }
            return self.look_again(name, now + detection.interval / 2);
        }
        let text = format!(
            "lost: lease silent for {:?}, ping {}, service {}{}",
            whole_millis(silent),
            self.dbss(name).ping.text(),
            self.dbss(name).view().service,
            if proof.is_some() { "; its power reads off" } else { "" }
        );
        if self.hold_back(name, Act::TakeOver, &text, actions) {
            return self.look_again(name, now + detection.interval / 2);
        }
        self.note(Some(name.clone()), Severity::Alert, "confirmed", text, actions);
        self.take_over(now, name, target, Why::Network, actions);
        if let Some(since) = proof {
            self.prove_dead(&self.vips_at_stake(target), since);
        }
    }

    /// Why nothing is taken over without proof, if so.
    fn held_back(&self, now: Time, target: &Target) -> Option<String> {
        if let Some((_, storm)) = self.brake.as_ref().filter(|_| !self.breaks(Sabotage::NoStormBrake)) {
            return Some(format!("held by the storm brake: {storm}"));
        }
        if !self.patience_allowed(Some(&target.agent)) {
            let text = "it does not answer, but nothing proves it dead, and without voters (on_coordinator_loss = \
                        \"keep\") or a guard patience is not allowed: switch it off, with power_status configured for it";
            return Some(text.to_owned());
        }
        if let Some(service) = target.writers().and_then(|writers| writers.unfenced) {
            return Some(unfenced(&service));
        }
        self.double_away(now, &self.double_host(target))
    }

    fn look_again(&mut self, name: &TargetName, at: Time) {
        self.wake_at(name, at);
        self.dbss(name).round = Round::Idle;
    }

    // ---- Service recovery mode ----

    pub(crate) fn service_down(
        &mut self,
        now: Time,
        agent: &AgentId,
        service: &ServiceName,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let found = self.cluster.targets.iter().find_map(|(name, target)| {
            let index = target.services.iter().position(|known| known.name == *service)?;
            (Self::restarter(target).as_ref() == Some(agent)).then(|| (name.clone(), self.as_it_is(target), index))
        });
        let Some((name, target, index)) = found else {
            return self.stand_in_service_down(now, agent, service, detail, actions);
        };
        let text = format!("service {service} is down: {detail}");
        self.dbss(&name).services.insert(index, Seen::Bad(now, detail.to_owned()));
        match &mut self.dbss(&name).mode {
            Mode::Regular { .. } => {
                self.note(Some(name.clone()), Severity::Warning, "service-down", text, actions);
                self.recover_services(now, &name, &target, vec![index], actions);
            }
            Mode::ServiceRecovery { services, .. } => {
                // Its turn comes; what is being restarted goes down and comes up.
                if !services.contains(&index) {
                    services.push(index);
                    self.note(Some(name.clone()), Severity::Warning, "service-down", text, actions);
                }
            }
            Mode::Starting
            | Mode::NetworkExamination { .. }
            | Mode::BackupServer { .. }
            | Mode::TargetServerRecovery { .. }
            | Mode::Returning { .. }
            | Mode::Ended { .. } => {}
        }
    }

    /// The target's own agent keeps it from writing while the VIPs are elsewhere, or does so no longer.
    pub(crate) fn service_held(
        &mut self,
        agent: &AgentId,
        service: &ServiceName,
        held: bool,
        actions: &mut Vec<Action>,
    ) {
        let found = self.cluster.targets.iter().find_map(|(name, target)| {
            let index = target.services.iter().position(|known| known.name == *service)?;
            (target.inner_agent() == Some(agent)).then(|| (name.clone(), index))
        });
        let name = found.map(|(name, index)| {
            let dbss = self.dbss(&name);
            if held {
                dbss.held.insert(index);
            } else {
                dbss.held.remove(&index);
            }
            name
        });
        let does = if held { "holds back" } else { "lets go of" };
        self.note(name, Severity::Info, "service-held", format!("{agent} {does} {service}"), actions);
    }

    /// Cure these services, one after another.
    pub(crate) fn recover_services(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        services: Vec<usize>,
        actions: &mut Vec<Action>,
    ) {
        if self.not_to_be_cured(now, name, target, &services, actions) {
            return;
        }
        for index in &services {
            let Some(service) = target.services.get(*index) else { continue };
            let seen = self.dbss(name).services.get(index).map_or_else(String::new, Seen::text);
            let text = format!("service {} is in trouble: {seen}", service.name);
            self.note(Some(name.clone()), Severity::Warning, "service-trouble", text, actions);
        }
        if self.cluster.detection.push {
            return self.restart_next(now, name, target, services, actions);
        }
        // Thesis: ping again; bad → Network examination mode.
        self.enter(now, name, Mode::ServiceRecovery { services, step: ServiceStep::Pinging });
        self.begin_round(now, name, target, Look::Ping, actions);
    }

    /// Is their cure withheld? With the backup's host in maintenance restarts are tried once: what would follow them
    /// can't be done, and restarting for ever is no cure.
    fn not_to_be_cured(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        services: &[usize],
        actions: &mut Vec<Action>,
    ) -> bool {
        let act = if self.held_already(name, Act::TakeOver) { Act::TakeOver } else { Act::Restart };
        let dbss = self.dbss(name);
        let seen = |index: &usize| {
            let name = &target.services.get(*index)?.name;
            Some(format!(
                "service {name} is in trouble: {}",
                dbss.services.get(index).map_or_else(String::new, Seen::text)
            ))
        };
        let why = services.iter().filter_map(seen).collect::<Vec<_>>().join(", ");
        self.stays_regular(now, name, act, &why, actions)
    }

    /// Restart the first of these services; with none left the target is well again.
    fn restart_next(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        services: Vec<usize>,
        actions: &mut Vec<Action>,
    ) {
        let Some((index, service)) = services.first().and_then(|index| Some((*index, target.services.get(*index)?)))
        else {
            return self.enter_regular(now, name);
        };
        let restarter = Self::restarter(target);
        let Some(agent) = restarter.filter(|_| service.restart) else {
            // Nobody restarts it, so what comes next is the backup server: one bad answer does not decide that.
            let detection = self.cluster.detection;
            if !detection.push {
                return self.take_over(now, name, target, Why::Service, actions);
            }
            let step = ServiceStep::Probing { next: now + PROBE_AGAIN, until: now + detection.confirm };
            self.enter(now, name, Mode::ServiceRecovery { services, step });
            return self.wake_at(name, now + PROBE_AGAIN);
        };
        if !self.dbss(name).budgets.take_restart(now, index, &target.budget) {
            let Budget { restarts, within, .. } = target.budget;
            let text = format!(
                "{} was restarted {restarts} times within {within:?} and is down again: restarts do not cure it",
                service.name
            );
            self.note(Some(name.clone()), Severity::Alert, "restarts-used-up", text, actions);
            return self.take_over(now, name, target, Why::Service, actions);
        }
        let text = format!("restarting {}", service.name);
        self.note(Some(name.clone()), Severity::Info, "restarting", text, actions);
        self.enter(now, name, Mode::ServiceRecovery { services, step: ServiceStep::Restarting });
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Restart));
        let command = AgentCommand::RestartService { service: service.name.clone() };
        actions.push(Action::Command { job, agent, command, timeout: RESTART_TIMEOUT });
    }

    pub(crate) fn restart_done(&mut self, now: Time, name: &TargetName, result: &JobResult, actions: &mut Vec<Action>) {
        let crate::config::Detection { settle, push, .. } = self.cluster.detection;
        let dbss = self.dbss(name);
        // Tsw runs from the order on; a restart that took longer is looked at at once.
        let next = now.max(dbss.since + settle);
        let Mode::ServiceRecovery { services, step: step @ ServiceStep::Restarting } = &mut dbss.mode else {
            return;
        };
        *step = match result {
            // It says so itself, and does so at once: one last look, and no patience.
            JobResult::Failed(_) if push => ServiceStep::Probing { next: now, until: now },
            JobResult::Done
            | JobResult::Failed(_)
            | JobResult::Unknown(_)
            | JobResult::Epoch(_)
            | JobResult::Barred(_)
            | JobResult::Check(_)
            | JobResult::Answered(_) => ServiceStep::Probing { next, until: next + RESTART_PATIENCE },
        };
        if let Some(index) = services.first() {
            dbss.services.remove(index);
        }
        dbss.wake = now;
        if *result != JobResult::Done {
            let text = format!("the service could not be restarted: {}", describe(result));
            self.note(Some(name.clone()), Severity::Warning, "restart-failed", text, actions);
        }
    }

    pub(crate) fn service_recovery(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        mut services: Vec<usize>,
        step: &ServiceStep,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        if detection.push && self.fell_silent(now, &target.agent) {
            return self.examine(now, name, "its lease fell silent during service recovery".into(), actions);
        }
        self.watch_lease(now, name, target);
        let over = self.dbss(name).round_over();
        match *step {
            ServiceStep::Restarting => {}
            ServiceStep::Pinging if over => {
                let ping = self.dbss(name).ping.clone();
                if let Seen::Bad(_, why) = ping {
                    return self.examine(now, name, format!("ping: {why}"), actions);
                }
                self.restart_next(now, name, target, services, actions);
            }
            ServiceStep::Pinging => {
                if self.dbss(name).round == Round::Idle {
                    self.begin_round(now, name, target, Look::Ping, actions);
                }
            }
            ServiceStep::Probing { until, .. } if over => {
                let Some(index) = services.first().copied() else {
                    return self.enter_regular(now, name);
                };
                let seen = self.dbss(name).services.get(&index).cloned().unwrap_or_default();
                if seen.good() {
                    let text = "the service answers again".to_owned();
                    self.note(Some(name.clone()), Severity::Info, "service-normal", text, actions);
                    services.remove(0);
                    return self.restart_next(now, name, target, services, actions);
                }
                if now >= until || !detection.push {
                    let restarts =
                        target.services.get(index).is_some_and(|it| it.restart) && Self::restarter(target).is_some();
                    let why =
                        if restarts { "its restart did not cure the service" } else { "the service does not answer" };
                    let text = format!("{why}: {}", seen.text());
                    self.note(Some(name.clone()), Severity::Alert, "confirmed", text, actions);
                    return self.take_over(now, name, target, Why::Service, actions);
                }
                let next = now + PROBE_AGAIN;
                self.dbss(name).mode = Mode::ServiceRecovery { services, step: ServiceStep::Probing { next, until } };
                self.wake_at(name, next);
            }
            ServiceStep::Probing { next, .. } => {
                if self.dbss(name).round != Round::Idle {
                    return;
                }
                match services.first() {
                    Some(index) if now >= next => {
                        self.begin_round(now, name, target, Look::Service(*index), actions);
                    }
                    Some(_) => self.wake_at(name, next),
                    None => self.enter_regular(now, name),
                }
            }
        }
    }
}
