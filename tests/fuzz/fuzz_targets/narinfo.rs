//! Any narinfo: parsed, or refused in one sentence.
#![no_main]

#[path = "../targets/narinfo.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
