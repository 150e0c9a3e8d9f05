use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddressSpace};

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl};
use vhost_user_backend::VringT;
use virtio_queue::DescriptorChain;

use crate::device::vhost_blk::execute::Completion;
use crate::device::vhost_blk::guest::{Memory, SharedMemory};
use crate::device::vhost_blk::inflight::Ticket;
use crate::device::vhost_blk::ring::{Collected, Ring, RingFault, RingGuard, WhenEmpty};
use crate::device::vhost_blk::testing::{ANSWER, Driver, ModelFault, buffer_of};

/// Where a process is killed while it serves a batch.
#[derive(Debug, Clone, Copy)]
enum Death {
    Never,
    /// After this many requests were executed, before any was published.
    Executing(usize),
    /// After this many were published.
    Publishing(usize),
    /// Like that, with the next element stored but not its index.
    InMidElement(usize),
}

/// The order in which requests are executed.
#[derive(Debug, Clone, Copy)]
enum Order {
    Ring,
    /// Random order; some of them during a later batch, as with threads of the pool.
    Shuffled {
        seed: u64,
        kept: usize,
    },
    /// Violates rule 1: completions are swapped.
    Reversed,
}

/// A request that was taken and not executed yet.
struct Taken {
    ticket: Ticket,
    head: u16,
    buffers: Vec<(vm_memory::GuestAddress, u32)>,
}

impl Taken {
    fn new(ticket: Ticket, chain: DescriptorChain<&Memory>) -> Self {
        let head = chain.head_index();
        let writable = chain.writable();
        let buffers = writable.map(|part| (part.addr(), part.len()));
        Self {
            ticket,
            head,
            buffers: buffers.collect(),
        }
    }

    fn execute(&self, memory: &Memory) {
        for (address, len) in &self.buffers {
            let answer = &ANSWER[..*len as usize];
            memory.write_slice(answer, *address).unwrap();
        }
    }
}

impl Order {
    /// Sorts requests into execution order; returns how many of them are postponed.
    fn apply(self, taken: &mut [Taken]) -> usize {
        match self {
            Self::Ring => 0,
            Self::Reversed => {
                let tickets: Vec<Ticket> = taken.iter().map(|one| one.ticket).collect();
                taken.reverse();
                for (one, ticket) in taken.iter_mut().zip(tickets) {
                    one.ticket = ticket;
                }
                0
            }
            Self::Shuffled { seed, kept } => {
                // Sort by a hash to get a pseudorandom order.
                taken.sort_by_key(|one| {
                    (u64::from(one.head) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                });
                kept.min(taken.len())
            }
        }
    }
}

/// A process that serves a ring.
struct Process {
    ring: Ring,
    memory: SharedMemory,
    call: File,
    /// Requests of earlier batches that are still to be executed.
    kept: std::cell::RefCell<Vec<Taken>>,
}

impl Process {
    /// Sets the ring up as a frontend does, with an arbitrary base.
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
        Self {
            ring,
            memory,
            call,
            kept: Default::default(),
        }
    }

    /// Serves one batch and dies at the given point. Returns whether the process is still alive.
    fn serve(&self, driver: &Driver, death: Death, order: Order) -> bool {
        let guard = self.memory.memory();
        let mut locked = self.ring.lock();
        let mut chains = Vec::new();
        let (_, first) = locked
            .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
            .unwrap();
        let mut taken = self.kept.take();
        let tickets = (0..).map(|index| first.later(index));
        taken.extend(
            tickets
                .zip(chains)
                .map(|(ticket, chain)| Taken::new(ticket, chain)),
        );
        let kept = order.apply(&mut taken);
        let carried_out = match death {
            Death::Never => taken.len() - kept,
            Death::Executing(count) | Death::Publishing(count) | Death::InMidElement(count) => {
                count.min(taken.len())
            }
        };
        for one in taken.drain(..carried_out) {
            one.execute(&guard);
            locked.complete(one.ticket, done(one.head));
        }
        if matches!(death, Death::Executing(_)) {
            return false;
        }
        locked.publish().unwrap();
        if let (Death::InMidElement(_), Some(next)) = (death, taken.first()) {
            driver.scribble_element(driver.used_index(), next.head);
        }
        self.kept.replace(taken);
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

fn done(head: u16) -> Completion {
    Completion {
        head,
        used_len_bytes: 16,
    }
}

/// Completes as many requests as there are heads, in the order of their tickets, and publishes.
fn publish(locked: &mut RingGuard<'_>, first: Ticket, heads: &[u16]) -> Result<(), RingFault> {
    for (index, head) in heads.iter().enumerate() {
        locked.complete(first.later(index), done(*head));
    }
    locked.publish()
}

/// The result of checking the ring.
fn look(ring: &Ring, memory: &Memory) -> Result<Collected, RingFault> {
    let mut chains = Vec::new();
    ring.lock()
        .collect(memory, WhenEmpty::AskForKick, &mut chains)
        .map(|(look, _)| look)
}

#[derive(Debug, Clone, Copy)]
struct Round {
    submit: usize,
    death: Death,
    /// Whether the guest checks the used ring afterwards.
    look: bool,
    order: Order,
}

/// Runs rounds; after each death a new process starts with a base that is wrong by `base_error`.
fn run(size: u16, start: u16, base_error: u16, rounds: &[Round]) -> Result<(), ModelFault> {
    let mut driver = Driver::new(size, start);
    let base = |driver: &Driver| driver.used_index().wrapping_add(base_error);
    let mut process = Process::start(&driver, size, base(&driver));
    for round in rounds {
        driver.submit(round.submit);
        let alive = process.serve(&driver, round.death, round.order);
        if !matches!(round.order, Order::Reversed) {
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
    process.serve(&driver, Death::Never, Order::Ring);
    process.serve(&driver, Death::Never, Order::Ring);
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

fn orders() -> impl Strategy<Value = Order> {
    let shuffled =
        (any::<u64>(), 0usize..20).prop_map(|(seed, kept)| Order::Shuffled { seed, kept });
    prop_oneof![1 => Just(Order::Ring), 3 => shuffled]
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (0usize..20, deaths(), any::<bool>(), orders());
    prop::collection::vec(
        round.prop_map(|(submit, death, look, order)| Round {
            submit,
            death,
            look,
            order,
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
    fn no_crash_is_noticed_in_any_order_of_execution(
        size in prop::sample::select(vec![2u16, 4, 16, 64, 128]),
        start in starts(),
        base_error in any::<u16>(),
        rounds in rounds(),
    ) {
        prop_assert_eq!(run(size, start, base_error, &rounds), Ok(()));
    }
}

/// Shows that the model detects violations: without rule 1, a crash within a batch completes a request twice.
#[test]
fn publishing_out_of_order_is_detected() {
    let death = Round {
        submit: 4,
        death: Death::Publishing(2),
        look: true,
        order: Order::Reversed,
    };
    let noticed = run(16, 0, 0, &[death]);
    assert!(
        matches!(noticed, Err(ModelFault::NotOutstanding(_))),
        "{noticed:?}"
    );
}

/// Without crashes, a wrong order is harmless: only rule 2 depends on it.
#[test]
fn out_of_order_without_a_crash_is_valid_for_the_guest() {
    let calm = Round {
        submit: 4,
        death: Death::Never,
        look: true,
        order: Order::Reversed,
    };
    assert_eq!(run(16, 0, 0, &[calm; 9]), Ok(()));
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
fn every_new_call_eventfd_is_signalled() {
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
    assert_eq!(look(&process.ring, &guard).unwrap(), Collected::Stopped);
    process.ring.set_queue_ready(false);
    process.ring.set_queue_ready(true);
    assert_eq!(look(&process.ring, &guard).unwrap(), Collected::Nothing);
}

#[test]
fn an_impossible_head_breaks_the_ring() {
    let driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    let mut locked = process.ring.lock();
    let ticket = locked.state.in_flight.take(1);
    let fault = publish(&mut locked, ticket, &[8]).unwrap_err();
    assert!(matches!(fault, RingFault::Broken(_)));
}

#[test]
fn a_disabled_or_stopped_ring_is_not_processed() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    driver.submit(2);
    let guard = process.memory.memory();
    process.ring.set_enabled(false);
    assert_eq!(look(&process.ring, &guard).unwrap(), Collected::Stopped);
    process.ring.set_enabled(true);
    process.ring.set_queue_ready(false);
    assert!(!process.ring.has_requests(&*guard));
    assert_eq!(look(&process.ring, &guard).unwrap(), Collected::Stopped);
    process.ring.set_queue_ready(true);
    assert!(process.ring.has_requests(&*guard));
    let mut chains = Vec::new();
    let (look, _) = process
        .ring
        .lock()
        .collect(&*guard, WhenEmpty::LeaveQuiet, &mut chains)
        .unwrap();
    assert_eq!((look, chains.len()), (Collected::Requests, 2));
    assert!(!process.ring.has_requests(&*guard));
}

#[test]
fn a_request_put_back_is_taken_again() {
    let mut driver = Driver::new(8, u16::MAX);
    let process = Process::start(&driver, 8, 0);
    driver.submit(3);
    let guard = process.memory.memory();
    let mut locked = process.ring.lock();
    let mut chains = Vec::new();
    for _ in 0..3 {
        locked
            .collect(&*guard, WhenEmpty::AskForKick, &mut chains)
            .unwrap();
        let heads: Vec<u16> = chains.iter().map(DescriptorChain::head_index).collect();
        assert_eq!(heads, [0, 1, 2]);
        locked.put_back(3);
    }
}

/// SET_VRING_NUM cannot fail, so a ring with an invalid size must not run with another size instead.
#[test]
fn a_size_that_is_not_a_power_of_two_is_refused() {
    let mut driver = Driver::new(8, 0);
    let process = Process::start(&driver, 8, 0);
    driver.submit(1);
    process.ring.set_queue_size(6);
    let guard = process.memory.memory();
    let fault = look(&process.ring, &guard).unwrap_err();
    assert!(matches!(fault, RingFault::Size { size: 6 }), "{fault}");
    assert_eq!(look(&process.ring, &guard).unwrap(), Collected::Stopped);
    let (descriptors, avail, used) = driver.addresses();
    assert!(
        process
            .ring
            .set_queue_info(descriptors, avail, used)
            .is_err()
    );
    process.ring.set_queue_size(8);
    assert_eq!(look(&process.ring, &guard).unwrap(), Collected::Requests);
}

/// A guest that makes requests available without limit does not fill the host's memory.
#[test]
fn at_most_a_ring_of_requests_is_taken() {
    let mut driver = Driver::new(4, 0);
    let process = Process::start(&driver, 4, 0);
    driver.submit(4);
    let guard = process.memory.memory();
    let mut chains = Vec::new();
    let mut locked = process.ring.lock();
    let (_, first) = locked
        .collect(&*guard, WhenEmpty::LeaveQuiet, &mut chains)
        .unwrap();
    assert_eq!(chains.len(), 4);
    // The same four heads again, before any of them was returned.
    let avail_index = vm_memory::GuestAddress(driver.addresses().1 + 2);
    guard.write_obj(8u16, avail_index).unwrap();
    for quiet in [WhenEmpty::LeaveQuiet, WhenEmpty::AskForKick] {
        let (look, _) = locked.collect(&*guard, quiet, &mut chains).unwrap();
        assert_eq!((look, chains.len()), (Collected::Nothing, 0));
    }
    publish(&mut locked, first, &[0]).unwrap();
    locked
        .collect(&*guard, WhenEmpty::LeaveQuiet, &mut chains)
        .unwrap();
    assert_eq!(chains.len(), 1);
}

#[test]
fn reading_an_empty_kick_eventfd_does_not_block() {
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

mod halts;
mod hostile;
mod interrupts;
