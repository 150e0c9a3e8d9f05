//! Assigns addresses to everything on the disk. No I/O.
//!
//! - [`bounds`]: upper bounds on the blocks of a store path, from its NAR size.
//! - [`nar`]: the length of a path's NAR, from its plan.
//! - [`space`]: the address ranges of all paths.
//! - [`attributes`]: the modes, owners and timestamps that the guest sees.
//! - `node`: a file of any type with its address.
//! - [`planner`]: takes the directories of one path in breadth-first order and places inodes and data.
//! - [`plan`]: the placed files of one path, with lookups by node and by block.

pub mod attributes;
pub mod bounds;
pub mod nar;
mod node;
pub mod plan;
pub mod planner;
pub mod space;

#[cfg(test)]
mod tests;

/// Version of the layout: the addresses on the disk and the encoding of everything.
///
/// Increment it with every change to the bytes of any disk. The golden test compares disks of fixed stores with the
/// digests recorded for this version, so such a change cannot go unnoticed.
///
/// Version 2: small files of a tree (not of store paths) are not inlined, so that a file that changed or cannot be read
/// does not fail its neighbours.
///
/// Version 3: files over 512 bytes (instead of 2,048) are not inlined, so that a walk over all inodes reads a third of the
/// blocks.
pub const LAYOUT_VERSION: u32 = 3;

/// Why a path cannot be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It needs more blocks than its NAR size implies.
    #[error("needs more blocks than its registered NAR size allows: the registration is wrong")]
    OutgrewRange,
    /// A count or an address does not fit the format's fields.
    #[error("has more entries or data than one EROFS disk can hold")]
    TooBig,
    /// A file of a type that a NAR cannot represent.
    #[error("contains a device, socket or FIFO, which a store path cannot")]
    NotInANar,
    /// A name is empty or longer than the format allows.
    #[error("contains a name that EROFS does not allow (1 to 255 bytes)")]
    BadName,
}
