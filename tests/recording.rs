//! Recording what a VM reads, and prefetching a recording.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lazystore::closure::{Closure, Source, StoreLocation};
use lazystore::image::recording::{Recording, RegionPart};
use lazystore::image::{Image, ImageOptions};
use nix::sys::signal::{Signal, kill};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use crate::common::client::Client;
use crate::common::process::wait_for;
use crate::common::server::{Server, command_after};
use crate::common::tool;

const BLOCK: u64 = 4096;

/// Name of a store path: a directory with one file `data`.
fn name(letter: char) -> String {
    format!("{}-{letter}", letter.to_string().repeat(32))
}

/// A store with paths of 4 MiB, and a directory for recordings. On the file system of the build, because files in a tmpfs
/// are always in memory.
struct Store {
    dir: TempDir,
}

impl Store {
    fn new(letters: &str) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for letter in letters.chars() {
            let path = dir.path().join("nix/store").join(name(letter));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("data"), vec![letter as u8; 4 << 20]).unwrap();
        }
        Self { dir }
    }

    fn file(&self, letter: char) -> PathBuf {
        self.path(&format!("nix/store/{}/data", name(letter)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A list of some of the paths.
    fn list(&self, letters: &str) -> PathBuf {
        let lines = letters.chars().map(|c| format!("/nix/store/{}\n", name(c)));
        let list = self.path(&format!("list-{letters}"));
        fs::write(&list, lines.collect::<String>()).unwrap();
        list
    }

    fn image(&self, letters: &str) -> Image {
        let source = Source::StorePaths {
            list: self.list(letters),
            registration: None,
        };
        let location = StoreLocation {
            store_root: Some(self.dir.path().to_owned()),
            ..StoreLocation::default()
        };
        let closure = Closure::load(&source, &location).unwrap();
        Image::new(&closure, &ImageOptions::default()).unwrap()
    }

    fn serve(&self, letters: &str, option: &str, recording: &Path) -> Server {
        let extra = [option, recording.to_str().unwrap()];
        Server::start_after(&[], &self.closure(letters), &extra)
    }

    /// The arguments for this closure.
    fn closure(&self, letters: &str) -> [PathBuf; 4] {
        let root = self.dir.path().to_owned();
        [
            "--store-paths".into(),
            self.list(letters),
            "--store-root".into(),
            root,
        ]
    }
}

/// Evicts a file from the host's page cache.
fn forget(file: &Path) {
    let open = File::open(file).unwrap();
    open.sync_all().unwrap();
    fadvise(&open, 0, None, Advice::DontNeed).unwrap();
    assert_eq!(in_memory(file), 0, "the host keeps what it should forget");
}

/// Number of pages of a file in the host's page cache.
fn in_memory(file: &Path) -> usize {
    let mut fincore = Command::new(tool("fincore", "util-linux-extra"));
    let output = fincore.args(["--bytes", "--noheadings", "--output", "PAGES"]);
    let output = output.arg(file).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Reads blocks of a path's file as one VM, which then disconnects.
fn read(server: &Server, image: &Image, region: u32, blocks: Range<u64>) {
    let mut client = Client::start(&server.socket, 1);
    read_as(&mut client, image, region, blocks);
}

fn read_as(client: &mut Client, image: &Image, region: u32, blocks: Range<u64>) {
    let start = u64::from(image.space().region(region).data.start) + blocks.start;
    let len = usize::try_from((blocks.end - blocks.start) * BLOCK).unwrap();
    let got = client.read(0, &[(start * BLOCK, len)]);
    assert_eq!(got[0].as_ref().map(Vec::len), Ok(len));
}

fn recording(path: &Path) -> Recording {
    Recording::parse(&fs::read(path).unwrap()).unwrap()
}

fn data_touches(path: &Path) -> Vec<(usize, Range<u32>)> {
    let touches = recording(path).touches.into_iter();
    touches
        .filter(|touch| touch.part == RegionPart::Data)
        .map(|touch| (touch.path, touch.blocks))
        .collect()
}

fn no_worker_is_left(server: &Server) {
    wait_for("the worker to end", || {
        server.workers().is_empty().then_some(())
    });
}

#[test]
#[ignore = "needs fincore"]
fn prefetching_a_recording_brings_its_data_into_memory() {
    let store = Store::new("abcd");
    let image = store.image("abc");
    let file = store.path("recording");
    let server = store.serve("abc", "--record", &file);
    let mut client = Client::start(&server.socket, 1);
    for (region, blocks) in [(1, 700..732), (0, 0..8), (2, 100..101), (1, 700..740)] {
        read_as(&mut client, &image, region, blocks);
    }
    drop(client);
    no_worker_is_left(&server);
    // A second VM is not recorded.
    read(&server, &image, 2, 500..510);
    no_worker_is_left(&server);
    let touched = [(0, 700..732), (1, 0..8), (2, 100..101), (0, 732..740)];
    assert_eq!(data_touches(&file), touched);
    drop(server);

    // In another closure the paths have other addresses. One is gone, one is new.
    let files = ['a', 'b', 'c', 'd'].map(|letter| store.file(letter));
    files.iter().for_each(|file| forget(file));
    let mut server = store.serve("bcd", "--prefetch", &file);
    no_worker_is_left(&server);
    // The host reads only what was requested, in units that may be larger than a page.
    let near = |blocks: usize| blocks..=blocks + 24;
    wait_for("the recorded ranges to be in memory", || {
        let there = [1, 2].map(|file| in_memory(&files[file]));
        (near(40).contains(&there[0]) && near(1).contains(&there[1])).then_some(())
    });
    assert_eq!(in_memory(&files[0]), 0, "not in the closure");
    assert_eq!(in_memory(&files[3]), 0, "not recorded");
    let image = store.image("bcd");
    read(&server, &image, 0, 0..8);
    assert!(server.is_running());
}

#[test]
fn a_recording_continues_after_a_worker_is_killed() {
    let store = Store::new("a");
    let image = store.image("a");
    let file = store.path("recording");
    fs::write(&file, "of old").unwrap();
    let server = store.serve("a", "--record", &file);
    for blocks in [0..3, 10..12] {
        let mut client = Client::start(&server.socket, 1);
        read_as(&mut client, &image, 0, blocks);
        server
            .workers()
            .into_iter()
            .for_each(|pid| kill(pid, Signal::SIGKILL).unwrap());
        no_worker_is_left(&server);
    }
    read(&server, &image, 0, 20..21);
    no_worker_is_left(&server);
    read(&server, &image, 0, 30..31);
    no_worker_is_left(&server);
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains("of old"));
    assert_eq!(data_touches(&file), [(0, 0..3), (1, 10..12), (2, 20..21)]);
}

/// Clients that are silent or do not read are not recorded, and do not prevent others from being recorded.
#[test]
fn a_client_that_reads_nothing_is_not_recorded() {
    let store = Store::new("a");
    let image = store.image("a");
    let file = store.path("recording");
    let server = store.serve("a", "--record", &file);
    let _silent = UnixStream::connect(&server.socket).unwrap();
    wait_for("a worker", || (server.workers().len() == 1).then_some(()));
    let mut idle = Client::start(&server.socket, 1);
    read(&server, &image, 0, 3..5);
    read_as(&mut idle, &image, 0, 7..8);
    assert_eq!(data_touches(&file), [(0, 3..5)]);
}

#[test]
fn an_existing_recording_stays_if_nothing_is_read() {
    let store = Store::new("a");
    let file = store.path("recording");
    fs::write(&file, "of old").unwrap();
    let server = store.serve("a", "--record", &file);
    server.signal(Signal::SIGTERM);
    assert!(server.end().0.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), "of old");
}

/// The error of a server that fails at the start.
fn fails(store: &Store, option: &str, recording: &Path) -> String {
    let socket = store.path("disk.sock");
    let extra = [option, recording.to_str().unwrap()];
    let mut command = command_after(&[], &store.closure("a"), &socket, &extra);
    let Output { status, stderr, .. } = command.output().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!socket.exists());
    String::from_utf8(stderr).unwrap()
}

#[test]
fn an_invalid_recording_is_refused_with_its_line() {
    let store = Store::new("a");
    let file = store.path("recording");
    let error = fails(&store, "--prefetch", &file);
    assert!(error.contains("make one with --record"), "{error}");
    fs::write(&file, "lazystore recording 1\n+ x\nd 0 0\n").unwrap();
    let error = fails(&store, "--prefetch", &file);
    assert!(
        error.contains("line 3 is not part of a recording"),
        "{error}"
    );
    let error = fails(&store, "--record", &store.path("none/recording"));
    assert!(error.contains("cannot write the recording"), "{error}");
}
