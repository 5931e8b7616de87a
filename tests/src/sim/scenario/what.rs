//! What may happen in a scenario.

use crate::sim::clock::Ns;
use crate::sim::machine::Health;
use crate::sim::net::Nodes;
use kage_types::{DomainName, OrderScope, ServiceName, TargetName, Vip};

/// What libvirt does to its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Libvirt {
    /// It answers nobody; what was asked is done at the end.
    Hangs,
    /// Every call takes so much longer.
    Slow(Ns),
    /// Every call fails.
    Fails,
}

/// What the operator commands.
#[derive(Clone, Debug)]
pub enum Operator {
    /// Withhold action, for so long.
    Order(OrderScope, String, Option<Ns>),
    /// No longer.
    Lift(OrderScope),
    /// A planned move: back, even if the destination looks bad.
    Move(TargetName, bool, bool),
}

/// One thing.
#[derive(Clone, Debug)]
pub enum What {
    /// No power.
    PowerOff(Vec<usize>),
    /// Power again.
    PowerOn(Vec<usize>),
    /// Nothing there gets any time.
    Freeze(Vec<usize>),
    /// Nothing gets from these to those.
    NetworkOff(Nodes, Vec<(Nodes, Nodes)>),
    /// All that was cut of these and has no end is joined.
    NetworkOn(Nodes),
    /// So many of a million packets are lost.
    Loss(u32),
    /// Up to so much more on every way.
    Slow(Ns),
    /// The agent's process and its renewal thread get no time.
    AgentStall(Vec<usize>),
    /// The agent's process dies and is started again.
    AgentKill(Vec<usize>),
    /// The agent is stopped and started as planned.
    AgentStop(Vec<usize>),
    /// A clean reboot.
    Reboot(Vec<usize>),
    /// A clean shutdown.
    Shutdown(Vec<usize>),
    /// The machine sleeps: its agent was told before?
    Suspend(Vec<usize>, bool),
    /// Somebody flushes the guard.
    Flush(Vec<usize>),
    /// A service falls ill, or is repaired.
    Service(usize, ServiceName, Health),
    /// A double's process dies.
    DoubleCrash(usize, DomainName),
    /// Libvirt is in trouble.
    LibvirtTrouble(Vec<usize>, Libvirt),
    /// Its power reads off, or on, whatever it is.
    PowerReads(Vec<usize>, bool),
    /// Neighbours do not hear what it announces.
    AnnouncementsLost(Vec<usize>),
    /// A stranger answers for these.
    Stranger(Vec<Vip>),
    /// The coordinator's process dies.
    CoordinatorKill,
    /// It is started.
    CoordinatorStart,
    /// It gets no time.
    CoordinatorStall,
    /// SIF's process dies; its ledger is lost?
    SifKill(bool),
    /// It is started.
    SifStart,
    /// As `kagectl` does.
    Operator(Operator),
}

impl What {
    /// May an owner lose what it holds by this alone?
    #[must_use]
    pub fn disturbs(&self, coordinator_carries: bool) -> bool {
        match self {
            What::PowerOff(_)
            | What::Freeze(_)
            | What::NetworkOff(..)
            | What::Loss(_)
            | What::Slow(_)
            | What::AgentStall(_)
            | What::AgentKill(_)
            | What::Suspend(..)
            | What::Flush(_)
            | What::DoubleCrash(..)
            | What::CoordinatorStall => true,
            // Voters carry the lease; without them it lapses, or is kept.
            What::CoordinatorKill | What::SifKill(_) => coordinator_carries,
            What::PowerOn(_)
            | What::NetworkOn(_)
            | What::AgentStop(_)
            | What::Reboot(_)
            | What::Shutdown(_)
            | What::Service(..)
            | What::LibvirtTrouble(..)
            | What::PowerReads(..)
            | What::AnnouncementsLost(_)
            | What::Stranger(_)
            | What::CoordinatorStart
            | What::SifStart
            | What::Operator(_) => false,
        }
    }
}
