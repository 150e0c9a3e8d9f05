//! The format of a kept plan's file.
//!
//! ```text
//! magic, label, length of the tree (8 bytes), tree, SHA-256 of all that
//! ```
//!
//! Numbers are little-endian. A label is the NAR hash (32 bytes), the inode number (8) and the ctime (8 + 4) of the path's top
//! node, the length of the path's name (1) and the name.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::error::Unusable;
use crate::source::Mark;

/// The magic, which includes the version of the format.
const MAGIC: &[u8] = b"lazystore plan 1\n";

const CHECKSUM_BYTES: usize = 32;

/// Longer files are neither written nor read. Only paths with more than a million files exceed this.
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
    pub(super) fn file_name(&self) -> String {
        let digest = Sha256::new()
            .chain_update(MAGIC)
            .chain_update(&self.0)
            .finalize();
        let mut name = String::with_capacity(FILE_NAME_BYTES);
        for byte in &digest[..STEM_BYTES / 2] {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name + SUFFIX
    }
}

/// 128 bits of a digest, in hexadecimal.
const STEM_BYTES: usize = 32;
const SUFFIX: &str = ".plan";
const FILE_NAME_BYTES: usize = STEM_BYTES + SUFFIX.len();

/// Returns whether `name` is a [`Label::file_name`], alone or with the suffix of a [`temporary_name`]. Other files in the
/// directory are never touched.
pub(super) fn is_file_name(name: &[u8]) -> bool {
    let Some((stem, rest)) = name.split_at_checked(STEM_BYTES) else {
        return false;
    };
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    stem.iter().all(is_digit) && (rest == SUFFIX.as_bytes() || is_temporary(name))
}

const TEMPORARY_SUFFIX: &str = ".new";

/// Returns the name of a file while it is written.
pub(super) fn temporary_name(file_name: &str, unique: &str) -> String {
    format!("{file_name}.{unique}{TEMPORARY_SUFFIX}")
}

/// Returns whether a file is incomplete or still being written.
pub(super) fn is_temporary(name: &[u8]) -> bool {
    let rest = name.get(STEM_BYTES..).unwrap_or_default();
    rest.starts_with(SUFFIX.as_bytes()) && rest.ends_with(TEMPORARY_SUFFIX.as_bytes())
}

/// Returns the contents of a file.
pub(super) fn seal(label: &Label, tree: &[u8]) -> Vec<u8> {
    let len = (tree.len() as u64).to_le_bytes();
    let mut file = [MAGIC, &label.0, &len, tree].concat();
    let checksum = Sha256::digest(&file);
    file.extend(checksum);
    file
}

/// Returns the tree in an intact file of the path of `label`.
pub(super) fn open<'f>(label: &Label, file: &'f [u8]) -> Result<&'f [u8], Unusable> {
    let end = file.len().checked_sub(CHECKSUM_BYTES);
    let (sealed, checksum) = file.split_at(end.ok_or(Unusable::Damaged)?);
    if Sha256::digest(sealed)[..] != *checksum {
        return Err(Unusable::Damaged);
    }
    let rest = sealed.strip_prefix(MAGIC).ok_or(Unusable::OtherFormat)?;
    let rest = rest.strip_prefix(&*label.0).ok_or(Unusable::OtherPath)?;
    let (len, tree) = rest.split_first_chunk().ok_or(Unusable::Malformed)?;
    match u64::from_le_bytes(*len) == tree.len() as u64 {
        true => Ok(tree),
        false => Err(Unusable::Malformed),
    }
}
