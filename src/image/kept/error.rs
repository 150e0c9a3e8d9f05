use std::io;
use std::path::PathBuf;

use crate::image::ReadError;

/// Why plans cannot be kept in a directory.
#[derive(Debug, thiserror::Error)]
pub enum PlanDirError {
    /// It does not exist and cannot be created.
    #[error("cannot create the directory {} for plans: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("cannot open the directory {} for plans: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It belongs to another user, who could put wrong plans there.
    #[error(
        "{} belongs to user {owner}, who could put wrong plans there: choose a directory of this user (user {user})",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This user.
        user: u32,
    },
    /// Other users could put wrong plans there.
    #[error(
        "others may write to {} (mode {mode:03o}), and could put wrong plans there: remove that permission with `chmod go-w`, or \
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

/// Why a file is not used. The path is then walked, or its small files are read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// It is truncated, modified, or not a plan.
    #[error("it is damaged")]
    Damaged,
    /// Its checksum is right, but its format is of another version.
    #[error("it has another format")]
    OtherFormat,
    /// It describes another path, or one that has been replaced.
    #[error("it is of another path, or of one that has been replaced")]
    OtherPath,
    /// It has the small files of another plan of the path.
    #[error("it belongs to another plan of the path")]
    OtherPlan,
    /// Its payload is invalid.
    #[error("its contents are malformed")]
    Malformed,
    /// The path differs from its registration, cannot be laid out, or has just been replaced.
    #[error(transparent)]
    Path(#[from] ReadError),
}
