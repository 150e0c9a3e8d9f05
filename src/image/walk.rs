//! From a source's tree to a plan: lists directories, breadth first, and gives them to the planner.

use super::ReadError;
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::Attributes;
use crate::erofs::layout::bounds::Limits;
use crate::erofs::layout::plan::{NodeIndex, Plan};
use crate::erofs::layout::planner::Planner;
use crate::parallel;
use crate::source::{PathTree, SourceError};
use crate::tree::Listing;

/// Directories that are worth the start of threads: listing so many takes ten times as long.
const DIRS_AT_ONCE: usize = 64;

/// More threads than this do not list one path's directories: each has one of them open.
pub const LISTERS_MAX: usize = 4;

/// Begins the plan of `tree`, which may take `limits`.
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
    push(tree, planner, &listing)
}

/// Lists one more directory, or several at once where many are known.
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
        push(tree, planner, &listing?)?;
    }
    Ok(())
}

/// Plans `tree` whole, however big it is.
pub(super) fn plan_whole(tree: &PathTree<'_>, attributes: Attributes) -> Result<Plan, ReadError> {
    let mut planner = start(tree, attributes, Limits::NONE)?;
    while !planner.is_complete() {
        step(tree, &mut planner)?;
    }
    tree.check()?;
    Ok(planner.into_plan())
}

fn list(tree: &PathTree<'_>, plan: &Plan, dir: NodeIndex) -> Result<Listing, SourceError> {
    tree.list(&plan.path(dir), plan.attributes().detail())
}

fn push(tree: &PathTree<'_>, planner: &mut Planner, listing: &Listing) -> Result<(), ReadError> {
    planner
        .push(listing)
        .map_err(|source| layout_error(tree, source))
}

pub(super) fn layout_error(tree: &PathTree<'_>, source: LayoutError) -> ReadError {
    ReadError::Layout {
        path: tree.display_path(),
        source,
    }
}
