//! What was compared, and what differs.

use std::fmt;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The disk, as erofs-rs reads it.
    Disk,
    /// The host's directory.
    Host,
}

/// A part of what a file is, apart from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// Type of the file.
    Kind,
    /// Permission bits.
    Permissions,
    /// Owner and group.
    Owner,
    /// Time of the last change.
    Mtime,
    /// Length in bytes.
    Size,
    /// Device number.
    Device,
    /// Target of a symlink.
    Target,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Only the other side has the file.
    #[error("is not {}", .0.place())]
    Missing(Side),
    /// Both have it, but not the same.
    #[error("{attribute} is {disk} on the disk and should be {expected}")]
    Attribute {
        /// What differs.
        attribute: Attribute,
        /// What the disk says.
        disk: String,
        /// What the host makes of it.
        expected: String,
    },
    /// The contents differ.
    #[error("differs from the host at byte {offset}")]
    Contents {
        /// The first byte of the file that differs.
        offset: u64,
    },
    /// It cannot be compared.
    #[error("cannot be read {}: {error}", .side.place())]
    Unreadable {
        /// Who refused.
        side: Side,
        /// Why.
        error: String,
    },
    /// The path's NAR has another length.
    #[error("its NAR has {disk} bytes on the disk, {registered} are registered")]
    NarSize {
        /// What the disk shows.
        disk: u64,
        /// What the registration says.
        registered: u64,
    },
    /// The path's NAR has another hash.
    #[error("its NAR hash is sha256:{} on the disk, sha256:{} is registered", hex(.disk), hex(.registered))]
    NarHash {
        /// What the disk shows.
        disk: [u8; 32],
        /// What the registration says.
        registered: [u8; 32],
    },
}

/// How much was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files of all types.
    pub files: u64,
    /// Bytes of regular files' contents.
    pub bytes: u64,
    /// NARs whose hash is the registered one.
    pub nar_hashes: u64,
}

/// What came of one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathReport {
    /// Its name in the store, or in the root of a tree; empty for the root of a tree itself.
    pub name: Vec<u8>,
    /// What was compared.
    pub tally: Tally,
    /// The first differences, each with the file's path below the path, which is empty for the path itself.
    pub differences: Vec<(Vec<u8>, Difference)>,
    /// How many differences there were.
    pub count: u64,
}

impl PathReport {
    /// Of a path of which nothing can be read from the disk.
    pub(super) fn unreadable(name: &[u8], error: &dyn fmt::Display) -> Self {
        let mut report = Self {
            name: name.to_vec(),
            ..Self::default()
        };
        let difference = Difference::Unreadable {
            side: Side::Disk,
            error: error.to_string(),
        };
        report.add(1, b"", difference);
        report
    }

    /// Notes a difference; only the first `limit` are kept.
    pub(super) fn add(&mut self, limit: usize, file: &[u8], difference: Difference) {
        self.count += 1;
        if self.differences.len() < limit {
            self.differences.push((file.to_vec(), difference));
        }
    }
}

/// What came of all paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many paths were compared.
    pub paths: usize,
    /// What was compared in all of them.
    pub tally: Tally,
    /// The paths with differences, sorted by name.
    pub faulty: Vec<PathReport>,
}

impl Report {
    /// `besides` is what came of what is no path: the root directory itself, what the disk carries besides.
    pub(super) fn new(paths: Vec<PathReport>, besides: impl Iterator<Item = PathReport>) -> Self {
        let mut report = Self {
            paths: paths.len(),
            ..Self::default()
        };
        for path in paths.into_iter().chain(besides) {
            report.tally.files += path.tally.files;
            report.tally.bytes += path.tally.bytes;
            report.tally.nar_hashes += path.tally.nar_hashes;
            if path.count > 0 {
                report.faulty.push(path);
            }
        }
        report.faulty.sort_by(|a, b| a.name.cmp(&b.name));
        report
    }

    /// Nothing differs.
    pub fn is_clean(&self) -> bool {
        self.faulty.is_empty()
    }
}

impl Side {
    fn place(self) -> &'static str {
        match self {
            Self::Disk => "on the disk",
            Self::Host => "on the host",
        }
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "its type",
            Self::Permissions => "its mode",
            Self::Owner => "its owner",
            Self::Mtime => "its mtime",
            Self::Size => "its size",
            Self::Device => "its device number",
            Self::Target => "its target",
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
