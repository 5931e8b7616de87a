//! The cluster's configuration: one TOML file, the same for coordinator and SIF.

mod backup;
mod hours;
pub mod keys;
mod parse;
pub mod read;
pub mod reload;
pub mod saving;
mod service;
mod vm;

pub(crate) use hours::day_and_time;
pub use hours::{Hours, Window};
pub(crate) use read::nearest;
pub use vm::VirtualServer;

use crate::probe::Probe;
use kage_types::{AgentId, DomainName, GroupName, LeaseTiming, Profile, ServiceName, TargetName, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What is wrong with a configuration: every fault found, in the order of the lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines().join("\n"))]
pub struct ConfigError {
    /// Its name.
    pub file: String,
    /// Never empty.
    pub faults: Vec<Fault>,
}

impl ConfigError {
    /// `FILE:LINE: fault`, one each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.faults.iter().map(|fault| format!("{}:{}: {}", self.file, fault.line, fault.text)).collect()
    }
}

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it is, from 1.
    pub line: usize,
    /// The section and key, the value as written, and the reason.
    pub text: String,
}

/// What agents do without a coordinator (safety rule 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCoordinatorLoss {
    /// Majority of voters; needs three or more.
    #[default]
    Voters,
    /// Keep serving on nobody's word; takeover by release or proof only.
    Keep,
    /// Stop serving; takeover by patience allowed.
    Lapse,
}

impl OnCoordinatorLoss {
    /// As written in configuration and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OnCoordinatorLoss::Voters => "voters",
            OnCoordinatorLoss::Keep => "keep",
            OnCoordinatorLoss::Lapse => "lapse",
        }
    }
}

/// How an agent keeps VIPs shut that it has no lease for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// nftables on the machine itself.
    #[default]
    Host,
    /// nftables on the bridge of a hypervisor.
    Tap,
    /// None: takeover from it by release or proof only (rule 10).
    None,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// For people.
    pub name: String,
    /// Its timings.
    pub profile: Profile,
    /// L, K, R, g.
    pub timing: LeaseTiming,
    /// Check interval and time-outs.
    pub detection: Detection,
    /// Without a coordinator.
    pub on_coordinator_loss: OnCoordinatorLoss,
    /// Where the coordinator listens.
    pub coordinator: SocketAddr,
    /// Where SIF listens.
    pub sif: SocketAddr,
    /// Revokes a machine's access to the storage; its address is appended.
    pub storage_fence: Option<Vec<String>>,
    /// Gives it back.
    pub storage_unfence: Option<Vec<String>>,
    /// T: length of a coordinator's term lease.
    pub term: Duration,
    /// When a machine that comes and goes is left alone. Absent in journals of before it was there.
    #[serde(default)]
    pub quarantine: Quarantine,
    /// All machines.
    pub agents: BTreeMap<AgentId, Machine>,
    /// All supervised servers.
    pub targets: BTreeMap<TargetName, Target>,
    /// Real servers of power saving. Absent in journals of before it was there, as are the next three.
    #[serde(default)]
    pub hosts: BTreeMap<AgentId, saving::Host>,
    /// Service groups of power saving; none: there is none.
    #[serde(default)]
    pub groups: BTreeMap<GroupName, saving::Group>,
    /// Figures of power saving.
    #[serde(default)]
    pub saving: saving::Saving,
    /// Is DBSS among the controllers of this process? No key of the file: `kage-coordinator --controllers`.
    #[serde(default = "supervised")]
    pub supervise: bool,
}

fn supervised() -> bool {
    true
}

/// Figures of detection, by profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Tim: from the end of one check to the start of the next.
    pub interval: Duration,
    /// Time-out of a ping (thesis: Tnd), all its echo requests together.
    pub ping_timeout: Duration,
    /// Echo requests within that time; one answer is enough. With 5 % loss each way one request in ten gets none, five
    /// in 100,000 get none: no alarm in hours. Thesis: 1.
    pub ping_count: u16,
    /// Time-out of one service probe; thesis: of each of its steps.
    pub probe_timeout: Duration,
    /// Tsw: pause between a restart and the probe.
    pub settle: Duration,
    /// A lease silent for this long, with bad ping or probe, is trouble confirmed.
    pub confirm: Duration,
    /// Events pushed by agents and missing renewals count as evidence.
    pub push: bool,
    /// Ping and probes side by side; else one after another (thesis).
    pub parallel: bool,
}

impl Detection {
    /// Of a profile (design: Detection).
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let ms = Duration::from_millis;
        match profile {
            // The thesis's own waits. Its Tnd of 2.0 s (table 2.1) is what its ping was measured to take; ours gives up
            // earlier, so that a lost machine costs less than 12 s at any phase of the interval: Tim + 2 Tnd + Tvs.
            Profile::Thesis => Self {
                interval: ms(10_000),
                ping_timeout: ms(700),
                ping_count: 1,
                probe_timeout: ms(3_000),
                settle: ms(2_000),
                confirm: ms(0),
                push: false,
                parallel: false,
            },
            Profile::Normal => Self {
                interval: ms(500),
                ping_timeout: ms(300),
                ping_count: 5,
                probe_timeout: ms(500),
                settle: ms(100),
                confirm: ms(1_000),
                push: true,
                parallel: true,
            },
            Profile::Fast => Self {
                interval: ms(100),
                ping_timeout: ms(150),
                ping_count: 5,
                probe_timeout: ms(200),
                settle: ms(50),
                confirm: ms(380),
                push: true,
                parallel: true,
            },
        }
    }
}

/// One machine with an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Of its agent.
    pub address: SocketAddr,
    /// What fails together with it (host, rack, switch).
    pub failure_domain: String,
    /// May it consent while the coordinator is away?
    pub voter: bool,
    /// For Wake-on-LAN.
    pub mac: Option<String>,
    /// How VIPs are kept shut there.
    pub guard: Guard,
    /// Prints `off` when the machine's power reads off (a BMC, a switched outlet): proof of its death. Run by the
    /// coordinator.
    pub power_status: Option<Vec<String>>,
    /// Switches its power off. Run by the coordinator.
    pub power_off: Option<Vec<String>>,
}

/// One supervised server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its machine; of a virtual server the real server that it belongs on, which need not be where it is.
    pub agent: AgentId,
    /// It is a virtual server. Absent in journals of before it was there.
    #[serde(default)]
    pub vm: Option<VirtualServer>,
    /// Pinged; the agent's address unless given.
    pub address: IpAddr,
    /// What its clients use.
    pub vips: BTreeSet<Vip>,
    /// Its stand-in.
    pub backup: Backup,
    /// What it offers.
    pub services: Vec<Service>,
    /// Back to the target by itself?
    pub failback: Failback,
    /// When it may go back by itself. Absent in journals of before it was there.
    #[serde(default)]
    pub failback_hours: Hours,
    /// So long must the target answer before it is given back.
    pub healthy_for: Duration,
    /// Trc: wait for a rebooting target before waking it.
    pub reboot_wait: Duration,
    /// Trs with margin: wait for a woken target before waking it again.
    pub start_wait: Duration,
    /// How often each rung may be used.
    pub budget: Budget,
}

/// How often restart, reboot and takeover may be used within a window. Out of restarts: reboot; out of reboots: given
/// up with an alert; out of takeovers: the backup keeps serving until the window is over or the operator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Of each service.
    pub restarts: u32,
    /// Of the target.
    pub reboots: u32,
    /// Because of failures; those asked for don't count.
    pub takeovers: u32,
    /// The window.
    pub within: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { restarts: 3, reboots: 1, takeovers: 3, within: Duration::from_secs(3600) }
    }
}

/// When a machine that comes and goes is left alone: nothing is brought to it, if there is another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// So many returns from silence within the window put it there; 0: none ever does.
    pub lapses: u32,
    /// The window.
    pub within: Duration,
    /// How long it must have been quiet since; twice as long each time that it comes there again.
    pub hold: Duration,
    /// But never longer.
    pub hold_limit: Duration,
}

impl Default for Quarantine {
    /// A switch that restarts, or a machine that is rebooted by hand, is one lapse or two. Three within ten minutes have
    /// a cause that is still there.
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        Self { lapses: 3, within: minutes(10), hold: minutes(10), hold_limit: minutes(240) }
    }
}

/// The suspended virtual server that stands in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The hypervisor's agent.
    pub agent: AgentId,
    /// Its domain there.
    pub domain: DomainName,
    /// Its own address, which is no VIP: `kagectl characterise` waits for it to answer.
    pub address: Option<IpAddr>,
    /// The agent inside it, if there is one: restarts its services while it is supervised itself. Absent in journals of
    /// before it was there.
    #[serde(default)]
    pub guest: Option<AgentId>,
    /// Who takes over from it when it can't be cured itself. Absent in journals of before it was there.
    #[serde(default)]
    pub further: Option<Further>,
}

/// A further backup server: of one that stands in for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Further {
    /// The hypervisor's agent.
    pub agent: AgentId,
    /// Its domain there.
    pub domain: DomainName,
    /// The agent inside it, if there is one.
    pub guest: Option<AgentId>,
}

/// When a recovered target takes its place again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    /// When healthy for long enough, in `failback_hours`.
    #[default]
    Auto,
    /// At `kagectl failback`; that it is away is shown as trouble until then.
    Manual,
    /// Never by itself, and nothing is wrong with that: where it serves, it serves on until that place fails.
    Keep,
}

/// One service of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As the target's agent knows it.
    pub name: ServiceName,
    /// How it is asked whether it is well.
    pub probe: Probe,
    /// Probed there.
    pub port: u16,
    /// Restart it before anything else?
    pub restart: bool,
    /// Two instances at once would spoil its data (safety: never two writers).
    pub single_writer: bool,
    /// What keeps a machine that does not answer from writing.
    pub writer_fence: WriterFence,
}

/// What keeps a machine that does not answer from writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WriterFence {
    /// Nothing: taken over only after release or proof.
    #[default]
    None,
    /// Its power must read off.
    Power,
    /// Its access to the storage is revoked.
    Storage,
}

/// What must be done before a target's services may run elsewhere while it does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writers {
    /// A service that nothing keeps from writing.
    pub unfenced: Option<ServiceName>,
    pub power: bool,
    pub storage: bool,
}

impl Target {
    /// The longest that a probe of its services may take; zero: it has none.
    pub(crate) fn longest_probe(&self, profile: Profile, detection: &Detection) -> Duration {
        let probes = self.services.iter().map(|service| service.probe.limits(profile, detection).total);
        probes.max().unwrap_or_default()
    }

    /// The longest that a probe of its services waits for a machine that is not there; zero: it has none.
    pub(crate) fn longest_silence(&self, profile: Profile, detection: &Detection) -> Duration {
        let wait = if detection.push { Probe::longest_silence } else { Probe::longest_wait };
        let probes = self.services.iter().map(|service| wait(&service.probe, profile, detection));
        probes.max().unwrap_or_default()
    }

    /// None: any number of its instances may run.
    pub(crate) fn writers(&self) -> Option<Writers> {
        let writers = || self.services.iter().filter(|service| service.single_writer);
        writers().next()?;
        let fenced_by = |fence| writers().find(|service| service.writer_fence == fence);
        Some(Writers {
            unfenced: fenced_by(WriterFence::None).map(|service| service.name.clone()),
            power: fenced_by(WriterFence::Power).is_some(),
            storage: fenced_by(WriterFence::Storage).is_some(),
        })
    }
}

/// Is this a MAC address as `52:54:00:12:34:56`?
#[must_use]
pub fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl Cluster {
    /// Read and check a configuration.
    ///
    /// # Errors
    /// Every fault found, each with its line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        parse::parse("cluster.toml", text)
    }

    /// The same; faults name this file.
    ///
    /// # Errors
    /// Every fault found, each with its line.
    pub fn parse_file(file: &std::path::Path, text: &str) -> Result<Self, ConfigError> {
        parse::parse(&file.display().to_string(), text)
    }

    /// The voters' names.
    pub fn voters(&self) -> impl Iterator<Item = &AgentId> {
        self.agents.iter().filter(|(_, machine)| machine.voter).map(|(name, _)| name)
    }

    /// Bars needed before patience counts: a majority of the voters; none where nobody votes.
    #[must_use]
    pub fn bars_needed(&self) -> usize {
        match self.on_coordinator_loss {
            OnCoordinatorLoss::Voters => self.voters().count() / 2 + 1,
            OnCoordinatorLoss::Keep | OnCoordinatorLoss::Lapse => 0,
        }
    }

    /// All VIPs, and whose they are.
    pub fn vips(&self) -> impl Iterator<Item = (Vip, &TargetName)> {
        self.targets.iter().flat_map(|(name, target)| target.vips.iter().map(move |vip| (*vip, name)))
    }
}

#[cfg(test)]
mod tests;
