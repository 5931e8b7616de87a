//! A DBSS of its own: do the services that it stands in for answer; and if not, and no restart of a service cures it
//! (`service.rs`), it is started anew.

use super::{Stage, StandInJob, further::Relief, service::Restarts};
use crate::{
    core::{Act, Coordinator},
    event::{Action, AgentCommand, CheckOutcome, JobId, JobResult, Severity},
    placement::{Owner, describe},
};
use kage_types::{DomainName, ServiceName, Time};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Starting it, or pulling its plug and starting it.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Checks under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Round {
    pub next: Time,
    pub open: BTreeSet<JobId>,
    /// Of this round, the first.
    pub bad: Option<String>,
    pub asked: bool,
    /// Whose probes are open. Absent in snapshots of before services were restarted, as is the next.
    #[serde(default)]
    pub probes: BTreeMap<JobId, ServiceName>,
    #[serde(default)]
    pub ill: Ill,
}

/// What does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ill {
    /// These services, and as far as is known no more than they.
    Services(BTreeSet<ServiceName>),
    /// More than services.
    Machine,
}

impl Default for Ill {
    fn default() -> Self {
        Ill::Services(BTreeSet::new())
    }
}

impl Ill {
    /// This service does not answer either.
    pub fn add(&mut self, service: ServiceName) {
        match self {
            Ill::Services(services) => {
                services.insert(service);
            }
            Ill::Machine => {}
        }
    }
}

/// What a round has found, if it was not all well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    pub why: String,
    pub ill: Ill,
}

impl Bad {
    fn silence() -> Self {
        Self { why: "it does not answer".to_owned(), ill: Ill::Machine }
    }
}

/// It does not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub since: Time,
    pub why: String,
    /// It has lasted for so long that it was said.
    pub told: bool,
    /// Nothing more is done about it.
    pub spent: bool,
    /// As of the last round. Absent in snapshots of before services were restarted, as is the next.
    #[serde(default)]
    pub ill: Ill,
    /// Restarted since it began: what these do not answer after that no other restart cures.
    #[serde(default)]
    pub tried: BTreeSet<ServiceName>,
}

impl Trouble {
    /// What a start of all of it did not cure, no restart of a service does.
    fn after_a_start(since: Time, bad: Bad) -> Self {
        let tried = match &bad.ill {
            Ill::Services(services) => services.clone(),
            Ill::Machine => BTreeSet::new(),
        };
        Self { ill: bad.ill, tried, ..Self::begin(since, bad.why) }
    }

    pub fn begin(since: Time, why: String) -> Self {
        Self { since, why, told: false, spent: false, ill: Ill::Machine, tried: BTreeSet::new() }
    }
}

impl Round {
    pub fn begin(next: Time) -> Self {
        Self { next, open: BTreeSet::new(), bad: None, asked: false, probes: BTreeMap::new(), ill: Ill::default() }
    }

    /// Over; what was bad in it.
    pub fn judged(self) -> Option<Bad> {
        Some(Bad { why: self.bad?, ill: self.ill })
    }

    /// When somebody must look again, if no answer comes before.
    pub fn wake(&self) -> Time {
        if self.open.is_empty() { self.next } else { Time::FAR }
    }
}

/// How it is brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// It is off.
    Start,
    /// Pull its plug and start it.
    Reset,
}

impl Coordinator {
    pub(super) fn serving(
        &mut self,
        now: Time,
        domain: &DomainName,
        round: Round,
        trouble: Option<Trouble>,
        actions: &mut Vec<Action>,
    ) {
        let Some(owner) = self.owner_of_stand_in(domain) else { return };
        if !self.is_needed(&owner) && !self.is_still_expected(domain) {
            let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
            return self.go_home(now, domain, by, owner.agent);
        }
        // From now on the tables say where it is, and power saving may move it.
        self.fill_places(domain, &owner);
        let known = !self.is_further(domain) && self.is_in_the_tables(domain, &owner) && !self.is_in_motion(domain);
        let news = self.stand_ins.get_mut(domain).filter(|_| known).and_then(|stand| stand.at.take());
        if news.is_some() {
            self.claim_stand_in(domain, "");
        }
        let (round, judged) = self.look_at(now, domain, &owner, round, actions);
        let wake = round.wake();
        let trouble = match judged {
            None => trouble,
            Some(None) => {
                if trouble.is_some_and(|trouble| trouble.told) {
                    self.answers_again(domain, &owner, actions);
                }
                None
            }
            Some(Some(bad)) => {
                let trouble = trouble.unwrap_or_else(|| Trouble::begin(now, bad.why));
                Some(Trouble { ill: bad.ill, ..trouble })
            }
        };
        let lasts = |trouble: &Trouble| now.since(trouble.since) >= self.cluster.detection.confirm;
        let lasts = trouble.as_ref().is_some_and(lasts);
        let spent = trouble.as_ref().is_some_and(|trouble| trouble.spent);
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.stage = Stage::Serving { round, trouble };
            stand.wake = stand.wake.min(wake);
        }
        if lasts && !spent {
            self.remedy(now, domain, actions);
        } else if lasts {
            // Nothing more is done to it: may be that somebody can take over by now.
            self.relieve(now, domain, actions);
        }
    }

    /// The least that may cure its trouble.
    pub(super) fn remedy(&mut self, now: Time, domain: &DomainName, actions: &mut Vec<Action>) {
        match self.may_be_restarted(now, domain) {
            Restarts::Service(agent, service) => self.restart_inside(now, domain, &agent, service, actions),
            Restarts::NotYet => {}
            Restarts::No => self.cure(now, domain, Order::Reset, actions),
        }
    }

    pub(super) fn answers_again(&mut self, domain: &DomainName, owner: &Owner, actions: &mut Vec<Action>) {
        let text = format!("{domain} on {} answers again", owner.agent);
        self.note_stand_in(domain, Severity::Info, "double-normal", text, actions);
    }

    /// Do they have it where it is, in a place that is not about to be its target's again?
    fn is_in_the_tables(&self, domain: &DomainName, owner: &Owner) -> bool {
        let Some(tables) = &self.tables else { return false };
        self.stood_in_for(domain).iter().any(|(name, target)| {
            let row =
                target.domain().and_then(|place| tables.operation.get(place).or_else(|| tables.suspend.get(place)));
            let lasts = self.targets.get(name).is_some_and(|dbss| dbss.is_given_up() || dbss.recovers());
            lasts && row.is_some_and(|row| row.vm == *domain && row.host == owner.agent)
        })
    }

    /// One round after another, of what it holds. Some: a round is over, and what was bad in it.
    pub(super) fn look_at(
        &mut self,
        now: Time,
        domain: &DomainName,
        owner: &Owner,
        mut round: Round,
        actions: &mut Vec<Action>,
    ) -> (Round, Option<Option<Bad>>) {
        if !round.open.is_empty() {
            return (round, None);
        }
        if round.asked {
            return (Round::begin(now + self.cluster.detection.interval), Some(round.judged()));
        }
        if now < round.next {
            return (round, None);
        }
        round.asked = true;
        let detection = self.cluster.detection;
        for vip in self.vips_of_stand_in(domain) {
            let Some(state) = self.vips.get(&vip) else { continue };
            // Told to hold it, and it is not opened. What else it waits for is nothing of its own.
            let told = state.moving.as_ref().is_some_and(|moving| moving.to == *owner && moving.is_told());
            if told || self.waits_in_vain(now, state, owner) {
                round.bad.get_or_insert_with(|| format!("{vip} is not open"));
                round.ill = Ill::Machine;
            }
            // One that was not heard yet may have been lost before this coordinator began.
            let asked = state.held || self.fell_silent(now, &owner.agent);
            if !asked || !state.settled_on(owner) {
                continue;
            }
            let services = self.cluster.targets.get(&state.target).map(|target| target.services.clone());
            let services = services.unwrap_or_default();
            if services.is_empty() {
                let job = self.stand_in_job(domain, StandInJob::Checked);
                let (count, timeout) = (detection.ping_count, detection.ping_timeout);
                actions.push(Action::Ping { job, address: vip.address(), count, timeout });
                round.open.insert(job);
            }
            for service in services {
                let job = self.stand_in_job(domain, StandInJob::Checked);
                let limits = service.probe.limits(self.cluster.profile, &detection);
                let (address, port) = (vip.address(), service.port);
                actions.push(Action::Probe { job, address, port, probe: service.probe, limits });
                round.open.insert(job);
                round.probes.insert(job, service.name);
            }
        }
        if round.open.is_empty() {
            return (Round::begin(now + detection.interval), round.judged().map(Some));
        }
        (round, None)
    }

    pub(super) fn checked(&mut self, now: Time, domain: &DomainName, job: JobId, result: &JobResult) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let (Stage::Serving { round, .. }
        | Stage::Curing { round, .. }
        | Stage::Restarting { round, .. }
        | Stage::Relieved { round, .. }) = &mut stand.stage
        else {
            return;
        };
        if !round.open.remove(&job) {
            return;
        }
        if let JobResult::Check(CheckOutcome::Ng(why) | CheckOutcome::Error(why)) = result {
            round.bad.get_or_insert_with(|| why.clone());
            match round.probes.remove(&job) {
                Some(service) => round.ill.add(service),
                None => round.ill = Ill::Machine,
            }
        }
        if round.open.is_empty() {
            stand.wake = now;
        }
    }

    /// Its process is gone.
    pub(crate) fn stand_in_crashed(&mut self, now: Time, domain: &DomainName, detail: &str, actions: &mut Vec<Action>) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        match &mut stand.stage {
            Stage::Serving { trouble, .. } => {
                if !trouble.get_or_insert_with(|| Trouble::begin(now, detail.to_owned())).spent {
                    self.cure(now, domain, Order::Start, actions);
                }
            }
            // With the services in it.
            Stage::Restarting { trouble, .. } => {
                let trouble = Trouble { why: detail.to_owned(), ..trouble.clone() };
                self.enter_stage(now, domain, Stage::Serving { round: Round::begin(now), trouble: Some(trouble) });
                self.cure(now, domain, Order::Start, actions);
            }
            // It is looked for when the migration has failed; or it is being started.
            Stage::Leaving { .. }
            | Stage::Migrating { .. }
            | Stage::Looking { .. }
            | Stage::Relieving
            | Stage::Relieved { .. }
            | Stage::Curing { .. } => {}
        }
    }

    /// Once.
    pub(super) fn say_trouble(&mut self, domain: &DomainName, owner: &Owner, actions: &mut Vec<Action>) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        if let Stage::Serving { trouble: Some(trouble), .. } = &mut stand.stage
            && !std::mem::replace(&mut trouble.told, true)
        {
            let text = format!("{domain} on {} is in trouble: {}", owner.agent, trouble.why);
            self.note_stand_in(domain, Severity::Warning, "double-trouble", text, actions);
        }
    }

    /// Withheld by an order, waiting for its host, or used up: then nothing is done yet.
    pub(super) fn cure(&mut self, now: Time, domain: &DomainName, order: Order, actions: &mut Vec<Action>) {
        let Some(owner) = self.owner_of_stand_in(domain) else { return };
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        let Some(target) = self.cluster.targets.get(&by).cloned() else { return };
        self.say_trouble(domain, &owner, actions);
        if !self.connected(now, &owner.agent) {
            let lost = self.silent(now, &owner.agent) >= self.cluster.detection.confirm.max(self.silence_limit());
            if lost && self.relieve(now, domain, actions) != Relief::None {
                return;
            }
            let text = format!("{domain} is started anew when its real server {} is back", owner.agent);
            return self.say_once(domain, Severity::Warning, "double-trouble", text, actions);
        }
        if self.hold_back(&by, Act::Reboot, "its backup server is in trouble", actions) {
            return;
        }
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let left = match order {
            Order::Start => stand.budgets.take_restart(now, 0, &target.budget),
            Order::Reset => stand.budgets.take_reboot(now, &target.budget),
        };
        if !left {
            if let Stage::Serving { trouble: Some(trouble), .. } = &mut stand.stage {
                trouble.spent = true;
            }
            if self.relieve(now, domain, actions) == Relief::Begun {
                return;
            }
            let text = format!(
                "{domain} on {} is in trouble and was started anew too often: nothing more is done to it; its virtual IPs \
                 are not served",
                owner.agent
            );
            return self.note_stand_in(domain, Severity::Alert, "double-down", text, actions);
        }
        let round = Round::begin(now);
        self.enter_stage(now, domain, Stage::Curing { order, job: None, until: None, round });
        self.claim_stand_in(domain, "its backup server is in trouble");
    }

    #[allow(clippy::too_many_arguments, reason = "the stage's own parts")]
    pub(super) fn curing(
        &mut self,
        now: Time,
        domain: &DomainName,
        order: Order,
        job: Option<JobId>,
        until: Option<Time>,
        round: Round,
        actions: &mut Vec<Action>,
    ) {
        let again = now + self.cluster.detection.interval;
        let Some(owner) = self.owner_of_stand_in(domain) else { return };
        let Some(until) = until else {
            let moves = self.tables.as_ref().is_some_and(|tables| tables.migrating(domain).is_some());
            if !self.is_claimed(domain) || moves {
                return self.wake_stand_in(domain, again);
            }
            return self.order_stand_in(now, domain, &owner, order, actions);
        };
        if job.is_some() {
            return;
        }
        let (round, judged) = self.look_at(now, domain, &owner, round, actions);
        let wake = round.wake();
        let well = judged == Some(None);
        if well || now >= until {
            if well {
                self.answers_again(domain, &owner, actions);
            }
            let bad = judged.flatten().unwrap_or_else(Bad::silence);
            let trouble = (!well).then(|| Trouble::after_a_start(now, bad));
            self.tell(now, domain);
            return self.enter_stage(now, domain, Stage::Serving { round: Round::begin(again), trouble });
        }
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.stage = Stage::Curing { order, job, until: Some(until), round };
            stand.wake = stand.wake.min(wake).min(until);
        }
    }

    fn order_stand_in(
        &mut self,
        now: Time,
        domain: &DomainName,
        owner: &Owner,
        order: Order,
        actions: &mut Vec<Action>,
    ) {
        let wait = self.stood_in_for(domain).into_iter().map(|(_, target)| target.start_wait).max();
        let until = now + wait.unwrap_or(TIMEOUT);
        let (what, command) = match order {
            Order::Start => ("started", AgentCommand::ResumeVm { domain: domain.clone() }),
            Order::Reset => ("reset", AgentCommand::RebootVm { domain: domain.clone(), force: true }),
        };
        let text = format!("{domain} is {what} on {}", owner.agent);
        self.note_stand_in(domain, Severity::Info, "double-restarting", text, actions);
        // What it held is over with its process: under a new epoch, as in every move.
        for vip in self.vips_of_stand_in(domain) {
            self.serve_anew(now, vip, owner.clone());
        }
        let job = self.stand_in_job(domain, StandInJob::Cured);
        actions.push(Action::Command { job, agent: owner.agent.clone(), command, timeout: TIMEOUT });
        let round = Round::begin(now);
        self.enter_stage(now, domain, Stage::Curing { order, job: Some(job), until: Some(until), round });
    }

    pub(super) fn cured(
        &mut self,
        now: Time,
        domain: &DomainName,
        done: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let Stage::Curing { job, .. } = &mut stand.stage else { return };
        if job.take_if(|job| *job == done).is_none() {
            return;
        }
        stand.wake = now;
        if *result != JobResult::Done {
            let text = format!("{domain} could not be started anew: {}", describe(result));
            self.note_stand_in(domain, Severity::Warning, "command-failed", text, actions);
        }
    }
}
