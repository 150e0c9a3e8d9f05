//! Invalid listings.

use super::*;

#[test]
fn invalid_listings_are_refused() {
    let root = r#"{"type":"regular","size":1}"#;
    let bad = [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "\"x\"",
        r#"{"version":1}"#,
        r#"{"root":{"type":"regular","size":1}}"#,
        r#"{"version":1,"root":[]}"#,
        r#"{"version":1,"root":{}}"#,
        r#"{"version":1,"root":{"type":"regular"}}"#,
        r#"{"version":1,"root":{"type":"regular","size":-1}}"#,
        r#"{"version":1,"root":{"type":"regular","size":1.5}}"#,
        r#"{"version":1,"root":{"type":"regular","size":18446744073709551616}}"#,
        r#"{"version":1,"root":{"type":"regular","size":"1"}}"#,
        r#"{"version":1,"root":{"type":"regular","size":1,"executable":1}}"#,
        r#"{"version":1,"root":{"type":"directory"}}"#,
        r#"{"version":1,"root":{"type":"directory","entries":[]}}"#,
        r#"{"version":1,"root":{"type":"symlink"}}"#,
        r#"{"version":1,"root":{"type":"fifo"}}"#,
        r#"{"version":1,"root":{"size":1}}"#,
        r#"{"version":1,"root":{"type":"regular","type":"regular","size":1}}"#,
        r#"{"version":1,"root":{"type":"regular","size":1,"size":1}}"#,
        r#"{"version":1,"root":{"type":"directory","entries":{},"entries":{}}}"#,
        r#"{"version":1,"root":{"type":"regular","size":1,}}"#,
        r#"{"version":1,"root":{"type":"regular" "size":1}}"#,
        r#"{"version":1,"root":{,"type":"regular","size":1}}"#,
        r#"{"version":1,"root":{"type":"symlink","target":"\ud800"}}"#,
    ];
    for json in bad {
        let error = refused_listing(json);
        assert!(
            error.starts_with("the listing is malformed"),
            "{json}: {error}"
        );
    }
    for json in [
        format!("{{\"version\":1,\"root\":{root}}}x"),
        format!("{{\"version\":1,\"root\":{root},\"root\":{root}}}"),
        format!("{{\"version\":1,\"version\":1,\"root\":{root}}}"),
    ] {
        assert!(
            refused_listing(&json).starts_with("the listing is malformed"),
            "{json}"
        );
    }
    let error = refused_listing(&format!("{{\"version\":2,\"root\":{root}}}"));
    assert_eq!(
        error,
        "the listing has version 2; only version 1 is supported"
    );
    let long = " ".repeat(LISTING_MAX_BYTES + 1);
    assert_eq!(
        refused_listing(&long),
        "the listing has more than 33554432 bytes"
    );
    let latin1 = b"{\"version\":1,\"root\":{\"type\":\"symlink\",\"target\":\"\xff\"}}";
    assert!(NarTree::from_listing(latin1, 120).is_err());
}

#[test]
fn entries_of_a_listing_are_unique() {
    let two = r#"{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":1},"b":{"type":"directory","entries":{}},"\u0061":{"type":"regular","size":2}}}}"#;
    assert_eq!(
        refused_listing(two),
        "the listing is malformed: the name \"a\" occurs twice"
    );
}

#[test]
fn a_name_that_may_not_be_utf8_is_a_lossy_listing() {
    for name in ["a\u{fffd}", "\u{fffd}"] {
        let json = format!(
            r#"{{"version":1,"root":{{"type":"directory","entries":{{"{name}":{{"type":"regular","size":1}}}}}}}}"#
        );
        assert!(matches!(
            NarTree::from_listing(json.as_bytes(), 1 << 20),
            Err(ListingError::Lossy { .. })
        ));
        let json = format!(r#"{{"version":1,"root":{{"type":"symlink","target":"{name}"}}}}"#);
        assert!(matches!(
            NarTree::from_listing(json.as_bytes(), 1 << 20),
            Err(ListingError::Lossy { .. })
        ));
    }
}
