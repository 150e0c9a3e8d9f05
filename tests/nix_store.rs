//! With a real Nix: closures from its database, its garbage collector, its `--load-db`.

mod database;
mod gc;
mod load_db;
