//! `kagectl events`, `failover`, `failback`: streams of what happens.

use crate::{Failure, Global, Move, connect::Coordinator, thesis};
use kage_proto::coordinator::v1::{Event, GetStatusRequest, MoveRequest, WatchEventsRequest};
use serde_json::{Value, json};
use std::{io::Write as _, path::Path};
use tonic::Streaming;

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    Text,
    /// An object a line.
    Json,
    /// The thesis's log (F4), one for each target.
    Thesis,
}

/// Which events, and how.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Only those with a higher number.
    pub after: u64,
    /// Go on with what happens.
    pub follow: bool,
    /// Only of this target; empty: all.
    pub target: &'a str,
    /// How they are printed.
    pub format: Format,
}

pub async fn watch(global: &Global, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    let Wanted { after, follow, target, format } = *wanted;
    let request = WatchEventsRequest { after_seq: after, follow, target: target.to_owned() };
    let events = coordinator.ask(async |mut client| client.watch_events(request).await).await?;
    if format == Format::Thesis {
        return print_thesis(&coordinator, events, wanted).await;
    }
    print_all(&coordinator, events, format).await?;
    Ok(())
}

async fn print_thesis(
    coordinator: &Coordinator,
    mut events: Streaming<Event>,
    wanted: &Wanted<'_>,
) -> Result<(), Failure> {
    let status = coordinator.ask(async |mut client| client.get_status(GetStatusRequest {}).await).await?;
    if wanted.follow {
        if wanted.target.is_empty() {
            return Err(Failure::Failed(
                "the thesis has one log for each target: follow which? Add --target NAME".into(),
            ));
        }
        let mut log = thesis::Log::new(thesis::server(wanted.target, Some(&status), [].iter()));
        println!("{}", thesis::heading(wanted.target, Some(&status)));
        while let Some(event) = events.message().await.map_err(|status| coordinator.explain(&status))? {
            if write!(std::io::stdout(), "{}", log.lines(&event)).is_err() {
                break;
            }
        }
        return Ok(());
    }
    let mut all = Vec::new();
    while let Some(event) = events.message().await.map_err(|status| coordinator.explain(&status))? {
        all.push(event);
    }
    print!("{}", thesis::logs(&all, Some(&status)));
    Ok(())
}

/// Events of a coordinator's `events.jsonl`, without a coordinator.
pub fn replay(file: &Path, wanted: &Wanted<'_>) -> Result<(), Failure> {
    let bytes =
        std::fs::read(file).map_err(|error| Failure::Failed(format!("{} can't be read: {error}", file.display())))?;
    let (mut events, spoilt) =
        parse(&bytes).map_err(|reason| Failure::Failed(format!("{} is no events.jsonl: {reason}", file.display())))?;
    if !spoilt.is_empty() {
        eprintln!("kagectl: {}: spoilt lines are left out: {spoilt:?}", file.display());
    }
    events.retain(|event| event.seq > wanted.after && (wanted.target.is_empty() || event.target == wanted.target));
    if wanted.format == Format::Thesis {
        print!("{}", thesis::logs(&events, None));
        return Ok(());
    }
    for event in &events {
        if writeln!(std::io::stdout(), "{}", line(event, wanted.format)).is_err() {
            break;
        }
    }
    Ok(())
}

/// The lines of an `events.jsonl`, and the numbers of those that are none: cut short by a crash, spoilt by a bad disk.
///
/// # Errors
/// A file without a single event in its lines.
pub fn parse(bytes: &[u8]) -> Result<(Vec<Event>, Vec<usize>), String> {
    let (mut events, mut spoilt, mut first) = (Vec::new(), Vec::new(), None);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match event(line) {
            Ok(event) => events.push(event),
            Err(reason) => {
                first.get_or_insert_with(|| format!("line {}: {reason}", index + 1));
                spoilt.push(index + 1);
            }
        }
    }
    match first {
        Some(reason) if events.is_empty() => Err(reason),
        Some(_) | None => Ok((events, spoilt)),
    }
}

fn event(line: &[u8]) -> Result<Event, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| value[name].as_u64().ok_or_else(|| format!("it has no {name}"));
    Ok(Event {
        seq: number("seq")?,
        unix_ms: number("unix_ms")?,
        target: word("target"),
        severity: word("severity"),
        kind: word("kind"),
        text: word("text"),
    })
}

pub async fn failover(global: &Global, planned: &Move) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    let request = request(planned);
    let events = coordinator.ask(async |mut client| client.failover(request).await).await?;
    moved(global, &coordinator, events, planned).await
}

pub async fn failback(global: &Global, planned: &Move) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    let request = request(planned);
    let events = coordinator.ask(async |mut client| client.failback(request).await).await?;
    moved(global, &coordinator, events, planned).await
}

fn request(planned: &Move) -> MoveRequest {
    MoveRequest { target: planned.target.clone(), force: planned.force }
}

/// Prints what the move does; its last word decides.
async fn moved(
    global: &Global,
    coordinator: &Coordinator,
    events: Streaming<Event>,
    planned: &Move,
) -> Result<(), Failure> {
    let format = if global.json { Format::Json } else { Format::Text };
    match print_all(coordinator, events, format).await? {
        Some(last) if last.severity == "alert" => Err(Failure::Failed(format!(
            "the move of {} failed: {}; see `kagectl status` for who serves now",
            planned.target, last.text
        ))),
        Some(_) => Ok(()),
        None => Err(Failure::Failed(format!(
            "the coordinator ended the move of {} without a word; see `kagectl status`",
            planned.target
        ))),
    }
}

/// Prints each as it comes; returns the last.
async fn print_all(
    coordinator: &Coordinator,
    mut events: Streaming<Event>,
    format: Format,
) -> Result<Option<Event>, Failure> {
    let mut last = None;
    while let Some(event) = events.message().await.map_err(|status| coordinator.explain(&status))? {
        // A reader that went away (`| head`) is no fault.
        if writeln!(std::io::stdout(), "{}", line(&event, format)).is_err() {
            break;
        }
        last = Some(event);
    }
    Ok(last)
}

/// One event, printed.
pub fn line(event: &Event, format: Format) -> String {
    match format {
        Format::Json => json!({
            "seq": event.seq, "unix_ms": event.unix_ms, "target": event.target, "severity": event.severity,
            "kind": event.kind, "text": event.text,
        })
        .to_string(),
        Format::Text | Format::Thesis => {
            let when = i64::try_from(event.unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            let when = when.map_or_else(
                || "?".to_owned(),
                |when| when.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T%.3f").to_string(),
            );
            let Event { seq, target, severity, kind, text, .. } = event;
            format!("{seq:>6}  {when}  {severity:7}  {target:12}  {kind}: {text}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            seq: 7,
            unix_ms: 1_700_000_000_123,
            target: "mail1".into(),
            severity: "alert".into(),
            kind: "confirmed".into(),
            text: "no answer from service and ping".into(),
        };
        let text = line(&event, Format::Text);
        assert!(text.contains(".123  alert    mail1         confirmed: no answer"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&line(&event, Format::Json)).expect("json");
        assert_eq!(json["unix_ms"], 1_700_000_000_123_u64);
    }
}
