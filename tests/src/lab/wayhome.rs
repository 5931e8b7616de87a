//! After problem (d): who was beyond repair is repaired, started where it was, and takes its place again; its backup server
//! goes home to the management server and sleeps, and power saving brings the repaired one where it belongs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::config::Profile;
use super::killed::arrived;
use super::load::{self, Level};
use super::losses::{BACK, GAP_MS};
use super::nodes::{Layout, Spec, find};
use super::power::{Clients, Condition, folder, rows, tables, until};
use super::run::{wait_until, write};
use super::suite::{Say, events_after, kagectl_json, last_event, prepare};
use super::trouble::Trouble;
use super::{console, daemons, hypervisor, lifecycle, machine, network, signals};

/// As the suite calls it.
pub(super) const NAME: &str = "power saving: the way home after down";

/// A round or two of the coordinator's own look at it, on a busy machine.
const SEEN: Duration = Duration::from_secs(30);
/// Its client's next question, once the virtual IP is there.
const SERVED: Duration = Duration::from_secs(20);

/// All of it, from problem (d) on.
///
/// # Errors
/// The lab does not come up; what is promised does not come to pass; two owners; clients wait for too long.
pub(super) fn run(say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let done = there_and_back(say);
    if done.is_err() {
        // One that never boots is nothing for the next scenario.
        lifecycle::down()?;
    }
    done
}

fn there_and_back(say: Say<'_>) -> Result<String> {
    let folder = folder("way-home")?;
    // As in problem (d).
    let (server, double) = (find("ftp1")?, find("ftpb")?);
    let away = signals::goes_home(say)?;
    say(&format!("        {away}"));
    until(Condition::Moderate).context("with the backup server in its place")?;
    let now = tables()?;
    let down = |row: &Value| row["target"] == server.name && row["stage"] == "down";
    ensure!(rows(&now["trouble"]).iter().any(down), "Trouble does not say that {} is down: {now}", server.name);
    let host = displaced(&now, server)?;
    let after = last_event()?;
    let clients = Clients::start(&folder)?;
    let done = restarted(server, double).and_then(|restarted| {
        let returned = returns(server, double, host, &folder)?;
        Ok(format!("{restarted}; {returned}"))
    });
    let ended = clients.end(&folder);
    let _ = load::set(None, Level::Light);
    let events = events_after(after).unwrap_or_default();
    write(&folder.join("events.jsonl"), events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    if let Ok((_, balanced, _)) = &ended {
        for (name, seen) in balanced {
            say(&format!("        {name} through the load balancer: {}", seen.word()));
        }
    }
    let text = done?;
    let (direct, balanced, changes) = ended?;
    let report = json!({ "text": text, "direct": direct, "balanced": balanced, "changes_of_owner": changes });
    write(&folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    let gap = balanced.values().map(|seen| seen.gap_ms).fold(0.0, f64::max);
    let failed: usize = balanced.values().map(|seen| seen.failed).sum();
    ensure!(gap <= GAP_MS, "clients waited for {gap:.0} ms: {text}");
    Ok(format!(
        "{text}; {changes} changes of owner, never two; {failed} requests failed through the load balancer, longest gap {gap:.0} ms"
    ))
}

/// Where it was when it was given up: there it is to be started, and nowhere else.
fn displaced(tables: &Value, server: &Spec) -> Result<&'static Spec> {
    let row = rows(&tables["displaced"]).into_iter().find(|row| row["place"] == server.name);
    let row = row.with_context(|| format!("Displaced does not say where {} was", server.name))?;
    let host = find(row["host"].as_str().unwrap_or_default())?;
    match hypervisor::whereabouts(server) {
        Some((other, state)) if other.name != host.name => {
            bail!("{} was on {}, but is {state} on {}", server.name, host.name, other.name)
        }
        Some(_) | None => Ok(host),
    }
}

/// Its service dies in the backup server that stands in: the agent inside restarts it, and nothing is reset.
fn restarted(server: &'static Spec, double: &'static Spec) -> Result<String> {
    let client = find("client")?;
    let vip = server.vip().context("it has a VIP")?;
    let serves = || network::who_serves(client, vip, server.service).as_deref() == Some(double.name);
    wait_until(SERVED, "the backup server serves", || Ok(serves()))?;
    let agent = || {
        let rows = rows(&kagectl_json(&["status"])?["agents"]);
        let row = rows.into_iter().find(|row| row["agent"] == double.name).context("status shows its agent")?;
        Ok::<_, anyhow::Error>(row["connected"] == true)
    };
    wait_until(SEEN, "the agent inside it is connected", agent)?;
    let (after, began) = (last_event()?, Instant::now());
    console::exec_ok(double, &Trouble::St1.command(double), Duration::from_secs(10))?;
    let restarts = || -> Result<Vec<String>> {
        let events = events_after(after)?.into_iter().filter(|event| event["kind"] == "double-restarting");
        Ok(events.map(|event| event["text"].as_str().unwrap_or_default().to_owned()).collect())
    };
    wait_until(SEEN, "its service is restarted, and answers", || Ok(!restarts()?.is_empty() && serves()))?;
    let took = began.elapsed();
    let told = restarts()?;
    ensure!(
        told.iter().all(|text| text.contains(" in ") && text.ends_with("is restarted")),
        "more than its service was restarted: {told:?}"
    );
    Ok(format!("{}'s service died and was restarted inside it within {:.1} s", double.name, took.as_secs_f64()))
}

/// Repair, fail-back, and until everything is as it was before the trouble.
fn returns(server: &'static Spec, double: &'static Spec, host: &'static Spec, folder: &Path) -> Result<String> {
    hypervisor::mend(server)?;
    hypervisor::start_anew(server, host)?;
    machine::wait_answering(server, server.boot_limit())?;
    load::set_in(server, Level::Moderate)?;
    wait_until(SEEN, "the coordinator sees that it is repaired, and does nothing by itself", || {
        let Ok(status) = kagectl_json(&["status"]) else { return Ok(false) };
        let row = rows(&status["targets"]).into_iter().find(|row| row["target"] == server.name);
        let row = row.context("status shows it")?;
        ensure!(row["mode"] == "ended", "it was given up, but is in mode {}", row["mode"]);
        Ok(row["service"] == "ok")
    })?;
    // It sleeps as soon as it is home.
    load::set_in(double, Level::Light)?;
    let began = Instant::now();
    daemons::kagectl(&["failback", server.name])?;
    let client = find("client")?;
    let vip = server.vip().context("it has a VIP")?;
    wait_until(SERVED, "the repaired server serves its virtual IP", || {
        Ok(network::who_serves(client, vip, server.service).as_deref() == Some(server.name))
    })?;
    let served = began.elapsed();
    wait_until(BACK, "its backup server is home, and sleeps", || {
        let there = hypervisor::whereabouts(double);
        Ok(there.is_some_and(|(at, state)| at.name == double.host && state == "paused"))
    })?;
    let asleep = began.elapsed();
    until(Condition::Moderate)?;
    // No trouble, no claim, no transition, and everybody at home.
    arrived(Condition::Moderate, folder, "at the end")?;
    Ok(format!(
        "{} was repaired on {}; after the fail-back it served {:.1} s later, {} slept on {} {:.1} s later, and all was as before \
         {:.1} s later",
        server.name,
        host.name,
        served.as_secs_f64(),
        double.name,
        double.host,
        asleep.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ))
}
