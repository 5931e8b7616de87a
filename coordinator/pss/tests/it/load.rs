//! (4.1) to (4.3) from counters that behave, and from counters that do not.

use crate::support::{at, host, secs};
use kage_pss_core::{
    load::{CpuCounter, Jiffies, Load, Meter, Sample, Taken, Usage},
    units::{Bytes, BytesPerSecond, Percent},
};
use kage_types::Time;
use std::time::Duration;

const GAP: Duration = Duration::from_secs(30);

fn sample(second: u64) -> Sample {
    Sample {
        source: host("rs1"),
        stream: 1,
        at: at(second),
        cpu: CpuCounter::DomainNanos(second * 250_000_000),
        cores: 1,
        memory_used: Bytes::mib(512),
        memory_max: Bytes::gib(2),
        received: Bytes(second * 10_000_000),
        sent: Bytes(second * 15_000_000),
        rated: Some(BytesPerSecond::rated(1000)),
    }
}

fn measured(before: Sample, after: Sample) -> Option<Usage> {
    let mut meter = Meter::default();
    assert_eq!(meter.take(at(1000), before, GAP, None), Taken::Base);
    let taken = meter.take(at(1010), after, GAP, None);
    let usage = meter.usage(at(1010), GAP);
    assert_eq!(taken == Taken::Measured, usage.is_some());
    usage
}

#[test]
fn usage_between_two_samples() {
    let usage = measured(sample(100), sample(110)).expect("it is there");
    assert_eq!(usage.cpu, Percent::of(25));
    assert_eq!(usage.network, BytesPerSecond(25_000_000));
    assert_eq!(usage.rated, BytesPerSecond(250_000_000));
    let load = Load::of(&[usage]).expect("it is there");
    assert_eq!(load, Load { memory: Percent::of(25), cpu: Percent::of(25), network: Percent::of(10) });
}

#[test]
fn jiffies_count_what_is_not_idle_steal_too() {
    let stat =
        |user, idle, iowait, steal| CpuCounter::Stat(Jiffies { user, idle, iowait, steal, ..Jiffies::default() });
    let (mut before, mut after) = (sample(100), sample(110));
    (before.cores, after.cores) = (2, 2);
    before.cpu = stat(1000, 5000, 300, 0);
    after.cpu = stat(1400, 6400, 400, 100);
    // 500 of 2000 jiffies: two CPUs for 10 s.
    assert_eq!(measured(before.clone(), after.clone()).expect("it is there").cpu, Percent::of(25));
    after.cpu = stat(1400, 6400, 200, 100);
    assert_eq!(measured(before.clone(), after.clone()).expect("it is there").cpu, Percent(2631), "iowait may go back");
    after.cpu = stat(900, 6400, 400, 100);
    assert_eq!(measured(before.clone(), after.clone()), None, "user may not");
    after.cpu = before.cpu;
    assert_eq!(measured(before, after), None, "no jiffy passed: nothing is known");
}

#[test]
fn a_group_is_weighed_by_cores_memory_and_links() {
    // Thesis (4.1)-(4.3), with unequal members.
    let small = crate::support::usage(80);
    let large =
        Usage { cpu: Percent::of(20), cores: 3, memory_used: Bytes::gib(3), memory_max: Bytes::gib(6), ..small };
    let load = Load::of(&[small, large]).expect("it is there");
    assert_eq!(load.cpu, Percent::of(35), "(80·1 + 20·3) / 4");
    assert_eq!(load.memory, Percent(4360), "(500 + 3072) / (2048 + 6144)");
    assert_eq!(load.network, Percent(40));
    assert_eq!(Load::of(&[]), None);
    let alone = Load::gathered(&small, &[small, large]).expect("it is there");
    assert_eq!((alone.cpu, alone.network), (Percent::of(140), Percent(80)));
}

#[test]
fn a_reset_measures_nothing_and_is_the_next_base() {
    let mut meter = Meter::default();
    meter.take(at(1000), sample(100), GAP, None);
    let mut restarted = sample(110);
    restarted.cpu = CpuCounter::DomainNanos(5);
    assert_eq!(meter.take(at(1010), restarted.clone(), GAP, None), Taken::Base);
    assert_eq!(meter.usage(at(1010), GAP), None);
    let mut next = sample(120);
    next.cpu = CpuCounter::DomainNanos(5 + 1_000_000_000);
    assert_eq!(meter.take(at(1020), next, GAP, None), Taken::Measured);
    assert_eq!(meter.usage(at(1020), GAP).expect("it is there").cpu, Percent::of(10));
}

#[test]
fn network_counters_wrap_at_32_bits_and_are_set_anew() {
    let (mut before, mut after) = (sample(100), sample(110));
    (before.received, after.received) = (Bytes(u64::from(u32::MAX) - 99), Bytes(900));
    (before.sent, after.sent) = (Bytes(0), Bytes(0));
    assert_eq!(measured(before.clone(), after.clone()).expect("it is there").network, BytesPerSecond(100));
    (before.received, after.received) = (Bytes(1_000_000_000), Bytes(0));
    before.rated = Some(BytesPerSecond::rated(10));
    after.rated = before.rated;
    assert_eq!(measured(before.clone(), after.clone()), None, "3.3 GB in 10 s over 10 Mbit/s: it was set anew");
    (before.received, after.received) = (Bytes(1 << 40), Bytes(7));
    assert_eq!(measured(before, after), None);
    let mut jump = sample(110);
    jump.received = Bytes(1 << 60);
    assert_eq!(measured(sample(100), jump), None, "no link carries that");
}

#[test]
fn samples_out_of_order_or_too_close_are_left_out() {
    let mut meter = Meter::default();
    meter.take(at(1000), sample(100), GAP, None);
    meter.take(at(1010), sample(110), GAP, None);
    for late in [sample(105), sample(110), Sample { at: at(110) + Duration::from_millis(50), ..sample(110) }] {
        assert_eq!(meter.take(at(1011), late, GAP, None), Taken::LeftOut);
    }
    assert_eq!(meter.usage(at(1011), GAP).expect("it is there").cpu, Percent::of(25), "what was measured stands");
    // The agent's machine started again: its clock is back at the start, the connection is a newer one.
    let restarted = Sample { stream: 2, at: at(3), ..sample(3) };
    assert_eq!(meter.take(at(1020), restarted, GAP, None), Taken::Base);
    assert_eq!(meter.take(at(1021), sample(120), GAP, None), Taken::LeftOut, "of the connection before");
    assert_eq!(meter.take(at(1030), Sample { stream: 2, at: at(13), ..sample(13) }, GAP, None), Taken::Measured);
}

#[test]
fn after_a_live_migration_another_host_counts_from_its_own_start() {
    let elsewhere = Sample { source: host("rs2"), at: Time::from_millis(5), ..sample(500) };
    assert_eq!(measured(sample(100), elsewhere), None);
}

#[test]
fn a_gap_and_an_unknown_link_measure_nothing_and_old_news_is_none() {
    assert_eq!(measured(sample(100), sample(200)), None);
    let unknown = Sample { rated: None, ..sample(110) };
    assert_eq!(measured(sample(100), unknown.clone()), None);
    let mut meter = Meter::default();
    meter.take(at(1000), sample(100), GAP, None);
    // The thesis's own figure for 1,000 Mbit/s: 256 × 10³ KB/s.
    assert_eq!(meter.take(at(1010), unknown, GAP, Some(BytesPerSecond(256_000_000))), Taken::Measured);
    assert!(meter.usage(at(1010) + secs(30), GAP).is_some());
    assert_eq!(meter.usage(at(1010) + secs(31), GAP), None);
}
