//! Any NAR: parsed to its tree, or refused in one sentence.
#![no_main]

#[path = "../targets/archive.rs"]
mod archive;
#[path = "../targets/input.rs"]
mod input;
#[path = "../targets/nar.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
