//! Narinfos of single store paths, kept or fetched.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::dir::{CacheDir, DirError, StoredNarinfo};
use super::keys::{BadNarinfo, Keys};
use super::transport::{BinaryCache, FetchError, Http, Retries};
use crate::closure::narinfo::{NARINFO_MAX_BYTES, Narinfo, NarinfoError};
use crate::closure::{HASH_DIGITS, shown};

/// Retries after a temporary failure of a server.
const RETRIES: Retries = Retries(3);

/// Looks up narinfos.
#[derive(Debug, Clone, Copy)]
pub struct Located<'n> {
    /// Where they are kept. They never change, so a kept one is as good as a new one.
    pub dir: &'n CacheDir,
    /// Which narinfos are trusted.
    pub keys: &'n Keys,
    /// The logical store directory.
    pub store_dir: &'n Path,
}

/// Why there is no narinfo.
#[derive(Debug, thiserror::Error)]
pub enum NoNarinfo {
    /// No cache has it.
    #[error("no binary cache has it")]
    NotFound,
    /// A cache has one that cannot be used.
    #[error("{cache}: {bad}")]
    Bad {
        /// URL of the cache.
        cache: String,
        /// What is wrong with it.
        bad: BadNarinfo,
    },
    /// A cache failed.
    #[error("{0}")]
    Failed(FetchError),
    /// The cache directory failed.
    #[error(transparent)]
    Dir(#[from] DirError),
}

impl Located<'_> {
    /// Returns the kept narinfo of the store path `name`, if it is trusted.
    pub fn kept(&self, name: &[u8]) -> Option<Narinfo> {
        self.read_kept(name).map(|(narinfo, _)| narinfo)
    }

    fn read_kept(&self, name: &[u8]) -> Option<(Narinfo, String)> {
        let stored = self.dir.narinfo(&digits(name))?;
        let narinfo = self.parse(&stored.text, name).ok()?;
        // Only the owner can write to the directory, so signatures are not checked again.
        let accepted = self.keys.accepts(&stored.voucher)
            || self.keys.vouch(&narinfo, self.store_bytes()).is_ok();
        accepted.then_some((narinfo, stored.from))
    }

    /// Returns the narinfo of the store path `name` from the first of `caches` that has a valid one, and keeps it.
    ///
    /// # Errors
    /// No cache has a valid one. If a cache has an invalid one or fails, that is the error.
    pub fn fetch(
        &self,
        http: &Http,
        caches: &[BinaryCache],
        name: &[u8],
    ) -> Result<Narinfo, NoNarinfo> {
        let mut first_error = None;
        for cache in caches {
            match self.ask(http, cache, name) {
                Ok((narinfo, stored)) => {
                    self.dir.keep_narinfo(&digits(name), &stored)?;
                    return Ok(narinfo);
                }
                Err(NoNarinfo::NotFound) => {}
                Err(error) => _ = first_error.get_or_insert(error),
            }
        }
        Err(first_error.unwrap_or(NoNarinfo::NotFound))
    }

    /// Returns the narinfo of the store path `name` in `cache`: the kept one, if it came from there.
    ///
    /// # Errors
    /// The cache has none or an invalid one, or fails.
    pub fn in_cache(
        &self,
        http: &Http,
        cache: &BinaryCache,
        name: &[u8],
    ) -> Result<Narinfo, NoNarinfo> {
        match self.read_kept(name) {
            Some((narinfo, from)) if from == cache.url() => Ok(narinfo),
            _ => self.ask(http, cache, name).map(|(narinfo, _)| narinfo),
        }
    }

    fn ask(
        &self,
        http: &Http,
        cache: &BinaryCache,
        name: &[u8],
    ) -> Result<(Narinfo, StoredNarinfo), NoNarinfo> {
        let file = format!("{}.narinfo", digits(name));
        let text = cache.read(http, &file, NARINFO_MAX_BYTES, RETRIES);
        let text = text.map_err(|error| match error {
            FetchError::NotFound => NoNarinfo::NotFound,
            error => NoNarinfo::Failed(error),
        })?;
        let bad = |bad| NoNarinfo::Bad {
            cache: cache.url().to_owned(),
            bad,
        };
        let narinfo = self.parse(&text, name).map_err(|error| bad(error.into()))?;
        let voucher = self.keys.vouch(&narinfo, self.store_bytes());
        let stored = StoredNarinfo {
            from: cache.url().to_owned(),
            voucher: voucher.map_err(|error| bad(error.into()))?,
            text,
        };
        Ok((narinfo, stored))
    }

    fn parse(&self, text: &[u8], name: &[u8]) -> Result<Narinfo, NarinfoError> {
        Narinfo::parse(text, name, self.store_bytes())
    }

    fn store_bytes(&self) -> &[u8] {
        self.store_dir.as_os_str().as_bytes()
    }
}

/// Returns the hash digits of a base name, by which caches name a store path.
pub fn digits(name: &[u8]) -> String {
    shown(&name[..name.len().min(HASH_DIGITS)])
}
