//! Resolves roots as users name them (store paths, files in them, symlinks such as `result` and profiles) to store
//! paths.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::StoreLocation;
use super::error::{ClosureError, RootFault};
use super::name::StoreDir;

/// Maximum number of symlinks followed in one path, as in Linux (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Returns the base names of the store paths that `roots` resolve to. The store paths may not exist.
///
/// # Errors
/// A root does not resolve to a store path, or `location` has a relative store directory.
pub fn root_names(
    roots: &[PathBuf],
    location: &StoreLocation,
) -> Result<Vec<Box<[u8]>>, ClosureError> {
    super::check_location(location)?;
    let names = roots.iter().map(|root| store_path(root, location));
    names.collect()
}

/// Returns the base name of the store path that `root` resolves to.
///
/// Symlinks are followed one by one until the first store path; that path itself is not accessed. A path that starts
/// with the logical store directory is a store path even if the store is physically elsewhere. In a chroot store,
/// absolute symlink targets are resolved relative to the chroot.
pub(super) fn store_path(root: &Path, location: &StoreLocation) -> Result<Box<[u8]>, ClosureError> {
    let unresolved = |fault| ClosureError::Root {
        root: root.into(),
        fault,
    };
    let absolute = std::path::absolute(root).map_err(|error| unresolved(error.into()))?;
    let name = Resolver::new(location).follow(&absolute);
    let name = name.map_err(unresolved)?;
    // `name` is one path component. name_of() also rejects names that are too long.
    let store_dir = StoreDir::new(location.store_dir.as_os_str().as_bytes());
    let path = store_dir.path_of(&name);
    store_dir
        .name_of(&path)
        .map_err(|fault| unresolved(RootFault::Name(fault)))?;
    Ok(name)
}

struct Resolver<'a> {
    location: &'a StoreLocation,
    /// The store directory on the host, as configured.
    given: PathBuf,
    /// The store directory on the host, with symlinks resolved.
    physical: PathBuf,
    /// The root of the chroot store, with symlinks resolved.
    chroot: Option<PathBuf>,
}

impl<'a> Resolver<'a> {
    fn new(location: &'a StoreLocation) -> Self {
        let real = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let physical = location.physical_dir();
        Self {
            location,
            given: std::path::absolute(&physical).unwrap_or_default(),
            physical: real(&physical),
            chroot: location.store_root.as_deref().map(real),
        }
    }

    fn follow(&self, path: &Path) -> Result<Box<[u8]>, RootFault> {
        let mut at = PathBuf::from("/");
        let mut rest = components(path);
        let mut links = 0;
        while let Some(component) = rest.pop() {
            if component == Path::new("..") {
                at.pop();
                continue;
            }
            if at == self.location.store_dir || at == self.given || at == self.physical {
                return Ok(component.as_os_str().as_bytes().into());
            }
            at.push(&component);
            if self.location.store_dir.starts_with(&at) || at == self.given {
                // Components of the store directory are compared by name, so do not follow a symlink here.
                continue;
            }
            let Some(target) = link_target(&at)? else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(RootFault::Loop);
            }
            at.pop();
            if target.is_absolute() {
                at = self.root_of(&at, &target);
            }
            rest.extend(components(&target));
        }
        Err(RootFault::NotInStore {
            store_dir: self.location.store_dir.clone(),
        })
    }

    /// Returns the directory that the absolute `target` of a symlink in `dir` is relative to.
    fn root_of(&self, dir: &Path, target: &Path) -> PathBuf {
        match &self.chroot {
            Some(chroot) if dir.starts_with(chroot) && !target.starts_with(chroot) => {
                chroot.clone()
            }
            _ => PathBuf::from("/"),
        }
    }
}

/// Returns the components of `path` in reverse order, for use as a stack.
fn components(path: &Path) -> Vec<PathBuf> {
    let kept = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut components: Vec<_> = kept.collect();
    components.reverse();
    components
}

/// Returns the target of the symlink `path`; `None` if it is not a symlink.
fn link_target(path: &Path) -> io::Result<Option<PathBuf>> {
    match path.read_link() {
        Ok(target) => Ok(Some(target)),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const NAME: &str = "00000000000000000000000000000000-hello";

    /// Returns a chroot store in DIR/root, and links to it.
    fn fixture() -> (tempfile::TempDir, StoreLocation) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("nix/store").join(NAME).join("bin")).unwrap();
        fs::create_dir_all(root.join("nix/var/nix/profiles")).unwrap();
        let profiles = root.join("nix/var/nix/profiles");
        symlink("system-1-link", profiles.join("system")).unwrap();
        symlink(format!("/nix/store/{NAME}"), profiles.join("system-1-link")).unwrap();
        symlink("/nix/var/nix/profiles/system", root.join("current")).unwrap();
        symlink(root.join("current"), dir.path().join("outside")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        symlink("root/nix", dir.path().join("nix")).unwrap();
        let location = StoreLocation {
            store_root: Some(root),
            ..StoreLocation::default()
        };
        (dir, location)
    }

    #[test]
    fn all_kinds_of_roots_resolve() {
        let (dir, location) = fixture();
        let inside = format!("nix/store/{NAME}");
        for root in [
            inside.clone(),
            format!("{inside}/bin/../bin/nothing"),
            format!("root/{inside}"),
            "root/nix/var/nix/profiles/system".to_owned(),
            "root/nix/../current".to_owned(),
            "outside/sw/bin".to_owned(),
        ] {
            let name = store_path(&dir.path().join(&root), &location).unwrap();
            assert_eq!(&*name, NAME.as_bytes(), "{root}");
        }
        // The store path itself is not accessed and may not exist.
        for root in [
            "/nix/store/gone",
            "/nix/store/gone/bin/x",
            "/nix//store/./gone/",
        ] {
            assert_eq!(&*store_path(Path::new(root), &location).unwrap(), b"gone");
        }
    }

    #[test]
    fn a_store_directory_may_be_a_symlink() {
        let (dir, mut location) = fixture();
        let other = dir.path().join("other");
        fs::create_dir_all(other.join("nix")).unwrap();
        symlink(location.physical_dir(), other.join("nix/store")).unwrap();
        symlink(
            other.join("nix/store").join(NAME),
            dir.path().join("result"),
        )
        .unwrap();
        location.store_root = Some(other);
        let name = store_path(&dir.path().join("result"), &location).unwrap();
        assert_eq!(&*name, NAME.as_bytes());
    }

    #[test]
    fn other_paths_are_refused() {
        let (dir, location) = fixture();
        let message = |root: &Path| store_path(root, &location).unwrap_err().to_string();
        let path = |name: &str| dir.path().join(name);
        let shown = path("root/nix").display().to_string();
        assert_eq!(
            message(&path("root/nix")),
            format!("{shown} is not in the store /nix/store")
        );
        assert!(message(Path::new("/nix/store")).contains("is not in the store"));
        assert!(message(&path("absent/x")).ends_with("No such file or directory (os error 2)"));
        assert!(message(&path("loop")).ends_with("it is a loop of symlinks"));
    }
}
