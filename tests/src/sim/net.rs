//! Who can reach whom, how long it takes, and the agents' streams.

use super::clock::{MS, Ns, SEC};
use super::rng::Rng;
use kage_coordinator_core::AgentReport;
use kage_types::{AskVip, Grant, Nonce, Term};
use std::collections::VecDeque;

/// A set of nodes, one bit each.
pub type Nodes = u64;

/// How much is lost while there is trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// By a fault, for a while: at most so much of a million.
    Bursts(u32),
    /// So much of a million, all the time from the first fault of an episode to its repair.
    Steady(u32),
}

impl Weather {
    /// What is lost: with a fault of that kind, or without.
    #[must_use]
    pub fn loss(self, fault: Option<u32>) -> u32 {
        match self {
            Self::Bursts(most) => fault.map_or(0, |ppm| ppm.min(most)),
            Self::Steady(ppm) => ppm,
        }
    }
}

/// The network. Its nodes: the agents' machines by their index, SIF, two coordinators, the clients. SIF and the first
/// coordinator may share a machine with an agent.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// SIF's node.
    pub sif: usize,
    /// The coordinators' nodes.
    pub coordinators: [usize; 2],
    /// Where the clients are.
    pub clients: usize,
    /// How many faults block this direction.
    cut: Vec<Vec<u8>>,
    /// Loss, of a million. TCP: a lost segment is a late one.
    pub loss_ppm: u32,
    /// Up to this much more on every way.
    pub slow: Ns,
    /// Commands that take very long, of a million.
    pub late_ppm: u32,
}

impl Net {
    /// Of so many machines, each other part on a node of its own.
    #[must_use]
    pub fn new(machines: usize) -> Self {
        let nodes = machines + 4;
        Self {
            sif: machines,
            coordinators: [machines + 1, machines + 2],
            clients: machines + 3,
            cut: vec![vec![0; nodes]; nodes],
            ..Self::default()
        }
    }

    /// How many nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.cut.len()
    }

    /// Does anything get through?
    #[must_use]
    pub fn open(&self, from: usize, to: usize) -> bool {
        from == to || self.cut[from][to] == 0
    }

    /// Is a question heard, and its answer?
    #[must_use]
    pub fn both(&self, one: usize, other: usize) -> bool {
        self.open(one, other) && self.open(other, one)
    }

    /// A fault that blocks these directions begins or ends.
    pub fn block(&mut self, from: Nodes, to: Nodes, begins: bool) {
        let nodes = self.nodes();
        for (one, other) in (0..nodes).flat_map(|one| (0..nodes).map(move |other| (one, other))) {
            if from & (1 << one) != 0 && to & (1 << other) != 0 {
                let cut = &mut self.cut[one][other];
                *cut = if begins { cut.saturating_add(1) } else { cut.saturating_sub(1) };
            }
        }
    }

    /// Nothing is in the way any more.
    pub fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|cut| *cut = 0);
        self.loss_ppm = 0;
        self.slow = 0;
        self.late_ppm = 0;
    }

    /// Time of one way.
    pub fn delay(&self, rng: &mut Rng) -> Ns {
        let mut delay = rng.range(80_000, 400_000);
        let mut timeout = 200 * MS;
        while self.loss_ppm > 0 && timeout < 4 * SEC && rng.ppm(self.loss_ppm) {
            delay += timeout;
            timeout *= 2;
        }
        if self.slow > 0 {
            delay += rng.range(0, self.slow);
        }
        delay
    }
}

/// An owner's request on the wire.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Of the request.
    pub nonce: Nonce,
    /// Last answer that arrived.
    pub heard: Nonce,
    /// What for.
    pub vips: Vec<AskVip>,
    /// A long lease.
    pub long: bool,
    /// None is left.
    pub long_surrendered: bool,
    /// Which process asks.
    pub incarnation: u64,
}

/// Agent to coordinator.
#[derive(Clone, Debug)]
pub enum Up {
    /// Its own request.
    Ask(Ask),
    /// Another's.
    Relayed(usize, Ask),
    /// An event.
    Report(AgentReport),
    /// The agent closed the stream.
    End,
}

/// Coordinator to agent.
#[derive(Clone, Debug)]
pub enum Down {
    /// First of all.
    Assigned(Term),
    /// An answer.
    Grant(Grant),
    /// An answer to be passed on.
    Relayed(usize, Grant),
    /// The coordinator closed the stream.
    End,
}

/// One session: two queues in order.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Whose.
    pub agent: usize,
    /// Which process of it.
    pub agent_process: u64,
    /// Where to.
    pub coordinator: usize,
    /// Which process there.
    pub coordinator_process: u64,
    /// Does the agent still use it?
    pub agent_open: bool,
    /// Does the coordinator still read it?
    pub coordinator_open: bool,
    /// With the time each arrives at the earliest.
    pub up: VecDeque<(Ns, Up)>,
    /// With the time each arrives at the earliest.
    pub down: VecDeque<(Ns, Down)>,
}
