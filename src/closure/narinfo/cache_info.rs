//! Parses `nix-cache-info`, a cache's metadata of itself.

use super::error::NarinfoError;
use super::fields::Fields;

/// Metadata of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The logical store directory of its paths, if given.
    pub store_dir: Option<String>,
    /// The cache accepts queries for large numbers of paths.
    pub want_mass_query: bool,
    /// Caches with lower numbers are queried first.
    pub priority: Option<u64>,
}

impl CacheInfo {
    /// Parses the text of `nix-cache-info`.
    ///
    /// # Errors
    /// It is malformed.
    pub fn parse(text: &[u8]) -> Result<Self, NarinfoError> {
        let fields = Fields::read(text)?;
        Ok(Self {
            store_dir: fields.single("StoreDir")?.map(str::to_owned),
            want_mass_query: fields.single("WantMassQuery")? == Some("1"),
            priority: fields.optional("Priority", Fields::number)?,
        })
    }
}
