//! A server whose log is read while it runs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::proc::children;
use crate::common::process::wait_for;
use crate::common::server::{start_at, wait};

/// A server that is killed when the test ends.
pub struct Logged {
    child: Child,
    pub socket: PathBuf,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Logged {
    pub fn start(tree: &Path, extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let mut child = start_at(tree, &socket, extra);
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let written = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            child,
            socket,
            log,
            reader: Some(reader),
            _dir: dir,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn wait_for_log(&self, text: &str) {
        self.wait_for_log_times(text, 1);
    }

    pub fn wait_for_log_times(&self, text: &str, times: usize) {
        wait_for(text, || {
            (self.log.lock().unwrap().matches(text).count() >= times).then_some(())
        });
    }

    /// Prevents the listener from opening more files. Returns the previous limit.
    pub fn limit_descriptors_to_open(&self) -> u64 {
        // poll(2) also fails if it is given more descriptors than the limit.
        const LOWEST: u64 = 6;
        let is_open =
            |number| Path::new(&format!("/proc/{}/fd/{number}", self.pid())).exists() || number < 3;
        assert!((0..LOWEST).all(is_open));
        self.limit_descriptors(LOWEST)
    }

    /// Sets the limit of descriptors. Returns the previous one.
    pub fn limit_descriptors(&self, current: u64) -> u64 {
        let pid = rustix::process::Pid::from_raw(self.pid().as_raw());
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            current: Some(current),
            maximum,
        };
        prlimit(pid, Resource::Nofile, limit)
            .unwrap()
            .current
            .unwrap()
    }

    /// The mount's worker, which is the first one to be started.
    pub fn kill_first_worker(&self) {
        kill(children(self.pid())[0], Signal::SIGKILL).unwrap();
    }

    /// Ends it, and returns its stderr.
    pub fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        kill(self.pid(), signal).unwrap();
        let status = wait(&mut self.child);
        self.reader.take().unwrap().join().unwrap();
        let log = self.log.lock().unwrap().clone();
        (status, log)
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the server said:\n{}", self.log.lock().unwrap());
        }
    }
}

/// The fields of those lines of a JSON log that have this message.
pub fn fields(log: &str, message: &str) -> Vec<Value> {
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let fields = lines.map(|mut line| line["fields"].take());
    fields
        .filter(|fields| fields["message"] == message)
        .collect()
}
