//! DBSS: one machine per target server (thesis ch. 2, five modes), driven by checks, by what agents push, and by the
//! silence of leases.

use crate::{
    config::{Failback, Target},
    core::{Coordinator, JobFor, TargetJob, TargetView},
    event::{Action, AgentCommand, Cause, CheckOutcome, JobId, JobResult, Severity},
    placement::{Owner, describe},
};
use kage_types::{AgentId, ServiceName, TargetName, Time};
use std::{collections::BTreeMap, time::Duration};

/// Magic packets are sent again after this many waits for a start; then the target is given up (thesis: down).
const MAX_WAKES: u32 = 3;
/// Time-out of a service restart, generous: restarts of real services take seconds.
const RESTART_TIMEOUT: Duration = Duration::from_secs(20);
/// Between probes after a restart.
const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// How long a restarted service may take to answer.
const RESTART_PATIENCE: Duration = Duration::from_secs(3);

/// What was last seen of one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seen {
    #[default]
    Unknown,
    Good(Time),
    Bad(Time, String),
}

impl Seen {
    fn of(now: Time, result: &JobResult) -> Self {
        match result {
            JobResult::Check(CheckOutcome::Ok) => Seen::Good(now),
            JobResult::Check(CheckOutcome::Error(why)) => Seen::Bad(now, format!("ERROR: {why}")),
            JobResult::Check(CheckOutcome::Ng(why)) => Seen::Bad(now, format!("NG: {why}")),
            JobResult::Done
            | JobResult::Failed(_)
            | JobResult::Unknown(_)
            | JobResult::Epoch(_)
            | JobResult::Barred(_)
            | JobResult::Answered(_) => Seen::Unknown,
        }
    }

    fn bad(&self) -> bool {
        matches!(self, Seen::Bad(..))
    }

    fn good(&self) -> bool {
        matches!(self, Seen::Good(_))
    }

    fn text(&self) -> String {
        match self {
            Seen::Unknown => "unknown".into(),
            Seen::Good(_) => "ok".into(),
            Seen::Bad(_, why) => why.clone(),
        }
    }
}

/// Thesis 2: the five modes; and before and after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// No term yet, or the VIPs are not placed.
    Starting,
    Regular {
        next: Time,
    },
    ServiceRecovery {
        service: usize,
        step: ServiceStep,
    },
    NetworkExamination {
        since: Time,
        told: bool,
    },
    /// The VIPs are on their way to the backup server.
    BackupServer {
        planned: bool,
    },
    /// The backup serves; the background job brings the target back.
    TargetServerRecovery {
        background: Background,
        manual: bool,
    },
    /// The VIPs are on their way back.
    Returning,
    /// Down: the backup keeps VIP and service until the operator starts this again.
    Ended,
}

/// Service recovery mode's steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServiceStep {
    Restarting,
    /// Tsw, then probes until the end of patience.
    Probing {
        next: Time,
        until: Time,
    },
}

/// Background jobs 1 (service trouble) and 2 (network trouble).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Background {
    /// Job 1: the target was told to reboot. Job 2: is it rebooting? Up to Trc.
    AwaitReboot { until: Time },
    /// It is stopped: Wake-on-LAN, and wait for it.
    Waking { attempt: u32, until: Time },
    /// Ping, agent and services good since.
    Healthy { since: Time },
}

/// One target's supervision.
#[derive(Clone, Debug)]
pub(crate) struct Dbss {
    pub mode: Mode,
    since: Time,
    ping: Seen,
    services: BTreeMap<usize, Seen>,
    /// Checks under way; a round ends when there is none.
    checks: BTreeMap<JobId, TargetJob>,
    round_ended: Time,
    /// Rounds completed in this mode.
    rounds: u32,
    alarmed: bool,
    pub wake: Time,
}

impl Dbss {
    pub fn new(now: Time) -> Self {
        Self {
            mode: Mode::Starting,
            since: now,
            ping: Seen::Unknown,
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            round_ended: now,
            rounds: 0,
            alarmed: false,
            wake: now,
        }
    }

    pub fn view(&self) -> TargetView {
        let (mode, detail) = match &self.mode {
            Mode::Starting => ("starting", "its virtual IPs are being placed".into()),
            Mode::Regular { .. } => ("regular", String::new()),
            Mode::ServiceRecovery { .. } => ("service-recovery", "restarting its service".into()),
            Mode::NetworkExamination { .. } => (
                "network-examination",
                "its lease is silent or its ping bad".into(),
            ),
            Mode::BackupServer { planned: true } => {
                ("backup-server", "planned move to the backup server".into())
            }
            Mode::BackupServer { planned: false } => {
                ("backup-server", "the backup server takes over".into())
            }
            Mode::TargetServerRecovery { background, manual } => {
                let job = match background {
                    Background::AwaitReboot { .. } => "waiting for it to come back".to_owned(),
                    Background::Waking { attempt, .. } => {
                        format!("woken {attempt} times, waiting for it")
                    }
                    Background::Healthy { .. } => "it is healthy again".to_owned(),
                };
                let job = if *manual {
                    format!("moved by the operator; {job}")
                } else {
                    job
                };
                ("target-server-recovery", job)
            }
            Mode::Returning => (
                "target-server-recovery",
                "its virtual IPs are on their way back".into(),
            ),
            Mode::Ended => (
                "ended",
                "beyond repair: the backup keeps serving; `kagectl failback` starts again".into(),
            ),
        };
        let service = self
            .services
            .values()
            .find(|seen| seen.bad())
            .or_else(|| self.services.values().next());
        TargetView {
            mode,
            detail,
            since: self.since,
            ping: self.ping.text(),
            service: service.map_or_else(|| "unknown".into(), Seen::text),
        }
    }

    pub fn forget_evidence(&mut self, now: Time) {
        self.ping = Seen::Unknown;
        self.services.clear();
        self.checks.clear();
        self.round_ended = now;
        self.rounds = 0;
    }

    fn enter(&mut self, now: Time, mode: Mode) {
        self.mode = mode;
        self.since = now;
        self.rounds = 0;
        self.checks.clear();
        self.round_ended = now;
        self.wake = now;
    }

    fn services_good(&self, expected: usize) -> bool {
        (0..expected).all(|index| self.services.get(&index).is_some_and(Seen::good))
    }

    fn bad_service(&self) -> Option<usize> {
        self.services
            .iter()
            .find(|(_, seen)| seen.bad())
            .map(|(index, _)| *index)
    }
}

impl Coordinator {
    /// Do what the target's mode needs now. Called when its wake time has come; sets the next.
    pub(crate) fn supervise(&mut self, now: Time, name: &TargetName, actions: &mut Vec<Action>) {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            return;
        };
        let Some(dbss) = self.targets.get_mut(name) else {
            return;
        };
        dbss.wake = Time::FAR;
        match dbss.mode.clone() {
            Mode::Starting => self.starting(now, name, &target),
            Mode::Regular { next } => self.regular(now, name, &target, next, actions),
            Mode::ServiceRecovery { service, step } => {
                self.service_recovery(now, name, &target, service, &step, actions)
            }
            Mode::NetworkExamination { since, told } => {
                self.network_examination(now, name, &target, since, told, actions);
            }
            Mode::BackupServer { planned } => {
                self.backup_server(now, name, &target, planned, actions)
            }
            Mode::TargetServerRecovery { background, manual } => {
                self.target_server_recovery(now, name, &target, &background, manual, actions);
            }
            Mode::Returning => self.returning(now, name, &target, actions),
            Mode::Ended => {}
        }
    }

    fn dbss(&mut self, name: &TargetName) -> &mut Dbss {
        let now = self.started;
        self.targets
            .entry(name.clone())
            .or_insert_with(|| Dbss::new(now))
    }

    fn wake_at(&mut self, name: &TargetName, at: Time) {
        let dbss = self.dbss(name);
        dbss.wake = dbss.wake.min(at);
    }

    fn enter(&mut self, now: Time, name: &TargetName, mode: Mode) {
        self.dbss(name).enter(now, mode);
    }

    fn at_home(target: &Target) -> Owner {
        Owner {
            agent: target.agent.clone(),
            domain: None,
        }
    }

    fn at_backup(target: &Target) -> Owner {
        Owner {
            agent: target.backup.agent.clone(),
            domain: Some(target.backup.domain.clone()),
        }
    }

    fn all_settled_on(&self, target: &Target, owner: &Owner) -> bool {
        target.vips.iter().all(|vip| {
            self.vips
                .get(vip)
                .is_some_and(|state| state.settled_on(owner))
        })
    }

    fn move_all(&mut self, now: Time, target: &Target, to: &Owner, cause: Cause, planned: bool) {
        for vip in &target.vips {
            self.move_vip(now, *vip, to.clone(), cause, planned);
        }
    }

    /// Since when this agent's lease has been silent; how long that is.
    fn silent(&self, now: Time, agent: &AgentId) -> Duration {
        self.agents
            .get(agent)
            .map_or(Duration::MAX, |view| view.silent_for(now, self.started))
    }

    fn connected(&self, now: Time, agent: &AgentId) -> bool {
        self.silent(now, agent) <= self.silence_limit()
    }

    // ---- Starting ----

    fn starting(&mut self, now: Time, name: &TargetName, target: &Target) {
        if !self.in_authority(now) {
            return self.wake_at(name, now + self.cluster.timing.renewal);
        }
        let home = Self::at_home(target);
        let owned: Vec<_> = target
            .vips
            .iter()
            .filter_map(|vip| self.vips.get(vip).and_then(|state| state.row.as_ref()))
            .map(|row| (row.owner == home.agent && row.domain.is_none(), row.cause))
            .collect();
        if owned.len() == target.vips.len() && owned.iter().all(|(at_home, _)| !at_home) {
            // A recovery that an earlier coordinator began: go on from there.
            let manual = owned.iter().any(|(_, cause)| *cause == Cause::Failover);
            let until = now + target.reboot_wait;
            let background = Background::AwaitReboot { until };
            return self.enter(now, name, Mode::TargetServerRecovery { background, manual });
        }
        if owned.len() < target.vips.len() || owned.iter().any(|(at_home, _)| !at_home) {
            let cause = if owned.is_empty() {
                Cause::First
            } else {
                Cause::Failback
            };
            self.move_all(now, target, &home, cause, false);
        }
        let interval = self.cluster.detection.interval;
        self.enter(
            now,
            name,
            Mode::Regular {
                next: now + interval,
            },
        );
    }

    // ---- checks ----

    /// Ping the target and probe its services, at the VIP (what clients see) or at its own address.
    fn check_round(
        &mut self,
        name: &TargetName,
        target: &Target,
        at_vip: bool,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Ping));
        self.dbss(name).checks.insert(job, TargetJob::Ping);
        actions.push(Action::Ping {
            job,
            address: target.address,
            count: 1,
            timeout: detection.ping_timeout,
        });
        let vip = target.vips.first().map(|vip| vip.address());
        for (index, service) in target.services.iter().enumerate() {
            let job = self.job(JobFor::Target(name.clone(), TargetJob::Probe(index)));
            self.dbss(name).checks.insert(job, TargetJob::Probe(index));
            let address = if at_vip {
                vip.unwrap_or(target.address)
            } else {
                target.address
            };
            actions.push(Action::Probe {
                job,
                address,
                port: service.port,
                preset: service.probe.clone(),
                timeout: detection.probe_timeout,
            });
        }
    }

    pub(crate) fn target_job_done(
        &mut self,
        now: Time,
        name: &TargetName,
        what: TargetJob,
        job: JobId,
        result: JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(dbss) = self.targets.get_mut(name) else {
            return;
        };
        match what {
            TargetJob::Ping | TargetJob::Probe(_) => {
                // A check of an earlier mode or of a discarded round proves nothing now.
                if dbss.checks.remove(&job).is_none() {
                    return;
                }
                let seen = Seen::of(now, &result);
                match what {
                    TargetJob::Probe(index) => {
                        dbss.services.insert(index, seen);
                    }
                    TargetJob::Ping
                    | TargetJob::Restart
                    | TargetJob::Reboot
                    | TargetJob::Wake
                    | TargetJob::Pause => {
                        dbss.ping = seen;
                    }
                }
                if dbss.checks.is_empty() {
                    dbss.round_ended = now;
                    dbss.rounds += 1;
                }
                dbss.wake = now;
            }
            TargetJob::Restart => {
                if let Mode::ServiceRecovery {
                    service,
                    step: ServiceStep::Restarting,
                } = dbss.mode
                {
                    let settle = self.cluster.detection.settle;
                    dbss.services.clear();
                    dbss.mode = Mode::ServiceRecovery {
                        service,
                        step: ServiceStep::Probing {
                            next: now + settle,
                            until: now + settle + RESTART_PATIENCE,
                        },
                    };
                    dbss.wake = now;
                    if result != JobResult::Done {
                        let text =
                            format!("the service could not be restarted: {}", describe(&result));
                        self.note(
                            Some(name.clone()),
                            Severity::Warning,
                            "restart-failed",
                            text,
                            actions,
                        );
                    }
                }
            }
            TargetJob::Reboot | TargetJob::Wake | TargetJob::Pause => {
                if result != JobResult::Done {
                    let text = format!("{what:?}: {}", describe(&result)).to_lowercase();
                    self.note(
                        Some(name.clone()),
                        Severity::Warning,
                        "command-failed",
                        text,
                        actions,
                    );
                }
            }
        }
    }

    // ---- Regular mode ----

    fn regular(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        next: Time,
        actions: &mut Vec<Action>,
    ) {
        let detection = self.cluster.detection;
        if !self.all_settled_on(target, &Self::at_home(target))
            && self.connected(now, &target.agent)
        {
            // Being placed for the first time, or again: nothing to check at the VIP yet.
            return self.wake_at(name, now + detection.interval);
        }
        if detection.push && !self.connected(now, &target.agent) {
            let silent = self.silent(now, &target.agent);
            let text = format!("its lease has been silent for {silent:?}");
            return self.examine(now, name, text, actions);
        }
        let dbss = self.dbss(name);
        if !dbss.checks.is_empty() {
            return self.watch_lease(now, name, target);
        }
        if dbss.rounds > 0 {
            dbss.rounds = 0;
            let (ping, bad) = (dbss.ping.clone(), dbss.bad_service());
            if let (Seen::Bad(_, why), true) = (
                &ping,
                bad.is_some() || !detection.push || target.services.is_empty(),
            ) {
                return self.examine(now, name, format!("ping: {why}"), actions);
            }
            if let Seen::Bad(_, why) = &ping {
                self.alarm_once(
                    name,
                    format!("ping is bad ({why}) but its lease and services are good"),
                    actions,
                );
            }
            if let Some(service) = bad {
                return self.recover_service(now, name, target, service, actions);
            }
            let dbss = self.dbss(name);
            if ping.good() && dbss.alarmed {
                dbss.alarmed = false;
            }
            let next = dbss.round_ended + detection.interval;
            dbss.mode = Mode::Regular { next };
            self.wake_at(name, next);
            return self.watch_lease(now, name, target);
        }
        if now >= next {
            self.check_round(name, target, true, actions);
        } else {
            self.wake_at(name, next);
        }
        self.watch_lease(now, name, target);
    }

    /// Be called when the lease falls silent.
    fn watch_lease(&mut self, now: Time, name: &TargetName, target: &Target) {
        if !self.cluster.detection.push {
            return;
        }
        let left = self
            .silence_limit()
            .saturating_sub(self.silent(now, &target.agent));
        self.wake_at(name, now + left + Duration::from_millis(1));
    }

    fn alarm_once(&mut self, name: &TargetName, text: String, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.dbss(name).alarmed, true) {
            self.note(
                Some(name.clone()),
                Severity::Warning,
                "alarm",
                text,
                actions,
            );
        }
    }

    fn examine(&mut self, now: Time, name: &TargetName, why: String, actions: &mut Vec<Action>) {
        self.note(
            Some(name.clone()),
            Severity::Warning,
            "network-trouble",
            why,
            actions,
        );
        self.enter(
            now,
            name,
            Mode::NetworkExamination {
                since: now,
                told: false,
            },
        );
    }

    // ---- Network examination mode ----

    fn network_examination(
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
                self.note(
                    Some(name.clone()),
                    Severity::Info,
                    "network-normal",
                    text,
                    actions,
                );
                return self.enter(
                    now,
                    name,
                    Mode::Regular {
                        next: now + detection.interval,
                    },
                );
            }
            if silent < detection.confirm {
                let look = now + (detection.confirm - silent);
                return self.look_again(name, look);
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
            self.note(
                Some(name.clone()),
                Severity::Info,
                "network-normal",
                "Network_is_normal".into(),
                actions,
            );
            return self.enter(
                now,
                name,
                Mode::Regular {
                    next: now + detection.interval,
                },
            );
        }
        if let Some((_, storm)) = &self.brake {
            if !told {
                let text = format!("held by the storm brake: {storm}");
                self.note(Some(name.clone()), Severity::Alert, "held", text, actions);
                self.dbss(name).mode = Mode::NetworkExamination { since, told: true };
            }
            return self.look_again(name, now + detection.interval / 2);
        }
        let home = Self::at_home(target);
        if !self.patience_allowed(Some(&home.agent)) {
            if !told {
                let text = "it does not answer, but nothing proves it dead, and without voters (on_coordinator_loss = \
                            \"keep\") or a guard patience is not allowed: `kagectl failover --force` after switching it off";
                self.note(
                    Some(name.clone()),
                    Severity::Alert,
                    "held",
                    text.into(),
                    actions,
                );
                self.dbss(name).mode = Mode::NetworkExamination { since, told: true };
            }
            return self.look_again(name, now + detection.interval / 2);
        }
        let text = format!(
            "lost: lease silent for {silent:?}, ping {}, service {}",
            self.dbss(name).ping.text(),
            self.dbss(name).view().service
        );
        self.note(
            Some(name.clone()),
            Severity::Alert,
            "confirmed",
            text,
            actions,
        );
        self.take_over(now, name, target, false, "network trouble", actions);
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
            let index = target
                .services
                .iter()
                .position(|known| known.name == *service)?;
            (target.agent == *agent).then(|| (name.clone(), target.clone(), index))
        });
        let Some((name, target, index)) = found else {
            return;
        };
        if matches!(self.dbss(&name).mode, Mode::Regular { .. }) {
            let text = format!("service {service} is down: {detail}");
            self.note(
                Some(name.clone()),
                Severity::Warning,
                "service-down",
                text,
                actions,
            );
            self.recover_service(now, &name, &target, index, actions);
        }
    }

    fn recover_service(
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
        let seen = self
            .dbss(name)
            .services
            .get(&index)
            .map_or_else(String::new, Seen::text);
        let text = format!("service {} is in trouble: {seen}", service.name);
        self.note(
            Some(name.clone()),
            Severity::Warning,
            "service-trouble",
            text,
            actions,
        );
        if !service.restart {
            return self.take_over(now, name, target, true, "service trouble", actions);
        }
        let text = format!("restarting {}", service.name);
        self.note(
            Some(name.clone()),
            Severity::Info,
            "restarting",
            text,
            actions,
        );
        self.enter(
            now,
            name,
            Mode::ServiceRecovery {
                service: index,
                step: ServiceStep::Restarting,
            },
        );
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Restart));
        let command = AgentCommand::RestartService {
            service: service.name.clone(),
        };
        actions.push(Action::Command {
            job,
            agent: target.agent.clone(),
            command,
            timeout: RESTART_TIMEOUT,
        });
    }

    fn service_recovery(
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
            return self.examine(
                now,
                name,
                "its lease fell silent during service recovery".into(),
                actions,
            );
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
                return self.enter(
                    now,
                    name,
                    Mode::Regular {
                        next: now + detection.interval,
                    },
                );
            }
            if now >= until || !detection.push {
                let text = format!("its restart did not cure the service: {}", seen.text());
                self.note(
                    Some(name.clone()),
                    Severity::Alert,
                    "confirmed",
                    text,
                    actions,
                );
                return self.take_over(now, name, target, true, "service trouble", actions);
            }
            let next = now + PROBE_AGAIN;
            dbss.mode = Mode::ServiceRecovery {
                service: index,
                step: ServiceStep::Probing { next, until },
            };
            return self.wake_at(name, next);
        }
        if now >= next {
            self.check_round(name, target, true, actions);
        } else {
            self.wake_at(name, next);
        }
    }

    // ---- Backup server mode ----

    fn take_over(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        planned: bool,
        why: &str,
        actions: &mut Vec<Action>,
    ) {
        let to = Self::at_backup(target);
        let text = format!(
            "{} on {} takes over ({why})",
            target.backup.domain, target.backup.agent
        );
        self.note(
            Some(name.clone()),
            Severity::Info,
            "backup-server",
            text,
            actions,
        );
        actions.push(Action::PutTrouble {
            target: name.clone(),
            stage: "backup".into(),
            detail: why.into(),
        });
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
                Mode::Regular { .. }
                    | Mode::ServiceRecovery { .. }
                    | Mode::NetworkExamination { .. }
            );
            if here {
                self.take_over(now, &name, &target, false, "it is going down", actions);
            }
        }
    }

    fn backup_server(
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
                self.vips
                    .get(vip)
                    .and_then(|state| state.row.as_ref())
                    .is_some_and(|row| row.cause == Cause::Failover)
            });
            if planned && !manual {
                // Background job 1: the service could not be cured by its restart, perhaps a reboot cures it.
                self.note(
                    Some(name.clone()),
                    Severity::Info,
                    "rebooting",
                    "rebooting the target".into(),
                    actions,
                );
                let job = self.job(JobFor::Target(name.clone(), TargetJob::Reboot));
                let timeout = Duration::from_secs(5);
                actions.push(Action::Command {
                    job,
                    agent: target.agent.clone(),
                    command: AgentCommand::Reboot,
                    timeout,
                });
            }
            let background = Background::AwaitReboot {
                until: now + target.reboot_wait,
            };
            return self.enter(now, name, Mode::TargetServerRecovery { background, manual });
        }
        // Not durable yet, and the target is back: roll back.
        let fresh = self.cluster.detection.push && self.connected(now, &target.agent) && !planned;
        let steady = self
            .agents
            .get(&target.agent)
            .and_then(|view| view.steady_since);
        if fresh && steady.is_some_and(|since| since > self.dbss(name).since) {
            let vips: Vec<_> = target.vips.iter().copied().collect();
            if vips.into_iter().all(|vip| self.cancel_move(vip))
                && self.all_settled_on(target, &Self::at_home(target))
            {
                let text =
                    "its lease is renewed again before anything was moved: rolled back".to_owned();
                self.note(
                    Some(name.clone()),
                    Severity::Info,
                    "rolled-back",
                    text,
                    actions,
                );
                actions.push(Action::PutTrouble {
                    target: name.clone(),
                    stage: String::new(),
                    detail: String::new(),
                });
                return self.enter(
                    now,
                    name,
                    Mode::Regular {
                        next: now + self.cluster.detection.interval,
                    },
                );
            }
        }
        self.wake_at(name, now + self.cluster.timing.renewal);
    }

    // ---- Target server recovery mode ----

    fn target_server_recovery(
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
        let healthy = connected
            && dbss.services_good(target.services.len())
            && (dbss.ping.good() || detection.push);
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
                if now.since(*since) >= target.healthy_for
                    && target.failback == Failback::Auto
                    && !manual
                {
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
                Background::AwaitReboot {
                    until: now + target.reboot_wait,
                }
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
        dbss.mode = Mode::TargetServerRecovery {
            background: next,
            manual,
        };
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
        let mac = self
            .cluster
            .agents
            .get(&target.agent)
            .and_then(|machine| machine.mac.clone());
        let Some(mac) = mac else {
            let text =
                "the target is down and has no mac in the configuration: switch it on by hand"
                    .to_owned();
            self.note(
                Some(name.clone()),
                Severity::Alert,
                "cannot-wake",
                text,
                actions,
            );
            return Background::Waking {
                attempt: MAX_WAKES,
                until,
            };
        };
        let text = format!("the target is down: Wake-on-LAN to {mac} (attempt {attempt})");
        self.note(Some(name.clone()), Severity::Info, "waking", text, actions);
        actions.push(Action::PutTrouble {
            target: name.clone(),
            stage: "waking".into(),
            detail: mac.clone(),
        });
        let mut from: Vec<AgentId> = vec![target.backup.agent.clone()];
        from.extend(
            self.cluster
                .voters()
                .filter(|voter| self.connected(now, voter))
                .take(1)
                .cloned(),
        );
        for agent in from {
            let job = self.job(JobFor::Target(name.clone(), TargetJob::Wake));
            let command = AgentCommand::Wake { mac: mac.clone() };
            actions.push(Action::Command {
                job,
                agent,
                command,
                timeout: Duration::from_secs(3),
            });
        }
        Background::Waking { attempt, until }
    }

    fn go_back(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        actions: &mut Vec<Action>,
    ) {
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

    fn returning(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        actions: &mut Vec<Action>,
    ) {
        if self.all_settled_on(target, &Self::at_home(target)) {
            let took = now.since(self.dbss(name).since);
            let text = format!("the target serves again (moved back within {took:?})");
            self.note(Some(name.clone()), Severity::Info, "regular", text, actions);
            actions.push(Action::PutTrouble {
                target: name.clone(),
                stage: String::new(),
                detail: String::new(),
            });
            self.suspend_double(target, name, actions);
            let next = now + self.cluster.detection.interval;
            return self.enter(now, name, Mode::Regular { next });
        }
        if self.silent(now, &target.agent)
            >= self.cluster.detection.confirm.max(self.silence_limit())
        {
            let text =
                "the target fell silent again while its virtual IPs were on their way".to_owned();
            self.note(
                Some(name.clone()),
                Severity::Alert,
                "confirmed",
                text,
                actions,
            );
            return self.take_over(now, name, target, false, "lost while returning", actions);
        }
        self.wake_at(name, now + self.cluster.timing.renewal);
    }

    /// Its last VIP has left: the double sleeps again.
    fn suspend_double(&mut self, target: &Target, name: &TargetName, actions: &mut Vec<Action>) {
        let backup = Self::at_backup(target);
        let serves = self.vips.values().any(|state| {
            state
                .row
                .as_ref()
                .is_some_and(|row| row.owner == backup.agent && row.domain == backup.domain)
                || state
                    .moving
                    .as_ref()
                    .is_some_and(|moving| moving.to == backup)
        });
        if serves {
            return;
        }
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Pause));
        let command = AgentCommand::PauseVm {
            domain: target.backup.domain.clone(),
        };
        actions.push(Action::Command {
            job,
            agent: backup.agent,
            command,
            timeout: Duration::from_secs(10),
        });
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
            let known: Vec<&str> = self
                .cluster
                .targets
                .keys()
                .map(TargetName::as_str)
                .collect();
            return Err(format!(
                "there is no target {name:?}; the configuration has: {}",
                known.join(", ")
            ));
        };
        if !self.in_authority(now) {
            return Err("this coordinator has no valid term: is SIF up? (kagectl status)".into());
        }
        let to = if back {
            Self::at_home(&target)
        } else {
            Self::at_backup(&target)
        };
        if self.all_settled_on(&target, &to) {
            return Err(format!("{name} is already served by {}", to.agent));
        }
        if !self.connected(now, &to.agent) {
            return Err(format!(
                "the agent of {} does not answer: bring it up first",
                to.agent
            ));
        }
        let healthy = self.dbss(name).services_good(target.services.len());
        if back && !healthy && !force {
            return Err(format!(
                "the services of {name} do not answer on its own address: repair them, or use --force"
            ));
        }
        let owner = target.agent.clone();
        let gone = !back && !self.connected(now, &owner);
        let cause = if back {
            Cause::Failback
        } else {
            Cause::Failover
        };
        let words = if back {
            "failback asked for by the operator"
        } else {
            "failover asked for by the operator"
        };
        self.note(
            Some(name.clone()),
            Severity::Info,
            if back { "failback" } else { "failover" },
            words.into(),
            actions,
        );
        self.move_all(now, &target, &to, cause, !gone);
        self.enter(
            now,
            name,
            if back {
                Mode::Returning
            } else {
                Mode::BackupServer { planned: !gone }
            },
        );
        Ok(())
    }
}
