//! What can be wrong with a narinfo, each in one sentence.

use crate::closure::error::{Fault, listed};

/// Why a text is no narinfo, or not the one that was asked for. Texts from it are printable and not long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    /// Too long.
    #[error("the narinfo has more than {max} bytes")]
    TooLong {
        /// The most that it may have.
        max: usize,
    },
    /// Binary.
    #[error("the narinfo is not UTF-8")]
    NotText,
    /// The last line has no end.
    #[error("the narinfo ends within a line (was it cut short?)")]
    Truncated,
    /// A line that is no field.
    #[error("line {line} of the narinfo has no colon: \"{text}\"")]
    NoColon {
        /// Which line, counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A field that has to be there.
    #[error("the narinfo lacks {field}")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A field that may be there once.
    #[error("the narinfo has {field} twice")]
    Duplicate {
        /// Which.
        field: &'static str,
    },
    /// The narinfo of something else.
    #[error("the narinfo is of {found} instead of {wanted}")]
    OtherPath {
        /// Its store path.
        found: String,
        /// The store path that was asked for.
        wanted: String,
    },
    /// Not a path in the store.
    #[error("the narinfo's StorePath is none: {0}")]
    StorePath(Fault),
    /// Not a name that Nix gives.
    #[error("{field} of the narinfo has \"{name}\", which is no name of a store path")]
    Name {
        /// Which field.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// Not a SHA-256.
    #[error("{field} \"{text}\" of the narinfo is not a sha256")]
    Hash {
        /// Which field.
        field: &'static str,
        /// Its value.
        text: String,
    },
    /// Not a number.
    #[error("{field} \"{text}\" of the narinfo is not a number of 64 bits")]
    Number {
        /// Which field.
        field: &'static str,
        /// Its value.
        text: String,
    },
    /// A NAR of nothing.
    #[error("NarSize of the narinfo is 0, and no NAR is empty")]
    Empty,
    /// A compression that this program does not know.
    #[error("the NAR is compressed with \"{text}\"; known are none, xz, zstd, br, bzip2 and gzip")]
    Compression {
        /// What it says.
        text: String,
    },
    /// A place that no NAR has.
    #[error("URL \"{text}\" of the narinfo leads nowhere")]
    Url {
        /// What it says.
        text: String,
    },
}

/// Why nobody vouches for a narinfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// No signature at all.
    #[error("{path} is not signed")]
    Unsigned {
        /// The store path.
        path: String,
    },
    /// Signatures of others only.
    #[error("{path} is not signed by a trusted key, but by {}", listed(signers))]
    UnknownKeys {
        /// The store path.
        path: String,
        /// Names of keys.
        signers: Vec<String>,
    },
    /// A signature that does not hold.
    #[error("the signature of {path} by {key} is wrong")]
    Forged {
        /// The store path.
        path: String,
        /// Name of a trusted key.
        key: String,
    },
}

/// Not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a public key (NAME:BASE64, as in trusted-public-keys of nix.conf)")]
pub struct KeyFault {
    /// What was given.
    pub text: String,
}
