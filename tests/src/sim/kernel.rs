//! The kernel's guard of one machine: the timed elements, and what one transaction does to them.

use super::clock::{Clock, Ns, ns};
use kage_agent_core::{KernelOp, KernelOutcome};
use kage_types::Vip;
use std::{collections::BTreeMap, time::Duration};

/// A way to build the guard wrong, to prove that the checks would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSabotage {
    /// A renewal succeeds though the element has expired.
    UnconditionalRenewal,
    /// `live` is added though `armed` is gone.
    LiveWithoutArmed,
    /// A renewal is an `add` alone, which leaves the timeout as it was.
    AddTakenForRefresh,
}

/// One VIP's elements: until when (true time) each matches packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elements {
    /// End of `armed`.
    pub armed: Option<Ns>,
    /// End of `live`.
    pub live: Option<Ns>,
    /// When `live` was last set.
    pub set: Ns,
}

/// All elements of a machine.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// By VIP.
    pub elements: BTreeMap<Vip, Elements>,
    /// Built wrong.
    pub sabotage: Option<KernelSabotage>,
}

impl Kernel {
    /// Until when packets of this VIP pass, if they pass now.
    #[must_use]
    pub fn live_until(&self, now: Ns, vip: Vip) -> Option<Ns> {
        self.elements.get(&vip).and_then(|elements| elements.live).filter(|end| *end > now)
    }

    /// One transaction takes effect now. `late`: how late the timer of what it sets will fire.
    pub fn apply(&mut self, now: Ns, clock: &Clock, op: &KernelOp, late: Duration) -> KernelOutcome {
        let end = |life: Duration| clock.when(clock.at(now) + life) + ns(late);
        let elements = self.elements.entry(op.vip()).or_default();
        let there = |element: Option<Ns>| element.is_some_and(|end| end > now);
        match op {
            KernelOp::Arm { life, .. } => elements.armed = Some(end(*life)),
            KernelOp::Open { life, .. } => {
                if !there(elements.armed) && self.sabotage != Some(KernelSabotage::LiveWithoutArmed) {
                    return KernelOutcome::NotFound;
                }
                elements.armed = None;
                elements.live = Some(end(*life));
                elements.set = now;
            }
            KernelOp::Renew { life, .. } => {
                if !there(elements.live) && self.sabotage != Some(KernelSabotage::UnconditionalRenewal) {
                    return KernelOutcome::NotFound;
                }
                if self.sabotage == Some(KernelSabotage::AddTakenForRefresh) {
                    return KernelOutcome::Done;
                }
                elements.live = Some(end(*life));
                elements.set = now;
            }
            KernelOp::Close { .. } => *elements = Elements::default(),
        }
        KernelOutcome::Done
    }

    /// The machine slept: the timers of the elements stood still.
    pub fn slept(&mut self, from: Ns, to: Ns) {
        for elements in self.elements.values_mut() {
            for end in [&mut elements.armed, &mut elements.live] {
                *end = end.filter(|end| *end > from).map(|end| end + (to - from));
            }
        }
    }
}
