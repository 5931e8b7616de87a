//! What each input means to the cores.

use super::{
    Command, Input, Leases, Stream,
    task::{Driver, Question, Relay, Reply},
};
use crate::{guard::now, hands::Order, wire};
use kage_agent_core::{CommandId, OwnerAction, OwnerEvent, Place, VipView, VoterEvent};
use kage_proto::agent::v1::{VoteReply, vote_reply::Answer};
use kage_types::{Nonce, Term};
use std::time::Duration;
use tonic::Status;

impl Driver {
    pub(super) fn input(&mut self, input: Input) {
        match input {
            Input::Assigned { stream, term, assignment } => {
                self.owner.saw_term(term);
                self.voters.assign(&assignment.voters, assignment.timing.renewal);
                self.step(OwnerEvent::Assigned(assignment));
                let current = self.stream.as_ref().map(|stream| stream.id);
                if stream.is_some() && stream == current && !self.session {
                    self.session = true;
                    tracing::info!(%term, "session to the coordinator is up");
                    self.step(OwnerEvent::Session(true));
                }
            }
            Input::StreamUp(stream) => self.stream_up(stream),
            Input::StreamDown(id) => self.stream_down(id),
            Input::Answer { stream, grant } => {
                if self.stream.as_ref().is_some_and(|current| current.id == stream) {
                    self.unanswered = None;
                }
                self.step(OwnerEvent::Answer { grant: wire::grant(&grant), relayed: false });
            }
            Input::RelayedAnswer(grant) => self.step(OwnerEvent::Answer { grant: wire::grant(&grant), relayed: true }),
            Input::RelayedGrant { origin, grant } => {
                if let Some(Relay { reply, .. }) = self.relays.remove(&(origin, grant.nonce)) {
                    let _ = reply.send(Ok(VoteReply { answer: Some(Answer::Relayed(grant)) }));
                }
            }
            Input::Consent { voter, nonce, vips } => self.step(OwnerEvent::Consent { voter, nonce, vips }),
            Input::Hold { term, ask, place, reply } => {
                let command = self.next_command(Reply::Hold(ask.vip, reply));
                self.step(OwnerEvent::Hold { command, term, ask, place });
            }
            Input::Command(what, reply) => {
                let reply = match &what {
                    Command::Release(_, ask) => Reply::Released(Some(ask.vip), reply),
                    Command::ReleaseAll => Reply::Released(None, reply),
                    Command::ReleaseVm(_) | Command::SwitchedOver(..) | Command::PrepareStop => Reply::Plain(reply),
                };
                let command = self.next_command(reply);
                self.command(command, what);
            }
            Input::Admit(term, reply) => {
                let seen = self.owner.highest_term();
                let _ = reply.send(if term < seen { Err(seen) } else { Ok(()) });
                self.owner.saw_term(term);
            }
            Input::Ordered(domain, term, order, reply) => {
                let _ = reply.send(self.owner.takes(&domain, term, order));
            }
            Input::BindTap(domain, port, reply) => {
                let held = self.owner.vips().any(|view| view.place == Place::Vm(domain.clone()));
                let free = !held || self.taps.get(&domain) == Some(&port);
                if free {
                    self.taps.insert(domain, port);
                }
                let _ = reply.send(free);
            }
            Input::Announce(domain) => {
                let place = Place::Vm(domain);
                let live = |view: &VipView| view.place == place && view.state == "live";
                let vips: Vec<_> = self.owner.vips().filter(live).map(|view| view.vip).collect();
                for vip in vips {
                    self.act(OwnerAction::Announce { vip, place: place.clone() });
                }
            }
            Input::Prepare(vip, place) => {
                if place == Place::Host && self.owner.vips().all(|view| view.vip != vip) {
                    self.hands.order(Order::Put(vip, self.address_life()));
                }
            }
            Input::Leases(reply) => {
                let at = now();
                let _ = reply.send(Leases {
                    vips: self.owner.vips().collect(),
                    highest_term: self.owner.highest_term().max(self.voter.remembered().highest_term),
                    coordinator_reachable: self.owner.reaches_coordinator(at),
                    renewed_by: wire::renewed_by(self.owner.renewed_by()),
                    leaving: self.owner.leaves(at),
                    at,
                });
            }
            Input::Vote { from, vips, question, reply } => {
                if !self.is_voter() {
                    let _ = reply.send(Err(Status::failed_precondition(format!(
                        "{} is no voter: the coordinator's assignment does not list it",
                        self.me
                    ))));
                    return;
                }
                let reaches_coordinator = self.owner.reaches_coordinator(now());
                let nonce = Nonce(question.nonce);
                let id = self.next_question(Question::Vote { from: from.clone(), question, reply });
                self.step_voter(VoterEvent::Vote { id, from, nonce, vips, reaches_coordinator });
            }
            Input::Bar { term, vip, floor, reply } => {
                let seen = self.owner.highest_term();
                if term < seen {
                    let _ = reply.send(Err(Status::failed_precondition(format!(
                        "term {term} is over: this agent has seen term {seen}"
                    ))));
                    return;
                }
                let id = self.next_question(Question::Bar { term, reply });
                self.step_voter(VoterEvent::Bar { id, term, vip, floor });
            }
            Input::Voter(reply) => {
                let mut store = self.voter.remembered().clone();
                store.highest_term = store.highest_term.max(self.owner.highest_term());
                let _ = reply.send((store, self.is_voter()));
            }
            Input::Stored { version, ok } => {
                self.step_voter(VoterEvent::Stored { version, ok });
                // An own question may have been answered by it.
                self.step(OwnerEvent::Tick);
            }
            Input::Remembered { version, ok } => self.step(OwnerEvent::Remembered { version, ok }),
            Input::Writer(event) => self.step_writers(event),
            Input::GuardBack => self.step(OwnerEvent::GuardBack),
            Input::Stays => self.step(OwnerEvent::Stays),
            Input::KernelUp(kernel) => self.kernel = Some(kernel),
        }
    }

    fn stream_up(&mut self, stream: Stream) {
        if let Some(id) = self.stream.as_ref().map(|old| old.id) {
            self.stream_down(id);
        }
        self.unanswered = None;
        self.stream = Some(stream);
    }

    fn command(&mut self, command: CommandId, what: Command) {
        match what {
            Command::Release(term, ask) => self.step(OwnerEvent::Release { command, term, ask }),
            Command::ReleaseVm(domain) => self.step(OwnerEvent::ReleaseVm { command, domain }),
            Command::SwitchedOver(domain, to) => self.step(OwnerEvent::SwitchedOver { command, domain, to }),
            Command::ReleaseAll => self.step(OwnerEvent::ReleaseAll { command }),
            Command::PrepareStop => {
                // Nobody renews the addresses' life until the next process does.
                let life = self.owner.assignment().map(|assignment| assignment.timing.long_lease);
                let live = self.live_addresses();
                if let Some(life) = life.filter(|_| !live.is_empty()) {
                    self.hands.order(Order::Refresh(live, life + Duration::from_secs(2)));
                }
                self.stopping = true;
                self.step(OwnerEvent::PrepareStop { command });
            }
        }
    }

    fn next_command(&mut self, reply: Reply) -> CommandId {
        self.last_command = CommandId(self.last_command.0 + 1);
        self.replies.insert(self.last_command, reply);
        self.last_command
    }

    pub(super) fn next_question(&mut self, question: Question) -> u64 {
        self.last_question += 1;
        self.questions.insert(self.last_question, question);
        self.last_question
    }

    pub(super) fn is_voter(&self) -> bool {
        self.owner.assignment().is_some_and(|assignment| assignment.voters.contains_key(&self.me))
    }

    pub(super) fn saw_term(&mut self, term: Term) {
        self.owner.saw_term(term);
    }
}
