//! Who else configures this machine's network and firewall, from what they leave in the file system. Nothing of theirs
//! is ever written; what they undo is put back (docs/hosts.md).

use std::{fs, path::Path};

/// Somebody who configures the network or the firewall, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// `systemd-networkd`
    pub name: &'static str,
    /// What was seen, and what follows for VIPs and guard.
    pub reason: String,
}

/// Who configures the network here. `interface`: by index, where the VIPs are.
#[must_use]
pub fn network_managers(root: &Path, interface: Option<u32>) -> Vec<Party> {
    let there = |path: &str| root.join(path).exists();
    let mut found = Vec::new();
    if there("run/systemd/netif/state") {
        let link = interface.map(|index| root.join(format!("run/systemd/netif/links/{index}")));
        let state = link.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let state = state.lines().find_map(|line| line.strip_prefix("ADMIN_STATE=")).unwrap_or("unknown").to_owned();
        let what = match state.as_str() {
            "unmanaged" => "it leaves the VIPs' interface alone",
            _ => {
                "a restart or reload of it removes VIPs; the agent puts them back at once (KeepConfiguration=yes spares that)"
            }
        };
        found.push(Party { name: "systemd-networkd", reason: format!("the VIPs' interface is {state}: {what}") });
    }
    if there("run/NetworkManager/devices") {
        let device = interface.map(|index| root.join(format!("run/NetworkManager/devices/{index}")));
        let managed = device.and_then(|path| fs::read_to_string(path).ok());
        let managed = managed.is_some_and(|text| text.lines().any(|line| line.trim() == "managed=true"));
        let what = if managed {
            "the VIPs' interface is managed: activating its connection anew removes VIPs; the agent puts them back at once"
        } else {
            "it leaves the VIPs' interface alone"
        };
        found.push(Party { name: "NetworkManager", reason: what.to_owned() });
    }
    for (path, name) in [("run/dhcpcd/pid", "dhcpcd"), ("run/dhcpcd.pid", "dhcpcd")] {
        if there(path) && !found.iter().any(|party: &Party| party.name == name) {
            found.push(Party { name, reason: format!("/{path} is there: it handles its own addresses only") });
        }
    }
    if found.is_empty() && (there("run/network/ifstate") || there("etc/network/interfaces")) {
        let reason = "/etc/network/interfaces: `ifdown` flushes all addresses; the agent puts VIPs back when the interface is up";
        found.push(Party { name: "ifupdown", reason: reason.to_owned() });
    }
    found
}

/// Who else writes rules for packets here.
#[must_use]
pub fn firewalls(root: &Path) -> Vec<Party> {
    let there = |path: &str| root.join(path).exists();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut found = Vec::new();
    if there("run/firewalld") || there("var/run/firewalld.pid") {
        let backend = read("etc/firewalld/firewalld.conf");
        let reason = if backend.lines().any(|line| line.trim() == "FirewallBackend=iptables") {
            "FirewallBackend=iptables: it does not touch the guard's tables"
        } else {
            "its reload replaces its own tables and leaves the guard's alone"
        };
        found.push(Party { name: "firewalld", reason: reason.to_owned() });
    }
    let config = read("etc/nftables.conf") + &read("etc/sysconfig/nftables.conf") + &read("etc/nftables.nft");
    if !config.is_empty() {
        let flushes = config.lines().any(|line| line.trim().starts_with("flush ruleset"));
        let reason = if flushes {
            "its configuration begins with `flush ruleset`: each reload removes the guard, which is put back at once and its VIPs asked for anew; `destroy table` of your own tables instead spares that"
        } else {
            "its configuration has no `flush ruleset`: reloads leave the guard alone"
        };
        found.push(Party { name: "nftables", reason: reason.to_owned() });
    }
    if read("etc/ufw/ufw.conf").lines().any(|line| line.trim() == "ENABLED=yes") {
        found.push(Party { name: "ufw", reason: "it writes iptables rules, never the guard's tables".to_owned() });
    }
    if !read("proc/net/ip_tables_names").trim().is_empty() {
        found.push(Party {
            name: "iptables-legacy",
            reason: "its tables are beside nf_tables: both judge each packet, the guard first".to_owned(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::tests::write, *};

    #[test]
    fn parties_are_found_by_what_they_leave() {
        let root = tempfile::tempdir().expect("directory");
        let root = root.path();
        let names = |parties: Vec<Party>| parties.into_iter().map(|party| party.name).collect::<Vec<_>>();
        assert!(network_managers(root, Some(2)).is_empty() && firewalls(root).is_empty());
        write(root, "etc/network/interfaces", "auto eth0\n");
        assert_eq!(names(network_managers(root, Some(2))), ["ifupdown"]);
        write(root, "run/systemd/netif/state", "");
        write(root, "run/systemd/netif/links/2", "ADMIN_STATE=configured\n");
        write(root, "run/NetworkManager/devices/2", "[device]\nmanaged=true\n");
        let found = network_managers(root, Some(2));
        assert!(found[0].reason.contains("is configured: a restart"), "{found:?}");
        assert!(found[1].reason.contains("puts them back"), "{found:?}");
        assert!(network_managers(root, Some(3))[1].reason.contains("leaves the VIPs' interface alone"));
        write(root, "etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\n");
        write(root, "etc/ufw/ufw.conf", "ENABLED=no\n");
        write(root, "run/firewalld/x", "");
        let found = firewalls(root);
        assert_eq!(names(found.clone()), ["firewalld", "nftables"]);
        assert!(found[1].reason.contains("put back at once"));
    }
}
