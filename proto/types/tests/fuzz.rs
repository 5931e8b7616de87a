//! Names, addresses, orders and timings of any text: an error at worst, and what is accepted comes back unchanged.

use kage_types::{AgentId, LeaseTiming, OrderScope, Profile, Vip};
use proptest::prelude::*;
use std::time::Duration;

#[path = "../../../tests/src/mangle.rs"]
mod mangle;
use mangle::{Edit, mangle};

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (0..u64::MAX, 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos)),
        (0..100_000u64).prop_map(Duration::from_millis),
        Just(Duration::MAX),
    ]
}

proptest! {
    #[test]
    fn what_is_accepted_comes_back(text in r"([0-9a-fA-F.:%/_-]|\PC|target:|agent:|all){0,70}") {
        if let Ok(vip) = text.parse::<Vip>() {
            prop_assert_eq!(vip.to_string().parse::<Vip>(), Ok(vip));
        }
        if let Ok(name) = text.parse::<AgentId>() {
            prop_assert!(name.as_str().len() <= 63);
        }
        if let Ok(scope) = text.parse::<OrderScope>() {
            prop_assert_eq!(scope.to_string().parse::<OrderScope>(), Ok(scope));
        }
    }

    #[test]
    fn no_timing_breaks_its_check(
        lease in duration(), element in duration(), renewal in duration(), slack in duration(), long_lease in duration(),
    ) {
        let timing = LeaseTiming { lease, element, renewal, slack, long_lease };
        if timing.check().is_ok() {
            prop_assert!(timing.lease >= timing.element && timing.element >= timing.renewal);
        }
        let _ = (timing.long_element(), timing.stall_tolerance(), LeaseTiming::patience(lease));
        let _ = timing.renew_until(kage_types::Time::from_nanos(u64::MAX / 2), lease);
    }

    #[test]
    fn no_stored_timing_breaks_the_reader(edits in prop::collection::vec(any::<Edit>(), 0..4)) {
        let good = serde_json::to_vec(&LeaseTiming::of(Profile::Normal)).expect("json");
        if let Ok(timing) = serde_json::from_slice::<LeaseTiming>(&mangle(&good, &edits)) {
            let _ = (timing.check(), timing.long_element(), LeaseTiming::patience(timing.lease));
        }
    }
}
