//! Malicious and broken caches over HTTP: reading them is an error, and never gives another tree.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use lazystore::closure::narinfo::{Compression, Narinfo, NarinfoError, PublicKey, Untrusted};
use lazystore::source::decompress::decompress;
use lazystore::source::nar::{ListingError, NarError, NarTree};
use sha2::{Digest, Sha256};

use super::{STORE, write_tree};
use crate::common::cache::{Added, Cache, Key, compress};
use crate::common::http::{Fault, HttpServer};
use crate::common::memory_dir;

/// A cache with one path, served.
struct Served {
    _dir: tempfile::TempDir,
    cache: Cache,
    added: Added,
    server: HttpServer,
}

impl Served {
    fn new(compression: Compression) -> Self {
        let dir = memory_dir();
        let tree = dir.path().join("tree");
        write_tree(&tree);
        let mut cache = Cache::new(&dir.path().join("cache"));
        cache.compression = compression;
        let added = cache.add("tool", &tree, &[]);
        let server = HttpServer::start(&cache.dir);
        Self {
            _dir: dir,
            cache,
            added,
            server,
        }
    }

    /// Returns the status, and the body as far as it is received.
    fn get(&self, path: &str) -> io::Result<(u16, Box<dyn Read + Send>)> {
        let mut stream = TcpStream::connect(self.server.address())?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )?;
        let mut reader = BufReader::new(stream);
        let (mut status, mut length) = (String::new(), u64::MAX);
        reader.read_line(&mut status)?;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? <= 2 {
                break;
            }
            if let Some(value) = header.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Ok((status.unwrap_or(0), Box::new(reader.take(length))))
    }

    /// Fetches the NAR with the checks of its narinfo. Returns the tree if everything is correct.
    fn nar(&self) -> Result<NarTree, NarError> {
        let (status, body) = self.get(&format!("/nar/{}.nar", self.added.hash()))?;
        assert_eq!(status, 200);
        let mut reader = Counted {
            inner: decompress(self.cache.compression, body)?,
            hash: Sha256::new(),
            count: 0,
        };
        let size = self.added.nar.len() as u64;
        let tree = NarTree::parse(&mut reader, size);
        assert!(
            reader.count <= size + 1,
            "{} bytes were read of {size}",
            reader.count
        );
        let tree = tree?;
        match reader.hash.finalize() == Sha256::digest(&self.added.nar) {
            true => Ok(tree),
            false => Err(io::Error::other("the hash is another").into()),
        }
    }

    fn narinfo(&self) -> Result<Narinfo, NarinfoError> {
        let path = format!("/{}.narinfo", self.added.hash());
        let mut text = Vec::new();
        drop(self.get(&path).unwrap().1.read_to_end(&mut text));
        Narinfo::parse(&text, self.added.name.as_bytes(), STORE)
    }

    fn listing(&self) -> Result<NarTree, ListingError> {
        let path = format!("/{}.ls", self.added.hash());
        let mut text = Vec::new();
        drop(self.get(&path).unwrap().1.read_to_end(&mut text));
        NarTree::from_listing(&text, self.added.nar.len() as u64)
    }
}

/// Hashes and counts what is read, like a fetcher.
struct Counted {
    inner: Box<dyn Read + Send>,
    hash: Sha256,
    count: u64,
}

impl Read for Counted {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(to)?;
        self.hash.update(&to[..len]);
        self.count += len as u64;
        Ok(len)
    }
}

const COMPRESSED: [Compression; 4] = [
    Compression::Xz,
    Compression::Zstd,
    Compression::Brotli,
    Compression::Bzip2,
];

#[test]
fn nars_and_listings_are_read_from_a_server() {
    for compression in COMPRESSED.into_iter().chain([Compression::None]) {
        let served = Served::new(compression);
        let whole = NarTree::parse(&served.added.nar[..], served.added.nar.len() as u64).unwrap();
        assert!(served.nar().unwrap() == whole);
        assert!(served.listing().unwrap() == whole);
        let slow = Fault::Slow(50_000, Duration::from_millis(1));
        served.server.fault("nar/", slow);
        assert!(served.nar().unwrap() == whole);
        assert!(served.narinfo().is_ok());
        assert_eq!(served.get("/absent").unwrap().0, 404);
        let requests = served.server.requests();
        assert_eq!(requests.len(), 5);
        assert_eq!(requests[4], "/absent");
    }
}

#[test]
fn bodies_that_end_early_or_never_are_errors() {
    for compression in COMPRESSED.into_iter().chain([Compression::None]) {
        let served = Served::new(compression);
        let len = std::fs::metadata(served.cache.nar_file(&served.added))
            .unwrap()
            .len();
        let len = usize::try_from(len).unwrap();
        let faults = [
            Fault::Cut(0),
            Fault::Cut(1),
            Fault::Cut(len / 2),
            Fault::Cut(len - 1),
            Fault::WrongLength(-1),
            Fault::Body(b"<html>not found</html>".to_vec()),
            Fault::Endless,
            Fault::Close,
            Fault::Garbage,
        ];
        for fault in faults {
            served.server.heal();
            let what = format!("{fault:?}");
            served.server.fault("nar/", fault.clone());
            let closed = matches!(fault, Fault::Close | Fault::Garbage);
            match closed {
                true => assert_ne!(
                    served.get("/nar/x").map(|(status, _)| status).unwrap_or(0),
                    200
                ),
                false => assert!(served.nar().is_err(), "{compression:?} {what}"),
            }
        }
        served.server.heal();
        assert!(served.nar().is_ok());
    }
}

/// A gigabyte that compresses to a few kilobytes.
#[test]
fn reading_a_nar_stops_at_its_declared_size() {
    let served = Served::new(Compression::Zstd);
    let mut bomb = Vec::new();
    let zeros = io::repeat(0).take(1 << 30);
    zstd::stream::copy_encode((&served.added.nar[..]).chain(zeros), &mut bomb, 1).unwrap();
    served.server.fault_times("nar/", Fault::Body(bomb), 1);
    let size = served.added.nar.len() as u64;
    assert!(matches!(served.nar(), Err(NarError::Trailing { at }) if at == size));
    // A NAR that declares a large file at its beginning.
    let begin = &served.added.nar[..24];
    let strings: [&[u8]; 4] = [b"(", b"type", b"regular", b"contents"];
    let mut large = begin.to_vec();
    for string in strings {
        large.extend((string.len() as u64).to_le_bytes());
        large.extend_from_slice(string);
        large.resize(large.len().next_multiple_of(8), 0);
    }
    large.extend((1_u64 << 30).to_le_bytes());
    let mut bomb = Vec::new();
    zstd::stream::copy_encode(
        (&large[..]).chain(io::repeat(0).take(1 << 30)),
        &mut bomb,
        1,
    )
    .unwrap();
    served.server.fault_times("nar/", Fault::Body(bomb), 1);
    assert!(matches!(served.nar(), Err(NarError::Tree { .. })));
    assert!(served.nar().is_ok());
}

/// Changes each byte. Either the tree or the hash differs, or the result is no NAR.
#[test]
fn a_nar_with_a_changed_byte_is_an_error() {
    let served = Served::new(Compression::Zstd);
    for at in (0..served.added.nar.len()).step_by(9973).chain(0..400) {
        let mut nar = served.added.nar.clone();
        nar[at] ^= 1;
        let mut body = Vec::new();
        compress(Compression::Zstd, &nar, &mut body);
        served.server.fault_times("nar/", Fault::Body(body), 1);
        assert!(served.nar().is_err(), "byte {at}");
    }
}

#[test]
fn malicious_narinfos_are_refused() {
    let served = Served::new(Compression::Xz);
    let text = std::fs::read_to_string(served.cache.narinfo_file(&served.added)).unwrap();
    let keys = PublicKey::parse_list(&served.cache.key.public()).unwrap();
    let with = |text: &str| {
        served.server.heal();
        served
            .server
            .fault(".narinfo", Fault::Body(text.as_bytes().to_vec()));
        served.narinfo()
    };
    assert!(with(&text).unwrap().verify(STORE, &keys).is_ok());
    for (from, to) in [
        ("NarSize: ", "NarSize: 1"),
        (
            "References: ",
            "References: 6iah9pffqjj0lwgf0b1h32a6536jnw18-x",
        ),
        ("NarHash: sha256:", "NarHash: sha256:0"),
    ] {
        let text = text.replace(from, to);
        let believed = with(&text).map(|narinfo| narinfo.verify(STORE, &keys));
        assert!(!matches!(believed, Ok(Ok(_))), "{to}");
    }
    let unsigned = text.replace("Sig: ", "NoSig: ");
    let verified = with(&unsigned).unwrap().verify(STORE, &keys);
    assert!(matches!(verified, Err(Untrusted::Unsigned { .. })));
    let other = PublicKey::parse_list(&Key::new("test-2", 9).public()).unwrap();
    let verified = with(&text).unwrap().verify(STORE, &other);
    assert!(matches!(verified, Err(Untrusted::UnknownKeys { .. })));
    let tree = served.cache.dir.join("../tree");
    let another = served.cache.add("other", Path::new(&tree), &[]);
    let text = std::fs::read_to_string(served.cache.narinfo_file(&another)).unwrap();
    assert!(matches!(with(&text), Err(NarinfoError::OtherPath { .. })));
    served.server.heal();
    served.server.fault(".narinfo", Fault::Cut(100));
    assert!(served.narinfo().is_err());
}

#[test]
fn malicious_listings_are_refused_or_describe_another_tree() {
    let served = Served::new(Compression::Xz);
    let whole = served.nar().unwrap();
    let listing = served.added.listing.to_string();
    let with = |listing: &str| {
        served.server.heal();
        served
            .server
            .fault(".ls", Fault::Body(listing.as_bytes().to_vec()));
        served.listing()
    };
    assert!(with(&listing).unwrap() == whole);
    for (from, to) in [
        ("\"text\"", "\"..\""),
        ("\"text\"", "\"none\""),
        ("\"size\":50000", "\"size\":500000"),
        ("\"narOffset\":", "\"narOffset\":1"),
        ("\"executable\":true", "\"executable\":false"),
        ("\"version\":1", "\"version\":3"),
    ] {
        let lie = listing.replacen(from, to, 1);
        assert_ne!(lie, listing, "{from}");
        assert!(with(&lie).is_err(), "{to}");
    }
    // A listing that fits the NAR's size can still describe another tree than the NAR.
    for (from, to) in [("\"text\"", "\"texts\""), ("\"bin/tool\"", "\"bin/took\"")] {
        let lie = listing.replacen(from, to, 1);
        assert_ne!(lie, listing, "{from}");
        assert!(with(&lie).unwrap() != whole, "{to}");
    }
    served.server.heal();
    served.server.fault(".ls", Fault::Cut(listing.len() - 1));
    assert!(served.listing().is_err());
}
