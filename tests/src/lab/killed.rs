//! A part of the product killed while a live migration of power saving is under way: the coordinator and SIF in the evening,
//! the agents at both ends of the way home in the morning. One night serves all four.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::config::Profile;
use super::daemons::{self, Part};
use super::load::{self, Level};
use super::losses::{BACK, GAP_MS};
use super::nodes::{Layout, find};
use super::power::{BASE, Clients, Condition, folder, proved, rows, tables, until};
use super::run::{wait_until, write};
use super::suite::{Say, events_after, last_event, prepare};
use super::{lifecycle, realserver, survey};

/// As the suite calls it.
pub(super) const NAME: &str = "power saving: killed amid a transition";

/// Judged, begun, and hosts woken first on the way up.
const BEGUN: Duration = Duration::from_secs(60);
/// A new coordinator has its term and has outwaited its predecessor's, then takes back what was done; or doubles stood in
/// for whom a killed agent held, who returns.
const REST: Duration = Duration::from_secs(180);
/// `RestartSec` of deploy/kage-coordinator.service and kage-sif.service; an agent's is half of it.
const RESTART: Duration = Duration::from_millis(100);
/// Where the way home leads: it was asleep until then.
const RETURNING: &str = "rs2";

/// All four.
///
/// # Errors
/// The lab does not come up; somebody is not served, or not as the tables say; two owners.
pub(super) fn run(say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let done = night(say);
    if done.is_err() {
        // Whatever is half done there is nothing for the next scenario.
        lifecycle::down()?;
    }
    done
}

fn night(say: Say<'_>) -> Result<String> {
    let folder = folder("killed")?;
    load::set(None, Level::Moderate)?;
    until(Condition::Moderate).context("by day")?;
    arrived(Condition::Moderate, &folder, "by day")?;
    let legs = [
        (Condition::Light, Part::Coordinator),
        (Condition::Moderate, Part::Agent(find(BASE)?)),
        (Condition::Light, Part::Sif),
        (Condition::Moderate, Part::Agent(find(RETURNING)?)),
    ];
    let mut told = Vec::new();
    for (towards, part) in legs {
        let text = leg(towards, part, &folder, say)
            .with_context(|| format!("{} killed on the way to {}", part.name(), towards.name()))?;
        say(&format!("        {text}"));
        told.push(text);
    }
    load::set(None, Level::Light)?;
    Ok(told.join("; "))
}

/// To this condition, with this part killed on the way, as clients saw it.
fn leg(towards: Condition, part: Part, folder: &Path, say: Say<'_>) -> Result<String> {
    let folder = folder.join(format!("{}-{}", towards.name(), part.name().replace(' ', "-")));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let clients = Clients::start(&folder)?;
    let done = there(towards, part, &folder);
    // Whatever failed: the evidence is kept.
    let ended = clients.end(&folder);
    if let Ok((_, balanced, _)) = &ended {
        for (name, seen) in balanced {
            say(&format!("        {name} through the load balancer: {}", seen.word()));
        }
    }
    let text = done?;
    let (direct, balanced, changes) = ended?;
    let gap = balanced.values().map(|seen| seen.gap_ms).fold(0.0, f64::max);
    let failed: usize = balanced.values().map(|seen| seen.failed).sum();
    let text = format!("{text}, {failed} requests failed, longest gap {gap:.0} ms");
    let report = json!({ "leg": text, "direct": direct, "balanced": balanced, "changes_of_owner": changes });
    write(&folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    ensure!(gap <= GAP_MS, "clients waited for {gap:.0} ms: {text}");
    Ok(text)
}

/// The change of load, the kill while the first live migration is under way, and until all is as it is to be.
fn there(towards: Condition, part: Part, folder: &Path) -> Result<String> {
    if towards == Condition::Light {
        std::thread::sleep(realserver::AWAKE_FOR);
    }
    let after = last_event()?;
    load::set(None, towards.level())?;
    let mut step = None;
    wait_until(BEGUN, "a live migration is under way", || {
        step = tables().ok().and_then(|tables| migrating(&tables));
        Ok(step.is_some())
    })?;
    let step = step.context("a live migration")?;
    daemons::kill(part)?;
    let killed = Instant::now();
    // A dead SIF answers nobody, and its tables stay as they are.
    let amid = part == Part::Sif || tables().is_ok_and(|tables| !tables["transition"].is_null());
    std::thread::sleep(RESTART);
    daemons::start(part)?;
    ensure!(amid, "the transition was over when {} was dead: nothing was tried", part.name());
    let settled = rested(folder);
    let condition = settled.with_context(|| format!("killed during `{step}`"))?;
    let rested = killed.elapsed();
    until(towards)?;
    arrived(towards, folder, "at the end")?;
    let events = events_after(after)?;
    write(&folder.join("events.jsonl"), events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    Ok(format!(
        "{} killed during `{step}`: at rest in {} {:.1} s later, in {} after {:.1} s",
        part.name(),
        condition.name(),
        rested.as_secs_f64(),
        towards.name(),
        killed.elapsed().as_secs_f64()
    ))
}

/// Waits until nothing is under way, and says what still is if that never is so.
fn rested(folder: &Path) -> Result<Condition> {
    let mut found = at_rest(folder);
    let waited = wait_until(REST, "all is at rest, in Light or in Moderate condition", || {
        found = at_rest(folder);
        Ok(found.is_ok())
    });
    match waited {
        Ok(_) => found,
        Err(late) => found.with_context(|| format!("{late:#}")),
    }
}

/// The live migration that the ledger's transition has begun and not done.
fn migrating(tables: &Value) -> Option<String> {
    let step = rows(&tables["transition"]["steps"]).into_iter().find(|step| {
        step["state"] == "begun" && step["step"].as_str().is_some_and(|step| step.starts_with("live migration"))
    })?;
    step["step"].as_str().map(str::to_owned)
}

/// Nothing is under way, and everything is as one of the two conditions has it: answers, power, tables, every host's memory.
fn at_rest(folder: &Path) -> Result<Condition> {
    let now = tables()?;
    ensure!(now["transition"].is_null(), "a transition is under way: {}", now["transition"]);
    let light = rows(&now["state"]).iter().any(|row| row["condition"] == Condition::Light.name());
    let condition = if light { Condition::Light } else { Condition::Moderate };
    whole(condition, folder, "at rest")?;
    Ok(condition)
}

/// As a condition has it, down to what libvirt has on each host.
fn whole(condition: Condition, folder: &Path, when: &str) -> Result<()> {
    proved(condition, folder, when)?;
    survey::agrees(&tables()?).with_context(|| when.to_owned())
}

/// Waits until everything is as the condition has it, and says what is not if it never is.
pub(super) fn arrived(condition: Condition, folder: &Path, when: &str) -> Result<()> {
    if wait_until(BACK, "everything is in its place", || Ok(whole(condition, folder, when).is_ok())).is_err() {
        whole(condition, folder, when)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_migration_under_way_is_one() {
        let with = |state: &str, step: &str| json!({"transition": {"steps": [{"state": state, "step": step}]}});
        let step = "live migration of ftp1: rs2 -> rs1";
        assert_eq!(migrating(&with("begun", step)).as_deref(), Some(step));
        assert_eq!(migrating(&with("planned", step)), None);
        assert_eq!(migrating(&with("done", step)), None);
        assert_eq!(migrating(&with("begun", "suspend host rs2")), None);
        assert_eq!(migrating(&json!({"transition": null})), None);
    }
}
