//! Content-addressed store paths (Nix, `makeFixedOutputPath` in `src/libstore/store-api.cc`).

use sha2::{Digest, Sha256};

use crate::closure::hash;
use crate::closure::name::{HASH_DIGITS, StoreDir};

/// Prefix of a `CA` value that contains the hash of a NAR.
const RECURSIVE: &str = "fixed:r:";

/// Length in bytes of the hash in a store path.
const PATH_HASH_BYTES: usize = 20;

/// Returns the NAR hash in the value of `CA`; `None` for content addresses of other kinds.
pub(super) fn content_hash(value: &str) -> Option<[u8; 32]> {
    hash::decode(value.strip_prefix(RECURSIVE)?.as_bytes())
}

/// Returns whether `name` is the base name that Nix computes for a path with this NAR hash and these references. The path must
/// not refer to itself.
pub(super) fn has_path(
    name: &[u8],
    nar_hash: &[u8; 32],
    references: &[Box<[u8]>],
    store_dir: StoreDir<'_>,
) -> bool {
    let Some((digits, rest)) = name.split_at_checked(HASH_DIGITS) else {
        return false;
    };
    let mut text = b"source".to_vec();
    for reference in references {
        text.push(b':');
        store_dir.push_path(reference, &mut text);
    }
    let hex: String = nar_hash.iter().map(|byte| format!("{byte:02x}")).collect();
    text.extend(format!(":sha256:{hex}:").bytes());
    text.extend_from_slice(store_dir.as_bytes());
    text.push(b':');
    text.extend_from_slice(rest.strip_prefix(b"-").unwrap_or(rest));
    hash::encode(&folded(&Sha256::digest(&text))).as_bytes() == digits
}

/// Compresses a hash to the length of a store path's hash by XOR (Nix, `compressHash`).
fn folded(hash: &[u8]) -> [u8; PATH_HASH_BYTES] {
    let mut short = [0; PATH_HASH_BYTES];
    for (at, byte) in hash.iter().enumerate() {
        short[at % PATH_HASH_BYTES] ^= byte;
    }
    short
}
