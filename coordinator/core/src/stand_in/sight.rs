//! Who is one of them, beyond those whose target is beyond repair; and whom nobody lets go yet.

use super::StandIn;
use crate::{core::Coordinator, placement::Owner};
use kage_types::{DomainName, Time};

impl Coordinator {
    /// A backup server that fills a place is a member of its group, and power saving may move it like any other. One that
    /// the tables have away from home, or on its way, is supervised from then on: its virtual IPs follow it, and it is
    /// brought home when SIF forgets it with the return of its target.
    pub(crate) fn keep_sight_of_moved(&mut self, now: Time) {
        let Some(tables) = &self.tables else { return };
        let moved = self.cluster.targets.iter().filter_map(|(name, target)| {
            let (place, double) = (target.domain()?, &target.backup.domain);
            let row = tables.operation.get(place).or_else(|| tables.suspend.get(place))?;
            let moved = row.host != target.backup.agent || tables.migrating(double).is_some();
            (row.vm == *double && moved && !self.stands_in(double)).then(|| (name.clone(), double.clone()))
        });
        for (by, domain) in moved.collect::<Vec<_>>() {
            self.stand_ins.entry(domain).or_insert_with(|| StandIn::new(now, by, None, StandIn::serving(now)));
        }
    }

    /// Does it hold a virtual IP, or the place of one that is given up? What it would hold there may be gathered elsewhere,
    /// and comes back to it where the tables have it.
    pub(super) fn is_needed(&self, owner: &Owner) -> bool {
        self.wanted(owner) || owner.domain.as_ref().is_some_and(|domain| self.keeps_a_place(domain))
    }

    fn keeps_a_place(&self, domain: &DomainName) -> bool {
        let Some(tables) = &self.tables else { return false };
        self.stood_in_for(domain).iter().any(|(name, target)| {
            let given_up = self.targets.get(name).is_some_and(crate::dbss::Dbss::is_given_up);
            given_up && target.domain().is_some_and(|place| fills(tables, place) == Some(domain))
        })
    }

    /// Is its target's place filled by it, as the tables have it?
    pub(crate) fn is_filled_by_double(&self, target: &crate::config::Target) -> bool {
        let Some(tables) = &self.tables else { return false };
        target.domain().is_some_and(|place| fills(tables, place).is_some_and(|vm| target.is_double(vm)))
    }
}

fn fills<'a>(tables: &'a kage_types::Tables, place: &DomainName) -> Option<&'a DomainName> {
    tables.operation.get(place).or_else(|| tables.suspend.get(place)).map(|row| &row.vm)
}
