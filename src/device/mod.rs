//! How a client reads the disk: as a vhost-user-blk device, as a file in a FUSE mount, or over NBD.
//!
//! | module | what it does |
//! |---|---|
//! | [`vhost_blk`] | the device that a VMM attaches |
//! | [`fuse`] | the file, in a FUSE mount |
//! | [`nbd`] | the disk over a stream socket, without shared memory |
//! | [`meter`] | what clients get, counted |
//! | `log_limit` | how often the same trouble is logged |
//!
//! Nothing here knows EROFS: the disk is an [`Image`](crate::image::Image).

pub mod fuse;
mod log_limit;
pub mod meter;
pub mod nbd;
pub mod vhost_blk;

pub use meter::Stats;
