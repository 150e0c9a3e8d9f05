//! System calls, and their results in a worker.

/// The expected result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Deadly,
    Unknown,
}

/// A system call: name, number, arguments, and result in a worker. All of them are harmless in an unconfined process.
pub type Call = (&'static str, i64, [i64; 6], Refused);

const NONE: [i64; 6] = [0; 6];
pub const NOWHERE: i64 = -1;
/// From `linux/ptrace.h`.
const PTRACE_ATTACH: i64 = 16;
/// `MAP_PRIVATE | MAP_ANONYMOUS`.
pub const PRIVATE: i64 = 0x22;

/// `MAP_SHARED | MAP_ANONYMOUS`.
const SHARED: i64 = 0x21;

/// A descriptor that is open in every process here.
const STDIN: i64 = 0;

pub const CALLS: [Call; 48] = [
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
        "mmap MAP_SHARED MAP_ANONYMOUS",
        libc::SYS_mmap,
        [0, 4096, 3, SHARED, NOWHERE, 0],
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
