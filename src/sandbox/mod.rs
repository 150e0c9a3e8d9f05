//! What a serving process gives up before it meets a guest.
//!
//! | module | what it gives up |
//! |---|---|
//! | `jail` | all paths but those that are served (a mount namespace) |
//! | `rights` | new privileges, capabilities, core dumps |
//! | `files` | all files but the store's, the network, other processes (Landlock) |
//! | `filter` | all system calls but those in `calls` (seccomp) |
//! | `fetcher` | the same for the process that fetches, which needs the network |
//!
//! All of it is for good, is inherited by threads and processes that are started later, and is done while a process has
//! one thread. Nothing here knows what is served: a [`Reach`] names what must stay possible.
//!
//! **Two answers to a system call that is not allowed.** What only an intruder asks for (running programs, sockets,
//! tracing, executable memory, io_uring) kills the process: its parent logs that, and its VM connects to a new one.
//! Anything else is answered with ENOSYS, as by a kernel without that call: what a newer C library tries first, it can do
//! without. The calls of the data path are allowed whatever their arguments, so that the kernel, since 5.11, looks them up
//! in a bitmap and does not run the filter.
//!
//! **Core dumps.** A limit of zero does not stop a `core_pattern` that is a pipe (core(5)). Workers, which have a guest's
//! memory mapped, are therefore not dumpable at all, which also hides their `/proc/PID/fd`. The listening process stays
//! dumpable: its open store is what a garbage collector run by the same user must be able to see.

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

/// Which part of the program a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// Owns the sockets, forks the workers, and meets no guest.
    Listener,
    /// A listener that also mounts and unmounts. Landlock forbids both, so it is not for this one; and who is not root
    /// mounts with a set-user-ID program, which no other confinement leaves possible either.
    Mounter,
    /// Serves one VM.
    VhostWorker,
    /// Serves one NBD client.
    NbdWorker,
    /// Serves the mounted file.
    FuseWorker,
    /// Reads in advance.
    Prefetcher,
}

impl Process {
    fn is_worker(self) -> bool {
        matches!(
            self,
            Self::VhostWorker | Self::NbdWorker | Self::FuseWorker | Self::Prefetcher
        )
    }
}

/// What must stay possible.
#[derive(Debug)]
pub struct Reach<'a> {
    /// The directory whose files are served.
    pub store: BorrowedFd<'a>,
    /// The entries of it that are; none: all.
    pub paths: Vec<&'a [u8]>,
    /// The process writes a file that is open already: a recording.
    pub writes_file: bool,
    /// How much memory of its own a worker may have; what a guest shares is not its own.
    pub memory_bytes: u64,
    /// Its threads are the only ones that count for its user: it is in a user namespace of its own.
    pub counts_threads: bool,
    /// Its files may belong to anyone, and are read with whatever right to that the process has.
    pub any_owner: bool,
    /// Directories in which the listener removes something at its end: sockets, and what was made for them.
    pub cleaned_dirs: Vec<PathBuf>,
    /// Directories in which the listener writes, replaces and removes files of its own.
    pub written_dirs: Vec<PathBuf>,
}

/// Confines the calling process, which must have one thread.
///
/// A kernel without Landlock is no error: see [`missing_protections`].
///
/// # Errors
/// When the kernel refuses anything else; the process may be confined in part then.
pub fn confine(process: Process, reach: &Reach<'_>) -> Result<(), SandboxError> {
    rights::disable_core_dumps(process)?;
    rights::limit_files(process, reach)?;
    rights::limit_memory(process, reach)?;
    rights::limit_threads(process, reach)?;
    if process == Process::Mounter && !rights::may_mount()? {
        return Ok(());
    }
    rights::renounce(process, reach)?;
    if process != Process::Mounter {
        files::restrict(process, reach)?;
    }
    filter::apply(process)
}
