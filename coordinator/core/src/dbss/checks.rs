//! Rounds of checks: ping, probes, readings of power.

use super::*;
use kage_types::Vip;
use std::collections::VecDeque;

/// What was last seen of one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Seen {
    #[default]
    Unknown,
    Good(Time),
    Bad(Time, String),
}

impl Seen {
    pub fn of(now: Time, result: &JobResult) -> Self {
        match result {
            JobResult::Check(CheckOutcome::Ok) => Seen::Good(now),
            JobResult::Check(CheckOutcome::Error(why)) => Seen::Bad(now, format!("ERROR: {why}")),
            JobResult::Check(CheckOutcome::Ng(why)) => Seen::Bad(now, format!("NG: {why}")),
            JobResult::Done
            | JobResult::Failed(_)
            | JobResult::Unknown(_)
            | JobResult::Epoch(_)
            | JobResult::Barred(_)
            | JobResult::Answered(_) => Seen::Unknown,
        }
    }

    pub fn bad(&self) -> bool {
        matches!(self, Seen::Bad(..))
    }

    pub fn good(&self) -> bool {
        matches!(self, Seen::Good(_))
    }

    pub fn text(&self) -> String {
        match self {
            Seen::Unknown => "unknown".into(),
            Seen::Good(_) => "ok".into(),
            Seen::Bad(_, why) => why.clone(),
        }
    }
}

/// What a round looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Look {
    /// Ping and all services, at the VIP: what clients see.
    AtVip,
    /// Ping and all services, at the target's own address.
    AtTarget,
    /// The same at the VIP, pings as well: does the double still serve?
    AtDouble,
    /// Ping only.
    Ping,
    /// One service, at the VIP.
    Service(usize),
    /// Network examination: ping, power where it can be read, and (where agents push) the services at the VIP.
    Lost,
}

/// A round of checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Round {
    #[default]
    Idle,
    Running {
        look: Look,
        running: BTreeMap<JobId, TargetJob>,
        /// Still to be done, one after another (thesis).
        queue: VecDeque<TargetJob>,
    },
    /// All have ended; not yet judged.
    Ended,
}

impl Coordinator {
    pub(crate) fn begin_round(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        look: Look,
        actions: &mut Vec<Action>,
    ) {
        let parallel = self.cluster.detection.parallel;
        let services = || (0..target.services.len()).map(TargetJob::Probe);
        let mut queue = VecDeque::new();
        match look {
            Look::AtVip | Look::AtTarget | Look::AtDouble => {
                queue.push_back(TargetJob::Ping);
                queue.extend(services());
            }
            Look::Ping => queue.push_back(TargetJob::Ping),
            Look::Service(index) => queue.push_back(TargetJob::Probe(index)),
            Look::Lost => {
                queue.push_back(TargetJob::Ping);
                if self.cluster.detection.push {
                    queue.extend(services());
                }
                let machine = self.cluster.agents.get(&target.agent);
                if machine.is_some_and(|machine| machine.power_status.is_some()) {
                    queue.push_back(TargetJob::Power(now));
                }
            }
        }
        let at_once = if parallel { queue.len() } else { 1 };
        let mut running = BTreeMap::new();
        for check in queue.drain(..at_once) {
            running.insert(self.start_check(name, target, look, &check, actions), check);
        }
        self.dbss(name).round = Round::Running { look, running, queue };
    }

    fn start_check(
        &mut self,
        name: &TargetName,
        target: &Target,
        look: Look,
        check: &TargetJob,
        actions: &mut Vec<Action>,
    ) -> JobId {
        let detection = self.cluster.detection;
        let job = self.job(JobFor::Target(name.clone(), check.clone()));
        // A virtual server may hold none of its own: what answers there is another, be it its own backup server that stands
        // in for a third. While one is on its way nobody may answer.
        let answers = |vip: &&Vip| {
            let held = self.vips.get(*vip).filter(|state| state.held && state.moving.is_none());
            let holder = held.and_then(|state| state.row.as_ref()).and_then(|row| row.domain.as_ref());
            let looked_at = if look == Look::AtDouble { Some(self.double_of(target)) } else { target.domain() };
            target.vm.is_none() || held.is_some() && holder == looked_at
        };
        let vip = target.vips.iter().find(answers).map(|vip| vip.address());
        match check {
            TargetJob::Probe(index) => {
                let address = vip.filter(|_| look != Look::AtTarget).unwrap_or(target.address);
                if let Some(service) = target.services.get(*index) {
                    let limits = service.probe.limits(self.cluster.profile, &detection);
                    actions.push(Action::Probe {
                        job,
                        address,
                        port: service.port,
                        probe: service.probe.clone(),
                        limits: if look == Look::Lost { limits.of_silent_machine(&detection) } else { limits },
                    });
                }
            }
            TargetJob::Power(_) => {
                let timeout = detection.probe_timeout;
                actions.push(Action::ReadPower { job, agent: target.agent.clone(), timeout });
            }
            TargetJob::Ping
            | TargetJob::Restart
            | TargetJob::Reboot
            | TargetJob::Wake
            | TargetJob::LetGo(_)
            | TargetJob::Unfence
            | TargetJob::OtherPower(..)
            | TargetJob::Clear { .. } => {
                let timeout = detection.ping_timeout;
                let address = vip.filter(|_| look == Look::AtDouble).unwrap_or(target.address);
                actions.push(Action::Ping { job, address, count: detection.ping_count, timeout });
            }
        }
        job
    }

    pub(crate) fn target_job_done(
        &mut self,
        now: Time,
        name: &TargetName,
        what: TargetJob,
        job: JobId,
        result: JobResult,
        actions: &mut Vec<Action>,
    ) {
        match what {
            TargetJob::Ping | TargetJob::Probe(_) | TargetJob::Power(_) => {
                self.check_done(now, name, &what, job, &result, actions);
            }
            TargetJob::Restart => self.restart_done(now, name, &result, actions),
            TargetJob::LetGo(index) => self.let_go_done(now, name, index, &result, actions),
            TargetJob::Unfence => self.unfence_done(now, name, &result, actions),
            TargetJob::OtherPower(other, asked) => self.other_power_read(now, name, &other, asked, &result, actions),
            TargetJob::Clear { other, host, order } => {
                self.cleared(now, name, (&other, &host), order, &result, actions)
            }
            TargetJob::Reboot | TargetJob::Wake => {
                if result != JobResult::Done {
                    let text = format!("{what:?}: {}", describe(&result)).to_lowercase();
                    self.note(Some(name.clone()), Severity::Warning, "command-failed", text, actions);
                    if what == TargetJob::Reboot {
                        self.reboot_failed(now, name);
                    }
                }
            }
        }
    }

    fn check_done(
        &mut self,
        now: Time,
        name: &TargetName,
        what: &TargetJob,
        job: JobId,
        result: &JobResult,
        actions: &mut Vec<Action>,
    ) {
        let Some(dbss) = self.targets.get_mut(name) else {
            return;
        };
        // A check of an earlier mode or of a discarded round proves nothing now.
        let Round::Running { look, running, queue } = &mut dbss.round else {
            return;
        };
        if running.remove(&job).is_none() {
            return;
        }
        let look = *look;
        let seen = Seen::of(now, result);
        match what {
            TargetJob::Probe(index) => {
                let away = matches!(dbss.mode, Mode::TargetServerRecovery { .. } | Mode::Returning { .. });
                let standby = away && look != Look::AtDouble && dbss.held.contains(index) && seen.bad();
                dbss.services.insert(*index, if standby { Seen::Good(now) } else { seen });
            }
            TargetJob::Ping => {
                // Thesis 2: network bad, and the service is not asked any more.
                if seen.bad() && look != Look::Lost {
                    queue.clear();
                }
                dbss.ping = seen;
            }
            TargetJob::Power(asked) => {
                if let (JobResult::Done, Mode::NetworkExamination { off, .. }) = (result, &mut dbss.mode) {
                    *off = Some(*asked);
                }
            }
            TargetJob::Restart
            | TargetJob::Reboot
            | TargetJob::Wake
            | TargetJob::LetGo(_)
            | TargetJob::Unfence
            | TargetJob::OtherPower(..)
            | TargetJob::Clear { .. } => {}
        }
        if running.is_empty()
            && let Some(next) = queue.pop_front()
        {
            let Some(target) = self.cluster.targets.get(name).cloned() else {
                return;
            };
            let job = self.start_check(name, &target, look, &next, actions);
            if let Round::Running { running, .. } = &mut self.dbss(name).round {
                running.insert(job, next);
            }
            return;
        }
        if running.is_empty() {
            dbss.round = Round::Ended;
            dbss.round_ended = now;
        }
        dbss.wake = now;
    }
}
