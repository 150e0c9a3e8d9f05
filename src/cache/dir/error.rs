use std::io;
use std::path::{Path, PathBuf};

/// The cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cache directory: cannot {action} {}: {error}", path.display())]
pub struct DirError {
    /// The action that failed, as a verb.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The error of the host.
    pub error: io::Error,
}

impl DirError {
    pub(super) fn host(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self {
            action,
            path: path.clone(),
            error,
        }
    }
}
