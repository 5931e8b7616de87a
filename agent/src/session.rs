//! The stream to the coordinator, made anew whenever it breaks.

use crate::{
    driver::{Handle, Input, Stream},
    events::{Events, Subscription},
    guard::now,
    keeper::Told,
    wire,
};
use kage_proto::{
    agent::v1::{AgentEvent, VoterState},
    channel::{Credentials, Options, channel},
    coordinator::v1::{
        AgentMessage, CoordinatorMessage, Hello, agent_message::Message, coordinator_message, lease_client::LeaseClient,
    },
    roles::Role,
    tls::Expected,
};
use kage_types::Time;
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{interval, sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Questions in the stream's queue.
const QUESTIONS: usize = 8;
/// Events in the stream's queue: all that waited for the stream (`events::BACKLOG`), and some. More are dropped.
const EVENTS: usize = 320;
/// Between two attempts: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// From dialling to the first assignment.
const BEGIN: Duration = Duration::from_secs(2);
/// A dead peer is noticed within this even if nothing is asked.
const NOTICE: Duration = Duration::from_secs(1);
/// How soon the coordinator hears of a new certificate, for its status.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(5);
/// How long the coordinator may take to close its half at our stop.
const FINISH: Duration = Duration::from_secs(1);

/// What the session needs.
pub struct Session {
    /// HOST:PORT.
    pub coordinator: String,
    /// Ours.
    pub credentials: Credentials,
    /// Of this process.
    pub incarnation: u64,
    /// Of this boot.
    pub boot_id: String,
    /// To the driver.
    pub handle: Handle,
    /// To the guard's keeper, which gets the assignments.
    pub keeper: mpsc::Sender<Told>,
    /// What is passed on.
    pub events: Events,
}

impl Session {
    /// Runs until `stop`, then lets what was said reach the coordinator, for at most a second.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = BACKOFF.0;
        let mut last = String::new();
        // One for all streams: what happens while there is none waits here, the oldest dropped first and counted.
        let mut watch = self.events.subscribe();
        for id in 1.. {
            let (error, served) = match self.attend(id, &mut watch, &stop).await {
                Ok(()) => return,
                Err(ended) => ended,
            };
            let _ = self.handle.tell(Input::StreamDown(id)).await;
            if stop.is_cancelled() {
                return;
            }
            let reason = format!("{}: {}", error.code(), error.message());
            if reason != last {
                tracing::warn!(coordinator = self.coordinator, reason, "no stream to the coordinator; trying on");
                last = reason;
            }
            pause = if served { BACKOFF.0 } else { (pause * 2).min(BACKOFF.1) };
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One stream, to its end. Err: why it ended, and whether it had begun. Ok: stopped.
    async fn attend(&self, id: u64, watch: &mut Subscription, stop: &CancellationToken) -> Result<(), (Status, bool)> {
        let begin = async {
            let options = Options::noticing_within(NOTICE);
            let connection = channel(&self.coordinator, &self.credentials, Expected::role(Role::Coordinator), &options)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            let (messages, questions) = mpsc::channel(QUESTIONS);
            let (events, to_tell) = mpsc::channel(EVENTS);
            let hello = AgentMessage { message: Some(Message::Hello(self.hello().await?)) };
            let said = ReceiverStream::new(questions).merge(ReceiverStream::new(to_tell));
            let heard = LeaseClient::new(connection).attend(tokio_stream::once(hello).chain(said)).await?.into_inner();
            Ok::<_, Status>((messages, events, heard))
        };
        let (messages, events, heard) = tokio::select! {
            begun = timeout(BEGIN, begin) => match begun {
                Ok(Ok(begun)) => begun,
                Ok(Err(status)) => return Err((status, false)),
                Err(_) => return Err((Status::deadline_exceeded(format!("no stream within {BEGIN:?}")), false)),
            },
            () = stop.cancelled() => return Ok(()),
        };
        let close = CancellationToken::new();
        let stream = Stream { id, messages, close: close.clone() };
        self.handle.tell(Input::StreamUp(stream)).await.map_err(|status| (status, false))?;
        self.converse(id, heard, events, watch, close, stop).await
    }

    async fn converse(
        &self,
        id: u64,
        mut heard: Streaming<CoordinatorMessage>,
        events: mpsc::Sender<AgentMessage>,
        watch: &mut Subscription,
        close: CancellationToken,
        stop: &CancellationToken,
    ) -> Result<(), (Status, bool)> {
        let mut assigned = false;
        let mut ends_told = None;
        let mut look = interval(CERTIFICATE_LOOK);
        let patience = sleep(BEGIN);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                message = heard.message() => match message {
                    Ok(Some(CoordinatorMessage { message: Some(message) })) => {
                        assigned |= matches!(message, coordinator_message::Message::Assignment(_));
                        self.hear(id, message).await.map_err(|status| (status, assigned))?;
                    }
                    Ok(Some(CoordinatorMessage { message: None })) => {}
                    Ok(None) => return Err((Status::unavailable("the coordinator closed the stream"), assigned)),
                    Err(status) => return Err((status, assigned)),
                },
                Some(event) = watch.next() => pass_on(&events, event),
                _ = look.tick() => if let Credentials::Tls(pki) = &self.credentials {
                    let ends = pki.not_after_unix_s();
                    if ends_told != Some(ends) {
                        let told = AgentMessage { message: Some(Message::CertificateEndsUnixS(ends)) };
                        ends_told = events.try_send(told).is_ok().then_some(ends);
                    }
                },
                () = &mut patience, if !assigned => {
                    return Err((Status::deadline_exceeded(format!("no assignment within {BEGIN:?}")), false));
                }
                () = close.cancelled() => return Err((Status::unavailable("the coordinator fell silent"), assigned)),
                () = stop.cancelled() => break,
            }
        }
        while let Some(event) = watch.waiting() {
            pass_on(&events, event);
        }
        // Our half ends when both senders are gone; its end at the other side proves that all has been read.
        drop(events);
        let _ = self.handle.tell(Input::StreamDown(id)).await;
        let _ = timeout(FINISH, async { while let Ok(Some(_)) = heard.message().await {} }).await;
        Ok(())
    }

    async fn hello(&self) -> Result<Hello, Status> {
        let (store, is_voter) = self.handle.voter().await?;
        Ok(Hello {
            incarnation: self.incarnation,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot_id.clone(),
            voter_state: Some(voter_state(&store, is_voter)),
        })
    }

    async fn hear(&self, id: u64, message: coordinator_message::Message) -> Result<(), Status> {
        match message {
            coordinator_message::Message::Assignment(assignment) => {
                let (term, assignment) =
                    wire::assignment(&assignment).map_err(|error| Status::invalid_argument(error.to_string()))?;
                self.handle.admit(term).await?;
                let told = Told { stream: id, term, assignment };
                self.keeper
                    .try_send(told)
                    .map_err(|_| Status::resource_exhausted("assignments come faster than the guard changes"))
            }
            coordinator_message::Message::Grant(grant) => self.handle.tell(Input::Answer { stream: id, grant }).await,
            coordinator_message::Message::RelayedGrant(relayed) => match relayed.grant {
                Some(grant) => self.handle.tell(Input::RelayedGrant { origin: relayed.origin, grant }).await,
                None => Ok(()),
            },
        }
    }
}

fn pass_on(events: &mpsc::Sender<AgentMessage>, mut event: AgentEvent) {
    // No clocks are compared: how old it is, not when it was.
    event.age_ms = wire::to_millis(now().since(Time::from_nanos(event.at_ns)));
    if events.try_send(AgentMessage { message: Some(Message::Event(event)) }).is_err() {
        tracing::warn!("an event did not reach the coordinator: its stream is full");
    }
}

/// As the contract has it.
#[must_use]
pub fn voter_state(store: &kage_agent_core::VoterStore, is_voter: bool) -> VoterState {
    VoterState {
        highest_term: store.highest_term.0,
        highest_epochs: store
            .epochs
            .iter()
            .map(|(vip, epoch)| kage_proto::agent::v1::AskVip { vip: vip.to_string(), epoch: epoch.0 })
            .collect(),
        is_voter,
    }
}
