//! Processes that confine themselves as the program does and then try something.
//!
//! They are this test program, started again for one test that does nothing otherwise: a process that has forked from one
//! with threads could not allocate memory.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use lazystore::sandbox::{Process, Reach, confine};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};

/// What the attempting process is told.
const ATTEMPT: &str = "LAZYSTORE_TEST_ATTEMPT";
const PROCESS: &str = "LAZYSTORE_TEST_PROCESS";

/// The full name of [`inside`].
const INSIDE: &str = "sandbox::attempt::inside";

thread_local! {
    /// Made before the process is confined.
    static LENGTHENED: std::fs::File = tempfile::tempfile().unwrap();
}

/// Exit code of a process whose attempt was not refused; no errno has this number.
const DONE: i32 = 200;

/// The attempt to run the program on a kernel without Landlock.
pub const OLD_KERNEL: &str = "old kernel";

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Done,
    Errno(i32),
    Killed(i32),
}

/// How it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Deadly,
    Unknown,
}

/// A system call by name, number and arguments, and what comes of it in a worker. Unconfined, all of them are harmless.
type Call = (&'static str, i64, [i64; 6], Refused);

const NONE: [i64; 6] = [0; 6];
const NOWHERE: i64 = -1;
/// From `linux/ptrace.h`.
const PTRACE_ATTACH: i64 = 16;
/// `MAP_PRIVATE | MAP_ANONYMOUS`.
const PRIVATE: i64 = 0x22;

/// A descriptor that is open in every process here.
const STDIN: i64 = 0;

pub const CALLS: [Call; 47] = [
    (
        "fcntl F_SETOWN",
        libc::SYS_fcntl,
        [STDIN, 8, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "fcntl F_SETSIG",
        libc::SYS_fcntl,
        [STDIN, 10, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "fcntl F_SETOWN_EX",
        libc::SYS_fcntl,
        [STDIN, 15, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "fcntl F_SETFL O_ASYNC",
        libc::SYS_fcntl,
        [STDIN, 4, 0o20_000, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "fcntl F_SETLEASE",
        libc::SYS_fcntl,
        [NOWHERE, 1024, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    ("execve", libc::SYS_execve, NONE, Refused::Deadly),
    ("execveat", libc::SYS_execveat, NONE, Refused::Deadly),
    (
        "clone",
        libc::SYS_clone,
        [17, 0, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "ptrace",
        libc::SYS_ptrace,
        [PTRACE_ATTACH, NOWHERE, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "process_vm_readv",
        libc::SYS_process_vm_readv,
        NONE,
        Refused::Deadly,
    ),
    (
        "process_vm_writev",
        libc::SYS_process_vm_writev,
        NONE,
        Refused::Deadly,
    ),
    (
        "mmap PROT_EXEC",
        libc::SYS_mmap,
        [0, 4096, 5, PRIVATE, NOWHERE, 0],
        Refused::Deadly,
    ),
    (
        "mprotect PROT_EXEC",
        libc::SYS_mprotect,
        [0, 0, 4, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "io_uring_setup",
        libc::SYS_io_uring_setup,
        NONE,
        Refused::Deadly,
    ),
    (
        "io_uring_enter",
        libc::SYS_io_uring_enter,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    ("bpf", libc::SYS_bpf, NONE, Refused::Deadly),
    (
        "perf_event_open",
        libc::SYS_perf_event_open,
        NONE,
        Refused::Deadly,
    ),
    (
        "open_by_handle_at",
        libc::SYS_open_by_handle_at,
        NONE,
        Refused::Deadly,
    ),
    ("mount", libc::SYS_mount, NONE, Refused::Deadly),
    ("umount2", libc::SYS_umount2, NONE, Refused::Unknown),
    ("chroot", libc::SYS_chroot, NONE, Refused::Deadly),
    ("unshare", libc::SYS_unshare, NONE, Refused::Deadly),
    (
        "setns",
        libc::SYS_setns,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    ("setuid", libc::SYS_setuid, NONE, Refused::Deadly),
    ("setgroups", libc::SYS_setgroups, NONE, Refused::Deadly),
    ("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0], Refused::Deadly),
    (
        "socket AF_INET",
        libc::SYS_socket,
        [2, 1, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "socket AF_UNIX",
        libc::SYS_socket,
        [1, 1, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    ("socketpair", libc::SYS_socketpair, NONE, Refused::Deadly),
    (
        "connect",
        libc::SYS_connect,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "bind",
        libc::SYS_bind,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    (
        "listen",
        libc::SYS_listen,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Deadly,
    ),
    ("clone3", libc::SYS_clone3, NONE, Refused::Unknown),
    (
        "tgkill",
        libc::SYS_tgkill,
        [1, 1, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "prctl PR_SET_DUMPABLE",
        libc::SYS_prctl,
        [4, 1, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "ioctl TIOCSTI",
        libc::SYS_ioctl,
        [NOWHERE, 0x5412, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "seccomp",
        libc::SYS_seccomp,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    ("capset", libc::SYS_capset, NONE, Refused::Unknown),
    (
        "memfd_create",
        libc::SYS_memfd_create,
        NONE,
        Refused::Unknown,
    ),
    (
        "unlinkat",
        libc::SYS_unlinkat,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "mkdirat",
        libc::SYS_mkdirat,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "linkat",
        libc::SYS_linkat,
        [NOWHERE, 0, NOWHERE, 0, 0, 0],
        Refused::Unknown,
    ),
    ("symlinkat", libc::SYS_symlinkat, NONE, Refused::Unknown),
    (
        "renameat2",
        libc::SYS_renameat2,
        [NOWHERE, 0, NOWHERE, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "fchmodat",
        libc::SYS_fchmodat,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "setrlimit",
        libc::SYS_prlimit64,
        [0, 4, 1, 0, 0, 0],
        Refused::Unknown,
    ),
    (
        "pidfd_getfd",
        libc::SYS_pidfd_getfd,
        [NOWHERE, 0, 0, 0, 0, 0],
        Refused::Unknown,
    ),
];

/// Opening files, and whether a confined process may.
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

/// Has `process`, or one that is not confined, attempt `name`.
pub fn try_in(process: Option<Process>, name: &str) -> End {
    let status = runner(name)
        .env(PROCESS, format!("{process:?}"))
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

/// A command that runs the attempt `name`; what follows `--` is up to the attempt.
pub fn runner(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([INSIDE, "--exact", "--nocapture"])
        .args(["--test-threads=1", "--"])
        .env(ATTEMPT, name);
    command
}

/// Not a test, but what the processes run that the tests start.
#[test]
fn inside() {
    let Ok(name) = std::env::var(ATTEMPT) else {
        return;
    };
    if name == OLD_KERNEL {
        panic!("{}", run_on_old_kernel());
    }
    let code = match attempt(&name) {
        Ok(()) => DONE,
        Err(errno) => errno.raw_os_error(),
    };
    std::process::exit(code);
}

fn attempt(name: &str) -> Result<(), Errno> {
    let outside = tempfile::tempdir().unwrap();
    let store = outside.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(store.join("path")).unwrap();
    std::fs::create_dir(store.join("other")).unwrap();
    std::fs::write(store.join("path/file"), "content").unwrap();
    std::fs::write(store.join("other/file"), "content").unwrap();
    std::fs::write(outside.path().join("file"), "content").unwrap();
    let dir = open(&store, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let reach = Reach {
        store: dir.as_fd(),
        paths: vec![b"path"],
        writes_file: false,
        any_owner: false,
        written_dirs: Vec::new(),
        cleaned_dirs: Vec::new(),
    };
    LENGTHENED.with(|_| ());
    if let Some(process) = confined_as(&std::env::var(PROCESS).unwrap_or_default()) {
        confine(process, &reach).unwrap();
    }
    let read = OFlags::RDONLY;
    match name {
        "read a file of the store" => opens(&store.join("path/file"), read),
        "list a directory of the store" => opens(&store.join("path"), read | OFlags::DIRECTORY),
        "read a file of another store path" => opens(&store.join("other/file"), read),
        "list the store" => opens(&store, read | OFlags::DIRECTORY),
        "make a file longer" => lengthen(),
        "read a file next to the store" => opens(&outside.path().join("file"), read),
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

/// In a file that is open already, as a recording would be.
fn lengthen() -> Result<(), Errno> {
    let file = LENGTHENED.with(|file| file.try_clone().unwrap());
    rustix::io::write(&file, b"more").map(drop)
}

fn confined_as(name: &str) -> Option<Process> {
    let all = [
        Process::Listener,
        Process::Mounter,
        Process::VhostWorker,
        Process::FuseWorker,
    ];
    all.into_iter()
        .find(|process| name == format!("{:?}", Some(process)))
}

/// By the call that the program uses: what decides is Landlock.
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
    // SAFETY: no argument in `CALLS` is an address of memory in use, so the kernel can neither read nor change any; the
    // one mapping that is made is a new one, and the process does nothing afterwards but exit.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap());
    }
    Ok(())
}

/// Becomes the program, with the arguments after `--`. Returns only why not.
fn run_on_old_kernel() -> std::io::Error {
    let missing = BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(missing, SeccompAction::Allow, refuse, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    apply_filter_all_threads(&program).unwrap();
    let args = std::env::args_os().skip_while(|arg| arg != "serve");
    Command::new(env!("CARGO_BIN_EXE_lazystore"))
        .args(args)
        .exec()
}
