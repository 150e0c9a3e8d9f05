use proptest::prelude::*;

use crate::device::vhost_blk::execute::Completion;
use crate::device::vhost_blk::inflight::InFlight;

fn completion(head: u16) -> Completion {
    Completion {
        head,
        used_len_bytes: 1,
    }
}

#[test]
fn a_late_completion_of_a_forgotten_request_is_dropped() {
    let mut list = InFlight::default();
    let first = list.take(2);
    list.complete(first, completion(0));
    list.complete(first.later(1), completion(1));
    list.forget();
    let next = list.take(1);
    list.complete(first, completion(7));
    list.complete(next.later(5), completion(8));
    assert_eq!(list.pop_completed(), None);
    list.complete(next, completion(2));
    list.complete(next, completion(3));
    assert_eq!(list.pop_completed(), Some(completion(2)));
    assert_eq!(list.len(), 0);
}

#[test]
fn a_request_taken_again_gets_the_same_ticket() {
    let mut list = InFlight::default();
    let first = list.take(3);
    list.drop_last(2);
    assert_eq!(list.take(1), first.later(1));
    assert_eq!(list.len(), 2);
}

proptest! {
    /// Requests leave in the order in which they were taken, independent of the order in which they are executed.
    #[test]
    fn completions_are_published_in_order(order in Just((0u16..40).collect::<Vec<_>>()).prop_shuffle()) {
        let mut list = InFlight::default();
        let first = list.take(40);
        let mut left = Vec::new();
        for (count, head) in order.iter().enumerate() {
            list.complete(first.later(usize::from(*head)), completion(*head));
            while let Some(completion) = list.pop_completed() {
                left.push(completion.head);
            }
            prop_assert_eq!(list.len() == 0, count == 39);
        }
        prop_assert_eq!(left, (0..40).collect::<Vec<u16>>());
    }
}
