//! What is wrong with a report.

use std::io;
use std::path::PathBuf;

/// What is wrong with a report.
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
    /// It is no JSON, or something else's.
    #[error("{} is not a report that --report FILE.json made: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is another program's, or another version's.
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
    /// A limit.
    #[error("over the limit: {what}: {value}, and {limit} are allowed")]
    Over {
        /// What is limited.
        what: &'static str,
        /// How much it is.
        value: String,
        /// How much it may be.
        limit: String,
    },
}
