//! Tests with a real Nix: closures from its database, garbage collection, `--load-db`.

mod database;
mod gc;
mod load_db;
