//! The product's processes in the lab: start, stop, kill, stall, and the operator's tool.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::config::{self, COORDINATOR_PORT};
use super::console;
use super::dirs;
use super::nodes::{Kind, Spec, find, of};
use super::run::{text, wait_until};
use super::spawn::{Daemon, run_in};

/// A part of the product that runs as a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// kage-sif.
    Sif,
    /// kage-coordinator.
    Coordinator,
    /// kage-agent of the node with this specification.
    Agent(&'static Spec),
}

impl Part {
    /// The part called `name`: `sif`, `coordinator`, or the node whose agent is meant.
    ///
    /// # Errors
    /// There is no such node, or it runs no agent.
    pub fn find(name: &str) -> Result<Self> {
        match name {
            "sif" => Ok(Self::Sif),
            "coordinator" => Ok(Self::Coordinator),
            node => {
                let node = find(node)?;
                if config::agents().any(|agent| agent.name == node.name) {
                    Ok(Self::Agent(node))
                } else {
                    bail!("{} runs no agent", node.name)
                }
            }
        }
    }

    fn daemon(self) -> Result<Daemon> {
        Ok(match self {
            Self::Sif => Daemon::new(find("mgmt")?, "sif"),
            Self::Coordinator => Daemon::new(find("mgmt")?, "coordinator"),
            Self::Agent(node) => Daemon::new(node, "agent"),
        })
    }

    fn program(self) -> &'static str {
        match self {
            Self::Sif => "kage-sif",
            Self::Coordinator => "kage-coordinator",
            Self::Agent(node) if node.has_libvirt() => "kage-agent-libvirt",
            Self::Agent(_) => "kage-agent",
        }
    }

    fn binary(self) -> Option<PathBuf> {
        dirs::binary(self.program())
    }

    /// As an operator calls it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Sif => "SIF".to_owned(),
            Self::Coordinator => "the coordinator".to_owned(),
            Self::Agent(node) => format!("the agent of {}", node.name),
        }
    }

    /// Upgrades it to what this tree builds, whatever `$KAGE_BIN_DIR` says: stop, new binary, start.
    ///
    /// # Errors
    /// It is not built, does not stop, or a guest does not get it.
    pub fn replace(self) -> Result<()> {
        let program = self.program();
        let binary = dirs::built(program).with_context(|| format!("{program} is not built; tests/lab builds it"))?;
        if let Some(node) = self.guest() {
            fetch(node, &binary)?;
            stop(self)?;
            console::exec_ok(node, "mv /usr/bin/kage-agent.new /usr/bin/kage-agent", GUEST_LIMIT)?;
            return start(self);
        }
        stop(self)?;
        start_as(self, &binary)
    }

    /// Whether its binary exists and can do anything.
    #[must_use]
    pub fn available(self) -> bool {
        self.binary().is_some()
    }

    /// Whether it runs inside a guest, where only the console reaches it.
    fn guest(self) -> Option<&'static Spec> {
        match self {
            Self::Agent(node) if node.has_inner_agent() => Some(node),
            Self::Agent(_) | Self::Sif | Self::Coordinator => None,
        }
    }

    fn state(self) -> Result<PathBuf> {
        let folder = match self {
            Self::Sif => dirs::node("mgmt").join("sif"),
            Self::Coordinator => dirs::node("mgmt").join("coordinator"),
            Self::Agent(node) => dirs::node(node.name).join("agent"),
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}

const GUEST_LIMIT: Duration = Duration::from_secs(5);
const FETCH_LIMIT: Duration = Duration::from_secs(60);

/// Starts a part. Running already is fine.
///
/// # Errors
/// Its binary is missing, or the lab is down.
pub fn start(part: Part) -> Result<()> {
    if let Some(node) = part.guest() {
        // Process 1 of the guest runs it in a loop that a stop suspends.
        console::exec_ok(node, "rm -f /run/no-agent", GUEST_LIMIT)?;
        return Ok(());
    }
    let binary = part.binary().with_context(|| format!("{} is not built; tests/lab builds it", part.program()))?;
    start_as(part, &binary)
}

/// Starts a coordinator that was built to break a rule on purpose.
///
/// # Errors
/// The lab is down.
pub fn start_sabotaged(binary: &Path, rule: &str) -> Result<()> {
    start_with(Part::Coordinator, binary, &["env", &format!("KAGE_SABOTAGE={rule}")], &[])
}

/// Starts the coordinator with these controllers only (`msbs`, `pss`); leases are granted all the same.
///
/// # Errors
/// It is not built, or the lab is down.
pub fn start_controllers(controllers: &str) -> Result<()> {
    let part = Part::Coordinator;
    let binary = part.binary().with_context(|| format!("{} is not built; tests/lab builds it", part.program()))?;
    start_with(part, &binary, &[], &["--controllers", controllers])
}

fn start_as(part: Part, binary: &Path) -> Result<()> {
    start_with(part, binary, &[], &[])
}

fn start_with(part: Part, binary: &Path, before: &[&str], after: &[&str]) -> Result<()> {
    let state = text(&part.state()?);
    let cluster = text(&config::cluster_file());
    let binary = text(binary);
    let argv = match part {
        Part::Sif => {
            vec![binary, "--config".into(), cluster, "--state".into(), state, "--pki".into(), text(&config::pki("sif"))]
        }
        Part::Coordinator => {
            vec![
                binary,
                "--config".into(),
                cluster,
                "--state".into(),
                state,
                "--pki".into(),
                text(&config::pki("coordinator")),
                "--authority".into(),
                text(&authority()),
            ]
        }
        Part::Agent(node) => vec![binary, "run".into(), "--config".into(), text(&config::agent_file(node))],
    };
    let argv: Vec<&str> =
        before.iter().copied().chain(argv.iter().map(String::as_str)).chain(after.iter().copied()).collect();
    part.daemon()?.start(&argv)
}

/// The agent's binary into a guest, beside the one that runs there: over the lab's own network, from the client's node.
fn fetch(node: &Spec, binary: &Path) -> Result<()> {
    const PORT: u16 = 8099;
    let client = find("client")?;
    let (folder, name) = (binary.parent(), binary.file_name());
    let (folder, name) = folder.zip(name).with_context(|| format!("{} has no folder", binary.display()))?;
    let server = Daemon::new(client, "binaries");
    server.start(&["busybox", "httpd", "-f", "-p", &PORT.to_string(), "-h", &text(folder)])?;
    let url = format!("http://{}:{PORT}/{}", client.ip(), name.to_string_lossy());
    let into = "/usr/bin/kage-agent.new";
    let fetched = console::exec_ok(node, &format!("wget -q -O {into} {url} && chmod 755 {into}"), FETCH_LIMIT);
    server.stop()?;
    fetched.map(drop)
}

/// Stops a part as its service manager would (SIGTERM), and keeps it stopped.
///
/// # Errors
/// It survives, or its guest does not answer.
pub fn stop(part: Part) -> Result<()> {
    match part.guest() {
        Some(node) => {
            console::exec_ok(node, "touch /run/no-agent; killall kage-agent || true", GUEST_LIMIT)?;
            Ok(())
        }
        None => part.daemon()?.stop(),
    }
}

/// Has a node's agent hear that its machine goes down, as the service manager tells it (SIGUSR1), and waits until it has
/// given up what it held and has ended.
///
/// # Errors
/// It does not run, or has not ended within `limit`.
pub fn go_down(node: &'static Spec, limit: Duration) -> Result<()> {
    let daemon = Part::Agent(node).daemon()?;
    daemon.signal(Signal::USR1)?;
    wait_until(limit, &format!("the agent of {} has ended", node.name), || Ok(daemon.pid().is_none())).map(drop)
}

/// `kill -9`. In a guest its process 1 starts the agent again after 0.1 s; elsewhere it stays dead.
///
/// # Errors
/// It does not run.
pub fn kill(part: Part) -> Result<()> {
    match part.guest() {
        Some(node) => console::exec_ok(node, "killall -9 kage-agent", GUEST_LIMIT).map(drop),
        None => part.daemon()?.kill(),
    }
}

/// Stops a part where it stands (SIGSTOP) for `length`, without waiting for the end.
///
/// # Errors
/// It does not run.
pub fn stall(part: Part, length: Duration) -> Result<()> {
    let seconds = length.as_secs_f64();
    if let Some(node) = part.guest() {
        let command =
            format!("killall -STOP kage-agent && (sleep {seconds}; killall -CONT kage-agent) > /dev/null 2>&1 &");
        return console::exec_ok(node, &command, GUEST_LIMIT).map(drop);
    }
    let daemon = part.daemon()?;
    daemon.signal(Signal::STOP)?;
    std::thread::spawn(move || {
        std::thread::sleep(length);
        let _ = daemon.signal(Signal::CONT);
    });
    Ok(())
}

/// Whether a part runs.
#[must_use]
pub fn running(part: Part) -> bool {
    match part.guest() {
        Some(node) => console::exec(node, "pidof kage-agent", GUEST_LIMIT).is_ok_and(|answer| answer.status == 0),
        None => part.daemon().is_ok_and(|daemon| daemon.pid().is_some()),
    }
}

/// Runs the operator's tool against the lab's coordinator and returns what it prints.
///
/// # Errors
/// kagectl is not built, or fails.
pub fn kagectl(arguments: &[&str]) -> Result<String> {
    kagectl_as(&config::pki("operator"), arguments)
}

/// The same with another's certificate.
///
/// # Errors
/// kagectl is not built, or fails.
pub fn kagectl_as(pki: &Path, arguments: &[&str]) -> Result<String> {
    let binary = dirs::binary("kagectl").context("kagectl is not built; tests/lab builds it")?;
    let controller = find("mgmt")?;
    let address = format!("{}:{COORDINATOR_PORT}", controller.ip());
    let (binary, pki) = (text(&binary), text(pki));
    let mut argv = vec![binary.as_str(), "--pki", &pki, "--coordinator", &address];
    argv.extend(arguments);
    run_in(controller, &argv)
}

/// The parts that run outside guests, in the order in which they start.
///
/// # Errors
/// None in practice: the hypervisor is always in the lab.
pub fn outside() -> Result<Vec<Part>> {
    let mut parts = vec![Part::Sif, Part::Coordinator];
    parts.extend(of(Kind::Voter).map(Part::Agent));
    parts.push(Part::Agent(find("mgmt")?));
    parts.extend(of(Kind::RealServer).map(Part::Agent));
    Ok(parts)
}

/// Where kagectl keeps the authority, from which the coordinator enrols machines.
#[must_use]
pub fn authority() -> PathBuf {
    dirs::lab().join("pki/ca")
}
