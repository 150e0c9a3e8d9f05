//! The used ring: what is published, and whether the driver wants an interrupt for it.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::inflight::InFlight;

/// Offset of `avail.ring` (virtio 1.2, section 2.7.6).
const AVAIL_RING_OFFSET: u64 = 4;

/// Length of a used ring: flags, index, elements of 8 bytes, and the event index (virtio 1.2, section 2.7.8).
pub(super) fn len_bytes(queue_size: u16) -> u64 {
    6 + 8 * u64::from(queue_size)
}

/// Publishes requests from the front of `in_flight`, as far as they have been carried out. Returns whether the driver is to
/// be interrupted, whatever went wrong: it waits for those that were published before.
///
/// # Errors
/// When an index is impossible or the ring is not in memory.
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
        Ok(wanted) => (wanted, added),
        // It cannot be known.
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

/// Whether the driver wants an interrupt now that the used index has moved from `before` (virtio 1.2, section 2.7.7).
///
/// Not [`QueueT::needs_notification`]: virtio-queue 0.18 counts what was added since it was last asked with EVENT_IDX,
/// so that 65,535 requests without that feature, or a reset in between, made it swallow an interrupt. It ignores
/// `VRING_AVAIL_F_NO_INTERRUPT`, too.
fn wants_interrupt(
    queue: &Queue,
    memory: &impl GuestMemory,
    before: u16,
) -> Result<bool, QueueError> {
    // The index must be visible before the driver's wish is read: a driver states its wish and then looks at the index.
    fence(Ordering::SeqCst);
    let after = queue.next_used();
    if queue.event_idx_enabled() {
        let offset = AVAIL_RING_OFFSET + 2 * u64::from(queue.size());
        let event = load(memory, queue.avail_ring(), offset)?;
        // Whether `event` lies in before..after, as `vring_need_event` of Linux has it.
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
