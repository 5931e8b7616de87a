//! Machines, virtual servers, who is open for which virtual IP, and what must never be.

use super::{cluster, msbs::Msbs, saving::Saving, sif::Sif};
use crate::sim::rng::Rng;
use anyhow::Result;
use kage_coordinator::saving::inventory::Seen;
use kage_coordinator_core::config::Cluster;
use kage_types::{AgentId, DomainName, Epoch, GroupName, Vip};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

/// Milliseconds.
pub type Ms = u64;
/// What is to happen.
pub type Then = Box<dyn FnOnce(&mut Night)>;

/// L of the profile.
pub const LEASE: Ms = 2_000;
/// R of it.
pub const RENEWAL: Ms = 200;
/// Of a message.
pub const WAY: Ms = 2;
/// Live migration of one virtual server.
pub const MIGRATION: Ms = 1_000;
/// From the magic packet to the agent's answer.
pub const WAKING: Ms = 3_000;
/// From power to the agent's answer.
pub const BOOT: Ms = 20_000;
/// A virtual server's boot.
pub const GUEST_BOOT: Ms = 8_000;

/// Lines of the trace that are kept.
const TRACE: usize = 4_000;

/// Of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It runs.
    On,
    /// Suspended to memory: what is in it stands still.
    Asleep,
    /// Without power: nothing is left in it.
    Off,
}

/// A machine with an agent.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Of it.
    pub power: Power,
    /// Its agent's process, if it runs; each has its own number.
    pub agent: Option<u64>,
    /// Of its requests.
    pub nonce: u64,
    /// Of the coordinator's answers to it.
    pub heard: u64,
    /// No lease below.
    pub floors: BTreeMap<Vip, Epoch>,
    /// A magic packet wakes it.
    pub wakes: bool,
    /// Rises with each start.
    pub boots: u64,
    /// It reaches nobody and nobody reaches it; its storage excepted.
    pub cut: bool,
}

/// A virtual server in a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It gets time, and its services answer from then on.
    Runs(Ms),
    /// Suspended.
    Paused,
}

/// A virtual IP at an agent that was told to hold it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Whose.
    pub host: AgentId,
    /// In which virtual server.
    pub domain: Option<DomainName>,
    /// Under which epoch.
    pub epoch: Epoch,
    /// The end of its lease.
    pub until: Ms,
}

/// All of it.
pub struct Night {
    /// True time.
    pub now: Ms,
    /// Chance.
    pub rng: Rng,
    queue: BTreeMap<(Ms, u64), Then>,
    last: u64,
    /// As configured.
    pub cluster: Cluster,
    /// By their agents.
    pub machines: BTreeMap<AgentId, Machine>,
    /// Where each virtual server is in memory.
    pub vms: BTreeMap<DomainName, BTreeMap<AgentId, Run>>,
    /// Their starts fail.
    pub broken: BTreeSet<DomainName>,
    /// Their services are down until they are restarted, or all of it is.
    pub sick: BTreeSet<DomainName>,
    /// Live migrations under way: from, to.
    pub migrations: BTreeMap<DomainName, (AgentId, AgentId)>,
    /// Those that have switched over, and whose end is not told yet.
    pub arrived: BTreeSet<DomainName>,
    /// Who may speak as what.
    pub held: BTreeMap<Vip, Vec<Held>>,
    /// The voters: no consent below, and when the last was given.
    pub barred: BTreeMap<Vip, Epoch>,
    /// When a majority consented last.
    pub consented: BTreeMap<Vip, Ms>,
    /// SIF.
    pub sif: Sif,
    /// The coordinator's process.
    pub msbs: Option<Msbs>,
    /// Power saving's process.
    pub pss: Option<Saving>,
    /// Its file of what is known of hosts.
    pub seen: Seen,
    /// CPU wanted of each group, percent of one member.
    pub load: BTreeMap<GroupName, u64>,
    /// CPU time had by each virtual server, nanoseconds, and when that was counted.
    pub counted: BTreeMap<DomainName, (u64, Ms)>,
    /// Never before.
    fresh: u64,
    /// What was broken first.
    pub failure: Option<String>,
    /// Milliseconds that each virtual IP was answered by nobody, in all.
    pub dark: BTreeMap<Vip, Ms>,
    /// As of now.
    pub looked: Ms,
    trace: VecDeque<String>,
}

impl Night {
    /// All at home in Moderate condition, everything starts.
    ///
    /// # Errors
    /// The configuration's.
    pub fn new(seed: u64, pss: &str) -> Result<Self> {
        let cluster = cluster::cluster(pss)?;
        let machine = |(number, name): (u64, &AgentId)| {
            let machine = Machine {
                power: Power::On,
                agent: Some(number),
                nonce: 0,
                heard: 0,
                floors: BTreeMap::new(),
                wakes: true,
                boots: 1,
                cut: false,
            };
            (name.clone(), machine)
        };
        let mut vms: BTreeMap<DomainName, BTreeMap<AgentId, Run>> = BTreeMap::new();
        for target in cluster.targets.values() {
            if let Some(domain) = target.domain() {
                vms.entry(domain.clone()).or_default().insert(target.agent.clone(), Run::Runs(0));
            }
            vms.entry(target.backup.domain.clone()).or_default().insert(target.backup.agent.clone(), Run::Paused);
            if let Some(further) = &target.backup.further {
                vms.entry(further.domain.clone()).or_default().insert(further.agent.clone(), Run::Paused);
            }
        }
        let mut night = Self {
            now: 0,
            rng: Rng::new(seed),
            queue: BTreeMap::new(),
            last: 0,
            machines: (1..).zip(cluster.agents.keys()).map(machine).collect(),
            vms,
            broken: BTreeSet::new(),
            sick: BTreeSet::new(),
            migrations: BTreeMap::new(),
            arrived: BTreeSet::new(),
            held: cluster.vips().map(|(vip, _)| (vip, Vec::new())).collect(),
            barred: BTreeMap::new(),
            consented: BTreeMap::new(),
            sif: Sif::new(&cluster),
            msbs: None,
            pss: None,
            seen: Seen::default(),
            load: cluster.groups.keys().map(|group| (group.clone(), 5)).collect(),
            counted: BTreeMap::new(),
            fresh: 100,
            failure: None,
            dark: cluster.vips().map(|(vip, _)| (vip, 0)).collect(),
            looked: 0,
            trace: VecDeque::new(),
            cluster,
        };
        night.start_sif();
        night.after(10, Night::start_msbs);
        night.after(20, Night::start_pss);
        for machine in night.machines.keys().cloned().collect::<Vec<_>>() {
            night.after(50, move |night| night.ask(&machine));
        }
        Ok(night)
    }

    /// A number never used before.
    pub fn fresh(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh
    }

    /// Later.
    pub fn at(&mut self, time: Ms, then: impl FnOnce(&mut Night) + 'static) {
        self.last += 1;
        self.queue.insert((time.max(self.now), self.last), Box::new(then));
    }

    /// So much later.
    pub fn after(&mut self, delay: Ms, then: impl FnOnce(&mut Night) + 'static) {
        self.at(self.now + delay, then);
    }

    /// Let time go by, until something is broken.
    pub fn run(&mut self, length: Ms) {
        let end = self.now + length;
        while self.failure.is_none() {
            let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) else { break };
            let ((at, _), then) = entry.remove_entry();
            self.dark_until(at);
            self.now = at;
            then(self);
            self.check();
        }
        self.dark_until(end);
        self.now = end.max(self.now);
    }

    /// Until this holds; how long it took. None: not within the limit.
    pub fn until(&mut self, limit: Ms, holds: impl Fn(&Night) -> bool) -> Option<Ms> {
        let began = self.now;
        while !holds(self) {
            if self.failure.is_some() || self.now >= began + limit {
                return None;
            }
            self.run(50);
        }
        Some(self.now - began)
    }

    /// A line of the trace.
    pub fn say(&mut self, line: impl fmt::Display) {
        if self.trace.len() >= TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>8}.{:03} {line}", self.now / 1000, self.now % 1000));
    }

    /// What was kept.
    pub fn trace(&self) -> impl Iterator<Item = &String> {
        self.trace.iter()
    }

    /// What must not be is.
    pub fn fail(&mut self, what: String) {
        self.say(format_args!("BROKEN: {what}"));
        self.failure.get_or_insert(what);
    }

    // ---- what is so ----

    /// Does its agent answer?
    pub fn answers(&self, host: &AgentId) -> bool {
        self.is_reached(host) && self.machines.get(host).is_some_and(|machine| machine.agent.is_some())
    }

    /// Is it on, and not cut off?
    pub fn is_reached(&self, host: &AgentId) -> bool {
        // An agent inside a virtual server lives with that.
        if let Some(domain) = self.around(host) {
            let there = self.runs_on(domain);
            let up = |there: &&AgentId| matches!(self.run_of(domain, there), Some(Run::Runs(from)) if from <= self.now);
            return there.filter(up).is_some_and(|there| self.is_reached(there));
        }
        self.machines.get(host).is_some_and(|machine| machine.power == Power::On && !machine.cut)
    }

    /// The double inside which this agent is.
    pub fn around(&self, agent: &AgentId) -> Option<&DomainName> {
        let mut backups = self.cluster.targets.values().map(|target| &target.backup);
        backups.find(|backup| backup.guest.as_ref() == Some(agent)).map(|backup| &backup.domain)
    }

    /// The virtual server whose own address this is.
    pub fn at_address(&self, address: std::net::IpAddr) -> Option<&DomainName> {
        let target = self.cluster.targets.values().find(|target| target.address == address);
        let double = self.cluster.targets.values().find(|target| target.backup.address == Some(address));
        target.and_then(|target| target.domain()).or_else(|| double.map(|target| &target.backup.domain))
    }

    /// Has it power, and is it awake?
    pub fn is_on(&self, host: &AgentId) -> bool {
        self.machines.get(host).is_some_and(|machine| machine.power == Power::On)
    }

    /// In this machine's memory?
    pub fn run_of(&self, domain: &DomainName, host: &AgentId) -> Option<Run> {
        self.vms.get(domain)?.get(host).copied()
    }

    /// Where it gets time.
    pub fn runs_on(&self, domain: &DomainName) -> Option<&AgentId> {
        let places = self.vms.get(domain)?;
        places.iter().find(|(host, run)| matches!(run, Run::Runs(_)) && self.is_on(host)).map(|(host, _)| host)
    }

    /// Do its services answer?
    pub fn serves(&self, domain: &DomainName, host: &AgentId) -> bool {
        let up = matches!(self.run_of(domain, host), Some(Run::Runs(from)) if from <= self.now);
        self.is_on(host) && up && !self.sick.contains(domain)
    }

    /// Is this one's guard open?
    fn is_open(&self, held: &Held) -> bool {
        held.until > self.now && self.machines.get(&held.host).is_some_and(|machine| machine.power != Power::Off)
    }

    /// Who speaks as it now, and is heard.
    pub fn speaker(&self, vip: Vip) -> Option<&Held> {
        self.held.get(&vip)?.iter().find(|held| self.is_open(held) && self.is_reached(&held.host))
    }

    /// Do clients get an answer?
    pub fn served(&self, vip: Vip) -> bool {
        let answers = |held: &Held| held.domain.as_ref().is_some_and(|domain| self.serves(domain, &held.host));
        self.speaker(vip).is_some_and(answers)
    }

    fn dark_until(&mut self, at: Ms) {
        let gone = at.saturating_sub(self.looked);
        if gone == 0 {
            return;
        }
        let vips: Vec<Vip> = self.held.keys().copied().filter(|vip| !self.served(*vip)).collect();
        for vip in vips {
            *self.dark.entry(vip).or_default() += gone;
        }
        self.looked = at;
    }

    /// After each event.
    fn check(&mut self) {
        let mut broken = None;
        for (vip, held) in &self.held {
            let open: BTreeSet<String> = held
                .iter()
                .filter(|held| self.is_open(held) && self.is_on(&held.host))
                .map(|held| {
                    format!("{:?} on {} at {}", held.domain.as_ref().map(DomainName::as_str), held.host, held.epoch)
                })
                .collect();
            if open.len() > 1 {
                broken = Some(format!("{vip} has two owners: {open:?}"));
            }
            let asleep = |held: &&Held| {
                held.until > self.now && self.machines.get(&held.host).is_some_and(|it| it.power == Power::Asleep)
            };
            if let Some(held) = held.iter().find(asleep) {
                broken = Some(format!("{} sleeps with {vip} open", held.host));
            }
        }
        for (domain, places) in &self.vms {
            let there: Vec<&AgentId> =
                places.iter().filter(|(_, run)| matches!(run, Run::Runs(_))).map(|(host, _)| host).collect();
            if there.len() > 1 {
                broken = Some(format!("{domain} runs on {there:?}: two writers on one disk"));
            }
        }
        if let Some(broken) = broken
            && self.failure.is_none()
        {
            self.fail(broken);
        }
    }

    // ---- what happens to machines ----

    /// It loses its power, and has it again after so long (none: it does not come back).
    pub fn lose_power(&mut self, host: &AgentId, length: Option<Ms>) {
        self.say(format_args!("{host} has no power"));
        self.die(host);
        if let Some(length) = length {
            let host = host.clone();
            self.after(length, move |night| night.power_on(&host));
        }
    }

    fn die(&mut self, host: &AgentId) {
        let Some(machine) = self.machines.get_mut(host) else { return };
        machine.power = Power::Off;
        machine.agent = None;
        self.vms.values_mut().for_each(|places| places.retain(|place, _| place != host));
        self.held.values_mut().for_each(|held| held.retain(|held| held.host != *host));
        self.stream_ends(host);
    }

    /// It is cut off from everybody but its storage, for so long: what it runs goes on. With `arrived`, what is being
    /// migrated from or to it has switched over just before; otherwise that fails. False: nothing is being migrated.
    pub fn cut_off(&mut self, host: &AgentId, arrived: bool, length: Ms) -> bool {
        let moving = |(_, (from, to)): &(&DomainName, &(AgentId, AgentId))| from == host || to == host;
        let moving: Vec<_> = self.migrations.iter().filter(moving).map(|(vm, way)| (vm.clone(), way.clone())).collect();
        if arrived && moving.is_empty() {
            return false;
        }
        let Some(machine) = self.machines.get_mut(host) else { return false };
        machine.cut = true;
        self.say(format_args!("{host} is cut off"));
        self.stream_ends(host);
        for (domain, (from, to)) in moving {
            self.migrations.remove(&domain);
            if arrived {
                self.switch_over(&domain, &from, &to);
                self.arrived.insert(domain);
            }
        }
        let host = host.clone();
        self.after(length, move |night| {
            if let Some(machine) = night.machines.get_mut(&host) {
                machine.cut = false;
            }
            night.say(format_args!("{host} is reached again"));
            night.stream_begins(&host);
        });
        true
    }

    /// It boots, if it is off.
    pub fn power_on(&mut self, host: &AgentId) {
        let Some(machine) = self.machines.get(host).filter(|machine| machine.power == Power::Off) else { return };
        let (boots, host) = (machine.boots, host.clone());
        self.say(format_args!("{host} has power"));
        self.after(BOOT, move |night| {
            let Some(machine) = night.machines.get_mut(&host) else { return };
            if machine.power != Power::Off || machine.boots != boots {
                return;
            }
            machine.power = Power::On;
            machine.boots += 1;
            night.say(format_args!("{host} has booted"));
            // Doubles are started suspended; other virtual servers wait for somebody to start them.
            let backups = night.cluster.targets.values().map(|target| &target.backup);
            let doubles: Vec<DomainName> = backups
                .flat_map(|backup| {
                    let further = backup.further.iter().map(|further| (&further.agent, &further.domain));
                    std::iter::once((&backup.agent, &backup.domain)).chain(further)
                })
                .filter(|(agent, _)| **agent == host)
                .map(|(_, domain)| domain.clone())
                .collect();
            for double in doubles {
                night.vms.entry(double).or_default().insert(host.clone(), Run::Paused);
            }
            night.start_agent(&host);
        });
    }

    /// What it runs goes on when it wakes.
    pub fn fall_asleep(&mut self, host: &AgentId) {
        if let Some(machine) = self.machines.get_mut(host).filter(|machine| machine.power == Power::On) {
            machine.power = Power::Asleep;
            self.say(format_args!("{host} sleeps"));
            self.stream_ends(host);
        }
    }

    /// A magic packet.
    pub fn packet(&mut self, host: &AgentId) {
        let Some(machine) = self.machines.get(host).filter(|machine| machine.wakes && !machine.cut) else { return };
        match machine.power {
            Power::On => {}
            Power::Off => self.power_on(host),
            Power::Asleep => {
                let host = host.clone();
                self.after(WAKING, move |night| night.wake(&host));
            }
        }
    }

    fn wake(&mut self, host: &AgentId) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(host).filter(|machine| machine.power == Power::Asleep) else {
            return;
        };
        machine.power = Power::On;
        self.say(format_args!("{host} is awake"));
        // Clocks have jumped: no lease is left (safety, rule 9).
        self.held.values_mut().for_each(|held| held.retain(|held| held.host != *host || held.until > now));
        self.stream_begins(host);
    }

    /// The process of a virtual server ends.
    pub fn kill_vm(&mut self, domain: &DomainName) {
        let Some(host) = self.runs_on(domain).cloned() else { return };
        self.say(format_args!("{domain} on {host} is killed"));
        self.vms.entry(domain.clone()).or_default().remove(&host);
        self.migrations.remove(domain);
        self.vm_gone(&host, domain);
    }
}

impl fmt::Debug for Night {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Night at {} ms", self.now)
    }
}
