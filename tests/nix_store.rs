//! With a real Nix: closures from its database, its garbage collector, its `--load-db`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/mod.rs"]
mod common;
#[path = "nix_store/database.rs"]
mod database;
#[path = "nix_store/gc.rs"]
mod gc;
#[path = "nix_store/load_db.rs"]
mod load_db;
#[path = "fuse/server.rs"]
#[allow(dead_code)]
mod server;
