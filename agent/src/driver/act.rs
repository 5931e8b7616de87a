//! Carrying out what the cores want.

use super::task::{Driver, FAILED_PAUSE, Question, Relay, Reply};
use crate::{
    guard::{self, now},
    hands::Order,
    state::{HeldEntry, OwnerState, Tap},
    storage::Write,
    wire,
};
use kage_agent_core::{
    Adopted, CommandId, CommandResult, KernelOp, KernelOutcome, OpId, OwnerAction, OwnerEvent, Place, VoterAction,
    VoterEvent,
};
use kage_proto::{
    agent::v1::{Consent, LeaseLost, LeaseOpened, VoteReply, VoteRequest, agent_event::Event, vote_reply::Answer},
    coordinator::v1::{AgentMessage, Ask, RelayedAsk, agent_message::Message},
};
use kage_types::{Time, Vip};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tonic::Status;

pub(super) fn refusal(reason: &str) -> VoteReply {
    VoteReply { answer: Some(Answer::Refused(reason.to_owned())) }
}

impl Driver {
    pub(super) fn act(&mut self, action: OwnerAction) {
        match action {
            OwnerAction::Ask { nonce, heard, vips, long, long_surrendered } => {
                let incarnation = self.incarnation;
                let (nonce, heard, vips) = (nonce.0, heard.0, wire::to_asks(&vips));
                self.unanswered.get_or_insert(now());
                // Never answered is an answer too.
                self.send(Message::Ask(Ask { nonce, heard, vips, long, incarnation, long_surrendered }));
            }
            OwnerAction::AskVoters { nonce, heard, vips } => {
                let question = VoteRequest {
                    nonce: nonce.0,
                    heard: heard.0,
                    vips: wire::to_asks(&vips),
                    incarnation: self.incarnation,
                };
                self.voters.ask(&question);
                if self.is_voter() && !self.owner.reaches_coordinator(now()) {
                    let id = self.next_question(Question::Own { nonce });
                    let from = self.me.clone();
                    self.step_voter(VoterEvent::Vote { id, from, nonce, vips, reaches_coordinator: false });
                }
            }
            OwnerAction::Kernel { op, place, change } => self.change_kernel(op, &place, change),
            OwnerAction::PutAddress(vip) => self.hands.order(Order::Put(vip, self.address_life())),
            OwnerAction::DropAddress(vip) => self.hands.order(Order::Drop(vip)),
            OwnerAction::Announce { vip, place } => {
                let mac = match &place {
                    Place::Host => None,
                    Place::Vm(domain) => self.taps.get(domain).map(|port| port.mac),
                };
                self.hands.order(Order::Announce(vip, mac));
            }
            OwnerAction::Opened { ask } => {
                self.lease_opened(ask.vip);
                self.events.publish(Event::LeaseOpened(LeaseOpened { vip: ask.vip.to_string(), epoch: ask.epoch.0 }));
            }
            OwnerAction::Lost { ask, reason, place } => {
                // First of all: nobody knows how late it is.
                if place == Place::Host {
                    self.lease_lost(ask.vip, &reason);
                }
                let reason = wire::loss(&reason);
                tracing::warn!(vip = %ask.vip, epoch = %ask.epoch, %reason, "lease lost");
                if place == Place::Host {
                    self.hands.order(Order::Close(ask.vip));
                }
                let (vip, epoch) = (ask.vip.to_string(), ask.epoch.0);
                self.events.publish(Event::LeaseLost(LeaseLost { vip, epoch, reason: reason.into_owned() }));
            }
            OwnerAction::Store(held) => {
                let state = OwnerState {
                    boot_id: self.boot_id.clone(),
                    held: held.iter().map(|one| self.entry(one)).collect(),
                };
                if !self.storage.write(Write::Owner(state)) {
                    tracing::warn!("not stored: a restart would not know what this agent holds");
                }
            }
            OwnerAction::Remember { version, memory } => {
                if !self.storage.write(Write::Memory(version, memory)) {
                    self.own_events.push_back(OwnerEvent::Remembered { version, ok: false });
                }
            }
            OwnerAction::Done { command, result } => self.done(command, result),
            OwnerAction::KernelTrouble { vip, reason } => {
                tracing::warn!(%vip, reason, "the guard refused a change");
            }
        }
    }

    fn entry(&self, adopted: &Adopted) -> HeldEntry {
        let tap = match &adopted.place {
            Place::Host => None,
            Place::Vm(domain) => {
                self.taps.get(domain).map(|port| Tap { ifname: port.ifname.to_string(), mac: port.mac.to_string() })
            }
        };
        HeldEntry { vip: adopted.vip, epoch: adopted.epoch, place: adopted.place.clone(), tap }
    }

    fn change_kernel(&mut self, op: OpId, place: &Place, change: KernelOp) {
        let where_ = match place {
            Place::Host => Ok(guard::Place::Host),
            Place::Vm(domain) => match self.taps.get(domain) {
                Some(port) => Ok(guard::Place::Tap { ifname: port.ifname }),
                // Nothing was ever set for it by this process, and what an earlier one left was closed at the start.
                None if matches!(change, KernelOp::Close { .. }) => {
                    self.own_events.push_back(OwnerEvent::Kernel { op, outcome: KernelOutcome::Done, at: now() });
                    return;
                }
                None => Err(format!("the interface of domain {domain} is not known: it does not run here")),
            },
        };
        let queued = match (where_, &self.kernel) {
            (Ok(place), Some(kernel)) => kernel.submit(op, change, place).map_err(|error| error.to_string()),
            (Ok(_), None) => Err("no guard: see the agent's log from its start".to_owned()),
            (Err(reason), _) => Err(reason),
        };
        if let Err(reason) = queued {
            self.delayed.push_back((now() + FAILED_PAUSE, op, KernelOutcome::Failed(reason)));
        }
    }

    fn done(&mut self, command: CommandId, result: CommandResult) {
        match self.replies.remove(&command) {
            Some(Reply::Hold(vip, reply)) => match result {
                // By way of the hands, so that the first announcement is out.
                Ok(()) => self.hands.order(Order::Tell(vip, self.opened(vip), reply)),
                Err(refused) => {
                    let _ = reply.send(Err(refused));
                }
            },
            Some(Reply::Released(vip, reply)) if result.is_ok() && !self.writers.quiet(vip) => {
                self.releasing.push((vip, reply));
            }
            Some(Reply::Plain(reply) | Reply::Released(_, reply)) => {
                let _ = reply.send(result);
            }
            None => {}
        }
    }

    fn opened(&self, vip: Vip) -> Time {
        self.owner.vips().find(|view| view.vip == vip).and_then(|view| view.renewed).unwrap_or_else(now)
    }

    /// Over the stream, if there is one and it takes more. Refused otherwise.
    pub(super) fn send(&self, message: Message) -> bool {
        let message = AgentMessage { message: Some(message) };
        self.stream.as_ref().is_some_and(|stream| stream.messages.try_send(message).is_ok())
    }

    pub(super) fn act_voter(&mut self, action: VoterAction) {
        match action {
            VoterAction::Store { version, store } => {
                if !self.storage.write(Write::Voter(version, store)) {
                    self.step_voter(VoterEvent::Stored { version, ok: false });
                }
            }
            VoterAction::Relay { id } => self.relay(id),
            VoterAction::Consent { id, vips, barred } => match self.questions.remove(&id) {
                Some(Question::Own { nonce }) => {
                    self.own_events.push_back(OwnerEvent::Consent { voter: self.me.clone(), nonce, vips });
                }
                Some(Question::Vote { from, reply, .. }) => {
                    tracing::debug!(%from, consented = vips.len(), barred = barred.len(), "vote");
                    let consent = Consent { vips: wire::to_asks(&vips), barred: wire::to_asks(&barred) };
                    let _ = reply.send(Ok(VoteReply { answer: Some(Answer::Consent(consent)) }));
                }
                Some(Question::Bar { .. }) | None => {}
            },
            VoterAction::Barred { id, last_consent_age } => {
                if let Some(Question::Bar { term, reply }) = self.questions.remove(&id) {
                    self.saw_term(term);
                    let _ = reply.send(Ok(last_consent_age));
                }
            }
            VoterAction::Refuse { id, reason } => match self.questions.remove(&id) {
                Some(Question::Vote { reply, .. }) => {
                    let _ = reply.send(Ok(refusal(&reason)));
                }
                Some(Question::Bar { reply, .. }) => {
                    let _ = reply.send(Err(Status::failed_precondition(reason)));
                }
                Some(Question::Own { .. }) | None => {}
            },
        }
    }

    fn relay(&mut self, id: u64) {
        let Some(Question::Vote { from, question, reply }) = self.questions.remove(&id) else { return };
        let (origin, nonce) = (from.to_string(), question.nonce);
        let ask = Ask {
            nonce,
            heard: question.heard,
            vips: question.vips,
            long: false,
            incarnation: question.incarnation,
            long_surrendered: false,
        };
        if self.send(Message::RelayedAsk(RelayedAsk { origin: origin.clone(), ask: Some(ask) })) {
            let renewal = self.owner.assignment().map_or(Duration::ZERO, |assignment| assignment.timing.renewal);
            self.relays.insert((origin, nonce), Relay { expires: now() + 2 * renewal, reply });
        } else {
            let _ = reply.send(Ok(refusal("this voter's stream to the coordinator takes no more")));
        }
    }

    /// The live VIPs of this machine itself.
    pub(super) fn live_addresses(&self) -> Vec<Vip> {
        self.owner
            .vips()
            .filter(|view| view.state == "live" && view.place == Place::Host)
            .map(|view| view.vip)
            .collect()
    }

    /// Longer than any lease, in whole seconds: a second line of defence only (rule 4).
    pub(super) fn address_life(&self) -> Duration {
        let lease = self.owner.assignment().map_or(Duration::ZERO, |assignment| assignment.timing.lease);
        Duration::from_secs(lease.as_secs() + u64::from(lease.subsec_nanos() > 0) + 2)
    }

    /// One line of log for each change of a VIP's state.
    pub(super) fn note_transitions(&mut self) {
        let mut changed = false;
        let mut left = std::mem::take(&mut self.seen);
        let mut seen = BTreeMap::new();
        for view in self.owner.vips() {
            let before = left.remove(&view.vip);
            seen.insert(view.vip, (view.epoch, view.state));
            if before == Some((view.epoch, view.state)) {
                continue;
            }
            changed = true;
            let (vip, epoch, to, from) = (view.vip, view.epoch, view.state, before.map_or("none", |(_, state)| state));
            let by = wire::renewed_by(self.owner.renewed_by());
            // Arming and asking again and again while nobody grants is no news.
            if matches!((from, to), ("asking", "arming") | ("arming", "asking")) {
                tracing::debug!(%vip, %epoch, from, to, by, "lease");
            } else {
                tracing::info!(%vip, %epoch, from, to, by, "lease");
            }
        }
        for (vip, (epoch, from)) in left {
            changed = true;
            tracing::info!(%vip, %epoch, from, to = "none", "lease");
        }
        self.seen = seen;
        if changed {
            let live: BTreeSet<Vip> =
                self.seen.iter().filter(|(_, (_, state))| *state == "live").map(|(vip, _)| *vip).collect();
            self.live.set(live);
        }
    }
}
