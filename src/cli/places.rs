//! Checks that the files and directories named on the command line do not conflict.

use std::fs;
use std::path::{Path, PathBuf};

use super::errors::CliError;

/// A path with the option that named it.
#[derive(Debug, Clone)]
pub struct NamedPath {
    option: &'static str,
    given: PathBuf,
    /// The path with symlinks in its directory resolved, for comparisons.
    real: PathBuf,
}

impl NamedPath {
    pub fn new(option: &'static str, path: &Path) -> Self {
        Self {
            option,
            given: path.to_owned(),
            real: real(path),
        }
    }
}

/// Resolves symlinks in all components but the last, which may not exist.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent(), absolute.file_name()) {
        (Some(dir), Some(name)) => dir
            .canonicalize()
            .map_or(absolute.clone(), |dir| dir.join(name)),
        _ => absolute,
    }
}

/// Checks the files to be created (sockets, recordings) and the mount point `mount`.
///
/// # Errors
/// Two files are the same, the mount would hide one of them, or the mount point is not empty.
pub fn check(files: &[NamedPath], mount: Option<&Path>) -> Result<(), CliError> {
    for (index, place) in files.iter().enumerate() {
        if let Some(other) = files[..index].iter().find(|other| other.real == place.real) {
            return Err(CliError::GivenTwice {
                path: place.given.clone(),
                first: other.option,
                second: place.option,
            });
        }
    }
    let Some(mount) = mount else { return Ok(()) };
    let dir = mount.canonicalize().unwrap_or_else(|_| real(mount));
    match files.iter().find(|place| place.real.starts_with(&dir)) {
        Some(place) => Err(CliError::Hidden {
            path: place.given.clone(),
            option: place.option,
            dir: mount.to_owned(),
        }),
        None => check_empty(mount),
    }
}

/// Checks that `dir` is empty. A FUSE mount left by another server is accepted, since the server replaces it.
fn check_empty(dir: &Path) -> Result<(), CliError> {
    let is_fuse = rustix::fs::statfs(dir).is_ok_and(|stat| stat.f_type == FUSE_SUPER_MAGIC);
    // If the directory cannot be listed, mounting gives a better error.
    let is_empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
    match is_fuse || is_empty {
        true => Ok(()),
        false => Err(CliError::MountNotEmpty {
            dir: dir.to_owned(),
        }),
    }
}

/// linux/magic.h
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(files: &[(&'static str, &Path)], mount: Option<&Path>) -> String {
        let files: Vec<_> = files.iter().map(|(o, p)| NamedPath::new(o, p)).collect();
        check(&files, mount).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn paths_are_compared_with_links_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let (one, other) = (real.join("x.sock"), link.join("./x.sock"));
        let text = message(&[("--record", &one), ("--vhost-user", &other)], None);
        assert!(text.contains("--record and --vhost-user"), "{text}");
        let text = message(&[("--vhost-user", &one), ("--vhost-user", &other)], None);
        assert!(text.contains("twice with --vhost-user"), "{text}");
        assert_eq!(
            message(&[("--record", &one), ("--vhost-user", &link)], None),
            ""
        );
        let text = message(&[("--vhost-user", &other)], Some(&real));
        assert!(text.contains("would be hidden"), "{text}");
    }

    #[test]
    fn a_mount_must_not_hide_files() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(message(&[], Some(dir.path())), "");
        assert_eq!(message(&[], Some(&dir.path().join("absent"))), "");
        fs::write(dir.path().join("file"), "").unwrap();
        let text = message(&[], Some(dir.path()));
        assert!(text.contains("is not empty"), "{text}");
    }
}
