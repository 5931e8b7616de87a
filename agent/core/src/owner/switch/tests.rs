#![allow(clippy::wildcard_enum_match_arm, reason = "tests look for one action among many")]

use super::*;
use kage_types::{GrantItem, Profile};

const VIP: &str = "10.0.0.100";

struct Bench(Owner);

fn ask(epoch: u64) -> AskVip {
    AskVip { vip: VIP.parse().expect("vip"), epoch: Epoch(epoch) }
}

fn vm() -> DomainName {
    DomainName::new("mail1").expect("name")
}

impl Bench {
    fn step(&mut self, millis: u64, event: OwnerEvent) -> Vec<OwnerAction> {
        let mut actions = Vec::new();
        self.0.step(Time::from_millis(millis), event, &mut actions);
        actions
    }

    /// The last operation asked of the kernel is done.
    fn kernel(&mut self, millis: u64) -> Vec<OwnerAction> {
        self.ended(millis, self.0.last_op)
    }

    fn ended(&mut self, millis: u64, op: OpId) -> Vec<OwnerAction> {
        let at = Time::from_millis(millis);
        self.step(millis, OwnerEvent::Kernel { op, outcome: KernelOutcome::Done, at })
    }

    fn hold(&mut self, millis: u64, epoch: u64) -> Vec<OwnerAction> {
        let (command, place) = (CommandId(epoch), Place::Vm(vm()));
        self.step(millis, OwnerEvent::Hold { command, term: Term(1), ask: ask(epoch), place })
    }

    fn switch(&mut self, millis: u64, command: u64) -> Vec<OwnerAction> {
        let (command, domain, to) = (CommandId(command), vm(), "rs2".to_owned());
        self.step(millis, OwnerEvent::SwitchedOver { command, domain, to })
    }

    /// In service at epoch 5, everything so far on the disk.
    fn serving() -> Self {
        let mut bench = Self(Owner::new(OwnerMemory::default()));
        bench.step(
            1000,
            OwnerEvent::Assigned(Assignment {
                vips: [ask(5).vip].into(),
                timing: LeaseTiming::of(Profile::Normal),
                voters: BTreeMap::new(),
                on_coordinator_loss: OnCoordinatorLoss::Voters,
            }),
        );
        bench.step(1000, OwnerEvent::Session(true));
        let hold = bench.hold(1000, 5);
        bench.step(1000, OwnerEvent::Remembered { version: write(&hold).expect("write"), ok: true });
        bench.kernel(1001);
        let items = vec![GrantItem { vip: ask(5).vip, epoch: Epoch(5), verdict: Verdict::Granted }];
        let nonce = bench.0.last_nonce;
        let grant = Grant { nonce, term: Term(1), in_authority: true, length: Duration::from_secs(2), items };
        bench.step(1002, OwnerEvent::Answer { grant, relayed: false });
        bench.kernel(1003);
        assert_eq!(bench.0.vips().next().expect("held").state, "live");
        bench
    }
}

fn write(actions: &[OwnerAction]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        OwnerAction::Remember { version, .. } => Some(*version),
        _ => None,
    })
}

fn closes(actions: &[OwnerAction]) -> bool {
    actions.iter().any(|action| matches!(action, OwnerAction::Kernel { change: KernelOp::Close { .. }, .. }))
}

fn told(actions: &[OwnerAction]) -> bool {
    let lost =
        OwnerAction::Lost { ask: ask(5), reason: LossReason::SwitchedOver("rs2".to_owned()), place: Place::Vm(vm()) };
    assert!(!actions.iter().any(|action| matches!(action, OwnerAction::Lost { .. }) && *action != lost));
    actions.contains(&lost)
}

fn done(actions: &[OwnerAction], command: u64) -> bool {
    actions.contains(&OwnerAction::Done { command: CommandId(command), result: Ok(()) })
}

#[test]
fn it_is_told_when_the_kernel_and_the_disk_have_said_so() {
    for disk_first in [false, true] {
        let mut bench = Bench::serving();
        let actions = bench.switch(1100, 20);
        assert!(closes(&actions) && !told(&actions) && !done(&actions, 20));
        let version = write(&actions).expect("the epoch's end is written");
        let (first, last) = if disk_first {
            let first = bench.step(1101, OwnerEvent::Remembered { version, ok: true });
            (first, bench.kernel(1102))
        } else {
            let first = bench.kernel(1101);
            (first, bench.step(1102, OwnerEvent::Remembered { version, ok: true }))
        };
        assert!(!told(&first) && !done(&first, 20));
        assert!(told(&last) && done(&last, 20));
        assert_eq!(bench.0.vips().count(), 0);
    }
}

#[test]
fn the_epoch_is_over_here_even_when_the_migration_failed_at_the_last() {
    let mut bench = Bench::serving();
    let version = write(&bench.switch(1100, 20)).expect("write");
    bench.step(1101, OwnerEvent::Remembered { version, ok: true });
    bench.kernel(1102);
    let stale = bench.hold(1103, 5);
    assert!(stale.iter().any(|action| matches!(
        action,
        OwnerAction::Done { result: Err(HoldRefused::StaleEpoch { seen: Epoch(6), .. }), .. }
    )));
    bench.hold(1104, 6);
    assert_eq!(bench.0.vips().next().map(|view| (view.epoch, view.state)), Some((Epoch(6), "arming")));
}

#[test]
fn told_to_hold_anew_before_the_old_is_closed() {
    let mut bench = Bench::serving();
    let version = write(&bench.switch(1100, 20)).expect("write");
    let closing = bench.0.last_op;
    bench.step(1101, OwnerEvent::Remembered { version, ok: true });
    bench.hold(1102, 6);
    let actions = bench.ended(1103, closing);
    assert!(told(&actions), "of epoch 5: {actions:?}");
    assert_eq!(bench.0.vips().next().map(|view| (view.epoch, view.state)), Some((Epoch(6), "arming")));
}

#[test]
fn a_full_disk_keeps_it_untold_until_it_is_written() {
    let mut bench = Bench::serving();
    let version = write(&bench.switch(1100, 20)).expect("write");
    bench.kernel(1101);
    let actions = bench.step(1102, OwnerEvent::Remembered { version, ok: false });
    assert!(!told(&actions));
    assert_eq!(write(&bench.step(1500, OwnerEvent::Tick)), None, "not again and again");
    let again = write(&bench.step(2200, OwnerEvent::Tick)).expect("tried again");
    assert!(told(&bench.step(2201, OwnerEvent::Remembered { version: again, ok: true })));
}

#[test]
fn the_event_and_the_end_of_the_call_tell_it_once() {
    let mut bench = Bench::serving();
    let version = write(&bench.switch(1100, 20)).expect("write");
    let second = bench.switch(1101, 21);
    assert!(!closes(&second) && !done(&second, 21));
    bench.step(1102, OwnerEvent::Remembered { version, ok: true });
    let last = bench.kernel(1103);
    assert!(told(&last) && done(&last, 20) && done(&last, 21));
    let third = bench.switch(1104, 22);
    assert!(!told(&third) && done(&third, 22));
}

#[test]
fn other_guests_are_left_alone() {
    let mut bench = Bench::serving();
    let (command, domain) = (CommandId(20), DomainName::new("other").expect("name"));
    let actions = bench.step(1100, OwnerEvent::SwitchedOver { command, domain, to: "rs2".to_owned() });
    assert!(!closes(&actions) && done(&actions, 20));
    assert_eq!(bench.0.vips().next().expect("held").state, "live");
}
