use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::image::testing::tree_image;

fn exports() -> Exports {
    let dir = tempfile::tempdir().unwrap();
    let export = Export {
        name: "store".parse().unwrap(),
        description: "a disk".to_owned(),
        image: Arc::new(tree_image(dir.path())),
    };
    Exports::new(vec![export]).unwrap()
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Returns all replies to `input`, received in parts of these lengths, and a text that says how it ended.
fn talk(exports: &Exports, input: &[u8], parts: &[usize]) -> (Vec<u8>, String) {
    talk_with(Encryption::NotOffered, exports, input, parts)
}

fn talk_with(
    encryption: Encryption,
    exports: &Exports,
    input: &[u8],
    parts: &[usize],
) -> (Vec<u8>, String) {
    let mut all = Vec::new();
    let mut negotiation = Negotiation::begin(exports, encryption, &mut all);
    let (mut start, mut end) = (0, 0);
    let mut parts = parts.iter().copied().chain(std::iter::repeat(1));
    loop {
        match negotiation.step(&input[start..end], &mut all) {
            Ok(Step::NeedMore) if end == input.len() => return (all, "more".to_owned()),
            Ok(Step::NeedMore) => end = input.len().min(end + parts.next().unwrap()),
            Ok(Step::Consumed(count)) => {
                assert!((1..=end - start).contains(&count));
                start += count;
            }
            Ok(Step::Transmission(count, session)) => {
                let text = format!("{} {}", session.structured, session.base_allocation);
                return (all, format!("{text} {}", start + count));
            }
            Ok(Step::StartTls(count)) => {
                negotiation.tls_started();
                start += count;
            }
            Ok(Step::Abort) => return (all, "abort".to_owned()),
            Err(error) => return (all, error.to_string()),
        }
    }
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let long = vec![0u8; OPTION_DATA_MAX_BYTES + 3];
    let context = b"\0\0\0\x05store\0\0\0\x01\0\0\0\x0fbase:allocation".to_vec();
    let option = prop_oneof![
        Just(option_bytes(option::STRUCTURED_REPLY, &[])),
        Just(option_bytes(option::SET_META_CONTEXT, &context)),
        Just(option_bytes(option::GO, b"\0\0\0\x05store\0\0")),
        Just(option_bytes(option::INFO, &long)),
        (0u32..12, vec(any::<u8>(), 0..30)).prop_map(|(number, data)| option_bytes(number, &data)),
        vec(any::<u8>(), 0..30),
    ];
    vec(option, 0..6).prop_map(|options| [vec![vec![0, 0, 0, 3]], options].concat().concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replies_do_not_depend_on_how_the_input_is_split(
        input in options(),
        parts in vec(1usize..70_000, 0..20),
    ) {
        let exports = exports();
        let at_once = talk(&exports, &input, &[usize::MAX / 2]);
        prop_assert!(talk(&exports, &input, &parts) == at_once);
    }
}

#[test]
fn the_last_selection_of_contexts_counts_and_only_for_its_export() {
    let exports = exports();
    let set = option_bytes(
        option::SET_META_CONTEXT,
        b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation",
    );
    let none = option_bytes(option::SET_META_CONTEXT, b"\0\0\0\0\0\0\0\0");
    let go = option_bytes(option::GO, b"\0\0\0\x05store\0\0");
    let structured = option_bytes(option::STRUCTURED_REPLY, &[]);
    let flags = vec![0, 0, 0, 3];
    for (options, chosen) in [
        ([&flags, &structured, &set, &go], "true true"),
        ([&flags, &set, &structured, &go], "true false"),
        ([&flags, &structured, &none, &go], "true false"),
    ] {
        let input: Vec<u8> = options.into_iter().flatten().copied().collect();
        let (_, end) = talk(&exports, &input, &[input.len()]);
        assert_eq!(end, format!("{chosen} {}", input.len()));
    }
}

/// The types of replies to options.
fn kinds(answers: &[u8]) -> Vec<u32> {
    let mut rest = &answers[18..];
    let mut kinds = Vec::new();
    while let Some(kind) = rest.get(12..16) {
        kinds.push(u32::from_be_bytes(kind.try_into().unwrap()));
        let len = u32::from_be_bytes(rest[16..20].try_into().unwrap());
        rest = &rest[20 + usize::try_from(len).unwrap()..];
    }
    kinds
}

#[test]
fn before_tls_the_client_gets_no_information_and_nothing_is_negotiated() {
    let exports = exports();
    let flags = vec![0, 0, 0, 3];
    let context = b"\0\0\0\x05store\0\0\0\x01\0\0\0\x0fbase:allocation";
    let before_tls = [
        option_bytes(option::LIST, &[]),
        option_bytes(option::STRUCTURED_REPLY, &[]),
        option_bytes(option::SET_META_CONTEXT, context),
        option_bytes(option::INFO, b"\0\0\0\x05store\0\0"),
        option_bytes(option::GO, b"\0\0\0\x05store\0\0"),
        option_bytes(99, &[]),
    ];
    let start_tls = option_bytes(option::STARTTLS, &[]);
    let go = option_bytes(option::GO, b"\0\0\0\x05store\0\0");
    let input = [
        flags.clone(),
        before_tls.concat(),
        start_tls.clone(),
        start_tls,
        go,
    ]
    .concat();
    let (answers, end) = talk_with(Encryption::Required, &exports, &input, &[]);
    let mut expected = vec![option_reply::ERR_TLS_REQD; before_tls.len()];
    expected.push(option_reply::ACK);
    // The second `STARTTLS`; then `GO`.
    expected.push(option_reply::ERR_INVALID);
    expected.extend([option_reply::INFO, option_reply::ACK]);
    assert_eq!(kinds(&answers), expected);
    assert_eq!(end, format!("false false {}", input.len()));
}

#[test]
fn before_tls_abort_is_answered_and_export_name_ends_the_connection() {
    let exports = exports();
    for (option, expected) in [
        (option_bytes(option::ABORT, &[]), "abort"),
        (
            option_bytes(option::EXPORT_NAME, b"store"),
            "the NBD client asked for an export without TLS",
        ),
    ] {
        let input = [vec![0, 0, 0, 3], option].concat();
        let (_, end) = talk_with(Encryption::Required, &exports, &input, &[]);
        assert_eq!(end, expected);
    }
    // `STARTTLS` with data, which it may not have.
    let input = [vec![0, 0, 0, 3], option_bytes(option::STARTTLS, &[0])].concat();
    let (answers, end) = talk_with(Encryption::Required, &exports, &input, &[]);
    assert_eq!(kinds(&answers), [option_reply::ERR_INVALID]);
    assert_eq!(end, "more");
}
