//! What keeps the renewal thread running when the machine is short of memory or of processor time (safety rule 3).

use super::sys;
use std::{fs, io, os::unix::process::CommandExt, process::Command};

/// Above every ordinary process, below the kernel's own real-time threads (50 and up).
const PRIORITY: libc::c_int = 20;
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// What could be had of it. Each is tolerated when absent: a lapse becomes likelier, two owners do not.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Protection {
    /// Why memory isn't locked, if it isn't.
    pub memory: Option<String>,
    /// Why the thread has no real-time priority, if it hasn't.
    pub priority: Option<String>,
    /// Why the OOM killer may still choose this process.
    pub oom: Option<String>,
}

impl Protection {
    /// The process's memory, the calling thread's priority, and the OOM killer.
    pub(super) fn take() -> Self {
        let text = |result: io::Result<()>| result.err().map(|error| error.to_string());
        Self { memory: text(lock_memory()), priority: text(real_time()), oom: text(fs::write(OOM_SCORE, "-1000")) }
    }

    /// Logs what is missing, once.
    pub(super) fn warn(&self) {
        let hint = "renewals may come late under load; run the agent as root or with CAP_IPC_LOCK, CAP_SYS_NICE and \
                    CAP_SYS_RESOURCE";
        for (what, why) in [("memory", &self.memory), ("priority", &self.priority), ("oom_score_adj", &self.oom)] {
            if let Some(why) = why {
                tracing::warn!(what, why, hint, "the renewal thread is not fully protected");
            }
        }
    }
}

/// `MCL_ONFAULT`: what has been touched stays. Without it every reserved stack would be filled: 2 MiB a thread,
/// against a budget of 10 MiB for the agent.
fn lock_memory() -> io::Result<()> {
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: no pointers are passed.
    sys::check(unsafe { libc::mlockall(flags) }).map(drop)
}

fn real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: 0 is the calling thread; the parameters outlive the call.
    sys::check(unsafe {
        libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    })
    .map(drop)
}

/// Makes a child give back the agent's protection from the OOM killer, which it would otherwise inherit.
pub fn unprotect_child(command: &mut Command) -> &mut Command {
    let reset = || {
        // SAFETY: the path is a C string.
        let fd = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        if fd >= 0 {
            // SAFETY: one byte of a static string is written to a descriptor opened just above.
            unsafe {
                libc::write(fd, c"0".as_ptr().cast(), 1);
                libc::close(fd);
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only open, write and close are called, which are async-signal-safe.
    unsafe { command.pre_exec(reset) }
}
