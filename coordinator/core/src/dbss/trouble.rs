//! Network examination and Service recovery mode: is it trouble, and does a restart cure it?

use super::*;

impl Coordinator {
    // ---- Network examination mode ----

    pub(crate) fn network_examination(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        since: Time,
        told: bool,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        let silent = self.silent(now, &target.agent);
        let dbss = self.dbss(name);
        if dbss.rounds == 0 {
            if dbss.checks.is_empty() {
                self.check_round(name, target, true, actions);
                self.read_power(now, name, target, actions);
            }
            return;
        }
        let ping_bad = dbss.ping.bad();
        let probe_bad = dbss.bad_service().is_some();
        let all_good = dbss.ping.good() && dbss.services_good(target.services.len());
        if detection.push {
            let fresh = silent <= self.silence_limit();
            if fresh && (!ping_bad || !probe_bad) {
                let text = "false alarm: its lease is renewed".to_owned();
                self.note(Some(name.clone()), Severity::Info, "network-normal", text, actions);
                return self.enter(now, name, Mode::Regular { next: now + detection.interval });
            }
            if silent < detection.confirm {
                let look = now + (detection.confirm - silent);
                return self.look_again(name, look);
            }
            if !ping_bad && !probe_bad && !all_good {
                // Nobody could look: silence alone convicts nobody.
                return self.look_again(name, now + detection.interval / 2);
            }
            if all_good {
                // Its agent is silent, its service answers: nothing is lost yet.
                self.alarm_once(
                    name,
                    format!("its agent has been silent for {silent:?}, its service answers"),
                    actions,
                );
                return self.look_again(name, now + detection.interval / 2);
            }
        } else if !ping_bad {
            self.note(Some(name.clone()), Severity::Info, "network-normal", "Network_is_normal".into(), actions);
            return self.enter(now, name, Mode::Regular { next: now + detection.interval });
        }
        let proof = self.dbss(name).off;
        if let (Some((_, storm)), None) = (&self.brake, proof) {
            if !told {
                let text = format!("held by the storm brake: {storm}");
                self.note(Some(name.clone()), Severity::Alert, "held", text, actions);
                self.dbss(name).mode = Mode::NetworkExamination { since, told: true };
            }
            return self.look_again(name, now + detection.interval / 2);
        }
        let home = Self::at_home(target);
        if !self.patience_allowed(Some(&home.agent)) && proof.is_none() {
            if !told {
                let text = "it does not answer, but nothing proves it dead, and without voters (on_coordinator_loss = \
                            \"keep\") or a guard patience is not allowed: switch it off, with power_status configured for it";
                self.note(Some(name.clone()), Severity::Alert, "held", text.into(), actions);
                self.dbss(name).mode = Mode::NetworkExamination { since, told: true };
            }
            return self.look_again(name, now + detection.interval / 2);
        }
        let text = format!(
            "lost: lease silent for {silent:?}, ping {}, service {}{}",
            self.dbss(name).ping.text(),
            self.dbss(name).view().service,
            if proof.is_some() { "; its power reads off" } else { "" }
        );
        self.note(Some(name.clone()), Severity::Alert, "confirmed", text, actions);
        self.take_over(now, name, target, false, "network trouble", actions);
        if let Some(since) = proof {
            self.prove_dead(&target.vips, since);
        }
    }

    /// Proof of death, where the machine's power can be read.
    fn read_power(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        let readable = self.cluster.agents.get(&target.agent).is_some_and(|machine| machine.power_status.is_some());
        if readable {
            let what = TargetJob::Power(now);
            let job = self.job(JobFor::Target(name.clone(), what.clone()));
            self.dbss(name).checks.insert(job, what);
            let timeout = self.cluster.detection.probe_timeout;
            actions.push(Action::ReadPower { job, agent: target.agent.clone(), timeout });
        }
    }

    fn look_again(&mut self, name: &TargetName, at: Time) {
        let dbss = self.dbss(name);
        if dbss.wake > at {
            dbss.wake = at;
        }
        dbss.rounds = 0;
        dbss.checks.clear();
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
            (target.agent == *agent).then(|| (name.clone(), target.clone(), index))
        });
        let Some((name, target, index)) = found else {
            return;
        };
        if matches!(self.dbss(&name).mode, Mode::Regular { .. }) {
            let text = format!("service {service} is down: {detail}");
            self.note(Some(name.clone()), Severity::Warning, "service-down", text, actions);
            self.recover_service(now, &name, &target, index, actions);
        }
    }

    pub(crate) fn recover_service(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        index: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(service) = target.services.get(index) else {
            return;
        };
        let seen = self.dbss(name).services.get(&index).map_or_else(String::new, Seen::text);
        let text = format!("service {} is in trouble: {seen}", service.name);
        self.note(Some(name.clone()), Severity::Warning, "service-trouble", text, actions);
        if !service.restart {
            return self.take_over(now, name, target, true, "service trouble", actions);
        }
        let text = format!("restarting {}", service.name);
        self.note(Some(name.clone()), Severity::Info, "restarting", text, actions);
        self.enter(now, name, Mode::ServiceRecovery { service: index, step: ServiceStep::Restarting });
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Restart));
        let command = AgentCommand::RestartService { service: service.name.clone() };
        actions.push(Action::Command { job, agent: target.agent.clone(), command, timeout: RESTART_TIMEOUT });
    }

    pub(crate) fn service_recovery(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        index: usize,
        step: &ServiceStep,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        if detection.push && !self.connected(now, &target.agent) {
            return self.examine(now, name, "its lease fell silent during service recovery".into(), actions);
        }
        self.watch_lease(now, name, target);
        let ServiceStep::Probing { next, until } = *step else {
            return;
        };
        let dbss = self.dbss(name);
        if !dbss.checks.is_empty() {
            return;
        }
        if dbss.rounds > 0 {
            dbss.rounds = 0;
            let seen = dbss.services.get(&index).cloned().unwrap_or_default();
            if seen.good() {
                self.note(
                    Some(name.clone()),
                    Severity::Info,
                    "service-normal",
                    "the service answers again".into(),
                    actions,
                );
                return self.enter(now, name, Mode::Regular { next: now + detection.interval });
            }
            if now >= until || !detection.push {
                let text = format!("its restart did not cure the service: {}", seen.text());
                self.note(Some(name.clone()), Severity::Alert, "confirmed", text, actions);
                return self.take_over(now, name, target, true, "service trouble", actions);
            }
            let next = now + PROBE_AGAIN;
            dbss.mode = Mode::ServiceRecovery { service: index, step: ServiceStep::Probing { next, until } };
            return self.wake_at(name, next);
        }
        if now >= next {
            self.check_round(name, target, true, actions);
        } else {
            self.wake_at(name, next);
        }
    }
}
