//! Asking the voters: one task and one kept channel for each.

use crate::{
    driver::{Handle, Input},
    wire,
};
use kage_proto::{
    agent::v1::{VoteReply, VoteRequest, vote_reply::Answer, voter_client::VoterClient},
    channel::{Credentials, Options, channel},
    tls::Expected,
};
use kage_types::{AgentId, Nonce};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tonic::{Code, Request, Status, transport::Channel};

/// Questions that wait for one voter's task: it never waits itself.
const QUEUE: usize = 2;
/// Questions to one voter at a time: deadline over interval, and one in reserve.
const IN_FLIGHT: usize = 3;
/// Questions in a row without an answer after which the connection is made anew: TCP's own patience grows with the
/// length of an outage, and would outlast it.
const FAILURES: u32 = 5;

/// All voters of the assignment but this agent.
pub struct Voters {
    me: AgentId,
    credentials: Credentials,
    handle: Handle,
    peers: BTreeMap<AgentId, Peer>,
}

struct Peer {
    address: String,
    renewal: Duration,
    questions: mpsc::Sender<VoteRequest>,
    task: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Voters {
    /// None yet.
    #[must_use]
    pub fn new(me: AgentId, credentials: Credentials, handle: Handle) -> Self {
        Self { me, credentials, handle, peers: BTreeMap::new() }
    }

    /// These and no others; deadlines are twice `renewal`. Must be called within a tokio runtime.
    pub fn assign(&mut self, voters: &BTreeMap<AgentId, String>, renewal: Duration) {
        self.peers.retain(|name, peer| voters.get(name) == Some(&peer.address) && peer.renewal == renewal);
        for (name, address) in voters.iter().filter(|(name, _)| **name != self.me) {
            if self.peers.contains_key(name) {
                continue;
            }
            let (questions, queue) = mpsc::channel(QUEUE);
            let asker = Asker {
                name: name.clone(),
                address: address.clone(),
                deadline: 2 * renewal,
                credentials: self.credentials.clone(),
                handle: self.handle.clone(),
            };
            let task = tokio::spawn(asker.run(queue)).abort_handle();
            self.peers.insert(name.clone(), Peer { address: address.clone(), renewal, questions, task });
        }
    }

    /// Asks every voter. Does not wait; a voter that has not answered earlier questions is left out.
    pub fn ask(&self, question: &VoteRequest) {
        for peer in self.peers.values() {
            let _ = peer.questions.try_send(question.clone());
        }
    }
}

struct Asker {
    name: AgentId,
    address: String,
    deadline: Duration,
    credentials: Credentials,
    handle: Handle,
}

impl Asker {
    async fn run(self, mut questions: mpsc::Receiver<VoteRequest>) {
        let Some(mut connection) = self.connect() else { return };
        let mut under_way = JoinSet::new();
        let mut failures = 0;
        loop {
            tokio::select! {
                question = questions.recv() => match question {
                    Some(question) if under_way.len() < IN_FLIGHT => {
                        under_way.spawn(vote(connection.clone(), question, self.deadline));
                    }
                    Some(_) => {}
                    None => return,
                },
                Some(done) = under_way.join_next() => match done {
                    Ok(Ok((nonce, reply))) => {
                        failures = 0;
                        self.tell(nonce, reply).await;
                    }
                    Ok(Err(status)) => {
                        failures += 1;
                        if failures % FAILURES == 0 {
                            tracing::info!(voter = %self.name, code = ?status.code(), reason = status.message(), "a voter does not answer");
                            match self.connect() {
                                Some(fresh) => connection = fresh,
                                None => return,
                            }
                        }
                    }
                    Err(_) => {}
                },
            }
        }
    }

    fn connect(&self) -> Option<Channel> {
        let options = Options { user_timeout: Duration::from_secs(2), ..Options::default() };
        let made = channel(&self.address, &self.credentials, Expected::agent(&self.name), &options);
        made.inspect_err(|error| tracing::error!(voter = %self.name, %error, "can't ask this voter")).ok()
    }

    async fn tell(&self, nonce: Nonce, reply: VoteReply) {
        let input = match reply.answer {
            Some(Answer::Consent(consent)) => match wire::asks(&consent.vips) {
                Ok(vips) => Input::Consent { voter: self.name.clone(), nonce, vips },
                Err(error) => {
                    tracing::warn!(voter = %self.name, %error, "a consent that can't be used");
                    return;
                }
            },
            // Only to the question it was asked: a stale one would be void anyway.
            Some(Answer::Relayed(grant)) if grant.nonce == nonce.0 => Input::RelayedAnswer(grant),
            Some(Answer::Relayed(_)) | None => return,
            Some(Answer::Refused(reason)) => {
                tracing::debug!(voter = %self.name, reason, "a voter refused");
                return;
            }
        };
        let _ = self.handle.tell(input).await;
    }
}

async fn vote(connection: Channel, question: VoteRequest, deadline: Duration) -> Result<(Nonce, VoteReply), Status> {
    let nonce = Nonce(question.nonce);
    let mut request = Request::new(question);
    request.set_timeout(deadline);
    // The deadline in the request binds the server; this one also a connection that is not yet made.
    match tokio::time::timeout(deadline, VoterClient::new(connection).vote(request)).await {
        Ok(reply) => Ok((nonce, reply?.into_inner())),
        Err(_) => Err(Status::new(Code::DeadlineExceeded, format!("no answer within {deadline:?}"))),
    }
}
