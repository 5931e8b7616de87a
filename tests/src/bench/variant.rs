//! What is compared, and by which troubles: data only.

use serde::{Deserialize, Serialize};

use crate::lab::config::Profile;

/// Who keeps the service up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Nobody: the bench itself moves the address, without any detection. The floor.
    HandVip,
    /// The same with a paused VM that it resumes.
    HandVm,
    /// This project, usual profile.
    KagemushaNormal,
    /// This project, profile `fast`.
    KagemushaFast,
    /// keepalived as its manual page begins: adverts and checks each second.
    KeepalivedDefault,
    /// VRRP version 3 with adverts each 0.1 s; checks each second, the least it takes.
    KeepalivedTuned,
    /// Pacemaker and Corosync with their defaults, checks each 10 s, no fencing.
    PacemakerDefault,
    /// Token 500 ms, checks each second, no fencing.
    PacemakerTuned,
    /// The same with a fence device that cuts the power at once.
    PacemakerFenced,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The service's process is killed.
    Service,
    /// The plug is pulled.
    Power,
    /// Everything stops where it stands; goes on after the takeover.
    Frozen,
    /// The network is severed, and joined after the takeover.
    Cut,
}

impl Variant {
    /// In the order of the table.
    pub const ALL: [Self; 9] = [
        Self::HandVip,
        Self::HandVm,
        Self::KagemushaNormal,
        Self::KagemushaFast,
        Self::KeepalivedDefault,
        Self::KeepalivedTuned,
        Self::PacemakerDefault,
        Self::PacemakerTuned,
        Self::PacemakerFenced,
    ];

    /// For `--only`, file names and people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HandVip => "hand-vip",
            Self::HandVm => "hand-vm",
            Self::KagemushaNormal => "kagemusha-normal",
            Self::KagemushaFast => "kagemusha-fast",
            Self::KeepalivedDefault => "keepalived-default",
            Self::KeepalivedTuned => "keepalived-tuned",
            Self::PacemakerDefault => "pacemaker-default",
            Self::PacemakerTuned => "pacemaker-tuned",
            Self::PacemakerFenced => "pacemaker-fenced",
        }
    }

    /// For the table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::HandVip => "by hand: VIP moved (floor)",
            Self::HandVm => "by hand: paused VM resumed (floor)",
            Self::KagemushaNormal => "**Kagemusha, `normal`**",
            Self::KagemushaFast => "**Kagemusha, `fast`**",
            Self::KeepalivedDefault => "keepalived",
            Self::KeepalivedTuned => "keepalived, adverts 0.1 s",
            Self::PacemakerDefault => "Pacemaker",
            Self::PacemakerTuned => "Pacemaker, tuned",
            Self::PacemakerFenced => "Pacemaker, tuned, fence device",
        }
    }

    /// The profile of the lab, for those that need the lab's machines.
    #[must_use]
    pub const fn profile(self) -> Option<Profile> {
        match self {
            Self::KagemushaNormal => Some(Profile::Normal),
            Self::KagemushaFast => Some(Profile::Fast),
            Self::HandVip
            | Self::HandVm
            | Self::KeepalivedDefault
            | Self::KeepalivedTuned
            | Self::PacemakerDefault
            | Self::PacemakerTuned
            | Self::PacemakerFenced => None,
        }
    }

    /// Whether it runs on two namespaces rather than on the lab's machines.
    #[must_use]
    pub const fn on_namespaces(self) -> bool {
        match self {
            Self::HandVm | Self::KagemushaNormal | Self::KagemushaFast => false,
            Self::HandVip
            | Self::KeepalivedDefault
            | Self::KeepalivedTuned
            | Self::PacemakerDefault
            | Self::PacemakerTuned
            | Self::PacemakerFenced => true,
        }
    }

    /// What is measured of it. The floor has no detection: frozen and cut would be the same move as power.
    #[must_use]
    pub const fn troubles(self) -> &'static [Trouble] {
        match self {
            Self::HandVip => &[Trouble::Service, Trouble::Power],
            Self::HandVm => &[Trouble::Power],
            Self::KagemushaNormal
            | Self::KagemushaFast
            | Self::KeepalivedDefault
            | Self::KeepalivedTuned
            | Self::PacemakerDefault
            | Self::PacemakerTuned
            | Self::PacemakerFenced => &Trouble::ALL,
        }
    }

    /// Seconds that a run takes here, for the estimate: (with nothing else being measured, beside others).
    #[must_use]
    pub const fn seconds(self) -> (u32, u32) {
        match self {
            Self::HandVip => (3, 3),
            Self::HandVm | Self::KagemushaFast => (18, 0),
            Self::KagemushaNormal => (20, 0),
            Self::KeepalivedTuned => (6, 6),
            Self::KeepalivedDefault => (9, 7),
            Self::PacemakerDefault => (12, 12),
            Self::PacemakerTuned | Self::PacemakerFenced => (8, 12),
        }
    }
}

impl Trouble {
    /// In the order of the table.
    pub const ALL: [Self; 4] = [Self::Service, Self::Power, Self::Frozen, Self::Cut];

    /// For `--only` and file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Power => "power",
            Self::Frozen => "frozen",
            Self::Cut => "cut",
        }
    }

    /// For the table.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Service => "service crash",
            Self::Power => "power lost",
            Self::Frozen => "frozen, thawed",
            Self::Cut => "cut, healed",
        }
    }
}
