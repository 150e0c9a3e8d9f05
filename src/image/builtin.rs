//! What the disk carries besides the closure: the directory `.lazystore`, with the registration of the closure in it.
//!
//! No store path has such a name. It is laid out like a store path, and its files' bytes are in memory.

use std::sync::Arc;

use super::ImageError;
use crate::erofs::layout::LayoutError;
use crate::erofs::layout::attributes::Attributes;
use crate::erofs::layout::plan::Plan;
use crate::erofs::layout::planner::Planner;
use crate::tree::{FileKind, Listing, Stat};

/// Name of the directory in the root of the disk.
pub const DIR: &str = ".lazystore";
/// Name of the file in it.
pub const REGISTRATION: &str = "registration";

/// The directory's contents, and its place among the paths.
#[derive(Debug)]
pub(super) struct Builtin {
    /// Index of its region.
    pub(super) region: u32,
    /// What its only file holds.
    pub(super) text: Arc<[u8]>,
}

impl Builtin {
    /// The directory with `text` as the registration, and what it takes; `names` are the closure's, sorted.
    pub(super) fn new<'a>(
        text: &Arc<[u8]>,
        names: impl Iterator<Item = &'a [u8]> + Clone,
        attributes: Attributes,
    ) -> Result<(Self, Plan), ImageError> {
        if names.clone().any(|name| name == DIR.as_bytes()) {
            return Err(ImageError::BuiltinName);
        }
        let before = names.take_while(|name| *name < DIR.as_bytes()).count();
        let region = u32::try_from(before).unwrap_or(u32::MAX);
        let plan = plan(text.len() as u64, attributes).map_err(ImageError::Builtin)?;
        let text = Arc::clone(text);
        Ok((Self { region, text }, plan))
    }
}

fn plan(len_bytes: u64, attributes: Attributes) -> Result<Plan, LayoutError> {
    let limits = (u32::MAX, u32::MAX);
    let dir = Stat::of_kind(FileKind::Directory);
    let mut planner = Planner::new(DIR.as_bytes(), attributes, limits, &dir, b"")?;
    let mut listing = Listing::default();
    let file = Stat {
        permissions: 0o444,
        size_bytes: len_bytes,
        ..Stat::of_kind(FileKind::Regular)
    };
    listing.push(REGISTRATION.as_bytes(), file, b"");
    planner.push(&listing)?;
    Ok(planner.into_plan())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::testing::store_image;
    use super::super::{ImageOptions, Place, Seek};
    use super::*;
    use crate::erofs::layout::bounds::INLINE_LIMIT_BYTES;

    /// Names on both sides of the directory's.
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
            // Nothing else stays planned.
            plan_cache_bytes: 0,
            ..ImageOptions::default()
        }
    }

    #[test]
    fn the_text_is_where_the_disk_says_it_is() {
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
                // Behind the file's inode, which is not in the block of the directory's.
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
    fn a_closure_that_has_such_a_name_is_refused() {
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
