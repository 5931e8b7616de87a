//! Pings and probes, as the coordinator's shell has them made: by an agent, over the network, of what is there.

use super::clock::{MS, Ns, SEC, ns};
use super::machine::{Health, Vm};
use super::record::Record;
use super::world::World;
use kage_coordinator_core::{CheckOutcome, JobId, JobResult};
use kage_types::Vip;
use std::{net::IpAddr, time::Duration};

/// An agent that was asked to look has so much longer to say so (`coordinator/src/agents.rs`).
const WAY: Ns = 200 * MS;

/// What is found at an address.
enum Found {
    /// It answers.
    Good,
    /// It refuses.
    Refused,
    /// Nothing.
    Silence,
}

impl World {
    /// The wall clock, for orders.
    #[must_use]
    pub fn wall(&self) -> u64 {
        1_800_000_000_000 + self.now / MS
    }

    /// Who looks.
    fn observer(&self, slot: usize) -> Option<usize> {
        self.coordinators[slot].as_ref()?.core.observer().map(|agent| self.index(agent))
    }

    /// Does the observer hear what it is asked, and the coordinator its answer? Else the job ends as unknown.
    fn asked(&mut self, slot: usize, job: JobId, timeout: Ns) -> Option<usize> {
        let Some(observer) = self.observer(slot) else {
            self.job_ends(slot, MS, job, JobResult::Unknown("no agent to look from".into()));
            return None;
        };
        let there = &self.machines[observer];
        let able = there.agent.is_some() && there.answers(self.now) && there.stalled_until <= self.now;
        if able && self.net.both(self.net.coordinators[slot], observer) {
            return Some(observer);
        }
        self.job_ends(slot, timeout + WAY, job, JobResult::Unknown("the observer did not answer".into()));
        None
    }

    /// So many echo requests; one answer is enough.
    pub(super) fn ping(&mut self, slot: usize, job: JobId, address: IpAddr, count: u16, timeout: Duration) {
        let Some(observer) = self.asked(slot, job, ns(timeout)) else { return };
        let there = self.at_address(address);
        let reached = |machine: &usize| self.machines[*machine].answers(self.now) && self.net.both(observer, *machine);
        let reached = there.filter(reached).is_some();
        // Datagrams: lost is lost.
        let lost = self.net.loss_ppm;
        let heard = reached && (0..count.max(1)).any(|_| !(self.rng.ppm(lost) || self.rng.ppm(lost)));
        let slow = self.net.slow;
        let delay = self.rng.range(160_000, 800_000) + self.rng.range(0, 2 * slow.max(1));
        self.looked(slot, job, if heard { Found::Good } else { Found::Silence }, delay, ns(timeout));
    }

    /// A service's probe, at a VIP or at a machine's own address.
    pub(super) fn probe(&mut self, slot: usize, job: JobId, address: IpAddr, port: u16, timeout: Duration) {
        let Some(observer) = self.asked(slot, job, ns(timeout)) else { return };
        let vip = self.vips.iter().copied().find(|vip| vip.address() == address);
        let found = match vip {
            Some(vip) => self.at_vip(vip, port, observer),
            None => match self.at_address(address) {
                Some(machine) if self.net.both(observer, machine) => self.own_service(machine, address, port),
                Some(_) | None => Found::Silence,
            },
        };
        let delay = self.net.delay(&mut self.rng) + self.net.delay(&mut self.rng);
        self.looked(slot, job, found, delay, ns(timeout));
    }

    fn looked(&mut self, slot: usize, job: JobId, found: Found, delay: Ns, timeout: Ns) {
        let outcome = match found {
            Found::Good if delay < timeout => CheckOutcome::Ok,
            Found::Refused if delay < timeout => CheckOutcome::Ng("connection refused".into()),
            Found::Good | Found::Refused | Found::Silence => CheckOutcome::Ng("no answer".into()),
        };
        let after = if matches!(found, Found::Silence) { timeout } else { delay.min(timeout) };
        self.job_ends(slot, after, job, JobResult::Check(outcome));
    }

    fn at_address(&self, address: IpAddr) -> Option<usize> {
        let own = |name: &kage_types::AgentId| self.cluster.agents[name].address.ip() == address;
        let of_target = || self.cluster.targets.values().find(|target| target.address == address);
        self.names.iter().position(own).or_else(|| Some(self.index(&of_target()?.agent)))
    }

    /// What of this machine answers there, if it is reached.
    fn own_service(&self, machine: usize, address: IpAddr, port: u16) -> Found {
        let here = &self.machines[machine];
        if !here.answers(self.now) {
            return Found::Silence;
        }
        let target = self.cluster.targets.values().find(|target| target.address == address);
        let service = target.and_then(|target| target.services.iter().find(|service| service.port == port));
        match service.map(|service| here.health(self.now, &service.name)) {
            Some(Health::Good) => Found::Good,
            Some(Health::Hung(_)) => Found::Silence,
            Some(Health::Gone(_) | Health::Starting(_)) | None => Found::Refused,
        }
    }

    fn at_vip(&self, vip: Vip, port: u16, from: usize) -> Found {
        let Some((_, target)) = self.cluster.targets.iter().find(|(_, target)| target.vips.contains(&vip)) else {
            return Found::Silence;
        };
        let holder = self.holder(vip).filter(|holder| self.net.both(from, *holder));
        match holder {
            None => Found::Silence,
            Some(holder) if self.names[holder] == target.agent => self.own_service(holder, target.address, port),
            Some(holder) if !self.machines[holder].answers(self.now) => Found::Silence,
            Some(holder) => match self.machines[holder].vm(&target.backup.domain) {
                Vm::Running(since) if since <= self.now => Found::Good,
                Vm::Running(_) | Vm::Suspended | Vm::Off => Found::Silence,
            },
        }
    }

    /// The machine whose packets as this VIP pass.
    #[must_use]
    pub fn holder(&self, vip: Vip) -> Option<usize> {
        let live =
            |machine: &super::machine::Machine| machine.up() && machine.kernel.live_until(self.now, vip).is_some();
        self.machines.iter().position(live)
    }

    /// Do clients get what they want there?
    #[must_use]
    pub fn serves(&self, vip: Vip, record: &Record) -> bool {
        let Some((_, target)) = self.cluster.targets.iter().find(|(_, target)| target.vips.contains(&vip)) else {
            return false;
        };
        let found = self.holder(vip).is_some_and(|holder| record.believed(vip, holder, self.now));
        let good = |port| matches!(self.at_vip(vip, port, self.net.clients), Found::Good);
        match target.services.is_empty() {
            // Nothing is asked for: that it is reached must do.
            true => found && matches!(self.at_vip(vip, 0, self.net.clients), Found::Good | Found::Refused),
            false => found && target.services.iter().all(|service| good(service.port)),
        }
    }

    /// A VIP's place was announced: neighbours believe it, if it is there and they hear it.
    pub(super) fn announced(&mut self, machine: usize, vip: Vip) {
        let here = &self.machines[machine];
        let heard = here.answers(self.now)
            && here.kernel.live_until(self.now, vip).is_some()
            && !here.unheard
            && self.net.open(machine, self.net.clients);
        if let Some(record) = self.record.as_mut().filter(|_| heard) {
            record.heard(vip, machine, self.now);
        }
    }
}

/// What neighbours believe without being told is looked at anew after this (Linux: base_reachable_time, 15 to 45 s).
pub(super) const NEIGHBOURS_FORGET: Ns = 45 * SEC;
