//! Target server recovery mode: background jobs 1 and 2, their verdict, and what follows from it.

use super::*;

/// Magic packets are sent again after this many waits for a start; then the target is given up (thesis: down).
const MAX_WAKES: u32 = 3;
/// After an order to reboot that failed: longer than a machine that heard it after all takes to say so.
const ORDER_AGAIN: Duration = Duration::from_secs(3);
/// Between two looks (thesis: the verdict is looked for once a second).
const LOOK: Duration = Duration::from_secs(1);

impl Coordinator {
    /// The VIPs are away from the target: bring it back.
    pub(crate) fn begin_background(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        why: Why,
        actions: &mut Vec<Action>,
    ) {
        self.function_restored(target);
        let until = now + target.reboot_wait;
        let background = match why {
            Why::Operator { .. } => Background::Operator { healthy: false },
            Why::Service => return self.reboot_target(now, name, target, actions),
            Why::Network | Why::LostReturning => Background::AwaitReboot { job: Job::Return, until, left: true },
            Why::GoingDown => Background::AwaitReboot { job: Job::Return, until, left: false },
        };
        self.enter(now, name, Mode::TargetServerRecovery { background });
    }

    /// Background job 1: the service could not be cured by its restart, perhaps a reboot cures it.
    fn reboot_target(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        if self.hold_back(name, Act::Reboot, "restarts did not cure its service", actions) {
            return self.await_again(now, name, target);
        }
        if !self.dbss(name).budgets.take_reboot(now, &target.budget) {
            let Budget { reboots, within, .. } = target.budget;
            let why = format!("its service is in trouble and it was rebooted {reboots} times within {within:?}");
            return self.give_up(now, name, why, actions);
        }
        let until = now + target.reboot_wait;
        let job = self.order_reboot(name, target, "rebooting the target", actions);
        let background = Background::AwaitReboot { job, until, left: false };
        self.enter(now, name, Mode::TargetServerRecovery { background });
    }

    fn order_reboot(&mut self, name: &TargetName, target: &Target, text: &str, actions: &mut Vec<Action>) -> Job {
        self.note(Some(name.clone()), Severity::Info, "rebooting", text.into(), actions);
        if let Some(domain) = target.domain() {
            if !self.order_vm(name, domain, VmOrder::Reboot, actions) {
                return Job::Reboot { again: Some(self.dbss(name).round_ended) };
            }
            return Job::Reboot { again: None };
        }
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Reboot));
        let (agent, timeout) = (target.agent.clone(), Duration::from_secs(5));
        actions.push(Action::Command { job, agent, command: AgentCommand::Reboot, timeout });
        Job::Reboot { again: None }
    }

    /// The order to reboot failed, or nobody knows. A target that stays where it is gets it once more, within the time that
    /// it has to come back.
    pub(crate) fn reboot_failed(&mut self, now: Time, name: &TargetName) {
        if let Mode::TargetServerRecovery {
            background: Background::AwaitReboot { job: Job::Reboot { again }, left: false, .. },
        } = &mut self.dbss(name).mode
        {
            *again = Some(now + ORDER_AGAIN);
        }
    }

    /// Under an order no verdict is given: it is judged anew after a while.
    fn await_again(&mut self, now: Time, name: &TargetName, target: &Target) {
        let until = now + target.reboot_wait;
        let background = Background::AwaitReboot { job: Job::Resumed, until, left: false };
        self.enter(now, name, Mode::TargetServerRecovery { background });
    }

    /// Verdict down: it can't be recovered from here; the backup keeps VIP and service.
    fn give_up(&mut self, now: Time, name: &TargetName, why: String, actions: &mut Vec<Action>) {
        if self.withheld(name).is_some() {
            if let Some(target) = self.cluster.targets.get(name).cloned() {
                self.await_again(now, name, &target);
            }
            return;
        }
        let text = format!("{why}: the backup keeps serving; repair it, then `kagectl failback {name}`");
        self.note(Some(name.clone()), Severity::Alert, "down", text, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "down".into(), detail: why.clone() });
        self.enter(now, name, Mode::Ended { why });
        if let Some(target) = self.cluster.targets.get(name).cloned() {
            self.beyond_repair(now, name, &target, actions);
        }
    }

    pub(crate) fn target_server_recovery(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        background: &Background,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        let interval = detection.interval.min(LOOK);
        let connected = self.connected(now, &target.agent);
        let dbss = self.dbss(name);
        if !dbss.round_over() {
            if dbss.round != Round::Idle {
                return;
            }
            let fresh = dbss.round_ended == dbss.since;
            let (look, next) = match background {
                // It is only waited for: one answer shows that it is there.
                Background::AwaitReboot { .. } | Background::Waking { .. } => (Look::Ping, dbss.round_ended + interval),
                Background::DoubleSilent { .. } => (Look::AtDouble, dbss.round_ended + interval),
                Background::Settling { look, .. } => (Look::AtTarget, (dbss.round_ended + interval).max(*look)),
                Background::Healthy { .. } | Background::Operator { .. } => {
                    (Look::AtTarget, dbss.round_ended + interval)
                }
            };
            let first = fresh && !matches!(background, Background::Settling { .. });
            if now >= next || first {
                self.begin_round(now, name, target, look, actions);
            } else {
                self.wake_at(name, next);
            }
            return;
        }
        if let Background::DoubleSilent { before, told } = background {
            return self.double_silent(now, name, target, before, *told, actions);
        }
        let answers = dbss.ping.good();
        let alive = answers || connected && target.vm.is_none();
        // The agent of a virtual server's host says nothing of the virtual server.
        let came_back = connected && (answers || detection.push && target.vm.is_none());
        let healthy = came_back && dbss.services_good(target.services.len());
        let settling = |job| Background::Settling { job, look: now + detection.settle, until: now + target.start_wait };
        let next = match background {
            Background::AwaitReboot { job, left, .. } if came_back && *left => settling(*job),
            Background::AwaitReboot { job, until, .. } if now >= *until && alive => settling(*job),
            Background::AwaitReboot { job: Job::Reboot { again: Some(again) }, until, left: false }
                if came_back && now >= *again && now < *until =>
            {
                let job = self.order_reboot(name, target, "the target is there still: told to reboot again", actions);
                Background::AwaitReboot { job, until: *until, left: false }
            }
            Background::AwaitReboot { until, .. } if now >= *until => self.wake_target(now, name, target, 1, actions),
            Background::AwaitReboot { job, until, left } => {
                Background::AwaitReboot { job: *job, until: *until, left: *left || !came_back }
            }
            Background::Waking { .. } if came_back => settling(Job::Return),
            Background::Waking { until, .. } if now >= *until && alive => settling(Job::Return),
            Background::Waking { attempt, until } if now >= *until => {
                if *attempt >= MAX_WAKES {
                    return self.give_up(now, name, "it did not come back".to_owned(), actions);
                }
                self.wake_target(now, name, target, attempt + 1, actions)
            }
            Background::Waking { .. } => background.clone(),
            Background::Settling { .. } if healthy => {
                let text = "the target is up and answers".to_owned();
                self.note(Some(name.clone()), Severity::Info, "target-up", text, actions);
                let stage = "recovering".to_owned();
                actions.push(Action::PutTrouble { target: name.clone(), stage, detail: "healthy".into() });
                return self.stay_healthy(now, name, target, now, Waits::Steadiness, actions);
            }
            Background::Settling { .. } if !alive => self.away_again(now, name, target, actions),
            Background::Settling { until, .. } if now >= *until && !connected && self.is_lost_sight_of(target) => {
                self.waits_to_be_found(now, name, target, actions)
            }
            Background::Settling { job, until, .. } if now >= *until => match job {
                // It may be job 1 that was begun.
                Job::Resumed if connected => return self.reboot_target(now, name, target, actions),
                Job::Reboot { .. } | Job::Return | Job::Resumed => {
                    let view = self.dbss(name).view();
                    let agent = if connected { "" } else { ", its agent is silent" };
                    let why = format!("it came back, but: ping {}, service {}{agent}", view.ping, view.service);
                    return self.give_up(now, name, why, actions);
                }
            },
            Background::Settling { .. } => background.clone(),
            Background::Healthy { .. } if healthy && self.double_fell_silent(now, target) => {
                Background::DoubleSilent { before: Box::new(background.clone()), told: false }
            }
            Background::Operator { .. } if healthy && self.double_fell_silent(now, target) => {
                Background::DoubleSilent { before: Box::new(Background::Operator { healthy }), told: false }
            }
            Background::Healthy { since, waits } if healthy => {
                return self.stay_healthy(now, name, target, *since, *waits, actions);
            }
            Background::Healthy { .. } => self.away_again(now, name, target, actions),
            Background::Operator { .. } => Background::Operator { healthy },
            // Judged above.
            Background::DoubleSilent { .. } => background.clone(),
        };
        if matches!(next, Background::Settling { .. }) && !matches!(background, Background::Settling { .. }) {
            let text = "the target is back; its services are given time to start".to_owned();
            self.note(Some(name.clone()), Severity::Info, "target-back", text, actions);
        }
        self.dbss(name).mode = Mode::TargetServerRecovery { background: next };
        self.wake_at(name, now);
    }

    pub(crate) fn away_again(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        actions: &mut Vec<Action>,
    ) -> Background {
        let text = "the target is away again".to_owned();
        self.note(Some(name.clone()), Severity::Info, "target-away", text, actions);
        Background::AwaitReboot { job: Job::Return, until: now + target.reboot_wait, left: true }
    }

    /// Verdict up: it takes its place again, at once (thesis), when it has been healthy for long enough, or when told to.
    fn stay_healthy(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        since: Time,
        before: Waits,
        actions: &mut Vec<Action>,
    ) {
        let Some(waits) = self.what_it_waits_for(now, name, target, since, actions) else {
            return self.go_back(now, name, target, actions);
        };
        if waits.is_news(before) {
            self.say_what_it_waits_for(now, name, target, waits, actions);
        }
        let background = Background::Healthy { since, waits };
        self.dbss(name).mode = Mode::TargetServerRecovery { background };
        self.wake_at(name, now);
    }

    /// None: it returns now.
    fn what_it_waits_for(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        since: Time,
        actions: &mut Vec<Action>,
    ) -> Option<Waits> {
        match target.failback {
            Failback::Keep => return Some(Waits::Kept),
            Failback::Auto | Failback::Manual if now.since(since) < target.healthy_for => {
                return Some(Waits::Steadiness);
            }
            Failback::Manual => return Some(Waits::Operator),
            Failback::Auto => {}
        }
        if self.hold_back(name, Act::GoBack, "it is healthy again", actions) {
            return Some(Waits::Order);
        }
        if self.dbss(name).budgets.held_down(now, &target.budget).is_some() {
            return Some(Waits::HeldDown);
        }
        if self.quarantined(&target.agent).is_some() {
            return Some(Waits::Quarantine);
        }
        if target.failback_hours.is_always() {
            return None;
        }
        match self.unix_ms(now) {
            Some(unix_ms) if target.failback_hours.open(unix_ms) => None,
            wall => Some(Waits::Hours { opens: wall.and_then(|unix_ms| target.failback_hours.next_opening(unix_ms)) }),
        }
    }

    fn say_what_it_waits_for(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        waits: Waits,
        actions: &mut Vec<Action>,
    ) {
        match waits {
            // The one is short, the other was said.
            Waits::Steadiness | Waits::Order => {}
            Waits::HeldDown => {
                let Budget { takeovers, within, .. } = target.budget;
                let until = self.dbss(name).budgets.held_down(now, &target.budget).unwrap_or(now);
                let text = format!(
                    "taken over {takeovers} times within {within:?}: it is healthy, but held down for {:?} \
                     (`kagectl failback {name}` ends that)",
                    until.since(now)
                );
                self.note(Some(name.clone()), Severity::Alert, "held-down", text, actions);
            }
            Waits::Kept => {
                // Nothing is wrong any more, and nobody need do anything.
                self.alerts_over(Some(name));
                actions.push(Action::PutTrouble { target: name.clone(), stage: String::new(), detail: String::new() });
                self.note(Some(name.clone()), Severity::Info, "kept", waits.detail(), actions);
            }
            Waits::Quarantine | Waits::Hours { .. } | Waits::Operator => {
                self.note(Some(name.clone()), Severity::Info, "waits", waits.detail(), actions);
            }
        }
    }

    /// Wake-on-LAN, from the backup's host and from one voter that is up (one of them shares its segment).
    fn wake_target(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        attempt: u32,
        actions: &mut Vec<Action>,
    ) -> Background {
        let until = now + target.start_wait;
        if self.hold_back(name, Act::Wake, "it does not come back by itself", actions) {
            return Background::AwaitReboot { job: Job::Resumed, until, left: true };
        }
        if let Some(domain) = target.domain().cloned() {
            return self.start_virtual_server(now, name, target, &domain, attempt, actions);
        }
        let mac = self.cluster.agents.get(&target.agent).and_then(|machine| machine.mac.clone());
        let Some(mac) = mac else {
            let text = "the target is down and has no mac in the configuration: switch it on by hand".to_owned();
            self.note(Some(name.clone()), Severity::Alert, "cannot-wake", text, actions);
            return Background::Waking { attempt: MAX_WAKES, until };
        };
        let text = format!("the target is down: Wake-on-LAN to {mac} (attempt {attempt})");
        self.note(Some(name.clone()), Severity::Info, "waking", text, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "waking".into(), detail: mac.clone() });
        let mut from: Vec<AgentId> = vec![self.double_host(target)];
        from.extend(self.cluster.voters().filter(|voter| self.connected(now, voter)).take(1).cloned());
        for agent in from {
            let job = self.job(JobFor::Target(name.clone(), TargetJob::Wake));
            let command = AgentCommand::Wake { mac: mac.clone() };
            actions.push(Action::Command { job, agent, command, timeout: Duration::from_secs(3) });
        }
        Background::Waking { attempt, until }
    }
}
