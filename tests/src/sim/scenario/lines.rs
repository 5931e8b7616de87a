//! The lines of a scenario as they begin and end.

use super::what::{Libvirt, Operator, What};
use crate::sim::agent::Ending;
use crate::sim::clock::{MS, Ns, SEC};
use crate::sim::machine::Health;
use crate::sim::world::{Ev, World};
use kage_coordinator_core::{Event, config::OnCoordinatorLoss};
use kage_types::Order;

/// A process that dies is started again by its service manager after this.
const STARTED_AGAIN: Ns = SEC;
/// After a fault this much may still lapse.
const SETTLES: Ns = 10 * SEC;

impl World {
    /// Let every line happen in its time.
    pub(super) fn arrange_lines(&mut self) {
        let zero = self.now;
        for (index, line) in self.lines.clone().into_iter().enumerate() {
            if line.on.is_empty() {
                self.at(zero + line.at, Ev::Line(index, true));
            } else if let Some(record) = &mut self.record {
                record.waiting.push((index, line.on, line.about, zero + line.at));
            }
        }
    }

    /// A line of the scenario begins or ends.
    pub(crate) fn line(&mut self, index: usize, begins: bool) {
        let Some(line) = self.lines.get(index).cloned() else { return };
        self.say(|| format!("---- line {}: {:?} {}", line.number, line.what, if begins { "begins" } else { "ends" }));
        let lapses = self.cluster.on_coordinator_loss == OnCoordinatorLoss::Lapse;
        if line.what.disturbs(lapses) {
            self.calm = false;
            let lasts = line.lasts.filter(|_| begins);
            if let Some(record) = &mut self.record {
                let lasting = matches!(line.what, What::PowerOff(_) | What::NetworkOff(..)) && line.lasts.is_none();
                let ends = if lasting && begins { Ns::MAX } else { self.now + lasts.unwrap_or(0) };
                record.calm_from = record.calm_from.max(ends.saturating_add(SETTLES));
            }
        }
        if begins && let Some(lasts) = line.lasts {
            self.after(lasts, Ev::Line(index, false));
        }
        let lasts = line.lasts.unwrap_or(STARTED_AGAIN);
        if begins { self.begin(index, &line.what, lasts, line.lasts.is_none()) } else { self.end(&line.what) }
    }

    fn begin(&mut self, index: usize, what: &What, lasts: Ns, open: bool) {
        let until = self.now + lasts;
        match what {
            What::PowerOff(machines) => machines.iter().for_each(|machine| self.power_off(*machine, Ns::MAX)),
            What::PowerOn(machines) => machines.iter().for_each(|machine| self.power_on(*machine)),
            What::Freeze(machines) => machines.iter().for_each(|machine| self.freeze(*machine, until)),
            What::NetworkOff(nodes, cuts) => {
                cuts.iter().for_each(|(from, to)| self.net.block(*from, *to, true));
                if open {
                    self.open_cuts.push((*nodes, cuts.clone()));
                }
            }
            What::NetworkOn(nodes) => {
                let open = std::mem::take(&mut self.open_cuts);
                let (joined, left): (Vec<_>, Vec<_>) = open.into_iter().partition(|(of, _)| of & !nodes == 0);
                self.open_cuts = left;
                for (_, cuts) in joined {
                    cuts.iter().for_each(|(from, to)| self.net.block(*from, *to, false));
                }
                if let Some(record) = self.record.as_mut().filter(|_| self.open_cuts.is_empty()) {
                    record.calm_from = self.now + SETTLES;
                }
            }
            What::Loss(ppm) => self.net.loss_ppm = *ppm,
            What::Slow(slow) => self.net.slow = *slow,
            What::AgentStall(machines) => {
                for machine in machines {
                    let here = &mut self.machines[*machine];
                    here.stalled_until = here.stalled_until.max(until);
                    here.kernel_stalled_until = here.kernel_stalled_until.max(until);
                }
            }
            What::AgentKill(machines) => machines.iter().for_each(|machine| self.crash_agent(*machine, lasts)),
            What::AgentStop(machines) => machines.iter().for_each(|machine| self.plan(*machine, Ending::Stop(lasts))),
            What::Reboot(machines) => {
                for machine in machines {
                    let boot = self.machines[*machine].boot_takes.unwrap_or(5 * SEC);
                    self.plan(*machine, Ending::Down(boot));
                }
            }
            What::Shutdown(machines) => machines.iter().for_each(|machine| self.plan(*machine, Ending::Down(Ns::MAX))),
            What::Suspend(machines, announced) => {
                for machine in machines {
                    if *announced { self.plan(*machine, Ending::Sleep(lasts)) } else { self.sleep(*machine, lasts) }
                }
            }
            What::Flush(machines) => machines.iter().for_each(|machine| self.flush(*machine)),
            What::Service(machine, service, Health::Good) => {
                self.machines[*machine].services.insert(service.clone(), Health::Good);
            }
            What::Service(machine, service, health) => self.service_fails(*machine, service, *health),
            What::DoubleCrash(machine, domain) => self.double_crashes(*machine, domain),
            What::LibvirtTrouble(machines, trouble) => {
                for machine in machines {
                    let libvirt = &mut self.machines[*machine].libvirt;
                    match trouble {
                        Libvirt::Hangs => libvirt.hangs_until = until,
                        Libvirt::Slow(slow) => libvirt.slow = *slow,
                        Libvirt::Fails => libvirt.fails = true,
                    }
                }
            }
            What::PowerReads(machines, off) => {
                machines.iter().for_each(|machine| self.machines[*machine].reads = Some(*off));
            }
            What::AnnouncementsLost(machines) => {
                machines.iter().for_each(|machine| self.machines[*machine].unheard = true);
            }
            What::Stranger(vips) => self.strangers.extend(vips.iter().copied()),
            What::CoordinatorKill => self.crash_coordinator(0, false),
            What::CoordinatorStart => self.start_coordinator(0),
            What::CoordinatorStall => {
                if let Some(coordinator) = &mut self.coordinators[0] {
                    coordinator.stalled_until = until;
                }
            }
            What::SifKill(lose) => {
                self.crash_sif(*lose);
                if *lose {
                    self.checks.ledger_lost();
                }
            }
            What::SifStart => self.start_sif(),
            What::Operator(command) => self.operator(index, command),
        }
    }

    fn end(&mut self, what: &What) {
        match what {
            What::PowerOff(machines) => machines.iter().for_each(|machine| self.power_on(*machine)),
            What::NetworkOff(_, cuts) => cuts.iter().for_each(|(from, to)| self.net.block(*from, *to, false)),
            What::Loss(_) => self.net.loss_ppm = 0,
            What::Slow(_) => self.net.slow = 0,
            What::Service(machine, service, _) => {
                self.machines[*machine].services.insert(service.clone(), Health::Good);
            }
            What::LibvirtTrouble(machines, _) => {
                machines.iter().for_each(|machine| self.machines[*machine].libvirt = Default::default());
            }
            What::PowerReads(machines, _) => machines.iter().for_each(|machine| self.machines[*machine].reads = None),
            What::AnnouncementsLost(machines) => {
                machines.iter().for_each(|machine| self.machines[*machine].unheard = false);
            }
            What::Stranger(vips) => vips.iter().for_each(|vip| {
                self.strangers.remove(vip);
            }),
            What::CoordinatorKill => self.start_coordinator(0),
            What::SifKill(_) => self.start_sif(),
            // Their end is their own.
            What::PowerOn(_)
            | What::Freeze(_)
            | What::NetworkOn(_)
            | What::AgentStall(_)
            | What::AgentKill(_)
            | What::AgentStop(_)
            | What::Reboot(_)
            | What::Shutdown(_)
            | What::Suspend(..)
            | What::Flush(_)
            | What::DoubleCrash(..)
            | What::CoordinatorStart
            | What::CoordinatorStall
            | What::SifStart
            | What::Operator(_) => {}
        }
    }

    /// Like `kagectl`, at the coordinator.
    fn operator(&mut self, index: usize, what: &Operator) {
        let command = index as u64 + 1;
        let who = "operator scenario".to_owned();
        let event = match what {
            Operator::Order(scope, reason, length) => {
                let since_unix_ms = self.wall();
                let until_unix_ms = length.map(|length| since_unix_ms + length / MS);
                let order = Order { scope: scope.clone(), reason: reason.clone(), who, since_unix_ms, until_unix_ms };
                Event::PutOrder { command, order }
            }
            Operator::Lift(scope) => Event::ClearOrder { command, scope: scope.clone(), who },
            Operator::Move(target, back, force) => {
                Event::Move { command, target: target.clone(), back: *back, force: *force }
            }
        };
        if self.coordinators[0].is_some() {
            self.step_coordinator(0, event);
        } else {
            self.answered(command, Err("the coordinator does not answer".into()));
        }
    }
}
