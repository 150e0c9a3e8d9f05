//! What a binary cache says of a store path (`HASH.narinfo`) and of itself (`nix-cache-info`); who vouches for it.
//!
//! The format is that of Nix's `src/libstore/nar-info.cc`: lines of `Key: value`. Nothing here reads files or asks
//! anybody.

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

/// The longest narinfo that is read, in bytes. The largest known have some 10 KiB.
pub const NARINFO_MAX_BYTES: usize = 1 << 20;

/// How a NAR is compressed in a cache, or the body of an HTTP answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// xz: cache.nixos.org.
    Xz,
    /// Zstandard.
    Zstd,
    /// Brotli.
    Brotli,
    /// bzip2: what is meant where nothing is said.
    Bzip2,
    /// gzip.
    Gzip,
}

impl Compression {
    /// From the value of `Compression` in a narinfo.
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

    /// From the value of an HTTP answer's Content-Encoding.
    pub fn from_content_encoding(name: &str) -> Option<Self> {
        match &*name.trim().to_ascii_lowercase() {
            "identity" | "" => Some(Self::None),
            "x-gzip" => Some(Self::Gzip),
            // Nix sends the names of narinfos here, too.
            name => Self::from_narinfo(name),
        }
    }
}

/// A narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narinfo {
    /// The base name of its store path.
    pub name: Box<[u8]>,
    /// Where its NAR is, relative to the cache; perhaps absolute. Printable ASCII without spaces, and no `..` in it.
    pub url: String,
    /// How the NAR is compressed there.
    pub compression: Compression,
    /// The SHA-256 of the compressed NAR. Nobody signs it.
    pub file_hash: Option<[u8; 32]>,
    /// The length of the compressed NAR. Nobody signs it.
    pub file_size: Option<u64>,
    /// The SHA-256 of the NAR.
    pub nar_hash: [u8; 32],
    /// The length of the NAR in bytes, not 0.
    pub nar_size: u64,
    /// The base names of the store paths that it refers to, sorted, each once.
    pub references: Vec<Box<[u8]>>,
    /// What `CA: fixed:r:sha256:` says, if there is one.
    content_hash: Option<[u8; 32]>,
    signatures: Vec<Signature>,
}

/// Why a narinfo can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// One of the keys signed it.
    Signed {
        /// Name of the key.
        key: String,
    },
    /// Its store path follows from the hash of its NAR, so that nobody has to vouch for it.
    ContentAddressed,
}

impl Narinfo {
    /// Parses the narinfo of the store path `name` (a base name) in `store_dir`.
    ///
    /// # Errors
    /// It is malformed, or of another store path.
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

    /// What is signed: `1;<store path>;sha256:<nix32>;<NAR size>;<references, sorted, as whole paths, with commas>`.
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

    /// Why this narinfo can be believed, for those who trust `keys`.
    ///
    /// # Errors
    /// It is neither signed by one of them nor content-addressed by the hash of its NAR.
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

    /// Whether the store path follows from the hash of the NAR. Of other content addresses (`text:`, of flat files, with
    /// other algorithms, with references to itself) the hash of the NAR does not follow: those have to be signed.
    fn is_content_addressed(&self, store_dir: StoreDir<'_>) -> bool {
        let refers_to_itself = self.references.contains(&self.name);
        self.content_hash == Some(self.nar_hash)
            && !refers_to_itself
            && content_address::leads_to(&self.name, &self.nar_hash, &self.references, store_dir)
    }
}

#[cfg(test)]
mod tests;
