//! What reads cost in system calls, counted by strace on a running worker.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::process::Child;
use std::time::Instant;

use lazystore::erofs::volume::Place;
use lazystore::image::Image;
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use crate::common::client::{Client, DEPTH};
use crate::common::process::{end_strace, strace};
use crate::common::server::{Server, tree};
use crate::common::tree_image;

const BLOCK: usize = 4096;

/// What a worker does besides reading files: the queue's thread is kicked, looks at the clock, and interrupts the guest;
/// the others wait.
const BESIDES: [&str; 9] = [
    "clock_gettime",
    "epoll_wait",
    "futex",
    "poll",
    "read",
    "recvmsg",
    "restart_syscall",
    "sched_yield",
    "write",
];

/// An open file is looked at this often, at most (`source/host/file.rs`).
const LOOKS_PER_SECOND: u128 = 10;

/// strace on all threads of a worker.
struct Trace {
    strace: Child,
    file: NamedTempFile,
}

impl Trace {
    fn of(worker: Pid) -> Self {
        let file = NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let strace = strace(worker, &["-o", path]);
        Self { strace, file }
    }

    /// Lets go of the worker; returns how often each call was made.
    fn end(self) -> BTreeMap<String, usize> {
        end_strace(self.strace);
        let text = fs::read_to_string(self.file.path()).unwrap();
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            // The number of the thread, then the call; lines about its end or a signal have no parenthesis there.
            let call = line.split_whitespace().nth(1).unwrap_or_default();
            if let Some((name, _)) = call.split_once('(') {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        calls
    }
}

/// Where the files of more than a megabyte lie on the disk.
fn big_files(image: &Image) -> Vec<Range<u64>> {
    let data = &image.space().regions()[0].data;
    let end = u64::from(data.end) * BLOCK as u64;
    let mut at = u64::from(data.start) * BLOCK as u64;
    let mut files = Vec::new();
    while at < end {
        let spot = image.locate(at).unwrap();
        at = spot.range.end;
        match spot.place {
            Place::Data(file) if file.size_bytes > 1 << 20 => files.push(spot.range),
            Place::Unused { .. } => break,
            _ => {}
        }
    }
    files
}

fn count(calls: &BTreeMap<String, usize>, name: &str) -> usize {
    calls.get(name).copied().unwrap_or_default()
}

/// Reads files that are open and in memory, in blocks of `len` bytes and in batches of `batch` reads one after the other;
/// returns the calls of the worker, and how many reads there were.
fn read_warm(len: usize, batch: usize) -> (BTreeMap<String, usize>, usize) {
    let tree = tree();
    let files = big_files(&tree_image(tree.path()));
    assert_eq!(files.len(), 2);
    let server = Server::start(tree.path(), &["--threads", "1"]);
    let mut client = Client::start(&server.socket, 1);
    let batches: Vec<Vec<(u64, usize)>> = (0..50)
        .map(|number| {
            let at = files[number % files.len()].start + (number * batch * len) as u64;
            let read = |index| (at + (index * len) as u64, len);
            (0..batch).map(read).collect()
        })
        .collect();
    let mut read_all = || {
        let all = batches.iter().flat_map(|batch| client.read(0, batch));
        all.collect::<Result<Vec<_>, _>>().unwrap()
    };
    let before = read_all();
    let begin = Instant::now();
    let trace = Trace::of(server.workers()[0]);
    assert!(read_all() == before);
    let calls = trace.end();
    let looks = begin.elapsed().as_millis() * LOOKS_PER_SECOND / 1000 + 1;
    let statx = count(&calls, "statx");
    assert!(statx as u128 <= looks * files.len() as u128, "{calls:?}");
    println!("{} reads: {calls:?}", batches.len() * batch);
    for call in calls.keys().map(String::as_str) {
        assert!(
            ["preadv2", "statx"].contains(&call) || BESIDES.contains(&call),
            "{call}"
        );
    }
    (calls, batches.len() * batch)
}

/// Neither opened, nor looked up, nor closed: a file that is open costs its read.
#[test]
#[ignore = "needs root and strace"]
fn reading_an_open_file_takes_one_system_call() {
    let (calls, reads) = read_warm(BLOCK, 1);
    assert_eq!(count(&calls, "preadv2"), reads, "{calls:?}");
}

#[test]
#[ignore = "needs root and strace"]
fn contiguous_requests_are_one_read() {
    let (calls, reads) = read_warm(BLOCK, DEPTH);
    // A batch may be looked at before all of it is there.
    assert!(count(&calls, "preadv2") < reads / DEPTH * 2, "{calls:?}");
}
