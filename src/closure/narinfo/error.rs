//! Errors of narinfos. Each message is one sentence.

use crate::closure::error::{Fault, listed};

/// Why a narinfo is rejected. Texts from it are escaped and truncated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarinfoError {
    /// It is longer than the limit.
    #[error("the narinfo has more than {max} bytes")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// It is binary.
    #[error("the narinfo is not UTF-8")]
    NotText,
    /// The last line has no newline.
    #[error("the narinfo ends within a line (was it cut short?)")]
    Truncated,
    /// A line is not of the form `Key: value`.
    #[error("line {line} of the narinfo has no colon: \"{text}\"")]
    NoColon {
        /// Its number, counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A required field is missing.
    #[error("the narinfo lacks {field}")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A field occurs twice.
    #[error("the narinfo has {field} twice")]
    Duplicate {
        /// Which.
        field: &'static str,
    },
    /// It describes another store path.
    #[error("the narinfo is of {found} instead of {wanted}")]
    OtherPath {
        /// The store path that it describes.
        found: String,
        /// The requested store path.
        wanted: String,
    },
    /// `StorePath` is not a path in the store.
    #[error("the narinfo's StorePath is not a store path: {0}")]
    StorePath(Fault),
    /// A field has a name that Nix would not accept.
    #[error("{field} of the narinfo has \"{name}\", which is not the name of a store path")]
    Name {
        /// Which field.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// A hash is not a SHA-256.
    #[error("{field} \"{text}\" of the narinfo is not a sha256")]
    Hash {
        /// Which field.
        field: &'static str,
        /// Its value.
        text: String,
    },
    /// A number does not parse.
    #[error("{field} \"{text}\" of the narinfo is not a number of 64 bits")]
    Number {
        /// Which field.
        field: &'static str,
        /// Its value.
        text: String,
    },
    /// The NAR size is 0.
    #[error("NarSize of the narinfo is 0, and no NAR is empty")]
    Empty,
    /// The compression is unknown.
    #[error("the NAR is compressed with \"{text}\"; known are none, xz, zstd, br, bzip2 and gzip")]
    Compression {
        /// The value of `Compression`.
        text: String,
    },
    /// The URL is empty, has unusual characters or contains `..`.
    #[error("URL \"{text}\" of the narinfo is not usable")]
    Url {
        /// The value of `URL`.
        text: String,
    },
}

/// Why a narinfo is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// It has no signature.
    #[error("{path} is not signed")]
    Unsigned {
        /// The store path.
        path: String,
    },
    /// It is signed only by keys that are not trusted.
    #[error("{path} is not signed by a trusted key, but by {}", listed(signers))]
    UnknownKeys {
        /// The store path.
        path: String,
        /// Names of the keys.
        signers: Vec<String>,
    },
    /// A signature by a trusted key does not verify.
    #[error("the signature of {path} by {key} is wrong")]
    Forged {
        /// The store path.
        path: String,
        /// Name of the trusted key.
        key: String,
    },
}

/// A text is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a public key (NAME:BASE64, as in trusted-public-keys of nix.conf)")]
pub struct KeyFault {
    /// The text.
    pub text: String,
}
