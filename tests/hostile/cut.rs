//! Guest memory that is truncated, or missing from the start, while other clients read and check every byte.

use std::sync::atomic::{AtomicBool, Ordering};

use lazystore::image::Image;
use nix::sys::signal::Signal;

use super::Stage;
use super::raw::{self, Shared, USER, request};
use crate::common::client::Client;
use crate::common::process::wait_for;

/// Ends the threads that wait for it, also if the test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets other clients read and check every byte while `harm` runs.
fn while_others_read(stage: &Stage, harm: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::start(&stage.server.socket, 1);
                    let mut rounds = 0;
                    while !done.load(Ordering::Relaxed) || rounds < 20 {
                        read_and_check(&mut client, &stage.image);
                        rounds += 1;
                    }
                })
            })
            .collect();
        let end = Done(&done);
        wait_for("the readers", || {
            (stage.server.workers().len() >= 2).then_some(())
        });
        harm();
        drop(end);
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    });
}

fn read_and_check(client: &mut Client, image: &Image) {
    let data = 128 << 30;
    let reads = [
        (0, 65536),
        (data, 65536),
        (data + (1 << 20), 131_072),
        (data + 4096, 512),
    ];
    for (found, (start, len)) in client.read(0, &reads).into_iter().zip(reads) {
        let mut expected = vec![0; len];
        image.read_exact_at(&mut expected, start).unwrap();
        assert!(found.unwrap() == expected, "{len} bytes at {start}");
    }
}

/// Number of workers that a frontend has killed with its own memory.
fn killed(stage: Stage) -> usize {
    stage.server.signal(Signal::SIGTERM);
    let (_, log) = stage.server.end();
    log.matches("was killed by SIGBUS").count()
}

#[test]
fn truncating_the_memory_of_a_ring_affects_only_its_own_worker() {
    let stage = Stage::new();
    while_others_read(&stage, || {
        for _ in 0..5 {
            let shared = Shared::new();
            let frontend = stage.connect();
            frontend.greet();
            frontend.share(&shared);
            frontend.ring(0, [0, 0x2000, 0x1000], &shared);
            wait_for("the ring to be looked at", || {
                (shared.flags(0x2000) == 0).then_some(())
            });
            shared.cut(0);
            shared.kick();
            assert!(frontend.is_closed());
        }
    });
    stage.is_unharmed();
    assert_eq!(killed(stage), 5);
}

/// A region may be declared longer than its file. The part after the end is like a truncated one.
#[test]
fn a_ring_after_the_end_of_its_file_affects_only_its_own_worker() {
    let stage = Stage::new();
    let shared = Shared::new();
    let len = Shared::BYTES;
    while_others_read(&stage, || {
        let frontend = stage.connect();
        frontend.greet();
        let table = raw::table(&[[0, 2 * len, USER, 0]]);
        let message = raw::message(request::SET_MEM_TABLE, &table);
        frontend.send(&message, &[shared.fd()]);
        frontend.ring(0, [0, len + 0x2000, len + 0x1000], &shared);
        assert!(frontend.is_closed());
    });
    stage.is_unharmed();
    assert_eq!(killed(stage), 1);
}

#[test]
fn truncating_the_memory_of_a_buffer_affects_only_its_own_worker() {
    let stage = Stage::new();
    // File data are read into the buffer by a system call, which fails. Metadata are copied, which raises SIGBUS.
    for (sector, expected) in [((128 << 30) / 512, Some(1)), (0, None)] {
        while_others_read(&stage, || {
            let mut shared = Shared::new();
            let frontend = stage.connect();
            frontend.greet();
            frontend.share(&shared);
            frontend.ring(0, [0, 0x2000, 0x1000], &shared);
            shared.cut(0x8000);
            shared.read_at(0, sector, 0x10000, 4096);
            shared.offer(0x1000, 0);
            shared.kick();
            if let Some(status) = expected {
                wait_for("an answer", || (shared.used(0x2000) == 1).then_some(()));
                assert_eq!(shared.status(0), status);
            } else {
                assert!(frontend.is_closed());
            }
        });
    }
    stage.is_unharmed();
    assert_eq!(killed(stage), 1);
}
