//! Guests that stand for physical machines: their power switch, their disk, their console.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::cgroup::Cgroup;
use super::nodes::{Kind, Spec, System};
use super::run::{run, text, wait_until, write};
use super::spawn::Daemon;
use super::{debian, dirs, hypervisor, image, network, realserver};

/// Where a machine's power stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// No process: S5, or unplugged.
    Off,
    /// Running.
    On,
    /// Stopped where it stood (a hang): its link is up, nothing answers.
    Hung,
    /// Asleep (S3): its link is down, the magic packet wakes it.
    Asleep,
}

/// Kernel parameters of a guest. `static_vip` is carried from boot, for a double held by a guard
/// outside or for a lab without agents.
#[must_use]
pub fn command_line(node: &Spec, static_vip: bool) -> String {
    let mut line = format!(
        "console=ttyS0 quiet nokaslr mitigations=off {} panic=1 KAGE_NAME={} KAGE_IP={}/24",
        match node.system {
            System::Busybox => "tsc=reliable",
            // Calibrated while the host is busy, an emulated TSC made a guest's clock run ten times too fast: its
            // watchdogs fired. Debian's takes longer to boot, on a host that boots four of them.
            System::Debian => "tsc=unstable clocksource=acpi_pm",
        },
        node.name,
        node.ip()
    );
    if node.system == System::Debian {
        line.push_str(&format!(" KAGE_ROOT=/dev/vda KAGE_SERVICE={} net.ifnames=0", node.service.name()));
    }
    let carried: Vec<String> = node.carried().iter().map(ToString::to_string).collect();
    if static_vip && !carried.is_empty() {
        line.push_str(&format!(" KAGE_VIP={}", carried.join(",")));
    }
    line
}

/// The socket of a guest's root shell, on its second serial line.
#[must_use]
pub fn shell_socket(node: &Spec) -> PathBuf {
    let host = if node.group.is_some() { hypervisor::whereabouts(node).map(|(host, _)| host) } else { None };
    host.map_or_else(|| dirs::node(node.name).join("shell.sock"), |host| hypervisor::private(host, &shell_path(node)))
}

/// The same as its host sees it, for a guest that moves: the host that it leaves would remove the socket from under the
/// one that it comes to.
pub(super) fn shell_path(node: &Spec) -> String {
    format!("/run/libvirt/shell-{}.sock", node.name)
}

/// The guest's first serial line: kernel, init and agent speak there.
#[must_use]
pub fn console_log(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("console.log")
}

/// The initramfs last built for a guest.
#[must_use]
pub fn initramfs_path(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("initramfs")
}

fn sleep_mark(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("asleep")
}

fn qemu(node: &'static Spec) -> Daemon {
    Daemon::new(node, "qemu")
}

/// Makes the disk that keeps the agent's state through a loss of power, if it is absent.
///
/// # Errors
/// mke2fs fails.
pub fn ensure_disk(node: &Spec) -> Result<PathBuf> {
    let disk = dirs::node(node.name).join("state.img");
    if !disk.exists() {
        write(&disk, [])?;
        run(&["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", &text(&disk), "16M"])?;
    }
    Ok(disk)
}

/// A reboot as a real machine does it, through its firmware, in a process of its own: an emulated processor that is reset
/// throws away its translations page by page, and takes a minute longer to boot than one that is switched on.
const REBOOTS: &str = "console=$1; shift
while \"$@\" && tail -n 1 \"$console\" | grep -q 'Restarting system'; do :; done";

/// Presses the power button of a machine that is off, and returns at once.
///
/// # Errors
/// It is on already, or its image can't be made.
pub fn power_on(node: &'static Spec) -> Result<()> {
    if !matches!(node.kind, Kind::Machine | Kind::RealServer) {
        bail!("{} is no machine", node.name);
    }
    if power(node) != Power::Off {
        bail!("{} is not off but {:?}; try `tests/lab power wake {}`", node.name, power(node), node.name);
    }
    if node.kind == Kind::RealServer {
        let _ = std::fs::remove_file(sleep_mark(node));
        network::set_link(node, true)?;
        return realserver::boot(node).with_context(|| format!("cannot power on {}", node.name));
    }
    let kernel = image::kernel()?;
    let accelerator = image::accelerator(&kernel)?;
    let agent = dirs::binary("kage-agent").filter(|_| dirs::node(node.name).join("etc/kagemusha/agent.toml").exists());
    let folder = dirs::node(node.name);
    if node.system == System::Debian && agent.is_some() {
        // As the product ships it.
        let unit = std::fs::read(dirs::project()?.join("deploy/kage-agent.service")).context("cannot read the unit")?;
        write(&folder.join("etc/kage-agent.service"), unit)?;
    }
    image::initramfs(&kernel, agent.as_deref(), &folder.join("etc"), &initramfs_path(node))?;
    // The small guest's disk keeps only the agent's state; Debian's is all it has.
    let (disk, format) = match node.system {
        System::Busybox => (ensure_disk(node)?, "raw"),
        System::Debian => (debian::overlay(node)?, "qcow2"),
    };
    let _ = std::fs::remove_file(sleep_mark(node));
    network::set_link(node, true)?;
    let port = node.port();
    let argv: Vec<String> = [
        "qemu-system-x86_64",
        "-name",
        node.name,
        "-M",
        "pc",
        "-accel",
        accelerator,
        "-cpu",
        if accelerator == "kvm" { "host" } else { "qemu64" },
        "-m",
        &node.memory_mib().to_string(),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-rtc",
        "base=utc,clock=host",
        "-kernel",
        &text(&kernel.image),
        "-initrd",
        &text(&initramfs_path(node)),
        "-append",
        &command_line(node, agent.is_none()),
        "-chardev",
        &format!("file,id=console,append=on,path={}", text(&console_log(node))),
        "-serial",
        "chardev:console",
        "-chardev",
        &format!("socket,id=shell,server=on,wait=off,path={}", text(&shell_socket(node))),
        "-serial",
        "chardev:shell",
        "-qmp",
        &format!("unix:{},server=on,wait=off", text(&folder.join("qmp.sock"))),
        "-netdev",
        &format!("tap,id=net,ifname={port},script=no,downscript=no"),
        "-device",
        &format!("virtio-net-pci,netdev=net,romfile=,mac={}", node.mac_text()),
        "-drive",
        &format!("if=none,id=disk,format={format},file={}", text(&disk)),
        "-device",
        "virtio-blk-pci,drive=disk",
    ]
    .iter()
    .map(|&word| word.to_owned())
    .collect();
    let console = text(&console_log(node));
    let mut words =
        if node.system == System::Debian { vec!["sh", "-c", REBOOTS, "machine", &console] } else { Vec::new() };
    words.extend(argv.iter().map(String::as_str));
    if node.system == System::Debian {
        words.push("-no-reboot");
    }
    qemu(node).start(&words).with_context(|| format!("cannot power on {}", node.name))
}

/// Where the machine's power stands.
#[must_use]
pub fn power(node: &Spec) -> Power {
    let group = Cgroup::of(node.name);
    if !group.alive() {
        Power::Off
    } else if sleep_mark(node).exists() {
        Power::Asleep
    } else if group.frozen() {
        Power::Hung
    } else {
        Power::On
    }
}

/// Pulls the plug.
///
/// # Errors
/// The processes survive.
pub fn power_off(node: &Spec) -> Result<()> {
    let _ = std::fs::remove_file(sleep_mark(node));
    if node.kind == Kind::RealServer {
        network::set_link(node, false)?;
    }
    Cgroup::of(node.name).kill()
}

/// Hangs the machine: every processor stops where it stands.
///
/// # Errors
/// It is off.
pub fn freeze(node: &Spec) -> Result<()> {
    Cgroup::of(node.name).freeze()
}

/// Ends a hang.
///
/// # Errors
/// It is off.
pub fn thaw(node: &Spec) -> Result<()> {
    Cgroup::of(node.name).thaw()
}

/// Puts the machine to sleep (S3): it stops, and its link goes down.
///
/// # Errors
/// It is not on.
pub fn suspend(node: &Spec) -> Result<()> {
    if power(node) != Power::On {
        bail!("{} is not on", node.name);
    }
    network::set_link(node, false)?;
    freeze(node)?;
    write(&sleep_mark(node), "")
}

/// What a magic packet does: boots a machine that is off, wakes one that sleeps,
/// and leaves one that runs or hangs alone.
///
/// # Errors
/// It can't be booted.
pub fn wake(node: &'static Spec) -> Result<Power> {
    let before = power(node);
    match before {
        Power::Off => power_on(node)?,
        Power::Asleep => {
            network::set_link(node, true)?;
            std::fs::remove_file(sleep_mark(node)).context("cannot remove the mark of sleep")?;
            thaw(node)?;
        }
        Power::On | Power::Hung => {}
    }
    Ok(before)
}

/// Waits until the machine's own address offers its service, asking from the client.
///
/// # Errors
/// It does not within `limit`; the message ends with its console's last lines.
pub fn wait_answering(node: &Spec, limit: Duration) -> Result<Duration> {
    let client = super::nodes::find("client")?;
    wait_until(limit, &format!("{} answers on {}", node.name, node.ip()), || {
        Ok(network::who_serves(client, node.ip(), node.service).as_deref() == Some(node.name))
    })
    .with_context(|| {
        let log = std::fs::read_to_string(console_log(node)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the last words of {}:\n{}", node.name, lines[lines.len().saturating_sub(10)..].join("\n"))
    })
}
