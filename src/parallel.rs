//! Runs a function for many items on several threads.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Number of threads: one per core.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Calls `work` for every index below `count` and returns the results in order.
///
/// Uses one thread per core. Each thread has its own state, created by `start`, and takes the next index when it is
/// done with one.
pub fn for_each<S, R: Send>(
    count: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> R + Sync,
) -> Vec<R> {
    for_each_on(threads(), count, start, work)
}

/// Like [`for_each`], with `threads` threads including the calling one: for work that mostly waits, or is small. If
/// threads cannot be created, uses fewer.
pub fn for_each_on<S, R: Send>(
    threads: usize,
    count: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let take_all = || {
        let mut state = start();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let result = work(&mut state, index);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((index, result));
        }
    };
    thread::scope(|scope| {
        let mut others = Vec::new();
        for _ in 1..threads.min(count) {
            let thread = thread::Builder::new().name("parallel".to_owned());
            match thread.spawn_scoped(scope, take_all) {
                Ok(other) => others.push(other),
                Err(_) => break,
            }
        }
        take_all();
        for other in others {
            // The scope only waits until their work is done. Join them too: a thread that is still exiting could
            // receive a signal that this thread blocks.
            if let Err(panic) = other.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::{for_each, for_each_on};

    #[test]
    fn results_are_in_order_of_the_indexes() {
        let squares = for_each(1000, || (), |(), index| index * index);
        assert!(
            squares
                .iter()
                .enumerate()
                .all(|(i, square)| *square == i * i)
        );
        assert!(for_each(0, || (), |(), index| index).is_empty());
        assert_eq!(for_each_on(0, 3, || (), |(), index| index), [0, 1, 2]);
    }
}
