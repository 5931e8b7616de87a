//! The shared tables between the wire and the types of the contract. SIF checks rows when it writes them: what can't be
//! read is left out.

use super::inventory::Ledger;
use kage_proto::sif::v1::{
    self, Claim as WireClaim, OperationRow as WireOperation, Step as WireStep, Tables as WireTables, VmOnHost,
    claim::What, step::Step as Kind,
};
use kage_types::{
    Claim, ClaimRow, Condition, DomainName, MigrationRow, OperationRow, RealServerRow, Revision, StateRow, Step,
    StepState, Tables, TransitionRow,
};

pub fn condition(condition: Condition) -> v1::Condition {
    match condition {
        Condition::Light => v1::Condition::Light,
        Condition::Moderate => v1::Condition::Moderate,
        Condition::Heavy => v1::Condition::Heavy,
    }
}

fn read_condition(value: i32) -> Option<Condition> {
    match v1::Condition::try_from(value).ok()? {
        v1::Condition::Light => Some(Condition::Light),
        v1::Condition::Moderate => Some(Condition::Moderate),
        v1::Condition::Heavy => Some(Condition::Heavy),
        v1::Condition::Unspecified => None,
    }
}

pub fn step(step: &Step) -> WireStep {
    let on = |vm: &DomainName, host: &kage_types::AgentId| VmOnHost { vm: vm.to_string(), host: host.to_string() };
    let kind = match step {
        Step::MoveVip { vip, from, to } => {
            Kind::MoveVip(v1::MoveVip { vip: vip.to_string(), from: from.to_string(), to: to.to_string() })
        }
        Step::Migrate { vm, from, to } => {
            Kind::Migrate(v1::Migrate { vm: vm.to_string(), from: from.to_string(), to: to.to_string() })
        }
        Step::SuspendVm { vm, host } => Kind::SuspendVm(on(vm, host)),
        Step::ResumeVm { vm, host } => Kind::ResumeVm(on(vm, host)),
        Step::SuspendHost { host } => Kind::SuspendHost(host.to_string()),
        Step::WakeHost { host } => Kind::WakeHost(host.to_string()),
    };
    WireStep { step: Some(kind) }
}

fn read_step(step: WireStep) -> Option<Step> {
    Some(match step.step? {
        Kind::MoveVip(it) => {
            Step::MoveVip { vip: it.vip.parse().ok()?, from: it.from.parse().ok()?, to: it.to.parse().ok()? }
        }
        Kind::Migrate(it) => {
            Step::Migrate { vm: it.vm.parse().ok()?, from: it.from.parse().ok()?, to: it.to.parse().ok()? }
        }
        Kind::SuspendVm(it) => Step::SuspendVm { vm: it.vm.parse().ok()?, host: it.host.parse().ok()? },
        Kind::ResumeVm(it) => Step::ResumeVm { vm: it.vm.parse().ok()?, host: it.host.parse().ok()? },
        Kind::SuspendHost(host) => Step::SuspendHost { host: host.parse().ok()? },
        Kind::WakeHost(host) => Step::WakeHost { host: host.parse().ok()? },
    })
}

fn read_state(value: i32) -> Option<StepState> {
    match v1::StepState::try_from(value).ok()? {
        v1::StepState::Planned => Some(StepState::Planned),
        v1::StepState::Begun => Some(StepState::Begun),
        v1::StepState::Done => Some(StepState::Done),
        v1::StepState::UndoBegun => Some(StepState::UndoBegun),
        v1::StepState::Undone => Some(StepState::Undone),
        v1::StepState::Unspecified => None,
    }
}

fn read_claim(claim: WireClaim) -> Option<Claim> {
    Some(match claim.what? {
        What::Host(host) => Claim::Host(host.parse().ok()?),
        What::Vm(vm) => Claim::Vm(vm.parse().ok()?),
        What::Vip(vip) => Claim::Vip(vip.parse().ok()?),
    })
}

fn read_operation(row: WireOperation) -> Option<(DomainName, OperationRow)> {
    let group = if row.group.is_empty() { None } else { Some(row.group.parse().ok()?) };
    let home_vips = row.home_vips.iter().filter_map(|vip| vip.parse().ok()).collect();
    let (vm, host, home) = (row.vm.parse().ok()?, row.host.parse().ok()?, row.home.parse().ok()?);
    Some((row.place.parse().ok()?, OperationRow { group, vm, host, home, home_vips }))
}

fn read_transition(row: v1::TransitionRow) -> Option<TransitionRow> {
    let steps = row.steps.into_iter().map(|it| Some((read_step(it.step?)?, read_state(it.state)?)));
    let groups = row.groups.into_iter().map(|it| {
        Some((it.group.parse().ok()?, (read_condition(it.before)?, read_condition(it.after)?)))
    });
    Some(TransitionRow {
        id: row.id,
        by: row.by,
        plan: row.plan,
        steps: steps.collect::<Option<_>>()?,
        groups: groups.collect::<Option<_>>()?,
    })
}

/// All of it.
pub fn ledger(tables: WireTables) -> Ledger {
    let vips = tables.vips.iter().filter_map(|row| {
        let domain = if row.domain.is_empty() { None } else { Some(row.domain.parse().ok()?) };
        Some((row.vip.parse().ok()?, (row.owner.parse().ok()?, domain)))
    });
    let vips = vips.collect();
    let tables = Tables {
        revision: Revision(tables.revision),
        operation: tables.operation.into_iter().filter_map(read_operation).collect(),
        suspend: tables.suspend.into_iter().filter_map(read_operation).collect(),
        live_migration: tables
            .live_migration
            .into_iter()
            .filter_map(|row| {
                let away = MigrationRow { vm: row.vm.parse().ok()?, original_host: row.original_host.parse().ok()? };
                Some((row.place.parse().ok()?, away))
            })
            .collect(),
        real_servers: tables
            .real_servers
            .into_iter()
            .filter_map(|row| {
                let (asleep_since_unix_ms, wake_took_ms) = (row.asleep_since_unix_ms, row.wake_took_ms);
                Some((row.host.parse().ok()?, RealServerRow { asleep_since_unix_ms, wake_took_ms }))
            })
            .collect(),
        state: tables
            .state
            .into_iter()
            .filter_map(|row| {
                let base = if row.base.is_empty() { None } else { Some(row.base.parse().ok()?) };
                Some((row.group.parse().ok()?, StateRow { condition: read_condition(row.condition)?, base }))
            })
            .collect(),
        placement: tables
            .placement
            .into_iter()
            .filter_map(|row| Some((row.vip.parse().ok()?, row.vm.parse().ok()?)))
            .collect(),
        claims: tables
            .claims
            .into_iter()
            .filter_map(|row| Some((read_claim(row.claim?)?, ClaimRow { by: row.by, why: row.why })))
            .collect(),
        transition: tables.transition.and_then(read_transition),
    };
    Ledger { tables, vips }
}
