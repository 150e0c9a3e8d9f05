//! Closures that are partly not on this host: narinfos from binary caches describe the missing paths and their references.

mod walk;

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::fetch::Fetchable;
use super::sources::Sources;
use crate::closure::narinfo::Narinfo;
use crate::closure::{
    ClosureError, Contents, Graph, GraphNode, StoreLocation, StorePath, valid_names,
};

use walk::ClosureWalk;
pub use walk::WalkError;

/// A closure, and the paths of it that are not on the host.
#[derive(Debug)]
pub struct PartlyRemote {
    /// All paths of the closure.
    pub graph: Graph,
    /// The paths that have to be fetched, sorted by name.
    pub remote: Vec<Fetchable>,
}

/// Why a closure cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum RemoteClosureError {
    /// The part of the closure that is on the host.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The part that is described by narinfos.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The NAR hash of a cache differs from the registered one.
    #[error(
        "{path}: the NAR hash of the binary cache differs from the registered one, so it is another build"
    )]
    OtherBuild {
        /// The store path.
        path: String,
    },
}

impl PartlyRemote {
    /// Returns the closure of `roots` (base names). Paths that are valid on the host are taken from there.
    ///
    /// # Errors
    /// No cache has a valid narinfo for a path.
    pub fn of_roots(
        roots: &[Box<[u8]>],
        location: &StoreLocation,
        sources: &Sources,
    ) -> Result<Self, RemoteClosureError> {
        let valid = valid_names(location)?;
        let walk = ClosureWalk {
            sources,
            store_dir: &location.store_dir,
            stops: &valid,
            follows_references: true,
        };
        let narinfos = walk.narinfos(roots)?;
        let referenced = narinfos.values().flat_map(|narinfo| &narinfo.references);
        let on_host = roots.iter().chain(referenced);
        let on_host: BTreeSet<_> = on_host.filter(|name| valid.contains(*name)).collect();
        let on_host: Vec<_> = on_host.into_iter().cloned().collect();
        let mut nodes = match on_host.is_empty() {
            true => Vec::new(),
            false => Graph::of_valid(&on_host, location)?.into_nodes(),
        };
        let remote = fetchable(narinfos.values());
        nodes.extend(narinfos.into_values().map(node));
        let graph = Graph::from_nodes(nodes, location);
        Ok(Self { graph, remote })
    }

    /// Returns the paths of `graph`, and which of them are not on the host.
    ///
    /// # Errors
    /// As [`of_roots`](Self::of_roots); or a cache has another build of a path than `graph` says.
    pub fn of_list(
        mut graph: Graph,
        location: &StoreLocation,
        sources: &Sources,
    ) -> Result<Self, RemoteClosureError> {
        let dir = graph.closure.dir.clone();
        let Contents::StorePaths(paths) = &mut graph.closure.contents else {
            return Ok(Self {
                graph,
                remote: Vec::new(),
            });
        };
        let is_absent = |path: &&StorePath| {
            let path = dir.join(OsStr::from_bytes(&path.name));
            path.symlink_metadata().is_err()
        };
        let absent = paths.iter().filter(is_absent);
        let absent: Vec<_> = absent.map(|path| path.name.clone()).collect();
        let walk = ClosureWalk {
            sources,
            store_dir: &location.store_dir,
            stops: &HashSet::new(),
            // The list alone determines what is on the disk.
            follows_references: false,
        };
        let narinfos = walk.narinfos(&absent)?;
        for path in paths.iter_mut() {
            let Some(narinfo) = narinfos.get(&path.name) else {
                continue;
            };
            if path.nar_hash.is_some_and(|hash| hash != narinfo.nar_hash) {
                let path = String::from_utf8_lossy(&location.store_path(&path.name)).into_owned();
                return Err(RemoteClosureError::OtherBuild { path });
            }
            path.nar_hash = Some(narinfo.nar_hash);
            path.nar_size = Some(narinfo.nar_size);
        }
        let remote = fetchable(narinfos.values());
        Ok(Self { graph, remote })
    }
}

/// Sorts the paths by name; their positions become their numbers.
fn fetchable<'n>(narinfos: impl Iterator<Item = &'n Narinfo>) -> Vec<Fetchable> {
    let mut all: Vec<_> = narinfos
        .map(|narinfo| Fetchable {
            name: narinfo.name.clone(),
            nar_hash: narinfo.nar_hash,
            nar_size: narinfo.nar_size,
        })
        .collect();
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    all
}

fn node(narinfo: Narinfo) -> GraphNode {
    GraphNode {
        path: StorePath {
            name: narinfo.name,
            nar_size: Some(narinfo.nar_size),
            nar_hash: Some(narinfo.nar_hash),
        },
        references: narinfo.references,
    }
}
