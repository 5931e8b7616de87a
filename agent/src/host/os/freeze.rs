//! Stopping a service's processes where its manager can't: by their control group if it is the service's own, else
//! one by one, parents first, until none is left that runs.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// The kernel needs microseconds; a process in an uninterruptible call, as long as that takes.
const DEADLINE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(2);

/// Why a service was not frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A signal or the control group.
    #[error("can't signal process {0}")]
    Signal(i32, #[source] io::Error),
    /// Some of it still runs.
    #[error(
        "processes {0:?} still run {DEADLINE:?} after they were told to stop (a file server that does not answer?)"
    )]
    Runs(BTreeSet<i32>),
}

/// Freezes (or thaws) the service's main process `pid` and all that came from it. `unit`: the name of the service,
/// which its own control group bears.
///
/// # Errors
/// [`FreezeError`]: part of it may be frozen.
pub async fn set_frozen(pid: i32, unit: &str, frozen: bool) -> Result<(), FreezeError> {
    if let Some(group) = own_group(pid, unit)
        && fs::write(group.join("cgroup.freeze"), if frozen { "1" } else { "0" }).is_ok()
    {
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        let events = group.join("cgroup.events");
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            if fs::read_to_string(&events).is_ok_and(|text| text.lines().any(|line| line == wanted)) {
                return Ok(());
            }
            sleep(STEP).await;
        }
    }
    let (signal, want) = if frozen { (Signal::STOP, true) } else { (Signal::CONT, false) };
    let begun = Instant::now();
    loop {
        // Anew each time: what was not yet stopped may have begun others.
        let all = descendants(pid);
        let left: BTreeSet<i32> =
            all.iter().filter(|one| stopped(**one).is_some_and(|is| is != want)).copied().collect();
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > DEADLINE {
            return Err(FreezeError::Runs(left));
        }
        for one in left {
            match Pid::from_raw(one).map(|pid| kill_process(pid, signal)) {
                Some(Err(rustix::io::Errno::SRCH)) | None | Some(Ok(())) => {}
                Some(Err(error)) => return Err(FreezeError::Signal(one, error.into())),
            }
        }
        sleep(STEP).await;
    }
}

/// The control group (version 2) of the process, if its name is the service's.
fn own_group(pid: i32, unit: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let last = path.rsplit('/').next()?;
    let names = [unit.to_owned(), format!("{unit}.service"), format!("openrc.{unit}")];
    if !names.iter().any(|name| name == last) {
        return None;
    }
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(|mount| PathBuf::from(mount).join(path))
        .find(|group| group.join("cgroup.freeze").exists())
}

/// The process and all below it, itself first.
fn descendants(pid: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(one) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(parent) = stat(one).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(one);
        }
    }
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(one) = all.get(at).copied() {
        all.extend(children.remove(&one).unwrap_or_default());
        at += 1;
    }
    all
}

/// None: it is gone, or dead.
fn stopped(pid: i32) -> Option<bool> {
    match stat(pid)?.first()?.as_str() {
        "Z" | "X" => None,
        state => Some(matches!(state, "T" | "t")),
    }
}

/// The fields of `/proc/PID/stat` after the name: state, parent, …
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (_, tail) = text.rsplit_once(')')?;
    Some(tail.split_ascii_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[tokio::test]
    async fn a_tree_of_processes_stops_and_goes_on() {
        let script = "sleep 60 & (sleep 60 & sleep 60) & wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::null()).spawn().expect("spawn");
        let pid = i32::try_from(child.id()).expect("pid");
        let begun = Instant::now();
        while descendants(pid).len() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(5));
            sleep(STEP).await;
        }
        set_frozen(pid, "kage-test", true).await.expect("freeze");
        assert!(descendants(pid).iter().all(|one| stopped(*one) == Some(true)));
        set_frozen(pid, "kage-test", false).await.expect("thaw");
        assert!(descendants(pid).iter().all(|one| stopped(*one) == Some(false)));
        for one in descendants(pid) {
            let _ = kill_process(Pid::from_raw(one).expect("pid"), Signal::KILL);
        }
        child.wait().expect("wait");
    }
}
