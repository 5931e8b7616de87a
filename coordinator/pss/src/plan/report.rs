//! Why nothing, or nothing more, is done.

use crate::{
    class::{Class, Condition},
    execute::NotBegun,
    plan::Step,
    units::{Bytes, Percent, Watts},
};
use kage_types::{AgentId, DomainName, GroupName};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// Why a host stays awake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostStays {
    /// Its wake path was never proved, failed, or there is none.
    NoVerifiedWake,
    /// Why it is pinned.
    Pinned(String),
    /// Claimed, or something on it is.
    Claimed,
    /// This may be running there.
    Doubted(DomainName),
    /// Awake for too short a time; so much is missing.
    JustWoken(Duration),
    /// It has slept this often in 24 h.
    SleptEnough(u32),
    /// This runs there and is not part of a group that folds.
    Serves(DomainName),
    /// This belongs there, should serve and does not.
    Awaits(DomainName),
    /// Nothing of a group that folds is or belongs there.
    Unused,
    /// A plan lets only so many sleep.
    NextTime(usize),
    /// This would have to move and can't: its disks are not shared.
    NotShared(DomainName),
    /// This would have to move and there is so little room.
    NoMemory {
        /// The virtual server.
        vm: DomainName,
        /// The base server.
        on: AgentId,
        /// Missing.
        short: Bytes,
    },
    /// What moves would leave the base server too little CPU.
    BaseBusy {
        /// The base server.
        on: AgentId,
        /// It would be used to.
        cpu: Percent,
    },
    /// N+1 would not hold.
    NotSurvivable {
        /// If this host were lost…
        host: AgentId,
        /// …this had no place.
        vm: DomainName,
    },
    /// So many must be awake.
    TooFewAwake(u32),
    /// Not worth it.
    NotWorth {
        /// Saved.
        watts: Watts,
        /// Migrated.
        bytes: Bytes,
    },
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// (4.1)
    Memory,
    /// (4.2)
    Cpu,
    /// (4.3)
    Network,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Memory => "memory",
            Kind::Cpu => "CPU",
            Kind::Network => "network",
        })
    }
}

/// Why a group's condition stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupStays {
    /// Its base server is no host there is.
    NoSuchBase(AgentId),
    /// Its base server is not awake, or claimed.
    BaseAway(AgentId),
    /// No host could be chosen as one.
    NoBase,
    /// A member is claimed.
    Claimed(DomainName),
    /// Where this member is nobody knows: its live migration ended unseen.
    Doubted(DomainName),
    /// No member serves.
    NobodyServes,
    /// This member does not run.
    NotRunning(DomainName),
    /// A member can't be measured.
    Unmeasured(DomainName),
    /// One member alone would be in Moderate load class again.
    TooMuch {
        /// The member that would stay.
        vm: DomainName,
        /// Which.
        kind: Kind,
        /// It would be.
        load: Percent,
        /// Moderate load1.
        limit: Percent,
    },
    /// No host would be emptied by it.
    NothingGained,
    /// Heavy is judged, and there is no further member to add.
    NothingToAdd,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// More equal judgements are wanted.
    Waiting {
        /// Whose.
        group: GroupName,
        /// Missing.
        more: u32,
        /// Of this class.
        class: Class,
    },
    /// A group keeps its members in these hours.
    Hours(GroupName),
    /// A member in service can't be measured: the group can't be judged.
    Unjudged(GroupName, DomainName),
    /// The ledger has not told of the last transition's end yet.
    Behind,
    /// After a plan that was undone.
    Backoff(Duration),
    /// A transition is under way.
    Busy(Condition),
    /// The plan was not begun.
    NotBegun(NotBegun),
    /// A host stays awake.
    HostStays(AgentId, HostStays),
    /// A group's condition stays.
    GroupStays(GroupName, GroupStays),
    /// A step has failed lately.
    Failed {
        /// Which.
        step: Step,
        /// Why, the last time.
        why: String,
        /// So often.
        times: u32,
        /// It is not tried before this has gone by.
        again: Duration,
    },
    /// Where it belongs there is no room for it.
    NoRoom {
        /// Its place.
        host: AgentId,
        /// The virtual server.
        vm: DomainName,
        /// Missing.
        short: Bytes,
        /// Where it goes; none: nowhere, it stays.
        to: Option<AgentId>,
    },
    /// A host that sleeps does not wake: another takes its place.
    Instead {
        /// The one that sleeps.
        host: AgentId,
        /// What was to go there.
        vm: DomainName,
        /// Where it goes; none: nowhere, it stays.
        to: Option<AgentId>,
    },
}

/// All reasons, in the order of their finding.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Each.
    pub reasons: Vec<Reason>,
}

impl Report {
    pub(crate) fn add(&mut self, reason: Reason) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for reason in &self.reasons {
            writeln!(f, "{reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Waiting { group, more: 1, class } => write!(f, "{group}: waiting for 1 more {class} judgement"),
            Reason::Waiting { group, more, class } => write!(f, "{group}: waiting for {more} more {class} judgements"),
            Reason::Hours(group) => write!(f, "{group} keeps its members in these hours"),
            Reason::Unjudged(group, vm) => write!(f, "{group} can't be judged: {vm} can't be measured"),
            Reason::Behind => write!(f, "waiting for the ledger to show what the last transition did"),
            Reason::Backoff(left) => write!(f, "the last plan had to be undone: next try in {} s", left.as_secs()),
            Reason::Busy(to) => write!(f, "a transition towards {to} condition is under way"),
            Reason::NotBegun(why) => write!(f, "not begun: {why}"),
            Reason::HostStays(host, why) => write!(f, "{host} {why}"),
            Reason::GroupStays(group, why) => write!(f, "{group} {why}"),
            Reason::Failed { step, why, times, again } => {
                let times = if *times == 1 { "once".to_owned() } else { format!("{times} times") };
                write!(f, "{step} has failed {times} ({why})")?;
                if again.is_zero() { Ok(()) } else { write!(f, ": next try in {} s", again.as_secs().max(1)) }
            }
            Reason::NoRoom { host, vm, short, to } => {
                write!(f, "{host} is {short} short of memory for {vm}, which belongs there: it ")?;
                match to {
                    Some(to) => write!(f, "goes to {to} instead"),
                    None => write!(f, "stays where it is"),
                }
            }
            Reason::Instead { host, vm, to: Some(to) } => write!(f, "{host} does not wake: {vm} goes to {to} instead"),
            Reason::Instead { host, vm, to: None } => {
                write!(f, "{host} does not wake, and {vm} can go to no other host: it stays where it is")
            }
        }
    }
}

impl fmt::Display for HostStays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostStays::NoVerifiedWake => write!(f, "has no verified wake path"),
            HostStays::Pinned(why) => write!(f, "stays awake: {why}"),
            HostStays::Claimed => write!(f, "is needed for a recovery"),
            HostStays::Doubted(vm) => write!(f, "stays awake: {vm} may be there, whose live migration ended unseen"),
            HostStays::JustWoken(left) => write!(f, "was woken lately: it stays awake for {} s more", left.as_secs()),
            HostStays::SleptEnough(times) => write!(f, "has gone to sleep {times} times in 24 h, no more"),
            HostStays::Serves(vm) => write!(f, "runs {vm}, which is in service"),
            HostStays::Awaits(vm) => write!(f, "stays awake: {vm} belongs there and is to serve again"),
            HostStays::Unused => write!(f, "stays awake: no virtual server of a group that folds belongs there"),
            HostStays::NextTime(most) => write!(f, "and others wait for the next plan: {most} hosts at a time"),
            HostStays::NotShared(vm) => write!(f, "runs {vm}, whose disks are not on shared storage"),
            HostStays::NoMemory { vm, on, short } => write!(f, "runs {vm}, for which {on} is {short} short of memory"),
            HostStays::BaseBusy { on, cpu } => write!(f, "stays awake: {on} would be used to {cpu} of its cores"),
            HostStays::NotSurvivable { host, vm } => {
                write!(f, "stays awake: if {host} were lost, {vm} would have no place (N+1)")
            }
            HostStays::TooFewAwake(least) => write!(f, "stays awake: at least {least} must be"),
            HostStays::NotWorth { watts, bytes } => {
                write!(f, "stays awake: {watts} saved are not worth migrating {bytes}")
            }
        }
    }
}

impl fmt::Display for GroupStays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupStays::NoSuchBase(base) => write!(f, "has base server {base}, which does not exist: name another"),
            GroupStays::BaseAway(base) => write!(f, "stays: its base server {base} is not awake and free"),
            GroupStays::NoBase => write!(f, "stays: no host can be its base server"),
            GroupStays::Claimed(vm) => write!(f, "stays: {vm} is part of a recovery"),
            GroupStays::Doubted(vm) => write!(f, "stays: {vm} is looked for, as its live migration ended unseen"),
            GroupStays::NobodyServes => write!(f, "stays: no member holds a virtual IP"),
            GroupStays::NotRunning(vm) => write!(f, "stays: {vm} is not running"),
            GroupStays::Unmeasured(vm) => write!(f, "stays: {vm} can't be measured"),
            GroupStays::TooMuch { vm, kind, load, limit } => {
                write!(f, "stays: {vm} alone would have {load} {kind} load, Moderate from {limit}")
            }
            GroupStays::NothingGained => write!(f, "stays: no host could sleep for it"),
            GroupStays::NothingToAdd => write!(f, "is in Heavy load class, and no further member is configured"),
        }
    }
}
