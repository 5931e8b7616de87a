//! A small cluster in virtual time: what the coordinator wants done is done by machines that live, die, reboot and
//! are woken. The lease's own faults are the simulator's business; here every agent that is up asks in time.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the servers obey what matters to the tests; the core has no such arm"
)]

use kage_coordinator_core::{
    Action, AgentCommand, AgentReport, Cause, CheckOutcome, Coordinator, Event, JobId, JobResult, SessionId, VipRow,
    config::Cluster, journal,
};
use kage_types::{AgentId, AskVip, Epoch, Nonce, TargetName, Term, Time, Vip};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// T.
const TERM: Duration = Duration::from_secs(5);

/// Who writes the journal, and when.
pub static HEAD: std::sync::LazyLock<journal::Head> = std::sync::LazyLock::new(|| journal::Head {
    version: "1.2.3".into(),
    format: journal::FORMAT,
    pid: 4711,
    unix_ms: 1_795_386_900_000,
});

/// Milliseconds.
pub type Ms = u64;

/// What cures a service that is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    Restart,
    Reboot,
    Nothing,
}

#[derive(Clone, Debug)]
pub struct Server {
    /// It runs: pings are answered, its agent asks and obeys.
    pub up: bool,
    /// It runs, and nobody hears of it.
    pub cut: bool,
    /// Only its agent is dead.
    pub agent_dead: bool,
    /// Pings are lost, all else works.
    pub mute: bool,
    /// Woken, it starts.
    pub wakes: bool,
    /// So many orders to reboot get lost.
    pub deaf_to_reboot: u32,
    pub restart_time: Ms,
    pub reboot_time: Ms,
    pub start_time: Ms,
    nonce: u64,
    next_ask: Ms,
    /// Restarted services stay down.
    broken: BTreeMap<u16, Cure>,
}

pub struct World {
    pub core: Coordinator,
    pub now: Ms,
    pub servers: BTreeMap<AgentId, Server>,
    pub held: BTreeMap<Vip, (AgentId, Epoch)>,
    pub epochs: BTreeMap<Vip, VipRow>,
    pub double_runs: BTreeMap<String, bool>,
    /// How the storage's and the power's commands end.
    pub fence_works: bool,
    pub power_off_works: bool,
    /// SIF takes so long for an epoch of this VIP; 10 ms if it is not named.
    pub sif_takes: BTreeMap<Vip, Ms>,
    /// No voter answers.
    pub voters_away: bool,
    /// Whoever is asked to ping or probe does not answer.
    pub nobody_looks: bool,
    /// Everything done, with its time.
    pub log: Vec<(Ms, Action)>,
    due: BTreeMap<(Ms, u64), Due>,
    seq: u64,
    /// The journal's lines, if they are wanted.
    pub journal: Option<Vec<String>>,
    events: u64,
}

enum Due {
    Event(Event),
    Boot(AgentId),
    Obey(JobId, AgentId, AgentCommand),
}

pub fn agent(name: &str) -> AgentId {
    AgentId::new(name).expect("name")
}

pub fn target(name: &str) -> TargetName {
    name.parse().expect("target")
}

pub fn vip(last: u8) -> Vip {
    format!("10.0.0.{last}").parse().expect("vip")
}

/// Head of a configuration: hosts `mail` (11), `web` (12), `mgmt` (2), voters.
pub fn head(profile: &str) -> String {
    let mut text = format!(
        "[cluster]\nname = \"t\"\nprofile = \"{profile}\"\n[coordinator]\nlisten = \"10.0.0.2:7700\"\n\
         [sif]\nlisten = \"10.0.0.2:7701\"\n[[agent]]\nname = \"mgmt\"\naddress = \"10.0.0.2:7702\"\nguard = \"tap\"\n"
    );
    for (index, name) in ["mail", "web"].iter().enumerate() {
        text += &format!(
            "[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{}:7702\"\nmac = \"52:54:00:00:00:0{index}\"\n",
            11 + index
        );
    }
    for index in 1..=3 {
        text += &format!("[[agent]]\nname = \"v{index}\"\naddress = \"10.0.0.2{index}:7702\"\nvoter = true\n");
    }
    text
}

/// A target of that name, its VIP, its double, more keys, its services' ports.
pub fn with_target(name: &str, last: u8, double: &str, keys: &str, ports: &[u16]) -> String {
    let mut text = format!(
        "[[target]]\nname = \"{name}\"\nagent = \"{name}\"\nvips = [\"10.0.0.{last}\"]\n\
         backup = {{ agent = \"mgmt\", domain = \"{double}\" }}\n{keys}\n"
    );
    for port in ports {
        text += &format!("[[target.service]]\nname = \"s{port}\"\nprobe = \"tcp\"\nport = {port}\n");
    }
    text
}

impl World {
    /// All up, all in Regular mode.
    pub fn new(config: &str) -> Self {
        Self::begin(config, None)
    }

    /// The same, journalled.
    pub fn journalled(config: &str) -> Self {
        Self::begin(config, Some(Vec::new()))
    }

    fn begin(config: &str, journal: Option<Vec<String>>) -> Self {
        let cluster = Cluster::parse(config).unwrap_or_else(|error| panic!("{error}\n{config}"));
        let servers = cluster
            .agents
            .keys()
            .map(|name| {
                let server = Server {
                    up: true,
                    cut: false,
                    agent_dead: false,
                    mute: false,
                    deaf_to_reboot: 0,
                    wakes: true,
                    restart_time: 100,
                    reboot_time: 20_000,
                    start_time: 15_000,
                    nonce: 0,
                    next_ask: 0,
                    broken: BTreeMap::new(),
                };
                (name.clone(), server)
            })
            .collect();
        let rows: Vec<VipRow> = cluster
            .vips()
            .map(|(vip, target)| VipRow {
                vip,
                epoch: Epoch(1),
                owner: cluster.targets[target].agent.clone(),
                domain: cluster.targets[target].domain().cloned(),
                cause: Cause::First,
                long_lease: false,
            })
            .collect();
        let held = rows.iter().map(|row| (row.vip, (row.owner.clone(), row.epoch))).collect();
        let epochs = rows.iter().map(|row| (row.vip, row.clone())).collect();
        let core = Coordinator::new(Time::ZERO, cluster);
        let mut world = Self {
            core,
            now: 1,
            servers,
            held,
            epochs,
            double_runs: BTreeMap::new(),
            fence_works: true,
            power_off_works: true,
            sif_takes: BTreeMap::new(),
            voters_away: false,
            nobody_looks: false,
            log: vec![],
            due: BTreeMap::new(),
            seq: 0,
            journal,
            events: 0,
        };
        if let Some(journal) = &mut world.journal {
            let line = journal::start_line::<Coordinator>(0, Time::ZERO, &HEAD, world.core.cluster()).expect("start");
            journal.push(String::from_utf8(line).expect("text"));
        }
        let agents: Vec<AgentId> = world.servers.keys().cloned().collect();
        for (index, name) in (1..).zip(agents) {
            world.step(Event::AgentUp { agent: name, session: SessionId(index), incarnation: 1 });
        }
        let (term, sent, length) = (Term(1), Time::from_millis(1), TERM);
        world.step(Event::TermAcquired { term, sent, length, rows });
        // The first term's wait is over, everybody has been granted for long.
        world.run(30_000);
        world.log.clear();
        world
    }

    pub fn server(&mut self, name: &str) -> &mut Server {
        self.servers.get_mut(&agent(name)).expect("server")
    }

    /// Another term begins, on the ledger as it is.
    pub fn next_term(&mut self) {
        let down = self.log.iter().filter_map(|(_, action)| match action {
            Action::PutTrouble { target, stage, detail } if stage == "down" => Some((target.clone(), detail.clone())),
            _ => None,
        });
        let (down, rows) = (down.collect(), self.epochs.values().cloned().collect());
        self.step(Event::TermLost { term: Term(1), reason: "another coordinator".into() });
        self.step(Event::TroublesRead { down });
        let (term, sent, length) = (Term(2), Time::from_millis(self.now), TERM);
        self.step(Event::TermAcquired { term, sent, length, rows });
    }

    /// The machine loses its power.
    pub fn power_lost(&mut self, name: &str) {
        self.server(name).up = false;
    }

    /// It is there again, whatever was wrong with it.
    pub fn back(&mut self, name: &str) {
        let now = self.now;
        let server = self.server(name);
        (server.up, server.cut, server.agent_dead, server.mute) = (true, false, false, false);
        server.next_ask = now;
        server.broken.clear();
    }

    /// A service of a machine goes down.
    pub fn service_down(&mut self, name: &str, port: u16, cure: Cure) {
        self.server(name).broken.insert(port, cure);
    }

    /// Its agent says so.
    pub fn service_reported(&mut self, name: &str, port: u16) {
        let service = format!("s{port}").parse().expect("service");
        let report = AgentReport::ServiceDown { service, detail: "its process ended".into() };
        self.step(Event::Report { agent: agent(name), report });
    }

    /// The machine says that it goes down, releases, and goes; it comes back if it reboots.
    pub fn shut_down(&mut self, name: &str, reboots: bool) {
        let what = if reboots { "reboot" } else { "power-off" }.to_owned();
        self.step(Event::Report { agent: agent(name), report: AgentReport::GoingDown { machine: true, what } });
        self.run(300);
        self.server(name).up = false;
        if reboots {
            let at = self.now + self.servers[&agent(name)].reboot_time;
            self.later(at, Due::Boot(agent(name)));
        }
    }

    pub fn mode(&self, name: &str) -> String {
        let view = self.core.target(&target(name)).expect("target");
        if view.step.is_empty() { view.mode.to_owned() } else { format!("{}/{}", view.mode, view.step) }
    }

    /// Do clients get an answer?
    pub fn served(&self, vip: Vip, port: u16) -> bool {
        let Some((holder, _)) = self.held.get(&vip) else { return false };
        let server = &self.servers[holder];
        if !server.up || server.cut {
            return false;
        }
        match self.epochs[&vip].domain.as_ref().filter(|_| holder.as_str() == "mgmt") {
            Some(domain) => self.double_runs.get(domain.as_str()).copied().unwrap_or(false),
            None => !server.broken.contains_key(&port),
        }
    }

    /// Go on until this holds; how long it took.
    pub fn until(&mut self, limit: Ms, what: &str, holds: impl Fn(&World) -> bool) -> Ms {
        let began = self.now;
        while !holds(self) {
            assert!(self.now - began < limit, "{what}: not within {limit} ms; {}", self.tail());
            self.advance(began + limit);
        }
        self.now - began
    }

    /// Let time go by.
    pub fn run(&mut self, duration: Ms) {
        let end = self.now + duration;
        while self.now < end {
            self.advance(end);
        }
    }

    fn tail(&self) -> String {
        let notes: Vec<String> =
            self.log.iter().rev().take(25).rev().map(|(at, action)| format!("{at} {action:?}")).collect();
        notes.join("\n")
    }

    /// Notes of that kind, with their time.
    pub fn notes(&self, kind: &str) -> Vec<(Ms, String)> {
        let note = |(at, action): &(Ms, Action)| match action {
            Action::Note(note) if note.kind == kind => Some((*at, note.text.clone())),
            _ => None,
        };
        self.log.iter().filter_map(note).collect()
    }

    pub fn commands(&self, wanted: impl Fn(&AgentCommand) -> bool) -> usize {
        let count = |(_, action): &&(Ms, Action)| matches!(action, Action::Command { command, .. } if wanted(command));
        self.log.iter().filter(count).count()
    }

    /// To the next thing that happens, but not beyond `end`.
    fn advance(&mut self, end: Ms) {
        let asks = self.servers.values().filter(|server| speaks(server)).map(|server| server.next_ask).min();
        let due = self.due.keys().next().map(|(at, _)| *at);
        let deadline = self.core.deadline().map(|(at, _)| at.as_nanos().div_ceil(1_000_000).max(self.now + 1));
        let next = [asks, due, deadline, Some(end)].into_iter().flatten().min().unwrap_or(end);
        self.now = next.max(self.now);
        if due.is_some_and(|due| due <= self.now) {
            let (_, due) = self.due.pop_first().expect("there is one");
            return self.happen(due);
        }
        if asks.is_some_and(|asks| asks <= self.now) {
            return self.ask();
        }
        if deadline.is_some_and(|deadline| deadline <= self.now) {
            self.step(Event::Tick);
        }
    }

    fn ask(&mut self) {
        let renewal = u64::try_from(self.core.cluster().timing.renewal.as_millis()).expect("short");
        let now = self.now;
        let names: Vec<AgentId> =
            self.servers.iter().filter(|(_, s)| speaks(s) && s.next_ask <= now).map(|(name, _)| name.clone()).collect();
        for name in names {
            let server = self.servers.get_mut(&name).expect("server");
            server.nonce += 1;
            server.next_ask = now + renewal;
            let nonce = server.nonce;
            let vips = self
                .held
                .iter()
                .filter(|(_, (holder, _))| *holder == name)
                .map(|(vip, (_, epoch))| AskVip { vip: *vip, epoch: *epoch })
                .collect();
            self.step(Event::Ask {
                agent: name,
                session: SessionId(1),
                via: None,
                incarnation: 1,
                nonce: Nonce(nonce),
                heard: Nonce(nonce - 1),
                vips,
                long: false,
                long_surrendered: true,
            });
        }
    }

    /// The journal's snapshot of now.
    pub fn snapshot(&mut self, because: journal::Because) {
        let now = Time::from_millis(self.now);
        let head = journal::Head { unix_ms: HEAD.unix_ms + self.now, ..HEAD.clone() };
        let line = journal::snapshot_line(self.events, now, &head, because, &self.core).expect("snapshot");
        self.journal.as_mut().expect("journal").push(String::from_utf8(line).expect("text"));
    }

    pub fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        let now = Time::from_millis(self.now);
        self.events += 1;
        let line = self.journal.is_some().then(|| journal::event_line(self.events, now, &event).expect("event"));
        self.core.step(now, event, &mut actions);
        if let (Some(journal), Some(mut line)) = (&mut self.journal, line) {
            journal::add_actions::<Coordinator>(&mut line, &actions).expect("actions");
            line.push(b'}');
            journal.push(String::from_utf8(line).expect("text"));
        }
        for action in actions {
            self.log.push((self.now, action.clone()));
            self.act(action);
        }
    }

    fn later(&mut self, at: Ms, due: Due) {
        self.seq += 1;
        self.due.insert((at, self.seq), due);
    }

    fn ends(&mut self, after: Ms, job: JobId, result: JobResult) {
        self.later(self.now + after, Due::Event(Event::Job { job, result }));
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Event(event) => self.step(event),
            Due::Boot(name) => {
                let server = self.servers.get_mut(&name).expect("server");
                server.up = true;
                server.next_ask = self.now;
                server.broken.retain(|_, cure| *cure == Cure::Nothing);
            }
            Due::Obey(job, name, command) => {
                let holds = matches!(command, AgentCommand::Hold { .. });
                let result = self.obey(&name, command);
                if holds && self.journal.is_some() {
                    // As an agent does: what it is told confers nothing, it asks (rule 1).
                    self.server(name.as_str()).next_ask = self.now;
                    self.ask();
                }
                self.step(Event::Job { job, result });
            }
        }
    }

    fn act(&mut self, action: Action) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).expect("short");
        let unknown = || JobResult::Unknown("no answer in time".into());
        match action {
            Action::AdvanceEpoch { job, vip, expected, owner, domain, cause, .. } => {
                let epoch = expected.next();
                self.epochs.insert(vip, VipRow { vip, epoch, owner, domain, cause, long_lease: false });
                let takes = self.sif_takes.get(&vip).copied().unwrap_or(10);
                self.ends(takes, job, JobResult::Epoch(epoch));
            }
            Action::Bar { job, .. } if self.voters_away => self.ends(1_000, job, unknown()),
            Action::Bar { job, .. } => self.ends(5, job, JobResult::Barred(Duration::from_secs(600))),
            Action::Command { job, agent, command, timeout } => {
                if speaks(&self.servers[&agent]) {
                    let takes = match &command {
                        AgentCommand::RestartService { .. } => self.servers[&agent].restart_time,
                        AgentCommand::ResumeVm { .. } => 100,
                        AgentCommand::ProbeVip { .. } => 150,
                        _ => 5,
                    };
                    self.later(self.now + takes, Due::Obey(job, agent, command));
                } else {
                    self.ends(ms(timeout), job, unknown());
                }
            }
            Action::Ping { job, .. } | Action::Probe { job, .. } if self.nobody_looks => {
                self.ends(300, job, JobResult::Unknown("no answer".into()));
            }
            Action::Ping { job, address, timeout, .. } => {
                let holder = self.held.iter().find(|(vip, _)| vip.address() == address).map(|(_, (holder, _))| holder);
                let server = holder.map_or_else(|| self.at(address), |holder| &self.servers[holder]);
                if server.up && !server.cut && !server.mute {
                    self.ends(1, job, JobResult::Check(CheckOutcome::Ok));
                } else {
                    self.ends(ms(timeout), job, JobResult::Check(CheckOutcome::Ng("no echo".into())));
                }
            }
            Action::Probe { job, address, port, limits, .. } => {
                let vip = self.held.keys().copied().find(|vip| vip.address() == address);
                let here = vip.map_or_else(|| self.at(address), |vip| &self.servers[&self.held[&vip].0]);
                let reached = here.up && !here.cut;
                let good = match vip {
                    Some(vip) => self.served(vip, port),
                    None => !here.broken.contains_key(&port),
                };
                let (takes, result) = match (reached, good) {
                    (true, true) => (3, CheckOutcome::Ok),
                    (true, false) => (1, CheckOutcome::Ng("connection refused".into())),
                    (false, _) => (ms(limits.connecting()), CheckOutcome::Ng("no reply".into())),
                };
                self.ends(takes, job, JobResult::Check(result));
            }
            Action::ReadPower { job, agent, .. } => {
                let off = !self.servers[&agent].up;
                self.ends(30, job, if off { JobResult::Done } else { JobResult::Failed("it says on".into()) });
            }
            Action::RenewTerm { term } => {
                let sent = Time::from_millis(self.now);
                self.later(self.now + 3, Due::Event(Event::TermRenewed { term, sent, length: TERM }));
            }
            Action::PowerOff { job, agent, .. } => {
                if self.power_off_works {
                    self.servers.get_mut(&agent).expect("server").up = false;
                }
                let failed = JobResult::Failed("status 1".into());
                self.ends(50, job, if self.power_off_works { JobResult::Done } else { failed });
            }
            Action::FenceStorage { job, .. } => {
                let failed = JobResult::Failed("status 1".into());
                self.ends(50, job, if self.fence_works { JobResult::Done } else { failed });
            }
            Action::SetLongLease { job, .. }
            | Action::PutArrangement { job, .. }
            | Action::FunctionRestored { job, .. }
            | Action::TargetVerdict { job, .. }
            | Action::PutClaims { job, .. }
            | Action::MovedTo { job, .. } => self.ends(5, job, JobResult::Done),
            _ => {}
        }
    }

    fn at(&self, address: IpAddr) -> &Server {
        let machine = self.core.cluster().agents.iter().find(|(_, machine)| machine.address.ip() == address);
        let name = machine.map_or_else(|| panic!("nobody at {address}"), |(name, _)| name);
        &self.servers[name]
    }

    fn obey(&mut self, name: &AgentId, command: AgentCommand) -> JobResult {
        match command {
            AgentCommand::Hold { ask, .. } => {
                self.held.insert(ask.vip, (name.clone(), ask.epoch));
            }
            AgentCommand::Release { ask } => {
                if self.held.get(&ask.vip).is_some_and(|(holder, _)| holder == name) {
                    self.held.remove(&ask.vip);
                }
            }
            AgentCommand::ResumeVm { domain } => {
                self.double_runs.insert(domain.to_string(), true);
            }
            AgentCommand::PauseVm { domain } => {
                self.double_runs.insert(domain.to_string(), false);
            }
            AgentCommand::RestartService { service } => {
                let port: u16 = service.as_str()[1..].parse().expect("port");
                let broken = &mut self.servers.get_mut(name).expect("server").broken;
                if broken.get(&port) == Some(&Cure::Restart) {
                    broken.remove(&port);
                }
            }
            AgentCommand::Reboot => {
                let server = self.servers.get_mut(name).expect("server");
                if let Some(left) = server.deaf_to_reboot.checked_sub(1) {
                    server.deaf_to_reboot = left;
                    return JobResult::Failed("http2 error: keep-alive timed out".into());
                }
                server.up = false;
                let at = self.now + server.reboot_time;
                self.later(at, Due::Boot(name.clone()));
            }
            AgentCommand::Wake { mac } => {
                let machine = self.core.cluster().agents.iter().find(|(_, m)| m.mac.as_deref() == Some(&mac));
                let woken = machine.expect("a known mac").0.clone();
                let server = &self.servers[&woken];
                let booting = self.due.values().any(|due| matches!(due, Due::Boot(name) if *name == woken));
                if !server.up && server.wakes && !booting {
                    self.later(self.now + server.start_time, Due::Boot(woken));
                }
            }
            AgentCommand::ProbeVip { .. } => return JobResult::Answered(None),
            AgentCommand::StartVm { domain } => {
                self.double_runs.insert(domain.to_string(), true);
            }
            AgentCommand::DestroyVm { domain } => {
                self.double_runs.insert(domain.to_string(), false);
            }
            AgentCommand::Prepare { .. }
            | AgentCommand::RebootVm { .. }
            | AgentCommand::MigrateVm { .. }
            | AgentCommand::FindVm { .. } => {}
        }
        JobResult::Done
    }
}

fn speaks(server: &Server) -> bool {
    server.up && !server.cut && !server.agent_dead
}
