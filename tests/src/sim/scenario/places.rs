//! What the names of a scenario stand for.

use crate::sim::net::{Net, Nodes};
use kage_coordinator_core::config::Cluster;
use kage_types::AgentId;

/// At most so many machines: nodes are bits of one number.
pub const MACHINES: usize = 56;

/// The machines and other nodes by name.
pub struct Places {
    /// In the order of their index.
    pub machines: Vec<String>,
    net: Net,
}

impl Places {
    /// Of this cluster; coordinator and SIF on these machines.
    pub fn new(cluster: &Cluster, seats: &[Option<AgentId>; 2]) -> Self {
        let machines: Vec<String> = cluster.agents.keys().map(ToString::to_string).collect();
        let net = seated(&machines, seats);
        Self { machines, net }
    }

    /// Index of a machine.
    pub fn machine(&self, name: &str) -> Option<usize> {
        self.machines.iter().position(|known| known == name)
    }

    /// Does the coordinator or SIF live there?
    pub fn houses(&self, machine: usize) -> bool {
        machine == self.net.sif || machine == self.net.coordinators[0]
    }

    /// The node of a machine, of `coordinator`, `sif` or `clients`; everything is `all`.
    pub fn node(&self, name: &str) -> Option<Nodes> {
        match name {
            "all" => Some((1 << self.net.nodes()) - 1),
            "coordinator" => Some(1 << self.net.coordinators[0]),
            "sif" => Some(1 << self.net.sif),
            "clients" => Some(1 << self.net.clients),
            name => self.machine(name).map(|index| 1 << index),
        }
    }

    /// Every name that may stand for a node.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.machines.iter().map(String::as_str).chain(["all", "coordinator", "sif", "clients"])
    }
}

/// The network of these machines, with coordinator and SIF where they live.
pub fn seated(machines: &[String], seats: &[Option<AgentId>; 2]) -> Net {
    let mut net = Net::new(machines.len());
    let of =
        |seat: &Option<AgentId>| seat.as_ref().and_then(|seat| machines.iter().position(|name| name == seat.as_str()));
    if let Some(index) = of(&seats[0]) {
        net.coordinators[0] = index;
    }
    if let Some(index) = of(&seats[1]) {
        net.sif = index;
    }
    net
}
