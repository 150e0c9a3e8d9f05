//! Replaces files atomically.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file by one with `content`. Readers see either the old file or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    // Collectors of metrics read files that end with .prom, so the temporary name must end differently.
    name.push(".new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    // Others may be able to create symlinks in that directory. They must not redirect the write to another file.
    options.custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&name)?;
    file.write_all(content)?;
    fs::rename(&name, path)
}
