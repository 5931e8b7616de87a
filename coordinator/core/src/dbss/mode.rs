//! The modes, and what is remembered only while one lasts.

use super::{Cause, TargetView};
use kage_types::Time;
use serde::{Deserialize, Serialize};

/// Thesis 2: the five modes; and before and after them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// No term yet, or the VIPs are not placed.
    Starting,
    /// All is well; checked every interval.
    Regular {
        /// The next check.
        next: Time,
        /// Something was odd and has been said; not again before a clean check.
        alarmed: bool,
    },
    /// Its services in trouble, the first of which is being cured.
    ServiceRecovery { services: Vec<usize>, step: ServiceStep },
    /// Is it really lost?
    NetworkExamination {
        /// That only its agent is silent has been said.
        alarmed: bool,
        /// Why nothing is done has been said.
        told: bool,
        /// Its power read off; since when it was being read.
        off: Option<Time>,
    },
    /// The VIPs are on their way to the backup server.
    BackupServer { why: Why },
    /// The backup serves; the background job brings the target back.
    TargetServerRecovery { background: Background },
    /// The VIPs are on their way back.
    Returning {
        /// None yet: the target gets its storage access back first; which way back this is.
        unfencing: Option<Cause>,
    },
    /// Down: the backup keeps VIP and service until the operator starts this again.
    Ended { why: String },
}

/// Why the backup server takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Why {
    /// Its machine does not answer.
    Network,
    /// Restarts do not cure its service.
    Service,
    /// Its machine said that it is going down.
    GoingDown,
    /// It fell silent while it was taking its place again.
    LostReturning,
    /// Asked for.
    Operator {
        /// The target's agent answers: it serves until everything else is ready.
        reachable: bool,
    },
}

impl Why {
    /// Does the target serve until everything else is ready?
    pub fn planned(self) -> bool {
        match self {
            Why::Service => true,
            Why::Operator { reachable } => reachable,
            Why::Network | Why::GoingDown | Why::LostReturning => false,
        }
    }

    /// Is it a failure, and not somebody's wish?
    pub fn is_failure(self) -> bool {
        match self {
            Why::Network | Why::Service | Why::LostReturning => true,
            Why::GoingDown | Why::Operator { .. } => false,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Why::Network => "network trouble",
            Why::Service => "service trouble",
            Why::GoingDown => "it is going down",
            Why::LostReturning => "lost while returning",
            Why::Operator { .. } => "asked for by the operator",
        }
    }
}

/// Service recovery mode's steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ServiceStep {
    /// Thesis: ping again first. Where agents push, its lease says as much.
    Pinging,
    Restarting,
    /// Tsw, then probes until the end of patience.
    Probing {
        next: Time,
        until: Time,
    },
}

/// Which background job: it says what an unhealthy target gets at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Job {
    /// 1, service trouble: the target was told to reboot.
    Reboot {
        /// The order failed or got lost: it is given again then, to a target that is still there.
        again: Option<Time>,
    },
    /// 2, network trouble: it reboots by itself, or is woken.
    Return,
    /// Begun by an earlier coordinator, it is not known which.
    Resumed,
}

/// Background jobs 1 (service trouble) and 2 (network trouble).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Background {
    /// Is it rebooting? Up to Trc.
    AwaitReboot {
        job: Job,
        until: Time,
        /// It has been seen away: what answers now has come back.
        left: bool,
    },
    /// It is stopped: Wake-on-LAN, and wait for it.
    Waking { attempt: u32, until: Time },
    /// It came back: Tsw, then ping and probe. Its services may take until then to start.
    Settling { job: Job, look: Time, until: Time },
    /// Verdict up: ping, agent and services good since.
    Healthy {
        since: Time,
        #[serde(default)]
        waits: Waits,
    },
    /// Moved by the operator: nothing is done to it, and it does not return by itself.
    Operator { healthy: bool },
    /// The target is healthy, and the host of its double is silent: does the double still serve?
    DoubleSilent {
        /// What this is about to end: `Healthy` or `Operator`.
        before: Box<Background>,
        /// What came of it has been said.
        told: bool,
    },
}

/// What a healthy target waits for before it takes its place again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Waits {
    /// Being healthy for long enough.
    #[default]
    Steadiness,
    /// The end of an operator's order.
    Order,
    /// It was taken over too often.
    HeldDown,
    /// Its machine comes and goes.
    Quarantine,
    /// Its hours; when they next begin, milliseconds since 1970. None: the wall clock is not known yet.
    Hours { opens: Option<u64> },
    /// `failback = "manual"`.
    Operator,
    /// `failback = "keep"`.
    Kept,
}

impl Waits {
    /// For people.
    pub fn detail(self) -> String {
        match self {
            Waits::Steadiness | Waits::Order => "it is healthy again".to_owned(),
            Waits::HeldDown => {
                "it is healthy again, held down after too many takeovers; `kagectl failback` ends that".to_owned()
            }
            Waits::Quarantine => "it is healthy again, but its machine is in quarantine".to_owned(),
            Waits::Hours { opens: Some(at) } => {
                format!("it is healthy again and waits for its hours ({})", crate::config::day_and_time(at))
            }
            Waits::Hours { opens: None } => "it is healthy again and waits for its hours".to_owned(),
            Waits::Operator => {
                "it is healthy again; `kagectl failback` moves it back (failback = \"manual\")".to_owned()
            }
            Waits::Kept => "its double keeps serving (failback = \"keep\"); it is healthy and stands by".to_owned(),
        }
    }

    /// Is it another thing that is waited for? The time does not matter.
    pub fn is_news(self, before: Waits) -> bool {
        std::mem::discriminant(&self) != std::mem::discriminant(&before)
    }
}

impl Mode {
    /// Name and, for modes with steps, step: stable words.
    pub fn names(&self) -> (&'static str, &'static str) {
        match self {
            Mode::Starting => ("starting", ""),
            Mode::Regular { .. } => ("regular", ""),
            Mode::ServiceRecovery { step, .. } => {
                let step = match step {
                    ServiceStep::Pinging => "pinging",
                    ServiceStep::Restarting => "restarting",
                    ServiceStep::Probing { .. } => "probing",
                };
                ("service-recovery", step)
            }
            Mode::NetworkExamination { .. } => ("network-examination", ""),
            Mode::BackupServer { .. } => ("backup-server", ""),
            Mode::TargetServerRecovery { background } => {
                let step = match background {
                    Background::AwaitReboot { .. } => "awaiting",
                    Background::Waking { .. } => "waking",
                    Background::Settling { .. } => "settling",
                    Background::Healthy { .. } => "healthy",
                    Background::Operator { .. } => "moved-by-operator",
                    Background::DoubleSilent { .. } => "double-silent",
                };
                ("target-server-recovery", step)
            }
            Mode::Returning { .. } => ("target-server-recovery", "returning"),
            Mode::Ended { .. } => ("ended", ""),
        }
    }

    /// For people.
    pub fn detail(&self) -> String {
        match self {
            Mode::Starting => "its virtual IPs are being placed".into(),
            Mode::Regular { .. } => String::new(),
            Mode::ServiceRecovery { .. } => "restarting its service".into(),
            Mode::NetworkExamination { .. } => "its lease is silent or its ping bad".into(),
            Mode::BackupServer { why } if why.planned() => {
                format!("planned move to the backup server ({})", why.as_str())
            }
            Mode::BackupServer { why } => format!("the backup server takes over ({})", why.as_str()),
            Mode::TargetServerRecovery { background } => match background {
                Background::AwaitReboot { .. } => "waiting for it to come back".to_owned(),
                Background::Waking { attempt, .. } => format!("woken {attempt} times, waiting for it"),
                Background::Settling { .. } => "it came back; waiting for its services".to_owned(),
                Background::Healthy { waits, .. } => waits.detail(),
                Background::Operator { healthy: true } => "moved by the operator; it is healthy".to_owned(),
                Background::Operator { healthy: false } => "moved by the operator; it is not healthy".to_owned(),
                Background::DoubleSilent { .. } => {
                    "it is healthy again; the host of its double is silent: does the double still serve?".to_owned()
                }
            },
            Mode::Returning { unfencing: Some(_) } => "it gets its access to the storage back".into(),
            Mode::Returning { unfencing: None } => "its virtual IPs are on their way back".into(),
            Mode::Ended { why } => {
                format!("{why}: the backup keeps serving; repair it, then `kagectl failback` starts again")
            }
        }
    }

    pub fn view(&self, since: Time, ping: String, service: String) -> TargetView {
        let (mode, step) = self.names();
        TargetView { mode, step, detail: self.detail(), since, ping, service }
    }
}
