//! Every fault of a policy is named at once.

use crate::support::group;
use kage_pss_core::{
    class::{HeavyThresholds, Thresholds},
    judge::Repeats,
    policy::{GroupPolicy, Hours, Policy},
    units::{BytesPerSecond, Percent},
};
use std::time::Duration;

#[test]
fn the_defaults_have_none() {
    let mut policy = Policy::default();
    policy.groups.insert(group("web"), GroupPolicy::default());
    assert_eq!(policy.faults(), []);
}

#[test]
fn the_defaults_are_the_thesis_where_it_has_figures() {
    let group = GroupPolicy::default();
    assert_eq!(group.repeats, Repeats { light: 6, moderate: 3, heavy: 3 }, "fig. 4.10");
    assert_eq!(Policy::default().interval, Duration::from_secs(10), "4.4.1");
}

#[test]
fn all_faults_at_once() {
    let mut web = GroupPolicy::default();
    web.thresholds.cpu = Thresholds {
        light: Percent::of(60),
        moderate1: Percent::of(50),
        heavy: Some(HeavyThresholds { moderate2: Percent::of(50), heavy: Percent::of(120) }),
    };
    web.thresholds.network.light = Percent(0);
    web.repeats = Repeats { light: 2, moderate: 3, heavy: 0 };
    web.rated = Some(BytesPerSecond(0));
    web.awake = vec![Hours { days: Vec::new(), from: 1440, to: 60 }];
    let mut policy = Policy {
        interval: Duration::ZERO,
        fresh: Duration::from_secs(90_000),
        patience: Duration::from_secs(1),
        awake_hosts: 0,
        sleeps_a_day: 0,
        migrations: 0,
        migration_bandwidth: Some(BytesPerSecond(0)),
        base_cpu: Percent::of(101),
        ..Policy::default()
    };
    policy.limits.vip = Duration::ZERO;
    policy.groups.insert(group("web"), web);
    let faults: Vec<String> = policy.faults().iter().map(ToString::to_string).collect();
    assert_eq!(
        faults,
        [
            "interval: 0ns must be more than 0 and at most a day",
            "fresh: 90000s must be more than 0 and at most a day",
            "limits.vip: 0ns must be more than 0 and at most a day",
            "patience: 1s is shorter than backoff 300s",
            "awake_hosts: 0 would let every host sleep; at least 1",
            "sleeps_a_day: 0 never lets a host sleep; to switch power saving off, do not start it",
            "migrations: 0 live migrations at a time would wait for ever; at least 1",
            "migration_bandwidth: 0 bytes/s never ends; leave it out for the hypervisor's",
            "base_cpu: 101.00 % is no share of a host's cores: above 0 up to 100 %",
            "groups.web.thresholds.cpu.heavy: 120.00 % is more than 100 %",
            "groups.web.thresholds.cpu.moderate1: 50.00 % must be above light's 60.00 %",
            "groups.web.thresholds.cpu.moderate2: 50.00 % must be above moderate1's 50.00 %",
            "groups.web.thresholds.network.light: 0 % is never undercut: the group would never be Light",
            "groups.web.repeats.heavy: 0 judgements can't be waited for; at least 1",
            "groups.web.repeats.light: 2 is fewer than 3 for moderate: capacity must come back quicker than it goes",
            "groups.web.rated: 0 bytes/s is no link; leave it out to read it from the NIC",
            "groups.web.awake[0].from: 1440 is no minute of a day: 0 to 1439",
        ]
    );
}
