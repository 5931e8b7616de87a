//! Runs a configured command: with a deadline, and with what it said last when it fails.

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::{Pid, Signal, kill_process_group},
};
use std::{
    fs::File,
    io,
    os::unix::{fs::FileExt, process::ExitStatusExt},
    process::Stdio,
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// A command may write this much; beyond it its writes fail.
const MAX_OUTPUT: u64 = 1 << 20;
/// Of that, what an error shows.
const SHOWN_LINES: usize = 10;
/// And at most so much of it.
const SHOWN_BYTES: usize = 4096;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration names no program.
    #[error("the command is empty; give the program and its arguments")]
    Empty,
    /// It could not be started.
    #[error("cannot run {program:?}; check that it exists and may be executed")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with another status than zero.
    #[error("{command} failed with {end}{}", tail(output))]
    Failed {
        /// Program and arguments.
        command: String,
        /// "status 3", "signal 9".
        end: String,
        /// Exit status; None after a signal.
        status: Option<i32>,
        /// The last lines it wrote.
        output: String,
    },
    /// It did not end in time and was killed, its children included.
    #[error("{command} did not end within {after:?} and was killed{}", tail(output))]
    Timeout {
        /// Program and arguments.
        command: String,
        /// The deadline.
        after: Duration,
        /// The last lines it wrote.
        output: String,
    },
}

fn tail(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

/// Runs `argv` and waits for its end; the result is everything it wrote (up to 1 MiB).
///
/// A service that it leaves running in the background is left alone, even if it keeps the command's output open.
///
/// # Errors
/// [`RunError`].
pub async fn run(argv: &[String], deadline: Duration) -> Result<String, RunError> {
    let (program, arguments) = argv.split_first().ok_or(RunError::Empty)?;
    let start_error = |source| RunError::Start { program: program.clone(), source };
    let output = output_file().map_err(start_error)?;
    let duplicate = || output.try_clone().map_err(start_error);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(duplicate()?)
        .stderr(duplicate()?)
        // A group of its own: killed as a whole, and no Ctrl-C of ours reaches a service begun here.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start_error)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let command = || argv.join(" ");
    match timeout(deadline, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(text(&output)),
        Ok(Ok(status)) => {
            let end = match (status.code(), status.signal()) {
                (Some(code), _) => format!("status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "an unknown status".to_owned(),
            };
            Err(RunError::Failed { command: command(), end, status: status.code(), output: last_lines(&text(&output)) })
        }
        Ok(Err(source)) => Err(start_error(source)),
        Err(_) => {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            Err(RunError::Timeout { command: command(), after: deadline, output: last_lines(&text(&output)) })
        }
    }
}

/// Memory of a fixed size. Not a pipe: a daemon that inherits it would hold our reader up, or die of SIGPIPE later.
/// Not a file: a daemon could fill the disk.
fn output_file() -> io::Result<File> {
    let descriptor = memfd_create("kage-output", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let file = File::from(descriptor);
    file.set_len(MAX_OUTPUT)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file)
}

/// What was written: up to the first zero byte.
fn text(file: &File) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = file.read_at(&mut chunk, all.len() as u64) {
        let end = chunk[..read].iter().position(|byte| *byte == 0);
        all.extend_from_slice(&chunk[..end.unwrap_or(read)]);
        if end.is_some() {
            break;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    let from = (shown.len().saturating_sub(SHOWN_BYTES)..=shown.len()).find(|at| shown.is_char_boundary(*at));
    shown[from.unwrap_or(0)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn output_and_failure() {
        assert_eq!(run(&sh("echo out; echo err >&2"), LONG).await.expect("runs"), "out\nerr\n");
        let error = run(&sh("seq 1 30; echo no >&2; exit 3"), LONG).await.expect_err("fails");
        assert!(
            matches!(&error, RunError::Failed { status: Some(3), output, .. } if output.starts_with("22\n") && output.ends_with("30\nno")),
            "{error}"
        );
        assert!(matches!(run(&["/nonexistent".into()], LONG).await, Err(RunError::Start { .. })));
        assert!(matches!(run(&[], LONG).await, Err(RunError::Empty)));
        let flood = run(&sh("yes | head -c 3000000; exit 1"), LONG).await.expect_err("fails");
        assert!(matches!(flood, RunError::Failed { .. }));
    }

    #[tokio::test]
    async fn the_deadline_kills_the_children_too() {
        let begin = Instant::now();
        let error = run(&sh("sleep 77.77 & echo begun; wait"), Duration::from_millis(300)).await.expect_err("late");
        assert!(matches!(&error, RunError::Timeout { output, .. } if output == "begun"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_daemon_left_behind_is_not_waited_for() {
        let begin = Instant::now();
        let pid = run(&sh("sleep 60 & echo $!"), LONG).await.expect("runs");
        assert!(begin.elapsed() < Duration::from_secs(10));
        let pid = Pid::from_raw(pid.trim().parse().expect("pid")).expect("pid");
        rustix::process::kill_process(pid, Signal::KILL).expect("the daemon still ran");
    }
}
