//! `kagectl events`, `failover`, `failback`: streams of what happens.

use crate::{Failure, Global, Move, connect::Coordinator};
use kage_proto::coordinator::v1::{Event, MoveRequest, WatchEventsRequest};
use serde_json::json;
use std::io::Write as _;
use tonic::Streaming;

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    Text,
    /// An object a line.
    Json,
}

pub async fn watch(global: &Global, after: u64, follow: bool, target: &str, format: Format) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    let request = WatchEventsRequest { after_seq: after, follow, target: target.to_owned() };
    let events = coordinator.ask(async |mut client| client.watch_events(request).await).await?;
    print_all(&coordinator, events, format).await?;
    Ok(())
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

fn line(event: &Event, format: Format) -> String {
    match format {
        Format::Json => json!({
            "seq": event.seq, "unix_ms": event.unix_ms, "target": event.target, "severity": event.severity,
            "kind": event.kind, "text": event.text,
        })
        .to_string(),
        Format::Text => {
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
