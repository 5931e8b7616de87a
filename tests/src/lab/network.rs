//! The switch, the namespaces on it, and the cuts. Nothing touches the root namespace.

use std::fmt::Write as _;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::nodes::{self, Kind, Service, Spec, find};
use super::run::{run, shell, succeeds};
use super::spawn::run_in;

/// The table of the cuts, in the switch's namespace.
const TABLE: &str = "kage_lab";

/// The port of an observer that is on a machine's own side of every cut, when there is one.
pub const NEAR_PORT: &str = "p-near";

/// What a cut severs, seen from its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Everything, both ways.
    Full,
    /// What the target sends; it still hears.
    FromTarget,
    /// What the target should hear; it still speaks.
    ToTarget,
    /// Both ways, between the target and the coordinator's host only.
    Coordinator,
    /// Everything but the file server, both ways: a cut server that could still write.
    AllButStorage,
    /// Each frame with this probability in percent, both ways.
    Loss(u8),
}

impl FromStr for Cut {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        Ok(match word {
            "full" => Self::Full,
            "from" | "from-target" => Self::FromTarget,
            "to" | "to-target" => Self::ToTarget,
            "coordinator" => Self::Coordinator,
            "all-but-storage" => Self::AllButStorage,
            other => match other.strip_prefix("loss:").and_then(|percent| percent.parse().ok()) {
                Some(percent) if percent <= 100 => Self::Loss(percent),
                Some(_) | None => {
                    bail!("`{other}` is no cut; cuts are full, from, to, coordinator, all-but-storage, loss:PERCENT")
                }
            },
        })
    }
}

fn link(node: &Spec, script: &mut String) {
    let (name, ns, mac) = (node.name, node.namespace(), node.mac_text());
    let address = format!("{}/24", node.ip());
    let _ = match node.kind {
        Kind::Switch => writeln!(
            script,
            "ip netns add {ns}; ip -n {ns} link set lo up
             ip netns exec {ns} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
             ip -n {ns} link add br-sw type bridge forward_delay 0 mcast_snooping 0
             ip -n {ns} link set br-sw up
             ip netns exec {ns} nft add table bridge {TABLE}"
        ),
        Kind::Hypervisor | Kind::RealServer => writeln!(
            script,
            "ip netns add {ns}; ip -n {ns} link set lo up
             ip link add uplink netns {ns} type veth peer name p-{name} netns kage-sw
             ip -n {ns} link add br0 address {mac} type bridge forward_delay 0 mcast_snooping 0
             ip -n {ns} link set uplink master br0 up
             ip -n {ns} link set br0 up
             ip -n {ns} address add {address} dev br0
             ip -n kage-sw link set p-{name} master br-sw up"
        ),
        Kind::Voter | Kind::Client | Kind::FileServer | Kind::LoadBalancer => writeln!(
            script,
            "ip netns add {ns}; ip -n {ns} link set lo up
             ip link add eth0 address {mac} netns {ns} type veth peer name p-{name} netns kage-sw
             ip -n {ns} link set eth0 up
             ip -n {ns} address add {address} dev eth0
             ip -n kage-sw link set p-{name} master br-sw up"
        ),
        Kind::Machine => writeln!(
            script,
            "ip -n kage-sw tuntap add dev p-{name} mode tap
             ip -n kage-sw link set p-{name} master br-sw up"
        ),
        Kind::Domain | Kind::VirtualServer => Ok(()),
    };
}

/// Makes the switch and everything on it.
///
/// # Errors
/// Not root, or a tool is missing.
pub fn up() -> Result<()> {
    let mut script = String::new();
    for node in nodes::nodes() {
        link(node, &mut script);
    }
    shell(&script)?;
    Ok(())
}

fn namespaces() -> Vec<String> {
    let list = run(&["ip", "netns", "list"]).unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("kage-"))
        .map(str::to_owned)
        .collect()
}

/// Removes the lab's namespaces, and with them its links and rules.
///
/// # Errors
/// A namespace can't be removed.
pub fn down() -> Result<()> {
    for name in namespaces() {
        run(&["ip", "netns", "delete", &name])?;
    }
    // What `ip netns add` leaves behind; both refuse while anything is in use.
    if std::fs::read_dir("/run/netns").is_ok_and(|mut entries| entries.next().is_none()) {
        let _ = run(&["umount", "/run/netns"]);
        let _ = std::fs::remove_dir("/run/netns");
    }
    Ok(())
}

/// Whether any of the lab's namespaces exists.
#[must_use]
pub fn exists() -> bool {
    !namespaces().is_empty()
}

/// Severs `target` as `cut` says, on top of what is already cut.
///
/// # Errors
/// The lab is down.
pub fn cut(target: &Spec, cut: Cut) -> Result<()> {
    let port = target.port();
    let coordinator = find("mgmt")?.port();
    let out = format!("iifname {port}");
    let into = format!("oifname {port}");
    let rules = match cut {
        Cut::Full => vec![out, into],
        Cut::FromTarget => vec![out],
        Cut::ToTarget => vec![into],
        Cut::Coordinator => vec![format!("{out} oifname {coordinator}"), format!("{into} iifname {coordinator}")],
        Cut::AllButStorage => {
            let storage = find("fs")?.port();
            vec![format!("{out} oifname != {storage}"), format!("{into} iifname != {storage}")]
        }
        Cut::Loss(percent) => vec![
            format!("{out} numgen random mod 100 < {percent}"),
            format!("{into} numgen random mod 100 < {percent}"),
        ],
    };
    let chain = chain(target);
    let mut batch =
        format!("add chain bridge {TABLE} {chain} {{ type filter hook forward priority 0; policy accept; }}\n");
    // Who sits beside the target, on its side of the cut, goes on talking to it: see `bench::near`.
    for beside in [format!("iifname {port} oifname {NEAR_PORT}"), format!("oifname {port} iifname {NEAR_PORT}")] {
        let _ = writeln!(batch, "add rule bridge {TABLE} {chain} {beside} accept");
    }
    for rule in rules {
        let _ = writeln!(batch, "add rule bridge {TABLE} {chain} {rule} counter drop");
    }
    run_in(find("sw")?, &["sh", "-ec", &format!("nft -f - <<'END'\n{batch}END")])?;
    Ok(())
}

fn chain(target: &Spec) -> String {
    format!("cut_{}", target.host)
}

/// Whether anything of `target` is severed.
#[must_use]
pub fn is_cut(target: &Spec) -> bool {
    find("sw").is_ok_and(|switch| run_in(switch, &["nft", "list", "chain", "bridge", TABLE, &chain(target)]).is_ok())
}

/// Joins what was severed.
///
/// # Errors
/// The lab is down.
pub fn heal(target: &Spec) -> Result<()> {
    if is_cut(target) {
        run_in(find("sw")?, &["nft", "delete", "chain", "bridge", TABLE, &chain(target)])?;
    }
    Ok(())
}

/// Takes the machine's port down or up, as a sleeping machine's link goes down.
///
/// # Errors
/// The lab is down.
pub fn set_link(target: &Spec, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    run(&["ip", "-n", "kage-sw", "link", "set", &target.port(), state])?;
    Ok(())
}

/// Who answers `service` at `address` when asked from `node`, or `None` if nobody does within a second.
#[must_use]
pub fn who_serves(node: &Spec, address: std::net::Ipv4Addr, service: Service) -> Option<String> {
    let program = super::lifecycle::this_program().ok()?;
    let name = run_in(node, &[&program, "ask", &address.to_string(), service.name()]).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Whether the lab could work here at all.
#[must_use]
pub fn tools_present() -> bool {
    succeeds(&["nft", "--version"]) && succeeds(&["tcpdump", "--version"]) && succeeds(&["ip", "-V"])
}
