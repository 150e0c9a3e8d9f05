//! Where everything lies, without I/O.
//!
//! - [`bounds`]: how many blocks a store path can need, from its NAR size alone.
//! - [`space`]: the closure's address ranges.
//! - [`attributes`]: what the guest is told of modes, ids and times.
//! - `node`: a file of any type, and where it lies.
//! - [`planner`]: takes one path's directories, breadth first, and places inodes and data.
//! - [`plan`]: what the planner has placed, and questions to it.

pub mod attributes;
pub mod bounds;
mod node;
pub mod plan;
pub mod planner;
pub mod space;

#[cfg(test)]
mod tests;

/// Version of the layout: where things lie on a disk and which form they have.
///
/// The golden test compares the disks of fixed stores with the digests of this version. A change of any
/// byte of a disk raises it, on purpose.
///
/// 2: small files of a tree (not of store paths) have blocks of their own, so that one that changed or cannot be read fails
/// alone.
pub const LAYOUT_VERSION: u32 = 2;

/// Why a path cannot be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// It needs more blocks than its NAR size allows.
    #[error("needs more blocks than its registered NAR size allows: the registration is wrong")]
    OutgrewRange,
    /// More entries or bytes than the format's fields hold.
    #[error("has more entries or data than one EROFS disk can hold")]
    TooBig,
    /// A file that no Nix store can hold.
    #[error("holds a device, socket or FIFO, which a store path cannot")]
    NotInANar,
    /// A name longer than the format allows, or empty.
    #[error("holds a name that EROFS cannot (1 to 255 bytes)")]
    BadName,
}
