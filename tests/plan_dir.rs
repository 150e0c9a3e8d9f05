//! The plan directory, which keeps plans for the next server.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use lazystore::image::Image;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::common::client::Client;
use crate::common::proc::planner;
use crate::common::process::wait_for;
use crate::common::random::Random;
use crate::common::server::{Server, command_after};
use crate::common::small_store::{SmallStore, fill};
use crate::common::tool;
use crate::plans::{data, expected, metadata, new_store, right_or_not_there, scan};
use crate::watching::status_json;

/// A store that is old enough for its plans to be kept, a plan directory, and the disk's contents.
struct Fixture {
    store: SmallStore,
    temp: TempDir,
    image: Image,
    ranges: Vec<Range<u64>>,
    right: Vec<Vec<u8>>,
}

impl Fixture {
    fn new() -> Self {
        let store = new_store();
        let image = store.image();
        let ranges: Vec<_> = metadata(&image).into_iter().chain(data(&image)).collect();
        let right = expected(&image, &ranges);
        let fixture = Self {
            store,
            temp: tempfile::tempdir().unwrap(),
            image,
            ranges,
            right,
        };
        fixture.store.settle();
        fixture
    }

    fn plans(&self) -> PathBuf {
        self.temp.path().join("plans")
    }

    fn log(&self) -> PathBuf {
        self.temp.path().join("log")
    }

    fn command(&self, before: &[&str], socket: &Path) -> Command {
        let plans = self.plans();
        let extra = ["--plan-dir", plans.to_str().unwrap()];
        let mut command = command_after(before, &self.store.args(), socket, &extra);
        command.env("RUST_LOG", "debug");
        command.stderr(File::create(self.log()).unwrap());
        command
    }

    fn start_after(&self, before: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        Server::run(self.command(before, &socket), socket, dir)
    }

    /// A server that has logged that it has read the kept plans.
    fn start(&self) -> Server {
        let server = self.start_after(&[]);
        self.wait_for_log("read the plans kept in");
        server
    }

    fn wait_for_log(&self, words: &str) {
        wait_for(words, || (self.logged(words) > 0).then_some(()));
    }

    /// Number of log lines that contain `text`.
    fn logged(&self, words: &str) -> usize {
        let log = fs::read_to_string(self.log()).unwrap();
        log.lines().filter(|line| line.contains(words)).count()
    }

    /// Checks that everything that a VM can read is right.
    fn check(&self, server: &Server) {
        assert_eq!(right_or_not_there(server, &self.ranges, &self.right), 0);
    }

    /// Files in the plan directory with this extension.
    fn files_with(&self, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.plans()).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == extension))
            .collect()
    }

    /// Files with plans, and their contents.
    fn kept(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let plans = self.files_with("plan").into_iter();
        let mut kept: Vec<_> = plans
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        kept.sort();
        kept
    }

    /// Starts a server and waits until it has kept the plans of all three paths.
    fn keep_all(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let server = self.start();
        self.check(&server);
        wait_for("plans of all paths", || {
            (self.kept().len() == 3).then_some(())
        });
        self.kept()
    }
}

/// The system calls with which a server's child processes walked the store, from a trace with `-f`: listing directories,
/// reading symlinks, and statx(2) of files that are neither open nor store paths.
fn walks(trace: &str, server: i32) -> Vec<&str> {
    let of = |line: &str| {
        line.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    // The jail builder also makes such calls, before there are workers.
    let builder = trace.lines().find(|line| line.contains("\"jail-builder\""));
    let others = [server.to_string(), builder.map(of).unwrap()];
    let walks = |line: &&str| {
        let is_look = line.contains("statx(") && !line.contains(", \"\", ");
        let is_of_top = ["\"aaa-one\"", "\"bbb-two\"", "\"ccc-three\""]
            .iter()
            .any(|top| line.contains(top));
        line.contains("getdents64(") || line.contains("readlinkat(") || is_look && !is_of_top
    };
    let of_others = trace.lines().filter(|line| !others.contains(&of(line)));
    of_others.filter(walks).collect()
}

/// The calls that open small files, except those of the server process itself.
fn opens_of_small_files(trace: &str, server: i32) -> Vec<&str> {
    let is_small = |line: &&str| {
        let names = ["/file1\"", "/file100\"", "/file1500\""];
        line.contains("openat2(") && names.iter().any(|name| line.contains(name))
    };
    let others = |line: &&str| !line.starts_with(&format!("{server} "));
    trace.lines().filter(is_small).filter(others).collect()
}

/// Number of calls that walk, made by a new server whose VM reads all metadata after the kept plans have been read.
fn walks_of_next(fixture: &Fixture) -> usize {
    let (trace, server) = trace_of_next(fixture);
    let found = walks(&trace, server);
    found.iter().take(3).for_each(|line| println!("{line}"));
    found.len()
}

/// The system calls of such a server, and its process ID.
fn trace_of_next(fixture: &Fixture) -> (String, i32) {
    let trace = fixture.temp.path().join("trace");
    let strace = tool("strace", "strace");
    let before = [
        strace.to_str().unwrap(),
        "-D",
        "-f",
        "-o",
        trace.to_str().unwrap(),
        "-e",
        "trace=statx,newfstatat,getdents64,readlinkat,openat2,prctl",
    ];
    let server = fixture.start_after(&before);
    fixture.wait_for_log("read the small files kept in");
    let mut client = Client::start(&server.socket, 1);
    let metadata = metadata(&fixture.image);
    let read = scan(&mut client, &metadata);
    for (read, right) in read.iter().zip(&fixture.right) {
        assert!(read.as_ref() == Ok(right));
    }
    drop(client);
    let pid = server.pid();
    server.signal(Signal::SIGTERM);
    let is_end = |line: &str| line.starts_with(&pid.to_string()) && line.contains("+++ exited");
    let text = wait_for("the whole trace", || {
        let text = fs::read_to_string(&trace).ok()?;
        text.lines().any(is_end).then_some(text)
    });
    // The trace must contain calls that occur in any case.
    assert!(
        text.contains("\"planner\"") && text.contains("openat2("),
        "{text}"
    );
    (text, pid.as_raw())
}

#[test]
#[ignore = "needs root and strace"]
fn the_first_vm_of_a_restarted_server_opens_no_small_file() {
    let fixture = Fixture::new();
    let opens = |fixture: &Fixture| {
        let (trace, server) = trace_of_next(fixture);
        opens_of_small_files(&trace, server).len()
    };
    // The same count must be able to find something.
    assert!(opens(&fixture) > 100);
    fixture.keep_all();
    let server = fixture.start();
    fixture.check(&server);
    wait_for("the small files of all paths", || {
        (fixture.files_with("files").len() == 3).then_some(())
    });
    drop(server);
    assert_eq!(opens(&fixture), 0);
}

#[test]
#[ignore = "needs root and strace"]
fn the_first_vm_of_a_restarted_server_walks_no_path() {
    let fixture = Fixture::new();
    // The same count must be able to find something.
    assert!(walks_of_next(&fixture) > 100);
    let kept = fixture.keep_all();
    assert_eq!(walks_of_next(&fixture), 0);
    let server = fixture.start();
    let status = status_json(&server.socket);
    assert_eq!(
        (&status["published_plans"], &status["kept_plans"]),
        (&3.into(), &3.into())
    );
    drop(server);
    // Permissions and contents.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&fixture.plans()), 0o700);
    assert!(kept.iter().all(|(path, _)| mode(path) == 0o600));
    assert!(fixture.kept() == kept, "what is right is not written again");
}

#[test]
#[ignore = "needs root and strace"]
fn invalid_files_in_the_plan_directory_do_not_change_what_a_vm_reads() {
    let fixture = Fixture::new();
    let kept = fixture.keep_all();
    let mut random = Random::new(0x91a7);
    for round in 0..6 {
        for (path, whole) in &kept {
            let at = random.index(whole.len());
            let mut bytes = whole.clone();
            match round {
                0..3 => bytes[at] ^= 1 << random.below(8),
                3 => bytes.truncate(at),
                4 => bytes = b"lazystore plan 2\n".repeat(100),
                _ => bytes.clear(),
            }
            fs::write(path, bytes).unwrap();
        }
        let server = fixture.start();
        assert_eq!(fixture.logged("is ignored, and its path walked again"), 3);
        fixture.check(&server);
        wait_for("the right plans", || (fixture.kept() == kept).then_some(()));
    }
    assert_eq!(walks_of_next(&fixture), 0);
}

/// A path is replaced by another directory with the same name and registration, and files by others of the same length.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_replaced_path_is_never_served_from_an_old_plan() {
    let mut fixture = Fixture::new();
    fixture.keep_all();
    let path = fixture.store.store().join("aaa-one");
    let other = fixture.store.root().join("other");
    let copied = Command::new("cp").arg("-r").args([&path, &other]).status();
    assert!(copied.unwrap().success());
    fs::rename(other.join("share/file17"), other.join("share/eli_17")).unwrap();
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&other, &path).unwrap();
    let see = |fixture: &mut Fixture| {
        fixture.image = fixture.store.image();
        fixture.right = expected(&fixture.image, &fixture.ranges);
        fixture.store.settle();
        let server = fixture.start();
        fixture.check(&server);
    };
    see(&mut fixture);
    // Now changed in place: only the registration differs.
    let file = fixture.store.store().join("bbb-two/share");
    fs::rename(file.join("file17"), file.join("eli_17")).unwrap();
    let registration = fixture.store.root().join("registration");
    let text = fs::read_to_string(&registration).unwrap();
    let text = text.replace(&"0".repeat(64), &"1".repeat(64));
    fs::write(&registration, text).unwrap();
    see(&mut fixture);
}

/// At the next start the path is walked again, as without a plan directory.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_change_inside_a_path_is_an_error_until_the_server_restarts() {
    let mut fixture = Fixture::new();
    let kept = fixture.keep_all();
    let lib = fixture.store.store().join("ccc-three/lib");
    let file = File::options()
        .write(true)
        .open(lib.join("file40000"))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(9))
        .unwrap();
    let server = fixture.start();
    assert!(right_or_not_there(&server, &fixture.ranges, &fixture.right) > 0);
    wait_for("a plan to be gone", || {
        (fixture.kept().len() == kept.len() - 1).then_some(())
    });
    drop(server);
    fixture.image = fixture.store.image();
    let server = fixture.start();
    fixture.check(&server);
    wait_for("another plan", || {
        (fixture.kept().len() == kept.len()).then_some(())
    });
}

#[test]
#[ignore = "needs root and strace"]
fn a_planner_killed_while_writing_leaves_no_wrong_plan() {
    let fixture = Fixture::new();
    let mut cut = 0;
    for round in 0..40_u64 {
        let server = fixture.start_after(&[]);
        let planner = wait_for("the planner", || planner(server.pid()));
        let mut client = Client::start(&server.socket, 1);
        let firsts = fixture
            .ranges
            .iter()
            .map(|range| range.start..range.start + 4096);
        scan(&mut client, &firsts.collect::<Vec<_>>());
        // A random moment while it walks three paths and writes their plans.
        std::thread::sleep(Duration::from_micros(round * 250));
        let _ = kill(planner, Signal::SIGKILL);
        drop(server);
        cut += usize::from((1..3).contains(&fixture.kept().len()));
        if fixture.kept().len() == 3 {
            fs::remove_dir_all(fixture.plans()).unwrap();
        }
    }
    println!("{cut} of 40 were killed in between");
    let server = fixture.start();
    assert_eq!(fixture.logged("is ignored"), 0);
    fixture.check(&server);
    drop(server);
    fixture.keep_all();
    assert_eq!(walks_of_next(&fixture), 0);
}

/// A separate file system.
struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: PathBuf, options: &str) -> Self {
        fs::create_dir(&dir).unwrap();
        let options = Some(options);
        mount(
            Some("plans"),
            &dir,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        Self(dir)
    }

    fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        // Busy as long as the planner of a stopped server has a file open for writing.
        wait_for("nobody to write", || {
            mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).ok()
        });
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

const WARNING: &str = "no more plans are kept in";

#[test]
#[ignore = "needs root: it mounts"]
fn a_full_disk_costs_one_warning() {
    let fixture = Fixture::new();
    // Space for the directory, but not for a file.
    let mounted = Mounted::new(fixture.plans(), "mode=0700,size=4k");
    fs::write(mounted.0.join("full"), [0; 4096]).unwrap();
    for _ in 0..2 {
        let server = fixture.start();
        fixture.check(&server);
        fixture.wait_for_log(WARNING);
        drop(server);
        assert_eq!(fixture.logged(WARNING), 1);
        assert_eq!(fixture.logged("No space left on device"), 1);
        assert_eq!(fs::read_dir(&mounted.0).unwrap().count(), 1);
    }
}

#[test]
#[ignore = "needs root: it mounts"]
fn a_read_only_plan_directory_is_used_without_a_warning() {
    let fixture = Fixture::new();
    let mounted = Mounted::new(fixture.plans(), "mode=0700");
    let kept = fixture.keep_all();
    fs::remove_file(&kept[0].0).unwrap();
    mounted.make_read_only();
    let server = fixture.start();
    assert_eq!(status_json(&server.socket)["kept_plans"], 2);
    fixture.check(&server);
    fixture.wait_for_log("cannot write plans in");
    drop(server);
    assert_eq!(fixture.logged(WARNING), 0);
    assert_eq!(fixture.kept().len(), 2);
}

#[test]
#[ignore = "needs root and strace"]
fn servers_share_a_plan_directory() {
    let fixture = Fixture::new();
    let servers: Vec<Server> = (0..4).map(|_| fixture.start_after(&[])).collect();
    let clients = servers
        .iter()
        .map(|server| Client::start(&server.socket, 1));
    let mut clients: Vec<Client> = clients.collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                let read = scan(client, &fixture.ranges);
                let all = read.iter().zip(&fixture.right);
                assert!(
                    all.into_iter()
                        .all(|(read, right)| read.as_ref() == Ok(right))
                );
            });
        }
    });
    // No server was killed while writing, so there is exactly one file per plan.
    wait_for("plans of all paths", || {
        let entries = fs::read_dir(fixture.plans()).unwrap();
        let mut names = entries.map(|entry| entry.unwrap().file_name());
        let is_temporary = |name: std::ffi::OsString| name.as_encoded_bytes().ends_with(b".new");
        (fixture.kept().len() == 3 && !names.any(is_temporary)).then_some(())
    });
    drop((clients, servers));
    assert_eq!(walks_of_next(&fixture), 0);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn only_the_planner_has_the_plan_directory() {
    let fixture = Fixture::new();
    let server = fixture.start();
    let _client = Client::start(&server.socket, 1);
    let worker = wait_for("a worker", || server.workers().pop());
    let planner = planner(server.pid()).unwrap();
    let has = |pid: nix::unistd::Pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut targets = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        targets.any(|target| target == fixture.plans())
    };
    assert_eq!((has(planner), has(worker)), (true, false));
}

#[test]
#[ignore = "needs root: it changes owners"]
fn a_plan_directory_writable_by_others_is_refused_in_one_sentence() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.plans()).unwrap();
    let plans = fixture.plans();
    let plans = plans.to_str().unwrap();
    let refusal = || {
        let started = Server::try_start_after(&[], &fixture.store.args(), &["--plan-dir", plans]);
        let log = started.err().unwrap();
        assert_eq!(log.lines().count(), 1, "{log}");
        log
    };
    fs::set_permissions(plans, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(
        refusal().contains("(mode 770), and could put wrong plans there"),
        "{}",
        refusal()
    );
    fs::set_permissions(plans, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(plans, Some(12345), None).unwrap();
    assert!(refusal().contains("belongs to user 12345"), "{}", refusal());
    fs::remove_dir(plans).unwrap();
    fs::write(plans, "").unwrap();
    assert!(
        refusal().contains("cannot open the directory"),
        "{}",
        refusal()
    );
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn no_plan_of_a_tree_is_kept() {
    let fixture = Fixture::new();
    let tree = tempfile::tempdir().unwrap();
    fill(tree.path(), 1, &[("dir", &[100, 5000])]);
    let plans = fixture.plans();
    let server = Server::start(tree.path(), &["--plan-dir", plans.to_str().unwrap()]);
    let _client = Client::start(&server.socket, 1);
    assert_eq!(planner(server.pid()), None);
    assert!(!plans.exists());
}

/// `lazystore run` also has the option.
#[test]
#[ignore = "needs root: it serves a VM"]
fn run_keeps_plans_in_the_given_directory() {
    let fixture = Fixture::new();
    let mut run = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    run.arg("run").args(fixture.store.args()).arg("--plan-dir");
    run.arg(fixture.plans()).args(["--", "true", "{socket}"]);
    let status = run.stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    assert!(fixture.plans().is_dir());
}
