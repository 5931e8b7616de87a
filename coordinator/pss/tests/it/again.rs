//! A controller that starts anew when the way up is over but for something that failed, between the thresholds.

use crate::{
    support::{group, host, vm},
    thesis::{Night, chapter_4},
};
use kage_pss_core::{Input, Pss, class::Condition, execute::Recorded, plan::Step};

fn ftp1_home() -> Step {
    Step::Migrate { vm: vm("ftp1"), from: host("rs1"), to: host("rs2") }
}

/// Everything is light, and ftp1 can't leave the base server.
fn light() -> Night {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.seconds(100);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    night.broken = vec![(ftp1_home(), "the hypervisor refused")];
    night
}

/// All is done but for ftp1's way home, and the load is between the thresholds.
fn all_but_ftp1() -> Night {
    let mut night = light();
    night.all(45);
    night.seconds(60);
    let condition = |name: &str| night.truth.groups[&group(name)].condition;
    assert_eq!([condition("ftp"), condition("mail"), condition("web")], {
        [Condition::Light, Condition::Moderate, Condition::Moderate]
    });
    assert_eq!(night.truth.vms[&vm("ftp1")].host, host("rs1"));
    night.all(35);
    night
}

fn starts_anew(night: &mut Night) {
    night.pss = Pss::new(night.now, chapter_4());
    night.input(Input::Inventory(Box::new(night.truth.clone())));
}

fn ends_at_home(night: &mut Night) {
    night.broken.clear();
    night.seconds(600);
    assert_eq!(night.conditions(), [Condition::Moderate; 3], "{}", night.report());
    assert_eq!(night.truth.vms[&vm("ftp1")].host, host("rs2"));
}

#[test]
fn one_that_goes_on_finishes_the_way_up() {
    let mut night = all_but_ftp1();
    ends_at_home(&mut night);
}

/// Somebody else has done what was left, and the ledger still has it Light.
#[test]
fn a_group_that_is_back_but_for_its_state_is_marked_so() {
    let mut night = all_but_ftp1();
    night.truth.vms.get_mut(&vm("ftp1")).unwrap().host = host("rs2");
    night.all(10);
    night.seconds(2);
    night.all(30);
    night.seconds(60);
    assert_eq!(night.conditions(), [Condition::Moderate; 3], "{}", night.report());
}

/// Half of its load is where it is wanted: one judgement of Light load is no reason to leave it at that.
#[test]
fn a_dip_in_the_load_leaves_nobody_halfway() {
    let mut night = all_but_ftp1();
    night.all(10);
    night.seconds(2);
    night.all(30);
    night.seconds(60);
    ends_at_home(&mut night);
}

#[test]
fn so_does_one_that_starts_anew() {
    let mut night = all_but_ftp1();
    starts_anew(&mut night);
    night.seconds(60);
    assert!(night.report().contains("the hypervisor refused"), "it tries: {}", night.report());
    ends_at_home(&mut night);
}

#[test]
fn so_does_one_that_starts_anew_amid_it() {
    let mut night = light();
    let mut before = night.truth.clone();
    before.groups.values_mut().for_each(|group| group.wanted = Condition::Moderate);
    let (plan, _) = kage_pss_core::plan::plan(&before, &chapter_4());
    night.all(35);
    starts_anew(&mut night);
    // The first judgement may come before what an earlier controller has begun is known.
    night.seconds(1);
    let recorded = vec![Recorded::Untouched; plan.steps.len()];
    night.input(Input::Resume { plan: Box::new(plan), recorded });
    assert_eq!(night.truth.groups[&group("ftp")].condition, Condition::Light, "but for one step");
    ends_at_home(&mut night);
}

#[test]
fn what_is_gathered_stays_so() {
    let mut night = light();
    night.all(20);
    starts_anew(&mut night);
    night.broken.clear();
    night.seconds(600);
    assert_eq!(night.conditions(), [Condition::Light; 3], "{}", night.report());
}

#[test]
fn one_with_no_load_is_gathered_again() {
    let mut night = all_but_ftp1();
    night.all(10);
    starts_anew(&mut night);
    night.seconds(900);
    assert_eq!(night.conditions(), [Condition::Light; 3], "{}", night.report());
    let all = &night.truth.vms[&vm("ftp1")].vips;
    assert_eq!(all.len(), 2, "{}", night.report());
}

#[test]
fn a_group_that_is_back_but_for_one_member_s_host_is_put_in_its_place() {
    let mut night = all_but_ftp1();
    night.truth.groups.get_mut(&group("ftp")).unwrap().condition = Condition::Moderate;
    starts_anew(&mut night);
    ends_at_home(&mut night);
}
