//! The network cards in a domain's XML.

use super::types::{Attachment, DomainNic};
use roxmltree::{Document, Node, ParsingOptions};

/// A larger domain definition is none: libvirt's own messages end at 32 MiB, real definitions at some 20 KiB.
const MAX_XML_BYTES: usize = 4 << 20;
/// Elements and texts; bounds memory for a definition made to hurt.
const MAX_NODES: u32 = 200_000;

/// The cards of `<devices>`, without counters. A card without a MAC address is left out.
///
/// # Errors
/// In words, where the XML can't be understood as a domain.
pub(super) fn nics(xml: &str) -> Result<Vec<DomainNic>, String> {
    if xml.len() > MAX_XML_BYTES {
        return Err(format!("domain XML of {} bytes", xml.len()));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).map_err(|error| format!("domain XML: {error}"))?;
    let root = document.root_element();
    if !root.has_tag_name("domain") {
        return Err(format!("domain XML begins with <{}>", root.tag_name().name()));
    }
    let Some(devices) = child(root, "devices") else { return Ok(Vec::new()) };
    Ok(devices.children().filter(|node| node.has_tag_name("interface")).filter_map(nic).collect())
}

fn nic(node: Node<'_, '_>) -> Option<DomainNic> {
    let mac = child(node, "mac")?.attribute("address")?.trim().to_ascii_lowercase();
    let tap = child(node, "target").and_then(|target| target.attribute("dev")).map(str::to_owned);
    Some(DomainNic { mac, tap, attachment: attachment(node), rx_bytes: 0, tx_bytes: 0 })
}

fn attachment(node: Node<'_, '_>) -> Attachment {
    let source =
        |name: &str| child(node, "source").and_then(|source| source.attribute(name)).unwrap_or_default().to_owned();
    let open_vswitch =
        child(node, "virtualport").and_then(|port| port.attribute("type")).is_some_and(|kind| kind == "openvswitch");
    match node.attribute("type").unwrap_or_default() {
        "bridge" if open_vswitch => Attachment::OpenVswitch(source("bridge")),
        "bridge" => Attachment::Bridge(source("bridge")),
        // An active card of a network names the bridge it ended on.
        "network" if open_vswitch => Attachment::OpenVswitch(source("bridge")),
        "network" => match source("bridge") {
            bridge if bridge.is_empty() => Attachment::Network(source("network")),
            bridge => Attachment::Bridge(bridge),
        },
        "ethernet" => Attachment::Ethernet,
        "direct" => Attachment::Direct(source("dev")),
        "hostdev" | "vdpa" => Attachment::HostDevice,
        other => Attachment::Other(other.to_owned()),
    }
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_read() {
        let xml = "<domain type='qemu'><name>m</name><devices>\
            <interface type='bridge'><mac address='52:54:00:AA:00:01'/><source bridge='br0'/><target dev='vnet3'/></interface>\
            <interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='ovs0'/><virtualport type='openvswitch'/></interface>\
            <interface type='network'><mac address='52:54:00:aa:00:03'/><source network='default' bridge='virbr0'/><target dev='vnet4'/></interface>\
            <interface type='direct'><mac address='52:54:00:aa:00:04'/><source dev='eth0' mode='bridge'/></interface>\
            <interface type='user'><mac address='52:54:00:aa:00:05'/></interface>\
            <interface type='bridge'><source bridge='br0'/></interface>\
            </devices><metadata><x:a xmlns:x='urn:x'><interface/></x:a></metadata></domain>";
        let nics = nics(xml).expect("valid");
        let kinds: Vec<_> = nics.iter().map(|nic| (nic.tap.as_deref(), nic.attachment.clone())).collect();
        assert_eq!(nics[0].mac, "52:54:00:aa:00:01");
        assert_eq!(
            kinds,
            [
                (Some("vnet3"), Attachment::Bridge("br0".into())),
                (None, Attachment::OpenVswitch("ovs0".into())),
                (Some("vnet4"), Attachment::Bridge("virbr0".into())),
                (None, Attachment::Direct("eth0".into())),
                (None, Attachment::Other("user".into())),
            ]
        );
    }

    use crate::mangle;

    const DOMAIN: &str = "<domain type='qemu' id='3'><name>m</name><devices>\
        <interface type='bridge'><mac address='52:54:00:AA:00:01'/><source bridge='br0'/><target dev='vnet3'/></interface>\
        <interface type='network'><mac address='52:54:00:aa:00:03'/><source network='default' bridge='virbr0'/></interface>\
        </devices><metadata><x:a xmlns:x='urn:x'><interface/></x:a></metadata></domain>";

    proptest::proptest! {
        #[test]
        fn no_damage_breaks_the_reader(edits in proptest::collection::vec(proptest::prelude::any::<mangle::Edit>(), 1..6)) {
            let spoilt = mangle::mangle(DOMAIN.as_bytes(), &edits);
            let spoilt = String::from_utf8_lossy(&spoilt);
            if let Ok(cards) = nics(&spoilt) {
                assert!(cards.len() <= spoilt.len() / "<interface".len());
            }
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        assert!(nics(&" ".repeat(MAX_XML_BYTES + 1)).is_err());
        assert!(nics(&format!("<domain>{}</domain>", "<a/>".repeat(MAX_NODES as usize))).is_err());
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic() {
        let deep = "<a>".repeat(100_000);
        for bad in [
            "",
            "<",
            "<domain>",
            "<network/>",
            "<domain><devices></domain>",
            "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>",
            "\u{0}<domain/>",
            deep.as_str(),
        ] {
            assert!(nics(bad).is_err(), "{:?}", &bad[..bad.len().min(40)]);
        }
        assert_eq!(nics("<domain/>"), Ok(vec![]));
        assert_eq!(nics("<domain><devices><interface/></devices></domain>"), Ok(vec![]));
    }
}
