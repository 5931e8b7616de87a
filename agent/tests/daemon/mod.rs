//! A private libvirtd.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use virt::{connect::Connect, domain::Domain};

const PROGRAMS: [&str; 3] = ["/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64", "/usr/bin/unshare"];

/// Directories of libvirt, and what they are called in ours.
const DIRECTORIES: [(&str, &str); 5] = [
    ("run", "/run/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("etc", "/etc/libvirt"),
    ("log", "/var/log/libvirt"),
];

/// Is something missing? Says what.
pub fn skip() -> bool {
    let missing = PROGRAMS.iter().find(|program| !Path::new(program).exists());
    let root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    match missing {
        Some(program) => println!("skipped: no {program}"),
        None if !root => println!("skipped: needs root"),
        None => return false,
    }
    true
}

/// How much memory a domain gets.
#[derive(Clone, Copy)]
pub enum Memory {
    /// 32 MiB
    Small,
    /// So much that even its zero pages take seconds at 1 MiB/s.
    Large,
}

pub struct Daemon {
    directory: tempfile::TempDir,
    name: String,
    child: Child,
}

impl Daemon {
    pub fn start(name: &str) -> Self {
        // Sockets' paths must be short.
        let directory = tempfile::Builder::new().prefix("kage-vm-").tempdir_in("/tmp").expect("directory");
        for (ours, _) in DIRECTORIES {
            fs::create_dir(directory.path().join(ours)).expect("directory");
        }
        let etc = directory.path().join("etc");
        let qemu = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\n\
            namespaces = []\nstdio_handler = \"file\"\nremember_owner = 0\n";
        fs::write(etc.join("qemu.conf"), qemu).expect("write");
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("uuid");
        let libvirtd = format!("host_uuid = \"{}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n", uuid.trim());
        fs::write(etc.join("libvirtd.conf"), libvirtd).expect("write");
        let child = launch(directory.path(), name);
        let daemon = Self { directory, name: name.to_owned(), child };
        daemon.wait();
        daemon
    }

    pub fn restart(&mut self) {
        let _ = self.child.wait();
        self.child = launch(self.directory.path(), &self.name);
        self.wait();
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Of libvirtd.
    pub fn signal(&self, signal: &str) {
        kill(&self.child.id().to_string(), signal);
    }

    /// Of the domain's QEMU.
    pub fn signal_domain(&self, name: &str, signal: &str) {
        let path = self.directory.path().join("run/qemu").join(format!("{name}.pid"));
        kill(fs::read_to_string(path).expect("pid").trim(), signal);
    }

    pub fn define(&self, name: &str, memory: Memory) {
        let mib = match memory {
            Memory::Small => 32,
            Memory::Large => 4096,
        };
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{mib}</memory><vcpu>1</vcpu>\
            <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
            <cpu mode='custom'><model>qemu64</model></cpu><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
            <interface type='user'><mac address='52:54:00:00:00:01'/><model type='e1000'/></interface>\
            <memballoon model='none'/></devices></domain>"
        );
        let mut connect = Connect::open(Some(&self.uri())).expect("connect");
        Domain::define_xml(&connect, &xml).expect("define");
        connect.close().expect("close");
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run/libvirt-sock")
    }

    fn wait(&self) {
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let log = fs::read_to_string(self.directory.path().join("log/daemon")).unwrap_or_default();
            assert!(begin.elapsed() < Duration::from_secs(30), "libvirtd does not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for entry in fs::read_dir(self.directory.path().join("run/qemu")).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "pid")
                && let Ok(pid) = fs::read_to_string(entry.path())
            {
                kill(pid.trim(), "KILL");
            }
        }
    }
}

fn launch(directory: &Path, name: &str) -> Child {
    let mut script = String::from("set -e; mount --make-rprivate /; ");
    for (ours, theirs) in DIRECTORIES {
        script += &format!("mkdir -p {theirs}; mount --bind {}/{ours} {theirs}; ", directory.display());
    }
    // Each is a host of its own: libvirt refuses to migrate to the same host name.
    script += &format!("hostname {name}; exec libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirt/kage.pid");
    let log = fs::File::create(directory.join("log/daemon")).expect("log");
    Command::new("unshare")
        .args(["-m", "-u", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("unshare")
}

fn kill(pid: &str, signal: &str) {
    let _ = Command::new("kill").args([&format!("-{signal}"), pid]).status();
}
