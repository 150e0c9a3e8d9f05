//! Confines a process before it has contact with a guest.
//!
//! | module | what it removes |
//! |---|---|
//! | `jail` | all paths except the served ones (mount namespace) |
//! | `rights` | new privileges, capabilities, core dumps; sets resource limits |
//! | `files` | all files except the store's, the network, signals to other processes (Landlock) |
//! | `filter` | all system calls except those in `calls` (seccomp) |
//! | `fetcher` | confines the fetcher process, which needs the network |
//!
//! Confinement is irrevocable and inherited by threads and processes that are started later. It must be applied while
//! the process has one thread. This module does not know what is served: the caller passes a [`Reach`] with what must
//! remain possible.
//!
//! **System calls that are not allowed.** Calls that are a sign of an attack (executing programs, sockets, tracing,
//! executable memory, io_uring) kill the process; its parent logs that, and its VM reconnects to a new one. All other
//! calls fail with ENOSYS, as with an older kernel, because newer C libraries try new calls first and fall back. Calls
//! of the data path are allowed with any arguments, so that the kernel (since 5.11) finds them in a bitmap and does not
//! run the filter.
//!
//! **Core dumps.** RLIMIT_CORE does not apply if `core_pattern` is a pipe (core(5)). Workers have guest memory mapped,
//! so they are made non-dumpable, which also hides their `/proc/PID/fd`. The listener stays dumpable, because a garbage
//! collector run by the same user must see its open store paths.

mod calls;
mod error;
mod fetcher;
mod files;
mod filter;
pub mod jail;
mod rights;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

pub use error::{JailError, SandboxError};
pub use fetcher::confine_fetcher;
pub use files::{NO_JAIL, PATHS_MAX, missing_protections};

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// Owns the sockets and forks the workers. Has no contact with guests.
    Listener,
    /// A listener that also mounts and unmounts. Landlock forbids both, so it is not applied. Without root, mounting
    /// needs a set-user-ID program, which rules out the other confinement, too.
    Mounter,
    /// Serves one VM.
    VhostWorker,
    /// Serves one NBD client.
    NbdWorker,
    /// Serves the FUSE file.
    FuseWorker,
    /// Reads recorded ranges in advance.
    Prefetcher,
    /// Plans paths for all others.
    Planner,
    /// A planner that keeps plans in a directory.
    PlanKeeper,
}

impl Process {
    fn is_worker(self) -> bool {
        matches!(
            self,
            Self::VhostWorker
                | Self::NbdWorker
                | Self::FuseWorker
                | Self::Prefetcher
                | Self::Planner
                | Self::PlanKeeper
        )
    }
}

/// What must remain possible.
#[derive(Debug)]
pub struct Reach<'a> {
    /// The directory whose files are served.
    pub store: BorrowedFd<'a>,
    /// The entries of `store` that are served. Empty: all.
    pub paths: Vec<&'a [u8]>,
    /// The process writes to a file that is already open, such as a recording.
    pub writes_file: bool,
    /// Limit of a worker's private memory. Shared guest memory does not count.
    pub memory_bytes: u64,
    /// RLIMIT_NPROC counts only this process's threads, because it has its own user namespace.
    pub counts_threads: bool,
    /// The files may belong to any user, so keep CAP_DAC_READ_SEARCH if the process has it.
    pub any_owner: bool,
    /// Directories in which the listener removes sockets, and what was created for them, when it exits.
    pub cleaned_dirs: Vec<PathBuf>,
    /// Directories in which the listener writes, replaces and removes its own files.
    pub written_dirs: Vec<PathBuf>,
    /// The directory in which a [`Process::PlanKeeper`] reads, writes, replaces and removes files. Its parent needs it, too.
    pub plan_dir: Option<BorrowedFd<'a>>,
}

/// Confines the calling process, which must have one thread.
///
/// A kernel without Landlock is not an error, see [`missing_protections`].
///
/// # Errors
/// A system call fails. The process may then be partially confined.
pub fn confine(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    rights::disable_core_dumps(process)?;
    rights::limit_files(process, reach)?;
    rights::limit_memory(process, reach)?;
    rights::limit_threads(process, reach)?;
    if process == Process::Mounter && !rights::may_mount()? {
        return Ok(());
    }
    rights::drop_privileges(process, reach)?;
    if process != Process::Mounter {
        files::restrict(process, reach)?;
    }
    filter::apply(process)
}
