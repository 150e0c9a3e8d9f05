//! Plans a tree: lists its directories in breadth-first order and passes them to the planner.

use super::ReadError;
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::{Attributes, Origin};
use crate::erofs::layout::bounds::Limits;
use crate::erofs::layout::nar;
use crate::erofs::layout::plan::{NodeIndex, Plan};
use crate::erofs::layout::planner::Planner;
use crate::parallel;
use crate::source::{PathTree, SourceError};
use crate::tree::Listing;

/// Number of directories to list at once with several threads. Listing this many takes ten times as long as starting
/// the threads.
const DIRS_AT_ONCE: usize = 64;

/// Maximum number of threads that list directories of one path. Each has one directory open.
pub const LISTERS_MAX: usize = 4;

/// Starts a plan of `tree` that may use at most `limits`.
pub(super) fn start(
    tree: &PathTree<'_>,
    attributes: Attributes,
    limits: Limits,
) -> Result<Planner, ReadError> {
    let (stat, target) = tree.top()?;
    Planner::new(tree.name, attributes, limits, &stat, &target)
        .map_err(|source| layout_error(tree, source))
}

/// Lists one more directory.
pub(super) fn step(tree: &PathTree<'_>, planner: &mut Planner) -> Result<(), ReadError> {
    let Some(dir) = planner.next_dir() else {
        return Ok(());
    };
    let listing = list(tree, planner.plan(), dir)?;
    push(tree, planner, listing.as_ref())
}

/// Lists one more directory, or several in parallel if enough are known.
pub(super) fn stride(tree: &PathTree<'_>, planner: &mut Planner) -> Result<(), ReadError> {
    let dirs: Vec<NodeIndex> = planner.next_dirs().take(DIRS_AT_ONCE).collect();
    if dirs.len() < DIRS_AT_ONCE {
        return step(tree, planner);
    }
    let plan = planner.plan();
    let threads = parallel::threads().min(LISTERS_MAX);
    let list_one = |(): &mut (), index: usize| list(tree, plan, dirs[index]);
    let listings = parallel::for_each_on(threads, dirs.len(), || (), list_one);
    for listing in listings {
        push(tree, planner, listing?.as_ref())?;
    }
    Ok(())
}

/// Plans all of `tree`, without a size limit. If `nar_size` is known, the tree's NAR must have that length.
pub(super) fn plan_whole(
    tree: &PathTree<'_>,
    attributes: Attributes,
    nar_size: Option<u64>,
) -> Result<Plan, ReadError> {
    let mut planner = start(tree, attributes, Limits::NONE)?;
    while !planner.is_complete() {
        step(tree, &mut planner)?;
    }
    tree.check()?;
    check_nar_size(tree, planner.plan(), nar_size)?;
    Ok(planner.into_plan())
}

/// Checks a complete plan against the registered NAR size: files may have been added or removed before the tree was walked.
pub(super) fn check_nar_size(
    tree: &PathTree<'_>,
    plan: &Plan,
    registered: Option<u64>,
) -> Result<(), ReadError> {
    let found = registered.map(|_| nar::size_bytes(plan));
    match (registered, found) {
        (Some(registered), Some(found)) if registered != found => Err(ReadError::NarSize {
            path: tree.display_path(),
            registered,
            found,
        }),
        _ => Ok(()),
    }
}

/// Lists a directory. `None` for a directory of a tree (`--tree`) that this process may not access: only reads of its
/// entries fail then, and the rest of the tree remains usable. In a store everything must be readable, and an error
/// fails the whole path.
fn list(tree: &PathTree<'_>, plan: &Plan, dir: NodeIndex) -> Result<Option<Listing>, SourceError> {
    let attributes = plan.attributes();
    match tree.list(&plan.path(dir), attributes.detail()) {
        Err(error) if attributes.origin == Origin::Host && dir != 0 && error.is_forbidden() => {
            tracing::warn!("{error}: reading this directory on the disk gives an I/O error");
            Ok(None)
        }
        listed => listed.map(Some),
    }
}

fn push(
    tree: &PathTree<'_>,
    planner: &mut Planner,
    listing: Option<&Listing>,
) -> Result<(), ReadError> {
    let pushed = match listing {
        Some(listing) => planner.push(listing),
        None => planner.push_unreadable(),
    };
    pushed.map_err(|source| layout_error(tree, source))
}

pub(super) fn layout_error(tree: &PathTree<'_>, source: LayoutError) -> ReadError {
    ReadError::Layout {
        path: tree.display_path(),
        source,
    }
}
