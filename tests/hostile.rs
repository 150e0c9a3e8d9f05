//! Hostile frontends and guests, against the real program. Other clients are still served.

mod cut;
mod raw;
mod rings;

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use lazystore::image::Image;
use tempfile::TempDir;

use crate::common::frontend::{F_PROTOCOL_FEATURES, F_VERSION_1, Frontend, Guest};
use crate::common::process::wait_for;
use crate::common::server::{Server, tree};
use raw::{Raw, Shared, USER, request};

const ORDINARY: u64 = F_VERSION_1 | F_PROTOCOL_FEATURES;

const READ: u32 = 0;

/// A server, and data to check that it is unharmed.
struct Stage {
    _tree: TempDir,
    image: Image,
    server: Server,
    /// Number of descriptors of the listener without clients.
    descriptors: usize,
}

impl Stage {
    fn new() -> Self {
        Self::start_after(&[])
    }

    /// The server's command line comes after `before`.
    fn start_after(before: &[&str]) -> Self {
        let tree = tree();
        let image = crate::common::tree_image(tree.path());
        let source = [Path::new("--tree"), tree.path()];
        let server = Server::start_after(before, &source, &["--threads", "2"]);
        let descriptors = descriptors(&server);
        Self {
            _tree: tree,
            image,
            server,
            descriptors,
        }
    }

    fn connect(&self) -> Raw {
        Raw::connect(&self.server.socket)
    }

    /// Checks that a new client is served, and that nothing is left of earlier ones.
    fn is_unharmed(&self) {
        let mut guest = Guest::new();
        let frontend = Frontend::start(&self.server.socket, &guest, ORDINARY);
        guest.submit(0, READ, 2, 4096);
        frontend.kick();
        guest.wait();
        let mut expected = [0; 4096];
        self.image.read_exact_at(&mut expected, 1024).unwrap();
        assert!(guest.data(0, 4096) == expected);
        drop(frontend);
        self.is_clean();
    }

    /// Checks that there are no more workers, descriptors and threads than at the start.
    fn is_clean(&self) {
        wait_for("the workers to end", || {
            self.server.workers().is_empty().then_some(())
        });
        wait_for("the listener's descriptors to be closed", || {
            (descriptors(&self.server) == self.descriptors).then_some(())
        });
        let tasks = format!("/proc/{}/task", self.server.pid());
        assert_eq!(fs::read_dir(tasks).unwrap().count(), 1);
    }
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count()
}

#[test]
fn an_incomplete_message_does_not_delay_other_clients() {
    let stage = Stage::new();
    let message = raw::message(request::GET_FEATURES, &[]);
    for sent in 0..message.len() {
        let slow = stage.connect();
        slow.send(&message[..sent], &[]);
        let mut guest = Guest::new();
        let frontend = Frontend::start(&stage.server.socket, &guest, ORDINARY);
        guest.submit(0, READ, 0, 512);
        frontend.kick();
        guest.wait();
        assert_eq!(guest.status(0), 0);
        // The rest, byte by byte.
        for byte in &message[sent..] {
            slow.send(&[*byte], &[]);
        }
        assert_eq!(slow.receive().len(), 8);
        drop(frontend);
    }
    stage.is_unharmed();
}

#[test]
fn a_frontend_that_disconnects_within_a_message_leaves_no_worker() {
    let stage = Stage::new();
    let shared = Shared::new();
    let message = raw::message(
        request::SET_MEM_TABLE,
        &raw::table(&[[0, Shared::BYTES, USER, 0]]),
    );
    for sent in [0, 1, 11, 12, 13, 20, message.len() - 1] {
        let frontend = stage.connect();
        frontend.greet();
        frontend.send(&message[..sent], &[shared.fd()][..usize::from(sent > 0)]);
    }
    stage.is_unharmed();
}

#[test]
fn invalid_headers_end_the_connection() {
    let stage = Stage::new();
    let headers = [
        // Request, flags, size: unknown, wrong version, a reply, too long, without the payload.
        [0, 1, 0],
        [99, 1, 0],
        [u32::MAX, 1, 0],
        [request::GET_FEATURES, 0, 0],
        [request::GET_FEATURES, 2, 0],
        [request::GET_FEATURES, 5, 0],
        [request::GET_FEATURES, 1, 8],
        [request::SET_FEATURES, 1, 4096],
        [request::SET_FEATURES, 1, u32::MAX],
    ];
    for header in headers {
        let frontend = stage.connect();
        frontend.greet();
        frontend.send(&raw::words32(&header), &[]);
        frontend.hang_up();
        assert!(frontend.is_closed(), "{header:?}");
    }
    stage.is_unharmed();
}

#[test]
fn wrong_numbers_of_descriptors_end_the_connection() {
    let stage = Stage::new();
    let shared = Shared::new();
    let one = raw::table(&[[0, Shared::BYTES, USER, 0]]);
    let cases = [
        (request::SET_MEM_TABLE, one.clone(), 0),
        (request::SET_MEM_TABLE, one.clone(), 2),
        (request::SET_MEM_TABLE, one, 33),
        (request::SET_VRING_KICK, raw::words64(&[0]), 0),
        (request::SET_VRING_KICK, raw::words64(&[0x100]), 1),
        (request::SET_VRING_CALL, raw::words64(&[0]), 2),
        (request::SET_VRING_CALL, raw::words64(&[64]), 1),
        (request::GET_FEATURES, Vec::new(), 1),
        (
            request::ADD_MEM_REG,
            raw::words64(&[0, 0, Shared::BYTES, USER, 0]),
            0,
        ),
    ];
    for (kind, payload, count) in cases {
        let frontend = stage.connect();
        frontend.greet();
        frontend.send(&raw::message(kind, &payload), &vec![shared.fd(); count]);
        assert!(frontend.is_closed(), "message {kind} with {count}");
    }
    stage.is_unharmed();
}

#[test]
fn impossible_memory_tables_end_the_connection() {
    let stage = Stage::new();
    let shared = Shared::new();
    let len = Shared::BYTES;
    let tables: [&[[u64; 4]]; 8] = [
        &[],
        // Empty, and longer than any address space.
        &[[0, 0, USER, 0]],
        &[[0, 1 << 52, USER, 0]],
        // Beyond the end of each address space.
        &[[u64::MAX - 4096, len, USER, 0]],
        &[[0, len, u64::MAX - 4096, 0]],
        &[[0, len, USER, u64::MAX - 4096]],
        // At an offset that is not page-aligned, and overlapping.
        &[[0, len / 2, USER, 511]],
        &[[0, len, USER, 0], [len / 2, len, USER + len, 0]],
    ];
    for table in tables {
        let frontend = stage.connect();
        frontend.greet();
        let fds = vec![shared.fd(); table.len()];
        frontend.send(
            &raw::message(request::SET_MEM_TABLE, &raw::table(table)),
            &fds,
        );
        assert!(frontend.is_closed(), "{table:x?}");
    }
    stage.is_unharmed();
}

#[test]
fn descriptors_that_cannot_be_mapped_end_the_connection() {
    let stage = Stage::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    let fds = [
        reader.as_raw_fd(),
        writer.as_raw_fd(),
        null.as_raw_fd(),
        read_only.as_raw_fd(),
        std::os::fd::AsFd::as_fd(&event).as_raw_fd(),
    ];
    for fd in fds {
        let frontend = stage.connect();
        frontend.greet();
        let table = raw::table(&[[0, 4096, USER, 0]]);
        frontend.send(&raw::message(request::SET_MEM_TABLE, &table), &[fd]);
        assert!(frontend.is_closed());
    }
    stage.is_unharmed();
}

/// Descriptor table, used ring and available ring at impossible addresses.
#[test]
fn impossible_rings_affect_no_other_vm() {
    let stage = Stage::new();
    let end = Shared::BYTES;
    let places = [
        // Outside the mapped memory, unaligned, at its end, and so high that a sum overflows.
        [end, 0x2000, 0x1000],
        [0, end, 0x1000],
        [0, 0x2000, end],
        [1, 0x2001, 0x1001],
        [0, end - 4, 0x1000],
        [0, 0x2000, end - 2],
        [end - 16, 0x2000, 0x1000],
        [u64::MAX - USER, u64::MAX - USER, u64::MAX - USER],
        // All at the same address.
        [0x1000, 0x1000, 0x1000],
    ];
    for [descriptors, used, avail] in places {
        let mut shared = Shared::new();
        let frontend = stage.connect();
        frontend.greet();
        frontend.share(&shared);
        shared.request(0, 0x4000, 512);
        shared.offer(avail, 0);
        frontend.ring(0, [descriptors, used, avail], &shared);
        frontend.finish();
    }
    stage.is_unharmed();
}

/// Buffers that overlap their own ring, header and status byte. Their guest may read anything; others are unaffected.
#[test]
fn buffers_that_overlap_rings_affect_no_other_vm() {
    let stage = Stage::new();
    for data in [0, 0x1000, 0x2000, 0x3000, 0x3010] {
        let mut shared = Shared::new();
        let frontend = stage.connect();
        frontend.greet();
        frontend.share(&shared);
        for slot in 0..4 {
            shared.request(slot, data, 0x4000);
            shared.offer(0x1000, slot);
        }
        frontend.ring(0, [0, 0x2000, 0x1000], &shared);
        frontend.finish();
    }
    stage.is_unharmed();
}

/// Messages that are allowed only with features that were not offered.
#[test]
fn features_that_were_not_offered_affect_no_other_vm() {
    let stage = Stage::new();
    for kind in 0..48 {
        let frontend = stage.connect();
        frontend.send(&raw::message(request::GET_FEATURES, &[]), &[]);
        frontend.send(
            &raw::message(request::SET_PROTOCOL_FEATURES, &raw::words64(&[u64::MAX])),
            &[],
        );
        for len in [0, 4, 8, 16, 40] {
            frontend.send(&raw::message(kind, &vec![0; len]), &[]);
        }
        frontend.hang_up();
        assert!(frontend.is_closed(), "message {kind}");
    }
    stage.is_unharmed();
}

/// A call eventfd whose counter is full must not block the worker, which would then outlive its frontend.
#[test]
fn a_full_call_eventfd_leaves_no_worker() {
    let stage = Stage::new();
    let full = nix::sys::eventfd::EventFd::new().unwrap();
    full.write(u64::MAX - 1).unwrap();
    let mut shared = Shared::new();
    let frontend = stage.connect();
    frontend.greet();
    frontend.share(&shared);
    shared.request(0, 0x4000, 512);
    shared.offer(0x1000, 0);
    frontend.ring(0, [0, 0x2000, 0x1000], &shared);
    frontend.call(0, std::os::fd::AsFd::as_fd(&full).as_raw_fd());
    wait_for("an answer", || (shared.used(0x2000) == 1).then_some(()));
    drop(frontend);
    stage.is_unharmed();
}

/// Three rings, each of which is the next one's input (see the engine's tests), keep a worker busy. It must still end
/// with its frontend.
#[test]
fn rings_that_feed_each_other_leave_no_worker() {
    const LEN: u16 = 32768;
    const PLACES: [u64; 3] = [0x10_0000, 0x20_0000, 0x30_0000];
    let stage = Stage::new();
    let shared = Shared::new();
    let put = |indexes: [u16; 3]| {
        for (place, index) in PLACES.into_iter().zip(indexes) {
            shared.put(place + 2, &index.to_le_bytes());
        }
    };
    let indexes = [0, 1, 2].map(|nth| 0u16.wrapping_sub(21845 * nth));
    let [first, second, third] = indexes;
    let frontend = stage.connect();
    frontend.greet();
    frontend.share(&shared);
    put(indexes);
    // One of the two threads serves all of them.
    for (nth, number) in [0, 2, 4].into_iter().enumerate() {
        let places = [0, PLACES[(nth + 1) % 3], PLACES[nth]];
        frontend.set_up(number, LEN, places, &shared);
    }
    frontend.finish();
    // None of them has requests until all are enabled.
    put([second, third, first]);
    [0, 2, 4]
        .into_iter()
        .for_each(|number| frontend.enable(number));
    frontend.finish();
    put(indexes);
    shared.kick();
    for quarter in [1, 2, 3, 0, 1] {
        wait_for("the index to go around", || {
            (shared.used(PLACES[0]) / 0x4000 == quarter).then_some(())
        });
    }
    drop(frontend);
    stage.is_unharmed();
}
