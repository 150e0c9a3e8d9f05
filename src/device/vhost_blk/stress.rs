//! Stress test of rings and the pool with real threads: many stops, resets and changes.

use super::{execute, guest, inflight, offload, pool, ring, sync, testing};

#[path = "model/world.rs"]
mod world;

use world::{Change, World};

/// Default number of cycles; `LAZYSTORE_CYCLES` overrides it. A million cycles take some minutes.
const CYCLES: usize = 5000;

/// Pseudorandom changes with a fixed seed, except [`Change::Leave`].
fn changes(count: usize) -> impl Iterator<Item = Change> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state >> 61 {
            0..=2 => Change::Stop,
            3 => Change::Disable,
            4 => Change::Addresses,
            5 => Change::EventIdx(state & 1 == 0),
            _ => Change::Reset {
                event_idx: state & 1 == 0,
            },
        }
    })
}

#[test]
fn no_completion_is_published_after_a_stop_and_none_is_lost() {
    let cycles = std::env::var("LAZYSTORE_CYCLES").map_or(CYCLES, |count| count.parse().unwrap());
    World::run(&[4, 16], changes(cycles));
}
