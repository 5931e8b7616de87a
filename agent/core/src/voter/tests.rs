use super::*;

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn vip() -> Vip {
    "10.0.0.100".parse().expect("vip")
}

fn step(voter: &mut Voter, millis: u64, event: VoterEvent) -> Vec<VoterAction> {
    let mut actions = Vec::new();
    voter.step(at(millis), event, &mut actions);
    actions
}

fn vote(id: u64, epoch: u64, reaches_coordinator: bool) -> VoterEvent {
    let from = AgentId::new("mail").expect("name");
    let vips = vec![AskVip { vip: vip(), epoch: Epoch(epoch) }];
    VoterEvent::Vote { id, from, nonce: Nonce(1), vips, reaches_coordinator }
}

fn stored(voter: &mut Voter, millis: u64, actions: &[VoterAction]) -> Vec<VoterAction> {
    let [VoterAction::Store { version, .. }] = actions else { panic!("{actions:?}") };
    step(voter, millis, VoterEvent::Stored { version: *version, ok: true })
}

#[test]
fn it_relays_while_it_reaches_the_coordinator() {
    let mut voter = Voter::new(at(0), VoterStore::default());
    assert_eq!(step(&mut voter, 10, vote(1, 5, true)), [VoterAction::Relay { id: 1 }]);
}

#[test]
fn a_bar_is_durable_before_it_is_given_and_holds_for_ever() {
    let mut voter = Voter::new(at(0), VoterStore::default());
    let actions = step(&mut voter, 10, vote(1, 5, false));
    let consent = stored(&mut voter, 20, &actions);
    assert!(matches!(&consent[..], [VoterAction::Consent { vips, .. }] if vips.len() == 1));
    let bar = step(&mut voter, 110, VoterEvent::Bar { id: 2, term: Term(3), vip: vip(), floor: Epoch(6) });
    let barred = stored(&mut voter, 130, &bar);
    assert_eq!(barred, [VoterAction::Barred { id: 2, last_consent_age: Duration::from_millis(120) }]);
    let mut restarted = Voter::new(at(1000), voter.remembered().clone());
    let refused = step(&mut restarted, 1010, vote(3, 5, false));
    assert!(
        matches!(&refused[..], [VoterAction::Consent { vips, barred, .. }] if vips.is_empty() && barred.len() == 1)
    );
    let stale = step(&mut restarted, 1020, VoterEvent::Bar { id: 4, term: Term(2), vip: vip(), floor: Epoch(9) });
    assert!(matches!(&stale[..], [VoterAction::Refuse { .. }]));
}

#[test]
fn after_a_restart_its_own_age_is_the_last_consents() {
    let mut voter = Voter::new(at(1000), VoterStore::default());
    let bar = step(&mut voter, 1300, VoterEvent::Bar { id: 2, term: Term(3), vip: vip(), floor: Epoch(6) });
    let barred = stored(&mut voter, 1310, &bar);
    assert_eq!(barred, [VoterAction::Barred { id: 2, last_consent_age: Duration::from_millis(310) }]);
}

#[test]
fn a_full_disk_refuses_and_the_next_question_writes_again() {
    let mut voter = Voter::new(at(0), VoterStore::default());
    step(&mut voter, 10, VoterEvent::Bar { id: 1, term: Term(1), vip: vip(), floor: Epoch(6) });
    let refused = step(&mut voter, 20, VoterEvent::Stored { version: 1, ok: false });
    assert!(matches!(&refused[..], [VoterAction::Refuse { id: 1, .. }]));
    let again = step(&mut voter, 30, VoterEvent::Bar { id: 2, term: Term(1), vip: vip(), floor: Epoch(6) });
    assert!(matches!(&again[..], [VoterAction::Store { version: 2, .. }]), "{again:?}");
}
