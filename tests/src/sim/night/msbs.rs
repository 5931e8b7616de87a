//! The coordinator's shell: leases and supervision.

use super::world::{Ms, Night, WAY};
use kage_coordinator_core::{
    Action, AgentCommand, CheckOutcome, Coordinator, Event, JobId, JobResult, config::Cluster,
};
use kage_sif_core::{Refusal, Reply, Report, Request, Signal};
use kage_types::{AgentId, Epoch, TargetName, Term, Time};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

/// SIF answers within this, or not at all.
const ANSWER: Ms = 1_500;

/// The process.
pub struct Msbs {
    process: u64,
    /// Its core.
    pub core: Coordinator,
    jobs: BTreeSet<JobId>,
    tick: u64,
}

fn ms(duration: Duration) -> Ms {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unknown() -> JobResult {
    JobResult::Unknown("no answer in time".into())
}

impl Night {
    fn time(&self) -> Time {
        Time::from_millis(self.now)
    }

    pub(super) fn start_msbs(&mut self) {
        if self.msbs.is_some() {
            return;
        }
        let (process, cluster): (u64, Cluster) = (self.fresh(), self.cluster.clone());
        self.msbs =
            Some(Msbs { process, core: Coordinator::new(self.time(), cluster), jobs: BTreeSet::new(), tick: 0 });
        self.say("the coordinator starts");
        for host in self.machines.keys().cloned().collect::<Vec<_>>() {
            self.stream_begins(&host);
        }
        self.step_msbs(Event::Tick);
    }

    /// Its process ends, and starts again after so long.
    pub fn crash_msbs(&mut self, length: Ms) {
        if self.msbs.take().is_some() {
            self.say("the coordinator crashes");
            self.after(length, Night::start_msbs);
        }
    }

    /// Has somebody the term, as agents see it?
    pub(super) fn in_authority(&self) -> bool {
        self.msbs.as_ref().is_some_and(|msbs| msbs.core.authority(self.time()).1)
    }

    pub(super) fn send_msbs(&mut self, way: Ms, event: Event) {
        let Some(process) = self.msbs.as_ref().map(|msbs| msbs.process) else { return };
        self.after(way, move |night| night.step_if(process, event));
    }

    fn step_if(&mut self, process: u64, event: Event) {
        if self.msbs.as_ref().is_some_and(|msbs| msbs.process == process) {
            self.step_msbs(event);
        }
    }

    pub(super) fn step_msbs(&mut self, event: Event) {
        let now = self.time();
        let Some(msbs) = &mut self.msbs else { return };
        let mut actions = Vec::new();
        msbs.core.step(now, event, &mut actions);
        msbs.tick += 1;
        let (process, tick) = (msbs.process, msbs.tick);
        if let Some((due, _)) = msbs.core.deadline() {
            let at = due.as_nanos().div_ceil(1_000_000).max(self.now + 1);
            self.at(at, move |night| {
                if night.msbs.as_ref().is_some_and(|msbs| (msbs.process, msbs.tick) == (process, tick)) {
                    night.step_msbs(Event::Tick);
                }
            });
        }
        for action in actions {
            self.msbs_acts(process, action);
        }
    }

    /// Each job ends once.
    fn ends(&mut self, process: u64, after: Ms, job: JobId, result: JobResult) {
        self.after(after, move |night| {
            let open = night.msbs.as_mut().is_some_and(|msbs| msbs.process == process && msbs.jobs.remove(&job));
            if open {
                night.step_msbs(Event::Job { job, result });
            }
        });
    }

    fn begins(&mut self, process: u64, job: JobId, timeout: Ms) {
        if let Some(msbs) = &mut self.msbs {
            msbs.jobs.insert(job);
        }
        self.ends(process, timeout, job, unknown());
    }

    /// A job that is one request to SIF.
    fn sif_job(&mut self, process: u64, job: JobId, request: Request) {
        self.begins(process, job, ANSWER);
        self.ask_sif(request, move |night, result| {
            let result = match result {
                Ok(Reply::Epoch { epoch, .. }) => JobResult::Epoch(epoch),
                Ok(_) => JobResult::Done,
                Err(refusal) => JobResult::Failed(refusal.to_string()),
            };
            night.ends(process, 0, job, result);
        });
    }

    fn msbs_acts(&mut self, process: u64, action: Action) {
        let Some(term) = self.msbs.as_ref().map(|msbs| msbs.core.authority(self.time()).0) else { return };
        let sent = self.time();
        match action {
            Action::Reply { session, grant, .. } => self.after(WAY, move |night| night.granted(session, &grant)),
            Action::AcquireTerm => {
                let request = Request::AcquireTerm { coordinator: format!("C{process}") };
                self.ask_sif(request, move |night, result| night.acquired(process, sent, result));
                self.after(ANSWER, move |night| {
                    let waits =
                        night.msbs.as_ref().is_some_and(|msbs| msbs.process == process) && !night.in_authority();
                    if waits {
                        night.step_if(process, Event::TermFailed { reason: "no answer".into() });
                    }
                });
            }
            Action::RenewTerm { term } => {
                let length = self.cluster.term;
                self.ask_sif(Request::RenewTerm { term }, move |night, result| {
                    let event = match result {
                        Ok(_) => Event::TermRenewed { term, sent, length },
                        Err(refusal) => Event::TermLost { term, reason: refusal.to_string() },
                    };
                    night.step_if(process, event);
                });
            }
            Action::ReadLedger => {
                if self.sif.is_up() {
                    let rows = self.rows();
                    self.send_msbs(2 * WAY, Event::LedgerRead { rows });
                }
            }
            Action::AdvanceEpoch { job, vip, expected, owner, domain, target, cause } => {
                self.say(format_args!("the coordinator: {vip} after {expected} to {domain:?} on {owner}, {cause:?}"));
                let cause = cause.as_str().parse().unwrap_or(kage_sif_core::Cause::Takeover);
                self.sif_job(process, job, Request::AdvanceEpoch { term, vip, expected, owner, domain, target, cause });
            }
            Action::SetLongLease { job, vip, outstanding } => {
                self.sif_job(process, job, Request::SetLongLease { term, vip, outstanding, sequence: job.0 });
            }
            Action::Bar { job, vip, floor, .. } => {
                self.begins(process, job, 500);
                self.after(WAY, move |night| {
                    let barred = night.barred.entry(vip).or_insert(Epoch(0));
                    *barred = (*barred).max(floor);
                    let age = night.consented.get(&vip).map_or(600_000, |at| night.now - at);
                    night.ends(process, WAY, job, JobResult::Barred(Duration::from_millis(age)));
                });
            }
            Action::Command { job, agent, command, timeout } => {
                let lease = matches!(command, AgentCommand::Hold { .. } | AgentCommand::Prepare { .. });
                if !lease {
                    self.say(format_args!("the coordinator to {agent}: {command:?}"));
                }
                self.begins(process, job, ms(timeout));
                self.after(WAY, move |night| {
                    night.obey(&agent, command, Box::new(move |night, result| night.ends(process, WAY, job, result)));
                });
            }
            Action::Ping { job, address, timeout, .. } => {
                self.begins(process, job, ms(timeout) * 2);
                let good = self.echoes(address);
                let ng = JobResult::Check(CheckOutcome::Ng("no echo".into()));
                let (after, result) = if good { (1, JobResult::Check(CheckOutcome::Ok)) } else { (ms(timeout), ng) };
                self.ends(process, after, job, result);
            }
            Action::Probe { job, address, limits, .. } => {
                let total = ms(limits.total);
                self.begins(process, job, total * 2);
                let (after, outcome) = match (self.echoes(address), self.replies(address)) {
                    (true, true) => (3, CheckOutcome::Ok),
                    (true, false) => (1, CheckOutcome::Ng("connection refused".into())),
                    (false, _) => (total, CheckOutcome::Ng("no reply".into())),
                };
                self.ends(process, after, job, JobResult::Check(outcome));
            }
            Action::ReadPower { job, .. } | Action::PowerOff { job, .. } | Action::FenceStorage { job, .. } => {
                self.begins(process, job, 1);
            }
            Action::PutTrouble { target, stage, detail } => self.trouble(term, target, &stage, detail),
            Action::PutOrder { job, order } => self.sif_job(process, job, Request::PutOrder { term, order }),
            Action::ClearOrder { job, scope } => self.sif_job(process, job, Request::ClearOrder { term, scope }),
            Action::PutArrangement { job, arrangement } => {
                let signal = Signal::PutArrangement {
                    term,
                    operation: arrangement.operation,
                    real_servers: arrangement.real_servers,
                    groups: arrangement.groups,
                };
                self.signal(process, job, signal);
            }
            Action::FunctionRestored { job, place, backup, host } => {
                self.signal(process, job, Signal::FunctionRestored { term, place, backup, host });
            }
            Action::TargetVerdict { job, place, recovered, host } => {
                self.signal(process, job, Signal::TargetVerdict { term, place, recovered, host });
            }
            Action::PutClaims { job, target, why, claims } => {
                self.signal(process, job, Signal::PutClaims { term, by: target.to_string(), why, claims });
            }
            Action::MovedTo { job, vm, host, not_on } => {
                self.signal(process, job, Signal::MovedTo { term, vm, host, not_on });
            }
            Action::Note(note) => {
                let target = note.target.as_ref().map_or("-", TargetName::as_str);
                self.say(format_args!("C {target} {}: {}", note.kind, note.text));
            }
            Action::Configured | Action::Moved { .. } => {}
        }
    }

    fn signal(&mut self, process: u64, job: JobId, signal: Signal) {
        self.say(format_args!("the coordinator tells SIF: {signal:?}"));
        self.sif_job(process, job, Request::Signal(signal));
    }

    fn trouble(&mut self, term: Term, target: TargetName, stage: &str, detail: String) {
        let stage = stage.parse().ok();
        let request = Request::PutTrouble { term, target, stage, detail, now_unix_ms: self.now };
        self.ask_sif(request, |_, _| {});
    }

    fn acquired(&mut self, process: u64, sent: Time, result: Result<Reply, Refusal>) {
        match result {
            Ok(Reply::Term { term }) => {
                let (length, rows) = (self.cluster.term, self.rows());
                let down: Vec<(TargetName, String)> = (self.sif.disk.troubles.iter())
                    .filter(|(_, row)| row.stage.as_str() == "down")
                    .map(|(name, row)| (name.clone(), row.detail.clone()))
                    .collect();
                let tables = Box::new(self.sif.disk.shared.tables.clone());
                self.step_if(process, Event::OrdersRead { orders: Vec::new(), now_unix_ms: self.now });
                self.step_if(process, Event::TroublesRead { down });
                self.step_if(process, Event::TablesRead { tables });
                self.step_if(process, Event::TermAcquired { term, sent, length, rows });
            }
            Ok(_) => {}
            Err(Refusal::NeedsReports { .. }) => {
                let voters: Vec<AgentId> = self.cluster.voters().cloned().collect();
                for reporter in voters {
                    let report = Report { highest_term: Term(0), epochs: self.barred.clone() };
                    self.ask_sif(Request::ReportVoter { reporter, report }, |_, _| {});
                }
                self.step_if(process, Event::TermFailed { reason: "reports are needed".into() });
            }
            Err(refusal) => self.step_if(process, Event::TermFailed { reason: refusal.to_string() }),
        }
    }

    pub(super) fn tell_msbs_tables(&mut self) {
        let tables = Box::new(self.sif.disk.shared.tables.clone());
        self.send_msbs(WAY, Event::TablesRead { tables });
    }

    // ---- what is seen from outside ----

    fn echoes(&self, address: IpAddr) -> bool {
        if let Some(vip) = self.held.keys().find(|vip| vip.address() == address) {
            return self.speaker(*vip).is_some_and(|held| {
                held.domain.as_ref().is_some_and(|domain| self.runs_on(domain) == Some(&held.host))
            });
        }
        let guest = self.at_address(address);
        match guest {
            Some(domain) => self.runs_on(domain).is_some_and(|host| self.is_reached(host)),
            None => {
                let named = self.cluster.agents.iter().find(|(_, machine)| machine.address.ip() == address);
                named.is_some_and(|(name, _)| self.is_reached(name))
            }
        }
    }

    fn replies(&self, address: IpAddr) -> bool {
        if let Some(vip) = self.held.keys().find(|vip| vip.address() == address) {
            return self.served(*vip);
        }
        let guest = self.at_address(address);
        let host = guest.and_then(|domain| Some((domain, self.runs_on(domain)?)));
        host.is_some_and(|(domain, host)| self.is_reached(host) && self.serves(domain, host))
    }
}
