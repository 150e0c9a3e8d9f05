//! Which narinfos are trusted.

use std::sync::Arc;

use crate::closure::narinfo::{Narinfo, NarinfoError, PublicKey, Trust, Untrusted};

/// Vouchers that cannot be confused with a key.
const CONTENT_ADDRESSED: &str = "content-addressed";
const UNCHECKED: &str = "unchecked";

/// Which narinfos are trusted.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Those signed by one of these keys, and those whose store path is derived from the NAR's content.
    Trusted(Arc<[PublicKey]>),
    /// All, without verifying signatures.
    Unchecked,
}

/// Why a narinfo cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNarinfo {
    /// It is malformed, or describes another path.
    #[error(transparent)]
    Malformed(#[from] NarinfoError),
    /// No trusted key signed it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
}

impl Keys {
    /// Returns who vouches for `narinfo` of the store `store_dir`; [`accepts`](Self::accepts) understands the result.
    ///
    /// # Errors
    /// No trusted key signed it.
    pub fn vouch(&self, narinfo: &Narinfo, store_dir: &[u8]) -> Result<String, Untrusted> {
        let Self::Trusted(keys) = self else {
            return Ok(UNCHECKED.to_owned());
        };
        let signed = keys.iter().find(|key| {
            let trust = narinfo.verify(store_dir, std::slice::from_ref(key));
            matches!(trust, Ok(Trust::Signed { .. }))
        });
        match signed {
            Some(key) => Ok(key.text().to_owned()),
            None => narinfo
                .verify(store_dir, keys)
                .map(|_| CONTENT_ADDRESSED.to_owned()),
        }
    }

    /// Returns whether `voucher`, an earlier result of [`vouch`](Self::vouch), is still trusted.
    pub fn accepts(&self, voucher: &str) -> bool {
        match self {
            Self::Unchecked => true,
            Self::Trusted(keys) => {
                voucher == CONTENT_ADDRESSED || keys.iter().any(|key| key.text() == voucher)
            }
        }
    }
}
