//! Power saving's shell (coordinator/src/pss): what there is made by the production code, jobs done by the machines here.

use super::agents::Reply;
use super::journal::Journal;
use super::world::{Ms, Night, Power, Run, WAY};
use kage_coordinator::saving::{
    inventory::{self, Ledger, SeenHost, SeenVm},
    policy,
};
use kage_coordinator_core::{AgentCommand, JobResult as Ended};
use kage_pss_core::{
    Input, Pss,
    execute::{Action, Event, How, JobId, JobResult, Recorded, Signal as Word, SignalId},
    inventory::{Claim, VmState},
    load::{CpuCounter, Sample},
    units::{Bytes, BytesPerSecond},
};
use kage_sif_core::{Refusal, Reply as Said, Request, Signal};
use kage_types::{AgentId, Condition, DomainName, Revision, StateRow, Step, StepState, Time};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// SIF answers within this, or the signal is sent again.
const ANSWER: Ms = 1_500;
/// Between two looks at something that takes a moment.
const POLL: Ms = 100;
/// From a host's last answer to the word that it does not answer.
const SILENT: Ms = 1_500;
/// Between two looks at what a host runs.
const LOOK: Ms = 500;
/// Of each virtual server.
const GUEST_MEMORY: Bytes = Bytes::gib(2);
/// Packets to a host that was switched off are sent by the management server.
const CALLER: &str = "mgmt";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Waiting,
    Taking,
    Ready,
}

/// The process.
pub struct Saving {
    process: u64,
    /// Its core.
    pub core: Pss,
    journal: Result<Journal, String>,
    start: Start,
    transition: Option<u64>,
    flights: BTreeSet<SignalId>,
    claims: BTreeSet<Claim>,
    jobs: BTreeSet<JobId>,
    took: BTreeMap<AgentId, u32>,
    silent_since: BTreeMap<AgentId, Ms>,
    tick: u64,
}

fn ms(duration: Duration) -> Ms {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Night {
    fn by(&self) -> String {
        format!("P{}", self.pss.as_ref().map_or(0, |pss| pss.process))
    }

    fn is_pss(&self, process: u64) -> bool {
        self.pss.as_ref().is_some_and(|pss| pss.process == process)
    }

    pub(super) fn start_pss(&mut self) {
        if self.pss.is_some() {
            return;
        }
        let process = self.fresh();
        let (now, policy) = (Time::from_millis(self.now), policy::policy(&self.cluster));
        self.pss = Some(Saving {
            process,
            journal: Journal::start(now, &policy),
            core: Pss::new(now, policy),
            start: Start::Waiting,
            transition: None,
            flights: BTreeSet::new(),
            claims: BTreeSet::new(),
            jobs: BTreeSet::new(),
            took: BTreeMap::new(),
            silent_since: BTreeMap::new(),
            tick: 0,
        });
        for host in self.seen.hosts.values_mut() {
            host.up = false;
        }
        self.say("power saving starts");
        self.tell_pss_ledger();
        self.after(LOOK, move |night| night.follow_hosts(process));
    }

    /// Its process ends, and starts again after so long.
    pub fn crash_pss(&mut self, length: Ms) {
        if self.pss.take().is_some() {
            self.say("power saving crashes");
            self.after(length, Night::start_pss);
        }
    }

    // ---- what it hears ----

    pub(super) fn tell_pss_ledger(&mut self) {
        let Some(process) = self.pss.as_ref().map(|pss| pss.process) else { return };
        self.after(WAY, move |night| {
            if night.is_pss(process) && night.sif.is_up() {
                night.observe();
                night.begin();
                night.unclaimed();
            }
        });
    }

    fn observe(&mut self) {
        let ledger = self.ledger();
        if ledger.tables == Default::default() {
            return;
        }
        let inventory = inventory::inventory(Time::from_millis(self.now), &self.cluster, &ledger, &self.seen);
        self.step_pss(Input::Inventory(Box::new(inventory)));
    }

    fn begin(&mut self) {
        let transition = self.ledger().tables.transition;
        let Some(pss) = self.pss.as_mut().filter(|pss| pss.start == Start::Waiting) else { return };
        let Some(row) = transition else {
            pss.start = Start::Ready;
            return self.step_pss(Input::Tick(policy::wall(self.now)));
        };
        pss.start = Start::Taking;
        let (process, by) = (pss.process, self.by());
        self.say(format_args!("power saving takes over transition {} of {}", row.id, row.by));
        let request = Request::Signal(Signal::TakeTransition { id: row.id, from: row.by.clone(), by });
        self.after(ANSWER, move |night| {
            if let Some(pss) = night.pss.as_mut().filter(|pss| pss.process == process && pss.start == Start::Taking) {
                pss.start = Start::Waiting;
                night.begin();
            }
        });
        self.ask_sif(request, move |night, result| {
            let Some(pss) = night.pss.as_mut().filter(|pss| pss.process == process && pss.start == Start::Taking)
            else {
                return;
            };
            if result.is_err() {
                return;
            }
            (pss.start, pss.transition) = (Start::Ready, Some(row.id));
            let of = |(_, state): &(Step, StepState)| match state {
                StepState::Planned => Recorded::Untouched,
                StepState::Begun | StepState::UndoBegun => Recorded::Begun,
                StepState::Done => Recorded::Done,
                StepState::Undone => Recorded::Undone,
            };
            let recorded = row.steps.iter().map(of).collect();
            night.step_pss(Input::Resume { plan: Box::new(inventory::plan_of(&row)), recorded });
            night.step_pss(Input::Tick(policy::wall(night.now)));
        });
    }

    fn unclaimed(&mut self) {
        let claims: BTreeSet<Claim> = self.ledger().tables.claims.into_keys().collect();
        let Some(pss) = &mut self.pss else { return };
        let gone: Vec<Claim> = pss.claims.difference(&claims).cloned().collect();
        pss.claims = claims;
        for claim in gone {
            self.step_pss(Input::Execute(Event::Unclaimed(claim)));
        }
    }

    /// What agents tell of their hosts, and the counters of what runs there.
    fn follow_hosts(&mut self, process: u64) {
        if !self.is_pss(process) {
            return;
        }
        self.after(LOOK, move |night| night.follow_hosts(process));
        let mut changed = false;
        for host in self.cluster.hosts.keys().cloned().collect::<Vec<_>>() {
            if self.answers(&host) {
                let run = |(domain, places): (&DomainName, &BTreeMap<AgentId, Run>)| {
                    let state = match places.get(&host)? {
                        Run::Runs(_) => VmState::Running,
                        Run::Paused => VmState::Suspended,
                    };
                    Some((domain.clone(), SeenVm { state, memory: GUEST_MEMORY }))
                };
                let vms = self.vms.iter().filter_map(run).collect();
                let seen = SeenHost { up: true, memory: Bytes::gib(16), cores: 8, speed_mbit: 1000, mac: None, vms };
                changed |= self.seen.hosts.insert(host.clone(), seen.clone()) != Some(seen);
                if let Some(pss) = &mut self.pss {
                    pss.silent_since.remove(&host);
                }
                self.sample(process, &host);
            } else {
                let now = self.now;
                let Some(pss) = &mut self.pss else { return };
                let since = *pss.silent_since.entry(host.clone()).or_insert(now);
                if now >= since + SILENT
                    && let Some(there) = self.seen.hosts.get_mut(&host).filter(|there| there.up)
                {
                    there.up = false;
                    changed = true;
                }
            }
        }
        if changed {
            self.observe();
        }
    }

    fn sample(&mut self, process: u64, host: &AgentId) {
        let here: Vec<DomainName> = (self.vms.iter())
            .filter(|(_, places)| matches!(places.get(host), Some(Run::Runs(_))))
            .map(|(domain, _)| domain.clone())
            .collect();
        for vm in here {
            let share = self.share(&vm);
            let (used, at) = self.counted.get(&vm).copied().unwrap_or((0, self.now));
            let used = used + share * 10_000 * (self.now - at);
            self.counted.insert(vm.clone(), (used, self.now));
            let boots = self.machines.get(host).map_or(0, |machine| machine.boots);
            let sample = Sample {
                source: host.clone(),
                stream: process * 1_000 + boots,
                at: Time::from_millis(self.now),
                cpu: CpuCounter::DomainNanos(used),
                cores: 1,
                memory_used: Bytes::mib(400),
                memory_max: GUEST_MEMORY,
                received: Bytes(0),
                sent: Bytes(0),
                rated: Some(BytesPerSecond::rated(1000)),
            };
            self.step_pss(Input::Sample { vm, sample: Box::new(sample) });
        }
    }

    /// Percent of one processor that clients want of this virtual server: its group's load, shared by who serves.
    pub fn share(&self, vm: &DomainName) -> u64 {
        let tables = &self.sif.disk.shared.tables;
        let Some(group) = tables.place_of(vm).and_then(|(_, row)| row.group.clone()) else { return 0 };
        let serves = |vip: &&kage_types::Vip| {
            let domain = self.speaker(**vip).and_then(|held| held.domain.clone());
            domain.is_some_and(|domain| {
                tables.place_of(&domain).is_some_and(|(_, row)| row.group.as_ref() == Some(&group))
            })
        };
        let all = self.held.keys().filter(serves).count() as u64;
        let mine = (self.held.keys())
            .filter(|vip| self.speaker(**vip).is_some_and(|held| held.domain.as_ref() == Some(vm)))
            .count() as u64;
        let wanted = self.load.get(&group).copied().unwrap_or(0);
        // Clients who get no answer ask all the more.
        (wanted * mine).checked_div(all).unwrap_or(wanted).min(100)
    }

    // ---- what it does ----

    pub(super) fn step_pss(&mut self, input: Input) {
        let now = Time::from_millis(self.now);
        let Some(pss) = &mut self.pss else { return };
        let mut actions = Vec::new();
        let line = pss.journal.as_ref().ok().and_then(|journal| journal.begin(now, &input));
        pss.core.step(now, input, &mut actions);
        pss.tick += 1;
        let replayed = match &mut pss.journal {
            Ok(journal) => journal.end(line, &actions, &pss.core),
            Err(why) => Err(why.clone()),
        };
        let (process, tick, ready) = (pss.process, pss.tick, pss.start == Start::Ready);
        if let Some((due, _)) = pss.core.deadline().filter(|_| ready) {
            let at = due.as_nanos().div_ceil(1_000_000).max(self.now + 1);
            self.at(at, move |night| {
                if night.pss.as_ref().is_some_and(|pss| (pss.process, pss.tick) == (process, tick)) {
                    night.step_pss(Input::Tick(policy::wall(night.now)));
                }
            });
        }
        if let Err(why) = replayed {
            self.fail(why);
        }
        for action in actions {
            self.pss_acts(process, action);
        }
    }

    fn pss_ends(&mut self, process: u64, job: JobId, result: JobResult) {
        let open = self.pss.as_mut().is_some_and(|pss| pss.process == process && pss.jobs.remove(&job));
        if open {
            self.step_pss(Input::Execute(Event::Ended { job, result }));
        }
    }

    fn pss_acts(&mut self, process: u64, action: Action) {
        match action {
            Action::Signal { id, signal } => self.tell(process, id, &signal),
            Action::Do { job, step, how, timeout } => {
                self.say(format_args!("power saving does: {step} ({how:?})"));
                self.job_begins(process, job, ms(timeout));
                self.act(process, job, step, how);
            }
            Action::Look { job, step, timeout } => {
                self.job_begins(process, job, ms(timeout) + ANSWER);
                let until = self.now + ms(timeout);
                self.look(process, job, step, until);
            }
            Action::Abort { job } => self.pss_ends(process, job, JobResult::Failed("given up".into())),
            Action::Yield(claim) => self.say(format_args!("power saving lets go of {claim}")),
            Action::Note(note) => self.say(format_args!("P {:?}: {}", note.kind, note.text)),
        }
    }

    fn job_begins(&mut self, process: u64, job: JobId, timeout: Ms) {
        if let Some(pss) = &mut self.pss {
            pss.jobs.insert(job);
        }
        self.after(timeout, move |night| night.pss_ends(process, job, JobResult::TimedOut));
    }

    fn tell(&mut self, process: u64, id: SignalId, word: &Word) {
        let (by, now_unix_ms) = (self.by(), self.now);
        let ledger = self.ledger();
        let Some(pss) = &mut self.pss else { return };
        if !pss.flights.insert(id) {
            return;
        }
        let transition = pss.transition.unwrap_or_default();
        let step = |index: &usize| pss.core.executor().plan()?.steps.get(*index).map(|planned| planned.step.clone());
        let put = |index: usize, state: StepState, took_ms: Option<u32>| Signal::PutStep {
            id: transition,
            by: by.clone(),
            index,
            state,
            took_ms,
            now_unix_ms,
        };
        let end = |committed: bool, conditions: &BTreeMap<_, Condition>, why: String| {
            let row = |(group, condition): (&kage_types::GroupName, &Condition)| {
                let base = ledger.base_of(group, *condition);
                (group.clone(), StateRow { condition: *condition, base })
            };
            let state = conditions.iter().map(row).collect();
            Signal::EndTransition { id: transition, by: by.clone(), committed, state, why }
        };
        let signal = match word {
            Word::TransitionBegun { plan } => Signal::BeginTransition {
                by: by.clone(),
                generation: plan.generation,
                plan: serde_json::to_string(plan).unwrap_or_default(),
                steps: plan.steps().cloned().collect(),
                groups: plan.groups.clone(),
            },
            Word::StepBegun { index, undo } => {
                put(*index, if *undo { StepState::UndoBegun } else { StepState::Begun }, None)
            }
            Word::StepDone { index, undo } => {
                let woken = match (step(index), undo) {
                    (Some(Step::WakeHost { host }), false) | (Some(Step::SuspendHost { host }), true) => Some(host),
                    _ => None,
                };
                let took = woken.and_then(|host| pss.took.get(&host)).copied();
                put(*index, if *undo { StepState::Undone } else { StepState::Done }, took)
            }
            Word::Committed { conditions, missing } => end(true, conditions, format!("{} missing", missing.len())),
            Word::RolledBack { conditions, why, .. } => end(false, conditions, why.clone()),
            Word::Found { vm, host, not_on } => {
                Signal::Found { by: by.clone(), vm: vm.clone(), host: host.clone(), not_on: not_on.clone() }
            }
        };
        if let Signal::BeginTransition { steps, .. } = &signal {
            let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
            self.say(format_args!("power saving begins: {}", steps.join("; ")));
        }
        self.after(ANSWER, move |night| {
            if let Some(pss) = night.pss.as_mut().filter(|pss| pss.process == process) {
                pss.flights.remove(&id);
            }
        });
        self.ask_sif(Request::Signal(signal), move |night, result| night.told(process, id, result));
    }

    fn told(&mut self, process: u64, id: SignalId, result: Result<Said, Refusal>) {
        let ledger = self.ledger();
        let Some(pss) = self.pss.as_mut().filter(|pss| pss.process == process) else { return };
        pss.flights.remove(&id);
        let event = match result {
            Ok(Said::Transition { revision, id: transition }) => {
                pss.transition = Some(transition);
                Event::Recorded { id, revision }
            }
            Ok(Said::Tables { revision }) => Event::Recorded { id, revision },
            Ok(_) => Event::Recorded { id, revision: Revision::default() },
            // It took effect, and was asked for again.
            Err(Refusal::NoTransition { .. }) if ledger.tables.transition.is_none() => {
                Event::Recorded { id, revision: ledger.tables.revision }
            }
            Err(Refusal::Busy { .. } | Refusal::Unavailable { .. }) => return,
            Err(refusal) => {
                let why = refusal.to_string();
                self.say(format_args!("SIF refuses power saving: {why}"));
                Event::Refused { id, why }
            }
        };
        self.step_pss(Input::Execute(event));
    }

    fn command(&mut self, process: u64, job: JobId, host: &AgentId, command: AgentCommand) {
        let reply: Reply = Box::new(move |night, result| {
            let result = match result {
                Ended::Done => JobResult::Done,
                Ended::Failed(why) | Ended::Unknown(why) => JobResult::Failed(why),
                Ended::Epoch(_) | Ended::Barred(_) | Ended::Check(_) | Ended::Answered(_) => {
                    JobResult::Failed("an answer to another question".into())
                }
            };
            night.pss_ends(process, job, result);
        });
        if !self.answers(host) {
            return self.after(WAY, move |night| night.pss_ends(process, job, JobResult::Failed("no answer".into())));
        }
        let host = host.clone();
        self.after(WAY, move |night| night.obey(&host, command, reply));
    }

    fn act(&mut self, process: u64, job: JobId, step: Step, how: How) {
        match step {
            Step::MoveVip { .. } => self.moved(process, job, step),
            Step::Migrate { vm, from, to } => {
                self.command(process, job, &from, AgentCommand::MigrateVm { domain: vm, to });
            }
            Step::SuspendVm { vm, host } => self.command(process, job, &host, AgentCommand::PauseVm { domain: vm }),
            Step::ResumeVm { vm, host } => self.command(process, job, &host, AgentCommand::ResumeVm { domain: vm }),
            Step::SuspendHost { host } => self.suspend(process, job, &host),
            Step::WakeHost { host } => {
                let first = matches!(how, How::Wake { attempt: 1 });
                let (mac, begun) = (self.cluster.agents.get(&host).and_then(|machine| machine.mac.clone()), self.now);
                let caller = self.cluster.agents.keys().find(|name| name.as_str() == CALLER).cloned();
                if let (Some(mac), Some(caller), false) = (mac, caller, self.answers(&host)) {
                    let wake = AgentCommand::Wake { mac };
                    self.after(WAY, move |night| night.obey(&caller, wake, Box::new(|_, _| {})));
                }
                let silent = !self.answers(&host);
                self.woken(process, job, host, (first && silent).then_some(begun));
            }
        }
    }

    /// Until the ledger says that it holds the address.
    fn moved(&mut self, process: u64, job: JobId, step: Step) {
        let Step::MoveVip { vip, to, .. } = &step else { return };
        if self.ledger().holds(*vip, to) {
            return self.pss_ends(process, job, JobResult::Done);
        }
        if self.pss.as_ref().is_some_and(|pss| pss.process == process && pss.jobs.contains(&job)) {
            self.after(POLL, move |night| night.moved(process, job, step));
        }
    }

    fn woken(&mut self, process: u64, job: JobId, host: AgentId, begun: Option<Ms>) {
        if self.answers(&host) {
            if let (Some(begun), Some(pss)) = (begun, &mut self.pss) {
                pss.took.insert(host, u32::try_from(self.now - begun).unwrap_or(u32::MAX));
            }
            return self.pss_ends(process, job, JobResult::Done);
        }
        if self.pss.as_ref().is_some_and(|pss| pss.process == process && pss.jobs.contains(&job)) {
            self.after(POLL, move |night| night.woken(process, job, host, begun));
        }
    }

    /// As the agent does it: refused with a virtual IP, or with anything that runs and was not named.
    fn suspend(&mut self, process: u64, job: JobId, host: &AgentId) {
        let tables = self.ledger().tables;
        let named = |domain: &DomainName| {
            let row = tables.place_of(domain).map(|(_, row)| row);
            row.is_some_and(|row| row.host == *host)
        };
        let busy = |(domain, places): (&DomainName, &BTreeMap<AgentId, Run>)| {
            matches!(places.get(host), Some(Run::Runs(_))) && !named(domain)
        };
        let holds = self.held.values().flatten().any(|held| held.host == *host);
        let result = match () {
            () if !self.answers(host) => JobResult::Failed("no answer".into()),
            () if holds => JobResult::Failed("it holds a virtual IP".into()),
            () if self.vms.iter().any(busy) => JobResult::Failed("something runs there".into()),
            () => {
                let host = host.clone();
                self.after(500, move |night| {
                    let holds = night.held.values().flatten().any(|held| held.host == host);
                    if !holds && night.machines.get(&host).is_some_and(|it| it.power == Power::On && it.agent.is_some())
                    {
                        night.fall_asleep(&host);
                    }
                });
                JobResult::Done
            }
        };
        self.after(2 * WAY, move |night| night.pss_ends(process, job, result));
    }

    fn look(&mut self, process: u64, job: JobId, step: Step, until: Ms) {
        match self.is_so(&step) {
            Ok(()) => self.after(WAY, move |night| night.pss_ends(process, job, JobResult::Done)),
            Err(not) if self.now + POLL >= until => {
                self.after(WAY, move |night| night.pss_ends(process, job, JobResult::Failed(not)));
            }
            Err(_) => self.after(POLL, move |night| {
                if night.is_pss(process) {
                    night.look(process, job, step, until);
                }
            }),
        }
    }

    fn is_so(&self, step: &Step) -> Result<(), String> {
        let asked = |host: &AgentId| {
            if self.answers(host) { Ok(()) } else { Err(format!("{host} does not answer")) }
        };
        let so = match step {
            Step::MoveVip { vip, to, .. } => {
                let speaks = |held: &super::world::Held| held.domain.as_ref() == Some(to);
                self.ledger().holds(*vip, to) && self.speaker(*vip).is_some_and(speaks)
            }
            Step::Migrate { vm, from, to } => {
                asked(to)?;
                asked(from)?;
                self.run_of(vm, to).is_some() && self.run_of(vm, from).is_none()
            }
            Step::SuspendVm { vm, host } => {
                asked(host)?;
                self.run_of(vm, host) == Some(Run::Paused)
            }
            Step::ResumeVm { vm, host } => {
                asked(host)?;
                matches!(self.run_of(vm, host), Some(Run::Runs(_)))
            }
            Step::SuspendHost { host } => !self.answers(host),
            Step::WakeHost { host } => self.answers(host),
        };
        if so { Ok(()) } else { Err(format!("not so: {step}")) }
    }

    /// Nothing of power saving is under way, as the ledger has it.
    pub fn settled(&self) -> bool {
        self.sif.disk.shared.tables.transition.is_none()
    }

    /// Are all groups in this condition?
    pub fn all_in(&self, condition: Condition) -> bool {
        let state = &self.sif.disk.shared.tables.state;
        !state.is_empty() && state.values().all(|row| row.condition == condition)
    }

    /// What power saving reads; for checks.
    pub fn read(&self) -> Ledger {
        self.ledger()
    }
}
