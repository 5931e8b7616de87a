//! What is planned, and what the report says when it is not.

use crate::support::{after, at, group, host, light, policy, secs, steps, thesis, thesis_host, usage, vip, vm, want};
use kage_pss_core::{
    class::Condition,
    inventory::{Claim, HostState, Inventory, VmState, WakePath},
    plan::{Direction, Plan, Step, plan},
    policy::{GroupPolicy, Policy},
    units::{Bytes, Percent, Watts},
};

fn planned(inventory: &Inventory, policy: &Policy) -> (Plan, Vec<String>) {
    let (plan, report) = plan(inventory, policy);
    (plan, report.to_string().lines().map(str::to_owned).collect())
}

fn sleeping(plan: &Plan) -> Vec<String> {
    steps(plan).into_iter().filter_map(|step| step.strip_prefix("suspend host ").map(str::to_owned)).collect()
}

#[test]
fn the_thesis_folds_in_the_thesiss_order() {
    let (plan, report) = planned(&thesis(), &policy());
    assert_eq!(
        steps(&plan),
        [
            "virtual IP 172.21.14.106: ftp2 -> ftp1",
            "virtual IP 172.21.14.104: mail2 -> mail1",
            "virtual IP 172.21.14.105: web2 -> web1",
            "live migration of ftp1: rs2 -> rs1",
            "suspend ftp2 on rs3",
            "suspend mail2 on rs2",
            "suspend web2 on rs3",
            "suspend host rs2",
            "suspend host rs3",
        ]
    );
    let needs: Vec<Vec<usize>> = plan.steps.iter().map(|planned| planned.needs.iter().copied().collect()).collect();
    let none: Vec<usize> = Vec::new();
    assert_eq!(
        needs,
        [none.clone(), none.clone(), none, vec![0], vec![0, 3], vec![1], vec![2], vec![3, 5], vec![4, 6]]
    );
    assert_eq!(plan.watts.to_string(), "170.0 W", "263 W - 93 W, table 4.3");
    assert_eq!(plan.migrated, Bytes::gib(2));
    assert_eq!(plan.groups.len(), 3);
    assert_eq!(report, [] as [&str; 0]);
}

#[test]
fn and_unfolds_in_the_order_of_table_4_3() {
    let mut inventory = light();
    want(&mut inventory, Condition::Moderate);
    let (plan, report) = planned(&inventory, &policy());
    assert_eq!(plan.direction, Direction::Unfold);
    assert_eq!(
        steps(&plan),
        [
            "wake host rs2",
            "wake host rs3",
            "resume ftp2 on rs3",
            "resume mail2 on rs2",
            "resume web2 on rs3",
            "virtual IP 172.21.14.106: ftp1 -> ftp2",
            "virtual IP 172.21.14.104: mail1 -> mail2",
            "virtual IP 172.21.14.105: web1 -> web2",
            "live migration of ftp1: rs1 -> rs2",
        ]
    );
    assert_eq!(report, [] as [&str; 0]);
    let mut back = after(inventory, &plan);
    want(&mut back, Condition::Light);
    assert_eq!(Inventory { generation: thesis().generation, ..back }, thesis(), "plan and plan back: as it was");
}

#[test]
fn several_groups_in_light_condition_as_in_fig_3_3() {
    let light = |names: &[&str]| {
        let mut inventory = thesis();
        want(&mut inventory, Condition::Moderate);
        for name in names {
            inventory.groups.get_mut(&group(name)).expect("it is there").wanted = Condition::Light;
        }
        planned(&inventory, &policy())
    };
    for alone in ["mail", "web", "ftp"] {
        assert!(light(&[alone]).0.is_empty(), "(b) {alone} alone lets no host sleep");
    }
    assert!(light(&["mail", "web"]).0.is_empty(), "(c) (i)");
    assert_eq!(sleeping(&light(&["mail", "ftp"]).0), ["rs2"], "(c) (ii)");
    assert_eq!(sleeping(&light(&["web", "ftp"]).0), ["rs3"], "(c) (iii)");
    assert_eq!(sleeping(&light(&["mail", "web", "ftp"]).0), ["rs2", "rs3"], "(c) (iv)");
    let (none, report) = light(&["mail", "web"]);
    assert!(none.is_empty());
    assert_eq!(
        report,
        [
            "rs2 runs ftp1, which is in service",
            "rs3 runs ftp2, which is in service",
            "mail stays: no host could sleep for it",
            "web stays: no host could sleep for it",
        ]
    );
    let (fewest, _) = light(&["web", "ftp"]);
    assert_eq!(fewest.migrated, Bytes(0), "ftp1 need not move: rs2 stays awake for mail2");
}

#[test]
fn only_a_verified_wake_path_lets_a_host_sleep() {
    for wake in [WakePath::Unproven, WakePath::Failed, WakePath::None] {
        let mut inventory = thesis();
        inventory.hosts.get_mut(&host("rs2")).expect("it is there").wake = wake;
        let (plan, report) = planned(&inventory, &policy());
        assert_eq!(sleeping(&plan), ["rs3"]);
        assert!(report.contains(&"rs2 has no verified wake path".to_owned()), "{report:?}");
        assert_eq!(plan.migrated, Bytes(0), "no move for nothing");
    }
}

/// Change the thesis's arrangement; what sleeps then, and a line of the report.
#[track_caller]
fn stays(change: impl FnOnce(&mut Inventory, &mut Policy), sleep: &[&str], line: &str) {
    let (mut inventory, mut policy) = (thesis(), policy());
    change(&mut inventory, &mut policy);
    let (plan, report) = planned(&inventory, &policy);
    assert_eq!(sleeping(&plan), sleep, "{report:?}");
    assert!(report.iter().any(|there| there == line), "{report:?}");
}

#[test]
fn what_keeps_a_host_awake_is_said() {
    let rs2 = |inventory: &mut Inventory, change: &dyn Fn(&mut kage_pss_core::inventory::Host)| {
        change(inventory.hosts.get_mut(&host("rs2")).expect("it is there"));
    };
    stays(|i, _| rs2(i, &|rs2| rs2.pinned = Some("maintenance".into())), &["rs3"], "rs2 stays awake: maintenance");
    stays(
        |i, _| rs2(i, &|rs2| rs2.awake_since = at(9_700)),
        &["rs3"],
        "rs2 was woken lately: it stays awake for 600 s more",
    );
    stays(
        |i, _| rs2(i, &|rs2| rs2.sleeps = vec![at(9_000); 6]),
        &["rs3"],
        "rs2 has gone to sleep 6 times in 24 h, no more",
    );
    stays(
        |i, _| {
            i.claims.insert(Claim::Host(host("rs3")));
        },
        &[],
        "web stays: web2 is part of a recovery",
    );
    stays(
        |i, _| i.vms.get_mut(&vm("mail2")).expect("it is there").group = None,
        &["rs3"],
        "rs2 runs mail2, which is in service",
    );
    stays(
        |i, _| i.vms.get_mut(&vm("ftp1")).expect("it is there").shared_storage = false,
        &["rs3"],
        "rs2 runs ftp1, whose disks are not on shared storage",
    );
    stays(
        |i, _| i.hosts.get_mut(&host("rs1")).expect("it is there").memory = Bytes::gib(6),
        &["rs3"],
        "rs2 runs ftp1, for which rs1 is 1024 MiB short of memory",
    );
    stays(|_, p| p.awake_hosts = 2, &["rs3"], "rs2 stays awake: at least 2 must be");
    stays(
        |_, p| p.watts_per_gib = Watts::of(50),
        &["rs3"],
        "rs2 stays awake: 85.0 W saved are not worth migrating 2048 MiB",
    );
    stays(
        |i, p| {
            p.base_cpu = Percent::of(30);
            for name in ["mail1", "web1", "ftp1", "ftp2"] {
                i.vms.get_mut(&vm(name)).expect("it is there").usage = Some(usage(30));
            }
            p.groups.insert(group("ftp"), high_limits());
        },
        &["rs3"],
        "rs2 stays awake: rs1 would be used to 32.50 % of its cores",
    );
}

fn high_limits() -> GroupPolicy {
    let mut policy = GroupPolicy::default();
    policy.thresholds.cpu.moderate1 = Percent::of(65);
    policy
}

#[test]
fn any_host_may_still_be_lost() {
    let slow = |inventory: &mut Inventory, _: &mut Policy| {
        for host in inventory.hosts.values_mut() {
            host.wake = WakePath::Verified(secs(120));
        }
    };
    // Neither can be counted on in time: rs1 lost would leave all three without a place.
    stays(slow, &["rs3"], "rs2 stays awake: if rs1 were lost, ftp1 would have no place (N+1)");
    let mut policy = policy();
    policy.survive_host = false;
    let mut inventory = thesis();
    slow(&mut inventory, &mut policy);
    assert_eq!(sleeping(&planned(&inventory, &policy).0), ["rs2", "rs3"]);
}

#[test]
fn what_keeps_a_group_as_it_is_is_said() {
    stays(|_, p| p.base = Some(host("rs9")), &[], "mail has base server rs9, which does not exist: name another");
    stays(
        |i, _| i.hosts.get_mut(&host("rs1")).expect("it is there").state = HostState::Lost,
        &[],
        "mail stays: its base server rs1 is not awake and free",
    );
    stays(
        |i, _| {
            i.claims.insert(Claim::Vip(vip(105)));
        },
        &["rs2"],
        "web stays: web2 is part of a recovery",
    );
    stays(
        |i, _| i.vms.get_mut(&vm("web2")).expect("it is there").usage = None,
        &["rs2"],
        "web stays: web2 can't be measured",
    );
    stays(
        |i, _| i.vms.get_mut(&vm("web2")).expect("it is there").state = VmState::Stopped,
        &["rs2"],
        "rs3 stays awake: web2 belongs there and is to serve again",
    );
    stays(
        |i, _| {
            for name in ["web1", "web2"] {
                i.vms.get_mut(&vm(name)).expect("it is there").usage = Some(usage(26));
            }
        },
        &["rs2"],
        "web stays: web1 alone would have 52.00 % CPU load, Moderate from 50.00 %",
    );
    stays(
        |i, _| i.groups.get_mut(&group("web")).expect("it is there").wanted = Condition::Heavy,
        &["rs2"],
        "web is in Heavy load class, and no further member is configured",
    );
}

#[test]
fn a_base_server_is_chosen_where_none_is_configured() {
    let free = Policy::default();
    let (plan, report) = planned(&thesis(), &free);
    assert_eq!(sleeping(&plan).len(), 2, "{report:?}");
    assert_eq!(plan.migrated, Bytes::gib(2));
    // A host that can't sleep anyway is the best base.
    let mut inventory = thesis();
    inventory.hosts.get_mut(&host("rs3")).expect("it is there").wake = WakePath::None;
    assert_eq!(sleeping(&planned(&inventory, &free).0), ["rs1", "rs2"]);
    // One that has no room is none for what would have to move there.
    inventory.hosts.get_mut(&host("rs3")).expect("it is there").memory = Bytes::gib(6);
    let (plan, _) = planned(&inventory, &free);
    assert!(!steps(&plan).iter().any(|step| step.ends_with("-> rs3") && step.starts_with("live")));
}

#[test]
fn a_host_that_does_not_wake_is_replaced() {
    let mut inventory = light();
    want(&mut inventory, Condition::Moderate);
    inventory.hosts.get_mut(&host("rs2")).expect("it is there").wake = WakePath::Failed;
    let mut spare = inventory.clone();
    spare.hosts.insert(host("rs4"), kage_pss_core::inventory::Host { state: HostState::Asleep, ..thesis_host() });
    let (plan, report) = planned(&spare, &policy());
    assert_eq!(
        steps(&plan),
        [
            "wake host rs3",
            "wake host rs4",
            "resume ftp2 on rs3",
            "resume web2 on rs3",
            "virtual IP 172.21.14.106: ftp1 -> ftp2",
            "virtual IP 172.21.14.105: web1 -> web2",
            "live migration of ftp1: rs1 -> rs4",
        ]
    );
    assert_eq!(
        report,
        [
            "rs2 does not wake: ftp1 goes to rs4 instead",
            "rs2 does not wake, and mail2 can go to no other host: it stays where it is",
        ]
    );
    assert_eq!(plan.groups.keys().map(ToString::to_string).collect::<Vec<_>>(), ["ftp", "web"], "mail is not back");
    // Without a spare: not beside ftp2, which would be lost with it.
    let (plan, _) = planned(&inventory, &policy());
    assert_eq!(plan.migrated, Bytes(0));
}

#[test]
fn capacity_comes_back_before_any_is_given_up() {
    let mut inventory = light();
    want(&mut inventory, Condition::Light);
    inventory.groups.get_mut(&group("web")).expect("it is there").wanted = Condition::Moderate;
    let (plan, _) = planned(&inventory, &policy());
    assert_eq!(
        steps(&plan),
        ["wake host rs3", "resume web2 on rs3", "virtual IP 172.21.14.105: web1 -> web2"],
        "only what web needs"
    );
}

/// It woke by itself, its agent had only been silent when it was to sleep, or somebody pressed the button.
#[test]
fn a_host_that_is_awake_though_the_ledger_has_it_asleep_is_marked_awake() {
    let mut inventory = light();
    inventory.hosts.get_mut(&host("rs2")).expect("it is there").woke = true;
    let (plan, _) = planned(&inventory, &policy());
    assert_eq!((steps(&plan), plan.groups.len()), (vec!["wake host rs2".to_owned()], 0));
    inventory.claims.insert(Claim::Host(host("rs2")));
    assert!(planned(&inventory, &policy()).0.is_empty());
}

/// A recovery left ftp1 where it had been migrated to, and a virtual IP with it.
#[test]
fn in_moderate_condition_what_is_elsewhere_goes_to_its_place() {
    let mut inventory = thesis();
    want(&mut inventory, Condition::Moderate);
    inventory.vms.get_mut(&vm("ftp1")).expect("it is there").host = host("rs1");
    let (plan, _) = planned(&inventory, &policy());
    assert_eq!((steps(&plan), plan.groups.len()), (vec!["live migration of ftp1: rs1 -> rs2".to_owned()], 0));
    inventory.apply(&Step::MoveVip { vip: vip(104), from: vm("mail2"), to: vm("mail1") });
    let (plan, _) = planned(&inventory, &policy());
    assert_eq!(steps(&plan), ["virtual IP 172.21.14.104: mail1 -> mail2", "live migration of ftp1: rs1 -> rs2"]);
    // Not while the group is to be Light: then it is planned from where it is.
    want(&mut inventory, Condition::Light);
    assert_eq!(planned(&inventory, &policy()).0.direction, Direction::Fold);
}

/// Its host lost its power while it was suspended.
#[test]
fn a_suspended_member_that_is_off_is_started() {
    let mut inventory = light();
    want(&mut inventory, Condition::Moderate);
    inventory.vms.get_mut(&vm("mail2")).expect("it is there").state = VmState::Stopped;
    let (plan, _) = planned(&inventory, &policy());
    assert!(steps(&plan).contains(&"resume mail2 on rs2".to_owned()), "{:?}", steps(&plan));
}

#[test]
fn nothing_wanted_nothing_said() {
    let mut inventory = thesis();
    want(&mut inventory, Condition::Moderate);
    let (plan, report) = planned(&inventory, &policy());
    assert!(plan.is_empty() && report.is_empty());
    let (plan, report) = planned(&light(), &policy());
    assert!(plan.is_empty() && report.is_empty(), "{report:?}");
}

#[test]
fn hundreds_of_hosts_are_planned() {
    let mut inventory = thesis();
    inventory.hosts.clear();
    inventory.vms.clear();
    inventory.groups.clear();
    let mut template = thesis().vms[&vm("mail1")].clone();
    for number in 0..300u32 {
        inventory.hosts.insert(
            host(&format!("h{number}")),
            kage_pss_core::inventory::Host { memory: Bytes::gib(64), cores: 64, ..thesis_host() },
        );
    }
    let mut members = std::collections::BTreeMap::<u32, Vec<_>>::new();
    for number in 0..3000u32 {
        let of = number / 2;
        let on = host(&format!("h{}", (number * 7) % 300));
        template.group = Some(group(&format!("g{of}")));
        (template.host, template.home) = (on.clone(), on);
        let address = format!("10.1.{}.{}", number / 250, number % 250 + 1).parse().expect("it is there");
        template.vips = [address].into();
        template.home_vips = template.vips.clone();
        inventory.vms.insert(vm(&format!("v{number}")), template.clone());
        members.entry(of).or_default().push(vm(&format!("v{number}")));
    }
    let mut group_of = thesis().groups[&group("mail")].clone();
    for (of, members) in members {
        group_of.members = members;
        inventory.groups.insert(group(&format!("g{of}")), group_of.clone());
    }
    let (plan, report) = plan(&inventory, &Policy::default());
    assert!(!plan.is_empty(), "{report}");
}
