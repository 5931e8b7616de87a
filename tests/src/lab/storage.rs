//! Data around a failure, on the file server that target and double share: mails accepted while the target is cut off
//! with its storage reachable, and a file uploaded before the target loses power.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::lifecycle::this_program;
use super::network::{self, Cut};
use super::nodes::{Service, Spec, System, find};
use super::run::{now_ns, text, wait_until, write};
use super::spawn::{Daemon, run_in};
use super::{dirs, fileserver, machine, suite, trouble};

/// A mail's fate, as its sender knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// From 0.
    pub number: u32,
    /// Accepted with 250 after its end: nanoseconds since 1970.
    pub accepted_ns: u64,
    /// How often it was begun.
    pub attempts: u32,
    /// Sent whole without an answer, and so sent again, as RFC 5321 4.5.4.1 tells a sender to: the server may have it.
    pub unanswered: u32,
}

/// A try of one mail.
enum Try {
    Accepted,
    /// Given up before its end was sent: the server can't have it.
    NotSent,
    /// Its end was sent, and no answer came.
    Unanswered,
}

fn deliver(vip: Ipv4Addr, number: u32, run: &str) -> Try {
    let dialogue = || -> Result<(BufReader<TcpStream>, TcpStream)> {
        let wait = Duration::from_secs(1);
        let stream = TcpStream::connect_timeout(&SocketAddr::from((vip, Service::Smtp.port())), wait)?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.set_write_timeout(Some(wait))?;
        let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
        expect(&mut reader, "220")?;
        for (line, code) in [
            ("HELO client.lab", "250"),
            ("MAIL FROM:<client@lab>", "250"),
            ("RCPT TO:<demo@lab>", "250"),
            ("DATA", "354"),
        ] {
            writer.write_all(format!("{line}\r\n").as_bytes())?;
            expect(&mut reader, code)?;
        }
        Ok((reader, writer))
    };
    let Ok((mut reader, mut writer)) = dialogue() else { return Try::NotSent };
    let head = format!("From: client@lab\r\nTo: demo@lab\r\nMessage-ID: <{run}.{number}@client.lab>\r\n");
    let body = format!("{head}Subject: {number}\r\nX-Kage-Run: {run}\r\nX-Kage: {number}\r\n\r\nNumber {number}.\r\n");
    if writer.write_all(body.as_bytes()).is_err() || writer.write_all(b".\r\n").is_err() {
        return Try::Unanswered;
    }
    match expect(&mut reader, "250") {
        Ok(()) => {
            let _ = writer.write_all(b"QUIT\r\n");
            Try::Accepted
        }
        Err(_) => Try::Unanswered,
    }
}

fn expect(reader: &mut impl BufRead, code: &str) -> Result<()> {
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the connection ended");
        ensure!(line.starts_with(code), "{line}");
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

/// Sends `count` mails, one each `every` at most, each until it is accepted; a JSON line for each in `out`.
///
/// # Errors
/// The file can't be written.
pub fn send_mails(vip: Ipv4Addr, run: &str, count: u32, every: Duration, out: &Path) -> Result<()> {
    let mut file = std::fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    for number in 0..count {
        let began = Instant::now();
        let (mut attempts, mut unanswered) = (0, 0);
        loop {
            attempts += 1;
            match deliver(vip, number, run) {
                Try::Accepted => break,
                Try::NotSent => {}
                Try::Unanswered => unanswered += 1,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let sent = Sent { number, accepted_ns: now_ns(), attempts, unanswered };
        writeln!(file, "{}", serde_json::to_string(&sent)?)?;
        std::thread::sleep(every.saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// What became of the mails.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mails {
    /// Accepted with 250.
    pub accepted: u32,
    /// Of these, how often each was delivered: times → mails.
    pub delivered: BTreeMap<u32, u32>,
    /// Mails whose end was once sent without an answer.
    pub unanswered: u32,
    /// Mails that were delivered twice although every try but one was given up before its end was sent.
    pub doubled: Vec<u32>,
    /// The longest time between two acceptances, in milliseconds.
    pub longest_gap_ms: f64,
    /// What did not go as promised.
    pub problems: Vec<String>,
}

fn sent(file: &Path) -> Vec<Sent> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Copies of each mail of this run in the user's maildir.
fn arrived(run: &str) -> Result<BTreeMap<u32, u32>> {
    let folder = fileserver::export(find("fs")?).join("mail/demo");
    let mut copies = BTreeMap::new();
    for place in ["new", "cur"] {
        let Ok(entries) = std::fs::read_dir(folder.join(place)) else { continue };
        for entry in entries {
            let mail = std::fs::read_to_string(entry?.path()).unwrap_or_default();
            let header = |name: &str| mail.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if header("X-Kage-Run:") == Some(run)
                && let Some(number) = header("X-Kage:").and_then(|number| number.parse().ok())
            {
                *copies.entry(number).or_default() += 1;
            }
        }
    }
    Ok(copies)
}

/// `count` mails to `target`, which is cut off from all but its storage after the first third, and joined again after
/// the second.
///
/// # Errors
/// The lab is down, not of the layout `msbs`, or not at rest.
pub fn mails(target: &'static Spec, count: u32, say: &mut dyn FnMut(&str)) -> Result<Mails> {
    if target.system != System::Debian || target.service != Service::Smtp {
        bail!("{} takes no mail: tests/lab up --layout msbs, and --target mail", target.name);
    }
    trouble::all_regular(&[target], target.boot_limit()).context("before the drill")?;
    let vip = target.vip().context("it has a VIP")?;
    let run = (now_ns() / 1_000_000_000).to_string();
    let folder = dirs::lab().join("results").join(format!("{run}-mails"));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join("sent.jsonl");
    let sender = Daemon::new(find("client")?, "mails");
    sender.stop()?;
    let (vip, count_word) = (format!("--vip={vip}"), format!("--count={count}"));
    let (run_word, out) = (format!("--run={run}"), format!("--out={}", text(&file)));
    sender.start(&[&this_program()?, "send-mails", &vip, &run_word, &count_word, &out])?;
    let reached = |share: u32, limit: u64| {
        let what = format!("{share} of {count} mails are accepted");
        wait_until(Duration::from_secs(limit), &what, || Ok(sent(&file).len() >= share as usize))
    };
    let found = (|| {
        reached(count / 3, 120)?;
        say(&format!("{} mails accepted; {} is cut off from all but its storage", count / 3, target.name));
        network::cut(target, Cut::AllButStorage)?;
        reached(count * 2 / 3, 180)?;
        say(&format!("{} mails accepted; the cut is healed", count * 2 / 3));
        network::heal(target)?;
        reached(count, 180)?;
        trouble::all_regular(&[target], Duration::from_secs(180))
    })();
    network::heal(target)?;
    let mut problems: Vec<String> = found.err().map(|error| format!("{error:#}")).into_iter().collect();
    let sent = sent(&file);
    // What lay in a queue while its machine was cut off is delivered by now, or never.
    let all = wait_until(Duration::from_secs(60), "every accepted mail is delivered", || {
        let copies = arrived(&run)?;
        Ok(sent.iter().all(|mail| copies.contains_key(&mail.number)))
    });
    problems.extend(all.err().map(|error| format!("{error:#}")));
    // A second copy would come from the other machine's queue.
    std::thread::sleep(Duration::from_secs(5));
    sender.stop()?;
    let copies = arrived(&run)?;
    let mut delivered = BTreeMap::new();
    let mut doubled = Vec::new();
    for mail in &sent {
        let times = copies.get(&mail.number).copied().unwrap_or_default();
        *delivered.entry(times).or_default() += 1;
        if times > 1 + mail.unanswered {
            doubled.push(mail.number);
        }
    }
    if !doubled.is_empty() {
        problems.push(format!("delivered more often than they were sent: {doubled:?}"));
    }
    let accepted = u32::try_from(sent.len()).unwrap_or(u32::MAX);
    if accepted < count {
        problems.push(format!("{accepted} of {count} were accepted"));
    }
    let gaps = sent.windows(2).map(|pair| pair[1].accepted_ns.saturating_sub(pair[0].accepted_ns));
    let found = Mails {
        accepted,
        delivered,
        unanswered: u32::try_from(sent.iter().filter(|mail| mail.unanswered > 0).count()).unwrap_or(u32::MAX),
        doubled,
        longest_gap_ms: super::run::ms(gaps.max().unwrap_or_default()),
        problems,
    };
    write(&folder.join("mails.json"), serde_json::to_string_pretty(&found)?)?;
    Ok(found)
}

impl Mails {
    /// In a line.
    #[must_use]
    pub fn line(&self) -> String {
        let of = |times: u32| self.delivered.get(&times).copied().unwrap_or_default();
        let more: u32 = self.delivered.iter().filter(|(times, _)| **times > 1).map(|(_, mails)| mails).sum();
        let mut line = format!(
            "{} mails accepted: {} delivered exactly once, {more} more often, {} not; {} were once sent without an \
             answer, and so sent again; longest time without an acceptance {:.0} ms",
            self.accepted,
            of(1),
            of(0),
            self.unanswered,
            self.longest_gap_ms
        );
        for problem in &self.problems {
            line.push_str(&format!("\n  problem: {problem}"));
        }
        line
    }
}

/// Uploads a file of a mebibyte, cuts the power of the machine that took it, reads it from the double, and once more
/// from the target when that has its place again.
///
/// # Errors
/// The lab is down or not of the layout `msbs`; or the file is not there, or another.
pub fn upload(target: &'static Spec, say: &mut dyn FnMut(&str)) -> Result<String> {
    if target.system != System::Debian || target.service != Service::Http {
        bail!("{} takes no files: tests/lab up --layout msbs, and --target web", target.name);
    }
    trouble::all_regular(&[target], target.boot_limit()).context("before the drill")?;
    let client = find("client")?;
    let vip = target.vip().context("it has a VIP")?;
    let run = now_ns() / 1_000_000_000;
    let folder = dirs::lab().join("results").join(format!("{run}-upload"));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (here, url) = (folder.join("file"), format!("http://{vip}/files/{run}"));
    let mut state = now_ns() | 1;
    let content: Vec<u8> = (0..1 << 17)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    write(&here, &content)?;
    run_in(client, &["curl", "-sSf", "-m", "20", "-T", &text(&here), &url]).context("the upload")?;
    let same = |who: &str| -> Result<()> {
        let back = folder.join(who);
        run_in(client, &["curl", "-sSf", "-m", "20", "-o", &text(&back), &url])
            .with_context(|| format!("the file from {who}"))?;
        let read = std::fs::read(&back).with_context(|| format!("cannot read {}", back.display()))?;
        ensure!(read == content, "{who} gives another file than was uploaded: {} bytes", read.len());
        Ok(())
    };
    same("target")?;
    say(&format!("1 MiB uploaded to {}, whose power is cut now", target.name));
    let after = suite::last_event()?;
    machine::power_off(target)?;
    let taken = wait_until(Duration::from_secs(60), "the double serves", || {
        Ok(suite::events_after(after)?.iter().any(|event| event["kind"] == "vip-set" && event["target"] == target.name))
    });
    taken?;
    same("double")?;
    say("the double gives the same file");
    trouble::all_regular(&[target], Duration::from_secs(300))?;
    same("target-again")?;
    Ok(format!("a file uploaded to {} is the same on its double, and on {} after it is home", target.name, target.name))
}
