//! The system calls that each kind of process may make.
//!
//! The lists include the calls that glibc and musl make internally.

use super::Process;

/// A system call with conditions on its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
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

impl Call {
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
pub(super) fn allowed(process: Process) -> &'static [&'static [Call]] {
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
pub(super) fn fatal(process: Process) -> &'static [&'static [Call]] {
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
const RUNTIME: &[Call] = &[
    Call::any(libc::SYS_read),
    Call::any(libc::SYS_write),
    Call::any(libc::SYS_readv),
    Call::any(libc::SYS_writev),
    Call::any(libc::SYS_close),
    Call::fcntl(libc::F_DUPFD_CLOEXEC),
    Call::fcntl(libc::F_GETFD),
    Call::fcntl(libc::F_SETFD),
    Call::fcntl(libc::F_GETFL),
    Call::set_flags(libc::O_ASYNC, 0),
    Call::any(libc::SYS_dup),
    Call::any(libc::SYS_dup3),
    Call::any(libc::SYS_fstat),
    Call::any(libc::SYS_newfstatat),
    Call::any(libc::SYS_lseek),
    Call::any(libc::SYS_mmap),
    Call::any(libc::SYS_mprotect),
    Call::any(libc::SYS_munmap),
    Call::any(libc::SYS_mremap),
    Call::any(libc::SYS_madvise),
    Call::any(libc::SYS_brk),
    Call::any(libc::SYS_futex),
    Call::any(libc::SYS_set_robust_list),
    Call::any(libc::SYS_set_tid_address),
    Call::any(libc::SYS_rseq),
    Call::any(libc::SYS_sched_yield),
    Call::any(libc::SYS_sched_getaffinity),
    Call::any(libc::SYS_getpid),
    Call::any(libc::SYS_gettid),
    Call::any(libc::SYS_getrandom),
    Call::any(libc::SYS_clock_gettime),
    Call::any(libc::SYS_clock_getres),
    Call::any(libc::SYS_clock_nanosleep),
    Call::any(libc::SYS_nanosleep),
    Call::any(libc::SYS_rt_sigaction),
    Call::any(libc::SYS_rt_sigprocmask),
    Call::any(libc::SYS_rt_sigreturn),
    Call::any(libc::SYS_sigaltstack),
    Call::any(libc::SYS_restart_syscall),
    Call::any(libc::SYS_ppoll),
    Call::any(libc::SYS_epoll_create1),
    Call::any(libc::SYS_epoll_ctl),
    Call::any(libc::SYS_epoll_pwait),
    Call::any(libc::SYS_eventfd2),
    Call::any(libc::SYS_exit),
    Call::any(libc::SYS_exit_group),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_dup2),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_poll),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_epoll_wait),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_gettimeofday),
];

/// clone3(2) is not allowed, because a filter cannot inspect its flags in memory. C libraries then fall back to
/// clone(2).
const THREADS_ONLY: &[Call] = &[
    Call::when(libc::SYS_clone, 0, CLONE_THREAD, CLONE_THREAD),
    Call::when(libc::SYS_prctl, 0, INT, PR_SET_NAME),
    // Allow reading limits, but not setting them.
    Call::when(libc::SYS_prlimit64, 2, u64::MAX, 0),
];

/// Planning paths, reading files, readahead.
const STORE: &[Call] = &[
    Call::any(libc::SYS_openat2),
    Call::any(libc::SYS_statx),
    Call::any(libc::SYS_getdents64),
    Call::any(libc::SYS_readlinkat),
    Call::any(libc::SYS_pread64),
    Call::any(libc::SYS_preadv),
    Call::any(libc::SYS_preadv2),
    Call::any(libc::SYS_fadvise64),
    Call::any(libc::SYS_readahead),
];

/// Replacing, removing and marking files; opening them is part of [`STORE`].
const FILES: &[Call] = &[
    Call::any(libc::SYS_unlinkat),
    // rename(3) uses this on architectures without SYS_rename.
    Call::any(libc::SYS_renameat),
    Call::any(libc::SYS_renameat2),
    Call::any(libc::SYS_utimensat),
];

/// Rewriting a recording through its open descriptor.
const RECORD: &[Call] = &[Call::any(libc::SYS_ftruncate)];

/// One vhost-user or NBD connection on an inherited socket.
const SOCKET: &[Call] = &[
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_shutdown),
    Call::any(libc::SYS_getsockopt),
    Call::any(libc::SYS_setsockopt),
    Call::when(libc::SYS_ioctl, 1, INT, FIONBIO),
];

/// Requests to the fetcher process on an inherited socket.
const FETCHER: &[Call] = &[Call::any(libc::SYS_recvmsg), Call::any(libc::SYS_sendto)];

/// Messages that may carry descriptors: vhost-user in both directions (the crate `vhost` sends every message with
/// sendmsg(2)), and notifications to systemd. A filter cannot inspect them.
const MESSAGES: &[Call] = &[Call::any(libc::SYS_recvmsg), Call::any(libc::SYS_sendmsg)];

/// Starting, confining and ending workers, and memory that they only read; removing sockets; replacing metrics and reports.
const PARENT: &[Call] = &[
    Call::any(libc::SYS_memfd_create),
    Call::fcntl(libc::F_ADD_SEALS),
    Call::any(libc::SYS_setpriority),
    Call::any(libc::SYS_clone),
    Call::any(libc::SYS_wait4),
    Call::any(libc::SYS_waitid),
    Call::any(libc::SYS_kill),
    Call::any(libc::SYS_tgkill),
    Call::any(libc::SYS_getppid),
    Call::any(libc::SYS_getuid),
    Call::any(libc::SYS_geteuid),
    Call::any(libc::SYS_getgid),
    Call::any(libc::SYS_getegid),
    Call::any(libc::SYS_pidfd_open),
    Call::any(libc::SYS_pidfd_send_signal),
    Call::any(libc::SYS_pipe2),
    Call::any(libc::SYS_socketpair),
    Call::any(libc::SYS_signalfd4),
    Call::any(libc::SYS_openat),
    Call::any(libc::SYS_prctl),
    Call::any(libc::SYS_prlimit64),
    Call::any(libc::SYS_capget),
    Call::any(libc::SYS_capset),
    Call::any(libc::SYS_seccomp),
    Call::any(libc::SYS_landlock_create_ruleset),
    Call::any(libc::SYS_landlock_add_rule),
    Call::any(libc::SYS_landlock_restrict_self),
    Call::when(libc::SYS_setns, 1, INT, CLONE_NEWUSER),
    Call::when(libc::SYS_setns, 1, INT, CLONE_NEWNS),
    Call::when(libc::SYS_unshare, 0, INT, CLONE_NEWUSER),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_unlink),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_rename),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_rmdir),
    // musl makes the old calls where an architecture has them; glibc makes openat(2) and newfstatat(2).
    #[cfg(all(target_arch = "x86_64", target_env = "musl"))]
    Call::any(libc::SYS_open),
    #[cfg(all(target_arch = "x86_64", target_env = "musl"))]
    Call::any(libc::SYS_stat),
    #[cfg(all(target_arch = "x86_64", target_env = "musl"))]
    Call::any(libc::SYS_lstat),
];

/// Notifying systemd: a datagram to a Unix socket.
const NOTIFY: &[Call] = &[
    Call::when(libc::SYS_socket, 0, INT, 1),
    Call::any(libc::SYS_connect),
];

/// Mounting a FUSE file system again, and unmounting it.
const MOUNTS: &[Call] = &[
    Call::any(libc::SYS_mount),
    Call::any(libc::SYS_umount2),
    Call::any(libc::SYS_getcwd),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_readlink),
];

/// Signal-driven I/O: the kernel sends a signal to any process of the same user when a descriptor becomes ready.
/// Without this filter, only Landlock's scopes (Linux 6.12) would prevent that.
const SIGNALS_BY_DESCRIPTOR: &[Call] = &[
    Call::fcntl(libc::F_SETOWN),
    Call::fcntl(F_SETSIG),
    Call::fcntl(F_SETOWN_EX),
    Call::set_flags(libc::O_ASYNC, libc::O_ASYNC),
];

/// Calls that no process here makes. umount2(2) is not included: fuser calls it if someone else unmounted the file
/// system.
const FATAL: &[Call] = &[
    Call::any(libc::SYS_execve),
    Call::any(libc::SYS_execveat),
    Call::any(libc::SYS_ptrace),
    Call::any(libc::SYS_process_vm_readv),
    Call::any(libc::SYS_process_vm_writev),
    Call::when(libc::SYS_mmap, 2, PROT_EXEC, PROT_EXEC),
    Call::when(libc::SYS_mprotect, 2, PROT_EXEC, PROT_EXEC),
    Call::any(libc::SYS_pkey_mprotect),
    Call::any(libc::SYS_io_uring_setup),
    Call::any(libc::SYS_io_uring_enter),
    Call::any(libc::SYS_io_uring_register),
    Call::any(libc::SYS_userfaultfd),
    Call::any(libc::SYS_bpf),
    Call::any(libc::SYS_perf_event_open),
    Call::any(libc::SYS_add_key),
    Call::any(libc::SYS_request_key),
    Call::any(libc::SYS_keyctl),
    Call::any(libc::SYS_open_by_handle_at),
    Call::any(libc::SYS_mount),
    Call::any(libc::SYS_pivot_root),
    Call::any(libc::SYS_open_tree),
    Call::any(libc::SYS_move_mount),
    Call::any(libc::SYS_fsopen),
    Call::any(libc::SYS_fsmount),
    Call::any(libc::SYS_mount_setattr),
    Call::any(libc::SYS_chroot),
    Call::any(libc::SYS_setuid),
    Call::any(libc::SYS_setgid),
    Call::any(libc::SYS_setreuid),
    Call::any(libc::SYS_setregid),
    Call::any(libc::SYS_setresuid),
    Call::any(libc::SYS_setresgid),
    Call::any(libc::SYS_setgroups),
    Call::any(libc::SYS_init_module),
    Call::any(libc::SYS_finit_module),
    Call::any(libc::SYS_delete_module),
    Call::any(libc::SYS_kexec_load),
    Call::any(libc::SYS_kexec_file_load),
];

/// Calls that only a listener's children make, to enter the jail.
pub(super) const NAMESPACES: &[Call] = &[Call::any(libc::SYS_setns), Call::any(libc::SYS_unshare)];

/// Calls that a worker never makes: shared memory (which RLIMIT_DATA does not count), new processes, new sockets,
/// signals to other processes.
const FATAL_IN_WORKERS: &[Call] = &[
    Call::when(libc::SYS_mmap, 3, SHARED_MEMORY, SHARED_MEMORY),
    Call::when(libc::SYS_clone, 0, CLONE_THREAD, 0),
    Call::any(libc::SYS_kill),
    Call::any(libc::SYS_socket),
    Call::any(libc::SYS_socketpair),
    Call::any(libc::SYS_connect),
    Call::any(libc::SYS_bind),
    Call::any(libc::SYS_listen),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_fork),
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_vfork),
];
