//! The world: machines, SIF, one or two coordinators, a network, one queue of events in order of (time, number).

use super::agent::{Input, Step as AgentStep};
use super::checks::{Broken, Checks};
use super::clock::{Clock, MS, Ns, SEC};
use super::config::Shape;
use super::coordinator::{Notice, Process, Reply, Step as CoordinatorStep};
use super::journal::Journal;
use super::kernel::KernelSabotage;
use super::machine::{Errand, Machine};
use super::net::{Net, Nodes, Stream, Weather};
use super::record::Record;
use super::rng::Rng;
use super::sif::{Call, Sif};
use kage_coordinator_core::config::Cluster;
use kage_sif_core::Request;
use kage_types::{AgentId, ServiceName, TargetName, Vip};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    fmt,
};

/// So many events at one instant are a loop.
const STANDSTILL: u64 = 100_000;

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// In the agent's core.
    Agent(kage_agent_core::Sabotage),
    /// In the coordinator's core.
    Coordinator(kage_coordinator_core::Sabotage),
    /// In SIF's core.
    Sif(kage_sif_core::Sabotage),
    /// In the kernel.
    Kernel(KernelSabotage),
    /// In the agent's shell: a release is acknowledged though what stands behind the VIP still runs.
    ReleaseBeforeQuiet,
}

impl Sabotage {
    /// What it must show as, if that is no danger for data: else such things don't count.
    #[must_use]
    pub fn costs(self) -> Option<Broken> {
        match self {
            Self::Agent(kage_agent_core::Sabotage::AsksTooSeldom) => Some(Broken::Lapse),
            Self::Coordinator(kage_coordinator_core::Sabotage::NotToldAgain) => Some(Broken::NotHealed),
            Self::Agent(_) | Self::Coordinator(_) | Self::Sif(_) | Self::Kernel(_) | Self::ReleaseBeforeQuiet => None,
        }
    }
}

/// What is to happen.
#[derive(Clone, Debug)]
pub enum Ev {
    /// The head of a stream's queue arrives: stream, upwards.
    Stream(u64, bool),
    /// The coordinator finds that a stream is dead.
    StreamDead(u64),
    /// An agent tries to connect.
    Connect(usize, u64),
    /// An agent's process is handed something.
    Agent(usize, u64, Box<Input>),
    /// An agent's deadline.
    AgentTick(usize, u64),
    /// A stalled step of an agent goes on.
    AgentAct(usize, u64, Box<AgentStep>),
    /// The operation at the head of the kernel thread's queue takes effect.
    Kernel(usize, u64),
    /// A voter's store is on the disk.
    Stored(usize, u64),
    /// A coordinator's process is handed something.
    Coordinator(usize, u64, Box<Notice>),
    /// A coordinator's deadline.
    CoordinatorTick(usize, u64),
    /// A stalled step of a coordinator goes on.
    CoordinatorAct(usize, u64, Box<CoordinatorStep>),
    /// A request reaches SIF.
    Sif(Call, Box<Request>),
    /// SIF's disk has written.
    Persisted(u64),
    /// A message of a remote call arrives: from, to, what happens then.
    Arrive(usize, usize, Box<Ev>),
    /// A machine starts.
    Boot(usize),
    /// An agent's process starts.
    StartAgent(usize),
    /// A machine that was told to sleep sleeps for this long.
    Sleep(usize, Ns),
    /// A machine wakes; it slept since.
    Wake(usize, Ns),
    /// A machine that was told to go down is down, for this long.
    Down(usize, Ns),
    /// A coordinator's process starts.
    StartCoordinator(usize),
    /// SIF starts.
    StartSif,
    /// The next fault begins or ends.
    Fault(usize, bool),
    /// What an agent had begun on its machine ends: at which boot, what, who wants to know.
    Errand(usize, u64, Errand, Reply),
    /// Neighbours hear that a VIP is here.
    Announced(usize, Vip),
    /// A service of a machine was stopped, frozen, or let run: at which boot and by which process, which, to run?
    Halted(usize, (u64, u64), ServiceName, bool),
    /// The storage's command took effect: who asked, of which target, revoked?
    Fenced(Reply, TargetName, bool),
    /// The next line of a scenario begins or ends.
    Line(usize, bool),
}

/// Small mishaps that nobody arranges, of a hundred.
#[derive(Clone, Copy, Debug)]
pub struct Chances {
    /// A call to libvirt fails.
    pub libvirt_fails: u32,
    /// A write to an agent's disk fails.
    pub disk_fails: u32,
    /// The storage does not do what it is told.
    pub storage_fails: u32,
    /// What an agent holds is stored in time.
    pub keeps: u32,
}

struct Entry(Ns, u64, Ev);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Everything.
pub struct World {
    /// True time.
    pub now: Ns,
    queue: BinaryHeap<Reverse<Entry>>,
    seq: u64,
    /// Events processed.
    pub events: u64,
    /// Of these, at this instant.
    here: u64,
    /// Chance.
    pub rng: Rng,
    /// As configured.
    pub cluster: Cluster,
    /// The VIPs.
    pub vips: Vec<Vip>,
    /// The agents' names.
    pub names: Vec<AgentId>,
    /// Who is what.
    pub shape: Shape,
    /// The agents' machines.
    pub machines: Vec<Machine>,
    /// The coordinators' machines' clocks.
    pub coordinator_clocks: [Clock; 2],
    /// The coordinators' processes.
    pub coordinators: [Option<Process>; 2],
    /// SIF.
    pub sif: Sif,
    /// The network.
    pub net: Net,
    /// All streams that somebody still uses.
    pub streams: BTreeMap<u64, Stream>,
    last_id: u64,
    /// What must hold.
    pub checks: Checks,
    /// Times that an operator had to help.
    pub helped: u64,
    /// Broken on purpose.
    pub sabotage: Option<Sabotage>,
    /// Does the RFC 5227 probe see anything? It is one more look, not the proof: usually off.
    pub probe_sees: bool,
    /// Strangers answer for these VIPs.
    pub strangers: BTreeSet<Vip>,
    /// Small mishaps.
    pub chances: Chances,
    /// Loss.
    pub weather: Weather,
    /// Services that must not write twice, by their target.
    pub single: BTreeMap<TargetName, ServiceName>,
    /// They are frozen without a lease, not stopped.
    pub freezes: bool,
    /// Targets whose storage does not let them write.
    pub revoked: BTreeSet<TargetName>,
    /// The lines of a scenario.
    pub lines: Vec<super::scenario::Line>,
    /// Cuts of a scenario that have no end of their own: of which nodes.
    pub open_cuts: Vec<(Nodes, Vec<(Nodes, Nodes)>)>,
    /// What happened, for a scenario's outcome.
    pub record: Option<Box<Record>>,
    /// The faults of this episode.
    pub faults: Vec<super::faults::Planned>,
    /// No new fault begins; what is broken has been repaired.
    pub calm: bool,
    /// No second coordinator is started any more.
    pub repaired: bool,
    trace: Option<VecDeque<String>>,
    trace_limit: usize,
    /// The coordinators' journals, by slot, if they are wanted.
    pub journals: Option<[Journal; 2]>,
}

impl World {
    /// A cluster chosen by chance, that starts cold.
    #[must_use]
    pub fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::new(seed);
        let cluster = super::config::cluster(&mut rng);
        let mut world = Self::of(cluster, rng, sabotage);
        world.start();
        world
    }

    /// A cluster in which nothing runs yet.
    #[must_use]
    pub fn of(cluster: Cluster, mut rng: Rng, sabotage: Option<Sabotage>) -> Self {
        let vips = cluster.vips().map(|(vip, _)| vip).collect();
        let names: Vec<AgentId> = cluster.agents.keys().cloned().collect();
        let shape = Shape::of(&cluster);
        // Two clocks drift apart by at most one in a thousand.
        let mut clock = || {
            let drift = if rng.percent(50) { rng.range(0, 1_000_001) } else { 1_000_000 * rng.range(0, 2) };
            Clock::new(0, rng.range(SEC, 1_000_000 * SEC), i64::try_from(drift).unwrap_or(0) - 500_000)
        };
        let machines: Vec<Machine> = names.iter().map(|_| Machine::new(clock())).collect();
        let net = Net::new(machines.len());
        let coordinator_clocks = [clock(), clock()];
        let probe_sees = rng.percent(20);
        let freezes = rng.percent(30);
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            seq: 0,
            events: 0,
            here: 0,
            sif: Sif::new(&cluster),
            cluster,
            vips,
            names,
            shape,
            machines,
            coordinator_clocks,
            coordinators: [None, None],
            net,
            streams: BTreeMap::new(),
            last_id: 0,
            checks: Checks::new(sabotage.is_some(), sabotage.and_then(Sabotage::costs)),
            sabotage,
            probe_sees,
            strangers: BTreeSet::new(),
            chances: Chances { libvirt_fails: 5, disk_fails: 1, storage_fails: 10, keeps: 95 },
            weather: Weather::Bursts(1_000_000),
            single: BTreeMap::new(),
            freezes,
            helped: 0,
            revoked: BTreeSet::new(),
            lines: Vec::new(),
            open_cuts: Vec::new(),
            record: None,
            faults: Vec::new(),
            calm: true,
            repaired: true,
            rng,
            trace: None,
            trace_limit: 0,
            journals: None,
        };
        world.single = Self::single_writers(&world.cluster);
        (0..world.machines.len()).for_each(|machine| world.writers_boot(machine));
        if let Some(Sabotage::Kernel(kernel)) = sabotage {
            for machine in &mut world.machines {
                machine.kernel.sabotage = Some(kernel);
            }
        }
        world
    }

    /// Keep the coordinators' journals. To be said before they start.
    pub fn keep_journals(&mut self) {
        self.journals = Some(Default::default());
    }

    /// Everything that is on starts.
    pub fn start(&mut self) {
        self.start_sif();
        for machine in 0..self.machines.len() {
            let delay = self.rng.range(0, 500 * MS);
            self.after(delay, Ev::StartAgent(machine));
        }
        let delay = self.rng.range(0, 500 * MS);
        self.after(delay, Ev::StartCoordinator(0));
    }

    /// Keep the last lines of what happens.
    pub fn keep_trace(&mut self, lines: usize) {
        self.trace = Some(VecDeque::new());
        self.trace_limit = lines;
    }

    /// What was kept.
    pub fn trace(&self) -> impl Iterator<Item = &String> {
        self.trace.iter().flatten()
    }

    /// Is anybody listening?
    #[must_use]
    pub fn tracing(&self) -> bool {
        self.trace.is_some()
    }

    /// A line of the trace.
    pub fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            if trace.len() >= self.trace_limit {
                trace.pop_front();
            }
            trace.push_back(format!("{:>5}.{:06} {}", now / SEC, now % SEC / 1000, line()));
        }
    }

    /// A line of the trace about a machine.
    pub fn say_of(&mut self, machine: usize, line: impl FnOnce() -> String) {
        if self.tracing() {
            let line = format!("{} {}", self.names[machine], line());
            self.say(|| line);
        }
    }

    /// Later.
    pub fn at(&mut self, time: Ns, event: Ev) {
        self.seq += 1;
        self.queue.push(Reverse(Entry(time.max(self.now), self.seq, event)));
    }

    /// This much later.
    pub fn after(&mut self, delay: Ns, event: Ev) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// A number never used before.
    pub fn fresh(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The index of an agent.
    #[must_use]
    pub fn index(&self, agent: &AgentId) -> usize {
        self.names.iter().position(|name| name == agent).unwrap_or(0)
    }

    /// A remote call's message: delayed, sometimes very late, sometimes lost in a cut, now and then twice.
    pub fn call(&mut self, from: usize, to: usize, event: Ev) {
        let mut delay = self.net.delay(&mut self.rng);
        if self.net.late_ppm > 0 && self.rng.ppm(self.net.late_ppm) {
            delay += self.rng.scale(10 * MS, 60 * SEC);
        }
        if self.net.late_ppm > 0 && self.rng.ppm(self.net.late_ppm / 4) {
            let again = delay + self.rng.scale(MS, 20 * SEC);
            self.after(again, Ev::Arrive(from, to, Box::new(event.clone())));
        }
        self.after(delay, Ev::Arrive(from, to, Box::new(event)));
    }

    /// The next event; false when the time is up.
    pub fn step(&mut self, until: Ns) -> bool {
        let Some(Reverse(Entry(at, ..))) = self.queue.peek() else {
            self.now = until;
            return false;
        };
        if *at > until {
            self.now = until;
            return false;
        }
        let Some(Reverse(Entry(at, _, event))) = self.queue.pop() else {
            return false;
        };
        self.here = if at > self.now { 0 } else { self.here + 1 };
        if self.here > STANDSTILL {
            self.checks.not_healed(at, format!("time stands still at {event:?}"));
        }
        self.now = at;
        self.events += 1;
        self.happen(event);
        self.check_writers();
        true
    }

    /// Until then, or until a check fails.
    pub fn run(&mut self, until: Ns) {
        while self.checks.failure.is_none() && self.step(until) {}
    }

    pub(super) fn happen(&mut self, event: Ev) {
        match event {
            Ev::Stream(stream, up) => self.stream_arrives(stream, up),
            Ev::StreamDead(stream) => self.stream_dead(stream),
            Ev::Connect(machine, process) => self.connect(machine, process),
            Ev::Agent(machine, process, input) => self.agent_input(machine, process, *input),
            Ev::AgentTick(machine, process) => self.agent_tick(machine, process),
            Ev::AgentAct(machine, process, step) => self.agent_act(machine, process, *step),
            Ev::Kernel(machine, process) => self.kernel_effect(machine, process),
            Ev::Stored(machine, process) => self.stored(machine, process),
            Ev::Coordinator(slot, process, notice) => self.coordinator_notice(slot, process, *notice),
            Ev::CoordinatorTick(slot, process) => self.coordinator_tick(slot, process),
            Ev::CoordinatorAct(slot, process, step) => self.coordinator_act(slot, process, *step),
            Ev::Sif(call, request) => self.sif_request(call, *request),
            Ev::Persisted(process) => self.sif_persisted(process),
            Ev::Arrive(from, to, event) => self.arrive(from, to, event),
            Ev::Boot(machine) => self.boot(machine),
            Ev::StartAgent(machine) => self.start_agent(machine),
            Ev::Sleep(machine, length) => self.sleep(machine, length),
            Ev::Wake(machine, since) => self.wake(machine, since),
            Ev::Down(machine, length) => self.power_off(machine, length),
            Ev::StartCoordinator(slot) => self.start_coordinator(slot),
            Ev::StartSif => self.start_sif(),
            Ev::Fault(index, begins) => self.fault(index, begins),
            Ev::Errand(machine, boot, errand, reply) => self.errand(machine, boot, errand, reply),
            Ev::Announced(machine, vip) => self.announced(machine, vip),
            Ev::Halted(machine, asked, service, runs) => self.halted(machine, asked, service, runs),
            Ev::Fenced(reply, target, revoked) => self.fenced(reply, target, revoked),
            Ev::Line(index, begins) => self.line(index, begins),
        }
    }

    fn arrive(&mut self, from: usize, to: usize, event: Box<Ev>) {
        if self.net.open(from, to) {
            self.happen(*event);
        } else if self.rng.percent(40) {
            let again = self.rng.scale(50 * MS, 4 * SEC);
            self.after(again, Ev::Arrive(from, to, event));
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World at {} ns, {} nodes", self.now, self.net.nodes())
    }
}
