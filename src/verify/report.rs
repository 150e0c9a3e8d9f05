//! The result of a verification.

use std::fmt;

/// Disk or host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The disk, as erofs-rs reads it.
    Disk,
    /// The host's directory.
    Host,
}

/// An attribute of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// Type of the file.
    Kind,
    /// Permission bits.
    Permissions,
    /// Owner and group.
    Owner,
    /// Modification time.
    Mtime,
    /// Length in bytes.
    Size,
    /// Device number.
    Device,
    /// Target of a symlink.
    Target,
}

/// One difference between disk and host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The file is missing on this side.
    #[error("is not {}", .0.place())]
    Missing(Side),
    /// An attribute differs.
    #[error("{attribute} is {disk} on the disk and should be {expected}")]
    Attribute {
        /// Which attribute.
        attribute: Attribute,
        /// Its value on the disk.
        disk: String,
        /// The value expected from the host's file.
        expected: String,
    },
    /// The contents differ.
    #[error("differs from the host at byte {offset}")]
    Contents {
        /// The first byte of the file that differs.
        offset: u64,
    },
    /// One side cannot be read.
    #[error("cannot be read {}: {error}", .side.place())]
    Unreadable {
        /// Which side.
        side: Side,
        /// The reason.
        error: String,
    },
    /// The path's NAR has another length.
    #[error("its NAR has {disk} bytes on the disk, {registered} are registered")]
    NarSize {
        /// The length computed from the disk.
        disk: u64,
        /// The registered length.
        registered: u64,
    },
    /// The path's NAR has another hash.
    #[error("its NAR hash is sha256:{} on the disk, sha256:{} is registered", hex(.disk), hex(.registered))]
    NarHash {
        /// The hash computed from the disk.
        disk: [u8; 32],
        /// The registered hash.
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
    /// NARs whose hash equals the registered one.
    pub nar_hashes: u64,
}

/// The result for one path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathReport {
    /// Its name in the root directory; empty for the root directory itself.
    pub name: Vec<u8>,
    /// What was compared.
    pub tally: Tally,
    /// The first differences, each with the file's path relative to this path (empty for the path itself).
    pub differences: Vec<(Vec<u8>, Difference)>,
    /// Total number of differences.
    pub count: u64,
}

impl PathReport {
    /// Returns the report of a path that cannot be read from the disk at all.
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

    /// Counts a difference, and keeps it if there are fewer than `limit`.
    pub(super) fn add(&mut self, limit: usize, file: &[u8], difference: Difference) {
        self.count += 1;
        if self.differences.len() < limit {
            self.differences.push((file.to_vec(), difference));
        }
    }
}

/// The result for all paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of paths compared.
    pub paths: usize,
    /// Totals over all paths.
    pub tally: Tally,
    /// The paths with differences, sorted by name.
    pub faulty: Vec<PathReport>,
}

impl Report {
    /// `others` are the reports of entries that do not count as paths: the root directory itself and `.lazystore`.
    pub(super) fn new(paths: Vec<PathReport>, others: impl Iterator<Item = PathReport>) -> Self {
        let mut report = Self {
            paths: paths.len(),
            ..Self::default()
        };
        for path in paths.into_iter().chain(others) {
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

    /// Returns whether there are no differences.
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
