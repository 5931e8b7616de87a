//! Who is in the lab: data only. A new machine is a new line here.

use std::net::Ipv4Addr;

use anyhow::{Result, bail};

/// A machine's part in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The switch: a bridge in a namespace without addresses. Captures and cuts live here.
    Switch,
    /// A network namespace with a libvirt of its own, running the SIF and the coordinator.
    Hypervisor,
    /// A network namespace running an agent that only votes.
    Voter,
    /// A network namespace from which clients ask.
    Client,
    /// A QEMU guest that stands for a physical machine: libvirt knows nothing of it.
    Machine,
    /// A libvirt domain on [`Spec::host`]: the suspended double of a machine.
    Domain,
}

/// One member of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name, in namespaces, ports, certificates and the product's configuration.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The last octet of its address, and of its Ethernet address.
    pub host_number: u8,
    /// The last octet of the virtual address it serves or stands ready to serve.
    pub vip_number: Option<u8>,
    /// For a domain: the hypervisor it lives on. For others: itself.
    pub host: &'static str,
    /// For a domain: the machine whose double it is.
    pub double_of: Option<&'static str>,
}

const fn spec(name: &'static str, kind: Kind, host_number: u8) -> Spec {
    Spec { name, kind, host_number, vip_number: None, host: name, double_of: None }
}

/// Memory of a guest: the kernel, and the initramfs twice while it is unpacked.
pub const GUEST_MEMORY_MIB: u32 = 160;

/// The members of the lab.
pub const NODES: &[Spec] = &[
    spec("sw", Kind::Switch, 0),
    spec("mgmt", Kind::Hypervisor, 2),
    spec("v1", Kind::Voter, 21),
    spec("v2", Kind::Voter, 22),
    spec("v3", Kind::Voter, 23),
    spec("client", Kind::Client, 50),
    Spec { vip_number: Some(100), ..spec("mail", Kind::Machine, 11) },
    Spec { vip_number: Some(100), host: "mgmt", double_of: Some("mail"), ..spec("mailb", Kind::Domain, 31) },
];

impl Spec {
    /// Its address on the lab's only subnet, 10.77.0.0/24.
    #[must_use]
    pub const fn ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.host_number)
    }

    /// Its Ethernet address: 52:54:00:77:00 and its host number.
    #[must_use]
    pub const fn mac(&self) -> [u8; 6] {
        [0x52, 0x54, 0x00, 0x77, 0x00, self.host_number]
    }

    /// The Ethernet address as text.
    #[must_use]
    pub fn mac_text(&self) -> String {
        mac_text(&self.mac())
    }

    /// The virtual address it serves.
    #[must_use]
    pub fn vip(&self) -> Option<Ipv4Addr> {
        self.vip_number.map(|last| Ipv4Addr::new(10, 77, 0, last))
    }

    /// Its network namespace; guests hang on their host's or on the switch's.
    #[must_use]
    pub fn namespace(&self) -> String {
        match self.kind {
            Kind::Machine => "kage-sw".to_owned(),
            Kind::Domain => format!("kage-{}", self.host),
            Kind::Switch | Kind::Hypervisor | Kind::Voter | Kind::Client => format!("kage-{}", self.name),
        }
    }

    /// The port of the switch through which it speaks.
    #[must_use]
    pub fn port(&self) -> String {
        format!("p-{}", self.host)
    }
}

/// `52:54:00:77:00:0b`.
#[must_use]
pub fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The member called `name`.
///
/// # Errors
/// There is none; the message lists those that exist.
pub fn find(name: &str) -> Result<&'static Spec> {
    match NODES.iter().find(|node| node.name == name) {
        Some(node) => Ok(node),
        None => {
            let names: Vec<_> = NODES.iter().map(|node| node.name).collect();
            bail!("the lab has no `{name}`; it has {}", names.join(", "))
        }
    }
}

/// The machine called `name`, which has a power switch of its own.
///
/// # Errors
/// It is not in the lab, or is no machine.
pub fn machine(name: &str) -> Result<&'static Spec> {
    let node = find(name)?;
    if node.kind != Kind::Machine {
        let names: Vec<_> = of(Kind::Machine).map(|node| node.name).collect();
        bail!("`{name}` has no power switch of its own; machines are {}", names.join(", "));
    }
    Ok(node)
}

/// All members of one kind.
pub fn of(kind: Kind) -> impl Iterator<Item = &'static Spec> {
    NODES.iter().filter(move |node| node.kind == kind)
}

/// The double of the machine called `name`.
#[must_use]
pub fn double(name: &str) -> Option<&'static Spec> {
    NODES.iter().find(|node| node.double_of == Some(name))
}

/// Who in the lab has this Ethernet address.
#[must_use]
pub fn by_mac(mac: &[u8]) -> Option<&'static Spec> {
    NODES.iter().find(|node| node.kind != Kind::Switch && node.mac() == mac)
}
