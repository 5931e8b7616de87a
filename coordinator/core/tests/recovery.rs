//! Several services, several targets, one double; budgets; speed of what is pushed.

mod support;

use kage_coordinator_core::{AgentCommand, Event, SessionId};
use support::{Cure, Ms, World, agent, head, target, vip, with_target};

const KEYS: &str = "healthy_for = \"2s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";

fn one(keys: &str) -> World {
    World::new(&(head("normal") + &with_target("mail", 100, "mailb", &format!("{KEYS}\n{keys}"), &[25, 143])))
}

fn two(web_double: &str) -> World {
    let config = head("normal")
        + &with_target("mail", 100, "mailb", KEYS, &[25])
        + &with_target("web", 101, web_double, KEYS, &[80]);
    World::new(&config)
}

fn restarts(world: &World) -> usize {
    world.commands(|command| matches!(command, AgentCommand::RestartService { .. }))
}

#[test]
fn a_crash_that_is_pushed_is_restarted_at_once() {
    let mut world = one("");
    world.service_down("mail", 25, Cure::Restart);
    world.service_reported("mail", 25);
    let outage = world.until(1_000, "served", |world| world.served(vip(100), 25));
    assert!(outage <= 100, "only the restart itself: {outage} ms");
    world.until(1_000, "regular", |world| world.mode("mail") == "regular");
    assert_eq!(restarts(&world), 1);
}

/// Its probe may take its time for an answer; a kernel that is there takes a connection at once.
#[test]
fn a_machine_whose_service_is_slow_is_found_lost_as_quickly_as_any() {
    let lost = |timeout: &str| {
        let target = with_target("mail", 100, "mailb", KEYS, &[25]) + timeout;
        let mut world = World::new(&(head("normal") + &target));
        world.power_lost("mail");
        world.until(10_000, "served by its double", |world| world.served(vip(100), 25))
    };
    assert_eq!(lost("timeout = \"5s\"\n"), lost(""));
}

#[test]
fn a_target_that_was_given_up_stays_given_up_under_the_next_term() {
    let mut world = one("budget = { restarts = 3, reboots = 0, takeovers = 3 }");
    world.service_down("mail", 25, Cure::Nothing);
    world.until(60_000, "given up", |world| world.mode("mail") == "ended");
    world.next_term();
    world.run(120_000);
    assert_eq!(world.mode("mail"), "ended");
    assert_eq!((world.notes("rebooting").len(), world.notes("waking").len()), (0, 0));
    // Repaired, the operator starts it again.
    world.back("mail");
    world.run(6_000);
    world.step(Event::Move { command: 1, target: target("mail"), back: true, force: false });
    world.until(5_000, "regular", |world| world.mode("mail") == "regular");
}

#[test]
fn two_services_are_restarted_each_on_its_own_in_order() {
    let mut world = one("");
    world.service_down("mail", 25, Cure::Restart);
    world.service_down("mail", 143, Cure::Restart);
    world.service_reported("mail", 143);
    world.service_reported("mail", 25);
    world.until(3_000, "regular", |world| world.mode("mail") == "regular");
    let order: Vec<String> = world.notes("restarting").into_iter().map(|(_, text)| text).collect();
    assert_eq!(order, ["restarting s143", "restarting s25"]);
    assert!(world.served(vip(100), 25) && world.served(vip(100), 143));
}

#[test]
fn an_order_to_reboot_that_got_lost_is_given_again() {
    let mut world = one("budget = { restarts = 3, reboots = 1, takeovers = 3 }");
    world.server("mail").deaf_to_reboot = 2;
    world.service_down("mail", 25, Cure::Reboot);
    world.until(120_000, "regular", |world| world.notes("regular").len() == 1);
    let told: Vec<String> = world.notes("rebooting").into_iter().map(|(_, text)| text).collect();
    let again = "the target is there still: told to reboot again";
    assert_eq!(told, ["rebooting the target", again, again]);
    assert!(world.notes("down").is_empty() && world.notes("waking").is_empty());
}

#[test]
fn a_target_that_hears_no_order_to_reboot_is_given_up() {
    let mut world = one("budget = { restarts = 3, reboots = 1, takeovers = 3 }");
    world.server("mail").deaf_to_reboot = u32::MAX;
    world.service_down("mail", 25, Cure::Reboot);
    let took = world.until(300_000, "given up", |world| world.mode("mail") == "ended");
    assert!(took > 30_000, "within the time that it has to come back: {took}");
    assert_eq!(world.held[&vip(100)].0.as_str(), "mgmt", "the backup serves on");
}

#[test]
fn a_flapping_service_ends_in_a_reboot_and_then_with_the_backup() {
    let mut world = one("");
    for round in 1..=3 {
        world.service_down("mail", 25, Cure::Restart);
        world.until(10_000, "restarted", |world| restarts(world) == round && world.mode("mail") == "regular");
        world.run(60_000);
    }
    world.service_down("mail", 25, Cure::Restart);
    world.until(10_000, "taken over", |world| world.mode("mail").starts_with("target-server-recovery"));
    assert_eq!((restarts(&world), world.notes("restarts-used-up").len()), (3, 1));
    assert_eq!(world.notes("rebooting").len(), 1);
    world.until(120_000, "back after the reboot", |world| world.mode("mail") == "regular");
    world.service_down("mail", 25, Cure::Restart);
    world.until(10_000, "given up", |world| world.mode("mail") == "ended");
    world.run(600_000);
    assert_eq!((restarts(&world), world.notes("rebooting").len(), world.notes("down").len()), (3, 1, 1));
    assert_eq!(world.held[&vip(100)].0.as_str(), "mgmt", "the backup serves on");
    // Repaired, the operator starts it again; the counts begin anew.
    world.back("mail");
    world.run(6_000);
    world.step(Event::Move { command: 1, target: target("mail"), back: true, force: false });
    world.until(5_000, "regular", |world| world.mode("mail") == "regular");
    world.service_down("mail", 25, Cure::Restart);
    world.until(10_000, "restarted", |world| restarts(world) == 4 && world.mode("mail") == "regular");
}

#[test]
fn a_target_that_is_taken_over_too_often_is_held_down_until_the_window_is_over() {
    let mut world = one("budget = { takeovers = 2, within = \"10m\" }");
    world.power_lost("mail");
    world.until(200_000, "back once", |world| world.notes("regular").len() == 1);
    world.power_lost("mail");
    let took = world.until(900_000, "back again", |world| world.notes("regular").len() == 2);
    assert!(took > 400_000, "held down: {took}");
    assert_eq!(world.notes("held-down").len(), 1);
}

/// Until both, or the one, are served by the double.
fn outage(double: &str, lost: &[&str]) -> Ms {
    let mut world = two(double);
    for name in lost {
        world.power_lost(name);
    }
    let vips: Vec<_> = lost.iter().map(|name| vip(if *name == "mail" { 100 } else { 101 })).collect();
    world.until(10_000, "served", |world| {
        vips.iter().all(|vip| world.served(*vip, 1) && world.held.get(vip).is_some_and(|(at, _)| at.as_str() == "mgmt"))
    })
}

#[test]
fn two_at_once_are_as_fast_as_one_alone() {
    let (one, both, shared) =
        (outage("webb", &["mail"]), outage("webb", &["mail", "web"]), outage("mailb", &["mail", "web"]));
    println!("normal, machine lost: one {one} ms, two at once {both} ms, two with one double {shared} ms");
    assert!(both * 10 <= one * 11 && shared * 10 <= one * 11, "{one} {both} {shared}");
}

#[test]
fn a_double_of_two_targets_sleeps_when_the_last_has_left() {
    let mut world = two("mailb");
    world.power_lost("mail");
    world.until(10_000, "mail is served", |world| world.served(vip(100), 25));
    world.server("web").reboot_time = 60_000;
    world.service_down("web", 80, Cure::Reboot);
    world
        .until(20_000, "web is served", |world| world.held.get(&vip(101)).is_some_and(|(at, _)| at.as_str() == "mgmt"));
    world.until(400_000, "both are back", |world| world.mode("mail") == "regular" && world.mode("web") == "regular");
    world.run(1_000);
    assert_eq!(world.notes("double-suspended").len(), 1, "once, when nobody needed it any more");
    assert!(!world.double_runs["mailb"]);
}

#[test]
fn one_targets_trouble_leaves_the_other_alone() {
    let mut world = two("webb");
    world.power_lost("web");
    for _ in 0..100 {
        world.run(500);
        assert_eq!(world.mode("mail"), "regular");
    }
}

#[test]
fn a_clean_shutdown_is_handed_over_at_once_and_its_reboot_waited_for() {
    let mut world = one("");
    world.shut_down("mail", true);
    let outage = 300 + world.until(1_000, "served", |world| world.served(vip(100), 25));
    assert!(outage <= 500, "{outage}");
    world.until(60_000, "back", |world| world.mode("mail") == "regular");
    assert_eq!(world.notes("waking").len(), 0);
}

/// Silent, its power reads off, and whoever is to ping and probe it does not answer.
#[test]
fn power_that_reads_off_convicts_though_nobody_could_look() {
    let lost = |status: &str| {
        let head = head("normal").replace("mac = \"52:54:00:00:00:00\"", status);
        let mut world = World::new(&(head + &with_target("mail", 100, "mailb", KEYS, &[25])));
        world.nobody_looks = true;
        world.power_lost("mail");
        world.run(20_000);
        world.held[&vip(100)].0.to_string()
    };
    assert_eq!(lost("power_status = [\"status\"]"), "mgmt");
    assert_eq!(lost("guard = \"host\""), "mail", "silence alone convicts nobody");
}

#[test]
fn who_looks_is_connected_and_rather_no_target() {
    let mut world = one("");
    let names: Vec<_> = world.core.cluster().agents.keys().cloned().collect();
    for expected in ["mgmt", "v1", "v2", "v3", "web", "mail", "mgmt"] {
        let observer = world.core.observer().cloned().expect("somebody");
        assert_eq!(observer, agent(expected));
        let index = names.iter().position(|name| *name == observer).expect("known");
        let session = SessionId(index as u64 + 1);
        world.step(Event::AgentDown { agent: observer, session });
    }
}

/// Nobody restarts it, so what comes next is the backup server: one bad answer does not decide that.
#[test]
fn a_service_that_nobody_restarts_is_looked_at_again() {
    let mut world = World::new(&(head("normal") + &with_target("mail", 100, "mailb", "", &[25]) + "restart = false\n"));
    world.service_down("mail", 25, Cure::Nothing);
    world.until(2_000, "seen", |world| !world.notes("service-trouble").is_empty());
    world.back("mail");
    world.until(2_000, "normal", |world| world.mode("mail") == "regular");
    world.run(5_000);
    assert_eq!(world.held[&vip(100)].0, agent("mail"));
    world.service_down("mail", 25, Cure::Nothing);
    let took =
        world.until(5_000, "taken over", |world| world.held.get(&vip(100)).is_some_and(|(at, _)| *at == agent("mgmt")));
    assert!(took < 3_000, "{took} ms");
}
