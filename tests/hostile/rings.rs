//! Rings that keep a worker busy, and messages about them.

use std::fs;
use std::io::pipe;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::Stage;
use super::raw::{Raw, Shared, message, request, words32};
use crate::common;
use crate::common::process::wait_for;
use crate::common::server::{Server, command};
use crate::common::tool;

/// Addresses of rings that share a descriptor table: descriptors, used, available.
fn places(index: u64) -> [u64; 3] {
    [0, 0x2000 + 0x100 * index, 0x1000 + 0x100 * index]
}

/// Makes requests available in ring 0 that take minutes together. Waits until the first one has started.
fn busy(stage: &Stage, shared: &Shared) -> Raw {
    const PARTS: u64 = 126;
    const TABLE: u64 = 0x8000;
    const FIRST: u64 = 0xa000;
    let frontend = stage.connect();
    frontend.greet();
    frontend.share(shared);
    // Each reads a GiB, mostly into the same 8 MiB. All use the same indirect table.
    let descriptor = |at: u64, address: u64, len: u64, flags: u64, next: u64| {
        let rest = len | flags << 32 | next << 48;
        shared.put(at, &address.to_le_bytes());
        shared.put(at + 8, &rest.to_le_bytes());
    };
    let header = 0x3000;
    shared.put(header, &[0; 16]);
    descriptor(TABLE, header, 16, 1, 1);
    descriptor(TABLE + 16, FIRST, 4096, 3, 2);
    for index in 2..=PARTS {
        descriptor(TABLE + 16 * index, 0x1_0000, 0x7f_0000, 3, index + 1);
    }
    descriptor(TABLE + 16 * (PARTS + 1), header + 16, 1, 2, 0);
    for slot in 0..16 {
        descriptor(16 * slot, TABLE, 16 * (PARTS + 2), 4, 0);
        shared.put(0x1004 + 2 * slot, &slot.to_le_bytes()[..2]);
    }
    shared.put(0x1002, &16u16.to_le_bytes());
    frontend.ring(0, places(0), shared);
    wait_for("the first block of the disk", || {
        shared.holds(FIRST + 1024).then_some(())
    });
    frontend
}

/// The worker ends at once, even during a request.
#[test]
fn large_requests_leave_no_worker() {
    let stage = Stage::new();
    let shared = Shared::new();
    let frontend = busy(&stage, &shared);
    drop(frontend);
    stage.is_unharmed();
    assert!(shared.used(0x2000) < 16, "all requests were carried out");
}

/// GET_VRING_BASE is answered while large requests are queued, and its answer is the used index.
#[test]
fn get_vring_base_is_answered_while_large_requests_are_queued() {
    let stage = Stage::new();
    let shared = Shared::new();
    let frontend = busy(&stage, &shared);
    frontend.finish();
    let question = message(request::GET_VRING_BASE, &words32(&[0, 0]));
    frontend.send(&question, &[]);
    let answer = frontend.receive();
    let base = u16::from_le_bytes([answer[4], answer[5]]);
    assert_eq!(base, shared.used(0x2000));
    assert!(base < 16, "all requests were carried out");
    drop(frontend);
    stage.is_unharmed();
}

/// A thread whose kick eventfd is always readable sleeps between two checks.
#[test]
fn a_kick_eventfd_that_is_always_readable_does_not_keep_a_worker_busy() {
    let stage = Stage::new();
    let mut shared = Shared::new();
    let frontend = stage.connect();
    frontend.greet();
    frontend.share(&shared);
    let (reader, writer) = pipe().unwrap();
    drop(writer);
    frontend.set_up_with(0, places(0), reader.as_fd().as_raw_fd());
    frontend.enable(0);
    frontend.finish();
    let worker = stage.server.workers()[0];
    wait_for("a thread that sleeps", || {
        let tasks = fs::read_dir(format!("/proc/{worker}/task")).ok()?;
        let mut calls =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("syscall")).ok());
        let sleeps = |call: &String| {
            let number = call
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok());
            number.is_some_and(|number: i64| {
                [libc::SYS_nanosleep, libc::SYS_clock_nanosleep].contains(&number)
            })
        };
        calls.find(sleeps).map(drop)
    });
    // It still serves requests.
    shared.request(0, 0x4000, 512);
    shared.offer(0x1000, 0);
    wait_for("an answer", || (shared.used(0x2000) == 1).then_some(()));
    drop(frontend);
    stage.is_unharmed();
}

#[test]
fn a_queue_size_that_is_not_a_power_of_two_ends_the_connection() {
    let stage = Stage::new();
    for size in [6, 100, 32767] {
        let shared = Shared::new();
        let frontend = stage.connect();
        frontend.greet();
        frontend.share(&shared);
        frontend.set_up(0, size, places(0), &shared);
        assert!(frontend.is_closed(), "{size}");
    }
    stage.is_unharmed();
}

/// Large reads keep many files open. If there are too few descriptors for all of them, they are executed one after the
/// other.
#[test]
fn large_reads_with_few_descriptors_succeed() {
    const RINGS: u16 = 4;
    const LEN: u32 = 4 << 20;
    const DATA: u64 = 4 << 20;
    let tree = tempfile::tempdir().unwrap();
    for index in 0..1200 {
        let byte = u8::try_from(index % 251).unwrap();
        fs::write(tree.path().join(format!("{index:04}")), [byte; 4095]).unwrap();
    }
    let image = common::tree_image(tree.path());
    let mut first = u64::MAX;
    image
        .file_ranges(&mut |start, _| first = first.min(start))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let served = command(tree.path(), &socket, &["--threads", "4"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 400 && exec \"$@\"", "sh"])
        .arg(served.get_program())
        .args(served.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let server = Server::run(limited, socket, dir);
    let mut shared = Shared::new();
    let frontend = Raw::connect(&server.socket);
    frontend.greet();
    frontend.share(&shared);
    for index in 0..RINGS {
        shared.read_at(index, first / 512, DATA, LEN);
        shared.offer(places(index.into())[2], index);
        frontend.ring(index.into(), places(index.into()), &shared);
    }
    for index in 0..RINGS {
        wait_for("an answer", || {
            (shared.used(places(index.into())[1]) == 1).then_some(())
        });
        assert_eq!(shared.status(index), 0, "ring {index}");
    }
    let mut expected = vec![0; LEN as usize];
    image.read_exact_at(&mut expected, first).unwrap();
    assert!(shared.bytes(DATA, expected.len()) == expected);
}

/// Fills the counter of an eventfd whose value is at most 1.
fn fill(event: &EventFd) {
    event.write(u64::MAX - 2).unwrap();
    let mut room = [PollFd::new(event.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut room, PollTimeout::ZERO).unwrap() > 0 {
        event.write(1).unwrap();
    }
}

/// A frontend fills the counter of its call eventfd between the device's check and its write, so that a thread blocks
/// there. The worker still ends with its frontend.
#[test]
#[ignore = "needs strace"]
fn a_thread_that_waits_for_a_call_descriptor_does_not_outlive_its_frontend() {
    let strace = tool("strace", "strace");
    let looks_slowly = [
        strace.to_str().unwrap(),
        "-D",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=poll,ppoll",
        "-e",
        "inject=poll,ppoll:delay_exit=200000",
    ];
    let stage = Stage::start_after(&looks_slowly);
    let frontend = stage.connect();
    frontend.greet();
    let is_stuck = (0..20).any(|_| {
        let call = EventFd::new().unwrap();
        // Signals at once.
        frontend.call(0, call.as_fd().as_raw_fd());
        frontend.send(&message(request::GET_FEATURES, &[]), &[]);
        let looks = !frontend.receives_within(100);
        fill(&call);
        let is_stuck = looks && !frontend.receives_within(2000);
        if !is_stuck {
            frontend.receive();
        }
        is_stuck
    });
    assert!(is_stuck, "no thread was made to wait");
    drop(frontend);
    stage.is_clean();
}
