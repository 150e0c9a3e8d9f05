//! Any tree: laid out, every block rendered, read back through erofs-rs.
#![no_main]

#[path = "../targets/input.rs"]
mod input;
#[path = "../targets/layout.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
