//! What the configuration says, as power saving's core wants it. Neither core knows the other.

use kage_coordinator_core::config::{
    Cluster, Hours as Windows,
    saving::{Group, Saving, Thresholds as Percents},
};
use kage_pss_core::{
    class::{HeavyThresholds, LoadThresholds, Thresholds},
    judge::Repeats,
    policy::{Day, GroupPolicy, Hours, Limits, Policy, Wall},
    units::{Bytes, BytesPerSecond, Percent, Watts},
};

const DAYS: [Day; 7] =
    [Day::Monday, Day::Tuesday, Day::Wednesday, Day::Thursday, Day::Friday, Day::Saturday, Day::Sunday];
/// Minutes.
const DAY: u64 = 24 * 60;
/// 1 January 1970 was a Thursday.
const EPOCH_DAY: u64 = 3;

/// The policy of a checked configuration.
pub fn policy(cluster: &Cluster) -> Policy {
    let Saving {
        interval,
        fresh,
        base,
        awake_hosts,
        awake_for,
        sleeps_a_day,
        migrations,
        migration_bandwidth,
        migration_downtime,
        migration_uri: _,
        host_memory,
        base_cpu,
        alarm,
        survive_host,
        wake_within,
        watts_per_gib,
        awake,
        backoff,
        patience,
        vip_limit,
        migration_limit,
        vm_limit,
        suspend_limit,
        wake_limit,
    } = &cluster.saving;
    Policy {
        interval: *interval,
        fresh: *fresh,
        base: base.clone(),
        awake_hosts: *awake_hosts,
        awake_for: *awake_for,
        sleeps_a_day: *sleeps_a_day,
        migrations: *migrations,
        migration_bandwidth: migration_bandwidth.map(|mib| BytesPerSecond(Bytes::mib(mib.into()).0)),
        migration_downtime: *migration_downtime,
        host_memory: Bytes::mib((*host_memory).into()),
        base_cpu: Percent::of(*base_cpu),
        alarm: *alarm,
        survive_host: *survive_host,
        wake_within: *wake_within,
        watts_per_gib: Watts::of((*watts_per_gib).into()),
        awake: hours(awake),
        backoff: *backoff,
        patience: *patience,
        limits: Limits {
            vip: *vip_limit,
            migration: *migration_limit,
            vm: *vm_limit,
            suspend: *suspend_limit,
            wake: *wake_limit,
        },
        groups: cluster.groups.iter().map(|(name, group)| (name.clone(), of_group(group))).collect(),
    }
}

fn of_group(group: &Group) -> GroupPolicy {
    let of = |percents: Percents| Thresholds {
        light: Percent::of(percents.light),
        moderate1: Percent::of(percents.moderate1),
        heavy: Some(HeavyThresholds { moderate2: Percent::of(percents.moderate2), heavy: Percent::of(percents.heavy) }),
    };
    let (light, moderate, heavy) = group.repeats;
    GroupPolicy {
        thresholds: LoadThresholds { memory: of(group.memory), cpu: of(group.cpu), network: of(group.network) },
        repeats: Repeats { light, moderate, heavy },
        base: group.base.clone(),
        awake: hours(&group.awake),
        rated: group.rated.map(|mbit| BytesPerSecond::rated(mbit.into())),
    }
}

fn hours(windows: &Windows) -> Vec<Hours> {
    let of = |(days, from, to): (u8, u16, u16)| Hours {
        days: DAYS.into_iter().enumerate().filter(|(index, _)| days & (1 << index) != 0).map(|(_, day)| day).collect(),
        from,
        // 24:00 is the next day's beginning.
        to: if u64::from(to) == DAY { 0 } else { to },
    };
    windows.windows().iter().map(|window| of(window.parts())).collect()
}

/// The time of the week in UTC, as the hours of the configuration are.
pub fn wall(unix_ms: u64) -> Wall {
    let minutes = unix_ms / 60_000;
    let day = usize::try_from((minutes / DAY + EPOCH_DAY) % 7).unwrap_or(0);
    Wall { day: DAYS.get(day).copied().unwrap_or(Day::Monday), minute: u16::try_from(minutes % DAY).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saving::tests::cluster;

    #[test]
    fn the_defaults_of_both_are_the_same() {
        let cluster = cluster();
        let made = policy(&cluster);
        let mut own = Policy { groups: made.groups.clone(), ..Policy::default() };
        own.base.clone_from(&made.base);
        assert_eq!(made, own);
        assert!(made.groups.values().all(|group| *group == GroupPolicy::default()), "{:?}", made.groups);
        assert_eq!(made.faults(), []);
    }

    #[test]
    fn hours_are_the_same_in_both() {
        let window = "Fri-Mon 22:00-06:00".parse().expect("window");
        let whole = "Sun 00:00-24:00".parse().expect("window");
        let windows = Windows::new(vec![window, whole]);
        let hours = hours(&windows);
        for half_hour in 0..(2 * 24 * 14) {
            let unix_ms = half_hour * 30 * 60_000;
            let covered = hours.iter().any(|hours| hours.covers(wall(unix_ms)));
            assert_eq!(covered, windows.open(unix_ms), "{:?}", wall(unix_ms));
        }
    }
}
