//! Any packed tree, as a fetcher hands it over: a tree, or refused in one sentence.
#![no_main]

#[path = "../targets/archive.rs"]
mod archive;
#[path = "../targets/packed.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
