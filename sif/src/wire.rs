//! Contract and core: checks on the way in, status codes on the way out.
//!
//! | refusal | code | `kage-reason` | `kage-current` |
//! |---|---|---|---|
//! | a majority must report first | FAILED_PRECONDITION | reports-needed | how many more |
//! | a higher term exists | FAILED_PRECONDITION | stale-term | the term |
//! | a term above the ledger's | FAILED_PRECONDITION | unknown-term | the term |
//! | the epoch is another | ABORTED | conflict | the epoch |
//! | no such VIP | NOT_FOUND | unknown-vip | |
//! | the tables have changed since the plan | ABORTED | stale-generation | their revision |
//! | another transition | ABORTED | transition-under-way | its id |
//! | a recovery needs it | ABORTED | claimed | |
//! | no longer under way | NOT_FOUND | other-transition | the id of the one that is |
//! | another process carries it out | ABORTED | other-process | |
//! | no such place, virtual server, group, real server | NOT_FOUND | unknown | |
//! | a step's ground has changed | ABORTED | not-as-planned | |
//! | a signal contradicts itself | INVALID_ARGUMENT | invalid | |
//! | no such agent, damaged report | INVALID_ARGUMENT | unknown-reporter, implausible | |
//! | a named limit, the queue | RESOURCE_EXHAUSTED | limit, busy | |
//! | disk, stop | UNAVAILABLE | unavailable | |
//!
//! UNAVAILABLE, DEADLINE_EXCEEDED and a broken connection leave it open whether the change was made: repeat it.

use crate::driver::{Stopped, SubscribeError};
use kage_proto::sif::v1 as proto;
use kage_sif_core::{Change, Ledger, Refusal, Report, Stamped, TroubleRow, VipRow};
use kage_types::{Epoch, Order, TargetName, Term, Vip};
use std::{collections::BTreeMap, fmt::Display, str::FromStr};
use tonic::{Code, Status, metadata::MetadataValue};

/// Metadata of a refusal: which one, for programs.
pub const REASON_KEY: &str = "kage-reason";
/// Metadata of a refusal: the number that would have been right.
pub const CURRENT_KEY: &str = "kage-current";

pub(crate) fn refused(refusal: &Refusal) -> Status {
    let (code, reason, current) = match refusal {
        Refusal::NeedsReports { needed } => (Code::FailedPrecondition, "reports-needed", Some(u64::from(*needed))),
        Refusal::StaleTerm { current, .. } => (Code::FailedPrecondition, "stale-term", Some(current.0)),
        Refusal::UnknownTerm { current, .. } => (Code::FailedPrecondition, "unknown-term", Some(current.0)),
        Refusal::Conflict { current, .. } => (Code::Aborted, "conflict", Some(current.0)),
        Refusal::UnknownVip { .. } => (Code::NotFound, "unknown-vip", None),
        Refusal::Overtaken { latest, .. } => (Code::Aborted, "overtaken", Some(*latest)),
        Refusal::StaleGeneration { current, .. } => (Code::Aborted, "stale-generation", Some(current.0)),
        Refusal::UnderWay { id, .. } => (Code::Aborted, "transition-under-way", Some(*id)),
        Refusal::Claimed { .. } => (Code::Aborted, "claimed", None),
        Refusal::NoTransition { under_way, .. } => (Code::NotFound, "other-transition", *under_way),
        Refusal::OtherProcess { .. } => (Code::Aborted, "other-process", None),
        Refusal::Unknown { .. } => (Code::NotFound, "unknown", None),
        Refusal::NotAsPlanned { .. } => (Code::Aborted, "not-as-planned", None),
        Refusal::Invalid { .. } => (Code::InvalidArgument, "invalid", None),
        Refusal::UnknownReporter { .. } => (Code::InvalidArgument, "unknown-reporter", None),
        Refusal::Implausible { .. } => (Code::InvalidArgument, "implausible", None),
        Refusal::TooMuch { .. } => (Code::ResourceExhausted, "limit", None),
        Refusal::Busy { .. } => (Code::ResourceExhausted, "busy", None),
        Refusal::Unavailable { .. } => (Code::Unavailable, "unavailable", None),
    };
    let mut status = Status::new(code, format!("{reason}: {refusal}"));
    status.metadata_mut().insert(REASON_KEY, MetadataValue::from_static(reason));
    if let Some(current) = current {
        status.metadata_mut().insert(CURRENT_KEY, current.into());
    }
    status
}

pub(crate) fn stopped(stopped: Stopped) -> Status {
    Status::unavailable(stopped.to_string())
}

pub(crate) fn not_subscribed(error: &SubscribeError) -> Status {
    match error {
        SubscribeError::Stopped(error) => stopped(*error),
        SubscribeError::Unknown { .. } => Status::out_of_range(error.to_string()),
        SubscribeError::Full => Status::resource_exhausted(error.to_string()),
    }
}

/// One field of a request.
pub(crate) fn field<T: FromStr<Err: Display>>(name: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{name}: {error}")))
}

/// A field that may be left empty.
pub(crate) fn optional<T: FromStr<Err: Display>>(name: &str, text: &str) -> Result<Option<T>, Status> {
    if text.is_empty() { Ok(None) } else { field(name, text).map(Some) }
}

pub(crate) fn report(highest_term: u64, epochs: &[proto::EpochReport]) -> Result<Report, Status> {
    let mut report = Report { highest_term: Term(highest_term), epochs: BTreeMap::new() };
    for row in epochs {
        let known = report.epochs.entry(field::<Vip>("epochs.vip", &row.vip)?).or_default();
        *known = (*known).max(Epoch(row.epoch));
    }
    Ok(report)
}

pub(crate) fn ledger(ledger: &Ledger) -> proto::Ledger {
    proto::Ledger {
        revision: ledger.revision.0,
        term: ledger.term.0,
        established: ledger.is_established(),
        vips: ledger.vips.iter().map(|(vip, row)| vip_row(*vip, row)).collect(),
        troubles: ledger.troubles.iter().map(|(target, row)| trouble_row(target, row)).collect(),
        orders: ledger.orders.values().map(order_row).collect(),
    }
}

fn vip_row(vip: Vip, row: &VipRow) -> proto::VipRow {
    proto::VipRow {
        vip: vip.to_string(),
        epoch: row.epoch.0,
        owner: row.owner.to_string(),
        domain: row.domain.as_ref().map(ToString::to_string).unwrap_or_default(),
        target: row.target.to_string(),
        cause: row.cause.to_string(),
        long_lease: row.long_lease,
    }
}

fn trouble_row(target: &TargetName, row: &TroubleRow) -> proto::TroubleRow {
    proto::TroubleRow {
        target: target.to_string(),
        stage: row.stage.to_string(),
        detail: row.detail.clone(),
        since_unix_ms: row.since_unix_ms,
    }
}

fn order_row(order: &Order) -> proto::OrderRow {
    proto::OrderRow {
        scope: order.scope.to_string(),
        reason: order.reason.clone(),
        who: order.who.clone(),
        since_unix_ms: order.since_unix_ms,
        until_unix_ms: order.until_unix_ms,
    }
}

/// An order as asked for.
pub(crate) fn order(row: Option<proto::OrderRow>) -> Result<Order, Status> {
    let row = row.ok_or_else(|| Status::invalid_argument("order: is missing"))?;
    Ok(Order {
        scope: field("order.scope", &row.scope)?,
        reason: row.reason,
        who: row.who,
        since_unix_ms: row.since_unix_ms,
        until_unix_ms: row.until_unix_ms,
    })
}

/// The shared tables, with who holds which virtual IP, and troubles.
pub(crate) fn tables(ledger: &Ledger) -> proto::Tables {
    proto::Tables {
        vips: ledger.vips.iter().map(|(vip, row)| vip_row(*vip, row)).collect(),
        troubles: ledger.troubles.iter().map(|(target, row)| trouble_row(target, row)).collect(),
        ..proto::Tables::from(&ledger.shared.tables)
    }
}

/// None for a change that is SIF's own: reports, and being established; and for the shared tables.
///
/// # Errors
/// OUT_OF_RANGE after a restored backup, whose lost rows can't be told one by one.
pub(crate) fn change(stamped: &Stamped) -> Result<Option<proto::Change>, Status> {
    let change = match &stamped.change {
        Change::Term { term, .. } => proto::change::Change::Term(term.0),
        Change::Vip { vip, row } => proto::change::Change::Vip(vip_row(*vip, row)),
        Change::Trouble { target, row } => proto::change::Change::Trouble(trouble_row(target, row)),
        Change::TroubleCleared { target } => proto::change::Change::TroubleCleared(target.to_string()),
        Change::Order { order } => proto::change::Change::Order(order_row(order)),
        Change::OrderCleared { scope } => proto::change::Change::OrderCleared(scope.to_string()),
        // The tables are sent whole, by WatchTables.
        Change::Tables { .. } | Change::Reported { .. } | Change::Established { .. } => return Ok(None),
        Change::Restored { .. } => {
            return Err(Status::out_of_range(
                "the ledger turned out to be an old backup: read it with GetLedger and subscribe from its revision",
            ));
        }
    };
    Ok(Some(proto::Change { revision: stamped.revision.0, change: Some(change) }))
}
