//! A further backup server, where one is configured: it takes over from one that stands in for good and can't be cured, or
//! whose real server is lost, and gives back when that serves again. It stays where it is configured, and is claimed as long
//! as it serves: nobody else moves it, so where it is is never in doubt.

use super::{
    Stage, StandIn,
    watch::{Bad, Order, Round},
};
use crate::{
    config::{Backup, Target},
    core::{Act, Coordinator, Signal},
    event::{Action, AgentCommand, Cause, Severity},
    placement::{Owner, VipState},
};
use kage_types::{DomainName, ServiceName, TargetName, Time, Vip};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// To start it, or to pull its plug.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What came of the wish to be relieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relief {
    /// It is on its way.
    Begun,
    /// Not now; why was said.
    Held,
    /// There is no further backup server.
    None,
}

/// Where this virtual IP goes, or else is.
fn heads_for(state: &VipState, domain: &DomainName) -> bool {
    match (&state.moving, &state.row) {
        (Some(moving), _) => moving.to.domain.as_ref() == Some(domain),
        (None, Some(row)) => row.domain.as_ref() == Some(domain),
        (None, None) => false,
    }
}

impl Coordinator {
    fn backup_of(&self, domain: &DomainName) -> Option<Backup> {
        let targets = self.stood_in_for(domain);
        targets.into_iter().map(|(_, target)| target.backup).find(|backup| backup.domain == *domain)
    }

    /// Who takes over from this one.
    fn further_of(&self, domain: &DomainName) -> Option<Owner> {
        let further = self.backup_of(domain)?.further?;
        Some(Owner { agent: further.agent, domain: Some(further.domain) })
    }

    /// Who has taken over from it.
    fn relieved_by(&self, domain: &DomainName) -> Option<Owner> {
        self.further_of(domain).filter(|further| further.domain.as_ref().is_some_and(|it| self.stands_in(it)))
    }

    /// Is it a further one itself?
    pub(super) fn is_further(&self, domain: &DomainName) -> bool {
        self.stood_in_for(domain).iter().any(|(_, target)| target.backup.domain != *domain)
    }

    /// A further one whose place SIF has not been told to be another's yet: until then it is this that is suspended, and
    /// nothing else is taken for the double.
    pub(super) fn is_still_expected(&self, domain: &DomainName) -> bool {
        let place = self.tables.as_ref().and_then(|tables| tables.place_of(domain));
        place.is_some() && self.is_further(domain)
    }

    fn single_writer(&self, domain: &DomainName) -> bool {
        self.stood_in_for(domain).iter().any(|(_, target)| target.writers().is_some())
    }

    /// Where it is for certain, or rests; none: that is not certain.
    pub(crate) fn certain_place(&self, domain: &DomainName, home: Owner) -> Option<Owner> {
        match self.stand_ins.get(domain).map(|stand| &stand.stage) {
            None => Some(home),
            Some(
                Stage::Leaving { .. }
                | Stage::Serving { .. }
                | Stage::Restarting { .. }
                | Stage::Relieving
                | Stage::Relieved { .. }
                | Stage::Curing { .. },
            ) => self.owner_of_stand_in(domain),
            Some(Stage::Migrating { .. } | Stage::Looking { .. }) => None,
        }
    }

    // ---- out ----

    /// It can't be cured, or not now: does another take over?
    pub(super) fn relieve(&mut self, now: Time, domain: &DomainName, actions: &mut Vec<Action>) -> Relief {
        let Some(further) = self.further_of(domain) else { return Relief::None };
        let Some(owner) = self.owner_of_stand_in(domain) else { return Relief::None };
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return Relief::None };
        if let Some(why) = self.unrelieved(now, domain, &owner, &further) {
            let name = further.domain.as_ref().map_or("", DomainName::as_str);
            let text = format!("{name} on {} does not take over from {domain}: {why}", further.agent);
            self.say_once(domain, Severity::Alert, "held", text, actions);
            return Relief::Held;
        }
        if self.hold_back(&by, Act::TakeOver, "its backup server can't be cured", actions) {
            return Relief::Held;
        }
        self.enter_stage(now, domain, Stage::Relieving);
        self.claim_stand_in(domain, "a further backup server takes over");
        Relief::Begun
    }

    /// As in Network examination mode, if its real server is what is lost.
    fn unrelieved(&self, now: Time, domain: &DomainName, owner: &Owner, further: &Owner) -> Option<String> {
        let lost = !self.connected(now, &owner.agent);
        if !self.connected(now, &further.agent) {
            Some(format!("{} does not answer", further.agent))
        } else if self.left_alone(&further.agent) {
            Some(format!("{} is in maintenance", further.agent))
        } else if !lost {
            None
        } else if let Some((_, storm)) = &self.brake {
            Some(format!("held by the storm brake: {storm}"))
        } else if !self.patience_allowed(Some(&owner.agent)) {
            Some(format!("nothing proves {} dead, and patience is not allowed", owner.agent))
        } else if self.single_writer(domain) {
            Some(format!("a service of it is single_writer, and on {} it may still write", owner.agent))
        } else {
            None
        }
    }

    /// Once the tables show the claim: from now on power saving begins nothing with it, and what it had begun is over.
    pub(super) fn relieving(&mut self, now: Time, domain: &DomainName, actions: &mut Vec<Action>) {
        let moves = self.tables.as_ref().is_some_and(|tables| tables.migrating(domain).is_some());
        if !self.is_claimed(domain) || moves {
            return self.wake_stand_in(domain, now + self.cluster.detection.interval);
        }
        let (Some(owner), Some(further)) = (self.owner_of_stand_in(domain), self.further_of(domain)) else { return };
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        let Some(budget) = self.cluster.targets.get(&by).map(|target| target.budget) else { return };
        let Some(name) = further.domain.clone() else { return };
        if !self.is_needed(&owner) {
            return self.go_home(now, domain, by, owner.agent);
        }
        if self.unrelieved(now, domain, &owner, &further).is_some() {
            // Not any more: looked at anew.
            return self.tell(now, domain);
        }
        let text = format!("{name} on {} takes over from {domain} on {}", further.agent, owner.agent);
        self.note_stand_in(domain, Severity::Warning, "double-relieved", text, actions);
        // SIF forgets where it is. One that power saving has lost sight of is looked for.
        let doubts = self.tables.as_ref().and_then(|tables| tables.may_be_on.get(domain)).cloned();
        let stage = match doubts {
            Some(doubts) => {
                let hosts = doubts.into_iter().chain([owner.agent.clone()]).chain(self.home_of(domain)).collect();
                Stage::looking(now, hosts, None, 0)
            }
            None => Stage::Relieved { round: Round::begin(now), well: None, order: Order::Start, next: now },
        };
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.at = Some(owner.agent);
            stand.budgets.count_takeover(now, &budget);
        }
        self.enter_stage(now, domain, stage);
        let serving = StandIn::serving(now);
        self.stand_ins.insert(name.clone(), StandIn::new(now, by, Some(further.agent.clone()), serving));
        // What is on its way home goes on.
        let leaves: Vec<Vip> =
            self.vips.iter().filter(|(_, state)| heads_for(state, domain)).map(|(vip, _)| *vip).collect();
        for vip in leaves {
            self.move_vip(now, vip, further.clone(), Cause::Takeover, false);
        }
        self.claim_stand_in(&name, "its backup server was relieved");
    }

    /// A coordinator that has just started, or has a new term: does the further one serve?
    pub(super) fn further_found(&mut self, now: Time, name: &TargetName, target: &Target) {
        let (Some(place), Some(further), Some(tables)) = (target.domain(), &target.backup.further, &self.tables) else {
            return;
        };
        let row = tables.operation.get(place).or_else(|| tables.suspend.get(place));
        let holds =
            |state: &VipState| state.row.as_ref().is_some_and(|row| row.domain.as_ref() == Some(&further.domain));
        let serves = row.is_some_and(|row| row.vm == further.domain) || self.vips.values().any(holds);
        if serves && !self.stands_in(&further.domain) {
            let stand = StandIn::new(now, name.clone(), Some(further.agent.clone()), StandIn::serving(now));
            self.stand_ins.insert(further.domain.clone(), stand);
        }
    }

    /// It has all of a place that the other one fills by the tables: they are told (A4, and the verdict as it was).
    pub(super) fn fill_places(&mut self, domain: &DomainName, owner: &Owner) {
        if !self.signals_told() {
            return;
        }
        for (name, target) in self.stood_in_for(domain) {
            let (Some(place), Some(tables)) = (target.domain().cloned(), &self.tables) else { continue };
            let row = tables.operation.get(&place).or_else(|| tables.suspend.get(&place));
            let another = row.is_some_and(|row| row.vm != *domain && target.is_double(&row.vm));
            let vips = self.vips_of(&target);
            let has = |vip: &Vip| self.vips.get(vip).is_some_and(|state| state.settled_on(owner));
            if !another || vips.is_empty() || !vips.iter().all(has) {
                continue;
            }
            let (backup, host) = (domain.clone(), owner.agent.clone());
            self.signal(Signal::FunctionRestored { place: place.clone(), backup, host: host.clone() });
            if self.targets.get(&name).is_some_and(crate::dbss::Dbss::is_given_up) {
                self.signal(Signal::TargetVerdict { place, recovered: false, host });
            }
        }
    }

    // ---- and back ----

    /// Can be seen whether it serves again, and may it? One whose services must not run twice sleeps meanwhile.
    pub(super) fn may_come_back(&self, domain: &DomainName) -> bool {
        self.relieved_by(domain).is_some() && self.own_address(domain).is_some() && !self.single_writer(domain)
    }

    fn own_address(&self, domain: &DomainName) -> Option<IpAddr> {
        let targets = self.stood_in_for(domain);
        targets.iter().filter(|(_, target)| target.backup.domain == *domain).find_map(|(_, it)| it.backup.address)
    }

    pub(super) fn wait_for_its_return(&mut self, now: Time, domain: &DomainName) {
        let stage = Stage::Relieved { round: Round::begin(now), well: None, order: Order::Start, next: now };
        self.enter_stage(now, domain, stage);
        self.claim_stand_in(domain, "its backup server was relieved");
    }

    pub(super) fn relieved(
        &mut self,
        now: Time,
        domain: &DomainName,
        round: Round,
        well: Option<Time>,
        (order, next): (Order, Time),
        actions: &mut Vec<Action>,
    ) {
        let again = now + self.cluster.detection.interval;
        let Some(owner) = self.owner_of_stand_in(domain) else { return };
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        if self.vips.values().any(|state| heads_for(state, domain)) {
            // Somebody sends it some all the same.
            return self.enter_stage(now, domain, StandIn::serving(now));
        }
        if self.wanted(&owner) {
            return self.wake_stand_in(domain, again);
        }
        let Some(further) = self.relieved_by(domain).filter(|_| self.may_come_back(domain)) else {
            return self.go_home(now, domain, by, owner.agent);
        };
        if !self.connected(now, &owner.agent) {
            let stage = Stage::Relieved { round: Round::begin(again), well: None, order, next };
            self.enter_stage(now, domain, stage);
            return self.set_wake(domain, again);
        }
        let (round, judged) = self.look_at_itself(now, domain, round, actions);
        let well = match &judged {
            None => well,
            Some(None) => Some(well.unwrap_or(now)),
            Some(Some(_)) => None,
        };
        let wake = round.wake();
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.stage = Stage::Relieved { round, well, order, next };
            stand.wake = stand.wake.min(wake);
        }
        match judged {
            Some(None) => self.come_back(now, domain, &owner, &further, well.unwrap_or(now), actions),
            Some(Some(bad)) if now >= next => self.revive(now, domain, &owner, order, &bad, actions),
            Some(Some(_)) | None => {}
        }
    }

    fn set_wake(&mut self, domain: &DomainName, at: Time) {
        if let Some(stand) = self.stand_ins.get_mut(domain) {
            stand.wake = at;
        }
    }

    /// A round at its own address: all that it would serve.
    fn look_at_itself(
        &mut self,
        now: Time,
        domain: &DomainName,
        mut round: Round,
        actions: &mut Vec<Action>,
    ) -> (Round, Option<Option<Bad>>) {
        if !round.open.is_empty() || !round.asked && now < round.next {
            return (round, None);
        }
        let detection = self.cluster.detection;
        if round.asked {
            return (Round::begin(now + detection.interval), Some(round.judged()));
        }
        round.asked = true;
        let Some(address) = self.own_address(domain) else { return (round, None) };
        let ping = self.stand_in_job(domain, super::StandInJob::Checked);
        let (count, timeout) = (detection.ping_count, detection.ping_timeout);
        actions.push(Action::Ping { job: ping, address, count, timeout });
        round.open.insert(ping);
        let targets = self.stood_in_for(domain);
        let services = targets.iter().flat_map(|(_, target)| &target.services);
        let services: BTreeMap<&ServiceName, _> = services.map(|service| (&service.name, service)).collect();
        for (name, service) in services {
            let job = self.stand_in_job(domain, super::StandInJob::Checked);
            let limits = service.probe.limits(self.cluster.profile, &detection);
            let (port, probe) = (service.port, service.probe.clone());
            actions.push(Action::Probe { job, address, port, probe, limits });
            round.open.insert(job);
            round.probes.insert(job, name.clone());
        }
        (round, None)
    }

    /// It does not serve: started, as it may be off; then reset, as often as the budget allows.
    fn revive(
        &mut self,
        now: Time,
        domain: &DomainName,
        owner: &Owner,
        order: Order,
        bad: &Bad,
        actions: &mut Vec<Action>,
    ) {
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        let Some(target) = self.cluster.targets.get(&by).cloned() else { return };
        let moves = self.tables.as_ref().is_some_and(|tables| tables.migrating(domain).is_some());
        if moves || !self.is_claimed(domain) || self.pausing.contains_key(owner) {
            return;
        }
        if self.hold_back(&by, Act::Reboot, "its backup server was relieved, and does not serve", actions) {
            return;
        }
        let Some(stand) = self.stand_ins.get_mut(domain) else { return };
        let left = match order {
            Order::Start => stand.budgets.take_restart(now, 0, &target.budget),
            Order::Reset => stand.budgets.take_reboot(now, &target.budget),
        };
        if let Stage::Relieved { next, order, .. } = &mut stand.stage {
            (*next, *order) = (now + target.start_wait, Order::Reset);
        }
        if !left {
            return;
        }
        let (what, command) = match order {
            Order::Start => ("started", AgentCommand::ResumeVm { domain: domain.clone() }),
            Order::Reset => ("reset", AgentCommand::RebootVm { domain: domain.clone(), force: true }),
        };
        let text = format!("{domain} is {what} on {}: {}", owner.agent, bad.why);
        self.note_stand_in(domain, Severity::Info, "double-restarting", text, actions);
        let job = self.stand_in_job(domain, super::StandInJob::Cured);
        actions.push(Action::Command { job, agent: owner.agent.clone(), command, timeout: TIMEOUT });
    }

    /// It serves again, for long enough: what the further one holds is its own again.
    fn come_back(
        &mut self,
        now: Time,
        domain: &DomainName,
        owner: &Owner,
        further: &Owner,
        since: Time,
        actions: &mut Vec<Action>,
    ) {
        let Some(by) = self.stand_ins.get(domain).map(|stand| stand.by.clone()) else { return };
        let Some(budget) = self.cluster.targets.get(&by).map(|target| target.budget) else { return };
        let Some(name) = &further.domain else { return };
        let wanted = self.stood_in_for(domain).iter().map(|(_, target)| target.healthy_for).max().unwrap_or_default();
        let down = self.stand_ins.get(domain).and_then(|stand| stand.budgets.held_down(now, &budget)).is_some();
        // Nothing is on its way to the further one, unless in vain.
        let lost = !self.connected(now, &further.agent);
        let rests = |state: &VipState| lost || state.moving.is_none() || !heads_for(state, name);
        let still = self.vips.values().all(rests) && self.signals_told();
        if now.since(since) < wanted || down || !still || self.quarantined(&owner.agent).is_some() {
            return;
        }
        if self.hold_back(&by, Act::GoBack, "its backup server serves again", actions) {
            return;
        }
        let text = format!("{domain} on {} serves again: the virtual IPs go back to it from {name}", owner.agent);
        self.note_stand_in(domain, Severity::Info, "double-returns", text, actions);
        let back: Vec<Vip> =
            self.vips.iter().filter(|(_, state)| heads_for(state, name)).map(|(vip, _)| *vip).collect();
        for vip in back {
            self.move_vip(now, vip, owner.clone(), Cause::Takeover, true);
        }
        self.enter_stage(now, domain, StandIn::serving(now));
    }

    /// What is moving to it from the one that relieved it waits for a real server that is lost.
    pub(super) fn waits_in_vain(&self, now: Time, state: &VipState, owner: &Owner) -> bool {
        let to_it = state.moving.as_ref().is_some_and(|moving| moving.to == *owner && !moving.is_told());
        let domain = owner.domain.as_ref();
        to_it && domain.is_some_and(|it| self.relieved_by(it).is_some()) && self.fell_silent(now, &owner.agent)
    }
}
