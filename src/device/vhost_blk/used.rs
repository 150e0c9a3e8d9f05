//! Publishes requests in the used ring, and decides whether the driver wants an interrupt.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::inflight::InFlight;

/// Offset of `avail.ring` (virtio 1.2, section 2.7.6).
const AVAIL_RING_OFFSET: u64 = 4;

/// Length of a used ring: flags, index, elements of 8 bytes, event index (virtio 1.2, section 2.7.8).
pub(super) fn len_bytes(queue_size: u16) -> u64 {
    6 + 8 * u64::from(queue_size)
}

/// Publishes executed requests from the front of `in_flight`. Returns whether to interrupt the driver, even after an
/// error, because it waits for the requests that were published before the error.
///
/// # Errors
/// An index is inconsistent, or the ring is not in guest memory.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &impl GuestMemory,
    in_flight: &mut InFlight,
) -> (bool, Result<(), QueueError>) {
    let before = queue.next_used();
    let added = add_completed(queue, memory, in_flight);
    if queue.next_used() == before {
        return (false, added);
    }
    match wants_interrupt(queue, memory, before) {
        Ok(is_interrupt_wanted) => (is_interrupt_wanted, added),
        // Unknown, so interrupt to be safe.
        Err(error) => (true, added.and(Err(error))),
    }
}

fn add_completed(
    queue: &mut Queue,
    memory: &impl GuestMemory,
    in_flight: &mut InFlight,
) -> Result<(), QueueError> {
    while let Some(completion) = in_flight.pop_completed() {
        queue.add_used(memory, completion.head, completion.used_len_bytes)?;
    }
    Ok(())
}

/// Whether the driver wants an interrupt after the used index has moved on from `before` (virtio 1.2, section 2.7.7).
///
/// We cannot use [`QueueT::needs_notification`]: virtio-queue 0.18 counts the requests added since its last call with
/// EVENT_IDX, so after 65,535 requests without that feature, or after a reset, it misses an interrupt. It also ignores
/// `VRING_AVAIL_F_NO_INTERRUPT`.
fn wants_interrupt(
    queue: &Queue,
    memory: &impl GuestMemory,
    before: u16,
) -> Result<bool, QueueError> {
    // The index must be visible before the driver's event index or flags are loaded. The driver stores these and then
    // loads the index.
    fence(Ordering::SeqCst);
    let after = queue.next_used();
    if queue.event_idx_enabled() {
        let offset = AVAIL_RING_OFFSET + 2 * u64::from(queue.size());
        let event = load(memory, queue.avail_ring(), offset)?;
        // Whether `event` is in before..after, as in Linux's `vring_need_event`.
        Ok(after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before))
    } else {
        let flags = load(memory, queue.avail_ring(), 0)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

fn load(memory: &impl GuestMemory, start: u64, offset: u64) -> Result<u16, QueueError> {
    let address = start
        .checked_add(offset)
        .ok_or(QueueError::AddressOverflow)?;
    memory
        .load(GuestAddress(address), Ordering::Relaxed)
        .map(u16::from_le)
        .map_err(QueueError::GuestMemory)
}
