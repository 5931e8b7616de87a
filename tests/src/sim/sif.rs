//! SIF's shell: a disk that takes its time, and a process that can be lost before it is done.

use super::clock::{MS, Ns};
use super::coordinator::Notice;
use super::world::{Ev, Sabotage, World};
use kage_coordinator_core::{JobId, VipRow, config::Cluster};
use kage_sif_core::{Action, Change, CommitId, Core, Electorate, Event, Ledger, Request, RequestId, Stamped};
use kage_types::{Term, Time};
use std::collections::BTreeMap;

/// Who asked SIF, and for what.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which coordinator.
    pub slot: usize,
    /// Which process of it.
    pub process: u64,
    /// What for.
    pub what: Purpose,
}

/// What a request to SIF was for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// A new term.
    Acquire {
        /// When that was asked for.
        sent: Time,
        /// Of this try.
        token: u64,
    },
    /// Prolong it.
    Renew {
        /// Which.
        term: Term,
        /// When that was asked for.
        sent: Time,
    },
    /// A job of the core.
    Job(JobId),
    /// A voter's report.
    Report,
}

/// SIF's process and its disk.
#[derive(Debug)]
pub struct Sif {
    /// The process, if it runs.
    pub core: Option<Core>,
    process: u64,
    /// What survives.
    pub disk: Ledger,
    electorate: Electorate,
    calls: BTreeMap<RequestId, Call>,
    last: u64,
    writing: Option<(CommitId, Vec<Stamped>)>,
    /// The next write is cut short by a crash for this long.
    pub crash_at_write: Option<Ns>,
    /// The next write takes this much longer.
    pub slow_write: Ns,
}

impl Sif {
    /// With an empty disk.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Self {
        let electorate = Electorate::new(cluster.agents.iter().map(|(name, machine)| (name.clone(), machine.voter)));
        Self {
            core: None,
            process: 0,
            disk: Ledger::default(),
            electorate,
            calls: BTreeMap::new(),
            last: 0,
            writing: None,
            crash_at_write: None,
            slow_write: 0,
        }
    }
}

/// The VIP table as the coordinator reads it.
#[must_use]
pub fn rows(ledger: &Ledger) -> Vec<VipRow> {
    let row = |(vip, row): (&kage_types::Vip, &kage_sif_core::VipRow)| VipRow {
        vip: *vip,
        epoch: row.epoch,
        owner: row.owner.clone(),
        domain: row.domain.clone(),
        cause: row.cause.as_str().parse().unwrap_or(kage_coordinator_core::Cause::First),
        long_lease: row.long_lease,
    };
    ledger.vips.iter().map(row).collect()
}

impl World {
    /// SIF starts over what its disk holds.
    pub fn start_sif(&mut self) {
        if self.sif.core.is_some() {
            return;
        }
        let mut core = Core::new(self.sif.disk.clone(), self.sif.electorate.clone());
        if let Some(Sabotage::Sif(sabotage)) = self.sabotage {
            core.sabotage(sabotage);
        }
        self.sif.process += 1;
        self.sif.core = Some(core);
        self.say(|| "SIF starts".into());
    }

    /// SIF's process ends; what was being written is on the disk, or not.
    pub fn crash_sif(&mut self, lose: bool) {
        self.sif.core = None;
        self.sif.calls.clear();
        if let Some((_, changes)) = self.sif.writing.take()
            && self.rng.percent(50)
        {
            for change in &changes {
                self.sif.disk.apply(change);
            }
        }
        if lose {
            self.sif.disk = Ledger::default();
        }
        self.say(|| format!("SIF crashes{}", if lose { ", its ledger is lost" } else { "" }));
    }

    /// A request arrives.
    pub fn sif_request(&mut self, call: Call, request: Request) {
        let Some(core) = &mut self.sif.core else { return };
        self.sif.last += 1;
        let id = RequestId(self.sif.last);
        self.sif.calls.insert(id, call);
        let mut actions = Vec::new();
        core.step(Event::Request { id, request }, &mut actions);
        self.sif_acts(actions);
    }

    /// The disk has written.
    pub fn sif_persisted(&mut self, process: u64) {
        if process != self.sif.process {
            return;
        }
        let (Some(core), Some((commit, changes))) = (&mut self.sif.core, self.sif.writing.take()) else {
            return;
        };
        for change in &changes {
            self.sif.disk.apply(change);
            self.checks.durable(change);
        }
        let mut actions = Vec::new();
        core.step(Event::Persisted { commit }, &mut actions);
        self.sif_acts(actions);
    }

    fn sif_acts(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist { commit, changes } => {
                    self.say(|| format!("SIF writes {changes:?}"));
                    // Modes and terms are written far more often than epochs, which matter.
                    let epoch = changes.iter().any(|change| matches!(change.change, Change::Vip { .. }));
                    self.sif.writing = Some((commit, changes));
                    let delay = self.rng.range(MS / 2, 4 * MS) + std::mem::take(&mut self.sif.slow_write);
                    self.after(delay, Ev::Persisted(self.sif.process));
                    if (epoch || self.rng.percent(10))
                        && let Some(down) = self.sif.crash_at_write.take()
                    {
                        self.sif_crash_after_replies(down);
                    }
                }
                Action::Reply { id, result } => {
                    let Some(call) = self.sif.calls.remove(&id) else { continue };
                    let (slot, process) = (call.slot, call.process);
                    let notice = Notice::Sif(call.what, Box::new(result));
                    let (from, to) = (self.net.sif, self.net.coordinators[slot]);
                    self.call(from, to, Ev::Coordinator(slot, process, Box::new(notice)));
                }
                Action::Publish { .. } | Action::Reload => {}
                Action::Alert { alert } => self.say(|| format!("SIF: {alert}")),
            }
        }
    }

    fn sif_crash_after_replies(&mut self, down: Ns) {
        self.crash_sif(false);
        self.after(down, Ev::StartSif);
    }
}
