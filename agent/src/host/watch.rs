//! Notices the death of a service's process at once: the kernel tells, by pidfd; nothing is polled while it lives.

use super::{
    clock,
    service::{ProcessOf, Service},
};
use kage_types::{ServiceName, Time};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, os::fd::OwnedFd, path::Path, time::Duration};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

/// While a service is down it is looked for this often, so that its return is known soon …
const SEARCH_SOON: Duration = Duration::from_millis(100);
/// … and this often when it has been down for …
const SEARCH_LATE: Duration = Duration::from_secs(1);
/// … so long.
const DOWN_LONG: Duration = Duration::from_secs(10);
/// For systemd to name a unit's main process, where there is no bus to ask it over.
const UNIT_DEADLINE: Duration = Duration::from_secs(5);

/// A change in a service's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ProcessEvent {
    /// Found; watched from now on.
    Up {
        /// The service.
        service: ServiceName,
        /// Its main process.
        pid: i32,
        /// When it was found.
        at: Time,
    },
    /// Its main process has ended, or there was none when watching began. Whether that was wanted is not known here.
    Down {
        /// The service.
        service: ServiceName,
        /// The process that ended; None: there was none.
        pid: Option<i32>,
        /// When it was noticed.
        at: Time,
    },
}

/// Watches one service; ends when dropped.
pub struct ProcessWatch {
    task: JoinHandle<()>,
}

impl Drop for ProcessWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ProcessWatch {
    /// Begins to watch, within a tokio runtime. None: the service names no process. A full channel delays the watch,
    /// so that no event is lost.
    #[must_use]
    pub fn start(service: &Service, events: mpsc::Sender<ProcessEvent>) -> Option<Self> {
        let (name, process) = (service.name.clone(), service.process.clone()?);
        Some(Self { task: tokio::spawn(watch(name, process, events)) })
    }
}

async fn watch(service: ServiceName, process: ProcessOf, events: mpsc::Sender<ProcessEvent>) {
    // Only a process begun later than the death of the last one replaces it: orphaned children are no service.
    let mut after = 0;
    let mut down_told = false;
    let mut down_since = Instant::now();
    let mut changes = Changes::of(&process);
    loop {
        let Some((pid, descriptor)) = open(&process, after).await else {
            if !down_told {
                down_told = true;
                let down = ProcessEvent::Down { service: service.clone(), pid: None, at: clock::now() };
                if events.send(down).await.is_err() {
                    return;
                }
            }
            let pause = if down_since.elapsed() < DOWN_LONG { SEARCH_SOON } else { SEARCH_LATE };
            changes.wait(pause).await;
            continue;
        };
        let up = ProcessEvent::Up { service: service.clone(), pid: pid.as_raw_nonzero().get(), at: clock::now() };
        if events.send(up).await.is_err() {
            return;
        }
        if let Err(error) = ended(descriptor).await {
            tracing::error!(%service, %error, "watching a process");
            sleep(SEARCH_LATE).await;
            continue;
        }
        let at = clock::now();
        after = start_time_now();
        (down_told, down_since) = (true, Instant::now());
        let down = ProcessEvent::Down { service: service.clone(), pid: Some(pid.as_raw_nonzero().get()), at };
        if events.send(down).await.is_err() {
            return;
        }
    }
}

/// A pidfd is readable when its process has ended.
async fn ended(descriptor: OwnedFd) -> io::Result<()> {
    // SAFETY: an owned descriptor stays open and the same until it is dropped, which AsyncFd does after deregistering.
    let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
    descriptor.readable().await.map(drop)
}

async fn open(process: &ProcessOf, after: u64) -> Option<(Pid, OwnedFd)> {
    let pid = match process {
        ProcessOf::PidFile(path) => fs::read_to_string(path).ok()?.trim().parse().ok()?,
        ProcessOf::Name(name) => by_name(name, after)?,
        ProcessOf::Unit(unit) => unit_pid(unit).await?,
        ProcessOf::Usual(name) => usual(name, after)?,
    };
    let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Only now is the number certain to be this process's. A dead one (zombie) is of no use, and a pid file that
    // outlived its process may name a stranger by now: at least not one that the last death left behind.
    let seen = Seen::read(pid)?;
    (seen.start >= after && !seen.dead).then_some((Pid::from_raw(pid)?, descriptor))
}

/// The main process, if one is there now.
pub(super) async fn main_process(process: &ProcessOf) -> Option<i32> {
    open(process, 0).await.map(|(pid, _)| pid.as_raw_nonzero().get())
}

async fn unit_pid(unit: &str) -> Option<i32> {
    #[cfg(feature = "dbus")]
    match super::os::systemd::main_pid(unit).await {
        Ok(pid) => return pid,
        Err(error) if error.is_no_bus() => {}
        Err(_) => return None,
    }
    let argv = ["systemctl", "show", "--property=MainPID", "--", unit].map(str::to_owned);
    super::os::services::main_pid(&super::run::run(&argv, UNIT_DEADLINE).await.ok()?)
}

/// By the pid file of a service of this name, else by the name itself.
fn usual(name: &str, after: u64) -> Option<i32> {
    let files = [format!("/run/{name}.pid"), format!("/run/{name}/{name}.pid"), format!("/var/run/{name}.pid")];
    let file = files.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    // One that outlived its process is passed over.
    file.filter(|pid| Seen::read(*pid).is_some_and(|seen| seen.start >= after && !seen.dead))
        .or_else(|| by_name(name, after))
}

/// What wakes the search: systemd's word of a unit's change, and in any case a pause.
struct Changes {
    #[cfg(feature = "dbus")]
    unit: Option<String>,
    #[cfg(feature = "dbus")]
    stream: Option<super::os::systemd::Changes>,
}

impl Changes {
    #[cfg(feature = "dbus")]
    fn of(process: &ProcessOf) -> Self {
        let unit = match process {
            ProcessOf::Unit(unit) => Some(unit.clone()),
            ProcessOf::PidFile(_) | ProcessOf::Name(_) | ProcessOf::Usual(_) => None,
        };
        Self { unit, stream: None }
    }

    #[cfg(not(feature = "dbus"))]
    fn of(_: &ProcessOf) -> Self {
        Self {}
    }

    #[cfg(feature = "dbus")]
    async fn wait(&mut self, pause: Duration) {
        if let (Some(unit), None) = (&self.unit, &self.stream) {
            // A change between the last look and this is found by the next look.
            self.stream = super::os::systemd::Changes::of(unit).await.ok();
        }
        let Some(stream) = &mut self.stream else { return sleep(pause).await };
        if let Ok(false) = tokio::time::timeout(pause, stream.next()).await {
            self.stream = None;
            sleep(pause).await;
        }
    }

    #[cfg(not(feature = "dbus"))]
    async fn wait(&mut self, pause: Duration) {
        sleep(pause).await;
    }
}

/// The main process of this name: the oldest whose parent has another name. Processes of other network namespaces
/// (containers) are not ours.
fn by_name(name: &str, after: u64) -> Option<i32> {
    let ours = fs::read_link("/proc/self/ns/net").ok();
    let mut named = BTreeMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(seen) = Seen::read(pid) else { continue };
        if seen.name == name && !seen.dead {
            named.insert(pid, seen);
        }
    }
    let same_namespace = |pid: i32| {
        let theirs = fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns/net"));
        theirs.is_ok_and(|theirs| Some(theirs) == ours)
    };
    let main = named
        .iter()
        .filter(|(pid, seen)| !named.contains_key(&seen.parent) && seen.start >= after && same_namespace(**pid));
    main.min_by_key(|(pid, seen)| (seen.start, **pid)).map(|(pid, _)| *pid)
}

/// What `/proc/PID/stat` says.
struct Seen {
    name: String,
    parent: i32,
    /// Ticks (1/100 s) since boot.
    start: u64,
    dead: bool,
}

impl Seen {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name may contain anything, parentheses too.
        let (head, tail) = stat.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        Some(Self {
            name,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            dead: matches!(*fields.first()?, "Z" | "X"),
        })
    }
}

/// Now, as `/proc/PID/stat` would have it.
fn start_time_now() -> u64 {
    clock::now().as_nanos() / 10_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        os::{Os, ServiceManager},
        service::Commands,
    };
    use std::{
        process::{Child, Command},
        sync::Arc,
    };

    fn service(process: ProcessOf) -> Service {
        Service {
            name: ServiceName::new("web").expect("name"),
            unit: None,
            commands: Commands::default(),
            os: Arc::new(Os::told(Path::new("/"), ServiceManager::Other)),
            process: Some(process),
            check_deadline: UNIT_DEADLINE,
            restart_deadline: UNIT_DEADLINE,
        }
    }

    /// A sleeping process of a name of its own.
    fn sleeper(directory: &Path, name: &str) -> Child {
        let path = directory.join(name);
        if !path.exists() {
            fs::copy("/bin/sleep", &path).expect("copy");
        }
        Command::new(path).arg("60").spawn().expect("spawn")
    }

    async fn next(events: &mut mpsc::Receiver<ProcessEvent>) -> ProcessEvent {
        tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time").expect("event")
    }

    async fn follow(process: ProcessOf, directory: &Path, name: &str, note: impl Fn(u32)) {
        let (sender, mut events) = mpsc::channel(4);
        let _watch = ProcessWatch::start(&service(process), sender).expect("process");
        assert!(matches!(next(&mut events).await, ProcessEvent::Down { pid: None, .. }));
        for _ in 0..2 {
            let mut child = sleeper(directory, name);
            note(child.id());
            let own = i32::try_from(child.id()).expect("pid");
            assert!(matches!(next(&mut events).await, ProcessEvent::Up { pid, .. } if pid == own));
            let killed = clock::now();
            child.kill().expect("kill");
            let ProcessEvent::Down { pid, at, .. } = next(&mut events).await else { panic!("not down") };
            println!("{name}: death told after {:?}", at.since(killed));
            assert_eq!(pid, Some(own));
            assert!(at.since(killed) < Duration::from_secs(1));
            child.wait().expect("wait");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_death_is_told_and_a_new_process_found_by_name() {
        let directory = tempfile::tempdir().expect("directory");
        let name = format!("kw{}", std::process::id());
        follow(ProcessOf::Name(name.clone()), directory.path(), &name, |_| {}).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_death_is_told_and_a_new_process_found_by_pid_file() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("pid");
        let note = |pid| fs::write(&file, format!("{pid}\n")).expect("write");
        follow(ProcessOf::PidFile(file.clone()), directory.path(), "kwpidfile", note).await;
    }
}
