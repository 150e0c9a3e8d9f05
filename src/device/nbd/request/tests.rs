use std::sync::Arc;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::device::nbd::Export;
use crate::image::testing::tree_image;

fn session(structured: bool, base_allocation: bool) -> Session {
    static EXPORT: OnceLock<Export> = OnceLock::new();
    let export = EXPORT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        Export {
            name: "store".parse().unwrap(),
            description: String::new(),
            image: Arc::new(tree_image(dir.path())),
        }
    });
    Session {
        export: export.clone(),
        structured,
        base_allocation,
    }
}

fn bytes(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_LEN_BYTES] {
    let parts: [&[u8]; 6] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    parts.concat().try_into().unwrap()
}

fn number() -> impl Strategy<Value = u64> {
    let end = session(true, true).export.image.len_bytes();
    prop_oneof![0u64..10_000, end - 10_000..end + 10_000, any::<u64>()]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..20_000,
        READ_MAX_BYTES - 2..READ_MAX_BYTES + 2,
        any::<u32>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_valid_requests_are_accepted(
        flags in prop_oneof![Just(0u16), Just(4), Just(8), any::<u16>()],
        kind in prop_oneof![0u16..10, any::<u16>()],
        cookie: u64,
        offset in number(),
        len in length(),
        structured: bool,
        context: bool,
    ) {
        let session = session(structured, structured && context);
        let parsed = parse(&bytes(flags, kind, cookie, offset, len), &session).unwrap();
        prop_assert_eq!(parsed.cookie, cookie);
        prop_assert_eq!(parsed.payload_bytes, if kind == 1 { len } else { 0 });
        prop_assert_eq!(parsed.structured, structured && (kind == 0 || kind == 7));
        let disk_len = u128::from(session.export.image.len_bytes());
        let inside = len > 0 && u128::from(offset) + u128::from(len) <= disk_len;
        let expected = match kind {
            0 => inside && len <= READ_MAX_BYTES && (flags == 0 || structured && flags == 4),
            7 => inside && context && structured && (flags == 0 || flags == 8),
            3 => flags == 0,
            2 => true,
            _ => false,
        };
        prop_assert_eq!(!matches!(parsed.request, Request::Refused(_)), expected);
        match parsed.request {
            Request::Read { offset: o, len_bytes, unfragmented } => {
                prop_assert_eq!((o, len_bytes, unfragmented), (offset, len, flags == 4));
            }
            Request::BlockStatus { offset: o, len_bytes, one_extent } => {
                prop_assert_eq!((o, len_bytes, one_extent), (offset, len, flags == 8));
            }
            Request::Refused(refusal) => {
                let writes = [1, 4, 6, 8].contains(&kind);
                prop_assert_eq!(refusal.code() == ErrorCode::Perm, writes);
            }
            Request::Flush | Request::Disconnect => {}
        }
    }

    #[test]
    fn a_wrong_magic_is_an_error(mut bytes: [u8; REQUEST_LEN_BYTES]) {
        bytes[0] |= 0x80;
        prop_assert!(parse(&bytes, &session(true, true)).is_err());
    }
}
