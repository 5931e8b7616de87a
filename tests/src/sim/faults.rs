//! What can go wrong, alone and together, and its repair.

use super::agent::Ending;
use super::clock::{MS, Ns, SEC};
use super::config::Shape;
use super::net::Nodes;
use super::rng::Rng;
use super::world::{Ev, World};
use kage_coordinator_core::Event;

/// One fault.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing from these nodes reaches those; and back, if both ways.
    Cut(Nodes, Nodes, bool),
    /// Loss, of a million.
    Loss(u32),
    /// Up to so much more on every way.
    Slow(Ns),
    /// Commands that arrive late, and twice, of a million.
    Late(u32),
    /// The agent's process gets no time.
    StallAgent(usize),
    /// Its kernel thread gets none.
    StallKernel(usize),
    /// One operation (only an opening?) waits between check and effect.
    StallOp(usize, bool, Ns),
    /// One step waits between reading the clock and acting.
    StallStep(usize, Ns),
    /// The coordinator's process gets no time.
    StallCoordinator,
    /// One step of it waits between reading the clock and acting.
    StallCoordinatorStep(Ns),
    /// The agent's process dies, and is started again.
    CrashAgent(usize, Ns),
    /// The machine loses its power.
    Power(usize, Ns),
    /// A clean reboot.
    Reboot(usize, Ns),
    /// The agent is stopped and started as planned.
    Stop(usize, Ns),
    /// The machine sleeps.
    Suspend(usize, Ns),
    /// The coordinator dies (silently, with its machine), and is started again.
    CrashCoordinator(bool, Ns),
    /// A second coordinator is started; at the end this one remains, or the old one.
    SecondCoordinator(bool),
    /// SIF dies; its ledger is lost.
    CrashSif(Ns, bool),
    /// SIF dies while it writes.
    CrashSifAtWrite(Ns),
    /// SIF's next write takes longer.
    SlowWrite(Ns),
    /// An agent's disk is slow by up to so much.
    SlowDisk(usize, Ns),
    /// Somebody flushes the guard.
    Flush(usize),
    /// The operator moves a target's VIPs: of which machine, back?
    Move(usize, bool),
}

/// A fault with its time.
#[derive(Clone, Debug)]
pub struct Planned {
    begins: Ns,
    ends: Ns,
    fault: Fault,
}

/// The nodes that are no machines come after them, each on its own: SIF, the coordinators.
impl Shape {
    fn sif(&self) -> Nodes {
        1 << self.machines()
    }

    fn coordinators(&self) -> Nodes {
        0b110 << self.machines()
    }

    fn all(&self) -> Nodes {
        self.everybody() | self.sif() | self.coordinators()
    }

    fn others(&self, nodes: Nodes) -> Nodes {
        self.all() & !nodes
    }
}

fn cut(rng: &mut Rng, shape: &Shape) -> Fault {
    let one = 1 << rng.index(shape.machines());
    let owner = 1 << shape.owner(rng);
    match rng.range(0, 12) {
        0 => Fault::Cut(owner, shape.others(owner), true),
        1 => Fault::Cut(owner, shape.others(owner), false),
        2 => Fault::Cut(shape.others(owner), owner, false),
        3 => Fault::Cut(shape.coordinators(), shape.everybody(), true),
        4 => Fault::Cut(shape.coordinators(), owner, rng.percent(60)),
        5 => Fault::Cut(owner, shape.coordinators(), false),
        6 => Fault::Cut(shape.coordinators(), shape.sif(), true),
        7 => Fault::Cut(one, shape.others(one), rng.percent(60)),
        8 => {
            // One coordinator without SIF: its term runs out, unknown to those it grants.
            Fault::Cut(shape.sif() << (1 + rng.index(2)), shape.sif(), true)
        }
        9 => Fault::Cut(one, 1 << rng.index(shape.machines() + 3), rng.percent(50)),
        _ => {
            let side = rng.range(1, shape.all());
            Fault::Cut(side, shape.others(side), rng.percent(80))
        }
    }
}

fn stall(rng: &mut Rng, shape: &Shape) -> Fault {
    let machine = shape.owner(rng);
    let long = rng.scale(100 * MS, 20 * SEC);
    match rng.range(0, 8) {
        0 | 1 => Fault::StallAgent(machine),
        2 => Fault::StallKernel(machine),
        3 => Fault::StallOp(machine, rng.percent(50), long),
        4 => Fault::StallStep(machine, long),
        5 => Fault::StallCoordinator,
        6 => Fault::StallCoordinatorStep(long),
        _ => Fault::StallAgent(rng.index(shape.machines())),
    }
}

fn crash(rng: &mut Rng, shape: &Shape) -> Fault {
    let machine = if rng.percent(70) { shape.owner(rng) } else { rng.index(shape.machines()) };
    let down = rng.scale(20 * MS, 12 * SEC);
    match rng.range(0, 15) {
        0 | 1 => Fault::CrashAgent(machine, down),
        2 | 3 => Fault::Power(machine, down),
        4 => Fault::Reboot(machine, down),
        5 => Fault::Stop(machine, down),
        6 => Fault::Suspend(machine, down),
        7 | 8 => Fault::CrashCoordinator(rng.percent(50), down),
        9 | 10 => Fault::SecondCoordinator(rng.percent(50)),
        11 => Fault::CrashSif(down, false),
        12 => Fault::CrashSif(down, true),
        13 => Fault::Flush(shape.owner(rng)),
        _ => Fault::CrashSifAtWrite(down),
    }
}

fn any(rng: &mut Rng, shape: &Shape) -> Fault {
    match rng.range(0, 16) {
        0..=4 => cut(rng, shape),
        5..=7 => stall(rng, shape),
        8..=11 => crash(rng, shape),
        12 | 13 => Fault::Move(shape.target(rng), rng.percent(50)),
        14 => match rng.range(0, 4) {
            0 => Fault::Loss(u32::try_from(rng.scale(1_000, 300_000)).unwrap_or(1_000)),
            1 => Fault::Slow(rng.scale(5 * MS, 3 * SEC)),
            2 => Fault::SlowDisk(rng.index(shape.machines()), rng.scale(10 * MS, 3 * SEC)),
            _ => Fault::SlowWrite(rng.scale(10 * MS, 5 * SEC)),
        },
        _ => Fault::Late(200_000),
    }
}

/// Faults that belong together: each pair of them is where one rule alone stands between two owners.
fn directed(rng: &mut Rng, shape: &Shape) -> Vec<Fault> {
    let long = rng.scale(SEC, 16 * SEC);
    let voter = shape.witness(rng);
    let target = shape.target(rng);
    let owner: Nodes = 1 << target;
    match rng.range(0, 10) {
        // The owner keeps one voter, the coordinator two.
        0 => vec![Fault::Cut(owner | voter, shape.others(owner | voter), true)],
        // The owner keeps two voters; a new coordinator, or an operator, sees it as lost.
        1 => {
            let witnesses = shape.witnesses.iter().fold(0, |set, witness| set | 1 << witness);
            let away = (owner | witnesses) & !voter;
            let crash = Fault::CrashCoordinator(false, 50 * MS);
            let other = if rng.percent(50) { crash } else { Fault::Move(target, false) };
            vec![Fault::Cut(away, shape.others(away), true), other]
        }
        // A false restart; each coordinator reaches another owner.
        2 => {
            let second = shape.sif() << 2;
            vec![Fault::SecondCoordinator(rng.percent(50)), Fault::Cut(second, owner, true), cut(rng, shape)]
        }
        // An opening or renewal that stalls while the other takes over.
        3 => {
            let stall = Fault::StallOp(shape.owner(rng), rng.percent(60), long);
            vec![stall, cut(rng, shape), Fault::Move(target, rng.percent(50))]
        }
        // Back and forth by the operator, with a stall of who opens.
        4 => {
            vec![Fault::Move(target, false), Fault::Move(target, true), Fault::StallOp(shape.owner(rng), true, long)]
        }
        // SIF is lost while it writes a new epoch.
        5 => {
            let moved = Fault::Move(target, rng.percent(50));
            vec![Fault::CrashSifAtWrite(50 * MS), moved, Fault::CrashCoordinator(false, MS)]
        }
        // In an order of their own: see `in_order`.
        6 | 8 => vec![],
        // Told to release under a term that its disk has not yet.
        7 => {
            let slow = Fault::SlowDisk(shape.owner(rng), rng.scale(100 * MS, 5 * SEC));
            vec![slow, Fault::CrashCoordinator(rng.percent(50), 50 * MS), Fault::Move(target, rng.percent(50))]
        }
        // The new coordinator does not see the owner that the old one granted.
        _ => {
            let crash = Fault::CrashCoordinator(rng.percent(50), 50 * MS);
            vec![crash, Fault::Cut(owner, shape.others(owner), true), Fault::Move(target, false)]
        }
    }
}

/// Faults that do harm in one order only.
fn in_order(rng: &mut Rng, shape: &Shape, now: Ns, faults: &[Fault]) -> Vec<Planned> {
    if !faults.is_empty() {
        return Vec::new();
    }
    let owner = 1 << shape.target(rng);
    let others = shape.others(owner);
    if rng.percent(50) { late_answer(rng, now, owner, others) } else { lost_epoch(rng, now, owner, others) }
}

/// The owner is cut off and loses its VIP, the epoch that this takes is lost, and so is the coordinator that saw it.
/// (An owner that was told to release remembers that its epoch is over.)
fn lost_epoch(rng: &mut Rng, now: Ns, owner: Nodes, others: Nodes) -> Vec<Planned> {
    let (heals, down) = (now + rng.range(5 * SEC, 12 * SEC), rng.range(20 * MS, SEC));
    let crash = now + rng.range(3 * SEC, 12 * SEC);
    let planned = |fault, begins, ends| Planned { begins, ends, fault };
    vec![
        planned(Fault::Cut(owner, others, true), now, heals),
        planned(Fault::CrashSifAtWrite(down), now, heals),
        planned(Fault::CrashCoordinator(false, rng.range(20 * MS, SEC)), crash, crash + 1),
    ]
}

/// The answers to an owner come all together about a lease later, when what it says is not heard any more.
fn late_answer(rng: &mut Rng, now: Ns, owner: Nodes, others: Nodes) -> Vec<Planned> {
    // Late enough to reach beyond the lease if counted from its receipt; before the owner gives its stream up (1 s), and
    // before the answers that call it superseded (0.6 s in the profile fast).
    let turn = now
        + match rng.range(0, 10) {
            0..=3 => rng.range(400 * MS, 580 * MS),
            4..=7 => rng.range(650 * MS, 980 * MS),
            _ => rng.range(600 * MS, 2_400 * MS),
        };
    let early = rng.range(0, 20 * MS);
    vec![
        Planned { begins: now, ends: turn, fault: Fault::Cut(others, owner, false) },
        Planned { begins: turn - early, ends: turn + 6 * SEC, fault: Fault::Cut(owner, others, false) },
    ]
}

/// A stall, short enough to cost nothing (safety: wrong takeovers and lapses).
fn harmless(rng: &mut Rng, shape: &Shape, tolerance: Ns) -> Vec<(Fault, Ns)> {
    let machine = shape.owner(rng);
    let length = rng.range(MS, tolerance);
    match rng.range(0, 5) {
        0 => vec![(Fault::StallAgent(machine), length)],
        1 => vec![(Fault::StallKernel(machine), length)],
        2 => vec![(Fault::StallStep(machine, length), 0)],
        3 => vec![(Fault::Stop(machine, rng.scale(20 * MS, 8 * SEC)), 0)],
        _ => vec![(Fault::CrashCoordinator(false, rng.scale(MS, 3 * SEC)), 0)],
    }
}

/// The faults of one episode, from now on; true if they may cost nothing.
pub fn episode(rng: &mut Rng, shape: &Shape, now: Ns, tolerance: Ns, intensity: u32) -> (Vec<Planned>, bool) {
    if rng.percent(10) {
        let plan = |(fault, length)| Planned { begins: now, ends: now + length, fault };
        return (harmless(rng, shape, tolerance).into_iter().map(plan).collect(), true);
    }
    let faults = if rng.percent(40) {
        directed(rng, shape)
    } else {
        let count = 1 + rng.index(usize::try_from(intensity).unwrap_or(1).max(1));
        (0..count).map(|_| any(rng, shape)).collect()
    };
    let mut planned = in_order(rng, shape, now, &faults);
    for fault in faults {
        let begins = now + if rng.percent(50) { rng.range(0, 300 * MS) } else { rng.range(0, 6 * SEC) };
        // Half of them about as long as a lease: long enough to be believed dead, and then to speak.
        let length = if rng.percent(50) { rng.range(700 * MS, 4 * SEC) } else { rng.scale(100 * MS, 16 * SEC) };
        planned.push(Planned { begins, ends: begins + length, fault });
    }
    (planned, false)
}

impl World {
    /// Have these faults begin and end in their time. The time by which all have ended.
    pub fn arrange(&mut self, mut faults: Vec<Planned>) -> Ns {
        if self.fences() {
            // Whose VIP was is not known then, and by docs/operations.md the operator's to look at (a restored ledger).
            for planned in &mut faults {
                if let Fault::CrashSif(_, lost) = &mut planned.fault {
                    *lost = false;
                }
            }
        }
        let mut end = self.now;
        self.net.loss_ppm = self.weather.loss(None);
        for (index, planned) in faults.iter().enumerate() {
            self.at(planned.begins, Ev::Fault(index, true));
            self.at(planned.ends, Ev::Fault(index, false));
            end = end.max(planned.ends + 1);
        }
        self.faults = faults;
        self.repaired = false;
        end
    }

    /// A fault begins or ends.
    pub fn fault(&mut self, index: usize, begins: bool) {
        let Some(Planned { ends, fault, .. }) = self.faults.get(index).cloned() else { return };
        self.say(|| format!("---- {fault:?} {}", if begins { "begins" } else { "ends" }));
        match fault {
            Fault::Cut(from, to, both) => {
                self.net.block(from, to, begins);
                if both {
                    self.net.block(to, from, begins);
                }
            }
            Fault::Loss(ppm) => self.net.loss_ppm = self.weather.loss(begins.then_some(ppm)),
            Fault::Slow(slow) => self.net.slow = if begins { slow } else { 0 },
            Fault::Late(ppm) => self.net.late_ppm = if begins { ppm } else { 0 },
            Fault::SecondCoordinator(new_remains) if !begins => {
                let slot = usize::from(!new_remains);
                if self.coordinators.iter().flatten().count() == 2 {
                    self.crash_coordinator(slot, false);
                }
            }
            Fault::SlowDisk(machine, slow) => self.machines[machine].slow_disk = if begins { slow } else { 0 },
            _ if !begins => {}
            Fault::Flush(machine) => self.flush(machine),
            Fault::StallAgent(machine) => self.machines[machine].stalled_until = ends,
            Fault::StallKernel(machine) => self.machines[machine].kernel_stalled_until = ends,
            Fault::StallOp(machine, open, length) => self.machines[machine].stall_op = Some((open, length)),
            Fault::StallStep(machine, length) => self.machines[machine].stall_step = length,
            Fault::StallCoordinator => {
                for coordinator in self.coordinators.iter_mut().flatten() {
                    coordinator.stalled_until = ends;
                }
            }
            Fault::StallCoordinatorStep(length) => {
                for coordinator in self.coordinators.iter_mut().flatten() {
                    coordinator.stall_step = length;
                }
            }
            Fault::CrashAgent(machine, down) => self.crash_agent(machine, down),
            Fault::Power(machine, down) => self.power_off(machine, down),
            Fault::Reboot(machine, down) => self.plan(machine, Ending::Down(down)),
            Fault::Stop(machine, down) => self.plan(machine, Ending::Stop(down)),
            Fault::Suspend(machine, down) => self.plan(machine, Ending::Sleep(down)),
            Fault::CrashCoordinator(silently, down) => {
                for slot in [0, 1] {
                    if self.coordinators[slot].is_some() {
                        self.crash_coordinator(slot, silently);
                        self.after(down, Ev::StartCoordinator(slot));
                    }
                }
            }
            Fault::SecondCoordinator(_) => {
                for slot in [0, 1] {
                    self.start_coordinator(slot);
                }
            }
            Fault::CrashSif(down, lose) => {
                self.crash_sif(lose);
                if lose {
                    self.checks.ledger_lost();
                }
                self.after(down, Ev::StartSif);
            }
            Fault::CrashSifAtWrite(down) => self.sif.crash_at_write = Some(down),
            Fault::SlowWrite(length) => self.sif.slow_write = length,
            Fault::Move(machine, back) => {
                for slot in [0, 1] {
                    let there = &self.names[machine];
                    let target = self.cluster.targets.iter().find(|(_, target)| target.agent == *there);
                    let target = target.map(|(name, _)| name.clone());
                    if let (true, Some(target)) = (self.coordinators[slot].is_some(), target) {
                        self.step_coordinator(slot, Event::Move { command: 0, target, back, force: true });
                    }
                }
            }
        }
    }

    /// Nothing is broken any more: what is down starts, what is cut is joined.
    pub fn repair(&mut self) {
        self.say(|| "---- repaired".into());
        self.net.heal();
        self.repaired = true;
        self.sif.crash_at_write = None;
        self.sif.slow_write = 0;
        // Whoever was switched off is switched on again, by whoever can.
        (0..self.machines.len()).for_each(|machine| self.power_on(machine));
        for here in &mut self.machines {
            here.stalled_until = self.now;
            here.kernel_stalled_until = self.now;
            here.stall_op = None;
            here.stall_step = 0;
            here.slow_disk = 0;
        }
        for coordinator in self.coordinators.iter_mut().flatten() {
            coordinator.stalled_until = self.now;
            coordinator.stall_step = 0;
        }
        if self.coordinators.iter().flatten().count() == 2 {
            let slot = self.rng.index(2);
            self.crash_coordinator(slot, false);
        }
    }
}
