//! Stopping and changing rings.

use super::*;
use crate::device::vhost_blk::offload::Epoch;

/// Stops the ring from another thread, and returns when the stop has started.
fn begin_to_stop(ring: &Ring) -> std::thread::JoinHandle<()> {
    let stopped = ring.clone();
    let stop = std::thread::spawn(move || stopped.set_queue_ready(false));
    while !ring.is_halting() {
        std::thread::yield_now();
    }
    stop
}

/// A stop waits for the batch, so that the base reported to the frontend is the number of completed requests.
#[test]
fn stopping_waits_for_the_batch() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    driver.submit(3);
    let guard = process.memory.memory();
    let mut locked = process.ring.lock();
    let mut chains = Vec::new();
    let (_, first) = locked
        .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
        .unwrap();
    let stop = begin_to_stop(&process.ring);
    assert!(!stop.is_finished());
    publish(&mut locked, first, &[0, 1, 2]).unwrap();
    drop(locked);
    stop.join().unwrap();
    assert_eq!(process.ring.queue_next_avail(), driver.used_index());
}

/// Takes three requests, of which the queue's thread executes the first and the last.
fn with_a_gap(driver: &mut Driver, process: &Process) -> (Epoch, Ticket) {
    driver.submit(3);
    let guard = process.memory.memory();
    let mut locked = process.ring.lock();
    let mut chains = Vec::new();
    let (_, first) = locked
        .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
        .unwrap();
    for head in [0, 2] {
        execute(&guard, head);
        locked.complete(first.later(usize::from(head)), done(head));
    }
    locked.publish().unwrap();
    // Request 2 has been executed, but request 1 precedes it.
    assert_eq!(driver.used_index(), 1);
    (locked.epoch(), first)
}

/// A stop waits for requests that a thread of the pool is executing. They are published before the stop returns, and
/// not afterwards, so the base equals the used index.
#[test]
fn stopping_waits_for_other_threads_and_ends_publishing() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let (epoch, first) = with_a_gap(&mut driver, &process);
    let permit = process.ring.permit(epoch).unwrap();
    let stop = begin_to_stop(&process.ring);
    assert!(!stop.is_finished());
    execute(&process.memory.memory(), 1);
    // The first part of `answer`, before it takes the lock.
    permit.finish(&[(first.later(1), done(1))]);
    stop.join().unwrap();
    assert_eq!(
        (driver.used_index(), process.ring.queue_next_avail()),
        (3, 3)
    );
    // The second part of `answer`.
    process.ring.lock().publish().unwrap();
    assert_eq!(driver.used_index(), 3);
    driver.check_prefix().unwrap();
    driver.take_back().unwrap();
    driver.check_nothing_lost().unwrap();
}

/// Requests that no thread has started are executed after the next start. A late thread of the pool gets no permit.
#[test]
fn stopping_abandons_requests_that_no_thread_has_started() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let (epoch, _) = with_a_gap(&mut driver, &process);
    process.ring.set_queue_ready(false);
    assert_eq!(
        (driver.used_index(), process.ring.queue_next_avail()),
        (1, 1)
    );
    assert!(process.ring.permit(epoch).is_none());
    process.ring.set_queue_ready(true);
    process.serve(&driver, Death::Never, Order::Ring);
    driver.take_back().unwrap();
    driver.check_nothing_lost().unwrap();
}

/// A ring that is changed while it runs resumes without a kick, because the guest has kicked already.
#[test]
fn changing_an_enabled_ring_wakes_its_thread() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let kick = eventfd();
    process.ring.set_kick(Some(kick.try_clone().unwrap()));
    let (descriptors, avail, used) = driver.addresses();
    let changes: [&dyn Fn(); 3] = [
        &|| process.ring.set_queue_event_idx(true),
        &|| process.ring.set_queue_size(8),
        &|| {
            process
                .ring
                .set_queue_info(descriptors, avail, used)
                .unwrap()
        },
    ];
    for change in changes {
        with_a_gap_of_one(&mut driver, &process);
        change();
        assert!(is_signalled(&kick));
        process.serve(&driver, Death::Never, Order::Ring);
        driver.take_back().unwrap();
        driver.check_nothing_lost().unwrap();
    }
}

/// Takes a request that is never executed.
fn with_a_gap_of_one(driver: &mut Driver, process: &Process) {
    driver.submit(1);
    let guard = process.memory.memory();
    let mut chains = Vec::new();
    let mut locked = process.ring.lock();
    locked
        .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
        .unwrap();
    assert_eq!(chains.len(), 1);
}
