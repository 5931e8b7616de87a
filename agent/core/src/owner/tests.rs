#![allow(clippy::wildcard_enum_match_arm, reason = "tests look for one action among many")]

use super::*;
use kage_types::{GrantItem, Profile};

const VIP: &str = "10.0.0.100";

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

fn ask(epoch: u64) -> AskVip {
    AskVip { vip: VIP.parse().expect("vip"), epoch: Epoch(epoch) }
}

fn grant(nonce: u64, epoch: u64, verdict: Verdict) -> OwnerEvent {
    let AskVip { vip, epoch } = ask(epoch);
    let items = vec![GrantItem { vip, epoch, verdict }];
    let length = Duration::from_secs(2);
    OwnerEvent::Answer {
        grant: Grant { nonce: Nonce(nonce), term: Term(1), in_authority: true, length, items },
        relayed: false,
    }
}

/// An owner that knows its cluster, has a stream, and does nothing yet.
struct Bench {
    owner: Owner,
    now: u64,
}

impl Bench {
    fn new(policy: OnCoordinatorLoss) -> Self {
        let mut bench = Self { owner: Owner::new(OwnerMemory::default()), now: 1000 };
        let voters = ["v1", "v2", "v3"].map(|name| (AgentId::new(name).expect("name"), String::new()));
        let assignment = Assignment {
            vips: [VIP.parse().expect("vip")].into(),
            timing: LeaseTiming::of(Profile::Normal),
            voters: voters.into(),
            on_coordinator_loss: policy,
        };
        bench.step(1000, OwnerEvent::Assigned(assignment));
        bench.step(1000, OwnerEvent::Session(true));
        bench
    }

    fn step(&mut self, millis: u64, event: OwnerEvent) -> Vec<OwnerAction> {
        self.now = millis;
        let mut actions = Vec::new();
        self.owner.step(at(millis), event, &mut actions);
        actions
    }

    fn done(&mut self, millis: u64, op: u64, outcome: KernelOutcome) -> Vec<OwnerAction> {
        self.step(millis, OwnerEvent::Kernel { op: OpId(op), outcome, at: at(millis) })
    }

    /// Told to hold at 1000, armed at 1001, granted at 1003, open at 1004.
    fn serving(policy: OnCoordinatorLoss) -> Self {
        let mut bench = Self::new(policy);
        bench.step(1000, OwnerEvent::Hold { command: CommandId(7), term: Term(1), ask: ask(5), place: Place::Host });
        bench.done(1001, 1, KernelOutcome::Done);
        let nonce = bench.owner.last_nonce.0;
        bench.step(1003, grant(nonce, 5, Verdict::Granted));
        bench.done(1004, 2, KernelOutcome::Done);
        assert_eq!(bench.state(), "live");
        bench
    }

    fn state(&self) -> &'static str {
        self.owner.vips().next().map_or("none", |view| view.state)
    }
}

fn kernel(actions: &[OwnerAction]) -> Vec<KernelOp> {
    let change = |action: &OwnerAction| {
        if let OwnerAction::Kernel { change, .. } = action { Some(change.clone()) } else { None }
    };
    actions.iter().filter_map(change).collect()
}

#[test]
fn it_arms_then_asks_then_opens() {
    let mut bench = Bench::new(OnCoordinatorLoss::Voters);
    let (vip, life) = (ask(5).vip, Duration::from_millis(700));
    let hold = OwnerEvent::Hold { command: CommandId(7), term: Term(1), ask: ask(5), place: Place::Host };
    let actions = bench.step(1000, hold);
    assert_eq!(kernel(&actions), [KernelOp::Arm { vip, life }]);
    assert!(!actions.iter().any(|action| matches!(action, OwnerAction::Ask { vips, .. } if !vips.is_empty())));
    let actions = bench.done(1001, 1, KernelOutcome::Done);
    assert!(actions.iter().any(|action| matches!(action, OwnerAction::Ask { vips, .. } if *vips == [ask(5)])));
    let nonce = bench.owner.last_nonce.0;
    let actions = bench.step(1003, grant(nonce, 5, Verdict::Granted));
    // b = 1001: not begun after b + L − 2K − 2g.
    assert_eq!(kernel(&actions), [KernelOp::Open { vip, life, not_after: at(1001 + 2000 - 1400 - 100) }]);
    let actions = bench.done(1004, 2, KernelOutcome::Done);
    assert!(actions.contains(&OwnerAction::Announce { vip, place: Place::Host }));
    assert!(actions.contains(&OwnerAction::Done { command: CommandId(7), result: Ok(()) }));
}

#[test]
fn a_grant_for_a_request_sent_before_it_was_armed_opens_nothing() {
    let mut bench = Bench::new(OnCoordinatorLoss::Voters);
    bench.step(1000, OwnerEvent::Hold { command: CommandId(7), term: Term(1), ask: ask(5), place: Place::Host });
    bench.done(1001, 1, KernelOutcome::Done);
    let old = bench.owner.last_nonce.0;
    // Half of K later it is armed anew, before it asks again.
    let actions = bench.step(1360, OwnerEvent::Tick);
    assert!(matches!(kernel(&actions)[..], [KernelOp::Arm { .. }]));
    bench.done(1361, 2, KernelOutcome::Done);
    assert!(kernel(&bench.step(1362, grant(old, 5, Verdict::Granted))).is_empty());
}

#[test]
fn without_grants_nothing_is_renewed_and_it_lapses() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1010, OwnerEvent::Session(false));
    let (mut last_renewal, mut lapsed) = (0, None);
    for millis in 1010..4000 {
        let mut actions = bench.step(millis, OwnerEvent::Tick);
        let renewals = actions.iter().filter_map(|action| {
            if let OwnerAction::Kernel { op, change: KernelOp::Renew { not_after, .. }, .. } = action {
                Some((*op, *not_after))
            } else {
                None
            }
        });
        for (op, not_after) in renewals.collect::<Vec<_>>() {
            assert!(at(millis) <= not_after, "rule 3");
            last_renewal = millis;
            actions.extend(bench.done(millis, op.0, KernelOutcome::Done));
        }
        let reason = |action: &OwnerAction| matches!(action, OwnerAction::Lost { reason: LossReason::Lapsed, .. });
        if actions.iter().any(reason) {
            lapsed = Some(millis);
            break;
        }
    }
    assert!(last_renewal <= 1501, "the last one at {last_renewal}");
    assert_eq!(lapsed, Some(last_renewal + 750), "K + g after the last renewal");
}

#[test]
fn superseded_closes_and_never_asks_for_that_epoch_again() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1200, OwnerEvent::Tick);
    let nonce = bench.owner.last_nonce.0;
    let actions = bench.step(1203, grant(nonce, 5, Verdict::Superseded));
    assert!(matches!(kernel(&actions)[..], [KernelOp::Close { .. }]));
    let op = bench.owner.last_op.0;
    bench.done(1204, op, KernelOutcome::Done);
    assert_eq!(bench.state(), "none");
    let hold = OwnerEvent::Hold { command: CommandId(8), term: Term(1), ask: ask(5), place: Place::Host };
    let refused = bench.step(1300, hold);
    assert!(
        matches!(&refused[..], [OwnerAction::Done { result: Err(HoldRefused::StaleEpoch { .. }), .. }]),
        "{refused:?}"
    );
}

#[test]
fn a_majority_of_voters_renews_one_does_not() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1010, OwnerEvent::Session(false));
    let nonce = bench.owner.last_nonce;
    let consent =
        |name: &str| OwnerEvent::Consent { voter: AgentId::new(name).expect("name"), nonce, vips: vec![ask(5)] };
    let before = bench.owner.held[&ask(5).vip].grant;
    bench.step(1020, consent("v1"));
    bench.step(1021, consent("v1"));
    bench.step(1022, consent("stranger"));
    assert_eq!(bench.owner.held[&ask(5).vip].grant, before);
    bench.step(1023, consent("v2"));
    assert_eq!(bench.owner.held[&ask(5).vip].grant, Some((at(1010), Duration::from_secs(2))), "from b on");
    assert_eq!(bench.owner.renewed_by(), Some(RenewedBy::Voters));
}

#[test]
fn an_older_term_is_not_obeyed() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.owner.saw_term(Term(3));
    let release = OwnerEvent::Release { command: CommandId(9), term: Term(2), ask: ask(5) };
    let refused = bench.step(1100, release);
    assert!(refused.contains(&OwnerAction::Done {
        command: CommandId(9),
        result: Err(HoldRefused::StaleTerm { given: Term(2), seen: Term(3) }),
    }));
    assert_eq!(bench.state(), "live");
}

/// The version under which this is to be written.
fn bench_version(actions: &[OwnerAction], wanted: &OwnerMemory) -> Option<u64> {
    actions.iter().find_map(|action| {
        let OwnerAction::Remember { version, memory } = action else { return None };
        (memory == wanted).then_some(*version)
    })
}

#[test]
fn a_release_is_acknowledged_when_its_term_is_durable() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    let release = OwnerEvent::Release { command: CommandId(9), term: Term(2), ask: ask(5) };
    let actions = bench.step(1100, release);
    let memory = OwnerMemory { term: Term(2), floors: [(ask(5).vip, Epoch(6))].into() };
    assert!(matches!(kernel(&actions)[..], [KernelOp::Close { .. }]), "closed at once");
    let version = bench_version(&actions, &memory).expect("written");
    let op = bench.owner.last_op.0;
    let done = |actions: &[OwnerAction]| actions.iter().any(|action| matches!(action, OwnerAction::Done { .. }));
    assert!(!done(&bench.done(1101, op, KernelOutcome::Done)));
    // An earlier write says nothing about this one.
    assert!(!done(&bench.step(1102, OwnerEvent::Remembered { version: version - 1, ok: true })));
    let actions = bench.step(1103, OwnerEvent::Remembered { version, ok: true });
    assert_eq!(actions, [OwnerAction::Done { command: CommandId(9), result: Ok(()) }]);
    // After a restart an earlier term is refused, and the epoch that is over is not adopted.
    let mut owner = Owner::new(memory);
    let mut actions = Vec::new();
    let adopted = Adopted { vip: ask(5).vip, epoch: Epoch(5), place: Place::Host, remaining: Duration::from_secs(1) };
    owner.step(at(2000), OwnerEvent::Adopt(vec![adopted]), &mut actions);
    assert!(matches!(kernel(&actions)[..], [KernelOp::Close { .. }]), "{actions:?}");
    let hold = OwnerEvent::Hold { command: CommandId(1), term: Term(1), ask: ask(5), place: Place::Host };
    actions.clear();
    owner.step(at(2001), hold, &mut actions);
    assert!(matches!(&actions[..], [OwnerAction::Done { result: Err(HoldRefused::StaleTerm { .. }), .. }]));
}

#[test]
fn a_full_disk_refuses_the_acknowledgement_and_the_next_release_writes_again() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1100, OwnerEvent::Release { command: CommandId(9), term: Term(2), ask: ask(5) });
    let op = bench.owner.last_op.0;
    bench.done(1101, op, KernelOutcome::Done);
    let refused = bench.step(1103, OwnerEvent::Remembered { version: 2, ok: false });
    assert_eq!(refused, [OwnerAction::Done { command: CommandId(9), result: Err(HoldRefused::NotDurable) }]);
    let again = bench.step(1104, OwnerEvent::Release { command: CommandId(10), term: Term(2), ask: ask(5) });
    assert!(matches!(&again[..], [OwnerAction::Remember { version: 3, .. }]), "{again:?}");
    let done = bench.step(1105, OwnerEvent::Remembered { version: 3, ok: true });
    assert_eq!(done, [OwnerAction::Done { command: CommandId(10), result: Ok(()) }]);
}

#[test]
fn a_machine_that_slept_closes_first_and_no_answer_from_before_counts() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1200, OwnerEvent::Tick);
    let nonce = bench.owner.last_nonce.0;
    let actions = bench.step(9_001_200, OwnerEvent::ClockJumped);
    let close = |action: &OwnerAction| matches!(action, OwnerAction::Kernel { change: KernelOp::Close { .. }, .. });
    assert!(actions.first().is_some_and(close), "{actions:?}");
    let reason = |action: &OwnerAction| matches!(action, OwnerAction::Lost { reason: LossReason::ClockJumped, .. });
    assert!(actions.iter().any(reason));
    let op = bench.owner.last_op.0;
    bench.done(9_001_201, op, KernelOutcome::Done);
    let armed = bench.owner.last_op.0;
    bench.done(9_001_202, armed, KernelOutcome::Done);
    assert!(kernel(&bench.step(9_001_203, grant(nonce, 5, Verdict::Granted))).is_empty(), "granted before it slept");
    assert_eq!(bench.state(), "asking");
}

#[test]
fn a_planned_stop_takes_a_long_lease_and_then_does_nothing_more() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    let actions = bench.step(1100, OwnerEvent::PrepareStop { command: CommandId(9) });
    assert!(actions.iter().any(|action| matches!(action, OwnerAction::Ask { long: true, .. })));
    let nonce = bench.owner.last_nonce;
    let AskVip { vip, epoch } = ask(5);
    let items = vec![GrantItem { vip, epoch, verdict: Verdict::Granted }];
    let length = Duration::from_secs(30);
    let grant = Grant { nonce, term: Term(1), in_authority: true, length, items };
    let actions = bench.step(1103, OwnerEvent::Answer { grant, relayed: false });
    let life = LeaseTiming::of(Profile::Normal).long_element();
    let renewals = kernel(&actions);
    assert!(renewals.contains(&KernelOp::Renew { vip, life, not_after: at(1100 + 2000) }), "{renewals:?}");
    let op = bench.owner.last_op.0;
    let actions = bench.done(1104, op, KernelOutcome::Done);
    assert!(actions.contains(&OwnerAction::Done { command: CommandId(9), result: Ok(()) }));
    assert_eq!(bench.owner.deadline(), None);
}

#[test]
fn a_grant_too_old_to_renew_from_wakes_nobody() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    // Stalled past b + L − 2K − 2g: what is left is to lapse, or to be granted anew.
    let actions = bench.step(1600, OwnerEvent::Tick);
    assert!(kernel(&actions).is_empty(), "{actions:?}");
    assert!(bench.owner.deadline().is_some_and(|(time, _)| time > at(1600)), "{:?}", bench.owner.deadline());
}

#[test]
fn a_planned_stop_ends_even_if_its_element_cannot_be_set() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1100, OwnerEvent::PrepareStop { command: CommandId(9) });
    let AskVip { vip, epoch } = ask(5);
    let items = vec![GrantItem { vip, epoch, verdict: Verdict::Granted }];
    let length = Duration::from_secs(30);
    let grant = Grant { nonce: bench.owner.last_nonce, term: Term(1), in_authority: true, length, items };
    bench.step(1103, OwnerEvent::Answer { grant, relayed: false });
    let op = bench.owner.last_op.0;
    // The kernel's thread is stalled: the VIP lapses, and is being armed again, before the answer comes.
    bench.step(1800, OwnerEvent::Tick);
    assert_eq!(bench.state(), "arming");
    let actions = bench.done(1900, op, KernelOutcome::NotFound);
    assert!(actions.contains(&OwnerAction::Done { command: CommandId(9), result: Ok(()) }), "{actions:?}");
}

#[test]
fn a_guard_that_was_put_back_is_looked_at_at_once() {
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    let (vip, life) = (ask(5).vip, Duration::from_millis(700));
    let actions = bench.step(1050, OwnerEvent::GuardBack);
    assert_eq!(kernel(&actions), [KernelOp::Renew { vip, life, not_after: at(1001 + 2000 - 1400 - 100) }]);
    let op = bench.owner.last_op.0;
    let actions = bench.done(1051, op, KernelOutcome::NotFound);
    assert_eq!(kernel(&actions), [KernelOp::Arm { vip, life }]);
    // Still being put back for others: the next hint arms again instead of waiting for R.
    bench.done(1052, op + 1, KernelOutcome::Failed("no such table".to_owned()));
    assert_eq!(bench.state(), "stuck");
    assert_eq!(kernel(&bench.step(1053, OwnerEvent::GuardBack)), [KernelOp::Arm { vip, life }]);
    let actions = bench.done(1054, op + 2, KernelOutcome::Done);
    assert!(actions.iter().any(|action| matches!(action, OwnerAction::Ask { vips, .. } if *vips == [ask(5)])));
}

#[test]
fn a_machine_on_its_way_down_takes_nothing_until_it_stays_or_is_back() {
    let hold =
        |command| OwnerEvent::Hold { command: CommandId(command), term: Term(1), ask: ask(6), place: Place::Host };
    let refused = |actions: &[OwnerAction], command| {
        let result = Err(HoldRefused::Leaving);
        actions.contains(&OwnerAction::Done { command: CommandId(command), result })
    };
    for back in [OwnerEvent::Stays, OwnerEvent::ClockJumped] {
        let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
        bench.step(1100, OwnerEvent::ReleaseAll { command: CommandId(8) });
        assert!(refused(&bench.step(1101, hold(9)), 9));
        bench.step(1102, back);
        assert!(!refused(&bench.step(1103, hold(10)), 10));
    }
    // Whoever said so, it has not gone.
    let mut bench = Bench::serving(OnCoordinatorLoss::Voters);
    bench.step(1100, OwnerEvent::ReleaseAll { command: CommandId(8) });
    assert!(refused(&bench.step(601_000, hold(9)), 9));
    assert!(!refused(&bench.step(601_101, hold(10)), 10));
}

#[test]
fn an_order_that_was_overtaken_on_its_way_is_not_taken() {
    let mut owner = Owner::new(OwnerMemory::default());
    let (one, other) = (DomainName::new("mailb").expect("name"), DomainName::new("webb").expect("name"));
    assert!(owner.takes(&one, Term(2), 7) && owner.takes(&one, Term(2), 9));
    assert!(!owner.takes(&one, Term(2), 8) && !owner.takes(&one, Term(2), 9));
    assert!(owner.takes(&other, Term(2), 8), "each domain has its own");
    assert!(owner.takes(&one, Term(3), 1) && !owner.takes(&one, Term(2), 10), "a later term counts anew");
}
