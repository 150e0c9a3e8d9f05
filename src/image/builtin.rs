//! The directory `.lazystore` with the registration of the closure, which is on the disk in addition to the closure.
//!
//! No store path has this name. The directory is laid out like a store path, with file contents from memory.

use std::sync::Arc;

use super::ImageError;
use crate::source::MemoryTree;

/// Name of the directory in the root of the disk.
pub const DIR: &str = ".lazystore";
/// Name of the file in it.
pub const REGISTRATION: &str = "registration";

/// Returns the directory with `text` as the registration.
pub(super) fn tree(text: &Arc<[u8]>) -> MemoryTree {
    let path = [DIR, REGISTRATION].join("/");
    MemoryTree::with_file(path.as_bytes(), Arc::clone(text))
}

/// Returns the directory's position among the sorted `names`.
///
/// # Errors
/// [`ImageError::BuiltinName`] if one of them has its name.
pub(super) fn position<'a>(names: impl Iterator<Item = &'a [u8]>) -> Result<usize, ImageError> {
    let mut before = 0;
    for name in names.take_while(|name| *name <= DIR.as_bytes()) {
        if name == DIR.as_bytes() {
            return Err(ImageError::BuiltinName);
        }
        before += 1;
    }
    Ok(before)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::testing::store_image;
    use super::super::{ImageOptions, Seek};
    use super::*;
    use crate::erofs::layout::bounds::INLINE_LIMIT_BYTES;
    use crate::erofs::volume::Place;

    /// Names that sort before and after the directory's.
    fn store() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["-x", "0a-file", "zz"] {
            fs::write(dir.path().join(name), name.repeat(3000)).unwrap();
        }
        dir
    }

    fn options(text: &[u8]) -> ImageOptions {
        ImageOptions {
            registration: Some(text.into()),
            // Keep no other plans in memory.
            plan_cache_bytes: 0,
            ..ImageOptions::default()
        }
    }

    #[test]
    fn the_text_is_at_the_address_in_its_inode() {
        let dir = store();
        let limit = usize::try_from(INLINE_LIMIT_BYTES).unwrap();
        for len in [1, limit, limit + 1, 4096, 300_001] {
            let text: Vec<u8> = (0..=250).cycle().take(len).collect();
            let image = store_image(dir.path(), &options(&text));
            let region = &image.space().regions()[1];
            assert_eq!(&*region.name, DIR.as_bytes());
            let nid = region.nid();
            let at = if len > limit {
                u64::from(region.data.start) * 4096
            } else {
                // Inlined after the file's inode, which is not in the same block as the directory's.
                let file = (nid..nid + 256).find(|nid| {
                    let place = image.locate_nid(*nid).unwrap().place;
                    matches!(place, Place::Inode(file) if file.path == b".lazystore/registration")
                });
                file.unwrap() * 32 + 32
            };
            for region in 0..4 {
                image.usage(region).unwrap();
            }
            let mut bytes = vec![0; len];
            image.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes == text, "{len}");
            assert_eq!(image.seek(at, Seek::Data), Some(at));
        }
    }

    #[test]
    fn a_closure_with_a_path_of_that_name_is_refused() {
        let dir = store();
        fs::write(dir.path().join(DIR), "").unwrap();
        let closure = crate::closure::Closure {
            dir: dir.path().into(),
            store_dir: "/nix/store".into(),
            contents: crate::closure::Contents::StorePaths(vec![crate::closure::StorePath {
                name: DIR.as_bytes().into(),
                nar_size: None,
                nar_hash: None,
            }]),
        };
        let refused = super::super::Image::new(&closure, &options(b"text")).unwrap_err();
        assert!(refused.to_string().contains("a path named .lazystore"));
    }
}
