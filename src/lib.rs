//! A virtual machine's `/nix/store` as a read-only EROFS disk that is never built.
//!
//! Every block of the disk is made when it is asked for, from the store the host already has.
//! Data flows one way, and a module knows only what stands above it here:
//!
//! | module | what it does |
//! |---|---|
//! | [`store`] | opens host paths, always beneath one directory and never through a symlink |
//! | [`closure`] | which store paths, in which order, with which NAR size |
//! | [`erofs`] | on-disk format; address space and plans; metadata bytes |
//! | [`image`] | block to extents: the disk as something to read from |
//! | [`verify`] | the disk against the host, through an EROFS reader of somebody else's |
//! | [`process`] | child processes: roles that never return, signals, bounded ends |
//! | [`sandbox`] | what a serving process gives up before it meets a guest |
//! | [`device`] | how a client reads the disk: vhost-user-blk, FUSE |
//! | [`server`] | endpoints, and a worker process for each connection or mount |
//! | [`cli`] | arguments to checked configuration; messages |

pub mod cli;
pub mod closure;
pub mod device;
pub mod erofs;
pub mod image;
pub mod process;
pub mod sandbox;
pub mod server;
pub mod store;
pub mod verify;
