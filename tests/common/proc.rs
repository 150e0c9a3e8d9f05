//! Reads `/proc`.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::process::wait_for;

fn of(pid: Pid, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

fn entries(pid: Pid, dir: &str) -> usize {
    fs::read_dir(of(pid, dir)).map_or(0, Iterator::count)
}

/// Open file descriptors.
pub fn fds(pid: Pid) -> usize {
    entries(pid, "fd")
}

/// Waits until a server, or the child of a program that runs it, is confined and so accepts connections.
pub fn wait_until_confined(server: Pid) {
    let arguments = fs::read(of(server, "cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    // With a mount, the server is confined before it is ready, and without root it is not confined.
    if arguments.any(|argument| argument == b"--no-sandbox" || argument == b"--fuse") {
        return;
    }
    let has_ended = || name(server).is_empty() || state(server) == Some('Z');
    let is_confined = |pid: &Pid| Status::of(*pid).is_some_and(|status| status.is_filtered());
    wait_for("the server's confinement", || {
        let confined = is_confined(&server) || children(server).iter().any(is_confined);
        (confined || has_ended()).then_some(())
    });
}

fn state(pid: Pid) -> Option<char> {
    Status::of(pid)?.field("State").chars().next()
}

/// `/proc/PID/status` (proc(5)).
pub struct Status(String);

impl Status {
    /// `None` if the process does not exist.
    pub fn of(pid: Pid) -> Option<Self> {
        fs::read_to_string(of(pid, "status")).ok().map(Self)
    }

    pub fn field(&self, name: &str) -> &str {
        let mut lines = self.0.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap().trim()
    }

    /// A set of capabilities.
    pub fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).unwrap()
    }

    /// Whether the process has a system call filter.
    pub fn is_filtered(&self) -> bool {
        self.field("Seccomp") == "2"
    }
}

/// The name of a process (`comm`).
pub fn name(pid: Pid) -> String {
    let name = fs::read_to_string(of(pid, "comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// The parent of a process.
pub fn parent(pid: Pid) -> Option<Pid> {
    Some(Pid::from_raw(Status::of(pid)?.field("PPid").parse().ok()?))
}

/// A running process with that name whose command line contains `word`.
pub fn named(wanted: &str, word: &Path) -> Option<Pid> {
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let number = entry.ok()?.file_name().into_string().ok()?;
        Some(Pid::from_raw(number.parse().ok()?))
    });
    let word = word.as_os_str().as_encoded_bytes();
    let has_word = |pid: &Pid| {
        let line = fs::read(of(*pid, "cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|found| found == word)
    };
    let mut found = numbers.filter(|pid| name(*pid) == wanted && has_word(pid));
    found.next()
}

/// Threads.
pub fn threads(pid: Pid) -> usize {
    entries(pid, "task")
}

/// Whether all threads are traced.
pub fn is_traced(worker: Pid) -> bool {
    let tasks = fs::read_dir(of(worker, "task")).unwrap();
    let status = |task: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default()
    };
    tasks
        .map(status)
        .all(|status| !status.contains("TracerPid:\t0\n"))
}

/// Inodes and paths of listening Unix sockets. Unlike a connection attempt, reading them has no effect on the server.
fn listening_sockets() -> Vec<(String, String)> {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let fields = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Fields: Num RefCount Protocol Flags Type St Inode Path. The flag 00010000 (__SO_ACCEPTCON) means listening.
    let listening = fields.filter(|fields| fields[3] == "00010000");
    let path = |fields: &[&str]| fields.get(7).copied().unwrap_or_default().to_owned();
    listening
        .map(|fields| (fields[6].to_owned(), path(&fields)))
        .collect()
}

/// Whether a process listens at a socket.
pub fn is_listening(socket: &Path) -> bool {
    let mut sockets = listening_sockets().into_iter();
    sockets.any(|(_, path)| Path::new(&path) == socket)
}

/// Number of listening Unix sockets that a process has open.
pub fn listening(pid: Pid) -> usize {
    let sockets = listening_sockets();
    let names: Vec<String> = sockets
        .iter()
        .map(|(inode, _)| format!("socket:[{inode}]"))
        .collect();
    let open = fs::read_dir(of(pid, "fd")).unwrap();
    let targets = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    targets
        .filter(|target| names.iter().any(|name| target.as_os_str() == name.as_str()))
        .count()
}

/// Child processes including zombies, except for the planner, which lives as long as its server.
pub fn children(pid: Pid) -> Vec<Pid> {
    let mut children = all_children(pid);
    children.retain(|child| !is_planner(*child));
    children
}

/// The planner process.
pub fn planner(server: Pid) -> Option<Pid> {
    all_children(server)
        .into_iter()
        .find(|child| is_planner(*child))
}

fn all_children(pid: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(of(pid, &format!("task/{pid}/children"))).unwrap_or_default();
    children
        .split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().unwrap()))
        .collect()
}

/// Recognises the planner by its name, or before it has that, by its writable mapping.
fn is_planner(pid: Pid) -> bool {
    let is_named = fs::read_to_string(of(pid, "comm")).is_ok_and(|name| name == "planner\n");
    is_named || plan_mappings(pid).iter().any(|access| access == "rw-s")
}

/// The protection of a process's mappings of the shared plans.
pub fn plan_mappings(pid: Pid) -> Vec<String> {
    let maps = fs::read_to_string(of(pid, "maps")).unwrap_or_default();
    let plans = maps
        .lines()
        .filter(|line| line.contains("/memfd:lazystore-plans"));
    let access = plans.filter_map(|line| line.split_whitespace().nth(1));
    access.map(str::to_owned).collect()
}

/// Memory that is not shared with other processes, in KiB. Zero if the process has ended.
pub fn private_kib(pid: Pid) -> u64 {
    kib(pid, "Private_")
}

/// The part of it that was written to. The rest are pages of executables. They count as private while no other process
/// runs the same executable, so they do not measure growth.
pub fn written_kib(pid: Pid) -> u64 {
    kib(pid, "Private_Dirty")
}

fn kib(pid: Pid, field: &str) -> u64 {
    let rollup = fs::read_to_string(of(pid, "smaps_rollup")).unwrap_or_default();
    let private = rollup.lines().filter(|line| line.starts_with(field));
    private
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}
