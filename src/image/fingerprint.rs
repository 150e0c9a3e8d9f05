//! The fingerprint of a disk of store paths, to check that a VM that was saved or migrated gets the same disk again.
//!
//! It covers everything that determines the disk's bytes: the address ranges, the NAR hash of every path, attributes,
//! label, UUID and layout version. It does not cover the host's directories, the kind of endpoint, and the source of a
//! path. The hashes are those registered with Nix; they are not verified.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::Image;
use super::build::ImageOptions;
use crate::closure::{StorePath, nix32};
use crate::erofs::layout::LAYOUT_VERSION;
use crate::erofs::layout::attributes::{Origin, dirent_type};
use crate::erofs::layout::space::{Area, Region};

/// 160 bits, like Nix's store hashes, which excludes accidental collisions.
const DIGEST_BYTES: usize = 20;
/// Number of digits in Nix's base32.
const DIGITS: usize = DIGEST_BYTES * 8 / 5;
/// Prefix of the fingerprint of a disk that has paths without a NAR hash.
const WEAK: &str = "weak-";

/// Identity of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    digits: Box<str>,
    is_weak: bool,
}

/// A text is not a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has {DIGITS} letters and digits, some have {WEAK} before them")]
pub struct NotAFingerprint;

impl Fingerprint {
    /// Returns the fingerprint of the disk `image`, which consists of `paths`.
    pub(super) fn new(image: &Image, paths: &[StorePath], options: &ImageOptions) -> Self {
        let mut hash = Hash(Sha256::new());
        hash.number(LAYOUT_VERSION);
        hash.bytes(&image.volume.block(Area::Superblock));
        let attributes = options.attributes(Origin::Nar);
        hash.option(attributes.uid.map(u32::to_le_bytes));
        hash.option(attributes.gid.map(u32::to_le_bytes));
        hash.option(attributes.mtime_sec.map(u64::to_le_bytes));
        hash.number(attributes.inlines_files().into());
        hash.option(options.registration.as_deref().map(Sha256::digest));
        image
            .space()
            .regions()
            .iter()
            .for_each(|region| hash.region(region));
        paths.iter().for_each(|path| hash.option(path.nar_hash));
        let digest = hash.0.finalize();
        Self {
            digits: nix32(&digest[..DIGEST_BYTES]).into(),
            is_weak: paths.iter().any(|path| path.nar_hash.is_none()),
        }
    }

    /// Returns whether some path has no NAR hash. Only name, type and size of such a path are covered.
    pub fn is_weak(&self) -> bool {
        self.is_weak
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_weak { WEAK } else { "" })?;
        f.write_str(&self.digits)
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digits = text.strip_prefix(WEAK);
        let is_weak = digits.is_some();
        let digits = digits.unwrap_or(text);
        if digits.len() != DIGITS || !digits.bytes().all(|digit| digit.is_ascii_alphanumeric()) {
            return Err(NotAFingerprint);
        }
        Ok(Self {
            digits: digits.into(),
            is_weak,
        })
    }
}

/// Hashes values with an injective encoding: different lists of values are encoded as different bytes.
struct Hash(Sha256);

impl Hash {
    fn number(&mut self, number: u32) {
        self.0.update(number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn option(&mut self, bytes: Option<impl AsRef<[u8]>>) {
        match bytes {
            Some(bytes) => self.bytes(bytes.as_ref()),
            None => self.0.update(u64::MAX.to_le_bytes()),
        }
    }

    fn region(&mut self, region: &Region) {
        self.bytes(&region.name);
        self.number(dirent_type(region.kind) as u32);
        for Range { start, end } in [&region.meta, &region.data] {
            self.number(*start);
            self.number(*end);
        }
    }
}
