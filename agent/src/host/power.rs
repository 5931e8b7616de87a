//! Reboot, power-off and suspend of this host.

mod alarm;
mod wake;

pub use alarm::AlarmSet;

use super::run::{RunError, run};
use rustix::system::{RebootCommand, reboot};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::{JoinError, spawn_blocking},
};

/// Written to by the kernel's clients to sleep, read for what it can do.
const SYS_POWER_STATE: &str = "/sys/power/state";
/// There while systemd is the init system (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// How long a forced reboot waits for file systems to be written.
const SYNC: Duration = Duration::from_secs(2);
/// Beyond any: what limits a suspension is time awake.
const LONGEST_SLEEP: Duration = Duration::from_secs(365 * 24 * 3600);

/// Commands instead of this system's own; for a system that needs more than those, and for the lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PowerConfig {
    /// Program and arguments that reboot in good order.
    pub reboot: Option<Vec<String>>,
    /// Program and arguments that shut down in good order and cut the power.
    pub power_off: Option<Vec<String>>,
    /// Program and arguments that suspend to memory; may end before or after the sleep.
    pub suspend: Option<Vec<String>>,
    /// Program and arguments that make the machine wake by itself after `{seconds}` (appended where that is not in it);
    /// 0 seconds: not any more. Instead of the real-time clock's alarm.
    pub alarm: Option<Vec<String>>,
    /// Program and arguments that make sure that the machine can be woken from outside, run before each sleep. Instead of
    /// Wake-on-LAN by ethtool.
    pub arm_wake: Option<Vec<String>>,
    /// Instead of `reboot`, where it must happen at once.
    pub forced_reboot: Option<Vec<String>>,
    /// Instead of `power_off`, where it must happen at once.
    pub forced_power_off: Option<Vec<String>>,
}

/// Why the host's power state was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// The command failed.
    #[error("the host's {what} command failed")]
    Command {
        /// "reboot", "power-off", "suspend", "alarm", "arm_wake".
        what: &'static str,
        /// Its error.
        source: RunError,
    },
    /// The kernel can't sleep that way.
    #[error("this host cannot suspend to memory ({has}); use power-off (S5) with Wake-on-LAN instead")]
    Unsupported {
        /// What it can do instead.
        has: String,
    },
    /// The kernel refused.
    #[error("the kernel refused to {what}")]
    Kernel {
        /// "reboot", "power off", "suspend".
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Did not return in time. It may still happen.
    #[error("the kernel did not {what} within {after:?}")]
    Timeout {
        /// "reboot", "power off", "suspend".
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// No alarm.
    #[error("no alarm can be set at {}; is there a real-time clock (`rtcwake -m show`)? [power] alarm names another way", path.display())]
    Alarm {
        /// The clock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Asleep, nothing could wake it.
    #[error(
        "nothing could wake this machine: {reason}; switch Wake-on-LAN on in its firmware, or set [power] arm_wake"
    )]
    NoWake {
        /// Of each network card.
        reason: String,
    },
    /// A fault of our own.
    #[error("changing the host's power state failed inside the agent")]
    Internal(#[source] JoinError),
}

/// Changes this host's power state. What must happen first (leases released, guard elements deleted, domains moved)
/// is the caller's business.
#[derive(Clone, Debug, Default)]
pub struct Power {
    config: PowerConfig,
    /// One sleep at a time.
    sleeping: Arc<Mutex<()>>,
}

impl Power {
    /// With the system's own commands where none is configured.
    #[must_use]
    pub fn new(config: PowerConfig) -> Self {
        Self { config, sleeping: Arc::default() }
    }

    /// Begins an orderly reboot. `forced`: at once, file systems synced (for up to 2 s) but services not stopped.
    ///
    /// # Errors
    /// [`PowerError`], within `deadline`.
    pub async fn reboot(&self, forced: bool, deadline: Duration) -> Result<(), PowerError> {
        let configured = if forced { &self.config.forced_reboot } else { &self.config.reboot };
        match configured {
            Some(argv) => command("reboot", argv, deadline).await,
            None if forced => at_once("reboot", RebootCommand::Restart, deadline).await,
            None => command("reboot", &graceful("reboot", Path::new(SYSTEMD).exists()), deadline).await,
        }
    }

    /// Begins an orderly shutdown that ends with the power off. `forced`: as in [`Self::reboot`].
    ///
    /// # Errors
    /// [`PowerError`], within `deadline`.
    pub async fn power_off(&self, forced: bool, deadline: Duration) -> Result<(), PowerError> {
        let configured = if forced { &self.config.forced_power_off } else { &self.config.power_off };
        match configured {
            Some(argv) => command("power-off", argv, deadline).await,
            None if forced => at_once("power off", RebootCommand::PowerOff, deadline).await,
            None => command("power-off", &graceful("poweroff", Path::new(SYSTEMD).exists()), deadline).await,
        }
    }

    /// How this machine reboots, powers off and suspends, in words for people.
    #[must_use]
    pub fn ways(&self) -> [String; 3] {
        let systemd = Path::new(SYSTEMD).exists();
        let way =
            |configured: &Option<Vec<String>>, verb| configured.clone().unwrap_or_else(|| graceful(verb, systemd));
        let suspend = match (&self.config.suspend, check_sleep(Path::new(SYS_POWER_STATE))) {
            (Some(argv), _) => argv.join(" "),
            (None, Err(error)) => format!("none: {error}"),
            (None, Ok(())) if systemd => graceful("suspend", true).join(" "),
            (None, Ok(())) => format!("\"mem\" written to {SYS_POWER_STATE}"),
        };
        [way(&self.config.reboot, "reboot").join(" "), way(&self.config.power_off, "poweroff").join(" "), suspend]
    }

    /// Suspends to memory. Returns before the sleep (systemd) or after it (kernel): see
    /// [`super::clock::SleepDetector`] for whether there was one.
    ///
    /// # Errors
    /// [`PowerError`]; Timeout only tells of time spent awake.
    pub async fn suspend(&self, deadline: Duration) -> Result<(), PowerError> {
        let late = async {
            // Neither clock does: one that is frozen from outside, as a whole, finds that both went on.
            for _ in 0..deadline.as_secs().max(1) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            biased;
            done = self.suspend_now() => done,
            () = late => Err(PowerError::Timeout { what: "suspend", after: deadline }),
        }
    }

    async fn suspend_now(&self) -> Result<(), PowerError> {
        if let Some(argv) = &self.config.suspend {
            return command("suspend", argv, LONGEST_SLEEP).await;
        }
        check_sleep(Path::new(SYS_POWER_STATE))?;
        if Path::new(SYSTEMD).exists() {
            return command("suspend", &graceful("suspend", true), LONGEST_SLEEP).await;
        }
        let path = PathBuf::from(SYS_POWER_STATE);
        blocking("suspend", LONGEST_SLEEP, move || std::fs::write(path, "mem")).await
    }

    /// Begins a sleep; None: one has begun already. Ends when the value is dropped.
    #[must_use]
    pub fn begin_sleep(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.sleeping).try_lock_owned().ok()
    }

    /// Can this machine sleep at all?
    ///
    /// # Errors
    /// [`PowerError::Unsupported`].
    pub fn can_suspend(&self) -> Result<(), PowerError> {
        if self.config.suspend.is_some() { Ok(()) } else { check_sleep(Path::new(SYS_POWER_STATE)) }
    }
}

/// The sleep states the kernel offers (`mem`, `disk`, `freeze`, `standby`); none where it has no power management.
#[must_use]
pub fn sleep_states() -> Vec<String> {
    sleep_states_in(Path::new(SYS_POWER_STATE))
}

fn sleep_states_in(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn check_sleep(path: &Path) -> Result<(), PowerError> {
    let states = sleep_states_in(path);
    if states.iter().any(|state| state == "mem") {
        return Ok(());
    }
    let has =
        if states.is_empty() { "it has no sleep states".to_owned() } else { format!("it has {}", states.join(", ")) };
    Err(PowerError::Unsupported { has })
}

fn graceful(verb: &str, systemd: bool) -> Vec<String> {
    let words: &[&str] = if systemd { &["systemctl", verb] } else { &[verb] };
    words.iter().map(|word| (*word).to_owned()).collect()
}

async fn command(what: &'static str, argv: &[String], deadline: Duration) -> Result<(), PowerError> {
    run(argv, deadline).await.map(drop).map_err(|source| PowerError::Command { what, source })
}

async fn at_once(what: &'static str, how: RebootCommand, deadline: Duration) -> Result<(), PowerError> {
    // A dead file server holds sync up for ever; the reboot must happen all the same.
    let _ = tokio::time::timeout(SYNC.min(deadline / 2), spawn_blocking(rustix::fs::sync)).await;
    blocking(what, deadline, move || reboot(how).map_err(io::Error::from)).await
}

async fn blocking(
    what: &'static str,
    deadline: Duration,
    act: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), PowerError> {
    match tokio::time::timeout(deadline, spawn_blocking(act)).await {
        Ok(Ok(result)) => result.map_err(|source| PowerError::Kernel { what, source }),
        Ok(Err(error)) => Err(PowerError::Internal(error)),
        Err(_) => Err(PowerError::Timeout { what, after: deadline }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn configured_commands_come_first() {
        let directory = tempfile::tempdir().expect("directory");
        let touch = |name: &str| Some(vec!["touch".to_owned(), directory.path().join(name).display().to_string()]);
        let power = Power::new(PowerConfig {
            reboot: touch("reboot"),
            power_off: touch("power_off"),
            suspend: touch("suspend"),
            alarm: None,
            arm_wake: None,
            forced_reboot: touch("forced_reboot"),
            forced_power_off: touch("forced_power_off"),
        });
        let deadline = Duration::from_secs(10);
        power.reboot(false, deadline).await.expect("reboot");
        power.reboot(true, deadline).await.expect("reboot");
        power.power_off(false, deadline).await.expect("power_off");
        power.power_off(true, deadline).await.expect("power_off");
        power.suspend(deadline).await.expect("suspend");
        assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 5);
    }

    #[test]
    fn a_host_that_cannot_sleep_says_so() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "freeze disk\n").expect("write");
        let error = check_sleep(file.path()).expect_err("no mem");
        assert!(error.to_string().contains("freeze, disk"), "{error}");
        std::fs::write(file.path(), "freeze mem\n").expect("write");
        check_sleep(file.path()).expect("mem");
        assert!(check_sleep(Path::new("/nonexistent")).is_err());
        assert_eq!(graceful("reboot", true), ["systemctl", "reboot"]);
        assert_eq!(graceful("poweroff", false), ["poweroff"]);
    }
}
