//! The clusters that are simulated by chance: small, in a few shapes.

use super::net::Nodes;
use super::rng::Rng;
use kage_coordinator_core::config::Cluster;

/// Who is what, by index of the machine: for the faults.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// The targets' machines.
    pub targets: Vec<usize>,
    /// Those that run doubles.
    pub hypervisors: Vec<usize>,
    /// All others.
    pub witnesses: Vec<usize>,
}

impl Shape {
    /// As configured.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let mut shape = Self::default();
        for (index, name) in cluster.agents.keys().enumerate() {
            if cluster.targets.values().any(|target| target.agent == *name) {
                shape.targets.push(index);
            } else if cluster.targets.values().any(|target| target.backup.agent == *name) {
                shape.hypervisors.push(index);
            } else {
                shape.witnesses.push(index);
            }
        }
        shape
    }

    /// Machines that may own a VIP.
    #[must_use]
    pub fn owner(&self, rng: &mut Rng) -> usize {
        let chosen = rng.index(self.targets.len() + self.hypervisors.len());
        self.targets.get(chosen).copied().unwrap_or_else(|| self.hypervisors[chosen - self.targets.len()])
    }

    /// One of the targets' machines.
    #[must_use]
    pub fn target(&self, rng: &mut Rng) -> usize {
        self.targets[rng.index(self.targets.len())]
    }

    /// One of the machines that are neither target nor hypervisor, as a set.
    #[must_use]
    pub fn witness(&self, rng: &mut Rng) -> Nodes {
        1 << self.witnesses[rng.index(self.witnesses.len())]
    }

    /// How many machines.
    #[must_use]
    pub fn machines(&self) -> usize {
        self.targets.len() + self.hypervisors.len() + self.witnesses.len()
    }

    /// All machines, as a set.
    #[must_use]
    pub fn everybody(&self) -> Nodes {
        (1 << self.machines()) - 1
    }
}

/// A target as written: name, number of VIPs, hypervisor, domain.
type Written<'a> = (&'a str, usize, &'a str, &'a str);

/// A cluster chosen by chance: usually one target, its double's host and three witnesses; else two targets that share a
/// double, or have one each, on one hypervisor or on two.
#[must_use]
pub fn cluster(rng: &mut Rng) -> Cluster {
    let profile = if rng.percent(60) { "normal" } else { "fast" };
    let vips = if rng.percent(15) { 2 } else { 1 };
    let targets: &[Written<'_>] = match rng.range(0, 12) {
        0..=7 => &[("mail", vips, "mgmt", "mailb")],
        8 => &[("mail", vips, "mgmt", "spare"), ("web", 1, "mgmt", "spare")],
        9 | 10 => &[("mail", vips, "mgmt", "mailb"), ("web", 1, "mgmt", "webb")],
        _ => &[("mail", vips, "mgmt", "mailb"), ("web", 1, "mgmt2", "webb")],
    };
    // A double that serves two goes on when one goes home (docs/safety.md, never two writers).
    let shared = targets.len() == 2 && targets[0].3 == targets[1].3;
    let fence = match rng.range(0, 10) {
        _ if shared => None,
        0 => Some("none"),
        1 => Some("power"),
        2 => Some("storage"),
        _ => None,
    };
    // The voters are witnesses, or the double's host votes, or the owner itself does.
    let voters: &[&str] = match rng.range(0, 10) {
        0..=6 => &["v1", "v2", "v3"],
        7 | 8 => &["mgmt", "v1", "v2"],
        _ => &["mail", "mgmt", "v1"],
    };
    let mut cluster = text(profile, voters, targets, fence);
    let readable = rng.percent(30);
    for machine in cluster.agents.values_mut().filter(|_| readable) {
        machine.power_status = Some(vec!["power".to_owned()]);
    }
    cluster
}

/// A cluster of this shape; the first target's service must not write twice and is fenced so.
///
/// # Panics
/// Never: the text is a good one.
fn text(profile: &str, voters: &[&str], targets: &[Written<'_>], fence: Option<&str>) -> Cluster {
    let storage = if fence == Some("storage") { "storage_fence = [\"out\"]\nstorage_unfence = [\"in\"]\n" } else { "" };
    let mut text = format!(
        "[cluster]\nname = \"sim\"\nprofile = \"{profile}\"\n\
         [coordinator]\nlisten = \"10.77.0.3:7700\"\n{storage}[sif]\nlisten = \"10.77.0.3:7701\"\n\
         [quarantine]\nhold = \"1s\"\nhold_limit = \"4s\"\n"
    );
    let mut machines: Vec<&str> = Vec::new();
    let named = targets.iter().flat_map(|(name, _, host, _)| [*name, *host]).chain(["v1", "v2", "v3"]);
    named.for_each(|name| {
        if !machines.contains(&name) {
            machines.push(name);
        }
    });
    for (index, name) in machines.iter().enumerate() {
        let guard = if targets.iter().any(|(_, _, host, _)| host == name) { "tap" } else { "host" };
        let voter = voters.contains(name);
        text += &format!(
            "[[agent]]\nname = \"{name}\"\naddress = \"10.77.0.{}:7702\"\nmac = \"52:54:00:77:00:{index:02x}\"\n\
             voter = {voter}\nguard = \"{guard}\"\n",
            11 + index
        );
        if fence == Some("power") && targets.first().is_some_and(|(target, ..)| target == name) {
            text += "power_status = [\"power\"]\npower_off = [\"off\"]\n";
        }
    }
    let mut vip = 100;
    // Longer than a service takes to stop (docs/safety.md, "What this does not protect").
    let healthy = if fence.is_some() { "8s" } else { "2s" };
    for (name, count, host, domain) in targets {
        let vips: Vec<String> = (vip..vip + count).map(|last| format!("\"10.77.0.{last}\"")).collect();
        vip += count;
        text += &format!(
            "[[target]]\nname = \"{name}\"\nagent = \"{name}\"\nvips = [{}]\n\
             backup = {{ agent = \"{host}\", domain = \"{domain}\" }}\nhealthy_for = \"{healthy}\"\nreboot_wait = \"5s\"\n\
             start_wait = \"10s\"\nbudget = {{ restarts = 1000, reboots = 1000, takeovers = 1000 }}\n\
             [[target.service]]\nname = \"http\"\nprobe = \"http\"\nport = 80\n",
            vips.join(", ")
        );
        if let (Some(fence), "mail") = (fence, *name) {
            text += &format!("single_writer = true\nwriter_fence = \"{fence}\"\n");
        }
    }
    match Cluster::parse(&text) {
        Ok(cluster) => cluster,
        Err(error) => unreachable!("{error}"),
    }
}
