//! The integration tests: one program, because it is linked only once and its tests share one pool of threads.
//!
//! To add a test, add a function to a module. To add a module, add `tests/NAME.rs` and its line below. There are two
//! tiers. A test that needs root, a tool, or what `scripts/test` prepares belongs to the full tier and is marked, for
//! instance `#[ignore = "needs root"]`. `cargo test` runs the others on a bare checkout. `scripts/test` runs all.
//!
//! Tests are threads of one process, so they must not change the working directory, the environment, limits or signal
//! handlers. A test that must do so, or that counts resources of its own process, gets its own program in Cargo.toml.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that cannot go on should panic, as a test does"
)]

mod common;

mod binary_cache;
mod boot;
mod boot_faults;
mod boots;
mod cache_formats;
mod cli;
mod corpus;
mod debian;
mod dense;
mod edges;
mod faults;
mod fingerprint;
mod fuse;
mod golden;
mod help;
mod hostile;
mod inspect;
mod isolation;
mod layers;
mod leaks;
mod limits;
mod logging;
mod migration;
mod nbd;
mod nix_store;
mod oracles;
mod packaging;
mod plan_dir;
mod plans;
mod readback;
mod recording;
mod recovery;
mod registration;
mod report;
mod run;
mod sandbox;
mod soak;
mod syscalls;
mod systemd;
mod verify;
mod vhost_user;
mod walk_calls;
mod watching;

/// A file without a `mod` line is never compiled, and its tests never run.
#[test]
fn every_file_of_tests_is_a_module() {
    let own = include_str!("main.rs");
    let manifest = include_str!("../Cargo.toml");
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let named = own.contains(&format!("\nmod {stem};"))
            || manifest.contains(&format!("path = \"tests/{stem}.rs\""));
        assert!(named || path.is_dir(), "{} is not compiled", path.display());
    }
}
