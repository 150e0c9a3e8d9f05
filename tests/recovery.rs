//! Killing the process that serves a disk loses no request, at whatever moment.

use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::driver::{Driver, Woken, places};
use crate::common::frontend::Frontend;
use crate::common::process::{strace, wait_for};
use crate::common::random::Random;
use crate::common::server::{Server, command_after};
use crate::common::small_store::SmallStore;

const NAMES: [&str; 4] = ["aaa-one", "bbb-two", "ccc-three", "ddd-four"];

/// Keeps the ring full until the device disconnects. Once `enough` returns true, waits until no request is in flight.
fn drive(
    driver: &mut Driver,
    frontend: &Frontend,
    image: &Image,
    progress: &AtomicU64,
    enough: impl Fn() -> bool,
) -> Woken {
    let places = places(image);
    loop {
        if !enough() {
            driver.submit(32, &places);
            frontend.kick();
        } else if driver.in_flight() == 0 {
            return Woken::Interrupt;
        }
        if driver.wait(frontend) == Woken::Closed {
            return Woken::Closed;
        }
        driver.process_completions(image);
        progress.store(driver.counts.answered, Ordering::Relaxed);
    }
}

/// Numbers of kills.
#[derive(Debug, Default)]
struct Kills {
    workers: u32,
    servers: u32,
    /// How many of them were before the first completion of a connection.
    early: u32,
}

/// Kills workers and sometimes the server at random moments, `most` times.
fn kill_often(server: &mut Server, store: &SmallStore, progress: &AtomicU64, most: u32) -> Kills {
    let mut random = Random::new(7);
    let mut kills = Kills::default();
    while kills.workers + kills.servers < most {
        let worker = wait_for("a worker", || server.workers().pop());
        if random.below(4) == 0 {
            kills.early += 1;
        } else {
            let before = progress.load(Ordering::Relaxed);
            wait_for("answers", || {
                (progress.load(Ordering::Relaxed) > before).then_some(())
            });
        }
        // Chooses the moment of the kill.
        let until = Instant::now() + Duration::from_micros(random.below(3000));
        while Instant::now() < until {
            thread::yield_now();
        }
        if random.below(4) == 0 {
            let socket = server.socket.clone();
            server.kill_and_restart(command_after(&[], &store.args(), &socket, &[]));
            kills.servers += 1;
        } else {
            kills.workers += u32::from(kill(worker, Signal::SIGKILL).is_ok());
            wait_for("its end", || {
                (!server.workers().contains(&worker)).then_some(())
            });
        }
    }
    kills
}

#[test]
fn a_client_reads_correctly_while_its_worker_is_killed_two_hundred_times() {
    const KILLS: u32 = 200;
    let store = SmallStore::new(&NAMES);
    let image = store.image();
    let mut server = Server::start_after(&[], &store.args(), &[]);
    let socket = server.socket.clone();
    let mut driver = Driver::new(1);
    let (progress, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut connections = 0;
    let kills = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let kills = kill_often(&mut server, &store, &progress, KILLS);
            done.store(true, Ordering::Relaxed);
            kills
        });
        loop {
            let frontend = driver.connect(&socket);
            connections += 1;
            let enough = || done.load(Ordering::Relaxed) || killer.is_finished();
            if drive(&mut driver, &frontend, &image, &progress, enough) != Woken::Closed {
                break;
            }
        }
        killer.join().unwrap()
    });
    let counts = driver.counts;
    println!("{kills:?}; {connections} connections; {counts:?}");
    driver.assert_clean();
    assert_eq!(driver.in_flight(), 0);
    assert!(kills.servers > 20 && kills.workers > 100, "{kills:?}");
    // The indexes have wrapped around more than once.
    assert!(counts.answered > 1000, "{counts:?}");
    assert!(
        counts.indirect > 100 && counts.most_in_flight > 30,
        "{counts:?}"
    );
}

/// Kills `worker` at its next write, which is not executed. strace injects that.
fn kill_at_next_write(worker: Pid) -> Child {
    let inject = "inject=write:error=EIO:signal=SIGKILL:when=1";
    strace(
        worker,
        &["-o", "/dev/null", "-e", "trace=write", "-e", inject],
    )
}

/// Processes all outstanding completions.
fn finish(driver: &mut Driver, frontend: &Frontend, image: &Image) {
    driver.process_completions(image);
    while driver.in_flight() > 0 {
        assert_eq!(driver.wait(frontend), Woken::Interrupt);
        driver.process_completions(image);
    }
}

/// The completion is published, and the process dies before it interrupts the guest.
#[test]
#[ignore = "needs strace"]
fn a_kill_between_the_used_index_and_the_interrupt_loses_no_request() {
    const KILLS: u32 = 20;
    let store = SmallStore::new(&NAMES);
    let image = store.image();
    let places = places(&image);
    let server = Server::start_after(&[], &store.args(), &[]);
    let mut driver = Driver::new(2);
    let mut frontend = driver.connect(&server.socket);
    for _ in 0..KILLS {
        // The device interrupts when it gets the call descriptor.
        assert_eq!(driver.sleep(&frontend), Woken::Interrupt);
        finish(&mut driver, &frontend, &image);
        let mut strace = kill_at_next_write(server.workers()[0]);
        // Clear a late interrupt for completions that are already processed.
        let _ = frontend.call.read();
        driver.ask_for_interrupt();
        driver.submit(8, &places);
        let sent = driver.in_flight();
        frontend.kick();
        assert_eq!(driver.sleep(&frontend), Woken::Closed);
        strace.wait().unwrap();
        assert!(driver.has_unseen() && frontend.call.read().is_err());
        frontend = driver.connect(&server.socket);
        assert_eq!(driver.in_flight(), sent);
        wait_for("the end of the dead one", || {
            (server.workers().len() == 1).then_some(())
        });
    }
    assert_eq!(driver.sleep(&frontend), Woken::Interrupt);
    finish(&mut driver, &frontend, &image);
    println!(
        "{KILLS} kills between the used index and the interrupt; {:?}",
        driver.counts
    );
    driver.assert_clean();
    assert_eq!(driver.in_flight(), 0);
}
