//! A virtual machine's `/nix/store` as a read-only EROFS disk that is never built.
//!
//! Every block of the disk is generated when it is read, from the store on the host or from a binary cache.
//! Dependencies go one way: a module uses only modules above it in this table.
//!
//! | module | what it does |
//! |---|---|
//! | [`parallel`] | runs a function for many items on all cores |
//! | [`tree`] | values: file kinds, attributes, listings |
//! | [`closure`] | which store paths are on the disk, with their NAR sizes and references |
//! | [`source`] | reads trees and file contents, from the host or elsewhere |
//! | [`cache`] | binary caches: finding closures, fetching, verifying |
//! | [`erofs`] | on-disk format, layout, encoding of metadata |
//! | [`image`] | the disk: maps a range of bytes to metadata and ranges of files |
//! | [`verify`] | compares the disk with the host, through an independent EROFS reader |
//! | [`process`] | child processes: forking, signals, termination |
//! | [`sandbox`] | confines processes |
//! | [`device`] | protocols to read the disk: vhost-user-blk, NBD, FUSE |
//! | [`server`] | endpoints, and a worker process for each connection or mount |
//! | [`cli`] | command line, configuration, output |

pub mod cache;
pub mod cli;
pub mod closure;
pub mod device;
pub mod erofs;
pub mod image;
pub mod parallel;
pub mod process;
pub mod sandbox;
pub mod server;
pub mod source;
pub mod tree;
pub mod verify;
