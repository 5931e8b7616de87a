//! What agents do: ask, obey, tell. As the production agents do it, without what can go wrong inside one of them.

use super::world::{GUEST_BOOT, Held, LEASE, MIGRATION, Ms, Night, Power, RENEWAL, Run, WAY};
use kage_coordinator_core::{AgentCommand, AgentReport, Event, JobResult, SessionId};
use kage_types::{AgentId, AskVip, DomainName, Epoch, Grant, Nonce, Verdict, Vip};

/// From the end of a machine to the end of its stream, as its peer sees it.
const STREAM_DEAD: Ms = 3_000;
/// From the start of an agent's process to its first request.
const AGENT_START: Ms = 300;

/// Whoever wants to know how a command ended.
pub type Reply = Box<dyn FnOnce(&mut Night, JobResult)>;

fn failed(why: impl ToString) -> JobResult {
    JobResult::Failed(why.to_string())
}

impl Night {
    // ---- the process ----

    /// It starts, on a machine that is on.
    pub fn start_agent(&mut self, host: &AgentId) {
        let process = self.fresh();
        let Some(machine) = self.machines.get_mut(host).filter(|it| it.power == Power::On && it.agent.is_none()) else {
            return;
        };
        (machine.agent, machine.nonce, machine.heard) = (Some(process), 0, 0);
        self.say(format_args!("the agent of {host} starts"));
        self.stream_begins(host);
        let host = host.clone();
        self.after(AGENT_START, move |night| night.ask(&host));
    }

    /// It ends, and is started again after so long. What the kernel was told runs out.
    pub fn crash_agent(&mut self, host: &AgentId, length: Ms) {
        let Some(machine) = self.machines.get_mut(host) else { return };
        let boots = machine.boots;
        if machine.agent.take().is_none() {
            return;
        }
        self.say(format_args!("the agent of {host} crashes"));
        self.stream_ends(host);
        let host = host.clone();
        self.after(length, move |night| {
            if night.machines.get(&host).is_some_and(|machine| machine.boots == boots) {
                night.start_agent(&host);
            }
        });
    }

    pub(super) fn session(&self, host: &AgentId) -> SessionId {
        let machine = self.machines.get(host);
        SessionId(machine.and_then(|machine| machine.agent).unwrap_or(0))
    }

    pub(super) fn stream_begins(&mut self, host: &AgentId) {
        if self.answers(host) {
            let (session, host) = (self.session(host), host.clone());
            self.send_msbs(WAY, Event::AgentUp { agent: host, session, incarnation: session.0 });
        }
    }

    pub(super) fn stream_ends(&mut self, host: &AgentId) {
        let (session, host) = (self.session(host), host.clone());
        self.after(STREAM_DEAD, move |night| {
            if !night.answers(&host) {
                night.step_msbs(Event::AgentDown { agent: host, session });
            }
        });
    }

    fn report(&mut self, host: &AgentId, report: AgentReport) {
        if self.answers(host) {
            self.send_msbs(WAY, Event::Report { agent: host.clone(), report });
        }
    }

    // ---- leases ----

    /// Each R.
    pub(super) fn ask(&mut self, host: &AgentId) {
        let again = host.clone();
        let Some(process) = self.machines.get(host).and_then(|machine| machine.agent) else { return };
        self.after(RENEWAL, move |night| {
            if night.machines.get(&again).and_then(|machine| machine.agent) == Some(process) {
                night.ask(&again);
            }
        });
        self.ask_now(host);
    }

    fn ask_now(&mut self, host: &AgentId) {
        if !self.answers(host) {
            return;
        }
        let own = |(vip, held): (&Vip, &Vec<Held>)| {
            let held = held.iter().find(|held| held.host == *host)?;
            Some(AskVip { vip: *vip, epoch: held.epoch })
        };
        let vips: Vec<AskVip> = self.held.iter().filter_map(own).collect();
        let (session, sent) = (self.session(host), self.now);
        let Some(machine) = self.machines.get_mut(host) else { return };
        machine.nonce += 1;
        let (nonce, heard) = (Nonce(machine.nonce), Nonce(machine.heard));
        let agent = host.clone();
        let event = Event::Ask {
            agent,
            session,
            via: None,
            incarnation: session.0,
            nonce,
            heard,
            vips: vips.clone(),
            long: false,
            long_surrendered: true,
        };
        if self.in_authority() {
            self.send_msbs(WAY, event);
        } else {
            // A majority of voters, unless they were told not to.
            self.send_msbs(WAY, event);
            for ask in vips {
                if self.barred.get(&ask.vip).is_none_or(|floor| ask.epoch >= *floor) {
                    self.consented.insert(ask.vip, self.now);
                    self.renewed(host, ask, sent);
                }
            }
        }
    }

    /// The coordinator's answer.
    pub(super) fn granted(&mut self, session: SessionId, grant: &Grant) {
        let of = self.machines.iter().find(|(_, machine)| machine.agent == Some(session.0));
        let Some(host) = of.map(|(host, _)| host.clone()).filter(|host| self.answers(host)) else { return };
        if let Some(machine) = self.machines.get_mut(&host) {
            machine.heard = machine.heard.max(grant.nonce.0);
        }
        for item in &grant.items {
            let ask = AskVip { vip: item.vip, epoch: item.epoch };
            match item.verdict {
                Verdict::Granted => self.renewed(&host, ask, self.now.saturating_sub(2 * WAY)),
                Verdict::Wait => {}
                Verdict::Superseded => {
                    if self.let_go(&host, ask.vip, ask.epoch) {
                        self.report(&host, AgentReport::Lost { ask, reason: "superseded".into() });
                    }
                }
            }
        }
    }

    fn renewed(&mut self, host: &AgentId, ask: AskVip, sent: Ms) {
        let here = |held: &&mut Held| held.host == *host && held.epoch == ask.epoch;
        let domain = |held: &Held| held.domain.clone();
        let Some(held) = self.held.get_mut(&ask.vip).and_then(|held| held.iter_mut().find(here)) else { return };
        let (domain, opened) = (domain(held), held.until <= self.now);
        // What is suspended gets no element.
        let runs = domain.as_ref().is_none_or(|domain| {
            matches!(self.vms.get(domain).and_then(|places| places.get(host)), Some(Run::Runs(_)))
                || self.migrations.get(domain).is_some_and(|(_, to)| to == host)
        });
        if !runs {
            return;
        }
        held.until = held.until.max(sent + LEASE);
        if opened {
            self.say(format_args!("{host} opens {} at {}", ask.vip, ask.epoch));
            self.report(host, AgentReport::Opened(ask));
        }
    }

    /// No lease of this epoch or an earlier one any more.
    fn let_go(&mut self, host: &AgentId, vip: Vip, epoch: Epoch) -> bool {
        let Some(held) = self.held.get_mut(&vip) else { return false };
        let before = held.len();
        held.retain(|held| held.host != *host || held.epoch > epoch);
        let went = held.len() < before;
        if let Some(machine) = self.machines.get_mut(host) {
            let floor = machine.floors.entry(vip).or_insert(Epoch(0));
            *floor = (*floor).max(epoch.next());
        }
        went
    }

    /// Whatever a virtual server holds here, with the reason to be told.
    fn let_go_of_vm(&mut self, host: &AgentId, domain: &DomainName, reason: &str) {
        let of = |(vip, held): (&Vip, &Vec<Held>)| {
            let held = held.iter().find(|held| held.host == *host && held.domain.as_ref() == Some(domain))?;
            Some(AskVip { vip: *vip, epoch: held.epoch })
        };
        for ask in self.held.iter().filter_map(of).collect::<Vec<_>>() {
            self.let_go(host, ask.vip, ask.epoch);
            self.report(host, AgentReport::Lost { ask, reason: reason.to_owned() });
        }
    }

    /// The kernel has no element for a process that is gone.
    pub(super) fn vm_gone(&mut self, host: &AgentId, domain: &DomainName) {
        self.let_go_of_vm(host, domain, "its virtual server is gone");
        let report = AgentReport::VmCrashed { domain: domain.clone(), detail: "its process is gone".into() };
        self.report(host, report);
    }

    // ---- orders ----

    /// Do it; the answer comes when it is done, if the agent lives till then.
    pub(super) fn obey(&mut self, host: &AgentId, command: AgentCommand, reply: Reply) {
        if !self.answers(host) {
            return;
        }
        let process = self.machines.get(host).and_then(|machine| machine.agent);
        let (here, told) = (host.clone(), host.clone());
        let alive = move |night: &Night| {
            night.is_on(&here) && night.machines.get(&here).and_then(|machine| machine.agent) == process
        };
        // What it was told it does; only the answer needs the network.
        let reply: Reply = Box::new(move |night, result| {
            if night.answers(&told) {
                reply(night, result);
            }
        });
        let takes = match &command {
            AgentCommand::ResumeVm { .. } => 100,
            AgentCommand::StartVm { .. } | AgentCommand::DestroyVm { .. } | AgentCommand::RebootVm { .. } => 500,
            AgentCommand::ProbeVip { .. } => 150,
            AgentCommand::Hold { .. }
            | AgentCommand::Prepare { .. }
            | AgentCommand::Release { .. }
            | AgentCommand::PauseVm { .. }
            | AgentCommand::MigrateVm { .. }
            | AgentCommand::FindVm { .. }
            | AgentCommand::RestartService { .. }
            | AgentCommand::Reboot
            | AgentCommand::Wake { .. } => 5,
        };
        let host = host.clone();
        self.after(takes, move |night| {
            if alive(night) {
                night.do_it(
                    &host,
                    command,
                    Box::new(move |night, result| {
                        if alive(night) {
                            reply(night, result)
                        }
                    }),
                );
            }
        });
    }

    fn do_it(&mut self, host: &AgentId, command: AgentCommand, reply: Reply) {
        let result = match command {
            AgentCommand::Hold { ask, domain } => return self.hold(host, ask, domain, reply),
            AgentCommand::Release { ask } => {
                self.let_go(host, ask.vip, ask.epoch);
                JobResult::Done
            }
            AgentCommand::ProbeVip { .. } => JobResult::Answered(None),
            AgentCommand::ResumeVm { domain }
            | AgentCommand::StartVm { domain }
            | AgentCommand::RebootVm { domain, .. }
                if self.broken.contains(&domain) =>
            {
                failed("its disk is damaged")
            }
            // One that is off is started.
            AgentCommand::ResumeVm { domain } => match self.run_of(&domain, host) {
                Some(Run::Runs(_)) => JobResult::Done,
                Some(Run::Paused) => self.set(host, &domain, Run::Runs(self.now)),
                None => self.set(host, &domain, Run::Runs(self.now + GUEST_BOOT)),
            },
            AgentCommand::PauseVm { domain } => {
                self.let_go_of_vm(host, &domain, "released");
                match self.run_of(&domain, host) {
                    Some(_) => self.set(host, &domain, Run::Paused),
                    None => JobResult::Done,
                }
            }
            AgentCommand::StartVm { domain } => match self.run_of(&domain, host) {
                Some(Run::Runs(_)) => JobResult::Done,
                Some(Run::Paused) => self.set(host, &domain, Run::Runs(self.now)),
                None => self.set(host, &domain, Run::Runs(self.now + GUEST_BOOT)),
            },
            AgentCommand::DestroyVm { domain } => {
                self.let_go_of_vm(host, &domain, "released");
                self.say(format_args!("{domain} is off on {host}"));
                self.vms.entry(domain).or_default().remove(host);
                JobResult::Done
            }
            AgentCommand::RebootVm { domain, .. } => match self.run_of(&domain, host) {
                Some(_) => {
                    self.sick.remove(&domain);
                    self.set(host, &domain, Run::Runs(self.now + GUEST_BOOT))
                }
                None => failed("it is not there"),
            },
            AgentCommand::FindVm { domain } => {
                let arrives = self.migrations.get(&domain).is_some_and(|(_, to)| to == host);
                if self.run_of(&domain, host).is_some() || arrives {
                    JobResult::Done
                } else {
                    failed("it is not there")
                }
            }
            AgentCommand::MigrateVm { domain, to } => return self.migrate(host, &domain, &to, reply),
            AgentCommand::Wake { mac } => {
                let named = self.cluster.agents.iter().find(|(_, machine)| machine.mac.as_ref() == Some(&mac));
                if let Some(woken) = named.map(|(name, _)| name.clone()) {
                    self.packet(&woken);
                }
                JobResult::Done
            }
            AgentCommand::RestartService { service } => {
                if let Some(domain) = self.around(host).cloned() {
                    self.say(format_args!("{service} in {domain} is restarted"));
                    self.sick.remove(&domain);
                }
                JobResult::Done
            }
            AgentCommand::Prepare { .. } | AgentCommand::Reboot => JobResult::Done,
        };
        reply(self, result);
    }

    fn set(&mut self, host: &AgentId, domain: &DomainName, run: Run) -> JobResult {
        self.say(format_args!("{domain} on {host}: {run:?}"));
        self.vms.entry(domain.clone()).or_default().insert(host.clone(), run);
        JobResult::Done
    }

    /// Asks for a lease; done when it is open.
    fn hold(&mut self, host: &AgentId, ask: AskVip, domain: Option<DomainName>, reply: Reply) {
        if self
            .machines
            .get(host)
            .and_then(|machine| machine.floors.get(&ask.vip))
            .is_some_and(|floor| ask.epoch < *floor)
        {
            return reply(self, failed("superseded"));
        }
        let held = self.held.entry(ask.vip).or_default();
        if !held.iter().any(|held| held.host == *host && held.epoch == ask.epoch && held.domain == domain) {
            held.retain(|held| held.host != *host);
            held.push(Held { host: host.clone(), domain, epoch: ask.epoch, until: self.now });
        }
        self.ask_now(host);
        self.until_open(host.clone(), ask, reply, 20);
    }

    fn until_open(&mut self, host: AgentId, ask: AskVip, reply: Reply, left: u32) {
        let here = |held: &&Held| held.host == host && held.epoch == ask.epoch;
        let Some(held) = self.held.get(&ask.vip).and_then(|held| held.iter().find(here)) else {
            return reply(self, failed("superseded"));
        };
        if held.until > self.now {
            return reply(self, JobResult::Done);
        }
        if left == 0 {
            return reply(self, failed("no lease"));
        }
        self.after(50, move |night| night.until_open(host, ask, reply, left - 1));
    }

    /// Live migration: the source serves until the switch-over.
    pub(super) fn migrate(&mut self, from: &AgentId, domain: &DomainName, to: &AgentId, reply: Reply) {
        if self.migrations.contains_key(domain) {
            return reply(self, failed("it is being migrated"));
        }
        if self.run_of(domain, from).is_none() {
            return reply(self, failed("it is not there"));
        }
        if !self.is_reached(to) || !self.is_reached(from) {
            return reply(self, failed("the destination does not answer"));
        }
        self.say(format_args!("{domain} begins to leave {from} for {to}"));
        self.migrations.insert(domain.clone(), (from.clone(), to.clone()));
        let boots = |night: &Night, host: &AgentId| night.machines.get(host).map(|machine| machine.boots);
        let before = (boots(self, from), boots(self, to));
        let (from, domain, to) = (from.clone(), domain.clone(), to.clone());
        self.after(MIGRATION, move |night| {
            let way = Some((from.clone(), to.clone()));
            if night.arrived.remove(&domain) {
                return reply(night, JobResult::Done);
            }
            let ended = night.migrations.get(&domain).cloned() == way;
            if ended {
                night.migrations.remove(&domain);
            }
            let there = night.is_on(&from) && night.is_on(&to) && (boots(night, &from), boots(night, &to)) == before;
            if !ended || !there || !night.switch_over(&domain, &from, &to) {
                return reply(night, failed("the live migration failed"));
            }
            reply(night, JobResult::Done);
        });
    }

    /// It gets time there and none here any more. False: it is not here.
    pub(super) fn switch_over(&mut self, domain: &DomainName, from: &AgentId, to: &AgentId) -> bool {
        let Some(run) = self.run_of(domain, from) else { return false };
        if let Some(places) = self.vms.get_mut(domain) {
            places.remove(from);
            places.insert(to.clone(), run);
        }
        self.say(format_args!("{domain} has switched over from {from} to {to}"));
        self.let_go_of_vm(from, domain, "switched over to another host");
        true
    }
}
