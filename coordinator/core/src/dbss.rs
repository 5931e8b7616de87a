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
    /// Its power read off; since when it was being read.
    off: Option<Time>,
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
            off: None,
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
            Mode::NetworkExamination { .. } => ("network-examination", "its lease is silent or its ping bad".into()),
            Mode::BackupServer { planned: true } => ("backup-server", "planned move to the backup server".into()),
            Mode::BackupServer { planned: false } => ("backup-server", "the backup server takes over".into()),
            Mode::TargetServerRecovery { background, manual } => {
                let job = match background {
                    Background::AwaitReboot { .. } => "waiting for it to come back".to_owned(),
                    Background::Waking { attempt, .. } => {
                        format!("woken {attempt} times, waiting for it")
                    }
                    Background::Healthy { .. } => "it is healthy again".to_owned(),
                };
                let job = if *manual { format!("moved by the operator; {job}") } else { job };
                ("target-server-recovery", job)
            }
            Mode::Returning => ("target-server-recovery", "its virtual IPs are on their way back".into()),
            Mode::Ended => ("ended", "beyond repair: the backup keeps serving; `kagectl failback` starts again".into()),
        };
        let service = self.services.values().find(|seen| seen.bad()).or_else(|| self.services.values().next());
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
        self.off = None;
        self.checks.clear();
        self.round_ended = now;
        self.rounds = 0;
    }

    /// Owners are not what they were believed to be: the mode follows from the ledger, as after a restart.
    pub fn begin_again(&mut self, now: Time) {
        self.enter(now, Mode::Starting);
    }

    fn enter(&mut self, now: Time, mode: Mode) {
        self.mode = mode;
        self.since = now;
        self.rounds = 0;
        self.off = None;
        self.checks.clear();
        self.round_ended = now;
        self.wake = now;
    }

    fn services_good(&self, expected: usize) -> bool {
        (0..expected).all(|index| self.services.get(&index).is_some_and(Seen::good))
    }

    fn bad_service(&self) -> Option<usize> {
        self.services.iter().find(|(_, seen)| seen.bad()).map(|(index, _)| *index)
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
            Mode::BackupServer { planned } => self.backup_server(now, name, &target, planned, actions),
            Mode::TargetServerRecovery { background, manual } => {
                self.target_server_recovery(now, name, &target, &background, manual, actions);
            }
            Mode::Returning => self.returning(now, name, &target, actions),
            Mode::Ended => {}
        }
    }

    fn dbss(&mut self, name: &TargetName) -> &mut Dbss {
        let now = self.started;
        self.targets.entry(name.clone()).or_insert_with(|| Dbss::new(now))
    }

    fn wake_at(&mut self, name: &TargetName, at: Time) {
        let dbss = self.dbss(name);
        dbss.wake = dbss.wake.min(at);
    }

    fn enter(&mut self, now: Time, name: &TargetName, mode: Mode) {
        if matches!(mode, Mode::Regular { .. }) {
            self.alerts_over(Some(name));
        }
        self.dbss(name).enter(now, mode);
    }

    fn at_home(target: &Target) -> Owner {
        Owner { agent: target.agent.clone(), domain: None }
    }

    fn at_backup(target: &Target) -> Owner {
        Owner { agent: target.backup.agent.clone(), domain: Some(target.backup.domain.clone()) }
    }

    fn all_settled_on(&self, target: &Target, owner: &Owner) -> bool {
        target.vips.iter().all(|vip| self.vips.get(vip).is_some_and(|state| state.settled_on(owner)))
    }

    fn move_all(&mut self, now: Time, target: &Target, to: &Owner, cause: Cause, planned: bool) {
        for vip in &target.vips {
            self.move_vip(now, *vip, to.clone(), cause, planned);
        }
    }

    /// Since when this agent's lease has been silent; how long that is.
    fn silent(&self, now: Time, agent: &AgentId) -> Duration {
        self.agents.get(agent).map_or(Duration::MAX, |view| view.silent_for(now, self.started))
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
            let cause = if owned.is_empty() { Cause::First } else { Cause::Failback };
            self.move_all(now, target, &home, cause, false);
        }
        let interval = self.cluster.detection.interval;
        self.enter(now, name, Mode::Regular { next: now + interval });
    }

    // ---- checks ----

    /// Ping the target and probe its services, at the VIP (what clients see) or at its own address.
    fn check_round(&mut self, name: &TargetName, target: &Target, at_vip: bool, actions: &mut Vec<Action>) {
        let detection = self.cluster.detection;
        let job = self.job(JobFor::Target(name.clone(), TargetJob::Ping));
        self.dbss(name).checks.insert(job, TargetJob::Ping);
        actions.push(Action::Ping { job, address: target.address, count: 1, timeout: detection.ping_timeout });
        let vip = target.vips.first().map(|vip| vip.address());
        for (index, service) in target.services.iter().enumerate() {
            let job = self.job(JobFor::Target(name.clone(), TargetJob::Probe(index)));
            self.dbss(name).checks.insert(job, TargetJob::Probe(index));
            let address = if at_vip { vip.unwrap_or(target.address) } else { target.address };
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
            TargetJob::Ping | TargetJob::Probe(_) | TargetJob::Power(_) => {
                // A check of an earlier mode or of a discarded round proves nothing now.
                if dbss.checks.remove(&job).is_none() {
                    return;
                }
                if let (TargetJob::Power(asked), JobResult::Done) = (&what, &result) {
                    dbss.off = Some(*asked);
                }
                let seen = Seen::of(now, &result);
                match what {
                    TargetJob::Probe(index) => {
                        dbss.services.insert(index, seen);
                    }
                    TargetJob::Ping => dbss.ping = seen,
                    TargetJob::Power(_)
                    | TargetJob::Restart
                    | TargetJob::Reboot
                    | TargetJob::Wake
                    | TargetJob::Pause => {}
                }
                if dbss.checks.is_empty() {
                    dbss.round_ended = now;
                    dbss.rounds += 1;
                }
                dbss.wake = now;
            }
            TargetJob::Restart => {
                if let Mode::ServiceRecovery { service, step: ServiceStep::Restarting } = dbss.mode {
                    let settle = self.cluster.detection.settle;
                    dbss.services.clear();
                    dbss.mode = Mode::ServiceRecovery {
                        service,
                        step: ServiceStep::Probing { next: now + settle, until: now + settle + RESTART_PATIENCE },
                    };
                    dbss.wake = now;
                    if result != JobResult::Done {
                        let text = format!("the service could not be restarted: {}", describe(&result));
                        self.note(Some(name.clone()), Severity::Warning, "restart-failed", text, actions);
                    }
                }
            }
            TargetJob::Reboot | TargetJob::Wake | TargetJob::Pause => {
                if result != JobResult::Done {
                    let text = format!("{what:?}: {}", describe(&result)).to_lowercase();
                    self.note(Some(name.clone()), Severity::Warning, "command-failed", text, actions);
                }
            }
        }
    }

    // ---- Regular mode ----

    fn regular(&mut self, now: Time, name: &TargetName, target: &Target, next: Time, actions: &mut Vec<Action>) {
        let detection = self.cluster.detection;
        if !self.all_settled_on(target, &Self::at_home(target)) && self.connected(now, &target.agent) {
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
            if let (Seen::Bad(_, why), true) = (&ping, bad.is_some() || !detection.push || target.services.is_empty()) {
                return self.examine(now, name, format!("ping: {why}"), actions);
            }
            if let Seen::Bad(_, why) = &ping {
                self.alarm_once(name, format!("ping is bad ({why}) but its lease and services are good"), actions);
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
        let left = self.silence_limit().saturating_sub(self.silent(now, &target.agent));
        self.wake_at(name, now + left + Duration::from_millis(1));
    }

    fn alarm_once(&mut self, name: &TargetName, text: String, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.dbss(name).alarmed, true) {
            self.note(Some(name.clone()), Severity::Warning, "alarm", text, actions);
        }
    }

    fn examine(&mut self, now: Time, name: &TargetName, why: String, actions: &mut Vec<Action>) {
        self.note(Some(name.clone()), Severity::Warning, "network-trouble", why, actions);
        self.enter(now, name, Mode::NetworkExamination { since: now, told: false });
    }
}

mod recovery;
mod trouble;
