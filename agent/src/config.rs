//! `agent.toml`.

use crate::{
    guard::{GuardKind, IfName},
    host::power::PowerConfig,
};
use kage_types::{AgentId, ServiceName};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
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

/// `[services.NAME]`: a systemd unit, or commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// systemd's name for it.
    pub unit: Option<String>,
    /// Succeeds while it runs.
    pub check: Option<Vec<String>>,
    /// Restarts it.
    pub restart: Option<Vec<String>>,
    /// Name of its process, whose end is noticed at once.
    pub process: Option<String>,
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
        for (name, service) in &self.services {
            let commands = service.check.is_some() || service.restart.is_some() || service.process.is_some();
            let fault = match (&service.unit, commands) {
                (Some(_), true) => "give either unit, or check, restart and process",
                (None, _) if service.restart.is_none() => {
                    "no way to restart it: give unit = \"NAME.service\" or restart = [\"PROGRAM\", …]"
                }
                (Some(_), false) | (None, _) => continue,
            };
            return at(&format!("[services.{name}]"), format!("service {name}: {fault}"));
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
        let (line, text) = fault("[guard]\nkind = \"host\"\ninterface = \"eth0\"\n[services.http]\ncheck = [\"x\"]\n");
        assert_eq!(line, 9, "{text}");
        let (line, text) = Config::parse(&HEAD.replace("10.77.0.2:7700", "coordinator")).expect_err("address");
        assert_eq!(line, 3, "{text}");
    }
}
