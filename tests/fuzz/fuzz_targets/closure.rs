//! Any list and registration: parsed or refused in one sentence.
#![no_main]

#[path = "../targets/closure.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
