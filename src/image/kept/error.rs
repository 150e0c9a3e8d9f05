use std::io;
use std::path::PathBuf;

use crate::image::ReadError;

/// Why plans cannot be kept in a directory.
#[derive(Debug, thiserror::Error)]
pub enum PlanDirError {
    /// It is not there, and cannot be made.
    #[error("cannot make the directory {} for plans: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("cannot open the directory {} for plans: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its owner could put wrong plans there.
    #[error(
        "{} belongs to user {owner}, who could put wrong plans there: choose a directory of this user (user {user})",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        user: u32,
    },
    /// Others could put wrong plans there.
    #[error(
        "others may write to {} (mode {mode:03o}), and could put wrong plans there: take that from them with `chmod go-w`, or \
         choose another directory",
        path.display()
    )]
    WritableByOthers {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Why a file is not used, and the path is walked instead.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// Cut short, changed, or something else.
    #[error("it is damaged")]
    Damaged,
    /// Its checksum is right.
    #[error("it has another format")]
    OtherFormat,
    /// As above.
    #[error("it is of another path, or of one that has been replaced")]
    OtherPath,
    /// As above.
    #[error("its tree makes no sense")]
    Malformed,
    /// The path is not what was registered, cannot be laid out, or was replaced a moment ago.
    #[error(transparent)]
    Path(#[from] ReadError),
}
