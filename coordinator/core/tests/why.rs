//! Why a target was taken over, or was not: `UPDATE_WHY=1 cargo test -p kage-coordinator-core --test why` writes the
//! explanations in `tests/why/` anew.

mod support;

use jiff::tz::TimeZone;
use kage_coordinator_core::{
    Event,
    replay::{Input, Moment, Place},
    why::{Explanation, Outcome, Question, explain},
};
use kage_types::{Order, OrderScope};
use std::{convert::Infallible, path::Path};
use support::{Cure, World, head, target, vip, with_target};

const KEYS: &str = "healthy_for = \"2s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";

fn world_with(keys: &str) -> World {
    let mut world =
        World::journalled(&(head("normal") + &with_target("mail", 100, "mailb", &format!("{KEYS}\n{keys}"), &[25])));
    world.run(70);
    world
}

fn ask(world: &World, name: &str, at: Option<Moment>) -> Result<Explanation, String> {
    let lines = world.journal.as_ref().expect("journal");
    let open = || {
        let place = |line| Place { file: "journal.jsonl".into(), line };
        let lines = lines.iter().cloned().zip(1..).map(move |(text, line)| Ok(Input::Line(place(line), text)));
        Ok::<_, Infallible>(lines.chain([Ok(Input::EndOfFile)]))
    };
    explain(open, &Question { name: name.into(), at }, "1.2.3", None)
}

/// The explanation is as it was; every line fits.
fn as_before(name: &str, explanation: &Explanation) {
    let text = explanation.to_text(&TimeZone::UTC);
    let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(long.is_empty(), "{long:#?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/why").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_WHY").is_some() {
        std::fs::create_dir_all(path.parent().expect("directory")).expect("directory");
        std::fs::write(&path, &text).expect("written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{name} is another than before (UPDATE_WHY=1 writes it anew):\n{text}");
    let json = serde_json::to_string(explanation).expect("json");
    assert_eq!(serde_json::from_str::<Explanation>(&json).expect("read back"), *explanation);
}

fn explained(name: &str, world: &World, outcome: Outcome) -> Explanation {
    let explanation = ask(world, "mail", None).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(explanation.outcome, outcome, "{}", explanation.to_text(&TimeZone::UTC));
    as_before(name, &explanation);
    explanation
}

fn served_by_the_double(world: &World) -> bool {
    world.held.get(&vip(100)).is_some_and(|(holder, _)| holder.as_str() == "mgmt")
        && world.mode("mail").starts_with("target-server-recovery")
}

#[test]
fn taken_over_by_patience() {
    let mut world = world_with("");
    world.server("mail").cut = true;
    world.until(10_000, "served", served_by_the_double);
    let explanation = explained("patience", &world, Outcome::TakenOver);
    let rules: Vec<&str> = explanation.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(rules, ["1", "5", "5c", "6", "conviction"]);
}

#[test]
fn taken_over_by_proof() {
    let config = head("normal").replace(
        "name = \"mail\"\naddress = \"10.0.0.11:7702\"\n",
        "name = \"mail\"\naddress = \"10.0.0.11:7702\"\npower_status = [\"/usr/local/sbin/outlet\", \"mail\"]\n",
    );
    let mut world = World::journalled(&(config + &with_target("mail", 100, "mailb", KEYS, &[25])));
    world.run(70);
    world.power_lost("mail");
    world.until(10_000, "served", served_by_the_double);
    let explanation = explained("proof", &world, Outcome::TakenOver);
    assert!(explanation.rules.iter().any(|rule| rule.name == "5b"));
}

#[test]
fn taken_over_by_release() {
    let mut world = world_with("");
    world.shut_down("mail", true);
    world.until(10_000, "served", served_by_the_double);
    explained("release", &world, Outcome::TakenOver);
    world.until(90_000, "back", |world| world.mode("mail") == "regular");
    let whole = ask(&world, "mail", None).expect("explained");
    assert_eq!(whole.moves.iter().map(|story| story.cause.as_str()).collect::<Vec<_>>(), ["takeover", "failback"]);
    assert!(whole.summary.contains("mail serves again since"), "{}", whole.summary);
}

#[test]
fn not_taken_over_because_of_the_storm_brake() {
    let mut world = world_with("");
    for name in ["mail", "web", "v1"] {
        world.power_lost(name);
    }
    world.run(10_000);
    let explanation = explained("storm", &world, Outcome::NotTakenOver);
    assert!(explanation.rules.iter().any(|rule| rule.name == "storm brake"));
}

#[test]
fn not_taken_over_because_of_maintenance() {
    let mut world = world_with("");
    let order = Order {
        scope: OrderScope::Target(target("mail")),
        reason: "new disk".into(),
        who: "operator anna".into(),
        since_unix_ms: 1,
        until_unix_ms: None,
    };
    world.step(Event::OrdersRead { orders: vec![order], now_unix_ms: 5 });
    world.run(1_000);
    world.power_lost("mail");
    world.run(10_000);
    explained("maintenance", &world, Outcome::NotTakenOver);
}

#[test]
fn not_taken_over_because_a_restart_was_enough() {
    let mut world = world_with("");
    world.service_down("mail", 25, Cure::Restart);
    world.service_reported("mail", 25);
    world.run(3_000);
    explained("restart", &world, Outcome::Cured);
}

#[test]
fn taken_over_because_the_restarts_are_spent_and_given_up_because_the_reboots_are() {
    let mut world = world_with("budget = { restarts = 1, reboots = 0, takeovers = 1 }");
    world.service_down("mail", 25, Cure::Restart);
    world.service_reported("mail", 25);
    world.run(3_000);
    world.service_down("mail", 25, Cure::Nothing);
    world.service_reported("mail", 25);
    world.until(20_000, "given up", |world| world.mode("mail") == "ended");
    let explanation = explained("budget", &world, Outcome::TakenOver);
    assert!(explanation.rules.iter().any(|rule| rule.name == "budget"));
    assert_eq!(explanation.earlier.len(), 1, "the restart before");
}

#[test]
fn not_returned_because_it_is_held_down() {
    let mut world = world_with("budget = { takeovers = 1 }");
    world.power_lost("mail");
    world.until(120_000, "held down", |world| world.notes("held-down").len() == 1);
    let explanation = ask(&world, "mail", None).expect("explained");
    assert!(explanation.summary.contains("held down"), "{}", explanation.summary);
    assert!(explanation.rules.iter().any(|rule| rule.name == "hold-down"));
}

#[test]
fn a_takeover_under_way_says_what_it_waits_for() {
    let mut world = world_with("");
    world.server("mail").cut = true;
    world.until(10_000, "on its way", |world| world.notes("epoch-durable").len() == 1);
    world.run(20);
    let explanation = ask(&world, "mail", None).expect("explained");
    assert_eq!(explanation.outcome, Outcome::BeingTakenOver);
    assert!(explanation.summary.contains("patience for"), "{}", explanation.summary);
}

#[test]
fn a_quiet_target_and_other_names() {
    let world = world_with("");
    let placed = ask(&world, "10.0.0.100", None).expect("by its virtual IP");
    assert_eq!(placed.target, target("mail"));
    assert_eq!(ask(&world, "s25", None).expect("by its service").target, target("mail"));
    let unknown = ask(&world, "mial", None).expect_err("unknown");
    assert_eq!(unknown, "there is no target, service or virtual IP \"mial\"; targets: mail");
    let quiet = ask(&world, "mail", Some(Moment::Clock(kage_types::Time::from_millis(25_000)))).expect("quiet");
    assert_eq!(quiet.outcome, Outcome::Quiet);
    assert!(quiet.summary.contains("nothing was happening to mail then: mail is in mode regular"), "{}", quiet.summary);
}

#[test]
fn a_story_of_long_ago_is_found_by_its_time() {
    let mut world = world_with("");
    world.server("mail").cut = true;
    let lost = world.now;
    world.until(10_000, "served", served_by_the_double);
    world.back("mail");
    world.until(120_000, "back", |world| world.mode("mail") == "regular");
    world.snapshot(kage_coordinator_core::journal::Because::Length);
    world.run(60_000);
    world.service_down("mail", 25, Cure::Restart);
    world.service_reported("mail", 25);
    world.run(3_000);
    world.snapshot(kage_coordinator_core::journal::Because::Rotation);
    world.run(1_000);
    assert_eq!(ask(&world, "mail", None).expect("the last").outcome, Outcome::Cured);
    let at = Moment::Wall(support::HEAD.unix_ms + lost + 500);
    assert_eq!(ask(&world, "mail", Some(at)).expect("the one before").outcome, Outcome::TakenOver);
}
