//! The guard's rules, as a script for `nft -f -`: one transaction, to be run any number of times.
//!
//! Sets are added, never replaced: elements that are in force stay so across a restart of the agent. The rules and
//! the lists of VIPs are replaced as a whole.
//!
//! IPv6 addresses are matched and kept as raw payload (`@nh`, `@th`): nftables 1.0.6 has no name for the target of a
//! neighbour advertisement, and does not look raw payload up in a set of `ipv6_addr`.

use super::{IfName, elements::TABLE};
use kage_types::Vip;
use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

/// Before connection tracking, address translation and the administrator's own rules.
const FIRST: i32 = -450;
/// After source translation, so that no masquerading makes a packet of the VIP.
const LAST: i32 = 450;

const SRC6: &str = "@nh,64,128";
const DST6: &str = "@nh,192,128";
const TARGET6: &str = "@th,64,128";

/// Whose packets the guard judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardKind {
    /// This machine's own, which has the VIPs on `interface`.
    Host {
        /// Where the VIPs are, and where announcements leave.
        interface: IfName,
    },
    /// Those of guests behind a bridge: every port of every bridge but the uplinks.
    Tap {
        /// The bridge, where announcements leave.
        bridge: IfName,
        /// Its ports towards the network.
        uplinks: Vec<IfName>,
    },
}

/// A table's family, as `nft` calls it.
pub(super) type Family = &'static str;

impl GuardKind {
    /// The tables of this guard. `egress`: can the kernel hook what leaves a device?
    pub(super) fn families(&self, egress: bool) -> &'static [Family] {
        match self {
            GuardKind::Host { .. } if egress => &["arp", "inet", "netdev"],
            GuardKind::Host { .. } => &["arp", "inet"],
            GuardKind::Tap { .. } => &["bridge"],
        }
    }

    /// Where announcements leave.
    #[must_use]
    pub fn interface(&self) -> IfName {
        match self {
            GuardKind::Host { interface } => *interface,
            GuardKind::Tap { bridge, .. } => *bridge,
        }
    }
}

/// The script that makes the guard what it should be.
pub(super) fn script(kind: &GuardKind, listed: &BTreeSet<Vip>, egress: bool) -> String {
    let mut script = Script { text: String::new(), listed };
    match kind {
        GuardKind::Host { interface } => {
            script.arp();
            script.inet();
            if egress {
                script.netdev(*interface);
            }
        }
        GuardKind::Tap { uplinks, .. } => script.bridge(uplinks),
    }
    script.text
}

/// The script that leaves nothing. (Adding first: deleting what isn't there is an error.)
pub(super) fn removal(families: &[Family]) -> String {
    families.iter().map(|family| format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n")).collect()
}

struct Script<'a> {
    text: String,
    listed: &'a BTreeSet<Vip>,
}

impl Script<'_> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn table(&mut self, family: Family) {
        self.line(&format!("add table {family} {TABLE}"));
        // Of its rules; chains and sets stay.
        self.line(&format!("flush table {family} {TABLE}"));
    }

    fn fixed_set(&mut self, family: Family, name: &str, key: &str, elements: &[String]) {
        self.line(&format!("add set {family} {TABLE} {name} {{ {key}; }}"));
        self.line(&format!("flush set {family} {TABLE} {name}"));
        if !elements.is_empty() {
            self.line(&format!("add element {family} {TABLE} {name} {{ {} }}", elements.join(", ")));
        }
    }

    fn timed_set(&mut self, family: Family, name: &str, key: &str) {
        self.line(&format!("add set {family} {TABLE} {name} {{ {key}; flags timeout; }}"));
    }

    fn listed4(&mut self, family: Family) {
        let elements: Vec<_> = self.listed.iter().filter(|vip| vip.address().is_ipv4()).map(Vip::to_string).collect();
        self.fixed_set(family, "listed4", "type ipv4_addr", &elements);
    }

    fn listed6(&mut self, family: Family) {
        let number = |vip: &Vip| match vip.address() {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(format!("0x{:032x}", address.to_bits())),
        };
        let elements: Vec<_> = self.listed.iter().filter_map(number).collect();
        self.fixed_set(family, "listed6", &format!("typeof {TARGET6}"), &elements);
    }

    fn chain(&mut self, family: Family, name: &str, hook: &str, priority: i32, rules: &[String]) {
        self.line(&format!(
            "add chain {family} {TABLE} {name} {{ type filter hook {hook} priority {priority}; policy accept; }}"
        ));
        for rule in rules {
            let mut line = String::new();
            let _ = write!(line, "add rule {family} {TABLE} {name} {rule}");
            self.line(&line);
        }
    }

    fn arp(&mut self) {
        self.table("arp");
        self.listed4("arp");
        self.timed_set("arp", "live4", "type ipv4_addr");
        // The announcement of another owner names the VIP as its target too: it must update our cache.
        let heard = ["arp saddr ip @listed4 accept".to_owned(), unless("", "arp daddr ip", "arp daddr ip", "live4")];
        self.chain("arp", "heard", "input", FIRST, &heard);
        self.chain("arp", "said", "output", FIRST, &[unless("", "arp saddr ip", "arp saddr ip", "live4")]);
    }

    fn inet(&mut self) {
        self.table("inet");
        self.listed4("inet");
        self.listed6("inet");
        for name in ["live4", "armed4"] {
            self.timed_set("inet", name, "type ipv4_addr");
        }
        for name in ["live6", "armed6"] {
            self.timed_set("inet", name, &format!("typeof {TARGET6}"));
        }
        // A machine may always talk to itself, as long as it stays inside.
        let heard = [
            "iifname \"lo\" accept".to_owned(),
            unless("meta nfproto ipv4", "ip daddr", "ip daddr", "live4"),
            unless("meta nfproto ipv6", DST6, DST6, "live6"),
            unless("icmpv6 type nd-neighbor-solicit", TARGET6, TARGET6, "live6"),
        ];
        self.chain("inet", "heard", "prerouting", FIRST, &heard);
        let said = [
            "oifname \"lo\" accept".to_owned(),
            unless("meta nfproto ipv4", "ip saddr", "ip saddr", "live4"),
            unless("meta nfproto ipv6", SRC6, SRC6, "live6"),
            unless("icmpv6 type nd-neighbor-advert", TARGET6, TARGET6, "live6"),
        ];
        // Both: what IPsec has wrapped is not seen by the second, what is translated not by the first.
        self.chain("inet", "said", "output", FIRST, &said);
        self.chain("inet", "sent", "postrouting", LAST, &said);
    }

    /// Raw sockets (announcements, ours included) pass no hook of the other families.
    fn netdev(&mut self, interface: IfName) {
        self.table("netdev");
        self.listed4("netdev");
        self.listed6("netdev");
        self.timed_set("netdev", "live4", "type ipv4_addr");
        self.timed_set("netdev", "live6", &format!("typeof {TARGET6}"));
        let sent = [
            unless("meta protocol arp", "arp saddr ip", "arp saddr ip", "live4"),
            unless("meta protocol ip", "ip saddr", "ip saddr", "live4"),
            unless("meta protocol ip6", SRC6, SRC6, "live6"),
            unless("meta protocol ip6 icmpv6 type nd-neighbor-advert", TARGET6, TARGET6, "live6"),
        ];
        self.chain("netdev", "sent", &format!("egress device \"{interface}\""), FIRST, &sent);
    }

    fn bridge(&mut self, uplinks: &[IfName]) {
        self.table("bridge");
        let ports: Vec<_> = uplinks.iter().map(|name| format!("\"{name}\"")).collect();
        self.fixed_set("bridge", "uplinks", "type ifname", &ports);
        self.listed4("bridge");
        self.listed6("bridge");
        for name in ["live4", "armed4"] {
            self.timed_set("bridge", name, "type ifname . ipv4_addr");
        }
        for name in ["live6", "armed6"] {
            self.timed_set("bridge", name, &format!("typeof iifname . {TARGET6}"));
        }
        self.timed_set("bridge", "held4", "type ipv4_addr");
        self.timed_set("bridge", "held6", &format!("typeof {TARGET6}"));
        let from = |address: &str| format!("iifname . {address}");
        let to = |address: &str| format!("oifname . {address}");
        // "meta protocol": a VLAN tag must not hide what is inside. Hook prerouting: on forward the host itself would
        // still get through. A guest's own probes for the VIP (sender 0.0.0.0 or ::) are kept in as well: the owner's
        // answer would make it give the address up.
        let from_guests = [
            "iifname @uplinks accept".to_owned(),
            unless("meta protocol arp", "arp saddr ip", &from("arp saddr ip"), "live4"),
            unless("meta protocol arp arp saddr ip 0.0.0.0", "arp daddr ip", &from("arp daddr ip"), "live4"),
            unless("meta protocol ip", "ip saddr", &from("ip saddr"), "live4"),
            unless("meta protocol ip6", SRC6, &from(SRC6), "live6"),
            unless("meta protocol ip6 icmpv6 type nd-neighbor-advert", TARGET6, &from(TARGET6), "live6"),
            unless("meta protocol ip6 ip6 saddr :: icmpv6 type nd-neighbor-solicit", TARGET6, &from(TARGET6), "live6"),
        ];
        self.chain("bridge", "from_guests", "prerouting", FIRST, &from_guests);
        // ARP and ND go in: a guest that is a client needs the announcements, one that isn't live can't answer.
        let to_guests = [
            "oifname @uplinks accept".to_owned(),
            unless("meta protocol ip", "ip daddr", &to("ip daddr"), "live4"),
            unless("meta protocol ip6", DST6, &to(DST6), "live6"),
        ];
        self.chain("bridge", "to_guests", "postrouting", FIRST, &to_guests);
        let announced = [
            unless("meta protocol arp", "arp saddr ip", "arp saddr ip", "held4"),
            unless("meta protocol ip6 icmpv6 type nd-neighbor-advert", TARGET6, TARGET6, "held6"),
        ];
        self.chain("bridge", "announced", "output", FIRST, &announced);
    }
}

/// Drops what is `context` and has a listed `address`, unless `key` is in the timed set.
fn unless(context: &str, address: &str, key: &str, timed: &str) -> String {
    let listed = if timed.ends_with('4') { "listed4" } else { "listed6" };
    format!("{context} {address} @{listed} {key} != @{timed} drop")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> BTreeSet<Vip> {
        ["10.78.0.1", "fd78::1"].iter().map(|vip| vip.parse().unwrap()).collect()
    }

    #[test]
    fn a_set_that_holds_live_elements_is_never_flushed() {
        let uplink = IfName::new("up0").unwrap();
        for kind in [
            GuardKind::Host { interface: uplink },
            GuardKind::Tap { bridge: IfName::new("br0").unwrap(), uplinks: vec![uplink] },
        ] {
            let text = script(&kind, &listed(), true);
            for line in text.lines().filter(|line| line.starts_with("flush set") || line.starts_with("delete")) {
                assert!(line.ends_with("listed4") || line.ends_with("listed6") || line.ends_with("uplinks"), "{line}");
            }
            assert!(text.contains("listed6 { 0xfd780000000000000000000000000001 }"), "{text}");
        }
    }

    #[test]
    fn every_hook_begins_with_its_exception() {
        let kind = GuardKind::Tap { bridge: IfName::new("br0").unwrap(), uplinks: Vec::new() };
        let text = script(&kind, &listed(), false);
        let first = text.lines().find(|line| line.contains("add rule bridge kagemusha from_guests"));
        assert_eq!(first, Some("add rule bridge kagemusha from_guests iifname @uplinks accept"));
    }
}
