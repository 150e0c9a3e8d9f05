//! Who is believed, and what is asked of caches.

use std::sync::Arc;

use crate::closure::narinfo::{Narinfo, NarinfoError, PublicKey, Trust, Untrusted};

/// Vouchers that no key can be called.
const CONTENT_ADDRESSED: &str = "content-addressed";
const UNCHECKED: &str = "unchecked";

/// Which narinfos are believed.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Those that one of these keys signed, and those whose store path follows from their NAR.
    Trusted(Arc<[PublicKey]>),
    /// All.
    Unchecked,
}

/// Why a narinfo is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNarinfo {
    /// It is malformed, or of another path.
    #[error(transparent)]
    Malformed(#[from] NarinfoError),
    /// Nobody vouches for it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
}

impl Keys {
    /// Says why `narinfo`, of `store_dir`, is to be believed, in words that [`accepts`](Self::accepts) knows.
    ///
    /// # Errors
    /// Nobody vouches for it.
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

    /// Whether what was found to be so by `voucher`, what [`vouch`](Self::vouch) said then, is still to be believed.
    pub fn accepts(&self, voucher: &str) -> bool {
        match self {
            Self::Unchecked => true,
            Self::Trusted(keys) => {
                voucher == CONTENT_ADDRESSED || keys.iter().any(|key| key.text() == voucher)
            }
        }
    }
}
