//! Errors of confining processes.

use std::io;

use rustix::io::Errno;

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call failed.
    #[error("cannot confine this process: {action}: {errno}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// The kernel's error.
        errno: Errno,
    },
    /// Access to files could not be restricted.
    #[error("cannot confine this process to the store's files: {0}")]
    Files(#[from] landlock::RulesetError),
    /// The store could not be opened in the jail.
    #[error("cannot confine this process to the jail: {0}")]
    Jail(#[from] io::Error),
    /// A directory for a Landlock rule could not be opened.
    #[error("cannot confine this process to the store's files: {0}")]
    Dir(#[from] landlock::PathFdError),
    /// System calls could not be restricted: the kernel has no seccomp, or the architecture is unknown.
    #[error("cannot restrict the system calls of this process: {0}")]
    Filter(#[from] seccompiler::Error),
}

impl SandboxError {
    /// For `map_err`: adds what was attempted.
    pub(super) fn host(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Host { action, errno }
    }
}

impl From<seccompiler::BackendError> for SandboxError {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Filter(error.into())
    }
}

/// Why the jail could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct JailError {
    action: &'static str,
    source: io::Error,
}

impl JailError {
    /// For `map_err`: adds what was attempted.
    pub(super) fn host(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::io(action)(errno.into())
    }

    /// Like `host`, for an [`io::Error`].
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, source }
    }
}
