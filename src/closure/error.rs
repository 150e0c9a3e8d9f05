//! Errors of loading a closure. Each message is one sentence.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};

/// A file that the closure is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClosureFile {
    /// The list of store paths; `<stdin>` when it is not a file.
    StorePaths(PathBuf),
    /// The registration of their NAR sizes and hashes.
    Registration(PathBuf),
}

impl ClosureFile {
    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::StorePaths(path) | Self::Registration(path) => path,
        }
    }
}

impl Display for ClosureFile {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::StorePaths(_) => "store-paths",
            Self::Registration(_) => "registration",
        };
        write!(f, "{kind} {}", self.path().display())
    }
}

/// Why a closure cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// An input file cannot be read.
    #[error("{input} cannot be read: {error}")]
    Read {
        /// Which file.
        input: ClosureFile,
        /// The operating system's reason.
        error: io::Error,
    },
    /// A line of an input file is malformed.
    #[error("{input}, line {line}: {fault}")]
    Malformed {
        /// Which file.
        input: ClosureFile,
        /// Which line, counted from 1.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The list of store paths is empty.
    #[error(
        "{input} lists no store path (write one on each line, such as /nix/store/<hash>-<name>)"
    )]
    Empty {
        /// Which file.
        input: ClosureFile,
    },
    /// The `--closure-info` directory lacks a file that `closureInfo` creates.
    #[error("{} is not the output of nixpkgs' closureInfo: {} does not exist", dir.display(), file.display())]
    NotClosureInfo {
        /// The directory.
        dir: PathBuf,
        /// The path of the absent file.
        file: PathBuf,
    },
    /// The logical store directory is relative.
    #[error("the store directory {} must be an absolute path", store_dir.display())]
    RelativeStoreDir {
        /// The store directory.
        store_dir: PathBuf,
    },
    /// A root does not lead to a store path.
    #[error("{} {fault}", root.display())]
    Root {
        /// The root as it was given.
        root: PathBuf,
        /// What is wrong with it.
        fault: RootFault,
    },
    /// Roots are not in the database.
    #[error(
        "{} {} not valid in the Nix database {}",
        listed(paths),
        if paths.len() == 1 { "is" } else { "are" },
        file.display()
    )]
    NotValid {
        /// Logical store paths.
        paths: Vec<String>,
        /// The database.
        file: PathBuf,
    },
    /// The host has no Nix database at this place.
    #[error("there is no Nix database {}", file.display())]
    NoDatabase {
        /// Its expected path.
        file: PathBuf,
    },
    /// The database has no valid path.
    #[error("the Nix database {} has no valid path: there is nothing to serve", file.display())]
    NothingValid {
        /// The database.
        file: PathBuf,
    },
    /// The database cannot be read.
    #[error("the Nix database {} cannot be read: {error}", file.display())]
    Database {
        /// The database.
        file: PathBuf,
        /// Why.
        error: String,
    },
    /// Nothing is registered for a path, so no registration of the closure can be written.
    #[error("nothing is registered of {path}, so the disk cannot carry the closure's registration")]
    Unregistered {
        /// A logical store path.
        path: String,
    },
    /// A path refers to a path outside the closure, so no registration of the closure can be written.
    #[error(
        "{path} refers to {reference}, which is not on the disk, so the registration would be incomplete (list the \
         whole closure, as `nix-store -qR` does)"
    )]
    NotClosed {
        /// A logical store path.
        path: String,
        /// The path outside the closure.
        reference: String,
    },
    /// A registration was requested for a tree, but only store paths are registered.
    #[error("a directory tree has no registration")]
    RegistrationOfTree,
    /// The tree cannot be opened.
    #[error("the tree {} cannot be opened: {error}", dir.display())]
    Tree {
        /// The tree as it was given.
        dir: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// The tree is not a directory.
    #[error("the tree {} is not a directory", dir.display())]
    TreeNotADirectory {
        /// The tree as it was given.
        dir: PathBuf,
    },
}

/// Why a root does not resolve to a store path.
#[derive(Debug, thiserror::Error)]
pub enum RootFault {
    /// It resolves to a path outside the store.
    #[error("is not in the store {}", store_dir.display())]
    NotInStore {
        /// The logical store directory.
        store_dir: PathBuf,
    },
    /// Too many symlinks.
    #[error("leads nowhere: it is a loop of symlinks")]
    Loop,
    /// A component of the path cannot be accessed.
    #[error("leads to no store path: {0}")]
    Io(#[from] io::Error),
    /// The result is not a valid file name.
    #[error("leads to no store path: {0}")]
    Name(Fault),
}

/// What is wrong with one line. Texts from the file are escaped and truncated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A path is not of the form `STORE_DIR/NAME`.
    #[error("{path} is not directly inside the store directory {store_dir}")]
    OutsideStore {
        /// The path.
        path: String,
        /// The logical store directory.
        store_dir: String,
    },
    /// A name is longer than file systems allow.
    #[error("the name of {path} has {length} bytes, and a file name has at most 255")]
    NameTooLong {
        /// The path.
        path: String,
        /// The length of its last component in bytes.
        length: usize,
    },
    /// A NUL byte in a path.
    #[error("{path} has a NUL byte in it, which no file name can have (is this a text file?)")]
    Nul {
        /// The path.
        path: String,
    },
    /// The line ends with CR LF.
    #[error(
        "the line ends with a carriage return: save the file with Unix line ends (tr -d '\\r')"
    )]
    CarriageReturn,
    /// The file ends in the middle of a record.
    #[error("the file ends where {missing} should be (was it cut short?)")]
    Truncated {
        /// The line that was expected.
        missing: &'static str,
    },
    /// Where the NAR hash should be, the line is empty or a path.
    #[error(
        "expected a NAR hash, found \"{found}\" (a references graph has none: \
         use the registration of closureInfo or of nix-store --dump-db)"
    )]
    NoHash {
        /// The line.
        found: String,
    },
    /// The hash is not a SHA-256 in any of Nix's notations.
    #[error("the NAR hash \"{hash}\" is not a sha256 in base16, nix32 or base64")]
    BadHash {
        /// The line.
        hash: String,
    },
    /// A number has characters other than decimal digits.
    #[error("{what} \"{text}\" is not a number")]
    NotANumber {
        /// Which number was expected.
        what: &'static str,
        /// The line.
        text: String,
    },
    /// A number is larger than Nix can store.
    #[error("{what} {text} is larger than {max}, the most that Nix can register")]
    NumberTooLarge {
        /// Which number.
        what: &'static str,
        /// The line.
        text: String,
        /// The largest number possible.
        max: u64,
    },
    /// A deriver or a reference is not an absolute path. Most likely a line before it is missing, or a count is wrong.
    #[error(
        "expected {what}, found \"{found}\", which is not an absolute path (is the record complete?)"
    )]
    NotAPath {
        /// The line that was expected.
        what: &'static str,
        /// The line.
        found: String,
    },
    /// Two records of one store path have different sizes or hashes.
    #[error("{path} is registered here with another NAR size or hash than on line {first}")]
    Contradiction {
        /// The store path.
        path: String,
        /// The first line of the earlier record, counted from 1.
        first: u64,
    },
}

/// Maximum number of paths that a message lists.
const LISTED: usize = 3;

/// Formats `paths` for a message: the first three, then the number of the others.
pub fn listed(paths: &[String]) -> String {
    match paths.len().saturating_sub(LISTED) {
        0 => paths.join(", "),
        more => format!("{} and {more} more", paths[..LISTED].join(", ")),
    }
}

/// Maximum number of bytes of a line that a message quotes. Every store path fits.
const SHOWN: usize = 512;

/// Formats `bytes` for a message: replaces invalid UTF-8, escapes control characters, truncates long texts.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let (bytes, rest) = bytes.split_at(bytes.len().min(SHOWN));
    let mut text = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if c.is_control() {
            text.extend(c.escape_default())
        } else {
            text.push(c)
        }
    }
    if !rest.is_empty() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{listed, shown};

    #[test]
    fn of_many_paths_three_are_named() {
        let paths: Vec<String> = (0..300_000).map(|n| format!("/nix/store/{n}")).collect();
        assert_eq!(listed(&paths[..1]), "/nix/store/0");
        assert_eq!(
            listed(&paths[..3]),
            "/nix/store/0, /nix/store/1, /nix/store/2"
        );
        assert_eq!(
            listed(&paths),
            "/nix/store/0, /nix/store/1, /nix/store/2 and 299997 more"
        );
    }

    #[test]
    fn messages_stay_on_one_line_and_short() {
        assert_eq!(shown("/nix/store/é".as_bytes()), "/nix/store/é");
        assert_eq!(shown(b"a\r\x1b[2J\xff"), "a\\r\\u{1b}[2J\u{fffd}");
        assert_eq!(shown(&[b'x'; 600]), format!("{}…", "x".repeat(512)));
    }
}
