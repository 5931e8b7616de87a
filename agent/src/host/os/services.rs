//! How each service manager is asked and told: its commands, and what its answers mean.

use super::{Os, ServiceManager};
use crate::host::service::{ServiceState, ServiceStatus};
use std::fs;

/// What can be done with a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Ask.
    Status,
    /// Bring it up anew, whatever its state.
    Restart,
    /// Bring it up.
    Start,
    /// End it.
    Stop,
    /// Let no process of it run.
    Freeze,
    /// Let them run again.
    Thaw,
}

impl Verb {
    /// Every one.
    pub const ALL: [Verb; 6] = [Verb::Status, Verb::Restart, Verb::Start, Verb::Stop, Verb::Freeze, Verb::Thaw];

    /// As in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Status => "check",
            Verb::Restart => "restart",
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Freeze => "freeze",
            Verb::Thaw => "thaw",
        }
    }
}

/// The service manager's command for `verb`, or why there is none.
///
/// # Errors
/// What is missing, and what to do.
pub fn command(os: &Os, verb: Verb, unit: &str) -> Result<Vec<String>, String> {
    let words = |words: &[&str]| Ok(words.iter().map(|word| (*word).to_owned()).collect());
    let program = |name: &str| {
        os.program(name).ok_or_else(|| format!("this is a system with {}, but there is no program {name}", os.manager))
    };
    let own = |verb: Verb| match verb {
        Verb::Status => Ok("status"),
        Verb::Restart | Verb::Start | Verb::Stop => Ok(verb.as_str()),
        Verb::Freeze | Verb::Thaw => Err(format!("{} has no command for it", os.manager)),
    };
    match os.manager {
        ServiceManager::Systemd => {
            let systemctl = os.program("systemctl").unwrap_or_else(|| "systemctl".to_owned());
            match verb {
                Verb::Status => words(&[&systemctl, "show", SHOWN, "--", unit]),
                Verb::Restart | Verb::Start | Verb::Stop | Verb::Freeze | Verb::Thaw => {
                    words(&[&systemctl, "--no-ask-password", verb.as_str(), "--", unit])
                }
            }
        }
        ServiceManager::OpenRc => words(&[&program("rc-service")?, "--nocolor", unit, own(verb)?]),
        ServiceManager::Runit => {
            let directory = ["etc/service", "var/service", "run/runit/service", "service"]
                .iter()
                .map(|directory| os.root().join(directory).join(unit))
                .find(|path| path.exists())
                .ok_or_else(|| format!("runit has no service {unit:?} in /etc/service or /var/service"))?;
            words(&[&program("sv")?, own(verb)?, &directory.display().to_string()])
        }
        ServiceManager::SysV => {
            let script = script(os, unit)?;
            let verb = own(verb)?;
            // service(8) gives the script a clean environment.
            match os.program("service") {
                Some(service) => words(&[&service, unit, verb]),
                None => words(&[&script, verb]),
            }
        }
        ServiceManager::Busybox => words(&[&script(os, unit)?, own(verb)?]),
        ServiceManager::Other => Err(os.reason.clone()),
    }
}

/// For `systemctl show`.
const SHOWN: &str = "--property=LoadState,ActiveState,SubState,Result,MainPID";

/// `/etc/init.d/NAME`, or buildroot's `/etc/init.d/S50NAME`.
fn script(os: &Os, unit: &str) -> Result<String, String> {
    let directory = os.root().join("etc/init.d");
    let found = fs::read_dir(&directory).ok().into_iter().flatten().flatten().find(|entry| {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let numbered = name.strip_prefix('S').map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        name == unit || numbered.is_some_and(|rest| rest == unit && name != unit)
    });
    match found {
        Some(entry) => Ok(entry.path().display().to_string()),
        None => Err(format!("there is no script for {unit:?} in /etc/init.d")),
    }
}

/// What the manager's answer means. `status`: None after a signal.
#[must_use]
pub fn meaning(manager: ServiceManager, status: Option<i32>, output: &str) -> ServiceStatus {
    let last = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let state = match manager {
        ServiceManager::Systemd => return unit_status(output),
        ServiceManager::Runit if output.starts_with("run:") => ServiceState::Running,
        // It keeps falling over: runsv wants it up, and it is not.
        ServiceManager::Runit if output.starts_with("down:") && output.contains("want up") => ServiceState::Failed,
        ServiceManager::Runit if output.starts_with("down:") => ServiceState::Stopped,
        ServiceManager::Runit => ServiceState::Unknown,
        // openrc-run.sh: 0 started, 3 stopped, 32 crashed; 4, 8, 16 on the way.
        ServiceManager::OpenRc => match status {
            Some(0) => ServiceState::Running,
            Some(3) => ServiceState::Stopped,
            Some(32) => ServiceState::Failed,
            Some(_) | None => ServiceState::Unknown,
        },
        // LSB: 1 and 2: dead, but its pid or lock file is there. A script that knows no `status` explains its usage.
        ServiceManager::SysV | ServiceManager::Busybox | ServiceManager::Other => match status {
            Some(_) if output.to_ascii_lowercase().contains("usage:") => ServiceState::Unknown,
            Some(0) => ServiceState::Running,
            Some(1 | 2) => ServiceState::Failed,
            Some(3) => ServiceState::Stopped,
            Some(_) | None => ServiceState::Unknown,
        },
    };
    ServiceStatus { state, detail: last.to_owned() }
}

fn property<'a>(output: &'a str, name: &str) -> &'a str {
    output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
}

/// From `systemctl show`: the main process.
#[must_use]
pub fn main_pid(output: &str) -> Option<i32> {
    property(output, "MainPID").parse().ok().filter(|pid| *pid > 0)
}

fn unit_status(output: &str) -> ServiceStatus {
    let of = |name| property(output, name);
    unit_state(of("LoadState"), of("ActiveState"), of("SubState"), of("Result"))
}

/// From a unit's properties.
#[must_use]
pub fn unit_state(loaded: &str, active: &str, sub: &str, result: &str) -> ServiceStatus {
    let state = match active {
        "active" | "reloading" | "refreshing" => ServiceState::Running,
        "inactive" => ServiceState::Stopped,
        "failed" => ServiceState::Failed,
        _ => ServiceState::Unknown,
    };
    // systemd answers for units that do not exist as well.
    if loaded != "loaded" && state != ServiceState::Running {
        return ServiceStatus { state: ServiceState::Unknown, detail: format!("unit is {loaded}") };
    }
    ServiceStatus { state, detail: format!("{active} ({sub}), result {result}") }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::write, *};
    use crate::host::run::{RunError, run};
    use std::time::Duration;

    #[test]
    fn units_are_understood() {
        let status = |text: &str| unit_status(text).state;
        assert_eq!(status("LoadState=loaded\nActiveState=active\nMainPID=1"), ServiceState::Running);
        assert_eq!(status("LoadState=loaded\nActiveState=failed\nResult=signal"), ServiceState::Failed);
        assert_eq!(status("LoadState=loaded\nActiveState=inactive"), ServiceState::Stopped);
        assert_eq!(status("LoadState=loaded\nActiveState=activating"), ServiceState::Unknown);
        assert_eq!(status("LoadState=not-found\nActiveState=inactive"), ServiceState::Unknown);
        assert_eq!(status(""), ServiceState::Unknown);
        assert_eq!((main_pid("MainPID=0"), main_pid("MainPID=7")), (None, Some(7)));
    }

    /// A manager's program that says how it was called and ends with a status.
    async fn asked(os: &Os, verb: Verb, unit: &str) -> (Option<i32>, String) {
        match run(&command(os, verb, unit).expect("command"), Duration::from_secs(5)).await {
            Ok(output) => (Some(0), output),
            Err(RunError::Failed { status, output, .. }) => (status, output),
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn each_manager_is_asked_its_own_way() {
        let root = tempfile::tempdir().expect("directory");
        let root = root.path();
        for (path, status) in
            [("sbin/rc-service", 32), ("usr/sbin/service", 1), ("etc/init.d/S50web", 3), ("etc/init.d/web2", 0)]
        {
            write(root, path, &format!("#!/bin/sh\necho \"$@\"\nexit {status}\n"));
        }
        write(root, "usr/bin/sv", "#!/bin/sh\necho \"down: $2: 3s, normally up, want up\"\n");
        write(root, "etc/service/web/run", "");
        let os = |manager| Os::told(root, manager);
        let says = |manager, unit| async move {
            let (status, output) = asked(&os(manager), Verb::Status, unit).await;
            (meaning(manager, status, &output).state, output.trim().to_owned())
        };
        assert_eq!(says(ServiceManager::OpenRc, "web").await, (ServiceState::Failed, "--nocolor web status".into()));
        assert_eq!(says(ServiceManager::SysV, "web").await, (ServiceState::Failed, "web status".into()));
        assert_eq!(says(ServiceManager::Busybox, "web").await, (ServiceState::Stopped, "status".into()));
        assert_eq!(says(ServiceManager::Busybox, "web2").await, (ServiceState::Running, "status".into()));
        assert_eq!(says(ServiceManager::Runit, "web").await.0, ServiceState::Failed);
        let missing = command(&os(ServiceManager::Busybox), Verb::Restart, "mail").expect_err("no script");
        assert!(missing.contains("\"mail\" in /etc/init.d"), "{missing}");
        assert!(command(&os(ServiceManager::OpenRc), Verb::Freeze, "web").is_err());
        assert!(command(&os(ServiceManager::Other), Verb::Restart, "web").is_err());
        let units = command(&os(ServiceManager::Systemd), Verb::Restart, "web.service").expect("command");
        assert_eq!(units[1..], ["--no-ask-password", "restart", "--", "web.service"]);
        let usage = meaning(ServiceManager::SysV, Some(1), "Usage: /etc/init.d/web {start|stop}");
        assert_eq!(usage.state, ServiceState::Unknown);
    }
}
