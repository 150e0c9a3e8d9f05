//! Errors of the command line, each one sentence.

#[cfg(feature = "bench")]
mod bench;
mod boot;
mod cache;
mod recording;
mod report;
mod status;
mod vmm;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::hints;
#[cfg(feature = "bench")]
pub use bench::BenchError;
pub use boot::BootError;
pub use cache::CacheError;
pub use recording::RecordingError;
pub use report::ReportError;
pub use status::StatusError;
pub use vmm::VmmError;

use crate::closure::ClosureError;
use crate::device::fuse::FuseError;
use crate::image::{Fingerprint, ImageError, ReadError};
use crate::process::ProcessError;
use crate::server::ServeError;
use crate::verify::VerifyError;

/// Errors that end the program; each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The closure cannot be read.
    #[error("{}{}", .0, hints::closure(.0))]
    Closure(#[from] ClosureError),
    /// There is no disk.
    #[error("{}{}", .0, hints::image(.0))]
    Image(#[from] ImageError),
    /// It cannot be served.
    #[error("{source}{}", hints::serve(source))]
    Serve {
        /// Why.
        #[from]
        source: ServeError,
    },
    /// A mount that is left over cannot be cleared.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// A process cannot be started or watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A measurement cannot be made.
    #[cfg(feature = "bench")]
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Not the disk that was asked for.
    #[error(
        "the disk has the fingerprint {found} and not {expected}: serve the same closure with the same options, or leave out \
         --expect"
    )]
    OtherDisk {
        /// Given with --expect.
        expected: Fingerprint,
        /// Of this disk.
        found: Fingerprint,
    },
    /// A tree has no identity.
    #[error(
        "a tree has no fingerprint: its files may change at any time; name store paths, or a list of them with --store-paths"
    )]
    NoFingerprint,
    /// Boots cannot be measured.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A place of the disk cannot be read or named.
    #[error("{}{}", .0, hints::read(.0))]
    Read(#[from] ReadError),
    /// There is nothing to compare.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// A server does not tell its status.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// A report cannot be shown, or says too much.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// There is no recording to read in advance.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Binary caches are of no use.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// stdout takes nothing.
    #[error("cannot write to stdout: {0}")]
    Stdout(#[from] std::io::Error),
    /// The VM's command line does not fit the disk.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The VM cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host refused something that running a VM needs.
    #[error("cannot {action}: {source}")]
    Run {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no place for the socket that nobody else may enter.
    #[error("cannot make a directory for the socket in {}: {source}: set XDG_RUNTIME_DIR to one that you may write to", dir.display())]
    PrivateDir {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two things in one place.
    #[error(
        "{} is given {}: choose another place for one of them",
        path.display(),
        if first == second { format!("twice with {first}") } else { format!("for both {first} and {second}") }
    )]
    GivenTwice {
        /// The place.
        path: PathBuf,
        /// An option.
        first: &'static str,
        /// The other one.
        second: &'static str,
    },
    /// TLS for nobody.
    #[error(
        "--nbd-tls encrypts at TCP ports, and there is none: add --nbd HOST:PORT, or leave it out"
    )]
    NothingToEncrypt,
    /// A file below the mount.
    #[error(
        "{option} {} would be hidden by --fuse {}, which mounts over that directory: choose a place outside of it",
        path.display(),
        dir.display()
    )]
    Hidden {
        /// The file.
        path: PathBuf,
        /// Its option.
        option: &'static str,
        /// The directory.
        dir: PathBuf,
    },
    /// A mount that would hide files.
    #[error("the directory {} is not empty, and --fuse would hide what is in it: choose an empty one", dir.display())]
    MountNotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// A kernel that is not there.
    #[error("cannot read the kernel {}: {source}: name another one with --kernel", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody knows the group.
    #[error("there is no group \"{group}\": name one that `getent group` knows, or a number")]
    Group {
        /// What was asked for.
        group: String,
    },
    /// Measuring needs another build.
    #[cfg(not(feature = "bench"))]
    #[error(
        "this lazystore was built without the feature `bench`: build it with cargo build --release --features bench"
    )]
    NoBench,
    /// There is no such page.
    #[error("lazystore has no subcommand {name}: see lazystore --help")]
    NoSuchPage {
        /// What was asked for.
        name: String,
    },
    /// The pages cannot be written.
    #[error("cannot write manual pages into {}: {source}", dir.display())]
    Pages {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CliError {
    /// 2 if the command line contradicts itself, 1 for all else.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::GivenTwice { .. } | Self::Hidden { .. } | Self::NothingToEncrypt => {
                ExitCode::from(EXIT_USAGE)
            }
            _ => ExitCode::FAILURE,
        }
    }
}

/// Exit code for wrong usage, the same as clap's.
pub const EXIT_USAGE: u8 = 2;
