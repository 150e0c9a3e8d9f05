//! Workers of a client that comes and goes all the time do not write to the log.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::stdio::{dup2_stderr, stderr};

/// A process whose stderr leads nowhere, and what it was before.
#[derive(Debug)]
pub(super) struct Muted {
    before: OwnedFd,
}

impl Muted {
    /// How long a worker stays muted. One that lives longer is no longer one of many, and what it says counts.
    pub(super) const TIME_MS: u16 = 60_000;

    /// Mutes this process: its stderr becomes `nowhere`.
    pub(super) fn new(nowhere: &File) -> io::Result<Self> {
        let before = rustix::io::fcntl_dupfd_cloexec(stderr(), 3)?;
        dup2_stderr(nowhere)?;
        Ok(Self { before })
    }

    /// The file to mute processes with.
    pub(super) fn nowhere() -> io::Result<File> {
        File::options().write(true).open("/dev/null")
    }

    /// Undoes it.
    pub(super) fn speak(self) {
        let _ = dup2_stderr(&self.before);
    }
}
