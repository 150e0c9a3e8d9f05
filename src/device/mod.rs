//! The protocols through which clients read the disk: vhost-user-blk, FUSE and NBD.
//!
//! | module | what it does |
//! |---|---|
//! | [`vhost_blk`] | a vhost-user-blk device for a VMM |
//! | [`fuse`] | a file in a FUSE mount |
//! | [`nbd`] | NBD over a stream socket, without shared memory |
//! | [`meter`] | counts requests, bytes and latencies |
//! | `log_limit` | limits the rate of log lines |
//!
//! Nothing here knows EROFS: the disk is an [`Image`](crate::image::Image).

pub mod fuse;
mod log_limit;
pub mod meter;
pub mod nbd;
pub mod vhost_blk;

pub use meter::Stats;
