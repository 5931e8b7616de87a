//! What must hold for every arrangement.

use crate::support::{Lab, Wrong, after, group, host, policy, thesis, thesis_host, usage, vip, vm, want};
use kage_pss_core::{
    class::Condition,
    execute::Outcome,
    inventory::{Group, Host, HostState, Inventory, Vm, VmState, WakePath},
    judge::{Judge, Judgement},
    load::Load,
    plan::{Direction, Step, plan},
    policy::{GroupPolicy, Policy},
    units::{Bytes, Percent, Watts},
};
use proptest::prelude::*;
use std::{collections::BTreeSet, time::Duration};

/// Hosts of several sizes, some without wake path or pinned; groups of one to three members on any of them.
fn arrangements() -> impl Strategy<Value = (Inventory, Policy)> {
    let wake = prop_oneof![
        4 => Just(WakePath::Verified(Duration::from_secs(8))),
        1 => Just(WakePath::Verified(Duration::from_secs(90))),
        1 => Just(WakePath::None),
    ];
    let host_of = (6u64..24, wake, prop::bool::weighted(0.1));
    let member = (0usize..6, 1u64..4, 0u32..30, prop::bool::weighted(0.9));
    let group_of = (prop::collection::vec(member, 1..4), prop::bool::weighted(0.8));
    let config = (prop::option::of(0usize..6), 1u32..3, any::<bool>(), 0u64..60);
    (prop::collection::vec(host_of, 2..7), prop::collection::vec(group_of, 1..6), config).prop_map(arrange)
}

type HostOf = (u64, WakePath, bool);
type GroupOf = (Vec<(usize, u64, u32, bool)>, bool);
type Config = (Option<usize>, u32, bool, u64);

fn arrange((hosts, groups, config): (Vec<HostOf>, Vec<GroupOf>, Config)) -> (Inventory, Policy) {
    let mut inventory = thesis();
    inventory.hosts.clear();
    inventory.vms.clear();
    inventory.groups.clear();
    let count = hosts.len();
    for (number, (gib, wake, pinned)) in hosts.into_iter().enumerate() {
        let pinned = pinned.then(|| "work".to_owned());
        let there = Host { memory: Bytes::gib(gib), cores: 8, wake, pinned, ..thesis_host() };
        inventory.hosts.insert(host(&format!("h{number}")), there);
    }
    let mut address = 0;
    for (number, (members, light)) in groups.into_iter().enumerate() {
        let of = group(&format!("g{number}"));
        let mut names = Vec::new();
        for (member, (on, gib, cpu, shared_storage)) in members.into_iter().enumerate() {
            let name = vm(&format!("v{number}-{member}"));
            let on = host(&format!("h{}", on % count));
            address += 1;
            let vips = BTreeSet::from([vip(address)]);
            let there = Vm {
                group: Some(of.clone()),
                host: on.clone(),
                home: on,
                memory: Bytes::gib(gib),
                state: VmState::Running,
                vips: vips.clone(),
                home_vips: vips,
                shared_storage,
                usage: Some(usage(cpu)),
            };
            inventory.vms.insert(name.clone(), there);
            names.push(name);
        }
        let wanted = if light { Condition::Light } else { Condition::Moderate };
        inventory.groups.insert(of, Group { members: names, condition: Condition::Moderate, wanted });
    }
    // What is there fits.
    let reserve = Policy::default().host_memory;
    let fits: Vec<_> =
        inventory.hosts.keys().map(|name| (name.clone(), used(&inventory, name).plus(reserve))).collect();
    for (name, least) in fits {
        let there = inventory.hosts.get_mut(&name).expect("it is there");
        there.memory = there.memory.max(least);
    }
    let (base, awake_hosts, survive_host, watts) = config;
    let base = base.map(|number| host(&format!("h{}", number % count)));
    let policy = Policy { base, awake_hosts, survive_host, watts_per_gib: Watts::of(watts), ..Policy::default() };
    (inventory, policy)
}

fn used(inventory: &Inventory, host: &kage_types::AgentId) -> Bytes {
    let there = inventory.vms.values().filter(|vm| vm.host == *host && vm.state != VmState::Stopped);
    there.fold(Bytes(0), |sum, vm| sum.plus(vm.memory))
}

fn holders(inventory: &Inventory) -> Vec<usize> {
    let all: BTreeSet<_> = inventory.vms.values().flat_map(|vm| vm.home_vips.iter().copied()).collect();
    all.iter().map(|vip| inventory.vms.values().filter(|vm| vm.vips.contains(vip)).count()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_safe_after_each_of_its_steps((start, policy) in arrangements()) {
        let (plan, report) = plan(&start, &policy);
        let mut now = start.clone();
        for planned in &plan.steps {
            prop_assert!(planned.needs.iter().all(|need| *need < plan.steps.len()));
            now.apply(&planned.step);
            prop_assert!(holders(&now).iter().all(|count| *count == 1), "{}", planned.step);
            for (name, host) in &now.hosts {
                let limit = host.memory.minus(policy.host_memory);
                prop_assert!(used(&now, name) <= limit, "{name} is overcommitted by {}", planned.step);
            }
            match &planned.step {
                Step::SuspendHost { host } => {
                    let there = &now.hosts[host];
                    prop_assert!(matches!(there.wake, WakePath::Verified(_)) && there.pinned.is_none());
                    for vm in now.vms.values().filter(|vm| vm.host == *host) {
                        prop_assert!(vm.vips.is_empty() && vm.state != VmState::Running, "{host} sleeps in service");
                    }
                }
                Step::SuspendVm { vm, .. } => prop_assert!(now.vms[vm].vips.is_empty()),
                Step::MoveVip { to, .. } => prop_assert_eq!(now.vms[to].state, VmState::Running),
                Step::Migrate { vm, .. } => prop_assert!(now.vms[vm].shared_storage),
                Step::ResumeVm { .. } | Step::WakeHost { .. } => prop_assert!(false, "it gives up: {}", planned.step),
            }
        }
        let awake = now.hosts.values().filter(|host| host.state == HostState::Awake).count();
        let asleep = now.hosts.len() - awake;
        prop_assert!(asleep == 0 || awake >= policy.awake_hosts as usize);
        prop_assert_eq!(plan.is_empty(), asleep == 0, "no move for nothing: {}", report);
        for (name, (_, to)) in &plan.groups {
            prop_assert_eq!(*to, Condition::Light);
            prop_assert_eq!(now.serving(&now.groups[name]).len(), 1);
        }
    }

    #[test]
    fn a_plan_and_the_plan_back_are_the_identity((start, policy) in arrangements()) {
        let (there, _) = plan(&start, &policy);
        let mut light = after(start.clone(), &there);
        want(&mut light, Condition::Moderate);
        let (back, report) = plan(&light, &policy);
        let end = after(light, &back);
        prop_assert_eq!(&end.hosts, &start.hosts, "{}", report);
        prop_assert_eq!(&end.vms, &start.vms, "{}", report);
        prop_assert!(end.groups.values().all(|group| group.condition == Condition::Moderate));
        // And step by step in reverse as well.
        let mut undone = start.clone();
        there.steps().for_each(|step| undone.apply(step));
        there.steps().rev().for_each(|step| undone.apply(&step.inverse()));
        prop_assert_eq!(undone, start);
    }

    #[test]
    fn a_fold_that_fails_anywhere_leaves_the_beginning((start, policy) in arrangements(), at in any::<prop::sample::Index>(), silent in any::<bool>()) {
        let (plan, _) = plan(&start, &policy);
        prop_assume!(!plan.steps.is_empty());
        let step = plan.steps[at.index(plan.steps.len())].step.clone();
        let mut lab = Lab::new(start.clone(), policy);
        lab.wrong = vec![(step, if silent { Wrong::Nothing } else { Wrong::Fails })];
        lab.begin(&plan).expect("it is there");
        lab.run();
        prop_assert_eq!(lab.end.as_ref().expect("it is there").outcome, Outcome::Failed);
        prop_assert_eq!(&lab.truth, &start, "{:?}", lab.lines());
    }

    #[test]
    fn once_folded_nothing_more_is_planned((start, policy) in arrangements()) {
        let (first, _) = plan(&start, &policy);
        prop_assume!(!first.is_empty());
        let (second, _) = plan(&after(start, &first), &policy);
        prop_assert_eq!(second.direction, Direction::Fold);
        prop_assert!(second.groups.is_empty() || !second.steps.is_empty());
    }

    #[test]
    fn a_load_inside_the_dead_band_never_changes_a_condition(loads in prop::collection::vec(2000u32..5000, 1..200), light in any::<bool>()) {
        let condition = if light { Condition::Light } else { Condition::Moderate };
        let mut judge = Judge::new(condition);
        let policy = GroupPolicy::default();
        for cpu in loads {
            let load = Load { memory: Percent::of(10), cpu: Percent(cpu), network: Percent::of(10) };
            let judgement = judge.round(condition, Some(&load), &policy.thresholds, &policy.repeats);
            // Memory and network are Light: Moderate condition is held by the CPU alone.
            prop_assert_eq!(judgement, Judgement::Suits);
        }
    }

    #[test]
    fn a_load_that_comes_and_goes_quicker_than_its_repeats_changes_nothing(loads in prop::collection::vec((0u32..2000, 1usize..6, 5000u32..7000, 1usize..3), 1..40)) {
        let policy = GroupPolicy::default();
        for condition in [Condition::Light, Condition::Moderate] {
            let mut judge = Judge::new(condition);
            for (low, lows, high, highs) in &loads {
                for cpu in std::iter::repeat_n(low, *lows).chain(std::iter::repeat_n(high, *highs)) {
                    let load = Load { memory: Percent::of(10), cpu: Percent(*cpu), network: Percent::of(10) };
                    let judgement = judge.round(condition, Some(&load), &policy.thresholds, &policy.repeats);
                    let due = matches!(judgement, Judgement::Due { .. });
                    prop_assert!(!due, "{judgement:?}");
                }
            }
        }
    }
}

#[test]
fn the_thesiss_own_arrangement_is_one_of_them() {
    let (plan, _) = plan(&thesis(), &policy());
    assert_eq!(plan.direction, Direction::Fold);
}
