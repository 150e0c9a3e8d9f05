//! What `/proc` says of a process.

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

/// Waits until a server's workers have the place that another process makes for them while it starts.
pub fn wait_for_jail(server: Pid) {
    let makes_it =
        |pid: &Pid| fs::read_to_string(of(*pid, "comm")).is_ok_and(|name| name == "jail-builder\n");
    wait_for("the jail", || {
        (!children(server).iter().any(makes_it)).then_some(())
    });
}

/// The name that a process has given itself.
pub fn name(pid: Pid) -> String {
    let name = fs::read_to_string(of(pid, "comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// The process that forked it.
pub fn parent(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(of(pid, "status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(Pid::from_raw(line.trim().parse().ok()?))
}

/// A living process with that name whose command line has `word` in it.
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

/// Whether every thread has a tracer.
pub fn is_traced(worker: Pid) -> bool {
    let tasks = fs::read_dir(of(worker, "task")).unwrap();
    let status = |task: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default()
    };
    tasks
        .map(status)
        .all(|status| !status.contains("TracerPid:\t0\n"))
}

/// Inodes and paths of listening Unix sockets. Asking the kernel instead of connecting leaves no trace.
fn listening_sockets() -> Vec<(String, String)> {
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let fields = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Fields: Num RefCount Protocol Flags Type St Inode Path; 00010000 means that it listens (__SO_ACCEPTCON).
    let listening = fields.filter(|fields| fields[3] == "00010000");
    let path = |fields: &[&str]| fields.get(7).copied().unwrap_or_default().to_owned();
    listening
        .map(|fields| (fields[6].to_owned(), path(&fields)))
        .collect()
}

/// Whether anybody listens at a socket.
pub fn is_listening(socket: &Path) -> bool {
    let mut sockets = listening_sockets().into_iter();
    sockets.any(|(_, path)| Path::new(&path) == socket)
}

/// How many listening Unix sockets a process has open.
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

/// Child processes, zombies included, but for the one that plans for all: it lives as long as its server.
pub fn children(pid: Pid) -> Vec<Pid> {
    let mut children = all_children(pid);
    children.retain(|child| !is_planner(*child));
    children
}

/// The process that plans for all.
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

/// By its name, or before it has one, by what only it may write to.
fn is_planner(pid: Pid) -> bool {
    let is_named = fs::read_to_string(of(pid, "comm")).is_ok_and(|name| name == "planner\n");
    is_named || plan_mappings(pid).iter().any(|access| access == "rw-s")
}

/// How a process has mapped the plans that all share.
pub fn plan_mappings(pid: Pid) -> Vec<String> {
    let maps = fs::read_to_string(of(pid, "maps")).unwrap_or_default();
    let plans = maps
        .lines()
        .filter(|line| line.contains("/memfd:lazystore-plans"));
    let access = plans.filter_map(|line| line.split_whitespace().nth(1));
    access.map(str::to_owned).collect()
}

/// Memory that no other process shares, in KiB; zero when the process is gone.
pub fn private_kib(pid: Pid) -> u64 {
    kib(pid, "Private_")
}

/// The part of it that was written to. The rest are pages of programs, which are private as long as nobody else happens
/// to run the same one: no measure of growth.
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
