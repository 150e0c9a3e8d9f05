//! A closure with its references. They determine which paths to protect from garbage collection, and the registration
//! that a guest's Nix loads.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::database::{self, DatabaseError, QueryResult, Selection};
use super::error::{ClosureError, ClosureFile};
use super::lines::Lines;
use super::name::StoreDir;
use super::references::{Collector, Index, References};
use super::{Closure, Contents, Source, StoreLocation, StorePath, hash, nix_store, roots};

/// A closure with the references between its paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graph {
    /// The paths.
    pub closure: Closure,
    /// `None` if the source has no references: a list without registration, or a tree.
    pub references: Option<References>,
}

/// A path and its references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphNode {
    /// The path.
    pub path: StorePath,
    /// Base names of its references; may include its own.
    pub references: Vec<Box<[u8]>>,
}

/// Returns the base names of all paths that are valid on the host. Empty if the host has no Nix database, or one that this user
/// may not read.
///
/// # Errors
/// The database is malformed or reading it fails.
pub fn valid_names(location: &StoreLocation) -> Result<HashSet<Box<[u8]>>, ClosureError> {
    let file = location.database();
    let store_dir = StoreDir::new(location.store_dir.as_os_str().as_bytes());
    match database::names(&file, store_dir) {
        Ok(names) => Ok(names),
        Err(DatabaseError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(HashSet::new())
        }
        // Treat every path as not valid: the caller then fetches it from a cache.
        Err(error) if error.is_access() => Ok(HashSet::new()),
        Err(error) => Err(unreadable(file, &error)),
    }
}

impl Graph {
    /// Loads paths, sizes and references from `source`.
    ///
    /// # Errors
    ///
    /// As for [`Closure::load`].
    pub fn load(source: &Source, location: &StoreLocation) -> Result<Self, ClosureError> {
        if !matches!(source, Source::Tree(_)) {
            super::check_location(location)?;
        }
        match source {
            Source::ClosureInfo(dir) => super::load_closure_info(dir, location),
            Source::StorePaths { list, registration } => {
                super::load_lists(list, registration.as_deref(), location)
            }
            Source::Roots(roots) => {
                let names = roots::root_names(roots, location)?;
                from_database(Selection::Closure(&names), location)
            }
            Source::All => from_database(Selection::All, location),
            Source::Tree(dir) => Ok(Self {
                closure: super::load_tree(dir)?,
                references: None,
            }),
        }
    }

    /// Returns the closure of the valid paths `names`, from the Nix database.
    ///
    /// # Errors
    ///
    /// One of them is not valid, or the database cannot be read.
    pub fn of_valid(names: &[Box<[u8]>], location: &StoreLocation) -> Result<Self, ClosureError> {
        from_database(Selection::Closure(names), location)
    }

    /// Builds a graph from `nodes` in any order. If two have the same name, the first one wins.
    pub fn from_nodes(mut nodes: Vec<GraphNode>, location: &StoreLocation) -> Self {
        nodes.sort_by(|a, b| a.path.name.cmp(&b.path.name));
        nodes.dedup_by(|b, a| a.path.name == b.path.name);
        let names: Vec<_> = nodes.iter().map(|node| node.path.name.clone()).collect();
        let index = Index::new(&names);
        let mut references = Collector::default();
        for (from, node) in nodes.iter().enumerate() {
            for name in &node.references {
                match index.find(name, from) {
                    Some(to) => references.add(from, to),
                    None => references.add_outside(from, &location.store_path(name)),
                }
            }
        }
        let references = references.finish(nodes.len());
        let paths = nodes.into_iter().map(|node| node.path);
        let found = QueryResult {
            paths: paths.collect(),
            references,
        };
        found_graph(found, location)
    }

    /// Returns its paths, each with the base names of its references.
    pub fn into_nodes(self) -> Vec<GraphNode> {
        let Contents::StorePaths(paths) = self.closure.contents else {
            return Vec::new();
        };
        let names: Vec<_> = paths.iter().map(|path| path.name.clone()).collect();
        let references = |index: u32| match &self.references {
            Some(references) => {
                let targets = references.of(index).iter();
                targets.map(|to| names[*to as usize].clone()).collect()
            }
            None => Vec::new(),
        };
        let nodes = (0..).zip(paths).map(|(index, path)| GraphNode {
            path,
            references: references(index),
        });
        nodes.collect()
    }

    /// Returns a small set of paths whose closure is the whole closure. All paths if the references are unknown; empty for a
    /// tree.
    pub fn minimal_roots(&self) -> Vec<&StorePath> {
        let Contents::StorePaths(paths) = &self.closure.contents else {
            return Vec::new();
        };
        match &self.references {
            Some(references) => {
                let roots = references.minimal_roots();
                roots.iter().map(|root| &paths[*root as usize]).collect()
            }
            None => paths.iter().collect(),
        }
    }

    /// Returns the closure's registration for `nix-store --load-db`, in the format of closureInfo: sorted by name, hashes in
    /// nix32, without derivers. It depends only on registered data.
    ///
    /// # Errors
    ///
    /// A path is not registered, or refers to a path outside the closure.
    pub fn registration(&self) -> Result<Vec<u8>, ClosureError> {
        let Contents::StorePaths(paths) = &self.closure.contents else {
            return Err(ClosureError::RegistrationOfTree);
        };
        let store_dir = StoreDir::new(self.closure.store_dir.as_os_str().as_bytes());
        let Some(references) = &self.references else {
            let path = store_dir.shown_path(&paths[0].name);
            return Err(ClosureError::Unregistered { path });
        };
        if let Some((from, outside)) = references.outside() {
            return Err(ClosureError::NotClosed {
                path: store_dir.shown_path(&paths[from as usize].name),
                reference: super::error::shown(outside),
            });
        }
        let mut text = Vec::new();
        for (index, path) in (0..).zip(paths) {
            let names = references.of(index).iter();
            let names = names.map(|to| &*paths[*to as usize].name);
            write_record(path, names, store_dir, &mut text)?;
        }
        Ok(text)
    }
}

fn write_record<'a>(
    path: &StorePath,
    references: impl ExactSizeIterator<Item = &'a [u8]>,
    store_dir: StoreDir<'_>,
    text: &mut Vec<u8>,
) -> Result<(), ClosureError> {
    let Some(nar_hash) = &path.nar_hash else {
        let path = store_dir.shown_path(&path.name);
        return Err(ClosureError::Unregistered { path });
    };
    let (hash, size) = (hash::encode(nar_hash), path.nar_size.unwrap_or(0));
    let count = references.len();
    store_dir.push_path(&path.name, text);
    text.extend(format!("\nsha256:{hash}\n{size}\n\n{count}\n").bytes());
    for name in references {
        store_dir.push_path(name, text);
        text.push(b'\n');
    }
    Ok(())
}

fn from_database(
    selection: Selection<'_>,
    location: &StoreLocation,
) -> Result<Graph, ClosureError> {
    let file = location.database();
    let store_dir = StoreDir::new(location.store_dir.as_os_str().as_bytes());
    match database::load(&file, store_dir, selection) {
        Ok(found) if found.paths.is_empty() => Err(ClosureError::NothingValid { file }),
        Ok(found) => Ok(found_graph(found, location)),
        Err(DatabaseError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(ClosureError::NoDatabase { file })
        }
        Err(DatabaseError::NotValid(names)) => Err(ClosureError::NotValid {
            paths: names
                .iter()
                .map(|name| store_dir.shown_path(name))
                .collect(),
            file,
        }),
        Err(error) => match selection {
            Selection::Closure(roots) if error.is_access() => {
                ask_nix(roots, location, &file, &error)
            }
            _ => Err(unreadable(file, &error)),
        },
    }
}

fn found_graph(found: QueryResult, location: &StoreLocation) -> Graph {
    Graph {
        closure: Closure {
            dir: location.physical_dir(),
            store_dir: location.store_dir.clone(),
            contents: Contents::StorePaths(found.paths),
        },
        references: Some(found.references),
    }
}

/// Fallback for an unreadable database: the Nix daemon may read what this user may not.
fn ask_nix(
    roots: &[Box<[u8]>],
    location: &StoreLocation,
    file: &Path,
    error: &DatabaseError,
) -> Result<Graph, ClosureError> {
    let store_dir = StoreDir::new(location.store_dir.as_os_str().as_bytes());
    let answer = nix_store::ask(roots, location, store_dir)
        .map_err(|reason| unreadable(file.into(), &format!("{error}; {reason}")))?;
    let list = ClosureFile::StorePaths("<nix-store --query --requisites>".into());
    let registration = ClosureFile::Registration("<nix-store --dump-db>".into());
    super::read_lists(
        Lines::new(list, &answer.list[..]),
        Some(Lines::new(registration, &answer.registration[..])),
        location,
    )
}

fn unreadable(file: PathBuf, error: &dyn std::fmt::Display) -> ClosureError {
    ClosureError::Database {
        file,
        error: error.to_string(),
    }
}
