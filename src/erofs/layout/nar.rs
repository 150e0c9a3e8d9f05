//! The length of a path's NAR, computed from its plan. [`bounds`](super::bounds) lists the strings of a NAR.

use super::plan::{Content, Plan};

/// The magic.
const ARCHIVE_BYTES: u64 = 24;
/// A directory entry, without its name and its node.
const ENTRY_BYTES: u64 = 88;
/// A directory, without its entries.
const DIRECTORY_BYTES: u64 = 72;
/// A regular file without its contents, or a symlink without its target.
const LEAF_BYTES: u64 = 88;
/// What `executable` (24) and an empty string (8) add.
const EXECUTABLE_BYTES: u64 = 32;

/// Returns the length of the NAR of a complete plan's path. Wrong if a file has a type that a NAR cannot represent.
pub fn size_bytes(plan: &Plan) -> u64 {
    let nodes = plan.nodes().iter().enumerate();
    nodes.fold(ARCHIVE_BYTES, |sum, (index, node)| {
        let entry = match index {
            0 => 0,
            _ => ENTRY_BYTES + padded(plan.name(node).len() as u64),
        };
        let own = match node.content() {
            Content::Directory { .. } => DIRECTORY_BYTES,
            Content::Regular { .. } if node.is_executable() => LEAF_BYTES + EXECUTABLE_BYTES,
            _ => LEAF_BYTES,
        };
        let held = match node.content() {
            Content::Directory { .. } => 0,
            _ => padded(node.size_bytes()),
        };
        sum.saturating_add(held).saturating_add(entry + own)
    })
}

/// Returns the length of a string including its padding.
fn padded(len_bytes: u64) -> u64 {
    len_bytes.checked_next_multiple_of(8).unwrap_or(u64::MAX)
}
