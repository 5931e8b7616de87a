//! What a replay reached, for people.

use super::{Replay, Replayer, stamp};
use crate::{
    Coordinator,
    core::{JobFor, VipJob},
    journal::Core,
};
use jiff::tz::TimeZone;
use kage_types::{Time, whole_millis};
use std::{collections::BTreeMap, fmt::Write as _};

impl<C: Core> Replay<C> {
    /// Remarks, counts, and the point that was reached.
    #[must_use]
    pub fn heading(&self, zone: &TimeZone) -> String {
        let mut text = String::new();
        for remark in &self.remarks {
            let _ = writeln!(text, "note: {remark}");
        }
        let super::Counts { events, compared, snapshots, skipped, processes } = self.counts;
        let _ = writeln!(
            text,
            "{events} events of {processes} process(es) replayed; {compared} with recorded actions, all the same; \
             {snapshots} snapshot(s) met, the same state"
        );
        if skipped > 0 {
            let _ = writeln!(text, "{skipped} events could not be replayed");
        }
        if compared == 0 && events > 0 {
            text.push_str("nothing was compared: this journal has no recorded actions\n");
        }
        let Some((_, now)) = self.core() else {
            text.push_str("no state was reached\n");
            return text;
        };
        let wall = self.wall.map_or_else(String::new, |wall| format!("{}, ", stamp(wall.at(now), zone)));
        let _ = writeln!(text, "\nState after event {} ({wall}clock {now}):", self.seq);
        text
    }
}

impl Replayer {
    /// Remarks, counts and the state reached.
    #[must_use]
    pub fn summary(&self, zone: &TimeZone) -> String {
        let state = self.core().map(|(core, now)| state(core, now)).unwrap_or_default();
        self.heading(zone) + &state
    }
}

fn state(core: &Coordinator, now: Time) -> String {
    let mut text = String::new();
    let (term, valid, sif) = core.authority(now);
    let valid = if valid { "valid" } else { "NOT valid" };
    let sif = sif.as_ref().map_or_else(Clone::clone, |()| "connected".into());
    let _ = writeln!(text, "  term {term} {valid}; SIF: {sif}");
    if let Some(storm) = core.storm_brake() {
        let _ = writeln!(text, "  storm brake: {storm}");
    }
    for order in core.orders(now) {
        let _ = writeln!(text, "  order: {} by {} ({})", order.order.scope, order.order.who, order.order.reason);
    }
    for view in core.quarantines(now) {
        let _ = writeln!(text, "  quarantine: {}, another {:?}: {}", view.agent, whole_millis(view.left), view.why);
    }
    for (name, target) in &core.cluster().targets {
        let Some(view) = core.target(name) else { continue };
        let step = if view.step.is_empty() { String::new() } else { format!("/{}", view.step) };
        let detail = if view.detail.is_empty() { String::new() } else { format!(": {}", view.detail) };
        let _ = writeln!(
            text,
            "  {name}: {}{step} for {:?}{detail}; ping {}, service {}",
            view.mode,
            whole_millis(now.since(view.since)),
            view.ping,
            view.service
        );
        for vip in &target.vips {
            let Some(state) = core.vip(*vip) else { continue };
            let owner = state.row.as_ref().map_or_else(
                || "nobody's yet".to_owned(),
                |row| {
                    let domain = row.domain.as_ref().map_or_else(String::new, |domain| format!(" ({domain})"));
                    format!("{}{domain} at epoch {}, cause {}", row.owner, row.epoch, row.cause.as_str())
                },
            );
            let granted = state.granted.map_or_else(
                || "never granted by this process".to_owned(),
                |at| format!("granted {:?} ago", whole_millis(now.since(at))),
            );
            let held = if state.held { "held" } else { "not held" };
            let moving = state.moving.map_or_else(String::new, |stage| format!("; being moved: {stage}"));
            let _ = writeln!(text, "    {vip}: {owner}; {held}, {granted}{moving}");
        }
    }
    let mut jobs: BTreeMap<String, usize> = BTreeMap::new();
    for job in core.jobs.values() {
        *jobs.entry(words(job)).or_default() += 1;
    }
    let jobs: Vec<String> =
        jobs.into_iter().map(|(what, count)| if count > 1 { format!("{what} ×{count}") } else { what }).collect();
    let jobs = if jobs.is_empty() { "none".to_owned() } else { jobs.join(", ") };
    let _ = writeln!(text, "  jobs under way: {jobs}");
    text
}

fn words(job: &JobFor) -> String {
    match job {
        JobFor::Vip(vip, VipJob::Bar(voter)) => format!("{vip}: bar of {voter}"),
        JobFor::Vip(vip, what) => format!("{vip}: {what:?}").to_lowercase(),
        JobFor::Target(target, what) => format!("{target}: {}", format!("{what:?}").to_lowercase()),
        JobFor::Ready { target, .. } => format!("{target}: its double resumed for a fail-over"),
        JobFor::LongLease(agent) => format!("long lease of {agent}"),
        JobFor::LongReturned(vip) => format!("{vip}: long lease returned"),
        JobFor::Pause(owner, _) => {
            format!("{} suspended", owner.domain.as_ref().map_or("double", |name| name.as_str()))
        }
        JobFor::StandIn(domain, what) => format!("{domain}: {}", format!("{what:?}").to_lowercase()),
        JobFor::Order(_) => "order noted".to_owned(),
        JobFor::Signal => "SIF told for the shared tables".to_owned(),
    }
}
