//! The EROFS format, the disk's layout, and their encoding.
//!
//! [`mod@format`] has the on-disk structs and constants. [`layout`] assigns addresses: ranges to the paths of the
//! closure and, within a path, a plan. [`encode`] turns a plan into the bytes of a metadata block. [`volume`] is the
//! whole disk. None of them opens a file.

pub mod dirent;
pub mod encode;
pub mod format;
pub mod layout;
pub mod volume;
