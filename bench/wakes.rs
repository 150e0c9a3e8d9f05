//! Measures what a wake-up costs a process that does as little as a server can: `cargo bench --bench wakes`.
//!
//! The process waits with epoll_wait(2), reads an eventfd, copies 4 KiB, and writes another eventfd. It is woken after a pause, as
//! by a guest that sends one request at a time. No server that sleeps between requests can use less CPU time for one.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = 8192;

/// How long each pause is measured.
const MEASURED: Duration = Duration::from_secs(7);
const PAUSES_US: [u64; 5] = [100, 500, 1000, 3000, 7000];

fn main() {
    if std::env::args().any(|argument| argument == "--woken") {
        answer_wake_ups();
    }
    println!("pause between requests   CPU of the woken process   latency");
    for pause_us in PAUSES_US {
        let (cpu, latency) = measure(Duration::from_micros(pause_us));
        println!(
            "{pause_us:>19} us {:>23.1} us {:>6.1} us",
            micros(cpu),
            micros(latency)
        );
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The woken process. Its standard input and output are the eventfds.
fn answer_wake_ups() -> ! {
    let (kick, call) = (std::io::stdin(), std::io::stdout());
    let mut kick = File::from(kick.as_fd().try_clone_to_owned().unwrap());
    let mut call = File::from(call.as_fd().try_clone_to_owned().unwrap());
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
    epoll
        .add(&kick, EpollEvent::new(EpollFlags::EPOLLIN, 0))
        .unwrap();
    let from = vec![1_u8; BLOCKS * BLOCK_BYTES];
    let mut to = vec![2_u8; BLOCKS * BLOCK_BYTES];
    for index in 0.. {
        let mut events = [EpollEvent::empty()];
        epoll.wait(&mut events, EpollTimeout::NONE).unwrap();
        kick.read_exact(&mut [0; 8]).unwrap();
        let (read, written) = (block(index * 37), block(index));
        to[written].copy_from_slice(&from[read]);
        call.write_all(&1_u64.to_ne_bytes()).unwrap();
    }
    unreachable!()
}

fn block(index: usize) -> std::ops::Range<usize> {
    let start = index % BLOCKS * BLOCK_BYTES;
    start..start + BLOCK_BYTES
}

/// Mean CPU time of the woken process for each request, and the mean time until its answer.
fn measure(pause: Duration) -> (Duration, Duration) {
    let (kick, call) = (eventfd(), eventfd());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("--woken")
        .stdin(kick.try_clone().unwrap())
        .stdout(call.try_clone().unwrap())
        .spawn()
        .unwrap();
    let (mut kick, mut call) = (File::from(kick), File::from(call));
    let mut requests = |time: Duration| {
        let (begin, mut latency, mut count) = (Instant::now(), Duration::ZERO, 0);
        while begin.elapsed() < time {
            thread::sleep(pause);
            let sent = Instant::now();
            kick.write_all(&1_u64.to_ne_bytes()).unwrap();
            call.read_exact(&mut [0; 8]).unwrap();
            (latency, count) = (latency + sent.elapsed(), count + 1);
        }
        (latency, count)
    };
    requests(Duration::from_millis(200));
    let before = cpu_time(&child);
    let (latency, count) = requests(MEASURED);
    let cpu = cpu_time(&child) - before;
    child.kill().unwrap();
    child.wait().unwrap();
    (cpu / count, latency / count)
}

fn eventfd() -> OwnedFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into()
}

/// Time on a CPU, in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn cpu_time(child: &Child) -> Duration {
    let text = fs::read_to_string(format!("/proc/{}/schedstat", child.id())).unwrap();
    let nanos = text.split(' ').next().unwrap();
    Duration::from_nanos(nanos.parse().unwrap())
}
