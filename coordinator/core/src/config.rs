//! The cluster's configuration: one TOML file, the same for coordinator and SIF.

use jiff::SignedDuration;
use kage_types::{AgentId, DomainName, LeaseTiming, Profile, ServiceName, TargetName, Vip};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What is wrong with a configuration: every fault found, in the order of the file's sections.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ConfigError {
    /// One sentence each: where, the value, the reason.
    pub faults: Vec<String>,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// T: length of a coordinator's term lease.
    pub term: Duration,
    /// All machines.
    pub agents: BTreeMap<AgentId, Machine>,
    /// All supervised servers.
    pub targets: BTreeMap<TargetName, Target>,
}

/// Figures of detection, by profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Tim: from the end of one check to the start of the next.
    pub interval: Duration,
    /// Time-out of one echo (thesis: Tnd).
    pub ping_timeout: Duration,
    /// Time-out of one service probe.
    pub probe_timeout: Duration,
    /// Tsw: pause between a restart and the probe.
    pub settle: Duration,
    /// A lease silent for this long, with bad ping or probe, is trouble confirmed.
    pub confirm: Duration,
    /// Events pushed by agents and missing renewals count as evidence.
    pub push: bool,
}

impl Detection {
    /// Of a profile (design: Detection).
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let ms = Duration::from_millis;
        match profile {
            Profile::Thesis => Self {
                interval: ms(10_000),
                ping_timeout: ms(2_000),
                probe_timeout: ms(3_000),
                settle: ms(2_000),
                confirm: ms(0),
                push: false,
            },
            Profile::Normal => Self {
                interval: ms(500),
                ping_timeout: ms(300),
                probe_timeout: ms(500),
                settle: ms(100),
                confirm: ms(1_000),
                push: true,
            },
            Profile::Fast => Self {
                interval: ms(100),
                ping_timeout: ms(150),
                probe_timeout: ms(200),
                settle: ms(50),
                confirm: ms(380),
                push: true,
            },
        }
    }
}

/// One machine with an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

/// One supervised server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Its machine.
    pub agent: AgentId,
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
    /// So long must the target answer before it is given back.
    pub healthy_for: Duration,
    /// Trc: wait for a rebooting target before waking it.
    pub reboot_wait: Duration,
    /// Trs with margin: wait for a woken target before waking it again.
    pub start_wait: Duration,
}

/// The suspended virtual server that stands in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// The hypervisor's agent.
    pub agent: AgentId,
    /// Its domain there.
    pub domain: DomainName,
}

/// When a recovered target takes its place again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    /// When healthy for long enough.
    #[default]
    Auto,
    /// At `kagectl failback`.
    Manual,
}

/// One service of a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// As the target's agent knows it.
    pub name: ServiceName,
    /// tcp, http, smtp.
    pub probe: String,
    /// Probed there.
    pub port: u16,
    /// Restart it before anything else?
    #[serde(default = "yes")]
    pub restart: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: FileCluster,
    coordinator: FileListen,
    sif: FileSif,
    #[serde(default)]
    lease: FileLease,
    #[serde(default)]
    agent: Vec<FileAgent>,
    #[serde(default)]
    target: Vec<FileTarget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCluster {
    name: String,
    #[serde(default)]
    profile: Profile,
    #[serde(default)]
    on_coordinator_loss: OnCoordinatorLoss,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileListen {
    listen: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSif {
    listen: SocketAddr,
    term: Option<SignedDuration>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct FileLease {
    lease: Option<SignedDuration>,
    element: Option<SignedDuration>,
    renewal: Option<SignedDuration>,
    slack: Option<SignedDuration>,
    long_lease: Option<SignedDuration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAgent {
    name: AgentId,
    address: SocketAddr,
    failure_domain: Option<String>,
    #[serde(default)]
    voter: bool,
    mac: Option<String>,
    #[serde(default)]
    guard: Guard,
    power_status: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTarget {
    name: TargetName,
    agent: AgentId,
    address: Option<IpAddr>,
    vips: Vec<Vip>,
    backup: Backup,
    #[serde(default)]
    service: Vec<Service>,
    #[serde(default)]
    failback: Failback,
    healthy_for: Option<SignedDuration>,
    reboot_wait: Option<SignedDuration>,
    start_wait: Option<SignedDuration>,
}

/// Is this a MAC address as `52:54:00:12:34:56`?
#[must_use]
pub fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
}

impl Cluster {
    /// Read and check a configuration.
    ///
    /// # Errors
    /// Every fault found; a syntax fault with its line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError { faults: vec![error.to_string().trim_end().to_owned()] })?;
        let mut faults = Faults(Vec::new());
        let profile = file.cluster.profile;
        let timing = faults.timing(profile, &file.lease);
        let agents = faults.agents(file.agent);
        let targets = faults.targets(file.target, &agents);
        let voters = agents.values().filter(|agent| agent.voter).count();
        if file.cluster.on_coordinator_loss == OnCoordinatorLoss::Voters && voters < 3 {
            faults.say(format!(
                "[cluster] on_coordinator_loss = \"voters\" needs three agents with voter = true, there are {voters}: \
                 add witnesses, or choose \"keep\" (takeover by proof only) or \"lapse\" (services stop with the coordinator)"
            ));
        }
        let term = faults.duration("[sif] term", file.sif.term, Duration::from_secs(5));
        if term < Duration::from_secs(1) {
            faults.say(format!("[sif] term = {term:?}: at least 1s, or every delay of SIF costs authority"));
        }
        if !faults.0.is_empty() {
            return Err(ConfigError { faults: faults.0 });
        }
        Ok(Self {
            name: file.cluster.name,
            profile,
            timing,
            detection: Detection::of(profile),
            on_coordinator_loss: file.cluster.on_coordinator_loss,
            coordinator: file.coordinator.listen,
            sif: file.sif.listen,
            term,
            agents,
            targets,
        })
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

struct Faults(Vec<String>);

impl Faults {
    fn say(&mut self, fault: String) {
        self.0.push(fault);
    }

    fn duration(&mut self, place: &str, given: Option<SignedDuration>, default: Duration) -> Duration {
        let Some(given) = given else { return default };
        match Duration::try_from(given) {
            Ok(duration) if !duration.is_zero() => duration,
            Ok(_) | Err(_) => {
                self.say(format!("{place} = {given}: a positive duration such as \"2s\" or \"500ms\""));
                default
            }
        }
    }

    fn timing(&mut self, profile: Profile, file: &FileLease) -> LeaseTiming {
        let base = LeaseTiming::of(profile);
        let timing = LeaseTiming {
            lease: self.duration("[lease] lease", file.lease, base.lease),
            element: self.duration("[lease] element", file.element, base.element),
            renewal: self.duration("[lease] renewal", file.renewal, base.renewal),
            slack: self.duration("[lease] slack", file.slack, base.slack),
            long_lease: self.duration("[lease] long_lease", file.long_lease, base.long_lease),
        };
        if let Err(error) = timing.check() {
            self.say(format!("[lease]: {error}"));
        }
        timing
    }

    fn agents(&mut self, files: Vec<FileAgent>) -> BTreeMap<AgentId, Machine> {
        let mut agents = BTreeMap::new();
        for file in files {
            let name = file.name;
            if let Some(mac) = file.mac.as_deref().filter(|mac| !is_mac(mac)) {
                self.say(format!("[[agent]] {name}: mac = {mac:?} is no MAC address such as 52:54:00:12:34:56"));
            }
            if file.power_status.as_ref().is_some_and(Vec::is_empty) {
                self.say(format!(
                    "[[agent]] {name}: power_status is empty: give program and arguments, or leave it out"
                ));
            }
            let machine = Machine {
                address: file.address,
                failure_domain: file.failure_domain.unwrap_or_else(|| name.to_string()),
                voter: file.voter,
                mac: file.mac,
                guard: file.guard,
                power_status: file.power_status,
            };
            if agents.insert(name.clone(), machine).is_some() {
                self.say(format!("[[agent]] {name}: stands twice"));
            }
        }
        agents
    }

    fn targets(&mut self, files: Vec<FileTarget>, agents: &BTreeMap<AgentId, Machine>) -> BTreeMap<TargetName, Target> {
        let mut targets = BTreeMap::new();
        let mut taken: BTreeMap<Vip, TargetName> = BTreeMap::new();
        for file in files {
            let name = file.name;
            let place = format!("[[target]] {name}");
            for agent in [&file.agent, &file.backup.agent] {
                if !agents.contains_key(agent) {
                    self.say(format!("{place}: there is no [[agent]] named {agent}"));
                }
            }
            if file.agent == file.backup.agent {
                self.say(format!("{place}: its backup server runs on {}, the machine it stands in for", file.agent));
            }
            if agents.get(&file.backup.agent).is_some_and(|machine| machine.guard != Guard::Tap) {
                self.say(format!(
                    "{place}: [[agent]] {} runs its backup VM and needs guard = \"tap\"",
                    file.backup.agent
                ));
            }
            if file.vips.is_empty() {
                self.say(format!("{place}: vips is empty: give the address its clients use"));
            }
            for vip in &file.vips {
                if let Some(other) = taken.insert(*vip, name.clone()) {
                    self.say(format!("{place}: VIP {vip} is also given to target {other}"));
                }
                if agents.values().any(|machine| machine.address.ip() == vip.address()) {
                    self.say(format!("{place}: VIP {vip} is a machine's own address"));
                }
            }
            let address = file
                .address
                .or_else(|| agents.get(&file.agent).map(|machine| machine.address.ip()))
                .unwrap_or(IpAddr::from([0, 0, 0, 0]));
            let seconds = Duration::from_secs;
            let target = Target {
                agent: file.agent,
                address,
                vips: file.vips.into_iter().collect(),
                backup: file.backup,
                services: file.service,
                failback: file.failback,
                healthy_for: self.duration(&format!("{place} healthy_for"), file.healthy_for, seconds(10)),
                reboot_wait: self.duration(&format!("{place} reboot_wait"), file.reboot_wait, seconds(60)),
                start_wait: self.duration(&format!("{place} start_wait"), file.start_wait, seconds(90)),
            };
            for service in &target.services {
                if !matches!(service.probe.as_str(), "tcp" | "http" | "smtp") {
                    self.say(format!(
                        "{place}: service {}: probe = {:?} is none of tcp, http, smtp",
                        service.name, service.probe
                    ));
                }
            }
            if targets.insert(name.clone(), target).is_some() {
                self.say(format!("{place}: stands twice"));
            }
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [cluster]
        name = "lab"
        profile = "fast"
        [coordinator]
        listen = "10.77.0.2:7700"
        [sif]
        listen = "10.77.0.2:7701"
        [[agent]]
        name = "mail"
        address = "10.77.0.11:7702"
        mac = "52:54:00:77:00:0b"
        [[agent]]
        name = "mgmt"
        address = "10.77.0.2:7702"
        guard = "tap"
        [[agent]]
        name = "v1"
        address = "10.77.0.21:7702"
        voter = true
        [[agent]]
        name = "v2"
        address = "10.77.0.22:7702"
        voter = true
        [[agent]]
        name = "v3"
        address = "10.77.0.23:7702"
        voter = true
        [[target]]
        name = "mail"
        agent = "mail"
        vips = ["10.77.0.100"]
        backup = { agent = "mgmt", domain = "mailb" }
        healthy_for = "2s"
        [[target.service]]
        name = "http"
        probe = "http"
        port = 80
    "#;

    #[test]
    fn a_good_file_is_read() {
        let cluster = Cluster::parse(GOOD).expect("good");
        assert_eq!(cluster.timing, LeaseTiming::of(Profile::Fast));
        assert_eq!(cluster.bars_needed(), 2);
        assert_eq!(cluster.targets.len(), 1);
    }

    #[test]
    fn every_fault_is_reported() {
        let text = GOOD
            .replace("voter = true", "voter = false")
            .replace("domain = \"mailb\"", "domain = \"mailb\" ")
            .replace("agent = \"mgmt\", ", "agent = \"nobody\", ")
            .replace("52:54:00:77:00:0b", "52:54")
            .replace("healthy_for = \"2s\"", "healthy_for = \"0s\"");
        let error = Cluster::parse(&text).expect_err("faults");
        assert_eq!(error.faults.len(), 4, "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = Cluster::parse(&GOOD.replace("healthy_for", "healthy_fro")).expect_err("unknown key");
        assert!(error.to_string().contains("healthy_fro") && error.to_string().contains("line"), "{error}");
    }
}
