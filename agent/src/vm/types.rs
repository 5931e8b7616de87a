//! What is said about domains: plain data, the same with and without libvirt.

use kage_types::Time;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// What a domain does, in libvirt's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// Its CPUs run (or wait for I/O).
    Running,
    /// Stopped in memory: paused by us, by migration or by an I/O error.
    Paused,
    /// On its way down.
    ShuttingDown,
    /// Not there; a persistent definition may be.
    ShutOff,
    /// The guest crashed and was kept for inspection.
    Crashed,
    /// The guest put itself to sleep (S3).
    PmSuspended,
    /// libvirt does not say.
    Unknown,
}

impl fmt::Display for DomainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DomainState::Running => "running",
            DomainState::Paused => "paused",
            DomainState::ShuttingDown => "shutting down",
            DomainState::ShutOff => "shut off",
            DomainState::Crashed => "crashed",
            DomainState::PmSuspended => "suspended by its guest",
            DomainState::Unknown => "in an unknown state",
        })
    }
}

/// How a domain's network card reaches the host: decides whether and how it can be guarded (safety rule 8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "of")]
pub enum Attachment {
    /// A tap on this Linux bridge; an empty name where the XML does not give one.
    Bridge(String),
    /// A tap on this Open vSwitch bridge.
    OpenVswitch(String),
    /// A tap on this libvirt network.
    Network(String),
    /// A tap by itself (`<interface type='ethernet'>`).
    Ethernet,
    /// macvtap on this device: can't be guarded.
    Direct(String),
    /// Passed-through hardware: can't be guarded.
    HostDevice,
    /// Anything else, by libvirt's name (`user`, `vhostuser` …).
    Other(String),
}

/// A network card of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainNic {
    /// Lower case, colons.
    pub mac: String,
    /// Its device on the host (`vnet3`); only while the domain is active.
    pub tap: Option<String>,
    /// What it is attached to.
    pub attachment: Attachment,
    /// Bytes the guest received since it started; zero while shut off or unknown.
    pub rx_bytes: u64,
    /// Bytes the guest sent since it started; zero while shut off or unknown.
    pub tx_bytes: u64,
}

/// One domain and its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// As libvirt has it: not every such name is a [`kage_types::DomainName`].
    pub name: String,
    /// With dashes.
    pub uuid: String,
    /// What it does.
    pub state: DomainState,
    /// Current number of virtual CPUs.
    pub vcpus: u32,
    /// The most memory it may have, bytes.
    pub memory_max_bytes: u64,
    /// Memory it has now (the balloon's target), bytes; zero while shut off.
    pub memory_used_bytes: u64,
    /// Host memory that is resident for it, bytes; None while unknown (shut off, or libvirt is busy with it).
    pub memory_resident_bytes: Option<u64>,
    /// What its processors have worked since it started, nanoseconds.
    pub cpu_time_ns: u64,
    /// Network cards.
    pub nics: Vec<DomainNic>,
    /// Has a definition that survives its end.
    pub persistent: bool,
    /// libvirtd starts it by itself.
    pub autostart: bool,
    /// A saved memory image waits for the next start.
    pub managed_save: bool,
    /// Why the network cards are not known, where they are not.
    pub fault: Option<String>,
}

/// A change in a domain's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainEventKind {
    /// A definition was made or changed.
    Defined,
    /// The definition was removed.
    Undefined,
    /// Started, restored or migrated in.
    Started,
    /// Paused.
    Suspended,
    /// Runs again.
    Resumed,
    /// Gone: shut down, destroyed, crashed, saved or migrated away.
    Stopped,
    /// The guest has finished shutting down; `Stopped` follows.
    Shutdown,
    /// Put to sleep by its guest.
    PmSuspended,
    /// The guest crashed.
    Crashed,
}

/// Why a domain event happened, as far as libvirt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainEventDetail {
    /// Started from nothing.
    Booted,
    /// By migration.
    Migrated,
    /// From a saved image.
    Restored,
    /// From a snapshot.
    FromSnapshot,
    /// Woken from S3.
    Wakeup,
    /// By request.
    Paused,
    /// By request.
    Unpaused,
    /// A disk error.
    IoError,
    /// Its watchdog fired.
    Watchdog,
    /// Post-copy migration is running or has failed.
    Postcopy,
    /// Asked for by the guest.
    ByGuest,
    /// Asked for by the host (a signal to QEMU).
    ByHost,
    /// Shut down in good order.
    ShutDown,
    /// Destroyed by request.
    Destroyed,
    /// The guest panicked.
    Crashed,
    /// Saved to disk.
    Saved,
    /// QEMU ended unexpectedly (crashed, killed), or did not come up; a request to pause that failed.
    Failed,
    /// None of the above, by libvirt's number.
    Other(i32),
}

/// A lifecycle event of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainEvent {
    /// Name of the domain.
    pub domain: String,
    /// With dashes.
    pub uuid: String,
    /// What happened.
    pub kind: DomainEventKind,
    /// Why.
    pub detail: DomainEventDetail,
    /// When libvirt's message was read here.
    pub at: Time,
}

/// What the connection to libvirt tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "of")]
pub enum VmEvent {
    /// Connected and subscribed (again): what happened before is not known, list anew.
    Connected {
        /// When.
        at: Time,
    },
    /// libvirtd went away or fell silent.
    Disconnected {
        /// When it was noticed.
        at: Time,
        /// In libvirt's words.
        reason: String,
    },
    /// A domain's life.
    Domain(DomainEvent),
}

/// The state of the connection that carries events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "of")]
pub enum ConnectionState {
    /// Being opened since then.
    Connecting {
        /// Since.
        since: Time,
    },
    /// Open, and answering keep-alive messages.
    Connected {
        /// Since.
        since: Time,
    },
    /// Closed or refused; tried again with backoff.
    Disconnected {
        /// Since.
        since: Time,
        /// The last error.
        reason: String,
    },
}

/// Did a command change anything?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Yes.
    Done,
    /// No: the domain was so already.
    Already,
}

/// How to migrate a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateOptions {
    /// libvirt URI by which *this* host's libvirtd reaches the other (`qemu+tcp://rs2/system`).
    pub destination: String,
    /// Where QEMU sends the memory (`tcp://10.0.0.2`); None: libvirt chooses by the destination's host name.
    pub data_uri: Option<String>,
    /// At most this many bytes a second (rounded up to MiB/s); None: no limit.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// The longest acceptable pause at the switch-over; None: libvirt's default (0.3 s).
    pub max_downtime: Option<Duration>,
    /// Define it there and undefine it here.
    pub persist: bool,
    /// But keep it defined here.
    pub keep: bool,
    /// Slow the guest down if it dirties memory faster than it can be sent.
    pub auto_converge: bool,
    /// Cancelled after this long.
    pub deadline: Duration,
}

/// How far a migration or save is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobProgress {
    /// Bytes to be sent altogether, as known now.
    pub total_bytes: u64,
    /// Bytes still to be sent.
    pub remaining_bytes: u64,
    /// Since the job began.
    pub elapsed: Duration,
}

/// Why a command to a domain failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "of")]
pub enum VmError {
    /// libvirtd is not there or refuses.
    #[error("cannot reach libvirt at {uri}: {reason}; check `systemctl status libvirtd`")]
    Unreachable {
        /// The URI tried.
        uri: String,
        /// libvirt's words.
        reason: String,
    },
    /// No answer within the deadline. What was asked may still happen.
    #[error("libvirt did not answer within {} s; check `systemctl status libvirtd`", seconds(*.after))]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// So many calls hang that no further is begun.
    #[error("{hanging} calls to libvirt hang; check `systemctl status libvirtd` and the QEMU processes")]
    Hanging {
        /// Calls past their deadline.
        hanging: usize,
    },
    /// More waits than a healthy host ever has.
    #[error("{waiting} commands wait for libvirt already; try again later")]
    Busy {
        /// Length of the queue.
        waiting: usize,
    },
    /// The connection broke during the call: whether it took effect is not known.
    #[error("the connection to libvirt was lost; list the domain to see whether it took effect ({reason})")]
    Lost {
        /// libvirt's words.
        reason: String,
    },
    /// No such domain here.
    #[error("no domain {domain:?} on this host; `virsh list --all` shows those there are")]
    NoDomain {
        /// The name asked for.
        domain: String,
    },
    /// Not possible in this state.
    #[error("cannot {action} domain {domain:?}: it is {state}")]
    WrongState {
        /// The name.
        domain: String,
        /// What was asked.
        action: String,
        /// Its state.
        state: DomainState,
    },
    /// It did not shut down in time. It still runs.
    #[error("domain {domain:?} did not shut down within {} s and still runs; destroy it, or check its ACPI or guest agent", seconds(*.after))]
    StillRunning {
        /// The name.
        domain: String,
        /// The deadline.
        after: Duration,
    },
    /// Migration or save was cancelled by request or at its deadline.
    #[error("the job of domain {domain:?} was cancelled")]
    Cancelled {
        /// The name.
        domain: String,
    },
    /// Anything else libvirt refuses.
    #[error("libvirt refused to {action} domain {domain:?}: {reason}")]
    Refused {
        /// The name.
        domain: String,
        /// What was asked.
        action: String,
        /// libvirt's words.
        reason: String,
    },
    /// A fault of our own.
    #[error("a libvirt call failed inside the agent: {0}")]
    Internal(String),
}

/// "5", "0.25".
fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
