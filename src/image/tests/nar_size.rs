//! Paths that do not match their registration.

use super::*;
use crate::closure::{Closure, Contents, StorePath};
use crate::erofs::layout::nar;

/// Returns a disk of `a`, registered with a NAR of this length, so that nothing is walked before the first read.
pub(super) fn registered(dir: &std::path::Path, nar_size: u64) -> Image {
    let path = StorePath {
        name: b"a"[..].into(),
        nar_size: Some(nar_size),
        nar_hash: Some([7; 32]),
    };
    let closure = Closure {
        dir: dir.to_owned(),
        store_dir: "/nix/store".into(),
        contents: Contents::StorePaths(vec![path]),
    };
    Image::new(&closure, &ImageOptions::default()).unwrap()
}

/// The same, registered with the real length.
pub(super) fn rightly_registered(dir: &std::path::Path) -> Image {
    registered(dir, nar_size_of(dir))
}

pub(super) fn nar_size_of(dir: &std::path::Path) -> u64 {
    let image = store_image(dir, &ImageOptions::default());
    let size = image.with_plan(IoMode::Blocking, 0, Need::All, nar::size_bytes);
    size.unwrap()
}

fn first_block(image: &Image) -> Result<(), ReadError> {
    let meta = u64::from(image.space().regions()[0].meta.start) * BLOCK_LEN_BYTES;
    image.read_exact_at(&mut [0; 512], meta)
}

/// Returns a path like `a` whose top directory can be read before all of it is walked.
pub(super) fn deep_store() -> tempfile::TempDir {
    let dir = small_store();
    fs::create_dir_all(dir.path().join("a/lib/sub/below")).unwrap();
    fs::write(dir.path().join("a/lib/sub/below/file"), [5; 3000]).unwrap();
    dir
}

#[test]
fn a_path_with_a_wrong_nar_size_fails_from_then_on() {
    let dir = deep_store();
    let size = nar_size_of(dir.path());
    let image = registered(dir.path(), size + 8);
    first_block(&image).unwrap();
    for _ in 0..3 {
        let error = image.usage(0).unwrap_err();
        assert!(matches!(error, ReadError::NarSize { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!(
                "a NAR of {size} bytes, but {} are registered",
                size + 8
            )),
            "{text}"
        );
        // Blocks that were readable before must not be readable again, even when the failure is forgotten.
        assert!(matches!(
            first_block(&image),
            Err(ReadError::NarSize { .. })
        ));
        image.plans.forget_failures();
        assert!(matches!(
            first_block(&image),
            Err(ReadError::NarSize { .. })
        ));
        image.plans.forget_failures();
    }
}

/// Regression test: it was served without its contents, with status OK.
#[test]
fn a_directory_moved_away_before_the_walk_is_a_fault_until_it_is_back() {
    let dir = deep_store();
    let image = rightly_registered(dir.path());
    first_block(&image).unwrap();
    let (sub, aside) = (dir.path().join("a/lib/sub/below"), dir.path().join("aside"));
    fs::rename(&sub, &aside).unwrap();
    let error = image.usage(0).unwrap_err();
    assert!(matches!(error, ReadError::NarSize { .. }), "{error}");
    fs::rename(&aside, &sub).unwrap();
    image.plans.forget_failures();
    image.usage(0).unwrap();
    first_block(&image).unwrap();
}

#[test]
fn a_path_planned_at_the_start_is_checked_against_its_registration() {
    let dir = deep_store();
    let size = nar_size_of(dir.path());
    for (registered, is_right) in [(size, true), (size + 8, false)] {
        let image = super::super::walk::plan_whole(
            &rightly_registered(dir.path()).tree(0),
            ImageOptions::default().attributes(crate::erofs::layout::attributes::Origin::Nar),
            Some(registered),
        );
        assert_eq!(image.is_ok(), is_right);
    }
}
