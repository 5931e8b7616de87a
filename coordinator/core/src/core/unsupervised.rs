//! Without DBSS among the controllers: leases are granted, virtual IPs follow the shared tables, and nobody is looked at.

use super::*;
use crate::{event::Cause, placement::Owner};

impl Coordinator {
    /// What has no owner yet gets the one it belongs to: nobody else would give it one (a target's DBSS does, when it
    /// starts).
    pub(super) fn place_unowned(&mut self, now: Time) {
        if self.cluster.supervise || !self.in_authority(now) {
            return;
        }
        let unowned = self.vips.iter().filter(|(_, state)| state.row.is_none() && state.moving.is_none());
        let homes: Vec<(Vip, Owner)> = unowned
            .filter_map(|(vip, state)| {
                let target = self.cluster.targets.get(&state.target)?;
                // Where a virtual server is, the tables say, once they were read.
                let home = if target.vm.is_some() { self.wanted_owner(*vip)? } else { self.home_owner(target) };
                Some((*vip, home))
            })
            .collect();
        for (vip, home) in homes {
            self.move_vip(now, vip, home, Cause::First, false);
        }
    }
}
