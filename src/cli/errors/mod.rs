//! Errors of the command line.

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
use crate::device::nbd::ExportName;
use crate::image::{Fingerprint, ImageError, ReadError};
use crate::process::ProcessError;
use crate::server::ServeError;
use crate::verify::VerifyError;

/// Errors that end the program. Each message is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The closure cannot be read.
    #[error("{}{}", .0, hints::closure(.0))]
    Closure(#[from] ClosureError),
    /// The disk cannot be laid out.
    #[error("{}{}", .0, hints::image(.0))]
    Image(#[from] ImageError),
    /// The disk cannot be served.
    #[error("{source}{}", hints::serve(source))]
    Serve {
        /// Why.
        #[from]
        source: ServeError,
    },
    /// A stale mount cannot be removed.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// A process cannot be started or watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A benchmark cannot run.
    #[cfg(feature = "bench")]
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The disk does not have the expected fingerprint.
    #[error(
        "the disk has the fingerprint {found} and not {expected}: serve the same closure with the same options, or leave out \
         --expect"
    )]
    OtherDisk {
        /// The fingerprint given with --expect.
        expected: Fingerprint,
        /// The fingerprint of this disk.
        found: Fingerprint,
    },
    /// A tree has no fingerprint.
    #[error(
        "a tree has no fingerprint: its files may change at any time; name store paths, or a list of them with --store-paths"
    )]
    NoFingerprint,
    /// Boots cannot be measured.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A block of the disk cannot be read or located.
    #[error("{}{}", .0, hints::read(.0))]
    Read(#[from] ReadError),
    /// Verification cannot start.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The status of a server cannot be read.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// A report cannot be shown, or exceeds a limit.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The recording to prefetch cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// Binary caches cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// stdout cannot be written.
    #[error("cannot write to stdout: {0}")]
    Stdout(#[from] std::io::Error),
    /// The VM's command line cannot be combined with the disk.
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
    /// Another system call failed.
    #[error("cannot {action}: {source}")]
    Run {
        /// What was attempted.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No private directory for the socket can be created.
    #[error("cannot make a directory for the socket in {}: {source}: set XDG_RUNTIME_DIR to one that you may write to", dir.display())]
    PrivateDir {
        /// Its parent directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two options name the same file.
    #[error(
        "{} is given {}: choose another place for one of them",
        path.display(),
        if first == second { format!("twice with {first}") } else { format!("for both {first} and {second}") }
    )]
    GivenTwice {
        /// The file.
        path: PathBuf,
        /// One option.
        first: &'static str,
        /// The other option.
        second: &'static str,
    },
    /// Two disks have the same name.
    #[error(
        "two exports have the name \"{name}\": choose another name for one of them with --export"
    )]
    SameName {
        /// That name.
        name: ExportName,
    },
    /// --nbd-tls without a TCP port to encrypt.
    #[error(
        "--nbd-tls encrypts at TCP ports, and there is none: add --nbd HOST:PORT, or leave it out"
    )]
    NothingToEncrypt,
    /// A file is below the mount point.
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
        /// The mount point.
        dir: PathBuf,
    },
    /// The mount would hide files.
    #[error("the directory {} is not empty, and --fuse would hide what is in it: choose an empty one", dir.display())]
    MountNotEmpty {
        /// The mount point.
        dir: PathBuf,
    },
    /// The guest kernel cannot be read.
    #[error("cannot read the kernel {}: {source}: name another one with --kernel", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group does not exist.
    #[error("there is no group \"{group}\": name one that `getent group` knows, or a number")]
    Group {
        /// The group as given.
        group: String,
    },
    /// Benchmarks are not in this build.
    #[cfg(not(feature = "bench"))]
    #[error(
        "this lazystore was built without the feature `bench`: build it with cargo build --release --features bench"
    )]
    NoBench,
    /// There is no such manual page.
    #[error("lazystore has no subcommand {name}: see lazystore --help")]
    NoSuchPage {
        /// The requested name.
        name: String,
    },
    /// Manual pages cannot be written.
    #[error("cannot write manual pages into {}: {source}", dir.display())]
    Pages {
        /// Target directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CliError {
    /// 2 if the command line contradicts itself, otherwise 1.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::GivenTwice { .. }
            | Self::Hidden { .. }
            | Self::SameName { .. }
            | Self::NothingToEncrypt => ExitCode::from(EXIT_USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Exit code for wrong usage, the same as clap's.
pub const EXIT_USAGE: u8 = 2;
