//! Closures from Nix's own database, `/nix/var/nix/db/db.sqlite`.
//!
//! Its tables are those of Nix's `src/libstore/schema.sql`: `ValidPaths(id, path, hash, narSize, …)` and
//! `Refs(referrer, reference)`. It is read in one transaction, so that a build that ends meanwhile is seen whole or
//! not at all. It is never changed:
//!
//! - Where a write-ahead log lies next to it, somebody has it open, and SQLite takes part as a reader (`mode=ro`).
//! - Where none does, nobody has it open, and a reader would leave `-wal` and `-shm` files behind, or may not make them.
//!   The file is then complete by itself, and is read as it stands (`immutable=1`). If it changed meanwhile, the result is
//!   discarded and the read is repeated.

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

/// How long to wait for a writer that holds the whole database.
const BUSY: Duration = Duration::from_secs(5);

/// How often a database that changed under the reader is read again before it is called unreadable.
const TRIES: usize = 20;

/// Which paths.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// These and all that they refer to, by their base names.
    Closure(&'a [Box<[u8]>]),
    /// Every valid one.
    All,
}

/// What the database says of a closure.
#[derive(Debug)]
pub(super) struct Found {
    /// Sorted.
    pub(super) paths: Vec<StorePath>,
    /// What refers to what.
    pub(super) references: References,
}

/// Why it says nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("it is being changed all the time")]
    Restless,
    /// Base names of those that were asked for and are not registered.
    #[error("not valid")]
    NotValid(Vec<Box<[u8]>>),
    #[error("{0}")]
    Path(Fault),
    #[error("{path} has the hash \"{hash}\", which is not a sha256")]
    Hash { path: String, hash: String },
}

/// Looks up `wanted` in the database `file`.
pub(super) fn load(
    file: &Path,
    store_dir: StoreDir<'_>,
    wanted: Wanted<'_>,
) -> Result<Found, DatabaseError> {
    read(file, |connection| {
        let mut walk = Walk {
            connection,
            store_dir,
            indexes: HashMap::new(),
            ids: Vec::new(),
            paths: Vec::new(),
            pairs: Vec::new(),
        };
        match wanted {
            Wanted::Closure(roots) => walk.closure(roots)?,
            Wanted::All => walk.all()?,
        }
        Ok(walk.finish())
    })
}

/// Base names of all valid paths in the database `file`.
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

/// Calls `look` with an open transaction that sees one state of the database.
fn read<T>(
    file: &Path,
    look: impl Fn(&Connection) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    for _ in 0..TRIES {
        let before = State::of(file)?;
        if before.is_alone() {
            let found = transaction(open(file, true)?, &look);
            if State::of(file)? == before {
                return found;
            }
        } else {
            match open(file, false).and_then(|connection| transaction(connection, &look)) {
                // The last writer may have left just now and taken the log with it.
                Err(error) if error.is_unopenable() && !has_log(file) => {}
                done => return done,
            }
        }
    }
    Err(DatabaseError::Restless)
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

/// As SQLite's URIs want it: everything but letters, digits and a few others as `%` and two digits.
fn percent_encoded(file: &Path) -> String {
    let byte = |byte: &u8| match byte {
        b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    file.as_os_str().as_bytes().iter().map(byte).collect()
}

/// What tells whether a database has changed.
#[derive(Debug, PartialEq, Eq)]
struct State {
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// It is of the kind with a log (SQLite's file format, offset 18: 2 for WAL).
    logged: bool,
    has_log: bool,
}

impl State {
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

    /// Nobody has it open, and everything is in the file.
    fn is_alone(&self) -> bool {
        self.logged && !self.has_log
    }
}

fn has_log(file: &Path) -> bool {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    Path::new(&log).exists()
}

impl DatabaseError {
    /// SQLite needs files next to the database that are not there and cannot be made.
    fn is_unopenable(&self) -> bool {
        let Self::Sqlite(error) = self else {
            return false;
        };
        matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
        )
    }

    /// Nix itself may be able to answer.
    pub(super) fn is_access(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::Restless => true,
            _ => self.is_unopenable(),
        }
    }
}

/// A walk along references, each path met once.
struct Walk<'c> {
    connection: &'c Connection,
    store_dir: StoreDir<'c>,
    /// Where in `ids` each id is.
    indexes: HashMap<i64, usize>,
    /// In the order in which they were met.
    ids: Vec<i64>,
    paths: Vec<StorePath>,
    /// Referrer and reference.
    pairs: Vec<(usize, usize)>,
}

impl Walk<'_> {
    fn closure(&mut self, roots: &[Box<[u8]>]) -> Result<(), DatabaseError> {
        self.meet_roots(roots)?;
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
                let reference = self.meet(row.get(0)?);
                self.pairs.push((next, reference));
            }
            next += 1;
        }
        Ok(())
    }

    fn meet_roots(&mut self, roots: &[Box<[u8]>]) -> Result<(), DatabaseError> {
        let mut statement = self
            .connection
            .prepare("SELECT id FROM ValidPaths WHERE path = ?")?;
        let mut missing = Vec::new();
        for name in roots {
            // Nix's names are ASCII: others are not in its database.
            let path = String::from_utf8(self.store_dir.path_of(name)).unwrap_or_default();
            match statement.query_row([path], |row| row.get(0)).optional()? {
                Some(id) => _ = self.meet(id),
                None => missing.push(name.clone()),
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(DatabaseError::NotValid(missing))
        }
    }

    /// The index of the path `id`, which is noted if it is new.
    fn meet(&mut self, id: i64) -> usize {
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
            self.meet(row.get(3)?);
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

    /// The paths in the order of the disk.
    fn finish(self) -> Found {
        let mut order: Vec<usize> = (0..self.paths.len()).collect();
        order.sort_unstable_by(|a, b| self.paths[*a].name.cmp(&self.paths[*b].name));
        let mut places = vec![0; order.len()];
        for (place, met) in order.iter().enumerate() {
            places[*met] = place;
        }
        let mut references = Collector::default();
        for (from, to) in self.pairs {
            references.add(places[from], places[to]);
        }
        let mut paths: Vec<_> = self.paths.into_iter().map(Some).collect();
        Found {
            references: references.finish(order.len()),
            paths: order
                .into_iter()
                .filter_map(|met| paths[met].take())
                .collect(),
        }
    }
}

/// Path, hash and NAR size of a row that starts with them.
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

    /// A database with a log, closed by its writer, where a URI would see something else than a path.
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
    fn what_changed_meanwhile_is_read_again() {
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
    fn what_never_rests_is_given_up() {
        let (_dir, file) = database();
        let seen = read(&file, |connection| {
            add(&file);
            count(connection)
        });
        assert!(matches!(seen, Err(DatabaseError::Restless)), "{seen:?}");
    }

    #[test]
    fn what_a_writer_has_not_finished_is_not_seen() {
        let (_dir, file) = database();
        let writer = Connection::open(&file).unwrap();
        writer
            .execute_batch("INSERT INTO T VALUES (1); BEGIN IMMEDIATE; INSERT INTO T VALUES (2)")
            .unwrap();
        assert!(!State::of(&file).unwrap().is_alone());
        assert_eq!(read(&file, count).unwrap(), 1);
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(read(&file, count).unwrap(), 2);
    }
}
