//! Thesis ch. 4: the target is a virtual server. Its real server's agent holds its lease and acts on it; SIF is told of
//! what is done about it (A1 to A5).

use super::*;
use crate::core::Signal;
use kage_types::{Claim, DomainName};

/// A virtual server may be silent for so long while it is being moved: its switch-over takes fractions of a second to a
/// few seconds, and its virtual IPs follow it.
const MIGRATION_GRACE: Duration = Duration::from_secs(5);
/// Starting a virtual server, or pulling its plug, takes seconds where the disk is slow.
const VM_TIMEOUT: Duration = Duration::from_secs(20);

impl Coordinator {
    /// The target as it is supervised now: a virtual server by the agent of the real server that it is on (A3), which is not
    /// always the configured one.
    pub(crate) fn as_it_is(&self, target: &Target) -> Target {
        Target { agent: self.host_of(target), ..target.clone() }
    }

    /// A1, A2: suspended on purpose. Nothing is seen of it and nothing concluded; asked again at the next check.
    pub(crate) fn rests(&mut self, now: Time, name: &TargetName, target: &Target) -> bool {
        if !self.is_suspended(target) {
            return false;
        }
        match self.dbss(name).mode {
            Mode::ServiceRecovery { .. } | Mode::NetworkExamination { .. } => self.enter_regular(now, name),
            Mode::Starting | Mode::Regular { .. } => {}
            Mode::BackupServer { .. }
            | Mode::TargetServerRecovery { .. }
            | Mode::Returning { .. }
            | Mode::Ended { .. } => return false,
        }
        self.dbss(name).forget_evidence(now);
        self.wake_at(name, now + self.cluster.detection.interval);
        true
    }

    /// How long it has been silent. A virtual server has no lease of its own: since it is being examined, unless its real
    /// server has been silent for longer.
    pub(crate) fn silent_as(&mut self, now: Time, name: &TargetName, target: &Target) -> Duration {
        let silent = self.silent(now, &target.agent);
        if target.vm.is_none() { silent } else { silent.max(now.since(self.dbss(name).since)) }
    }

    /// Who restarts its services, if anybody can: of a virtual server the agent inside.
    pub(crate) fn restarter(target: &Target) -> Option<AgentId> {
        match &target.vm {
            None => Some(target.agent.clone()),
            Some(vm) => vm.guest.clone(),
        }
    }

    /// Is this no more than the switch-over of a live migration, in which it stands still for a moment?
    pub(crate) fn in_grace(&mut self, now: Time, name: &TargetName, target: &Target, silent: bool) -> bool {
        let tables = self.tables.as_ref();
        let moves = target.domain().is_some_and(|vm| tables.is_some_and(|tables| tables.migrating(vm).is_some()));
        let dbss = self.dbss(name);
        if !silent || !moves {
            dbss.grace = None;
            return false;
        }
        now.since(*dbss.grace.get_or_insert(now)) < MIGRATION_GRACE
    }

    /// Its real server says that its process is gone, or its guest gave up: nothing need be examined. A real server that it
    /// is not on tells of the other end of a migration.
    pub(crate) fn virtual_server_crashed(
        &mut self,
        now: Time,
        agent: &AgentId,
        domain: &DomainName,
        detail: &str,
        actions: &mut Vec<Action>,
    ) {
        let found = self.cluster.targets.iter().find(|(_, target)| target.domain() == Some(domain));
        let Some((name, target)) = found.map(|(name, target)| (name.clone(), self.as_it_is(target))) else { return };
        if target.agent != *agent || self.is_suspended(&target) || !self.in_authority(now) {
            return;
        }
        let text = format!("{domain} on {agent} crashed: {detail}");
        self.note(Some(name.clone()), Severity::Warning, "server-crashed", text, actions);
        // Told, and no more, where pushed events are not acted on (profile thesis).
        if !self.cluster.detection.push {
            return;
        }
        match self.dbss(&name).mode {
            Mode::Regular { .. } | Mode::ServiceRecovery { .. } | Mode::NetworkExamination { .. } => {
                self.take_over(now, &name, &target, Why::Network, actions);
            }
            Mode::Returning { unfencing: None } => {
                self.take_over(now, &name, &target, Why::LostReturning, actions);
            }
            Mode::TargetServerRecovery {
                background: Background::Healthy { .. } | Background::Settling { .. } | Background::DoubleSilent { .. },
            }
            | Mode::Returning { unfencing: Some(_) } => {
                let background = self.away_again(now, &name, &target, actions);
                self.enter(now, &name, Mode::TargetServerRecovery { background });
            }
            // Known, expected, or the operator's business.
            Mode::TargetServerRecovery {
                background: Background::AwaitReboot { .. } | Background::Waking { .. } | Background::Operator { .. },
            }
            | Mode::Starting
            | Mode::BackupServer { .. }
            | Mode::Ended { .. } => {}
        }
    }

    /// Tell its own real server, if it is certain which that is. Where power saving was moving it, its plug is pulled at the
    /// other end first: what came of that nobody may have seen, and one more of it would write beside it. False: nothing is
    /// told yet.
    pub(crate) fn order_vm(
        &mut self,
        name: &TargetName,
        domain: &DomainName,
        order: VmOrder,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(host) = self.where_to_start(domain) else { return false };
        let Some(other) = self.may_run_at(domain, &host) else {
            self.tell_vm(name, domain, &host, order, actions);
            return true;
        };
        // The operator has taken it out of the configuration: it is no more.
        if !self.cluster.agents.contains_key(&other) {
            self.tell_where(name, domain, (&other, &host), order);
            return true;
        }
        let text = format!("{domain} was on its way between {other} and {host}: it is switched off on {other} first");
        self.note(Some(name.clone()), Severity::Info, "switched-off", text, actions);
        let clear = TargetJob::Clear { other: other.clone(), host, order };
        let job = self.job(JobFor::Target(name.clone(), clear));
        let command = AgentCommand::DestroyVm { domain: domain.clone() };
        actions.push(Action::Command { job, agent: other, command, timeout: VM_TIMEOUT });
        true
    }

    /// Its guest may not hear: it is reset by its real server.
    fn tell_vm(
        &mut self,
        name: &TargetName,
        domain: &DomainName,
        host: &AgentId,
        order: VmOrder,
        actions: &mut Vec<Action>,
    ) {
        let domain = domain.clone();
        let (what, command) = match order {
            VmOrder::Start => (TargetJob::Wake, AgentCommand::StartVm { domain }),
            VmOrder::Reset => (TargetJob::Wake, AgentCommand::RebootVm { domain, force: true }),
            VmOrder::Reboot => (TargetJob::Reboot, AgentCommand::RebootVm { domain, force: true }),
        };
        let job = self.job(JobFor::Target(name.clone(), what));
        actions.push(Action::Command { job, agent: host.clone(), command, timeout: VM_TIMEOUT });
    }

    /// It does not run at the other end, for certain; or that is not known, and nothing is started.
    pub(crate) fn cleared(
        &mut self,
        now: Time,
        name: &TargetName,
        (other, host): (&AgentId, &AgentId),
        order: VmOrder,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(domain) = self.cluster.targets.get(name).and_then(Target::domain).cloned() else { return };
        let place = self.where_to_start(&domain).filter(|_| *result == JobResult::Done);
        // Whatever it was to be told next: it does not run there.
        if place.as_ref() == Some(host) {
            return self.tell_where(name, &domain, (other, host), order);
        }
        if !self.is_wanted(name, order) {
            return;
        }
        // It had been found elsewhere meanwhile, be it there.
        if place.is_some() && order != VmOrder::Reboot {
            self.order_vm(name, &domain, VmOrder::Start, actions);
            return;
        }
        if *result != JobResult::Done {
            if let Some(target) = self.cluster.targets.get(name).map(|target| self.as_it_is(target)) {
                self.read_other_power(now, name, &target, actions);
            }
            let text = format!("{domain} may still run elsewhere, and is not started: {}", describe(result));
            self.note(Some(name.clone()), Severity::Warning, "command-failed", text, actions);
        }
        if order == VmOrder::Reboot {
            self.reboot_failed(now, name);
        }
    }

    /// SIF keeps that it does not run there. Once the tables show that, it is told what it was to be told: a successor, and
    /// power saving that has looked too early, must not take it to be elsewhere when it runs here.
    fn tell_where(
        &mut self,
        name: &TargetName,
        domain: &DomainName,
        (other, host): (&AgentId, &AgentId),
        order: VmOrder,
    ) {
        let not_on = BTreeSet::from([other.clone()]);
        self.signal(Signal::MovedTo { vm: domain.clone(), host: host.clone(), not_on });
        self.dbss(name).order = Some(order);
    }

    /// What waited until the tables show that a virtual server runs nowhere else.
    pub(crate) fn give_orders(&mut self, now: Time, actions: &mut Vec<Action>) {
        if !self.in_authority(now) {
            return;
        }
        let waiting = |(name, dbss): (&TargetName, &Dbss)| Some((name.clone(), dbss.order?));
        for (name, order) in self.targets.iter().filter_map(waiting).collect::<Vec<_>>() {
            let Some(domain) = self.cluster.targets.get(&name).and_then(Target::domain).cloned() else { continue };
            if !self.is_wanted(&name, order) {
                self.dbss(&name).order = None;
            } else if let Some(host) = self.where_to_start(&domain)
                && self.may_run_at(&domain, &host).is_none()
            {
                self.dbss(&name).order = None;
                self.tell_vm(&name, &domain, &host, order, actions);
            }
        }
    }

    /// Does it still wait for that?
    fn is_wanted(&mut self, name: &TargetName, order: VmOrder) -> bool {
        match (&self.dbss(name).mode, order) {
            (Mode::TargetServerRecovery { background }, VmOrder::Start | VmOrder::Reset) => {
                matches!(background, Background::Waking { .. })
            }
            (Mode::TargetServerRecovery { background }, VmOrder::Reboot) => {
                matches!(background, Background::AwaitReboot { job: Job::Reboot { .. }, left: false, .. })
            }
            (
                Mode::Starting
                | Mode::Regular { .. }
                | Mode::ServiceRecovery { .. }
                | Mode::NetworkExamination { .. }
                | Mode::BackupServer { .. }
                | Mode::Returning { .. }
                | Mode::Ended { .. },
                VmOrder::Start | VmOrder::Reset | VmOrder::Reboot,
            ) => false,
        }
    }

    /// Background job 2 of a virtual server: it is started where it is, by force. While its real server is away there is
    /// nobody to do it: the wait goes on, and it is started when that is back.
    pub(crate) fn start_virtual_server(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        domain: &DomainName,
        attempt: u32,
        actions: &mut Vec<Action>,
    ) -> Background {
        // Looked at again each round; the wait counts for nothing.
        let waits = Background::AwaitReboot { job: Job::Return, until: now, left: true };
        if self.where_to_start(domain).is_none() {
            let text =
                format!("{domain} is down, and is started once the shared tables show where it was, and the claim");
            self.waits_for(name, text, actions);
            return waits;
        }
        if !self.connected(now, &target.agent) {
            let text = format!("its real server {} is away: {domain} is started when that is back", target.agent);
            self.waits_for(name, text, actions);
            return waits;
        }
        let other = self.may_run_at(domain, &target.agent);
        let is_away = |other: &AgentId| self.cluster.agents.contains_key(other) && !self.connected(now, other);
        if let Some(other) = other.filter(is_away) {
            let text = format!(
                "{domain} may be running on {other}, which is away: it is started on {} when it is off there for certain",
                target.agent
            );
            self.waits_for(name, text, actions);
            self.read_other_power(now, name, target, actions);
            return waits;
        }
        self.dbss(name).waits_for = None;
        let text = format!("{domain} is down: started on {} (attempt {attempt})", target.agent);
        self.note(Some(name.clone()), Severity::Info, "waking", text, actions);
        actions.push(Action::PutTrouble { target: name.clone(), stage: "waking".into(), detail: domain.to_string() });
        let order = if attempt > 1 { VmOrder::Reset } else { VmOrder::Start };
        self.order_vm(name, domain, order, actions);
        Background::Waking { attempt, until: now + target.start_wait }
    }

    /// May it be on another real server than the tables have it on?
    pub(crate) fn is_lost_sight_of(&self, target: &Target) -> bool {
        target.domain().is_some_and(|domain| self.may_run_at(domain, &target.agent).is_some())
    }

    /// It answers, and its real server by the tables does not: it may be fine on the other one. Power saving looks for it.
    pub(crate) fn waits_to_be_found(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        actions: &mut Vec<Action>,
    ) -> Background {
        let text = format!(
            "it answers, and {} is away: its live migration ended unseen, and it takes its place again when it is found",
            target.agent
        );
        self.waits_for(name, text, actions);
        Background::AwaitReboot { job: Job::Return, until: now + target.reboot_wait, left: true }
    }

    /// Why it is not started is said once.
    fn waits_for(&mut self, name: &TargetName, text: String, actions: &mut Vec<Action>) {
        if self.dbss(name).waits_for.as_ref() != Some(&text) {
            self.dbss(name).waits_for = Some(text.clone());
            self.note(Some(name.clone()), Severity::Warning, "waking", text, actions);
        }
    }

    /// On confirmation: power saving lets go of what the recovery needs, which is also the host that stands in.
    pub(crate) fn claim(&mut self, name: &TargetName, target: &Target, why: &str) {
        let Some(mut claims) = self.what_it_needs(target) else { return };
        claims.insert(Claim::Host(self.double_host(target)));
        self.put_claims(name, why, claims);
    }

    /// The operator's move may last for days: power saving leaves alone what it is about, and who holds that, but not all
    /// that is on the same host.
    pub(crate) fn claim_moved(&mut self, name: &TargetName, target: &Target) {
        let Some(claims) = self.what_it_needs(target) else { return };
        self.put_claims(name, "moved by the operator", claims);
    }

    fn what_it_needs(&self, target: &Target) -> Option<BTreeSet<Claim>> {
        let vips = self.vips_at_stake(target).into_iter().map(Claim::Vip);
        Some(vips.chain([Claim::Vm(target.domain()?.clone())]).collect())
    }

    /// With what its backup server needs that is away, or about to leave.
    pub(crate) fn put_claims(&mut self, name: &TargetName, why: &str, mut claims: BTreeSet<Claim>) {
        self.with_stand_ins_claims(name, &mut claims);
        let why = match why {
            "" if !claims.is_empty() => "its backup server is on its way",
            _ => why,
        };
        self.signal(Signal::Claims { target: name.clone(), why: why.to_owned(), claims });
    }

    /// A4: the backup server serves. SIF keeps where its tables have the target; where more is known here, it is told before.
    pub(crate) fn function_restored(&mut self, target: &Target) {
        if let Some(place) = target.domain().cloned() {
            let known = self.tables.as_ref().and_then(|tables| tables.host_of(&place));
            let host = self.host_of(target);
            if known.is_some_and(|known| *known != host) {
                // It has left the other, by its agent's word; that it does not go back there nobody knows.
                self.signal(Signal::MovedTo { vm: place.clone(), host, not_on: BTreeSet::new() });
            }
            let (backup, host) = (self.double_of(target).clone(), self.double_host(target));
            self.signal(Signal::FunctionRestored { place, backup, host });
        }
    }

    /// A5. The recovery is over either way.
    pub(crate) fn verdict(&mut self, now: Time, name: &TargetName, target: &Target, recovered: bool) {
        let Some(place) = target.domain().cloned() else { return };
        // One signal after another: what is claimed before is in the tables when they forget.
        let kept = recovered && self.keep_sight_of_double(now, name, target);
        let host = if recovered { self.host_of(target) } else { self.double_host(target) };
        self.signal(Signal::TargetVerdict { place, recovered, host });
        if !kept {
            self.unclaim(name, target);
        }
    }

    /// It is served by itself, and the tables have its backup server in its place, or a claim: what an earlier coordinator
    /// could not say any more.
    pub(crate) fn tell_its_return(&mut self, now: Time, name: &TargetName, target: &Target) {
        let (Some(tables), Some(place)) = (&self.tables, target.domain()) else { return };
        let row = tables.operation.get(place).or_else(|| tables.suspend.get(place));
        if row.is_some_and(|row| row.vm != *place) {
            self.verdict(now, name, target, true);
        } else if tables.claims.values().any(|row| row.by == name.as_str()) {
            self.unclaim(name, target);
        }
    }

    /// The recovery is over, or was none.
    pub(crate) fn unclaim(&mut self, name: &TargetName, target: &Target) {
        if target.vm.is_some() {
            self.put_claims(name, "", BTreeSet::new());
        }
    }
}
