//! Writes a binary cache to a directory like `nix copy --to file://`. Needs no Nix, and can write any part incorrectly.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey};
use lazystore::closure::narinfo::{Compression, Narinfo};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::nar;

const STORE: &str = "/nix/store";

/// A cache to be filled.
pub struct Cache {
    pub dir: PathBuf,
    /// Compression of further NARs.
    pub compression: Compression,
    /// Whether there are `.ls` files from now on.
    pub listings: bool,
    /// Signs narinfos from now on.
    pub key: Key,
}

/// A key that signs.
#[derive(Clone)]
pub struct Key {
    name: String,
    key: SigningKey,
}

impl Key {
    /// The key of this name and number, always the same.
    pub fn new(name: &str, number: u8) -> Self {
        let key = SigningKey::from_bytes(&[number; 32]);
        let name = name.to_owned();
        Self { name, key }
    }

    /// What `--trusted-public-key` takes.
    pub fn public(&self) -> String {
        let key = self.key.verifying_key();
        format!("{}:{}", self.name, base64(key.as_bytes()))
    }

    /// The value of `Sig` for a text.
    pub fn sign(&self, text: &[u8]) -> String {
        let signature = self.key.sign(text);
        format!("{}:{}", self.name, base64(&signature.to_bytes()))
    }
}

/// A store path of a cache.
#[derive(Clone)]
pub struct Added {
    /// Its base name.
    pub name: String,
    pub nar: Vec<u8>,
    pub listing: Value,
    pub references: Vec<String>,
}

impl Added {
    /// The logical store path.
    pub fn path(&self) -> String {
        format!("{STORE}/{}", self.name)
    }

    /// The SHA-256 of its NAR, in hexadecimal.
    pub fn nar_hash(&self) -> String {
        let hash = Sha256::digest(&self.nar);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The digits before its name, of which files of the cache have theirs.
    pub fn hash(&self) -> &str {
        &self.name[..32]
    }
}

/// The base name that stands for `name`: digits that depend on it, and it.
pub fn store_name(name: &str) -> String {
    const DIGITS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let hash = Sha256::digest(name);
    let digit = |byte: &u8| char::from(DIGITS[usize::from(byte % 32)]);
    let digits: String = hash.iter().map(digit).collect();
    format!("{digits}-{name}")
}

impl Cache {
    /// An empty cache in `dir`, which is made.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("nar")).unwrap();
        let info = format!("StoreDir: {STORE}\nWantMassQuery: 1\nPriority: 40\n");
        fs::write(dir.join("nix-cache-info"), info).unwrap();
        Self {
            dir: dir.to_owned(),
            compression: Compression::Xz,
            listings: true,
            key: Key::new("test-1", 7),
        }
    }

    /// Adds the tree at `path` under `name`, with references to store paths that were added before, or to itself.
    pub fn add(&self, name: &str, path: &Path, references: &[&str]) -> Added {
        let (nar, listing) = nar::with_listing(path);
        let added = Added {
            name: store_name(name),
            nar,
            listing,
            references: references.iter().map(|name| store_name(name)).collect(),
        };
        self.put(&added);
        added
    }

    /// Writes the three files of a store path.
    pub fn put(&self, added: &Added) {
        let url = self.put_nar(added, &added.nar);
        let narinfo = self.narinfo(added, &url, self.compression);
        self.put_narinfo(added, &narinfo);
        if self.listings {
            self.put_listing(added, &added.listing);
        }
    }

    /// Writes a NAR, perhaps another one than is signed; returns its URL.
    pub fn put_nar(&self, added: &Added, nar: &[u8]) -> String {
        let url = format!("nar/{}.nar", added.hash());
        let file = File::create(self.dir.join(&url)).unwrap();
        compress(self.compression, nar, file);
        url
    }

    pub fn put_narinfo(&self, added: &Added, text: &str) {
        fs::write(self.narinfo_file(added), text).unwrap();
    }

    pub fn put_listing(&self, added: &Added, listing: &Value) {
        fs::write(self.listing_file(added), listing.to_string()).unwrap();
    }

    pub fn narinfo_file(&self, added: &Added) -> PathBuf {
        self.dir.join(format!("{}.narinfo", added.hash()))
    }

    pub fn listing_file(&self, added: &Added) -> PathBuf {
        self.dir.join(format!("{}.ls", added.hash()))
    }

    pub fn nar_file(&self, added: &Added) -> PathBuf {
        self.dir.join(format!("nar/{}.nar", added.hash()))
    }

    /// The text of a narinfo, signed.
    pub fn narinfo(&self, added: &Added, url: &str, compression: Compression) -> String {
        let hash = added.nar_hash();
        let text = format!(
            "StorePath: {}\nURL: {url}\nCompression: {}\nNarHash: sha256:{hash}\nNarSize: {}\nReferences: {}\n",
            added.path(),
            compression_name(compression),
            added.nar.len(),
            added.references.join(" "),
        );
        let narinfo = Narinfo::parse(text.as_bytes(), added.name.as_bytes(), STORE.as_bytes());
        let fingerprint = narinfo.unwrap().fingerprint(STORE.as_bytes());
        format!("{text}Sig: {}\n", self.key.sign(&fingerprint))
    }
}

fn compression_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Xz => "xz",
        Compression::Zstd => "zstd",
        Compression::Brotli => "br",
        Compression::Bzip2 => "bzip2",
        Compression::Gzip => "gzip",
    }
}

/// Writes `bytes`, compressed, to `out`.
pub fn compress(compression: Compression, bytes: &[u8], mut out: impl Write) {
    match compression {
        Compression::None => out.write_all(bytes).unwrap(),
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(out, 1);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Zstd => zstd::stream::copy_encode(bytes, out, 3).unwrap(),
        Compression::Brotli => stored_brotli(bytes, out),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(out, bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap();
        }
    }
}

/// A brotli stream that stores `bytes` as they are (RFC 7932, 9.2).
fn stored_brotli(bytes: &[u8], mut out: impl Write) {
    // One bit: a window of 2^16.
    let mut window = 1;
    for block in bytes.chunks(1 << 16) {
        // A block that is not the last (1 bit), 4 nibbles of length (2 bits), the length less one (16 bits), not
        // compressed (1 bit), and padding up to a byte.
        let length = u32::try_from(block.len() - 1).unwrap();
        let header = (length << 3 | 1 << 19) << window;
        out.write_all(&header.to_le_bytes()[..3]).unwrap();
        out.write_all(block).unwrap();
        window = 0;
    }
    // The last block, empty.
    out.write_all(&[0b11 << window]).unwrap();
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three
            .iter()
            .fold(0, |number, byte| number << 8 | usize::from(*byte));
        let number = number << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[number >> (18 - 6 * place) & 63];
            text.push(if place > three.len() {
                '='
            } else {
                digit.into()
            });
        }
    }
    text
}
