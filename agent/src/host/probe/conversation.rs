//! One conversation with a service, step by step.

use super::{MAX_HEARD, Outcome, Probe, Step, StepReport, link::Link, shown};
use kage_types::whole_millis;
use regex_lite::Regex;
use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::time::timeout_at;

/// A datagram is sent again this often within its step, as datagrams get lost.
const REPEATS: u32 = 4;

/// How a probe ended before its end, and why.
type Ended = (Outcome, String);

pub(super) struct Conversation<'probe> {
    probe: &'probe Probe,
    end: Instant,
    link: Option<Link>,
    /// Each byte as one character.
    heard: String,
    /// What is before was matched by earlier steps. It is kept, so that `^` knows where lines begin.
    matched: usize,
    reports: Vec<StepReport>,
}

/// What reading on gave.
enum Heard {
    More,
    Closed,
    Failed(io::Error),
    /// Time for the next datagram, or over.
    Nothing,
}

impl<'probe> Conversation<'probe> {
    pub fn new(probe: &'probe Probe, end: Instant) -> Self {
        Self { probe, end, link: None, heard: String::new(), matched: 0, reports: Vec::new() }
    }

    /// To the end, or to the first step that fails.
    pub async fn hold(&mut self, target: SocketAddr) -> Result<(), Ended> {
        let begun = Instant::now();
        let within = self.probe.connect_timeout.min(self.end.saturating_duration_since(begun));
        let opening = Link::open(&self.probe.transport, target, within);
        let opened = match timeout_at((begun + within).into(), opening).await {
            Ok(opened) => opened,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let ended = match opened {
            Ok(link) => {
                self.link = Some(link);
                Ok(())
            }
            Err(error) => Err(unconnected(&error, within)),
        };
        self.told("connect".into(), "connect", begun, 0, ended)?;
        let probe = self.probe;
        for (index, step) in probe.steps.iter().enumerate() {
            let (begun, before) = (Instant::now(), self.heard.len());
            let ended = self.step(step).await;
            self.told(name(step), &format!("step {}", index + 1), begun, before, ended)?;
        }
        Ok(())
    }

    /// What was done. Closes the connection.
    pub fn end(self) -> Vec<StepReport> {
        if let Some(link) = self.link {
            link.close();
        }
        self.reports
    }

    fn told(
        &mut self,
        step: String,
        number: &str,
        begun: Instant,
        before: usize,
        ended: Result<(), Ended>,
    ) -> Result<(), Ended> {
        let outcome = ended.as_ref().err().map_or(Outcome::Ok, |(outcome, _)| *outcome);
        // A datagram takes the place of what was heard before it, whatever its length.
        let from = if matches!(self.link, Some(Link::Datagrams(_))) { 0 } else { before };
        let heard = bytes(self.heard.get(from..).unwrap_or(&self.heard));
        let heard = if heard.is_empty() { String::new() } else { shown(&heard) };
        self.reports.push(StepReport { step: step.clone(), outcome, took: begun.elapsed(), heard });
        ended.map_err(|(outcome, why)| {
            let what = if number == step { step } else { format!("{number} ({step})") };
            (outcome, format!("{what}: {why}"))
        })
    }

    async fn step(&mut self, step: &Step) -> Result<(), Ended> {
        let begun = Instant::now();
        let over = self.end.min(begun + step.timeout);
        let allowed = over.saturating_duration_since(begun);
        let datagrams = matches!(self.link, Some(Link::Datagrams(_)));
        self.send(&step.send, over, allowed).await?;
        let Some(expect) = &step.expect else { return Ok(()) };
        if datagrams {
            self.forget();
        }
        let came = self.heard.len();
        let mut again = begun + allowed / REPEATS;
        loop {
            if let Some(found) = expect.find_at(&self.heard, self.matched) {
                self.matched = found.end();
                return Ok(());
            }
            if step.wrong.as_ref().is_some_and(|wrong: &Regex| wrong.find_at(&self.heard, self.matched).is_some()) {
                return Err(self.wrong(came, "it said"));
            }
            if self.heard.chars().count() > MAX_HEARD {
                return Err(self.wrong(came, "it says too much, beginning with"));
            }
            let until = if datagrams { again.min(over) } else { over };
            match self.hear(until).await {
                Heard::More => {}
                Heard::Closed => return Err(self.silent(came, "it closed the connection".into())),
                Heard::Failed(error) => return Err(self.silent(came, refusal(&error))),
                Heard::Nothing if Instant::now() >= over => {
                    return Err(self.silent(came, format!("nothing within {:?}", whole_millis(allowed))));
                }
                Heard::Nothing => {
                    again += allowed / REPEATS;
                    self.send(&step.send, over, allowed).await?;
                }
            }
        }
    }

    fn forget(&mut self) {
        self.heard.clear();
        self.matched = 0;
    }

    async fn send(&mut self, bytes: &[u8], over: Instant, allowed: Duration) -> Result<(), Ended> {
        let Some(link) = self.link.as_mut().filter(|_| !bytes.is_empty()) else { return Ok(()) };
        match timeout_at(over.into(), link.send(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err((Outcome::Ng, refusal(&error))),
            Err(_) => Err((Outcome::Ng, format!("it takes nothing more within {:?}", whole_millis(allowed)))),
        }
    }

    async fn hear(&mut self, until: Instant) -> Heard {
        let Some(link) = self.link.as_mut() else { return Heard::Closed };
        let mut chunk = [0; 4096];
        match timeout_at(until.into(), link.receive(&mut chunk)).await {
            Ok(Ok(read)) => {
                match link {
                    Link::Stream(_) if read == 0 => return Heard::Closed,
                    Link::Stream(_) => {}
                    Link::Datagrams(_) => self.forget(),
                }
                self.heard.extend(chunk[..read].iter().map(|byte| char::from(*byte)));
                Heard::More
            }
            Ok(Err(error)) => Heard::Failed(error),
            Err(_) => Heard::Nothing,
        }
    }

    /// Nothing more comes: was what came the wrong thing, or was it nothing?
    fn silent(&mut self, came: usize, why: String) -> Ended {
        if self.heard.len() > self.fresh(came) { self.wrong(came, &format!("{why} after")) } else { (Outcome::Ng, why) }
    }

    /// Where this step's reply begins: the rest of a line that an earlier step matched may come late and is none.
    fn fresh(&self, came: usize) -> usize {
        let (before, after) = self.heard.split_at(self.matched);
        let rest = match after.find('\n') {
            _ if before.is_empty() || before.ends_with('\n') => 0,
            Some(end) => end + 1,
            None => after.len(),
        };
        came.max(self.matched + rest)
    }

    fn wrong(&mut self, came: usize, why: &str) -> Ended {
        // What an earlier step left over is shown if there is nothing else.
        let fresh = self.fresh(came);
        let from = if self.heard.len() > fresh { fresh } else { self.matched };
        (Outcome::Error, format!("{why} {}", shown(&bytes(&self.heard[from..]))))
    }
}

/// A step for people: what it sends, what it waits for.
fn name(step: &Step) -> String {
    let send = if step.send.is_empty() { String::new() } else { format!("send {}", brief(&step.send)) };
    match &step.expect {
        None => send,
        Some(expect) if send.is_empty() => format!("expect {}", brief(expect.as_str().as_bytes())),
        Some(expect) => format!("{send}, expect {}", brief(expect.as_str().as_bytes())),
    }
}

/// One line of a step.
fn brief(bytes: &[u8]) -> String {
    const LENGTH: usize = 40;
    // A pattern's own backslashes stay single.
    let text: String = bytes
        .iter()
        .flat_map(|byte| {
            if *byte == b'\\' {
                "\\".chars().collect()
            } else {
                byte.escape_ascii().to_string().chars().collect::<Vec<_>>()
            }
        })
        .collect();
    if text.chars().count() <= LENGTH { text } else { text.chars().take(LENGTH).collect::<String>() + "…" }
}

fn bytes(heard: &str) -> Vec<u8> {
    heard.chars().filter_map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

fn unconnected(error: &io::Error, within: Duration) -> Ended {
    if error.kind() == io::ErrorKind::TimedOut {
        (Outcome::Ng, format!("no connection within {:?}", whole_millis(within)))
    } else if error.kind() == io::ErrorKind::InvalidData {
        // Something answers, but not in TLS.
        (Outcome::Error, error.to_string())
    } else {
        (Outcome::Ng, refusal(error))
    }
}

/// Without "(os error 111)".
fn refusal(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
