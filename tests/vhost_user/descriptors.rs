//! A server with few descriptors, and a client that reads more files than it can keep open.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lazystore::image::Image;
use tempfile::TempDir;

use crate::common::client::{Client, DEPTH};
use crate::common::process::{first_line, wait_for};
use crate::common::server::{command, wait};
use crate::common::tree_image;

/// Soft and hard limit of open files.
const LIMIT: usize = 400;

/// Maximum number of open store files with that limit (`src/cli/limits.rs`).
const STORE_FILES: usize = LIMIT - 256;

/// Number of files of two blocks each: more than can be open.
const FILES: usize = 600;
const FILE_BYTES: usize = 5000;

fn many_files() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    for index in 0..FILES {
        let byte = u8::try_from(index % 251).unwrap();
        fs::write(tree.path().join(index.to_string()), [byte; FILE_BYTES]).unwrap();
    }
    tree
}

/// `lazystore serve --once` under the limit.
fn limited(tree: &Path, socket: &Path) -> Command {
    let served = command(tree, socket, &["--once"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -n {LIMIT} && exec \"$@\""), "sh"])
        .arg(served.get_program())
        .args(served.get_args())
        .stdout(Stdio::piped());
    limited
}

/// Number of files below `dir`, which is `/store` in a jail, that a process has open.
fn open_beneath(dir: &Path, pid: u32) -> usize {
    let beneath = |target: &Path, dir: &Path| target.starts_with(dir) && target != dir;
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .filter(|target| beneath(target, dir) || beneath(target, Path::new("/store")))
        .count()
}

/// The first bytes of all files on the disk, in a non-sequential order.
fn scattered(image: &Image) -> Vec<(u64, usize)> {
    let mut starts = Vec::new();
    image
        .file_ranges(&mut |start, len| starts.extend((start..start + len).step_by(8192)))
        .unwrap();
    assert_eq!(starts.len(), FILES);
    let stride = 251;
    let place = |index: usize| (starts[index * stride % FILES], FILE_BYTES / 512 * 512);
    (0..FILES).map(place).collect()
}

#[test]
#[ignore = "needs root"]
fn the_number_of_open_files_stays_within_the_limit() {
    let tree = many_files();
    let image = tree_image(tree.path());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let mut server = limited(tree.path(), &socket).spawn().unwrap();
    assert!(first_line(&mut server).starts_with("ready "));
    let mut client = Client::start(&socket, 1);
    let worker = wait_for("the worker", || {
        let pid = server.id();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .ok()?
            .trim()
            .parse()
            .ok()
    });
    let mut most = 0;
    for reads in scattered(&image).chunks(DEPTH) {
        for (data, (start, len)) in client.read(0, reads).into_iter().zip(reads) {
            let mut expected = vec![0; *len];
            image.read_exact_at(&mut expected, *start).unwrap();
            assert!(data.unwrap() == expected, "{len} bytes at {start}");
        }
        most = most.max(open_beneath(tree.path(), worker));
    }
    assert!((STORE_FILES / 2..=STORE_FILES).contains(&most), "{most}");
    drop(client);
    assert!(wait(&mut server).success());
}
