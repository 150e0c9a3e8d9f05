//! Store paths that exist only in a binary cache, and their disk.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lazystore::closure::{Closure, Contents, StorePath};
use lazystore::erofs::layout::space::Region;
use lazystore::image::{Image, ImageOptions};
use lazystore::source::RemoteTree;
use lazystore::source::remote::protocol::Connection;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::cache::{Added, Cache, Key};
use super::client::{Client, READ_MAX};
use super::server::Server;
use super::small_store::{FileOnDisk, files_in, fill};

/// Block size of EROFS.
const BLOCK: u64 = 4096;

/// Directories of a path, and the sizes of the files in them.
const DIRS: [(&str, &[usize]); 3] = [
    ("bin", &[700, 5000]),
    ("lib/deep", &[0, 4096, 70_001]),
    ("share", &[17, 300_000]),
];

/// Trees, a binary cache with them, an empty chroot store, and an empty cache directory.
pub struct RemoteStore {
    dir: TempDir,
    pub cache: Cache,
    pub paths: Vec<Added>,
}

impl RemoteStore {
    /// A cache with `names`, each of which refers to the next.
    pub fn new(names: &[&str]) -> Self {
        Self::with(names, |_| {})
    }

    /// The same. `setting` can change settings of the empty cache.
    pub fn with(names: &[&str], setting: impl FnOnce(&mut Cache)) -> Self {
        Self::with_files(names, &DIRS, setting)
    }

    /// The same with other directories and file sizes.
    pub fn with_files(
        names: &[&str],
        dirs: &[(&str, &[usize])],
        setting: impl FnOnce(&mut Cache),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::new(&dir.path().join("cache"));
        setting(&mut cache);
        let mut store = Self {
            dir,
            cache,
            paths: Vec::new(),
        };
        for part in ["trees", "root/nix/store"] {
            fs::create_dir_all(store.dir.path().join(part)).unwrap();
        }
        for (seed, name) in names.iter().enumerate() {
            let tree = store.dir.path().join("tree");
            fill(&tree, seed, dirs);
            symlink("../bin/file700", tree.join(dirs[1].0).join("../link")).unwrap();
            let next: Vec<&str> = names.get(seed + 1).copied().into_iter().collect();
            let added = store.cache.add(name, &tree, &next);
            fs::rename(&tree, store.trees().join(&added.name)).unwrap();
            store.paths.push(added);
        }
        store
    }

    /// The trees, by the names of their store paths.
    pub fn trees(&self) -> PathBuf {
        self.dir.path().join("trees")
    }

    pub fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache-dir")
    }

    /// The host's store, which has none of the paths.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The options of `serve` for fetching from `urls`.
    pub fn args(&self, urls: &[&str]) -> Vec<String> {
        let shown = |path: PathBuf| path.to_str().unwrap().to_owned();
        let key: &Key = &self.cache.key;
        let mut args = vec![
            self.paths[0].path(),
            "--store-root".to_owned(),
            shown(self.root()),
            "--cache-dir".to_owned(),
            shown(self.cache_dir()),
            "--trusted-public-key".to_owned(),
            key.public(),
        ];
        for url in urls {
            args.extend(["--from".to_owned(), (*url).to_owned()]);
        }
        args
    }

    /// Starts a server that fetches from `urls`.
    pub fn serve(&self, urls: &[&str], extra: &[&str]) -> Server {
        Server::start_after(&[], &self.args(urls), extra)
    }

    /// The expected disk: that of the same closure with all paths on the host.
    pub fn expected(&self) -> Image {
        let mut paths: Vec<StorePath> = self
            .paths
            .iter()
            .map(|added| StorePath {
                name: added.name.as_bytes().into(),
                nar_size: Some(added.nar.len() as u64),
                nar_hash: Some(Sha256::digest(&added.nar).into()),
            })
            .collect();
        paths.sort_by(|a, b| a.name.cmp(&b.name));
        let closure = Closure {
            dir: self.trees(),
            store_dir: "/nix/store".into(),
            contents: Contents::StorePaths(paths),
        };
        let (control, _) = Connection::pair().unwrap();
        let nothing = RemoteTree::new(
            Vec::new(),
            "/nix/store".into(),
            1,
            control,
            Duration::from_secs(1),
        );
        let options = ImageOptions {
            remote: Some(Arc::new(nothing)),
            ..ImageOptions::default()
        };
        Image::new(&closure, &options).unwrap()
    }

    /// Files of a path that have bytes on the disk.
    pub fn files_of(&self, image: &Image, region: &Region) -> Vec<FileOnDisk> {
        files_in(image, &region.data, &self.trees())
    }
}

/// Used block ranges of the disk: superblock and root, metadata, data.
pub fn used(image: &Image) -> Vec<Range<u64>> {
    let regions = image.space().regions();
    let head = 0..u64::from(regions[0].meta.start) * BLOCK;
    let mut ranges = Vec::from([head]);
    for (index, region) in (0..).zip(regions) {
        let usage = image.usage(index).unwrap();
        for (start, count) in [
            (region.meta.start, usage.meta_blocks),
            (region.data.start, usage.data_blocks),
        ] {
            let start = u64::from(start) * BLOCK;
            ranges.push(start..start + u64::from(count) * BLOCK);
        }
    }
    ranges
}

/// Reads `range` through `client`. Returns an errno if that fails.
pub fn read(client: &mut Client, range: Range<u64>) -> Result<Vec<u8>, i32> {
    let mut bytes = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap().min(READ_MAX);
        bytes.extend(client.read(0, &[(at, len)]).remove(0)?);
        at += len as u64;
    }
    Ok(bytes)
}

/// Asserts that `client` reads the same as `image` has.
pub fn assert_same(client: &mut Client, image: &Image) {
    for range in used(image) {
        let mut expected = vec![0; usize::try_from(range.end - range.start).unwrap()];
        image.read_exact_at(&mut expected, range.start).unwrap();
        let found = read(client, range.clone());
        assert!(
            found.as_ref() == Ok(&expected),
            "{range:?}: {:?}",
            found.err()
        );
    }
}
