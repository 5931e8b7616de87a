//! The ledger on disk: `ledger.redb`, one durable transaction for each commit.

use kage_sif_core::{Change, Edit, Established, Ledger, Report, Shared, Stamped, TroubleRow, VipRow};
use kage_types::{Epoch, Order, Revision, Term};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Within the state directory.
pub const FILE_NAME: &str = "ledger.redb";

/// Changes kept for [`crate::driver::Handle::subscribe`]: minutes of a busy cluster, a megabyte. Who was away for
/// longer reads the whole ledger.
pub const CHANGES_KEPT: usize = 4096;

/// Of the rows below. Raised when an older kage-sif could misread them. 2: with orders. 3: with the shared tables.
/// 4: with where a virtual server may be besides.
const FORMAT: u32 = 4;

/// The whole ledger of the largest cluster takes some MB.
const CACHE_BYTES: usize = 16 << 20;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const REPORTS: TableDefinition<&str, &[u8]> = TableDefinition::new("reports");
const FLOORS: TableDefinition<&str, &[u8]> = TableDefinition::new("floors");
const VIPS: TableDefinition<&str, &[u8]> = TableDefinition::new("vips");
const TROUBLES: TableDefinition<&str, &[u8]> = TableDefinition::new("troubles");
const ORDERS: TableDefinition<&str, &[u8]> = TableDefinition::new("orders");
/// The shared tables: the last edit of each row, by its key.
const SHARED: TableDefinition<&str, &[u8]> = TableDefinition::new("shared");
const CHANGES: TableDefinition<u64, &[u8]> = TableDefinition::new("changes");
const HEAD: &str = "head";

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    revision: Revision,
    term: Term,
    coordinator: String,
    established: bool,
    /// Of the shared tables.
    #[serde(default)]
    tables: Revision,
}

/// Of any format.
#[derive(Deserialize)]
struct AnyHead {
    format: u32,
}

/// A ledger that can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk, or the rights on it.
    #[error(
        "{file} can't be read or written: check that the disk has room and works and that kage-sif may write there"
    )]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("{file} is in use by another process: stop the other kage-sif")]
    InUse {
        /// The file.
        file: PathBuf,
    },
    /// Written by a later version.
    #[error(
        "{file} has format {found}, this kage-sif knows formats up to {FORMAT}: install the kage-sif that wrote it"
    )]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A ledger is never replaced.
    #[error("{file} is there already and nothing was changed: stop kage-sif and move it away first")]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// Not what was written.
    #[error(
        "{file} is damaged ({reason}): restore it from a backup, or move it away to begin a new ledger, which gives out nothing before a majority of the voters has reported"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl StoreError {
    /// With its causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "another crate's errors, non-exhaustive")]
    fn redb(file: &Path, error: impl Into<redb::Error>) -> Self {
        let file = file.to_owned();
        match error.into() {
            redb::Error::Io(source)
                if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                StoreError::Damaged { file, reason: source.to_string() }
            }
            redb::Error::Io(source) => StoreError::Io { file, source },
            error @ redb::Error::PreviousIo => StoreError::Io { file, source: io::Error::other(error) },
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse { file },
            error => StoreError::Damaged { file, reason: error.to_string() },
        }
    }
}

/// Opens the database; again after a failure.
type Opener = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send>;

/// The open file.
pub struct Store {
    file: PathBuf,
    open: Opener,
    /// None while the disk fails.
    database: Option<Database>,
}

/// What the file holds.
#[derive(Debug)]
pub struct Contents {
    /// The tables.
    pub ledger: Ledger,
    /// The last changes, oldest first, without gap up to the ledger's revision.
    pub changes: Vec<Stamped>,
    /// Of a format that did not say where a virtual server may be besides.
    before_doubts: bool,
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

impl Store {
    /// Opens `ledger.redb` in a directory. Only a file that is missing becomes a new ledger.
    ///
    /// # Errors
    /// All of [`StoreError`]; the file is left as it is.
    pub fn open(directory: &Path) -> Result<(Self, Contents), StoreError> {
        let file = directory.join(FILE_NAME);
        let io = |source| StoreError::Io { file: file.clone(), source };
        match fs::metadata(&file) {
            Ok(metadata) if metadata.len() == 0 => {
                return Err(StoreError::Damaged { file, reason: "it is empty".to_owned() });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory).map_err(io)?;
                create(directory, &file, &Ledger::default())?;
                tracing::warn!(
                    file = %file.display(),
                    "no ledger here: began a new one, which gives out nothing before a majority of the voters has reported"
                );
            }
            Err(error) => return Err(io(error)),
        }
        let path = file.clone();
        Self::open_with(file, Box::new(move || builder().open(&path)))
    }

    /// Begins `ledger.redb` with this ledger; made durable.
    ///
    /// # Errors
    /// [`StoreError::Exists`] where there is a ledger, which is left as it is; the disk.
    pub fn begin_with(directory: &Path, ledger: &Ledger) -> Result<(), StoreError> {
        let file = directory.join(FILE_NAME);
        let io = |source| StoreError::Io { file: file.clone(), source };
        fs::create_dir_all(directory).map_err(io)?;
        if file.try_exists().map_err(io)? {
            return Err(StoreError::Exists { file });
        }
        create(directory, &file, ledger)
    }

    fn open_with(file: PathBuf, open: Opener) -> Result<(Self, Contents), StoreError> {
        let mut store = Self { file, open, database: None };
        let contents = store.reopen()?;
        let contents = store.raise(contents)?;
        Ok((store, contents))
    }

    /// Opens the file again and reads all of it.
    ///
    /// # Errors
    /// All of [`StoreError`]; may be tried again.
    pub fn reopen(&mut self) -> Result<Contents, StoreError> {
        self.database = None;
        // redb panics on some damage that its checksums don't cover.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = (self.open)().map_err(|error| StoreError::redb(&self.file, error))?;
            let contents = read(&self.file, &database)?;
            Ok((database, contents))
        }));
        let (database, contents) = opened.unwrap_or_else(|_| {
            Err(StoreError::Damaged { file: self.file.clone(), reason: "reading it panicked".to_owned() })
        })?;
        self.database = Some(database);
        Ok(contents)
    }

    /// Formats before 4 did not say where a virtual server may be that was being migrated.
    fn raise(&mut self, contents: Contents) -> Result<Contents, StoreError> {
        if !contents.before_doubts {
            return Ok(contents);
        }
        let mut next = contents.ledger.shared.clone();
        next.doubt_migrations();
        let edits = contents.ledger.shared.edits_to(&next);
        if edits.is_empty() {
            return Ok(contents);
        }
        let revision = next.tables.revision.next();
        let change = Change::Tables { revision, edits };
        self.commit(&[Stamped { revision: contents.ledger.revision.next(), change }])?;
        self.reopen()
    }

    /// Makes changes durable, all or none.
    ///
    /// # Errors
    /// All of [`StoreError`]. Whether the changes are on disk is then unknown until [`Store::reopen`].
    pub fn commit(&mut self, changes: &[Stamped]) -> Result<(), StoreError> {
        let Some(database) = &self.database else {
            return Err(StoreError::Io { file: self.file.clone(), source: io::Error::other("closed after a failure") });
        };
        write(&self.file, database, changes)
    }
}

/// Under another name first, so that a crash leaves either no ledger or a whole one.
fn create(directory: &Path, file: &Path, ledger: &Ledger) -> Result<(), StoreError> {
    let unfinished = directory.join("ledger.redb.new");
    let io = |source| StoreError::Io { file: unfinished.clone(), source };
    match fs::remove_file(&unfinished) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let database = builder().create(&unfinished).map_err(|error| StoreError::redb(&unfinished, error))?;
    write(&unfinished, &database, &[])?;
    if *ledger != Ledger::default() {
        write_restored(&unfinished, &database, ledger)?;
    }
    database.close().map_err(|error| StoreError::redb(&unfinished, error))?;
    fs::rename(&unfinished, file).map_err(io)?;
    // A file is not durable before its name is.
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

/// What [`Ledger::restored`] leaves: numbers, floors, orders and the shared tables.
fn write_restored(file: &Path, database: &Database, ledger: &Ledger) -> Result<(), StoreError> {
    macro_rules! disk {
        ($operation:expr) => {
            $operation.map_err(|error| StoreError::redb(file, error))?
        };
    }
    let mut transaction = disk!(database.begin_write());
    disk!(transaction.set_durability(Durability::Immediate));
    {
        let mut floors = disk!(transaction.open_table(FLOORS));
        for (vip, epoch) in &ledger.floors {
            disk!(floors.insert(vip.to_string().as_str(), json(file, epoch)?.as_slice()));
        }
        let mut orders = disk!(transaction.open_table(ORDERS));
        for order in ledger.orders.values() {
            disk!(orders.insert(order.scope.to_string().as_str(), json(file, order)?.as_slice()));
        }
        let mut shared = disk!(transaction.open_table(SHARED));
        for edit in Shared::default().edits_to(&ledger.shared) {
            write_edit(file, &mut shared, &edit)?;
        }
        let head = Head {
            format: FORMAT,
            revision: ledger.revision,
            term: ledger.term,
            coordinator: String::new(),
            established: false,
            tables: ledger.shared.tables.revision,
        };
        disk!(disk!(transaction.open_table(META)).insert(HEAD, json(file, &head)?.as_slice()));
    }
    transaction.commit().map_err(|error| StoreError::redb(file, error))
}

fn json<T: Serialize>(file: &Path, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Io { file: file.to_owned(), source: error.into() })
}

fn write(file: &Path, database: &Database, changes: &[Stamped]) -> Result<(), StoreError> {
    let mut transaction = database.begin_write().map_err(|error| StoreError::redb(file, error))?;
    transaction.set_durability(Durability::Immediate).map_err(|error| StoreError::redb(file, error))?;
    write_changes(file, &transaction, changes)?;
    transaction.commit().map_err(|error| StoreError::redb(file, error))
}

fn write_changes(file: &Path, transaction: &redb::WriteTransaction, changes: &[Stamped]) -> Result<(), StoreError> {
    macro_rules! disk {
        ($operation:expr) => {
            $operation.map_err(|error| StoreError::redb(file, error))?
        };
    }
    let mut meta = disk!(transaction.open_table(META));
    let mut reports = disk!(transaction.open_table(REPORTS));
    let mut floors = disk!(transaction.open_table(FLOORS));
    let mut vips = disk!(transaction.open_table(VIPS));
    let mut troubles = disk!(transaction.open_table(TROUBLES));
    let mut orders = disk!(transaction.open_table(ORDERS));
    let mut shared = disk!(transaction.open_table(SHARED));
    let mut log = disk!(transaction.open_table(CHANGES));
    let mut head = match disk!(meta.get(HEAD)) {
        Some(bytes) => Head { format: FORMAT, ..parse::<Head>(file, HEAD, bytes.value())? },
        None => Head {
            format: FORMAT,
            revision: Revision(0),
            term: Term(0),
            coordinator: String::new(),
            established: false,
            tables: Revision(0),
        },
    };
    for stamped in changes {
        head.revision = stamped.revision;
        match &stamped.change {
            Change::Term { term, coordinator } => {
                head.term = *term;
                head.coordinator.clone_from(coordinator);
            }
            Change::Vip { vip, row } => {
                disk!(floors.remove(vip.to_string().as_str()));
                disk!(vips.insert(vip.to_string().as_str(), json(file, row)?.as_slice()));
            }
            Change::Trouble { target, row } => {
                disk!(troubles.insert(target.as_str(), json(file, row)?.as_slice()));
            }
            Change::TroubleCleared { target } => {
                disk!(troubles.remove(target.as_str()));
            }
            Change::Order { order } => {
                disk!(orders.insert(order.scope.to_string().as_str(), json(file, order)?.as_slice()));
            }
            Change::OrderCleared { scope } => {
                disk!(orders.remove(scope.to_string().as_str()));
            }
            Change::Tables { revision, edits } => {
                for edit in edits {
                    write_edit(file, &mut shared, edit)?;
                }
                head.tables = *revision;
            }
            Change::Reported { reporter, report } => {
                disk!(reports.insert(reporter.as_str(), json(file, report)?.as_slice()));
            }
            Change::Established { term, floors: raised } | Change::Restored { term, floors: raised, .. } => {
                if *term > head.term {
                    head.term = *term;
                    head.coordinator.clear();
                }
                for (vip, epoch) in raised {
                    disk!(vips.remove(vip.to_string().as_str()));
                    disk!(floors.insert(vip.to_string().as_str(), json(file, epoch)?.as_slice()));
                }
                disk!(reports.retain(|_, _| false));
                head.established = true;
            }
        }
        if let Change::Restored { reporter, report, .. } = &stamped.change {
            head.established = false;
            disk!(reports.insert(reporter.as_str(), json(file, report)?.as_slice()));
        }
        disk!(log.insert(stamped.revision.0, json(file, stamped)?.as_slice()));
    }
    while disk!(redb::ReadableTableMetadata::len(&log)) > CHANGES_KEPT as u64 {
        disk!(log.pop_first());
    }
    disk!(meta.insert(HEAD, json(file, &head)?.as_slice()));
    Ok(())
}

/// A row of the shared tables is the edit that made it: what is read is what was applied.
fn write_edit(file: &Path, shared: &mut redb::Table<'_, &str, &[u8]>, edit: &Edit) -> Result<(), StoreError> {
    macro_rules! disk {
        ($operation:expr) => {
            $operation.map_err(|error| StoreError::redb(file, error))?
        };
    }
    if let Some(begins) = edit.replaces() {
        disk!(shared.retain(|key, _| !key.starts_with(&begins)));
    }
    let key = edit.key();
    if edit.removes() {
        disk!(shared.remove(key.as_str()));
    } else {
        disk!(shared.insert(key.as_str(), json(file, edit)?.as_slice()));
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(file: &Path, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Damaged { file: file.to_owned(), reason: format!("{key}: {error}") })
}

fn read(file: &Path, database: &Database) -> Result<Contents, StoreError> {
    macro_rules! disk {
        ($operation:expr) => {
            $operation.map_err(|error| StoreError::redb(file, error))?
        };
    }
    let damaged = |reason: &str| StoreError::Damaged { file: file.to_owned(), reason: reason.to_owned() };
    let transaction = disk!(database.begin_read());
    let meta = disk!(transaction.open_table(META));
    let head = disk!(meta.get(HEAD)).ok_or_else(|| damaged("it has no head"))?;
    // The format first: the rest of a newer head may not be understood.
    let AnyHead { format } = parse(file, HEAD, head.value())?;
    if format > FORMAT {
        return Err(StoreError::Newer { file: file.to_owned(), found: format });
    }
    let head: Head = parse(file, HEAD, head.value())?;
    let mut ledger = Ledger {
        revision: head.revision,
        term: head.term,
        coordinator: head.coordinator,
        established: Established::Established,
        ..Ledger::default()
    };
    let name = |key: &str, error: kage_types::IdError| damaged(&format!("{key}: {error}"));
    for row in disk!(disk!(transaction.open_table(VIPS)).iter()) {
        let (key, value) = disk!(row);
        let vip = key.value().parse().map_err(|error| name(key.value(), error))?;
        ledger.vips.insert(vip, parse::<VipRow>(file, key.value(), value.value())?);
    }
    for row in disk!(disk!(transaction.open_table(FLOORS)).iter()) {
        let (key, value) = disk!(row);
        let vip = key.value().parse().map_err(|error| name(key.value(), error))?;
        ledger.floors.insert(vip, parse::<Epoch>(file, key.value(), value.value())?);
    }
    for row in disk!(disk!(transaction.open_table(TROUBLES)).iter()) {
        let (key, value) = disk!(row);
        let target = key.value().parse().map_err(|error| name(key.value(), error))?;
        ledger.troubles.insert(target, parse::<TroubleRow>(file, key.value(), value.value())?);
    }
    // Format 1 had no orders.
    if format >= 2 {
        for row in disk!(disk!(transaction.open_table(ORDERS)).iter()) {
            let (key, value) = disk!(row);
            let order = parse::<Order>(file, key.value(), value.value())?;
            ledger.orders.insert(order.scope.clone(), order);
        }
    }
    if format >= 3 {
        for row in disk!(disk!(transaction.open_table(SHARED)).iter()) {
            let (key, value) = disk!(row);
            let edit = parse::<Edit>(file, key.value(), value.value())?;
            if edit.key() != key.value() || edit.removes() {
                return Err(damaged(&format!("{}: holds a row of another key", key.value())));
            }
            ledger.shared.apply(&edit);
        }
        ledger.shared.tables.revision = head.tables;
    }
    if !head.established {
        let mut reports = std::collections::BTreeMap::new();
        for row in disk!(disk!(transaction.open_table(REPORTS)).iter()) {
            let (key, value) = disk!(row);
            let reporter = key.value().parse().map_err(|error| name(key.value(), error))?;
            reports.insert(reporter, parse::<Report>(file, key.value(), value.value())?);
        }
        ledger.established = Established::Fresh { reports };
    }
    let mut changes = Vec::new();
    for row in disk!(disk!(transaction.open_table(CHANGES)).iter()) {
        let (_, value) = disk!(row);
        changes.push(parse::<Stamped>(file, "changes", value.value())?);
    }
    let mut expected = ledger.revision;
    for change in changes.iter().rev() {
        if change.revision != expected {
            return Err(damaged("its log of changes has a gap"));
        }
        expected = Revision(expected.0.saturating_sub(1));
    }
    Ok(Contents { ledger, changes, before_doubts: format < 4 })
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(crate) mod tests;

#[cfg(test)]
#[path = "store_torn_tests.rs"]
mod torn;
