//! Moving a virtual IP: epoch durable, bars, release or proof or patience, the double resumed, nobody answering,
//! then and only then the new owner is told to hold (docs/safety.md, rules 5 to 7).

use crate::{
    core::{Coordinator, JobFor, VipJob, VipView},
    event::{Action, AgentCommand, Cause, JobId, JobResult, Severity, VipRow},
    sabotage::Sabotage,
    stand_in::Resume,
};
use kage_types::{AgentId, AskVip, DomainName, Epoch, LeaseTiming, TargetName, Time, Verdict, Vip, whole_millis};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

mod ended;

/// Between two tries of the same step.
const RETRY: Duration = Duration::from_millis(300);
/// How long an RFC 5227 probe listens. The RFC waits 2 s after three probes; ours is one more look, not the proof.
const LISTEN: Duration = Duration::from_millis(150);
/// The storage's and the power's commands may take this long.
pub(crate) const FENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// An owner that can be reached releases within this time; then its writers are fenced as if it could not.
pub(crate) const RELEASE_PATIENCE: Duration = Duration::from_secs(3);
/// A service is given this long to stop: its agent answers when it has.
pub(crate) const LET_GO: Duration = Duration::from_secs(5);
/// A planned move gives the preparations this long before it releases all the same.
const PREPARE: Duration = Duration::from_secs(1);

/// Who is to own a VIP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub agent: AgentId,
    pub domain: Option<DomainName>,
}

/// How a VIP came free, or will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Freed {
    /// Nobody said anything: patience, unless a release comes first.
    No,
    /// By the owner's acknowledged release, or because nobody else ever had it under this coordinator.
    Yes,
}

/// A step that is tried until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Try {
    Idle { not_before: Time },
    Running(JobId),
    Done,
}

impl Try {
    fn at_once() -> Self {
        Try::Idle { not_before: Time::ZERO }
    }

    /// Was it tried in vain?
    pub fn failed_since(&self, began: Time) -> bool {
        matches!(self, Try::Idle { not_before } if *not_before > began)
    }

    pub fn due(&self, now: Time) -> bool {
        matches!(self, Try::Idle { not_before } if now >= *not_before)
    }

    fn wake(&self) -> Time {
        match self {
            Try::Idle { not_before } => *not_before,
            Try::Running(_) | Try::Done => Time::FAR,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The new epoch is being made durable.
    Advancing {
        step: Step,
        /// The old epoch is over for good, so what follows need not wait for the new one. Absent in snapshots of before it
        /// was there.
        #[serde(default)]
        ahead: Option<Box<Securing>>,
    },
    /// Durable; the old owner's right is being outlived.
    Securing(Box<Securing>),
    /// The new owner was told to hold.
    Holding { step: Step },
}

/// One job, repeated until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step(Try);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Securing {
    pub since: Time,
    bars: BTreeSet<AgentId>,
    asking: BTreeMap<AgentId, Try>,
    /// Consents given before the bars end by then.
    consents_until: Time,
    /// The last of them was given by then.
    last_consent: Time,
    pub release: Try,
    prepared: Try,
    pub vm: Try,
    conflict: Try,
    pub writers: WriterSteps,
}

/// What keeps two instances of a single writer from running at once (safety: never two writers).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriterSteps {
    /// Power off, then read; done: it read off.
    pub power: Try,
    pub storage: Try,
    /// The double is suspended before its target writes.
    pub quiet: Try,
    /// Of a move begun under an earlier term: the target was asked whether it still writes. Absent in snapshots of before
    /// it was there.
    #[serde(default = "Try::at_once")]
    pub left: Try,
    pub told: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    pub to: Owner,
    pub cause: Cause,
    /// Who had it, as far as this process knows.
    pub from: Option<(Owner, Epoch)>,
    /// No owner before that one can be left: its release frees the VIP. Else patience is needed all the same.
    from_secured: bool,
    pub freed: Freed,
    /// The owner's power read off; since when it was being read. What it held then is gone with its kernel.
    pub proof: Option<Time>,
    /// Release only when the rest is ready: the owner serves until then.
    pub planned: bool,
    /// Of a single writer: as far as this VIP goes, nobody but the new owner can write any more. Absent in snapshots of
    /// before it was there.
    #[serde(default)]
    pub clear: bool,
    pub stage: Stage,
    pub began: Time,
}

impl Move {
    /// Is nothing left to wait for but its new owner?
    pub fn is_told(&self) -> bool {
        matches!(self.stage, Stage::Holding { .. })
    }

    /// Its owner's power reads off (rule 5b): what was granted and consented to before that is gone with its kernel. Of
    /// consents this says enough once a majority is barred.
    pub fn proved(&self, last_grant: Option<Time>) -> bool {
        let consented = match &self.stage {
            Stage::Securing(securing) => securing.last_consent,
            Stage::Advancing { .. } | Stage::Holding { .. } => Time::ZERO,
        };
        self.proof.is_some_and(|read| last_grant.is_none_or(|granted| granted < read) && consented < read)
    }

    /// The epoch that is left is over for good, and its owner has said so by itself.
    pub fn switched(&mut self, now: Time) {
        self.proof = Some(now);
        if let Stage::Advancing { ahead: ahead @ None, .. } = &mut self.stage {
            *ahead = Some(Box::new(Securing::new(now)));
        }
    }
}

/// One VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VipState {
    pub target: TargetName,
    pub row: Option<VipRow>,
    /// Every grant ends by then, on any clock: max of d + L(1 + 2ρ).
    pub granted_until: Time,
    pub last_grant: Option<Time>,
    /// Its owner asks for it, and has been granted it or placed by this process.
    pub held: bool,
    /// Since when its owner asks without it.
    missing_since: Option<Time>,
    /// This process knows that no earlier owner is left.
    secured: bool,
    pub moving: Option<Move>,
    pub wake: Time,
}

impl VipState {
    pub fn new(target: TargetName) -> Self {
        Self {
            target,
            row: None,
            granted_until: Time::ZERO,
            last_grant: None,
            held: false,
            missing_since: None,
            secured: false,
            moving: None,
            wake: Time::FAR,
        }
    }

    pub fn view(&self) -> VipView {
        let moving = self.moving.as_ref().map(|moving| match moving.stage {
            Stage::Advancing { .. } => "making the epoch durable",
            Stage::Securing(_) => "outliving the old lease",
            Stage::Holding { .. } => "opening",
        });
        VipView { row: self.row.clone(), granted: self.last_grant, held: self.held, moving }
    }

    /// Is its new owner's double being resumed for it?
    fn resumes(&self, double: &Owner) -> bool {
        self.moving.as_ref().is_some_and(|moving| match &moving.stage {
            Stage::Securing(securing) => moving.to == *double && matches!(securing.vm, Try::Running(_)),
            Stage::Advancing { .. } | Stage::Holding { .. } => false,
        })
    }

    /// Its new owner's double runs: that was ordered for another VIP, once for all.
    fn resumed(&mut self, double: &Owner) {
        if let Some(Move { to, stage: Stage::Securing(securing), .. }) = &mut self.moving
            && to == double
            && matches!(securing.vm, Try::Idle { .. })
        {
            securing.vm = Try::Done;
        }
    }

    /// The owner's request arrived.
    pub fn owner_asked(&mut self, now: Time, listed: bool, hears: bool) {
        if !hears {
            return;
        }
        self.held = listed;
        if listed {
            self.missing_since = None;
        } else {
            let since = *self.missing_since.get_or_insert(now);
            self.wake = self.wake.min(since + RETRY);
        }
    }

    /// Granting: only to the owner, under its epoch. An owner that asks under an epoch was told to hold it, and that
    /// was said only when no earlier owner was left: so asking shows that the epoch is secured.
    pub fn verdict(&mut self, now: Time, agent: &AgentId, epoch: Epoch, may: bool, length: Duration) -> Verdict {
        let Some(row) = &self.row else {
            return Verdict::Wait;
        };
        if epoch > row.epoch {
            return Verdict::Wait;
        }
        if epoch < row.epoch {
            // A planned move: the old owner serves until it is told to release.
            let waits = self.moving.as_ref().is_some_and(|moving| {
                moving.planned
                    && matches!(&moving.stage, Stage::Securing(securing) if matches!(securing.release, Try::Idle { .. }))
            });
            return if waits { Verdict::Wait } else { Verdict::Superseded };
        }
        if row.owner != *agent {
            return Verdict::Superseded;
        }
        if !may {
            return Verdict::Wait;
        }
        self.secured = true;
        self.granted_until = self.granted_until.max(now + LeaseTiming::patience(length));
        self.last_grant = Some(now);
        Verdict::Granted
    }

    /// A new term begins with this row: nothing that was under way counts any more.
    pub fn begin_term(&mut self, row: Option<VipRow>) {
        let same = self.row.as_ref().map(|row| row.epoch) == row.as_ref().map(|row| row.epoch);
        self.secured &= same && self.moving.is_none();
        self.row = row;
        self.moving = None;
        self.held = false;
        self.missing_since = None;
    }

    /// A row as read from the ledger, perhaps late. True if it ends what was under way: another changed the owner, and
    /// bars, releases and the new owner's command were for an epoch that is over.
    pub fn learn(&mut self, row: &VipRow) -> bool {
        match &mut self.row {
            Some(known) if known.epoch > row.epoch => return false,
            Some(known) if known.epoch == row.epoch => {
                // Read before it was noted, perhaps: only the return of a long lease clears it.
                known.long_lease |= row.long_lease;
                return false;
            }
            Some(_) | None => {}
        }
        self.row = Some(row.clone());
        self.secured = false;
        // Our own change, whose answer was lost: it is made once more.
        let ours = self.moving.as_ref().is_some_and(|moving| {
            matches!(moving.stage, Stage::Advancing { .. })
                && moving.to.agent == row.owner
                && moving.to.domain == row.domain
        });
        if !ours {
            self.moving = None;
            self.held = false;
        }
        !ours
    }

    /// Does this process know that no earlier owner is left, and is no later one on its way?
    pub fn only_its_owner_is_left(&self) -> bool {
        self.secured && self.moving.is_none()
    }

    /// Has its owner, though it asks, not asked for it for so long?
    pub fn is_missing(&self, now: Time, length: Duration) -> bool {
        self.missing_since.is_some_and(|since| now.since(since) >= length)
    }

    /// Is it where it should be, with nothing under way?
    pub fn settled_on(&self, owner: &Owner) -> bool {
        self.moving.is_none()
            && self.row.as_ref().is_some_and(|row| row.owner == owner.agent && row.domain == owner.domain)
    }

    fn begin_move(&mut self, now: Time, to: Owner, cause: Cause, planned: bool) {
        let from =
            self.row.as_ref().map(|row| (Owner { agent: row.owner.clone(), domain: row.domain.clone() }, row.epoch));
        let stage = Stage::Advancing { step: Step(Try::Idle { not_before: now }), ahead: None };
        // Of a move that is replaced: its owner was told to hold, or would have been, when no earlier one was left.
        let secured = self.moving.as_ref().is_some_and(|moving| match &moving.stage {
            Stage::Advancing { .. } => false,
            Stage::Securing(_) => moving.freed == Freed::Yes,
            Stage::Holding { .. } => true,
        });
        let from_secured = self.secured || secured;
        self.moving = Some(Move {
            to,
            cause,
            from,
            from_secured,
            freed: Freed::No,
            proof: None,
            planned,
            clear: false,
            stage,
            began: now,
        });
        self.held = false;
        self.wake = now;
    }
}

impl Coordinator {
    /// Begin to move a VIP. A move under way to the same owner goes on; one to another owner is replaced.
    pub(crate) fn move_vip(&mut self, now: Time, vip: Vip, to: Owner, cause: Cause, planned: bool) {
        let Some(state) = self.vips.get_mut(&vip) else {
            return;
        };
        if state.settled_on(&to) || state.moving.as_ref().is_some_and(|moving| moving.to == to) {
            return;
        }
        state.begin_move(now, to, cause, planned);
    }

    /// Its virtual server has left its owner by live migration, and that owner has nothing of it left. As its epoch is over
    /// for good, bars and preparations go side by side with the new one.
    pub(crate) fn move_switched(&mut self, now: Time, vip: Vip, to: Owner) {
        let Some(state) = self.vips.get_mut(&vip) else { return };
        if state.settled_on(&to) || state.moving.as_ref().is_some_and(|moving| moving.to == to) {
            return;
        }
        state.begin_move(now, to, Cause::Arranged, false);
        if let Some(moving) = &mut state.moving {
            moving.switched(now);
        }
    }

    /// Its owner lost what it served with: moved to the same owner, under a new epoch. One that is told again to hold the
    /// old one would be so in vain.
    pub(crate) fn serve_anew(&mut self, now: Time, vip: Vip, owner: Owner) {
        let again = |state: &VipState| {
            let told = |moving: &Move| moving.to == owner && moving.from.is_none() && state.row.is_some();
            state.settled_on(&owner) || state.moving.as_ref().is_some_and(told)
        };
        if let Some(state) = self.vips.get_mut(&vip).filter(|state| again(state)) {
            let cause = state.row.as_ref().map_or(Cause::Takeover, |row| row.cause);
            state.begin_move(now, owner, cause, false);
        }
    }

    /// The owner of these VIPs is dead since then, for certain.
    pub(crate) fn prove_dead(&mut self, vips: &BTreeSet<Vip>, since: Time) {
        for vip in vips {
            if let Some(moving) = self.vips.get_mut(vip).and_then(|state| state.moving.as_mut()) {
                moving.proof = Some(since);
            }
        }
    }

    /// Give up the moves of all these VIPs, if none of them is durable yet or may become so. True if there is none left.
    pub(crate) fn cancel_moves(&mut self, vips: &BTreeSet<Vip>) -> bool {
        let idle = |moving: &Move| matches!(moving.stage, Stage::Advancing { step: Step(Try::Idle { .. }), .. });
        let states = || vips.iter().filter_map(|vip| self.vips.get(vip));
        if !states().all(|state| state.moving.as_ref().is_none_or(idle)) {
            return false;
        }
        for vip in vips {
            if let Some(state) = self.vips.get_mut(vip) {
                state.moving = None;
            }
        }
        true
    }

    /// Do what the VIP's move needs now. Called when its wake time has come; sets the next.
    pub(crate) fn place(&mut self, now: Time, vip: Vip, actions: &mut Vec<Action>) {
        if !self.in_authority(now) {
            if let Some(state) = self.vips.get_mut(&vip) {
                state.wake = now + RETRY;
            }
            return;
        }
        let Some(state) = self.vips.get_mut(&vip) else {
            return;
        };
        if state.moving.is_none() {
            self.place_settled(now, vip);
        }
        let Some(mut state) = self.vips.get(&vip).cloned() else {
            return;
        };
        let Some(mut moving) = state.moving.take() else {
            return;
        };
        let wake = match &mut moving.stage {
            Stage::Advancing { step, ahead } => {
                if step.0.due(now) {
                    step.0 = Try::Running(self.advance(vip, &state, &moving.to, moving.cause, actions));
                }
                let mut wake = step.0.wake();
                if let Some(securing) = ahead {
                    let epoch = state.row.as_ref().map_or(Epoch(0), |row| row.epoch).next();
                    self.ask_for_bars(now, vip, epoch, securing, actions);
                    self.prepare(vip, &moving.to, now, securing, actions);
                    wake = securing.asking.values().map(Try::wake).fold(wake, Time::min);
                }
                wake
            }
            Stage::Securing(_) => self.secure(now, vip, &state, &mut moving, actions),
            Stage::Holding { step } => {
                if step.0.due(now) {
                    step.0 = Try::Running(self.hold(vip, &state, &moving.to, actions));
                }
                step.0.wake()
            }
        };
        if let Some(state) = self.vips.get_mut(&vip) {
            state.moving = Some(moving);
            state.wake = wake;
        }
    }

    /// Nothing under way: an owner that is up and does not hold what is its own is told again.
    fn place_settled(&mut self, now: Time, vip: Vip) {
        let forgets = self.breaks(Sabotage::NotToldAgain);
        let Some(state) = self.vips.get_mut(&vip) else {
            return;
        };
        state.wake = Time::FAR;
        let Some(row) = state.row.clone() else { return };
        let Some(since) = state.missing_since.filter(|_| !forgets) else {
            return;
        };
        if now < since + RETRY {
            state.wake = since + RETRY;
            return;
        }
        state.missing_since = None;
        let to = Owner { agent: row.owner, domain: row.domain };
        let freed = if state.secured { Freed::Yes } else { Freed::No };
        state.moving = Some(Move {
            to,
            cause: row.cause,
            from: None,
            from_secured: state.secured,
            freed,
            proof: None,
            planned: false,
            clear: false,
            stage: Stage::Securing(Box::new(Securing::new(now))),
            began: now,
        });
    }

    fn advance(&mut self, vip: Vip, state: &VipState, to: &Owner, cause: Cause, actions: &mut Vec<Action>) -> JobId {
        let expected = state.row.as_ref().map_or(Epoch(0), |row| row.epoch);
        let job = self.job(JobFor::Vip(vip, VipJob::Advance));
        actions.push(Action::AdvanceEpoch {
            job,
            vip,
            expected,
            owner: to.agent.clone(),
            domain: to.domain.clone(),
            target: state.target.clone(),
            cause,
        });
        if self.breaks(Sabotage::OpenBeforeDurable) {
            let ask = AskVip { vip, epoch: expected.next() };
            if let Some(row) = self.vips.get_mut(&vip).and_then(|state| state.row.as_mut()) {
                row.epoch = ask.epoch;
                row.owner = to.agent.clone();
                row.domain = to.domain.clone();
            }
            self.command(
                vip,
                VipJob::Bar(to.agent.clone()),
                &to.agent,
                AgentCommand::Hold { ask, domain: to.domain.clone() },
                Duration::from_secs(2),
                actions,
            );
        }
        job
    }

    fn hold(&mut self, vip: Vip, state: &VipState, to: &Owner, actions: &mut Vec<Action>) -> JobId {
        let epoch = state.row.as_ref().map_or(Epoch(0), |row| row.epoch);
        let command = AgentCommand::Hold { ask: AskVip { vip, epoch }, domain: to.domain.clone() };
        self.command(vip, VipJob::Hold, &to.agent, command, Duration::from_secs(2), actions)
    }

    fn command(
        &mut self,
        vip: Vip,
        what: VipJob,
        agent: &AgentId,
        command: AgentCommand,
        timeout: Duration,
        actions: &mut Vec<Action>,
    ) -> JobId {
        let job = self.job(JobFor::Vip(vip, what));
        actions.push(Action::Command { job, agent: agent.clone(), command, timeout });
        job
    }

    fn ask_for_bars(&mut self, now: Time, vip: Vip, floor: Epoch, securing: &mut Securing, actions: &mut Vec<Action>) {
        let voters: Vec<AgentId> = self.cluster.voters().cloned().collect();
        for voter in voters {
            let bar = securing.asking.entry(voter.clone()).or_insert(Try::Idle { not_before: now });
            if bar.due(now) {
                let job = self.job(JobFor::Vip(vip, VipJob::Bar(voter.clone())));
                actions.push(Action::Bar { job, voter, vip, floor });
                *bar = Try::Running(job);
            }
        }
    }

    fn prepare(&mut self, vip: Vip, to: &Owner, now: Time, securing: &mut Securing, actions: &mut Vec<Action>) {
        if securing.prepared.due(now) {
            let command = AgentCommand::Prepare { vip, domain: to.domain.clone() };
            let job = self.command(vip, VipJob::Prepare, &to.agent, command, PREPARE, actions);
            securing.prepared = Try::Running(job);
        }
    }

    /// A backup server sleeps until it is needed. A virtual server that is a target itself is brought up by whoever sends
    /// its VIPs there, and power saving moves them to what runs.
    fn is_to_be_resumed(&self, cause: Cause, to: &Owner) -> bool {
        cause != Cause::Arranged && to.domain.as_ref().is_some_and(|domain| !self.is_a_target(domain))
    }

    /// Is it being suspended, or resumed for another VIP? Its agent obeys the later of two orders, whichever comes first,
    /// and refuses the other.
    fn is_ordered(&self, double: &Owner) -> bool {
        self.pausing.contains_key(double) || self.vips.values().any(|state| state.resumes(double))
    }

    /// An order to it is over: whoever waited for that goes on.
    pub(crate) fn wake_moves_to(&mut self, now: Time, double: &Owner) {
        let to = |state: &&mut VipState| state.moving.as_ref().is_some_and(|moving| moving.to == *double);
        for state in self.vips.values_mut().filter(to) {
            state.wake = state.wake.min(now);
        }
    }

    /// The epoch is durable. Returns when to look again.
    fn secure(&mut self, now: Time, vip: Vip, state: &VipState, moving: &mut Move, actions: &mut Vec<Action>) -> Time {
        let epoch = state.row.as_ref().map_or(Epoch(0), |row| row.epoch);
        let needed = if self.breaks(Sabotage::PatienceWithoutBars) { 0 } else { self.cluster.bars_needed() };
        let to = moving.to.clone();
        let early = self.breaks(Sabotage::OpenBeforeDoubleRuns);
        // Told again, and granted meanwhile: it asks under this epoch, so nobody earlier is left to be outlived.
        if moving.from.is_none() && state.secured {
            moving.freed = Freed::Yes;
        }
        let same_owner = moving.from.is_none() && moving.freed == Freed::Yes;
        let writers = self.cluster.targets.get(&state.target).and_then(crate::config::Target::writers);
        let unproven = self.breaks(Sabotage::WriterUnproven);
        let one_writer = unproven
            || writers.as_ref().is_none_or(|writers| self.one_writer(now, vip, state, moving, writers, actions));
        let Stage::Securing(securing) = &mut moving.stage else {
            return Time::FAR;
        };

        if !same_owner {
            self.ask_for_bars(now, vip, epoch, securing, actions);
        }
        let barred = same_owner || securing.bars.len() >= needed;
        // A machine that was dead and is switched on again must not find voters that let it write on, by any of its VIPs.
        let newly = one_writer && barred && !moving.clear;
        moving.clear = one_writer && barred;
        if newly && writers.is_some() {
            self.wake_siblings(now, vip, &state.target);
        }
        let alone = writers.is_none() || unproven || (moving.clear && self.others_clear(vip, state, moving));

        let may = self.may_resume(&to);
        let resumes = self.is_to_be_resumed(moving.cause, &to) && may != Resume::Needless;
        let Stage::Securing(securing) = &mut moving.stage else {
            return Time::FAR;
        };
        if let (Some(domain), true) = (
            to.domain.as_ref().filter(|_| resumes),
            one_writer && alone && may == Resume::Yes && securing.vm.due(now) && !self.is_ordered(&to),
        ) {
            let command = AgentCommand::ResumeVm { domain: domain.clone() };
            let job = self.command(vip, VipJob::Resume, &to.agent, command, Duration::from_secs(10), actions);
            securing.vm = Try::Running(job);
        }
        let vm_ready = !resumes || securing.vm == Try::Done || early;

        // A planned move costs its clients only what happens after the release: the rest is made ready before.
        if moving.planned && vm_ready {
            self.prepare(vip, &to, now, securing, actions);
        }
        // A single writer's double is resumed after the release, not before.
        let ready = barred && (vm_ready || writers.is_some());
        let prepared = !moving.planned || writers.is_some() || securing.prepared == Try::Done;
        if let Some((from, old)) = &moving.from
            && moving.freed == Freed::No
            && securing.release.due(now)
            && (!moving.planned || (ready && prepared) || (vm_ready && now >= securing.since + PREPARE))
        {
            let command = AgentCommand::Release { ask: AskVip { vip, epoch: *old } };
            let from = from.agent.clone();
            let job = self.command(vip, VipJob::Release, &from, command, Duration::from_millis(500), actions);
            securing.release = Try::Running(job);
        }

        // Patience (rule 5c): every grant and every consent is older than L(1 + 2ρ).
        let owner = moving.from.as_ref().map(|(from, _)| &from.agent);
        let allowed = barred && (self.patience_allowed(owner) || owner.is_none());
        let patience = state.granted_until.max(securing.consents_until);
        if moving.freed == Freed::No && allowed && securing.conflict.due(now) && now + LISTEN >= patience {
            let command = AgentCommand::ProbeVip { vip, listen: LISTEN };
            let job = self.command(vip, VipJob::Conflict, &to.agent, command, Duration::from_secs(1), actions);
            securing.conflict = Try::Running(job);
        }
        let outlived = allowed && now >= patience && securing.conflict == Try::Done;
        let proven = moving.from_secured && moving.proved(state.last_grant);
        if ready && vm_ready && one_writer && alone && (moving.freed == Freed::Yes || proven || outlived) {
            moving.stage = Stage::Holding { step: Step(Try::Running(self.hold(vip, state, &to, actions))) };
            let how = match (&moving.freed, proven) {
                (Freed::Yes, _) => "released",
                (Freed::No, true) if moving.cause == Cause::Arranged => "its virtual server has switched over",
                (Freed::No, true) => "its owner is proved off",
                (Freed::No, false) => "its lease has been outlived",
            };
            let text = format!("{vip} at epoch {epoch}: {how}; {} may open it", to.agent);
            self.note(Some(state.target.clone()), Severity::Info, "secured", text, actions);
            return Time::FAR;
        }
        let Stage::Securing(securing) = &moving.stage else {
            return Time::FAR;
        };
        let mut wake = securing.vm.wake().min(securing.release.wake().max(securing.since + PREPARE));
        if !resumes {
            wake = securing.release.wake().max(securing.since + PREPARE);
        }
        if !(one_writer && alone) {
            wake = wake.min(now + RETRY);
        }
        for bar in securing.asking.values() {
            wake = wake.min(bar.wake());
        }
        if allowed {
            let look = patience.before(LISTEN);
            wake = wake.min(if now < look { look } else { securing.conflict.wake() });
            if securing.conflict == Try::Done && now < patience {
                wake = wake.min(patience);
            }
        }
        if wake <= now { now + RETRY } else { wake }
    }
}

impl Securing {
    fn new(now: Time) -> Self {
        let idle = Try::Idle { not_before: now };
        Self {
            since: now,
            bars: BTreeSet::new(),
            asking: BTreeMap::new(),
            consents_until: now,
            last_consent: Time::ZERO,
            release: idle.clone(),
            prepared: idle.clone(),
            vm: idle.clone(),
            conflict: idle.clone(),
            writers: WriterSteps {
                power: idle.clone(),
                storage: idle.clone(),
                quiet: idle.clone(),
                left: idle,
                told: false,
            },
        }
    }
}

/// A result in a sentence.
pub(crate) fn describe(result: &JobResult) -> String {
    match result {
        JobResult::Done => "done".into(),
        JobResult::Failed(reason) | JobResult::Unknown(reason) => reason.clone(),
        JobResult::Epoch(epoch) => format!("epoch {epoch}"),
        JobResult::Barred(age) => format!("barred, last consent {:?} ago", whole_millis(*age)),
        JobResult::Check(outcome) => format!("{outcome:?}"),
        JobResult::Answered(who) => format!("answered by {who:?}"),
    }
}
