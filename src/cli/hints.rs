//! Advice that is added to errors. Errors of the library do not mention command-line options; the hints here do.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::closure::{ClosureError, ClosureFile, Fault, RootFault};
use crate::device::fuse::FuseError;
use crate::erofs::layout::LayoutError;
use crate::image::{ImageError, ReadError};
use crate::server::{DisksError, ServeError, SocketError};

/// Advice in parentheses after an error, or nothing.
pub struct Hint(Option<String>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

pub fn closure(error: &ClosureError) -> Hint {
    Hint(closure_advice(error))
}

pub fn image(error: &ImageError) -> Hint {
    Hint(match error {
        ImageError::Closure(error) => closure_advice(error),
        ImageError::Plan(error) => read_advice(error),
        _ => None,
    })
}

pub fn read(error: &ReadError) -> Hint {
    Hint(read_advice(error))
}

/// The option that helps with an error.
pub fn serve(error: &ServeError) -> &'static str {
    match error {
        ServeError::Fuse(FuseError::NoDevice { .. }) => ", or use --vhost-user instead",
        ServeError::Socket(SocketError::NotEncrypted { .. }) => {
            ": encrypt with --nbd-tls DIR, or serve at a loopback address, such as 127.0.0.1, or at unix:PATH"
        }
        ServeError::Disks(DisksError::NoMainDisk) => ": give a closure in addition to --export",
        ServeError::Record { .. } => ": choose another file for --record",
        ServeError::Sandbox(_) => "; --no-sandbox disables confinement",
        _ => "",
    }
}

fn read_advice(error: &ReadError) -> Option<String> {
    match error {
        ReadError::Layout {
            source: LayoutError::NotInANar,
            ..
        } => Some("--tree serves directories with such files".to_owned()),
        _ => None,
    }
}

fn closure_advice(error: &ClosureError) -> Option<String> {
    let text = match error {
        ClosureError::Root { root, fault } => return root_advice(root, fault),
        ClosureError::Read {
            input: ClosureFile::StorePaths(_),
            error,
        } if error.kind() == ErrorKind::IsADirectory => {
            "--store-paths takes a list; name a store path or a link such as ./result without an option, and the output \
             of closureInfo with --closure-info"
        }
        ClosureError::Malformed {
            fault: Fault::OutsideStore { .. },
            ..
        } => "pass --store-dir if the store is elsewhere",
        ClosureError::NotClosureInfo { .. } => {
            "--closure-info takes the directory that closureInfo makes; name a store path or a link such as ./result \
             without an option"
        }
        ClosureError::RelativeStoreDir { .. } => {
            "--store-dir is where the guest has its store; --store-root takes any directory"
        }
        ClosureError::NotValid { .. } => {
            "build it or fetch it with `nix-store --realise`, or pass a list with --store-paths"
        }
        ClosureError::NoDatabase { .. } => {
            "pass --store-root DIR for a store in DIR/nix/store, or a list with --store-paths"
        }
        ClosureError::Database { .. } => "pass a list with --store-paths",
        ClosureError::Unregistered { .. } => {
            "--with-registration needs roots, --closure-info, or --registration with what `nix-store --dump-db` prints \
             of all paths"
        }
        ClosureError::NotClosed { .. } | ClosureError::RegistrationOfTree => {
            "or leave out --with-registration"
        }
        ClosureError::TreeNotADirectory { .. } => {
            "--tree takes the directory that becomes the root of the disk"
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn root_advice(root: &Path, fault: &RootFault) -> Option<String> {
    match fault {
        RootFault::NotInStore { store_dir } => Some(outside_advice(root, store_dir)),
        RootFault::Io(error) if error.kind() == ErrorKind::NotFound => Some(
            "build it first: `nix build` and `nix-build` make a link such as ./result".to_owned(),
        ),
        _ => None,
    }
}

/// Advice for a root that is not in the store: most likely it is the store itself, or in a chroot store.
fn outside_advice(root: &Path, store_dir: &Path) -> String {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    let real = real(root).unwrap_or_else(|_| root.to_owned());
    if root == store_dir || real == store_dir {
        return "for every path of the store pass --all".to_owned();
    }
    match chroot_of(&real, store_dir) {
        Some((chroot, true)) => format!(
            "for every path of that store pass --all --store-root {}",
            chroot.display()
        ),
        Some((chroot, false)) => format!(
            "for a path of a chroot store pass --store-root {} too",
            chroot.display()
        ),
        None => "pass a store path or a link to one; --tree serves any other directory".to_owned(),
    }
}

/// The root of the chroot store that contains `path`, and whether `path` is its store directory itself.
fn chroot_of(path: &Path, store_dir: &Path) -> Option<(PathBuf, bool)> {
    let beneath_root = store_dir.strip_prefix("/").ok()?;
    if beneath_root.as_os_str().is_empty() {
        return None;
    }
    let stores = path.ancestors().filter(|dir| dir.ends_with(beneath_root));
    let store = stores.last()?;
    let chroot = store.ancestors().nth(beneath_root.components().count())?;
    Some((chroot.to_owned(), store == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(root: &str) -> String {
        outside_advice(Path::new(root), Path::new("/nix/store"))
    }

    #[test]
    fn a_root_outside_the_store_gets_matching_advice() {
        assert_eq!(
            advice("/nix/store/"),
            "for every path of the store pass --all"
        );
        assert_eq!(
            advice("/nowhere/root/nix/store"),
            "for every path of that store pass --all --store-root /nowhere/root"
        );
        assert_eq!(
            advice("/nowhere/root/nix/store/abc-x/bin"),
            "for a path of a chroot store pass --store-root /nowhere/root too"
        );
        for root in [
            "/nowhere/etc",
            "/nowhere/snix/store/x",
            "/nowhere/nix/stores",
        ] {
            assert!(advice(root).contains("--tree"), "{root}");
        }
    }

    #[test]
    fn a_store_at_the_root_has_no_chroot() {
        assert!(outside_advice(Path::new("/nowhere/x"), Path::new("/")).contains("--tree"));
    }
}
