//! Loads closures through `nix-store`, for users who may not read the database: the Nix daemon answers for them.

use std::path::Path;
use std::process::{Command, Stdio};

use super::StoreLocation;
use super::name::StoreDir;

/// Paths per command line. A path has about 60 bytes, and Linux allows 2 MiB of arguments.
const PATHS_AT_ONCE: usize = 4000;

/// A closure in the formats of closureInfo's files.
pub(super) struct ClosureInfo {
    /// Store paths, one per line, possibly with duplicates.
    pub(super) list: Vec<u8>,
    pub(super) registration: Vec<u8>,
}

/// Asks `nix-store` for the closure of the base names `roots`. The error is its last line of error output.
pub(super) fn ask(
    roots: &[Box<[u8]>],
    location: &StoreLocation,
    store_dir: StoreDir<'_>,
) -> Result<ClosureInfo, String> {
    let roots: Vec<Vec<u8>> = roots.iter().map(|name| store_dir.path_of(name)).collect();
    let mut list = Vec::new();
    for some in roots.chunks(PATHS_AT_ONCE) {
        list.extend(run(&["--query", "--requisites"], some, location)?);
    }
    let lines = list
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let mut paths: Vec<Vec<u8>> = lines.map(<[u8]>::to_vec).collect();
    paths.sort_unstable();
    paths.dedup();
    let mut registration = Vec::new();
    for some in paths.chunks(PATHS_AT_ONCE) {
        registration.extend(run(&["--dump-db"], some, location)?);
    }
    Ok(ClosureInfo { list, registration })
}

/// Standard output of `nix-store ARGS PATHS`.
fn run(args: &[&str], paths: &[Vec<u8>], location: &StoreLocation) -> Result<Vec<u8>, String> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let mut command = Command::new("nix-store");
    if let Some(root) = &location.store_root {
        command.arg("--store").arg(absolute(root));
    }
    command.args(args).arg("--");
    command.args(paths.iter().map(|path| OsStr::from_bytes(path)));
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("nix-store cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().rfind(|line| !line.trim().is_empty());
    Err(format!(
        "nix-store failed: {}",
        last.unwrap_or("nothing").trim()
    ))
}

/// Makes `root` absolute: Nix would parse a relative path as a store type.
fn absolute(root: &Path) -> std::path::PathBuf {
    std::path::absolute(root).unwrap_or_else(|_| root.to_owned())
}
