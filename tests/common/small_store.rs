//! A store that a test creates, breaks and repairs, and its disk in the intact state.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::erofs::layout::space::Region;
use lazystore::erofs::volume::Place;
use lazystore::image::{Image, ImageOptions};
use tempfile::TempDir;

use super::nar;
use super::process::wait_for;

/// Block size of EROFS.
const BLOCK: u64 = 4096;

/// A chroot store with lists like those of closureInfo.
pub struct SmallStore {
    dir: TempDir,
    names: Vec<String>,
}

/// A file of the store, and where it is on the disk.
#[derive(Debug, Clone)]
pub struct FileOnDisk {
    /// Path below the store directory.
    pub path: String,
    /// Its byte range on the disk, without padding.
    pub range: Range<u64>,
    pub content: Vec<u8>,
}

impl SmallStore {
    /// A store with these paths, each of which has the files of [`DIRS`].
    pub fn new(names: &[&str]) -> Self {
        let store = Self {
            dir: tempfile::tempdir().unwrap(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        fs::create_dir_all(store.store()).unwrap();
        for (seed, name) in names.iter().enumerate() {
            fill(&store.store().join(name), seed, &DIRS);
        }
        store.register(&BTreeMap::new());
        store
    }

    /// A store with `count` paths, each of which is one small file.
    pub fn of_small_paths(count: usize) -> Self {
        let store = Self {
            dir: tempfile::tempdir().unwrap(),
            names: (0..count)
                .map(|number| format!("{number:032}-path"))
                .collect(),
        };
        fs::create_dir_all(store.store()).unwrap();
        for name in &store.names {
            fs::write(store.store().join(name), name).unwrap();
        }
        store.register(&BTreeMap::new());
        store
    }

    /// Writes the lists. `sizes` replaces NAR sizes.
    pub fn register(&self, sizes: &BTreeMap<&str, u64>) {
        let names: Vec<_> = self.names.iter().map(String::as_str).collect();
        self.write_lists(self.root(), &names, sizes);
    }

    /// Writes the lists of some paths into a new directory, and returns it.
    pub fn part(&self, dir: &str, names: &[&str]) -> PathBuf {
        let dir = self.root().join(dir);
        fs::create_dir(&dir).unwrap();
        self.write_lists(&dir, names, &BTreeMap::new());
        dir
    }

    fn write_lists(&self, dir: &Path, names: &[&str], sizes: &BTreeMap<&str, u64>) {
        let (mut list, mut registration) = (String::new(), String::new());
        for name in names {
            let size = nar::size_bytes(&self.store().join(name));
            let size = sizes.get(name).copied().unwrap_or(size);
            list += &format!("/nix/store/{name}\n");
            let hash = "0".repeat(64);
            registration += &format!("/nix/store/{name}\nsha256:{hash}\n{size}\n\n0\n");
        }
        fs::write(dir.join("store-paths"), list).unwrap();
        fs::write(dir.join("registration"), registration).unwrap();
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn store(&self) -> PathBuf {
        self.root().join("nix/store")
    }

    /// Waits until no later change can have the same ctime as a path. Only then are plans kept.
    pub fn settle(&self) {
        wait_for("an old store", || {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let limit = now.unwrap() - Duration::from_secs(4);
            let mut paths = fs::read_dir(self.store()).unwrap();
            let is_old = |path: &Path| {
                let ctime = fs::symlink_metadata(path).unwrap().ctime();
                u64::try_from(ctime).unwrap() < limit.as_secs()
            };
            paths
                .all(|path| is_old(&path.unwrap().path()))
                .then_some(())
        });
    }

    /// The options of `serve` for it.
    pub fn args(&self) -> Vec<String> {
        let root = self.root().to_str().unwrap().to_owned();
        let closure_info = ["--closure-info".to_owned(), root.clone()];
        closure_info
            .into_iter()
            .chain(["--store-root".to_owned(), root])
            .collect()
    }

    /// Its image.
    pub fn image(&self) -> Image {
        self.image_of(self.root())
    }

    /// The image of the paths in the lists in `dir`.
    pub fn image_of(&self, dir: &Path) -> Image {
        let location = StoreLocation {
            store_root: Some(self.root().to_owned()),
            ..StoreLocation::default()
        };
        let source = Source::ClosureInfo(dir.to_owned());
        let closure = Closure::load(&source, &location).unwrap();
        Image::new(&closure, &ImageOptions::default()).unwrap()
    }

    /// Every file that has bytes on the disk, including small files, whose bytes follow their inodes.
    pub fn files(&self, image: &Image) -> Vec<FileOnDisk> {
        let regions = image.space().regions().iter();
        regions
            .flat_map(|region| self.files_of(image, region))
            .collect()
    }

    /// Those files of one path.
    pub fn files_of(&self, image: &Image, region: &Region) -> Vec<FileOnDisk> {
        let parts = [&region.meta, &region.data];
        parts
            .into_iter()
            .flat_map(|blocks| files_in(image, blocks, &self.store()))
            .collect()
    }
}

/// The files of `store` that have bytes in `blocks` of `image`.
pub fn files_in(image: &Image, blocks: &Range<u32>, store: &Path) -> Vec<FileOnDisk> {
    let (mut at, end) = (
        BLOCK * u64::from(blocks.start),
        BLOCK * u64::from(blocks.end),
    );
    let mut files = Vec::new();
    while at < end {
        let spot = image.locate(at).unwrap();
        at = spot.range.end;
        if let Place::Data(file) | Place::InlineData(file) = spot.place {
            let path = String::from_utf8(file.path).unwrap();
            files.push(FileOnDisk {
                content: fs::read(store.join(&path)).unwrap(),
                range: spot.range,
                path,
            });
        }
    }
    files
}

/// Directories of a path, and the sizes of the files in them.
const DIRS: [(&str, &[usize]); 3] = [
    ("lib", &[900, 5000, 40_000, 300_000]),
    ("lib/deep", &[4096, 70_001]),
    ("share", &[17]),
];

/// Creates `dirs` with files of these sizes. Their content depends on `seed`.
pub fn fill(path: &Path, seed: usize, dirs: &[(&str, &[usize])]) {
    for (dir, lens) in dirs {
        let dir = path.join(dir);
        fs::create_dir_all(&dir).unwrap();
        for len in *lens {
            let content: Vec<u8> = (0..*len)
                .map(|i| u8::try_from((i * 31 + seed * 101 + len) % 251).unwrap())
                .collect();
            fs::write(dir.join(format!("file{len}")), content).unwrap();
        }
    }
}
