//! Clients leak nothing when they disconnect, in whatever way: no descriptors, memory, threads or processes. And no
//! client affects another.

use std::io::Write;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use lazystore::image::Image;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::client::Client;
use crate::common::frontend::{F_PROTOCOL_FEATURES, F_VERSION_1, Frontend, Guest};
use crate::common::proc::{fds, private_kib, threads, written_kib};
use crate::common::process::wait_for;
use crate::common::random::Random;
use crate::common::server::Server;
use crate::common::small_store::SmallStore;

const ORDINARY: u64 = F_VERSION_1 | F_PROTOCOL_FEATURES;

/// Resources of a process.
#[derive(Debug, Clone, Copy)]
struct Holdings {
    fds: usize,
    threads: usize,
    written_kib: u64,
}

impl Holdings {
    fn of(pid: Pid) -> Self {
        let holdings = Self {
            fds: fds(pid),
            threads: threads(pid),
            written_kib: written_kib(pid),
        };
        assert!(holdings.fds > 0 && holdings.written_kib > 0, "{holdings:?}");
        holdings
    }

    /// Asserts that nothing has grown, except for a little memory of the allocator.
    fn assert_not_grown(self, before: Self) {
        assert_eq!((self.fds, self.threads), (before.fds, before.threads));
        assert!(
            self.written_kib <= before.written_kib + 256,
            "{before:?} {self:?}"
        );
    }
}

fn without_workers(server: &Server) -> Holdings {
    wait_for("workers to go", || {
        server.workers().is_empty().then_some(())
    });
    Holdings::of(server.pid())
}

fn read_once(frontend: &Frontend, guest: &mut Guest) {
    guest.submit(0, 0, 2, 4096);
    frontend.kick();
    guest.wait();
    assert_eq!(guest.status(0), 0);
}

/// Connects and disconnects in one of five ways.
fn visit(socket: &Path, way: usize) {
    let mut guest = Guest::new();
    match way % 5 {
        0 => drop(UnixStream::connect(socket).unwrap()),
        // Disconnects within a message.
        1 => UnixStream::connect(socket)
            .unwrap()
            .write_all(&[1, 0, 0, 0, 1, 0])
            .unwrap(),
        2 => Frontend::connect(socket).negotiate(ORDINARY),
        3 => {
            let frontend = Frontend::start(socket, &guest, ORDINARY);
            // Disconnects while requests are in flight.
            (0..8).for_each(|slot| guest.submit(slot, 0, 2, 4096));
            frontend.kick();
        }
        _ => read_once(&Frontend::start(socket, &guest, ORDINARY), &mut guest),
    }
}

#[test]
fn a_hundred_connections_leak_nothing() {
    let store = SmallStore::new(&["aaa-one"]);
    let server = Server::start_after(&[], &store.args(), &[]);
    (0..10).for_each(|way| visit(&server.socket, way));
    let before = without_workers(&server);
    (0..100).for_each(|way| visit(&server.socket, way));
    let after = without_workers(&server);
    println!("before {before:?}, after 100 connections {after:?}");
    after.assert_not_grown(before);
    assert_eq!(after.threads, 1);
    visit(&server.socket, 4);
}

#[test]
fn a_silent_client_does_not_delay_others() {
    let store = SmallStore::new(&["aaa-one"]);
    let server = Server::start_after(&[], &store.args(), &[]);
    visit(&server.socket, 4);
    let before = without_workers(&server);
    let silent: Vec<_> = (0..8)
        .map(|_| UnixStream::connect(&server.socket).unwrap())
        .collect();
    visit(&server.socket, 4);
    wait_for("their workers", || {
        (server.workers().len() == 8).then_some(())
    });
    let socket = server.socket.clone();
    println!("8 silent connections: {:?}", Holdings::of(server.pid()));
    drop(silent);
    without_workers(&server).assert_not_grown(before);
    server.signal(Signal::SIGTERM);
    assert!(server.end().0.success());
    assert!(!socket.exists());
}

/// A frontend whose guest reboots keeps its connection and sets the queue up again.
#[test]
#[ignore = "needs root"]
fn a_hundred_reboots_leak_nothing_in_the_worker() {
    let store = SmallStore::new(&["aaa-one"]);
    let server = Server::start_after(&[], &store.args(), &[]);
    let mut guest = Guest::new();
    let frontend = Frontend::start(&server.socket, &guest, F_VERSION_1);
    let mut reboot = || {
        read_once(&frontend, &mut guest);
        // Once it replies, earlier messages have been processed.
        frontend.stop_queue();
        let holdings = Holdings::of(server.workers()[0]);
        frontend.start_queue();
        holdings
    };
    let before = (0..10).map(|_| reboot()).last().unwrap();
    let after = (0..100).map(|_| reboot()).last().unwrap();
    println!("before {before:?}, after 100 reboots {after:?}");
    after.assert_not_grown(before);
}

fn read_and_compare(socket: &Path, image: &Image, seed: u64, files: &[Range<u64>]) -> usize {
    let mut client = Client::start(socket, 2);
    let mut random = Random::new(seed);
    let mut compared = 0;
    for round in 0..40 {
        let mut place = || {
            let file = &files[random.index(files.len())];
            let sectors = (file.end - file.start) / 512;
            let first = random.below(sectors);
            let len = 512 * (1 + random.below((sectors - first).min(64)));
            (file.start + 512 * first, usize::try_from(len).unwrap())
        };
        let reads: Vec<_> = (0..8).map(|_| place()).collect();
        for (data, (start, len)) in client.read(round % 2, &reads).into_iter().zip(&reads) {
            let mut expected = vec![0; *len];
            image.read_exact_at(&mut expected, *start).unwrap();
            assert!(data.unwrap() == expected, "{len} bytes at {start}");
            compared += 1;
        }
    }
    compared
}

#[test]
fn thirty_two_clients_are_unaffected_by_one_that_kills_its_worker() {
    const TRICKS: usize = 8;
    let store = SmallStore::new(&["aaa-one", "bbb-two", "ccc-three"]);
    let image = store.image();
    let bytes = |blocks: &Range<u32>| 4096 * u64::from(blocks.start)..4096 * u64::from(blocks.end);
    let regions = image.space().regions().iter();
    let files: Vec<_> = regions
        .flat_map(|region| [bytes(&region.meta), bytes(&region.data)])
        .collect();
    let server = Server::start_after(&[], &store.args(), &[]);
    let before = without_workers(&server);
    let compared: usize = thread::scope(|scope| {
        let read = |seed| read_and_compare(&server.socket, &image, seed, &files);
        let clients: Vec<_> = (0..32)
            .map(|seed| scope.spawn(move || read(seed)))
            .collect();
        for _ in 0..TRICKS {
            let mut guest = Guest::new();
            let frontend = Frontend::start(&server.socket, &guest, ORDINARY);
            read_once(&frontend, &mut guest);
            guest.cut_memory();
            frontend.kick();
            assert!(frontend.is_closed());
        }
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .sum()
    });
    let after = without_workers(&server);
    after.assert_not_grown(before);
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    let killed = log.matches("was killed by SIGBUS").count();
    println!(
        "32 clients compared {compared} reads; {killed} workers died of SIGBUS; {before:?} {after:?}"
    );
    assert_eq!((compared, killed), (32 * 40 * 8, TRICKS), "{log}");
}

/// Number of paths: as many as several NixOS systems have.
#[test]
#[ignore = "needs root"]
fn an_idle_vm_takes_less_than_three_megabytes() {
    const PATHS: usize = 10_000;
    let store = SmallStore::of_small_paths(PATHS);
    let server = Server::start_after(&[], &store.args(), &[]);
    let guests: Vec<_> = (0..10).map(|_| Guest::new()).collect();
    let start = |guest| Frontend::start(&server.socket, guest, ORDINARY);
    let frontends: Vec<_> = guests.iter().map(start).collect();
    // Once the last message is answered, all earlier ones have been processed.
    frontends
        .iter()
        .for_each(|frontend| drop(frontend.config(0, 60)));
    let workers = server.workers();
    assert_eq!(workers.len(), guests.len());
    let mut kib: Vec<u64> = workers.into_iter().map(private_kib).collect();
    kib.sort_unstable();
    let listener = private_kib(server.pid());
    println!("{PATHS} paths: private KiB of 10 workers {kib:?}, of the listener {listener}");
    assert!(kib[0] > 0 && kib[9] < 3 << 10, "{kib:?}");
}
