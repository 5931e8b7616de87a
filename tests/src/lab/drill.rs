//! Drills: a fault on purpose, what clients saw of it, and who spoke as the address.
//!
//! poll → capture → inject → wait for service → heal → wait until home → analyse.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::capture::Capture;
use super::client::{self, Sample};
use super::daemons::{self, Part};
use super::lifecycle::this_program;
use super::network::{self, Cut};
use super::nodes::{Service, Spec, double, find};
use super::report::{Report, RunReport};
use super::run::{now_ns, text, wait_until, write};
use super::spawn::Daemon;
use super::{console, dirs, hypervisor, machine, speech};

/// What is done to the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The plug is pulled.
    Crash,
    /// Every processor stops where it stands.
    Hang,
    /// The network is severed.
    Cut(Cut),
    /// The agent is stopped where it stands, for this long.
    Stall(Duration),
    /// The service's process is killed.
    Service,
    /// The guest shuts down cleanly.
    Shutdown,
    /// The guest restarts cleanly.
    Reboot,
}

/// How service is expected to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The double serves.
    Takeover,
    /// The target goes on, or is repaired in place.
    Stay,
    /// Either: only safety and service in the end are judged.
    Either,
}

/// How the service comes home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// The coordinator does it by itself.
    Auto,
    /// The drill asks with `kagectl failback`.
    Ask,
    /// The drill itself resumes, announces and suspends: a floor for the product's numbers.
    ByHand,
}

/// A drill.
#[derive(Clone, Debug)]
pub struct Drill {
    /// A name for the results.
    pub name: String,
    /// What is done.
    pub fault: Fault,
    /// To whom.
    pub target: &'static Spec,
    /// How often.
    pub runs: u32,
    /// What should come of it.
    pub expect: Expect,
    /// How the service comes home.
    pub back: Return,
    /// How long the double serves before the fault is healed.
    pub hold: Duration,
    /// How long service may take to come back, and to come home.
    pub limit: Duration,
    /// How long the client must have been served from home without a failure before a run ends:
    /// what healing breaks shows itself here.
    pub settle: Duration,
}

impl Drill {
    /// The drill of one fault with the usual expectation and limits.
    #[must_use]
    pub fn new(name: &str, fault: Fault, target: &'static Spec) -> Self {
        let expect = match fault {
            Fault::Crash
            | Fault::Hang
            | Fault::Shutdown
            | Fault::Cut(Cut::Full | Cut::FromTarget | Cut::ToTarget | Cut::AllButStorage) => Expect::Takeover,
            Fault::Cut(Cut::Coordinator) | Fault::Service => Expect::Stay,
            Fault::Cut(Cut::Loss(_)) | Fault::Stall(_) | Fault::Reboot => Expect::Either,
        };
        Self {
            name: name.to_owned(),
            fault,
            target,
            runs: 1,
            expect,
            back: Return::Auto,
            hold: Duration::from_secs(2),
            limit: Duration::from_secs(60),
            settle: Duration::from_secs(3),
        }
    }

    /// Runs the drill and writes captures, samples and reports below the lab's `results/`.
    ///
    /// # Errors
    /// The lab is down, the service is not at home at the start, or does not come back.
    pub fn run(&self, say: &mut dyn FnMut(&str)) -> Result<Report> {
        let folder = dirs::lab().join("results").join(format!("{}-{}", now_ns() / 1_000_000_000, self.name));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut report = Report::new(&self.name, self.target.name, &folder);
        for number in 1..=self.runs {
            let run = self.once(&folder, number).with_context(|| format!("in run {number} of {}", self.name))?;
            say(&run.line(number));
            write(&folder.join(format!("run-{number}.json")), serde_json::to_string_pretty(&run)?)?;
            report.runs.push(run);
        }
        write(&folder.join("report.json"), report.json()?)?;
        Ok(report)
    }

    fn once(&self, folder: &Path, number: u32) -> Result<RunReport> {
        let vip = self.target.vip().with_context(|| format!("{} serves no virtual address", self.target.name))?;
        self.wait_home(self.target.boot_limit()).context("the service must be at home before a drill")?;
        let capture = Capture::start(&folder.join(format!("run-{number}.pcap")))?;
        let poller = Poller::start(self.target, &folder.join(format!("run-{number}.jsonl")))?;
        poller.wait("the client is served", Duration::from_secs(10), |samples| good_at_end(samples, 50))?;
        let injected_ns = now_ns();
        self.inject()?;
        let mut problems = Vec::new();
        let served = self.wait_served(&poller, injected_ns);
        if let Err(error) = &served {
            problems.push(format!("{error:#}"));
        } else {
            std::thread::sleep(self.hold);
        }
        let healed_ns = now_ns();
        self.heal()?;
        if let Err(error) = self.go_home() {
            problems.push(format!("{error:#}"));
        } else {
            let healed = healed_ns.saturating_add(nanoseconds(self.settle));
            let home = |samples: &[Sample]| {
                served_for(samples, self.settle, self.target.name)
                    && samples.last().is_some_and(|last| last.t_ns > healed)
            };
            if let Err(error) = poller.wait("the client is served from home", self.limit, home) {
                problems.push(format!("{error:#}"));
            }
        }
        let samples = poller.stop()?;
        let frames = capture.stop()?;
        let speech = speech::analyse(&frames, vip);
        let thawed = self.fault == Fault::Hang;
        Ok(RunReport { thawed, ..RunReport::new(injected_ns, healed_ns, &samples, speech, problems) })
    }

    fn inject(&self) -> Result<()> {
        let target = self.target;
        match self.fault {
            Fault::Crash => machine::power_off(target)?,
            Fault::Hang => machine::freeze(target)?,
            Fault::Cut(cut) => network::cut(target, cut)?,
            Fault::Stall(length) => daemons::stall(Part::Agent(target), length)?,
            Fault::Service => drop(console::exec_ok(target, "killall -9 httpd", Duration::from_secs(5))?),
            // The processes of the guest get SIGTERM, as from any init, before the power goes.
            Fault::Shutdown => drop(console::exec_ok(target, "kill -USR2 1", Duration::from_secs(5))?),
            Fault::Reboot => drop(console::exec_ok(target, "kill -TERM 1", Duration::from_secs(5))?),
        }
        if self.back == Return::ByHand && self.expect == Expect::Takeover {
            take_over_by_hand(target)?;
        }
        Ok(())
    }

    fn wait_served(&self, poller: &Poller, injected_ns: u64) -> Result<()> {
        let double = double(self.target.name).map(|double| double.name);
        match self.expect {
            Expect::Takeover => poller.wait("the double serves", self.limit, |samples| {
                good_at_end(samples, 10) && samples.last().is_some_and(|last| last.server.as_deref() == double)
            }),
            Expect::Stay | Expect::Either => {
                // Long enough for a lease and a takeover of the slowest usual profile.
                let stall = if let Fault::Stall(length) = self.fault { length } else { Duration::ZERO };
                let watch = nanoseconds(stall + Duration::from_secs(6));
                // Frames that are lost fail a question now and then; that is no end of service.
                let losses = matches!(self.fault, Fault::Cut(Cut::Loss(_)));
                poller.wait("service goes on after the fault", self.limit, |samples| {
                    (good_at_end(samples, 50) || losses && mostly_good_at_end(samples, 50))
                        && samples.last().is_some_and(|last| last.t_ns.saturating_sub(injected_ns) > watch)
                })
            }
        }
    }

    fn heal(&self) -> Result<()> {
        let target = self.target;
        if self.back == Return::ByHand
            && self.expect == Expect::Takeover
            && let Some(double) = double(target.name)
        {
            hypervisor::virsh(find(double.host)?, &["suspend", double.name])?;
        }
        match self.fault {
            Fault::Crash | Fault::Shutdown => drop(machine::wake(target)?),
            Fault::Hang => machine::thaw(target)?,
            Fault::Cut(_) => network::heal(target)?,
            Fault::Stall(_) | Fault::Service | Fault::Reboot => {}
        }
        Ok(())
    }

    fn go_home(&self) -> Result<()> {
        if self.expect == Expect::Stay {
            return Ok(());
        }
        machine::wait_answering(self.target, self.target.boot_limit())?;
        match self.back {
            Return::Auto => {}
            // Refused until the target has been healthy for long enough: ask again.
            Return::Ask => drop(wait_until(self.limit, "the coordinator takes the fail-back", || {
                Ok(self.at_home() || daemons::kagectl(&["failback", self.target.name]).is_ok())
            })?),
            Return::ByHand => announce(self.target)?,
        }
        self.wait_home(self.limit)
    }

    fn at_home(&self) -> bool {
        let at_rest = double(self.target.name)
            .is_none_or(|double| hypervisor::state(double).is_ok_and(|state| state == "paused"));
        let served = || {
            let client = find("client").ok()?;
            network::who_serves(client, self.target.vip()?, self.target.service)
        };
        at_rest && served().as_deref() == Some(self.target.name)
    }

    fn wait_home(&self, limit: Duration) -> Result<()> {
        let what = format!("{} serves its address and its double rests", self.target.name);
        wait_until(limit, &what, || Ok(self.at_home()))?;
        Ok(())
    }
}

/// Whether the last `count` questions were all answered.
fn good_at_end(samples: &[Sample], count: usize) -> bool {
    samples.len() >= count && samples[samples.len() - count..].iter().all(|sample| sample.ok)
}

/// Whether most of the last `count` questions were answered.
fn mostly_good_at_end(samples: &[Sample], count: usize) -> bool {
    samples.len() >= count && samples[samples.len() - count..].iter().filter(|sample| sample.ok).count() * 2 > count
}

/// Whether every question of the last `length` was answered by `server`.
fn served_for(samples: &[Sample], length: Duration, server: &str) -> bool {
    let Some(last) = samples.last() else { return false };
    let from = last.t_ns.saturating_sub(nanoseconds(length));
    let enough = samples.first().is_some_and(|first| first.t_ns <= from);
    enough
        && samples
            .iter()
            .rev()
            .take_while(|sample| sample.t_ns >= from)
            .all(|sample| sample.server.as_deref() == Some(server))
}

fn nanoseconds(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

fn announce(node: &Spec) -> Result<()> {
    let Some(vip) = node.vip() else { return Ok(()) };
    // busybox arping reports "no answer" to an announcement as a failure.
    console::exec(node, &format!("arping -U -c 1 -w 1 -I eth0 {vip}"), Duration::from_secs(5))?;
    Ok(())
}

fn take_over_by_hand(target: &Spec) -> Result<()> {
    let double = double(target.name).with_context(|| format!("{} has no double", target.name))?;
    hypervisor::virsh(find(double.host)?, &["resume", double.name])?;
    announce(double)
}

/// The client's poller as a process of the client's node.
pub struct Poller {
    daemon: Daemon,
    file: PathBuf,
}

impl Poller {
    /// Starts asking the target's virtual address as often as its service bears.
    ///
    /// # Errors
    /// The lab is down.
    pub fn start(target: &Spec, file: &Path) -> Result<Self> {
        let (interval, timeout) = target.service.poll();
        Self::start_as(target, "poller", file, interval, timeout)
    }

    /// The same under another name, with another rhythm.
    ///
    /// # Errors
    /// The lab is down.
    pub fn start_as(target: &Spec, name: &str, file: &Path, interval: Duration, timeout: Duration) -> Result<Self> {
        let vip = target.vip().with_context(|| format!("{} serves no virtual address", target.name))?;
        Self::at((vip, target.service.port()).into(), target.service, name, file, interval, timeout)
    }

    /// The same at any address.
    ///
    /// # Errors
    /// The lab is down.
    pub fn at(
        address: SocketAddr,
        service: Service,
        name: &str,
        file: &Path,
        interval: Duration,
        timeout: Duration,
    ) -> Result<Self> {
        let daemon = Daemon::new(find("client")?, name);
        daemon.stop()?;
        let _ = std::fs::remove_file(file);
        let words = [
            this_program()?,
            "client".into(),
            format!("--vip={}", address.ip()),
            format!("--port={}", address.port()),
            format!("--service={}", service.name()),
            format!("--interval-ms={}", interval.as_millis()),
            format!("--timeout-ms={}", timeout.as_millis()),
            format!("--out={}", text(file)),
        ];
        daemon.start(&words.each_ref().map(String::as_str))?;
        Ok(Self { daemon, file: file.to_owned() })
    }

    /// What it has seen so far.
    ///
    /// # Errors
    /// Its file can't be read.
    pub fn samples(&self) -> Result<Vec<Sample>> {
        if self.file.exists() { client::samples(&self.file) } else { Ok(Vec::new()) }
    }

    /// Waits until what it has seen satisfies `level`.
    ///
    /// # Errors
    /// Not within `limit`.
    pub fn wait(&self, what: &str, limit: Duration, level: impl Fn(&[Sample]) -> bool) -> Result<()> {
        wait_until(limit, what, || Ok(level(&self.samples()?)))?;
        Ok(())
    }

    /// Ends it and returns all it saw.
    ///
    /// # Errors
    /// Its file can't be read.
    pub fn stop(self) -> Result<Vec<Sample>> {
        self.daemon.stop()?;
        client::samples(&self.file)
    }
}
