//! Any recording: parsed or refused in one sentence, and prefetched.
#![no_main]

#[path = "../targets/recording.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
