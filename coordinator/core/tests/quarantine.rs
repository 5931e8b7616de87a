//! Machines that come and go: what counts, what is withheld from them, and for how long.

mod support;

use kage_coordinator_core::{Action, Coordinator, Event, QuarantineView};
use kage_types::{Order, Time};
use support::{Ms, World, agent, head, target, vip, with_target};

const KEYS: &str = "healthy_for = \"2s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";
const MINUTE: Ms = 60_000;

fn world_with(settings: &str) -> World {
    World::new(&(head("normal") + settings + &with_target("mail", 100, "mailb", KEYS, &[25])))
}

/// Its agent is silent for so long, and there again; all else is well.
fn lapse(world: &mut World, name: &str, silent: Ms) {
    world.server(name).agent_dead = true;
    world.run(silent);
    world.back(name);
    world.run(2000);
}

fn quarantines(world: &World) -> Vec<QuarantineView> {
    world.core.quarantines(Time::from_millis(world.now)).collect()
}

fn into_quarantine(world: &mut World, name: &str) {
    for _ in 0..3 {
        assert!(quarantines(world).is_empty());
        lapse(world, name, 1500);
    }
    assert_eq!(quarantines(world).len(), 1);
}

/// How the operator's command ended.
fn answer(world: &mut World, event: Event) -> Result<(), String> {
    let from = world.log.len();
    world.step(event);
    let moved = |(_, action): &(Ms, Action)| {
        if let Action::Moved { result, .. } = action { Some(result.clone()) } else { None }
    };
    let moved = world.log[from..].iter().find_map(moved);
    moved.expect("an answer")
}

fn end(name: &str) -> Event {
    Event::EndQuarantine { command: 9, agent: agent(name), who: "operator alice".into() }
}

fn failback(force: bool) -> Event {
    Event::Move { command: 8, target: target("mail"), back: true, force }
}

#[test]
fn three_lapses_are_a_quarantine_that_ends_after_quiet_and_is_twice_as_long_the_next_time() {
    let mut world = world_with("");
    into_quarantine(&mut world, "mail");
    let said = world.notes("quarantine");
    assert_eq!(said.len(), 1);
    assert!(
        said[0].1.starts_with(
            "mail is in quarantine: it came back from silence 3 times within 10 min, of 1.6s the last time; nothing is \
             brought to it while there is another place, until it has been quiet for 10 min"
        ) || said[0].1.contains("of 1.5s the last time"),
        "{said:?}"
    );
    assert_eq!(world.core.alerts(), [said[0].1.clone()]);
    assert_eq!(world.mode("mail"), "regular", "what runs there stays there");
    let left = quarantines(&world)[0].left.as_secs();
    assert!((590..600).contains(&left), "{left}");
    // It begins anew with each lapse.
    world.run(5 * MINUTE);
    lapse(&mut world, "mail", 1500);
    let left = quarantines(&world)[0].left.as_secs();
    assert!((590..600).contains(&left), "{left}");
    let took = world.until(11 * MINUTE, "quiet", |world| quarantines(world).is_empty());
    assert!(took > 9 * MINUTE, "{took}");
    let over: Vec<String> = world.notes("quarantine-over").into_iter().map(|(_, text)| text).collect();
    assert_eq!(over, ["mail is no longer in quarantine: it has been quiet for long enough"]);
    assert!(world.core.alerts().is_empty(), "{:?}", world.core.alerts());
    // What was counted before does not count any more.
    into_quarantine(&mut world, "mail");
    let left = quarantines(&world)[0].left.as_secs();
    assert!((1190..1200).contains(&left), "{left}");
}

#[test]
fn it_does_not_end_while_the_machine_is_away() {
    let mut world = world_with("[quarantine]\nhold = \"20s\"\n");
    into_quarantine(&mut world, "mail");
    world.server("mail").agent_dead = true;
    world.run(MINUTE);
    assert_eq!(quarantines(&world).len(), 1);
    world.back("mail");
    world.run(15_000);
    assert_eq!(quarantines(&world).len(), 1, "it came back just now");
    world.run(10_000);
    assert!(quarantines(&world).is_empty());
}

#[test]
fn what_is_short_announced_ordered_or_ours_does_not_count() {
    let mut world = world_with("");
    for _ in 0..5 {
        lapse(&mut world, "mail", 900);
        lapse(&mut world, "v1", 3000);
    }
    assert!(quarantines(&world).is_empty(), "short, or of a machine to which nothing is ever brought");
    for _ in 0..3 {
        world.shut_down("mail", true);
        world.until(3 * MINUTE, "back", |world| world.mode("mail") == "regular");
    }
    assert!(quarantines(&world).is_empty(), "announced");
    for _ in 0..4 {
        let dark = ["mail", "web", "v1", "v2", "v3"];
        dark.iter().for_each(|name| world.server(name).cut = true);
        world.run(5000);
        dark.iter().for_each(|name| world.back(name));
        world.run(2000);
    }
    assert!(quarantines(&world).is_empty(), "the coordinator was cut off");
    let order = Order {
        scope: "agent:mail".parse().expect("scope"),
        reason: "a new cable".into(),
        who: "operator alice".into(),
        since_unix_ms: 0,
        until_unix_ms: None,
    };
    world.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 5 });
    for _ in 0..4 {
        lapse(&mut world, "mail", 1500);
    }
    assert!(quarantines(&world).is_empty(), "in maintenance");
    let mut world = world_with("[quarantine]\nlapses = 0\n");
    for _ in 0..9 {
        lapse(&mut world, "mail", 1500);
    }
    assert!(quarantines(&world).is_empty(), "switched off");
}

#[test]
fn lapses_out_of_the_window_are_forgotten() {
    let mut world = world_with("[quarantine]\nwithin = \"1m\"\n");
    for _ in 0..4 {
        lapse(&mut world, "mail", 1500);
        world.run(MINUTE / 2);
    }
    assert!(quarantines(&world).is_empty());
}

#[test]
fn nothing_is_brought_back_to_it_until_it_is_over_or_somebody_says_so() {
    let mut world = world_with("");
    into_quarantine(&mut world, "mail");
    world.power_lost("mail");
    world.until(3 * MINUTE, "healthy", |world| world.mode("mail") == "target-server-recovery/healthy");
    world.run(MINUTE);
    assert_eq!(world.mode("mail"), "target-server-recovery/healthy");
    let detail = world.core.target(&target("mail")).expect("mail").detail;
    assert_eq!(detail, "it is healthy again, but its machine is in quarantine");
    assert_eq!(world.notes("waits").len(), 1, "said once");
    let refused = answer(&mut world, failback(false)).expect_err("it is refused");
    assert!(
        refused.starts_with("mail is in quarantine for another ") && refused.contains("kagectl quarantine off mail")
    );
    let refused = answer(&mut world, end("mgmt")).expect_err("another");
    assert_eq!(refused, "mgmt is not in quarantine; what is: kagectl status");
    assert!(answer(&mut world, end("nobody")).is_err());
    assert_eq!(answer(&mut world, end("mail")), Ok(()));
    assert_eq!(world.notes("quarantine-over")[0].1, "mail is no longer in quarantine: ended by operator alice");
    world.until(5000, "back", |world| world.mode("mail") == "regular");
}

#[test]
fn the_operators_force_moves_all_the_same() {
    let mut world = world_with("");
    into_quarantine(&mut world, "mail");
    world.power_lost("mail");
    world.until(3 * MINUTE, "healthy", |world| world.mode("mail") == "target-server-recovery/healthy");
    world.run(1000);
    assert_eq!(answer(&mut world, failback(true)), Ok(()));
    world.until(5000, "back", |world| world.mode("mail") == "regular");
    assert_eq!(quarantines(&world).len(), 1);
}

#[test]
fn a_takeover_goes_to_the_only_place_there_is_but_not_while_that_is_silent() {
    let mut world = world_with("");
    into_quarantine(&mut world, "mgmt");
    let away = Event::Move { command: 8, target: target("mail"), back: false, force: false };
    assert!(answer(&mut world, away).is_err_and(|why| why.starts_with("mgmt is in quarantine")), "mail serves");
    // Both are behind the same bad switch: nobody would be served by a double that is silent too.
    world.server("mail").cut = true;
    world.server("mgmt").cut = true;
    world.run(20_000);
    let held: Vec<String> = world.notes("held").into_iter().map(|(_, text)| text).collect();
    let why = "its backup host mgmt is in quarantine and silent: nothing is taken over to it before it answers";
    assert_eq!(held, [why]);
    world.back("mail");
    world.until(3000, "a false alarm", |world| world.mode("mail") == "regular");
    assert!(world.held[&vip(100)].0 == agent("mail") && world.notes("backup-server").is_empty());
    world.back("mgmt");
    world.run(2000);
    world.power_lost("mail");
    world.until(5000, "taken over", |world| world.served(vip(100), 25));
    let said: Vec<String> = world.notes("only-place").into_iter().map(|(_, text)| text).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("mgmt is in quarantine (") && said[0].ends_with("no other place for mail: it goes there")
    );
}

#[test]
fn a_snapshot_has_it_and_a_changed_configuration_ends_it() {
    let mut world = world_with("");
    into_quarantine(&mut world, "mail");
    let text = serde_json::to_string(&world.core).expect("JSON");
    let again: Coordinator = serde_json::from_str(&text).expect("the same");
    assert!(again == world.core);
    let file = head("normal") + "[quarantine]\nlapses = 0\n" + &with_target("mail", 100, "mailb", KEYS, &[25]);
    let cluster = Box::new(kage_coordinator_core::config::Cluster::parse(&file).expect("good"));
    assert_eq!(answer(&mut world, Event::Reload { command: 7, cluster, force: false }), Ok(()));
    assert!(quarantines(&world).is_empty());
    assert_eq!(world.notes("reload")[0].1, "[quarantine]: changed: lapses");
}
