//! A healthy target whose double serves, and the double's host falls silent: the target takes its place again, whatever
//! it was waiting for, once it is certain that nobody is served there any more.

use super::*;

impl Coordinator {
    /// Has the host of its double, which serves, been silent for so long that somebody should look?
    pub(crate) fn double_fell_silent(&self, now: Time, target: &Target) -> bool {
        let limit = self.cluster.detection.confirm.max(self.silence_limit());
        self.cluster.detection.push
            && self.silent(now, &self.double_host(target)) > limit
            && self.away_on_double(target)
    }

    /// Do all its virtual IPs belong to the double, which may be being told again to hold them?
    fn away_on_double(&self, target: &Target) -> bool {
        let double = self.at_backup(target);
        self.vips_of(target).iter().filter_map(|vip| self.vips.get(vip)).all(|state| {
            state
                .row
                .as_ref()
                .is_some_and(|row| row.owner == double.agent && row.domain.as_ref() == double.domain.as_ref())
                && state.moving.as_ref().is_none_or(|moving| moving.to == double)
        })
    }

    /// A round at the virtual IP has ended: is the double lost? As in Network examination mode, silence alone convicts
    /// nobody.
    pub(crate) fn double_silent(
        &mut self,
        now: Time,
        name: &TargetName,
        target: &Target,
        before: &Background,
        told: bool,
        actions: &mut Vec<Action>,
    ) {
        let host = &self.double_host(target);
        if !self.connected(now, &target.agent) {
            let background = self.away_again(now, name, target, actions);
            self.dbss(name).mode = Mode::TargetServerRecovery { background };
            return self.wake_at(name, now);
        }
        if !self.double_fell_silent(now, target) {
            self.dbss(name).mode = Mode::TargetServerRecovery { background: before.clone() };
            return self.wake_at(name, now);
        }
        let silent = whole_millis(self.silent(now, host));
        let dbss = self.dbss(name);
        let (ping, service_bad) = (dbss.ping.clone(), !dbss.bad_services().is_empty());
        let answers = ping.good() && dbss.services_good(target.services.len());
        let lost = service_bad || (target.services.is_empty() && ping.bad());
        let said = if !lost {
            let text = format!("the agent of its double's host {host} has been silent for {silent:?}");
            answers.then(|| (Severity::Warning, "alarm", format!("{text}, its service answers")))
        } else if let Some(storm) = self.brake.as_ref().map(|(_, storm)| storm.clone()) {
            Some((Severity::Alert, "held", format!("its double looks lost; held by the storm brake: {storm}")))
        } else if !self.patience_allowed(Some(host)) {
            let text = "its double looks lost, but nothing proves it dead, and patience is not allowed \
                        (on_coordinator_loss = \"keep\"): switch its host off, or `kagectl failback`";
            Some((Severity::Alert, "held", text.to_owned()))
        } else if self.hold_back(name, Act::GoBack, "its double is lost, and it is healthy", actions) {
            None
        } else {
            let text = format!(
                "its double is lost ({host} silent for {silent:?}, service {}), and it is healthy: going back at once",
                self.dbss(name).view().service
            );
            self.note(Some(name.clone()), Severity::Alert, "double-lost", text, actions);
            return self.begin_return(now, name, target, Cause::Failback, actions);
        };
        let told = match said {
            Some((severity, kind, text)) if !told => {
                self.note(Some(name.clone()), severity, kind, text, actions);
                true
            }
            Some(_) | None => told,
        };
        let background = Background::DoubleSilent { before: Box::new(before.clone()), told };
        self.dbss(name).mode = Mode::TargetServerRecovery { background };
        self.wake_at(name, now);
    }
}
