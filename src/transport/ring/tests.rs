use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddressSpace};

use super::*;
use crate::transport::testing::{ANSWER, Driver, ModelFault, buffer_of};

/// Where a process dies while it serves a batch.
#[derive(Debug, Clone, Copy)]
enum Death {
    Never,
    /// After this many requests were carried out, before any was published.
    Executing(usize),
    /// After this many were published.
    Publishing(usize),
    /// As before, with the next element stored but not its index.
    InMidElement(usize),
}

/// In which order a batch is published.
#[derive(Debug, Clone, Copy)]
enum Order {
    Ring,
    Reversed,
}

/// A process that serves a ring.
struct Process {
    ring: Ring,
    memory: SharedMemory,
    call: File,
}

impl Process {
    /// Sets the ring up as a frontend does, with a base of its own idea.
    fn start(driver: &Driver, size: u16, base: u16) -> Self {
        let memory = SharedMemory::new(driver.memory().clone());
        let ring = Ring::new(memory.clone(), 256).unwrap();
        let (descriptors, avail, used) = driver.addresses();
        ring.set_queue_size(size);
        ring.set_queue_next_avail(base);
        ring.set_queue_info(descriptors, avail, used).unwrap();
        ring.set_queue_ready(true);
        ring.set_queue_next_avail(base);
        ring.set_enabled(true);
        let call = eventfd();
        ring.set_call(Some(call.try_clone().unwrap()));
        Self { ring, memory, call }
    }

    /// Serves one batch, dying where told to. Returns whether the process is alive.
    fn serve(&self, driver: &Driver, death: Death, order: Order) -> bool {
        let guard = self.memory.memory();
        let mut turn = self.ring.turn();
        let mut chains = Vec::new();
        let (_, first) = turn.collect(&guard, Quiet::Kick, &mut chains).unwrap();
        let mut heads: Vec<u16> = chains.iter().map(DescriptorChain::head_index).collect();
        if matches!(order, Order::Reversed) {
            heads.reverse();
        }
        let executed = match death {
            Death::Executing(count) => count.min(heads.len()),
            _ => heads.len(),
        };
        heads[..executed]
            .iter()
            .for_each(|head| execute(&guard, *head));
        let published = match death {
            Death::Never => heads.len(),
            Death::Executing(_) => return false,
            Death::Publishing(count) | Death::InMidElement(count) => count.min(heads.len()),
        };
        publish(&mut turn, &guard, first, &heads[..published]).unwrap();
        if let (Death::InMidElement(_), Some(next)) = (death, heads.get(published)) {
            driver.scribble_element(driver.used_index(), *next);
        }
        matches!(death, Death::Never)
    }
}

fn eventfd() -> File {
    let flags = nix::sys::eventfd::EfdFlags::EFD_NONBLOCK;
    let event = nix::sys::eventfd::EventFd::from_value_and_flags(0, flags).unwrap();
    std::os::fd::OwnedFd::from(event).into()
}

fn is_signalled(mut event: &File) -> bool {
    io::Read::read(&mut event, &mut [0; 8]).is_ok()
}

fn execute(memory: &Memory, head: u16) {
    memory.write_slice(&ANSWER, buffer_of(head)).unwrap();
}

fn done(head: u16) -> Done {
    Done {
        head,
        used_len_bytes: 16,
    }
}

/// Completes as many requests as there are heads, in the order of their tickets, and publishes.
fn publish(
    turn: &mut Turn<'_>,
    memory: &Memory,
    first: Ticket,
    heads: &[u16],
) -> Result<(), RingFault> {
    for (index, head) in heads.iter().enumerate() {
        turn.complete(first.later(index), done(*head));
    }
    turn.publish(memory)
}

/// What a look at the ring finds.
fn look(ring: &Ring, memory: &Memory) -> Result<Look, RingFault> {
    let mut chains = Vec::new();
    ring.turn()
        .collect(memory, Quiet::Kick, &mut chains)
        .map(|(look, _)| look)
}

#[derive(Debug, Clone, Copy)]
struct Round {
    submit: usize,
    death: Death,
    /// Whether the guest looks at the used ring afterwards.
    look: bool,
}

/// Runs rounds; after each death a new process starts with a base that is wrong by `base_error`.
fn run(
    size: u16,
    start: u16,
    base_error: u16,
    order: Order,
    rounds: &[Round],
) -> Result<(), ModelFault> {
    let mut driver = Driver::new(size, start);
    let base = |driver: &Driver| driver.used_index().wrapping_add(base_error);
    let mut process = Process::start(&driver, size, base(&driver));
    for round in rounds {
        driver.submit(round.submit);
        let alive = process.serve(&driver, round.death, order);
        if matches!(order, Order::Ring) {
            driver.check_prefix()?;
        }
        if round.look {
            driver.take_back()?;
        }
        if !alive {
            process = Process::start(&driver, size, base(&driver));
            assert!(is_signalled(&process.call), "rule 3");
        }
    }
    process.serve(&driver, Death::Never, order);
    process.serve(&driver, Death::Never, order);
    driver.take_back()?;
    driver.check_nothing_lost()
}

fn deaths() -> impl Strategy<Value = Death> {
    prop_oneof![
        2 => Just(Death::Never),
        1 => (0usize..20).prop_map(Death::Executing),
        1 => (0usize..20).prop_map(Death::Publishing),
        1 => (0usize..20).prop_map(Death::InMidElement),
    ]
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (0usize..20, deaths(), any::<bool>());
    prop::collection::vec(
        round.prop_map(|(submit, death, look)| Round {
            submit,
            death,
            look,
        }),
        1..60,
    )
}

fn starts() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0),
        Just(u16::MAX),
        (u16::MAX - 100)..=u16::MAX,
        any::<u16>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_death_is_noticed(
        size in prop::sample::select(vec![2u16, 4, 16, 64, 128]),
        start in starts(),
        base_error in any::<u16>(),
        rounds in rounds(),
    ) {
        prop_assert_eq!(run(size, start, base_error, Order::Ring, &rounds), Ok(()));
    }
}

/// The model would notice: without rule 1 a death in mid batch answers a request twice.
#[test]
fn publishing_out_of_order_is_noticed() {
    let death = Round {
        submit: 4,
        death: Death::Publishing(2),
        look: true,
    };
    let noticed = run(16, 0, 0, Order::Reversed, &[death]);
    assert!(
        matches!(noticed, Err(ModelFault::NotOutstanding(_))),
        "{noticed:?}"
    );
}

/// Deaths aside, the order alone is no harm: it is rule 2 that needs it.
#[test]
fn out_of_order_without_death_is_fine_for_the_guest() {
    let calm = Round {
        submit: 4,
        death: Death::Never,
        look: true,
    };
    assert_eq!(run(16, 0, 0, Order::Reversed, &[calm; 9]), Ok(()));
}

#[test]
fn a_running_ring_ignores_bases() {
    let mut driver = Driver::new(8, 5);
    let process = Process::start(&driver, 8, 77);
    assert_eq!(process.ring.queue_next_avail(), 5);
    driver.submit(3);
    process.serve(&driver, Death::Never, Order::Ring);
    process.ring.set_queue_next_avail(0);
    process.ring.set_queue_next_used(0);
    let (descriptors, avail, used) = driver.addresses();
    process
        .ring
        .set_queue_info(descriptors, avail, used)
        .unwrap();
    assert_eq!(process.ring.queue_next_avail(), 8);
    driver.take_back().unwrap();
    driver.check_nothing_lost().unwrap();
}

#[test]
fn every_call_descriptor_is_signalled() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    assert!(is_signalled(&process.call));
    let second = eventfd();
    process.ring.set_call(Some(second.try_clone().unwrap()));
    assert!(is_signalled(&second));
    process.ring.set_call(None);
}

#[test]
fn an_impossible_index_breaks_the_ring_until_it_is_set_up_again() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let guard = process.memory.memory();
    let avail_index = vm_memory::GuestAddress(driver.addresses().1 + 2);
    guard.write_obj(9u16, avail_index).unwrap();
    let fault = look(&process.ring, &guard).unwrap_err();
    assert!(matches!(fault, RingFault::Broken(_)));
    guard.write_obj(0u16, avail_index).unwrap();
    assert_eq!(look(&process.ring, &guard).unwrap(), Look::Stopped);
    process.ring.set_queue_ready(false);
    process.ring.set_queue_ready(true);
    assert_eq!(look(&process.ring, &guard).unwrap(), Look::Idle);
}

#[test]
fn an_impossible_head_breaks_the_ring() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let guard = process.memory.memory();
    let mut turn = process.ring.turn();
    let ticket = turn.state.in_flight.take(1);
    let fault = publish(&mut turn, &guard, ticket, &[8]).unwrap_err();
    assert!(matches!(fault, RingFault::Broken(_)));
}

#[test]
fn a_disabled_or_stopped_ring_is_left_alone() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    driver.submit(2);
    let guard = process.memory.memory();
    process.ring.set_enabled(false);
    assert_eq!(look(&process.ring, &guard).unwrap(), Look::Stopped);
    process.ring.set_enabled(true);
    process.ring.set_queue_ready(false);
    assert!(!process.ring.has_requests(&guard));
    assert_eq!(look(&process.ring, &guard).unwrap(), Look::Stopped);
    process.ring.set_queue_ready(true);
    assert!(process.ring.has_requests(&guard));
    let mut chains = Vec::new();
    let (look, _) = process
        .ring
        .turn()
        .collect(&guard, Quiet::Poll, &mut chains)
        .unwrap();
    assert_eq!((look, chains.len()), (Look::Work, 2));
    assert!(!process.ring.has_requests(&guard));
}

#[test]
fn what_was_put_back_is_taken_again() {
    let mut driver = Driver::new(8, u16::MAX);
    let process = Process::start(&driver, 8, 0);
    driver.submit(3);
    let guard = process.memory.memory();
    let mut turn = process.ring.turn();
    let mut chains = Vec::new();
    for _ in 0..3 {
        turn.collect(&guard, Quiet::Kick, &mut chains).unwrap();
        let heads: Vec<u16> = chains.iter().map(DescriptorChain::head_index).collect();
        assert_eq!(heads, [0, 1, 2]);
        turn.put_back(3);
    }
}

/// A stop waits for the batch, so that the base the frontend is told is the number of answered requests.
#[test]
fn stopping_waits_for_the_batch() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    driver.submit(3);
    let guard = process.memory.memory();
    let mut turn = process.ring.turn();
    let mut chains = Vec::new();
    let (_, first) = turn.collect(&guard, Quiet::Kick, &mut chains).unwrap();
    let ring = process.ring.clone();
    let stop = std::thread::spawn(move || ring.set_queue_ready(false));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!stop.is_finished());
    publish(&mut turn, &guard, first, &[0, 1, 2]).unwrap();
    drop(turn);
    stop.join().unwrap();
    assert_eq!(process.ring.queue_next_avail(), driver.used_index());
}

/// Nor is the ring at rest while another thread carries out what the queue's thread gave away.
#[test]
fn stopping_waits_for_other_threads() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    driver.submit(3);
    let guard = process.memory.memory();
    let mut turn = process.ring.turn();
    let mut chains = Vec::new();
    let (_, first) = turn.collect(&guard, Quiet::Kick, &mut chains).unwrap();
    for head in [0, 2] {
        execute(&guard, head);
        turn.complete(first.later(usize::from(head)), done(head));
    }
    turn.publish(&guard).unwrap();
    drop(turn);
    // Request 2 has been carried out, but 1 is in front of it.
    assert_eq!(driver.used_index(), 1);
    let ring = process.ring.clone();
    let stop = std::thread::spawn(move || ring.set_queue_ready(false));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!stop.is_finished());
    execute(&guard, 1);
    process
        .ring
        .answer(&guard, first.later(1), done(1))
        .unwrap();
    stop.join().unwrap();
    assert_eq!(driver.used_index(), 3);
    driver.check_prefix().unwrap();
    driver.take_back().unwrap();
    driver.check_nothing_lost().unwrap();
}

/// A guest that makes requests available without end does not fill the host's memory.
#[test]
fn no_more_is_taken_than_the_ring_holds() {
    let mut driver = Driver::new(4, 0);
    let process = Process::start(&driver, 4, 0);
    driver.submit(4);
    let guard = process.memory.memory();
    let mut chains = Vec::new();
    let mut turn = process.ring.turn();
    let (_, first) = turn.collect(&guard, Quiet::Poll, &mut chains).unwrap();
    assert_eq!(chains.len(), 4);
    // The same four heads again, before any of them came back.
    let avail_index = vm_memory::GuestAddress(driver.addresses().1 + 2);
    guard.write_obj(8u16, avail_index).unwrap();
    for quiet in [Quiet::Poll, Quiet::Kick] {
        let (look, _) = turn.collect(&guard, quiet, &mut chains).unwrap();
        assert_eq!((look, chains.len()), (Look::Idle, 0));
    }
    publish(&mut turn, &guard, first, &[0]).unwrap();
    turn.collect(&guard, Quiet::Poll, &mut chains).unwrap();
    assert_eq!(chains.len(), 1);
}

#[test]
fn a_kick_that_is_not_there_is_no_error_and_does_not_block() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let blocking = nix::sys::eventfd::EventFd::new().unwrap();
    process
        .ring
        .set_kick(Some(std::os::fd::OwnedFd::from(blocking).into()));
    assert!(process.ring.read_kick().unwrap());
    process.ring.set_enabled(false);
    assert!(!process.ring.read_kick().unwrap());
}

/// A frontend may give a descriptor that blocks and takes nothing more: neither thread may wait for it.
#[test]
fn a_full_call_descriptor_stops_nobody() {
    let full = nix::sys::eventfd::EventFd::new().unwrap();
    full.write(u64::MAX - 1).unwrap();
    let (_reader, mut pipe) = io::pipe().unwrap();
    fcntl_setfl(&pipe, OFlags::NONBLOCK).unwrap();
    while io::Write::write(&mut pipe, &[0; 4096]).is_ok() {}
    fcntl_setfl(&pipe, OFlags::empty()).unwrap();
    for call in [
        std::os::fd::OwnedFd::from(full),
        std::os::fd::OwnedFd::from(pipe),
    ] {
        let mut driver = Driver::new(8, 0);
        let process = Process::start(&driver, 8, 0);
        process.ring.set_call(Some(call.into()));
        driver.submit(3);
        assert!(process.serve(&driver, Death::Never, Order::Ring));
        assert_eq!(driver.used_index(), 3);
    }
}

/// Whoever waits for interrupts by reading shares the descriptor's flags with the device.
#[test]
fn a_call_descriptor_stays_as_it_was() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let blocking = nix::sys::eventfd::EventFd::new().unwrap();
    let copy = blocking.as_fd().try_clone_to_owned().unwrap();
    process.ring.set_call(Some(copy.into()));
    let flags = fcntl_getfl(&blocking).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK));
    assert_eq!(blocking.read().unwrap(), 1);
}

/// A call descriptor whose reader has gone is an error that is told, not a signal.
#[test]
fn a_call_descriptor_that_nobody_reads_is_an_error() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let writer = std::os::fd::OwnedFd::from(writer);
    process.ring.set_call(Some(writer.into()));
    driver.submit(1);
    let guard = process.memory.memory();
    let mut turn = process.ring.turn();
    let mut chains = Vec::new();
    let (_, first) = turn.collect(&guard, Quiet::Kick, &mut chains).unwrap();
    let fault = publish(&mut turn, &guard, first, &[0]).unwrap_err();
    assert!(matches!(fault, RingFault::Signal(_)));
    assert_eq!(driver.used_index(), 1);
}

/// Looks at a ring whose available index was set to `index` while `next` was expected.
fn look_after_jump(next: u16, index: u16) -> Result<Look, RingFault> {
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
    assert_eq!(look_after_jump(u16::MAX, 7).unwrap(), Look::Work);
}

#[test]
fn rings_outside_memory_are_broken_from_the_start() {
    let memory = SharedMemory::new(crate::transport::testing::memory(0x10000));
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
        let stopped = matches!(found, Ok(Look::Stopped) | Err(RingFault::Broken(_)));
        assert!(stopped, "{avail:#x} {used:#x}: {found:?}");
        assert_eq!(look(&ring, &memory.memory()).unwrap(), Look::Stopped);
    }
}

#[test]
fn a_descriptor_table_outside_memory_breaks_no_ring() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let (_, avail, used) = driver.addresses();
    process.ring.set_queue_info(1 << 40, avail, used).unwrap();
    driver.submit(1);
    let guard = process.memory.memory();
    let mut turn = process.ring.turn();
    let mut chains = Vec::new();
    let (look, first) = turn.collect(&guard, Quiet::Kick, &mut chains).unwrap();
    assert_eq!((look, chains.len()), (Look::Work, 1));
    assert_eq!(chains.remove(0).count(), 0);
    publish(&mut turn, &guard, first, &[0]).unwrap();
    assert_eq!(driver.used_index(), 1);
}
