//! Out, and home: a live migration, and what came of it.

use super::{Stage, StandIn, StandInJob, Way};
use crate::{
    core::Coordinator,
    event::{Action, AgentCommand, JobId, JobResult, Severity},
    placement::{Owner, describe},
};
use kage_types::{AgentId, DomainName, TargetName, Time};
use std::{collections::BTreeSet, time::Duration};

/// To be told what is in a host's memory.
const FIND_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two rounds of looking: what is only on its way in looks as if it were there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A virtual IP that its owner does not ask for is told of as "switched over" within this time, or not at all.
const UNSEEN: Duration = Duration::from_millis(200);
/// Before the way home is tried again, times the tries so far.
const HOME_AGAIN: Duration = Duration::from_secs(30);
/// But never longer.
const HOME_LIMIT: u32 = 20;

impl Coordinator {
    /// A home for it that it is not needed in: there it sleeps.
    pub(super) fn go_home(&mut self, now: Time, domain: &DomainName, by: TargetName, at: AgentId) {
        let (Some(home), Some(stand)) = (self.home_of(domain), self.stand_ins.get_mut(domain)) else { return };
        (stand.by, stand.at) = (by, Some(at.clone()));
        let way = Way { from: at, to: home, home: true };
        self.enter_stage(now, domain, Stage::Leaving { way, not_before: now, tries: 0 });
        self.claim_stand_in(domain, "its backup server goes home");
    }

    pub(super) fn leaving(
        &mut self,
        now: Time,
        domain: &DomainName,
        way: Way,
        not_before: Time,
        tries: u32,
        actions: &mut Vec<Action>,
    ) {
        let again = now + self.cluster.detection.interval;
        let owner = Owner { agent: way.from.clone(), domain: Some(domain.clone()) };
        let (Some(by), wanted) = (self.stand_ins.get(domain).map(|stand| stand.by.clone()), self.is_needed(&owner))
        else {
            return;
        };
        if way.home && wanted {
            // Somebody needs it again, and it is here.
            return self.tell(now, domain);
        }
        if !way.home && !wanted {
            return self.go_home(now, domain, by, way.from);
        }
        if way.home && way.from == way.to {
            return self.at_home(now, domain, &owner, actions);
        }
        if !way.home
            && let Some(why) = self.unfit(now, domain, &way.to, &way.from)
        {
            return self.stays(now, domain, &by, &why, actions);
        }
        if now < not_before {
            return self.wake_stand_in(domain, not_before);
        }
        if let Some(why) = self.not_yet(now, domain, &way) {
            let text = format!("{domain} goes from {} to {} later: {why}", way.from, way.to);
            self.say_once(domain, Severity::Warning, "double-leaves", text, actions);
            return self.wake_stand_in(domain, again);
        }
        // Not ready for reasons that pass by themselves: the answer to a signal, a move under way.
        if !self.is_claimed(domain) || self.is_in_motion(domain) || self.pausing.contains_key(&owner) {
            return self.wake_stand_in(domain, again);
        }
        let job = self.stand_in_job(domain, StandInJob::Migrated);
        let what = if way.home { "goes home" } else { "goes where its target was" };
        let text = format!("{domain} {what}: live migration from {} to {}", way.from, way.to);
        self.note_stand_in(domain, Severity::Info, "double-leaves", text, actions);
        let command = AgentCommand::MigrateVm { domain: domain.clone(), to: way.to.clone() };
        let (agent, timeout) = (way.from.clone(), self.cluster.saving.migration_limit);
        actions.push(Action::Command { job, agent, command, timeout });
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            (stand.stage, stand.said) = (Stage::Migrating { way, job, tries }, None);
            stand.wake = again;
        }
    }

    /// A virtual IP of it is closed where it was, and nobody has said why: its end need not be waited for.
    pub(super) fn migrating(&mut self, now: Time, domain: &DomainName, way: &Way, tries: u32) {
        let here = self.stand_in_at(domain) == Some(&way.from);
        let lost = |vip: &kage_types::Vip| {
            let state = self.vips.get(vip);
            state.is_some_and(|state| state.moving.is_none() && state.is_missing(now, UNSEEN))
        };
        if !(here && self.vips_of_stand_in(domain).iter().any(lost)) {
            return self.wake_stand_in(domain, now + self.cluster.detection.interval);
        }
        let failed = Some((way.clone(), "its end was not seen".to_owned(), false));
        let hosts = [way.from.clone(), way.to.clone()].into();
        self.enter_stage(now, domain, Stage::looking(now, hosts, failed, tries));
    }

    /// What may keep it for longer.
    fn not_yet(&self, now: Time, domain: &DomainName, way: &Way) -> Option<String> {
        let stand = self.stand_ins.get(domain)?;
        if let Some(host) = [&way.from, &way.to].into_iter().find(|host| !self.connected(now, host)) {
            return Some(format!("{host} does not answer"));
        }
        if self.withheld(&stand.by).is_some() {
            return Some("an order withholds it".to_owned());
        }
        let tables = self.tables.as_ref()?;
        tables.transition.as_ref().map(|_| "power saving is under way".to_owned())
    }

    /// Are virtual IPs on their way to it or from it, or is SIF still to be told that it fills a place?
    pub(super) fn is_in_motion(&self, domain: &DomainName) -> bool {
        let its = |state: &crate::placement::VipState| {
            let held = state.row.as_ref().is_some_and(|row| row.domain.as_ref() == Some(domain));
            state.moving.as_ref().is_some_and(|moving| held || moving.to.domain.as_ref() == Some(domain))
        };
        self.vips.values().any(its) || !self.signals_told()
    }

    /// The agent has closed a virtual IP of it: it has left. True if it is on its way.
    pub(crate) fn stand_in_left(&mut self, now: Time, agent: &AgentId, domain: &DomainName) -> bool {
        let to = match self.stand_ins.get(domain).map(|stand| &stand.stage) {
            Some(Stage::Migrating { way, .. } | Stage::Looking { failed: Some((way, ..)), .. })
                if way.from == *agent =>
            {
                way.to.clone()
            }
            Some(Stage::Migrating { .. } | Stage::Looking { .. }) => return true,
            Some(
                Stage::Leaving { .. }
                | Stage::Serving { .. }
                | Stage::Restarting { .. }
                | Stage::Relieving
                | Stage::Relieved { .. }
                | Stage::Curing { .. },
            )
            | None => return false,
        };
        self.is_at(now, domain, &to);
        true
    }

    pub(super) fn migrated(
        &mut self,
        now: Time,
        domain: &DomainName,
        job: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(Stage::Migrating { way, job: running, tries }) = self.stand_ins.get(domain).map(|it| it.stage.clone())
        else {
            return;
        };
        if running != job {
            return;
        }
        if *result == JobResult::Done {
            return self.arrived(now, domain, &way.to, way.home, actions);
        }
        let why = describe(result);
        let text = format!("the live migration of {domain} from {} to {} failed: {why}", way.from, way.to);
        self.note_stand_in(domain, Severity::Warning, "command-failed", text, actions);
        let over = matches!(result, JobResult::Failed(_));
        let hosts = [way.from.clone(), way.to.clone()].into();
        let failed = Some((way, why, over));
        self.enter_stage(now, domain, Stage::looking(now, hosts, failed, tries));
    }

    /// It is there. Whoever is given up is told of to SIF; or there it sleeps.
    fn arrived(&mut self, now: Time, domain: &DomainName, at: &AgentId, home: bool, actions: &mut Vec<Action>) {
        self.is_at(now, domain, at);
        let owner = Owner { agent: at.clone(), domain: Some(domain.clone()) };
        if home && !self.is_needed(&owner) {
            return self.at_home(now, domain, &owner, actions);
        }
        let text = format!("{domain} is on {at} now, and is supervised there");
        self.note_stand_in(domain, Severity::Info, "double-moved", text, actions);
        self.tell(now, domain);
    }

    /// A5, for all who are beyond repair; from now on it is supervised.
    pub(super) fn tell(&mut self, now: Time, domain: &DomainName) {
        self.enter_stage(now, domain, StandIn::serving(now));
        for (name, target) in self.stood_in_for(domain) {
            if self.targets.get(&name).is_some_and(crate::dbss::Dbss::is_given_up) && self.fills(&target, domain) {
                self.verdict(now, &name, &target, false);
            }
        }
        self.claim_stand_in(domain, "");
    }

    /// Nothing else stands in there, as far as the tables say.
    fn fills(&self, target: &crate::config::Target, domain: &DomainName) -> bool {
        let tables = self.tables.as_ref();
        let row = target
            .domain()
            .zip(tables)
            .and_then(|(place, tables)| tables.operation.get(place).or_else(|| tables.suspend.get(place)));
        self.double_of(target) == domain && row.is_none_or(|row| row.vm == *domain || !target.is_double(&row.vm))
    }

    /// It does not leave, or could not.
    pub(super) fn stays(
        &mut self,
        now: Time,
        domain: &DomainName,
        by: &TargetName,
        why: &str,
        actions: &mut Vec<Action>,
    ) {
        if let Some(at) = self.owner_of_stand_in(domain).map(|owner| owner.agent) {
            let text = format!("{domain} stays on {at} and is supervised there: {why}");
            self.note(Some(by.clone()), Severity::Warning, "double-stays", text, actions);
        }
        self.tell(now, domain);
    }

    /// Nothing is left on it: it sleeps, and is a backup server as before.
    fn at_home(&mut self, now: Time, domain: &DomainName, owner: &Owner, actions: &mut Vec<Action>) {
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        self.is_at(now, domain, &owner.agent);
        let text = format!("{domain} is at home on {} again", owner.agent);
        self.note_stand_in(domain, Severity::Info, "double-home", text, actions);
        self.stand_ins.remove(domain);
        if let Some(target) = self.cluster.targets.get(&by).cloned()
            && !self.targets.get(&by).is_some_and(crate::dbss::Dbss::recovers)
        {
            self.unclaim(&by, &target);
        }
        self.pause(owner, &by, actions);
    }

    // ---- where is it? ----

    pub(super) fn looking(&mut self, now: Time, domain: &DomainName, actions: &mut Vec<Action>) {
        let Some(stand) = self.stand_ins.get(domain) else { return };
        let Stage::Looking { hosts, found, asked, next, .. } = &stand.stage else { return };
        if asked.is_some() {
            return;
        }
        if now < *next {
            let next = *next;
            return self.wake_stand_in(domain, next);
        }
        let Some(host) = hosts.iter().find(|host| !found.contains_key(*host)).cloned() else {
            return self.judge(now, domain, actions);
        };
        let job = self.stand_in_job(domain, StandInJob::Found);
        let command = AgentCommand::FindVm { domain: domain.clone() };
        actions.push(Action::Command { job, agent: host.clone(), command, timeout: FIND_TIMEOUT });
        if let Some(Stage::Looking { asked, .. }) = self.stand_ins.get_mut(domain).map(|stand| &mut stand.stage) {
            *asked = Some((host, job));
        }
    }

    pub(super) fn found(&mut self, now: Time, domain: &DomainName, job: JobId, result: &JobResult) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let Stage::Looking { found, asked, .. } = &mut stand.stage else { return };
        let Some((host, _)) = asked.take_if(|(_, asked)| *asked == job) else { return };
        let there = match result {
            JobResult::Done => Some(true),
            JobResult::Failed(_) => Some(false),
            JobResult::Unknown(_)
            | JobResult::Epoch(_)
            | JobResult::Barred(_)
            | JobResult::Check(_)
            | JobResult::Answered(_) => None,
        };
        found.insert(host, there);
        stand.wake = now;
    }

    /// A round is over. Two that agree decide; one does where the migration is over, and it is where it was.
    fn judge(&mut self, now: Time, domain: &DomainName, actions: &mut Vec<Action>) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let Stage::Looking { found, before, next, failed, .. } = &mut stand.stage else { return };
        let seen = std::mem::take(found);
        *next = now + LOOK_AGAIN;
        let next = *next;
        let there: BTreeSet<AgentId> =
            seen.iter().filter(|(_, there)| **there == Some(true)).map(|(host, _)| host.clone()).collect();
        let silent: Vec<String> = seen.iter().filter(|(_, there)| there.is_none()).map(|it| it.0.to_string()).collect();
        let stayed = failed.as_ref().filter(|(way, _, over)| *over && there.iter().eq([&way.from])).is_some();
        let all = silent.is_empty();
        let agreed = all && there.len() < 2 && before.as_ref() == Some(&there);
        *before = all.then(|| there.clone());
        if !stayed && !agreed {
            if !all {
                let text = format!("where {domain} is, is not known: {} does not answer", silent.join(", "));
                self.say_once(domain, Severity::Warning, "double-sought", text, actions);
            }
            return self.wake_stand_in(domain, next);
        }
        self.known(now, domain, there.into_iter().next(), actions);
    }

    fn known(&mut self, now: Time, domain: &DomainName, at: Option<AgentId>, actions: &mut Vec<Action>) {
        let Some(stand) = self.stand_ins.get(domain) else { return };
        let Stage::Looking { failed, tries, hosts, .. } = &stand.stage else { return };
        let (by, failed, tries, hosts) = (stand.by.clone(), failed.clone(), *tries, hosts.clone());
        let Some(home) = self.home_of(domain) else { return };
        let wanted = self.owner_of_stand_in(domain).is_some_and(|owner| self.is_needed(&owner));
        let Some(at) = at else {
            return self.off_everywhere(now, domain, &home, &hosts, wanted, actions);
        };
        self.is_at(now, domain, &at);
        if !wanted && self.may_come_back(domain) {
            return self.wait_for_its_return(now, domain);
        }
        match failed {
            Some((way, _, _)) if at == way.to => self.arrived(now, domain, &at, way.home, actions),
            _ if !wanted && at == home => {
                let owner = Owner { agent: at, domain: Some(domain.clone()) };
                self.at_home(now, domain, &owner, actions);
            }
            _ if !wanted => {
                // Where it is it sleeps meanwhile.
                let owner = Owner { agent: at.clone(), domain: Some(domain.clone()) };
                self.pause(&owner, &by, actions);
                let wait = failed.map_or(Duration::ZERO, |_| HOME_AGAIN * (tries + 1).min(HOME_LIMIT));
                let way = Way { from: at, to: home, home: true };
                let stage = Stage::Leaving { way, not_before: now + wait, tries: tries + 1 };
                self.enter_stage(now, domain, stage);
                self.claim_stand_in(domain, "its backup server goes home");
            }
            Some((way, why, _)) if !way.home => self.stays(now, domain, &by, &why, actions),
            // Wanted again on its way home; or an earlier coordinator had begun something.
            Some(_) | None => {
                let target = self.cluster.targets.get(&by).cloned();
                let given_up = self.targets.get(&by).is_some_and(crate::dbss::Dbss::is_given_up);
                self.tell_or_leave(now, domain, &by, target.filter(|_| given_up && at == home), actions);
            }
        }
    }

    fn tell_or_leave(
        &mut self,
        now: Time,
        domain: &DomainName,
        by: &TargetName,
        leaves: Option<crate::config::Target>,
        actions: &mut Vec<Action>,
    ) {
        match leaves {
            Some(target) => {
                self.enter_stage(now, domain, StandIn::serving(now));
                self.beyond_repair(now, by, &target, actions);
            }
            None => self.tell(now, domain),
        }
    }

    /// It is off, here and there: started at home if that answers, as nothing else is certain to have room for it.
    fn off_everywhere(
        &mut self,
        now: Time,
        domain: &DomainName,
        home: &AgentId,
        hosts: &BTreeSet<AgentId>,
        wanted: bool,
        actions: &mut Vec<Action>,
    ) {
        let at = if self.connected(now, home) { Some(home) } else { hosts.iter().find(|it| self.connected(now, it)) };
        let at = at.unwrap_or(home).clone();
        let owner = Owner { agent: at.clone(), domain: Some(domain.clone()) };
        if !wanted && self.may_come_back(domain) {
            self.is_at(now, domain, &at);
            return self.wait_for_its_return(now, domain);
        }
        if !wanted {
            let text = format!("{domain} is off: it is started at home when it is needed");
            self.note_stand_in(domain, Severity::Warning, "double-crashed", text, actions);
            let owner = Owner { agent: home.clone(), ..owner };
            return self.at_home(now, domain, &owner, actions);
        }
        self.is_at(now, domain, &at);
        self.tell(now, domain);
        self.stand_in_crashed(now, domain, "it is off", actions);
    }
}
