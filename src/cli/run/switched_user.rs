//! Access for the user that QEMU switches to (`-run-with user=`, `-runas`): it must be able to reconnect.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{Uid, User};

use super::vmm::qemu;

/// Makes that user the owner of the socket, and lets everyone pass through its directory. Does nothing if no user is
/// named, or if the user does not exist, which QEMU reports itself.
pub fn admit(command: &[OsString], dir: &Path, socket: &Path) -> io::Result<()> {
    let Some(uid) = qemu::switched_user(command).and_then(|text| uid_of(&text)) else {
        return Ok(());
    };
    fs::set_permissions(dir, Permissions::from_mode(0o711))?;
    chown(socket, Some(uid.as_raw()), None)
}

/// Parses QEMU's syntax: a user name or `UID:GID`.
fn uid_of(text: &str) -> Option<Uid> {
    match text.split_once(':') {
        Some((uid, _)) => uid.parse().ok().map(Uid::from_raw),
        None => User::from_name(text).ok().flatten().map(|user| user.uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_or_numbers() {
        assert_eq!(uid_of("root"), Some(Uid::from_raw(0)));
        assert_eq!(uid_of("1234:100"), Some(Uid::from_raw(1234)));
        for unknown in ["", "nobody-of-this-name", "x:1", "1234"] {
            assert_eq!(uid_of(unknown), None, "{unknown}");
        }
    }
}
