//! Remote store paths as a file, and with `lazystore run`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::{NAMES, region};
use crate::common::fuse;
use crate::common::http::HttpServer;
use crate::common::remote::{RemoteStore, used};

#[test]
#[ignore = "needs root: mounts"]
fn a_remote_store_is_served_as_a_file() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let server = fuse::Server::start(&store.args(&[&http.url()]));
    let image = store.expected();
    let file = File::open(server.image()).unwrap();
    for range in used(&image) {
        let mut expected = vec![0; usize::try_from(range.end - range.start).unwrap()];
        let mut found = expected.clone();
        image.read_exact_at(&mut expected, range.start).unwrap();
        file.read_exact_at(&mut found, range.start).unwrap();
        assert!(found == expected, "{range:?}");
    }
    // Read through the kernel's file system, too.
    drop(file);
    let place = fuse::mount_loop(&server.image());
    for path in &store.paths {
        let name = format!("{}/bin/file5000", path.name);
        let [found, expected] = [place.path(), &store.trees()].map(|dir| fs::read(dir.join(&name)));
        assert!(found.unwrap() == expected.unwrap());
    }
}

#[test]
#[ignore = "needs root: mounts"]
fn a_remote_store_is_served_to_a_command_of_run() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let image = store.expected();
    let file = &store.files_of(&image, region(&image, &store.paths[2].name))[0];
    let script = format!(
        "dd if=\"$0\" bs=4096 skip={} count=1 status=none",
        file.range.start / 4096
    );
    let mut run = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    run.arg("run").args(store.args(&[&http.url()]));
    run.args(["--", "sh", "-c", &script, "{image}"]);
    let output = run.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let len = file.content.len().min(4096);
    assert!(output.stdout[..len] == file.content[..len]);
    let nars = fs::read_dir(store.cache_dir().join("nars")).unwrap();
    assert_eq!(nars.count(), 1, "only what was read is fetched");
}
