//! Caches that are trusted for parts of NARs. Parts are fetched on demand. A complete NAR is verified, and parts that
//! contradict it are I/O errors from then on.

use std::fs;
use std::ops::Range;
use std::process::Command;

use lazystore::closure::narinfo::Compression;
use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use super::commands::fetcher;
use super::servers::{free_port, nginx, s3};
use super::{region, requests};
use crate::common::cache::Cache;
use crate::common::client::Client;
use crate::common::http::{Fault, HttpServer};
use crate::common::process::wait_for;
use crate::common::remote::{RemoteStore, assert_same, read, used};
use crate::common::server::Server;
use crate::common::small_store::FileOnDisk;

const EIO: i32 = -5;
const MIB: usize = 1 << 20;

/// Sizes of files: some 13 MiB, 2 of them in small files.
const FILES: [(&str, &[usize]); 3] = [
    ("a", &[3_000_000, 2_500_000, 4000]),
    ("b/deep", &[5_000_000]),
    ("z", &[700, 2_000_000]),
];

fn store() -> RemoteStore {
    let uncompressed = |cache: &mut Cache| cache.compression = Compression::None;
    RemoteStore::with_files(&["large", "other"], &FILES, uncompressed)
}

fn serve(store: &RemoteStore, url: &str) -> Server {
    store.serve(&[url], &["--trust-ranges", url])
}

/// A file of the path `large`.
fn file(store: &RemoteStore, image: &Image, name: &str) -> FileOnDisk {
    let files = store.files_of(image, region(image, &store.paths[0].name));
    let found = files.into_iter().find(|file| file.path.ends_with(name));
    found.unwrap()
}

/// Reads `range` of a file and checks it.
fn read_file(client: &mut Client, file: &FileOnDisk, range: Range<usize>) -> Result<(), i32> {
    // Reads must be whole sectors.
    let [start, end] = [range.start / 512 * 512, range.end.next_multiple_of(512)];
    let at = |byte: usize| file.range.start + byte as u64;
    let found = read(client, at(start)..at(end))?;
    assert!(found[range.start - start..][..range.len()] == file.content[range]);
    Ok(())
}

fn nar_name(store: &RemoteStore) -> String {
    format!("nar/{}.nar", store.paths[0].hash())
}

fn names_in(store: &RemoteStore, dir: &str) -> Vec<String> {
    let entries = fs::read_dir(store.cache_dir().join(dir)).unwrap();
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.map(name).collect()
}

/// Waits until nothing is being fetched. Everything has then been verified or refused.
fn wait_for_all(store: &RemoteStore, dir: &str, end: &str, count: usize) {
    wait_for("all pieces", || {
        let names = names_in(store, dir);
        let found = names.iter().filter(|name| name.ends_with(end)).count();
        (found == count).then_some(())
    });
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn parts_are_kept_and_a_complete_nar_is_verified() {
    let store = store();
    let http = HttpServer::start(&store.cache.dir);
    let (image, url, nar) = (store.expected(), http.url(), nar_name(&store));
    let deep = file(&store, &image, "file5000000");
    let mut server = serve(&store, &url);
    let mut client = Client::start(&server.socket, 1);
    read_file(&mut client, &deep, 2 * MIB..2 * MIB + 4096).unwrap();
    let first = http.parts(&nar);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!(first[0][1] - first[0][0] + 1, MIB);
    // A read across a boundary between pieces. The following pieces are then prefetched.
    read_file(&mut client, &deep, 2 * MIB..3 * MIB + 4096).unwrap();
    let parts = wait_for("what is fetched in advance", || {
        let parts = http.parts(&nar);
        (parts.len() == 4).then_some(parts)
    });
    assert_eq!(requests(&http, &nar).len(), parts.len(), "all are parts");
    assert!(names_in(&store, "nars").is_empty());
    let [name] = &names_in(&store, "partial")[..] else {
        panic!("one partial NAR");
    };
    // The test's HTTP server has sent a part before the fetcher has kept it: a record of 36 bytes after the NAR.
    let partial = store.cache_dir().join("partial").join(name);
    let kept_len_bytes = store.paths[0].nar.len() + parts.len() * 36;
    wait_for("the parts to be kept", || {
        let len_bytes = fs::metadata(&partial).unwrap().len();
        (len_bytes == kept_len_bytes as u64).then_some(())
    });
    drop(client);
    server.signal(Signal::SIGKILL);
    wait_for("its end", || (!server.is_running()).then_some(()));

    let server = serve(&store, &url);
    let mut client = Client::start(&server.socket, 1);
    read_file(&mut client, &deep, 2 * MIB..3 * MIB + 4096).unwrap();
    assert_eq!(http.parts(&nar).len(), parts.len(), "what was kept is used");
    assert_same(&mut client, &image);
    wait_for_all(&store, "nars", "", 2);
    assert_same(&mut client, &image);
    assert!(names_in(&store, "partial").is_empty());
    // Each piece was fetched once.
    let mut parts = http.parts(&nar);
    parts.sort_unstable();
    parts.dedup();
    assert_eq!(parts.len(), http.parts(&nar).len());
    assert_eq!(parts.len(), store.paths[0].nar.len().div_ceil(MIB));
    drop((client, server));
    let mut verify = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    let verify = verify.args(["cache", "verify", "--cache-dir"]);
    let output = verify.arg(store.cache_dir()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let before = http.requests().len();
    assert_same(&mut Client::start(&serve(&store, &url).socket, 1), &image);
    assert_eq!(http.requests().len(), before);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn caches_that_are_not_trusted_are_asked_for_whole_nars() {
    let store = store();
    let (one, other) = (
        HttpServer::start(&store.cache.dir),
        HttpServer::start(&store.cache.dir),
    );
    let image = store.expected();
    let (url, trusted) = (one.url(), other.url());
    let server = store.serve(&[&url, &trusted], &["--trust-ranges", &trusted]);
    assert_same(&mut Client::start(&server.socket, 1), &image);
    let asked = requests(&one, ".nar");
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(one.parts("").is_empty() && other.requests().is_empty());
    // A cache that is not in --from cannot be trusted.
    let args = store.args(&[&url]);
    let extra = ["--trust-ranges", "https://elsewhere.example"];
    let text = Server::try_start_after(&[], &args, &extra).err().unwrap();
    assert!(text.contains("https://elsewhere.example"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_server_without_correct_ranges_is_asked_for_the_whole_nar() {
    let store = store();
    let image = store.expected();
    let whole = store.paths[0].nar.len();
    let deep = file(&store, &image, "file5000000");
    for (fault, reason) in [
        (Fault::Body(store.paths[0].nar.clone()), "range requests"),
        (
            Fault::Part(format!("bytes 0-1048575/{whole}"), vec![0; MIB]),
            "another range",
        ),
        (
            Fault::Part("bytes 7340032-8388607/*".to_owned(), vec![0; MIB]),
            "another range",
        ),
        (
            Fault::Part(format!("bytes 7340032-8388607/{whole}"), vec![0; MIB - 1]),
            "wrong length",
        ),
        (
            Fault::Part(format!("bytes 7340032-8388607/{whole}"), vec![0; MIB + 1]),
            "wrong length",
        ),
        (Fault::Encoded("zstd", Vec::new()), ""),
    ] {
        let http = HttpServer::start(&store.cache.dir);
        let times = if reason.is_empty() { 1 } else { 1000 };
        http.fault_times(&nar_name(&store), fault, times);
        let server = serve(&store, &http.url());
        let mut client = Client::start(&server.socket, 1);
        // Byte 7 MiB of the NAR is in it.
        read_file(&mut client, &deep, MIB + 900_000..2 * MIB).unwrap();
        assert_same(&mut client, &image);
        assert!(http.parts(&nar_name(&store)).len() < 3);
        drop(client);
        server.signal(Signal::SIGTERM);
        let (_, log) = server.end();
        assert!(
            log.contains("fetching the whole NAR instead") && log.contains(reason),
            "{reason}: {log}"
        );
        fs::remove_dir_all(store.cache_dir()).unwrap();
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn parts_that_do_not_match_the_signed_nar_are_an_error_once_it_is_complete() {
    let store = store();
    let http = HttpServer::start(&store.cache.dir);
    let mut nar = store.paths[0].nar.clone();
    let at = nar.len() - MIB;
    nar[at] ^= 1;
    store.cache.put_nar(&store.paths[0], &nar);
    let image = store.expected();
    let url = http.url();
    let server = serve(&store, &url);
    let mut client = Client::start(&server.socket, 1);
    let deep = file(&store, &image, "file5000000");
    read_file(&mut client, &deep, 0..4096).unwrap();
    // Reading half of it causes the rest to be fetched.
    let large = file(&store, &image, "file3000000");
    read_file(&mut client, &large, 0..3_000_000).unwrap();
    let _ = read_file(&mut client, &deep, 0..5_000_000);
    wait_for_all(&store, "trees", ".contradicted", 1);
    assert_eq!(read_file(&mut client, &deep, 0..4096), Err(EIO));
    assert_eq!(read_file(&mut client, &large, 0..4096), Err(EIO));
    let others = store.files_of(&image, region(&image, &store.paths[1].name));
    read_file(&mut client, &others[0], 0..4096).unwrap();
    wait_for_all(&store, "partial", "", 1);
    assert!(names_in(&store, "nars").is_empty());
    drop(client);
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("ERROR") && line.contains("are not of the NAR"))
        .collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains(&url) && errors[0].contains(&store.paths[0].path()));

    let server = serve(&store, &url);
    let mut client = Client::start(&server.socket, 1);
    assert_eq!(read_file(&mut client, &deep, 0..4096), Err(EIO));
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_listing_contradicted_by_a_part_is_a_permanent_error() {
    let store = store();
    let mut listing = store.paths[0].listing.clone();
    // The sum of the sizes is right, but two files are swapped.
    let entries = &mut listing["root"]["entries"]["a"]["entries"];
    let (one, other) = (
        entries["file3000000"].clone(),
        entries["file2500000"].clone(),
    );
    let third = entries["file4000"].clone();
    *entries = json!({ "file2500000": one, "file3000000": other, "file4000": third });
    for name in ["file2500000", "file3000000", "file4000"] {
        entries[name].as_object_mut().unwrap().remove("narOffset");
    }
    store.cache.put_listing(&store.paths[0], &listing);
    let http = HttpServer::start(&store.cache.dir);
    let server = serve(&store, &http.url());
    let mut client = Client::start(&server.socket, 1);
    let image = store.expected();
    let here = region(&image, &store.paths[0].name);
    let start = u64::from(here.data.start) * 4096;
    assert_eq!(read(&mut client, start..start + 4096), Err(EIO));
    let others = store.files_of(&image, region(&image, &store.paths[1].name));
    read_file(&mut client, &others[0], 0..4096).unwrap();
    drop(client);
    server.signal(Signal::SIGTERM);
    let (_, log) = server.end();
    assert!(log.contains("contradicts its NAR"), "{log}");
    assert!(names_in(&store, "partial").len() < 2);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_listing_of_another_cache_is_not_used_to_locate_parts() {
    let store = store();
    // The trusted cache has no listing. The other cache has one, but no narinfo.
    let copy = store.root().join("copy");
    super::copy(&store.cache.dir, &copy);
    fs::remove_file(store.cache.listing_file(&store.paths[0])).unwrap();
    for path in &store.paths {
        fs::remove_file(copy.join(format!("{}.narinfo", path.hash()))).unwrap();
    }
    let (trusted, other) = (
        HttpServer::start(&store.cache.dir),
        HttpServer::start(&copy),
    );
    let (url, image) = (trusted.url(), store.expected());
    let server = store.serve(&[&url, &other.url()], &["--trust-ranges", &url]);
    let mut client = Client::start(&server.socket, 1);
    assert_same(&mut client, &image);
    assert!(trusted.parts(&nar_name(&store)).is_empty());
    assert!(
        !trusted.parts(".nar").is_empty(),
        "the other path has its own"
    );
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn vms_do_not_notice_that_the_fetcher_of_parts_is_killed() {
    let store = store();
    let http = HttpServer::start(&store.cache.dir);
    http.latency(std::time::Duration::from_millis(5));
    let server = serve(&store, &http.url());
    let image = store.expected();
    let mut client = Client::start(&server.socket, 1);
    let mut killed = 0;
    for range in used(&image) {
        let mut at = range.start;
        while at < range.end {
            if killed < 12
                && let Some(pid) = fetcher(&server)
            {
                kill(pid, Signal::SIGKILL).unwrap();
                killed += 1;
            }
            let end = range.end.min(at + MIB as u64);
            let mut expected = vec![0; usize::try_from(end - at).unwrap()];
            image.read_exact_at(&mut expected, at).unwrap();
            assert!(read(&mut client, at..end) == Ok(expected));
            at = end;
        }
    }
    assert_eq!(killed, 12);
    // If a fetcher is killed before it verifies, its successor does so when it is asked for a piece.
    assert_same(&mut Client::start(&server.socket, 1), &image);
    wait_for_all(&store, "nars", "", 2);
}

#[test]
#[ignore = "needs nginx and s3s-fs"]
fn parts_come_from_nginx_and_a_bucket() {
    let store = store();
    let image = store.expected();
    let deep = file(&store, &image, "file5000000");
    let ports = [(); 2].map(|()| free_port());
    let _nginx = nginx(&store.cache.dir, ports[0]);
    let _s3 = s3(&store.cache.dir, ports[1], "AKIDEXAMPLE", "a/secret+key=");
    let keys = [
        "env",
        "AWS_ACCESS_KEY_ID=AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY=a/secret+key=",
    ];
    for url in [
        format!("http://127.0.0.1:{}", ports[0]),
        format!(
            "s3://store?endpoint=127.0.0.1:{}&scheme=http&region=eu-north-1",
            ports[1]
        ),
    ] {
        let args = store.args(&[&url]);
        let server = Server::start_after(&keys, &args, &["--trust-ranges", &url]);
        let mut client = Client::start(&server.socket, 1);
        read_file(&mut client, &deep, 0..4096).unwrap();
        assert_eq!(names_in(&store, "partial").len(), 1, "{url}");
        assert_same(&mut client, &image);
        wait_for_all(&store, "nars", "", 2);
        drop((client, server));
        fs::remove_dir_all(store.cache_dir()).unwrap();
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn parts_come_from_directories_and_through_redirects() {
    let store = store();
    let image = store.expected();
    let deep = file(&store, &image, "file5000000");
    let url = format!("file://{}", store.cache.dir.display());
    let server = serve(&store, &url);
    let mut client = Client::start(&server.socket, 1);
    read_file(&mut client, &deep, 0..4096).unwrap();
    assert_eq!(names_in(&store, "partial").len(), 1);
    assert_same(&mut client, &image);
    drop((client, server));
    fs::remove_dir_all(store.cache_dir()).unwrap();

    let (http, elsewhere) = (
        HttpServer::start(&store.cache.dir),
        HttpServer::start(&store.cache.dir),
    );
    let nar = nar_name(&store);
    http.fault(&nar, Fault::Redirect(format!("{}/{nar}", elsewhere.url())));
    let server = serve(&store, &http.url());
    let mut client = Client::start(&server.socket, 1);
    read_file(&mut client, &deep, 0..4096).unwrap();
    assert!(!elsewhere.parts(&nar).is_empty() && names_in(&store, "partial").len() == 1);
    assert_same(&mut client, &image);
}
