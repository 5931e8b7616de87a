//! `kagectl adopt`: after changes by hand, the present arrangement is the accepted one.

use super::*;
use crate::event::Holding;

impl Coordinator {
    /// What agents hold of a target's virtual IPs, as they said; the ledger says who may. Mode, alerts, evidence and
    /// budgets are set anew, as if the coordinator had just started; owners and epochs stay as they are.
    pub(super) fn adopt(
        &mut self,
        now: Time,
        command: u64,
        name: &TargetName,
        who: &str,
        found: &[Holding],
        actions: &mut Vec<Action>,
    ) {
        let result = self.try_adopt(now, name, who, found, actions);
        actions.push(Action::Moved { command, result });
    }

    fn try_adopt(
        &mut self,
        now: Time,
        name: &TargetName,
        who: &str,
        found: &[Holding],
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            let known: Vec<&str> = self.cluster.targets.keys().map(TargetName::as_str).collect();
            return Err(format!("there is no target {name:?}; the configuration has: {}", known.join(", ")));
        };
        if !self.in_authority(now) {
            return Err("this coordinator has no valid term: is SIF up? (kagectl status)".into());
        }
        if !self.cancel_moves(&target.vips) {
            return Err(format!("a move of {name} is under way and durable: wait for its end (kagectl status)"));
        }
        self.alerts_over(Some(name));
        self.nothing_held_back(name);
        self.targets.insert(name.clone(), Dbss::new(now));
        actions.push(Action::PutTrouble { target: name.clone(), stage: String::new(), detail: String::new() });
        // Another hand may have moved it: a newer row sets the mode once more.
        actions.push(Action::ReadLedger);
        self.note(Some(name.clone()), Severity::Info, "adopted", format!("adopted as it is by {who}"), actions);
        for vip in &target.vips {
            let row = self.vips.get(vip).and_then(|state| state.row.clone());
            let (severity, text) = finding(*vip, row.as_ref(), found);
            self.note(Some(name.clone()), severity, "adopted", text, actions);
        }
        for holding in found {
            if let Err(reason) = &holding.vips {
                let text = format!("{} could not be asked what it holds: {reason}", holding.agent);
                self.note(Some(name.clone()), Severity::Warning, "adopted", text, actions);
            }
        }
        Ok(())
    }
}

fn finding(vip: Vip, row: Option<&VipRow>, found: &[Holding]) -> (Severity, String) {
    let holds = |holding: &Holding| {
        let held = holding.vips.as_ref().ok()?.iter().find(|held| held.vip == vip)?;
        Some((holding.agent.clone(), held.epoch))
    };
    let held: Vec<(AgentId, kage_types::Epoch)> = found.iter().filter_map(holds).collect();
    let Some(row) = row else {
        return (Severity::Info, format!("{vip} has no owner yet: it is placed on its target"));
    };
    let owner = format!("{vip} belongs to {} at epoch {}", row.owner, row.epoch);
    let other = held.iter().find(|(agent, epoch)| *agent != row.owner || *epoch != row.epoch);
    if let Some((agent, epoch)) = other {
        let text = format!("{owner}, but {agent} still serves it at epoch {epoch}: it loses it with its lease");
        return (Severity::Warning, text);
    }
    if held.is_empty() {
        return (Severity::Warning, format!("{owner} and is not served there: its owner is told again to hold it"));
    }
    (Severity::Info, format!("{owner} and is served there"))
}
