//! Store paths that exist only in a binary cache: their disk, how little is fetched, and faults.

mod commands;
mod faults;
mod kept;
mod kills;
mod ranges;
mod servers;
mod ways;

use std::fs;
use std::path::Path;

use lazystore::closure::narinfo::Compression;
use lazystore::erofs::layout::space::Region;
use lazystore::image::Image;
use nix::sys::signal::Signal;

use crate::common::client::Client;
use crate::common::http::HttpServer;
use crate::common::process::wait_for;
use crate::common::remote::{RemoteStore, assert_same, read, used};

const NAMES: [&str; 4] = ["top", "middle", "bottom", "last"];

fn region<'i>(image: &'i Image, name: &str) -> &'i Region {
    let regions = image.space().regions();
    regions
        .iter()
        .find(|region| *region.name == *name.as_bytes())
        .unwrap()
}

/// Reads the first file of path `index` through `client`. It must be right or an error.
fn first_file(store: &RemoteStore, client: &mut Client, index: usize) -> Result<(), i32> {
    let image = store.expected();
    let here = region(&image, &store.paths[index].name);
    let file = &store.files_of(&image, here)[0];
    let found = read(client, file.range.start..file.range.start + 4096)?;
    let len = file.content.len().min(4096);
    assert!(found[..len] == file.content[..len], "{}", file.path);
    Ok(())
}

/// Requests so far for files whose names have this suffix.
fn requests(server: &HttpServer, end: &str) -> Vec<String> {
    let mut all = server.requests();
    all.retain(|path| path.ends_with(end));
    all
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_remote_store_reads_the_same_as_a_local_one() {
    for (compression, listings) in [
        (Compression::Xz, true),
        (Compression::Zstd, false),
        (Compression::Brotli, true),
        (Compression::Bzip2, false),
        (Compression::Gzip, true),
        (Compression::None, false),
    ] {
        let store = RemoteStore::with(&NAMES, |cache| {
            cache.compression = compression;
            cache.listings = listings;
        });
        let http = HttpServer::start(&store.cache.dir);
        let server = store.serve(&[&http.url()], &[]);
        assert_same(&mut Client::start(&server.socket, 1), &store.expected());
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn paths_on_the_host_are_read_there_and_the_disk_is_the_same() {
    let store = RemoteStore::new(&NAMES);
    let own = &store.paths[2].name;
    let to = store.root().join("nix/store").join(own);
    copy(&store.trees().join(own), &to);
    let list = store.root().join("list");
    let paths: Vec<String> = store.paths.iter().map(|added| added.path()).collect();
    fs::write(&list, paths.join("\n")).unwrap();
    // A path without a NAR size is planned at the start, so the sizes must be registered.
    let registration = store.root().join("registration");
    let records: Vec<String> = store.paths.iter().map(record).collect();
    fs::write(&registration, records.concat()).unwrap();
    let http = HttpServer::start(&store.cache.dir);
    let mut args = store.args(&[&http.url()]);
    args[0] = "--store-paths".to_owned();
    args.insert(1, list.to_str().unwrap().to_owned());
    args.extend([
        "--registration".to_owned(),
        registration.to_str().unwrap().to_owned(),
    ]);
    let server = crate::common::server::Server::start_after(&[], &args, &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
    let asked = http.requests();
    assert!(
        asked.iter().all(|path| !path.contains(&own[..32])),
        "{asked:?}"
    );
}

pub fn record(added: &crate::common::cache::Added) -> String {
    let hash = added.nar_hash();
    let references: String = added
        .references
        .iter()
        .map(|name| format!("/nix/store/{name}\n"))
        .collect();
    let count = added.references.len();
    format!(
        "{}\nsha256:{hash}\n{}\n\n{count}\n{references}",
        added.path(),
        added.nar.len()
    )
}

pub fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(status.unwrap().success());
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn starting_fetches_narinfos_listing_fetches_ls_files_and_reading_fetches_one_nar() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let server = store.serve(&[&http.url()], &[]);
    let image = store.expected();
    let asked = http.requests();
    assert_eq!(requests(&http, ".narinfo").len(), NAMES.len());
    assert_eq!(asked.len(), NAMES.len(), "{asked:?}");

    let mut client = Client::start(&server.socket, 1);
    // Entries of the root directory have no file types, so listing it needs no listing of a path.
    read(&mut client, used(&image)[0].clone()).unwrap();
    assert_eq!(http.requests().len(), NAMES.len());

    let here = region(&image, &store.paths[1].name);
    let meta = u64::from(here.meta.start) * 4096;
    read(&mut client, meta..meta + 4096).unwrap();
    let digits = store.paths[1].hash();
    assert_eq!(requests(&http, ".ls"), [format!("/{digits}.ls")]);
    assert!(requests(&http, ".nar").is_empty());

    let file = &store.files_of(&image, here)[0];
    let found = read(&mut client, file.range.start..file.range.start + 4096).unwrap();
    let len = file.content.len().min(4096);
    assert!(found[..len] == file.content[..len]);
    assert_eq!(requests(&http, ".nar"), [format!("/nar/{digits}.nar")]);
    assert_eq!(requests(&http, ".ls").len(), 1);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_second_start_and_a_second_vm_fetch_nothing() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let url = http.url();
    let image = store.expected();
    let server = store.serve(&[&url], &[]);
    assert_same(&mut Client::start(&server.socket, 1), &image);
    let before = http.requests().len();
    assert_same(&mut Client::start(&server.socket, 1), &image);
    assert_eq!(http.requests().len(), before);
    drop((server, http));
    // Nothing listens there now.
    let server = store.serve(&[&url], &[]);
    assert_same(&mut Client::start(&server.socket, 1), &image);
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_cache_in_a_directory_is_read() {
    let store = RemoteStore::new(&NAMES);
    let url = format!("file://{}", store.cache.dir.display());
    let server = store.serve(&[&url], &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn recorded_paths_are_fetched_before_a_vm_reads_them() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let recording = store.root().join("boot.rec");
    let recording = recording.to_str().unwrap();
    let server = store.serve(&[&http.url()], &["--record", recording]);
    let image = store.expected();
    let file = &store.files_of(&image, region(&image, &store.paths[1].name))[0];
    let mut client = Client::start(&server.socket, 1);
    read(&mut client, file.range.start..file.range.start + 4096).unwrap();
    drop(client);
    server.signal(Signal::SIGTERM);
    assert!(server.end().0.success());
    fs::remove_dir_all(store.cache_dir()).unwrap();

    let before = requests(&http, ".nar").len();
    let _server = store.serve(&[&http.url()], &["--prefetch", recording]);
    wait_for("the NAR", || {
        let nars = fs::read_dir(store.cache_dir().join("nars")).ok()?;
        (nars.count() == 1).then_some(())
    });
    let digits = store.paths[1].hash();
    assert_eq!(
        requests(&http, ".nar")[before..],
        [format!("/nar/{digits}.nar")]
    );
}
