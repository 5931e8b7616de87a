//! The lab as a whole: up, down, status.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::config::{self, Profile};
use super::daemons::{self, Part};
use super::nodes::{self, Kind, Layout, System, find, of};
use super::run::{read, text, write};
use super::spawn::Daemon;
use super::{balancer, debian, dirs, fileserver, hypervisor, image, machine, network};

/// What the lab remembers of itself while it is up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// The profile it was brought up with.
    pub profile: Profile,
    /// Who is in it.
    #[serde(default)]
    pub layout: Layout,
    /// When the product's programs that it runs were built, ns since 1970.
    #[serde(default)]
    pub built_ns: BTreeMap<String, u64>,
}

/// When the product's programs were built.
#[must_use]
pub fn built_ns() -> BTreeMap<String, u64> {
    let built = |name: &str| {
        let at = dirs::binary(name)?.metadata().ok()?.modified().ok()?;
        u64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
    };
    ["kage-agent", "kage-coordinator", "kage-sif"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), built(name)?)))
        .collect()
}

fn memory_file() -> PathBuf {
    dirs::lab().join("lab.json")
}

/// What the running lab was brought up with.
///
/// # Errors
/// The lab is down.
pub fn memory() -> Result<Memory> {
    let text = read(&memory_file()).context("the lab is down; run `tests/lab up`")?;
    serde_json::from_str(&text).context("the lab's memory is damaged; run `tests/lab down`, then `up`")
}

/// This program, to be started again as a daemon. The newer one in its place, if it was built anew meanwhile.
///
/// # Errors
/// /proc is not mounted.
pub fn this_program() -> Result<String> {
    let path = text(&std::env::current_exe().context("cannot find this program's own path")?);
    Ok(path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned())
}

/// Brings the lab up. Parts of the product that are not built are left out, and named.
///
/// # Errors
/// The lab is up already, or something does not start; what did is left for inspection.
pub fn up(layout: Layout, profile: Profile, say: &mut dyn FnMut(&str)) -> Result<()> {
    if network::exists() || !Cgroup::all().is_empty() {
        bail!("the lab is up, or half of it; run `tests/lab down` first");
    }
    if !network::tools_present() {
        bail!("nft, tcpdump or ip is missing; tests/lab installs them");
    }
    nodes::choose(layout);
    let kernel = image::kernel()?;
    image::base(&kernel)?;
    if nodes::nodes().iter().any(|node| node.system == System::Debian) {
        say("looking for the Debian guest's disk; making it takes about three minutes the first time");
        debian::image()?;
    }
    say(&format!("guests run Linux {} under {}", kernel.release, image::accelerator(&kernel)?));
    for node in nodes::nodes().iter().filter(|node| !matches!(node.kind, Kind::Domain | Kind::VirtualServer)) {
        Cgroup::of(node.name).create()?;
    }
    network::up()?;
    let memory = Memory { profile, layout, built_ns: built_ns() };
    write(&memory_file(), serde_json::to_string(&memory)?)?;
    let product = match dirs::binary("kagectl") {
        Some(kagectl) => {
            config::make_pki(&kagectl)?;
            config::write_all(profile)?;
            true
        }
        None => {
            say("kagectl is not built: the lab comes up without the product");
            false
        }
    };
    for node in of(Kind::FileServer) {
        fileserver::up(node)?;
    }
    for node in of(Kind::Hypervisor).chain(of(Kind::RealServer)) {
        hypervisor::up(node)?;
    }
    Daemon::new(find("sw")?, "nic").start(&[&this_program()?, "nic"])?;
    if product {
        for part in daemons::outside()? {
            if !part.available() {
                say(&format!("{part:?} is not built: left out"));
            } else if part != Part::Coordinator {
                daemons::start(part)?;
            }
        }
    }
    guests(say)?;
    for node in of(Kind::LoadBalancer) {
        balancer::up(node)?;
    }
    // Last: to it a machine that takes its time to boot is a machine in trouble.
    if product && Part::Coordinator.available() { daemons::start(Part::Coordinator) } else { Ok(()) }
}

fn guests(say: &mut dyn FnMut(&str)) -> Result<()> {
    // Without an agent nobody keeps a double silent while it boots: it boots alone.
    let guarded = Part::Agent(find("mgmt")?).available();
    let start_machines = || of(Kind::Machine).try_for_each(machine::power_on);
    if guarded {
        start_machines()?;
    }
    for domain in of(Kind::Domain) {
        hypervisor::define(domain)?;
        if guarded {
            hypervisor::start(domain)?;
        }
    }
    for server in of(Kind::VirtualServer) {
        hypervisor::define(server)?;
        hypervisor::start(server)?;
    }
    for domain in of(Kind::Domain) {
        let took = hypervisor::boot_and_suspend(domain, domain.boot_limit())?;
        say(&format!("{} answered after {took:.2?} and is suspended", domain.name));
    }
    if !guarded {
        start_machines()?;
    }
    for node in of(Kind::Machine).chain(of(Kind::VirtualServer)) {
        let took = machine::wait_answering(node, node.boot_limit())?;
        say(&format!("{} answers ({took:.2?})", node.name));
    }
    Ok(())
}

/// Removes the lab: processes (only its own, by control group), namespaces, files.
/// Results of drills stay in `results/`.
///
/// # Errors
/// Something can't be removed; call it again.
pub fn down() -> Result<()> {
    // The NIC first: it would boot what we pull the plug of.
    Cgroup::of("sw").kill()?;
    hypervisor::down()?;
    for group in Cgroup::all() {
        group.remove()?;
    }
    network::down()?;
    for name in ["nodes", "pki"] {
        let path = dirs::lab().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for path in [memory_file(), config::cluster_file()] {
        let _ = std::fs::remove_file(path);
    }
    // Refuses while results are in it.
    let _ = std::fs::remove_dir(dirs::lab());
    Ok(())
}

/// One member of the lab as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: &'static str,
    /// Its address.
    pub ip: String,
    /// Its power, or what libvirt says of a domain.
    pub state: String,
    /// Whether something of it is cut off.
    pub cut: bool,
    /// Whether its agent runs; `None` where it has none.
    pub agent: Option<bool>,
}

/// The lab as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The layout.
    pub layout: Layout,
    /// The profile.
    pub profile: Profile,
    /// Whether the SIF runs.
    pub sif: bool,
    /// Whether the coordinator runs.
    pub coordinator: bool,
    /// The members.
    pub nodes: Vec<NodeStatus>,
    /// Who answers on each virtual address, asked from the client.
    pub served_by: Vec<(String, Option<String>)>,
}

/// Looks at the whole lab.
///
/// # Errors
/// The lab is down.
pub fn status() -> Result<Status> {
    let Memory { profile, layout, .. } = memory()?;
    let client = find("client")?;
    let nodes = nodes::nodes()
        .iter()
        .map(|node| NodeStatus {
            name: node.name,
            ip: node.ip().to_string(),
            state: match node.kind {
                Kind::Machine | Kind::RealServer => format!("{:?}", machine::power(node)).to_lowercase(),
                Kind::VirtualServer => hypervisor::whereabouts(node)
                    .map_or_else(|| "nowhere".to_owned(), |(host, state)| format!("{state} on {}", host.name)),
                Kind::Domain => hypervisor::state(node).unwrap_or_else(|_| "unknown".to_owned()),
                Kind::Switch
                | Kind::Hypervisor
                | Kind::Voter
                | Kind::Client
                | Kind::FileServer
                | Kind::LoadBalancer => "on".to_owned(),
            },
            cut: node.kind != Kind::Switch && network::is_cut(node),
            agent: config::agents().any(|agent| agent.name == node.name).then(|| {
                let on = match node.kind {
                    Kind::VirtualServer => true,
                    // One that is suspended can't be asked.
                    Kind::Domain => hypervisor::state(node).is_ok_and(|state| state == "running"),
                    Kind::Switch
                    | Kind::Hypervisor
                    | Kind::RealServer
                    | Kind::Voter
                    | Kind::Machine
                    | Kind::Client
                    | Kind::FileServer
                    | Kind::LoadBalancer => machine::power(node) == machine::Power::On,
                };
                on && daemons::running(Part::Agent(node))
            }),
        })
        .collect();
    let mut served_by: Vec<(String, Option<String>)> = Vec::new();
    for node in of(Kind::Machine).chain(of(Kind::VirtualServer)) {
        if let Some(vip) = node.vip() {
            served_by.push((vip.to_string(), network::who_serves(client, vip, node.service)));
        }
    }
    Ok(Status {
        layout,
        profile,
        sif: daemons::running(Part::Sif),
        coordinator: daemons::running(Part::Coordinator),
        nodes,
        served_by,
    })
}

impl Status {
    /// The status as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let yes = |flag: bool| if flag { "yes" } else { "no" };
        let mut table = format!(
            "layout {}   profile {}   sif {}   coordinator {}\n",
            self.layout.name(),
            self.profile.name(),
            yes(self.sif),
            yes(self.coordinator)
        );
        for node in &self.nodes {
            let _ = writeln!(
                table,
                "{:8} {:12} {:14} {:6} {}",
                node.name,
                node.ip,
                node.state,
                if node.cut { "cut" } else { "joined" },
                node.agent.map_or("", |runs| if runs { "agent runs" } else { "no agent" }),
            );
        }
        for (vip, server) in &self.served_by {
            let _ = writeln!(table, "{vip} is served by {}", server.as_deref().unwrap_or("nobody"));
        }
        table
    }
}
