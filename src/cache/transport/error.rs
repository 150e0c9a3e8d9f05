/// Why a file of a cache cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The cache does not have it.
    #[error("it is not there")]
    NotFound,
    /// The cache does not have it or denies access: a bucket without list permission answers both the same way.
    #[error("{reason}: the file does not exist, or access needs other credentials")]
    Denied {
        /// What happened.
        reason: String,
    },
    /// A retry may succeed.
    #[error("{reason}")]
    Passing {
        /// What happened.
        reason: String,
    },
    /// A retry will not succeed.
    #[error("{reason}")]
    Refused {
        /// What happened.
        reason: String,
    },
}

/// An invalid URL of a cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url} is not the URL of a binary cache: {fault}")]
pub struct LocationError {
    /// The URL as given.
    pub url: String,
    /// What is wrong with it.
    pub fault: &'static str,
}
