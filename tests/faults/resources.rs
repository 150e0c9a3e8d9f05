//! Shortages of descriptors and of memory, and a server without root's capabilities.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

use super::new_store;
use super::readers::{Found, Reader};
use crate::common::client::Client;
use crate::common::process::{first_line, stderr_of, wait_for};
use crate::common::server::Server;
use crate::common::tool;

/// User and group `nobody`, on Debian.
const NOBODY: u32 = 65534;

/// A server with the permissions of `nobody`.
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
    /// Ends it, and returns its stderr.
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

/// A shell script that closes all descriptors except for the standard streams, and executes a program. Descriptors that
/// the test runner has left open would count.
const ALONE: &str = r#"for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-"; done; exec "$0" "$@""#;

/// A server with a limit of `limit` descriptors. It either serves all clients, or refuses to start and says what it
/// needs.
fn start_with_few(limit: u32, closure: &[String]) -> Result<Server, String> {
    tool("prlimit", "util-linux");
    let nofile = format!("--nofile={limit}:{limit}");
    let before = ["bash", "-c", ALONE, "prlimit", &nofile];
    Server::try_start_after(&before, closure, &[])
}

/// Too low limits are refused at the start. With others, all clients are served with correct bytes.
#[test]
#[ignore = "needs prlimit"]
fn with_few_descriptors_a_server_serves_or_explains_why_not() {
    let store = new_store();
    let files = store.files(&store.image());
    let (mut refused, mut served) = (Vec::new(), Vec::new());
    for limit in (16..=72).step_by(4) {
        let server = match start_with_few(limit, &store.args()) {
            Ok(server) => server,
            Err(why) => {
                let reason = why.lines().last().unwrap_or_default();
                assert!(
                    reason.contains("files may be opened"),
                    "{limit} descriptors: {why}"
                );
                refused.push(limit);
                continue;
            }
        };
        let reader = Reader::socket(&server.socket);
        for file in files.iter().chain(&files) {
            assert_eq!(reader.look(file), Found::Right, "{limit} descriptors");
        }
        served.push(limit);
    }
    println!("refused with {refused:?} descriptors, served with {served:?}");
    assert!(served.contains(&64) && refused.contains(&16));
}

/// A frontend that wants more queues than there are descriptors for gets an error and does not wait forever.
#[test]
#[ignore = "needs prlimit"]
fn too_many_queues_for_the_descriptors_are_refused() {
    let store = new_store();
    let server = start_with_few(96, &store.args()).unwrap();
    let served: Vec<usize> = (1..=40)
        .filter(|queues| Client::try_start(&server.socket, *queues).is_some())
        .collect();
    println!("with 96 descriptors, these numbers of queues are served: {served:?}");
    let most = served.len();
    assert_eq!(served, (1..=most).collect::<Vec<_>>());
    assert!((4..40).contains(&most));
}

/// The limit of descriptors is lowered while a VM reads. Its reads are right or errors, and right again afterwards.
#[test]
#[ignore = "needs root and strace"]
fn when_descriptors_run_out_reads_are_correct_or_fail() {
    let store = new_store();
    let files = store.files(&store.image());
    let strace = tool("strace", "strace");
    let trace = tempfile::NamedTempFile::new().unwrap();
    let (mut right, mut errors) = (0, 0);
    for spare in 0..5 {
        let tracer = [strace.to_str().unwrap(), "-D", "-f", "-A", "-o"];
        let what = ["-e", "trace=openat2", "-e", "status=failed"];
        let before = tracer.into_iter().chain([trace.path().to_str().unwrap()]);
        let before: Vec<&str> = before.chain(what).collect();
        let server = Server::start_after(&before, &store.args(), &["--threads", "2"]);
        let reader = Reader::socket(&server.socket);
        let worker = server.workers()[0];
        let limit = limit_open_files(worker, open_to(worker) + spare);
        for file in files.iter().chain(&files) {
            match reader.look(file) {
                Found::Right => right += 1,
                Found::Error => errors += 1,
            }
        }
        limit_open_files(worker, limit);
        for file in &files {
            assert_eq!(reader.look(file), Found::Right, "{}", file.path);
        }
    }
    let trace = fs::read_to_string(trace.path()).unwrap();
    let refused = trace.matches("EMFILE").count();
    println!("{refused} times EMFILE; {right} files right, {errors} errors");
    assert!(refused > 0 && right > 100 && errors > 0);
}

/// The lowest free descriptor number of `pid`. With this limit it cannot open another file.
fn open_to(pid: Pid) -> u64 {
    let dir = format!("/proc/{pid}/fd");
    (0..)
        .find(|fd| fs::symlink_metadata(format!("{dir}/{fd}")).is_err())
        .unwrap()
}

/// Changes the limit of open files of `pid`. Returns the previous one.
fn limit_open_files(pid: Pid, files: u64) -> u64 {
    let pid = rustix::process::Pid::from_raw(pid.as_raw());
    let resource = rustix::process::Resource::Nofile;
    let now = rustix::process::getrlimit(resource);
    let limit = rustix::process::Rlimit {
        current: Some(files),
        maximum: now.maximum,
    };
    let before = rustix::process::prlimit(pid, resource, limit).unwrap();
    before.current.unwrap()
}

/// A memory cgroup of version 1 or 2. Dropping it removes it.
struct MemoryGroup {
    dir: PathBuf,
    limit: &'static str,
    /// The file and the key of the counter of hits of the limit.
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

    /// The command that runs another command in the cgroup.
    fn enter(&self) -> String {
        format!(
            "echo $$ >{}/cgroup.procs && exec \"$0\" \"$@\"",
            self.dir.display()
        )
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Fails while a process in it is still exiting.
        wait_for("an empty cgroup", || fs::remove_dir(&self.dir).ok());
    }
}

/// The limit is less than a tenth of what is read. Another process uses as much memory as it can get, and is killed for
/// it repeatedly.
#[test]
#[ignore = "needs root"]
fn with_little_memory_reads_are_correct() {
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
        // Evict it from the page cache, so that reading it is charged to the reader.
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let image = crate::common::tree_image(tree.path());
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
