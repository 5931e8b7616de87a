//! A copy of the ledger for `kage-sif restore`: one line that says what it is, with its length and checksum, then JSON.

use crate::store::{Store, StoreError};
use kage_proto::roles::Fingerprint;
use kage_sif_core::{Ledger, PLAUSIBLE_LIMIT, ROW_LIMIT};
use kage_types::{Epoch, Vip};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Begins a copy; the number is the format's.
const HEADING: &str = "kagemusha-ledger 1";

/// The largest ledger takes some 20 MB; a longer file is none.
pub const MAX_BYTES: u64 = 64 << 20;

/// What is copied.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    made_unix_ms: u64,
    ledger: Ledger,
}

/// A copy that can't be restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file.
    #[error("{file} can't be read: name a file of `kagectl ledger backup`")]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what was written.
    #[error("{file} is no good copy of a ledger: {reason}; take another copy")]
    Damaged {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The new ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A copy of a ledger as a file.
///
/// # Errors
/// Never, as far as is known: if the ledger can't be written as JSON.
pub fn encode(ledger: &Ledger, made_unix_ms: u64) -> Result<Vec<u8>, serde_json::Error> {
    let body = serde_json::to_vec(&Copy { made_unix_ms, ledger: ledger.clone() })?;
    let mut file = format!("{HEADING} bytes={} sha256={}\n", body.len(), Fingerprint::of(&body)).into_bytes();
    file.extend(body);
    Ok(file)
}

/// The ledger in a copy, and when that was made.
///
/// # Errors
/// In words, what is wrong with it.
pub fn decode(file: &[u8]) -> Result<(Ledger, u64), String> {
    let end = file.iter().take(200).position(|byte| *byte == b'\n').ok_or("it does not begin as one")?;
    let (heading, body) = (String::from_utf8_lossy(&file[..end]), &file[end + 1..]);
    let told = heading.strip_prefix(HEADING).ok_or("it does not begin as one, or is of a later version")?;
    if format!(" bytes={} sha256={}", body.len(), Fingerprint::of(body)) != told {
        return Err("its length or checksum is not what its first line says".to_owned());
    }
    let copy: Copy = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let ledger = copy.ledger;
    let epochs = ledger.vips.values().map(|row| row.epoch).chain(ledger.floors.values().copied());
    if epochs
        .map(|epoch| epoch.0)
        .chain([ledger.term.0, ledger.revision.0, ledger.shared.tables.revision.0])
        .any(|number| number > PLAUSIBLE_LIMIT)
    {
        return Err("it holds a number that no cluster reaches".to_owned());
    }
    ledger.shared.check()?;
    if ledger.orders.iter().any(|(scope, order)| *scope != order.scope) {
        return Err("an order in it is not where it belongs".to_owned());
    }
    if ledger.vips.len().max(ledger.floors.len()).max(ledger.orders.len()) > ROW_LIMIT {
        return Err(format!("it holds more than {ROW_LIMIT} rows"));
    }
    Ok((ledger, copy.made_unix_ms))
}

/// What was restored, for people.
#[derive(Debug)]
pub struct Restored {
    /// When the copy was made.
    pub made_unix_ms: u64,
    /// Whose each virtual IP was then: this is not restored.
    pub owners: Vec<(Vip, Epoch, String)>,
    /// Standing orders, which are.
    pub orders: usize,
}

/// Begins a ledger in `directory` with what may be kept of a copy ([`Ledger::restored`]).
///
/// # Errors
/// A copy that is none, a ledger that is there already, the disk.
pub fn restore(file: &Path, directory: &Path) -> Result<Restored, BackupError> {
    let unreadable = |source| BackupError::Read { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(file).map_err(unreadable)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let damaged = |reason| BackupError::Damaged { file: file.to_owned(), reason };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(damaged(format!("it is longer than {MAX_BYTES} bytes")));
    }
    let (ledger, made_unix_ms) = decode(&bytes).map_err(damaged)?;
    let owners = ledger.vips.iter().map(|(vip, row)| (*vip, row.epoch, row.owner.to_string())).collect();
    let orders = ledger.orders.len();
    Store::begin_with(directory, &ledger.restored())?;
    Ok(Restored { made_unix_ms, owners, orders })
}
