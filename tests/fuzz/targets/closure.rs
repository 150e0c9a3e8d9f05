//! The list and the registration of a closure, separated by the first NUL of the input.

use lazystore::closure::{Closure, Contents, StoreLocation};

/// Must not panic. An accepted list is sorted and consists of file names. An error is one line.
pub fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let list = parts.next().unwrap_or_default();
    let location = StoreLocation::default();
    match Closure::parse(list, parts.next(), &location) {
        Ok(closure) => check(&closure),
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

fn check(closure: &Closure) {
    let Contents::StorePaths(paths) = &closure.contents else {
        panic!("a list is no tree");
    };
    assert!(!paths.is_empty());
    assert!(
        paths.is_sorted_by(|a, b| a.name < b.name),
        "sorted, no duplicates"
    );
    for path in paths {
        assert!((1..=255).contains(&path.name.len()));
        assert!(
            !path
                .name
                .iter()
                .any(|byte| matches!(byte, 0 | b'/' | b'\n'))
        );
        assert!(path.name[..] != *b"." && path.name[..] != *b"..");
        assert_ne!(path.nar_size, Some(0));
    }
}
