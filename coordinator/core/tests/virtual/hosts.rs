//! Real servers with virtual servers on them, in virtual time, and SIF's own rules for the shared tables.

use kage_coordinator_core::{
    Action, AgentCommand, AgentReport, Cause, CheckOutcome, Coordinator, Event, JobId, JobResult, SessionId, VipRow,
    config::Cluster,
};
use kage_sif_core as sif;
use kage_types::{AgentId, AskVip, DomainName, Epoch, Nonce, Step, StepState, Tables, TargetName, Term, Time, Vip};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub type Ms = u64;

const BOOT: Ms = 5_000;
const MIGRATION: Ms = 3_000;
const TERM: Duration = Duration::from_secs(5);

pub fn n<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> T {
    name.parse().unwrap()
}

pub fn vip(last: u8) -> Vip {
    n(&format!("10.0.0.{last}"))
}

/// mail1 on rs1 with 111 and 112, mail2 on rs2 with 113, their backup server mailb on mgmt, an idle rs3; three voters.
/// With guests, an agent inside each virtual server, named as it is with a g.
pub fn config(guests: bool) -> String {
    let mut text = "[cluster]\nname = \"t\"\nprofile = \"fast\"\n[coordinator]\nlisten = \"10.0.0.2:7700\"\n[sif]\n\
                    listen = \"10.0.0.2:7701\"\n"
        .to_owned();
    for (name, last) in [("mgmt", 2), ("rs1", 11), ("rs2", 12), ("rs3", 13)] {
        text += &format!("[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{last}:7702\"\nguard = \"tap\"\n");
    }
    for (name, last) in [("mail1g", 61), ("mail2g", 62)].into_iter().filter(|_| guests) {
        text += &format!("[[agent]]\nname = \"{name}\"\naddress = \"10.0.0.{last}:7702\"\nguard = \"none\"\n");
    }
    for last in 21..24 {
        text += &format!("[[agent]]\nname = \"v{last}\"\naddress = \"10.0.0.{last}:7702\"\nvoter = true\n");
    }
    for (name, host, vips, last) in
        [("mail1", "rs1", "\"10.0.0.111\", \"10.0.0.112\"", 61), ("mail2", "rs2", "\"10.0.0.113\"", 62)]
    {
        let guest = if guests { format!("agent = \"{name}g\"\n") } else { String::new() };
        text += &format!(
            "[[target]]\nname = \"{name}\"\nvm = {{ domain = \"{name}\", host = \"{host}\" }}\n{guest}\
             address = \"10.0.0.{last}\"\nvips = [{vips}]\nbackup = {{ agent = \"mgmt\", domain = \"mailb\" }}\n\
             healthy_for = \"1s\"\nreboot_wait = \"10s\"\nstart_wait = \"20s\"\n\
             [[target.service]]\nname = \"smtp\"\nprobe = \"tcp\"\nport = 25\n"
        );
    }
    text
}

enum Due {
    Event(Event),
    Obey(JobId, AgentId, AgentCommand),
    Switch(JobId, DomainName),
}

pub struct Hosts {
    pub core: Coordinator,
    pub now: Ms,
    pub sif: sif::Core,
    requests: u64,
    /// Real servers and voters that are off.
    pub off: BTreeSet<AgentId>,
    /// On, and their agents are not heard, nor hear.
    pub cut: BTreeSet<AgentId>,
    /// Where each domain runs or is paused, and since when it answers; never in two at once.
    pub domains: BTreeMap<DomainName, (AgentId, bool, Ms)>,
    /// Their services are down until they are reset.
    pub sick: BTreeSet<DomainName>,
    /// Unless these services of theirs are restarted, and the number of restarts that fail before.
    pub curable: BTreeMap<DomainName, u32>,
    /// Their starts do not help.
    pub broken: BTreeSet<DomainName>,
    pub held: BTreeMap<Vip, (AgentId, Option<DomainName>, Epoch)>,
    pub epochs: BTreeMap<Vip, VipRow>,
    /// Virtual IPs whose epochs take two seconds.
    pub slow: BTreeSet<Vip>,
    /// Given up, and why.
    pub troubles: BTreeMap<TargetName, String>,
    /// Live migrations that the coordinator asked for: from, to.
    pub migrations: BTreeMap<DomainName, (AgentId, AgentId)>,
    /// Ports of services of theirs that are down, until each is restarted.
    pub deaf: BTreeSet<(DomainName, u16)>,
    /// Agents inside that can't restart anything.
    pub refuses: BTreeSet<AgentId>,
    /// Why the next ones are refused.
    pub refusal: Option<String>,
    /// Neither the switch-over nor the end of a live migration is heard of.
    pub unseen: bool,
    /// SIF does not hear what it is told for the shared tables.
    pub signals_lost: bool,
    pub log: Vec<(Ms, Action)>,
    due: BTreeMap<(Ms, u64), Due>,
    seq: u64,
    nonces: BTreeMap<AgentId, u64>,
}

impl Hosts {
    pub fn new() -> Self {
        Self::with(&config(false))
    }

    /// All at home and served; the first wait of the term is over.
    pub fn with(config: &str) -> Self {
        let cluster = Cluster::parse(config).unwrap_or_else(|error| panic!("{error}"));
        let at_home = |target: &kage_coordinator_core::config::Target| (target.agent.clone(), true, 0);
        let domains = cluster.targets.values().map(|target| (target.domain().unwrap().clone(), at_home(target)));
        let further = cluster.targets.values().filter_map(|target| target.backup.further.as_ref());
        let further = further.map(|further| (further.domain.clone(), (further.agent.clone(), false, 0)));
        let domains = domains.chain([(n("mailb"), (n("mgmt"), false, 0))]).chain(further).collect();
        let row = |(vip, target): (Vip, &TargetName)| VipRow {
            vip,
            epoch: Epoch(1),
            owner: cluster.targets[target].agent.clone(),
            domain: cluster.targets[target].domain().cloned(),
            cause: Cause::First,
            long_lease: false,
        };
        let epochs: BTreeMap<Vip, VipRow> = cluster.vips().map(|each| (each.0, row(each))).collect();
        let held = epochs.iter().map(|(vip, row)| (*vip, (row.owner.clone(), row.domain.clone(), row.epoch))).collect();
        let agent: AgentId = n("a");
        let ledger = sif::Core::new(sif::Ledger::default(), sif::Electorate::new([(agent.clone(), true)]));
        let mut hosts = Self {
            core: Coordinator::new(Time::ZERO, cluster),
            now: 1,
            sif: ledger,
            requests: 0,
            off: BTreeSet::new(),
            cut: BTreeSet::new(),
            domains,
            sick: BTreeSet::new(),
            curable: BTreeMap::new(),
            broken: BTreeSet::new(),
            held,
            epochs,
            slow: BTreeSet::new(),
            troubles: BTreeMap::new(),
            migrations: BTreeMap::new(),
            deaf: BTreeSet::new(),
            refuses: BTreeSet::new(),
            refusal: None,
            unseen: false,
            signals_lost: false,
            log: Vec::new(),
            due: BTreeMap::new(),
            seq: 0,
            nonces: BTreeMap::new(),
        };
        let report = sif::Request::ReportVoter { reporter: agent, report: sif::Report::default() };
        hosts.ask_sif(report).unwrap();
        hosts.ask_sif(sif::Request::AcquireTerm { coordinator: "c".to_owned() }).unwrap();
        let agents: Vec<AgentId> = hosts.core.cluster().agents.keys().cloned().collect();
        for (index, agent) in (1..).zip(agents) {
            hosts.step(Event::AgentUp { agent, session: SessionId(index), incarnation: 1 });
        }
        hosts.term(1);
        hosts.run(20_000);
        hosts.log.clear();
        hosts
    }

    fn term(&mut self, term: u64) {
        let tables = Box::new(self.tables().clone());
        self.step(Event::TroublesRead { down: self.troubles.clone().into_iter().collect() });
        self.step(Event::TablesRead { tables });
        let (sent, length) = (Time::from_millis(self.now), TERM);
        let rows = self.epochs.values().cloned().collect();
        self.step(Event::TermAcquired { term: Term(term), sent, length, rows });
    }

    /// Another coordinator process, that knows what SIF knows.
    pub fn new_coordinator(&mut self) {
        let cluster = self.core.cluster().clone();
        self.restart(cluster);
    }

    /// The same with another configuration.
    pub fn restart_with(&mut self, config: &str) {
        self.restart(Cluster::parse(config).unwrap_or_else(|error| panic!("{error}")));
    }

    fn restart(&mut self, cluster: Cluster) {
        self.core = Coordinator::new(Time::from_millis(self.now), cluster);
        self.due.retain(|_, due| matches!(due, Due::Obey(..) | Due::Switch(..)));
        self.term(1);
    }

    pub fn tables(&self) -> &Tables {
        &self.sif.ledger().shared.tables
    }

    fn ask_sif(&mut self, request: sif::Request) -> Result<sif::Reply, sif::Refusal> {
        self.requests += 1;
        let id = sif::RequestId(self.requests);
        let mut actions = Vec::new();
        self.sif.step(sif::Event::Request { id, request }, &mut actions);
        let commit = |action: &sif::Action| match action {
            sif::Action::Persist { commit, .. } => Some(*commit),
            _ => None,
        };
        for commit in actions.iter().filter_map(commit).collect::<Vec<_>>() {
            self.sif.step(sif::Event::Persisted { commit }, &mut actions);
        }
        let answer = |action| match action {
            sif::Action::Reply { id: answered, result } if answered == id => Some(result),
            _ => None,
        };
        actions.into_iter().find_map(answer).unwrap()
    }

    /// Somebody tells SIF; who watches sees it a little later.
    pub fn signal(&mut self, signal: sif::Signal) -> Result<sif::Reply, sif::Refusal> {
        let answer = self.ask_sif(sif::Request::Signal(signal));
        let tables = Box::new(self.tables().clone());
        self.later(self.now + 20, Due::Event(Event::TablesRead { tables }));
        answer
    }

    /// Power saving begins to move a virtual server; the transition's id.
    pub fn migrate(&mut self, vm: &str, from: &str, to: &str) -> u64 {
        self.transition(Step::Migrate { vm: n(vm), from: n(from), to: n(to) })
    }

    /// Power saving puts a virtual IP on another virtual server.
    pub fn put(&mut self, last: u8, from: &str, to: &str) {
        let id = self.transition(Step::MoveVip { vip: vip(last), from: n(from), to: n(to) });
        self.migration(id, StepState::Done);
    }

    fn transition(&mut self, step: Step) -> u64 {
        let generation = self.tables().revision;
        let (by, plan, groups) = ("pss".to_owned(), String::new(), BTreeMap::new());
        let begin = sif::Signal::BeginTransition { generation, by, plan, steps: vec![step], groups };
        self.signal(begin).unwrap();
        let id = self.tables().transition.as_ref().unwrap().id;
        self.migration(id, StepState::Begun);
        id
    }

    pub fn migration(&mut self, id: u64, state: StepState) {
        let by = "pss".to_owned();
        let word = sif::Signal::PutStep { id, by: by.clone(), index: 0, state, took_ms: None, now_unix_ms: 1 };
        self.signal(word).unwrap();
        if [StepState::Done, StepState::Undone].contains(&state) {
            let (committed, why) = (state == StepState::Done, String::new());
            let end = sif::Signal::EndTransition { id, by, committed, state: BTreeMap::new(), why };
            self.signal(end).unwrap();
        }
        self.run(50);
    }

    /// It ends the transition without a word on its step.
    pub fn give_up(&mut self, id: u64) {
        let (by, state) = ("pss".to_owned(), BTreeMap::new());
        self.signal(sif::Signal::EndTransition { id, by, committed: false, state, why: String::new() }).unwrap();
        self.run(50);
    }

    /// It has looked at both hosts.
    pub fn found(&mut self, vm: &str, host: &str, not_on: &str) {
        let not_on = [n(not_on)].into();
        self.signal(sif::Signal::Found { by: "pss".to_owned(), vm: n(vm), host: n(host), not_on }).unwrap();
    }

    /// A live migration from begin to end, virtual IPs with it.
    pub fn live(&mut self, vm: &str, from: &str, to: &str) {
        let id = self.migrate(vm, from, to);
        self.domains.get_mut(&n::<DomainName>(vm)).unwrap().0 = n(to);
        let left: Vec<(Vip, Epoch)> = self.held_by(vm);
        for (vip, epoch) in left {
            self.held.remove(&vip);
            let report = AgentReport::Lost { ask: AskVip { vip, epoch }, reason: format!("switched over to {to}") };
            self.step(Event::Report { agent: n(from), report });
        }
        self.run(500);
        self.migration(id, StepState::Done);
        self.run(500);
        self.log.clear();
    }

    /// A live migration that the coordinator asked for ends: it is there, if both hosts live and it does.
    fn switch(&mut self, job: JobId, domain: &DomainName) {
        let Some((from, to)) = self.migrations.remove(domain) else {
            return self.ended(job, JobResult::Failed("the live migration failed".into()));
        };
        let there = self.domains.get(domain).is_some_and(|(at, ..)| *at == from);
        let off = [&from, &to].into_iter().any(|host| self.off.contains(host));
        if !there || off {
            return self.ended(job, JobResult::Failed("the live migration failed".into()));
        }
        self.domains.get_mut(domain).unwrap().0 = to.clone();
        for (vip, epoch) in self.held_by(domain.as_str()) {
            self.held.remove(&vip);
            if !self.unseen && self.speaks(&from) {
                let report = AgentReport::Lost { ask: AskVip { vip, epoch }, reason: format!("switched over to {to}") };
                self.step(Event::Report { agent: from.clone(), report });
            }
        }
        self.ended(job, JobResult::Done);
    }

    fn ended(&mut self, job: JobId, result: JobResult) {
        if !self.unseen {
            self.step(Event::Job { job, result });
        }
    }

    pub fn held_by(&self, vm: &str) -> Vec<(Vip, Epoch)> {
        let by = |(_, (_, domain, _)): &(&Vip, &(AgentId, Option<DomainName>, Epoch))| {
            domain.as_ref().is_some_and(|domain| domain.as_str() == vm)
        };
        self.held.iter().filter(by).map(|(vip, (_, _, epoch))| (*vip, *epoch)).collect()
    }

    /// `domain@host` of who holds it.
    pub fn holder(&self, last: u8) -> String {
        self.held.get(&vip(last)).map_or_else(String::new, |(host, domain, _)| {
            format!("{}@{host}", domain.as_ref().map_or("-", |domain| domain.as_str()))
        })
    }

    /// `vm@host` of a place in operation.
    pub fn place(&self, place: &str) -> String {
        self.tables()
            .operation
            .get(&n::<DomainName>(place))
            .map_or_else(String::new, |row| format!("{}@{}", row.vm, row.host))
    }

    /// The process of a virtual server ends; its host's agent says so if it is asked to.
    pub fn crash(&mut self, domain: &str, told: bool) {
        let (host, ..) = self.domains.remove(&n::<DomainName>(domain)).unwrap();
        self.migrations.remove(&n::<DomainName>(domain));
        self.held.retain(|_, (_, of, _)| of.as_ref().is_none_or(|of| of.as_str() != domain));
        if told {
            let report = AgentReport::VmCrashed { domain: n(domain), detail: "its process ended".into() };
            self.step(Event::Report { agent: host, report });
        }
    }

    /// It runs, and neither answers nor hears.
    pub fn hang(&mut self, domain: &str) {
        self.domains.get_mut(&n::<DomainName>(domain)).unwrap().2 = u64::MAX;
    }

    /// A real server loses its power, and with it all that runs there.
    pub fn power_lost(&mut self, host: &str) {
        self.off.insert(n(host));
        self.domains.retain(|_, (at, ..)| at.as_str() != host);
    }

    pub fn mode(&self, name: &str) -> String {
        let view = self.core.target(&n(name)).unwrap();
        if view.step.is_empty() { view.mode.to_owned() } else { format!("{}/{}", view.mode, view.step) }
    }

    pub fn notes(&self, kind: &str) -> Vec<String> {
        let note = |(_, action): &(Ms, Action)| match action {
            Action::Note(note) if note.kind == kind => Some(note.text.clone()),
            _ => None,
        };
        self.log.iter().filter_map(note).collect()
    }

    /// Was one of these given?
    pub fn commands(&self, wanted: impl Fn(&AgentCommand) -> bool) -> bool {
        let is = |(_, action): &(Ms, Action)| matches!(action, Action::Command { command, .. } if wanted(command));
        self.log.iter().any(is)
    }

    /// `host: command` of starts, resets, plugs pulled.
    pub fn orders(&self) -> Vec<String> {
        let order = |(_, action): &(Ms, Action)| match action {
            Action::Command { agent, command, .. } => match command {
                AgentCommand::StartVm { domain } => Some(format!("{agent}: start {domain}")),
                AgentCommand::RebootVm { domain, .. } => Some(format!("{agent}: reset {domain}")),
                AgentCommand::DestroyVm { domain } => Some(format!("{agent}: destroy {domain}")),
                AgentCommand::MigrateVm { domain, to } => Some(format!("{agent}: migrate to {to} {domain}")),
                AgentCommand::ResumeVm { domain } => Some(format!("{agent}: resume {domain}")),
                AgentCommand::PauseVm { domain } => Some(format!("{agent}: pause {domain}")),
                AgentCommand::RestartService { service } => Some(format!("{agent}: restart {service}")),
                _ => None,
            },
            _ => None,
        };
        let mut orders: Vec<String> = self.log.iter().filter_map(order).collect();
        // One for each virtual IP.
        orders.dedup();
        orders
    }

    /// When the first order of these was given.
    pub fn time_of(&self, wanted: &str) -> Ms {
        let is = |(_, action): &&(Ms, Action)| match action {
            Action::Command { command: AgentCommand::RestartService { .. }, .. } => wanted == "restart",
            Action::Command { command: AgentCommand::RebootVm { .. }, .. } => wanted == "reset",
            _ => false,
        };
        self.log.iter().find(is).unwrap().0
    }

    pub fn orders_about(&self, domain: &str) -> Vec<String> {
        self.orders().into_iter().filter(|order| order.ends_with(domain)).collect()
    }

    /// What SIF was told.
    pub fn signals(&self) -> Vec<String> {
        let signal = |(_, action): &(Ms, Action)| match action {
            Action::FunctionRestored { place, backup, host, .. } => Some(format!("A4 {place}: {backup}@{host}")),
            Action::TargetVerdict { place, recovered, host, .. } => {
                Some(format!("A5 {place}: {}@{host}", if *recovered { "recovered" } else { "down" }))
            }
            Action::MovedTo { vm, host, not_on, .. } => {
                let not_on: Vec<String> = not_on.iter().map(|host| format!(", not on {host}")).collect();
                Some(format!("moved {vm}@{host}{}", not_on.concat()))
            }
            Action::PutClaims { target, claims, .. } => {
                let claims: Vec<String> = claims.iter().map(ToString::to_string).collect();
                Some(format!("claims of {target}: {}", claims.join(", ")))
            }
            _ => None,
        };
        self.log.iter().filter_map(signal).collect()
    }

    pub fn until(&mut self, limit: Ms, what: &str, holds: impl Fn(&Hosts) -> bool) -> Ms {
        let began = self.now;
        while !holds(self) {
            assert!(self.now - began < limit, "{what}: not within {limit} ms\n{}", self.tail());
            self.advance();
        }
        self.now - began
    }

    pub fn run(&mut self, duration: Ms) {
        let end = self.now + duration;
        while self.now < end {
            self.advance();
        }
    }

    pub fn tail(&self) -> String {
        let of_interest = |(_, action): &&(Ms, Action)| {
            !matches!(
                action,
                Action::Reply { .. } | Action::Ping { .. } | Action::Probe { .. } | Action::RenewTerm { .. }
            )
        };
        let mut last: Vec<String> =
            self.log.iter().rev().filter(of_interest).take(30).map(|(at, action)| format!("{at} {action:?}")).collect();
        last.reverse();
        format!(
            "mail1 {}, mail2 {}: {:?}; held {:?}; claims {:?}\n{}",
            self.mode("mail1"),
            self.mode("mail2"),
            self.core.target(&n("mail1")).map(|view| view.detail),
            self.held,
            self.tables().claims,
            last.join("\n")
        )
    }

    fn advance(&mut self) {
        self.now += 10;
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Due::Event(event) => self.step(event),
                Due::Obey(job, agent, command) => {
                    let result = self.obey(&agent, command);
                    self.step(Event::Job { job, result });
                }
                Due::Switch(job, domain) => self.switch(job, &domain),
            }
        }
        if self.now % 80 < 10 {
            for agent in self.core.cluster().agents.keys().cloned().collect::<Vec<_>>() {
                if self.speaks(&agent) {
                    self.ask(agent);
                }
            }
        }
        if self.core.deadline().is_some_and(|(at, _)| at <= Time::from_millis(self.now)) {
            self.step(Event::Tick);
        }
    }

    /// The machine, or the virtual server around this agent.
    fn speaks(&self, agent: &AgentId) -> bool {
        let guest = agent.as_str().strip_suffix('g').map(n::<DomainName>);
        match guest {
            Some(domain) => self.answers(&domain),
            None => !self.off.contains(agent) && !self.cut.contains(agent),
        }
    }

    fn answers(&self, domain: &DomainName) -> bool {
        self.domains.get(domain).is_some_and(|(host, runs, since)| {
            *runs && self.now >= *since && !self.off.contains(host) && !self.cut.contains(host)
        })
    }

    fn ask(&mut self, agent: AgentId) {
        let nonce = self.nonces.entry(agent.clone()).or_default();
        *nonce += 1;
        let nonce = *nonce;
        let held = self.held.iter().filter(|(_, (host, ..))| *host == agent);
        let vips = held.map(|(vip, (_, _, epoch))| AskVip { vip: *vip, epoch: *epoch }).collect();
        self.step(Event::Ask {
            agent,
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

    pub fn step(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.core.step(Time::from_millis(self.now), event, &mut actions);
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

    fn told(&mut self, job: JobId, signal: sif::Signal) {
        if self.signals_lost {
            return self.ends(100, job, JobResult::Unknown("SIF does not answer".into()));
        }
        let result = match self.signal(signal) {
            Ok(_) => JobResult::Done,
            Err(refused) => JobResult::Failed(refused.to_string()),
        };
        self.ends(10, job, result);
    }

    fn act(&mut self, action: Action) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
        let term = Term(1);
        match action {
            Action::AdvanceEpoch { job, vip, expected, owner, domain, cause, .. } => {
                let epoch = expected.next();
                self.epochs.insert(vip, VipRow { vip, epoch, owner, domain, cause, long_lease: false });
                let takes = if self.slow.contains(&vip) { 2_000 } else { 10 };
                self.ends(takes, job, JobResult::Epoch(epoch));
            }
            Action::Bar { job, .. } => self.ends(10, job, JobResult::Barred(Duration::from_secs(600))),
            Action::Command { job, agent, command: AgentCommand::MigrateVm { domain, to }, timeout } => {
                if !self.speaks(&agent) {
                    return self.ends(ms(timeout), job, JobResult::Unknown("no answer in time".into()));
                }
                if let Some(why) = self.refusal.clone() {
                    return self.ends(500, job, JobResult::Failed(why));
                }
                self.migrations.insert(domain.clone(), (agent, to));
                self.later(self.now + MIGRATION, Due::Switch(job, domain));
                self.ends(ms(timeout), job, JobResult::Unknown("no answer in time".into()));
            }
            Action::Command { job, agent, command, timeout } => {
                if self.speaks(&agent) {
                    // One after another, as libvirt does them.
                    let runs = matches!(command, AgentCommand::ResumeVm { .. } | AgentCommand::PauseVm { .. });
                    let takes = if runs { 100 } else { 10 };
                    self.later(self.now + takes, Due::Obey(job, agent, command));
                } else {
                    self.ends(ms(timeout), job, JobResult::Unknown("no answer in time".into()));
                }
            }
            Action::Ping { job, address, timeout, .. } => {
                let who = self.at(address);
                let good = who.is_some_and(|domain| self.answers(&domain));
                let ng = CheckOutcome::Ng("no echo".into());
                let (takes, outcome) = if good { (1, CheckOutcome::Ok) } else { (ms(timeout), ng) };
                self.ends(takes, job, JobResult::Check(outcome));
            }
            Action::Probe { job, address, port, limits, .. } => {
                let who = self.at(address);
                let (takes, outcome) = match who.filter(|domain| self.answers(domain)) {
                    Some(domain) if !self.sick.contains(&domain) && !self.deaf.contains(&(domain.clone(), port)) => {
                        (2, CheckOutcome::Ok)
                    }
                    Some(_) => (2, CheckOutcome::Ng("connection refused".into())),
                    None => (ms(limits.connecting()), CheckOutcome::Ng("no reply".into())),
                };
                self.ends(takes, job, JobResult::Check(outcome));
            }
            Action::PutArrangement { job, arrangement } => {
                let (operation, real_servers) = (arrangement.operation, ["mgmt", "rs1", "rs2", "rs3"].map(n).into());
                let groups = arrangement.groups;
                self.told(job, sif::Signal::PutArrangement { term, operation, real_servers, groups });
            }
            Action::FunctionRestored { job, place, backup, host } => {
                self.told(job, sif::Signal::FunctionRestored { term, place, backup, host });
            }
            Action::TargetVerdict { job, place, recovered, host } => {
                self.told(job, sif::Signal::TargetVerdict { term, place, recovered, host });
            }
            Action::PutClaims { job, target, why, claims } => {
                self.told(job, sif::Signal::PutClaims { term, by: target.to_string(), why, claims });
            }
            Action::MovedTo { job, vm, host, not_on } => {
                self.told(job, sif::Signal::MovedTo { term, vm, host, not_on });
            }
            Action::PutTrouble { target, stage, detail } if stage == "down" => {
                self.troubles.insert(target, detail);
            }
            Action::PutTrouble { target, .. } => {
                self.troubles.remove(&target);
            }
            Action::RenewTerm { term } => {
                let sent = Time::from_millis(self.now);
                self.later(self.now + 10, Due::Event(Event::TermRenewed { term, sent, length: TERM }));
            }
            Action::SetLongLease { job, .. } => self.ends(10, job, JobResult::Done),
            // As it was when it was asked for.
            Action::ReadPower { job, agent, .. } => {
                let off = self.off.contains(&agent);
                self.ends(300, job, if off { JobResult::Done } else { JobResult::Failed("on".into()) });
            }
            _ => {}
        }
    }

    /// Who answers there: a virtual server at its own address, or whoever holds the virtual IP.
    fn at(&self, address: std::net::IpAddr) -> Option<DomainName> {
        let held = self.held.iter().find(|(vip, _)| vip.address() == address);
        if let Some((_, (host, domain, _))) = held {
            let domain = domain.clone()?;
            return self.domains.get(&domain).is_some_and(|(at, ..)| at == host).then_some(domain);
        }
        let mut targets = self.core.cluster().targets.values();
        if let Some(double) = targets.clone().find(|target| target.backup.address == Some(address)) {
            return Some(double.backup.domain.clone());
        }
        targets.find(|target| target.address == address)?.domain().cloned()
    }

    fn start(&mut self, domain: DomainName, host: &AgentId, boot: Ms) {
        if let Some((at, ..)) = self.domains.get(&domain) {
            assert!(at == host, "{domain} would run on {at} and on {host}\n{}", self.tail());
        }
        let since = if self.broken.contains(&domain) { u64::MAX } else { self.now + boot };
        self.domains.insert(domain, (host.clone(), true, since));
    }

    fn obey(&mut self, host: &AgentId, command: AgentCommand) -> JobResult {
        match command {
            AgentCommand::Hold { ask, domain } => {
                let there = domain.as_ref().and_then(|domain| self.domains.get(domain));
                if there.is_none_or(|(at, runs, _)| at != host || !*runs) {
                    return JobResult::Failed("it does not run here".into());
                }
                self.held.insert(ask.vip, (host.clone(), domain, ask.epoch));
            }
            AgentCommand::Release { ask } => {
                self.held.retain(|vip, (at, ..)| *vip != ask.vip || at != host);
            }
            AgentCommand::ResumeVm { domain } => self.start(domain, host, 0),
            AgentCommand::PauseVm { domain } => {
                self.domains.insert(domain, (host.clone(), false, 0));
            }
            AgentCommand::StartVm { domain } => {
                let runs = self.domains.get(&domain).is_some_and(|(at, runs, _)| at == host && *runs);
                if !runs {
                    self.sick.remove(&domain);
                    self.start(domain, host, BOOT);
                }
            }
            AgentCommand::DestroyVm { domain } => {
                self.domains.retain(|name, (at, ..)| *name != domain || at != host);
            }
            AgentCommand::RebootVm { domain, .. } => {
                self.domains.retain(|name, (at, ..)| *name != domain || at != host);
                self.sick.remove(&domain);
                self.start(domain, host, BOOT);
            }
            AgentCommand::FindVm { domain } => {
                let here =
                    |at: &AgentId| at == host || self.migrations.get(&domain) == Some(&(at.clone(), host.clone()));
                if !self.domains.get(&domain).is_some_and(|(at, ..)| here(at)) {
                    return JobResult::Failed("it is not there".into());
                }
            }
            AgentCommand::RestartService { service } => {
                let services = self.core.cluster().targets.values().flat_map(|target| &target.services);
                let port = services.clone().find(|known| known.name == service).unwrap().port;
                let domain: DomainName = n(host.as_str().strip_suffix('g').unwrap());
                self.deaf.remove(&(domain.clone(), port));
                match self.curable.get_mut(&domain) {
                    Some(0) => {
                        self.curable.remove(&domain);
                        self.sick.remove(&domain);
                    }
                    Some(left) => *left -= 1,
                    None => {}
                }
                if self.refuses.contains(host) {
                    return JobResult::Failed("unit not found".into());
                }
            }
            AgentCommand::ProbeVip { .. } => return JobResult::Answered(None),
            _ => {}
        }
        JobResult::Done
    }
}
