//! A soak test: eight clients check every byte while workers and servers are killed, plans are evicted, and paths of the
//! store become unreadable temporarily. Nothing may grow.
//!
//! `LAZYSTORE_SOAK_SECONDS` sets the duration (default 60); see `scripts/soak`.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::driver::{Counts, Driver, Health, Woken, places};
use crate::common::frontend::Frontend;
use crate::common::proc::{fds, threads, written_kib};
use crate::common::process::wait_for;
use crate::common::random::Random;
use crate::common::server::{Server, command_after};
use crate::common::small_store::SmallStore;

const CLIENTS: u64 = 8;
/// Arguments with which all plans except the last one are evicted.
const TINY: [&str; 2] = ["--plan-cache", "0"];

/// A low limit of descriptors. Store files get a quarter of them, so files are closed and reopened all the time.
const FEW_FDS: [&str; 2] = ["prlimit", "--nofile=256:256"];

/// State that the threads share.
struct Soak {
    /// The store that is served and broken.
    store: SmallStore,
    names: Vec<String>,
    /// The image of another store with the same content, which is not broken.
    model: Image,
    _whole: SmallStore,
    health: Arc<Health>,
    server: Mutex<Server>,
    /// Locked while a path is unreadable, because a server cannot start then.
    gone: Mutex<()>,
    log: File,
    socket: std::path::PathBuf,
    begin: Instant,
    time: Duration,
    worker_kills: AtomicU64,
    server_kills: AtomicU64,
    removals: AtomicU64,
    errors_seen: AtomicU64,
    reconnects: AtomicU64,
}

impl Soak {
    fn new(time: Duration) -> Self {
        let names: Vec<String> = (0..16).map(|number| format!("{number:032}-path")).collect();
        let list: Vec<&str> = names.iter().map(String::as_str).collect();
        let (store, whole) = (SmallStore::new(&list), SmallStore::new(&list));
        let log = tempfile::tempfile().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let command = command(&store, &socket, &log);
        let model = whole.image();
        assert_eq!(whole.files(&model).len(), 16 * 7);
        Self {
            health: Arc::new(Health::new(&model)),
            gone: Mutex::new(()),
            server: Mutex::new(Server::run(command, socket.clone(), dir)),
            store,
            names,
            model,
            _whole: whole,
            log,
            socket,
            begin: Instant::now(),
            time,
            worker_kills: AtomicU64::new(0),
            server_kills: AtomicU64::new(0),
            removals: AtomicU64::new(0),
            errors_seen: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
        }
    }

    fn is_over(&self) -> bool {
        self.begin.elapsed() >= self.time
    }

    /// Servers are killed only in the first third, so that growth of the remaining one can be measured.
    fn spares_server(&self) -> bool {
        self.begin.elapsed() >= self.time / 3
    }

    fn workers(&self) -> Vec<Pid> {
        self.server.lock().unwrap().workers()
    }

    /// Runs one client.
    fn read(&self, seed: u64) -> Counts {
        let places = places(&self.model);
        let mut driver = Driver::new(seed);
        driver.health = Some(Arc::clone(&self.health));
        loop {
            let frontend = driver.connect(&self.socket);
            self.reconnects.fetch_add(1, Ordering::Relaxed);
            loop {
                if !self.is_over() {
                    driver.submit(16, &places);
                    frontend.kick();
                } else if driver.in_flight() == 0 {
                    return driver.counts;
                }
                if driver.wait(&frontend) == Woken::Closed {
                    break;
                }
                driver.process_completions(&self.model);
            }
        }
    }

    /// Kills a process every fifth of a second. After the first third, two workers are never killed.
    fn kill(&self) {
        let mut random = Random::new(3);
        while !self.is_over() {
            thread::sleep(Duration::from_millis(100 + random.below(200)));
            if !self.spares_server() && random.below(10) == 0 {
                let _whole = self.gone.lock().unwrap();
                let command = command(&self.store, &self.socket, &self.log);
                self.server.lock().unwrap().kill_and_restart(command);
                self.server_kills.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let spared = if self.spares_server() { 2 } else { 0 };
            let mut workers = self.workers();
            workers.sort_unstable();
            let victims = workers.get(spared..).unwrap_or_default();
            if !victims.is_empty() {
                let victim = victims[random.index(victims.len())];
                let killed = kill(victim, Signal::SIGKILL).is_ok();
                self.worker_kills
                    .fetch_add(u64::from(killed), Ordering::Relaxed);
            }
        }
    }

    /// Removes the permissions of a path, waits until a read fails, and restores them. Workers cannot read it then, because
    /// they have no capabilities even as root. A path that was renamed would still be readable in the jail, and one with
    /// missing files would be another disk for a new worker.
    fn remove_and_restore(&self) -> Counts {
        let mut random = Random::new(5);
        let mut driver = Driver::new(99);
        driver.health = Some(Arc::clone(&self.health));
        let mut frontend = driver.connect(&self.socket);
        while !self.is_over() {
            let victim = random.index(self.names.len());
            let place = self.store.store().join(&self.names[victim]);
            let allow = |mode| fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
            let gone = self.gone.lock().unwrap();
            self.health.toggle(victim);
            allow(0);
            self.removals.fetch_add(1, Ordering::Relaxed);
            self.wait_for_error(&mut driver, &mut frontend, victim);
            allow(0o755);
            self.health.toggle(victim);
            drop(gone);
            // Time for the server to be restarted and for reads to succeed.
            thread::sleep(Duration::from_millis(20));
        }
        driver.counts
    }

    /// Reads the victim and other paths until a read of the victim fails.
    fn wait_for_error(&self, driver: &mut Driver, frontend: &mut Frontend, victim: usize) {
        let region = &self.model.space().regions()[victim];
        let data = 4096 * u64::from(region.data.start);
        let victims = vec![Range {
            start: data,
            end: data + 4096,
        }];
        let before = driver.counts.expected_errors;
        let deadline = Instant::now() + Duration::from_secs(120);
        while driver.counts.expected_errors == before {
            assert!(
                Instant::now() < deadline,
                "a path that may not be read is read"
            );
            driver.submit(4, &places(&self.model));
            driver.submit(2, &victims);
            frontend.kick();
            while driver.in_flight() > 0 {
                if driver.wait(frontend) == Woken::Closed {
                    *frontend = driver.connect(&self.socket);
                    self.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                driver.process_completions(&self.model);
            }
        }
        self.errors_seen.fetch_add(1, Ordering::Relaxed);
    }

    /// Samples the server and the two oldest workers every half second, in the last two thirds.
    fn watch(&self) -> Samples {
        let mut samples = Samples::default();
        while !self.is_over() {
            thread::sleep(Duration::from_millis(500));
            if !self.spares_server() {
                continue;
            }
            let server = self.server.lock().unwrap().pid();
            let mut workers = self.workers();
            workers.sort_unstable();
            for pid in workers.into_iter().take(2).chain([server]) {
                samples.take(pid);
            }
        }
        samples
    }
}

fn command(store: &SmallStore, socket: &Path, log: &File) -> Command {
    let mut command = command_after(&FEW_FDS, &store.args(), socket, &TINY);
    command.stderr(Stdio::from(log.try_clone().unwrap()));
    command
}

/// Samples of each process.
#[derive(Default)]
struct Samples(BTreeMap<Pid, Vec<Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    fds: usize,
    threads: usize,
    written_kib: u64,
}

impl Sample {
    /// Memory that threads may write to for the first time late: on a busy machine some threads get their first requests in the
    /// last third, and each has a stack and an arena of malloc.
    fn first_use_kib(&self) -> u64 {
        2048 + 512 * self.threads as u64
    }
}

impl Samples {
    fn take(&mut self, pid: Pid) {
        let sample = Sample {
            fds: fds(pid),
            threads: threads(pid),
            written_kib: written_kib(pid),
        };
        // A process that has just ended has no memory.
        if sample.written_kib > 0 {
            self.0.entry(pid).or_default().push(sample);
        }
    }

    /// Processes whose resources in the last third of the samples exceed those in the second third.
    fn growth(&self) -> Vec<String> {
        let mut grown = Vec::new();
        for (pid, samples) in self.0.iter().filter(|(_, samples)| samples.len() >= 12) {
            let third = samples.len() / 3;
            let (middle, last) = (
                most(&samples[third..2 * third]),
                most(&samples[2 * third..]),
            );
            println!(
                "process {pid}, {} samples: {middle:?}, then {last:?}",
                samples.len()
            );
            if last.fds > middle.fds + 16
                || last.threads > middle.threads + 4
                || last.written_kib
                    > middle.written_kib + middle.written_kib / 4 + last.first_use_kib()
            {
                grown.push(format!("{pid}: {middle:?}, then {last:?}"));
            }
        }
        grown
    }
}

fn most(samples: &[Sample]) -> Sample {
    Sample {
        fds: samples.iter().map(|sample| sample.fds).max().unwrap(),
        threads: samples.iter().map(|sample| sample.threads).max().unwrap(),
        written_kib: samples
            .iter()
            .map(|sample| sample.written_kib)
            .max()
            .unwrap(),
    }
}

fn seconds() -> u64 {
    let seconds = std::env::var("LAZYSTORE_SOAK_SECONDS");
    seconds.map_or(60, |text| text.parse().unwrap())
}

#[test]
#[ignore = "loads the machine for a minute"]
fn load_and_faults_cause_no_wrong_byte_and_no_growth() {
    let soak = Soak::new(Duration::from_secs(seconds()));
    let (counts, samples) = thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|seed| {
                scope.spawn({
                    let soak = &soak;
                    move || soak.read(seed)
                })
            })
            .collect();
        let saboteur = scope.spawn(|| soak.remove_and_restore());
        let killer = scope.spawn(|| soak.kill());
        let samples = scope.spawn(|| soak.watch());
        let counts: Vec<Counts> = clients
            .into_iter()
            .chain([saboteur])
            .map(|client| client.join().unwrap())
            .collect();
        killer.join().unwrap();
        (counts, samples.join().unwrap())
    });
    let sum = |of: fn(&Counts) -> u64| counts.iter().map(of).sum::<u64>();
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let (mismatches, unexpected) = (sum(|c| c.mismatches), sum(|c| c.unexpected_errors));
    println!(
        "{} operations, {} bytes compared in {} s; faults injected: {} kills of a worker, {} of the server, \
         {} paths removed; {} connections",
        sum(|c| c.answered),
        sum(|c| c.bytes),
        soak.time.as_secs(),
        count(&soak.worker_kills),
        count(&soak.server_kills),
        count(&soak.removals),
        count(&soak.reconnects),
    );
    println!(
        "errors: at least {} expected, {} seen, {unexpected} unexpected; mismatches: {mismatches}",
        count(&soak.errors_seen),
        sum(|c| c.expected_errors),
    );
    let grown = samples.growth();
    assert_eq!((mismatches, unexpected), (0, 0));
    assert!(grown.is_empty(), "{grown:?}");
    assert!(count(&soak.worker_kills) > 0 && count(&soak.removals) > 0);
    assert_eq!(count(&soak.removals), count(&soak.errors_seen));
    // The remaining workers end after their clients have disconnected.
    let server = soak.server.into_inner().unwrap();
    wait_for("workers to go", || {
        server.workers().is_empty().then_some(())
    });
}
