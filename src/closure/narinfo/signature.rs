//! Ed25519 signatures of narinfos and public keys, both written `NAME:BASE64` (Nix, `src/libstore/crypto.cc`).

use ed25519_dalek::VerifyingKey;

use super::error::KeyFault;
use crate::closure::error::shown;
use crate::closure::hash;

/// The key of cache.nixos.org, which Nix trusts by default.
pub const CACHE_NIXOS_ORG: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";

/// A public key that verifies narinfos.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    /// The key as `NAME:BASE64`.
    text: String,
    key: VerifyingKey,
}

impl PublicKey {
    /// Parses `NAME:BASE64`.
    ///
    /// # Errors
    /// It has another form, or is not a point on the curve.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let fault = || KeyFault {
            text: shown(text.as_bytes()),
        };
        let (name, digits) = split(text).ok_or_else(fault)?;
        let bytes = hash::base64(digits).ok_or_else(fault)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| fault())?;
        let (name, text) = (name.to_owned(), text.to_owned());
        Ok(Self { name, text, key })
    }

    /// Parses keys separated by white space, as in `trusted-public-keys` of nix.conf.
    ///
    /// # Errors
    /// One of them is malformed.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, KeyFault> {
        text.split_ascii_whitespace().map(Self::parse).collect()
    }

    /// Returns its name, which signatures refer to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `NAME:BASE64`.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn verifies(&self, text: &[u8], signature: &Signature) -> bool {
        let bytes = ed25519_dalek::Signature::from_bytes(&signature.bytes);
        signature.key == self.name && self.key.verify_strict(text, &bytes).is_ok()
    }
}

/// A parsed signature, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    /// Name of the signing key.
    pub(super) key: String,
    bytes: [u8; 64],
}

impl Signature {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (key, digits) = split(text)?;
        let bytes = hash::base64(digits)?;
        let key = key.to_owned();
        Some(Self { key, bytes })
    }
}

/// Splits `NAME:BASE64`.
fn split(text: &str) -> Option<(&str, &[u8])> {
    let (name, digits) = text.split_once(':')?;
    (!name.is_empty()).then_some((name, digits.as_bytes()))
}
