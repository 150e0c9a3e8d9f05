//! Compares two directories name by name. Each name is looked up before the directory is listed.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::reader::Expect;

/// Maximum length of files that are compared completely. Of larger files, the parts where the host has data are compared,
/// and samples.
const WHOLE_BYTES: u64 = 8 << 20;

/// Compares `mounted` with the entries `names` of `host`, recursively. Returns the number of files.
pub fn entries(host: &Path, mounted: &Path, names: &[&str], expect: Expect) -> usize {
    let mut pending: Vec<_> = names
        .iter()
        .map(|name| (host.join(name), mounted.join(name)))
        .collect();
    let mut count = 0;
    while let Some((host, mounted)) = pending.pop() {
        count += 1;
        if !same_node(&host, &mounted, expect) {
            continue;
        }
        let names = listed(&host);
        pending.extend(
            names
                .iter()
                .map(|name| (host.join(name), mounted.join(name))),
        );
        // This lists names. Above and in the next rounds they are looked up.
        assert_eq!(listed(&mounted), names, "{}", mounted.display());
    }
    count
}

fn listed(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

/// Compares everything except entries. Returns whether it is a directory.
fn same_node(host: &Path, mounted: &Path, expect: Expect) -> bool {
    let theirs = fs::symlink_metadata(host).unwrap();
    let ours = fs::symlink_metadata(mounted)
        .unwrap_or_else(|error| panic!("{}: {error}", mounted.display()));
    assert_eq!(
        facts(&ours, Expect::Host),
        facts(&theirs, expect),
        "{}",
        mounted.display()
    );
    if theirs.is_symlink() {
        assert_eq!(
            fs::read_link(mounted).unwrap(),
            fs::read_link(host).unwrap()
        );
    } else if theirs.is_file() {
        assert_eq!(ours.len(), theirs.len(), "{}", mounted.display());
        same_contents(host, mounted, theirs.len());
    }
    theirs.is_dir()
}

type Facts = (u32, (u32, u32), (i64, i64), u64);

/// Mode with type, owner, mtime, device.
fn facts(metadata: &Metadata, expect: Expect) -> Facts {
    if expect == Expect::Host {
        let owner = (metadata.uid(), metadata.gid());
        let time = (metadata.mtime(), metadata.mtime_nsec());
        return (metadata.mode(), owner, time, metadata.rdev());
    }
    let permissions = match metadata {
        m if m.is_symlink() => 0o777,
        m if m.is_dir() || m.mode() & 0o100 != 0 => 0o555,
        _ => 0o444,
    };
    (metadata.mode() & 0o170_000 | permissions, (0, 0), (1, 0), 0)
}

fn same_contents(host: &Path, mounted: &Path, len: u64) {
    if len <= WHOLE_BYTES {
        assert!(
            fs::read(host).unwrap() == fs::read(mounted).unwrap(),
            "{}",
            mounted.display()
        );
        return;
    }
    let (host, mounted) = (File::open(host).unwrap(), File::open(mounted).unwrap());
    let places = [
        0,
        1 << 20,
        1 << 30,
        (4 << 30) - 8192,
        4 << 30,
        len - 100_000,
        len - 5000,
    ];
    for at in places.into_iter().filter(|at| *at < len) {
        let size = usize::try_from((len - at).min(16_384)).unwrap();
        let (mut ours, mut theirs) = (vec![1; size], vec![2; size]);
        mounted.read_exact_at(&mut ours, at).unwrap();
        host.read_exact_at(&mut theirs, at).unwrap();
        assert!(ours == theirs, "differs at {at}");
    }
}
