//! EROFS: format, address space and plans, bytes.
//!
//! [`mod@format`] is the disk's structs and constants and nothing else. [`layout`] says where everything lies:
//! the closure's address ranges and, for one path, its plan. [`encode`] turns a plan into the bytes of a
//! metadata block. [`volume`] is the whole disk. None of them opens a file.

pub mod dirent;
pub mod encode;
pub mod format;
pub mod layout;
pub mod volume;
