//! The shared tables of thesis ch. 4, as the lease authority reads them: on which real server a virtual server is, which
//! one a virtual IP belongs to, what sleeps on purpose. Virtual IPs follow them by planned moves.

use super::*;
use crate::{
    arrangement::Arrangement,
    config::{Machine, Target},
    event::Cause,
    placement::Owner,
    sabotage::Sabotage,
};
use kage_types::{Claim, DomainName, Tables};

/// What an agent says of a VIP whose virtual server has left it by live migration begins like this.
const SWITCHED_OVER: &str = "switched over";
/// A switch-over that the tables do not explain is remembered for so long: they may be on their way.
const UNEXPLAINED: Duration = Duration::from_secs(5);

/// A virtual server has left this real server by live migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Switched {
    from: AgentId,
    at: Time,
    /// The tables have said where to.
    explained: bool,
}

impl Coordinator {
    // ---- what the tables say ----

    /// As last read; none: not yet.
    #[must_use]
    pub fn tables(&self) -> Option<&Tables> {
        self.tables.as_ref()
    }

    /// Is this machine, or the virtual server around this agent, suspended on purpose, or about to be? Then its silence
    /// says nothing.
    #[must_use]
    pub fn at_rest(&self, agent: &AgentId) -> bool {
        // A backup server sleeps unless it is needed, whatever the tables say.
        if let Some((domain, at)) = self.inside_double(agent) {
            return !self.wanted(&Owner { agent: at, domain: Some(domain) });
        }
        let Some(tables) = self.tables.as_ref().filter(|_| !self.breaks(Sabotage::SignalA2)) else { return false };
        let asleep =
            |host: &AgentId| tables.real_servers.get(host).is_some_and(|row| row.asleep_since_unix_ms.is_some());
        let guest = |target: &Target| target.vm.as_ref().is_some_and(|vm| vm.guest.as_ref() == Some(agent));
        asleep(agent) || self.cluster.targets.values().any(|target| guest(target) && self.is_suspended(target))
    }

    /// A1, A2: is this target suspended on purpose, or about to be, or being brought back?
    #[must_use]
    pub fn is_suspended(&self, target: &Target) -> bool {
        let place = target.domain().filter(|_| !self.breaks(Sabotage::SignalA2));
        place.is_some_and(|place| self.tables.as_ref().is_some_and(|tables| tables.suspend.contains_key(place)))
    }

    /// Where this virtual server is: from the moment of its switch-over on where it migrates to.
    pub(crate) fn where_is(&self, vm: &DomainName) -> Option<AgentId> {
        if let Some(at) = self.stand_in_at(vm) {
            return Some(at.clone());
        }
        let tables = self.tables.as_ref()?;
        if let (Some((from, to)), Some(switched)) = (tables.migrating(vm), self.switched.get(vm)) {
            // It has left one of the two, so it is on the other; a migration that is taken back has them the other way.
            return Some(if switched.from == *from { to.clone() } else { from.clone() });
        }
        tables.host_of(vm).cloned()
    }

    /// Where alone this virtual server may be started or reset, if that is known and nobody moves it any more: power
    /// saving has seen the claim, and whatever it had begun before is in these tables.
    pub(crate) fn where_to_start(&self, vm: &DomainName) -> Option<AgentId> {
        let claimed = self.tables.as_ref()?.claims.contains_key(&Claim::Vm(vm.clone()));
        self.where_is(vm).filter(|_| claimed)
    }

    /// Where it may be running besides: the other end of a live migration that nobody has seen the end of, be the
    /// transition that it was part of over or not.
    pub(crate) fn may_run_at(&self, vm: &DomainName, besides: &AgentId) -> Option<AgentId> {
        let tables = self.tables.as_ref()?;
        let doubts = tables.may_be_on.get(vm)?;
        doubts.iter().chain(tables.host_of(vm)).find(|host| *host != besides).cloned()
    }

    /// The real server that this target is on; of one that is no virtual server its machine.
    #[must_use]
    pub fn host_of(&self, target: &Target) -> AgentId {
        let host = target.domain().and_then(|domain| self.where_is(domain));
        host.unwrap_or_else(|| target.agent.clone())
    }

    /// Its backup server; the further one while that serves in the stead of the first.
    pub(crate) fn double_of<'a>(&self, target: &'a Target) -> &'a DomainName {
        match &target.backup.further {
            Some(further) if self.stands_in(&further.domain) => &further.domain,
            Some(_) | None => &target.backup.domain,
        }
    }

    /// Where this target's backup server is: of a virtual server not always where it is configured, as it may have moved
    /// with the place that it fills.
    #[must_use]
    pub fn double_host(&self, target: &Target) -> AgentId {
        let double = self.double_of(target);
        let known = target.domain().and_then(|_| self.where_is(double));
        let configured = || target.doubles().find(|(domain, ..)| *domain == double).map(|(_, agent, _)| agent.clone());
        known.or_else(configured).unwrap_or_else(|| target.backup.agent.clone())
    }

    /// Who owns this target's virtual IPs while its backup server stands in.
    pub(crate) fn at_backup(&self, target: &Target) -> Owner {
        Owner { agent: self.double_host(target), domain: Some(self.double_of(target).clone()) }
    }

    /// What fails together with this machine. The agent inside a virtual server, be it a backup server, goes with the real
    /// server that it is on.
    pub(super) fn failure_domain<'a>(&'a self, agent: &AgentId, machine: &'a Machine) -> &'a str {
        let around = |target: &&Target| target.vm.as_ref().is_some_and(|vm| vm.guest.as_ref() == Some(agent));
        let host = self.cluster.targets.values().find(around).map(|target| self.host_of(target));
        let host = host.or_else(|| self.inside_double(agent).map(|(_, at)| at));
        let host = host.and_then(|host| self.cluster.agents.get(&host));
        &host.unwrap_or(machine).failure_domain
    }

    /// The backup server inside which this agent is, and where that is.
    pub(crate) fn inside_double(&self, agent: &AgentId) -> Option<(DomainName, AgentId)> {
        let mut doubles = self.cluster.targets.values().flat_map(Target::doubles);
        let (domain, home, _) = doubles.find(|(.., guest)| *guest == Some(agent))?;
        Some((domain.clone(), self.where_is(domain).unwrap_or_else(|| home.clone())))
    }

    /// Has this agent to do with this target: as its machine or real server, from inside it, as its backup server's host?
    pub(crate) fn concerns(&self, target: &Target, agent: &AgentId) -> bool {
        self.host_of(target) == *agent || target.inner_agent() == Some(agent) || self.double_host(target) == *agent
    }

    /// Who owns this target's virtual IPs while it serves itself.
    pub(crate) fn home_owner(&self, target: &Target) -> Owner {
        Owner { agent: self.host_of(target), domain: target.domain().cloned() }
    }

    /// The place that a virtual IP belongs to now: power saving's choice, else its own.
    fn place_of_vip(&self, vip: Vip) -> Option<&DomainName> {
        let own = || self.cluster.targets.get(&self.vips.get(&vip)?.target)?.domain();
        let Some(tables) = &self.tables else { return own() };
        let rows = || tables.operation.iter().chain(&tables.suspend);
        let chosen = tables.placement.get(&vip).and_then(|vm| {
            // A backup server may have taken the place of the one that was chosen.
            let named = || rows().find(|(place, _)| *place == vm).map(|(place, _)| place);
            tables.place_of(vm).map(|(place, _)| place).or_else(named)
        });
        chosen.or_else(|| rows().find(|(_, row)| row.home_vips.contains(&vip)).map(|(place, _)| place)).or_else(own)
    }

    /// Where a virtual IP of a virtual server belongs, by the tables; none: they say nothing of it.
    pub(crate) fn wanted_owner(&self, vip: Vip) -> Option<Owner> {
        let place = self.place_of_vip(vip)?;
        let tables = self.tables.as_ref()?;
        let row = tables.operation.get(place).or_else(|| tables.suspend.get(place))?;
        let agent = self.where_is(&row.vm).unwrap_or_else(|| row.host.clone());
        Some(Owner { agent, domain: Some(row.vm.clone()) })
    }

    /// The place about which A1 asks what it holds; none: it holds what is configured.
    fn asks_whose<'a>(&self, target: &'a Target) -> Option<&'a DomainName> {
        target.domain().filter(|_| !self.breaks(Sabotage::SignalA1))
    }

    /// The virtual IPs that this target, or its backup server in its place, is in charge of: of a virtual server those that
    /// belong to its place, be they its own or those of others that are suspended.
    pub(crate) fn vips_of(&self, target: &Target) -> BTreeSet<Vip> {
        let Some(domain) = self.asks_whose(target) else { return target.vips.clone() };
        self.vips.keys().copied().filter(|vip| self.place_of_vip(*vip) == Some(domain)).collect()
    }

    /// A1: the virtual IPs that this target holds, or is to hold next. Wherever they belong, they need a server when it is
    /// lost.
    pub(crate) fn vips_held_by(&self, target: &Target) -> BTreeSet<Vip> {
        let Some(domain) = self.asks_whose(target) else { return target.vips.clone() };
        let holds = |(vip, state): &(&Vip, &crate::placement::VipState)| match (&state.moving, &state.row) {
            (Some(moving), _) => moving.to.domain.as_ref() == Some(domain),
            (None, Some(row)) => row.domain.as_ref() == Some(domain),
            (None, None) => self.place_of_vip(**vip) == Some(domain),
        };
        self.vips.iter().filter(holds).map(|(vip, _)| *vip).collect()
    }

    /// What a recovery of it is about: what belongs to it, what it really holds, and what is on its way from it to its
    /// backup server.
    pub(crate) fn vips_at_stake(&self, target: &Target) -> BTreeSet<Vip> {
        let mut vips = self.vips_of(target);
        let Some(domain) = self.asks_whose(target) else { return vips };
        vips.append(&mut self.vips_held_by(target));
        let leaves = |(_, state): &(&Vip, &crate::placement::VipState)| {
            state.moving.as_ref().is_some_and(|moving| {
                let of_it = |from: &(Owner, _)| from.0.domain.as_ref() == Some(domain);
                moving.to.domain.as_ref().is_some_and(|to| target.is_double(to))
                    && moving.from.as_ref().is_some_and(of_it)
            })
        };
        vips.extend(self.vips.iter().filter(leaves).map(|(vip, _)| *vip));
        vips
    }

    /// Is it a target itself, and nobody's backup server?
    pub(crate) fn is_a_target(&self, domain: &DomainName) -> bool {
        self.cluster.targets.values().any(|target| target.domain() == Some(domain))
    }

    // ---- what changes ----

    pub(super) fn tables_read(&mut self, now: Time, tables: Tables, actions: &mut Vec<Action>) {
        // Two ways lead here; a ledger that was restored begins with a new term.
        if self.in_authority(now) && self.tables.as_ref().is_some_and(|known| known.revision > tables.revision) {
            return;
        }
        let suspended = |this: &Self| {
            let targets = this.cluster.targets.iter().filter(|(_, target)| this.is_suspended(target));
            targets.map(|(name, _)| name.clone()).collect::<BTreeSet<TargetName>>()
        };
        let rested = suspended(self);
        let before = self.tables.replace(tables);
        let rests = suspended(self);
        for name in rests.difference(&rested) {
            let text = "suspended on purpose, or about to be: it is not looked at".to_owned();
            self.note(Some(name.clone()), Severity::Info, "suspended", text, actions);
        }
        for name in rested.difference(&rests) {
            let text = "meant to be in service again: it is looked at".to_owned();
            self.note(Some(name.clone()), Severity::Info, "resumed", text, actions);
        }
        self.follow = true;
        let Some(tables) = self.tables.clone() else { return };
        for (host, row) in &tables.real_servers {
            let known = before.as_ref().and_then(|before| before.real_servers.get(host));
            let slept = known.is_some_and(|row| row.asleep_since_unix_ms.is_some());
            match (slept, row.asleep_since_unix_ms.is_some()) {
                (false, true) => {
                    self.silence_announced(now, host);
                    let text = format!("{host} is suspended on purpose, or about to be: its silence is expected");
                    self.note(None, Severity::Info, "host-asleep", text, actions);
                }
                (true, false) => {
                    let text = format!("{host} is meant to be awake again");
                    self.note(None, Severity::Info, "host-awake", text, actions);
                }
                (false, false) | (true, true) => {}
            }
        }
        self.switched.retain(|vm, switched| match tables.migrating(vm) {
            Some((from, to)) => {
                switched.explained = true;
                switched.from == *from || switched.from == *to
            }
            None => !switched.explained && now.since(switched.at) < UNEXPLAINED,
        });
        for (name, _) in self.cluster.targets.iter().filter(|(_, target)| target.vm.is_some()) {
            if let Some(dbss) = self.targets.get_mut(name) {
                dbss.wake = now;
            }
        }
        self.give_orders(now, actions);
        self.keep_sight_of_moved(now);
        self.stand_ins.values_mut().for_each(|stand_in| stand_in.wake = now);
    }

    /// After a new term, and a change of the configuration.
    pub(super) fn tell_arrangement(&mut self) {
        let known = |tables: &Tables| {
            !(tables.operation.is_empty() && tables.suspend.is_empty() && tables.real_servers.is_empty())
        };
        if !Arrangement::of(&self.cluster).is_empty() || self.tables.as_ref().is_some_and(known) {
            self.signal(Signal::Arrangement);
        }
    }

    /// The agent has closed this VIP, and its epoch is over there: its virtual server has left by live migration. That is
    /// as good as the release that would have been asked for, and nothing granted or consented to before lives on.
    pub(super) fn switched_over(&mut self, now: Time, agent: &AgentId, ask: AskVip) {
        let Some(state) = self.vips.get_mut(&ask.vip) else { return };
        if let Some(moving) = &mut state.moving
            && moving.from.as_ref().is_some_and(|(from, epoch)| from.agent == *agent && *epoch == ask.epoch)
        {
            // A takeover, or its arrangement, is under way already.
            moving.switched(now);
            state.wake = now;
        }
        let row = state.row.as_ref().filter(|row| row.owner == *agent && row.epoch == ask.epoch);
        let Some(vm) = row.and_then(|row| row.domain.clone()) else { return };
        if !self.stand_in_left(now, agent, &vm) {
            let explained = self.tables.as_ref().is_some_and(|tables| tables.migrating(&vm).is_some());
            self.switched.insert(vm, Switched { from: agent.clone(), at: now, explained });
        }
        self.follow = true;
        if let Some(to) = self.wanted_owner(ask.vip)
            && to.agent != *agent
            && self.may_arrange(ask.vip, &to)
        {
            self.move_switched(now, ask.vip, to);
        }
    }

    /// May it go there, as far as recoveries are concerned?
    fn may_arrange(&self, vip: Vip, to: &Owner) -> bool {
        let Some(state) = self.vips.get(&vip) else { return false };
        let Some(row) = &state.row else { return false };
        // What a takeover, an operator or a way back has begun is theirs.
        if state.moving.as_ref().is_some_and(|moving| moving.cause != Cause::Arranged && moving.from.is_some()) {
            return false;
        }
        // It goes with the backup server that holds it, wherever that has gone: no recovery minds.
        if row.domain == to.domain && to.domain.as_ref().is_some_and(|domain| self.stands_in(domain)) {
            return true;
        }
        let backs = |target: &Target| row.domain.as_ref().is_some_and(|domain| target.is_double(domain));
        // From one backup server to the other of the same target: they see to that themselves, one place after another.
        let hand_over = |target: &Target| {
            let is = |domain: &Option<DomainName>| domain.as_ref().is_some_and(|domain| target.is_double(domain));
            row.domain != to.domain && is(&row.domain) && is(&to.domain)
        };
        if self.cluster.targets.values().any(hand_over) {
            return false;
        }
        let fills = |domain: &DomainName| self.tables.as_ref().is_some_and(|tables| tables.place_of(domain).is_some());
        if self.cluster.targets.values().any(backs) && !row.domain.as_ref().is_some_and(fills) {
            return false;
        }
        // A backup server sleeps, and gets something by a takeover or with the place of one that is given up: what the
        // tables say of it beyond that is about to change.
        let stands_in = |(name, target): (&TargetName, &Target)| {
            to.domain.as_ref().is_some_and(|domain| target.is_double(domain))
                && self.targets.get(name).is_some_and(|dbss| dbss.is_given_up())
        };
        let is_backup = |target: &Target| to.domain.as_ref().is_some_and(|domain| target.is_double(domain));
        if self.cluster.targets.values().any(is_backup) && !self.cluster.targets.iter().any(stands_in) {
            return false;
        }
        let about = |(name, target): &(&TargetName, &Target)| {
            let concerned = target.domain().is_some()
                && (target.domain() == row.domain.as_ref() || target.domain() == to.domain.as_ref());
            // Whose it is by the configuration does not matter while others hold it.
            target.vm.is_none() && **name == state.target || concerned || backs(target)
        };
        let mut concerned = self.cluster.targets.iter().filter(about);
        concerned.all(|(name, _)| self.targets.get(name).is_none_or(|dbss| !dbss.recovers()))
    }

    /// Planned moves of what is not where it belongs. What a recovery has in hand stays until that is over.
    pub(super) fn follow_tables(&mut self, now: Time, actions: &mut Vec<Action>) {
        if !self.follow || self.tables.is_none() || !self.in_authority(now) {
            return;
        }
        self.follow = false;
        let of_vms = |state: &crate::placement::VipState| {
            self.cluster.targets.get(&state.target).is_some_and(|target| target.vm.is_some())
        };
        let vips: Vec<Vip> = self.vips.iter().filter(|(_, state)| of_vms(state)).map(|(vip, _)| *vip).collect();
        for vip in vips {
            let Some(to) = self.wanted_owner(vip).filter(|to| self.may_arrange(vip, to)) else { continue };
            let Some(state) = self.vips.get(&vip) else { continue };
            let there = match &state.moving {
                Some(moving) => moving.to == to,
                None => state.settled_on(&to),
            };
            if there {
                continue;
            }
            let vm = to.domain.as_ref().map_or_else(String::new, |domain| format!("{domain} on "));
            let (target, text) = (state.target.clone(), format!("{vip} goes to {vm}{}, as arranged", to.agent));
            self.note(Some(target), Severity::Info, "arranged", text, actions);
            self.move_vip(now, vip, to, Cause::Arranged, true);
        }
    }
}

/// Is this what an agent says at the switch-over of a live migration?
pub(super) fn is_switch_over(reason: &str) -> bool {
    reason.starts_with(SWITCHED_OVER)
}
