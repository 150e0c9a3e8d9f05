//! Store paths that follow from their contents (Nix, `makeFixedOutputPath` in `src/libstore/store-api.cc`).

use sha2::{Digest, Sha256};

use crate::closure::hash;
use crate::closure::name::{HASH_DIGITS, StoreDir};

/// What `CA` begins with for the hash of a NAR.
const RECURSIVE: &str = "fixed:r:";

/// How many bytes of a hash a store path has.
const PATH_HASH_BYTES: usize = 20;

/// The hash of a NAR that the value of `CA` has; `None` for content addresses of other kinds.
pub(super) fn content_hash(value: &str) -> Option<[u8; 32]> {
    hash::decode(value.strip_prefix(RECURSIVE)?.as_bytes())
}

/// Whether the base name `name` is that of the store path that has a NAR with this hash and these references, none of
/// them itself.
pub(super) fn leads_to(
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

/// The hash as short as in a store path.
fn folded(hash: &[u8]) -> [u8; PATH_HASH_BYTES] {
    let mut short = [0; PATH_HASH_BYTES];
    for (at, byte) in hash.iter().enumerate() {
        short[at % PATH_HASH_BYTES] ^= byte;
    }
    short
}
