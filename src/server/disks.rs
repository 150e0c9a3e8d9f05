//! The disks of a server: the main disk, for clients that do not choose by name, and others that NBD clients choose.
//!
//! A process is confined before its client chooses, so it can read the paths of all disks.

use std::sync::Arc;

use crate::device::nbd::{Export, ExportName, Exports, ExportsError};
use crate::image::{Fingerprint, Image};
use crate::source::RemoteTree;

/// Why one server cannot serve these disks.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// Their names or descriptions cannot be exported.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// They are not closures of one store on this host. Processes can read only one store directory.
    #[error(
        "several disks can be served by one server only if all of them are closures of the same store on this host"
    )]
    DifferentStores,
    /// A main disk is needed, because only NBD clients can choose by name.
    #[error(
        "only NBD clients can choose one of several disks: vhost-user sockets, the mounted file, recordings and reports \
         need a main disk"
    )]
    NoMainDisk,
}

/// The disks of a server; at least one.
#[derive(Debug, Clone)]
pub struct Disks {
    exports: Exports,
    /// Number of distinct paths on all disks.
    path_count: usize,
}

impl Disks {
    /// A `main` disk and others with names.
    ///
    /// # Errors
    /// There is no disk, two have the same name, or they are not in the same store.
    pub fn new(
        main: Option<Image>,
        named: impl IntoIterator<Item = (ExportName, Image)>,
    ) -> Result<Self, DisksError> {
        let has_main = main.is_some();
        let main = main.map(|image| (ExportName::MAIN, image));
        let all = main.into_iter().chain(named);
        let all = all.map(|(name, image)| export(name, image));
        let exports = Exports::new(all.collect())?;
        check_together(&exports)?;
        let exports = match has_main {
            true => exports,
            false => exports.without_default(),
        };
        let path_count = distinct_paths(&exports, region_names).len();
        Ok(Self {
            exports,
            path_count,
        })
    }

    /// All disks, for NBD.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.exports.all().iter().map(|export| &*export.image)
    }

    /// The disk for clients that do not choose by name.
    pub(super) fn main(&self) -> Result<&Arc<Image>, DisksError> {
        let main = self.exports.default_export();
        main.map(|export| &export.image)
            .ok_or(DisksError::NoMainDisk)
    }

    /// The first disk. For properties that are the same for all disks, such as the store.
    pub(super) fn first(&self) -> &Image {
        &self.exports.all()[0].image
    }

    /// Whether the disk is a directory tree. There is only one disk then.
    pub(super) fn is_tree(&self) -> bool {
        self.first().is_tree()
    }

    /// The source of paths that are not on this host, if any. There is only one disk then.
    pub(super) fn remote(&self) -> Option<&RemoteTree> {
        self.first().remote()
    }

    /// All disks if there are several. Empty if there is only one, whose name is of no interest.
    pub fn exports_if_several(&self) -> &[Export] {
        match self.exports.all() {
            [_] => &[],
            several => several,
        }
    }

    /// Fingerprint of the main disk.
    pub fn main_fingerprint(&self) -> Option<&Fingerprint> {
        self.main().ok()?.fingerprint()
    }

    /// Number of distinct paths on all disks.
    pub(super) fn path_count(&self) -> usize {
        self.path_count
    }

    /// The names of all paths, sorted.
    pub(super) fn paths(&self) -> Vec<&[u8]> {
        distinct_paths(&self.exports, region_names)
    }

    /// The names of the paths that are read from the host's store directory, sorted.
    pub(super) fn host_paths(&self) -> Vec<&[u8]> {
        distinct_paths(&self.exports, Image::host_paths)
    }
}

fn export(name: ExportName, image: Image) -> Export {
    let kind = match image.is_tree() {
        true => "a directory tree, EROFS",
        false => "a Nix store, EROFS",
    };
    let fingerprint = image.fingerprint().map(|found| format!(", {found}"));
    Export {
        name,
        description: format!("{kind}{}", fingerprint.unwrap_or_default()),
        image: Arc::new(image),
    }
}

fn check_together(exports: &Exports) -> Result<(), DisksError> {
    let all = exports.all();
    let fits = |export: &Export| {
        let image = &export.image;
        let is_of_host = !image.is_tree() && image.remote().is_none();
        is_of_host && image.store_path() == all[0].image.store_path()
    };
    match all.len() == 1 || all.iter().all(fits) {
        true => Ok(()),
        false => Err(DisksError::DifferentStores),
    }
}

fn region_names(image: &Image) -> impl Iterator<Item = &[u8]> {
    image.space().regions().iter().map(|region| &*region.name)
}

/// The names of all disks' paths, sorted and without duplicates.
fn distinct_paths<'e, N: Iterator<Item = &'e [u8]>>(
    exports: &'e Exports,
    names: impl Fn(&'e Image) -> N,
) -> Vec<&'e [u8]> {
    let all = exports.all().iter();
    let mut all: Vec<_> = all.flat_map(|export| names(&export.image)).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::closure::{Closure, Contents, StorePath};
    use crate::image::ImageOptions;
    use crate::image::testing::tree_image;

    fn store(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    }

    /// The disk of some paths of the store `dir`.
    fn image(dir: &Path, names: &[&str]) -> Image {
        let path = |name: &&str| StorePath {
            name: name.as_bytes().into(),
            nar_size: None,
            nar_hash: None,
        };
        let closure = Closure {
            dir: dir.to_owned(),
            store_dir: "/nix/store".into(),
            contents: Contents::StorePaths(names.iter().map(path).collect()),
        };
        Image::new(&closure, &ImageOptions::default()).unwrap()
    }

    fn named(name: &str, image: Image) -> (ExportName, Image) {
        (name.parse().unwrap(), image)
    }

    #[test]
    fn a_path_on_several_disks_is_counted_once() {
        let dir = store(&["a", "b", "c", "d"]);
        let web = named("web", image(dir.path(), &["a", "c"]));
        let disks = Disks::new(Some(image(dir.path(), &["b", "c"])), [web]).unwrap();
        assert_eq!(disks.paths(), [b"a", b"b", b"c"]);
        assert_eq!(disks.host_paths(), [b"a", b"b", b"c"]);
        assert_eq!(disks.path_count(), 3);
        let names: Vec<_> = disks
            .exports_if_several()
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["nix-store", "web"]);
    }

    #[test]
    fn the_main_disk_is_optional() {
        let dir = store(&["a", "b"]);
        let disk = |names| image(dir.path(), names);
        let one = Disks::new(Some(disk(&["a"])), []).unwrap();
        assert_eq!(one.main_fingerprint(), disk(&["a"]).fingerprint());
        assert!(one.exports_if_several().is_empty());
        let none = Disks::new(None, [named("b", disk(&["b"]))]).unwrap();
        assert!(matches!(none.main(), Err(DisksError::NoMainDisk)));
        assert_eq!(none.main_fingerprint(), None);
    }

    #[test]
    fn disks_of_one_server_have_different_names_and_one_store() {
        let (here, there) = (store(&["a"]), store(&["a"]));
        let disk = |dir: &tempfile::TempDir| image(dir.path(), &["a"]);
        let tree = || tree_image(here.path());
        for (main, other) in [
            (disk(&here), disk(&there)),
            (tree(), disk(&here)),
            (disk(&here), tree()),
        ] {
            let error = Disks::new(Some(main), [named("b", other)]).unwrap_err();
            assert!(matches!(error, DisksError::DifferentStores), "{error}");
        }
        let same = Disks::new(Some(disk(&here)), [named("nix-store", disk(&here))]);
        assert!(matches!(same.unwrap_err(), DisksError::Exports(_)));
        assert!(Disks::new(None, []).is_err());
    }
}
