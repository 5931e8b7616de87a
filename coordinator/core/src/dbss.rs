//! DBSS: one machine per target server (thesis ch. 2, five modes), driven by checks, by what agents push, and by the
//! silence of leases. Every mode and what leads out of it: docs/modes.md.

use crate::{
    config::{Budget, Failback, Target},
    core::{Act, Coordinator, JobFor, TargetJob, TargetView, VmOrder},
    event::{Action, AgentCommand, Cause, CheckOutcome, JobId, JobResult, Severity},
    placement::{Owner, describe},
};
use kage_types::{AgentId, LeaseTiming, ServiceName, TargetName, Time, whole_millis};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

mod background;
mod budget;
mod checks;
mod double;
mod mode;
mod moves;
mod other_power;
mod recovery;
mod trouble;
mod virtual_server;

pub(crate) use trouble::{PROBE_AGAIN, RESTART_PATIENCE, RESTART_TIMEOUT, unfenced};

pub(crate) use budget::Budgets;
use checks::{Look, Round, Seen};
use mode::{Background, Job, Mode, ServiceStep, Waits, Why};

/// One target's supervision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dbss {
    pub mode: Mode,
    since: Time,
    ping: Seen,
    services: BTreeMap<usize, Seen>,
    /// Stopped by its own agent, as its double serves: what a probe says of it is no trouble then.
    held: BTreeSet<usize>,
    round: Round,
    round_ended: Time,
    budgets: Budgets,
    /// Why a virtual server is not started yet, as it was said last. Absent in snapshots of before it was there.
    #[serde(default)]
    waits_for: Option<String>,
    /// What its real server is told once the tables show that it runs nowhere else.
    #[serde(default)]
    order: Option<VmOrder>,
    /// Since when a virtual server under live migration has not answered. Absent in snapshots of before it was there.
    #[serde(default)]
    grace: Option<Time>,
    pub wake: Time,
}

impl Dbss {
    pub fn new(now: Time) -> Self {
        Self {
            mode: Mode::Starting,
            since: now,
            ping: Seen::Unknown,
            services: BTreeMap::new(),
            held: BTreeSet::new(),
            round: Round::Idle,
            round_ended: now,
            budgets: Budgets::default(),
            waits_for: None,
            order: None,
            grace: None,
            wake: now,
        }
    }

    pub fn view(&self) -> TargetView {
        let service = self.services.values().find(|seen| seen.bad()).or_else(|| self.services.values().next());
        let service = service.map_or_else(|| "unknown".into(), Seen::text);
        self.mode.view(self.since, self.ping.text(), service)
    }

    pub fn forget_evidence(&mut self, now: Time) {
        self.ping = Seen::Unknown;
        self.services.clear();
        self.round = Round::Idle;
        self.round_ended = now;
        if let Mode::NetworkExamination { off, .. } = &mut self.mode {
            *off = None;
        }
    }

    /// An order that withheld action is lifted: nothing that was seen under it counts.
    pub fn begin_evidence(&mut self, now: Time) {
        self.forget_evidence(now);
        if let Mode::TargetServerRecovery { background: Background::Healthy { since, .. } } = &mut self.mode {
            *since = now;
        }
        self.wake = now;
    }

    /// Owners are not what they were believed to be: the mode follows from the ledger, as after a restart.
    pub fn begin_again(&mut self, now: Time) {
        self.enter(now, Mode::Starting);
    }

    /// Are its virtual IPs in the hands of a recovery? With the verdict down that is over: the backup server has its place.
    pub fn recovers(&self) -> bool {
        match self.mode {
            Mode::BackupServer { .. } | Mode::TargetServerRecovery { .. } | Mode::Returning { .. } => true,
            Mode::Starting
            | Mode::Regular { .. }
            | Mode::ServiceRecovery { .. }
            | Mode::NetworkExamination { .. }
            | Mode::Ended { .. } => false,
        }
    }

    /// Does its backup server keep its place, until the operator starts it again?
    pub fn is_given_up(&self) -> bool {
        matches!(self.mode, Mode::Ended { .. })
    }

    fn enter(&mut self, now: Time, mode: Mode) {
        self.mode = mode;
        self.since = now;
        self.round = Round::Idle;
        self.round_ended = now;
        self.waits_for = None;
        self.grace = None;
        self.wake = now;
    }

    /// Has a round ended since this was asked last?
    fn round_over(&mut self) -> bool {
        let over = self.round == Round::Ended;
        if over {
            self.round = Round::Idle;
        }
        over
    }

    fn services_good(&self, expected: usize) -> bool {
        (0..expected).all(|index| self.services.get(&index).is_some_and(Seen::good))
    }

    fn bad_services(&self) -> Vec<usize> {
        self.services.iter().filter(|(_, seen)| seen.bad()).map(|(index, _)| *index).collect()
    }
}

impl Coordinator {
    /// Do what the target's mode needs now. Called when its wake time has come; sets the next.
    pub(crate) fn supervise(&mut self, now: Time, name: &TargetName, actions: &mut Vec<Action>) {
        let Some(target) = self.cluster.targets.get(name).map(|target| self.as_it_is(target)) else {
            return;
        };
        let Some(dbss) = self.targets.get_mut(name) else {
            return;
        };
        dbss.wake = Time::FAR;
        if self.rests(now, name, &target) {
            return;
        }
        let Some(dbss) = self.targets.get_mut(name) else {
            return;
        };
        match dbss.mode.clone() {
            Mode::Starting => self.starting(now, name, &target),
            Mode::Regular { next, .. } => self.regular(now, name, &target, next, actions),
            Mode::ServiceRecovery { services, step } => {
                self.service_recovery(now, name, &target, services, &step, actions);
            }
            Mode::NetworkExamination { off, .. } => self.network_examination(now, name, &target, off, actions),
            Mode::BackupServer { why } => self.backup_server(now, name, &target, why, actions),
            Mode::TargetServerRecovery { background } => {
                self.target_server_recovery(now, name, &target, &background, actions);
            }
            Mode::Returning { unfencing } => self.returning(now, name, &target, unfencing, actions),
            Mode::Ended { .. } => self.ended(now, name, &target, actions),
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
        // What a recovery had in hand may not be where it belongs by now.
        self.follow = true;
        self.dbss(name).enter(now, mode);
    }

    /// Regular mode again; what was alerted about this target is over.
    fn enter_regular(&mut self, now: Time, name: &TargetName) {
        self.alerts_over(Some(name));
        self.nothing_held_back(name);
        let next = now + self.cluster.detection.interval;
        self.enter(now, name, Mode::Regular { next, alarmed: false });
    }

    fn all_settled_on(&self, target: &Target, owner: &Owner) -> bool {
        self.vips_of(target).iter().all(|vip| self.vips.get(vip).is_some_and(|state| state.settled_on(owner)))
    }

    fn move_all(&mut self, now: Time, target: &Target, to: &Owner, cause: Cause, planned: bool) {
        // Its backup server takes over whatever it held.
        let over = *to == self.at_backup(target);
        for vip in if over { self.vips_held_by(target) } else { self.vips_of(target) } {
            self.move_vip(now, vip, to.clone(), cause, planned);
        }
    }

    /// Since when this agent's lease has been silent; how long that is.
    pub(crate) fn silent(&self, now: Time, agent: &AgentId) -> Duration {
        let silent = self.agents.get(agent).map_or(Duration::MAX, |view| view.silent_for(now, self.listening_since()));
        silent.min(self.orders.evidence(now, agent))
    }

    /// From when silence of an agent that was never heard counts. A coordinator that has just started gives agents time
    /// to find it; half of the wait that every new term begins with costs nobody anything.
    fn listening_since(&self) -> Time {
        let wait = LeaseTiming::patience(self.cluster.term) + LeaseTiming::patience(self.cluster.timing.lease);
        self.started + wait / 2
    }

    pub(crate) fn connected(&self, now: Time, agent: &AgentId) -> bool {
        let heard = self.agents.get(agent).is_some_and(|view| view.alive.is_some());
        heard && self.silent(now, agent) <= self.silence_limit()
    }

    /// Not the opposite of connected: one that was never heard is neither until its time to find us is over, nor is one that
    /// sleeps on purpose.
    pub(crate) fn fell_silent(&self, now: Time, agent: &AgentId) -> bool {
        self.silent(now, agent) > self.silence_limit() && !self.at_rest(agent)
    }

    // ---- Starting ----

    fn starting(&mut self, now: Time, name: &TargetName, target: &Target) {
        if !self.in_authority(now) {
            return self.wake_at(name, now + self.cluster.timing.renewal);
        }
        // Where a virtual server is, the tables say: they are read before the term, or as soon as SIF has them.
        if target.vm.is_some() && self.tables.is_none() {
            return self.wake_at(name, now + self.cluster.timing.renewal);
        }
        self.stand_in_found(now, name, target, self.given_up.contains_key(name));
        let home = self.home_owner(target);
        let vips = self.vips_of(target);
        let owned: Vec<_> = vips
            .iter()
            .filter_map(|vip| self.vips.get(vip).and_then(|state| state.row.as_ref()))
            // A virtual server's VIPs follow it wherever it is: away is what its backup server has.
            .map(|row| match &target.vm {
                None => (row.owner == home.agent && row.domain.is_none(), row.cause),
                Some(_) => (!row.domain.as_ref().is_some_and(|domain| target.is_double(domain)), row.cause),
            })
            .collect();
        if vips.is_empty() && self.is_filled_by_double(target) {
            // What its backup server held in its place is gathered elsewhere.
            if let Some(why) = self.given_up.remove(name) {
                return self.enter(now, name, Mode::Ended { why });
            }
        }
        if owned.len() == vips.len() && !vips.is_empty() && owned.iter().all(|(at_home, _)| !at_home) {
            // A recovery that an earlier coordinator began: go on from there.
            let leaving = self.was_leaving(name, target).then(|| "it is beyond repair".to_owned());
            if let Some(why) = self.given_up.remove(name).or(leaving) {
                return self.enter(now, name, Mode::Ended { why });
            }
            let background = if owned.iter().any(|(_, cause)| *cause == Cause::Failover) {
                self.claim_moved(name, target);
                Background::Operator { healthy: false }
            } else {
                // What of it reached SIF is not known; repeated, it changes nothing.
                self.claim(name, target, "resumed");
                self.function_restored(target);
                Background::AwaitReboot { job: Job::Resumed, until: now + target.reboot_wait, left: true }
            };
            return self.enter(now, name, Mode::TargetServerRecovery { background });
        }
        if owned.len() < vips.len() || owned.iter().any(|(at_home, _)| !at_home) {
            let cause = if owned.is_empty() { Cause::First } else { Cause::Failback };
            self.move_all(now, target, &home, cause, false);
        }
        self.tell_its_return(now, name, target);
        self.enter_regular(now, name);
    }

    // ---- Regular mode ----

    fn regular(&mut self, now: Time, name: &TargetName, target: &Target, next: Time, actions: &mut Vec<Action>) {
        let detection = self.cluster.detection;
        if !self.all_settled_on(target, &self.home_owner(target)) && !self.fell_silent(now, &target.agent) {
            // Being placed for the first time, or again: nothing to check at the VIP yet.
            return self.wake_at(name, now + detection.interval);
        }
        if detection.push && self.fell_silent(now, &target.agent) {
            let silent = self.silent(now, &target.agent);
            let text = format!("its lease has been silent for {:?}", whole_millis(silent));
            if self.withheld(name).is_none() {
                return self.examine(now, name, text, actions);
            }
            // Left alone, and looked at all the same.
            self.hold_back(name, Act::TakeOver, &text, actions);
        }
        let dbss = self.dbss(name);
        if dbss.round_over() {
            let (ping, bad) = (dbss.ping.clone(), dbss.bad_services());
            if self.in_grace(now, name, target, ping.bad() || !bad.is_empty()) {
                let next = now + detection.interval;
                if let Mode::Regular { next: due, .. } = &mut self.dbss(name).mode {
                    *due = next;
                }
                self.wake_at(name, next);
                return self.watch_lease(now, name, target);
            }
            let dbss = self.dbss(name);
            if let (Seen::Bad(_, why), true) = (&ping, !bad.is_empty() || !detection.push || target.services.is_empty())
            {
                return self.examine(now, name, format!("ping: {why}"), actions);
            }
            let next = dbss.round_ended + detection.interval;
            if let Mode::Regular { next: due, alarmed } = &mut dbss.mode {
                *due = next;
                *alarmed &= !ping.good();
            }
            if let Seen::Bad(_, why) = &ping {
                self.alarm_once(name, format!("ping is bad ({why}) but its lease and services are good"), actions);
            }
            if bad.is_empty() && !ping.bad() && (!detection.push || self.connected(now, &target.agent)) {
                self.nothing_held_back(name);
            }
            if !bad.is_empty() {
                return self.recover_services(now, name, target, bad, actions);
            }
            self.read_other_power(now, name, target, actions);
            self.wake_at(name, next);
        } else if dbss.round == Round::Idle {
            if now >= next {
                self.begin_round(now, name, target, Look::AtVip, actions);
            } else {
                self.wake_at(name, next);
            }
        }
        self.watch_lease(now, name, target);
    }

    /// Be called when the lease falls silent.
    fn watch_lease(&mut self, now: Time, name: &TargetName, target: &Target) {
        // Nothing would be done at once: the next check is soon enough.
        if !self.cluster.detection.push || self.withheld(name).is_some() {
            return;
        }
        let left = self.silence_limit().saturating_sub(self.silent(now, &target.agent));
        self.wake_at(name, now + left + Duration::from_millis(1));
    }

    fn alarm_once(&mut self, name: &TargetName, text: String, actions: &mut Vec<Action>) {
        let said = match &mut self.dbss(name).mode {
            Mode::Regular { alarmed: said, .. } | Mode::NetworkExamination { alarmed: said, .. } => {
                std::mem::replace(said, true)
            }
            Mode::Starting
            | Mode::ServiceRecovery { .. }
            | Mode::BackupServer { .. }
            | Mode::TargetServerRecovery { .. }
            | Mode::Returning { .. }
            | Mode::Ended { .. } => false,
        };
        if !said {
            self.note(Some(name.clone()), Severity::Warning, "alarm", text, actions);
        }
    }

    /// Has something odd been said that is not over?
    pub(crate) fn alarmed(&self, name: &TargetName) -> bool {
        self.targets.get(name).is_some_and(|dbss| matches!(dbss.mode, Mode::Regular { alarmed: true, .. }))
    }

    /// Is this withheld by an operator's order? Then the target is in Regular mode, and only looked at.
    fn stays_regular(&mut self, now: Time, name: &TargetName, act: Act, why: &str, actions: &mut Vec<Action>) -> bool {
        if !self.hold_back(name, act, why, actions) {
            return false;
        }
        let at = now + self.cluster.detection.interval;
        match &mut self.dbss(name).mode {
            Mode::Regular { next, .. } => *next = at,
            Mode::ServiceRecovery { .. } | Mode::NetworkExamination { .. } => {
                self.enter(now, name, Mode::Regular { next: at, alarmed: false });
            }
            // Its virtual IPs are on their way, or away: that is finished.
            Mode::Starting
            | Mode::BackupServer { .. }
            | Mode::TargetServerRecovery { .. }
            | Mode::Returning { .. }
            | Mode::Ended { .. } => {}
        }
        self.wake_at(name, at);
        true
    }

    fn examine(&mut self, now: Time, name: &TargetName, why: String, actions: &mut Vec<Action>) {
        // A backup host in maintenance is no reason not to look.
        if self.withheld(name).is_some() && self.stays_regular(now, name, Act::TakeOver, &why, actions) {
            return;
        }
        self.note(Some(name.clone()), Severity::Warning, "network-trouble", why, actions);
        self.enter(now, name, Mode::NetworkExamination { alarmed: false, told: false, off: None });
    }
}
