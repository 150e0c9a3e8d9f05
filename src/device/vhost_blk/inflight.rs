//! Requests that were taken from a ring and are not published yet, in ring order.
//!
//! They may be executed in any order and by any thread, but only the front of this list is published (rule 1 in
//! [`ring`](super::ring)).

use std::collections::VecDeque;

use super::execute::Completion;

/// Identifies a request from when it is taken until it is published. Never reused for another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket of the request that was taken `count` requests later.
    #[must_use]
    pub fn later(self, count: usize) -> Self {
        Self(self.0 + count as u64)
    }
}

/// The list of requests in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Ticket of the first entry.
    first: u64,
    /// `None` until the request has been executed.
    entries: VecDeque<Option<Completion>>,
}

impl InFlight {
    /// Appends requests; returns the ticket of the first of them.
    pub(super) fn take(&mut self, count: usize) -> Ticket {
        let first = Ticket(self.first + self.entries.len() as u64);
        self.entries.extend(std::iter::repeat_n(None, count));
        first
    }

    /// Removes the last `count` requests, none of which may have been executed. Their tickets are reused when they are
    /// taken again.
    pub(super) fn drop_last(&mut self, count: usize) {
        self.entries
            .truncate(self.entries.len().saturating_sub(count));
    }

    /// Records that a request has been executed. Ignored if the ticket is not in the list.
    pub(super) fn complete(&mut self, ticket: Ticket, completion: Completion) {
        let index = ticket.0.checked_sub(self.first).map(usize::try_from);
        let entry = match index {
            Some(Ok(index)) => self.entries.get_mut(index),
            _ => None,
        };
        if let Some(entry @ None) = entry {
            *entry = Some(completion);
        }
    }

    /// Removes the first request if it has been executed.
    pub(super) fn pop_completed(&mut self) -> Option<Completion> {
        let completion = (*self.entries.front()?)?;
        self.entries.pop_front();
        self.first += 1;
        Some(completion)
    }

    /// Number of requests in the list.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Removes all requests. Their tickets are never reused.
    pub(super) fn forget(&mut self) {
        self.first += self.entries.len() as u64;
        self.entries.clear();
    }
}
