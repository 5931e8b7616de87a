//! Sessions: in order, late instead of lost, noticed dead by each side in its own time.

use super::agent::Input;
use super::clock::{MS, Ns, SEC};
use super::coordinator::Notice;
use super::net::{Down, Stream, Up};
use super::world::{Ev, World};
use kage_agent_core::OwnerEvent;
use kage_coordinator_core::{Event, SessionId};

impl World {
    /// An agent tries to connect to a coordinator that it reaches.
    pub(super) fn connect(&mut self, machine: usize, process: u64) {
        let here = &self.machines[machine];
        if here.agent.as_ref().is_none_or(|agent| agent.process != process || agent.stream.is_some()) {
            return;
        }
        let reach =
            |slot: &usize| self.coordinators[*slot].is_some() && self.net.both(machine, self.net.coordinators[*slot]);
        let mut slots: Vec<usize> = [0, 1].into_iter().filter(reach).collect();
        if here.stalled_until > self.now || here.asleep.is_some() {
            slots.clear();
        }
        if slots.is_empty() {
            let again = self.rng.range(100 * MS, 500 * MS);
            return self.after(again, Ev::Connect(machine, process));
        }
        let slot = slots[self.rng.index(slots.len())];
        let id = self.fresh();
        let Some(coordinator) = &self.coordinators[slot] else { return };
        let stream = Stream {
            agent: machine,
            agent_process: process,
            coordinator: slot,
            coordinator_process: coordinator.process,
            agent_open: true,
            coordinator_open: true,
            up: Default::default(),
            down: Default::default(),
        };
        let coordinator_process = coordinator.process;
        self.streams.insert(id, stream);
        if let Some(agent) = &mut self.machines[machine].agent {
            agent.stream = Some(id);
            agent.session = false;
            agent.unanswered = None;
        }
        self.after(3 * SEC, Ev::Agent(machine, process, Box::new(Input::Unassigned(id))));
        let up = Event::AgentUp { agent: self.names[machine].clone(), session: SessionId(id), incarnation: process };
        let delay = 3 * self.net.delay(&mut self.rng);
        self.after(delay, Ev::Coordinator(slot, coordinator_process, Box::new(Notice::Core(up))));
    }

    /// An agent says something on its stream.
    pub(super) fn send_up(&mut self, machine: usize, message: Up) {
        let Some(id) = self.machines[machine].agent.as_ref().and_then(|agent| agent.stream) else { return };
        let delay = self.net.delay(&mut self.rng);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let time = (self.now + delay).max(stream.up.back().map_or(0, |(time, _)| *time));
        stream.up.push_back((time, message));
        if stream.up.len() == 1 {
            self.at(time, Ev::Stream(id, true));
        }
    }

    /// A coordinator says something on a stream.
    pub(super) fn send_down(&mut self, id: u64, message: Down) {
        let delay = self.net.delay(&mut self.rng);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let time = (self.now + delay).max(stream.down.back().map_or(0, |(time, _)| *time));
        stream.down.push_back((time, message));
        if stream.down.len() == 1 {
            self.at(time, Ev::Stream(id, false));
        }
    }

    /// The head of a queue arrives, unless something is in the way: then TCP sends it again.
    pub(super) fn stream_arrives(&mut self, id: u64, up: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (agent, node) = (stream.agent, self.net.coordinators[stream.coordinator]);
        let (from, to) = if up { (agent, node) } else { (node, agent) };
        if !self.net.open(from, to) {
            let again = self.rng.range(50 * MS, 500 * MS);
            return self.after(again, Ev::Stream(id, up));
        }
        if up {
            let Some((_, message)) = stream.up.pop_front() else { return };
            let (slot, process, open) = (stream.coordinator, stream.coordinator_process, stream.coordinator_open);
            let next = stream.up.front().map(|(time, _)| *time);
            if let Some(time) = next {
                self.at(time, Ev::Stream(id, true));
            }
            match message {
                Up::End => self.stream_dead(id),
                Up::Ask(_) | Up::Relayed(..) | Up::Report(_) if open => {
                    self.coordinator_notice(slot, process, Notice::Stream(id, message));
                }
                Up::Ask(_) | Up::Relayed(..) | Up::Report(_) => {}
            }
        } else {
            let Some((_, message)) = stream.down.pop_front() else { return };
            let (process, open) = (stream.agent_process, stream.agent_open);
            let next = stream.down.front().map(|(time, _)| *time);
            if let Some(time) = next {
                self.at(time, Ev::Stream(id, false));
            }
            let input = match message {
                Down::Assigned(term) => Input::Assigned(id, term),
                Down::Grant(grant) => Input::Answer(id, grant),
                Down::Relayed(origin, grant) => Input::RelayedGrant(origin, grant),
                Down::End => Input::StreamEnd(id),
            };
            // What lay in the process's own queue when it gave the stream up is still handled.
            if open || self.rng.percent(30) {
                self.agent_input(agent, process, input);
            }
        }
    }

    /// The coordinator finds a stream dead.
    pub(super) fn stream_dead(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (slot, process, agent) = (stream.coordinator, stream.coordinator_process, stream.agent);
        let open = std::mem::replace(&mut stream.coordinator_open, false);
        if !stream.agent_open {
            self.streams.remove(&id);
        } else if open {
            self.send_down(id, Down::End);
        }
        if open {
            let down = Event::AgentDown { agent: self.names[agent].clone(), session: SessionId(id) };
            self.coordinator_notice(slot, process, Notice::Core(down));
        }
    }

    /// The agent gives a stream up, and connects anew.
    pub(super) fn agent_leaves(&mut self, machine: usize, id: u64) {
        let Some(agent) = &mut self.machines[machine].agent else { return };
        agent.stream = None;
        agent.unanswered = None;
        agent.relays.clear();
        let (process, session) = (agent.process, std::mem::take(&mut agent.session));
        self.agent_end_gone(id, false);
        let again = self.rng.range(MS, 300 * MS);
        self.after(again, Ev::Connect(machine, process));
        if session {
            self.step_owner(machine, OwnerEvent::Session(false));
        }
    }

    /// The agent's end of a stream is gone: the other hears of it, or finds out.
    pub(super) fn agent_end_gone(&mut self, id: u64, silently: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.agent_open = false;
        let late: Ns = self.rng.range(2 * SEC, 5 * SEC);
        self.after(late, Ev::StreamDead(id));
        if !silently {
            let time = self.now + self.net.delay(&mut self.rng);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.up.push_back((time, Up::End));
                if stream.up.len() == 1 {
                    self.at(time, Ev::Stream(id, true));
                }
            }
        }
    }
}
