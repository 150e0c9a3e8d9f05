//! A virtual machine's `/nix/store` as a read-only EROFS disk that is never built.
//!
//! Every block of the disk is made when it is asked for, from the store the host already has.
//! Data flows one way, and a module knows only what stands above it here:
//!
//! | module | what it does |
//! |---|---|
//! | [`parallel`] | the same work for many things, on all cores |
//! | [`tree`] | values: file kinds, attributes, listings |
//! | [`closure`] | which store paths, in which order, with which NAR size |
//! | [`source`] | where a path's tree and bytes come from |
//! | [`cache`] | store paths of binary caches: closures, fetching, verifying |
//! | [`erofs`] | on-disk format; address space and plans; metadata bytes |
//! | [`image`] | block to extents: the disk as something to read from |
//! | [`verify`] | the disk against the host, through an EROFS reader of somebody else's |
//! | [`process`] | child processes: roles that never return, signals, bounded ends |
//! | [`sandbox`] | what a serving process gives up before it meets a guest |
//! | [`device`] | how a client reads the disk: vhost-user-blk, FUSE |
//! | [`server`] | endpoints, and a worker process for each connection or mount |
//! | [`cli`] | arguments to checked configuration; messages |

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
