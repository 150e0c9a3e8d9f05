/// Why a file of a cache cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The cache does not have it.
    #[error("it is not there")]
    NotFound,
    /// The cache does not have it, or does not give it to this host: a bucket that may not be listed answers both the same way.
    #[error("{reason}: it is not there, or needs other keys or another password")]
    Denied {
        /// What happened.
        reason: String,
    },
    /// It may work in a moment.
    #[error("{reason}")]
    Passing {
        /// What happened.
        reason: String,
    },
    /// It will not work.
    #[error("{reason}")]
    Refused {
        /// What happened.
        reason: String,
    },
}

/// Not the place of a cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url} is not the URL of a binary cache: {fault}")]
pub struct LocationError {
    /// What was given.
    pub url: String,
    /// What is wrong with it.
    pub fault: &'static str,
}
