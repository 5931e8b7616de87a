//! SIF: its production core, and a disk that takes its time.

use super::world::{Ms, Night, WAY};
use kage_coordinator::saving::inventory::Ledger as Read;
use kage_coordinator_core::{VipRow, config::Cluster};
use kage_sif_core::{Action, CommitId, Core, Electorate, Event, Ledger, Refusal, Reply, Request, RequestId, Stamped};
use std::collections::BTreeMap;

/// A commit.
const WRITE: Ms = 2;

/// What becomes of an answer.
pub type Answered = Box<dyn FnOnce(&mut Night, Result<Reply, Refusal>)>;

/// The process, if it runs, and its disk.
pub struct Sif {
    core: Option<Core>,
    process: u64,
    /// What survives.
    pub disk: Ledger,
    electorate: Electorate,
    waiting: BTreeMap<RequestId, Answered>,
    last: u64,
    writing: Option<(CommitId, Vec<Stamped>)>,
}

impl Sif {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let electorate = Electorate::new(cluster.agents.iter().map(|(name, machine)| (name.clone(), machine.voter)));
        Self {
            core: None,
            process: 0,
            disk: Ledger::default(),
            electorate,
            waiting: BTreeMap::new(),
            last: 0,
            writing: None,
        }
    }

    /// Does it answer?
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }
}

impl Night {
    /// Over what its disk holds.
    pub(super) fn start_sif(&mut self) {
        if self.sif.core.is_none() {
            self.sif.process += 1;
            self.sif.core = Some(Core::new(self.sif.disk.clone(), self.sif.electorate.clone()));
            self.say("SIF starts");
        }
    }

    /// Its process ends, and starts again after so long; what was being written is on the disk, or not.
    pub fn crash_sif(&mut self, length: Ms) {
        if self.sif.core.take().is_none() {
            return;
        }
        self.say("SIF crashes");
        self.sif.waiting.clear();
        if let Some((_, changes)) = self.sif.writing.take()
            && self.rng.percent(50)
        {
            changes.iter().for_each(|change| self.sif.disk.apply(change));
        }
        self.after(length, |night| {
            night.start_sif();
            night.tables_changed();
        });
    }

    /// Ask it; no answer while it is away.
    pub(super) fn ask_sif(
        &mut self,
        request: Request,
        answered: impl FnOnce(&mut Night, Result<Reply, Refusal>) + 'static,
    ) {
        self.after(WAY, move |night| {
            let Some(core) = &mut night.sif.core else { return };
            night.sif.last += 1;
            let id = RequestId(night.sif.last);
            night.sif.waiting.insert(id, Box::new(answered));
            let mut actions = Vec::new();
            core.step(Event::Request { id, request }, &mut actions);
            night.sif_acts(actions);
        });
    }

    fn sif_acts(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Persist { commit, changes } => {
                    self.sif.writing = Some((commit, changes));
                    let process = self.sif.process;
                    self.after(WRITE, move |night| night.persisted(process));
                }
                Action::Reply { id, result } => {
                    if let Some(answered) = self.sif.waiting.remove(&id) {
                        self.after(WAY, move |night| answered(night, result));
                    }
                }
                Action::Publish { .. } | Action::Reload => {}
                Action::Alert { alert } => self.say(format_args!("SIF: {alert}")),
            }
        }
    }

    fn persisted(&mut self, process: u64) {
        if process != self.sif.process {
            return;
        }
        let (Some(core), Some((commit, changes))) = (&mut self.sif.core, self.sif.writing.take()) else { return };
        let before = self.sif.disk.shared.tables.revision;
        changes.iter().for_each(|change| self.sif.disk.apply(change));
        let mut actions = Vec::new();
        core.step(Event::Persisted { commit }, &mut actions);
        self.sif_acts(actions);
        if self.sif.disk.shared.tables.revision != before {
            self.tell_msbs_tables();
        }
        self.tell_pss_ledger();
    }

    /// Whoever follows the tables reads them anew.
    pub(super) fn tables_changed(&mut self) {
        self.tell_msbs_tables();
        self.tell_pss_ledger();
    }

    /// The VIP table as the coordinator reads it.
    pub(super) fn rows(&self) -> Vec<VipRow> {
        crate::sim::sif::rows(&self.sif.disk)
    }

    /// The ledger as power saving reads it.
    pub fn ledger(&self) -> Read {
        let vips = self.sif.disk.vips.iter().map(|(vip, row)| (*vip, (row.owner.clone(), row.domain.clone())));
        Read { tables: self.sif.disk.shared.tables.clone(), vips: vips.collect() }
    }
}
