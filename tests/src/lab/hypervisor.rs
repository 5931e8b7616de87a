//! A libvirt of its own for each hypervisor, and the domains on it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image;
use super::machine::{Power, command_line, console_log, initramfs_path, power, shell_path, shell_socket};
use super::nodes::{Kind, Spec, System, find, of};
use super::run::{read, run, succeeds, text, wait_until, write};
use super::spawn::{Daemon, HOLDER, run_in};
use super::{debian, dirs, network};

/// Folders that libvirt knows by fixed paths: each hypervisor sees its own there.
const PRIVATE: &[&str] =
    &["/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/etc/libvirt", "/var/log/libvirt"];

/// The libvirtd of a hypervisor.
#[must_use]
pub fn libvirtd(node: &'static Spec) -> Daemon {
    Daemon::new(node, "libvirtd")
}

pub(super) fn private(node: &Spec, path: &str) -> std::path::PathBuf {
    dirs::node(node.name).join("root").join(path.trim_start_matches('/'))
}

/// Makes the namespaces of a hypervisor and starts its libvirtd.
///
/// # Errors
/// libvirtd does not answer within 20 s.
pub fn up(node: &'static Spec) -> Result<()> {
    let number = node.host_number;
    write(
        &private(node, "/etc/libvirt").join("libvirtd.conf"),
        format!(
            "host_uuid = \"00000000-0000-4000-8000-0000000000{number:02x}\"\n\
             listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\nlisten_addr = \"{}\"\n\
             unix_sock_group = \"root\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n",
            node.ip()
        ),
    )?;
    write(
        &private(node, "/etc/libvirt").join("qemu.conf"),
        format!(
            "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\n\
             namespaces = []\nstdio_handler = \"file\"\nmigration_address = \"{0}\"\nmigration_host = \"{0}\"\n",
            node.ip()
        ),
    )?;
    let mut script = format!("hostname {}\n", node.name);
    for path in PRIVATE {
        let own = text(&private(node, path));
        script.push_str(&format!("mkdir -p {own} {path}; mount --bind {own} {path}\n"));
    }
    // A libvirt that finds the real machine's systemd would register its guests there.
    script.push_str("if [ -d /run/dbus ]; then mount -t tmpfs tmpfs /run/dbus; fi\n");
    script.push_str("echo ready; exec sleep infinity\n");
    let words =
        ["ip", "netns", "exec", &node.namespace(), "unshare", "-m", "-u", "sh", "-ec", &script].map(str::to_owned);
    let holder = Daemon::new(node, HOLDER);
    if holder.pid().is_none() {
        // What it said before the power went is no sign that its mounts are there now.
        let _ = std::fs::remove_file(holder.log());
    }
    holder.start_bare(&words)?;
    wait_until(Duration::from_secs(5), "the hypervisor's namespaces are ready", || {
        Ok(std::fs::read_to_string(holder.log()).is_ok_and(|log| log.contains("ready")))
    })
    .with_context(|| holder.tail())?;
    start_libvirtd(node)
}

/// Starts the hypervisor's libvirtd and waits until it answers.
///
/// # Errors
/// It does not within 20 s.
pub fn start_libvirtd(node: &'static Spec) -> Result<()> {
    let daemon = libvirtd(node);
    let program = super::lifecycle::this_program()?;
    daemon.start(&[
        &program,
        "reap",
        "--",
        "libvirtd",
        "-l",
        "-f",
        "/etc/libvirt/libvirtd.conf",
        "-p",
        "/run/libvirt/libvirtd.pid",
    ])?;
    wait_until(Duration::from_secs(20), &format!("libvirtd of {} answers", node.name), || {
        Ok(virsh(node, &["uri"]).is_ok())
    })
    .with_context(|| daemon.tail())?;
    Ok(())
}

/// Runs virsh on a hypervisor.
///
/// # Errors
/// libvirtd does not answer, or refuses.
pub fn virsh(node: &Spec, arguments: &[&str]) -> Result<String> {
    // A host may fall asleep amid the question: whoever asks is not to wait for the morning.
    let mut argv = vec!["timeout", "60", "virsh", "-q", "-c", "qemu:///system"];
    argv.extend(arguments);
    Ok(run_in(node, &argv)?.trim().to_owned())
}

/// libvirt's word for the state of a domain: `running`, `paused`, `shut off` …
///
/// # Errors
/// libvirtd does not answer, or the domain is unknown.
pub fn state(domain: &Spec) -> Result<String> {
    virsh(find(domain.host)?, &["domstate", domain.name])
}

/// Where a virtual server runs or is paused, and libvirt's word for that; none: nowhere, or where nobody can ask.
#[must_use]
pub fn whereabouts(domain: &Spec) -> Option<(&'static Spec, String)> {
    of(Kind::RealServer).chain(of(Kind::Hypervisor)).filter(|host| power(host) == Power::On).find_map(|host| {
        let state = virsh(host, &["domstate", domain.name]).ok()?;
        (state != "shut off").then_some((host, state))
    })
}

/// All that is in the memory of a host, by libvirt itself, and libvirt's word for its state. Of one that sleeps what its
/// libvirt had written down before.
///
/// # Errors
/// libvirtd does not answer, or its files can't be read.
pub fn active(host: &Spec) -> Result<BTreeMap<String, String>> {
    if power(host) == Power::On {
        return Ok(listed(&virsh(host, &["list"])?));
    }
    let folder = private(host, "/run/libvirt/qemu");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.extension().is_none_or(|kind| kind != "xml") {
            continue;
        }
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let state = written(&read(&path)?).with_context(|| format!("{} has no state", path.display()))?;
        found.insert(name, state);
    }
    Ok(found)
}

/// Of `virsh list`: number, name, state.
fn listed(list: &str) -> BTreeMap<String, String> {
    let row = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let name = words.next()?.to_owned();
        Some((name, words.collect::<Vec<_>>().join(" ")))
    };
    list.lines().filter_map(row).collect()
}

/// Of the file in which libvirt keeps what runs: `<domstatus state='paused' ...`.
fn written(status: &str) -> Option<String> {
    let (_, rest) = status.split_once("<domstatus state='")?;
    rest.split_once('\'').map(|(state, _)| state.to_owned())
}

/// Makes the domain known to its hypervisor, a virtual server and its double to all of them, with a fresh image.
///
/// # Errors
/// libvirt refuses the definition.
pub fn define(domain: &Spec) -> Result<()> {
    let kernel = image::kernel()?;
    let kind = if image::accelerator(&kernel)? == "kvm" { "kvm" } else { "qemu" };
    let folder = dirs::node(domain.name);
    mend(domain)?;
    let disk = match domain.system {
        System::Busybox => String::new(),
        // The guest agent sets the clock of a double that slept for long.
        System::Debian => format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
      <target dev='vda' bus='virtio'/></disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
            text(&debian::overlay(domain)?)
        ),
    };
    let xml = format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <uuid>00000000-0000-4000-8000-0000000001{number:02x}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/>{cache}</features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br0'/>
      <target dev='tap-{name}'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='{console}' append='on'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{shell}'/><target port='1'/></serial>
    <memballoon model='none'/>
    {disk}
  </devices>
</domain>
",
        // libvirt counts it as the guest's memory, and it grows with all that the guest has ever run.
        cache = if kind == "qemu" { "<tcg><tb-cache unit='MiB'>128</tb-cache></tcg>" } else { "" },
        name = domain.name,
        number = domain.host_number,
        memory = domain.memory_mib(),
        kernel = text(&kernel.image),
        initrd = text(&initramfs_path(domain)),
        command_line = command_line(domain, true),
        mac = domain.mac_text(),
        console = text(&console_log(domain)),
        shell = if domain.group.is_some() { shell_path(domain) } else { text(&shell_socket(domain)) },
    );
    let file = folder.join("domain.xml");
    write(&file, xml)?;
    let home = find(domain.host)?;
    let others = of(Kind::RealServer).filter(|host| domain.group.is_some() && host.name != home.name);
    for host in std::iter::once(home).chain(others) {
        virsh(host, &["define", &text(&file)])?;
    }
    Ok(())
}

/// Kills the process of a domain, wherever it runs.
///
/// # Errors
/// It runs nowhere.
pub fn kill(domain: &Spec) -> Result<()> {
    let (host, _) = whereabouts(domain).with_context(|| format!("{} runs nowhere", domain.name))?;
    let pid = run_in(host, &["cat", &format!("/run/libvirt/qemu/{}.pid", domain.name)])?;
    run(&["kill", "-9", pid.trim()]).map(drop)
}

/// Spoils what a domain boots from: it never answers again, whoever starts it, until it is defined anew.
///
/// # Errors
/// The disk is full.
pub fn spoil(domain: &Spec) -> Result<()> {
    write(&initramfs_path(domain), "no initramfs")
}

/// Makes what a domain boots from, anew if it was spoiled. It boots from that when it is started next.
///
/// # Errors
/// The disk is full.
pub fn mend(domain: &Spec) -> Result<()> {
    let folder = dirs::node(domain.name);
    let agent = dirs::binary("kage-agent")
        .filter(|_| domain.has_inner_agent() && folder.join("etc/kagemusha/agent.toml").exists());
    image::initramfs(&image::kernel()?, agent.as_deref(), &folder.join("etc"), &initramfs_path(domain))
}

/// Starts a domain on this host as one would switch it off and on: whatever it does there now.
///
/// # Errors
/// libvirt refuses.
pub fn start_anew(domain: &Spec, host: &Spec) -> Result<()> {
    if active(host)?.contains_key(domain.name) {
        virsh(host, &["destroy", domain.name])?;
    }
    virsh(host, &["start", domain.name]).map(drop)
}

/// Starts a domain that is shut off, and returns at once.
///
/// # Errors
/// libvirt refuses.
pub fn start(domain: &Spec) -> Result<()> {
    virsh(find(domain.host)?, &["start", domain.name]).map(drop)
}

/// Boots a domain, waits until it answers on its own address, and suspends it: a double at rest.
///
/// # Errors
/// It does not answer within `limit`.
pub fn boot_and_suspend(domain: &Spec, limit: Duration) -> Result<Duration> {
    let host = find(domain.host)?;
    if state(domain)? == "shut off" {
        start(domain)?;
    } else if state(domain)? == "paused" {
        return Ok(Duration::ZERO);
    }
    let took = wait_until(limit, &format!("{} answers on {}", domain.name, domain.ip()), || {
        Ok(network::who_serves(host, domain.ip(), domain.service).as_deref() == Some(domain.name))
    })
    .with_context(|| {
        let log = std::fs::read_to_string(console_log(domain)).unwrap_or_default();
        format!("the last words of {}: {}", domain.name, log.lines().last().unwrap_or("none"))
    })?;
    virsh(host, &["suspend", domain.name])?;
    Ok(took)
}

/// Stops every hypervisor's guests and daemons, and removes what libvirt's paths left outside.
///
/// # Errors
/// Something survives.
pub fn down() -> Result<()> {
    for node in of(Kind::Hypervisor).chain(of(Kind::RealServer)) {
        super::cgroup::Cgroup::of(node.name).kill()?;
    }
    // Mount points we may have made; rmdir refuses those in use by a real libvirt.
    if succeeds(&["test", "-d", "/run/libvirt"]) {
        let _ = run(&["rmdir", "/run/libvirt"]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_has_in_memory_is_read_from_both_sources() {
        let list = " 1    mail1    running\n 12   web2   in shutdown\n\n";
        let found = listed(list);
        assert_eq!(found.get("mail1").map(String::as_str), Some("running"));
        assert_eq!(found.get("web2").map(String::as_str), Some("in shutdown"));
        assert_eq!(found.len(), 2);
        let status =
            "<!--\nWARNING: AUTO-GENERATED\n-->\n\n<domstatus state='paused' reason='user' pid='77'>\n  <taint/>";
        assert_eq!(written(status).as_deref(), Some("paused"));
        assert_eq!(written("<domain type='qemu'>"), None);
    }
}
