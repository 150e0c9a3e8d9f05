//! Any bytes from an NBD client: answered as the protocol requires, with the disk's bytes.
#![no_main]

#[path = "../targets/disk.rs"]
mod disk;
#[path = "../targets/input.rs"]
mod input;
#[path = "../targets/nbd.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
