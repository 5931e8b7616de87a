//! Running programs, waiting on levels, reading the clock.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

/// Runs `argv` to its end and returns what it wrote to standard output.
///
/// # Errors
/// The program could not be started, or ended with a failure; the message holds what it said.
pub fn run(argv: &[&str]) -> Result<String> {
    let Some((program, arguments)) = argv.split_first() else {
        bail!("no program given");
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}; tests/lab installs what the lab needs"))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}{}",
            argv.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim(),
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `argv` runs and succeeds; its output is dropped.
#[must_use]
pub fn succeeds(argv: &[&str]) -> bool {
    run(argv).is_ok()
}

/// Runs several lines of shell, stopping at the first that fails.
///
/// # Errors
/// As [`run`].
pub fn shell(script: &str) -> Result<String> {
    run(&["sh", "-ec", script])
}

/// Waits until `level` holds, looking every 20 ms.
///
/// # Errors
/// It does not hold within `limit`, or `level` fails.
pub fn wait_until(limit: Duration, what: &str, mut level: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if level().with_context(|| format!("while waiting until {what}"))? {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?}, but it is still not so that {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nanoseconds since 1970: the clock of the packet capture, hence of every record of the lab.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|age| u64::try_from(age.as_nanos()).ok())
        .unwrap_or(0)
}

/// Milliseconds, with a fraction, of a span in nanoseconds.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "spans of hours stay far below 2^53 ns")]
pub fn ms(nanoseconds: u64) -> f64 {
    (nanoseconds / 1_000) as f64 / 1_000.0
}

/// A path as text. The lab's own paths are UTF-8; anything else is shown, not hidden.
#[must_use]
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Writes `content` to `path`, making the folders on the way.
///
/// # Errors
/// The file system refuses.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// The text of a file.
///
/// # Errors
/// It is missing or can't be read.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
