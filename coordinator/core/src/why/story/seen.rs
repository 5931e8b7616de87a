//! What was seen and decided, in words, with its source.

use super::{Source, Teller};
use crate::{
    Coordinator, Note,
    config::Target,
    core::{JobFor, TargetJob, VipJob},
    event::{AgentReport, CheckOutcome, Event, JobResult},
    placement::describe,
    stand_in::StandInJob,
    why::rules,
};
use kage_types::{AgentId, TargetName, Time, Vip, whole_millis};

impl Teller {
    pub(super) fn observe(&mut self, core: &Coordinator, name: &TargetName, now: Time, event: &Event) {
        let Some(target) = core.cluster().targets.get(name) else { return };
        let (agent, backup) = (&target.agent, &target.backup.agent);
        let ours = |other: &AgentId| other == agent || other == backup;
        let by = |agent: &AgentId| Source::Agent(agent.to_string());
        match event {
            Event::Ask { agent: asker, via: None, .. } if asker == agent => {
                if self.open.is_some() && core.silent(now, agent) > core.silence_limit() {
                    let silent = whole_millis(core.silent(now, agent));
                    self.tell(now, Source::Lease, format!("{agent} asks again, after {silent:?} of silence"));
                }
            }
            Event::Ask { agent: asker, via: Some(voter), .. } if asker == agent => {
                self.check(
                    now,
                    Source::Lease,
                    format!("{agent} asks through {voter}: it can't reach the coordinator itself"),
                );
            }
            Event::Ask { .. } | Event::TermRenewed { .. } | Event::LedgerRead { .. } | Event::Tick => {}
            Event::AgentUp { agent, .. } if ours(agent) => {
                self.tell(now, by(agent), format!("the stream of {agent} is up"));
            }
            Event::AgentDown { agent, .. } if ours(agent) => {
                self.tell(now, by(agent), format!("the stream of {agent} ended"));
            }
            Event::AgentUp { .. } | Event::AgentDown { .. } => {}
            Event::Report { agent: from, report } => {
                let (relevant, text) = reported(report, target, from == agent);
                if relevant && ours(from) {
                    self.tell(now, by(from), text);
                }
            }
            Event::TermAcquired { term, .. } => {
                self.tell(now, Source::Sif, format!("gives this coordinator term {term}"))
            }
            Event::TermLost { reason, .. } => self.tell(now, Source::Sif, format!("the term is over: {reason}")),
            Event::TermFailed { reason } => self.check(now, Source::Sif, format!("does not answer: {reason}")),
            Event::Move { command, target, back, force } if target == name => {
                self.command = Some(*command);
                let what = if *back { "failback" } else { "failover" };
                let force = if *force { " --force" } else { "" };
                self.tell(now, Source::Operator, format!("kagectl {what} {target}{force}"));
            }
            Event::PutOrder { order, .. } => {
                self.tell(now, Source::Operator, format!("order {} by {}: {}", order.scope, order.who, order.reason));
            }
            Event::ClearOrder { scope, who, .. } => {
                self.tell(now, Source::Operator, format!("order {scope} lifted by {who}"));
            }
            Event::Adopt { command, target, who, .. } if target == name => {
                self.command = Some(*command);
                self.tell(now, Source::Operator, format!("kagectl adopt {target}, by {who}"));
            }
            Event::EndQuarantine { agent, who, .. } if ours(agent) => {
                self.tell(now, Source::Operator, format!("kagectl quarantine off {agent}, by {who}"));
            }
            Event::Reload { .. } => self.tell(now, Source::Operator, "the configuration is read again".into()),
            Event::TroublesRead { down } => {
                if let Some((_, why)) = down.iter().find(|(target, _)| target == name) {
                    self.tell(now, Source::Sif, format!("it was given up under an earlier term: {why}"));
                }
            }
            Event::Move { .. }
            | Event::Adopt { .. }
            | Event::EndQuarantine { .. }
            | Event::OrdersRead { .. }
            | Event::TablesRead { .. }
            | Event::WallClock { .. } => {}
            Event::Job { job, result } => {
                if let Some(what) = core.jobs.get(job) {
                    self.answered(core, name, now, what, result);
                }
            }
        }
    }

    fn answered(&mut self, core: &Coordinator, name: &TargetName, now: Time, what: &JobFor, result: &JobResult) {
        let Some(target) = core.cluster().targets.get(name) else { return };
        match what {
            JobFor::Target(of, job) if of == name => {
                let (source, check) = match job {
                    TargetJob::Ping => (Source::Ping, true),
                    TargetJob::Probe(index) => {
                        let service = target.services.get(*index).map_or("?", |service| service.name.as_str());
                        (Source::Probe(service.to_owned()), true)
                    }
                    TargetJob::Power(_) => (Source::Power, true),
                    TargetJob::OtherPower(..) => (Source::Power, false),
                    TargetJob::Restart | TargetJob::Reboot | TargetJob::LetGo(_) => {
                        (Source::Agent(target.agent.to_string()), false)
                    }
                    TargetJob::Clear { other, .. } => (Source::Agent(other.to_string()), false),
                    TargetJob::Wake if target.vm.is_some() => (Source::Agent(core.host_of(target).to_string()), false),
                    TargetJob::Wake => (Source::Agent(target.backup.agent.to_string()), false),
                    TargetJob::Unfence => (Source::Storage, false),
                };
                let what = match job {
                    TargetJob::Ping | TargetJob::Probe(_) => checked(result),
                    TargetJob::Power(_) => power(result),
                    TargetJob::OtherPower(other, _) => format!("{other}, where it may run besides: {}", power(result)),
                    TargetJob::Restart => format!("restart: {}", describe(result)),
                    TargetJob::Reboot => format!("reboot: {}", describe(result)),
                    TargetJob::Clear { .. } => format!("it does not run elsewhere: {}", describe(result)),
                    TargetJob::Wake if target.vm.is_some() => format!("start: {}", describe(result)),
                    TargetJob::Wake => format!("magic packet: {}", describe(result)),
                    TargetJob::LetGo(_) => format!("its services are down: {}", describe(result)),
                    TargetJob::Unfence => format!("access given back: {}", describe(result)),
                };
                if check { self.check(now, source, what) } else { self.tell(now, source, what) }
            }
            JobFor::Vip(vip, job) if target.vips.contains(vip) => {
                let owner = core.vips.get(vip).and_then(|state| state.moving.as_ref());
                // An answer may come when its move is over.
                let to = owner.map_or(&target.backup.agent, |moving| &moving.to.agent).to_string();
                let from = owner.and_then(|moving| moving.from.as_ref());
                let from = from.map_or(&target.agent, |(from, _)| &from.agent).to_string();
                let (source, text) = match job {
                    VipJob::Advance => (Source::Sif, format!("{vip}: {}", describe(result))),
                    VipJob::Bar(voter) => (Source::Voter(voter.to_string()), describe(result)),
                    VipJob::Release => (Source::Agent(from), format!("release of {vip}: {}", describe(result))),
                    VipJob::Prepare => (Source::Agent(to), format!("{vip} made ready: {}", describe(result))),
                    VipJob::Resume => (Source::Agent(to), format!("double resumed: {}", describe(result))),
                    VipJob::Conflict => (Source::Agent(to), looked(*vip, result)),
                    VipJob::Hold => (Source::Agent(to), format!("hold {vip}: {}", describe(result))),
                    VipJob::PowerOff => (Source::Power, format!("switched off: {}", describe(result))),
                    VipJob::PowerRead(_) => (Source::Power, power(result)),
                    VipJob::LetGo => {
                        (Source::Agent(target.agent.to_string()), format!("nothing writes there: {}", describe(result)))
                    }
                    VipJob::FenceStorage => (Source::Storage, format!("access revoked: {}", describe(result))),
                    VipJob::Quiet => (
                        Source::Agent(target.backup.agent.to_string()),
                        format!("double suspended: {}", describe(result)),
                    ),
                };
                // Tried until it succeeds.
                self.check(now, source, text);
            }
            JobFor::Ready { target: of, .. } if of == name => {
                let backup = target.backup.agent.to_string();
                self.tell(
                    now,
                    Source::Agent(backup),
                    format!("double resumed for the fail-over: {}", describe(result)),
                );
            }
            JobFor::StandIn(domain, job) if target.is_double(domain) => {
                let at = Source::Agent(core.double_host(target).to_string());
                match job {
                    StandInJob::Checked => self.check(now, Source::Probe(domain.to_string()), checked(result)),
                    StandInJob::Migrated => self.tell(now, at, format!("live migration: {}", describe(result))),
                    StandInJob::Found => self.check(now, at, format!("{domain} looked for: {}", describe(result))),
                    StandInJob::Restarted => {
                        self.tell(now, at, format!("service in {domain} restarted: {}", describe(result)));
                    }
                    StandInJob::Cured => self.tell(now, at, format!("{domain} started anew: {}", describe(result))),
                }
            }
            JobFor::StandIn(..)
            | JobFor::Target(..)
            | JobFor::Vip(..)
            | JobFor::Ready { .. }
            | JobFor::LongLease(_)
            | JobFor::LongReturned(_)
            | JobFor::Pause(..)
            | JobFor::Order(_)
            | JobFor::Signal => {}
        }
    }

    /// What the core noted about the target, or about what concerns every target.
    pub(super) fn noted(&mut self, core: &Coordinator, name: &TargetName, now: Time, note: &Note) {
        const COMMON: [&str; 6] = ["storm-brake", "storm-over", "stalled", "term-lost", "sif-away", "order-given"];
        let machines = core.cluster().targets.get(name).map(|target| [&target.agent, &target.backup.agent]);
        let of_its_machine = |kind: &str| {
            let machine = note.text.split(' ').next().unwrap_or_default();
            kind.starts_with("quarantine")
                && machines.is_some_and(|ours| ours.iter().any(|own| own.as_str() == machine))
        };
        let concerns = match &note.target {
            Some(target) => target == name,
            None => COMMON.contains(&note.kind.as_str()) || of_its_machine(&note.kind),
        };
        // Those are agents' words, and told as such.
        if !concerns || ["vip-open", "vip-closed", "service-held"].contains(&note.kind.as_str()) {
            return;
        }
        self.tell(now, Source::Decision, note.text.clone());
        if let Some(line) = self.pending.last_mut() {
            line.kind = Some(note.kind.clone());
            line.check = ["hold-failed", "epoch-refused", "command-failed"].contains(&note.kind.as_str());
            line.rule = rules::of_note(note, core, name);
        }
    }
}

/// What an agent reports, and whether that is about this target; the backup's host has others to tell of.
fn reported(report: &AgentReport, target: &Target, its_own: bool) -> (bool, String) {
    let vips = |vip| target.vips.contains(&vip);
    match report {
        AgentReport::Opened(ask) => (vips(ask.vip), format!("{} is open at epoch {}", ask.vip, ask.epoch)),
        AgentReport::Lost { ask, reason } => {
            (vips(ask.vip), format!("{} is closed at epoch {}: {reason}", ask.vip, ask.epoch))
        }
        AgentReport::GoingDown { machine: true, what } => (true, format!("its machine is going down ({what})")),
        AgentReport::GoingDown { machine: false, what } => (true, format!("only the agent is stopping ({what})")),
        AgentReport::ServiceDown { service, detail } => (its_own, format!("service {service} is down: {detail}")),
        AgentReport::ServiceHeld { service, held: true } => {
            (its_own, format!("holds {service} back for want of a lease"))
        }
        AgentReport::ServiceHeld { service, held: false } => (its_own, format!("lets go of {service}")),
        AgentReport::VmCrashed { domain, detail } => {
            (*domain == target.backup.domain, format!("VM {domain} crashed: {detail}"))
        }
        AgentReport::Other(text) => {
            let words = || text.split(|c: char| c.is_whitespace() || c == ',' || c == ':');
            let named = |word: &str| {
                word == target.backup.domain.as_str() || target.vips.iter().any(|vip| vip.to_string() == word)
            };
            (its_own || words().any(named), text.clone())
        }
    }
}

fn checked(result: &JobResult) -> String {
    match result {
        JobResult::Check(CheckOutcome::Ok) => "OK".into(),
        JobResult::Check(CheckOutcome::Error(why)) => format!("ERROR: {why}"),
        JobResult::Check(CheckOutcome::Ng(why)) => format!("NG: {why}"),
        JobResult::Done
        | JobResult::Failed(_)
        | JobResult::Unknown(_)
        | JobResult::Epoch(_)
        | JobResult::Barred(_)
        | JobResult::Answered(_) => format!("could not look: {}", describe(result)),
    }
}

fn power(result: &JobResult) -> String {
    if *result == JobResult::Done { "reads off".into() } else { format!("not read off: {}", describe(result)) }
}

fn looked(vip: Vip, result: &JobResult) -> String {
    match result {
        JobResult::Answered(None) => format!("nobody answers for {vip} (RFC 5227)"),
        JobResult::Answered(Some(mac)) => format!("{vip} still answers, from {mac}"),
        JobResult::Done
        | JobResult::Failed(_)
        | JobResult::Unknown(_)
        | JobResult::Epoch(_)
        | JobResult::Barred(_)
        | JobResult::Check(_) => format!("could not look who answers for {vip}: {}", describe(result)),
    }
}
