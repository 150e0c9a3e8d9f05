//! Files that the server writes while it serves.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file by one with `content`: readers see the old one or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    // Collectors of metrics take files that end with .prom.
    name.push(".new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    // Who may make links there decides about no other file.
    options.custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&name)?;
    file.write_all(content)?;
    fs::rename(&name, path)
}
