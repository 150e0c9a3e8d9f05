//! The disks of a server: the main one, for clients that cannot or do not choose, and others that NBD clients choose by
//! name.
//!
//! Processes are confined before they know what their client chooses, so they get at the paths of all disks.

use std::sync::Arc;

use crate::device::nbd::{Export, ExportName, Exports, ExportsError};
use crate::image::{Fingerprint, Image};
use crate::source::RemoteTree;

/// Why disks cannot be served by one server.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// Their names cannot be told apart.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// Processes get at one directory of this host.
    #[error(
        "several disks can be served by one server only if all of them are closures of the same store on this host"
    )]
    Apart,
    /// Only NBD has names.
    #[error(
        "only NBD clients can choose one of several disks: vhost-user sockets, the mounted file, recordings and reports \
         need a main disk"
    )]
    NoMain,
}

/// The disks of a server; at least one.
#[derive(Debug, Clone)]
pub struct Disks {
    exports: Exports,
    /// Each path once, however many disks have it.
    path_count: usize,
}

impl Disks {
    /// A `main` disk, which needs no name, and others with names.
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
        let path_count = distinct(&exports, region_names).len();
        Ok(Self {
            exports,
            path_count,
        })
    }

    /// All of them, as NBD clients see them.
    pub fn exports(&self) -> &Exports {
        &self.exports
    }

    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.exports.all().iter().map(|export| &*export.image)
    }

    /// The disk for clients that cannot choose.
    pub(super) fn main(&self) -> Result<&Arc<Image>, DisksError> {
        let main = self.exports.default_export();
        main.map(|export| &export.image).ok_or(DisksError::NoMain)
    }

    /// One disk, where it does not matter which: all of them are in the same store.
    pub(super) fn any(&self) -> &Image {
        &self.exports.all()[0].image
    }

    /// Whether there is one disk, a directory tree instead of a closure.
    pub(super) fn is_tree(&self) -> bool {
        self.any().is_tree()
    }

    /// The source of paths that are not on this host, if any: then there is one disk.
    pub(super) fn remote(&self) -> Option<&RemoteTree> {
        self.any().remote()
    }

    /// All disks, if there are several to tell apart; otherwise nothing.
    pub fn told_apart(&self) -> &[Export] {
        match self.exports.all() {
            [_] => &[],
            several => several,
        }
    }

    /// Identity of the main disk.
    pub fn main_fingerprint(&self) -> Option<&Fingerprint> {
        self.main().ok()?.fingerprint()
    }

    /// How many paths there are on all disks together.
    pub(super) fn path_count(&self) -> usize {
        self.path_count
    }

    /// The names of all paths, sorted.
    pub(super) fn paths(&self) -> Vec<&[u8]> {
        distinct(&self.exports, region_names)
    }

    /// The names of the paths that are read from the store directory on the host, sorted.
    pub(super) fn host_paths(&self) -> Vec<&[u8]> {
        distinct(&self.exports, Image::host_paths)
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
        false => Err(DisksError::Apart),
    }
}

fn region_names(image: &Image) -> impl Iterator<Item = &[u8]> {
    image.space().regions().iter().map(|region| &*region.name)
}

/// Several disks may have the same path.
fn distinct<'e, N: Iterator<Item = &'e [u8]>>(
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
    fn a_path_of_several_disks_is_one() {
        let dir = store(&["a", "b", "c", "d"]);
        let web = named("web", image(dir.path(), &["a", "c"]));
        let disks = Disks::new(Some(image(dir.path(), &["b", "c"])), [web]).unwrap();
        assert_eq!(disks.paths(), [b"a", b"b", b"c"]);
        assert_eq!(disks.host_paths(), [b"a", b"b", b"c"]);
        assert_eq!(disks.path_count(), 3);
        let names: Vec<_> = disks
            .told_apart()
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["nix-store", "web"]);
    }

    #[test]
    fn only_the_main_disk_needs_no_name() {
        let dir = store(&["a", "b"]);
        let disk = |names| image(dir.path(), names);
        let one = Disks::new(Some(disk(&["a"])), []).unwrap();
        assert_eq!(one.main_fingerprint(), disk(&["a"]).fingerprint());
        assert!(one.told_apart().is_empty());
        let none = Disks::new(None, [named("b", disk(&["b"]))]).unwrap();
        assert!(matches!(none.main(), Err(DisksError::NoMain)));
        assert_eq!(none.main_fingerprint(), None);
    }

    #[test]
    fn disks_of_one_server_have_names_and_a_store_in_common() {
        let (here, there) = (store(&["a"]), store(&["a"]));
        let disk = |dir: &tempfile::TempDir| image(dir.path(), &["a"]);
        let tree = || tree_image(here.path());
        for (main, other) in [
            (disk(&here), disk(&there)),
            (tree(), disk(&here)),
            (disk(&here), tree()),
        ] {
            let error = Disks::new(Some(main), [named("b", other)]).unwrap_err();
            assert!(matches!(error, DisksError::Apart), "{error}");
        }
        let same = Disks::new(Some(disk(&here)), [named("nix-store", disk(&here))]);
        assert!(matches!(same.unwrap_err(), DisksError::Exports(_)));
        assert!(Disks::new(None, []).is_err());
    }
}
