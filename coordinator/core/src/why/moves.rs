//! The moves of a target's virtual IPs, followed through the core's state.

use super::{Freed, MoveStory, Stage};
use crate::{
    Coordinator,
    core::{JobFor, TermState, VipJob},
    event::{Action, AgentReport, Event, JobResult},
    placement::{self, Owner, Try},
};
use kage_types::{AgentId, Epoch, LeaseTiming, Time, Verdict, Vip};
use std::time::Duration;

/// The last stage of a move.
pub(super) const SET: &str = "VIP set";

/// A move, as it goes on.
#[derive(Clone, Debug)]
pub(super) struct Following {
    pub vip: Vip,
    pub cause: &'static str,
    pub began: Time,
    to: Owner,
    from: Option<(Owner, Epoch)>,
    planned: bool,
    /// The owner stays the same: it does not hold what is its own.
    pub told_again: bool,
    epoch: Option<Epoch>,
    /// Before anything of the move could change it.
    granted_until: Time,
    last_grant: Option<Time>,
    floor: Option<Time>,
    durable: Option<Time>,
    bars: Vec<(AgentId, Time, Duration)>,
    needed: usize,
    release: Option<(Time, bool)>,
    doubled: Option<Time>,
    looked: Option<(Time, bool)>,
    proof: Option<Time>,
    freed: Option<(Time, Freed)>,
    granted: Option<Time>,
    opened: Option<Time>,
    set: Option<Time>,
    pub ended: bool,
    waits_for: Vec<String>,
}

fn name(owner: &Owner) -> String {
    owner.domain.as_ref().map_or_else(|| owner.agent.to_string(), |domain| format!("{domain} on {}", owner.agent))
}

impl Following {
    fn new(core: &Coordinator, vip: Vip, moving: &placement::Move) -> Option<Self> {
        let state = core.vips.get(&vip)?;
        let floor = match core.term {
            TermState::Held { floor, .. } => Some(floor),
            TermState::None { .. } => None,
        };
        Some(Self {
            vip,
            cause: moving.cause.as_str(),
            began: moving.began,
            to: moving.to.clone(),
            from: moving.from.clone(),
            planned: moving.planned,
            told_again: moving.from.is_none() && !matches!(moving.stage, placement::Stage::Advancing { .. }),
            epoch: None,
            granted_until: state.granted_until,
            last_grant: state.last_grant,
            floor,
            durable: None,
            bars: Vec::new(),
            needed: core.cluster().bars_needed(),
            release: None,
            doubled: None,
            looked: None,
            proof: moving.proof,
            freed: None,
            granted: None,
            opened: None,
            set: None,
            ended: false,
            waits_for: Vec::new(),
        })
    }

    /// The answer to one of its jobs is about to be given to the core.
    fn answer(&mut self, now: Time, what: &VipJob, result: &JobResult) {
        let done = *result == JobResult::Done;
        match what {
            VipJob::Bar(voter) => {
                if let JobResult::Barred(age) = result {
                    self.bars.push((voter.clone(), now, *age));
                }
            }
            VipJob::Release => self.release = Some((now, done)),
            VipJob::Resume if done => self.doubled = Some(now),
            VipJob::Conflict => self.looked = Some((now, matches!(result, JobResult::Answered(Some(_))))),
            VipJob::Advance
            | VipJob::Prepare
            | VipJob::Resume
            | VipJob::Hold
            | VipJob::PowerOff
            | VipJob::PowerRead(_)
            | VipJob::FenceStorage
            | VipJob::LetGo
            | VipJob::Quiet => {}
        }
    }

    fn look(&mut self, core: &Coordinator, now: Time) {
        let Some(state) = core.vips.get(&self.vip) else {
            self.ended = true;
            return;
        };
        let epoch = state.row.as_ref().map(|row| row.epoch);
        let Some(moving) = state.moving.as_ref().filter(|moving| moving.began == self.began && moving.to == self.to)
        else {
            self.ended = true;
            self.waits_for.clear();
            if self.freed.is_some() && state.held && epoch == self.epoch {
                self.set = Some(now);
            }
            return;
        };
        self.proof = moving.proof;
        if !matches!(moving.stage, placement::Stage::Advancing { .. }) {
            self.epoch = epoch;
            self.durable.get_or_insert(now);
        }
        if !matches!(moving.stage, placement::Stage::Holding { .. }) && self.release.is_none_or(|(_, done)| !done) {
            // Grants are given until the new epoch is durable; to the owner of a planned move, until its release.
            (self.granted_until, self.last_grant) = (state.granted_until.max(self.granted_until), state.last_grant);
        }
        if matches!(moving.stage, placement::Stage::Holding { .. }) && self.freed.is_none() {
            let released = moving.freed == placement::Freed::Yes;
            let outlived = now >= self.patience(core);
            let freed = match (released, self.proof.is_some() && !outlived) {
                (true, _) => Freed::Release,
                (false, true) => Freed::Proof,
                (false, false) => Freed::Patience,
            };
            self.freed = Some((now, freed));
        }
        self.waits_for = waits_for(core, now, self, moving);
    }

    fn patience(&self, core: &Coordinator) -> Time {
        self.granted_until.max(self.consents_until(core))
    }

    fn consents_until(&self, core: &Coordinator) -> Time {
        let lease = LeaseTiming::patience(core.cluster().timing.lease);
        self.bars.iter().map(|(_, at, age)| *at + lease.saturating_sub(*age)).max().unwrap_or(Time::ZERO)
    }

    /// Milliseconds after the beginning, in a sentence.
    pub fn story(&self, core: &Coordinator, t0: Time, before: &[(&str, Time)]) -> MoveStory {
        MoveStory {
            vip: self.vip.to_string(),
            cause: self.cause.to_owned(),
            from: match &self.from {
                Some((owner, epoch)) => format!("{} at epoch {epoch}", name(owner)),
                None if self.told_again => "the same owner, told again".into(),
                None => "nobody".into(),
            },
            to: name(&self.to),
            epoch: self.epoch.map(|epoch| epoch.0),
            freed: self.freed.map(|(_, freed)| freed),
            done: self.set.is_some(),
            lease: self.arithmetic(core, t0),
            waits_for: self.waits_for.clone(),
            stages: self.stages(t0, before),
        }
    }

    fn arithmetic(&self, core: &Coordinator, t0: Time) -> Vec<String> {
        let timing = core.cluster().timing;
        let patience = LeaseTiming::patience(timing.lease);
        let mut lines = vec![format!("L = {}; patience = L(1 + 2ρ) = {}", ms(timing.lease), ms(patience))];
        let until = after(self.granted_until, t0);
        lines.push(match self.last_grant {
            Some(grant) if grant + patience == self.granted_until => {
                format!(
                    "last grant decided at {}; {} later it is over on any clock: {until}",
                    after(grant, t0),
                    ms(patience)
                )
            }
            Some(grant) => format!(
                "last grant decided at {}; a long lease, or a term before this one, may last until {until}",
                after(grant, t0)
            ),
            None if self.granted_until == Time::ZERO => "no grant is known, and none can have been given".to_owned(),
            None if self.floor == Some(self.granted_until) => {
                format!(
                    "no grant of this process; what an earlier term may have granted ends by T + L: {until} (rule 7)"
                )
            }
            None => format!("no grant of this process; an earlier one's, or a long lease, may last until {until}"),
        });
        if let Some((_, last, _)) = self.bars.iter().max_by_key(|(_, at, _)| *at) {
            let youngest = self.bars.iter().map(|(_, _, age)| *age).min().unwrap_or_default();
            lines.push(format!(
                "{} of {} voters barred, {} needed, the last at {}; youngest consent {} old: over at {}",
                self.bars.len(),
                core.cluster().voters().count(),
                self.needed,
                after(*last, t0),
                ms(youngest),
                after(self.consents_until(core), t0)
            ));
        } else if self.needed > 0 {
            lines.push(format!("no bar yet, {} needed", self.needed));
        } else {
            let loss = core.cluster().on_coordinator_loss.as_str();
            lines.push(format!("on_coordinator_loss = {loss:?}: no voter consents, so no bars are needed"));
        }
        let patience = self.patience(core);
        let sooner = |at: Time| match patience.since(at) {
            Duration::ZERO => String::new(),
            sooner => format!(", {} sooner than by patience", ms(sooner)),
        };
        match self.freed {
            Some((at, Freed::Release)) => {
                let released =
                    self.release.map_or_else(String::new, |(at, _)| format!("released at {}, ", after(at, t0)));
                lines.push(format!("{released}free at {}{}", after(at, t0), sooner(at)));
            }
            Some((at, Freed::Proof)) => {
                let read = self.proof.map_or_else(String::new, |read| {
                    format!(", asked at {}, later than every grant and consent", after(read, t0))
                });
                lines.push(format!("its power reads off{read}: free at {}{}", after(at, t0), sooner(at)));
            }
            Some((at, Freed::Patience)) => lines.push(format!(
                "patience is the later of both: {}; nobody answered for it; free at {}, {} after that",
                after(patience, t0),
                after(at, t0),
                ms(at.since(patience))
            )),
            None if self.durable.is_some() => lines.push(format!("by patience: not before {}", after(patience, t0))),
            None => {}
        }
        lines
    }

    fn stages(&self, t0: Time, before: &[(&str, Time)]) -> Vec<Stage> {
        let freed = match self.freed {
            Some((_, Freed::Release)) => "free (released)",
            Some((_, Freed::Proof)) => "free (proved off)",
            Some((_, Freed::Patience)) | None => "free (outlived)",
        };
        let released = self.release.filter(|(_, done)| *done).map(|(at, _)| at);
        let double = if self.planned { "double runs (before the release)" } else { "double runs" };
        let mut points: Vec<(&str, Time)> = before.to_vec();
        let own = [
            ("epoch durable", self.durable),
            (double, self.doubled),
            ("bars of a majority", self.bars.get(self.needed.saturating_sub(1)).map(|(_, at, _)| *at)),
            ("released", released),
            (freed, self.freed.map(|(at, _)| at)),
            ("lease granted", self.granted),
            ("opened, says its agent", self.opened),
            (SET, self.set),
        ];
        points.extend(own.into_iter().filter_map(|(name, at)| Some((name, at?))));
        points.sort_by_key(|(_, at)| *at);
        let mut last = points.first().map_or(t0, |(_, at)| *at);
        let mut stages = Vec::new();
        for (name, at) in points {
            stages.push(Stage { name: name.to_owned(), ms: ms_between(t0, at), took_ms: ms_between(last, at) });
            last = at;
        }
        stages
    }
}

/// Milliseconds from one to the other, to a tenth.
pub(super) fn ms_between(from: Time, to: Time) -> f64 {
    let tenths = |duration: Duration| {
        #[allow(clippy::cast_precision_loss, reason = "tenths of milliseconds of a journal")]
        let tenths = (duration.as_micros() / 100) as f64;
        tenths / 10.0
    };
    if to >= from { tenths(to.since(from)) } else { -tenths(from.since(to)) }
}

/// Whole milliseconds.
fn ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

/// `+1234 ms`, after the beginning of the story.
pub(super) fn after(at: Time, t0: Time) -> String {
    if at == Time::FAR {
        return "never".into();
    }
    format!("{:+.0} ms", ms_between(t0, at))
}

/// What a move still needs.
fn waits_for(core: &Coordinator, now: Time, following: &Following, moving: &placement::Move) -> Vec<String> {
    let securing = match &moving.stage {
        placement::Stage::Advancing { .. } => return vec!["SIF, to make the new epoch durable (rule 5)".into()],
        placement::Stage::Holding { .. } => return vec![format!("{}, to open it (rule 1)", moving.to.agent)],
        placement::Stage::Securing(securing) => securing,
    };
    let mut waits = Vec::new();
    if following.bars.len() < following.needed {
        waits.push(format!("bars: {} of {} needed (rule 6)", following.bars.len(), following.needed));
    }
    if moving.to.domain.is_some() && securing.vm != Try::Done {
        waits.push("its double, to run".to_owned());
    }
    if moving.freed == placement::Freed::No && moving.proof.is_none() {
        let patience = following.patience(core);
        let owner = moving.from.as_ref().map(|(from, _)| &from.agent);
        if owner.is_some() && !core.patience_allowed(owner) {
            waits.push("a release or proof: patience is not allowed against its owner (rules 6 and 10)".to_owned());
        } else if now < patience {
            waits.push(format!("a release, proof, or patience for {} more (rule 5)", ms(patience.since(now))));
        }
        if following.looked.is_some_and(|(_, answered)| answered) {
            waits.push("silence: somebody still answers for it (rule 5)".to_owned());
        }
    }
    let writers = core.cluster().targets.values().find(|target| target.vips.contains(&following.vip));
    if writers.and_then(crate::config::Target::writers).is_some() && moving.freed == placement::Freed::No {
        waits.push("certainty that nobody else writes (never two writers)".to_owned());
    }
    waits
}

/// Before the core is given an event.
pub(super) fn before(moves: &mut [Following], core: &Coordinator, now: Time, event: &Event) {
    match event {
        Event::Job { job, result } => {
            let Some(JobFor::Vip(vip, what)) = core.jobs.get(job) else { return };
            for following in moves.iter_mut().filter(|following| following.vip == *vip && !following.ended) {
                following.answer(now, what, result);
            }
        }
        Event::Report { agent, report: AgentReport::Opened(ask) } => {
            let opened = |f: &&mut Following| f.vip == ask.vip && f.epoch == Some(ask.epoch) && f.to.agent == *agent;
            if let Some(following) = moves.iter_mut().rev().find(opened) {
                following.opened.get_or_insert(now);
            }
        }
        Event::TermAcquired { .. }
        | Event::TermRenewed { .. }
        | Event::TermLost { .. }
        | Event::TermFailed { .. }
        | Event::LedgerRead { .. }
        | Event::AgentUp { .. }
        | Event::AgentDown { .. }
        | Event::Ask { .. }
        | Event::Report { .. }
        | Event::Move { .. }
        | Event::OrdersRead { .. }
        | Event::TroublesRead { .. }
        | Event::TablesRead { .. }
        | Event::PutOrder { .. }
        | Event::ClearOrder { .. }
        | Event::Adopt { .. }
        | Event::EndQuarantine { .. }
        | Event::WallClock { .. }
        | Event::Reload { .. }
        | Event::Tick => {}
    }
}

/// When the core has decided.
pub(super) fn after_step(
    moves: &mut Vec<Following>,
    core: &Coordinator,
    now: Time,
    vips: impl Iterator<Item = Vip>,
    actions: &[Action],
) {
    for following in moves.iter_mut().filter(|following| !following.ended) {
        following.look(core, now);
    }
    for vip in vips {
        let Some(moving) = core.vips.get(&vip).and_then(|state| state.moving.as_ref()) else { continue };
        let known = |f: &Following| f.vip == vip && !f.ended && f.began == moving.began && f.to == moving.to;
        if !moves.iter().any(known)
            && let Some(mut following) = Following::new(core, vip, moving)
        {
            following.look(core, now);
            moves.push(following);
        }
    }
    for action in actions {
        let Action::Reply { grant, .. } = action else { continue };
        for item in grant.items.iter().filter(|item| item.verdict == Verdict::Granted) {
            let granted = |f: &&mut Following| f.vip == item.vip && f.epoch == Some(item.epoch) && f.freed.is_some();
            if let Some(following) = moves.iter_mut().rev().find(granted) {
                following.granted.get_or_insert(now);
            }
        }
    }
}
