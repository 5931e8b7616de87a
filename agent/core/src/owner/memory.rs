//! What must outlive the process: the highest term and the epochs that are over (docs/safety.md, rule 7).
//!
//! A release that was acknowledged frees the VIP for the next owner. An agent that forgot under whose term it was told
//! to release could ask the coordinator of an earlier term, or obey it, once it has started again: so that term is
//! durable before the acknowledgement. It mostly is long before, as it is written when it is first seen. The epochs go
//! along for nothing but an early refusal: the ledger's epoch was raised before the release was asked for.

use super::*;

/// After a write that failed the next is tried so much later, unless a release waits for it.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What an owner must still know after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerMemory {
    /// The highest term seen.
    pub term: Term,
    /// Epochs below these are over here.
    pub floors: BTreeMap<Vip, Epoch>,
}

/// What is on the disk, and who waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    /// On the disk.
    term: Term,
    /// On its way there.
    asked: OwnerMemory,
    /// Of the last write.
    pub(super) version: u64,
    /// The last that is on the disk.
    pub(super) written: u64,
    /// The terms of the writes under way.
    writes: BTreeMap<u64, Term>,
    /// After a failure: not before.
    pub(super) not_before: Time,
    /// Commands to release, with the term of each.
    releases: BTreeMap<CommandId, Term>,
    /// Those that are carried out and wait for the disk.
    waiting: BTreeMap<CommandId, Term>,
}

impl Durable {
    pub(super) fn new(memory: &OwnerMemory) -> Self {
        Self { term: memory.term, asked: memory.clone(), ..Self::default() }
    }
}

impl Owner {
    /// A release begins under this term.
    pub(super) fn release_begins(&mut self, command: CommandId, term: Term) {
        self.durable.releases.insert(command, term);
        self.durable.not_before = Time::ZERO;
    }

    /// What was to be let go of is closed: the command ends, a release by the coordinator once its term is durable.
    pub(super) fn released(&mut self, command: CommandId, actions: &mut Vec<OwnerAction>) {
        match self.durable.releases.remove(&command) {
            Some(term) if self.durable.term < term && !self.forgets() => {
                self.durable.waiting.insert(command, term);
            }
            Some(_) | None => actions.push(OwnerAction::Done { command, result: Ok(()) }),
        }
    }

    /// Have written what is new.
    pub(super) fn remember(&mut self, now: Time, actions: &mut Vec<OwnerAction>) {
        let durable = &mut self.durable;
        let same = durable.asked.term == self.highest_term && durable.asked.floors == self.floors;
        if same || now < durable.not_before {
            return;
        }
        durable.asked = OwnerMemory { term: self.highest_term, floors: self.floors.clone() };
        durable.version += 1;
        durable.writes.insert(durable.version, self.highest_term);
        actions.push(OwnerAction::Remember { version: durable.version, memory: durable.asked.clone() });
    }

    pub(super) fn remembered(&mut self, now: Time, version: u64, ok: bool, actions: &mut Vec<OwnerAction>) {
        let durable = &mut self.durable;
        // A later write holds all of an earlier one, which may have been left out for it.
        let later = durable.writes.split_off(&(version + 1));
        let Some((_, term)) = std::mem::replace(&mut durable.writes, later).pop_last() else {
            return;
        };
        if ok {
            durable.term = durable.term.max(term);
            durable.written = durable.written.max(version);
        } else {
            durable.asked.term = durable.term;
            if self.switching.waits() {
                // The term may be there already: written again for the epochs' sake.
                durable.asked.floors.clear();
            }
            durable.not_before = now + WRITE_AGAIN;
        }
        let over = |needed: Term| needed <= durable.term || (!ok && needed <= term);
        let ended: Vec<_> =
            durable.waiting.iter().filter(|(_, needed)| over(**needed)).map(|(c, t)| (*c, *t)).collect();
        for (command, needed) in ended {
            durable.waiting.remove(&command);
            let result = if needed <= durable.term { Ok(()) } else { Err(HoldRefused::NotDurable) };
            actions.push(OwnerAction::Done { command, result });
        }
        self.tell_switched(actions);
    }

    #[cfg(feature = "sabotage")]
    fn forgets(&self) -> bool {
        self.sabotage == Some(crate::Sabotage::ReleaseBeforeDurable)
    }

    #[cfg(not(feature = "sabotage"))]
    #[allow(clippy::unused_self)]
    fn forgets(&self) -> bool {
        false
    }
}
