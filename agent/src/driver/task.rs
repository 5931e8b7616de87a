//! The driver's loop.

use super::{Handle, Input, Stream, TapPort};
use crate::{
    events::Events,
    guard::{RenewalReport, RenewalThread, now},
    hands::{Hands, LiveVips, Opened, Order},
    host::clock::SleepDetector,
    service::Services,
    storage::Storage,
    votes::Voters,
};
use kage_agent_core::{
    CommandId, CommandResult, HoldRefused, KernelOutcome, OpId, Owner, OwnerAction, OwnerEvent, Voter, VoterEvent,
    Writers,
};
use kage_proto::agent::v1::{VoteReply, VoteRequest, Woke, agent_event::Event};
use kage_types::{AgentId, DomainName, Epoch, Nonce, Term, Time, Vip};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// How often addresses are given a new life.
const REFRESH: Duration = Duration::from_secs(1);
/// A deadline that can't be met is looked at again after this, not at once.
const BREATH: Duration = Duration::from_millis(2);
/// An answer that failed at once is told to the core after this: it tries again at once.
pub(super) const FAILED_PAUSE: Duration = Duration::from_millis(50);
/// Silence on a stream that is taken for a dead one, at least; three renewal intervals where those are longer.
const SILENCE: Duration = Duration::from_secs(1);

/// What the driver is made of.
pub struct Parts {
    /// This agent.
    pub me: AgentId,
    /// Of this process.
    pub incarnation: u64,
    /// Of this boot.
    pub boot_id: String,
    /// The owner's core.
    pub owner: Owner,
    /// The voter's core.
    pub voter: Voter,
    /// Absent for a witness, and while there is no guard.
    pub kernel: Option<RenewalThread>,
    /// The renewal thread's reports.
    pub reports: mpsc::UnboundedReceiver<RenewalReport>,
    /// Everything else.
    pub inputs: mpsc::Receiver<Input>,
    /// Addresses and announcements.
    pub hands: Hands,
    /// Whom announcements ask.
    pub live: LiveVips,
    /// The state directory.
    pub storage: Storage,
    /// The other voters.
    pub voters: Voters,
    /// Who watches.
    pub events: Events,
    /// Of domains whose elements were adopted.
    pub taps: BTreeMap<DomainName, TapPort>,
    /// What the owner wanted done when it adopted them.
    pub first: Vec<OwnerAction>,
    /// Which services must not run without a lease.
    pub writers: Writers,
    /// How they are held back.
    pub services: Services,
    /// For what takes time.
    pub handle: Handle,
}

pub(super) enum Reply {
    Hold(Vip, oneshot::Sender<Result<Opened, HoldRefused>>),
    Plain(oneshot::Sender<CommandResult>),
    /// Waits for the writers behind this VIP too; none: for all of them.
    Released(Option<Vip>, oneshot::Sender<CommandResult>),
}

/// A question to this voter that waits for its core, or for the coordinator.
pub(super) enum Question {
    /// From another agent.
    Vote {
        from: AgentId,
        question: VoteRequest,
        reply: oneshot::Sender<Result<VoteReply, Status>>,
    },
    /// This agent's own.
    Own {
        nonce: Nonce,
    },
    Bar {
        term: Term,
        reply: oneshot::Sender<Result<Duration, Status>>,
    },
}

pub(super) struct Relay {
    pub(super) expires: Time,
    pub(super) reply: oneshot::Sender<Result<VoteReply, Status>>,
}

/// Owner of the cores.
pub struct Driver {
    pub(super) me: AgentId,
    pub(super) incarnation: u64,
    pub(super) boot_id: String,
    pub(super) owner: Owner,
    pub(super) voter: Voter,
    pub(super) kernel: Option<RenewalThread>,
    pub(super) hands: Hands,
    pub(super) live: LiveVips,
    pub(super) storage: Storage,
    pub(super) voters: Voters,
    pub(super) events: Events,
    pub(super) taps: BTreeMap<DomainName, TapPort>,
    pub(super) stream: Option<Stream>,
    /// The stream's first assignment has come.
    pub(super) session: bool,
    /// The oldest request over the stream without an answer.
    pub(super) unanswered: Option<Time>,
    pub(super) replies: BTreeMap<CommandId, Reply>,
    /// Released, but what stands behind the VIP still runs.
    pub(super) releasing: Vec<(Option<Vip>, oneshot::Sender<CommandResult>)>,
    pub(super) last_command: CommandId,
    pub(super) questions: BTreeMap<u64, Question>,
    pub(super) last_question: u64,
    pub(super) relays: BTreeMap<(String, u64), Relay>,
    /// Events the driver itself has for the owner.
    pub(super) own_events: VecDeque<OwnerEvent>,
    /// Reports of operations that failed at once, told later.
    pub(super) delayed: VecDeque<(Time, OpId, KernelOutcome)>,
    pub(super) seen: BTreeMap<Vip, (Epoch, &'static str)>,
    /// A long lease is wanted: addresses keep their long life.
    pub(super) stopping: bool,
    pub(super) writers: Writers,
    pub(super) services: Services,
    pub(super) handle: Handle,
    next_refresh: Time,
    sleep: SleepDetector,
}

impl Driver {
    /// Runs until every handle is dropped.
    pub async fn run(parts: Parts) {
        let Parts { mut reports, mut inputs, .. } = parts;
        let mut driver = Self {
            me: parts.me,
            incarnation: parts.incarnation,
            boot_id: parts.boot_id,
            owner: parts.owner,
            voter: parts.voter,
            kernel: parts.kernel,
            hands: parts.hands,
            live: parts.live,
            storage: parts.storage,
            voters: parts.voters,
            events: parts.events,
            taps: parts.taps,
            stream: None,
            session: false,
            unanswered: None,
            replies: BTreeMap::new(),
            releasing: Vec::new(),
            last_command: CommandId(0),
            questions: BTreeMap::new(),
            last_question: 0,
            relays: BTreeMap::new(),
            own_events: VecDeque::new(),
            delayed: VecDeque::new(),
            seen: BTreeMap::new(),
            stopping: false,
            writers: parts.writers,
            services: parts.services,
            handle: parts.handle,
            next_refresh: Time::ZERO,
            sleep: SleepDetector::new(),
        };
        for action in parts.first {
            driver.act(action);
        }
        for vip in driver.live_addresses() {
            driver.lease_opened(vip);
        }
        driver.step(OwnerEvent::Tick);
        loop {
            let wait = driver.wake().since(now()).max(BREATH);
            tokio::select! {
                biased;
                Some(RenewalReport { id, outcome, at }) = reports.recv() => driver.report(id, outcome, at),
                input = inputs.recv() => match input {
                    Some(input) => driver.input(input),
                    None => return,
                },
                () = tokio::time::sleep(wait) => driver.step(OwnerEvent::Tick),
            }
            driver.timers();
        }
    }

    fn wake(&self) -> Time {
        let core = self.owner.deadline().map_or(Time::FAR, |(at, _)| at);
        let delayed = self.delayed.front().map_or(Time::FAR, |(at, ..)| *at);
        let relay = self.relays.values().map(|relay| relay.expires).min().unwrap_or(Time::FAR);
        let refresh = if self.seen.is_empty() { Time::FAR } else { self.next_refresh };
        let writers = self.writers.deadline().unwrap_or(Time::FAR);
        core.min(delayed).min(relay).min(refresh).min(writers)
    }

    fn timers(&mut self) {
        while self.delayed.front().is_some_and(|(at, ..)| *at <= now()) {
            if let Some((at, op, outcome)) = self.delayed.pop_front() {
                self.step(OwnerEvent::Kernel { op, outcome, at });
            }
        }
        self.writers_due();
        self.acknowledge();
        let time = now();
        let over: Vec<_> =
            self.relays.iter().filter(|(_, relay)| relay.expires <= time).map(|(key, _)| key.clone()).collect();
        for key in over {
            if let Some(Relay { reply, .. }) = self.relays.remove(&key) {
                let _ =
                    reply.send(Ok(super::act::refusal("the coordinator did not answer the relayed question in time")));
            }
        }
        if time >= self.next_refresh {
            self.next_refresh = time + REFRESH;
            let live = self.live_addresses();
            if !live.is_empty() && !self.stopping {
                self.hands.order(Order::Refresh(live, self.address_life()));
            }
        }
        let renewal = self.owner.assignment().map_or(Duration::ZERO, |assignment| assignment.timing.renewal);
        let limit = SILENCE.max(3 * renewal);
        if let Some(silent) = self.unanswered.map(|since| time.since(since)).filter(|silent| *silent > limit)
            && let Some(stream) = &self.stream
        {
            tracing::warn!(silent_ms = silent.as_millis(), "the coordinator does not answer: connecting anew");
            let id = stream.id;
            self.stream_down(id);
        }
    }

    /// The kernel's report. A failure is told late, as the core tries again at once.
    fn report(&mut self, op: OpId, outcome: KernelOutcome, at: Time) {
        if matches!(outcome, KernelOutcome::Failed(_)) {
            self.delayed.push_back((now() + FAILED_PAUSE, op, outcome));
        } else {
            self.step(OwnerEvent::Kernel { op, outcome, at });
        }
    }

    /// One event for the owner, and what follows from it.
    pub(super) fn step(&mut self, event: OwnerEvent) {
        self.own_events.push_back(event);
        while let Some(event) = self.own_events.pop_front() {
            let mut actions = Vec::new();
            if let Some(slept) = self.sleep.slept() {
                tracing::warn!(slept_ms = slept.as_millis(), "this machine slept: all leases are void");
                let slept_ms = u64::try_from(slept.as_millis()).unwrap_or(u64::MAX);
                self.events.publish(Event::Woke(Woke { slept_ms, failed: String::new() }));
                self.owner.step(now(), OwnerEvent::ClockJumped, &mut actions);
            }
            self.owner.step(now(), event, &mut actions);
            for action in actions {
                self.act(action);
            }
        }
        self.note_transitions();
    }

    /// One event for the voter, and what follows from it.
    pub(super) fn step_voter(&mut self, event: VoterEvent) {
        let mut actions = Vec::new();
        self.voter.step(now(), event, &mut actions);
        for action in actions {
            self.act_voter(action);
        }
    }

    pub(super) fn stream_down(&mut self, id: u64) {
        let Some(stream) = self.stream.take_if(|stream| stream.id == id) else { return };
        stream.close.cancel();
        self.unanswered = None;
        for (_, Relay { reply, .. }) in std::mem::take(&mut self.relays) {
            let _ = reply.send(Ok(super::act::refusal("this voter lost the coordinator while it relayed")));
        }
        if std::mem::take(&mut self.session) {
            tracing::warn!("session to the coordinator is down");
            self.step(OwnerEvent::Session(false));
        }
    }
}
