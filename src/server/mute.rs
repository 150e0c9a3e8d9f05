//! Mutes the workers of a client that reconnects all the time, so that they do not fill the log.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::stdio::{dup2_stderr, stderr};

/// A process whose stderr is /dev/null, and the stderr that it had before.
#[derive(Debug)]
pub(super) struct Muted {
    stderr_before: OwnedFd,
}

impl Muted {
    /// How long a worker stays muted. One that lives longer does not belong to a flood of short connections.
    pub(super) const TIME_MS: u16 = 60_000;

    /// Mutes this process: makes `dev_null` its stderr.
    pub(super) fn new(dev_null: &File) -> io::Result<Self> {
        let stderr_before = rustix::io::fcntl_dupfd_cloexec(stderr(), 3)?;
        dup2_stderr(dev_null)?;
        Ok(Self { stderr_before })
    }

    /// Opens /dev/null.
    pub(super) fn dev_null() -> io::Result<File> {
        File::options().write(true).open("/dev/null")
    }

    /// Restores stderr.
    pub(super) fn unmute(self) {
        let _ = dup2_stderr(&self.stderr_before);
    }
}
