//! Finds the status sockets of servers.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::StatusError;
use crate::server::{STATUS_SUFFIX, status_path};

/// `SO_ACCEPTCON` in the flags of `/proc/net/unix`: a listening socket.
const LISTENS: &str = "00010000";

/// Returns the status socket of a server, given one of its sockets, its mount point, the file in it, or the status socket
/// itself.
pub fn point_of(place: &Path) -> PathBuf {
    let named = status_path(place);
    let of_file = place
        .parent()
        .map(status_path)
        .filter(|path| is_socket(path));
    match () {
        () if is_socket(&named) => named,
        () if place.as_os_str().to_string_lossy().ends_with(STATUS_SUFFIX) => place.to_owned(),
        () => of_file.unwrap_or(named),
    }
}

/// Returns the status sockets of all servers that this user has access to.
pub fn all() -> Result<Vec<PathBuf>, StatusError> {
    let list = fs::read_to_string("/proc/net/unix").map_err(StatusError::List)?;
    let mut points: Vec<PathBuf> = list.lines().filter_map(listed).collect();
    points.retain(|point| is_servers(point).unwrap_or(false));
    points.sort();
    points.dedup();
    Ok(points)
}

/// Parses a line such as
/// `0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/vm/store.sock.status`,
/// and returns the path if it is a listening socket with the suffix of status sockets.
fn listed(line: &str) -> Option<PathBuf> {
    let mut words = line.split_ascii_whitespace();
    let is_listening = words.nth(3)? == LISTENS;
    let path = line.splitn(8, ' ').last()?;
    let path = &path[path.find('/')?..];
    (is_listening && path.starts_with('/') && path.ends_with(STATUS_SUFFIX)).then(|| path.into())
}

/// Returns whether the socket is next to a socket or a mount point, like every server's status socket: other programs may use
/// the same suffix. Sockets of other users are shown only to root.
fn is_servers(point: &Path) -> io::Result<bool> {
    let name = point.as_os_str().to_string_lossy();
    let served = fs::metadata(name.strip_suffix(STATUS_SUFFIX).unwrap_or_default())?;
    let user = rustix::process::geteuid();
    let is_own = user.is_root() || fs::metadata(point)?.uid() == user.as_raw();
    Ok(is_own && (served.is_dir() || served.file_type().is_socket()))
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_by_name() {
        let line = |flags: &str, path: &str| {
            format!("0000000000000000: 00000002 00000000 {flags} 0001 01 12345 {path}")
        };
        let found = listed(&line(LISTENS, "/run/a b/x.sock.status"));
        assert_eq!(found, Some("/run/a b/x.sock.status".into()));
        for (flags, path) in [
            ("00000000", "/run/x.status"),
            (LISTENS, "/run/x.sock"),
            (LISTENS, "@x.status"),
            (LISTENS, ""),
        ] {
            assert_eq!(listed(&line(flags, path)), None, "{path}");
        }
        assert_eq!(
            listed("Num       RefCount Protocol Flags    Type St Inode Path"),
            None
        );
        assert_eq!(listed(""), None);
    }
}
