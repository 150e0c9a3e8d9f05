//! Computes a NAR's hash and length during a walk in name order (Nix thesis, figure 5.2).

use sha2::{Digest, Sha256};

/// Hashes the byte stream that `nix-store --dump` would write.
pub(super) struct NarHasher {
    hash: Sha256,
    len_bytes: u64,
}

impl NarHasher {
    pub(super) fn new() -> Self {
        let mut nar = Self {
            hash: Sha256::new(),
            len_bytes: 0,
        };
        nar.string(b"nix-archive-1");
        nar
    }

    /// Begins an entry of a directory; its node follows.
    pub(super) fn begin_entry(&mut self, name: &[u8]) {
        self.strings(&[b"entry", b"(", b"name", name, b"node"]);
    }

    pub(super) fn begin_directory(&mut self) {
        self.strings(&[b"(", b"type", b"directory"]);
    }

    pub(super) fn symlink(&mut self, target: &[u8]) {
        self.strings(&[b"(", b"type", b"symlink", b"target", target]);
    }

    /// Begins a regular file. Its contents and [`NarHasher::end_contents`] must follow.
    pub(super) fn begin_file(&mut self, executable: bool, size_bytes: u64) {
        self.strings(&[b"(", b"type", b"regular"]);
        if executable {
            self.strings(&[b"executable", b""]);
        }
        self.string(b"contents");
        self.bytes(&size_bytes.to_le_bytes());
    }

    pub(super) fn contents(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }

    pub(super) fn end_contents(&mut self) {
        self.pad();
    }

    /// Ends a node or an entry.
    pub(super) fn end(&mut self) {
        self.string(b")");
    }

    /// Returns the hash and length.
    pub(super) fn finish(self) -> ([u8; 32], u64) {
        (self.hash.finalize().into(), self.len_bytes)
    }

    fn strings(&mut self, all: &[&[u8]]) {
        for bytes in all {
            self.string(bytes);
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
        self.pad();
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len_bytes += bytes.len() as u64;
    }

    /// Pads to a multiple of 8 bytes.
    fn pad(&mut self) {
        let missing = usize::try_from(self.len_bytes.next_multiple_of(8) - self.len_bytes);
        self.bytes(&[0; 8][..missing.unwrap_or(0)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_as_nix_hashes_it() {
        // printf abc > f; nix-store --dump f | sha256sum, wc -c (Nix 2.8)
        let mut nar = NarHasher::new();
        nar.begin_file(false, 3);
        nar.contents(b"abc");
        nar.end_contents();
        nar.end();
        let (hash, len) = nar.finish();
        assert_eq!(len, 120);
        assert_eq!(hash[..4], HASH_OF_ABC);
    }

    const HASH_OF_ABC: [u8; 4] = [0x11, 0xa7, 0x1b, 0x47];
}
