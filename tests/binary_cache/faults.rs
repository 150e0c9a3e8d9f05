//! Malicious, broken and slow caches: reads are right or I/O errors, and other paths are unaffected.

use std::fs;

use lazystore::closure::narinfo::Compression;
use serde_json::json;

use super::{NAMES, first_file, region};
use crate::common::client::Client;
use crate::common::http::{Fault, HttpServer};
use crate::common::process::wait_for;
use crate::common::remote::{RemoteStore, read};
use crate::watching::status_json;

const EIO: i32 = -5;

/// Reads the first file of each path.
fn first_files(store: &RemoteStore, client: &mut Client) -> Vec<Result<(), i32>> {
    let paths = 0..store.paths.len();
    paths.map(|path| first_file(store, client, path)).collect()
}

/// Checks that path 1 is an I/O error and the others are right if `wrong` changes path 1 in the cache.
fn one_path_fails(wrong: impl FnOnce(&RemoteStore, &HttpServer)) -> String {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    wrong(&store, &http);
    let server = store.serve(&[&http.url()], &["--fetch-timeout", "20"]);
    let mut client = Client::start(&server.socket, 1);
    let read = first_files(&store, &mut client);
    assert_eq!(read, [Ok(()), Err(EIO), Ok(()), Ok(())]);
    drop(client);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (_, log) = server.end();
    let torn = fs::read_dir(store.cache_dir().join("tmp")).unwrap().count();
    assert_eq!(torn, 0, "{log}");
    assert!(log.contains(&store.paths[1].name), "{log}");
    log
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_listing_contradicted_by_its_nar_is_a_permanent_error() {
    let log = one_path_fails(|store, _| {
        let mut listing = store.paths[1].listing.clone();
        // The sum of the sizes is right, but two files are swapped.
        let bin = &mut listing["root"]["entries"]["bin"]["entries"];
        let (a, b) = (bin["file700"].clone(), bin["file5000"].clone());
        *bin = json!({ "file700": b, "file5000": a });
        for file in ["file700", "file5000"] {
            bin[file].as_object_mut().unwrap().remove("narOffset");
        }
        store.cache.put_listing(&store.paths[1], &listing);
    });
    assert!(log.contains("its listing contradicts its NAR"), "{log}");
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_tampered_nar_is_never_served() {
    let log = one_path_fails(|store, _| {
        let mut nar = store.paths[1].nar.clone();
        // A byte of a file's data.
        let at = nar
            .windows(8)
            .position(|bytes| bytes == b"contents")
            .unwrap()
            + 40;
        nar[at] ^= 1;
        store.cache.put_nar(&store.paths[1], &nar);
    });
    assert!(log.contains("the hash of the NAR differs"), "{log}");
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_nar_that_decompresses_to_too_much_is_an_error() {
    let log = one_path_fails(|store, _| {
        let nar = [&store.paths[1].nar[..], &vec![0; 50 << 20]].concat();
        store.cache.put_nar(&store.paths[1], &nar);
    });
    assert!(log.contains("bytes after its end"), "{log}");
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn broken_servers_are_errors() {
    for fault in [
        Fault::Status(404),
        Fault::Status(500),
        Fault::Cut(300),
        Fault::WrongLength(-10),
        Fault::Garbage,
        Fault::Close,
        Fault::Redirects,
        Fault::Body(b"not a NAR".to_vec()),
        Fault::Endless,
        Fault::EndlessHeaders,
    ] {
        one_path_fails(|store, http| {
            http.fault(&format!("nar/{}", store.paths[1].hash()), fault.clone());
        });
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn temporary_failures_are_not_noticed() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let elsewhere = HttpServer::start(&store.cache.dir);
    http.fault_times(".narinfo", Fault::Status(503), 2);
    http.fault_times(".ls", Fault::Garbage, 1);
    http.fault_times("/nar/", Fault::Cut(200), 2);
    let moved = format!("{}/nar/{}.nar", elsewhere.url(), store.paths[2].hash());
    http.fault(
        &format!("nar/{}", store.paths[2].hash()),
        Fault::Redirect(moved),
    );
    let server = store.serve(&[&http.url()], &[]);
    let mut client = Client::start(&server.socket, 1);
    assert_eq!(first_files(&store, &mut client), [Ok(()); 4]);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn the_next_cache_is_asked_when_one_lacks_a_path_or_lies() {
    let store = RemoteStore::new(&NAMES);
    let good = HttpServer::start(&store.cache.dir);
    let bad = HttpServer::start(&store.cache.dir);
    bad.fault(
        &format!("{}.narinfo", store.paths[1].hash()),
        Fault::Status(404),
    );
    bad.fault(
        &format!("nar/{}", store.paths[2].hash()),
        Fault::Body(b"x".to_vec()),
    );
    bad.fault(
        &format!("nar/{}", store.paths[3].hash()),
        Fault::Status(500),
    );
    let server = store.serve(&[&bad.url(), &good.url()], &[]);
    let mut client = Client::start(&server.socket, 1);
    assert_eq!(first_files(&store, &mut client), [Ok(()); 4]);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_bad_listing_is_replaced_by_the_nar() {
    const TWICE: &str = "{\"version\":1,\"root\":{\"type\":\"directory\",\"entries\":{\
        \"a\":{\"type\":\"regular\",\"size\":1},\"a\":{\"type\":\"regular\",\"size\":1}}}}";
    let with_name = |name: &str| {
        let entries = json!({ name: { "type": "regular", "size": 1 } });
        json!({ "version": 1, "root": { "type": "directory", "entries": entries } }).to_string()
    };
    let texts = [
        String::new(),
        "[[[[[[[[[[[[".to_owned(),
        "{\"version\":1,\"root\":{\"type\":\"regular\",\"size\":18446744073709551615}}".to_owned(),
        TWICE.to_owned(),
        with_name("../x"),
        with_name("/etc/passwd"),
        with_name(".."),
        with_name("a\0b"),
    ];
    for four in texts.chunks(4) {
        let store = RemoteStore::with(&NAMES, |cache| cache.compression = Compression::Zstd);
        for (path, text) in store.paths.iter().zip(four) {
            fs::write(store.cache.listing_file(path), text).unwrap();
        }
        let http = HttpServer::start(&store.cache.dir);
        let server = store.serve(&[&http.url()], &[]);
        let mut client = Client::start(&server.socket, 1);
        assert_eq!(first_files(&store, &mut client), [Ok(()); 4]);
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_silent_server_is_an_error_after_the_timeout_and_other_reads_continue() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    http.fault(&format!("nar/{}", store.paths[1].hash()), Fault::Hang);
    let server = store.serve(&[&http.url()], &["--fetch-timeout", "2"]);
    let mut client = Client::start(&server.socket, 1);
    assert_eq!(
        first_files(&store, &mut client),
        [Ok(()), Err(EIO), Ok(()), Ok(())]
    );
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_read_that_waits_for_a_fetch_is_counted_as_in_flight() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    http.fault(&format!("nar/{}", store.paths[1].hash()), Fault::Hang);
    let server = store.serve(&[&http.url()], &["--fetch-timeout", "20"]);
    let image = store.expected();
    let file = &store.files_of(&image, region(&image, &store.paths[1].name))[0];
    let start = file.range.start;
    let mut client = Client::start(&server.socket, 1);
    let reader = std::thread::spawn(move || read(&mut client, start..start + 4096));
    wait_for("the read to be told", || {
        let told = status_json(&server.socket);
        (told["vms"][0]["waiting"] == 1).then_some(())
    });
    assert_eq!(reader.join().unwrap(), Err(EIO));
}

#[test]
fn impossible_starts_are_refused() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let url = http.url();
    let try_start = |args: &[String]| {
        let started = crate::common::server::Server::try_start_after(&[], args, &[]);
        started.err().expect("it must not start")
    };
    let narinfo = fs::read_to_string(store.cache.narinfo_file(&store.paths[1])).unwrap();
    let path = store.paths[1].path();
    for (text, part) in [
        (
            narinfo.replace("NarSize: ", "NarSize: 1"),
            "the signature of",
        ),
        (
            narinfo.replace("test-1:", "other-1:"),
            "is not signed by a trusted key, but by other-1",
        ),
        (
            narinfo.replace(&store.paths[1].name, &store.paths[2].name),
            "instead of",
        ),
        (
            narinfo
                .lines()
                .filter(|line| !line.starts_with("Sig"))
                .map(|line| format!("{line}\n"))
                .collect(),
            "is not signed",
        ),
        ("garbage".to_owned(), "narinfo"),
    ] {
        fs::write(store.cache.narinfo_file(&store.paths[1]), text).unwrap();
        let stderr = try_start(&store.args(&[&url]));
        assert!(stderr.contains(part) && stderr.contains(&path), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    fs::remove_file(store.cache.narinfo_file(&store.paths[1])).unwrap();
    let stderr = try_start(&store.args(&[&url]));
    assert!(
        stderr.contains("no binary cache has it") && stderr.contains(&path),
        "{stderr}"
    );
    let stderr = try_start(&store.args(&["gopher://x"]));
    assert!(stderr.contains("gopher://x is not the URL"), "{stderr}");
    drop(http);
    let other = store.args(&[&url]);
    let stderr = try_start(&other);
    assert!(stderr.contains(&url), "{stderr}");
}
