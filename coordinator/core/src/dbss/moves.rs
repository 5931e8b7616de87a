//! The operator's moves, and the double's sleep.

use super::*;

impl Coordinator {
    pub(crate) fn operator_move(
        &mut self,
        now: Time,
        command: u64,
        name: &TargetName,
        back: bool,
        force: bool,
        actions: &mut Vec<Action>,
    ) {
        let result = self.try_operator_move(now, name, back, force, actions);
        actions.push(Action::Moved { command, result });
    }

    fn try_operator_move(
        &mut self,
        now: Time,
        name: &TargetName,
        back: bool,
        force: bool,
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        let Some(target) = self.cluster.targets.get(name).cloned() else {
            let known: Vec<&str> = self.cluster.targets.keys().map(TargetName::as_str).collect();
            return Err(format!("there is no target {name:?}; the configuration has: {}", known.join(", ")));
        };
        if !self.in_authority(now) {
            return Err("this coordinator has no valid term: is SIF up? (kagectl status)".into());
        }
        let to = if back { Self::at_home(&target) } else { Self::at_backup(&target) };
        if self.all_settled_on(&target, &to) {
            return Err(format!("{name} is already served by {}", to.agent));
        }
        if !self.connected(now, &to.agent) {
            return Err(format!("the agent of {} does not answer: bring it up first", to.agent));
        }
        let healthy = self.dbss(name).services_good(target.services.len());
        if back && !healthy && !force {
            return Err(format!(
                "the services of {name} do not answer on its own address: repair them, or use --force"
            ));
        }
        let reachable = self.connected(now, &target.agent);
        let cause = if back { Cause::Failback } else { Cause::Failover };
        let words = format!("{} asked for by the operator", cause.as_str());
        let about = Some(name.clone());
        self.note(about, Severity::Info, if back { "failback" } else { "failover" }, words, actions);
        if back {
            // A new start: what was used up before it does not count any more.
            self.dbss(name).budgets = Budgets::default();
            self.begin_return(now, name, &target, cause, actions);
        } else {
            self.move_all(now, &target, &to, cause, reachable);
            self.enter(now, name, Mode::BackupServer { why: Why::Operator { reachable } });
        }
        Ok(())
    }

    /// Its last VIP has left: the double sleeps again.
    pub(crate) fn suspend_double(&mut self, target: &Target, name: &TargetName, actions: &mut Vec<Action>) {
        let backup = Self::at_backup(target);
        if !self.wanted(&backup) {
            self.pause(&backup, name, actions);
        }
    }
}
