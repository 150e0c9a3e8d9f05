//! `nix-cache-info`: what a cache says of itself.

use super::error::NarinfoError;
use super::fields::Fields;

/// What a cache says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheInfo {
    /// The logical store directory of its paths, if it says so.
    pub store_dir: Option<String>,
    /// It may be asked for very many paths.
    pub want_mass_query: bool,
    /// Caches with lower numbers are asked first.
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
