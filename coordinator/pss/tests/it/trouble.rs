//! What goes wrong outside: told once, undone or left serving, tried again later and later, and shown meanwhile.

use crate::{
    support::{host, thesis, vm},
    thesis::{Night, begun, chapter_4},
};
use kage_pss_core::{Input, class::Condition, inventory::WakePath, plan::Step, policy::Policy, units::Bytes};
use std::time::Duration;

fn alerts(night: &Night) -> Vec<&str> {
    night.log.iter().filter(|line| line.starts_with("Alert")).map(String::as_str).collect()
}

fn migration(from: &str, to: &str) -> Step {
    Step::Migrate { vm: vm("ftp1"), from: host(from), to: host(to) }
}

const NO_DISK: &str = "Cannot access storage file '/srv/ftp1.img': its disks are not on storage that both hosts see";
const NO_MEMORY: &str = "the destination lacks memory";

/// Not shared after all, or no room after all: the hypervisor refuses before anything is copied.
#[test]
fn a_live_migration_that_is_refused_on_the_way_down_is_told_once_and_tried_later_and_later() {
    let mut night = Night::new(chapter_4());
    night.broken = vec![(migration("rs2", "rs1"), NO_DISK)];
    night.all(10);
    night.seconds(250);
    assert_eq!(
        alerts(&night),
        ["Alert Trouble: live migration of ftp1: rs2 -> rs1 failed (Cannot access storage file '/srv/ftp1.img': its \
          disks are not on storage that both hosts see): all of the transition is taken back, and nothing sleeps for it; \
          tried again in 300 s at the earliest: mend it, then see `kagectl pss`"]
    );
    assert_eq!((night.truth.vms.clone(), night.conditions()), (thesis().vms, vec![Condition::Moderate; 3]));
    assert!(
        night.report().contains("live migration of ftp1: rs2 -> rs1 has failed once (Cannot access storage"),
        "{}",
        night.report()
    );
    night.seconds(3600);
    assert_eq!(begun(&night), 4, "after 5, 10 and 20 minutes more");
    assert_eq!(alerts(&night).len(), 1, "{:?}", night.log);
    assert!(night.report().contains("has failed 4 times"), "{}", night.report());
    night.broken.clear();
    night.seconds(3600);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    assert!(!night.report().contains("failed"), "{}", night.report());
}

/// What was brought back serves; the rest stays as it was, and is not tried each second.
#[test]
fn a_live_migration_that_is_refused_on_the_way_up_leaves_its_virtual_server_serving() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.seconds(100);
    assert_eq!(night.conditions(), [Condition::Light; 3]);
    night.broken = vec![(migration("rs1", "rs2"), NO_MEMORY)];
    night.log.clear();
    night.all(45);
    night.seconds(60);
    assert_eq!(alerts(&night).len(), 1, "{:?}", night.log);
    assert!(alerts(&night)[0].contains("what hangs on it stays as it was, and serves on"), "{:?}", night.log);
    let ftp1 = &night.truth.vms[&vm("ftp1")];
    assert_eq!((ftp1.host.clone(), ftp1.vips.len()), (host("rs1"), 1), "it serves where it is");
    assert_eq!(night.conditions(), [Condition::Light, Condition::Moderate, Condition::Moderate], "ftp waits for it");
    night.seconds(3600);
    assert!(begun(&night) < 20, "{} tries in an hour", begun(&night));
    assert_eq!(alerts(&night).len(), 1, "{:?}", night.log);
    assert!(night.report().contains("(the destination lacks memory)"), "{}", night.report());
    night.broken.clear();
    night.seconds(310);
    assert_eq!((night.conditions(), night.truth.vms.clone()), (vec![Condition::Moderate; 3], thesis().vms));
}

/// Other relief is not held up by what failed.
#[test]
fn what_can_be_done_is_done_though_something_else_waits() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.seconds(100);
    night.broken = vec![(migration("rs1", "rs2"), NO_MEMORY)];
    night.load("ftp", 45);
    night.seconds(600);
    assert_eq!(night.conditions(), [Condition::Light; 3], "{:?}", night.log);
    night.load("web", 45);
    night.seconds(31);
    assert_eq!(night.conditions(), [Condition::Light, Condition::Light, Condition::Moderate], "{:?}", night.log);
}

#[test]
fn a_packet_that_never_wakes_is_told_once_for_as_long_as_it_is_not_tried() {
    let mut night = Night::new(chapter_4());
    night.all(10);
    night.seconds(100);
    night.broken = vec![(Step::WakeHost { host: host("rs2") }, "no agent could send a magic packet")];
    night.log.clear();
    night.all(45);
    night.seconds(1800);
    assert_eq!(
        alerts(&night),
        ["Alert NoWake: rs2 does not wake after 3 magic packets (no agent could send a magic packet): look at it"]
    );
    assert!(night.report().contains("wake host rs2 has failed once"), "{}", night.report());
    let serving = |name: &str| {
        night
            .truth
            .vms
            .values()
            .any(|there| there.vips.contains(&crate::support::vip(if name == "mail2" { 104 } else { 103 })))
    };
    assert!(serving("mail2") && serving("ftp1"), "every address has its holder");
}

/// The planner's own obstacles: said once, not at each judgement.
#[test]
fn what_stands_in_the_way_for_good_is_told_once() {
    let change = |change: &dyn Fn(&mut kage_pss_core::inventory::Inventory)| {
        let mut night = Night::new(chapter_4());
        change(&mut night.truth);
        night.truth.generation = night.truth.generation.next();
        night.input(Input::Inventory(Box::new(night.truth.clone())));
        night.all(10);
        night.seconds(3600);
        alerts(&night).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        change(&|truth| truth.hosts.values_mut().for_each(|host| host.wake = WakePath::None)),
        ["rs2", "rs3"].map(|name| format!(
            "Alert Obstacle: {name} has no verified wake path: suspend and wake it once, and give wakes_in; it needs mac or \
             wake"
        ))
    );
    assert_eq!(
        change(&|truth| truth.vms.get_mut(&vm("ftp1")).expect("it is there").shared_storage = false),
        ["Alert Obstacle: rs2 runs ftp1, whose disks are not on shared storage: put them on storage that every host \
             reaches under the same path"]
    );
    assert_eq!(
        change(&|truth| truth.hosts.get_mut(&host("rs1")).expect("it is there").memory = Bytes::gib(6)),
        ["Alert Obstacle: rs2 runs ftp1, for which rs1 is 1024 MiB short of memory: choose a larger base server, or \
             smaller virtual servers"]
    );
    let mut night = Night::new(Policy { base: Some(host("rs9")), ..chapter_4() });
    night.all(10);
    night.seconds(Duration::from_secs(600).as_secs());
    assert_eq!(alerts(&night).len(), 3, "one for each group: {:?}", night.log);
}
