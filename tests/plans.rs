//! Plans that the planner process makes for all VMs of a server.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use crate::common::client::Client;
use crate::common::proc::{children, plan_mappings, planner};
use crate::common::process::{end_strace, strace, wait_for};
use crate::common::server::Server;
use crate::common::small_store::{SmallStore, fill};
use crate::watching::status_json;

const BLOCK: u64 = 4096;

/// System calls that walk a store or examine its files.
const WALKS: [&str; 4] = ["statx", "getdents64", "readlinkat", "openat2"];

/// Three paths with small and large files, many directories and symlinks.
pub(crate) fn new_store() -> SmallStore {
    let store = SmallStore::new(&["aaa-one", "bbb-two", "ccc-three"]);
    for (seed, name) in ["aaa-one", "ccc-three"].into_iter().enumerate() {
        let path = store.store().join(name);
        for dir in 0..40 {
            fill(
                &path,
                seed,
                &[(&format!("many/{dir}"), &[1, 100, 1500, 3000])],
            );
            let link = path.join(format!("many/{dir}/link"));
            std::os::unix::fs::symlink("file100", link).unwrap();
        }
    }
    store.register(&BTreeMap::new());
    store
}

/// All metadata that a guest can read, for instance with `find`.
pub(crate) fn metadata(image: &Image) -> Vec<Range<u64>> {
    let regions = (0..).zip(image.space().regions());
    let used = regions.map(|(index, region)| {
        let blocks = image.usage(index).unwrap().meta_blocks;
        BLOCK * u64::from(region.meta.start)..BLOCK * u64::from(region.meta.start + blocks)
    });
    used.collect()
}

/// Reads block by block, as a guest does.
pub(crate) fn scan(client: &mut Client, ranges: &[Range<u64>]) -> Vec<Result<Vec<u8>, i32>> {
    let blocks = ranges.iter().cloned().flat_map(|range| range.step_by(4096));
    blocks
        .map(|at| client.read(0, &[(at, 4096)]).remove(0))
        .collect()
}

pub(crate) fn expected(image: &Image, ranges: &[Range<u64>]) -> Vec<Vec<u8>> {
    let blocks = ranges.iter().cloned().flat_map(|range| range.step_by(4096));
    let read = |at| {
        let mut block = vec![0; 4096];
        image.read_exact_at(&mut block, at).unwrap();
        block
    };
    blocks.map(read).collect()
}

/// Connects and reads all of `ranges`. Returns the number of system calls with which the worker walked the store.
fn walk_calls_of_new_vm(server: &Server, ranges: &[Range<u64>], right: &[Vec<u8>]) -> usize {
    let before = server.workers();
    let mut client = Client::start(&server.socket, 1);
    let is_new = |pid: &Pid| !before.contains(pid);
    let worker = wait_for("a worker", || server.workers().into_iter().find(is_new));
    calls_of_scan(worker, &mut client, ranges, right, &WALKS)
}

/// Has all of `ranges` read; returns how often the worker made one of these system calls.
fn calls_of_scan(
    worker: Pid,
    client: &mut Client,
    ranges: &[Range<u64>],
    right: &[Vec<u8>],
    calls: &[&str],
) -> usize {
    let file = NamedTempFile::new().unwrap();
    let trace = strace(worker, &["-o", file.path().to_str().unwrap()]);
    let read = scan(client, ranges);
    end_strace(trace);
    assert_eq!(read.len(), right.len());
    for (read, right) in read.iter().zip(right) {
        assert!(read.as_ref() == Ok(right));
    }
    let text = fs::read_to_string(file.path()).unwrap();
    let is_call = |line: &&str| {
        let word = line.split_whitespace().nth(1).unwrap_or_default();
        let name = word.split_once('(').map_or("", |(name, _)| name);
        calls.contains(&name)
    };
    text.lines().filter(is_call).count()
}

/// A server whose planner has finished what a first VM requested.
fn planned(store: &SmallStore, image: &Image) -> Server {
    let server = Server::start_after(&[], &store.args(), &[]);
    wait_until_planned(&server, image);
    server
}

fn wait_until_planned(server: &Server, image: &Image) {
    let ranges = metadata(image);
    let right = expected(image, &ranges);
    let first = walk_calls_of_new_vm(server, &ranges, &right);
    let mut vms = 1;
    wait_for("everything to be planned", || {
        vms += 1;
        (walk_calls_of_new_vm(server, &ranges, &right) == 0).then_some(())
    });
    println!("a first VM's worker walked with {first} system calls; VM {vms} with none");
}

#[test]
#[ignore = "needs root and strace"]
fn a_second_vm_walks_no_path() {
    let store = new_store();
    let image = store.image();
    let server = planned(&store, &image);
    // The data are at the same addresses as for the first VM.
    let mut client = Client::start(&server.socket, 1);
    for file in store.files(&image) {
        let start = file.range.start / BLOCK * BLOCK;
        let len = (file.range.end.next_multiple_of(BLOCK) - start).min(128 << 10);
        let read = client
            .read(0, &[(start, usize::try_from(len).unwrap())])
            .remove(0)
            .unwrap();
        let from = usize::try_from(file.range.start - start).unwrap();
        let len = file.content.len().min(read.len() - from);
        assert!(
            read[from..from + len] == file.content[..len],
            "{}",
            file.path
        );
    }
}

/// The first VM, too, walks little if it looks into path after path.
#[test]
#[ignore = "needs root and strace"]
fn paths_that_follow_in_a_scan_are_planned_before_they_are_read() {
    let names: Vec<String> = (0..16).map(|index| format!("{index:02}-path")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let store = SmallStore::new(&names);
    let image = store.image();
    let server = Server::start_after(&[], &store.args(), &[]);
    let mut client = Client::start(&server.socket, 1);
    let worker = wait_for("a worker", || server.workers().pop());
    let mut listed_in = |ranges: &[Range<u64>]| {
        let right = expected(&image, ranges);
        calls_of_scan(worker, &mut client, ranges, &right, &["getdents64"])
    };
    let ranges = metadata(&image);
    assert!(listed_in(&ranges[..8]) > 0);
    wait_for("the others to be planned", || {
        (status_json(&server.socket)["published_plans"] == 16).then_some(())
    });
    assert_eq!(listed_in(&ranges[8..]), 0);
}

/// A compromised worker can map the plans only read-only.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn only_the_planner_can_write_plans() {
    let store = new_store();
    let server = Server::start_after(&[], &store.args(), &[]);
    let _client = Client::start(&server.socket, 1);
    let worker = wait_for("a worker", || server.workers().pop());
    let planner = wait_for("the planner", || planner(server.pid()));
    assert_eq!(plan_mappings(worker), ["r--s"]);
    assert_eq!(plan_mappings(server.pid()), ["r--s"]);
    let mut both = plan_mappings(planner);
    both.sort();
    assert_eq!(both, ["r--s", "rw-s"]);
    for process in [worker, server.pid(), planner] {
        let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let targets = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        let plans = targets.filter(|target| target.to_string_lossy().contains("lazystore-plans"));
        assert_eq!(plans.count(), 0, "nobody can map it again");
    }
    assert_eq!(nice(planner), "19");
    assert_eq!(nice(worker), nice(server.pid()));
}

fn nice(pid: Pid) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    after_name.split(' ').nth(16).unwrap().to_owned()
}

#[test]
#[ignore = "needs root and strace"]
fn vms_do_not_notice_that_the_planner_is_killed() {
    let store = new_store();
    let image = store.image();
    let (ranges, mut deaths) = (metadata(&image), 0);
    let right = expected(&image, &ranges);
    let server = planned(&store, &image);
    let first = planner(server.pid()).unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    wait_for("its end", || {
        planner(server.pid())
            .is_none_or(|pid| pid != first)
            .then_some(())
    });
    // Its plans are still there.
    assert_eq!(walk_calls_of_new_vm(&server, &ranges, &right), 0);
    // It is restarted with another VM, after some time.
    let mut client = None;
    let second = wait_for("another planner", || {
        drop(client.take());
        client = Some(Client::start(&server.socket, 1));
        planner(server.pid()).filter(|pid| *pid != first)
    });
    deaths += 1;
    wait_until_planned(&server, &image);
    kill(second, Signal::SIGKILL).unwrap();
    server.signal(Signal::SIGTERM);
    drop(client);
    let (status, log) = server.end();
    assert!(status.success());
    let warnings = log
        .lines()
        .filter(|line| line.contains("every VM plans paths by itself"));
    assert_eq!(warnings.count(), deaths, "{log}");
}

/// Checks that every used block is right or cannot be read. Returns the number of blocks that cannot be read.
pub(crate) fn right_or_not_there(
    server: &Server,
    ranges: &[Range<u64>],
    right: &[Vec<u8>],
) -> usize {
    let mut client = Client::start(&server.socket, 1);
    let read = scan(&mut client, ranges);
    let pairs = read.iter().zip(right);
    let failed = pairs.filter(|(read, right)| match read {
        Ok(read) => {
            assert!(read == *right);
            false
        }
        Err(_) => true,
    });
    failed.count()
}

pub(crate) fn data(image: &Image) -> Vec<Range<u64>> {
    let regions = (0..).zip(image.space().regions());
    let used = regions.map(|(index, region)| {
        let blocks = image.usage(index).unwrap().data_blocks;
        BLOCK * u64::from(region.data.start)..BLOCK * u64::from(region.data.start + blocks)
    });
    used.collect()
}

fn swap(dir: &Path, aside: &Path) {
    let between = aside.with_extension("between");
    fs::rename(dir, &between).unwrap();
    fs::rename(aside, dir).unwrap();
    fs::rename(&between, aside).unwrap();
}

/// Regression: a later worker planned another tree than the guest had seen, and served wrong bytes with status OK.
#[test]
#[ignore = "needs root and strace"]
fn a_change_after_planning_is_an_error_and_never_wrong_bytes() {
    let store = new_store();
    let image = store.image();
    let ranges: Vec<_> = metadata(&image).into_iter().chain(data(&image)).collect();
    let right = expected(&image, &ranges);
    let server = planned(&store, &image);
    // A replaced directory with other files, and a file with other bytes.
    let (many, aside) = (
        store.store().join("aaa-one/many"),
        store.root().join("aside"),
    );
    fill(&aside, 7, &[("3", &[1, 100, 1500, 3000]), ("4", &[50_000])]);
    let plain = store.store().join("ccc-three/lib/file300000");
    let whole = fs::read(&plain).unwrap();
    let mtime = fs::metadata(&plain).unwrap().modified().unwrap();
    for round in 0..3 {
        swap(&many, &aside);
        fs::write(&plain, vec![0xbd; whole.len()]).unwrap();
        let failed = right_or_not_there(&server, &ranges, &right);
        println!("round {round}: {failed} of {} blocks", right.len());
        assert!(failed > 70);
        swap(&many, &aside);
        fs::write(&plain, &whole).unwrap();
        let file = fs::File::options().write(true).open(&plain).unwrap();
        file.set_modified(mtime).unwrap();
        assert_eq!(right_or_not_there(&server, &ranges, &right), 0);
    }
}

/// With a plan cache of zero bytes there is no planner, and workers plan by themselves.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn with_no_memory_for_plans_there_is_no_planner() {
    let store = new_store();
    let image = store.image();
    let ranges = metadata(&image);
    let server = Server::start_after(&[], &store.args(), &["--plan-cache", "0"]);
    assert_eq!(
        right_or_not_there(&server, &ranges, &expected(&image, &ranges)),
        0
    );
    assert_eq!(planner(server.pid()), None);
    drop(server);
    let tree = Server::start(&store.store(), &[]);
    let _client = Client::start(&tree.socket, 1);
    assert_eq!(children(tree.pid()).len(), 1);
    assert_eq!(planner(tree.pid()), None);
}
