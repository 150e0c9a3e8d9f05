//! Parses a binary cache's metadata of a store path (`HASH.narinfo`) and of itself (`nix-cache-info`), and verifies
//! signatures.
//!
//! The format is defined by Nix's `src/libstore/nar-info.cc`: lines of `Key: value`. This module does no I/O.

mod cache_info;
mod content_address;
mod error;
mod fields;
mod signature;

use super::hash;
use super::name::StoreDir;
use fields::Fields;

pub use cache_info::CacheInfo;
pub use error::{KeyFault, NarinfoError, Untrusted};
pub use signature::{CACHE_NIXOS_ORG, PublicKey};

use signature::Signature;

/// Maximum size of a narinfo in bytes. The largest known ones have some 10 KiB.
pub const NARINFO_MAX_BYTES: usize = 1 << 20;

/// Compression of a NAR in a cache, or of the body of an HTTP response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not compressed.
    None,
    /// xz, used by cache.nixos.org.
    Xz,
    /// Zstandard.
    Zstd,
    /// Brotli.
    Brotli,
    /// bzip2, the default if the field is absent.
    Bzip2,
    /// gzip.
    Gzip,
}

impl Compression {
    /// Parses the `Compression` field of a narinfo.
    pub fn from_narinfo(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "xz" => Self::Xz,
            "zstd" => Self::Zstd,
            "br" => Self::Brotli,
            "bzip2" | "" => Self::Bzip2,
            "gzip" => Self::Gzip,
            _ => return None,
        })
    }

    /// Parses a `Content-Encoding` header.
    pub fn from_content_encoding(name: &str) -> Option<Self> {
        match &*name.trim().to_ascii_lowercase() {
            "identity" | "" => Some(Self::None),
            "x-gzip" => Some(Self::Gzip),
            // Nix uploads with the narinfo's names in this header.
            name => Self::from_narinfo(name),
        }
    }
}

/// A narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narinfo {
    /// The base name of its store path.
    pub name: Box<[u8]>,
    /// URL of its NAR, absolute or relative to the cache. Printable ASCII without spaces and without `..`.
    pub url: String,
    /// Compression of the NAR at that URL.
    pub compression: Compression,
    /// The SHA-256 of the compressed NAR. Not covered by the signature.
    pub file_hash: Option<[u8; 32]>,
    /// The length of the compressed NAR. Not covered by the signature.
    pub file_size: Option<u64>,
    /// The SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// The length of the NAR in bytes; never 0.
    pub nar_size: u64,
    /// The base names of its references, sorted and without duplicates.
    pub references: Vec<Box<[u8]>>,
    /// The hash in `CA: fixed:r:sha256:…`, if present.
    content_hash: Option<[u8; 32]>,
    signatures: Vec<Signature>,
}

/// Why a narinfo is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// It is signed by a trusted key.
    Signed {
        /// Name of the key.
        key: String,
    },
    /// Its store path is computed from the hash of its NAR, so no signature is needed.
    ContentAddressed,
}

impl Narinfo {
    /// Parses the narinfo of the store path `name` (a base name) in `store_dir`.
    ///
    /// # Errors
    /// It is malformed, or describes another store path.
    pub fn parse(text: &[u8], name: &[u8], store_dir: &[u8]) -> Result<Self, NarinfoError> {
        let store_dir = StoreDir::new(store_dir);
        let fields = Fields::read(text)?;
        let found = fields.store_path("StorePath", store_dir)?;
        if *found != *name {
            return Err(NarinfoError::OtherPath {
                found: store_dir.shown_path(&found),
                wanted: store_dir.shown_path(name),
            });
        }
        Ok(Self {
            name: found,
            url: fields.url()?,
            compression: fields.compression()?,
            file_hash: fields.optional("FileHash", Fields::hash)?,
            file_size: fields.optional("FileSize", Fields::number)?,
            nar_hash: fields.hash("NarHash")?,
            nar_size: fields.nar_size()?,
            references: fields.references()?,
            content_hash: fields.content_hash()?,
            signatures: fields.signatures(),
        })
    }

    /// Returns the text that is signed: `1;<store path>;sha256:<nix32>;<NAR size>;<references>`, the references being sorted
    /// store paths separated by commas.
    pub fn fingerprint(&self, store_dir: &[u8]) -> Vec<u8> {
        let store_dir = StoreDir::new(store_dir);
        let mut text = b"1;".to_vec();
        store_dir.push_path(&self.name, &mut text);
        let hash = hash::encode(&self.nar_hash);
        text.extend(format!(";sha256:{hash};{};", self.nar_size).bytes());
        for (at, name) in self.references.iter().enumerate() {
            text.extend((at > 0).then_some(b','));
            store_dir.push_path(name, &mut text);
        }
        text
    }

    /// Checks that this narinfo is signed by one of `keys` or content-addressed.
    ///
    /// # Errors
    /// It is neither signed by one of `keys` nor content-addressed by the hash of its NAR.
    pub fn verify(&self, store_dir: &[u8], keys: &[PublicKey]) -> Result<Trust, Untrusted> {
        let fingerprint = self.fingerprint(store_dir);
        let signer = keys.iter().find(|key| {
            let mut signatures = self.signatures.iter();
            signatures.any(|signature| key.verifies(&fingerprint, signature))
        });
        if let Some(key) = signer {
            let key = key.name().to_owned();
            return Ok(Trust::Signed { key });
        }
        if self.is_content_addressed(StoreDir::new(store_dir)) {
            return Ok(Trust::ContentAddressed);
        }
        Err(self.untrusted(store_dir, keys))
    }

    fn untrusted(&self, store_dir: &[u8], keys: &[PublicKey]) -> Untrusted {
        let path = StoreDir::new(store_dir).shown_path(&self.name);
        let mut signers: Vec<String> = Vec::new();
        for signature in &self.signatures {
            if keys.iter().any(|key| key.name() == signature.key) {
                let key = signature.key.clone();
                return Untrusted::Forged { path, key };
            }
            signers.push(signature.key.clone());
        }
        match signers.is_empty() {
            true => Untrusted::Unsigned { path },
            false => Untrusted::UnknownKeys { path, signers },
        }
    }

    /// Returns whether the store path is computed from the hash of the NAR. With other kinds of content addresses (`text:`,
    /// flat files, other algorithms, references to itself) the path does not authenticate the NAR hash, so they need a
    /// signature.
    fn is_content_addressed(&self, store_dir: StoreDir<'_>) -> bool {
        let refers_to_itself = self.references.contains(&self.name);
        self.content_hash == Some(self.nar_hash)
            && !refers_to_itself
            && content_address::has_path(&self.name, &self.nar_hash, &self.references, store_dir)
    }
}

#[cfg(test)]
mod tests;
