//! Records, errors with line numbers, and round trips of generated records.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::super::error::ClosureFile;
use super::*;

const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const NIX32: &str = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
const EMPTY_HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn parse(text: &[u8], names: &[&str]) -> Result<Vec<Option<Registered>>, String> {
    let names: Vec<Box<[u8]>> = names.iter().map(|name| name.as_bytes().into()).collect();
    let lines = Lines::new(ClosureFile::Registration("/x/reg".into()), text);
    let read = read(lines, StoreDir::new(b"/nix/store"), &names);
    read.map(|(found, _)| found).map_err(|e| e.to_string())
}

/// Returns the error for `text` without the common prefix.
fn fault(text: &str) -> String {
    let error = parse(text.as_bytes(), &["a"]).unwrap_err();
    error
        .strip_prefix("registration /x/reg, ")
        .unwrap()
        .to_owned()
}

fn registered(nar_size: u64, line: u64) -> Option<Registered> {
    Some(Registered {
        nar_size,
        nar_hash: hash::decode(HASH.as_bytes()).unwrap(),
        line,
    })
}

#[test]
fn reads_what_dump_db_and_closure_info_write() {
    let text = format!(
        "/nix/store/a\n{HASH}\n120\n/nix/store/a.drv\n2\n/nix/store/a\n/nix/store/b\n\
         /nix/store/b\nsha256:{NIX32}\n{}\n\n0\n",
        u64::MAX
    );
    let expected = vec![registered(120, 1), registered(u64::MAX, 8), None];
    assert_eq!(parse(text.as_bytes(), &["a", "b", "c"]), Ok(expected));
    assert_eq!(
        parse(text.trim_end().as_bytes(), &["b"]),
        Ok(vec![registered(u64::MAX, 8)])
    );
    assert_eq!(parse(b"", &["a"]), Ok(vec![None]));
}

#[test]
fn a_file_that_ends_within_a_record() {
    let whole = format!("/nix/store/a\n{HASH}\n1\n\n2\n/nix/store/a\n/nix/store/b\n");
    let missing = [
        "the NAR hash",
        "the NAR size",
        "the deriver or an empty line",
        "the number of references",
        "a reference",
        "a reference",
    ];
    for (lines, missing) in missing.iter().enumerate() {
        let text: String = whole.split_inclusive('\n').take(lines + 1).collect();
        let line = lines + 2;
        let expected =
            format!("line {line}: the file ends where {missing} should be (was it cut short?)");
        assert_eq!(fault(&text), expected);
    }
    assert!(parse(whole.as_bytes(), &["a"]).is_ok());
}

#[test]
fn faulty_hashes() {
    // Written by exportReferencesGraph: path, deriver, number of references.
    for deriver in ["", "/nix/store/a.drv"] {
        let expected = format!(
            "line 2: expected a NAR hash, found \"{deriver}\" (a references graph has none: \
             use the registration of closureInfo or of nix-store --dump-db)"
        );
        assert_eq!(fault(&format!("/nix/store/a\n{deriver}\n0\n")), expected);
    }
    for hash in [
        &HASH[1..],
        "sha512:00",
        "120",
        &HASH.replace('f', "x"),
        &format!("{NIX32} "),
    ] {
        let expected =
            format!("line 2: the NAR hash \"{hash}\" is not a sha256 in base16, nix32 or base64");
        assert_eq!(fault(&format!("/nix/store/a\n{hash}\n1\n\n0\n")), expected);
    }
}

#[test]
fn faulty_numbers() {
    for number in ["", "12a", "-1", "+1", " 1", "0x1"] {
        let expected = format!("line 3: the NAR size \"{number}\" is not a number");
        assert_eq!(
            fault(&format!("/nix/store/a\n{HASH}\n{number}\n\n0\n")),
            expected
        );
        let expected = format!("line 5: the number of references \"{number}\" is not a number");
        assert_eq!(
            fault(&format!("/nix/store/a\n{HASH}\n1\n\n{number}\n")),
            expected
        );
    }
}

#[test]
fn numbers_too_large() {
    let expected = "line 3: the NAR size 18446744073709551616 is larger than 18446744073709551615, \
                    the most that Nix can register";
    assert_eq!(
        fault(&format!(
            "/nix/store/a\n{HASH}\n18446744073709551616\n\n0\n"
        )),
        expected
    );
    let expected = "line 5: the number of references 2147483648 is larger than 2147483647, \
                    the most that Nix can register";
    assert_eq!(
        fault(&format!("/nix/store/a\n{HASH}\n1\n\n2147483648\n")),
        expected
    );
}

#[test]
fn lines_that_should_be_paths() {
    let record = format!("/nix/store/a\n{HASH}\n1\n");
    let not_a_path = |line: u32, what: &str, found: &str| {
        format!(
            "line {line}: expected {what}, found \"{found}\", which is not an absolute path \
             (is the record complete?)"
        )
    };
    let deriver = "the deriver or an empty line";
    assert_eq!(
        fault(&format!("{record}2\n/nix/store/a\n")),
        not_a_path(4, deriver, "2")
    );
    assert_eq!(
        fault(&format!("{record}\n2\n/nix/store/a\n\n")),
        not_a_path(7, "a reference", "")
    );
    assert_eq!(
        fault(&format!("{record}\n0\n\n")),
        not_a_path(6, "a store path", "")
    );
    let expected = "line 6: /tmp/x is not directly inside the store directory /nix/store";
    assert_eq!(fault(&format!("{record}\n0\n/tmp/x\n")), expected);
}

#[test]
fn a_wrong_number_of_references_is_an_error() {
    let records = |count: u8| {
        let reference = "/nix/store/a\n";
        format!(
            "/nix/store/a\n{HASH}\n1\n\n{count}\n{reference}{reference}/nix/store/b\n{HASH}\n1\n\n0\n"
        )
    };
    assert!(parse(records(2).as_bytes(), &["a"]).is_ok());
    assert!(fault(&records(1)).starts_with("line 8: expected a NAR hash, found \"/nix/store/b\""));
    assert!(fault(&records(4)).starts_with("line 9: expected a reference, found \"ba78"));
}

#[test]
fn contradictions_matter_for_listed_paths_only() {
    let record =
        |name: &str, hash: &str, size: u32| format!("/nix/store/{name}\n{hash}\n{size}\n\n0\n");
    let first = record("a", HASH, 1);
    let expected =
        "line 6: /nix/store/a is registered here with another NAR size or hash than on line 1";
    for other in [record("a", HASH, 2), record("a", EMPTY_HASH, 1)] {
        assert_eq!(fault(&format!("{first}{other}")), expected);
        assert!(parse(format!("{first}{other}").as_bytes(), &["b"]).is_ok());
    }
    assert_eq!(
        parse(first.repeat(3).as_bytes(), &["a"]),
        Ok(vec![registered(1, 1)])
    );
}

/// The parts that vary between records. The hash is always the same, in one of two notations.
#[derive(Debug, Clone)]
struct Record {
    nar_size: u64,
    nix32: bool,
    deriver: bool,
    references: u8,
}

impl Record {
    fn write(&self, name: &str) -> String {
        let hash = if self.nix32 {
            format!("sha256:{NIX32}")
        } else {
            HASH.to_owned()
        };
        let deriver = if self.deriver { "/nix/store/d.drv" } else { "" };
        let references: String = (0..self.references)
            .map(|n| format!("/nix/store/{n}\n"))
            .collect();
        format!(
            "/nix/store/{name}\n{hash}\n{}\n{deriver}\n{}\n{references}",
            self.nar_size, self.references
        )
    }
}

prop_compose! {
    fn record()(nar_size: u64, nix32: bool, deriver: bool, references in 0_u8..30) -> Record {
        Record { nar_size, nix32, deriver, references }
    }
}

proptest! {
    #[test]
    fn records_in_any_order_and_duplicates_are_read(
        (records, written, listed) in btree_map("[a-z]{1,12}", record(), 1..20).prop_flat_map(|records| {
            let texts: Vec<String> = records.iter().map(|(name, r)| r.write(name)).collect();
            let listed = vec(any::<bool>(), records.len());
            (Just(records), Just([texts.clone(), texts].concat()).prop_shuffle(), listed)
        })
    ) {
        let chosen = || records.iter().zip(&listed).filter(|&(_, &listed)| listed).map(|(record, _)| record);
        let names: Vec<&str> = chosen().map(|(name, _)| name.as_str()).collect();
        let found = parse(written.concat().as_bytes(), &names).unwrap();
        let sizes: Vec<_> = found.iter().flatten().map(|r| (r.nar_size, r.nar_hash)).collect();
        let hash = hash::decode(HASH.as_bytes()).unwrap();
        let expected: Vec<_> = chosen().map(|(_, r)| (r.nar_size, hash)).collect();
        prop_assert_eq!(sizes, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(text in vec(any::<u8>(), 0..400)) {
        let _ = parse(&text, &["a"]);
    }

    #[test]
    fn a_damaged_record_never_panics(record in record(), at: prop::sample::Index, byte: u8, cut: bool) {
        let mut text = record.write("a").into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if cut {
            text.truncate(at);
        }
        let _ = parse(&text, &["a"]);
    }
}
