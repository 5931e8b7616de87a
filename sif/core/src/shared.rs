//! The shared tables as SIF keeps them, and the edits that lead from one revision of them to the next.

use kage_types::{
    AgentId, Claim, ClaimRow, DomainName, GroupName, MigrationRow, OperationRow, RealServerRow, Revision, StateRow,
    StepState, Tables, TransitionRow, Vip,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The tables of thesis table 4.1, and what is needed to edit them. They have a revision of their own, one higher with
/// each signal that changed them: terms and epochs, which change at any moment, make no plan of power saving stale.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// What everybody reads.
    pub tables: Tables,
    /// Places suspended themselves, and not only with their real server: they stay so when it is woken.
    pub paused: BTreeSet<DomainName>,
    /// What each recovery claims. Two may need the same: `tables.claims` names one of them, and it is free when both are
    /// over.
    pub recoveries: BTreeMap<String, Recovery>,
    /// The last transition that ended: tells its end, repeated, from that of one which is not known.
    pub ended: Option<Ended>,
}

/// A recovery's claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// For people.
    pub why: String,
    /// Never empty in [`Shared`].
    pub claims: BTreeSet<Claim>,
}

/// How a transition ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which.
    pub id: u64,
    /// Who ended it.
    pub by: String,
    /// As planned?
    pub committed: bool,
    /// The arrangements it left.
    pub state: BTreeMap<GroupName, StateRow>,
}

/// A row with its final value, or (none) gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// Of the Operation table.
    Operation(DomainName, Option<OperationRow>),
    /// Of the Suspend table.
    Suspend(DomainName, Option<OperationRow>),
    /// Of the Live migration table.
    LiveMigration(DomainName, Option<MigrationRow>),
    /// Where the place's own virtual server was last, while another fills it.
    Displaced(DomainName, Option<AgentId>),
    /// Where a virtual server may be running besides.
    MayBeOn(DomainName, Option<BTreeSet<AgentId>>),
    /// Of the RSG table.
    RealServer(AgentId, Option<RealServerRow>),
    /// Of the State table.
    State(GroupName, Option<StateRow>),
    /// Where power saving wants a virtual IP.
    Placement(Vip, Option<DomainName>),
    /// Suspended itself?
    Paused(DomainName, bool),
    /// All claims of a recovery.
    Recovery(String, Option<Recovery>),
    /// Begun, or over. Its steps are as they were when it began: edits of steps follow.
    Transition(Option<TransitionRow>),
    /// Who carries it out now.
    TransitionBy(String),
    /// How far one of its steps is.
    TransitionStep(usize, StepState),
    /// The last that ended.
    Ended(Option<Ended>),
}

impl Edit {
    /// Table and row: a later edit with the same key replaces an earlier one. Those of one transition begin alike, the
    /// transition's own is the first of them.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Edit::Operation(place, _) => format!("operation/{place}"),
            Edit::Suspend(place, _) => format!("suspend/{place}"),
            Edit::LiveMigration(place, _) => format!("live-migration/{place}"),
            Edit::Displaced(place, _) => format!("displaced/{place}"),
            Edit::MayBeOn(vm, _) => format!("may-be-on/{vm}"),
            Edit::RealServer(host, _) => format!("real-server/{host}"),
            Edit::State(group, _) => format!("state/{group}"),
            Edit::Placement(vip, _) => format!("placement/{vip}"),
            Edit::Paused(place, _) => format!("paused/{place}"),
            Edit::Recovery(by, _) => format!("recovery/{by}"),
            Edit::Transition(_) => TRANSITION.to_owned(),
            Edit::TransitionBy(_) => format!("{TRANSITION}/by"),
            Edit::TransitionStep(index, _) => format!("{TRANSITION}/step/{index}"),
            Edit::Ended(_) => "ended".to_owned(),
        }
    }

    /// Is the row gone?
    #[must_use]
    pub fn removes(&self) -> bool {
        match self {
            Edit::Operation(_, row) | Edit::Suspend(_, row) => row.is_none(),
            Edit::LiveMigration(_, row) => row.is_none(),
            Edit::Displaced(_, host) => host.is_none(),
            Edit::MayBeOn(_, hosts) => hosts.is_none(),
            Edit::RealServer(_, row) => row.is_none(),
            Edit::State(_, row) => row.is_none(),
            Edit::Placement(_, row) => row.is_none(),
            Edit::Paused(_, is) => !is,
            Edit::Recovery(_, row) => row.is_none(),
            Edit::Transition(row) => row.is_none(),
            Edit::Ended(row) => row.is_none(),
            Edit::TransitionBy(_) | Edit::TransitionStep(..) => false,
        }
    }

    /// Keys that begin so hold rows of what this edit replaces, and go with it.
    #[must_use]
    pub fn replaces(&self) -> Option<String> {
        match self {
            Edit::Transition(_) => Some(format!("{TRANSITION}/")),
            Edit::Operation(..)
            | Edit::Suspend(..)
            | Edit::LiveMigration(..)
            | Edit::Displaced(..)
            | Edit::MayBeOn(..)
            | Edit::RealServer(..)
            | Edit::State(..)
            | Edit::Placement(..)
            | Edit::Paused(..)
            | Edit::Recovery(..)
            | Edit::TransitionBy(_)
            | Edit::TransitionStep(..)
            | Edit::Ended(_) => None,
        }
    }
}

const TRANSITION: &str = "transition";

fn put<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, key: &K, value: &Option<V>) {
    match value {
        Some(value) => drop(map.insert(key.clone(), value.clone())),
        None => drop(map.remove(key)),
    }
}

impl Shared {
    /// Makes one edit.
    pub fn apply(&mut self, edit: &Edit) {
        let tables = &mut self.tables;
        match edit {
            Edit::Operation(place, row) => put(&mut tables.operation, place, row),
            Edit::Suspend(place, row) => put(&mut tables.suspend, place, row),
            Edit::LiveMigration(place, row) => put(&mut tables.live_migration, place, row),
            Edit::Displaced(place, host) => put(&mut tables.displaced, place, host),
            Edit::MayBeOn(vm, hosts) => put(&mut tables.may_be_on, vm, hosts),
            Edit::RealServer(host, row) => put(&mut tables.real_servers, host, row),
            Edit::State(group, row) => put(&mut tables.state, group, row),
            Edit::Placement(vip, vm) => put(&mut tables.placement, vip, vm),
            Edit::Paused(place, true) => drop(self.paused.insert(place.clone())),
            Edit::Paused(place, false) => drop(self.paused.remove(place)),
            Edit::Recovery(by, row) => {
                put(&mut self.recoveries, by, row);
                self.name_claims();
            }
            Edit::Transition(row) => tables.transition.clone_from(row),
            Edit::TransitionBy(by) => {
                if let Some(transition) = &mut tables.transition {
                    transition.by.clone_from(by);
                }
            }
            Edit::TransitionStep(index, state) => {
                if let Some((_, old)) = tables.transition.as_mut().and_then(|row| row.steps.get_mut(*index)) {
                    *old = *state;
                }
            }
            Edit::Ended(row) => self.ended.clone_from(row),
        }
    }

    /// The Claims table out of the recoveries.
    pub(crate) fn name_claims(&mut self) {
        self.tables.claims.clear();
        for (by, recovery) in &self.recoveries {
            for claim in &recovery.claims {
                let row = || ClaimRow { by: by.clone(), why: recovery.why.clone() };
                self.tables.claims.entry(claim.clone()).or_insert_with(row);
            }
        }
    }

    /// Is what can come from anywhere, a copy, a ledger's? What else does not fit is mended when it is restored.
    ///
    /// # Errors
    /// In words, what does not.
    pub fn check(&self) -> Result<(), String> {
        let Tables { operation, suspend, real_servers, state, .. } = &self.tables;
        if let Some(place) = operation.keys().find(|place| suspend.contains_key(*place)) {
            return Err(format!("{place} in it is in operation and suspended"));
        }
        let rows = [operation.len() + suspend.len(), real_servers.len(), state.len(), self.recoveries.len()];
        if rows.into_iter().any(|rows| rows > crate::PLACE_LIMIT) {
            return Err(format!("a shared table in it has more than {} rows", crate::PLACE_LIMIT));
        }
        Ok(())
    }

    /// Of tables that an earlier version wrote, or that lose their transition without its end: where each virtual server
    /// may be that was being migrated.
    pub fn doubt_migrations(&mut self) {
        let steps = self.tables.transition.iter().flat_map(|row| &row.steps);
        let moving = steps.filter(|(_, state)| matches!(state, StepState::Begun | StepState::UndoBegun));
        for step in moving.map(|(step, _)| step.clone()).collect::<Vec<_>>() {
            crate::whereabouts::doubt(&mut self.tables, &step);
        }
        crate::tidy::tidy(self);
    }

    /// The edits that lead from here to there; none if nothing differs.
    #[must_use]
    pub fn edits_to(&self, next: &Shared) -> Vec<Edit> {
        let mut edits = Vec::new();
        let (old, new) = (&self.tables, &next.tables);
        differing(&old.operation, &new.operation, |key, row| edits.push(Edit::Operation(key, row)));
        differing(&old.suspend, &new.suspend, |key, row| edits.push(Edit::Suspend(key, row)));
        differing(&old.live_migration, &new.live_migration, |key, row| edits.push(Edit::LiveMigration(key, row)));
        differing(&old.displaced, &new.displaced, |key, host| edits.push(Edit::Displaced(key, host)));
        differing(&old.may_be_on, &new.may_be_on, |key, hosts| edits.push(Edit::MayBeOn(key, hosts)));
        differing(&old.real_servers, &new.real_servers, |key, row| edits.push(Edit::RealServer(key, row)));
        differing(&old.state, &new.state, |key, row| edits.push(Edit::State(key, row)));
        differing(&old.placement, &new.placement, |key, vm| edits.push(Edit::Placement(key, vm)));
        edits.extend(self.paused.difference(&next.paused).map(|place| Edit::Paused(place.clone(), false)));
        edits.extend(next.paused.difference(&self.paused).map(|place| Edit::Paused(place.clone(), true)));
        differing(&self.recoveries, &next.recoveries, |by, row| edits.push(Edit::Recovery(by, row)));
        transition_edits(old.transition.as_ref(), new.transition.as_ref(), &mut edits);
        if self.ended != next.ended {
            edits.push(Edit::Ended(next.ended.clone()));
        }
        edits
    }

    /// The tables to begin with after these, an older copy, are all that is left: as operators and controllers last knew
    /// them, for virtual servers are where they are whatever SIF lost. What was under way is not: nobody carries it out
    /// any more by this ledger, and recoveries claim anew.
    #[must_use]
    pub(crate) fn restored(mut self) -> Self {
        self.doubt_migrations();
        self.tables.transition = None;
        self.ended = None;
        self.recoveries.clear();
        self.name_claims();
        crate::tidy::tidy(&mut self);
        // No plan made of what came after the copy fits this by chance, and no transition has an id of that time.
        self.tables.revision = Revision(self.tables.revision.0.saturating_add(crate::UNSEEN_MARGIN));
        self
    }
}

fn differing<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    mut edit: impl FnMut(K, Option<V>),
) {
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        edit(key.clone(), None);
    }
    for (key, value) in new.iter().filter(|(key, value)| old.get(*key) != Some(*value)) {
        edit(key.clone(), Some(value.clone()));
    }
}

/// A plan is long and a step's state is short: only what changed is written.
fn transition_edits(old: Option<&TransitionRow>, new: Option<&TransitionRow>, edits: &mut Vec<Edit>) {
    let (Some(old), Some(new)) = (old, new) else {
        if old != new {
            edits.push(Edit::Transition(new.cloned()));
        }
        return;
    };
    if old.id != new.id {
        edits.push(Edit::Transition(Some(new.clone())));
        return;
    }
    if old.by != new.by {
        edits.push(Edit::TransitionBy(new.by.clone()));
    }
    let states = old.steps.iter().zip(&new.steps).enumerate();
    let changed = states.filter(|(_, ((_, old), (_, new)))| old != new);
    edits.extend(changed.map(|(index, (_, (_, state)))| Edit::TransitionStep(index, *state)));
}
