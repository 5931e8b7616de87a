//! The four problems of running power saving and high availability together (thesis fig. 4.6), each solved by a signal: what
//! is promised is looked at twice, as the product is, where it must hold, and with a coordinator that was built without that
//! signal, where it must not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::config::Profile;
use super::daemons::{self, Part};
use super::load::{self, Level};
use super::nodes::{Kind, Layout, find, of};
use super::power::{BASE, Condition, proved, rows, until};
use super::run::{now_ns, wait_until};
use super::suite::{Say, events_after, kagectl_json, last_event, prepare};
use super::trouble::{Trouble, first_trouble};
use super::{console, dirs, hypervisor, lifecycle, network};

/// One of the four.
pub struct Problem {
    /// As the suite calls it.
    pub name: &'static str,
    /// The signal that solves it, as `$KAGE_SABOTAGE` names it.
    signal: &'static str,
    promise: fn(Say<'_>) -> Result<String>,
}

/// All of them.
pub const ALL: [Problem; 4] = [
    Problem {
        name: "signal A1: who fails with another's virtual IP loses both to the backup server (problem a)",
        signal: "a1",
        promise: both_addresses,
    },
    Problem {
        name: "signal A2: who is suspended on purpose is in no trouble (problem b)",
        signal: "a2",
        promise: nobody_in_trouble,
    },
    Problem {
        name: "signal A4: a group with a backup server in it is measured (problem c)",
        signal: "a4",
        promise: measured,
    },
    Problem {
        name: "signal A5: a backup server that stays in a member's place goes where that belongs (problem d)",
        signal: "a5",
        promise: goes_home,
    },
];

/// Until the backup server serves; less than the target takes to come back.
const SERVED: Duration = Duration::from_secs(12);
/// Until the coordinator that was started anew is in authority and everybody is served.
const STARTED: Duration = Duration::from_secs(60);

/// Both ways; what was seen.
///
/// # Errors
/// The promise does not hold as the product is, or holds without the signal too.
pub fn run(problem: &Problem, say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let kept = (problem.promise)(say)?;
    let Some(broken) = dirs::built("kage-coordinator-sabotaged") else {
        bail!("kage-coordinator-sabotaged is not built: `tests/lab suite signal` builds it");
    };
    // What the promise left is no concern of the other.
    lifecycle::down()?;
    lifecycle::up(Layout::Pss, Profile::Normal, say)?;
    daemons::stop(Part::Coordinator)?;
    daemons::start_sabotaged(&broken, problem.signal)?;
    let missed = match (problem.promise)(say) {
        Ok(text) => bail!("{kept}; but also without the signal: {text}"),
        Err(error) => format!("{error:#}"),
    };
    // A lab with such a coordinator is of no use to anybody else.
    lifecycle::down()?;
    Ok(format!("{kept}; without the signal: {missed}"))
}

fn arrive(condition: Condition, level: Level) -> Result<()> {
    wait_until(STARTED, "somebody is in authority and power saving is at work", || {
        Ok(kagectl_json(&["pss"]).is_ok_and(|status| !rows(&status["groups"]).is_empty()))
    })?;
    load::set(None, level)?;
    until(condition).map(drop)
}

/// (a) PSS moved mail2's virtual IP to mail1, which fails.
fn both_addresses(_: Say<'_>) -> Result<String> {
    arrive(Condition::Light, Level::Light)?;
    let (client, server) = (find("client")?, find("mail1")?);
    hypervisor::kill(server)?;
    let began = Instant::now();
    let vips: Vec<_> = of(Kind::VirtualServer)
        .filter(|member| member.group == server.group)
        .filter_map(|member| Some((member.vip()?, member.service)))
        .collect();
    wait_until(SERVED, "the backup server answers on both of the group's virtual IPs", || {
        Ok(vips.iter().all(|(vip, service)| network::who_serves(client, *vip, *service).as_deref() == Some("mailb")))
    })?;
    Ok(format!("mailb served both virtual IPs {:.1} s after mail1 was killed", began.elapsed().as_secs_f64()))
}

/// (b) PSS suspended the hosts of those whose virtual IPs went elsewhere.
fn nobody_in_trouble(_: Say<'_>) -> Result<String> {
    arrive(Condition::Moderate, Level::Moderate)?;
    let (after, began) = (last_event()?, now_ns());
    arrive(Condition::Light, Level::Light)?;
    std::thread::sleep(Duration::from_secs(15));
    let events = events_after(after)?;
    let troubled: Vec<_> = of(Kind::VirtualServer)
        .filter(|server| first_trouble(&events, server.name, began).is_some())
        .map(|server| server.name)
        .collect();
    ensure!(troubled.is_empty(), "taken for a failure: {}", troubled.join(", "));
    Ok("two hosts slept for 15 s and nobody was taken for failed".into())
}

/// (c) mail1 is down and mailb serves in its place.
fn measured(_: Say<'_>) -> Result<String> {
    arrive(Condition::Moderate, Level::Moderate)?;
    let server = find("mail1")?;
    let _ = console::exec(server, &Trouble::Nt2.command(server), Duration::from_secs(10));
    let began = Instant::now();
    wait_until(SERVED, "the group is measured with mailb as its member", || {
        let status = kagectl_json(&["pss"])?;
        let Some(group) = rows(&status["groups"]).into_iter().find(|group| group["group"] == "mail") else {
            return Ok(false);
        };
        let member = rows(&group["members"]).iter().any(|member| member["vm"] == "mailb");
        Ok(member && !group["cpu_percent"].is_null())
    })?;
    Ok(format!("measured with mailb as its member {:.1} s after mail1 was shut down", began.elapsed().as_secs_f64()))
}

/// (d) ftp1, which was migrated to the base server, is beyond repair there, and the load returns.
pub(super) fn goes_home(_: Say<'_>) -> Result<String> {
    const REPAIR: Duration = Duration::from_secs(180);
    arrive(Condition::Light, Level::Light)?;
    let server = find("ftp1")?;
    hypervisor::spoil(server)?;
    hypervisor::kill(server)?;
    let stands_in = |table: &str, host: &str| -> Result<bool> {
        let tables = super::power::tables()?;
        let row = rows(&tables[table]).into_iter().find(|row| row["place"] == server.name);
        let at = |row: &Value| row["vm"] == "ftpb" && (table != "operation" || row["host"] == host);
        Ok(row.as_ref().is_some_and(at))
    };
    let result = (|| {
        wait_until(REPAIR, "ftp1 is given up, and ftpb is on the base server in its place", || {
            stands_in("operation", BASE)
        })?;
        ensure!(stands_in("live_migration", BASE)?, "the Live migration table does not name ftpb");
        load::set(Some("mail"), Level::Moderate)?;
        load::set(Some("web"), Level::Moderate)?;
        load::set_in(find("ftpb")?, Level::Moderate)?;
        let began = Instant::now();
        wait_until(REPAIR, "ftpb is where ftp1 belongs", || {
            Ok(hypervisor::whereabouts(find("ftpb")?).is_some_and(|(host, _)| host.name == server.host))
        })?;
        let client = find("client")?;
        let vip = server.vip().context("it has a VIP")?;
        wait_until(Duration::from_secs(20), "ftpb serves ftp1's virtual IP there", || {
            Ok(network::who_serves(client, vip, server.service).as_deref() == Some("ftpb"))
        })?;
        Ok(format!("ftpb was on {} {:.1} s after the load returned", server.host, began.elapsed().as_secs_f64()))
    })();
    if result.is_err() {
        // For whoever looks: what the tables and the hosts say.
        let _ = proved(Condition::Moderate, &super::power::folder("problem-d")?, "problem d");
    }
    result
}
