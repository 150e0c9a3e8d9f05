//! Who has the file open, and what they have read.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::Stats;

/// Told in the thread that answers the kernel, so it must not wait for anybody.
type OnChange = Box<dyn Fn(Change) + Send + Sync>;

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The first reader has opened the file.
    Opened,
    /// The last one has closed it; this was read since the first one opened it.
    Closed(Stats),
}

/// The readers of the file.
pub struct Readers {
    open: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    on_change: OnChange,
}

impl Readers {
    /// Nobody yet; `on_change` is called when that changes, and changes back.
    pub fn new(on_change: impl Fn(Change) + Send + Sync + 'static) -> Self {
        Self {
            open: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            on_change: Box::new(on_change),
        }
    }

    /// Whether anybody has the file open.
    pub fn are_there(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// What was read since it was last closed.
    pub fn stats(&self) -> Stats {
        Stats {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    pub(super) fn opened(&self) {
        if self.open.fetch_add(1, Ordering::Relaxed) == 0 {
            (self.on_change)(Change::Opened);
        }
    }

    /// Says whether it was the last one.
    pub(super) fn closed(&self) -> bool {
        let was_last = self.open.fetch_sub(1, Ordering::Relaxed) == 1;
        if was_last {
            (self.on_change)(Change::Closed(self.take_stats()));
        }
        was_last
    }

    pub(super) fn count(&self, read: Option<usize>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match read {
            Some(bytes) => self.bytes.fetch_add(bytes as u64, Ordering::Relaxed),
            None => self.errors.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn take_stats(&self) -> Stats {
        Stats {
            requests: self.requests.swap(0, Ordering::Relaxed),
            bytes: self.bytes.swap(0, Ordering::Relaxed),
            errors: self.errors.swap(0, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn the_first_and_the_last_reader_are_told_with_what_was_read() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let readers = Readers::new(move |change| list.lock().unwrap().push(change));
        for round in 0..2 {
            readers.opened();
            readers.opened();
            readers.count(Some(100 * round));
            readers.count(None);
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
            Change::Opened,
            Change::Closed(stats(0)),
            Change::Opened,
            Change::Closed(stats(100)),
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }
}
