//! Any memory, ring and order of events: requests are answered as virtio requires, and no other memory changes.
#![no_main]

#[path = "../targets/disk.rs"]
mod disk;
#[path = "../targets/input.rs"]
mod input;
#[path = "../targets/guest.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
