use super::*;
use crate::saving::tests::{cluster, ledger, seen};
use kage_types::{Claim, ClaimRow, MigrationRow, Revision, Step, StepState};

fn vm(name: &str) -> DomainName {
    name.parse().expect("name")
}

fn host(name: &str) -> AgentId {
    name.parse().expect("name")
}

fn vip(last: u8) -> Vip {
    format!("10.77.0.{last}").parse().expect("address")
}

#[test]
fn at_home_in_moderate_condition() {
    let made = inventory(Time::ZERO, &cluster(), &ledger(), &seen());
    assert_eq!(made.generation, Revision(7));
    let group = made.groups.values().next().expect("group");
    assert_eq!((group.members.clone(), group.condition), (vec![vm("mail1"), vm("mail2")], Condition::Moderate));
    let mail2 = &made.vms[&vm("mail2")];
    assert_eq!((mail2.host.clone(), mail2.home.clone(), mail2.state), (host("rs2"), host("rs2"), VmState::Running));
    assert_eq!((mail2.vips.clone(), mail2.home_vips.clone()), ([vip(104)].into(), [vip(104)].into()));
    assert!(mail2.shared_storage && mail2.memory == Bytes::gib(2));
    let rs2 = &made.hosts[&host("rs2")];
    assert_eq!((rs2.state, rs2.wake, rs2.memory), (HostState::Awake, WakePath::Unproven, Bytes::gib(8)));
    assert_eq!(made.hosts[&host("rs3")].state, HostState::Lost, "it never answered");
}

#[test]
fn what_no_table_has_keeps_its_host_awake() {
    let mut seen = seen();
    let there = SeenVm { state: VmState::Running, memory: Bytes::gib(1) };
    seen.hosts.get_mut(&host("rs2")).expect("rs2").vms.insert(vm("stranger"), there);
    let made = inventory(Time::ZERO, &cluster(), &ledger(), &seen);
    let stranger = &made.vms[&vm("stranger")];
    assert_eq!((stranger.group.clone(), stranger.host.clone(), stranger.state), (None, host("rs2"), VmState::Running));
}

#[test]
fn light_condition_and_a_backup_in_its_place() {
    let mut ledger = ledger();
    let mut row = ledger.tables.operation.remove(&vm("mail2")).expect("row");
    row.vm = vm("mailb");
    ledger.tables.suspend.insert(vm("mail2"), row);
    ledger.tables.real_servers.get_mut(&host("rs2")).expect("row").asleep_since_unix_ms = Some(1);
    ledger.tables.real_servers.get_mut(&host("rs2")).expect("row").wake_took_ms = Some(8_090);
    let away = MigrationRow { vm: vm("mail1"), original_host: host("rs3") };
    ledger.tables.live_migration.insert(vm("mail1"), away);
    ledger.vips.insert(vip(104), (host("rs1"), Some(vm("mail1"))));
    let claim = ClaimRow { by: "mail2".into(), why: "takeover".into() };
    ledger.tables.claims.insert(Claim::Vm(vm("mailb")), claim);
    let made = inventory(Time::ZERO, &cluster(), &ledger, &seen());
    // Problem (c): the place is measured by who fills it.
    assert_eq!(made.groups.values().next().expect("group").members, [vm("mail1"), vm("mailb")]);
    assert_eq!(made.vms[&vm("mail1")].vips, [vip(101), vip(104)].into());
    assert_eq!(made.vms[&vm("mail1")].home, host("rs3"));
    let rs2 = &made.hosts[&host("rs2")];
    assert_eq!((rs2.state, rs2.wake), (HostState::Asleep, WakePath::Verified(Duration::from_millis(8_090))));
    assert!(made.claimed_vm(&vm("mailb")) && made.vms[&vm("mailb")].vips.is_empty());
}

#[test]
fn a_member_that_is_not_where_the_tables_have_it_is_stopped() {
    let mut seen = seen();
    seen.hosts.get_mut(&host("rs2")).expect("rs2").vms.clear();
    let made = inventory(Time::ZERO, &cluster(), &ledger(), &seen);
    assert_eq!(made.vms[&vm("mail2")].state, VmState::Stopped);
    seen.hosts.get_mut(&host("rs2")).expect("rs2").up = false;
    let made = inventory(Time::ZERO, &cluster(), &ledger(), &seen);
    assert_eq!(made.vms[&vm("mail2")].state, VmState::Running, "nobody knows better");
}

#[test]
fn the_base_server_is_where_the_member_is_that_serves() {
    let mut ledger = ledger();
    let group = "mail".parse().expect("name");
    assert_eq!(ledger.base_of(&group, Condition::Moderate), None);
    ledger.vips.retain(|_, (owner, _)| *owner == host("rs2"));
    assert_eq!(ledger.base_of(&group, Condition::Light), Some(host("rs2")));
    ledger.vips.clear();
    assert_eq!(ledger.base_of(&group, Condition::Light), Some(host("rs1")));
    ledger.tables.state.get_mut(&group).expect("row").base = Some(host("rs3"));
    assert_eq!(ledger.base_of(&group, Condition::Light), Some(host("rs3")));
}

#[test]
fn a_plan_that_can_not_be_read_is_its_steps_one_after_another() {
    let mut row = TransitionRow {
        id: 1,
        by: "x".into(),
        plan: "{}".into(),
        steps: vec![
            (Step::SuspendVm { vm: vm("mail2"), host: host("rs2") }, StepState::Done),
            (Step::SuspendHost { host: host("rs2") }, StepState::Begun),
        ],
        groups: [("mail".parse().expect("name"), (Condition::Moderate, Condition::Light))].into(),
    };
    let plan = plan_of(&row);
    assert_eq!(plan.direction, kage_pss_core::plan::Direction::Fold);
    assert_eq!(plan.steps[1].needs, [0].into());
    row.plan = serde_json::to_string(&plan).expect("json");
    assert_eq!(plan_of(&row), plan);
}

#[test]
fn what_was_known_is_read_back() {
    let text = serde_json::to_vec(&seen()).expect("json");
    let mut wanted = seen();
    wanted.hosts.values_mut().for_each(|there| there.up = false);
    assert_eq!(serde_json::from_slice::<Seen>(&text).expect("read"), wanted);
}

/// What was seen of it last is of before it was suspended, and its host went to sleep at once.
#[test]
fn a_member_on_a_host_that_sleeps_is_suspended_whatever_was_seen_last() {
    let mut ledger = ledger();
    let row = ledger.tables.operation.remove(&vm("mail2")).expect("row");
    ledger.tables.suspend.insert(vm("mail2"), row);
    ledger.tables.real_servers.get_mut(&host("rs2")).expect("row").asleep_since_unix_ms = Some(1);
    let made = inventory(Time::ZERO, &cluster(), &ledger, &seen());
    assert_eq!(made.vms[&vm("mail2")].state, VmState::Suspended);
    assert_eq!(made.vms[&vm("mail1")].state, VmState::Running);
}

#[test]
fn what_may_be_elsewhere_is_looked_for_once_nobody_moves_it_any_more() {
    let mut ledger = ledger();
    ledger.tables.may_be_on.insert(vm("mail2"), [host("rs1")].into());
    let step = Step::Migrate { vm: vm("mail2"), from: host("rs2"), to: host("rs1") };
    let row = |state| kage_types::TransitionRow {
        id: 1,
        by: "pss".into(),
        plan: String::new(),
        steps: vec![(step.clone(), state)],
        groups: BTreeMap::new(),
    };
    ledger.tables.transition = Some(row(StepState::Begun));
    assert!(inventory(Time::ZERO, &cluster(), &ledger, &seen()).doubts.is_empty());
    ledger.tables.transition = None;
    let made = inventory(Time::ZERO, &cluster(), &ledger, &seen());
    assert_eq!(made.doubts[&vm("mail2")], Doubt { host: host("rs2"), others: [host("rs1")].into() });
}

/// It was resumed, and nobody heard that: the ledger would refuse to put anything on it.
#[test]
fn a_member_that_runs_and_is_suspended_in_the_tables_is_to_be_resumed() {
    let mut ledger = ledger();
    let row = ledger.tables.operation.remove(&vm("mail2")).expect("row");
    ledger.tables.suspend.insert(vm("mail2"), row);
    let made = inventory(Time::ZERO, &cluster(), &ledger, &seen());
    assert_eq!(made.vms[&vm("mail2")].state, VmState::Suspended);
}
