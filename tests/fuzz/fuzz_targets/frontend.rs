//! Any messages of a frontend: the connection ends with it and leaks no descriptor or thread.
#![no_main]

#[path = "../targets/input.rs"]
mod input;
#[path = "../targets/frontend.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
