//! A failure during each step of each transition (thesis 4.4.3 goes through six of them by hand): every pair.

use super::{
    beyond::until_repaired,
    moved::until_moved_back,
    world::{Ms, Night, Power, Run},
};
use anyhow::{Result, bail};
use kage_types::{AgentId, Condition, DomainName, Step, StepState};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Judged each second, and quick to act: a night in minutes.
const PSS: &str = "[pss]\ninterval = \"1s\"\nfresh = \"5s\"\nawake_for = \"5s\"\nsleeps_a_day = 1000\nhost_memory = 256\n\
                   backoff = \"10s\"\npatience = \"30s\"\n";
/// Percent of one member, of each group.
pub(super) const QUIET: u64 = 5;
/// Above `moderate1`.
pub(super) const BUSY: u64 = 60;
/// A transition takes seconds; one with a failure in it, minutes.
pub(super) const SETTLED: Ms = 600_000;
/// Longer than power saving looks for what it has left before it ends a transition.
const CUT: Ms = 150_000;
/// From the fault on, a virtual IP may be without an answer for so long.
const DARK: Ms = 60_000;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// The virtual server that the step is about; of a host's step one that serves.
    Vm,
    /// The host that the step is about, or leads to; it has power again after a minute.
    Host,
    /// The host that a live migration leaves.
    Source,
    /// The host that everything is gathered on.
    Base,
    /// The host that the step is about, or leads to: it is cut off from everybody but its storage, for some minutes. What
    /// it runs runs on; a live migration from or to it fails.
    CutHost,
    /// The same of the host that a live migration leaves.
    CutSource,
    /// The same of the host that everything is gathered on.
    CutBase,
    /// The host that a live migration leads to is cut off just after the switch-over.
    CutArrived,
    /// The same, and the agent of the host that it leaves crashes before it could say so.
    CutUnsaid,
    /// The host that it leaves is cut off, before it could say so.
    CutLeft,
    /// The agent of the host.
    Agent,
    /// kage-coordinator: both controllers.
    Coordinator,
    /// A process of its own that does power saving.
    Saving,
    /// kage-sif.
    Sif,
    /// The virtual server, and its starts fail until it is repaired: it is given up.
    Beyond,
    /// The same, and the coordinator while its double is on its way.
    BeyondCoordinator,
    /// The same, and the host that its double goes to.
    BeyondHost,
    /// The same, and its double.
    BeyondDouble,
    /// The same, and when its double serves there, a service in that.
    BeyondService,
    /// The same, and when its double serves there, that host: the further one takes over, and gives back.
    BeyondFurther,
    /// None: the operator has its backup server serve for it, through both transitions, and takes it back then.
    Moved,
    /// The same, and SIF forgets that this is claimed.
    MovedForgotten,
}

/// All of them.
pub const VICTIMS: [Victim; 22] = [
    Victim::Vm,
    Victim::Host,
    Victim::Source,
    Victim::Base,
    Victim::CutHost,
    Victim::CutSource,
    Victim::CutBase,
    Victim::CutArrived,
    Victim::CutUnsaid,
    Victim::CutLeft,
    Victim::Agent,
    Victim::Coordinator,
    Victim::Saving,
    Victim::Sif,
    Victim::Beyond,
    Victim::BeyondCoordinator,
    Victim::BeyondHost,
    Victim::BeyondDouble,
    Victim::BeyondService,
    Victim::BeyondFurther,
    Victim::Moved,
    Victim::MovedForgotten,
];

impl Victim {
    fn is_beyond(self) -> bool {
        matches!(
            self,
            Victim::Beyond
                | Victim::BeyondCoordinator
                | Victim::BeyondHost
                | Victim::BeyondDouble
                | Victim::BeyondService
                | Victim::BeyondFurther
        )
    }

    fn is_moved(self) -> bool {
        matches!(self, Victim::Moved | Victim::MovedForgotten)
    }
}

/// One pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// To Light, or back.
    pub fold: bool,
    /// Of the plan, from 0; one past the end: when it is over.
    pub step: usize,
    /// So long after the ledger has its intent.
    pub after: Ms,
    /// What fails.
    pub victim: Victim,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.fold { "to Light" } else { "to Moderate" };
        write!(f, "{way}, step {} begun {} ms ago: {:?}", self.step, self.after, self.victim)
    }
}

/// How it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tried {
    /// Which.
    pub case: Case,
    /// What it was about.
    pub what: String,
    /// There was such a thing to fail.
    pub struck: bool,
    /// The longest that a virtual IP was without an answer in all, milliseconds.
    pub dark: Ms,
    /// What was broken.
    pub broken: Option<String>,
}

/// Every pair of a transition with so many steps.
#[must_use]
pub fn cases(steps: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for fold in [true, false] {
        for step in 0..=steps {
            for after in [0, 300, 900] {
                cases.extend(VICTIMS.map(|victim| Case { fold, step, after, victim }));
            }
        }
    }
    cases
}

pub(super) fn quiet(night: &mut Night, percent: u64) {
    night.load.values_mut().for_each(|load| *load = percent);
}

/// Everything at rest in Moderate condition.
fn settled(seed: u64) -> Result<Night> {
    let mut night = Night::new(seed, PSS)?;
    quiet(&mut night, BUSY);
    if night.until(60_000, |night| night.held.keys().all(|vip| night.served(*vip))).is_none() {
        let trace: Vec<&str> = night.trace().map(String::as_str).collect();
        bail!("it does not start: {:?}\n{}", night.failure, trace.join("\n"));
    }
    night.run(10_000);
    Ok(night)
}

/// The step that is waited for is begun, or (past the end) the transition is over.
fn is_there(night: &Night, case: Case) -> Option<Option<Step>> {
    let tables = &night.sif.disk.shared.tables;
    let to = if case.fold { Condition::Light } else { Condition::Moderate };
    match &tables.transition {
        Some(row) if case.step < row.steps.len() => {
            let (step, state) = row.steps.get(case.step)?;
            (*state != StepState::Planned).then(|| Some(step.clone()))
        }
        Some(_) => None,
        None => night.all_in(to).then_some(None),
    }
}

fn host_of_step(night: &Night, step: Option<&Step>) -> Option<AgentId> {
    match step? {
        Step::MoveVip { to, .. } => night.runs_on(to).cloned(),
        Step::Migrate { to, .. } => Some(to.clone()),
        Step::SuspendVm { host, .. } | Step::ResumeVm { host, .. } => Some(host.clone()),
        Step::SuspendHost { host } | Step::WakeHost { host } => Some(host.clone()),
    }
}

fn vm_of_step(night: &Night, step: Option<&Step>) -> Option<DomainName> {
    match step {
        Some(Step::MoveVip { to, .. }) => Some(to.clone()),
        Some(Step::Migrate { vm, .. } | Step::SuspendVm { vm, .. } | Step::ResumeVm { vm, .. }) => Some(vm.clone()),
        Some(Step::SuspendHost { .. } | Step::WakeHost { .. }) | None => {
            night.held.keys().find_map(|vip| night.speaker(*vip)?.domain.clone())
        }
    }
}

/// False: there is no such thing here.
fn strike(night: &mut Night, case: Case, step: Option<&Step>, ruined: Option<&DomainName>) -> bool {
    let base = || night.cluster.groups.values().find_map(|group| group.base.clone());
    let host = host_of_step(night, step).or_else(base);
    match (case.victim, host, step) {
        (Victim::Vm, ..) => match vm_of_step(night, step).filter(|vm| night.runs_on(vm).is_some()) {
            Some(vm) => night.kill_vm(&vm),
            None => return false,
        },
        (Victim::Source, _, Some(Step::Migrate { from, .. })) => night.lose_power(from, Some(60_000)),
        (Victim::Source, ..) => return false,
        (Victim::Base, ..) => match base() {
            Some(base) => night.lose_power(&base, Some(60_000)),
            None => return false,
        },
        (Victim::Host, Some(host), _) => night.lose_power(&host, Some(60_000)),
        (Victim::CutHost, Some(host), _) => return night.cut_off(&host, false, CUT),
        (Victim::CutSource, _, Some(Step::Migrate { from, .. })) => return night.cut_off(from, false, CUT),
        (Victim::CutBase, ..) => return base().is_some_and(|base| night.cut_off(&base, false, CUT)),
        (Victim::CutArrived, _, Some(Step::Migrate { to, .. })) => return night.cut_off(to, true, CUT),
        (Victim::CutUnsaid, _, Some(Step::Migrate { vm, from, to })) if night.migrations.contains_key(vm) => {
            night.crash_agent(from, 2_000);
            return night.cut_off(to, true, CUT);
        }
        (Victim::CutLeft, _, Some(Step::Migrate { from, .. })) => return night.cut_off(from, true, CUT),
        (Victim::CutHost | Victim::CutSource | Victim::CutArrived | Victim::CutUnsaid | Victim::CutLeft, ..) => {
            return false;
        }
        (Victim::Agent, Some(host), _) if night.is_on(&host) => night.crash_agent(&host, 2_000),
        (Victim::Host, None, _) | (Victim::Agent, ..) => return false,
        (Victim::Coordinator, ..) => {
            night.crash_msbs(3_000);
            night.crash_pss(3_000);
        }
        (
            Victim::Beyond
            | Victim::BeyondCoordinator
            | Victim::BeyondHost
            | Victim::BeyondDouble
            | Victim::BeyondService
            | Victim::BeyondFurther,
            ..,
        ) => match ruined {
            Some(vm) => night.ruin(vm),
            None => return false,
        },
        (Victim::Moved | Victim::MovedForgotten, ..) => return ruined.is_some_and(|vm| night.fail_over(vm)),
        (Victim::Saving, ..) => night.crash_pss(3_000),
        (Victim::Sif, ..) => night.crash_sif(3_000),
    }
    true
}

/// What must be so when everything is at rest again; none: it is.
fn unsettled(night: &Night) -> Option<String> {
    let tables = &night.sif.disk.shared.tables;
    if tables.transition.is_some() {
        return Some("a transition is under way".into());
    }
    if let Some((claim, row)) = tables.claims.first_key_value() {
        return Some(format!("{claim} is claimed by {}", row.by));
    }
    if let Some((vm, hosts)) = tables.may_be_on.first_key_value() {
        return Some(format!("{vm} may be on {hosts:?}"));
    }
    if let Some(host) = night.machines.iter().find(|(_, machine)| machine.cut).map(|(host, _)| host) {
        return Some(format!("{host} is cut off"));
    }
    if let Some(vip) = night.held.keys().find(|vip| !night.served(**vip)) {
        return Some(format!("{vip} is served by nobody"));
    }
    for (place, row) in tables.operation.iter().chain(&tables.suspend) {
        let suspended = tables.suspend.contains_key(place);
        if row.vm != *place {
            return Some(format!("{} stands in for {place}", row.vm));
        }
        let run = night.run_of(&row.vm, &row.host);
        let power = night.machines.get(&row.host).map(|machine| machine.power);
        match (run, power) {
            (Some(Run::Runs(_)), Some(Power::On)) if !suspended => {}
            (Some(_), Some(Power::Asleep)) if suspended => {}
            // Its host lost its power meanwhile: it is started when it is wanted.
            (Some(Run::Paused) | None, Some(Power::On)) if suspended => {}
            _ => {
                let table = if suspended { "suspended" } else { "in operation" };
                return Some(format!(
                    "{} is {table} on {} in the tables, but there it is {run:?}, {power:?}",
                    row.vm, row.host
                ));
            }
        }
    }
    for (host, row) in &tables.real_servers {
        let asleep = night.machines.get(host).is_some_and(|machine| machine.power == Power::Asleep);
        if asleep != row.asleep_since_unix_ms.is_some() {
            return Some(format!("{host} is not as the tables have it"));
        }
    }
    None
}

fn rest(night: &mut Night, what: &str) -> Result<(), String> {
    let rested = night.until(SETTLED, |night| unsettled(night).is_none());
    match (&night.failure, rested) {
        (Some(broken), _) => Err(broken.clone()),
        (None, Some(_)) => Ok(()),
        (None, None) => Err(format!("{what}, after {} s: {}", SETTLED / 1000, unsettled(night).unwrap_or_default())),
    }
}

/// One pair, in a night of its own: the fault, everything restored, and the whole way there and back once more.
///
/// # Errors
/// The configuration's.
pub fn run_case(case: Case, seed: u64) -> Result<(Tried, Night)> {
    let mut night = settled(seed)?;
    quiet(&mut night, QUIET);
    if !case.fold {
        if night.until(SETTLED, |night| night.all_in(Condition::Light) && night.settled()).is_none() {
            bail!("it does not get to Light: {:?}", night.failure);
        }
        night.run(10_000);
        quiet(&mut night, BUSY);
    }
    let mut tried = Tried { case, what: String::new(), struck: false, dark: 0, broken: None };
    if night.until(SETTLED, |night| is_there(night, case).is_some()).is_none() {
        tried.broken = Some(night.failure.clone().unwrap_or_else(|| "the step was never begun".into()));
        return Ok((tried, night));
    }
    let step = is_there(&night, case).flatten();
    night.run(case.after);
    tried.what = step.as_ref().map_or("it is over".into(), ToString::to_string);
    night.say(format_args!("---- {case}: {}", tried.what));
    let before = night.dark.clone();
    // One that is about to be suspended is nobody's to look at until it is resumed.
    let suspends = matches!(step, Some(Step::SuspendVm { .. }));
    let ruined = vm_of_step(&night, step.as_ref())
        .filter(|vm| (case.victim.is_beyond() || case.victim.is_moved()) && !suspends && night.runs_on(vm).is_some());
    tried.struck = strike(&mut night, case, step.as_ref(), ruined.as_ref());
    if tried.struck {
        let checks = |night: &mut Night, tried: &mut Tried| -> Result<(), String> {
            night.run(1_000);
            if let Some(vm) = ruined.as_ref().filter(|_| case.victim.is_moved()) {
                until_moved_back(night, vm, case.victim)?;
            } else if let Some(vm) = &ruined {
                until_repaired(night, vm, case.victim)?;
            }
            rest(night, "not restored")?;
            let dark = |(vip, dark): (&_, &Ms)| dark - before.get(vip).copied().unwrap_or(0);
            tried.dark = night.dark.iter().map(dark).max().unwrap_or(0);
            if tried.dark > DARK {
                return Err(format!("a virtual IP was without an answer for {} s", tried.dark / 1000));
            }
            // And it all works on.
            quiet(night, BUSY);
            night.until(SETTLED, |night| night.all_in(Condition::Moderate) && night.settled());
            rest(night, "not back in Moderate")?;
            let away = |night: &Night| {
                night.sif.disk.shared.tables.operation.values().find(|row| row.host != row.home).cloned()
            };
            night.until(SETTLED, |night| away(night).is_none() && night.all_in(Condition::Moderate));
            if let Some(row) = away(night).filter(|_| night.failure.is_none()) {
                return Err(format!("{} stays on {}", row.vm, row.host));
            }
            quiet(night, QUIET);
            night.until(SETTLED, |night| night.all_in(Condition::Light) && night.settled());
            if !night.all_in(Condition::Light) {
                return Err(night.failure.clone().unwrap_or_else(|| "it does not get to Light any more".into()));
            }
            rest(night, "not at rest in Light")
        };
        tried.broken = checks(&mut night, &mut tried).err();
    }
    Ok((tried, night))
}

/// Steps of the whole transition.
///
/// # Errors
/// The configuration's; it does not get to Light without any fault.
pub fn steps(seed: u64) -> Result<usize> {
    let mut night = settled(seed)?;
    quiet(&mut night, QUIET);
    let begun = night.until(SETTLED, |night| !night.settled());
    let steps = night.sif.disk.shared.tables.transition.as_ref().map_or(0, |row| row.steps.len());
    if begun.is_none() || night.until(SETTLED, |night| night.all_in(Condition::Light) && night.settled()).is_none() {
        bail!("it does not get to Light: {:?}, {:?}", night.failure, unsettled(&night));
    }
    Ok(steps)
}
