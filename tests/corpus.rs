//! Every input that fuzzing has kept, run again by the ordinary compiler. Crashes that were found join the corpus.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::cases;

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
#[path = "fuzz/targets/nbd.rs"]
mod nbd;
#[path = "fuzz/targets/recording.rs"]
mod recording;

fn replay(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        run(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 10, "{target} has a corpus of {count}");
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
fn guests_get_what_virtio_allows() {
    replay("guest", guest::run);
}

#[test]
fn nbd_clients_get_what_the_protocol_allows() {
    replay("nbd", nbd::run);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..cases(2000) })]

    /// Options and requests as the fuzzer's target reads them from bytes.
    #[test]
    fn random_nbd_clients_get_what_the_protocol_allows(bytes in vec(any::<u8>(), 0..600)) {
        nbd::run(&bytes);
    }

    /// Rings, chains and events as the fuzzer's target reads them from bytes.
    #[test]
    fn random_guests_get_what_virtio_allows(bytes in vec(any::<u8>(), 0..600)) {
        guest::run(&bytes);
    }
}
