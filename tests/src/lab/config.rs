//! The product's configuration for the lab: certificates, agent.toml, cluster.toml.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::nodes::{self, Kind, Service, Spec, System, find, of};
use super::run::{run, text, write};
use super::{dirs, realserver};

/// The profile of the product's timings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// 500 ms probes, 2 s lease.
    #[default]
    Normal,
    /// 100 ms probes, 0.8 s lease.
    Fast,
    /// The thesis's own waits.
    Thesis,
}

impl Profile {
    /// Its name in cluster.toml.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Fast => "fast",
            Self::Thesis => "thesis",
        }
    }
}

impl FromStr for Profile {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "normal" => Ok(Self::Normal),
            "fast" => Ok(Self::Fast),
            "thesis" => Ok(Self::Thesis),
            other => bail!("`{other}` is no profile; profiles are normal, fast, thesis"),
        }
    }
}

/// Where the SIF listens, on the hypervisor.
pub const SIF_PORT: u16 = 7701;
/// Where the coordinator listens, on the hypervisor.
pub const COORDINATOR_PORT: u16 = 7700;
/// Where agents listen.
pub const AGENT_PORT: u16 = 7702;

/// The cluster's configuration file.
#[must_use]
pub fn cluster_file() -> PathBuf {
    dirs::lab().join("cluster.toml")
}

/// The certificates of one owner: a node's name, `sif`, `coordinator` or `operator`.
#[must_use]
pub fn pki(owner: &str) -> PathBuf {
    match find(owner) {
        Ok(node) => etc(node).join("pki"),
        Err(_) => dirs::lab().join("pki").join(owner),
    }
}

fn etc(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("etc/kagemusha")
}

/// A node's agent.toml, on this machine's disk.
#[must_use]
pub fn agent_file(node: &Spec) -> PathBuf {
    etc(node).join("agent.toml")
}

/// Who runs an agent, and so needs a certificate and a configuration.
pub fn agents() -> impl Iterator<Item = &'static Spec> {
    nodes::nodes()
        .iter()
        .filter(|node| matches!(node.kind, Kind::Hypervisor | Kind::RealServer | Kind::Voter) || node.has_inner_agent())
}

/// Makes a new authority, the certificates of the controllers and the operator, and one for each agent.
///
/// # Errors
/// kagectl refuses.
pub fn make_pki(kagectl: &Path) -> Result<()> {
    let (kagectl, authority) = (text(kagectl), text(&dirs::lab().join("pki")));
    run(&[&kagectl, "pki", "init", "--dir", &authority, "--name", "lab"])?;
    for node in agents() {
        let (ip, out) = (node.ip().to_string(), text(&pki(node.name)));
        std::fs::create_dir_all(etc(node)).with_context(|| format!("cannot make {}", etc(node).display()))?;
        let name = ["--role", "agent", "--name", node.name, "--san", &ip, "--out", &out];
        let mut argv = vec![kagectl.as_str(), "pki", "issue", "--dir", &authority];
        argv.extend(name);
        run(&argv)?;
    }
    Ok(())
}

/// A node's agent.toml.
#[must_use]
pub fn agent_toml(node: &Spec) -> String {
    // A guest sees its own files; the others see this machine's.
    let (pki, state) = if node.has_inner_agent() {
        ("/etc/kagemusha/pki".to_owned(), "/var/lib/kagemusha".to_owned())
    } else {
        (text(&pki(node.name)), text(&dirs::node(node.name).join("agent")))
    };
    let coordinator = find("mgmt").map(|node| format!("{}:{COORDINATOR_PORT}", node.ip())).unwrap_or_default();
    let mut toml = format!(
        "name = \"{}\"\nlisten = \"{}:{AGENT_PORT}\"\ncoordinator = \"{coordinator}\"\npki = \"{pki}\"\nstate = \"{state}\"\nwitness = {}\n",
        node.name,
        node.ip(),
        matches!(node.kind, Kind::Voter | Kind::VirtualServer | Kind::Domain),
    );
    match node.kind {
        Kind::Machine => {
            toml.push_str("\n[guard]\nkind = \"host\"\ninterface = \"eth0\"\n\n");
            toml.push_str(service_toml(node));
        }
        Kind::Hypervisor | Kind::RealServer => toml.push_str("\n[guard]\nkind = \"tap\"\nbridge = \"br0\"\nuplinks = [\"uplink\"]\n\n[libvirt]\nuri = \"qemu:///system\"\n"),
        // Its host guards its addresses.
        Kind::VirtualServer | Kind::Domain => {
            toml.push('\n');
            toml.push_str(service_toml(node));
        }
        Kind::Switch | Kind::Voter | Kind::Client | Kind::FileServer | Kind::LoadBalancer => {}
    }
    if node.kind == Kind::RealServer {
        toml.push_str(&realserver::power_toml(node));
    }
    toml
}

/// How a machine's agent sees, restarts and watches its service. `/run/kage-broken` is the trouble that only a reboot
/// cures; in the Debian guest its units look at it themselves.
const fn service_toml(node: &Spec) -> &'static str {
    match (node.system, node.service) {
        (System::Busybox, Service::Http | Service::Smtp) => {
            "[services.http]\ncheck = [\"pidof\", \"httpd\"]\n\
             restart = [\"sh\", \"-c\", \"[ ! -e /run/kage-broken ] || exit 1; killall httpd 2> /dev/null; httpd -p 80 -h /www\"]\n\
             process = \"httpd\"\n"
        }
        (System::Debian, Service::Http) => "[services.http]\nunit = \"nginx.service\"\n",
        (System::Debian, Service::Smtp) => "[services.smtp]\nunit = \"postfix@-.service\"\n",
    }
}

/// The cluster's configuration: what the coordinator and the SIF are told of the lab.
#[must_use]
pub fn cluster_toml(profile: Profile) -> String {
    let controller = find("mgmt").map(Spec::ip).unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
    let mut toml = format!(
        "[cluster]\nname = \"lab\"\nprofile = \"{}\"\non_coordinator_loss = \"voters\"\n\n\
         [coordinator]\nlisten = \"{controller}:{COORDINATOR_PORT}\"\n\n\
         [sif]\nlisten = \"{controller}:{SIF_PORT}\"\n",
        profile.name()
    );
    // An older version (`tests/lab upgrade`) may not know the section, and would refuse it.
    if std::env::var_os("KAGE_BIN_DIR").is_none() {
        toml.push_str("\n# Drills break the same machine again and again.\n[quarantine]\nlapses = 0\n");
    }
    for node in agents() {
        let _ = write!(toml, "\n[[agent]]\nname = \"{}\"\naddress = \"{}:{AGENT_PORT}\"\n", node.name, node.ip());
        match node.kind {
            Kind::Voter => toml.push_str("voter = true\n"),
            Kind::Hypervisor => toml.push_str("guard = \"tap\"\n"),
            Kind::Machine => {
                let _ = writeln!(toml, "guard = \"host\"\nmac = \"{}\"", node.mac_text());
            }
            Kind::RealServer => {
                let _ = writeln!(toml, "guard = \"tap\"\nmac = \"{}\"", node.mac_text());
            }
            Kind::VirtualServer | Kind::Domain => toml.push_str("guard = \"none\"\n"),
            Kind::Switch | Kind::Client | Kind::FileServer | Kind::LoadBalancer => {}
        }
    }
    toml.push_str(&realserver::cluster_toml());
    for double in of(Kind::Domain) {
        if let (Some(target), Some(vip)) = (double.double_of, double.vip()) {
            let (wait, service) = (reboot_wait(double).as_secs(), double.service.name());
            let _ = write!(
                toml,
                "\n[[target]]\nname = \"{target}\"\nagent = \"{target}\"\nvips = [\"{vip}\"]\n\
                 backup = {{ agent = \"{}\", domain = \"{}\", address = \"{}\" }}\n\
                 failback = \"auto\"\nhealthy_for = \"3s\"\nreboot_wait = \"{wait}s\"\nstart_wait = \"{wait}s\"\n\
                 # Drills come many times an hour.\n\
                 budget = {{ restarts = 1000, reboots = 1000, takeovers = 1000 }}\n\n\
                 [[target.service]]\nname = \"{service}\"\nprobe = \"{service}\"\nport = {}\n",
                double.host,
                double.name,
                double.ip(),
                double.service.port(),
            );
        }
    }
    toml
}

/// Trc: how long a machine that does not answer may be rebooting. The thesis takes 1.3 times a measured reboot.
pub(super) const fn reboot_wait(node: &Spec) -> Duration {
    match node.system {
        System::Busybox => Duration::from_secs(15),
        System::Debian => Duration::from_secs(45),
    }
}

/// Writes every configuration file.
///
/// # Errors
/// The disk is full.
pub fn write_all(profile: Profile) -> Result<()> {
    for node in agents() {
        write(&agent_file(node), agent_toml(node))?;
    }
    write(&cluster_file(), cluster_toml(profile))
}
