//! The format of the files in a plan directory.
//!
//! ```text
//! magic, label, length of the payload (8 bytes), payload, SHA-256 of all that
//! ```
//!
//! The payload of a plan is its tree. That of small files is the layout version (4 bytes), the SHA-256 at the end of the plan's
//! file, and the contents of the files in the order of the disk.
//!
//! Numbers are little-endian. A label is the NAR hash (32 bytes), the inode number (8) and the ctime (8 + 4) of the path's top
//! node, the length of the path's name (1) and the name.

use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use super::error::Unusable;
use crate::erofs::layout::LAYOUT_VERSION;
use crate::source::Mark;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) enum KeptKind {
    /// The plan of a path.
    Plan,
    /// The contents of a path's small files.
    SmallFiles,
}

impl KeptKind {
    pub(super) const ALL: [Self; 2] = [Self::Plan, Self::SmallFiles];

    /// The magic, which includes the version of the format.
    const fn magic(self) -> &'static [u8] {
        match self {
            Self::Plan => b"lazystore plan 1\n",
            Self::SmallFiles => b"lazystore small files 1\n",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Plan => ".plan",
            Self::SmallFiles => ".files",
        }
    }
}

impl fmt::Display for KeptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plans",
            Self::SmallFiles => "small files",
        })
    }
}

const CHECKSUM_BYTES: usize = 32;

/// The SHA-256 at the end of a file.
pub(super) type Checksum = [u8; CHECKSUM_BYTES];

/// Longer files are neither written nor read. Only paths with more than a million files exceed this, or with that much in small
/// files.
pub(super) const FILE_MAX_BYTES: u64 = 64 << 20;

/// Identifies the store path that a plan describes.
///
/// Name and hash identify what the path must be. Inode number and ctime identify the directory that was walked: a replacement
/// has a later ctime, which no program can set. The device number is not included, because it may change with every boot. On a
/// file system whose inode numbers change too, paths are walked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label(Vec<u8>);

impl Label {
    /// Returns `None` if `name` is too long for a store path.
    pub(super) fn new(name: &[u8], nar_hash: &[u8; 32], mark: Mark) -> Option<Self> {
        let mut bytes = nar_hash.to_vec();
        bytes.extend(mark.inode.to_le_bytes());
        bytes.extend(mark.ctime_sec.to_le_bytes());
        bytes.extend(mark.ctime_nsec.to_le_bytes());
        bytes.push(u8::try_from(name.len()).ok()?);
        bytes.extend_from_slice(name);
        Some(Self(bytes))
    }

    /// Returns the name of the file. It depends on the format, so that programs with different formats do not replace each
    /// other's files.
    pub(super) fn file_name(&self, kind: KeptKind) -> String {
        let digest = Sha256::new()
            .chain_update(kind.magic())
            .chain_update(&self.0)
            .finalize();
        let mut name = String::new();
        for byte in &digest[..STEM_BYTES / 2] {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name + kind.suffix()
    }
}

/// 128 bits of a digest, in hexadecimal.
const STEM_BYTES: usize = 32;

/// Returns whether `name` is a [`Label::file_name`], alone or with the suffix of a [`temporary_name`]. Other files in the
/// directory are never touched.
pub(super) fn is_file_name(name: &[u8]) -> bool {
    let Some((stem, rest)) = name.split_at_checked(STEM_BYTES) else {
        return false;
    };
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_suffix = |kind: &KeptKind| rest == kind.suffix().as_bytes();
    stem.iter().all(is_digit) && (KeptKind::ALL.iter().any(is_suffix) || is_temporary(name))
}

const TEMPORARY_SUFFIX: &str = ".new";

/// Returns the name of a file while it is written.
pub(super) fn temporary_name(file_name: &str, unique: &str) -> String {
    format!("{file_name}.{unique}{TEMPORARY_SUFFIX}")
}

/// Returns whether a file is incomplete or still being written.
pub(super) fn is_temporary(name: &[u8]) -> bool {
    let rest = name.get(STEM_BYTES..).unwrap_or_default();
    let has_suffix = |kind: &KeptKind| rest.starts_with(kind.suffix().as_bytes());
    KeptKind::ALL.iter().any(has_suffix) && rest.ends_with(TEMPORARY_SUFFIX.as_bytes())
}

/// Returns the contents of a file.
pub(super) fn seal(kind: KeptKind, label: &Label, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u64).to_le_bytes();
    let mut file = [kind.magic(), &label.0, &len, payload].concat();
    let checksum = Sha256::digest(&file);
    file.extend(checksum);
    file
}

/// Returns the payload of an intact file of the path of `label`, and the file's checksum.
pub(super) fn open<'f>(
    kind: KeptKind,
    label: &Label,
    file: &'f [u8],
) -> Result<(&'f [u8], Checksum), Unusable> {
    let parts = file.split_last_chunk();
    let (sealed, checksum) = parts.ok_or(Unusable::Damaged)?;
    if Sha256::digest(sealed)[..] != *checksum {
        return Err(Unusable::Damaged);
    }
    let rest = sealed.strip_prefix(kind.magic());
    let rest = rest.ok_or(Unusable::OtherFormat)?;
    let rest = rest.strip_prefix(&*label.0).ok_or(Unusable::OtherPath)?;
    let (len, payload) = rest.split_first_chunk().ok_or(Unusable::Malformed)?;
    match u64::from_le_bytes(*len) == payload.len() as u64 {
        true => Ok((payload, *checksum)),
        false => Err(Unusable::Malformed),
    }
}

/// Returns the payload for the contents of small files, which belong to the plan in the file with the checksum `plan`.
pub(super) fn pack_small_files(plan: &Checksum, contents: &[u8]) -> Vec<u8> {
    [&LAYOUT_VERSION.to_le_bytes(), &plan[..], contents].concat()
}

/// Returns the contents in the payload of a file of small files.
pub(super) fn unpack_small_files<'p>(
    plan: &Checksum,
    payload: &'p [u8],
) -> Result<&'p [u8], Unusable> {
    let rest = payload.strip_prefix(&LAYOUT_VERSION.to_le_bytes());
    let rest = rest.ok_or(Unusable::OtherFormat)?;
    rest.strip_prefix(plan).ok_or(Unusable::OtherPlan)
}
