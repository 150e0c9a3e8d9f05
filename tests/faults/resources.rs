//! When the host has too little of something: descriptors, memory. And a server without root's rights.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::client::Client;
use super::common::process::{first_line, stderr_of, wait_for};
use super::common::tool;
use super::new_store;
use super::readers::{Found, Reader};
use super::server::Server;

/// User and group `nobody`, on Debian.
const NOBODY: u32 = 65534;

/// A server that may do what `nobody` may.
pub struct Nobodys(Child);

pub fn start_as_nobody(program: &Path, closure: &[String], socket: &Path) -> Nobodys {
    let mut command = Command::new(program);
    command
        .arg("serve")
        .args(closure)
        .arg("--vhost-user")
        .arg(socket);
    command.uid(NOBODY).gid(NOBODY);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let ready = first_line(&mut child);
    let server = Nobodys(child);
    if !ready.starts_with("ready ") {
        panic!("{}", server.end());
    }
    server
}

impl Nobodys {
    /// Ends it; returns what it wrote to stderr.
    pub fn end(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        wait_for("the server to end", || self.0.try_wait().unwrap());
        stderr_of(&mut self.0)
    }
}

impl Drop for Nobodys {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that may open `limit` descriptors, and the trace of what it was refused.
fn start_with_few(limit: u32, trace: &Path, closure: &[String]) -> Server {
    tool("prlimit", "util-linux");
    let strace = tool("strace", "strace");
    let nofile = format!("--nofile={limit}:{limit}");
    let trace = trace.to_str().unwrap();
    let tracer = [strace.to_str().unwrap(), "-D", "-f", "-o", trace];
    let what = ["-e", "trace=openat2", "-e", "status=failed"];
    let before: Vec<&str> = tracer
        .into_iter()
        .chain(what)
        .chain(["prlimit", &nofile])
        .collect();
    Server::start_after(&before, closure, &["--threads", "2"])
}

/// Reads are right or errors, and with 64 descriptors all are right. The fewest are just enough to be connected to.
#[test]
fn with_few_descriptors_bytes_are_right_or_not_there() {
    let store = new_store();
    let files = store.files(&store.image());
    let (mut refused, mut right, mut errors) = (0, 0, 0);
    for limit in [24, 28, 32, 36, 64] {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let server = start_with_few(limit, trace.path(), &store.args());
        let reader = Reader::socket(&server.socket);
        for file in files.iter().chain(&files) {
            match reader.look(file) {
                Found::Right => right += 1,
                Found::Error => errors += 1,
            }
        }
        if limit == 64 {
            files
                .iter()
                .for_each(|file| assert_eq!(reader.look(file), Found::Right));
        }
        drop(reader);
        wait_for("workers to go", || {
            server.workers().is_empty().then_some(())
        });
        drop(server);
        refused += fs::read_to_string(trace.path())
            .unwrap()
            .matches("EMFILE")
            .count();
    }
    println!("{refused} times EMFILE; {right} files right, {errors} errors");
    assert!(refused > 0 && right > 100);
}

/// A frontend that wants more queues than there are descriptors for is told so, and does not wait for ever.
#[test]
fn too_many_queues_for_the_descriptors_are_refused() {
    let store = new_store();
    let before = ["prlimit", "--nofile=64:64"];
    let server = Server::start_after(&before, &store.args(), &[]);
    let served: Vec<usize> = (1..=20)
        .filter(|queues| Client::try_start(&server.socket, *queues).is_some())
        .collect();
    println!("with 64 descriptors, these numbers of queues are served: {served:?}");
    assert_eq!(served, (1..=12).collect::<Vec<_>>());
}

/// A memory cgroup of version 1 or 2, gone when this is dropped.
struct MemoryGroup {
    dir: PathBuf,
    limit: &'static str,
    /// File, and the word before the number of times the limit was hit.
    hits: (&'static str, &'static str),
}

impl MemoryGroup {
    fn new(limit_bytes: u64) -> Self {
        let name = format!("lazystore-test-{}", std::process::id());
        let (root, limit, hits) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "memory.max", ("memory.events", "max "))
        } else {
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                ("memory.failcnt", ""),
            )
        };
        let dir = Path::new(root).join(name);
        let made = fs::create_dir(&dir);
        made.unwrap_or_else(|error| panic!("{}: {error} (needs root)", dir.display()));
        let group = Self { dir, limit, hits };
        fs::write(group.dir.join(group.limit), limit_bytes.to_string()).unwrap();
        group
    }

    fn hits(&self) -> u64 {
        let (file, word) = self.hits;
        let text = fs::read_to_string(self.dir.join(file)).unwrap();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(word));
        lines.next().unwrap().trim().parse().unwrap()
    }

    /// Runs what follows it inside.
    fn enter(&self) -> String {
        format!(
            "echo $$ >{}/cgroup.procs && exec \"$0\" \"$@\"",
            self.dir.display()
        )
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Not while a process in it is on its way out.
        wait_for("an empty cgroup", || fs::remove_dir(&self.dir).ok());
    }
}

/// The limit is less than a tenth of what is read, and the rest is taken by a process that wants all there is, and is
/// killed for it again and again.
#[test]
fn with_little_memory_reads_are_right() {
    const FILES: usize = 12;
    const FILE_BYTES: usize = 8 << 20;
    const LIMIT_BYTES: u64 = 24 << 20;
    let tree = tempfile::tempdir().unwrap();
    let content = |number: usize| -> Vec<u8> {
        (0..FILE_BYTES)
            .map(|i| u8::try_from((i / 512 + number * 7) % 251).unwrap())
            .collect()
    };
    for number in 0..FILES {
        let path = tree.path().join(format!("file{number:02}"));
        fs::write(&path, content(number)).unwrap();
        // Out of the page cache, so that reading it is charged to the reader.
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let image = super::common::tree_image(tree.path());
    let data = 4096 * u64::from(image.space().regions()[0].data.start);
    let group = MemoryGroup::new(LIMIT_BYTES);
    let enter = group.enter();
    let closure = [
        "--tree".to_owned(),
        tree.path().to_str().unwrap().to_owned(),
    ];
    let server = Server::start_after(&["sh", "-c", &enter], &closure, &[]);
    let reader = Reader::socket(&server.socket);
    let mut hogs = 0;
    for number in 0..FILES {
        let hog = Command::new("sh")
            .args(["-c", &enter, "tail", "/dev/zero"])
            .status()
            .unwrap();
        hogs += i32::from(!hog.success());
        let at = data + (FILE_BYTES * number) as u64;
        let bytes = reader.range(&(at..at + FILE_BYTES as u64)).unwrap();
        assert!(bytes == content(number), "file {number}");
    }
    drop(reader);
    let hits = group.hits();
    println!(
        "the limit of {LIMIT_BYTES} bytes was hit {hits} times, {hogs} processes were killed; {FILES} files right"
    );
    assert!(hits > 0 && hogs > 0);
    drop(server);
}
