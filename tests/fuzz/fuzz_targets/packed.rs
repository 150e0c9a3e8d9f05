//! Any packed tree, the form in which a fetcher passes trees: parsed, or refused in one sentence.
#![no_main]

#[path = "../targets/archive.rs"]
mod archive;
#[path = "../targets/packed.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
