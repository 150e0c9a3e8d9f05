//! Trees that are partly unreadable: only reads of that part fail.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Returns the first byte of each data block; `None` if it is unreadable.
fn readable(image: &Image, blocks: u32) -> Vec<Option<u8>> {
    let start = image.space().region(0).data.start;
    let first = |block: u32| {
        let mut buf = [0; 512];
        let at = u64::from(start + block) * BLOCK_LEN_BYTES;
        image.read_exact_at(&mut buf, at).ok().map(|()| buf[0])
    };
    (0..blocks).map(first).collect()
}

/// Returns the metadata blocks that are unreadable.
fn unreadable_blocks(image: &Image) -> Vec<u32> {
    let used = image.usage(0).unwrap().meta_blocks;
    let fails = |block: &u32| {
        let at = u64::from(*block) * BLOCK_LEN_BYTES;
        image.read_exact_at(&mut [0; 4096], at).is_err()
    };
    (1..=used).filter(fails).collect()
}

#[test]
fn an_edited_small_file_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        fs::write(dir.path().join(name), vec![byte; 100]).unwrap();
    }
    let image = tree_image(dir.path());
    image.usage(0).unwrap();
    fs::write(dir.path().join("b"), "edited").unwrap();
    assert_eq!(readable(&image, 3), [Some(1), None, Some(3)]);
    assert!(unreadable_blocks(&image).is_empty());
}

/// Root may list the directory, except for what is mounted in it.
#[test]
fn a_directory_that_may_not_be_entered_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "closed", "z"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), [1; 100]).unwrap();
    }
    let closed = dir.path().join("closed");
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    // Root may list any directory. Drop the privileges, for this thread only, which ends with the test.
    without_privileges(|| {
        let image = tree_image(dir.path());
        assert_eq!(readable(&image, 2), [Some(1), Some(1)]);
        let failed = unreadable_blocks(&image);
        assert_eq!(failed.len(), 1);
        let at = u64::from(failed[0]) * BLOCK_LEN_BYTES;
        let error = image.read_exact_at(&mut [0; 512], at).unwrap_err();
        assert!(
            error.to_string().contains("closed: could not be listed"),
            "{error}"
        );
    });
    fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
}

/// Calls `f` on a thread without root's privileges.
fn without_privileges(f: impl FnOnce() + Send) {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, none).unwrap();
            f();
        });
        thread.join().unwrap();
    });
}

/// `/dev/pts` and `/dev/shm` are mounted in `/dev` on every Linux.
#[test]
fn mounts_in_a_tree_are_not_entered() {
    let host = crate::source::HostTree::open("/dev".as_ref(), 16).unwrap();
    let mounted = host.list(b"shm", crate::tree::Detail::Full);
    mounted.unwrap();
    let host = host.without_mounts();
    let refused = host.list(b"shm", crate::tree::Detail::Full).unwrap_err();
    assert!(refused.is_forbidden(), "{refused}");
    let listing = host.list(b"", crate::tree::Detail::Full).unwrap();
    let shm = listing.entries().iter().find(|e| listing.name(e) == b"shm");
    assert_eq!(shm.unwrap().stat.permissions, 0o555);
}
