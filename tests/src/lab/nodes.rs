//! Who is in the lab: data only. A new machine is a new line here.

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::lifecycle;

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
    /// A network namespace with the file server: services' data, over NFS.
    FileServer,
    /// A QEMU guest that stands for a physical machine: libvirt knows nothing of it.
    Machine,
    /// A libvirt domain on [`Spec::host`]: the suspended double of a machine.
    Domain,
}

/// What a guest offers its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Port 80; the page's first line is the server's name.
    Http,
    /// Port 25; the greeting names the server.
    Smtp,
}

impl Service {
    /// Its name in the product's configuration, and its probe.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Smtp => "smtp",
        }
    }

    /// How often the lab's client asks, and how long it waits: a mail server's process for each greeting is dear in an
    /// emulated guest.
    #[must_use]
    pub const fn poll(self) -> (Duration, Duration) {
        match self {
            Self::Http => (Duration::from_millis(20), Duration::from_millis(150)),
            Self::Smtp => (Duration::from_millis(100), Duration::from_millis(500)),
        }
    }

    /// Its TCP port.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Smtp => 25,
        }
    }
}

impl FromStr for Service {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "http" => Ok(Self::Http),
            "smtp" => Ok(Self::Smtp),
            other => bail!("`{other}` is no service of the lab; services are http, smtp"),
        }
    }
}

/// What a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// A busybox initramfs: boots in seconds, offers HTTP only.
    Busybox,
    /// Debian with systemd, postfix and nginx; data on the file server.
    Debian,
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
    /// What it offers, if it is a guest.
    pub service: Service,
    /// What it runs, if it is a guest.
    pub system: System,
}

const fn spec(name: &'static str, kind: Kind, host_number: u8) -> Spec {
    Spec {
        name,
        kind,
        host_number,
        vip_number: None,
        host: name,
        double_of: None,
        service: Service::Http,
        system: System::Busybox,
    }
}

const fn debian(name: &'static str, host_number: u8, vip_number: u8, service: Service) -> Spec {
    let vip_number = Some(vip_number);
    Spec { vip_number, service, system: System::Debian, ..spec(name, Kind::Machine, host_number) }
}

const fn double_of(target: Spec, name: &'static str, host: &'static str, host_number: u8) -> Spec {
    Spec { name, kind: Kind::Domain, host_number, host, double_of: Some(target.name), ..target }
}

const MAIL: Spec = debian("mail", 11, 100, Service::Smtp);
const WEB: Spec = debian("web", 12, 101, Service::Http);

/// Which members the lab has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One target, small guests: up in seconds.
    #[default]
    Small,
    /// Mail and Web with real services, their data on a file server: up in a minute or two.
    Msbs,
}

impl Layout {
    const ALL: [Self; 2] = [Self::Small, Self::Msbs];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Msbs => "msbs",
        }
    }

    /// Its members.
    #[must_use]
    pub const fn nodes(self) -> &'static [Spec] {
        match self {
            Self::Small => SMALL,
            Self::Msbs => MSBS,
        }
    }
}

impl FromStr for Layout {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|layout| layout.name() == word) {
            Some(layout) => Ok(layout),
            None => bail!("`{word}` is no layout; layouts are small, msbs"),
        }
    }
}

/// The index of the chosen layout in [`Layout::ALL`]; beyond it: as the running lab remembers.
static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Chooses the layout of the lab that is about to come up.
pub fn choose(layout: Layout) {
    CHOSEN.store(Layout::ALL.iter().position(|one| *one == layout).unwrap_or(0), Ordering::SeqCst);
}

/// The layout chosen, or the running lab's.
#[must_use]
pub fn layout() -> Layout {
    if let Some(chosen) = Layout::ALL.get(CHOSEN.load(Ordering::SeqCst)) {
        return *chosen;
    }
    let known = lifecycle::memory().map(|memory| memory.layout).unwrap_or_default();
    choose(known);
    known
}

/// The members of the lab.
#[must_use]
pub fn nodes() -> &'static [Spec] {
    layout().nodes()
}

const MSBS: &[Spec] = &[
    spec("sw", Kind::Switch, 0),
    spec("mgmt", Kind::Hypervisor, 2),
    spec("v1", Kind::Voter, 21),
    spec("v2", Kind::Voter, 22),
    spec("v3", Kind::Voter, 23),
    spec("client", Kind::Client, 50),
    spec("fs", Kind::FileServer, 40),
    MAIL,
    WEB,
    double_of(MAIL, "mailb", "mgmt", 31),
    double_of(WEB, "webb", "mgmt", 32),
];

const SMALL: &[Spec] = &[
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
    /// Memory of a guest in MiB: small ones hold the kernel, and the initramfs twice while it is unpacked.
    #[must_use]
    pub const fn memory_mib(&self) -> u32 {
        match self.system {
            System::Busybox => 160,
            System::Debian => 256,
        }
    }

    /// How long a guest may take to its first answer, with every other one booting beside it.
    #[must_use]
    pub const fn boot_limit(&self) -> Duration {
        match self.system {
            System::Busybox => Duration::from_secs(40),
            System::Debian => Duration::from_secs(180),
        }
    }

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
            Kind::Switch | Kind::Hypervisor | Kind::Voter | Kind::Client | Kind::FileServer => {
                format!("kage-{}", self.name)
            }
        }
    }

    /// The port of the switch through which it speaks.
    #[must_use]
    pub fn port(&self) -> String {
        format!("p-{}", self.host)
    }
}

/// One who is on the lab's switch for a measurement only, or on a switch of its own.
#[must_use]
pub const fn visitor(name: &'static str, kind: Kind, host_number: u8) -> Spec {
    spec(name, kind, host_number)
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
    match nodes().iter().find(|node| node.name == name) {
        Some(node) => Ok(node),
        None => {
            let names: Vec<_> = nodes().iter().map(|node| node.name).collect();
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
    nodes().iter().filter(move |node| node.kind == kind)
}

/// The double of the machine called `name`.
#[must_use]
pub fn double(name: &str) -> Option<&'static Spec> {
    nodes().iter().find(|node| node.double_of == Some(name))
}

/// Who in the lab has this Ethernet address.
#[must_use]
pub fn by_mac(mac: &[u8]) -> Option<&'static Spec> {
    nodes().iter().find(|node| node.kind != Kind::Switch && node.mac() == mac)
}
