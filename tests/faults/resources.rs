//! When the host has too little of something: descriptors, memory. And a server without root's rights.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::common::process::{first_line, wait_for};
use super::common::tool;
use super::readers::{Found, Reader};
use super::server::Server;
use super::{Served, new_store};

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
        let mut log = String::new();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        log
    }
}

impl Drop for Nobodys {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With 64 descriptors, a frontend's queues take most of what the store's files would: reads are right, or errors.
#[test]
fn with_few_descriptors_bytes_are_right_or_not_there() {
    let store = new_store();
    let trace = tempfile::NamedTempFile::new().unwrap();
    tool("prlimit", "util-linux");
    let strace = tool("strace", "strace");
    let before = [
        strace.to_str().unwrap(),
        "-D",
        "-f",
        "-o",
        trace.path().to_str().unwrap(),
        "-e",
        "trace=openat2,accept4,dup,epoll_create1,eventfd2",
        "-e",
        "status=failed",
        "prlimit",
        "--nofile=64:64",
    ];
    let image = store.image();
    let served = Served::start(&store, &image, &before, &store.args());
    let (mut right, mut errors, mut refused) = (0, 0, 0);
    for queues in 1..26 {
        let Some(mut client) = connect(&served.server.socket, queues) else {
            refused += 1;
            continue;
        };
        for file in &served.files {
            match read_all(&mut client, file) {
                Some(bytes) => {
                    assert!(bytes == file.content, "{}", file.path);
                    right += 1;
                }
                None => errors += 1,
            }
        }
    }
    // With few queues again, everything is right.
    let reader = Reader::socket(&served.server.socket);
    served
        .files
        .iter()
        .for_each(|file| assert_eq!(reader.look(file), Found::Right));
    drop(reader);
    drop(served);
    let failed = wait_for("strace's last words", || {
        let trace = fs::read_to_string(trace.path()).unwrap();
        Some(trace.matches("EMFILE").count()).filter(|count| *count > 0)
    });
    println!(
        "{failed} times EMFILE; {right} files right, {errors} errors, {refused} connections refused"
    );
    assert!(right > 100);
}

/// A client with `queues` queues, unless the server cannot serve so many.
fn connect(socket: &Path, queues: usize) -> Option<super::client::Client> {
    super::client::Client::try_start(socket, queues)
}

fn read_all(client: &mut super::client::Client, file: &super::FileOnDisk) -> Option<Vec<u8>> {
    let (start, end) = (
        file.range.start / 4096 * 4096,
        file.range.end.next_multiple_of(4096),
    );
    let mut bytes = Vec::new();
    for at in (start..end).step_by(65_536) {
        let len = usize::try_from((end - at).min(65_536)).unwrap();
        bytes.extend(client.read(0, &[(at, len)]).remove(0).ok()?);
    }
    let from = usize::try_from(file.range.start - start).unwrap();
    Some(bytes[from..from + file.content.len()].to_vec())
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
        fs::create_dir(&dir).expect("a memory cgroup can be made by root only");
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
