//! `kagectl maintenance`, `disarm`, `arm`, `adopt`, `quarantine`.

use crate::{Failure, Global, connect::Coordinator};
use kage_proto::coordinator::v1::{AdoptRequest, ClearOrderRequest, EndQuarantineRequest, OrderReply, PutOrderRequest};
use serde_json::json;
use std::time::Duration;

/// Why, and for how long.
#[derive(Debug, clap::Args)]
pub struct Terms {
    /// Why; shown in status and events.
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    reason: String,
    /// Ends by itself after this long: 45m, 2h, 1d12h. Without it, when it is lifted.
    #[arg(long = "for", value_name = "TIME", value_parser = length)]
    length: Option<Duration>,
}

/// Maintenance.
#[derive(Debug, clap::Subcommand)]
pub enum Maintenance {
    /// Begin it.
    On {
        /// A target, or else an agent's name; `target:NAME` and `agent:NAME` say which. A host's maintenance covers
        /// every target on it, and no takeover is sent to it as a backup host.
        name: String,
        #[command(flatten)]
        terms: Terms,
    },
    /// End it: evidence starts anew.
    Off {
        /// As for `on`.
        name: String,
    },
}

/// Quarantine: the coordinator begins it.
#[derive(Debug, clap::Subcommand)]
pub enum Quarantine {
    /// End it now, once its cause is mended; what was counted against the machine is forgotten.
    Off {
        /// The machine's agent.
        agent: String,
    },
}

/// A year: longer is a mistake.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

fn length(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}; write it as 45m, 2h or 36h"))?;
    let length = Duration::try_from(span).map_err(|_| "it lies in the past".to_owned())?;
    if length.is_zero() || length > LONGEST {
        return Err("give more than nothing and at most a year".to_owned());
    }
    Ok(length)
}

pub async fn put(global: &Global, scope: &str, terms: &Terms) -> Result<(), Failure> {
    let for_ms = terms.length.map(|length| u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
    let request = PutOrderRequest { scope: scope.to_owned(), reason: terms.reason.clone(), for_ms };
    let reply = Coordinator::new(global)?.ask(async |mut client| client.put_order(request).await).await?;
    let end = if terms.length.is_some() { "It ends by itself" } else { "It stands until it is lifted" };
    say(global, &reply, |name| match name {
        None => format!("Disarmed: nothing is acted on; leases and observation go on. {end} (kagectl arm)."),
        Some(name) => format!("{name} is in maintenance: nothing is acted on. {end} (kagectl maintenance off)."),
    });
    Ok(())
}

pub async fn clear(global: &Global, scope: &str) -> Result<(), Failure> {
    let request = ClearOrderRequest { scope: scope.to_owned() };
    let reply = Coordinator::new(global)?.ask(async |mut client| client.clear_order(request).await).await?;
    say(global, &reply, |name| match name {
        None => "Armed: what was seen meanwhile counts for nothing, evidence starts anew.".to_owned(),
        Some(name) => format!("{name} is no longer in maintenance; evidence starts anew."),
    });
    Ok(())
}

fn say(global: &Global, reply: &OrderReply, words: impl Fn(Option<String>) -> String) {
    if global.json {
        println!("{}", json!({ "scope": reply.scope }));
        return;
    }
    let name = reply.scope.split_once(':').map(|(kind, name)| match kind {
        "agent" => format!("Host {name}"),
        _ => format!("Target {name}"),
    });
    println!("{}", words(name));
}

pub async fn adopt(global: &Global, target: &str) -> Result<(), Failure> {
    let request = AdoptRequest { target: target.to_owned() };
    let reply = Coordinator::new(global)?.ask(async |mut client| client.adopt(request).await).await?;
    if global.json {
        println!("{}", json!({ "target": target, "findings": reply.findings }));
    } else {
        reply.findings.iter().for_each(|finding| println!("{finding}"));
    }
    Ok(())
}

pub async fn end_quarantine(global: &Global, agent: &str) -> Result<(), Failure> {
    let request = EndQuarantineRequest { agent: agent.to_owned() };
    Coordinator::new(global)?.ask(async |mut client| client.end_quarantine(request).await).await?;
    if global.json {
        println!("{}", json!({ "agent": agent }));
    } else {
        println!("{agent} is no longer in quarantine; its lapses until now count for nothing.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_people_write_them() {
        for (text, seconds) in [("45m", 2700), ("2h", 7200), ("36h", 129_600), ("1h 30m", 5400), ("90s", 90)] {
            assert_eq!(length(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "2", "-2h", "0s", "tomorrow", "9000h"] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}
