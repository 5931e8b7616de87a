//! What the operator wants of power saving: figures, limits and hours, with every fault of them.

use crate::{
    class::{HeavyThresholds, LoadThresholds, Thresholds},
    judge::Repeats,
    units::{Bytes, BytesPerSecond, Percent, Watts},
};
use kage_types::{AgentId, GroupName};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, time::Duration};

/// Day of the week, Monday first (ISO 8601).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are days")]
pub enum Day {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl Day {
    fn before(self) -> Day {
        match self {
            Day::Monday => Day::Sunday,
            Day::Tuesday => Day::Monday,
            Day::Wednesday => Day::Tuesday,
            Day::Thursday => Day::Wednesday,
            Day::Friday => Day::Thursday,
            Day::Saturday => Day::Friday,
            Day::Sunday => Day::Saturday,
        }
    }
}

/// Local wall time, as whoever drives the core read it: the core has no clock and no time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wall {
    /// Day of the week.
    pub day: Day,
    /// Minutes since midnight, 0 to 1439.
    pub minute: u16,
}

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

/// Hours in which nothing sleeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// Days on which they begin; empty: every day.
    pub days: Vec<Day>,
    /// Minute of the day at which they begin.
    pub from: u16,
    /// Minute of the day at which they are over; not after `from`: on the day after.
    pub to: u16,
}

impl Hours {
    /// Is it one of them?
    #[must_use]
    pub fn covers(&self, wall: Wall) -> bool {
        let begins = |day: Day| self.days.is_empty() || self.days.contains(&day);
        if self.from < self.to {
            begins(wall.day) && (self.from..self.to).contains(&wall.minute)
        } else {
            begins(wall.day) && wall.minute >= self.from || begins(wall.day.before()) && wall.minute < self.to
        }
    }
}

/// For one service group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupPolicy {
    /// Load class.
    pub thresholds: LoadThresholds,
    /// Equal judgements running.
    pub repeats: Repeats,
    /// Onto which its members are gathered; none: the policy's, else chosen.
    pub base: Option<AgentId>,
    /// It keeps its members in these hours.
    pub awake: Vec<Hours>,
    /// Nrat of (4.3) for each member, both ways; none: read from the NIC.
    pub rated: Option<BytesPerSecond>,
}

/// The thesis has two to four thresholds and no figures for them ("should suit the environment", 4.2.3): these are
/// ours. Light is less than half of Moderate load1, so that one of two members can take over both shares. Repeats:
/// 6 and 3 as in fig. 4.10.
impl Default for GroupPolicy {
    fn default() -> Self {
        let of = |light, moderate1, moderate2, heavy| Thresholds {
            light: Percent::of(light),
            moderate1: Percent::of(moderate1),
            heavy: Some(HeavyThresholds { moderate2: Percent::of(moderate2), heavy: Percent::of(heavy) }),
        };
        Self {
            thresholds: LoadThresholds {
                memory: of(60, 75, 85, 95),
                cpu: of(20, 50, 70, 85),
                network: of(20, 50, 70, 85),
            },
            repeats: Repeats { light: 6, moderate: 3, heavy: 3 },
            base: None,
            awake: Vec::new(),
            rated: None,
        }
    }
}

/// For all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Between judgements (Tim).
    pub interval: Duration,
    /// A measurement older than this says nothing; also the longest time between two samples.
    pub fresh: Duration,
    /// Base server of every group that names none; none: chosen.
    pub base: Option<AgentId>,
    /// Hosts that are always awake, at least.
    pub awake_hosts: u32,
    /// A woken host stays awake for so long.
    pub awake_for: Duration,
    /// A host goes to sleep at most so often in 24 h: sleeping wears.
    pub sleeps_a_day: u32,
    /// Live migrations at the same time.
    pub migrations: u32,
    /// Of one live migration; none: the hypervisor's.
    pub migration_bandwidth: Option<BytesPerSecond>,
    /// The longest pause at the end of a live migration; none: the hypervisor's.
    pub migration_downtime: Option<Duration>,
    /// Memory of each host that no virtual server gets.
    pub host_memory: Bytes,
    /// Of a base server's cores, by what runs on it after a plan.
    pub base_cpu: Percent,
    /// A host that sleeps wakes by its own clock after this: a dead man's wake.
    pub alarm: Duration,
    /// Any one host may be lost after every step (N+1).
    pub survive_host: bool,
    /// Hosts that sleep count in that only if they woke within this, when last tried.
    pub wake_within: Duration,
    /// What a host that sleeps must save for each GiB migrated to empty it.
    pub watts_per_gib: Watts,
    /// Nothing sleeps in these hours.
    pub awake: Vec<Hours>,
    /// After a plan that had to be undone the next waits for this, twice as long each time, up to [`Policy::patience`].
    pub backoff: Duration,
    /// The longest such wait; and for so long a host that did not wake is not counted on.
    pub patience: Duration,
    /// Of each step's action.
    pub limits: Limits,
    /// Where the defaults do not suit.
    pub groups: BTreeMap<GroupName, GroupPolicy>,
}

/// How long each action may take, and its check after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of a virtual IP from one virtual server to another: an outwaited lease and its announcement.
    pub vip: Duration,
    /// Of one live migration.
    pub migration: Duration,
    /// Suspending or resuming a virtual server.
    pub vm: Duration,
    /// Suspending a host, until it no longer answers.
    pub suspend: Duration,
    /// The usual time of waking a host that was never measured; it gets twice its usual time.
    pub wake: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            interval: s(10),
            fresh: s(30),
            base: None,
            awake_hosts: 1,
            awake_for: s(15 * 60),
            sleeps_a_day: 6,
            migrations: 2,
            migration_bandwidth: None,
            migration_downtime: None,
            host_memory: Bytes::gib(1),
            base_cpu: Percent::of(70),
            alarm: s(12 * 3600),
            survive_host: true,
            wake_within: s(30),
            // A night of 8 h at 1 W is 8 Wh; moving a GiB keeps two machines busy for seconds. Below it, moves are noise.
            watts_per_gib: Watts::of(1),
            awake: Vec::new(),
            backoff: s(5 * 60),
            patience: s(60 * 60),
            // VIP: a lease of up to 10 s (profile `thesis`) and its move; migration: 2 GiB at libvirt's default in 64 s,
            // and room; wake: table 4.3's 8.09 s of a suspended host, rounded up.
            limits: Limits { vip: s(30), migration: s(300), vm: s(15), suspend: s(30), wake: s(10) },
            groups: BTreeMap::new(),
        }
    }
}

/// Something the operator must put right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fault {
    /// The key, as a path.
    pub at: String,
    /// What is wrong with its value, and what would be right.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.why)
    }
}

/// An interval longer than a day is a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Policy {
    /// That of a group, or the default.
    #[must_use]
    pub fn group(&self, name: &GroupName) -> GroupPolicy {
        self.groups.get(name).cloned().unwrap_or_default()
    }

    /// Must this group keep its members now?
    #[must_use]
    pub fn keeps_awake(&self, name: &GroupName, wall: Wall) -> bool {
        let own = self.groups.get(name).map_or(&[] as &[Hours], |group| &group.awake);
        self.awake.iter().chain(own).any(|hours| hours.covers(wall))
    }

    /// Everything wrong with it, in the order of its keys; empty: it can be used.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults(Vec::new());
        faults.times(self);
        if self.awake_hosts == 0 {
            faults.add("awake_hosts", "0 would let every host sleep; at least 1");
        }
        if self.sleeps_a_day == 0 {
            faults.add("sleeps_a_day", "0 never lets a host sleep; to switch power saving off, do not start it");
        }
        if self.migrations == 0 {
            faults.add("migrations", "0 live migrations at a time would wait for ever; at least 1");
        }
        if self.migration_bandwidth == Some(BytesPerSecond(0)) {
            faults.add("migration_bandwidth", "0 bytes/s never ends; leave it out for the hypervisor's");
        }
        if self.base_cpu > Percent::WHOLE || self.base_cpu == Percent(0) {
            faults.add("base_cpu", format!("{} is no share of a host's cores: above 0 up to 100 %", self.base_cpu));
        }
        faults.hours("awake", &self.awake);
        for (name, group) in &self.groups {
            faults.group(name, group);
        }
        faults.0
    }
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, at: impl Into<String>, why: impl Into<String>) {
        self.0.push(Fault { at: at.into(), why: why.into() });
    }

    fn times(&mut self, policy: &Policy) {
        let Limits { vip, migration, vm, suspend, wake } = policy.limits;
        for (at, time) in [
            ("interval", policy.interval),
            ("fresh", policy.fresh),
            ("backoff", policy.backoff),
            ("patience", policy.patience),
            ("alarm", policy.alarm),
            ("wake_within", policy.wake_within),
            ("limits.vip", vip),
            ("limits.migration", migration),
            ("limits.vm", vm),
            ("limits.suspend", suspend),
            ("limits.wake", wake),
        ] {
            if time.is_zero() || time > LONGEST {
                self.add(at, format!("{time:?} must be more than 0 and at most a day"));
            }
        }
        if policy.fresh < policy.interval {
            self.add(
                "fresh",
                format!(
                    "{:?} is shorter than interval {:?}: nothing would ever be judged",
                    policy.fresh, policy.interval
                ),
            );
        }
        if policy.patience < policy.backoff {
            self.add("patience", format!("{:?} is shorter than backoff {:?}", policy.patience, policy.backoff));
        }
    }

    fn hours(&mut self, at: &str, all: &[Hours]) {
        for (index, hours) in all.iter().enumerate() {
            for (key, minute) in [("from", hours.from), ("to", hours.to)] {
                if minute >= DAY_MINUTES {
                    self.add(format!("{at}[{index}].{key}"), format!("{minute} is no minute of a day: 0 to 1439"));
                }
            }
        }
    }

    fn group(&mut self, name: &GroupName, group: &GroupPolicy) {
        let LoadThresholds { memory, cpu, network } = group.thresholds;
        for (kind, thresholds) in [("memory", memory), ("cpu", cpu), ("network", network)] {
            self.thresholds(&format!("groups.{name}.thresholds.{kind}"), &thresholds);
        }
        let Repeats { light, moderate, heavy } = group.repeats;
        for (class, count) in [("light", light), ("moderate", moderate), ("heavy", heavy)] {
            if count == 0 {
                self.add(format!("groups.{name}.repeats.{class}"), "0 judgements can't be waited for; at least 1");
            }
        }
        if light < moderate {
            self.add(
                format!("groups.{name}.repeats.light"),
                format!("{light} is fewer than {moderate} for moderate: capacity must come back quicker than it goes"),
            );
        }
        if group.rated == Some(BytesPerSecond(0)) {
            self.add(format!("groups.{name}.rated"), "0 bytes/s is no link; leave it out to read it from the NIC");
        }
        self.hours(&format!("groups.{name}.awake"), &group.awake);
    }

    fn thresholds(&mut self, at: &str, thresholds: &Thresholds) {
        let mut rising = vec![("light", thresholds.light), ("moderate1", thresholds.moderate1)];
        if let Some(HeavyThresholds { moderate2, heavy }) = thresholds.heavy {
            rising.extend([("moderate2", moderate2), ("heavy", heavy)]);
        }
        if thresholds.light == Percent(0) {
            self.add(format!("{at}.light"), "0 % is never undercut: the group would never be Light");
        }
        for (name, threshold) in &rising {
            if *threshold > Percent::WHOLE {
                self.add(format!("{at}.{name}"), format!("{threshold} is more than 100 %"));
            }
        }
        for pair in rising.windows(2) {
            if let [(lower, below), (upper, above)] = pair
                && below >= above
            {
                self.add(format!("{at}.{upper}"), format!("{above} must be above {lower}'s {below}"));
            }
        }
    }
}
