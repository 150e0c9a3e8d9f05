//! The system calls that each kind of process may make.
//!
//! The lists include the calls that glibc and musl make internally.

use super::Process;

/// A system call with conditions on its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CallRule {
    /// `SYS_*` for this architecture.
    pub(super) number: i64,
    /// Conditions that must all hold; no conditions match any arguments.
    pub(super) tests: [Option<Test>; 2],
}

/// `argument & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    /// Index of the argument.
    pub(super) argument: u8,
    /// The bits to compare.
    pub(super) mask: u64,
    /// The value that they must have.
    pub(super) value: u64,
}

impl CallRule {
    const fn any(number: i64) -> Self {
        Self {
            number,
            tests: [None; 2],
        }
    }

    pub(super) const fn when(number: i64, argument: u8, mask: u64, value: u64) -> Self {
        Self {
            number,
            tests: [Some(Test::new(argument, mask, value)), None],
        }
    }

    /// fcntl(2) with this command.
    const fn fcntl(command: i32) -> Self {
        Self::when(libc::SYS_fcntl, 1, INT, command.unsigned_abs() as u64)
    }

    /// fcntl(2) with `F_SETFL` and flags that satisfy `flags & mask == value`.
    const fn set_flags(mask: i32, value: i32) -> Self {
        let command = Test::new(1, INT, libc::F_SETFL.unsigned_abs() as u64);
        let flags = Test::new(2, mask.unsigned_abs() as u64, value.unsigned_abs() as u64);
        Self {
            number: libc::SYS_fcntl,
            tests: [Some(command), Some(flags)],
        }
    }

    /// Returns whether the call matches with any arguments.
    #[cfg(test)]
    pub(super) fn is_unconditional(&self) -> bool {
        self.tests.iter().all(Option::is_none)
    }
}

impl Test {
    const fn new(argument: u8, mask: u64, value: u64) -> Self {
        Self {
            argument,
            mask,
            value,
        }
    }
}

/// Returns the calls that `process` may make.
pub(super) fn allowed(process: Process) -> &'static [&'static [CallRule]] {
    match process {
        Process::VhostWorker => &[RUNTIME, THREADS_ONLY, STORE, RECORD, SOCKET, MESSAGES],
        Process::NbdWorker => &[RUNTIME, THREADS_ONLY, STORE, RECORD, SOCKET, FETCHER],
        Process::FuseWorker => &[RUNTIME, THREADS_ONLY, STORE, RECORD, FETCHER],
        Process::Prefetcher => &[RUNTIME, THREADS_ONLY, STORE, FETCHER],
        Process::Planner => &[RUNTIME, THREADS_ONLY, STORE],
        Process::PlanKeeper => &[RUNTIME, THREADS_ONLY, STORE, FILES],
        Process::Listener => &[
            RUNTIME, STORE, FILES, RECORD, SOCKET, MESSAGES, PARENT, NOTIFY,
        ],
        Process::Mounter => &[
            RUNTIME, STORE, FILES, RECORD, SOCKET, MESSAGES, PARENT, NOTIFY, MOUNTS,
        ],
    }
}

/// Returns the calls that kill `process`. It never makes them itself, so they are a sign of an attack.
pub(super) fn fatal(process: Process) -> &'static [&'static [CallRule]] {
    match process {
        Process::VhostWorker
        | Process::NbdWorker
        | Process::FuseWorker
        | Process::Prefetcher
        | Process::Planner
        | Process::PlanKeeper => &[FATAL, SIGNALS_BY_DESCRIPTOR, FATAL_IN_WORKERS, NAMESPACES],
        Process::Listener => &[FATAL, SIGNALS_BY_DESCRIPTOR],
        // If mount(2) fails, fuser tries to execute fusermount3. That must fail with an error, not kill the process.
        Process::Mounter => &[],
    }
}

/// The bits of an `int` argument; the kernel ignores the others.
const INT: u64 = 0xffff_ffff;

/// From `linux/sched.h`: create a thread instead of a process.
const CLONE_THREAD: u64 = 0x0001_0000;

/// From `linux/sched.h`: types of namespaces.
const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// From `asm-generic/mman-common.h`.
const PROT_EXEC: u64 = 4;

/// `MAP_SHARED | MAP_ANONYMOUS` from `asm-generic/mman-common.h`.
const SHARED_MEMORY: u64 = 0x21;

/// From `linux/prctl.h`.
const PR_SET_NAME: u64 = 15;

/// From `asm-generic/ioctls.h`.
const FIONBIO: u64 = 0x5421;

/// From `asm-generic/fcntl.h`.
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;

/// Memory, threads, time, events, descriptors, and exit.
const RUNTIME: &[CallRule] = &[
    CallRule::any(libc::SYS_read),
    CallRule::any(libc::SYS_write),
    CallRule::any(libc::SYS_readv),
    CallRule::any(libc::SYS_writev),
    CallRule::any(libc::SYS_close),
    CallRule::fcntl(libc::F_DUPFD_CLOEXEC),
    CallRule::fcntl(libc::F_GETFD),
    CallRule::fcntl(libc::F_SETFD),
    CallRule::fcntl(libc::F_GETFL),
    CallRule::set_flags(libc::O_ASYNC, 0),
    CallRule::any(libc::SYS_dup),
    CallRule::any(libc::SYS_dup3),
    CallRule::any(libc::SYS_fstat),
    CallRule::any(libc::SYS_newfstatat),
    CallRule::any(libc::SYS_lseek),
    CallRule::any(libc::SYS_mmap),
    CallRule::any(libc::SYS_mprotect),
    CallRule::any(libc::SYS_munmap),
    CallRule::any(libc::SYS_mremap),
    CallRule::any(libc::SYS_madvise),
    CallRule::any(libc::SYS_brk),
    CallRule::any(libc::SYS_futex),
    CallRule::any(libc::SYS_set_robust_list),
    CallRule::any(libc::SYS_set_tid_address),
    CallRule::any(libc::SYS_rseq),
    CallRule::any(libc::SYS_sched_yield),
    CallRule::any(libc::SYS_sched_getaffinity),
    CallRule::any(libc::SYS_getpid),
    CallRule::any(libc::SYS_gettid),
    CallRule::any(libc::SYS_getrandom),
    CallRule::any(libc::SYS_clock_gettime),
    CallRule::any(libc::SYS_clock_getres),
    CallRule::any(libc::SYS_clock_nanosleep),
    CallRule::any(libc::SYS_nanosleep),
    CallRule::any(libc::SYS_rt_sigaction),
    CallRule::any(libc::SYS_rt_sigprocmask),
    CallRule::any(libc::SYS_rt_sigreturn),
    CallRule::any(libc::SYS_sigaltstack),
    CallRule::any(libc::SYS_restart_syscall),
    CallRule::any(libc::SYS_ppoll),
    CallRule::any(libc::SYS_epoll_create1),
    CallRule::any(libc::SYS_epoll_ctl),
    CallRule::any(libc::SYS_epoll_pwait),
    CallRule::any(libc::SYS_eventfd2),
    CallRule::any(libc::SYS_exit),
    CallRule::any(libc::SYS_exit_group),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_dup2),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_poll),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_epoll_wait),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_gettimeofday),
];

/// clone3(2) is not allowed, because a filter cannot inspect its flags in memory. C libraries then fall back to
/// clone(2).
const THREADS_ONLY: &[CallRule] = &[
    CallRule::when(libc::SYS_clone, 0, CLONE_THREAD, CLONE_THREAD),
    CallRule::when(libc::SYS_prctl, 0, INT, PR_SET_NAME),
    // Allow reading limits, but not setting them.
    CallRule::when(libc::SYS_prlimit64, 2, u64::MAX, 0),
];

/// Planning paths, reading files, readahead.
const STORE: &[CallRule] = &[
    CallRule::any(libc::SYS_openat2),
    CallRule::any(libc::SYS_statx),
    CallRule::any(libc::SYS_getdents64),
    CallRule::any(libc::SYS_readlinkat),
    CallRule::any(libc::SYS_pread64),
    CallRule::any(libc::SYS_preadv),
    CallRule::any(libc::SYS_preadv2),
    CallRule::any(libc::SYS_fadvise64),
    CallRule::any(libc::SYS_readahead),
];

/// Replacing, removing and marking files; opening them is part of [`STORE`].
const FILES: &[CallRule] = &[
    CallRule::any(libc::SYS_unlinkat),
    // rename(3) uses this on architectures without SYS_rename.
    CallRule::any(libc::SYS_renameat),
    CallRule::any(libc::SYS_renameat2),
    CallRule::any(libc::SYS_utimensat),
];

/// Rewriting a recording through its open descriptor.
const RECORD: &[CallRule] = &[CallRule::any(libc::SYS_ftruncate)];

/// One vhost-user or NBD connection on an inherited socket.
const SOCKET: &[CallRule] = &[
    CallRule::any(libc::SYS_accept4),
    CallRule::any(libc::SYS_recvfrom),
    CallRule::any(libc::SYS_sendto),
    CallRule::any(libc::SYS_shutdown),
    CallRule::any(libc::SYS_getsockopt),
    CallRule::any(libc::SYS_setsockopt),
    CallRule::when(libc::SYS_ioctl, 1, INT, FIONBIO),
];

/// Requests to the fetcher process on an inherited socket.
const FETCHER: &[CallRule] = &[
    CallRule::any(libc::SYS_recvmsg),
    CallRule::any(libc::SYS_sendto),
];

/// Messages that may carry descriptors: vhost-user in both directions (the crate `vhost` sends every message with
/// sendmsg(2)), and notifications to systemd. A filter cannot inspect them.
const MESSAGES: &[CallRule] = &[
    CallRule::any(libc::SYS_recvmsg),
    CallRule::any(libc::SYS_sendmsg),
];

/// Starting, confining and ending workers, and memory that they only read; removing sockets; replacing metrics and reports.
const PARENT: &[CallRule] = &[
    CallRule::any(libc::SYS_memfd_create),
    CallRule::fcntl(libc::F_ADD_SEALS),
    CallRule::any(libc::SYS_setpriority),
    CallRule::any(libc::SYS_clone),
    CallRule::any(libc::SYS_wait4),
    CallRule::any(libc::SYS_waitid),
    CallRule::any(libc::SYS_kill),
    CallRule::any(libc::SYS_tgkill),
    CallRule::any(libc::SYS_getppid),
    CallRule::any(libc::SYS_getuid),
    CallRule::any(libc::SYS_geteuid),
    CallRule::any(libc::SYS_getgid),
    CallRule::any(libc::SYS_getegid),
    CallRule::any(libc::SYS_pidfd_open),
    CallRule::any(libc::SYS_pidfd_send_signal),
    CallRule::any(libc::SYS_pipe2),
    CallRule::any(libc::SYS_socketpair),
    CallRule::any(libc::SYS_signalfd4),
    CallRule::any(libc::SYS_openat),
    CallRule::any(libc::SYS_prctl),
    CallRule::any(libc::SYS_prlimit64),
    CallRule::any(libc::SYS_capget),
    CallRule::any(libc::SYS_capset),
    CallRule::any(libc::SYS_seccomp),
    CallRule::any(libc::SYS_landlock_create_ruleset),
    CallRule::any(libc::SYS_landlock_add_rule),
    CallRule::any(libc::SYS_landlock_restrict_self),
    CallRule::when(libc::SYS_setns, 1, INT, CLONE_NEWUSER),
    CallRule::when(libc::SYS_setns, 1, INT, CLONE_NEWNS),
    CallRule::when(libc::SYS_unshare, 0, INT, CLONE_NEWUSER),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_unlink),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_rename),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_rmdir),
    // musl makes the old calls where an architecture has them; glibc makes openat(2) and newfstatat(2).
    #[cfg(all(target_arch = "x86_64", target_env = "musl"))]
    CallRule::any(libc::SYS_open),
    #[cfg(all(target_arch = "x86_64", target_env = "musl"))]
    CallRule::any(libc::SYS_stat),
    #[cfg(all(target_arch = "x86_64", target_env = "musl"))]
    CallRule::any(libc::SYS_lstat),
];

/// Notifying systemd: a datagram to a Unix socket.
const NOTIFY: &[CallRule] = &[
    CallRule::when(libc::SYS_socket, 0, INT, 1),
    CallRule::any(libc::SYS_connect),
];

/// Mounting a FUSE file system again, and unmounting it.
const MOUNTS: &[CallRule] = &[
    CallRule::any(libc::SYS_mount),
    CallRule::any(libc::SYS_umount2),
    CallRule::any(libc::SYS_getcwd),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_readlink),
];

/// Signal-driven I/O: the kernel sends a signal to any process of the same user when a descriptor becomes ready.
/// Without this filter, only Landlock's scopes (Linux 6.12) would prevent that.
const SIGNALS_BY_DESCRIPTOR: &[CallRule] = &[
    CallRule::fcntl(libc::F_SETOWN),
    CallRule::fcntl(F_SETSIG),
    CallRule::fcntl(F_SETOWN_EX),
    CallRule::set_flags(libc::O_ASYNC, libc::O_ASYNC),
];

/// Calls that no process here makes. umount2(2) is not included: fuser calls it if someone else unmounted the file
/// system.
const FATAL: &[CallRule] = &[
    CallRule::any(libc::SYS_execve),
    CallRule::any(libc::SYS_execveat),
    CallRule::any(libc::SYS_ptrace),
    CallRule::any(libc::SYS_process_vm_readv),
    CallRule::any(libc::SYS_process_vm_writev),
    CallRule::when(libc::SYS_mmap, 2, PROT_EXEC, PROT_EXEC),
    CallRule::when(libc::SYS_mprotect, 2, PROT_EXEC, PROT_EXEC),
    CallRule::any(libc::SYS_pkey_mprotect),
    CallRule::any(libc::SYS_io_uring_setup),
    CallRule::any(libc::SYS_io_uring_enter),
    CallRule::any(libc::SYS_io_uring_register),
    CallRule::any(libc::SYS_userfaultfd),
    CallRule::any(libc::SYS_bpf),
    CallRule::any(libc::SYS_perf_event_open),
    CallRule::any(libc::SYS_add_key),
    CallRule::any(libc::SYS_request_key),
    CallRule::any(libc::SYS_keyctl),
    CallRule::any(libc::SYS_open_by_handle_at),
    CallRule::any(libc::SYS_mount),
    CallRule::any(libc::SYS_pivot_root),
    CallRule::any(libc::SYS_open_tree),
    CallRule::any(libc::SYS_move_mount),
    CallRule::any(libc::SYS_fsopen),
    CallRule::any(libc::SYS_fsmount),
    CallRule::any(libc::SYS_mount_setattr),
    CallRule::any(libc::SYS_chroot),
    CallRule::any(libc::SYS_setuid),
    CallRule::any(libc::SYS_setgid),
    CallRule::any(libc::SYS_setreuid),
    CallRule::any(libc::SYS_setregid),
    CallRule::any(libc::SYS_setresuid),
    CallRule::any(libc::SYS_setresgid),
    CallRule::any(libc::SYS_setgroups),
    CallRule::any(libc::SYS_init_module),
    CallRule::any(libc::SYS_finit_module),
    CallRule::any(libc::SYS_delete_module),
    CallRule::any(libc::SYS_kexec_load),
    CallRule::any(libc::SYS_kexec_file_load),
];

/// Calls that only a listener's children make, to enter the jail.
pub(super) const NAMESPACES: &[CallRule] = &[
    CallRule::any(libc::SYS_setns),
    CallRule::any(libc::SYS_unshare),
];

/// Calls that a worker never makes: shared memory (which RLIMIT_DATA does not count), new processes, new sockets,
/// signals to other processes.
const FATAL_IN_WORKERS: &[CallRule] = &[
    CallRule::when(libc::SYS_mmap, 3, SHARED_MEMORY, SHARED_MEMORY),
    CallRule::when(libc::SYS_clone, 0, CLONE_THREAD, 0),
    CallRule::any(libc::SYS_kill),
    CallRule::any(libc::SYS_socket),
    CallRule::any(libc::SYS_socketpair),
    CallRule::any(libc::SYS_connect),
    CallRule::any(libc::SYS_bind),
    CallRule::any(libc::SYS_listen),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    CallRule::any(libc::SYS_vfork),
];
