//! Which store paths are on the disk, in which order, with which NAR size.
//!
//! The list is read from a file `store-paths` and the sizes from a file `registration`, both in the format of nixpkgs'
//! `closureInfo`. Alternatively both are read from Nix's database. This module does not access the store itself: a
//! listed store path may not exist. A plain directory tree (`--tree`) has neither list nor sizes.

mod database;
mod error;
mod graph;
mod hash;
mod lines;
mod name;
pub mod narinfo;
mod nix_store;
mod pins;
mod references;
mod registration;
mod roots;
mod store_paths;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(crate) use error::shown;
pub use error::{ClosureError, ClosureFile, Fault, RootFault, listed};
pub use graph::{Graph, GraphNode, valid_names};
pub(crate) use hash::to_base64;
pub use hash::{decode as decode_hash, encode as nix32};
pub(crate) use name::{HASH_DIGITS, is_nix_name};
pub use pins::Pins;
pub use references::References;
pub use roots::root_names;

use lines::Lines;
use name::StoreDir;
use registration::Registered;

/// With this size, reading an 80 MB registration takes a few hundred system calls.
const READ_BUFFER: usize = 256 << 10;

/// What the closure is loaded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `--closure-info DIR`: the output of nixpkgs' `closureInfo`, with the files `store-paths` and
    /// `registration` in it.
    ClosureInfo(PathBuf),
    /// `--store-paths FILE`, optionally `--registration FILE`.
    StorePaths {
        /// One logical store path a line, in any order; `-` is standard input.
        list: PathBuf,
        /// Output of `nix-store --dump-db`. Without it, NAR sizes are unknown.
        registration: Option<PathBuf>,
    },
    /// The closure of these roots according to the Nix database. A root is a store path, a file in one, or a symlink
    /// to one.
    Roots(Vec<PathBuf>),
    /// `--all`: every path that is valid in the Nix database.
    All,
    /// `--tree DIR`: the disk's root is this directory, which need not be a store.
    Tree(PathBuf),
}

/// The logical store directory, and where it is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLocation {
    /// The logical store directory: an absolute path that every listed store path starts with.
    pub store_dir: PathBuf,
    /// The host directory that contains the logical store directory, as in Nix's `--store DIR`. `None` if the logical
    /// path is also the physical one.
    pub store_root: Option<PathBuf>,
}

impl Default for StoreLocation {
    /// `/nix/store`, logical and physical.
    fn default() -> Self {
        Self {
            store_dir: PathBuf::from("/nix/store"),
            store_root: None,
        }
    }
}

impl StoreLocation {
    /// Returns the directory on the host that holds the store paths.
    ///
    /// It may not exist.
    pub fn physical_dir(&self) -> PathBuf {
        let Some(root) = &self.store_root else {
            return self.store_dir.clone();
        };
        // join() with an absolute path would discard `root`.
        root.join(self.store_dir.strip_prefix("/").unwrap_or(&self.store_dir))
    }

    /// Returns the logical store path with the base name `name`.
    pub fn store_path(&self, name: &[u8]) -> Vec<u8> {
        StoreDir::new(self.store_dir.as_os_str().as_bytes()).path_of(name)
    }

    /// Nix's state directory for this store on the host. It may not exist.
    pub fn state_dir(&self) -> PathBuf {
        const STATE_DIR: &str = "nix/var/nix";
        let root = self.store_root.as_deref();
        root.unwrap_or(Path::new("/")).join(STATE_DIR)
    }

    /// Nix's database of the store. It may not exist.
    pub fn database(&self) -> PathBuf {
        self.state_dir().join("db/db.sqlite")
    }
}

/// One store path of the closure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePath {
    /// The base name, such as `abc…-hello-1.0`: 1 to 255 bytes, neither `.` nor `..`, without `/` and
    /// NUL. It need not be UTF-8.
    pub name: Box<[u8]>,
    /// The length of its NAR in bytes, if registered.
    pub nar_size: Option<u64>,
    /// The SHA-256 of its NAR, if registered.
    pub nar_hash: Option<[u8; 32]>,
}

/// What the disk contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// The root directory has exactly these entries: sorted by the bytes of their names, without
    /// duplicates, at least one.
    StorePaths(Vec<StorePath>),
    /// The root directory is [`Closure::dir`] itself, with everything in it.
    Tree,
}

/// The store paths of a disk, and the directory that holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// The directory on the host that holds the store paths, or the tree.
    pub dir: PathBuf,
    /// The logical store directory, for messages. For a tree: the same as [`Closure::dir`].
    pub store_dir: PathBuf,
    /// Which part of [`Closure::dir`] the disk contains.
    pub contents: Contents,
}

impl Closure {
    /// Loads the list and the sizes from `source`.
    ///
    /// # Errors
    ///
    /// A file or the database cannot be read or is malformed; there is no store path; a root does not lead to a valid
    /// store path; `location` has a relative store directory; or the tree is not a directory. That the store paths
    /// exist is not checked.
    pub fn load(source: &Source, location: &StoreLocation) -> Result<Self, ClosureError> {
        Ok(Graph::load(source, location)?.closure)
    }

    /// Parses the list and, if given, the registration from memory.
    ///
    /// # Errors
    ///
    /// As for [`Closure::load`]. Errors name the input `<memory>`.
    pub fn parse(
        list: &[u8],
        registration: Option<&[u8]>,
        location: &StoreLocation,
    ) -> Result<Self, ClosureError> {
        let list = Lines::new(ClosureFile::StorePaths("<memory>".into()), list);
        let registration =
            registration.map(|text| Lines::new(ClosureFile::Registration("<memory>".into()), text));
        check_location(location)?;
        Ok(read_lists(list, registration, location)?.closure)
    }
}

fn check_location(location: &StoreLocation) -> Result<(), ClosureError> {
    if location.store_dir.is_absolute() {
        return Ok(());
    }
    Err(ClosureError::RelativeStoreDir {
        store_dir: location.store_dir.clone(),
    })
}

fn load_closure_info(dir: &Path, location: &StoreLocation) -> Result<Graph, ClosureError> {
    let [list, registration] = ["store-paths", "registration"].map(|file| dir.join(file));
    for file in [&list, &registration] {
        // For other errors than an absent file, opening it gives the better message.
        if matches!(file.try_exists(), Ok(false)) {
            return Err(ClosureError::NotClosureInfo {
                dir: dir.into(),
                file: file.into(),
            });
        }
    }
    load_lists(&list, Some(&registration), location)
}

fn load_lists(
    list: &Path,
    registration: Option<&Path>,
    location: &StoreLocation,
) -> Result<Graph, ClosureError> {
    let registration = registration
        .map(|file| open(ClosureFile::Registration(file.into())))
        .transpose()?;
    if list.as_os_str() == "-" {
        let list = Lines::new(
            ClosureFile::StorePaths("<stdin>".into()),
            io::stdin().lock(),
        );
        read_lists(list, registration, location)
    } else {
        read_lists(
            open(ClosureFile::StorePaths(list.into()))?,
            registration,
            location,
        )
    }
}

fn read_lists(
    list: Lines<impl BufRead>,
    registration: Option<Lines<impl BufRead>>,
    location: &StoreLocation,
) -> Result<Graph, ClosureError> {
    let store_dir = StoreDir::new(location.store_dir.as_os_str().as_bytes());
    let names = store_paths::read(list, store_dir)?;
    let (registered, references) = match registration {
        Some(lines) => {
            let (registered, references) = registration::read(lines, store_dir, &names)?;
            (registered, Some(references))
        }
        None => (vec![None; names.len()], None),
    };
    let paths = names.into_iter().zip(registered).map(store_path);
    let closure = Closure {
        dir: location.physical_dir(),
        store_dir: location.store_dir.clone(),
        contents: Contents::StorePaths(paths.collect()),
    };
    Ok(Graph {
        closure,
        references,
    })
}

fn open(input: ClosureFile) -> Result<Lines<BufReader<File>>, ClosureError> {
    match File::open(input.path()) {
        Ok(file) => Ok(Lines::new(
            input,
            BufReader::with_capacity(READ_BUFFER, file),
        )),
        Err(error) => Err(ClosureError::Read { input, error }),
    }
}

fn store_path((name, registered): (Box<[u8]>, Option<Registered>)) -> StorePath {
    StorePath {
        name,
        nar_size: registered.and_then(|r| known_size(r.nar_size)),
        nar_hash: registered.map(|r| r.nar_hash),
    }
}

/// Nix writes 0 for an unknown NAR size. A real NAR is never empty.
fn known_size(nar_size: u64) -> Option<u64> {
    Some(nar_size).filter(|&size| size != 0)
}

fn load_tree(dir: &Path) -> Result<Closure, ClosureError> {
    let real = dir.canonicalize().map_err(|error| ClosureError::Tree {
        dir: dir.into(),
        error,
    })?;
    if !real.is_dir() {
        return Err(ClosureError::TreeNotADirectory { dir: dir.into() });
    }
    Ok(Closure {
        dir: real.clone(),
        store_dir: real,
        contents: Contents::Tree,
    })
}

#[cfg(test)]
mod tests;
