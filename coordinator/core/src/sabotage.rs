//! Rules broken on purpose, so that the simulator can prove that it would notice. Only with the feature `sabotage`:
//! without it every rule holds, and the compiler knows that.

use crate::core::Coordinator;

/// A rule broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A new term does not outwait the grants of the one before (rule 7).
    NoWaitAfterNewTerm,
    /// The new owner is told to hold before its epoch is durable (rule 5).
    OpenBeforeDurable,
    /// Patience counts without bars from a majority (rule 6).
    PatienceWithoutBars,
    /// What went dark at once is taken over one by one (when to act).
    NoStormBrake,
    /// Maintenance and disarm withhold nothing (when to act).
    OrdersIgnored,
    /// The new owner is told to hold before its double runs (rule 8).
    OpenBeforeDoubleRuns,
    /// Whoever answers for the VIP is not minded (rule 5).
    StrangerIgnored,
    /// The double of a single writer runs before it is certain that nobody else writes.
    WriterUnproven,
    /// An owner that is up and does not hold what is its own is not told again.
    NotToldAgain,
    /// Signal A1 of thesis ch. 4 is not asked for: a virtual server holds the virtual IPs that are configured.
    SignalA1,
    /// Signals A1 and A2 are not asked for: nothing is suspended on purpose.
    SignalA2,
    /// Signal A4 is not sent: nobody is told that the backup server serves.
    SignalA4,
    /// Signal A5 is not sent: nobody is told what became of the target.
    SignalA5,
}

impl Coordinator {
    /// Break a rule on purpose.
    #[cfg(feature = "sabotage")]
    pub fn sabotage(&mut self, sabotage: Sabotage) {
        self.sabotage = Some(sabotage);
    }

    /// Is this rule broken on purpose?
    #[cfg(feature = "sabotage")]
    pub(crate) fn breaks(&self, rule: Sabotage) -> bool {
        self.sabotage == Some(rule)
    }

    #[cfg(not(feature = "sabotage"))]
    #[allow(clippy::unused_self)]
    pub(crate) fn breaks(&self, _rule: Sabotage) -> bool {
        false
    }
}
