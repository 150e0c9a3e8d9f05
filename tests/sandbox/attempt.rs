//! Processes that confine themselves like the program does and then try something.
//!
//! They run this test program again, with one test that otherwise does nothing. A process forked from one with several
//! threads could not allocate memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::calls::{CALLS, NOWHERE, PRIVATE};
use crate::common::process::wait_for;
use crate::common::tool;
use lazystore::process::{self, spawn};
use lazystore::sandbox::jail::{self, Jail, JailContents, JailSpec, Namespaces};
use lazystore::sandbox::{Process, Reach, confine};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, open, openat, openat2, readlinkat, statx,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};
use tempfile::TempDir;

/// Environment variable that tells the process what to try.
const ATTEMPT: &str = "LAZYSTORE_TEST_ATTEMPT";
const PROCESS: &str = "LAZYSTORE_TEST_PROCESS";
const JAILED: &str = "LAZYSTORE_TEST_JAILED";

/// The full name of [`inside`].
const INSIDE: &str = "sandbox::attempt::inside";

thread_local! {
    /// Created before the process is confined.
    static LENGTHENED: std::fs::File = tempfile::tempfile().unwrap();
}

/// The resources that a confined process may use.
const MEMORY_BYTES: u64 = 1 << 30;

/// Exit code of a process whose attempt succeeded. No errno has this number.
const DONE: i32 = 200;

/// Attempts that run the program on a kernel that behaves as if it had no Landlock, where no namespaces can be created
/// (as in a Nix build), and where only the jail's can be created, but none for its workers.
pub const NO_LANDLOCK: &str = "no Landlock";
pub const NO_NAMESPACES: &str = "no namespaces";
pub const FEW_NAMESPACES: &str = "few namespaces";

/// Environment variable with the program that they run, if not the one that was built.
pub const PROGRAM: &str = "LAZYSTORE_TEST_PROGRAM";

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Done,
    Errno(i32),
    Killed(i32),
}

/// Attempts to open files, and whether a confined process can.
pub const FILES: [(&str, bool); 8] = [
    ("read a file of another store path", false),
    ("list the store", false),
    ("read a file of the store", true),
    ("list a directory of the store", true),
    ("read a file next to the store", false),
    ("read a file of the system", false),
    ("write to a file of the store", false),
    ("make a file in the store", false),
];

/// Attempts to stat unserved paths.
pub const LOOKS: [&str; 5] = [
    "look at a file of the system",
    "look at another store path",
    "look at another store path from the store",
    "look at a file next to the store from the store",
    "read a link next to the store",
];

/// Runs the attempt `name` in a process confined as `process`, or in an unconfined one.
pub fn try_in(process: Option<Process>, name: &str) -> End {
    try_with(runner(name).env(PROCESS, format!("{process:?}")))
}

/// The same in a jail with one store path.
pub fn try_in_jail(process: Process, name: &str) -> End {
    try_with(jailed(&mut runner(name), process))
}

/// The same by an ordinary user.
pub fn try_in_jail_by(user: u32, process: Process, name: &str) -> End {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    try_with(jailed(&mut runner_by(user, name, dir.path()), process))
}

fn jailed(command: &mut Command, process: Process) -> &mut Command {
    let process = format!("{:?}", Some(process));
    command.env(PROCESS, process).env(JAILED, "1")
}

fn try_with(runner: &mut Command) -> End {
    let status = runner
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    match (status.code(), status.signal()) {
        (Some(DONE), _) => End::Done,
        (Some(errno), _) => End::Errno(errno),
        (None, signal) => End::Killed(signal.unwrap()),
    }
}

/// A command that runs the attempt `name`. The attempt interprets arguments after `--`.
pub fn runner(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments()).env(ATTEMPT, name);
    command
}

/// The same by an ordinary user, who can read `dir`.
pub fn runner_by(user: u32, name: &str, dir: &Path) -> Command {
    let program = dir.join("attempt");
    // Copied by another process, like in `copy_program`: otherwise it was sometimes "text file busy".
    let mut cp = Command::new("cp");
    let copied = cp
        .arg(std::env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(tool("setpriv", "util-linux"));
    let ids = [format!("--reuid={user}"), format!("--regid={user}")];
    command.args(ids).arg("--clear-groups").arg(program);
    command.args(arguments()).env(ATTEMPT, name);
    command
}

fn arguments() -> [&'static str; 5] {
    [INSIDE, "--exact", "--nocapture", "--test-threads=1", "--"]
}

/// Not a test: the processes that the tests start run this.
#[test]
fn inside() {
    let Ok(name) = std::env::var(ATTEMPT) else {
        return;
    };
    if let Some((call, errno, rules)) = missing(&name) {
        panic!("{}", run_without(call, errno, rules));
    }
    LENGTHENED.with(|_| ());
    let outside = outside();
    let code = match std::env::var_os(JAILED) {
        Some(_) => fork_and_attempt(&name, outside.path()),
        None => code_of(attempt(&name, outside.path())),
    };
    drop(outside);
    process::exit_now(u8::try_from(code).unwrap());
}

fn code_of(end: Result<(), Errno>) -> i32 {
    end.map_or_else(Errno::raw_os_error, |()| DONE)
}

/// Runs in a child with one thread, which entering a namespace requires.
#[allow(unsafe_code)]
fn fork_and_attempt(name: &str, outside: &Path) -> i32 {
    // SAFETY: the harness's other thread waits for this one and holds no lock that the child needs.
    let ForkResult::Parent { child } = (unsafe { fork() }).unwrap() else {
        let _guard = ExitOnPanic;
        let code = code_of(attempt(name, outside));
        process::exit_now(u8::try_from(code).unwrap());
    };
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?}"),
    }
}

/// Ends the process with an error at a panic. A child would otherwise exit with success.
struct ExitOnPanic;

impl Drop for ExitOnPanic {
    fn drop(&mut self) {
        process::exit_now(101);
    }
}

/// A directory with a store of two paths and other files.
fn outside() -> TempDir {
    let outside = tempfile::tempdir().unwrap();
    let store = outside.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(store.join("path")).unwrap();
    std::fs::create_dir(store.join("other")).unwrap();
    std::fs::write(store.join("path/file"), "content").unwrap();
    std::fs::write(store.join("other/file"), "content").unwrap();
    std::fs::write(outside.path().join("file"), "content").unwrap();
    std::os::unix::fs::symlink("file", outside.path().join("link")).unwrap();
    outside
}

fn attempt(name: &str, outside: &Path) -> Result<(), Errno> {
    let store = outside.join("store");
    let mut dir = open(&store, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let is_jailed = std::env::var_os(JAILED).is_some();
    let profile = confined_as(&std::env::var(PROCESS).unwrap_or_default());
    let jail = is_jailed.then(|| build_jail(&store, &dir));
    if let Some(jail) = &jail {
        dir = match profile {
            // It stays outside, like the server's parent.
            Some(Process::Listener) => jail.store().dir.try_clone().unwrap(),
            _ => jail.enter().unwrap().dir,
        };
    }
    let reach = Reach {
        store: dir.as_fd(),
        paths: match is_jailed {
            true => Vec::new(),
            false => vec![b"path"],
        },
        writes_file: false,
        memory_bytes: MEMORY_BYTES,
        counts_threads: std::env::var_os(JAILED).is_some() && !geteuid().is_root(),
        any_owner: false,
        written_dirs: Vec::new(),
        plan_dir: None,
        cleaned_dirs: Vec::new(),
    };
    if let Some(process) = profile {
        confine(process, &reach).unwrap();
    }
    let read = OFlags::RDONLY;
    match name {
        "read a file of the store" => opens(&store.join("path/file"), read),
        "list a directory of the store" => opens(&store.join("path"), read | OFlags::DIRECTORY),
        "read a file of another store path" => opens(&store.join("other/file"), read),
        "list the store" => opens(&store, read | OFlags::DIRECTORY),
        "make a file longer" => lengthen(),
        "allocate" => allocate(MEMORY_BYTES),
        "start threads" => start_threads(),
        "allocate a little" => allocate(MEMORY_BYTES / 4),
        "sendmsg" => make(libc::SYS_sendmsg, [NOWHERE, 0, 0, 0, 0, 0]),
        "look at a file of the system" => looks(CWD, "/etc/passwd".as_ref()),
        "look at another store path" => looks(CWD, &store.join("other")),
        "look at another store path from the store" => looks(&dir, "other".as_ref()),
        "look at a file next to the store from the store" => looks(&dir, "../file".as_ref()),
        "read a file of the jail" => openat(&dir, "path/file", read, Mode::empty()).map(drop),
        "look at a file of the store" => looks(&dir, "path/file".as_ref()),
        "read a link next to the store" => {
            readlinkat(CWD, outside.join("link"), Vec::new()).map(drop)
        }
        "read a file next to the store" => opens(&outside.join("file"), read),
        "read a file of the system" => opens("/etc/passwd".as_ref(), read),
        "write to a file of the store" => opens(&store.join("path/file"), OFlags::WRONLY),
        "make a file in the store" => {
            opens(&store.join("path/new"), OFlags::WRONLY | OFlags::CREATE)
        }
        other => {
            let call = CALLS.iter().find(|(name, ..)| *name == other).unwrap();
            make(call.1, call.2)
        }
    }
}

/// Builds a jail with a process like the server's.
fn build_jail(store: &Path, dir: &OwnedFd) -> Jail {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let spec = JailSpec {
        store,
        opened: dir.as_fd(),
        contents: JailContents::Entries(vec![b"path"]),
    };
    let mut builder = spawn(Signal::SIGKILL, || {
        jail::unshare().unwrap();
        theirs.write_all(&[0]).unwrap();
        theirs.read_exact(&mut [0]).unwrap();
        jail::build(&spec, &theirs).unwrap();
        0
    })
    .unwrap();
    ours.read_exact(&mut [0]).unwrap();
    let pid = rustix::process::Pid::from_raw(builder.pid().as_raw()).unwrap();
    let namespaces = Namespaces::of(pid, false).unwrap();
    ours.write_all(&[0]).unwrap();
    assert_eq!(
        wait_for("the builder", || builder.end()),
        process::End::Exited(0)
    );
    namespaces.finish(&ours).unwrap()
}

/// Allocates with mmap(2), like an allocator does for large sizes.
fn allocate(bytes: u64) -> Result<(), Errno> {
    let len = i64::try_from(bytes).unwrap();
    make(libc::SYS_mmap, [0, len, 3, PRIVATE, NOWHERE, 0])
}

/// More than any worker needs.
fn start_threads() -> Result<(), Errno> {
    for _ in 0..400 {
        let thread = thread::Builder::new().stack_size(64 << 10);
        let started = thread.spawn(|| thread::sleep(Duration::from_secs(60)));
        started.map_err(|error| Errno::from_io_error(&error).unwrap())?;
    }
    Ok(())
}

fn looks(dir: impl AsFd, path: &Path) -> Result<(), Errno> {
    statx(
        dir,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )
    .map(drop)
}

/// Extends a file that is already open, like a recording.
fn lengthen() -> Result<(), Errno> {
    let file = LENGTHENED.with(|file| file.try_clone().unwrap());
    rustix::io::write(&file, b"more").map(drop)
}

fn confined_as(name: &str) -> Option<Process> {
    let all = [
        Process::Listener,
        Process::Mounter,
        Process::VhostWorker,
        Process::NbdWorker,
        Process::FuseWorker,
    ];
    all.into_iter()
        .find(|process| name == format!("{:?}", Some(process)))
}

/// Uses the program's own system call, so that Landlock decides, not seccomp.
fn opens(path: &Path, flags: OFlags) -> Result<(), Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let mode = if flags.contains(OFlags::CREATE) {
        Mode::RUSR
    } else {
        Mode::empty()
    };
    openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS).map(drop)
}

#[allow(unsafe_code)]
fn make(number: i64, [a, b, c, d, e, f]: [i64; 6]) -> Result<(), Errno> {
    // SAFETY: no argument in `CALLS` is an address of memory in use, so the kernel can neither read nor change any. The
    // only mapping created is a new one, and the process exits afterwards.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap());
    }
    Ok(())
}

/// The missing system call, the errno that it returns, and the first argument for which it does. `None`: all.
fn missing(name: &str) -> Option<(i64, i32, Vec<SeccompRule>)> {
    match name {
        NO_LANDLOCK => Some((libc::SYS_landlock_create_ruleset, libc::ENOSYS, Vec::new())),
        NO_NAMESPACES => Some((libc::SYS_unshare, libc::EPERM, Vec::new())),
        FEW_NAMESPACES => {
            let user_alone = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
            let (int, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            let condition = SeccompCondition::new(0, int, equal, user_alone).unwrap();
            let rule = SeccompRule::new(vec![condition]).unwrap();
            Some((libc::SYS_unshare, libc::ENOSPC, vec![rule]))
        }
        _ => None,
    }
}

/// Executes the program with the arguments after `--`, and makes a system call return `errno`. Returns only on failure.
fn run_without(call: i64, errno: i32, rules: Vec<SeccompRule>) -> std::io::Error {
    let missing = BTreeMap::from([(call, rules)]);
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(missing, SeccompAction::Allow, refuse, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter_all_threads(&program).unwrap();
    let args = std::env::args_os().skip_while(|arg| arg != "serve");
    let program = std::env::var(PROGRAM).unwrap_or(env!("CARGO_BIN_EXE_lazystore").to_owned());
    Command::new(program).args(args).exec()
}
