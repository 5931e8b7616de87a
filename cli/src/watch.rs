//! `kagectl watch`: the status kept up to date in place, events above it as they come. Nothing of the screen is taken
//! away: what was above stays, events scroll up, and the last status is left when it ends.

use crate::{
    Failure, Global,
    connect::Coordinator,
    events::{self, Format},
    status,
    style::{self, Style, Tone},
    table::fit,
};
use kage_proto::coordinator::v1::{Event, GetStatusRequest, Status, WatchEventsRequest};
use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};
use tokio::sync::mpsc;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Events waiting to be printed.
const QUEUE: usize = 256;

/// The status that is on the terminal now.
struct Block {
    style: Style,
    lines: usize,
}

impl Block {
    /// Takes the old one away, prints what stays, then the new one. One write, so that nothing flickers.
    fn draw(&mut self, above: &[String], page: &str) -> std::io::Result<()> {
        let (width, rows) = style::size().unwrap_or((self.style.width, 24));
        self.style.width = width;
        let mut out = String::new();
        if self.lines > 0 {
            out.push_str(&format!("\x1b[{}A\r\x1b[J", self.lines));
        }
        for line in above {
            out.push_str(&fit(line, width));
            out.push('\n');
        }
        let all: Vec<&str> = page.lines().collect();
        // One row stays free for the cursor: a block higher than the terminal could not be taken away again.
        let room = rows.saturating_sub(2).max(1);
        let shown = if all.len() > room { room - 1 } else { all.len() };
        for line in &all[..shown] {
            out.push_str(line);
            out.push('\n');
        }
        if shown < all.len() {
            out.push_str(&format!("… {} more lines: kagectl status\n", all.len() - shown));
        }
        self.lines = if shown < all.len() { shown + 1 } else { shown };
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }
}

/// What a change of it is worth a line where nothing can be redrawn.
fn summary(status: &Status) -> String {
    let mut parts: Vec<String> = status
        .targets
        .iter()
        .map(|target| {
            let holders: Vec<&str> = target.vips.iter().map(|vip| vip.holder.as_str()).collect();
            let same = holders.windows(2).all(|pair| pair[0] == pair[1]);
            let holder = if same { holders.first().copied().unwrap_or("nobody") } else { "several" };
            format!("{} {}, served by {holder}", target.target, target.mode)
        })
        .collect();
    for order in &status.orders {
        parts.push(if order.scope == "all" { "DISARMED".to_owned() } else { format!("maintenance {}", order.scope) });
    }
    parts.extend(status.quarantines.iter().map(|known| format!("quarantine {}", known.agent)));
    let away: Vec<&str> =
        status.agents.iter().filter(|agent| !agent.connected).map(|agent| agent.agent.as_str()).collect();
    if !away.is_empty() {
        parts.push(format!("away: {}", away.join(", ")));
    }
    if !status.in_authority {
        parts.push("NOT in authority".to_owned());
    }
    parts.extend(status.alerts.iter().map(|alert| format!("ALERT {alert}")));
    parts.join("; ")
}

/// Events after a number, for ever: a stream that ends is opened again where it ended.
async fn follow(global: Global, mut after: u64, sender: mpsc::Sender<Event>) {
    loop {
        if let Ok(coordinator) = Coordinator::new(&global) {
            let request = WatchEventsRequest { after_seq: after, follow: true, target: String::new() };
            if let Ok(mut stream) = coordinator.ask(async |mut client| client.watch_events(request).await).await {
                while let Ok(Some(event)) = stream.message().await {
                    after = event.seq;
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub async fn watch(global: &Global) -> Result<(), Failure> {
    let coordinator = Coordinator::new(global)?;
    // Wrong address or certificate: said at once, not shown for ever.
    let ask = async || coordinator.ask(async |mut client| client.get_status(GetStatusRequest {}).await).await;
    let mut seen: Result<Status, Failure> = Ok(ask().await?);
    let after = seen.as_ref().map_or(0, |status| status.journal_seq);
    let (sender, mut events) = mpsc::channel(QUEUE);
    tokio::spawn(follow(global.clone(), after, sender));
    let in_place = std::io::stdout().is_terminal() && !global.json;
    let mut block = Block { style: Style::of_stdout(), lines: 0 };
    let mut said = String::new();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut fresh = Vec::new();
        tokio::select! {
            _ = tick.tick() => seen = ask().await,
            Some(event) = events.recv() => {
                fresh.push(event);
                while let Ok(event) = events.try_recv() {
                    fresh.push(event);
                }
                // What happened shows in the status, too.
                seen = ask().await;
            }
        }
        let format = if global.json { Format::Json } else { Format::Text };
        let lines: Vec<String> = fresh.iter().map(|event| events::line(event, format)).collect();
        let written = if in_place {
            let page = match &seen {
                Ok(status) => status::to_text(status, block.style),
                Err(Failure::Failed(why) | Failure::Configuration(why) | Failure::Unreachable(why)) => {
                    crate::table::paragraph(block.style, "NO ANSWER  ", why, Tone::Bad)
                }
            };
            block.draw(&lines, &page)
        } else {
            let state = match &seen {
                Ok(status) if global.json => status::to_json(status).to_string(),
                Ok(status) => format!("-- {}", summary(status)),
                Err(Failure::Failed(why) | Failure::Configuration(why) | Failure::Unreachable(why)) => {
                    format!("-- no answer: {}", why.lines().next().unwrap_or_default())
                }
            };
            let key = seen.as_ref().map_or_else(|_| state.clone(), summary);
            let news = if key == said { None } else { Some(state) };
            said = key;
            lines.iter().chain(&news).try_for_each(|line| writeln!(std::io::stdout(), "{line}"))
        };
        // A reader that went away (`| head`) is no fault.
        if written.is_err() {
            return Ok(());
        }
    }
}
