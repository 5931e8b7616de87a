//! A backup server whose target is beyond repair (thesis ch. 4, verdict *down*): it leaves the management server for the
//! real server where the target was, is supervised itself, and goes home when it stands in for nobody any more.
//!
//! Where it is, is known here until the shared tables say so. What it is about to do is claimed in them before: a
//! coordinator that finds a claim of a backup server looks where it is.

use crate::{
    config::Target,
    core::{Coordinator, JobFor},
    dbss::Budgets,
    event::{Action, JobId, JobResult, Severity},
    placement::Owner,
};
use kage_types::{AgentId, Claim, DomainName, ServiceName, TargetName, Time, Vip};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

mod further;
mod service;
mod sight;
mod watch;
mod way;

use service::Step;
use watch::{Order, Round, Trouble};

/// Why it is claimed while it leaves: with this claim the verdict is known, whatever else got lost.
const BEYOND_REPAIR: &str = "beyond repair";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StandIn {
    pub stage: Stage,
    /// In whose name is claimed what it needs.
    by: TargetName,
    /// Where it is, until the shared tables say so; none: where they have it.
    at: Option<AgentId>,
    budgets: Budgets,
    /// Of each service's restarts. Absent in snapshots of before services were restarted.
    #[serde(default)]
    restarts: BTreeMap<ServiceName, Budgets>,
    /// What it waits for, as it was said last.
    said: Option<String>,
    pub wake: Time,
}

/// From where to where; out, or home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Way {
    pub from: AgentId,
    pub to: AgentId,
    pub home: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// It is to go; power saving is still to let go of what that needs, or virtual IPs are on their way.
    Leaving { way: Way, not_before: Time, tries: u32 },
    /// Live migration.
    Migrating { way: Way, job: JobId, tries: u32 },
    /// Nobody has said what came of that: where is it?
    Looking {
        hosts: BTreeSet<AgentId>,
        /// In this round; none: it was not said.
        found: BTreeMap<AgentId, Option<bool>>,
        asked: Option<(AgentId, JobId)>,
        /// What the round before found.
        before: Option<BTreeSet<AgentId>>,
        next: Time,
        /// The live migration that failed, its reason, and if it is over for certain. None: an earlier coordinator's.
        failed: Option<(Way, String, bool)>,
        tries: u32,
    },
    /// It serves, and is watched.
    Serving { round: Round, trouble: Option<Trouble> },
    /// A service inside it is restarted.
    Restarting { service: ServiceName, step: Step, round: Round, trouble: Trouble },
    /// A further backup server is to take over; the claim is still to be seen.
    Relieving,
    /// It has: does this one answer again, at its own address?
    Relieved {
        round: Round,
        /// Since when.
        well: Option<Time>,
        /// What is tried next, and not before.
        order: Order,
        next: Time,
    },
    /// It is started anew; none: the claim is still to be seen.
    Curing { order: Order, job: Option<JobId>, until: Option<Time>, round: Round },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StandInJob {
    Migrated,
    Found,
    Checked,
    Restarted,
    Cured,
}

/// May a backup server be resumed where a virtual IP goes to it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// It is there, or nowhere.
    Yes,
    /// It runs, here or there.
    Needless,
    /// It is known to be neither here nor there yet.
    NotYet,
}

impl Stage {
    fn looking(now: Time, hosts: BTreeSet<AgentId>, failed: Option<(Way, String, bool)>, tries: u32) -> Self {
        Stage::Looking { hosts, found: BTreeMap::new(), asked: None, before: None, next: now, failed, tries }
    }
}

impl StandIn {
    fn new(now: Time, by: TargetName, at: Option<AgentId>, stage: Stage) -> Self {
        let (budgets, restarts) = (Budgets::default(), BTreeMap::new());
        Self { stage, by, at, budgets, restarts, said: None, wake: now }
    }

    fn serving(now: Time) -> Stage {
        Stage::Serving { round: Round::begin(now), trouble: None }
    }

    /// What is claimed for it.
    fn claims(&self, domain: &DomainName) -> BTreeSet<Claim> {
        let mut hosts: BTreeSet<AgentId> = match &self.stage {
            // Until the tables say where it is.
            Stage::Serving { .. } | Stage::Restarting { .. } if self.at.is_none() => return BTreeSet::new(),
            Stage::Leaving { way, .. } | Stage::Migrating { way, .. } => [way.from.clone(), way.to.clone()].into(),
            Stage::Looking { hosts, .. } => hosts.clone(),
            Stage::Serving { .. }
            | Stage::Restarting { .. }
            | Stage::Relieving
            | Stage::Relieved { .. }
            | Stage::Curing { .. } => BTreeSet::new(),
        };
        hosts.extend(self.at.clone());
        hosts.into_iter().map(Claim::Host).chain([Claim::Vm(domain.clone())]).collect()
    }

    /// For people.
    fn text(&self, domain: &DomainName, at: &AgentId) -> String {
        match &self.stage {
            Stage::Leaving { way, .. } if way.home => format!("{domain} is to go home from {at} to {}", way.to),
            Stage::Leaving { way, .. } => format!("{domain} serves on {at} and is to go to {}", way.to),
            Stage::Migrating { way, .. } => format!("{domain} is in live migration from {} to {}", way.from, way.to),
            Stage::Looking { .. } => format!("{domain} is being looked for"),
            Stage::Serving { trouble: Some(Trouble { why, told: true, .. }), .. } => {
                format!("{domain} on {at} is in trouble: {why}")
            }
            Stage::Serving { .. } => format!("{domain} serves on {at}, supervised"),
            Stage::Restarting { service, .. } => format!("{service} in {domain} on {at} is being restarted"),
            Stage::Relieving => format!("{domain} on {at} is about to be relieved"),
            Stage::Relieved { .. } => format!("{domain} on {at} is relieved"),
            Stage::Curing { .. } => format!("{domain} is being started anew on {at}"),
        }
    }
}

impl Coordinator {
    /// Where it is as far as that is known here and not yet in the shared tables.
    pub(crate) fn stand_in_at(&self, domain: &DomainName) -> Option<&AgentId> {
        self.stand_ins.get(domain)?.at.as_ref()
    }

    /// Is it supervised itself?
    pub(crate) fn stands_in(&self, domain: &DomainName) -> bool {
        self.stand_ins.contains_key(domain)
    }

    /// It may be resumed where it is for certain alone: elsewhere it would run twice.
    pub(crate) fn may_resume(&self, to: &Owner) -> Resume {
        let stand = to.domain.as_ref().and_then(|domain| self.stand_ins.get(domain));
        match stand.map(|stand| &stand.stage) {
            None
            | Some(
                Stage::Serving { .. }
                | Stage::Restarting { .. }
                | Stage::Relieving
                | Stage::Relieved { .. }
                | Stage::Curing { .. }
                | Stage::Leaving { .. },
            ) => Resume::Yes,
            Some(Stage::Migrating { way, .. }) if !way.home => Resume::Needless,
            Some(Stage::Migrating { .. } | Stage::Looking { .. }) => Resume::NotYet,
        }
    }

    /// Targets that it is the backup server of.
    fn stood_in_for(&self, domain: &DomainName) -> Vec<(TargetName, Target)> {
        let of = |(_, target): &(&TargetName, &Target)| target.domain().is_some() && target.is_double(domain);
        self.cluster.targets.iter().filter(of).map(|(name, target)| (name.clone(), target.clone())).collect()
    }

    /// Where it is configured.
    fn home_of(&self, domain: &DomainName) -> Option<AgentId> {
        let targets = self.stood_in_for(domain);
        let mut doubles = targets.iter().flat_map(|(_, target)| target.doubles());
        doubles.find(|(double, ..)| *double == domain).map(|(_, agent, _)| agent.clone())
    }

    fn owner_of_stand_in(&self, domain: &DomainName) -> Option<Owner> {
        let at = self.where_is(domain).or_else(|| self.home_of(domain))?;
        Some(Owner { agent: at, domain: Some(domain.clone()) })
    }

    /// Virtual IPs that belong to it, wherever it was then.
    fn vips_of_stand_in(&self, domain: &DomainName) -> Vec<Vip> {
        let its = |state: &crate::placement::VipState| {
            state.row.as_ref().is_some_and(|row| row.domain.as_ref() == Some(domain))
        };
        self.vips.iter().filter(|(_, state)| its(state)).map(|(vip, _)| *vip).collect()
    }

    // ---- how it begins ----

    /// Verdict down. A5 is sent when it is where it stays.
    pub(crate) fn beyond_repair(&mut self, now: Time, name: &TargetName, target: &Target, actions: &mut Vec<Action>) {
        let Some(_) = target.domain() else { return };
        let domain = target.backup.domain.clone();
        if *self.double_of(target) != domain {
            // The further one has all of it, stays where it is, and is supervised already.
            return self.verdict(now, name, target, false);
        }
        let (from, home) = (self.double_host(target), target.backup.agent.clone());
        let idle = match self.stand_ins.get(&domain).map(|stand| &stand.stage) {
            // A restart ends by itself, wherever that is then.
            None | Some(Stage::Serving { .. } | Stage::Restarting { .. }) => true,
            // It is told for all when that is over.
            Some(
                Stage::Leaving { .. }
                | Stage::Migrating { .. }
                | Stage::Looking { .. }
                | Stage::Relieving
                | Stage::Relieved { .. }
                | Stage::Curing { .. },
            ) => false,
        };
        if !idle {
            return;
        }
        let to = self.host_of(target);
        let why =
            if from != home { Some("it is away already".to_owned()) } else { self.unfit(now, &domain, &to, &from) };
        let stand = self.stand_ins.entry(domain.clone());
        let stand = stand.or_insert_with(|| StandIn::new(now, name.clone(), None, StandIn::serving(now)));
        (stand.by, stand.at, stand.wake) = (name.clone(), Some(from.clone()), now);
        if let Some(why) = why {
            return self.stays(now, &domain, name, &why, actions);
        }
        let way = Way { from, to, home: false };
        self.enter_stage(now, &domain, Stage::Leaving { way, not_before: now, tries: 0 });
        self.claim(name, target, BEYOND_REPAIR);
    }

    /// Why it can't go there, if so: that host is what failed, or is expected to be away.
    fn unfit(&self, now: Time, domain: &DomainName, to: &AgentId, from: &AgentId) -> Option<String> {
        let shared = |(_, target): &(&TargetName, &Target)| target.vm.is_none() && target.backup.domain == *domain;
        // Lost with it, nobody would stand in for that one.
        let beside = |(name, target): &(&TargetName, &Target)| {
            let given_up = self.targets.get(*name).is_some_and(crate::dbss::Dbss::is_given_up);
            target.backup.domain == *domain && !given_up && self.host_of(target) == *to
        };
        if to == from {
            Some(format!("it is on {to} already"))
        } else if self.at_rest(to) {
            Some(format!("{to} is suspended"))
        } else if !self.connected(now, to) {
            Some(format!("{to}, where its target was, does not answer"))
        } else if self.left_alone(to) {
            Some(format!("{to} is in maintenance"))
        } else if self.quarantined(to).is_some() {
            Some(format!("{to} is in quarantine"))
        } else if let Some((name, _)) = self.cluster.targets.iter().find(shared) {
            Some(format!("it is the backup server of {name} too, which is no virtual server"))
        } else {
            let beside = self.cluster.targets.iter().find(beside).map(|(name, _)| name);
            beside.map(|name| format!("it is the backup server of {name} too, which is on {to}"))
        }
    }

    /// A coordinator that has just started, or has a new term: is this target's backup server away, on its way, or all
    /// that is left of it?
    pub(crate) fn stand_in_found(&mut self, now: Time, name: &TargetName, target: &Target, given_up: bool) {
        self.further_found(now, name, target);
        let (Some(_), Some(tables)) = (target.domain(), &self.tables) else { return };
        let domain = target.backup.domain.clone();
        if self.stand_ins.contains_key(&domain) {
            return;
        }
        let home = target.backup.agent.clone();
        let at = self.where_is(&domain).unwrap_or_else(|| home.clone());
        let holds = |state: &crate::placement::VipState| {
            let row = state.row.as_ref().filter(|row| row.domain.as_ref() == Some(&domain))?;
            (row.owner != at).then(|| row.owner.clone())
        };
        let astray: BTreeSet<AgentId> = self.vips.values().filter_map(holds).collect();
        let claimed = tables.claims.get(&Claim::Vm(domain.clone())).map(|row| row.by.clone());
        if let Some(by) = claimed {
            let of_it = |(claim, row): (&Claim, &kage_types::ClaimRow)| match claim {
                Claim::Host(host) if row.by == by => Some(host.clone()),
                Claim::Host(_) | Claim::Vm(_) | Claim::Vip(_) => None,
            };
            let mut hosts: BTreeSet<AgentId> = tables.claims.iter().filter_map(of_it).collect();
            hosts.extend([at.clone(), home]);
            let by = by.parse().unwrap_or_else(|_| name.clone());
            let stage = Stage::looking(now, hosts, None, 0);
            self.stand_ins.insert(domain, StandIn::new(now, by, Some(at), stage));
        } else if !astray.is_empty() {
            // What holds a virtual IP elsewhere than the tables say has moved since.
            let hosts = astray.into_iter().chain([at.clone(), home]).collect();
            let stage = Stage::looking(now, hosts, None, 0);
            self.stand_ins.insert(domain, StandIn::new(now, name.clone(), Some(at), stage));
        } else if given_up && self.wanted(&Owner { agent: at.clone(), domain: Some(domain.clone()) }) || at != home {
            self.stand_ins.insert(domain, StandIn::new(now, name.clone(), None, StandIn::serving(now)));
        }
    }

    /// Has an earlier coordinator given it up, as far as the claims say?
    pub(crate) fn was_leaving(&self, name: &TargetName, target: &Target) -> bool {
        let claim = Claim::Vm(target.backup.domain.clone());
        let row = self.tables.as_ref().and_then(|tables| tables.claims.get(&claim));
        target.domain().is_some() && row.is_some_and(|row| row.by == name.as_str() && row.why == BEYOND_REPAIR)
    }

    /// Its target serves again, and SIF is about to forget where it is: that is claimed before.
    /// True: it is, in the name of this target, whose other claims are over.
    pub(crate) fn keep_sight_of_double(&mut self, now: Time, name: &TargetName, target: &Target) -> bool {
        let domain = self.double_of(target);
        let (Some(owner), true) = (self.owner_of_stand_in(domain), self.stands_in(domain)) else { return false };
        let certain = |stand: &StandIn| {
            matches!(stand.stage, Stage::Serving { .. } | Stage::Restarting { .. } | Stage::Curing { .. })
        };
        let moved = self.tables.as_ref().and_then(|tables| tables.migrating(domain));
        let moved = moved.map(|(from, to)| (from.clone(), to.clone()));
        let wanted = self.is_needed(&owner);
        if let Some(stand) = self.stand_ins.get_mut(domain).filter(|stand| certain(stand)) {
            (stand.by, stand.at) = (name.clone(), Some(owner.agent.clone()));
            if let Some((from, to)) = moved {
                // Power saving moves it: where it ends up nobody will say.
                let hosts = [from, to, owner.agent].into_iter().chain(self.home_of(domain)).collect();
                self.enter_stage(now, domain, Stage::looking(now, hosts, None, 0));
            } else if !wanted {
                self.go_home(now, domain, name.clone(), owner.agent);
            }
        }
        let kept = self.stand_ins.get(domain).is_some_and(|stand| stand.by == *name);
        if kept {
            self.put_claims(name, "", BTreeSet::new());
        }
        kept
    }

    // ---- claims ----

    /// What this target's recovery needs, and its backup server's way with it.
    pub(crate) fn with_stand_ins_claims(&self, name: &TargetName, claims: &mut BTreeSet<Claim>) {
        let Some(target) = self.cluster.targets.get(name) else { return };
        for (domain, ..) in target.doubles() {
            if let Some(stand) = self.stand_ins.get(domain).filter(|stand| stand.by == *name) {
                claims.extend(stand.claims(domain));
            }
        }
    }

    /// In its own name, outside of a recovery.
    fn claim_stand_in(&mut self, domain: &DomainName, why: &str) {
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        let Some(target) = self.cluster.targets.get(&by).cloned() else { return };
        if self.targets.get(&by).is_some_and(crate::dbss::Dbss::recovers) {
            return self.claim(&by, &target, why);
        }
        self.put_claims(&by, why, BTreeSet::new());
    }

    /// Power saving has seen that it is claimed, and moves nothing any more.
    fn is_claimed(&self, domain: &DomainName) -> bool {
        let (Some(tables), Some(stand)) = (&self.tables, self.stand_ins.get(domain)) else { return false };
        stand.claims(domain).iter().all(|claim| tables.claims.contains_key(claim))
    }

    // ---- steps ----

    fn enter_stage(&mut self, now: Time, domain: &DomainName, stage: Stage) {
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            (stand.stage, stand.said, stand.wake) = (stage, None, now);
        }
    }

    fn wake_stand_in(&mut self, domain: &DomainName, at: Time) {
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.wake = stand.wake.min(at);
        }
    }

    pub(crate) fn run_stand_ins(&mut self, now: Time, actions: &mut Vec<Action>) {
        let due = self.stand_ins.iter().filter(|(_, stand)| now >= stand.wake);
        for domain in due.map(|(domain, _)| domain.clone()).collect::<Vec<_>>() {
            if self.home_of(&domain).is_none() {
                // Not configured any more.
                self.stand_ins.remove(&domain);
                continue;
            }
            let retry = now + self.cluster.timing.renewal;
            let authority = self.in_authority(now) && self.tables.is_some();
            let Some(stand) = self.stand_ins.get_mut(&domain) else { continue };
            if !authority {
                stand.wake = retry;
                continue;
            }
            stand.wake = Time::FAR;
            match stand.stage.clone() {
                Stage::Leaving { way, not_before, tries } => {
                    self.leaving(now, &domain, way, not_before, tries, actions);
                }
                Stage::Migrating { way, tries, .. } => self.migrating(now, &domain, &way, tries),
                Stage::Looking { .. } => self.looking(now, &domain, actions),
                Stage::Serving { round, trouble } => self.serving(now, &domain, round, trouble, actions),
                Stage::Restarting { service, step, round, trouble } => {
                    self.restarting(now, &domain, service, step, round, trouble, actions);
                }
                Stage::Relieving => self.relieving(now, &domain, actions),
                Stage::Relieved { round, well, order, next } => {
                    self.relieved(now, &domain, round, well, (order, next), actions);
                }
                Stage::Curing { order, job, until, round } => {
                    self.curing(now, &domain, order, job, until, round, actions);
                }
            }
        }
    }

    pub(crate) fn stand_in_job_done(
        &mut self,
        now: Time,
        domain: &DomainName,
        what: &StandInJob,
        job: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        match what {
            StandInJob::Migrated => self.migrated(now, domain, job, result, actions),
            StandInJob::Found => self.found(now, domain, job, result),
            StandInJob::Checked => self.checked(now, domain, job, result),
            StandInJob::Restarted => self.restarted(now, domain, job, result, actions),
            StandInJob::Cured => self.cured(now, domain, job, result, actions),
        }
    }

    /// All that is told about it is told of the target in whose name it acts.
    fn note_stand_in(
        &mut self,
        domain: &DomainName,
        severity: Severity,
        kind: &str,
        text: String,
        actions: &mut Vec<Action>,
    ) {
        let by = self.stand_ins.get(domain).map(|stand| stand.by.clone());
        self.note(by, severity, kind, text, actions);
    }

    /// Why nothing happens yet is said once.
    fn say_once(
        &mut self,
        domain: &DomainName,
        severity: Severity,
        kind: &str,
        text: String,
        actions: &mut Vec<Action>,
    ) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        if stand.said.replace(text.clone()).as_ref() != Some(&text) {
            self.note_stand_in(domain, severity, kind, text, actions);
        }
    }

    fn stand_in_job(&mut self, domain: &DomainName, what: StandInJob) -> JobId {
        self.job(JobFor::StandIn(domain.clone(), what))
    }

    /// It is here, for certain. What is on its way to where it was goes here instead, and what belongs to it follows.
    fn is_at(&mut self, now: Time, domain: &DomainName, at: &AgentId) {
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        stand.at = Some(at.clone());
        self.follow = true;
        let to = Owner { agent: at.clone(), domain: Some(domain.clone()) };
        let astray = |state: &crate::placement::VipState| {
            let moving = state.moving.as_ref()?;
            (moving.to.domain.as_ref() == Some(domain) && moving.to != to).then_some(moving.cause)
        };
        let astray: Vec<_> = self.vips.iter().filter_map(|(vip, state)| Some((*vip, astray(state)?))).collect();
        for (vip, cause) in astray {
            self.move_vip(now, vip, to.clone(), cause, false);
        }
    }

    /// Of a target whose backup server is supervised, for status.
    pub(crate) fn stand_in_text(&self, name: &TargetName) -> Option<String> {
        let text = |(domain, ..): (&DomainName, _, _)| {
            let stand = self.stand_ins.get(domain)?;
            Some(stand.text(domain, &self.owner_of_stand_in(domain)?.agent))
        };
        let texts: Vec<String> = self.cluster.targets.get(name)?.doubles().filter_map(text).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}
