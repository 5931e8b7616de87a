//! What kind of system this is, as far as it matters for handling it: who brings services up, who configures the
//! network and the firewall. Found out from files; nothing is changed by looking (thesis 7.5).

pub mod freeze;
pub mod net;
pub mod services;
#[cfg(feature = "dbus")]
pub mod systemd;

use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Who brings services up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceManager {
    /// systemd
    Systemd,
    /// OpenRC (Alpine, Gentoo)
    OpenRc,
    /// runit's `sv`, of runit or busybox (Void)
    Runit,
    /// System V init scripts
    SysV,
    /// busybox init, with or without scripts in /etc/init.d
    Busybox,
    /// None of these: a container, the lab. Services need commands.
    Other,
}

impl ServiceManager {
    /// Every one.
    pub const ALL: [ServiceManager; 6] = [
        ServiceManager::Systemd,
        ServiceManager::OpenRc,
        ServiceManager::Runit,
        ServiceManager::SysV,
        ServiceManager::Busybox,
        ServiceManager::Other,
    ];

    /// As in the configuration and the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceManager::Systemd => "systemd",
            ServiceManager::OpenRc => "openrc",
            ServiceManager::Runit => "runit",
            ServiceManager::SysV => "sysv",
            ServiceManager::Busybox => "busybox",
            ServiceManager::Other => "other",
        }
    }
}

impl fmt::Display for ServiceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// This system, found under a root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Os {
    root: PathBuf,
    /// Who brings services up.
    pub manager: ServiceManager,
    /// How that is known.
    pub reason: String,
}

impl Os {
    /// Finds out. `root`: `/`, but for tests.
    #[must_use]
    pub fn detect(root: &Path) -> Self {
        let (manager, reason) = find_manager(root);
        Self { root: root.to_owned(), manager, reason }
    }

    /// As the configuration says.
    #[must_use]
    pub fn told(root: &Path, manager: ServiceManager) -> Self {
        Self { root: root.to_owned(), manager, reason: "agent.toml says so ([os] manager)".to_owned() }
    }

    /// A program of the system by its full path: an agent begun by an init may have no PATH worth the name.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<String> {
        ["usr/sbin", "sbin", "usr/bin", "bin", "usr/local/sbin", "usr/local/bin"]
            .iter()
            .map(|directory| self.root.join(directory).join(name))
            .find(|path| path.exists())
            .map(|path| path.display().to_string())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }
}

fn find_manager(root: &Path) -> (ServiceManager, String) {
    let there = |path: &str| root.join(path).exists();
    let because = |text: &str| text.to_owned();
    // sd_booted(3)
    if there("run/systemd/system") {
        return (ServiceManager::Systemd, because("/run/systemd/system is there"));
    }
    if there("run/openrc")
        && (there("sbin/openrc-run") || there("usr/sbin/openrc-run") || there("run/openrc/softlevel"))
    {
        return (ServiceManager::OpenRc, because("/run/openrc is there"));
    }
    // Its directories are no sign: distributions carry them along for packages.
    let first = fs::read_to_string(root.join("proc/1/comm")).unwrap_or_default();
    if matches!(first.trim(), "runit" | "runsvdir") {
        return (ServiceManager::Runit, format!("process 1 is {}", first.trim()));
    }
    let init = ["sbin/init", "init"].iter().find_map(|path| fs::canonicalize(root.join(path)).ok());
    if init.is_some_and(|path| path.file_name().is_some_and(|name| name == "busybox")) {
        return (ServiceManager::Busybox, because("init is busybox"));
    }
    // Init scripts alone are no sign: systems with another init carry them along for packages.
    if there("etc/init.d") && there("etc/inittab") {
        return (ServiceManager::SysV, because("/etc/inittab and /etc/init.d are there, and no other init runs"));
    }
    (ServiceManager::Other, because("no init system of a known kind runs here; services need commands in agent.toml"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Writes files below a root of its own.
    pub(crate) fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    #[test]
    fn managers_are_told_apart() {
        let root = tempfile::tempdir().expect("directory");
        let root = root.path();
        let found = || Os::detect(root).manager;
        assert_eq!(found(), ServiceManager::Other);
        write(root, "etc/init.d/web", "");
        write(root, "usr/sbin/service", "");
        assert_eq!(found(), ServiceManager::Other);
        write(root, "etc/inittab", "");
        assert_eq!(found(), ServiceManager::SysV);
        write(root, "bin/busybox", "");
        fs::create_dir(root.join("sbin")).expect("directory");
        std::os::unix::fs::symlink("../bin/busybox", root.join("sbin/init")).expect("link");
        assert_eq!(found(), ServiceManager::Busybox);
        write(root, "run/runit/supervise/x", "");
        assert_eq!(found(), ServiceManager::Busybox);
        write(root, "proc/1/comm", "runit\n");
        assert_eq!(found(), ServiceManager::Runit);
        write(root, "run/openrc/softlevel", "default");
        assert_eq!(found(), ServiceManager::OpenRc);
        write(root, "run/systemd/system/x", "");
        assert_eq!(found(), ServiceManager::Systemd);
        assert_eq!(Os::detect(root).reason, "/run/systemd/system is there");
        assert_eq!(Os::detect(root).program("service"), Some(root.join("usr/sbin/service").display().to_string()));
        for manager in ServiceManager::ALL {
            let json = serde_json::to_string(&manager).expect("json");
            assert_eq!(json, format!("{:?}", manager.as_str()));
        }
    }
}
