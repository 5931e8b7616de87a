//! When a healthy target takes its place again: hours, by hand, not at all; and at once when its double is lost.

mod support;

use kage_coordinator_core::Event;
use support::{Ms, World, agent, head, target, vip, with_target};

const KEYS: &str = "healthy_for = \"2s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";
const MINUTE: Ms = 60_000;
/// Sunday 22 November 2026, 21:50 UTC.
const SUNDAY_2150: u64 = 1_795_384_200_000;
const HEALTHY: &str = "target-server-recovery/healthy";

fn world_with(keys: &str) -> World {
    World::new(&(head("normal") + &with_target("mail", 100, "mailb", &format!("{KEYS}\n{keys}"), &[25])))
}

fn detail(world: &World) -> String {
    world.core.target(&target("mail")).expect("mail").detail
}

fn texts(world: &World, kind: &str) -> Vec<String> {
    world.notes(kind).into_iter().map(|(_, text)| text).collect()
}

/// Taken over, and healthy again for long enough.
fn away(world: &mut World) {
    world.power_lost("mail");
    world.until(3 * MINUTE, "healthy", |world| world.mode("mail") == HEALTHY);
    world.run(5000);
}

#[test]
fn in_its_hours_it_returns_and_before_them_it_waits() {
    let mut world = world_with("failback_hours = [\"22:00-06:00\"]");
    let began = world.now;
    world.step(Event::WallClock { now_unix_ms: SUNDAY_2150 });
    away(&mut world);
    let waits = "it is healthy again and waits for its hours (Sun 22:00 UTC)";
    assert_eq!((world.mode("mail").as_str(), detail(&world).as_str()), (HEALTHY, waits));
    assert_eq!(texts(&world, "waits"), [waits]);
    world.until(10 * MINUTE, "back", |world| world.mode("mail") == "regular");
    let took = world.now - began;
    assert!((10 * MINUTE..10 * MINUTE + 3000).contains(&took), "{took}");
    assert_eq!(texts(&world, "waits").len(), 1, "said once");
}

#[test]
fn a_wall_clock_that_is_set_counts_at_once_and_none_is_no_permission() {
    let mut world = world_with("failback_hours = [\"Mon 08:00-09:00\"]");
    away(&mut world);
    assert_eq!(detail(&world), "it is healthy again and waits for its hours");
    world.step(Event::WallClock { now_unix_ms: SUNDAY_2150 });
    world.run(2000);
    assert_eq!(detail(&world), "it is healthy again and waits for its hours (Mon 08:00 UTC)");
    world.step(Event::WallClock { now_unix_ms: SUNDAY_2150 + 11 * 60 * MINUTE });
    world.until(3000, "back", |world| world.mode("mail") == "regular");
}

#[test]
fn the_operator_has_no_hours() {
    let mut world = world_with("failback_hours = [\"22:00-22:30\"]");
    world.step(Event::WallClock { now_unix_ms: SUNDAY_2150 + 60 * MINUTE });
    away(&mut world);
    world.step(Event::Move { command: 1, target: target("mail"), back: true, force: false });
    world.until(3000, "back", |world| world.mode("mail") == "regular");
}

#[test]
fn kept_at_its_double_nothing_is_wrong_and_by_hand_the_alert_stands() {
    let mut world = world_with("failback = \"keep\"");
    away(&mut world);
    world.run(2 * MINUTE);
    let kept = "its double keeps serving (failback = \"keep\"); it is healthy and stands by";
    assert_eq!((world.mode("mail").as_str(), detail(&world).as_str()), (HEALTHY, kept));
    assert_eq!(texts(&world, "kept"), [kept]);
    assert!(world.core.alerts().is_empty(), "{:?}", world.core.alerts());

    let mut world = world_with("failback = \"manual\"");
    away(&mut world);
    world.run(2 * MINUTE);
    assert_eq!(texts(&world, "waits").len(), 1);
    assert!(world.core.alerts().iter().any(|alert| alert.starts_with("mail: lost: ")), "{:?}", world.core.alerts());
}

#[test]
fn a_target_whose_double_is_lost_takes_its_place_again_whatever_it_waits_for() {
    for keys in ["failback = \"keep\"", "failback = \"manual\"", "failback_hours = [\"22:00-06:00\"]"] {
        let mut world = world_with(keys);
        away(&mut world);
        assert_eq!(world.core.observer(), Some(&agent("mgmt")), "on the coordinator's own machine");
        world.power_lost("mgmt");
        let took = world
            .until(10_000, "at home", |world| world.served(vip(100), 25) && world.held[&vip(100)].0 == agent("mail"));
        assert!(took < 6000, "{keys}: {took}");
        assert_eq!(world.core.observer(), Some(&agent("v1")), "its stream is up, but it is silent");
        let said = texts(&world, "double-lost");
        assert_eq!(said.len(), 1, "{keys}");
        assert!(said[0].starts_with("its double is lost (mgmt silent for ") && said[0].ends_with("going back at once"));
        world.until(20_000, "regular", |world| world.mode("mail") == "regular");
    }
}

#[test]
fn so_does_one_that_the_operator_moved_but_not_in_maintenance() {
    let mut world = world_with("");
    world.step(Event::Move { command: 1, target: target("mail"), back: false, force: false });
    world.until(10_000, "moved", |world| world.mode("mail") == "target-server-recovery/moved-by-operator");
    world.run(3000);
    let order = kage_types::Order {
        scope: "target:mail".parse().expect("scope"),
        reason: String::new(),
        who: "operator alice".into(),
        since_unix_ms: 0,
        until_unix_ms: None,
    };
    world.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 5 });
    world.power_lost("mgmt");
    world.run(MINUTE);
    assert_eq!(world.mode("mail"), "target-server-recovery/double-silent");
    assert_eq!(texts(&world, "withheld").len(), 1);
    world.step(Event::OrdersRead { orders: vec![], now_unix_ms: 5 });
    world.until(10_000, "at home", |world| world.held[&vip(100)].0 == agent("mail"));
}

#[test]
fn a_silent_agent_whose_double_still_serves_moves_nothing() {
    let mut world = world_with("failback = \"keep\"");
    away(&mut world);
    world.server("mgmt").agent_dead = true;
    world.run(MINUTE);
    assert_eq!(world.mode("mail"), "target-server-recovery/double-silent");
    let said = texts(&world, "alarm");
    assert!(said.len() == 1 && said[0].ends_with("its service answers"), "{said:?}");
    world.back("mgmt");
    world.run(3000);
    assert_eq!(world.mode("mail"), HEALTHY);
    assert!(world.notes("double-lost").is_empty() && world.held[&vip(100)].0 == agent("mgmt"));
}
