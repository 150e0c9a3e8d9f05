//! Frontends of the fuzzing corpus and random ones, each served from accept to its end. This is a separate program with
//! one test, because it checks that a connection leaks no descriptors and threads of this process.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "fuzz/targets/frontend.rs"]
mod frontend;
#[path = "fuzz/targets/input.rs"]
mod input;

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

fn kept() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/frontend");
    let mut count = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        frontend::run(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 10, "a corpus of {count}");
}

fn random() {
    let config = ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        // The same seed in every run.
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    };
    let serve = |bytes: Vec<u8>| {
        frontend::run(&bytes);
        Ok(())
    };
    let bytes = vec(any::<u8>(), 0..400);
    TestRunner::new(config).run(&bytes, serve).unwrap();
}

#[test]
fn a_connection_ends_with_its_frontend_and_leaks_nothing() {
    kept();
    random();
}
