//! Never two writers: what a single writer's takeover waits for.

mod support;

use kage_coordinator_core::{Action, AgentCommand, Event, JobResult};
use kage_types::{Epoch, Term, Time};
use std::time::Duration;
use support::{Ms, World, agent, head, vip, with_target};

const KEYS: &str = "healthy_for = \"2s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";

fn world(fence: &str) -> World {
    let storage = "listen = \"10.0.0.2:7700\"\nstorage_fence = [\"revoke\"]\nstorage_unfence = [\"grant\"]";
    let power = "mac = \"52:54:00:00:00:00\"\npower_status = [\"status\"]\npower_off = [\"off\"]";
    let mut config = head("normal").replacen("listen = \"10.0.0.2:7700\"", storage, 1);
    if fence == "power" {
        config = config.replacen("mac = \"52:54:00:00:00:00\"", power, 1);
    }
    config += &with_target("mail", 100, "mailb", KEYS, &[25]);
    config += &format!("single_writer = true\nwriter_fence = \"{fence}\"\n");
    World::new(&config)
}

fn first(world: &World, wanted: impl Fn(&Action) -> bool) -> Option<Ms> {
    world.log.iter().find(|(_, action)| wanted(action)).map(|(at, _)| *at)
}

fn resumed(world: &World) -> Option<Ms> {
    first(world, |action| matches!(action, Action::Command { command: AgentCommand::ResumeVm { .. }, .. }))
}

fn at_backup(world: &World) -> bool {
    world.held.get(&vip(100)).is_some_and(|(at, _)| *at == agent("mgmt"))
}

#[test]
fn without_a_fence_a_cut_off_writer_is_not_taken_over_and_the_alert_says_why() {
    let mut world = world("none");
    world.server("mail").cut = true;
    world.run(60_000);
    assert_eq!((world.mode("mail").as_str(), resumed(&world)), ("network-examination", None));
    let held = world.notes("held");
    assert!(held.len() == 1 && held[0].1.contains("s25 is single_writer"), "{held:?}");
    world.back("mail");
    world.run(3_000);
    assert_eq!(world.mode("mail"), "regular");
}

#[test]
fn released_by_its_owner_no_fence_is_needed_but_the_double_waits_for_it() {
    let mut world = world("none");
    world.shut_down("mail", true);
    world.until(2_000, "taken over", at_backup);
    let released = world.notes("released")[0].0;
    assert!(resumed(&world).is_some_and(|at| at >= released), "resumed after the release");
    // On the way back the double is suspended before the target is told to hold.
    world.log.clear();
    world.until(90_000, "back", |world| world.mode("mail") == "regular");
    let paused = first(&world, |a| matches!(a, Action::Command { command: AgentCommand::PauseVm { .. }, .. }));
    let hold = first(&world, |a| matches!(a, Action::Command { command: AgentCommand::Hold { .. }, .. }));
    assert!(paused.is_some() && paused < hold, "{paused:?} {hold:?}");
}

/// Another virtual IP of the same target that has not left the double yet is no reason to let it run.
#[test]
fn with_two_addresses_the_double_is_suspended_before_the_target_holds_either() {
    let mut config = head("normal") + &with_target("mail", 100, "mailb", KEYS, &[25]) + "single_writer = true\n";
    config = config.replacen("[\"10.0.0.100\"]", "[\"10.0.0.100\", \"10.0.0.101\"]", 1);
    let mut world = World::new(&config);
    world.shut_down("mail", true);
    world.until(5_000, "taken over", at_backup);
    world.log.clear();
    world.until(90_000, "back", |world| world.mode("mail") == "regular");
    let paused = first(&world, |a| matches!(a, Action::Command { command: AgentCommand::PauseVm { .. }, .. }));
    let hold = first(&world, |a| matches!(a, Action::Command { command: AgentCommand::Hold { .. }, .. }));
    assert!(paused.is_some() && paused < hold, "{paused:?} {hold:?}");
}

#[test]
fn power_is_switched_off_and_must_read_off() {
    let mut world = world("power");
    world.power_off_works = false;
    world.server("mail").cut = true;
    world.run(30_000);
    assert!(resumed(&world).is_none() && !at_backup(&world));
    assert_eq!(world.notes("not-fenced").len(), 1);
    world.power_off_works = true;
    world.until(5_000, "taken over", at_backup);
    assert!(!world.servers[&agent("mail")].up);
}

#[test]
fn storage_is_revoked_before_the_double_runs_and_given_back_before_fail_back() {
    let mut world = world("storage");
    world.fence_works = false;
    world.server("mail").cut = true;
    world.run(30_000);
    assert!(resumed(&world).is_none() && !at_backup(&world));
    assert_eq!(world.notes("not-fenced").len(), 1);
    world.fence_works = true;
    world.until(5_000, "taken over", at_backup);
    assert!(world.notes("fenced")[0].0 <= resumed(&world).expect("resumed"));
    // Healed: it does not return before storage_unfence has worked.
    world.fence_works = false;
    world.back("mail");
    world.run(20_000);
    assert!(at_backup(&world) && !world.notes("unfence-failed").is_empty());
    world.fence_works = true;
    world.until(20_000, "back", |world| world.mode("mail") == "regular");
}

#[test]
fn a_storage_fence_costs_no_time_beyond_patience() {
    let mut world = world("storage");
    world.power_lost("mail");
    let outage = world.until(10_000, "served", |world| world.served(vip(100), 25));
    assert!(outage < 2_500, "{outage} ms");
}

/// A ledger that is new or restored knows no owner, and the double may run all the same.
#[test]
#[allow(clippy::wildcard_enum_match_arm, reason = "what does not matter here is not answered")]
fn placed_for_the_first_time_the_double_is_suspended_before_the_target_holds() {
    let mut config = head("normal") + &with_target("mail", 100, "mailb", KEYS, &[25]);
    config += "single_writer = true\n";
    let cluster = kage_coordinator_core::config::Cluster::parse(&config).expect("good");
    let mut core = kage_coordinator_core::Coordinator::new(Time::ZERO, cluster);
    let (sent, length) = (Time::from_millis(1), Duration::from_secs(5));
    let mut events = vec![Event::TermAcquired { term: Term(1), sent, length, rows: vec![] }];
    // What matters, with the time at which it was asked for; the double's host answers after 40 s.
    let mut asked: Vec<(&str, Ms)> = Vec::new();
    for now in (1..120_000).step_by(100) {
        events.push(Event::Tick);
        for event in std::mem::take(&mut events) {
            let mut actions = Vec::new();
            core.step(Time::from_millis(now), event, &mut actions);
            for action in actions {
                let (job, result) = match action {
                    Action::AdvanceEpoch { job, .. } => (job, JobResult::Epoch(Epoch(1))),
                    Action::Bar { job, .. } => (job, JobResult::Barred(Duration::from_secs(600))),
                    Action::Command { job, command: AgentCommand::PauseVm { .. }, .. } => {
                        asked.push(("suspend", now));
                        let late = JobResult::Unknown("no answer in time".into());
                        (job, if now > 40_000 { JobResult::Done } else { late })
                    }
                    Action::Command { job, command: AgentCommand::Hold { .. }, .. } => {
                        asked.push(("hold", now));
                        (job, JobResult::Done)
                    }
                    Action::Command { job, .. } => (job, JobResult::Answered(None)),
                    Action::RenewTerm { term } => {
                        events.push(Event::TermRenewed { term, sent: Time::from_millis(now), length });
                        continue;
                    }
                    Action::Note(note) if note.kind == "not-fenced" => {
                        asked.push(("alert", now));
                        continue;
                    }
                    _ => continue,
                };
                events.push(Event::Job { job, result });
            }
        }
    }
    let first = |what: &str| asked.iter().find(|(kind, _)| *kind == what).map(|(_, at)| *at);
    assert!(first("suspend").is_some_and(|at| at < 1000), "at once: {asked:?}");
    assert!(first("hold").is_some_and(|at| at > 40_000), "and not before it is done: {asked:?}");
    let alerts: Vec<Ms> = asked.iter().filter(|(kind, _)| *kind == "alert").map(|(_, at)| *at).collect();
    assert!(alerts.len() == 1 && alerts[0] > 3000, "once, and its host was given time to be connected: {asked:?}");
    assert!(core.alerts().is_empty(), "it is over: {:?}", core.alerts());
}
