//! What this host is: read once at start and at request.

use super::{
    nic::{Nic, nics},
    os::{
        Os, ServiceManager,
        net::{Party, firewalls, network_managers},
    },
    power::sleep_states,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};
use sysinfo::System;

/// Facts about this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// As the kernel has it.
    pub hostname: String,
    /// `ID` of os-release: `debian`.
    pub os_id: String,
    /// `VERSION_ID` of os-release: `12`; empty for rolling releases.
    pub os_version: String,
    /// `6.1.0-18-amd64`.
    pub kernel: String,
    /// `x86_64`.
    pub architecture: String,
    /// CPUs on line.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Who brings services up.
    pub init: ServiceManager,
    /// How that is known.
    pub init_reason: String,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// `mem`: S3 is there. See [`sleep_states`].
    pub sleep_states: Vec<String>,
    /// The kernel has nf_tables, loaded or loadable: without it takeover is by proof only (safety rule 10).
    pub nf_tables: bool,
    /// libvirtd (or virtqemud) listens here.
    pub libvirt: bool,
    /// Changes with each boot.
    pub boot_id: String,
    /// Since boot, sleep included.
    pub uptime: Duration,
    /// The kernel's clock source, and whether the wall clock is synchronised.
    pub clock: String,
    /// Who configures the network, and what follows for VIPs.
    pub network_managers: BTreeMap<String, String>,
    /// Who else writes rules for packets, and what follows for the guard.
    pub firewalls: BTreeMap<String, String>,
}

impl Facts {
    /// Reads them; what can't be read is empty.
    #[must_use]
    pub fn read() -> Self {
        Self::for_interface(None)
    }

    /// The same; `interface`: by index, where the VIPs are.
    #[must_use]
    pub fn for_interface(interface: Option<u32>) -> Self {
        let root = Path::new("/");
        let named = |parties: Vec<Party>| parties.into_iter().map(|one| (one.name.to_owned(), one.reason)).collect();
        let kernel = System::kernel_version().unwrap_or_default();
        let (os_id, os_version) = os_release();
        let os = Os::detect(Path::new("/"));
        Self {
            hostname: System::host_name().unwrap_or_default(),
            os_id,
            os_version,
            architecture: System::cpu_arch(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
            memory_bytes: memory_bytes(),
            init: os.manager,
            init_reason: os.reason,
            nics: nics(),
            sleep_states: sleep_states(),
            nf_tables: nf_tables_answers().unwrap_or_else(|| has_module(Path::new("/"), &kernel, "nf_tables")),
            libvirt: ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"]
                .iter()
                .any(|path| Path::new(path).exists()),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            uptime: super::clock::now().since(kage_types::Time::ZERO),
            clock: clock(),
            network_managers: named(network_managers(root, interface)),
            firewalls: named(firewalls(root)),
            kernel,
        }
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn os_release() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let text = text.unwrap_or_default();
    let value = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
        value.trim().trim_matches(['"', '\'']).to_owned()
    };
    (value("ID"), value("VERSION_ID"))
}

fn clock() -> String {
    let source = line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    // SAFETY: all-zero is a valid timex, and modes = 0 only reads; the pointer is to a local that outlives the call.
    let state = unsafe { libc::adjtimex(&mut std::mem::zeroed()) };
    let synchronised = if state == libc::TIME_ERROR { "not synchronised" } else { "synchronised" };
    let source = if source.is_empty() { "unknown clock source" } else { &source };
    format!("{source}, wall clock {synchronised}")
}

fn memory_bytes() -> u64 {
    System::new().map_or(0, |mut system| {
        system.refresh_memory();
        system.total_memory()
    })
}

/// Asks nf_tables for its generation, which loads the module if need be. None: we are not allowed to ask.
fn nf_tables_answers() -> Option<bool> {
    // `linux/netlink.h`, `linux/netfilter/nfnetlink.h`: subsystem 10, message 16 (NFT_MSG_GETGEN) and its answer 15.
    const REQUEST: [u8; 20] = {
        let mut request = [0; 20];
        request[0] = 20_u32.to_ne_bytes()[0];
        request[3] = 20_u32.to_ne_bytes()[3];
        let kind = 0x0a10_u16.to_ne_bytes();
        let flags = 1_u16.to_ne_bytes();
        (request[4], request[5], request[6], request[7]) = (kind[0], kind[1], flags[0], flags[1]);
        request
    };
    const NEW_GENERATION: u16 = 0x0a0f;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER)).ok()?;
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(1))).ok()?;
    send(&socket, &REQUEST, SendFlags::empty()).ok()?;
    let mut answer = [0_u8; 512];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).ok()?;
    if length < 20 {
        return None;
    }
    if u16::from_ne_bytes([answer[4], answer[5]]) == NEW_GENERATION {
        return Some(true);
    }
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if error == -libc::EPERM { None } else { Some(false) }
}

/// Loaded, built in, or there to be loaded.
fn has_module(root: &Path, kernel: &str, module: &str) -> bool {
    if root.join("sys/module").join(module).exists() {
        return true;
    }
    // Built in without parameters, a module has no directory of its own in /sys.
    let modules = root.join("lib/modules").join(kernel);
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        let list = fs::read_to_string(modules.join(list)).unwrap_or_default();
        list.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            file.split_once(".ko").is_some_and(|(name, _)| name.replace('-', "_") == module)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_described() {
        let facts = Facts::read();
        println!("{facts:?}");
        assert!(!facts.hostname.is_empty() && !facts.kernel.is_empty() && facts.cpus >= 1);
        assert!(facts.memory_bytes > 1 << 20 && facts.boot_id.len() == 36 && facts.uptime > Duration::ZERO);
    }

    #[test]
    fn modules_are_found() {
        let root = tempfile::tempdir().expect("directory");
        let make = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, text).expect("write");
        };
        assert!(!has_module(root.path(), "6.1", "nf_tables"));
        make("lib/modules/6.1/modules.dep", "kernel/net/netfilter/nf-tables.ko.xz: a.ko\n");
        assert!(has_module(root.path(), "6.1", "nf_tables"));
        assert!(!has_module(root.path(), "6.2", "nf_tables"));
    }
}
