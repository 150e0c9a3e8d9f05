//! Closures from Nix's own database, `/nix/var/nix/db/db.sqlite`.
//!
//! Nix's `src/libstore/schema.sql` defines the tables: `ValidPaths(id, path, hash, narSize, …)` and
//! `Refs(referrer, reference)`. All queries run in one transaction, so we see a concurrent build entirely or not at
//! all. The database and its directory are never written to:
//!
//! - If a write-ahead log exists, another process has the database open, and SQLite opens it as a normal reader
//!   (`mode=ro`).
//! - Otherwise no process has it open, and a normal reader would have to create `-wal` and `-shm` files, which it may
//!   not be allowed to. The file is then complete without a log, so we open it with `immutable=1`. If the file changed
//!   in the meantime, the result is discarded and the read is repeated.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row};

use super::error::Fault;
use super::hash;
use super::name::StoreDir;
use super::references::{Collector, References};
use super::{StorePath, known_size};

/// How long to wait for a writer that has locked the database exclusively.
const BUSY: Duration = Duration::from_secs(5);

/// Attempts to read a database that changes during every attempt, before giving up.
const TRIES: usize = 20;

/// Which paths to load.
#[derive(Debug, Clone, Copy)]
pub(super) enum Selection<'a> {
    /// The closure of these base names.
    Closure(&'a [Box<[u8]>]),
    /// Every valid path.
    All,
}

/// The result of a query.
#[derive(Debug)]
pub(super) struct QueryResult {
    /// Sorted by name.
    pub(super) paths: Vec<StorePath>,
    /// The references between `paths`.
    pub(super) references: References,
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("it changed during each of {TRIES} attempts to read it")]
    KeepsChanging,
    /// The requested base names that are not registered.
    #[error("not valid")]
    NotValid(Vec<Box<[u8]>>),
    #[error("{0}")]
    Path(Fault),
    #[error("{path} has the hash \"{hash}\", which is not a sha256")]
    Hash { path: String, hash: String },
}

/// Loads `selection` from the database `file`.
pub(super) fn load(
    file: &Path,
    store_dir: StoreDir<'_>,
    selection: Selection<'_>,
) -> Result<QueryResult, DatabaseError> {
    read(file, |connection| {
        let mut walk = ReferenceWalk {
            connection,
            store_dir,
            indexes: HashMap::new(),
            ids: Vec::new(),
            paths: Vec::new(),
            pairs: Vec::new(),
        };
        match selection {
            Selection::Closure(roots) => walk.closure(roots)?,
            Selection::All => walk.all()?,
        }
        Ok(walk.finish())
    })
}

/// Returns the base names of all valid paths in the database `file`.
pub(super) fn names(
    file: &Path,
    store_dir: StoreDir<'_>,
) -> Result<HashSet<Box<[u8]>>, DatabaseError> {
    read(file, |connection| {
        let mut paths = connection.prepare("SELECT path FROM ValidPaths")?;
        let mut rows = paths.query([])?;
        let mut names = HashSet::new();
        while let Some(row) = rows.next()? {
            let name = store_dir.name_of(text(row.get_ref(0)?));
            names.insert(name.map_err(DatabaseError::Path)?.into());
        }
        Ok(names)
    })
}

/// Calls `look` inside a transaction, so that all its queries see the same state of the database.
fn read<T>(
    file: &Path,
    look: impl Fn(&Connection) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    for _ in 0..TRIES {
        let before = FileState::of(file)?;
        if before.is_closed() {
            let found = transaction(open(file, true)?, &look);
            if FileState::of(file)? == before {
                return found;
            }
        } else {
            match open(file, false).and_then(|connection| transaction(connection, &look)) {
                // The last writer may have just closed the database, which removes the log. Try again without it.
                Err(error) if error.is_unopenable() && !has_log(file) => {}
                done => return done,
            }
        }
    }
    Err(DatabaseError::KeepsChanging)
}

fn transaction<T>(
    connection: Connection,
    look: impl Fn(&Connection) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    connection.busy_timeout(BUSY)?;
    connection.execute_batch("BEGIN")?;
    look(&connection)
}

fn open(file: &Path, immutable: bool) -> Result<Connection, DatabaseError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if !immutable {
        return Ok(Connection::open_with_flags(file, flags)?);
    }
    let flags = flags | OpenFlags::SQLITE_OPEN_URI;
    let uri = format!("file:{}?immutable=1", percent_encoded(file));
    Ok(Connection::open_with_flags(uri, flags)?)
}

/// Escapes a path for an SQLite URI: every byte but letters, digits and a few others becomes `%XX`.
fn percent_encoded(file: &Path) -> String {
    let byte = |byte: &u8| match byte {
        b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    file.as_os_str().as_bytes().iter().map(byte).collect()
}

/// Attributes that change when the database is written or opened by another process.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// The database is in WAL mode (SQLite's file format, byte 18 is 2).
    logged: bool,
    has_log: bool,
}

impl FileState {
    fn of(file: &Path) -> io::Result<Self> {
        let opened = File::open(file)?;
        let metadata = opened.metadata()?;
        let mut version = [0];
        opened.read_exact_at(&mut version, 18)?;
        Ok(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
            logged: version == [2],
            has_log: has_log(file),
        })
    }

    /// No process has the database open, so the file is complete without a log.
    fn is_closed(&self) -> bool {
        self.logged && !self.has_log
    }
}

fn has_log(file: &Path) -> bool {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    Path::new(&log).exists()
}

impl DatabaseError {
    /// SQLite needs `-wal` and `-shm` files, which do not exist and cannot be created.
    fn is_unopenable(&self) -> bool {
        let Self::Sqlite(error) = self else {
            return false;
        };
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
        )
    }

    /// This user cannot read the database, but Nix (through its daemon) may be able to.
    pub(super) fn is_access(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::KeepsChanging => true,
            _ => self.is_unopenable(),
        }
    }
}

/// A breadth-first traversal of the references.
struct ReferenceWalk<'c> {
    connection: &'c Connection,
    store_dir: StoreDir<'c>,
    /// The index in `ids` of each database id.
    indexes: HashMap<i64, usize>,
    /// Database ids in order of discovery.
    ids: Vec<i64>,
    /// The paths of `ids`, as far as they have been read.
    paths: Vec<StorePath>,
    /// Referrer and reference, as indexes in `ids`.
    pairs: Vec<(usize, usize)>,
}

impl ReferenceWalk<'_> {
    fn closure(&mut self, roots: &[Box<[u8]>]) -> Result<(), DatabaseError> {
        self.add_roots(roots)?;
        let mut path = self
            .connection
            .prepare("SELECT path, hash, narSize FROM ValidPaths WHERE id = ?")?;
        let mut references = self
            .connection
            .prepare("SELECT reference FROM Refs WHERE referrer = ?")?;
        let mut next = 0;
        while let Some(&id) = self.ids.get(next) {
            let found = path.query_row([id], |row| Ok(store_path(row, self.store_dir)))?;
            self.paths.push(found?);
            let mut rows = references.query([id])?;
            while let Some(row) = rows.next()? {
                let reference = self.index_of(row.get(0)?);
                self.pairs.push((next, reference));
            }
            next += 1;
        }
        Ok(())
    }

    fn add_roots(&mut self, roots: &[Box<[u8]>]) -> Result<(), DatabaseError> {
        let mut statement = self
            .connection
            .prepare("SELECT id FROM ValidPaths WHERE path = ?")?;
        let mut missing = Vec::new();
        for name in roots {
            // Names in Nix's database are ASCII, so a name that is not UTF-8 is not found.
            let path = String::from_utf8(self.store_dir.path_of(name)).unwrap_or_default();
            match statement.query_row([path], |row| row.get(0)).optional()? {
                Some(id) => _ = self.index_of(id),
                None => missing.push(name.clone()),
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(DatabaseError::NotValid(missing))
        }
    }

    /// Returns the index of the path `id`; appends it if it is new.
    fn index_of(&mut self, id: i64) -> usize {
        let ids = &mut self.ids;
        *self.indexes.entry(id).or_insert_with(|| {
            ids.push(id);
            ids.len() - 1
        })
    }

    fn all(&mut self) -> Result<(), DatabaseError> {
        let mut paths = self
            .connection
            .prepare("SELECT path, hash, narSize, id FROM ValidPaths")?;
        let mut rows = paths.query([])?;
        while let Some(row) = rows.next()? {
            self.paths.push(store_path(row, self.store_dir)?);
            self.index_of(row.get(3)?);
        }
        let mut references = self
            .connection
            .prepare("SELECT referrer, reference FROM Refs")?;
        let mut rows = references.query([])?;
        while let Some(row) = rows.next()? {
            let pair = (
                self.indexes.get(&row.get(0)?),
                self.indexes.get(&row.get(1)?),
            );
            if let (Some(&from), Some(&to)) = pair {
                self.pairs.push((from, to));
            }
        }
        Ok(())
    }

    /// Sorts the paths by name and renumbers the references accordingly.
    fn finish(self) -> QueryResult {
        let mut order: Vec<usize> = (0..self.paths.len()).collect();
        order.sort_unstable_by(|a, b| self.paths[*a].name.cmp(&self.paths[*b].name));
        let mut places = vec![0; order.len()];
        for (place, index) in order.iter().enumerate() {
            places[*index] = place;
        }
        let mut references = Collector::default();
        for (from, to) in self.pairs {
            references.add(places[from], places[to]);
        }
        let mut paths: Vec<_> = self.paths.into_iter().map(Some).collect();
        QueryResult {
            references: references.finish(order.len()),
            paths: order
                .into_iter()
                .filter_map(|index| paths[index].take())
                .collect(),
        }
    }
}

/// Parses a row whose first columns are path, hash and NAR size.
fn store_path(row: &Row<'_>, store_dir: StoreDir<'_>) -> Result<StorePath, DatabaseError> {
    let (path, digits) = (text(row.get_ref(0)?), text(row.get_ref(1)?));
    let name = store_dir.name_of(path).map_err(DatabaseError::Path)?;
    let nar_hash = hash::decode(digits).ok_or_else(|| DatabaseError::Hash {
        path: String::from_utf8_lossy(path).into_owned(),
        hash: String::from_utf8_lossy(digits).into_owned(),
    })?;
    let nar_size: Option<i64> = row.get(2)?;
    Ok(StorePath {
        name: name.into(),
        nar_size: nar_size
            .and_then(|size| u64::try_from(size).ok())
            .and_then(known_size),
        nar_hash: Some(nar_hash),
    })
}

fn text(value: ValueRef<'_>) -> &[u8] {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => b"",
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::PathBuf;

    use super::*;

    /// Returns a closed database in WAL mode, whose path has characters that are special in a URI.
    fn database() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a?b#c%41 d.sqlite");
        let writer = Connection::open(&file).unwrap();
        writer.pragma_update(None, "journal_mode", "WAL").unwrap();
        writer.execute_batch("CREATE TABLE T(x)").unwrap();
        drop(writer);
        (dir, file)
    }

    fn add(file: &Path) {
        let writer = Connection::open(file).unwrap();
        writer.execute_batch("INSERT INTO T VALUES (1)").unwrap();
    }

    fn count(connection: &Connection) -> Result<i64, DatabaseError> {
        Ok(connection.query_row("SELECT count(*) FROM T", [], |row| row.get(0))?)
    }

    #[test]
    fn a_database_that_changed_is_read_again() {
        let (_dir, file) = database();
        let looks = Cell::new(0);
        let seen = read(&file, |connection| {
            let seen = count(connection)?;
            if looks.replace(looks.get() + 1) == 0 {
                add(&file);
            }
            Ok(seen)
        });
        assert_eq!((seen.unwrap(), looks.get()), (1, 2));
    }

    #[test]
    fn a_database_that_keeps_changing_is_an_error() {
        let (_dir, file) = database();
        let seen = read(&file, |connection| {
            add(&file);
            count(connection)
        });
        assert!(
            matches!(seen, Err(DatabaseError::KeepsChanging)),
            "{seen:?}"
        );
    }

    #[test]
    fn an_uncommitted_transaction_is_not_seen() {
        let (_dir, file) = database();
        let writer = Connection::open(&file).unwrap();
        writer
            .execute_batch("INSERT INTO T VALUES (1); BEGIN IMMEDIATE; INSERT INTO T VALUES (2)")
            .unwrap();
        assert!(!FileState::of(&file).unwrap().is_closed());
        assert_eq!(read(&file, count).unwrap(), 1);
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(read(&file, count).unwrap(), 2);
    }
}
