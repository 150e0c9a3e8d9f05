use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::image::testing::tree_image;

fn exports() -> Exports {
    let dir = tempfile::tempdir().unwrap();
    Exports::one("store", "a disk", Arc::new(tree_image(dir.path()))).unwrap()
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// All that is answered to `input`, which comes in parts of these lengths, and how it ends.
fn talk(exports: &Exports, input: &[u8], parts: &[usize]) -> (Vec<u8>, String) {
    let mut all = Vec::new();
    let mut negotiation = Negotiation::begin(exports, &mut all);
    let (mut start, mut end) = (0, 0);
    let mut parts = parts.iter().copied().chain(std::iter::repeat(1));
    loop {
        match negotiation.step(&input[start..end], &mut all) {
            Ok(Step::More) if end == input.len() => return (all, "more".to_owned()),
            Ok(Step::More) => end = input.len().min(end + parts.next().unwrap()),
            Ok(Step::Took(count)) => {
                assert!((1..=end - start).contains(&count));
                start += count;
            }
            Ok(Step::Chosen(count, session)) => {
                let words = format!("{} {}", session.structured, session.base_allocation);
                return (all, format!("{words} {}", start + count));
            }
            Ok(Step::Left) => return (all, "left".to_owned()),
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
    fn it_does_not_matter_in_which_parts_bytes_come(
        input in options(),
        parts in vec(1usize..70_000, 0..20),
    ) {
        let exports = exports();
        let at_once = talk(&exports, &input, &[usize::MAX / 2]);
        prop_assert!(talk(&exports, &input, &parts) == at_once);
    }
}

#[test]
fn the_last_choice_of_contexts_counts_and_only_for_its_disk() {
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
