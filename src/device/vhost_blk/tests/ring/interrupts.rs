//! Which completions cause interrupts.

use super::*;

/// Completes 65,535 requests of a driver without EVENT_IDX, and stops the ring.
fn many_without_event_idx() -> (Driver, Process) {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let mut answered = 0;
    while answered < 65_535 {
        let count = (65_535 - answered).min(8);
        driver.submit(count);
        process.serve(&driver, Death::Never, Order::Ring);
        driver.take_back().unwrap();
        answered += count;
    }
    process.ring.set_queue_ready(false);
    (driver, process)
}

/// A driver with EVENT_IDX submits one request and waits for its interrupt.
fn assert_interrupted(driver: &mut Driver, process: &Process) {
    process.ring.set_queue_event_idx(true);
    process.ring.set_queue_ready(true);
    let _ = is_signalled(&process.call);
    driver.want_interrupt();
    driver.submit(1);
    process.serve(driver, Death::Never, Order::Ring);
    assert!(is_signalled(&process.call), "no interrupt");
}

/// Requests of a driver without EVENT_IDX must not affect a later driver with it: virtio-queue 0.18 lost the interrupt
/// after 65,535 of them.
#[test]
fn an_interrupt_is_not_lost_after_many_requests_without_event_idx() {
    let (mut driver, process) = many_without_event_idx();
    assert_interrupted(&mut driver, &process);
    assert_eq!(driver.used_index(), 0, "the index wraps around");
}

/// A reset, after which the indexes start again, must not affect interrupts either.
#[test]
fn an_interrupt_is_not_lost_after_a_reset() {
    let (driver, process) = many_without_event_idx();
    let mut driver = Driver::in_memory(driver.memory().clone(), 8, 0);
    assert_interrupted(&mut driver, &process);
    assert_eq!(driver.used_index(), 1);
}

#[test]
fn a_driver_without_event_idx_that_wants_no_interrupt_gets_none() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let _ = is_signalled(&process.call);
    for wanted in [false, true] {
        driver.set_flags(u16::from(!wanted));
        driver.submit(1);
        process.serve(&driver, Death::Never, Order::Ring);
        assert_eq!(is_signalled(&process.call), wanted);
    }
}

/// The driver is interrupted for requests published before one that cannot be published.
#[test]
fn an_interrupt_is_not_lost_when_a_later_request_cannot_be_published() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let _ = is_signalled(&process.call);
    driver.submit(3);
    let third = vm_memory::GuestAddress(driver.addresses().1 + 4 + 2 * 2);
    driver.memory().write_obj(8u16, third).unwrap();
    let guard = process.memory.memory();
    let mut chains = Vec::new();
    let mut locked = process.ring.lock();
    let (_, first) = locked
        .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
        .unwrap();
    let heads = [0, 1, 8];
    assert!(chains.iter().map(DescriptorChain::head_index).eq(heads));
    let fault = publish(&mut locked, first, &heads);
    assert!(matches!(fault, Err(RingFault::Broken(_))));
    assert_eq!(driver.used_index(), 2);
    assert!(is_signalled(&process.call), "no interrupt");
}
