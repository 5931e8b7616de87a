//! Processes of a node: in its control group, in its namespaces, with a log of their own.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::cgroup::Cgroup;
use super::dirs;
use super::nodes::{self, Spec};
use super::run::{read, run, text, wait_until};

/// The process that keeps a hypervisor's mount namespace alive while its libvirtd restarts.
pub const HOLDER: &str = "holder";

/// A background process of a node, known by a name.
#[derive(Clone, Debug)]
pub struct Daemon {
    node: &'static Spec,
    name: String,
}

/// The words before a command that bring it into the namespaces of `node`.
///
/// # Errors
/// The node is a hypervisor whose mount namespace does not exist: the lab is down.
pub fn enter(node: &Spec) -> Result<Vec<String>> {
    let mut words = vec!["nsenter".to_owned()];
    let host = nodes::find(node.host)?;
    if host.has_libvirt() {
        let Some(pid) = Daemon::new(host, HOLDER).pid() else {
            bail!("{} is not up; run `tests/lab up`", host.name);
        };
        words.extend(["-t".to_owned(), pid.to_string(), "-m".to_owned(), "-u".to_owned(), "-n".to_owned()]);
    } else {
        words.push(format!("--net=/run/netns/{}", node.namespace()));
    }
    words.push("--".to_owned());
    Ok(words)
}

/// Runs `argv` to its end inside the namespaces of `node`.
///
/// # Errors
/// The lab is down, or the program fails.
pub fn run_in(node: &Spec, argv: &[&str]) -> Result<String> {
    let mut words = enter(node)?;
    words.extend(argv.iter().map(|&word| word.to_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(&words)
}

/// Runs `command` to its end and takes every orphan below it at once. The real machine's process 1 may take a second or
/// more, and until then libvirt counts a killed QEMU as alive.
///
/// # Errors
/// The program can't be started.
pub fn reap(command: &[String]) -> Result<()> {
    rustix::process::set_child_subreaper(Pid::from_raw(1)).context("cannot become a reaper")?;
    // Ended with us, as it would be without us.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--"])
        .args(command)
        .spawn()
        .context("cannot start setpriv (util-linux)")?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((gone, _))) if Some(gone) == child => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for children"),
        }
    }
}

impl Daemon {
    /// The process called `name` of `node`, running or not.
    #[must_use]
    pub fn new(node: &'static Spec, name: &str) -> Self {
        Self { node, name: name.to_owned() }
    }

    /// Its log: what it writes to standard output and standard error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        dirs::node(self.node.name).join(format!("{}.log", self.name))
    }

    fn pid_file(&self) -> PathBuf {
        dirs::node(self.node.name).join(format!("{}.pid", self.name))
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        let pid: i32 = std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(')')?.1.trim_start().chars().next()?;
        // The id may have gone to somebody else: it must also be in our control group.
        let ours = Cgroup::of(self.node.name).pids().contains(&u32::try_from(pid).ok()?);
        (state != 'Z' && ours).then_some(pid)
    }

    /// Starts it in the namespaces of its node. Already running is fine.
    ///
    /// # Errors
    /// The lab is down, or the process can't be started.
    pub fn start(&self, argv: &[&str]) -> Result<()> {
        let mut words = enter(self.node)?;
        words.extend(argv.iter().map(|&word| word.to_owned()));
        self.start_bare(&words)
    }

    /// Starts it in its control group only; `words` choose the namespaces themselves.
    ///
    /// # Errors
    /// The process can't be started.
    pub fn start_bare(&self, words: &[String]) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let group = Cgroup::of(self.node.name);
        group.create()?;
        let pid_file = self.pid_file();
        std::fs::create_dir_all(dirs::node(self.node.name))
            .with_context(|| format!("cannot make {}", dirs::node(self.node.name).display()))?;
        let _ = std::fs::remove_file(&pid_file);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .with_context(|| format!("cannot open {}", self.log().display()))?;
        // The id is written before the program runs, and stays the same through each exec.
        let script = "echo $$ > \"$1\"; echo $$ > \"$2.new\"; mv \"$2.new\" \"$2\"; shift 2; exec \"$@\"";
        let status = Command::new("setsid")
            .args(["-f", "sh", "-c", script, "sh", &text(&group.procs()), &text(&pid_file)])
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .status()
            .context("cannot start setsid (util-linux)")?;
        if !status.success() {
            bail!("setsid failed: {status}");
        }
        wait_until(Duration::from_secs(5), &format!("{} of {} has started", self.name, self.node.name), || {
            Ok(pid_file.exists())
        })?;
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            bail!("{} of {} does not run; its log is {}", self.name, self.node.name, self.log().display());
        };
        kill_process(pid, signal).with_context(|| format!("cannot signal {} of {}", self.name, self.node.name))
    }

    /// Asks it to end (SIGTERM) and waits; after 10 s it is killed. Not running is fine.
    ///
    /// # Errors
    /// It survives SIGKILL.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Ends it with `signal` and waits; after 10 s it is killed. Not running is fine.
    ///
    /// # Errors
    /// It survives SIGKILL.
    pub fn end(&self, signal: Signal) -> Result<()> {
        if self.pid().is_none() {
            return Ok(());
        }
        // It may end between the look and the signal.
        let _ = self.signal(signal);
        let gone = |limit| wait_until(limit, "the process has ended", || Ok(self.pid().is_none()));
        if gone(Duration::from_secs(10)).is_err() {
            let _ = self.signal(Signal::KILL);
            gone(Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// It does not run, or survives.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        wait_until(Duration::from_secs(5), "the process has ended", || Ok(self.pid().is_none()))?;
        Ok(())
    }

    /// The last lines of its log, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = read(&self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}
