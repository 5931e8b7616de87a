//! The shared tables (thesis ch. 4) on the wire and as [`kage_types::Tables`]: for SIF, which sends them, and for
//! controllers, which read them.
//!
//! Into the contract's words with `From`, out of them with `TryFrom`: names and addresses are checked, a list that names
//! a thing twice is refused.

use crate::sif::v1 as proto;
use kage_types::{
    AgentId, Claim, ClaimRow, Condition, DomainName, GroupName, MigrationRow, OperationRow, RealServerRow, Revision,
    StateRow, Step, StepState, Tables, TransitionRow, Vip,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    str::FromStr,
};

/// A field that is not as the contract says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Its name.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl From<FieldError> for tonic::Status {
    fn from(error: FieldError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

fn wrong(field: &'static str, reason: impl Into<String>) -> FieldError {
    FieldError { field, reason: reason.into() }
}

fn missing(field: &'static str) -> FieldError {
    wrong(field, "is missing")
}

/// A name or an address.
///
/// # Errors
/// None, or no good one.
pub fn parse<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<T, FieldError> {
    text.parse().map_err(|error: T::Err| wrong(field, error.to_string()))
}

fn optional<T: FromStr<Err: Display>>(field: &'static str, text: &str) -> Result<Option<T>, FieldError> {
    if text.is_empty() { Ok(None) } else { parse(field, text).map(Some) }
}

/// Names or addresses, each once.
///
/// # Errors
/// One that is none, or is there twice.
pub fn set<T: FromStr<Err: Display> + Ord>(field: &'static str, texts: &[String]) -> Result<BTreeSet<T>, FieldError> {
    let mut all = BTreeSet::new();
    for text in texts {
        if !all.insert(parse(field, text)?) {
            return Err(wrong(field, format!("{text} is there twice")));
        }
    }
    Ok(all)
}

/// Rows by their key, each key once.
fn rows<R, K: Ord + Display, V>(
    field: &'static str,
    rows: impl IntoIterator<Item = R>,
    row: impl Fn(R) -> Result<(K, V), FieldError>,
) -> Result<BTreeMap<K, V>, FieldError> {
    let mut all = BTreeMap::new();
    for each in rows {
        let (key, value) = row(each)?;
        if all.contains_key(&key) {
            return Err(wrong(field, format!("{key} is there twice")));
        }
        all.insert(key, value);
    }
    Ok(all)
}

impl From<Condition> for proto::Condition {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Light => proto::Condition::Light,
            Condition::Moderate => proto::Condition::Moderate,
            Condition::Heavy => proto::Condition::Heavy,
        }
    }
}

fn condition(field: &'static str, number: i32) -> Result<Condition, FieldError> {
    match proto::Condition::try_from(number) {
        Ok(proto::Condition::Light) => Ok(Condition::Light),
        Ok(proto::Condition::Moderate) => Ok(Condition::Moderate),
        Ok(proto::Condition::Heavy) => Ok(Condition::Heavy),
        Ok(proto::Condition::Unspecified) | Err(_) => Err(wrong(field, format!("{number} is no condition"))),
    }
}

impl From<StepState> for proto::StepState {
    fn from(state: StepState) -> Self {
        match state {
            StepState::Planned => proto::StepState::Planned,
            StepState::Begun => proto::StepState::Begun,
            StepState::Done => proto::StepState::Done,
            StepState::UndoBegun => proto::StepState::UndoBegun,
            StepState::Undone => proto::StepState::Undone,
        }
    }
}

/// A step's state as a message holds it.
///
/// # Errors
/// A number that the contract does not know, or 0.
pub fn step_state(number: i32) -> Result<StepState, FieldError> {
    match proto::StepState::try_from(number) {
        Ok(proto::StepState::Planned) => Ok(StepState::Planned),
        Ok(proto::StepState::Begun) => Ok(StepState::Begun),
        Ok(proto::StepState::Done) => Ok(StepState::Done),
        Ok(proto::StepState::UndoBegun) => Ok(StepState::UndoBegun),
        Ok(proto::StepState::Undone) => Ok(StepState::Undone),
        Ok(proto::StepState::Unspecified) | Err(_) => Err(wrong("state", format!("{number} is no state of a step"))),
    }
}

impl From<&Claim> for proto::Claim {
    fn from(claim: &Claim) -> Self {
        let what = match claim {
            Claim::Host(host) => proto::claim::What::Host(host.to_string()),
            Claim::Vm(vm) => proto::claim::What::Vm(vm.to_string()),
            Claim::Vip(vip) => proto::claim::What::Vip(vip.to_string()),
        };
        proto::Claim { what: Some(what) }
    }
}

impl TryFrom<&proto::Claim> for Claim {
    type Error = FieldError;
    fn try_from(claim: &proto::Claim) -> Result<Self, FieldError> {
        Ok(match claim.what.as_ref().ok_or_else(|| missing("claim.what"))? {
            proto::claim::What::Host(host) => Claim::Host(parse("claim.host", host)?),
            proto::claim::What::Vm(vm) => Claim::Vm(parse("claim.vm", vm)?),
            proto::claim::What::Vip(vip) => Claim::Vip(parse("claim.vip", vip)?),
        })
    }
}

impl From<&Step> for proto::Step {
    fn from(step: &Step) -> Self {
        use proto::step::Step as Wire;
        let on = |vm: &DomainName, host: &AgentId| proto::VmOnHost { vm: vm.to_string(), host: host.to_string() };
        let step = match step {
            Step::MoveVip { vip, from, to } => {
                Wire::MoveVip(proto::MoveVip { vip: vip.to_string(), from: from.to_string(), to: to.to_string() })
            }
            Step::Migrate { vm, from, to } => {
                Wire::Migrate(proto::Migrate { vm: vm.to_string(), from: from.to_string(), to: to.to_string() })
            }
            Step::SuspendVm { vm, host } => Wire::SuspendVm(on(vm, host)),
            Step::ResumeVm { vm, host } => Wire::ResumeVm(on(vm, host)),
            Step::SuspendHost { host } => Wire::SuspendHost(host.to_string()),
            Step::WakeHost { host } => Wire::WakeHost(host.to_string()),
        };
        proto::Step { step: Some(step) }
    }
}

impl TryFrom<&proto::Step> for Step {
    type Error = FieldError;
    fn try_from(step: &proto::Step) -> Result<Self, FieldError> {
        use proto::step::Step as Wire;
        let (vm, host) = ("step.vm", "step.host");
        Ok(match step.step.as_ref().ok_or_else(|| missing("step.step"))? {
            Wire::MoveVip(step) => Step::MoveVip {
                vip: parse("step.vip", &step.vip)?,
                from: parse("step.from", &step.from)?,
                to: parse("step.to", &step.to)?,
            },
            Wire::Migrate(step) => Step::Migrate {
                vm: parse(vm, &step.vm)?,
                from: parse("step.from", &step.from)?,
                to: parse("step.to", &step.to)?,
            },
            Wire::SuspendVm(step) => Step::SuspendVm { vm: parse(vm, &step.vm)?, host: parse(host, &step.host)? },
            Wire::ResumeVm(step) => Step::ResumeVm { vm: parse(vm, &step.vm)?, host: parse(host, &step.host)? },
            Wire::SuspendHost(name) => Step::SuspendHost { host: parse(host, name)? },
            Wire::WakeHost(name) => Step::WakeHost { host: parse(host, name)? },
        })
    }
}

impl From<(&DomainName, &OperationRow)> for proto::OperationRow {
    fn from((place, row): (&DomainName, &OperationRow)) -> Self {
        proto::OperationRow {
            place: place.to_string(),
            group: row.group.as_ref().map(ToString::to_string).unwrap_or_default(),
            vm: row.vm.to_string(),
            host: row.host.to_string(),
            home: row.home.to_string(),
            home_vips: row.home_vips.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Rows of the Operation or Suspend table, by place.
///
/// # Errors
/// A name or address that is none, or a place twice.
pub fn operation(list: &[proto::OperationRow]) -> Result<BTreeMap<DomainName, OperationRow>, FieldError> {
    rows("operation.place", list, |row| {
        let value = OperationRow {
            group: optional("operation.group", &row.group)?,
            vm: parse("operation.vm", &row.vm)?,
            host: parse("operation.host", &row.host)?,
            home: parse("operation.home", &row.home)?,
            home_vips: set("operation.home_vips", &row.home_vips)?,
        };
        Ok((parse("operation.place", &row.place)?, value))
    })
}

impl From<(&GroupName, &StateRow)> for proto::StateRow {
    fn from((group, row): (&GroupName, &StateRow)) -> Self {
        proto::StateRow {
            group: group.to_string(),
            condition: proto::Condition::from(row.condition).into(),
            base: row.base.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

/// Rows of the State table, by group.
///
/// # Errors
/// A name that is none, no condition, or a group twice.
pub fn state(list: &[proto::StateRow]) -> Result<BTreeMap<GroupName, StateRow>, FieldError> {
    rows("state.group", list, |row| {
        let value = StateRow {
            condition: condition("state.condition", row.condition)?,
            base: optional("state.base", &row.base)?,
        };
        Ok((parse("state.group", &row.group)?, value))
    })
}

impl From<(&GroupName, &(Condition, Condition))> for proto::GroupChange {
    fn from((group, (before, after)): (&GroupName, &(Condition, Condition))) -> Self {
        proto::GroupChange {
            group: group.to_string(),
            before: proto::Condition::from(*before).into(),
            after: proto::Condition::from(*after).into(),
        }
    }
}

/// Conditions before and after, by group.
///
/// # Errors
/// A name that is none, no condition, or a group twice.
pub fn group_changes(list: &[proto::GroupChange]) -> Result<BTreeMap<GroupName, (Condition, Condition)>, FieldError> {
    rows("groups.group", list, |row| {
        let value = (condition("groups.before", row.before)?, condition("groups.after", row.after)?);
        Ok((parse("groups.group", &row.group)?, value))
    })
}

/// Steps in order.
///
/// # Errors
/// One that is none.
pub fn steps(list: &[proto::Step]) -> Result<Vec<Step>, FieldError> {
    list.iter().map(Step::try_from).collect()
}

/// Claims, each once.
///
/// # Errors
/// One that is none.
pub fn claims(list: &[proto::Claim]) -> Result<BTreeSet<Claim>, FieldError> {
    list.iter().map(Claim::try_from).collect()
}

impl From<&TransitionRow> for proto::TransitionRow {
    fn from(row: &TransitionRow) -> Self {
        let step = |(step, state): &(Step, StepState)| proto::TransitionStep {
            step: Some(step.into()),
            state: proto::StepState::from(*state).into(),
        };
        proto::TransitionRow {
            id: row.id,
            by: row.by.clone(),
            plan: row.plan.clone(),
            steps: row.steps.iter().map(step).collect(),
            groups: row.groups.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&proto::TransitionRow> for TransitionRow {
    type Error = FieldError;
    fn try_from(row: &proto::TransitionRow) -> Result<Self, FieldError> {
        let step = |step: &proto::TransitionStep| {
            let what = step.step.as_ref().ok_or_else(|| missing("transition.steps.step"))?;
            Ok((what.try_into()?, step_state(step.state)?))
        };
        Ok(TransitionRow {
            id: row.id,
            by: row.by.clone(),
            plan: row.plan.clone(),
            steps: row.steps.iter().map(step).collect::<Result<_, FieldError>>()?,
            groups: group_changes(&row.groups)?,
        })
    }
}

/// Without virtual IPs and troubles, which are no part of [`Tables`].
impl From<&Tables> for proto::Tables {
    fn from(tables: &Tables) -> Self {
        proto::Tables {
            revision: tables.revision.0,
            operation: tables.operation.iter().map(Into::into).collect(),
            suspend: tables.suspend.iter().map(Into::into).collect(),
            live_migration: (tables.live_migration.iter())
                .map(|(place, row)| proto::MigrationRow {
                    place: place.to_string(),
                    vm: row.vm.to_string(),
                    original_host: row.original_host.to_string(),
                })
                .collect(),
            displaced: (tables.displaced.iter())
                .map(|(place, host)| proto::DisplacedRow { place: place.to_string(), host: host.to_string() })
                .collect(),
            may_be_on: (tables.may_be_on.iter())
                .map(|(vm, hosts)| proto::MayBeOnRow {
                    vm: vm.to_string(),
                    hosts: hosts.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            real_servers: (tables.real_servers.iter())
                .map(|(host, row)| proto::RealServerRow {
                    host: host.to_string(),
                    asleep_since_unix_ms: row.asleep_since_unix_ms,
                    wake_took_ms: row.wake_took_ms,
                })
                .collect(),
            state: tables.state.iter().map(Into::into).collect(),
            placement: (tables.placement.iter())
                .map(|(vip, vm)| proto::PlacementRow { vip: vip.to_string(), vm: vm.to_string() })
                .collect(),
            claims: (tables.claims.iter())
                .map(|(claim, row)| proto::ClaimRow {
                    claim: Some(claim.into()),
                    by: row.by.clone(),
                    why: row.why.clone(),
                })
                .collect(),
            transition: tables.transition.as_ref().map(Into::into),
            vips: Vec::new(),
            troubles: Vec::new(),
        }
    }
}

/// Virtual IPs and troubles are left out: they are no part of [`Tables`].
impl TryFrom<&proto::Tables> for Tables {
    type Error = FieldError;
    fn try_from(tables: &proto::Tables) -> Result<Self, FieldError> {
        Ok(Tables {
            revision: Revision(tables.revision),
            operation: operation(&tables.operation)?,
            suspend: operation(&tables.suspend)?,
            live_migration: rows("live_migration.place", &tables.live_migration, |row| {
                let value = MigrationRow {
                    vm: parse("live_migration.vm", &row.vm)?,
                    original_host: parse("live_migration.original_host", &row.original_host)?,
                };
                Ok((parse::<DomainName>("live_migration.place", &row.place)?, value))
            })?,
            displaced: rows("displaced.place", &tables.displaced, |row| {
                let place = parse::<DomainName>("displaced.place", &row.place)?;
                Ok((place, parse::<AgentId>("displaced.host", &row.host)?))
            })?,
            may_be_on: rows("may_be_on.vm", &tables.may_be_on, |row| {
                Ok((parse::<DomainName>("may_be_on.vm", &row.vm)?, set("may_be_on.hosts", &row.hosts)?))
            })?,
            real_servers: rows("real_servers.host", &tables.real_servers, |row| {
                let value =
                    RealServerRow { asleep_since_unix_ms: row.asleep_since_unix_ms, wake_took_ms: row.wake_took_ms };
                Ok((parse::<AgentId>("real_servers.host", &row.host)?, value))
            })?,
            state: state(&tables.state)?,
            placement: rows("placement.vip", &tables.placement, |row| {
                Ok((parse::<Vip>("placement.vip", &row.vip)?, parse("placement.vm", &row.vm)?))
            })?,
            claims: rows("claims.claim", &tables.claims, |row| {
                let claim: Claim = row.claim.as_ref().ok_or_else(|| missing("claims.claim"))?.try_into()?;
                Ok((claim, ClaimRow { by: row.by.clone(), why: row.why.clone() }))
            })?,
            transition: tables.transition.as_ref().map(TransitionRow::try_from).transpose()?,
        })
    }
}

#[cfg(test)]
#[path = "tables_tests.rs"]
mod tests;
