//! What reaches the agent from its files and from its peers: refused or understood, never a panic, and bounded.

use kage_agent::{
    config::Config,
    state::{AssignmentState, HeldEntry, OwnerState, StateDir, Tap},
    wire,
};
use kage_agent_core::{
    Adopted, Assignment, CommandId, KernelOutcome, OnCoordinatorLoss, OpId, Owner, OwnerEvent, OwnerMemory, Place,
    Voter, VoterEvent, VoterStore,
};
use kage_proto::{agent::v1 as agent, coordinator::v1 as coordinator};
use kage_types::{AgentId, AskVip, Epoch, Grant, GrantItem, LeaseTiming, Nonce, Profile, Term, Time, Verdict, Vip};
use proptest::prelude::*;
use std::{fs, time::Duration};

#[path = "../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

fn vip() -> Vip {
    "10.0.0.100".parse().expect("vip")
}

fn name(text: &str) -> AgentId {
    AgentId::new(text).expect("name")
}

fn given() -> Assignment {
    Assignment {
        vips: [vip()].into(),
        timing: LeaseTiming::of(Profile::Normal),
        voters: ["v1", "v2", "v3"].map(|voter| (name(voter), "10.0.0.1:7702".to_owned())).into(),
        on_coordinator_loss: OnCoordinatorLoss::Voters,
    }
}

/// One of everything that happens to an owner, as a line.
fn happenings() -> Vec<Vec<u8>> {
    let ask = AskVip { vip: vip(), epoch: Epoch(5) };
    let grant = |nonce| {
        let items = vec![GrantItem { vip: vip(), epoch: Epoch(5), verdict: Verdict::Granted }];
        Grant { nonce: Nonce(nonce), term: Term(1), in_authority: true, length: Duration::from_secs(2), items }
    };
    let command = CommandId(7);
    let kernel = |op| OwnerEvent::Kernel { op: OpId(op), outcome: KernelOutcome::Done, at: Time::from_millis(1100) };
    let adopted = Adopted { vip: vip(), epoch: Epoch(4), place: Place::Host, remaining: Duration::from_millis(500) };
    let mut all = vec![
        OwnerEvent::Assigned(given()),
        OwnerEvent::Session(true),
        OwnerEvent::Adopt(vec![adopted]),
        OwnerEvent::Hold { command, term: Term(1), ask, place: Place::Host },
        OwnerEvent::Release { command, term: Term(1), ask },
        OwnerEvent::PrepareStop { command },
        OwnerEvent::ReleaseAll { command },
        OwnerEvent::ClockJumped,
        OwnerEvent::GuardBack,
    ];
    all.extend((1..6).map(kernel));
    all.extend((1..6).map(|nonce| OwnerEvent::Answer { grant: grant(nonce), relayed: nonce % 2 == 0 }));
    all.extend((1..4).map(|nonce| OwnerEvent::Consent { voter: name("v1"), nonce: Nonce(nonce), vips: vec![ask] }));
    all.iter().map(|event| serde_json::to_vec(event).expect("json")).collect()
}

proptest! {
    #[test]
    fn no_slip_breaks_the_configuration(edits in prop::collection::vec(any::<Edit>(), 0..5), text in r"(\[[a-z.]{0,9}\]|[a-z]{1,9} = |'[a-z0-9:.]{0,9}'|[0-9]{1,20}|\n|\PC){0,30}") {
        let spoilt = mangle(include_bytes!("../../deploy/agent.toml"), &edits);
        for text in [String::from_utf8_lossy(&spoilt).as_ref(), text.as_str()] {
            match Config::parse(text) {
                Ok(config) => drop(config.guard_kind()),
                Err((line, fault)) => prop_assert!(line <= text.lines().count() + 1 && !fault.is_empty(), "{line}"),
            }
        }
    }

    #[test]
    fn no_assignment_breaks_the_conversion(
        texts in prop::collection::vec(r"[a-z0-9.:_-]{0,16}|10\.0\.0\.[0-9]|\PC{0,9}", 0..6), many in prop::option::weighted(0.1, 0..6000usize),
        figures in prop::array::uniform5(prop_oneof![0..40_000u32, any::<u32>()]), on_coordinator_loss in "voters|keep|lapse|x",
    ) {
        let [lease_ms, element_ms, renewal_ms, slack_ms, long_lease_ms] = figures;
        let voter = |text: &String| coordinator::VoterAddress { agent: text.clone(), address: text.clone() };
        let mut voters: Vec<_> = texts.iter().map(voter).collect();
        voters.extend((0..many.unwrap_or(0)).map(|n| coordinator::VoterAddress { agent: format!("v{n}"), address: "x".into() }));
        let wire = coordinator::Assignment {
            vips: texts, lease_ms, element_ms, renewal_ms, slack_ms, long_lease_ms, voters, on_coordinator_loss,
            ..Default::default()
        };
        if let Ok((_, assignment)) = wire::assignment(&wire) {
            prop_assert!(assignment.timing.check().is_ok() && assignment.voters.len() <= 256, "{}", assignment.voters.len());
        }
        let items = wire.vips.iter().map(|vip| agent::GrantItem { vip: vip.clone(), epoch: u64::MAX, verdict: 77 }).collect();
        let grant = wire::grant(&agent::Grant { nonce: u64::MAX, length_ms: u32::MAX, items, ..Default::default() });
        prop_assert!(grant.items.iter().all(|item| item.verdict == Verdict::Wait), "an unknown verdict grants nothing");
    }

    /// Numbers of any size and any order of events: no panic, and every wait has an end.
    #[test]
    fn no_event_breaks_the_owner(
        order in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(any::<Edit>(), 0..3), 0..3000u64), 1..60),
    ) {
        let lines = happenings();
        let mut owner = Owner::new(OwnerMemory::default());
        let (mut now, mut actions) = (1000, Vec::new());
        owner.step(Time::from_millis(now), OwnerEvent::Assigned(given()), &mut actions);
        for (index, edits, wait) in order {
            now += wait;
            let edits: Vec<_> = edits.iter().map(|(kind, at, by)| (6 + kind % 2, *at, *by)).collect();
            let Ok(event) = serde_json::from_slice::<OwnerEvent>(&mangle(index.get::<Vec<u8>>(&lines), &edits)) else { continue };
            // The shell lets no other timings through (wire::assignment, state::StateDir).
            if matches!(&event, OwnerEvent::Assigned(assignment) if assignment.timing.check().is_err()) {
                continue;
            }
            actions.clear();
            owner.step(Time::from_millis(now), event, &mut actions);
            let _ = (owner.deadline(), owner.vips().count(), owner.renewed_by());
            prop_assert!(actions.len() < 100);
        }
    }

    #[test]
    fn no_question_breaks_the_voter(numbers in prop::collection::vec((any::<u64>(), 0..300u64, any::<bool>()), 1..600)) {
        let mut voter = Voter::new(Time::from_millis(1), VoterStore::default());
        let (mut now, mut actions) = (0, Vec::new());
        for (number, wait, bar) in numbers {
            now += wait;
            let event = match (bar, number % 3) {
                (_, 0) => VoterEvent::Stored { version: number, ok: bar },
                (true, _) => VoterEvent::Bar { id: number, term: Term(number), vip: vip(), floor: Epoch(number) },
                (false, _) => VoterEvent::Vote {
                    id: number,
                    from: name("a"),
                    nonce: Nonce(number),
                    vips: vec![AskVip { vip: vip(), epoch: Epoch(number) }],
                    reaches_coordinator: number % 5 == 0,
                },
            };
            voter.step(Time::from_millis(now), event, &mut actions);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Damage is told, or what is read can be used; a file that is no file of ours is no memory of ours.
    #[test]
    fn no_damage_breaks_the_state(edits in prop::collection::vec(any::<Edit>(), 1..4)) {
        let dir = tempfile::tempdir().expect("dir");
        let state = StateDir::open(dir.path()).expect("open");
        state.write_voter(&VoterStore { highest_term: Term(3), epochs: [(vip(), Epoch(7))].into() }).expect("write");
        state.write_assignment(&AssignmentState::new(Term(3), &given())).expect("write");
        let tap = Some(Tap { ifname: "vnet1".into(), mac: "52:54:00:00:00:01".into() });
        let held = vec![HeldEntry { vip: vip(), epoch: Epoch(7), place: Place::Host, tap }];
        state.write_owner(&OwnerState { boot_id: "x".into(), held }).expect("write");
        state.write_memory(&OwnerMemory::default()).expect("write");
        for entry in fs::read_dir(dir.path()).expect("dir") {
            let file = entry.expect("entry").path();
            fs::write(&file, mangle(&fs::read(&file).expect("file"), &edits)).expect("write");
        }
        let _ = (state.voter(), state.owner(), state.memory(), state.writers());
        if let Ok(Some(stored)) = state.assignment() {
            prop_assert!(stored.to_core().timing.check().is_ok(), "{stored:?}");
        }
    }
}
