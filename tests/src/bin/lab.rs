//! `kage-lab`: brings the lab up, breaks it on purpose, and tells what clients saw.
//! Call it through `tests/lab`, which installs and builds what is needed.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use kage_tests::lab::config::Profile;
use kage_tests::lab::daemons::{self, Part};
use kage_tests::lab::drill::{Drill, Fault, Return};
use kage_tests::lab::load::Level;
use kage_tests::lab::network::Cut;
use kage_tests::lab::nodes::{self, Kind, Layout, Service};
use kage_tests::lab::power::Condition;
use kage_tests::lab::trouble::Trouble;
use kage_tests::lab::{
    capture, client, console, hypervisor, image, lifecycle, load, machine, network, nic, realserver, spawn, speech,
    storage,
};

#[derive(Parser)]
#[command(name = "kage-lab", about = "Kagemusha's lab: namespaces, QEMU guests, a real libvirt")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the lab up
    Up {
        /// The product's timings: normal, fast or thesis
        #[arg(long, default_value = "normal")]
        profile: Profile,
        /// Who is in it: small (one target), msbs (Mail and Web, Debian, data on a file server), or pss (three real servers
        /// with six virtual ones)
        #[arg(long, default_value = "small")]
        layout: Layout,
    },
    /// Remove the lab; results of drills stay
    Down,
    /// Show who is up, cut off, and serving
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// A shell on a node: in its namespaces, or inside a guest with --inside
    Shell {
        /// The node
        node: String,
    },
    /// Run a command as root inside a guest, over its serial line
    Exec {
        /// The guest
        guest: String,
        /// Seconds to wait
        #[arg(long, default_value_t = 10)]
        limit: u64,
        /// The command, for sh
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// The power switch of a machine
    Power {
        /// What to do
        action: PowerAction,
        /// The machine
        machine: String,
    },
    /// Sever a node: full, from, to, coordinator, loss:PERCENT
    Cut {
        /// What to sever, seen from the node
        kind: Cut,
        /// The node
        node: String,
    },
    /// Join what was severed
    Heal {
        /// The node
        node: String,
    },
    /// Control a process of the product: sif, coordinator, or the agent of a node
    Part {
        /// What to do
        action: PartAction,
        /// sif, coordinator, or the node whose agent is meant
        part: String,
        /// For stall: milliseconds
        #[arg(long, default_value_t = 3000)]
        ms: u64,
    },
    /// Run virsh on a hypervisor
    Virsh {
        /// The hypervisor
        node: String,
        /// virsh's own arguments
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Layout pss: how much a service group has to do. It is done by its first member, until it is changed
    Load {
        /// The group: mail, web, ftp, or all
        group: String,
        /// light (nothing but what clients ask), moderate (a processor busy half of the time) or heavy (all of it)
        level: Level,
    },
    /// Inject a fault and measure what clients see
    Drill {
        /// The fault
        fault: FaultName,
        /// The machine; for a standard trouble also `both`
        #[arg(long, default_value = "mail")]
        target: String,
        /// How often
        #[arg(long, default_value_t = 1)]
        runs: u32,
        /// The profile the lab must have been brought up with; it is brought up if it is down
        #[arg(long)]
        profile: Option<Profile>,
        /// For stall: milliseconds; for loss: percent
        #[arg(long)]
        amount: Option<u64>,
        /// How the service comes home: by itself, asked with kagectl, or by the drill's own hand
        #[arg(long, default_value = "auto")]
        back: ReturnName,
        /// Milliseconds between the double's first service and the healing
        #[arg(long, default_value_t = 2000)]
        hold: u64,
        /// Seconds that service may take to come back, and to come home
        #[arg(long, default_value_t = 60)]
        limit: u64,
        /// Layout pss: the thesis's troubles of virtual and real servers, in this condition of all groups: moderate or light.
        /// They strike the base server, or the virtual server on it that stays when its group is gathered
        #[arg(long)]
        condition: Option<Condition>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Layout msbs: mails sent around a cut with the storage reachable, each delivered exactly once
    Mails {
        /// How many
        #[arg(long, default_value_t = 200)]
        count: u32,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Layout msbs: a file uploaded before the machine loses power is there afterwards
    Upload,
    /// Run every scenario once, as tests/all does
    Suite {
        /// Only those whose name contains this
        only: Option<String>,
    },
    /// Replace every part of an older version by this tree's, one at a time, under load and with the versions mixed
    Upgrade {
        /// The older version, as git knows it: built by tests/lab into the cache
        #[arg(long, value_name = "REVISION")]
        from: String,
    },
    /// The main job, to be watched
    Demo {
        /// The product's timings
        #[arg(long, default_value = "normal")]
        profile: Profile,
    },
    /// Measure for long, into docs/measurements; goes on where it was stopped
    Campaign {
        /// Which: lease, msbs
        name: String,
        /// Runs of each [default: lease 10, msbs 5]
        #[arg(long)]
        runs: Option<u32>,
        /// msbs: only these profiles
        #[arg(long)]
        profile: Vec<Profile>,
        /// msbs: only a run with doubles that have slept for so many minutes
        #[arg(long, value_name = "MINUTES")]
        asleep: Option<u64>,
        /// Only write the table again
        #[arg(long)]
        table: bool,
    },
    /// Measure beside others, into docs/measurements; goes on where it was stopped
    Bench {
        /// Which: failover
        name: String,
        /// Runs of each
        #[arg(long, default_value_t = 5)]
        runs: u32,
        /// Only those whose name has all these words, like `pacemaker-tuned cut`
        #[arg(long)]
        only: Option<String>,
        /// Only write the table again
        #[arg(long)]
        table: bool,
    },
    /// Where results are
    Where,
    /// Say who spoke as an address in a capture of the lab's switch
    Analyse {
        /// The capture
        file: PathBuf,
        /// The address
        #[arg(long, default_value = "10.77.0.100")]
        vip: Ipv4Addr,
    },
    /// Make an image outside a run of the lab
    Image {
        /// Which: `base` (the usual guest) or `debian`
        which: String,
    },
    /// (internal) The network cards of machines that are off
    #[command(hide = true)]
    Nic,
    /// (internal) A real server's own way to sleep: ask the lab, and be frozen
    #[command(hide = true)]
    Sleep { host: String },
    /// (internal) A real server's alarm: wakes it after so many seconds; 0 clears it
    #[command(hide = true)]
    Alarm { host: String, seconds: u64 },
    /// (internal) Run a program as its children's reaper: what daemons leave behind is taken at once
    #[command(hide = true)]
    Reap {
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// (internal) Send the magic packet from here
    #[command(hide = true)]
    Magic { machine: String },
    /// (internal) Ask an address once who serves
    #[command(hide = true)]
    Ask { address: Ipv4Addr, service: Service },
    /// (internal) Send mails, each until it is accepted
    #[command(hide = true)]
    SendMails {
        #[arg(long)]
        vip: Ipv4Addr,
        #[arg(long)]
        run: String,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        out: PathBuf,
        #[arg(long, default_value_t = 150)]
        every_ms: u64,
    },
    /// (internal) Ask an address over and over
    #[command(hide = true)]
    Client {
        #[arg(long)]
        vip: Ipv4Addr,
        /// Its port, if not the service's usual one
        #[arg(long)]
        port: Option<u16>,
        #[arg(long)]
        service: Service,
        #[arg(long)]
        out: PathBuf,
        #[arg(long, default_value_t = 20)]
        interval_ms: u64,
        #[arg(long, default_value_t = 150)]
        timeout_ms: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum PowerAction {
    /// Boot a machine that is off
    On,
    /// Pull the plug
    Off,
    /// Hang it
    Freeze,
    /// End a hang
    Thaw,
    /// Put it to sleep (S3)
    Suspend,
    /// What a magic packet does
    Wake,
    /// Send the real magic packet from the hypervisor
    Magic,
    /// Print off, on, frozen or asleep
    Status,
}

#[derive(Clone, Copy, ValueEnum)]
enum PartAction {
    Start,
    Stop,
    Kill,
    Stall,
}

#[derive(Clone, Copy, ValueEnum)]
enum FaultName {
    Crash,
    Hang,
    Cut,
    CutFrom,
    CutTo,
    CutCoordinator,
    Loss,
    Stall,
    Service,
    Shutdown,
    Reboot,
    /// The thesis: service stopped, its restart cures it
    #[value(name = "St1")]
    St1,
    /// The thesis: service stopped, only a reboot of the server cures it
    #[value(name = "St2")]
    St2,
    /// The thesis: server rebooted on purpose
    #[value(name = "Nt1")]
    Nt1,
    /// The thesis: server shut down
    #[value(name = "Nt2")]
    Nt2,
    /// With --condition: the base server rebooted on purpose
    #[value(name = "RsNt1")]
    RsNt1,
    /// With --condition: the base server shut down; it has its power again after a while
    #[value(name = "RsNt2")]
    RsNt2,
    /// With --condition: the base server's power fails without notice; it has it again after a while
    #[value(name = "RsLost")]
    RsLost,
}

/// The thesis's standard troubles are measured in another way than single faults.
const fn trouble(name: FaultName) -> Option<Trouble> {
    match name {
        FaultName::St1 => Some(Trouble::St1),
        FaultName::St2 => Some(Trouble::St2),
        FaultName::Nt1 => Some(Trouble::Nt1),
        FaultName::Nt2 => Some(Trouble::Nt2),
        FaultName::Crash
        | FaultName::Hang
        | FaultName::Cut
        | FaultName::CutFrom
        | FaultName::CutTo
        | FaultName::CutCoordinator
        | FaultName::Loss
        | FaultName::Stall
        | FaultName::Service
        | FaultName::Shutdown
        | FaultName::Reboot
        | FaultName::RsNt1
        | FaultName::RsNt2
        | FaultName::RsLost => None,
    }
}

/// The same troubles where power saving is at work: of virtual servers, and of real ones.
fn in_condition(name: FaultName, condition: Condition, runs: u32, json: bool) -> Result<ExitCode> {
    let word = name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let case = word.parse()?;
    let mut found = Vec::new();
    for number in 1..=runs {
        let run = kage_tests::lab::standard::run(case, condition, number, &mut note)?;
        note(&run.line());
        found.push(run);
    }
    if json {
        print(&serde_json::to_string_pretty(&found)?);
    }
    Ok(if found.iter().all(|run| run.problems.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn standard(trouble: Trouble, target: &str, runs: u32, json: bool) -> Result<ExitCode> {
    let targets: Vec<_> = match target {
        "both" => nodes::of(Kind::Machine).collect(),
        one => vec![nodes::machine(one)?],
    };
    let profile = lifecycle::memory()?.profile;
    let mut found = Vec::new();
    for number in 1..=runs {
        let run = kage_tests::lab::trouble::run(profile, &vec![trouble; targets.len()], &targets, number)?;
        note(&run.line(number));
        found.push(run);
    }
    if json {
        print(&serde_json::to_string_pretty(&found)?);
    }
    Ok(if found.iter().all(|run| run.problems.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Clone, Copy, ValueEnum)]
enum ReturnName {
    Auto,
    Ask,
    ByHand,
}

fn fault(name: FaultName, amount: Option<u64>) -> Result<Fault> {
    Ok(match name {
        FaultName::Crash => Fault::Crash,
        FaultName::Hang => Fault::Hang,
        FaultName::Cut => Fault::Cut(Cut::Full),
        FaultName::CutFrom => Fault::Cut(Cut::FromTarget),
        FaultName::CutTo => Fault::Cut(Cut::ToTarget),
        FaultName::CutCoordinator => Fault::Cut(Cut::Coordinator),
        FaultName::Loss => Fault::Cut(Cut::Loss(
            u8::try_from(amount.unwrap_or(5))
                .ok()
                .filter(|&percent| percent <= 100)
                .context("loss is 0 to 100 percent")?,
        )),
        FaultName::Stall => Fault::Stall(Duration::from_millis(amount.unwrap_or(3000))),
        FaultName::Service => Fault::Service,
        FaultName::Shutdown => Fault::Shutdown,
        FaultName::Reboot => Fault::Reboot,
        FaultName::St1 | FaultName::St2 | FaultName::Nt1 | FaultName::Nt2 => {
            bail!("a standard trouble is no single fault")
        }
        FaultName::RsNt1 | FaultName::RsNt2 | FaultName::RsLost => {
            bail!("a real server's trouble needs --condition moderate or light")
        }
    })
}

fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn main() -> ExitCode {
    match act(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            note(&format!("kage-lab: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up { profile, layout } => lifecycle::up(layout, profile, &mut note)?,
        Command::Down => lifecycle::down()?,
        Command::Status { json } => {
            let status = lifecycle::status()?;
            print(&if json { serde_json::to_string_pretty(&status)? } else { status.table() });
        }
        Command::Shell { node } => shell(&node)?,
        Command::Exec { guest, limit, command } => {
            let answer = console::exec(nodes::find(&guest)?, &command.join(" "), Duration::from_secs(limit))?;
            print(&answer.output);
            return Ok(ExitCode::from(u8::try_from(answer.status).unwrap_or(1)));
        }
        Command::Power { action, machine } => power(action, &machine)?,
        Command::Cut { kind, node } => network::cut(nodes::find(&node)?, kind)?,
        Command::Heal { node } => network::heal(nodes::find(&node)?)?,
        Command::Part { action, part, ms } => {
            let part = Part::find(&part)?;
            match action {
                PartAction::Start => daemons::start(part)?,
                PartAction::Stop => daemons::stop(part)?,
                PartAction::Kill => daemons::kill(part)?,
                PartAction::Stall => {
                    daemons::stall(part, Duration::from_millis(ms))?;
                    std::thread::sleep(Duration::from_millis(ms + 100));
                }
            }
        }
        Command::Virsh { node, arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            print(&hypervisor::virsh(nodes::find(&node)?, &arguments)?);
        }
        Command::Load { group, level } => load::set(Some(group.as_str()).filter(|group| *group != "all"), level)?,
        Command::Drill { fault: name, target, runs, profile, amount, back, hold, limit, condition, json } => {
            if let Some(condition) = condition {
                return in_condition(name, condition, runs, json);
            }
            if let Some(trouble) = trouble(name) {
                prepare(profile)?;
                return standard(trouble, &target, runs, json);
            }
            let title = name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let mut drill = Drill::new(&title, fault(name, amount)?, nodes::machine(&target)?);
            drill.runs = runs;
            drill.hold = Duration::from_millis(hold);
            drill.limit = Duration::from_secs(limit);
            drill.back = match back {
                ReturnName::Auto => Return::Auto,
                ReturnName::Ask => Return::Ask,
                ReturnName::ByHand => Return::ByHand,
            };
            prepare(profile)?;
            let report = drill.run(&mut note)?;
            print(&if json { report.json()? } else { report.summary() });
            if !report.good() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Suite { only } => {
            if !kage_tests::lab::suite::run(only.as_deref(), &mut note)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Upgrade { from } => {
            note(&format!("from {from}"));
            kage_tests::lab::storms::from_older(&mut note)?;
        }
        Command::Demo { profile } => {
            if !kage_tests::lab::demo::run(profile, &mut print)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Campaign { name, runs, profile, asleep, table } => {
            use kage_tests::lab::{campaign, msbs, pss};
            let document = match name.as_str() {
                "lease" => {
                    if !table {
                        campaign::lease(runs.unwrap_or(10), &mut note)?;
                    }
                    campaign::document(&name)?
                }
                "msbs" => {
                    if let Some(minutes) = asleep {
                        msbs::asleep(minutes, profile.first().copied().unwrap_or_default(), &mut note)?;
                    } else if !table {
                        msbs::measure(runs.unwrap_or(5), &profile, &mut note)?;
                    }
                    msbs::document()?
                }
                "pss" => {
                    if !table {
                        pss::measure(runs.unwrap_or(5), &mut note)?;
                    }
                    pss::document()?
                }
                other => bail!("`{other}` is no campaign; campaigns are lease, msbs, pss"),
            };
            print(&document.to_string_lossy());
        }
        Command::Bench { name, runs, only, table } => {
            if name != "failover" {
                bail!("`{name}` is no measurement beside others; there is failover");
            }
            if !table {
                kage_tests::bench::failover::failover(runs, only.as_deref(), &mut note)?;
            }
            print(&kage_tests::bench::failover::document()?.to_string_lossy());
        }
        Command::Mails { count, json } => {
            let found = storage::mails(nodes::machine("mail")?, count, &mut note)?;
            print(&if json { serde_json::to_string_pretty(&found)? } else { found.line() });
            if !found.problems.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Upload => print(&storage::upload(nodes::machine("web")?, &mut note)?),
        Command::SendMails { vip, run, count, out, every_ms } => {
            storage::send_mails(vip, &run, count, Duration::from_millis(every_ms), &out)?;
        }
        Command::Where => print(&kage_tests::lab::dirs::lab().join("results").to_string_lossy()),
        Command::Analyse { file, vip } => {
            print(&serde_json::to_string_pretty(&speech::analyse(&capture::load(&file)?, vip))?);
        }
        Command::Image { which } => make_image(&which)?,
        Command::Nic => nic::serve()?,
        Command::Sleep { host } => realserver::sleep(nodes::find(&host)?)?,
        Command::Alarm { host, seconds } => realserver::set_alarm(nodes::find(&host)?, seconds)?,
        Command::Reap { command } => spawn::reap(&command)?,
        Command::Magic { machine } => nic::send(nodes::machine(&machine)?)?,
        Command::Ask { address, service } => {
            let server = client::ask((address, service.port()).into(), service, Duration::from_secs(1));
            print(&server.with_context(|| format!("nobody answers on {address}"))?);
        }
        Command::Client { vip, port, service, out, interval_ms, timeout_ms } => {
            let address = (vip, port.unwrap_or_else(|| service.port())).into();
            client::poll(
                address,
                service,
                Duration::from_millis(interval_ms),
                Duration::from_millis(timeout_ms),
                &out,
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A drill wants the lab up, with its profile.
fn prepare(profile: Option<Profile>) -> Result<()> {
    match (lifecycle::memory(), profile) {
        (Ok(memory), Some(wanted)) if memory.profile != wanted => {
            lifecycle::down()?;
            lifecycle::up(memory.layout, wanted, &mut note)
        }
        (Ok(_), _) => Ok(()),
        (Err(_), wanted) => lifecycle::up(Layout::Small, wanted.unwrap_or_default(), &mut note),
    }
}

fn power(action: PowerAction, name: &str) -> Result<()> {
    let node = nodes::machine(name)?;
    match action {
        PowerAction::On => machine::power_on(node),
        PowerAction::Off => machine::power_off(node),
        PowerAction::Freeze => machine::freeze(node),
        PowerAction::Thaw => machine::thaw(node),
        PowerAction::Suspend => machine::suspend(node),
        PowerAction::Wake => machine::wake(node).map(drop),
        PowerAction::Magic => nic::call(node),
        PowerAction::Status => {
            print(&format!("{:?}", machine::power(node)).to_lowercase());
            Ok(())
        }
    }
}

fn make_image(which: &str) -> Result<()> {
    match which {
        "base" => print(&image::base(&image::kernel()?)?.to_string_lossy()),
        "debian" => print(&kage_tests::lab::debian::image()?.to_string_lossy()),
        other => bail!("`{other}` is no image; images are base, debian"),
    }
    Ok(())
}

fn shell(name: &str) -> Result<()> {
    let node = nodes::find(name)?;
    if matches!(node.kind, Kind::Machine | Kind::Domain | Kind::VirtualServer) {
        note(&format!(
            "{name} is a guest. One command: tests/lab exec {name} -- COMMAND\nIts console: {}\nIts own shell: socat -,raw,echo=0 unix:{}",
            machine::console_log(node).display(),
            machine::shell_socket(node).display(),
        ));
        return Ok(());
    }
    let words = spawn::enter(node)?;
    let error =
        std::process::Command::new(&words[0]).args(&words[1..]).arg("bash").env("PS1", format!("{name}# ")).exec();
    Err(error).context("cannot start nsenter (util-linux)")
}
