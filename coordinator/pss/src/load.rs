//! Load of a service group from raw counters: thesis (4.1) memory, (4.2) CPU, (4.3) network.
//!
//! A [`Meter`] takes the samples of one virtual server, as its host's agent counts them, and turns two of them into a
//! [`Usage`]. What can't be trusted (counters that went back, a gap, another machine's clock) measures nothing and is
//! the next base: a group with an unmeasured member can't be judged (thesis 4.2.3), which is always safe.

use crate::units::{Bytes, BytesPerSecond, Percent};
use kage_types::{AgentId, Time};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Shorter than this, jiffies of 10 ms say too little: the sample is left out, the base stays.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// Sums over all CPUs since boot, in jiffies of 1/100 s: the first line of /proc/stat (`proc_stat(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jiffies {
    /// User mode.
    pub user: u64,
    /// User mode, low priority.
    pub nice: u64,
    /// Kernel.
    pub system: u64,
    /// Nothing to do.
    pub idle: u64,
    /// Nothing to do but wait for a disk. May go back (`proc_stat(5)`).
    pub iowait: u64,
    /// Interrupts.
    pub irq: u64,
    /// Soft interrupts.
    pub softirq: u64,
    /// Wanted, and given to other machines by the hypervisor: load all the same.
    pub steal: u64,
}

impl Jiffies {
    /// Busy and all jiffies since `before`; none if a counter went back.
    fn since(&self, before: &Self) -> Option<(u64, u64)> {
        let busy = [
            (self.user, before.user),
            (self.nice, before.nice),
            (self.system, before.system),
            (self.irq, before.irq),
            (self.softirq, before.softirq),
            (self.steal, before.steal),
        ];
        let busy = busy.iter().try_fold(0u64, |sum, (now, then)| sum.checked_add(now.checked_sub(*then)?))?;
        let idle = self.idle.checked_sub(before.idle)?.checked_add(self.iowait.saturating_sub(before.iowait))?;
        Some((busy, busy.checked_add(idle)?))
    }
}

/// CPU time used so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuCounter {
    /// As a guest counts it.
    Stat(Jiffies),
    /// As the hypervisor counts a domain's: nanoseconds since its start there.
    DomainNanos(u64),
}

/// Raw counters of one virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Row", from = "Row")]
pub struct Sample {
    /// Who counted.
    pub source: AgentId,
    /// Rises with each new connection to that agent: an older connection's samples are late.
    pub stream: u64,
    /// On the source's clock.
    pub at: Time,
    /// CPU time.
    pub cpu: CpuCounter,
    /// Ccor.
    pub cores: u32,
    /// Muse: without caches (`free`'s total less available).
    pub memory_used: Bytes,
    /// Mmax.
    pub memory_max: Bytes,
    /// Of the service NICs.
    pub received: Bytes,
    /// Of the service NICs.
    pub sent: Bytes,
    /// Nrat of those NICs, both ways; none if their speed is unknown.
    pub rated: Option<BytesPerSecond>,
}

/// A sample as it is written down: there are many, so without names.
type Row = (AgentId, u64, Time, CpuCounter, u32, Bytes, Bytes, Bytes, Bytes, Option<BytesPerSecond>);

impl From<Sample> for Row {
    fn from(sample: Sample) -> Self {
        let Sample { source, stream, at, cpu, cores, memory_used, memory_max, received, sent, rated } = sample;
        (source, stream, at, cpu, cores, memory_used, memory_max, received, sent, rated)
    }
}

impl From<Row> for Sample {
    fn from((source, stream, at, cpu, cores, memory_used, memory_max, received, sent, rated): Row) -> Self {
        Self { source, stream, at, cpu, cores, memory_used, memory_max, received, sent, rated }
    }
}

/// One virtual server's use between two samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Muse of (4.1).
    pub memory_used: Bytes,
    /// Mmax of (4.1).
    pub memory_max: Bytes,
    /// Cuse of (4.2): of all its cores.
    pub cpu: Percent,
    /// Ccor of (4.2).
    pub cores: u32,
    /// Ntrb of (4.3).
    pub network: BytesPerSecond,
    /// Nrat of (4.3).
    pub rated: BytesPerSecond,
}

/// Load of a service group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Lm, (4.1).
    pub memory: Percent,
    /// Lc, (4.2).
    pub cpu: Percent,
    /// Ln, (4.3).
    pub network: Percent,
}

impl Load {
    /// (4.1) Lm = ΣMuse/ΣMmax, (4.2) Lc = Σ(Cuse·Ccor)/ΣCcor, (4.3) Ln = ΣNtrb/ΣNrat, each × 100 %, over the members
    /// in service. None without members, or where a denominator is 0.
    #[must_use]
    pub fn of(members: &[Usage]) -> Option<Self> {
        let sum = |of: fn(&Usage) -> u128| members.iter().map(of).sum::<u128>();
        let memory = Percent::ratio(sum(|one| one.memory_used.0.into()), sum(|one| one.memory_max.0.into()))?;
        let work = sum(|one| u128::from(one.cpu.0) * u128::from(one.cores));
        let cpu = work.checked_div(sum(|one| one.cores.into()))?;
        let network = Percent::ratio(sum(|one| one.network.0.into()), sum(|one| one.rated.0.into()))?;
        Some(Self { memory, cpu: Percent(u32::try_from(cpu).unwrap_or(u32::MAX)), network })
    }

    /// What `stays` would bear if it did the work of all `members`, itself among them. Its memory is taken as it is:
    /// what others keep in theirs is mostly not work.
    #[must_use]
    pub fn gathered(stays: &Usage, members: &[Usage]) -> Option<Self> {
        let work: u128 = members.iter().map(|one| u128::from(one.cpu.0) * u128::from(one.cores)).sum();
        let traffic: u128 = members.iter().map(|one| u128::from(one.network.0)).sum();
        let cpu = work.checked_div(stays.cores.into())?;
        Some(Self {
            memory: Percent::ratio(stays.memory_used.0.into(), stays.memory_max.0.into())?,
            cpu: Percent(u32::try_from(cpu).unwrap_or(u32::MAX)),
            network: Percent::ratio(traffic, stays.rated.0.into())?,
        })
    }
}

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// With the one before it gives a usage.
    Measured,
    /// The first, or the first after something broke: the next is measured against it.
    Base,
    /// Out of order or too soon after the last: left out.
    LeftOut,
}

/// One virtual server's samples.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meter {
    base: Option<Sample>,
    /// When, on our own clock, and what.
    measured: Option<(Time, Usage)>,
}

impl Meter {
    /// Take a sample that came in at `now`; `gap` is the longest time between two that still says how it is now, and
    /// `rated` the operator's figure, which goes before the NIC's.
    pub fn take(&mut self, now: Time, sample: Sample, gap: Duration, rated: Option<BytesPerSecond>) -> Taken {
        let Some(base) = &self.base else {
            self.base = Some(sample);
            return Taken::Base;
        };
        if base.source == sample.source {
            if (sample.stream, sample.at) <= (base.stream, base.at) {
                return Taken::LeftOut;
            }
            if sample.stream == base.stream && sample.at.since(base.at) < SHORTEST {
                return Taken::LeftOut;
            }
        }
        let usage = measure(base, &sample, gap, rated.or(sample.rated));
        self.base = Some(sample);
        self.measured = usage.map(|usage| (now, usage));
        if usage.is_some() { Taken::Measured } else { Taken::Base }
    }

    /// The last usage, if it is not older than `fresh`.
    #[must_use]
    pub fn usage(&self, now: Time, fresh: Duration) -> Option<Usage> {
        self.measured.filter(|(at, _)| now.since(*at) <= fresh).map(|(_, usage)| usage)
    }
}

fn measure(base: &Sample, sample: &Sample, gap: Duration, rated: Option<BytesPerSecond>) -> Option<Usage> {
    // A machine that started again counts from its start: at and counters are then smaller than they were.
    if base.source != sample.source || sample.at <= base.at || base.cores != sample.cores || sample.cores == 0 {
        return None;
    }
    let interval = sample.at.since(base.at);
    if interval > gap || interval < SHORTEST {
        return None;
    }
    let cpu = match (base.cpu, sample.cpu) {
        (CpuCounter::Stat(before), CpuCounter::Stat(after)) => {
            let (busy, all) = after.since(&before)?;
            Percent::ratio(busy.into(), all.into())?
        }
        (CpuCounter::DomainNanos(before), CpuCounter::DomainNanos(after)) => {
            let used = after.checked_sub(before)?;
            Percent::ratio(used.into(), interval.as_nanos() * u128::from(sample.cores))?
        }
        (CpuCounter::Stat(_), CpuCounter::DomainNanos(_)) | (CpuCounter::DomainNanos(_), CpuCounter::Stat(_)) => {
            return None;
        }
    };
    let rated = rated.filter(|rated| rated.0 > 0)?;
    let most = u128::from(rated.0) * interval.as_nanos() / 1_000_000_000;
    let received = moved(base.received, sample.received, most)?;
    let sent = moved(base.sent, sample.sent, most)?;
    let per_second = (u128::from(received) + u128::from(sent)) * 1_000_000_000 / interval.as_nanos();
    Some(Usage {
        memory_used: sample.memory_used.min(sample.memory_max),
        memory_max: sample.memory_max,
        cpu: cpu.min(Percent::WHOLE),
        cores: sample.cores,
        network: BytesPerSecond(u64::try_from(per_second).unwrap_or(u64::MAX).min(rated.0)),
        rated,
    })
}

/// Bytes between two readings of a counter; a driver's counter of 32 bits may have gone round once. None: it was set
/// anew, or jumped by more than ten times what the link can carry (a rated speed may be understated, not tenfold).
fn moved(before: Bytes, after: Bytes, most: u128) -> Option<u64> {
    let round = 1u64 << 32;
    let delta = match after.0.checked_sub(before.0) {
        Some(delta) => return (u128::from(delta) <= most.saturating_mul(10)).then_some(delta),
        None if before.0 < round => after.0 + round - before.0,
        None => return None,
    };
    (u128::from(delta) <= most).then_some(delta)
}
