//! A NAR: either the input's raw bytes, or strings generated from them.

use lazystore::source::nar::NarTree;

use super::archive;
use super::input::Input;

/// The strings of a NAR, each generated from one byte.
const WORDS: [&[&[u8]]; 16] = [
    &[b"nix-archive-1"],
    &[b"(", b"type"],
    &[b"(", b"type", b"directory"],
    &[b"(", b"type", b"regular", b"contents"],
    &[b"(", b"type", b"regular", b"executable", b"", b"contents"],
    &[b"(", b"type", b"symlink", b"target"],
    &[b"entry", b"(", b"name"],
    &[b"node"],
    &[b")"],
    &[b")", b")"],
    &[b"contents"],
    &[b"executable"],
    &[b"node", b"(", b"type", b"directory"],
    &[b"node", b"(", b"type", b"regular", b"contents"],
    &[b"target"],
    &[b""],
];

/// Must not panic. Writing an accepted tree as a NAR gives the same bytes. An error is one sentence.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let nar = match input.byte() % 2 {
        0 => input.0.to_vec(),
        _ => made(input),
    };
    check(&nar, nar.len() as u64);
    // With a wrong size from the narinfo.
    for other in [nar.len() as u64 / 2, nar.len() as u64 + 8, u64::MAX] {
        let error = NarTree::parse(&nar[..], other).unwrap_err();
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}

fn made(mut input: Input<'_>) -> Vec<u8> {
    let mut nar = Vec::new();
    archive::strings(WORDS[0], &mut nar);
    while !input.is_empty() {
        let op = input.byte();
        match WORDS.get(usize::from(op)) {
            Some(words) => archive::strings(words, &mut nar),
            None if op < 224 => {
                let string = input.take(usize::from(op - 16)).to_vec();
                archive::strings(&[&string], &mut nar);
            }
            // A wrong length, or padding that is not zero.
            None => nar.extend(input.bytes::<8>()),
        }
    }
    nar
}

fn check(nar: &[u8], nar_size: u64) {
    match NarTree::parse(nar, nar_size) {
        Ok(tree) => {
            assert_eq!(tree.nar_size(), nar_size);
            let contents = |offset: u64, len: u64| {
                let start = usize::try_from(offset).unwrap();
                nar[start..start + usize::try_from(len).unwrap()].to_vec()
            };
            assert_eq!(archive::write(&tree, &contents), nar);
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}
