//! Counts opens and reads of the file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::device::meter::{Counters, Meter, Stats};

/// Called in a thread that answers the kernel, so it must not block.
type OnChange = Box<dyn Fn(ReaderChange) + Send + Sync>;

/// A change of the number of readers to or from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderChange {
    /// The first reader has opened the file.
    Opened,
    /// The last reader has closed it. Contains what was read since the first one opened it.
    Closed(Stats),
}

/// The readers of the file.
pub struct Readers {
    open: AtomicU64,
    meter: Meter,
    /// The totals when the file was last closed.
    before: Mutex<Stats>,
    on_change: OnChange,
}

impl Readers {
    /// Starts without readers. `on_change` is called when the first reader opens the file and when the last one closes
    /// it.
    pub fn new(meter: Meter, on_change: impl Fn(ReaderChange) + Send + Sync + 'static) -> Self {
        Self {
            open: AtomicU64::new(0),
            meter,
            before: Mutex::default(),
            on_change: Box::new(on_change),
        }
    }

    /// Whether the file is open.
    pub fn are_there(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// What was read since the file was last closed.
    pub fn stats(&self) -> Stats {
        since(
            self.meter.stats(),
            *self.before.lock().unwrap_or_else(PoisonError::into_inner),
        )
    }

    pub(super) fn opened(&self) {
        if self.open.fetch_add(1, Ordering::Relaxed) == 0 {
            (self.on_change)(ReaderChange::Opened);
        }
    }

    /// Returns whether it was the last reader.
    pub(super) fn closed(&self) -> bool {
        let was_last = self.open.fetch_sub(1, Ordering::Relaxed) == 1;
        if was_last {
            (self.on_change)(ReaderChange::Closed(self.take_stats()));
        }
        was_last
    }

    /// The counters, shared by all threads: contention is negligible compared to the kernel's part of a read.
    pub(super) fn counters(&self) -> &Counters {
        self.meter.last()
    }

    fn take_stats(&self) -> Stats {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.meter.stats();
        since(now, std::mem::replace(&mut *before, now))
    }
}

fn since(now: Stats, before: Stats) -> Stats {
    Stats {
        requests: now.requests - before.requests,
        bytes: now.bytes - before.bytes,
        errors: now.errors - before.errors,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn the_first_open_and_the_last_close_are_reported() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let meter = Meter::new(1).unwrap();
        let readers = Readers::new(meter, move |change| list.lock().unwrap().push(change));
        for round in 0..2 {
            readers.opened();
            readers.opened();
            readers.counters().count(Some(100 * round));
            readers.counters().count(None);
            assert!(!readers.closed());
            assert!(readers.are_there());
            assert!(readers.closed());
        }
        let stats = |bytes| Stats {
            requests: 2,
            bytes,
            errors: 1,
        };
        let expected = [
            ReaderChange::Opened,
            ReaderChange::Closed(stats(0)),
            ReaderChange::Opened,
            ReaderChange::Closed(stats(100)),
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }
}
