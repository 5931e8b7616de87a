//! A client that asks the virtual address every few milliseconds, whatever happened to
//! its earlier questions (an open loop: a stalled answer hides none of the outage).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::nodes::Service;
use super::run::{ms, now_ns};

/// One question and its fate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was asked: nanoseconds since 1970, the capture's clock.
    pub t_ns: u64,
    /// How long the answer, or giving up, took.
    pub latency_ns: u64,
    /// Whether an answer came in time.
    pub ok: bool,
    /// Who answered: the first line of the page.
    pub server: Option<String>,
}

impl Sample {
    /// When the answer came, or the asker gave up.
    #[must_use]
    pub const fn done_ns(&self) -> u64 {
        self.t_ns.saturating_add(self.latency_ns)
    }
}

/// An interval without an answer, from the last good answer before to the first good one after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outage {
    /// The last good answer, nanoseconds since 1970.
    pub start_ns: u64,
    /// The first good answer afterwards; `None` if none came.
    pub end_ns: Option<u64>,
    /// Its length; to the last question if it did not end.
    pub ms: f64,
    /// Questions that failed.
    pub failed: u32,
    /// Who answered before.
    pub before: Option<String>,
    /// Who answered after.
    pub after: Option<String>,
}

/// Asks once who serves; `None` if there is no right answer within `timeout`.
///
/// HTTP: the page's first line. SMTP: the greeting's host name, after `quit` was answered with 221 (the thesis's probe).
#[must_use]
pub fn ask(address: SocketAddr, service: Service, timeout: Duration) -> Option<String> {
    let start = Instant::now();
    let left = || timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_write_timeout(Some(left()?)).ok()?;
    let mut answer = Vec::new();
    // Reads on to the end of the connection, or until what was heard satisfies `enough`.
    let mut hear = |stream: &mut TcpStream, enough: &dyn Fn(&[u8]) -> bool| -> Option<String> {
        answer.clear();
        while !enough(&answer) {
            stream.set_read_timeout(Some(left()?)).ok()?;
            let mut chunk = [0; 1024];
            match stream.read(&mut chunk).ok()? {
                0 => break,
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
        String::from_utf8(answer.clone()).ok()
    };
    match service {
        Service::Http => {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
            let answer = hear(&mut stream, &|_| false)?;
            let (head, page) = answer.split_once("\r\n\r\n")?;
            head.lines().next()?.contains(" 200").then(|| page.lines().next().unwrap_or("").to_owned())
        }
        Service::Smtp => {
            let line = |heard: &[u8]| heard.ends_with(b"\n");
            let greeting = hear(&mut stream, &line)?;
            let host = greeting.strip_prefix("220 ")?.split([' ', '.', '\r']).next()?.to_owned();
            stream.write_all(b"quit\r\n").ok()?;
            hear(&mut stream, &line)?.starts_with("221").then_some(host)
        }
    }
}

/// Asks `address` every `interval` until the process is ended, appending one JSON line for each
/// question to `out`. An answer that takes longer than `timeout` is none.
///
/// # Errors
/// The file can't be written.
pub fn poll(address: SocketAddr, service: Service, interval: Duration, timeout: Duration, out: &Path) -> Result<()> {
    let file = std::fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let file = Arc::new(Mutex::new(file));
    // Enough askers that each is free again when its turn comes.
    let askers = u32::try_from(timeout.as_nanos() / interval.as_nanos().max(1)).unwrap_or(32).clamp(1, 64) + 4;
    let start = Instant::now();
    let threads: Vec<_> = (0..askers)
        .map(|asker| {
            let file = Arc::clone(&file);
            std::thread::spawn(move || {
                let mut turn = asker;
                loop {
                    std::thread::sleep((interval * turn).saturating_sub(start.elapsed()));
                    turn += askers;
                    let t_ns = now_ns();
                    let asked = Instant::now();
                    let server = ask(address, service, timeout);
                    let latency_ns = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    let sample = Sample { t_ns, latency_ns, ok: server.is_some(), server };
                    let Ok(mut line) = serde_json::to_vec(&sample) else { return };
                    line.push(b'\n');
                    let Ok(mut file) = file.lock() else { return };
                    if file.write_all(&line).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// The samples of a file in the order in which they were asked; an unfinished last line is left out.
///
/// # Errors
/// The file can't be read.
pub fn samples(path: &Path) -> Result<Vec<Sample>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut samples: Vec<Sample> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    samples.sort_by_key(|sample| sample.t_ns);
    Ok(samples)
}

/// The outages in `samples`, which are in order.
#[must_use]
pub fn outages(samples: &[Sample]) -> Vec<Outage> {
    let mut found = Vec::new();
    let mut last_good: Option<&Sample> = None;
    let mut open: Option<Outage> = None;
    for sample in samples {
        match (sample.ok, &mut open) {
            (true, None) => {}
            (true, Some(outage)) => {
                outage.end_ns = Some(sample.done_ns());
                outage.ms = ms(sample.done_ns().saturating_sub(outage.start_ns));
                outage.after.clone_from(&sample.server);
                found.extend(open.take());
            }
            (false, None) => {
                open = Some(Outage {
                    start_ns: last_good.map_or(sample.t_ns, Sample::done_ns),
                    end_ns: None,
                    ms: ms(sample.latency_ns),
                    failed: 1,
                    before: last_good.and_then(|good| good.server.clone()),
                    after: None,
                });
            }
            (false, Some(outage)) => {
                outage.failed += 1;
                outage.ms = ms(sample.done_ns().saturating_sub(outage.start_ns));
            }
        }
        if sample.ok {
            last_good = Some(sample);
        }
    }
    found.extend(open);
    found
}

/// The thesis's access disconnection time: from the first failure at or after `from_ns` to the first success after it.
#[must_use]
pub fn disconnection_s(samples: &[Sample], from_ns: u64) -> f64 {
    let mut later = samples.iter().filter(|sample| sample.done_ns() >= from_ns);
    let Some(failed) = later.find(|sample| !sample.ok) else { return 0.0 };
    let end = later.find(|sample| sample.ok).or(samples.last()).unwrap_or(failed);
    ms(end.t_ns.saturating_sub(failed.t_ns)) / 1e3
}

/// The thesis's client log: a line for each question, with OK or XX.
#[must_use]
pub fn thesis_log(samples: &[Sample]) -> String {
    let mut log = String::new();
    for sample in samples {
        let seconds = sample.t_ns / 1_000_000_000;
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        let word = if sample.ok { "OK" } else { "XX" };
        log.push_str(&format!("{hours:02}:{minutes:02}:{:02} {word}\n", seconds % 60));
    }
    log
}

/// The longest time between two good answers: shows slow moments that made no question fail.
#[must_use]
pub fn longest_gap_ms(samples: &[Sample]) -> f64 {
    let mut done: Vec<u64> = samples.iter().filter(|sample| sample.ok).map(Sample::done_ns).collect();
    done.sort_unstable();
    ms(done.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(t_ms: u64, server: Option<&str>) -> Sample {
        Sample {
            t_ns: t_ms * 1_000_000,
            latency_ns: if server.is_some() { 2_000_000 } else { 150_000_000 },
            ok: server.is_some(),
            server: server.map(str::to_owned),
        }
    }

    #[test]
    fn an_outage_runs_from_the_last_good_answer_to_the_next() {
        let samples =
            [sample(0, Some("mail")), sample(20, None), sample(40, None), sample(60, Some("mailb")), sample(80, None)];
        let outages = outages(&samples);
        assert_eq!(outages.len(), 2);
        assert!((outages[0].ms - 60.0).abs() < 1e-9, "{outages:?}");
        assert_eq!(outages[0].failed, 2);
        assert_eq!(outages[0].before.as_deref(), Some("mail"));
        assert_eq!(outages[0].after.as_deref(), Some("mailb"));
        assert_eq!(outages[1].end_ns, None);
        assert!((longest_gap_ms(&samples) - 60.0).abs() < 1e-9);
    }
}
