//! `agent.toml`.

mod lease_lost;

use crate::{
    guard::{GuardKind, IfName},
    host::{
        os::{Os, ServiceManager},
        power::PowerConfig,
        service::Commands,
    },
};
pub use lease_lost::OnLeaseLost;

use kage_types::{AgentId, ServiceName, Vip};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Configuration of one agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// As in its certificate.
    pub name: AgentId,
    /// Where it serves gRPC.
    pub listen: SocketAddr,
    /// HOST:PORT of the coordinator.
    pub coordinator: String,
    /// Directory of `ca.pem`, `cert.pem`, `key.pem`.
    pub pki: PathBuf,
    /// What must survive a restart.
    pub state: PathBuf,
    /// A voter only: no guard, no VIPs.
    #[serde(default)]
    pub witness: bool,
    /// What is guarded; absent for a witness.
    pub guard: Option<GuardConfig>,
    /// The hypervisor of this machine, if it is one.
    pub libvirt: Option<LibvirtConfig>,
    /// Services that can be restarted here, by name.
    #[serde(default)]
    pub services: BTreeMap<ServiceName, ServiceConfig>,
    /// Who brings services up here, if it is not to be found out, and commands for all of them.
    #[serde(default)]
    pub os: OsConfig,
    /// Commands instead of the system's own for reboot, power-off and suspend.
    #[serde(default)]
    pub power: PowerConfig,
}

/// `[guard]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// Host or tap.
    pub kind: GuardPlace,
    /// Host guard: where the VIPs are.
    pub interface: Option<String>,
    /// Tap guard: the bridge of the guests.
    pub bridge: Option<String>,
    /// Tap guard: the bridge's ports towards the network.
    #[serde(default)]
    pub uplinks: Vec<String>,
}

/// Which guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardPlace {
    /// The VIPs are this machine's own.
    Host,
    /// The VIPs are its guests'.
    Tap,
}

/// `[libvirt]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtConfig {
    /// As `virsh -c`.
    #[serde(default = "system_uri")]
    pub uri: String,
}

fn system_uri() -> String {
    "qemu:///system".to_owned()
}

/// `[os]`: what is found out by itself, told instead. Commands are for every service; `{service}` stands for the service
/// manager's name of it (`unit`, or its name here).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OsConfig {
    /// systemd, openrc, runit, sysv, busybox or other.
    pub manager: Option<ServiceManager>,
    /// Succeeds while the service runs.
    pub check: Option<Vec<String>>,
    /// Restarts it.
    pub restart: Option<Vec<String>>,
    /// Starts it.
    pub start: Option<Vec<String>>,
    /// Stops it.
    pub stop: Option<Vec<String>>,
    /// Lets none of its processes run.
    pub freeze: Option<Vec<String>>,
    /// Lets them run again.
    pub thaw: Option<Vec<String>>,
}

impl OsConfig {
    /// This system, as told or as found out.
    #[must_use]
    pub fn system(&self) -> Os {
        let root = Path::new("/");
        self.manager.map_or_else(|| Os::detect(root), |manager| Os::told(root, manager))
    }
}

/// `[services.NAME]`: the service manager's own service of that name, unless something else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConfig {
    /// The service manager's name for it (`nginx`, `nginx.service`), if it is another.
    pub unit: Option<String>,
    /// Succeeds while it runs.
    pub check: Option<Vec<String>>,
    /// Restarts it.
    pub restart: Option<Vec<String>>,
    /// Starts it.
    pub start: Option<Vec<String>>,
    /// Stops it.
    pub stop: Option<Vec<String>>,
    /// Lets none of its processes run.
    pub freeze: Option<Vec<String>>,
    /// Lets them run again.
    pub thaw: Option<Vec<String>>,
    /// Name of its process, whose end is noticed at once.
    pub process: Option<String>,
    /// A file with the number of its process, whose end is noticed at once.
    pub pid_file: Option<PathBuf>,
    /// What becomes of it when the lease of its VIPs is not here: absent, what is usual for a service of that name.
    pub on_lease_lost: Option<OnLeaseLost>,
    /// The VIPs it stands behind; empty: any of this machine's own.
    pub vips: BTreeSet<Vip>,
}

impl ServiceConfig {
    /// What the service manager calls it; None: it has a restart command of its own and no unit.
    #[must_use]
    pub fn unit_on(&self, name: &ServiceName, manager: ServiceManager) -> Option<String> {
        let unit = match (&self.unit, &self.restart) {
            (Some(unit), _) => unit.clone(),
            (None, None) => name.to_string(),
            (None, Some(_)) => return None,
        };
        // `systemctl` adds it by itself; systemd over the bus does not.
        Some(if manager == ServiceManager::Systemd && !unit.contains('.') { format!("{unit}.service") } else { unit })
    }

    /// Its own commands, else those for every service.
    #[must_use]
    pub fn commands(&self, name: &ServiceName, unit: Option<&str>, os: &OsConfig) -> Commands {
        let named = unit.map_or_else(|| name.to_string(), str::to_owned);
        let one = |own: &Option<Vec<String>>, all: &Option<Vec<String>>| {
            let all = || Some(all.as_ref()?.iter().map(|word| word.replace("{service}", &named)).collect());
            own.clone().or_else(all)
        };
        Commands {
            check: one(&self.check, &os.check),
            restart: one(&self.restart, &os.restart),
            start: one(&self.start, &os.start),
            stop: one(&self.stop, &os.stop),
            freeze: one(&self.freeze, &os.freeze),
            thaw: one(&self.thaw, &os.thaw),
        }
    }
}

/// A configuration that can't be used. Exit status 64 (`EX_USAGE`).
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("can't read {}: {reason}; copy deploy/agent.toml there and edit it, or name another file with --config", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// What it says.
    #[error("{}:{line}: {fault}", file.display())]
    Fault {
        /// Which.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong and what to do.
        fault: String,
    },
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`], with file and line.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(file).map_err(|reason| ConfigError::Read { file: file.to_owned(), reason })?;
        Self::parse(&text).map_err(|(line, fault)| ConfigError::Fault { file: file.to_owned(), line, fault })
    }

    /// From text.
    ///
    /// # Errors
    /// Line and fault.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.get(..at).unwrap_or("").matches('\n').count() + 1;
            (line, format!("{}; compare deploy/agent.toml", error.message().trim()))
        })?;
        config.check(text)?;
        Ok(config)
    }

    /// What the guard is made of; none for a witness.
    #[must_use]
    pub fn guard_kind(&self) -> Option<GuardKind> {
        self.guard.as_ref().and_then(|guard| guard.kind().ok())
    }

    fn check(&self, text: &str) -> Result<(), (usize, String)> {
        let at = |start: &str, fault: String| Err((line_of(text, start), fault));
        if self.coordinator.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return at(
                "coordinator",
                format!("coordinator = {:?} is no address: give HOST:PORT, e.g. \"10.0.0.2:7700\"", self.coordinator),
            );
        }
        match (&self.guard, self.witness) {
            (Some(_), true) => {
                return at("[guard]", "a witness has no guard: remove [guard], or set witness = false".into());
            }
            (None, false) => {
                return at(
                    "witness",
                    "no [guard]: add one (kind, interface or bridge), or set witness = true for a voter without VIPs"
                        .into(),
                );
            }
            (Some(guard), false) => {
                if let Err(fault) = guard.kind() {
                    return at("[guard]", fault);
                }
            }
            (None, true) => {}
        }
        let commands = |of: [&Option<Vec<String>>; 6]| of.into_iter().flatten().any(Vec::is_empty);
        let os = &self.os;
        if commands([&os.check, &os.restart, &os.start, &os.stop, &os.freeze, &os.thaw]) {
            return at("[os]", "[os]: an empty command; give [\"PROGRAM\", \"ARGUMENT\", …] or leave it out".into());
        }
        for (name, service) in &self.services {
            let section = format!("[services.{name}]");
            let own = [&service.check, &service.restart, &service.start, &service.stop, &service.freeze, &service.thaw];
            if commands(own) {
                return at(
                    &section,
                    format!("service {name}: an empty command; give [\"PROGRAM\", \"ARGUMENT\", …] or leave it out"),
                );
            }
            if service.process.is_some() && service.pid_file.is_some() {
                return at(&section, format!("service {name}: give either process or pid_file"));
            }
        }
        Ok(())
    }
}

impl GuardConfig {
    fn kind(&self) -> Result<GuardKind, String> {
        let name = |text: &str| IfName::new(text).map_err(|error| error.to_string());
        match (self.kind, &self.interface, &self.bridge) {
            (GuardPlace::Host, Some(interface), None) if self.uplinks.is_empty() => {
                Ok(GuardKind::Host { interface: name(interface)? })
            }
            (GuardPlace::Tap, None, Some(bridge)) if !self.uplinks.is_empty() => {
                let uplinks = self.uplinks.iter().map(|uplink| name(uplink)).collect::<Result<_, _>>()?;
                Ok(GuardKind::Tap { bridge: name(bridge)?, uplinks })
            }
            (GuardPlace::Host, ..) => {
                Err("a host guard has interface = \"NAME\" and neither bridge nor uplinks".into())
            }
            (GuardPlace::Tap, ..) => {
                Err("a tap guard has bridge = \"NAME\" and uplinks = [\"NAME\", …], and no interface".into())
            }
        }
    }
}

fn line_of(text: &str, start: &str) -> usize {
    text.lines().position(|line| line.trim_start().starts_with(start)).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "name = \"mail\"\nlisten = \"10.77.0.11:7702\"\ncoordinator = \"10.77.0.2:7700\"\n\
                        pki = \"/etc/kagemusha/pki\"\nstate = \"/var/lib/kagemusha\"\n";

    fn fault(rest: &str) -> (usize, String) {
        Config::parse(&format!("{HEAD}{rest}")).expect_err(rest)
    }

    #[test]
    fn the_example_is_good() {
        let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/agent.toml")).expect("example");
        Config::parse(&text).expect("example");
    }

    #[test]
    fn faults_name_their_line() {
        assert_eq!(fault("colour = 1\n[guard]\nkind = \"host\"\ninterface = \"eth0\"\n").0, 6);
        assert_eq!(fault("[guard]\nkind = \"host\"\nbridge = \"br0\"\n").0, 6);
        assert!(fault("").1.contains("witness = true"));
        let (line, text) = fault("[guard]\nkind = \"host\"\ninterface = \"eth0\"\n[services.http]\ncheck = []\n");
        assert_eq!(line, 9, "{text}");
        let (line, text) = Config::parse(&HEAD.replace("10.77.0.2:7700", "coordinator")).expect_err("address");
        assert_eq!(line, 3, "{text}");
    }

    #[test]
    fn services_are_the_systems_own_unless_told_otherwise() {
        let text = "witness = true\n[os]\nstop = [\"svc\", \"-d\", \"{service}\"]\n[services.nginx]\n\
                    [services.mail]\nunit = \"postfix\"\nrestart = [\"a\"]\n[services.http]\nrestart = [\"b\"]\nstop = [\"c\"]\n";
        let config = Config::parse(&format!("{HEAD}{text}")).expect("good");
        let of = |name: &str, manager| {
            let name = ServiceName::new(name).expect("name");
            let unit = config.services[&name].unit_on(&name, manager);
            let commands = config.services[&name].commands(&name, unit.as_deref(), &config.os);
            (
                unit.unwrap_or_default(),
                commands.restart.unwrap_or_default().concat(),
                commands.stop.unwrap_or_default().concat(),
            )
        };
        let expected = |unit: &str, restart: &str, stop: &str| (unit.to_owned(), restart.to_owned(), stop.to_owned());
        assert_eq!(of("nginx", ServiceManager::OpenRc), expected("nginx", "", "svc-dnginx"));
        assert_eq!(of("nginx", ServiceManager::Systemd), expected("nginx.service", "", "svc-dnginx.service"));
        assert_eq!(of("mail", ServiceManager::SysV), expected("postfix", "a", "svc-dpostfix"));
        assert_eq!(of("http", ServiceManager::Busybox), expected("", "b", "c"));
        assert!(fault("witness = true\n[os]\nmanager = \"launchd\"\n").1.contains("launchd"));
        assert_eq!(fault("witness = true\n[os]\nstop = []\n").0, 7);
    }
}
