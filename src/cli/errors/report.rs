//! Errors of boot reports.

use std::io;
use std::path::PathBuf;

/// Why a report cannot be shown, or fails a check.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It cannot be read.
    #[error("cannot read the report {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not JSON, or another kind of JSON.
    #[error("{} is not a report that --report FILE.json made: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is from another program or another version.
    #[error("{} is not a report of this version of lazystore: make it again", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The page cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit is exceeded.
    #[error("over the limit: {what}: {value}, and {limit} are allowed")]
    Over {
        /// What is limited.
        what: &'static str,
        /// The actual value.
        value: String,
        /// The limit.
        limit: String,
    },
}
