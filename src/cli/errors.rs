use std::io;
use std::path::PathBuf;

use crate::closure::ClosureError;
use crate::device::fuse::FuseError;
use crate::image::{ImageError, ReadError};
use crate::process::ProcessError;
use crate::server::ServeError;
use crate::verify::VerifyError;

/// Whatever ends the program early; each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The closure cannot be read.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// There is no disk.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It cannot be served.
    #[error("{source}{}", super::serve::advice(source))]
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
    Bench(#[from] super::bench::BenchError),
    /// A place of the disk cannot be read or named.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is nothing to compare.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// There is no recording to read in advance.
    #[error(transparent)]
    Recording(#[from] super::record_args::RecordingError),
    /// stdout takes nothing.
    #[error("cannot write to stdout: {0}")]
    Stdout(#[from] std::io::Error),
    /// The VM's command line does not fit the disk.
    #[error(transparent)]
    Vmm(#[from] super::run::VmmError),
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
    /// Nobody knows the group.
    #[error("there is no group \"{group}\": name one that `getent group` knows, or a number")]
    Group {
        /// What was asked for.
        group: String,
    },
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
    /// The label does not fit.
    #[error(
        "the label \"{label}\" has {} bytes, and EROFS has room for 15: choose a shorter --label",
        label.len()
    )]
    Label {
        /// What was asked for.
        label: String,
    },
}
