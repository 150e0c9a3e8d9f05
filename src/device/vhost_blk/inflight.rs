//! Requests that were taken from a ring and are not published yet, in the order of the ring.
//!
//! They may be carried out in any order and by any thread; what is published is always the front of this list
//! (rule 1 in [`ring`](super::ring)).

use std::collections::VecDeque;

use super::execute::Done;

/// Names a request from its taking to its publishing. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket of the request that was taken `count` later.
    #[must_use]
    pub fn later(self, count: usize) -> Self {
        Self(self.0 + count as u64)
    }
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Ticket of the first entry.
    first: u64,
    entries: VecDeque<Option<Done>>,
    /// Entries that are still being carried out.
    waiting: usize,
}

impl InFlight {
    /// Appends requests; returns the ticket of the first of them.
    pub(super) fn take(&mut self, count: usize) -> Ticket {
        let first = Ticket(self.first + self.entries.len() as u64);
        self.entries.extend(std::iter::repeat_n(None, count));
        self.waiting += count;
        first
    }

    /// Forgets the last `count` requests, none of which has been carried out.
    pub(super) fn untake(&mut self, count: usize) {
        self.entries
            .truncate(self.entries.len().saturating_sub(count));
        self.waiting = self.waiting.saturating_sub(count);
    }

    /// A request has been carried out.
    pub(super) fn complete(&mut self, ticket: Ticket, done: Done) {
        let index = ticket.0.checked_sub(self.first).map(usize::try_from);
        let entry = match index {
            Some(Ok(index)) => self.entries.get_mut(index),
            _ => None,
        };
        if let Some(entry @ None) = entry {
            *entry = Some(done);
            self.waiting -= 1;
        }
    }

    /// Takes the first request off the list if it has been carried out.
    pub(super) fn pop_done(&mut self) -> Option<Done> {
        let done = (*self.entries.front()?)?;
        self.entries.pop_front();
        self.first += 1;
        Some(done)
    }

    /// How many requests are on the list.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is carrying out any of them.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting == 0
    }

    /// Forgets requests that will never be published. Only when the list is settled.
    pub(super) fn forget(&mut self) {
        self.first += self.entries.len() as u64;
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(head: u16) -> Done {
        Done {
            head,
            used_len_bytes: 1,
        }
    }

    #[test]
    fn a_late_answer_to_a_forgotten_request_is_dropped() {
        let mut list = InFlight::default();
        let first = list.take(2);
        list.complete(first, done(0));
        list.complete(first.later(1), done(1));
        list.forget();
        let next = list.take(1);
        list.complete(first, done(7));
        list.complete(next.later(5), done(8));
        assert_eq!(list.pop_done(), None);
        list.complete(next, done(2));
        list.complete(next, done(3));
        assert_eq!(list.pop_done(), Some(done(2)));
        assert!(list.is_settled());
    }

    #[test]
    fn what_was_untaken_gets_the_same_place_again() {
        let mut list = InFlight::default();
        list.take(3);
        list.untake(2);
        assert_eq!(list.take(1), Ticket(1));
        assert_eq!(list.len(), 2);
    }

    proptest! {
        /// In whatever order requests are carried out, they leave in the order in which they came.
        #[test]
        fn first_in_first_out(order in Just((0u16..40).collect::<Vec<_>>()).prop_shuffle()) {
            let mut list = InFlight::default();
            let first = list.take(40);
            let mut left = Vec::new();
            for (count, head) in order.iter().enumerate() {
                list.complete(first.later(usize::from(*head)), done(*head));
                while let Some(done) = list.pop_done() {
                    left.push(done.head);
                }
                prop_assert_eq!(list.is_settled(), count == 39);
            }
            prop_assert_eq!(left, (0..40).collect::<Vec<u16>>());
        }
    }
}
