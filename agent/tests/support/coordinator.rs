//! A coordinator that grants what it is told to grant.

use kage_proto::{
    agent::v1::{Grant, GrantItem, grant_item::Verdict},
    coordinator::v1::{
        AgentMessage, Ask, Assignment, CoordinatorMessage, RelayedGrant, VoterAddress,
        agent_message::Message,
        coordinator_message,
        lease_server::{Lease, LeaseServer},
    },
    roles::Peer,
    server::{Config, Security, Server},
    tls::Pki,
};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::net::{COORDINATOR, VIP};

/// What it does now.
#[derive(Default)]
pub struct Mood {
    /// Asks are not answered.
    pub silent: bool,
    /// Answered, but "not now".
    pub wait: bool,
    /// A higher epoch exists.
    pub superseded: bool,
    /// No streams.
    pub down: bool,
    /// Names of those attending.
    pub attending: BTreeMap<String, u32>,
    /// Events as they came: who, what.
    pub events: Vec<(String, String)>,
    /// Questions passed on by voters.
    pub relayed: u32,
}

#[derive(Clone)]
pub struct Fake {
    pub mood: Arc<Mutex<Mood>>,
    voters: Vec<VoterAddress>,
}

impl Fake {
    /// Serves on the switch until the runtime ends.
    pub async fn serve(pki: Pki, voters: &[(&str, u8)]) -> Self {
        let voters = voters
            .iter()
            .map(|(name, last)| VoterAddress { agent: (*name).to_owned(), address: format!("10.79.0.{last}:7702") });
        let fake = Self { mood: Arc::default(), voters: voters.collect() };
        let listen = format!("{COORDINATOR}:7700").parse().expect("address");
        let server = Server::bind(&Config::new(listen, Security::Tls(pki)))
            .await
            .expect("bind")
            .add(LeaseServer::new(fake.clone()));
        tokio::spawn(server.run(std::future::pending()));
        fake
    }

    pub fn set(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.mood.lock().unwrap());
    }

    fn assignment(&self) -> Assignment {
        Assignment {
            term: 1,
            vips: vec![VIP.to_owned()],
            lease_ms: 2000,
            element_ms: 700,
            renewal_ms: 200,
            slack_ms: 50,
            long_lease_ms: 30_000,
            voters: self.voters.clone(),
            on_coordinator_loss: if self.voters.is_empty() { "lapse" } else { "voters" }.to_owned(),
        }
    }

    fn answer(&self, ask: &Ask) -> Option<Grant> {
        let mood = self.mood.lock().unwrap();
        if mood.silent {
            return None;
        }
        let verdict = match (mood.superseded, mood.wait) {
            (true, _) => Verdict::Superseded,
            (_, true) => Verdict::Wait,
            _ => Verdict::Granted,
        };
        let items =
            ask.vips.iter().map(|ask| GrantItem { vip: ask.vip.clone(), epoch: ask.epoch, verdict: verdict.into() });
        let length_ms = if ask.long { 30_000 } else { 2000 };
        Some(Grant { nonce: ask.nonce, term: 1, in_authority: true, length_ms, items: items.collect() })
    }
}

#[tonic::async_trait]
impl Lease for Fake {
    type AttendStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn attend(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::AttendStream>, Status> {
        let agent = Peer::of(&request)?.agent()?.to_string();
        if self.mood.lock().unwrap().down {
            return Err(Status::unavailable("down"));
        }
        let mut heard = request.into_inner();
        let (send, stream) = mpsc::channel(64);
        let this = self.clone();
        tokio::spawn(async move {
            let say = |message| CoordinatorMessage { message: Some(message) };
            loop {
                let message = tokio::time::timeout(std::time::Duration::from_millis(50), heard.message()).await;
                if this.mood.lock().unwrap().down {
                    return;
                }
                let Ok(message) = message else { continue };
                let Ok(Some(AgentMessage { message: Some(message) })) = message else { return };
                let reply = match message {
                    Message::Hello(_) => {
                        *this.mood.lock().unwrap().attending.entry(agent.clone()).or_default() += 1;
                        Some(coordinator_message::Message::Assignment(this.assignment()))
                    }
                    Message::Ask(ask) => this.answer(&ask).map(coordinator_message::Message::Grant),
                    Message::RelayedAsk(relayed) => {
                        this.mood.lock().unwrap().relayed += 1;
                        let grant = this.answer(&relayed.ask.expect("ask"));
                        grant.map(|grant| {
                            coordinator_message::Message::RelayedGrant(RelayedGrant {
                                origin: relayed.origin,
                                grant: Some(grant),
                            })
                        })
                    }
                    Message::Event(event) => {
                        this.mood.lock().unwrap().events.push((agent.clone(), format!("{:?}", event.event)));
                        None
                    }
                    Message::CertificateEndsUnixS(_) => None,
                };
                if let Some(reply) = reply
                    && send.send(Ok(say(reply))).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
