//! Counts the system calls of reads with strace.

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

/// System calls of a worker besides reading files: the queue's thread receives kicks, reads the clock, and interrupts the
/// guest. The other threads wait.
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

/// Minimum interval between checks of an open file (`source/host/file.rs`).
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

    /// Detaches from the worker. Returns the count of each call.
    fn end(self) -> BTreeMap<String, usize> {
        end_strace(self.strace);
        let text = fs::read_to_string(self.file.path()).unwrap();
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            // The thread's id, then the call. Lines about exits and signals have no parenthesis there.
            let call = line.split_whitespace().nth(1).unwrap_or_default();
            if let Some((name, _)) = call.split_once('(') {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        calls
    }
}

/// Ranges on the disk of the files of more than a megabyte.
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

/// Reads files that are open and cached, in blocks of `len` bytes, in batches of `batch` contiguous reads. Returns the
/// worker's calls and the number of reads.
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

/// An open file is neither opened, nor looked up, nor closed.
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
    // The device may start with a batch before all of it is available.
    assert!(count(&calls, "preadv2") < reads / DEPTH * 2, "{calls:?}");
}
