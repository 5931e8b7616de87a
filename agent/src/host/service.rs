//! The services an agent's configuration names: their status, restart and stop.

use super::run::{RunError, run};
use kage_types::ServiceName;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// How a service is asked about and handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Control {
    /// A systemd unit (`nginx.service`).
    Unit(String),
    /// Commands: program and arguments, no shell.
    Commands {
        /// Status 0: it runs. 3 (LSB "not running") or 1: it does not. Others: unknown.
        check: Vec<String>,
        /// Brings it up, whatever its state.
        restart: Vec<String>,
        /// Ends it.
        stop: Option<Vec<String>>,
    },
}

/// How the death of a service's process is noticed at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ProcessOf {
    /// The number in this file.
    PidFile(PathBuf),
    /// The name of the main process as `ps -o comm` shows it (15 bytes).
    Name(String),
    /// What systemd holds to be the unit's main process.
    Unit(String),
}

/// A service of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What others call it.
    pub name: ServiceName,
    /// How it is handled.
    pub control: Control,
    /// How its process is found; None: its death is seen by checks and probes only.
    pub process: Option<ProcessOf>,
    /// For the check command.
    pub check_deadline: Duration,
    /// For restart and stop each.
    pub restart_deadline: Duration,
}

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// It runs.
    Running,
    /// Stopped in good order, or never started.
    Stopped,
    /// Its service manager says that it failed.
    Failed,
    /// On its way, or the check did not say.
    Unknown,
}

/// The answer to a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What it does.
    pub state: ServiceState,
    /// In the checker's words, its last lines; may be empty.
    pub detail: String,
}

/// A service that could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The command did not succeed.
    #[error("cannot {action} service {service}")]
    Command {
        /// The service.
        service: ServiceName,
        /// "restart", "stop".
        action: &'static str,
        /// Why, with the last lines of output.
        source: RunError,
    },
    /// No stop command is configured.
    #[error("service {0} has no stop command; add one to the agent's configuration")]
    NoStop(ServiceName),
}

impl Service {
    /// Asks the service manager or the check command. A check that fails or takes too long is [`ServiceState::Unknown`]
    /// with the reason.
    pub async fn status(&self) -> ServiceStatus {
        match &self.control {
            Control::Unit(unit) => match run(&show(unit), self.check_deadline).await {
                Ok(output) => unit_status(&output),
                Err(error) => ServiceStatus { state: ServiceState::Unknown, detail: error.to_string() },
            },
            Control::Commands { check, .. } => match run(check, self.check_deadline).await {
                Ok(output) => ServiceStatus { state: ServiceState::Running, detail: last_line(&output) },
                Err(RunError::Failed { status: Some(1 | 3), output, .. }) => {
                    ServiceStatus { state: ServiceState::Stopped, detail: output }
                }
                Err(error) => ServiceStatus { state: ServiceState::Unknown, detail: error.to_string() },
            },
        }
    }

    /// Restarts it, or starts it where it does not run.
    ///
    /// # Errors
    /// [`ServiceError::Command`].
    pub async fn restart(&self) -> Result<(), ServiceError> {
        match &self.control {
            Control::Unit(unit) => {
                // A unit that failed too often refuses to start until this; it fails where there is nothing to reset.
                let _ = run(&systemctl("reset-failed", unit), self.restart_deadline).await;
                self.command("restart", &systemctl("restart", unit)).await
            }
            Control::Commands { restart, .. } => self.command("restart", restart).await,
        }
    }

    /// Stops it.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn stop(&self) -> Result<(), ServiceError> {
        match &self.control {
            Control::Unit(unit) => self.command("stop", &systemctl("stop", unit)).await,
            Control::Commands { stop: Some(stop), .. } => self.command("stop", stop).await,
            Control::Commands { stop: None, .. } => Err(ServiceError::NoStop(self.name.clone())),
        }
    }

    async fn command(&self, action: &'static str, argv: &[String]) -> Result<(), ServiceError> {
        let result = run(argv, self.restart_deadline).await;
        result.map(drop).map_err(|source| ServiceError::Command { service: self.name.clone(), action, source })
    }
}

fn systemctl(verb: &str, unit: &str) -> Vec<String> {
    ["systemctl", "--no-ask-password", verb, "--", unit].map(str::to_owned).to_vec()
}

fn show(unit: &str) -> Vec<String> {
    let words = ["systemctl", "show", "--property=LoadState,ActiveState,SubState,Result,MainPID", "--", unit];
    words.map(str::to_owned).to_vec()
}

fn property<'a>(output: &'a str, name: &str) -> &'a str {
    output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
}

fn unit_status(output: &str) -> ServiceStatus {
    let active = property(output, "ActiveState");
    let state = match active {
        "active" | "reloading" => ServiceState::Running,
        "inactive" => ServiceState::Stopped,
        "failed" => ServiceState::Failed,
        _ => ServiceState::Unknown,
    };
    // `systemctl show` answers for units that do not exist as well.
    let loaded = property(output, "LoadState");
    if loaded != "loaded" && state != ServiceState::Running {
        return ServiceStatus { state: ServiceState::Unknown, detail: format!("unit is {loaded}") };
    }
    let detail = format!("{active} ({}), result {}", property(output, "SubState"), property(output, "Result"));
    ServiceStatus { state, detail }
}

/// The main process of a unit, as systemd knows it.
pub(super) async fn unit_pid(unit: &str, deadline: Duration) -> Option<i32> {
    let output = run(&show(unit), deadline).await.ok()?;
    property(&output, "MainPID").parse().ok().filter(|pid| *pid > 0)
}

fn last_line(output: &str) -> String {
    output.lines().next_back().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn service(check: &str, restart: &str) -> Service {
        Service {
            name: ServiceName::new("web").expect("name"),
            control: Control::Commands { check: sh(check), restart: sh(restart), stop: None },
            process: None,
            check_deadline: Duration::from_secs(5),
            restart_deadline: Duration::from_secs(5),
        }
    }

    #[tokio::test]
    async fn commands_tell_the_state() {
        for (check, state) in [
            ("exit 0", ServiceState::Running),
            ("exit 3", ServiceState::Stopped),
            ("exit 4", ServiceState::Unknown),
            ("kill -9 $$", ServiceState::Unknown),
        ] {
            assert_eq!(service(check, "true").status().await.state, state, "{check}");
        }
        let slow = Service { check_deadline: Duration::from_millis(100), ..service("sleep 9", "true") };
        assert_eq!(slow.status().await.state, ServiceState::Unknown);
    }

    #[tokio::test]
    async fn a_failed_restart_shows_what_was_said() {
        service("true", "true").restart().await.expect("restart");
        let error = service("true", "echo bad config >&2; exit 1").restart().await.expect_err("fails");
        let source = std::error::Error::source(&error).expect("source").to_string();
        assert!(source.contains("bad config"), "{source}");
        assert!(matches!(service("true", "true").stop().await, Err(ServiceError::NoStop(_))));
    }

    #[test]
    fn units_are_understood() {
        let status = |text: &str| unit_status(text).state;
        assert_eq!(status("LoadState=loaded\nActiveState=active\nMainPID=1"), ServiceState::Running);
        assert_eq!(status("LoadState=loaded\nActiveState=failed\nResult=signal"), ServiceState::Failed);
        assert_eq!(status("LoadState=loaded\nActiveState=inactive"), ServiceState::Stopped);
        assert_eq!(status("LoadState=loaded\nActiveState=activating"), ServiceState::Unknown);
        assert_eq!(status("LoadState=not-found\nActiveState=inactive"), ServiceState::Unknown);
        assert_eq!(status(""), ServiceState::Unknown);
    }
}
