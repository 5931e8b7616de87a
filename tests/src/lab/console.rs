//! Commands inside a guest, over its second serial line: no network, so no cut stops them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::dirs;
use super::machine::shell_socket;
use super::nodes::{Kind, Spec};
use super::run::now_ns;

/// What a command in a guest said, and how it ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its standard output and standard error.
    pub output: String,
    /// Its exit status.
    pub status: i32,
}

/// Runs `command` with `sh` as root in the guest and waits for its end.
///
/// # Errors
/// The guest is off, hangs, or has not ended the command within `limit`.
pub fn exec(node: &Spec, command: &str, limit: Duration) -> Result<Answer> {
    if !matches!(node.kind, Kind::Machine | Kind::Domain | Kind::VirtualServer) {
        bail!("{} is no guest; use `tests/lab shell {}`", node.name, node.name);
    }
    let deadline = Instant::now() + limit;
    // One talker at a time: the line is one stream.
    let lock = dirs::node(node.name).join("shell.lock");
    let lock = std::fs::File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock the guest's serial line")?;
    let mut line = UnixStream::connect(shell_socket(node))
        .with_context(|| format!("{} has no serial line: it is off", node.name))?;
    let mark = format!("kage-{}-{}", std::process::id(), now_ns());
    let line_of_text = format!("\n{mark} {} end\n", base64(wrapped(command, limit).as_bytes()));
    line.set_write_timeout(Some(limit)).context("cannot set a time limit")?;
    line.write_all(line_of_text.as_bytes())
        .with_context(|| format!("{} does not take the command: it hangs", node.name))?;
    let mut heard = Vec::new();
    let begin = format!("{mark} begin\n");
    let end = format!("{mark} ");
    loop {
        let text = String::from_utf8_lossy(&heard).replace('\r', "");
        if let Some(answer) = text.split_once(&begin).and_then(|(_, rest)| parse(rest, &end)) {
            return Ok(answer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{} has not ended `{command}` within {limit:?}; heard so far: {text}", node.name);
        }
        line.set_read_timeout(Some(left)).context("cannot set a time limit")?;
        let mut chunk = [0; 4096];
        match line.read(&mut chunk) {
            Ok(0) => bail!("{} went off during `{command}`", node.name),
            Ok(count) => heard.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot read the guest's serial line"),
        }
    }
}

/// The command with an end: a hang in it must not block the line for the next.
fn wrapped(command: &str, limit: Duration) -> String {
    let quoted = command.replace('\'', "'\\''");
    format!("timeout {} sh -c '{quoted}'\n", limit.as_secs().max(1))
}

/// RFC 4648 base64.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, at| word << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            let shown = usize::try_from(digit).is_ok_and(|digit| digit <= chunk.len());
            let letter = usize::try_from(value).ok().and_then(|value| DIGITS.get(value)).copied();
            text.push(if shown { char::from(letter.unwrap_or(b'=')) } else { '=' });
        }
    }
    text
}

fn parse(rest: &str, end: &str) -> Option<Answer> {
    let (output, status) = rest.split_once(end)?;
    let (status, _) = status.split_once('\n')?;
    Some(Answer { output: output.to_owned(), status: status.trim().parse().ok()? })
}

/// As [`exec`], for a command that must succeed.
///
/// # Errors
/// As [`exec`], or the command fails.
pub fn exec_ok(node: &Spec, command: &str, limit: Duration) -> Result<String> {
    let answer = exec(node, command, limit)?;
    if answer.status != 0 {
        bail!("`{command}` on {} ended with {}: {}", node.name, answer.status, answer.output.trim());
    }
    Ok(answer.output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        let shown: Vec<String> = ["", "f", "fo", "foo", "foob"].iter().map(|text| base64(text.as_bytes())).collect();
        assert_eq!(shown, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="], "RFC 4648 §10");
    }

    #[test]
    fn an_answer_ends_at_its_mark() {
        let answer = parse("one\ntwo\nkage-7 3\n# ", "kage-7 ").unwrap();
        assert_eq!((answer.output.as_str(), answer.status), ("one\ntwo\n", 3));
        assert!(parse("one\nkage-7 3", "kage-7 ").is_none(), "the line is not complete");
    }
}
