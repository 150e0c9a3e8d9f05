//! Random trees on a real file system.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use lazystore::erofs::layout::bounds::INLINE_LIMIT_BYTES;

/// File sizes around every limit of the format.
pub const SIZES: [usize; 10] = [
    0,
    1,
    INLINE_LIMIT - 1,
    INLINE_LIMIT,
    INLINE_LIMIT + 1,
    4064,
    4095,
    4096,
    4097,
    8193,
];

/// The largest inline file.
#[allow(clippy::cast_possible_truncation)]
pub const INLINE_LIMIT: usize = INLINE_LIMIT_BYTES as usize;

/// A tree that can be written to disk.
#[derive(Debug, Clone)]
pub enum Tree {
    File { len: usize, executable: bool },
    Symlink(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Tree>),
}

/// File names of all kinds that Linux allows.
pub fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let odd = prop_oneof![
        Just(b"-x".to_vec()),
        Just(b"+x".to_vec()),
        Just(b".a".to_vec()),
        Just(b".-".to_vec()),
        Just(b"..x".to_vec()),
        Just(b"~".to_vec()),
        Just(vec![0xff, 0xfe]),
        Just(vec![b'n'; 255]),
        Just("ünï".as_bytes().to_vec()),
    ];
    let bytes = vec(
        any::<u8>().prop_filter("allowed", |byte| !matches!(byte, 0 | b'/')),
        1..40,
    );
    let plain = "[a-z]{1,12}".prop_map(String::into_bytes);
    prop_oneof![2 => odd, 2 => bytes, 4 => plain]
        .prop_filter("not a dot", |name| name != b"." && name != b"..")
}

fn any_leaf() -> impl Strategy<Value = Tree> {
    let len = prop_oneof![proptest::sample::select(SIZES.to_vec()), 0..30_000_usize];
    let file = (len, any::<bool>()).prop_map(|(len, executable)| Tree::File { len, executable });
    let target_len = prop_oneof![1..100_usize, 4030..=4095_usize];
    let link = target_len.prop_map(|len| {
        Tree::Symlink(
            (0..len)
                .map(|i| b'a' + u8::try_from(i % 26).unwrap())
                .collect(),
        )
    });
    prop_oneof![4 => file, 1 => link]
}

/// Trees of up to a few hundred files, directories of one block and of several.
pub fn any_tree() -> impl Strategy<Value = Tree> {
    any_leaf().prop_recursive(5, 400, 40, |inner| {
        btree_map(any_name(), inner, 0..40).prop_map(Tree::Dir)
    })
}

/// A directory with some entries, for the root of `--tree` or a store directory.
pub fn any_dir() -> impl Strategy<Value = Tree> {
    btree_map(any_name(), any_tree(), 1..12).prop_map(Tree::Dir)
}

/// Bytes that differ for each place in each file.
pub fn contents(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .collect()
}

impl Tree {
    /// Writes the tree to `path`, which must not exist.
    pub fn write(&self, path: &Path) {
        match self {
            Self::File { len, executable } => {
                fs::write(path, contents(path.as_os_str().len(), *len)).unwrap();
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            Self::Symlink(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
            Self::Dir(entries) => {
                fs::create_dir_all(path).unwrap();
                for (name, tree) in entries {
                    tree.write(&path.join(OsStr::from_bytes(name)));
                }
            }
        }
    }
}
