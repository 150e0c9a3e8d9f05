//! Splitting store paths into the store directory and a base name.

use super::error::{Fault, shown};
use super::hash;

/// The longest file name that Linux and EROFS allow, in bytes.
const NAME_MAX: usize = 255;

/// Number of hash digits at the start of a base name.
pub(crate) const HASH_DIGITS: usize = 32;

/// The longest name that Nix allows after the hash and its dash, in bytes.
const NIX_NAME_MAX: usize = 211;

/// The logical store directory without trailing slashes: the prefix of every store path.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreDir<'a>(&'a [u8]);

impl<'a> StoreDir<'a> {
    /// `dir` may end with slashes.
    pub(super) fn new(dir: &'a [u8]) -> Self {
        let end = dir
            .iter()
            .rposition(|&b| b != b'/')
            .map_or(0, |last| last + 1);
        Self(&dir[..end])
    }

    /// Returns the base name of the store path `path`, or the reason why it is not a store path.
    pub(super) fn name_of<'p>(&self, path: &'p [u8]) -> Result<&'p [u8], Fault> {
        let rest = path
            .strip_prefix(self.0)
            .and_then(|rest| rest.strip_prefix(b"/"));
        let name = match rest {
            None | Some(b"" | b"." | b"..") => return Err(self.outside(path)),
            Some(name) if name.contains(&b'/') => return Err(self.outside(path)),
            Some(name) => name,
        };
        if name.len() > NAME_MAX {
            return Err(Fault::NameTooLong {
                path: shown(path),
                length: name.len(),
            });
        }
        if name.contains(&0) {
            return Err(Fault::Nul { path: shown(path) });
        }
        Ok(name)
    }

    /// Returns the directory without trailing slashes.
    pub(super) fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Returns the store path with base name `name`.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        self.push_path(name, &mut path);
        path
    }

    /// Appends the store path with base name `name` to `text`.
    pub(super) fn push_path(&self, name: &[u8], text: &mut Vec<u8>) {
        text.extend_from_slice(self.0);
        text.push(b'/');
        text.extend_from_slice(name);
    }

    /// Returns the store path with base name `name`, for messages.
    pub(super) fn shown_path(&self, name: &[u8]) -> String {
        format!("{}/{}", shown(self.0), shown(name))
    }

    fn outside(&self, path: &[u8]) -> Fault {
        let store_dir = if self.0.is_empty() { b"/" } else { self.0 };
        // store_paths::read strips one trailing slash, so "/" arrives here as "".
        let path = if path.is_empty() { b"/" } else { path };
        Fault::OutsideStore {
            path: shown(path),
            store_dir: shown(store_dir),
        }
    }
}

/// Returns whether Nix itself would accept this base name: 32 hash digits, a dash, and a restricted set of characters (Nix,
/// `src/libstore/path.cc`). This excludes commas, spaces and newlines, which separate names in narinfos and
/// fingerprints.
pub(crate) fn is_nix_name(name: &[u8]) -> bool {
    let Some((digits, rest)) = name.split_at_checked(HASH_DIGITS) else {
        return false;
    };
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
    digits.iter().all(|digit| hash::is_nix32(*digit))
        && rest.strip_prefix(b"-").is_some_and(|rest| {
            (1..=NIX_NAME_MAX).contains(&rest.len()) && rest.iter().all(is_letter)
        })
}

/// Returns the first 8 bytes of `name`, zero-padded, as a number that sorts like the bytes.
pub(super) fn head(name: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = name.len().min(head.len());
    head[..len].copy_from_slice(&name[..len]);
    u64::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(path: &[u8]) -> String {
        StoreDir::new(b"/nix/store")
            .name_of(path)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn base_names() {
        let longest = [b"/nix/store/".as_slice(), &[b'x'; 255]].concat();
        let store = StoreDir::new(b"/nix/store//");
        assert_eq!(store.name_of(b"/nix/store/a-b").unwrap(), b"a-b");
        assert_eq!(store.name_of(b"/nix/store/\xff\r").unwrap(), b"\xff\r");
        assert_eq!(store.name_of(b"/nix/store/...").unwrap(), b"...");
        assert_eq!(store.name_of(&longest).unwrap().len(), 255);
        assert_eq!(StoreDir::new(b"/").name_of(b"/a").unwrap(), b"a");
    }

    #[test]
    fn paths_outside_the_store_are_refused() {
        let elsewhere = [
            "/",
            "a",
            "/tmp/a",
            "/nix/store",
            "/nix/store/",
            "/nix/storea",
            "/nix/stor/a",
        ];
        let not_names = [
            "/nix/store/.",
            "/nix/store/..",
            "/nix/store/a/b",
            "/nix/store//a",
            "/nix/store/a/",
        ];
        for path in elsewhere.iter().chain(&not_names) {
            let expected = format!("{path} is not directly inside the store directory /nix/store");
            assert_eq!(fault(path.as_bytes()), expected);
        }
    }

    #[test]
    fn names_that_no_file_can_have_are_refused() {
        let long = format!("/nix/store/{}", "x".repeat(256));
        let expected = format!("the name of {long} has 256 bytes, and a file name has at most 255");
        assert_eq!(fault(long.as_bytes()), expected);
        let expected = "/nix/store/a\\u{0}b has a NUL byte in it, which no file name can have (is this a text file?)";
        assert_eq!(fault(b"/nix/store/a\0b"), expected);
    }
}
