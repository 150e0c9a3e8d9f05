//! Any memory, ring and order of events: answered as virtio has it, and nothing else touched.
#![no_main]

#[path = "../targets/disk.rs"]
mod disk;
#[path = "../targets/input.rs"]
mod input;
#[path = "../targets/guest.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
