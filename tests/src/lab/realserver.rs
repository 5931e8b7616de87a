//! Real servers of power saving: their sleep, their alarm, their boot, and what the product is told of them.
//!
//! A real server sleeps when the lab's NIC (outside its control group) freezes it: the command that its agent runs only
//! asks for that, and is frozen with all the rest.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::daemons::{self, Part};
use super::lifecycle::this_program;
use super::machine::{self, Power};
use super::nodes::{Group, Kind, Spec, of};
use super::run::{now_ns, read, run, write};
use super::{config, dirs, hypervisor};

/// How often the NIC looks for requests.
const LOOK: Duration = Duration::from_millis(20);

/// Drawn awake and asleep: three of them make the thesis's 263 W, two of them asleep 96 W (table 4.3: 93 W).
const WATTS: (u32, u32) = (88, 4);

/// So long a host stays awake at least once it was woken: a night that begins before gathers one host after the other, in
/// more than one transition.
pub const AWAKE_FOR: Duration = Duration::from_secs(10);

fn request(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("sleep-request")
}

fn alarm(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("alarm")
}

fn deaf(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("deaf")
}

/// Whether its network card hears the magic packet; its alarm wakes it all the same.
#[must_use]
pub fn hears(node: &Spec) -> bool {
    !deaf(node).exists()
}

/// Makes its network card deaf to the magic packet, or heals it.
///
/// # Errors
/// The disk is full.
pub fn set_deaf(node: &Spec, is: bool) -> Result<()> {
    if is {
        return write(&deaf(node), "");
    }
    let _ = std::fs::remove_file(deaf(node));
    Ok(())
}

/// A real server's own way to sleep: asks for it, and returns once it is awake again.
///
/// # Errors
/// The request can't be written.
pub fn sleep(node: &Spec) -> Result<()> {
    write(&request(node), "")?;
    while request(node).exists() {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Has the NIC wake it after so many seconds; 0: not at all.
///
/// # Errors
/// The disk is full.
pub fn set_alarm(node: &Spec, seconds: u64) -> Result<()> {
    if seconds == 0 {
        let _ = std::fs::remove_file(alarm(node));
        return Ok(());
    }
    write(&alarm(node), (now_ns() / 1_000_000_000 + seconds).to_string())
}

/// What the NIC does for one real server: puts it to sleep when it asks for that, and wakes it by its alarm. Never ends.
pub fn keep(node: &'static Spec) -> ! {
    loop {
        std::thread::sleep(LOOK);
        if request(node).exists() {
            told(node, "asleep", machine::suspend(node));
            // Not before it stands still: whoever asked goes on when it is gone.
            let _ = std::fs::remove_file(request(node));
        }
        let due = read(&alarm(node)).ok().and_then(|at| at.trim().parse::<u64>().ok());
        if due.is_some_and(|at| at <= now_ns() / 1_000_000_000) {
            let _ = std::fs::remove_file(alarm(node));
            if machine::power(node) == Power::Asleep {
                told(node, "woken by its alarm", machine::wake(node).map(drop));
            }
        }
    }
}

fn told(node: &Spec, what: &str, done: Result<()>) {
    use std::io::Write as _;
    let _ = match done {
        Ok(()) => writeln!(std::io::stdout(), "{} {}: {what}", now_ns(), node.name),
        Err(error) => writeln!(std::io::stderr(), "{}: not {what}: {error:#}", node.name),
    };
}

/// Starts what runs on a real server that was off. Its guests stay off.
///
/// # Errors
/// libvirtd does not answer.
pub fn boot(node: &'static Spec) -> Result<()> {
    // What a loss of power leaves behind of namespaces that stay.
    let _ = run(&["ip", "netns", "exec", &node.namespace(), "nft", "flush", "ruleset"]);
    let _ = std::fs::remove_dir_all(hypervisor::private(node, "/run/libvirt"));
    for left in [request(node), alarm(node)] {
        let _ = std::fs::remove_file(left);
    }
    hypervisor::up(node)?;
    let agent = Part::Agent(node);
    if agent.available() { daemons::start(agent) } else { Ok(()) }
}

/// Of its agent.toml.
#[must_use]
pub fn power_toml(node: &Spec) -> String {
    let (program, name) = (this_program().unwrap_or_default(), node.name);
    // The lab's NIC always listens, hence nothing to arm.
    format!(
        "\n[power]\nsuspend = [\"{program}\", \"sleep\", \"{name}\"]\n\
         alarm = [\"{program}\", \"alarm\", \"{name}\", \"{{seconds}}\"]\narm_wake = [\"true\"]\n"
    )
}

/// Of cluster.toml: virtual servers, real servers, groups. Empty where there are none.
#[must_use]
pub fn cluster_toml() -> String {
    let mut toml = String::new();
    let mut groups: Vec<&'static Group> = Vec::new();
    for server in of(Kind::VirtualServer) {
        let (Some(vip), Some(group)) = (server.vip(), server.group) else { continue };
        let Some(double) = of(Kind::Domain).find(|double| double.name == group.double) else { continue };
        let (name, wait, service) = (server.name, config::reboot_wait(server).as_secs(), server.service.name());
        let _ = write!(
            toml,
            "\n[[target]]\nname = \"{name}\"\nagent = \"{name}\"\nvm = {{ domain = \"{name}\", host = \"{}\" }}\naddress = \"{}\"\n\
             vips = [\"{vip}\"]\nbackup = {{ agent = \"{}\", domain = \"{}\", address = \"{}\"{} }}\n\
             failback = \"auto\"\nhealthy_for = \"3s\"\nreboot_wait = \"{wait}s\"\nstart_wait = \"{wait}s\"\n\
             budget = {{ restarts = 1000, reboots = 1000, takeovers = 1000 }}\n\n\
             [[target.service]]\nname = \"{service}\"\nprobe = \"{service}\"\nport = {}\n\
             # Emulated, on processors that several share: an answer may take its time.\ntimeout = \"2s\"\n",
            server.host,
            server.ip(),
            double.host,
            double.name,
            double.ip(),
            if double.has_inner_agent() { format!(", guest = \"{}\"", double.name) } else { String::new() },
            server.service.port(),
        );
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    if groups.is_empty() {
        return toml;
    }
    for host in of(Kind::RealServer) {
        let (awake, asleep) = WATTS;
        let _ = write!(
            toml,
            "\n[[host]]\nagent = \"{}\"\nwatts = {{ awake = {awake}, asleep = {asleep} }}\nwakes_in = \"2s\"\n",
            host.name
        );
    }
    for group in groups {
        let members: Vec<_> =
            of(Kind::VirtualServer).filter(|server| server.group == Some(group)).map(|server| server.name).collect();
        // Emulated processors share few real ones: one that is kept busy shows little more than 50 %, and one that
        // answers ten clients a second nearly 20 %.
        let _ = write!(
            toml,
            "\n[[group]]\nname = \"{}\"\nmembers = {members:?}\nbase = \"rs1\"\nrated = 1000\n\
             thresholds = {{ cpu = {{ light = 25, moderate1 = 35, moderate2 = 98, heavy = 99 }} }}\n",
            group.name
        );
    }
    // Minutes of a night in seconds. Nothing wears out here.
    let _ = write!(
        toml,
        "\n[pss]\ninterval = \"1s\"\nfresh = \"5s\"\nawake_for = \"{}s\"\nsleeps_a_day = 1000\nhost_memory = 256\n\
         backoff = \"10s\"\npatience = \"1m\"\nalarm = \"1h\"\nmigration_bandwidth = 500\n",
        AWAKE_FOR.as_secs(),
    );
    toml
}
