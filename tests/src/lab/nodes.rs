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
    /// A network namespace with the load balancer, between clients and service groups.
    LoadBalancer,
    /// A QEMU guest that stands for a physical machine: libvirt knows nothing of it.
    Machine,
    /// A libvirt domain on [`Spec::host`]: the suspended double of a machine.
    Domain,
    /// A network namespace with a libvirt and an agent, and a power switch of its own: its libvirt domains are virtual
    /// servers (thesis ch. 4: a real server).
    RealServer,
    /// A libvirt domain that is a server itself: at home on [`Spec::host`], defined on every real server.
    VirtualServer,
}

/// Virtual servers with the same service (thesis ch. 4: a service group).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name in the product's configuration.
    pub name: &'static str,
    /// Last octets of its virtual addresses, each configured inside all its members and their double.
    pub vips: &'static [u8],
    /// The double that is every member's.
    pub double: &'static str,
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
    /// Whose service it offers, as a member or as their double.
    pub group: Option<&'static Group>,
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
        group: None,
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
    /// Three real servers with six virtual ones in three groups, for power saving: up in a minute or two.
    Pss,
}

impl Layout {
    const ALL: [Self; 3] = [Self::Small, Self::Msbs, Self::Pss];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Msbs => "msbs",
            Self::Pss => "pss",
        }
    }

    /// Its members.
    #[must_use]
    pub const fn nodes(self) -> &'static [Spec] {
        match self {
            Self::Small => SMALL,
            Self::Msbs => MSBS,
            Self::Pss => PSS,
        }
    }
}

impl FromStr for Layout {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|layout| layout.name() == word) {
            Some(layout) => Ok(layout),
            None => bail!("`{word}` is no layout; layouts are small, msbs, pss"),
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
    // What a lab on this machine has left is nothing to the tests of this crate.
    let memory = if cfg!(test) { None } else { lifecycle::memory().ok() };
    let known = memory.map(|memory| memory.layout).unwrap_or_default();
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

const MAILS: Group = Group { name: "mail", vips: &[111, 112], double: "mailb" };
const WEBS: Group = Group { name: "web", vips: &[121, 122], double: "webb" };
const FTPS: Group = Group { name: "ftp", vips: &[131, 132], double: "ftpb" };

const fn member(group: &'static Group, index: usize, name: &'static str, host: &'static str, number: u8) -> Spec {
    let vip_number = Some(group.vips[index]);
    Spec { host, vip_number, group: Some(group), ..spec(name, Kind::VirtualServer, number) }
}

const fn double_of_group(group: &'static Group, number: u8) -> Spec {
    Spec { host: "mgmt", group: Some(group), ..spec(group.double, Kind::Domain, number) }
}

const PSS: &[Spec] = &[
    spec("sw", Kind::Switch, 0),
    spec("mgmt", Kind::Hypervisor, 2),
    spec("v1", Kind::Voter, 21),
    spec("v2", Kind::Voter, 22),
    spec("v3", Kind::Voter, 23),
    spec("client", Kind::Client, 50),
    spec("lb", Kind::LoadBalancer, 51),
    spec("rs1", Kind::RealServer, 3),
    spec("rs2", Kind::RealServer, 4),
    spec("rs3", Kind::RealServer, 5),
    member(&MAILS, 0, "mail1", "rs1", 61),
    member(&MAILS, 1, "mail2", "rs2", 62),
    member(&WEBS, 0, "web1", "rs1", 63),
    member(&WEBS, 1, "web2", "rs3", 64),
    member(&FTPS, 0, "ftp1", "rs2", 65),
    member(&FTPS, 1, "ftp2", "rs3", 66),
    double_of_group(&MAILS, 31),
    double_of_group(&WEBS, 32),
    double_of_group(&FTPS, 33),
];

impl Spec {
    /// An agent runs inside it, which restarts its service: in servers, and in the doubles of virtual ones. The doubles of
    /// plain servers are watched from outside.
    #[must_use]
    pub const fn has_inner_agent(&self) -> bool {
        match self.kind {
            Kind::Machine | Kind::VirtualServer => true,
            Kind::Domain => self.group.is_some(),
            Kind::Switch
            | Kind::Hypervisor
            | Kind::RealServer
            | Kind::Voter
            | Kind::Client
            | Kind::FileServer
            | Kind::LoadBalancer => false,
        }
    }

    /// Memory of a guest in MiB: small ones hold the kernel, and the initramfs twice while it is unpacked.
    #[must_use]
    pub const fn memory_mib(&self) -> u32 {
        match self.system {
            // libvirt counts what QEMU itself takes as the guest's: it must not look full.
            System::Busybox if self.group.is_some() => 640,
            System::Busybox => 160,
            System::Debian => 256,
        }
    }

    /// How long a guest may take to its first answer, with every other one booting beside it.
    #[must_use]
    pub const fn boot_limit(&self) -> Duration {
        match self.system {
            // Nine of them at once take their time.
            System::Busybox if self.group.is_some() => Duration::from_secs(180),
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

    /// The virtual addresses configured inside it.
    #[must_use]
    pub fn carried(&self) -> Vec<Ipv4Addr> {
        self.group.map_or_else(
            || self.vip().into_iter().collect(),
            |group| group.vips.iter().map(|last| Ipv4Addr::new(10, 77, 0, *last)).collect(),
        )
    }

    /// Whether a libvirt of its own runs there.
    #[must_use]
    pub const fn has_libvirt(&self) -> bool {
        matches!(self.kind, Kind::Hypervisor | Kind::RealServer)
    }

    /// Its network namespace; guests hang on their host's or on the switch's.
    #[must_use]
    pub fn namespace(&self) -> String {
        match self.kind {
            Kind::Machine => "kage-sw".to_owned(),
            Kind::Domain | Kind::VirtualServer => format!("kage-{}", self.host),
            Kind::Switch
            | Kind::Hypervisor
            | Kind::RealServer
            | Kind::Voter
            | Kind::Client
            | Kind::FileServer
            | Kind::LoadBalancer => {
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

/// The machine or real server called `name`, which has a power switch of its own.
///
/// # Errors
/// It is not in the lab, or is no machine.
pub fn machine(name: &str) -> Result<&'static Spec> {
    let node = find(name)?;
    if !matches!(node.kind, Kind::Machine | Kind::RealServer) {
        let names: Vec<_> = of(Kind::Machine).chain(of(Kind::RealServer)).map(|node| node.name).collect();
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
