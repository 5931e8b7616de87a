//! The services an agent's configuration names: their status, restart, start, stop, freeze and thaw.
//!
//! A service's own commands come first, then those of `[os]`, then the service manager's way.

use super::{
    os::{
        Os, ServiceManager,
        freeze::{FreezeError, set_frozen},
        services::{Verb, command, meaning},
    },
    run::{RunError, run},
    watch::main_process,
};
use kage_types::ServiceName;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Programs and arguments, no shell, instead of the service manager's way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// Status 0: it runs. 3 (LSB "not running") or 1: it does not. Others: unknown.
    pub check: Option<Vec<String>>,
    /// Brings it up, whatever its state.
    pub restart: Option<Vec<String>>,
    /// Brings it up.
    pub start: Option<Vec<String>>,
    /// Ends it.
    pub stop: Option<Vec<String>>,
    /// Lets no process of it run.
    pub freeze: Option<Vec<String>>,
    /// Lets them run again.
    pub thaw: Option<Vec<String>>,
}

impl Commands {
    fn of(&self, verb: Verb) -> Option<&Vec<String>> {
        match verb {
            Verb::Status => self.check.as_ref(),
            Verb::Restart => self.restart.as_ref(),
            // Restart brings it up whatever its state.
            Verb::Start => self.start.as_ref().or(self.restart.as_ref()),
            Verb::Stop => self.stop.as_ref(),
            Verb::Freeze => self.freeze.as_ref(),
            Verb::Thaw => self.thaw.as_ref(),
        }
    }
}

/// How a service's main process is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ProcessOf {
    /// The number in this file.
    PidFile(PathBuf),
    /// The name of the main process as `ps -o comm` shows it (15 bytes).
    Name(String),
    /// What systemd holds to be the unit's main process.
    Unit(String),
    /// By the usual pid files of a service of this name.
    Usual(String),
}

/// A service of this host.
#[derive(Clone, Debug)]
pub struct Service {
    /// What others call it.
    pub name: ServiceName,
    /// The service manager's name for it; None: it knows nothing of it, there are commands only.
    pub unit: Option<String>,
    /// Instead of the service manager's way.
    pub commands: Commands,
    /// How its process is found; None: its death is seen by checks and probes only.
    pub process: Option<ProcessOf>,
    /// Whose way.
    pub os: Arc<Os>,
    /// For the check command.
    pub check_deadline: Duration,
    /// For every other.
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
        /// "restart", "stop", …
        action: &'static str,
        /// Why, with the last lines of output.
        source: RunError,
    },
    /// systemd did not do it.
    #[cfg(feature = "dbus")]
    #[error("cannot {action} service {service}")]
    Systemd {
        /// The service.
        service: ServiceName,
        /// "restart", "stop", …
        action: &'static str,
        /// Why.
        source: super::os::systemd::SystemdError,
    },
    /// Its processes.
    #[error("cannot {action} service {service}")]
    Processes {
        /// The service.
        service: ServiceName,
        /// "freeze" or "thaw".
        action: &'static str,
        /// Why.
        source: FreezeError,
    },
    /// There is no way to do it here.
    #[error(
        "cannot {action} service {service}: {why}; add {action} = [\"PROGRAM\", …] to [services.{service}] of agent.toml"
    )]
    Unsupported {
        /// The service.
        service: ServiceName,
        /// "restart", "stop", …
        action: &'static str,
        /// What is missing.
        why: String,
    },
}

impl Service {
    /// Asks the check command, the service manager, or whether its process is there. A check that fails or takes too
    /// long is [`ServiceState::Unknown`] with the reason.
    pub async fn status(&self) -> ServiceStatus {
        if let Some(check) = &self.commands.check {
            return match run(check, self.check_deadline).await {
                Ok(output) => ServiceStatus { state: ServiceState::Running, detail: last_line(&output) },
                Err(RunError::Failed { status: Some(1 | 3), output, .. }) => {
                    ServiceStatus { state: ServiceState::Stopped, detail: output }
                }
                Err(error) => unknown(&error),
            };
        }
        let answer = match &self.unit {
            Some(unit) => self.ask_manager(unit).await,
            None => unknown(&"neither check nor process is configured"),
        };
        if answer.state != ServiceState::Unknown || self.systemd_unit().is_some() {
            return answer;
        }
        // An init script that knows no `status`, or none at all.
        let Some(process) = &self.process else { return answer };
        match main_process(process).await {
            Some(pid) => ServiceStatus { state: ServiceState::Running, detail: format!("process {pid}") },
            None => ServiceStatus { state: ServiceState::Stopped, detail: "no process".to_owned() },
        }
    }

    async fn ask_manager(&self, unit: &str) -> ServiceStatus {
        #[cfg(feature = "dbus")]
        if let Some(unit) = self.systemd_unit() {
            match super::os::systemd::status(unit).await {
                Err(error) if error.is_no_bus() => {}
                Err(error) => return unknown(&error),
                Ok(status) => return status,
            }
        }
        let manager = self.os.manager;
        match command(&self.os, Verb::Status, unit) {
            Err(why) => unknown(&why),
            Ok(argv) => match run(&argv, self.check_deadline).await {
                Ok(output) => meaning(manager, Some(0), &output),
                Err(RunError::Failed { status, output, .. }) => meaning(manager, status, &output),
                Err(error) => unknown(&error),
            },
        }
    }

    /// Restarts it, or starts it where it does not run.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn restart(&self) -> Result<(), ServiceError> {
        self.act(Verb::Restart).await
    }

    /// Starts it where it does not run.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn start(&self) -> Result<(), ServiceError> {
        self.act(Verb::Start).await
    }

    /// Stops it.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn stop(&self) -> Result<(), ServiceError> {
        self.act(Verb::Stop).await
    }

    /// Lets none of its processes run any more; they keep their memory, files and connections.
    ///
    /// # Errors
    /// [`ServiceError`]: part of it may still run.
    pub async fn freeze(&self) -> Result<(), ServiceError> {
        self.act(Verb::Freeze).await
    }

    /// Lets them run again. It is no error when they do.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn thaw(&self) -> Result<(), ServiceError> {
        self.act(Verb::Thaw).await
    }

    /// How `verb` is done here, in words for people; or why it can't be.
    #[must_use]
    pub fn way(&self, verb: Verb) -> String {
        if let Some(argv) = self.commands.of(verb) {
            return argv.join(" ");
        }
        match (verb, self.systemd_unit(), &self.unit) {
            (Verb::Freeze | Verb::Thaw, Some(unit), _) => format!("systemd: {}Unit({unit})", title(verb)),
            (Verb::Freeze, None, _) if self.process.is_some() => {
                "SIGSTOP to its processes, or its control group".to_owned()
            }
            (Verb::Thaw, None, _) if self.process.is_some() => {
                "SIGCONT to its processes, or its control group".to_owned()
            }
            (Verb::Status, _, None) if self.process.is_some() => "is its process there?".to_owned(),
            (Verb::Status, Some(unit), _) if cfg!(feature = "dbus") => format!("systemd: ActiveState of {unit}"),
            (Verb::Restart | Verb::Start | Verb::Stop, Some(unit), _) if cfg!(feature = "dbus") => {
                format!("systemd: {}Unit({unit})", title(verb))
            }
            (_, _, Some(unit)) => match command(&self.os, verb, unit) {
                Ok(argv) => argv.join(" "),
                Err(why) => format!("none: {why}"),
            },
            (_, _, None) => format!("none: no {} is configured", verb.as_str()),
        }
    }

    /// How its death is noticed, in words for people.
    #[must_use]
    pub fn watched(&self) -> String {
        match &self.process {
            Some(ProcessOf::Unit(unit)) => format!("pidfd of {unit}'s main process, as systemd names it"),
            Some(ProcessOf::PidFile(path)) => format!("pidfd of the process in {}", path.display()),
            Some(ProcessOf::Name(name)) => format!("pidfd of the process named {name}"),
            Some(ProcessOf::Usual(name)) => format!("pidfd of the process in /run/{name}.pid, or named {name}"),
            None => "by checks and probes only".to_owned(),
        }
    }

    fn systemd_unit(&self) -> Option<&str> {
        self.unit.as_deref().filter(|_| self.os.manager == ServiceManager::Systemd)
    }

    async fn act(&self, verb: Verb) -> Result<(), ServiceError> {
        let action = verb.as_str();
        let unsupported = |why: String| ServiceError::Unsupported { service: self.name.clone(), action, why };
        if let Some(argv) = self.commands.of(verb) {
            return self.command(action, argv).await;
        }
        #[cfg(feature = "dbus")]
        if let Some(unit) = self.systemd_unit() {
            match self.ask_systemd(verb, unit).await {
                // systemctl knows another way in.
                Err(error) if error.is_no_bus() => {}
                // Control groups v1, or an old systemd.
                Err(error) if matches!(verb, Verb::Freeze | Verb::Thaw) => {
                    tracing::debug!(service = %self.name, %error, "systemd does not {action} it; signals do");
                    return self.signal(verb).await;
                }
                other => {
                    return other.map_err(|source| ServiceError::Systemd {
                        service: self.name.clone(),
                        action,
                        source,
                    });
                }
            }
        }
        if matches!(verb, Verb::Freeze | Verb::Thaw) {
            return self.signal(verb).await;
        }
        let Some(unit) = &self.unit else { return Err(unsupported(format!("no {action} is configured"))) };
        let argv = command(&self.os, verb, unit).map_err(unsupported)?;
        match self.os.manager {
            // A unit that failed too often refuses to start until this; it fails where there is nothing to reset.
            ServiceManager::Systemd if verb != Verb::Stop => {
                let reset = ["systemctl", "--no-ask-password", "reset-failed", "--", unit].map(str::to_owned);
                let _ = run(&reset, self.restart_deadline).await;
            }
            // What OpenRC holds to be crashed it neither stops nor starts.
            ServiceManager::OpenRc if verb != Verb::Stop => {
                if self.ask_manager(unit).await.state == ServiceState::Failed {
                    let mut zap = argv.clone();
                    zap.pop();
                    zap.push("zap".to_owned());
                    let _ = run(&zap, self.restart_deadline).await;
                }
            }
            ServiceManager::Systemd
            | ServiceManager::OpenRc
            | ServiceManager::Runit
            | ServiceManager::SysV
            | ServiceManager::Busybox
            | ServiceManager::Other => {}
        }
        self.command(action, &argv).await
    }

    #[cfg(feature = "dbus")]
    async fn ask_systemd(&self, verb: Verb, unit: &str) -> Result<(), super::os::systemd::SystemdError> {
        use super::os::systemd;
        match verb {
            Verb::Status => systemd::status(unit).await.map(drop),
            Verb::Restart => systemd::job(unit, "RestartUnit", self.restart_deadline).await,
            Verb::Start => systemd::job(unit, "StartUnit", self.restart_deadline).await,
            Verb::Stop => systemd::job(unit, "StopUnit", self.restart_deadline).await,
            Verb::Freeze | Verb::Thaw => systemd::set_frozen(unit, verb == Verb::Freeze, self.restart_deadline).await,
        }
    }

    async fn signal(&self, verb: Verb) -> Result<(), ServiceError> {
        let (service, action) = (self.name.clone(), verb.as_str());
        let Some(process) = &self.process else {
            let why = "how its process is found is not configured (process or pid_file)".to_owned();
            return Err(ServiceError::Unsupported { service, action, why });
        };
        // What does not run writes nothing.
        let Some(pid) = main_process(process).await else { return Ok(()) };
        let unit = self.unit.as_deref().unwrap_or(self.name.as_str());
        set_frozen(pid, unit, verb == Verb::Freeze).await.map_err(|source| ServiceError::Processes {
            service,
            action,
            source,
        })
    }

    async fn command(&self, action: &'static str, argv: &[String]) -> Result<(), ServiceError> {
        let result = run(argv, self.restart_deadline).await;
        result.map(drop).map_err(|source| ServiceError::Command { service: self.name.clone(), action, source })
    }
}

fn title(verb: Verb) -> &'static str {
    match verb {
        Verb::Status => "Get",
        Verb::Restart => "Restart",
        Verb::Start => "Start",
        Verb::Stop => "Stop",
        Verb::Freeze => "Freeze",
        Verb::Thaw => "Thaw",
    }
}

fn unknown(why: &impl ToString) -> ServiceStatus {
    ServiceStatus { state: ServiceState::Unknown, detail: why.to_string() }
}

fn last_line(output: &str) -> String {
    output.lines().next_back().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    fn service(check: &str, restart: &str) -> Service {
        Service {
            name: ServiceName::new("web").expect("name"),
            unit: None,
            commands: Commands { check: Some(sh(check)), restart: Some(sh(restart)), ..Commands::default() },
            process: None,
            os: Arc::new(Os::told(Path::new("/"), ServiceManager::Other)),
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
        service("true", "true").start().await.expect("start");
        let error = service("true", "echo bad config >&2; exit 1").restart().await.expect_err("fails");
        let source = std::error::Error::source(&error).expect("source").to_string();
        assert!(source.contains("bad config"), "{source}");
        let error = service("true", "true").stop().await.expect_err("no way");
        assert!(error.to_string().contains("add stop = [\"PROGRAM\", …] to [services.web]"), "{error}");
        assert!(matches!(service("true", "true").freeze().await, Err(ServiceError::Unsupported { .. })));
    }

    #[tokio::test]
    async fn init_scripts_do_what_they_can_and_the_process_tells_the_rest() {
        let root = tempfile::tempdir().expect("directory");
        let log = root.path().join("log");
        let script = format!(
            "#!/bin/sh\necho \"$1\" >> {}\ncase $1 in restart|stop) ;; *) echo \"Usage: $0 {{restart|stop}}\"; exit 1;; esac\n",
            log.display()
        );
        crate::host::os::tests::write(root.path(), "etc/init.d/S50web", &script);
        let busybox = Service {
            unit: Some("web".to_owned()),
            commands: Commands::default(),
            process: Some(ProcessOf::Usual("kage-no-such".to_owned())),
            os: Arc::new(Os::told(root.path(), ServiceManager::Busybox)),
            ..service("", "")
        };
        assert_eq!(busybox.status().await, ServiceStatus { state: ServiceState::Stopped, detail: "no process".into() });
        busybox.restart().await.expect("restart");
        busybox.stop().await.expect("stop");
        assert!(matches!(busybox.start().await, Err(ServiceError::Command { action: "start", .. })));
        busybox.freeze().await.expect("nothing runs");
        assert_eq!(std::fs::read_to_string(&log).expect("log"), "status\nrestart\nstop\nstart\n");
        assert!(busybox.way(Verb::Restart).ends_with("etc/init.d/S50web restart"), "{}", busybox.way(Verb::Restart));
        assert!(busybox.way(Verb::Freeze).starts_with("SIGSTOP"));
    }
}
