//! The ledger as it comes: the shared tables, and who holds which virtual IP.

use super::inventory::Ledger;
use kage_proto::{
    sif::v1::{self, VipRow},
    tables::FieldError,
};
use kage_types::{Condition, Tables};

/// All of it.
///
/// # Errors
/// Tables that this version can't read: nothing is begun on half of them. A virtual IP's row that can't be read holds
/// nothing.
pub fn ledger(tables: &v1::Tables) -> Result<Ledger, FieldError> {
    let holder = |row: &VipRow| {
        let domain = if row.domain.is_empty() { None } else { Some(row.domain.parse().ok()?) };
        Some((row.vip.parse().ok()?, (row.owner.parse().ok()?, domain)))
    };
    Ok(Ledger { vips: tables.vips.iter().filter_map(holder).collect(), tables: Tables::try_from(tables)? })
}

pub fn condition(condition: Condition) -> i32 {
    v1::Condition::from(condition).into()
}
