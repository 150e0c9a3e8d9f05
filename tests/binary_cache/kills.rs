//! Kills processes while eight clients read paths that are being fetched, and repeatedly removes what is kept.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};

use super::commands::kill_keeper_or_spare;
use crate::common::driver::{Counts, Driver, Woken, places};
use crate::common::http::HttpServer;
use crate::common::proc::{name, named};
use crate::common::process::wait_for;
use crate::common::random::Random;
use crate::common::remote::RemoteStore;
use crate::common::server::{Server, command_after};

const CLIENTS: u64 = 8;
/// Of each kind of process.
const KILLS: usize = 200;

struct Attack {
    store: RemoteStore,
    http: HttpServer,
    model: Image,
    server: Mutex<Server>,
    socket: PathBuf,
    log: File,
    is_over: AtomicBool,
}

impl Attack {
    fn new() -> Self {
        let names: Vec<String> = (0..24).map(|number| format!("path{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let store = RemoteStore::new(&names);
        let http = HttpServer::start(&store.cache.dir);
        http.latency(Duration::from_millis(5));
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let log = tempfile::tempfile().unwrap();
        let command = command(&store, &http, &socket, &log);
        Self {
            log,
            model: store.expected(),
            server: Mutex::new(Server::run(command, socket.clone(), dir)),
            store,
            http,
            socket,
            is_over: AtomicBool::new(false),
        }
    }

    /// One client's life.
    fn read(&self, seed: u64) -> Counts {
        let places = places(&self.model);
        let mut driver = Driver::new(seed);
        loop {
            let frontend = driver.connect(&self.socket);
            loop {
                if !self.is_over.load(Ordering::SeqCst) {
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

    /// Kills until each kind of process has had enough; returns how often: fetchers, keepers, workers, servers.
    fn kill(&self) -> [usize; 4] {
        let mut random = Random::new(5);
        let mut kills = [0; 4];
        while kills.iter().any(|count| *count < KILLS) {
            thread::sleep(Duration::from_millis(random.below(30)));
            self.forget(&mut random);
            let kind = random.index(kills.len());
            let killed = match kind {
                0 => self.kill_named("fetcher"),
                1 => self.kill_keeper(&mut random),
                2 => self.kill_worker(&mut random),
                _ => self.restart(),
            };
            kills[kind] += usize::from(killed);
        }
        kills
    }

    /// What was kept is gone: new workers have it fetched again.
    fn forget(&self, random: &mut Random) {
        for entry in fs::read_dir(self.store.cache_dir().join("nars"))
            .into_iter()
            .flatten()
        {
            if random.below(2) == 0 {
                let _ = fs::remove_file(entry.unwrap().path());
            }
        }
    }

    fn kill_named(&self, name: &str) -> bool {
        let pid = named(name, &self.socket);
        pid.is_some_and(|pid| kill(pid, Signal::SIGKILL).is_ok())
    }

    /// One of two. The deaths of both at one moment are more than a server bears.
    fn kill_keeper(&self, random: &mut Random) -> bool {
        let replaced = kill_keeper_or_spare(&self.socket, random.below(2) == 0);
        wait_for("another one in its place", || replaced().then_some(()));
        true
    }

    fn kill_worker(&self, random: &mut Random) -> bool {
        let mut workers = self.server.lock().unwrap().workers();
        workers.retain(|pid| name(*pid) != "keeper");
        if workers.is_empty() {
            return false;
        }
        kill(workers[random.index(workers.len())], Signal::SIGKILL).is_ok()
    }

    fn restart(&self) -> bool {
        let command = command(&self.store, &self.http, &self.socket, &self.log);
        self.server.lock().unwrap().kill_and_restart(command);
        true
    }
}

/// Every plan but the last is dropped.
fn command(store: &RemoteStore, http: &HttpServer, socket: &Path, log: &File) -> Command {
    let args = store.args(&[&http.url()]);
    let mut command = command_after(&[], &args, socket, &["--plan-cache", "0"]);
    command.stderr(Stdio::from(log.try_clone().unwrap()));
    command
}

fn warnings(mut log: &File) -> String {
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
#[ignore = "needs root: kills hundreds of processes, for minutes"]
fn killing_any_process_is_not_noticed_and_leaves_no_partial_nar() {
    let attack = Attack::new();
    let (counts, kills) = thread::scope(|scope| {
        let attack = &attack;
        let clients = (0..CLIENTS).map(|seed| scope.spawn(move || attack.read(seed)));
        let clients: Vec<_> = clients.collect();
        let kills = attack.kill();
        attack.is_over.store(true, Ordering::SeqCst);
        let counts: Vec<Counts> = clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect();
        (counts, kills)
    });
    let sum = |number: fn(&Counts) -> u64| counts.iter().map(number).sum::<u64>();
    println!(
        "{kills:?} kills; {} answers, {} bytes",
        sum(|one| one.answered),
        sum(|one| one.bytes)
    );
    assert_eq!(sum(|one| one.mismatches), 0);
    let errors = sum(|one| one.expected_errors + one.unexpected_errors);
    assert_eq!(errors, 0, "{}", warnings(&attack.log));
    assert!(sum(|one| one.bytes) > 0);
    // Every file that has a name is whole.
    drop(attack.server);
    let mut verify = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    verify
        .args(["cache", "verify", "--cache-dir"])
        .arg(attack.store.cache_dir());
    let output = verify.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
