//! Malicious rings and call descriptors.

use super::*;
use crate::device::vhost_blk::testing;

/// A call descriptor whose writes would block must not block any thread.
#[test]
fn a_full_call_eventfd_does_not_block() {
    let full = nix::sys::eventfd::EventFd::new().unwrap();
    full.write(u64::MAX - 1).unwrap();
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    process
        .ring
        .set_call(Some(std::os::fd::OwnedFd::from(full).into()));
    driver.submit(3);
    assert!(process.serve(&driver, Death::Never, Order::Ring));
    assert_eq!(driver.used_index(), 3);
}

/// Threads do not write to a call descriptor that is not an eventfd, since poll(2) guarantees nothing there. Requests
/// are completed anyway, and the fault is reported.
#[test]
fn a_call_descriptor_that_is_not_an_eventfd_is_refused() {
    let (_reader, pipe) = io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    for call in [std::os::fd::OwnedFd::from(pipe), socket.into(), file.into()] {
        let mut driver = Driver::new(8, 0);
        let process = Process::start(&driver, 8, 0);
        let copy = File::from(call.try_clone().unwrap());
        process.ring.set_call(Some(call.into()));
        let before = rustix::fs::fstat(&copy).unwrap().st_size;
        driver.submit(1);
        let guard = process.memory.memory();
        let mut locked = process.ring.lock();
        let mut chains = Vec::new();
        let (_, first) = locked
            .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
            .unwrap();
        let fault = publish(&mut locked, first, &[0]).unwrap_err();
        assert!(matches!(fault, RingFault::Signal(_)));
        assert_eq!(driver.used_index(), 1);
        assert_eq!(rustix::fs::fstat(&copy).unwrap().st_size, before);
    }
}

/// A reader that waits for interrupts shares the file's flags with the device.
#[test]
fn flags_of_a_call_eventfd_are_not_changed() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let blocking = nix::sys::eventfd::EventFd::new().unwrap();
    let copy = blocking.as_fd().try_clone_to_owned().unwrap();
    process.ring.set_call(Some(copy.into()));
    let flags = fcntl_getfl(&blocking).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK));
    assert_eq!(blocking.read().unwrap(), 1);
}

/// Serves a ring whose available index was set to `index` while `next` was expected.
fn look_after_jump(next: u16, index: u16) -> Result<Collected, RingFault> {
    let driver = Driver::new(8, next);
    let process = Process::start(&driver, 8, next);
    let guard = process.memory.memory();
    let at = vm_memory::GuestAddress(driver.addresses().1 + 2);
    guard.write_obj(index, at).unwrap();
    look(&process.ring, &guard)
}

#[test]
fn an_available_index_that_jumps_or_goes_back_breaks_the_ring() {
    for (next, index) in [
        (0, 9),
        (0, u16::MAX),
        (5, 4),
        (u16::MAX, 8),
        (100, 100 + 0x8000),
    ] {
        let fault = look_after_jump(next, index);
        assert!(matches!(fault, Err(RingFault::Broken(_))), "{next} {index}");
    }
    assert_eq!(look_after_jump(u16::MAX, 7).unwrap(), Collected::Requests);
}

#[test]
fn rings_outside_memory_are_broken_from_the_start() {
    let memory = SharedMemory::new(testing::memory(0x10000));
    let places = [
        (0, 0x1000, 0xffff_ffff_ffff_fffc),
        (0, 0x1000, 0x1_0000),
        (0, 0xffff_ffff_ffff_fffe, 0x2000),
        (0, 0x1_0000, 0x2000),
        (0, 0xfffe, 0x2000),
    ];
    for (descriptors, avail, used) in places {
        let ring = Ring::new(memory.clone(), 256).unwrap();
        ring.set_queue_size(8);
        ring.set_queue_info(descriptors, avail, used).unwrap();
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        let found = look(&ring, &memory.memory());
        let stopped = matches!(found, Ok(Collected::Stopped) | Err(RingFault::Broken(_)));
        assert!(stopped, "{avail:#x} {used:#x}: {found:?}");
        assert_eq!(look(&ring, &memory.memory()).unwrap(), Collected::Stopped);
    }
}

#[test]
fn a_descriptor_table_outside_memory_does_not_break_the_ring() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let (_, avail, used) = driver.addresses();
    process.ring.set_queue_info(1 << 40, avail, used).unwrap();
    driver.submit(1);
    let guard = process.memory.memory();
    let mut locked = process.ring.lock();
    let mut chains = Vec::new();
    let (look, first) = locked
        .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
        .unwrap();
    assert_eq!((look, chains.len()), (Collected::Requests, 1));
    assert_eq!(chains.remove(0).count(), 0);
    publish(&mut locked, first, &[0]).unwrap();
    assert_eq!(driver.used_index(), 1);
}
