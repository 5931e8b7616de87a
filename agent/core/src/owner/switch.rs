//! The switch-over of a live migration (docs/safety.md, rule 8).
//!
//! While memory is copied the VM runs here, and its VIPs are served and renewed as ever. At the switch-over libvirt says
//! that it stands still: from then on nothing can be sent from here, so the elements go, and the next owner is told of it
//! without having to ask. That report frees the VIP like a release, and unlike one it was not preceded by a durable epoch
//! of a successor: so this machine's own memory that the epoch is over is on the disk before it is sent.

use super::*;

/// VIPs of VMs that were moved away, until that is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Switching {
    vips: BTreeMap<Vip, Switch>,
    /// Commands that end when those VIPs that they wait for are told of.
    commands: BTreeMap<CommandId, BTreeSet<Vip>>,
}

#[derive(Clone, Debug)]
struct Switch {
    epoch: Epoch,
    place: Place,
    to: String,
    /// The kernel has said so.
    closed: bool,
    /// The first write of the memory that has the epoch's end.
    version: u64,
}

impl Switching {
    pub(super) fn waits(&self) -> bool {
        !self.vips.is_empty()
    }
}

impl Owner {
    pub(super) fn switched_over(
        &mut self,
        command: CommandId,
        domain: &DomainName,
        to: &str,
        actions: &mut Vec<OwnerAction>,
    ) {
        let moved = Place::Vm(domain.clone());
        let forgetting = |held: &Held| matches!(held.state, State::Closing { then: Then::Forget, .. });
        let vips: Vec<(Vip, Epoch)> = self
            .held
            .iter()
            .filter(|(vip, held)| held.place == moved && !forgetting(held) && !self.switching.vips.contains_key(*vip))
            .map(|(vip, held)| (*vip, held.epoch))
            .collect();
        // What this step raises is written at its end.
        let version = self.durable.version + 1;
        for (vip, epoch) in vips {
            let floor = self.floors.entry(vip).or_default();
            *floor = (*floor).max(epoch.next());
            self.durable.not_before = Time::ZERO;
            let (place, to) = (moved.clone(), to.to_owned());
            self.switching.vips.insert(vip, Switch { epoch, place, to: to.clone(), closed: false, version });
            self.close(vip, Then::Forget, LossReason::SwitchedOver(to), actions);
        }
        let waiting = self.switching.vips.iter().filter(|(_, switch)| switch.place == moved);
        self.switching.commands.insert(command, waiting.map(|(vip, _)| *vip).collect());
        self.tell_switched(actions);
    }

    /// The kernel has deleted both elements of a VIP.
    pub(super) fn switch_closed(&mut self, vip: Vip, actions: &mut Vec<OwnerAction>) {
        if let Some(switch) = self.switching.vips.get_mut(&vip) {
            switch.closed = true;
            self.tell_switched(actions);
        }
    }

    /// What is closed and durable is told, once.
    pub(super) fn tell_switched(&mut self, actions: &mut Vec<OwnerAction>) {
        let written = self.durable.written;
        let Switching { vips, commands } = &mut self.switching;
        vips.retain(|vip, switch| {
            let over = switch.closed && switch.version <= written;
            if over {
                let reason = LossReason::SwitchedOver(switch.to.clone());
                let ask = AskVip { vip: *vip, epoch: switch.epoch };
                actions.push(OwnerAction::Lost { ask, reason, place: switch.place.clone() });
            }
            !over
        });
        commands.retain(|command, waiting| {
            waiting.retain(|vip| vips.contains_key(vip));
            if waiting.is_empty() {
                actions.push(OwnerAction::Done { command: *command, result: Ok(()) });
            }
            !waiting.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
