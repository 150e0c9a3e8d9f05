//! Replays every input of the fuzzing corpus, without the fuzzer's instrumentation. The corpus includes inputs that once
//! caused crashes.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::cases;

#[path = "fuzz/targets/archive.rs"]
mod archive;
#[path = "fuzz/targets/closure.rs"]
mod closure;
#[path = "fuzz/targets/disk.rs"]
mod disk;
#[path = "fuzz/targets/guest.rs"]
mod guest;
#[path = "fuzz/targets/input.rs"]
mod input;
#[path = "fuzz/targets/layout.rs"]
mod layout;
#[path = "fuzz/targets/listing.rs"]
mod listing;
#[path = "fuzz/targets/nar.rs"]
mod nar;
#[path = "fuzz/targets/narinfo.rs"]
mod narinfo;
#[path = "fuzz/targets/nbd.rs"]
mod nbd;
#[path = "fuzz/targets/packed.rs"]
mod packed;
#[path = "fuzz/targets/recording.rs"]
mod recording;

fn replay(target: &str, run: fn(&[u8])) {
    let inputs = corpus(target);
    for (path, input) in &inputs {
        println!("{}", path.display());
        run(input);
    }
    let count = inputs.len();
    assert!(count > 10, "{target} has a corpus of {count}");
}

/// The inputs, with their files.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let paths = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut inputs: Vec<_> = paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// An input of the corpus with some bytes changed, removed or duplicated.
fn changed(target: &str) -> impl Strategy<Value = Vec<u8>> {
    let inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
    let changes = vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 1..4);
    (prop::sample::select(inputs), changes).prop_map(|(mut input, changes)| {
        for (index, change, byte) in changes {
            let at = index.index(input.len().max(1));
            let rest = input.split_off(at.min(input.len()));
            match change {
                0 => input.extend(
                    rest.first()
                        .map(|_| byte)
                        .into_iter()
                        .chain(rest.iter().skip(1).copied()),
                ),
                1 => input.extend(rest.iter().skip(usize::from(byte))),
                2 => input.extend([&rest[..rest.len().min(usize::from(byte))], &rest].concat()),
                _ => input.extend([&[byte], &rest[..]].concat()),
            }
        }
        input
    })
}

#[test]
fn closures_parse_or_are_refused() {
    replay("closure", closure::run);
}

#[test]
fn recordings_parse_or_are_refused() {
    replay("recording", recording::run);
}

#[test]
fn trees_are_laid_out_and_read_back() {
    replay("layout", layout::run);
}

#[test]
fn guests_get_only_answers_that_virtio_allows() {
    replay("guest", guest::run);
}

#[test]
fn nbd_clients_get_only_answers_that_the_protocol_allows() {
    replay("nbd", nbd::run);
}

#[test]
fn narinfos_parse_or_are_refused() {
    replay("narinfo", narinfo::run);
}

#[test]
fn listings_parse_or_are_refused() {
    replay("listing", listing::run);
}

#[test]
fn nars_parse_or_are_refused() {
    replay("nar", nar::run);
}

#[test]
fn packed_trees_parse_or_are_refused() {
    replay("packed", packed::run);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..cases(2000) })]

    /// Options and requests that the fuzz target generates from bytes.
    #[test]
    fn random_nbd_clients_get_only_answers_that_the_protocol_allows(bytes in vec(any::<u8>(), 0..600)) {
        nbd::run(&bytes);
    }

    /// Rings, chains and events that the fuzz target generates from bytes.
    #[test]
    fn random_guests_get_only_answers_that_virtio_allows(bytes in vec(any::<u8>(), 0..600)) {
        guest::run(&bytes);
    }

    #[test]
    fn mutated_narinfos_parse_or_are_refused(text in changed("narinfo")) {
        narinfo::run(&text);
    }

    #[test]
    fn mutated_listings_parse_or_are_refused(text in changed("listing")) {
        listing::run(&text);
    }

    #[test]
    fn mutated_nars_parse_or_are_refused(nar in changed("nar")) {
        nar::run(&nar);
    }

    #[test]
    fn mutated_packed_trees_parse_or_are_refused(packed in changed("packed")) {
        packed::run(&packed);
    }
}
