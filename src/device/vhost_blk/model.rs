//! Model checking of rings and the pool with `shuttle`.
//!
//! The modules are compiled a second time here, with locks, atomics and threads of `shuttle`, which decides at each of
//! their operations which thread continues. Operations that it does not control (the lock inside `VringMutex`, accesses
//! to guest memory) are always complete between two of its operations.

// Not all items are used here, and the modules are compiled twice on purpose.
#![allow(dead_code, clippy::duplicate_mod)]

mod sync {
    pub(super) use std::sync::Arc;

    pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard, PoisonError};
    pub(super) use shuttle::thread;

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'m, T>(condvar: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
        condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

use super::{config, dirty, execute, guest, idle, testing};

#[path = "call.rs"]
mod call;
#[path = "inflight.rs"]
mod inflight;
#[path = "offload.rs"]
mod offload;
#[path = "pool.rs"]
mod pool;
#[path = "ring.rs"]
mod ring;
#[path = "used.rs"]
mod used;
#[path = "vring.rs"]
mod vring;

#[path = "model/world.rs"]
mod world;

use world::{Change, World};

/// Number of schedules per test and scheduler; `LAZYSTORE_SCHEDULES` overrides it.
const SCHEDULES: usize = 1500;

fn schedules() -> usize {
    let asked = std::env::var("LAZYSTORE_SCHEDULES").ok();
    asked.map_or(SCHEDULES, |count| count.parse().unwrap())
}

/// Runs `world` under random schedules, and under schedules with few preemptions (PCT), which find other faults.
fn check(world: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(world, schedules());
    shuttle::check_pct(world, schedules(), 3);
}

/// Stops and restarts the ring while the queue's thread and the pool are working.
#[test]
fn a_stop_with_requests_in_queue_thread_and_pool() {
    check(|| World::run(&[8], [Change::Stop]));
}

#[test]
fn a_ring_is_disabled_and_enabled_again() {
    check(|| World::run(&[8], [Change::Disable]));
}

#[test]
fn a_reset_and_another_driver_with_and_without_event_idx() {
    check(|| {
        World::run(
            &[4],
            [
                Change::Reset { event_idx: true },
                Change::Reset { event_idx: false },
            ],
        )
    });
}

#[test]
fn a_ring_is_changed_while_it_is_enabled() {
    check(|| {
        World::run(
            &[8],
            [
                Change::Addresses,
                Change::EventIdx(true),
                Change::EventIdx(false),
            ],
        )
    });
}

#[test]
fn several_queues_share_a_thread_and_the_pool() {
    check(|| World::run(&[4, 8], [Change::Stop, Change::Reset { event_idx: true }]));
}

#[test]
fn the_frontend_disconnects() {
    check(|| World::run(&[8], [Change::Leave]));
}
