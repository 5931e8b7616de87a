//! Long leases (docs/safety.md, rule 9): when SIF is told of one, and when that it was given back.

mod support;

use kage_coordinator_core::{Action, Event, SessionId};
use kage_types::{AskVip, Epoch, Nonce};
use support::{World, agent, head, vip, with_target};

fn ask(nonce: u64, long: bool) -> Event {
    Event::Ask {
        agent: agent("mail"),
        session: SessionId(1),
        via: None,
        incarnation: 1,
        nonce: Nonce(nonce),
        heard: Nonce(nonce - 1),
        vips: vec![AskVip { vip: vip(100), epoch: Epoch(1) }],
        long,
        long_surrendered: !long,
    }
}

/// What SIF was told, in order: is a long lease outstanding?
fn told(world: &World) -> Vec<bool> {
    let told =
        |action: &Action| if let Action::SetLongLease { outstanding, .. } = action { Some(*outstanding) } else { None };
    world.log.iter().filter_map(|(_, action)| told(action)).collect()
}

/// The network reorders: what was sent before the long lease was asked for knows nothing of it.
#[test]
fn a_long_lease_is_not_given_back_by_what_was_said_before_it_was_asked_for() {
    let mut world = World::new(&(head("normal") + &with_target("mail", 100, "mailb", "", &[25])));
    world.step(ask(1_000_000, true));
    world.run(20);
    world.step(ask(999_999, false));
    world.run(20);
    assert_eq!(told(&world), [true]);
    world.step(ask(1_000_001, false));
    assert_eq!(told(&world), [true, false]);
}
