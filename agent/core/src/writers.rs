//! Never two writers (docs/safety.md): services that must not run without the lease of the VIPs they stand behind.
//!
//! A service is held back once no VIP of it is served here and the lease, which may outlive what the kernel was told,
//! has run out; it is let go when one is served again. Only what ran when it was held back is brought up again: what
//! the administrator had stopped stays so. One that comes up without a lease, by hand or by a boot, is held back too.

use kage_types::{ServiceName, Time, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// After a start: an answer to the first requests takes this long, where there is one.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// What failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// How a service is kept from writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Halt {
    /// In good order, by its service manager.
    Stop,
    /// Its processes get no time.
    Freeze,
}

/// A service of the configuration that must not run without a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterConfig {
    /// The VIPs it stands behind; empty: any of this machine's own.
    pub vips: BTreeSet<Vip>,
    /// How it is held back.
    pub halt: Halt,
}

/// What must survive the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterMemory {
    /// Services that once ran under a lease here. Before its first one a service is left alone.
    pub bound: BTreeSet<ServiceName>,
    /// Held back by this agent.
    pub held: BTreeMap<ServiceName, Halt>,
}

/// How an attempt to hold back or let go ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaltOutcome {
    /// So it is.
    Done,
    /// There was nothing to hold back.
    NotRunning,
    /// It may still run.
    Failed(String),
}

/// What happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriterEvent {
    /// The guard of this VIP of this machine is open.
    Opened(Vip),
    /// It is not, and this machine is its owner no longer than until then.
    Lost {
        /// Which.
        vip: Vip,
        /// End of the lease; now, if it was given up.
        until: Time,
    },
    /// A process of the service has come up.
    CameUp(ServiceName),
    /// A [`WriterAction::Halt`] or [`WriterAction::Resume`] ended.
    Ended {
        /// Of this service.
        service: ServiceName,
        /// How.
        outcome: HaltOutcome,
    },
    /// The deadline was reached.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriterAction {
    /// Stop or freeze it, if it runs. Ends as [`WriterEvent::Ended`].
    Halt(ServiceName, Halt),
    /// Start or thaw it. Ends as [`WriterEvent::Ended`].
    Resume(ServiceName, Halt),
    /// Store; nothing waits for it.
    Store(WriterMemory),
    /// Tell whoever watches: held back, or not any more, and why.
    Tell {
        /// Which.
        service: ServiceName,
        /// Is it held back?
        held: bool,
        /// For a person.
        detail: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// As the administrator has it.
    Free,
    /// Without a VIP; the lease may run until then, or come back.
    Doubtful { until: Time },
    /// Being held back.
    Halting,
    /// Held back.
    Held,
    /// Without a VIP and not running, not by us.
    Absent,
    /// Being let go.
    Resuming,
    /// It failed: again then.
    Failed { until: Time },
}

#[derive(Clone, Debug)]
struct Writer {
    config: WriterConfig,
    state: State,
}

/// All services that must not run without a lease.
#[derive(Clone, Debug)]
pub struct Writers {
    writers: BTreeMap<ServiceName, Writer>,
    memory: WriterMemory,
    live: BTreeSet<Vip>,
    /// Of VIPs that were lost.
    until: BTreeMap<Vip, Time>,
}

impl Writers {
    /// At the start of a process. What was held back and isn't in the configuration any more is left as it is.
    #[must_use]
    pub fn new(now: Time, services: BTreeMap<ServiceName, WriterConfig>, memory: WriterMemory) -> Self {
        let writer = |(name, config): (ServiceName, WriterConfig)| {
            let bound = memory.bound.contains(&name);
            let state = if bound { State::Doubtful { until: now + FIRST_ANSWER } } else { State::Free };
            (name, Writer { config, state })
        };
        let writers = services.into_iter().map(writer).collect();
        Self { writers, memory, live: BTreeSet::new(), until: BTreeMap::new() }
    }

    /// Is this service held back, or about to be?
    #[must_use]
    pub fn holds(&self, service: &ServiceName) -> bool {
        self.writers.get(service).is_some_and(|writer| match writer.state {
            State::Halting | State::Held | State::Absent => true,
            State::Failed { .. } => !self.serves(&writer.config),
            State::Free | State::Doubtful { .. } | State::Resuming => false,
        })
    }

    /// Does nothing that stands behind this VIP (or any) run here any more? Only then has its release been all of it: who
    /// is told of one lets another instance write.
    #[must_use]
    pub fn quiet(&self, vip: Option<Vip>) -> bool {
        let behind =
            |writer: &Writer| vip.is_none_or(|vip| writer.config.vips.is_empty() || writer.config.vips.contains(&vip));
        self.writers.iter().filter(|(_, writer)| behind(writer)).all(|(name, writer)| match writer.state {
            State::Held | State::Absent => true,
            State::Free => !self.memory.bound.contains(name),
            State::Doubtful { .. } | State::Halting | State::Resuming | State::Failed { .. } => false,
        })
    }

    /// VIPs whose lease is being waited for.
    pub fn doubtful(&self) -> impl Iterator<Item = (Vip, Time)> + '_ {
        self.until.iter().map(|(vip, until)| (*vip, *until))
    }

    /// When to call again.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let until = |writer: &Writer| match writer.state {
            State::Doubtful { until } | State::Failed { until } => Some(until),
            State::Free | State::Halting | State::Held | State::Absent | State::Resuming => None,
        };
        self.writers.values().filter_map(until).min()
    }

    /// One event in, actions out.
    pub fn step(&mut self, now: Time, event: WriterEvent, actions: &mut Vec<WriterAction>) {
        match event {
            WriterEvent::Opened(vip) => {
                self.live.insert(vip);
                self.until.remove(&vip);
                let covered = |writer: &Writer| writer.config.vips.is_empty() || writer.config.vips.contains(&vip);
                let bound = self.writers.iter().filter(|(_, writer)| covered(writer)).map(|(name, _)| name.clone());
                let before = self.memory.bound.len();
                self.memory.bound.extend(bound);
                if self.memory.bound.len() > before {
                    actions.push(WriterAction::Store(self.memory.clone()));
                }
            }
            WriterEvent::Lost { vip, until } => {
                self.live.remove(&vip);
                self.until.insert(vip, until);
            }
            WriterEvent::CameUp(service) => {
                if let Some(writer) = self.writers.get_mut(&service)
                    && matches!(writer.state, State::Held | State::Absent)
                {
                    writer.state = State::Doubtful { until: now };
                }
            }
            WriterEvent::Ended { service, outcome } => self.ended(now, &service, outcome, actions),
            WriterEvent::Tick => {}
        }
        for name in self.writers.keys().cloned().collect::<Vec<_>>() {
            self.settle(now, &name, actions);
        }
        // A VIP given up stays so until it is opened: only leases that still run are looked at again.
        self.until.retain(|_, until| *until > now);
    }

    fn serves(&self, config: &WriterConfig) -> bool {
        if config.vips.is_empty() { !self.live.is_empty() } else { !config.vips.is_disjoint(&self.live) }
    }

    /// The last of its leases ends then.
    fn lease_end(&self, config: &WriterConfig) -> Option<Time> {
        let mine = |vip: &Vip| config.vips.is_empty() || config.vips.contains(vip);
        self.until.iter().filter(|(vip, _)| mine(vip)).map(|(_, until)| *until).max()
    }

    fn settle(&mut self, now: Time, name: &ServiceName, actions: &mut Vec<WriterAction>) {
        let Some(writer) = self.writers.get(name) else { return };
        let (config, state) = (writer.config.clone(), writer.state.clone());
        let (serves, ours) = (self.serves(&config), self.memory.held.contains_key(name));
        let end = self.lease_end(&config);
        let next = match state {
            State::Free if serves || !self.memory.bound.contains(name) => return,
            State::Free => match end {
                Some(until) if until > now => State::Doubtful { until },
                Some(_) | None => State::Halting,
            },
            State::Doubtful { .. } | State::Held | State::Failed { .. } if serves && ours => State::Resuming,
            State::Doubtful { .. } | State::Absent | State::Failed { .. } if serves => State::Free,
            State::Doubtful { until } => {
                // The lease may have been given up meanwhile; the time after a start knows of none.
                let until = end.unwrap_or(until);
                if now >= until { State::Halting } else { State::Doubtful { until } }
            }
            State::Failed { until } if now >= until => State::Halting,
            State::Failed { .. } | State::Halting | State::Held | State::Absent | State::Resuming => return,
        };
        match next {
            State::Halting => {
                if !ours {
                    // Before it is done: an agent that dies in between finishes it, and knows that it was its own.
                    let mut memory = self.memory.clone();
                    memory.held.insert(name.clone(), config.halt);
                    actions.push(WriterAction::Store(memory));
                }
                actions.push(WriterAction::Halt(name.clone(), config.halt));
            }
            State::Resuming => {
                let halt = self.memory.held.get(name).copied().unwrap_or(config.halt);
                actions.push(WriterAction::Resume(name.clone(), halt));
            }
            State::Free | State::Doubtful { .. } | State::Held | State::Absent | State::Failed { .. } => {}
        }
        if let Some(writer) = self.writers.get_mut(name) {
            writer.state = next;
        }
    }

    fn ended(&mut self, now: Time, name: &ServiceName, outcome: HaltOutcome, actions: &mut Vec<WriterAction>) {
        let Some(writer) = self.writers.get_mut(name) else { return };
        let halt = writer.config.halt;
        let mut tell = |held, detail: &str| {
            actions.push(WriterAction::Tell { service: name.clone(), held, detail: detail.to_owned() });
        };
        match (&writer.state, outcome) {
            (State::Halting, HaltOutcome::Done) => {
                writer.state = State::Held;
                self.memory.held.insert(name.clone(), halt);
                tell(true, "held back: the lease of its virtual IP is not here");
            }
            (State::Halting, HaltOutcome::NotRunning) if self.memory.held.contains_key(name) => {
                writer.state = State::Held;
                tell(true, "still held back: the lease of its virtual IP is not here");
            }
            (State::Halting, HaltOutcome::NotRunning) => writer.state = State::Absent,
            (State::Resuming, HaltOutcome::Done | HaltOutcome::NotRunning) => {
                writer.state = State::Free;
                self.memory.held.remove(name);
                tell(false, "let go: the lease of its virtual IP is here again");
            }
            (State::Halting | State::Resuming, HaltOutcome::Failed(reason)) => {
                // Half done, perhaps: the lease brings it up again.
                writer.state = State::Failed { until: now + AGAIN };
                self.memory.held.entry(name.clone()).or_insert(halt);
                tell(true, &reason);
            }
            (State::Free | State::Doubtful { .. } | State::Held | State::Absent | State::Failed { .. }, _) => return,
        }
        actions.push(WriterAction::Store(self.memory.clone()));
    }
}

#[cfg(test)]
mod tests;
