//! The same work for many things, on all cores.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// One thread a core.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Calls `work` for every number below `count` and returns the results in the order of the numbers.
///
/// One thread a core takes whichever number is next, with a state of its own that `start` makes.
pub fn for_each<S, R: Send>(
    count: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> R + Sync,
) -> Vec<R> {
    for_each_on(threads(), count, start, work)
}

/// As [`for_each`], on so many threads, this one among them: for work that mostly waits, or is little. With fewer
/// threads to be had than that, on those.
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
            // The scope waits for their work only. A thread that is still ending could take a signal that this one blocks.
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
    fn results_are_in_order_whoever_was_faster() {
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
