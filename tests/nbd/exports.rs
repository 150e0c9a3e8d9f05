//! `lazystore serve --nbd ADDRESS --export NAME=CLOSURE`: several disks with names.

mod tools;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lazystore::image::Image;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::client::*;
use super::program::{Unix, serve_closure};
use crate::common::proc::planner;
use crate::common::process::{stderr_of, wait_for};
use crate::common::small_store::{SmallStore, fill};
use crate::watching::status_json;

const BLOCK: u64 = 4096;

/// Closures by the names of their exports. The first one is the main closure. All of them share one path, and the first
/// two disks have the same layout.
const CLOSURES: [(&str, [&str; 2]); 3] = [
    ("nix-store", ["aaa-shared", "bbb-main"]),
    ("web", ["aaa-shared", "ccc-web"]),
    ("db", ["aaa-shared", "ddd-db"]),
];

struct Fixture {
    store: SmallStore,
}

impl Fixture {
    fn new() -> Self {
        let store = SmallStore::new(&["aaa-shared", "bbb-main", "ccc-web", "ddd-db"]);
        // This disk is larger than the others.
        fill(&store.store().join("ddd-db"), 3, &[("large", &[3_000_000])]);
        for (name, paths) in CLOSURES {
            store.part(name, &paths);
        }
        Self { store }
    }

    fn root(&self) -> &str {
        self.store.root().to_str().unwrap()
    }

    fn info(&self, name: &str) -> PathBuf {
        self.store.root().join(name)
    }

    fn image(&self, name: &str) -> Image {
        self.store.image_of(&self.info(name))
    }

    fn main(&self) -> Vec<String> {
        let info = self.info(CLOSURES[0].0).display().to_string();
        vec!["--closure-info".to_owned(), info]
    }

    fn exports(&self) -> Vec<String> {
        let others = CLOSURES[1..].iter();
        let export = |name| format!("--export={name}={}", self.info(name).display());
        others.map(|(name, _)| export(name)).collect()
    }

    fn serve(&self, closures: &[String], extra: &[&str]) -> Unix {
        let closures = closures.iter().map(String::as_str);
        let args: Vec<_> = closures.chain(["--store-root", self.root()]).collect();
        serve_closure(&args, extra)
    }

    fn serve_all(&self, extra: &[&str]) -> Unix {
        self.serve(&[self.main(), self.exports()].concat(), extra)
    }

    /// Reads all disks through new concurrent clients. Returns whether no worker has planned a path by itself.
    fn reads_all_as_planned(&self, server: &Unix) -> bool {
        let mut clients = CLOSURES.map(|(name, _)| (name, server.client_of(name)));
        for (name, client) in &mut clients {
            assert_reads(client, &self.image(name));
        }
        let vms = status_json(&server.socket)["vms"].clone();
        vms.as_array().unwrap().iter().all(|vm| vm["plans"] == 0)
    }
}

/// Checks that all used parts of a disk can be read, and nothing after its end.
fn assert_reads(client: &mut Client, image: &Image) {
    assert_eq!(client.len_bytes, image.len_bytes());
    let used = (0..)
        .zip(image.space().regions())
        .flat_map(|(index, region)| {
            let usage = image.usage(index).unwrap();
            [
                (region.meta.start, usage.meta_blocks),
                (region.data.start, usage.data_blocks),
            ]
        });
    let root = (0, image.space().regions()[0].meta.start);
    for (start, blocks) in used.chain([root]).filter(|(_, blocks)| *blocks > 0) {
        let (offset, len) = (BLOCK * u64::from(start), BLOCK * u64::from(blocks));
        let mut expected = vec![0; usize::try_from(len).unwrap()];
        image.read_exact_at(&mut expected, offset).unwrap();
        let read = client.read(0, offset, expected.len()).unwrap();
        assert!(read == expected, "{len} bytes at {offset}");
    }
    let end = image.len_bytes();
    assert_eq!(client.read(0, end, 4096), Err(EINVAL));
}

/// A restarted planner assigns plans to disks again.
#[test]
fn each_name_leads_to_its_own_disk() {
    let fixture = Fixture::new();
    let server = fixture.serve_all(&[]);
    let lens = CLOSURES.map(|(name, _)| fixture.image(name).len_bytes());
    assert!(lens[0] == lens[1] && lens[1] < lens[2], "{lens:?}");
    let is_planned = || fixture.reads_all_as_planned(&server).then_some(());
    wait_for("all paths to be planned", is_planned);
    let first = planner(server.pid()).unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    wait_for("another planner", || {
        is_planned();
        planner(server.pid()).filter(|pid| *pid != first)
    });
    wait_for("all paths to be planned again", is_planned);
}

/// Plan files belong to store paths, so disks with a common path share its file.
#[test]
fn plans_of_all_disks_are_kept_in_one_directory() {
    let fixture = Fixture::new();
    fixture.store.settle();
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("plans");
    for _ in 0..2 {
        let server = fixture.serve_all(&["--plan-dir", kept.to_str().unwrap()]);
        wait_for("all paths to be planned", || {
            fixture.reads_all_as_planned(&server).then_some(())
        });
        wait_for("all plans to be kept", || {
            let names = names(&kept);
            let plans = names.iter().filter(|name| name.ends_with(".plan"));
            (plans.count() == 4).then_some(())
        });
    }
}

/// The names and descriptions in a server's list.
fn listed(server: &Unix) -> Vec<(String, String)> {
    let answers = Client::connect(&server.socket).option(OPT_LIST, &[]);
    let (last, exports) = answers.split_last().unwrap();
    assert_eq!(last.kind, ACK);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let both = exports.iter().map(|answer| {
        let (len, rest) = answer.data.split_first_chunk().unwrap();
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap();
        (text(&rest[..len]), text(&rest[len..]))
    });
    both.collect()
}

#[test]
fn all_disks_are_listed_and_the_main_one_is_the_default() {
    let fixture = Fixture::new();
    let server = fixture.serve_all(&[]);
    let listed = listed(&server);
    for ((name, description), (expected, _)) in listed.iter().zip(CLOSURES) {
        assert_eq!(name, expected);
        let fingerprint = fixture.image(name).fingerprint().unwrap().to_string();
        assert!(description.ends_with(&fingerprint), "{description}");
    }
    assert_eq!(listed.len(), CLOSURES.len());
    let mut client = Client::connect(&server.socket);
    let info = client.option(OPT_INFO, &wanted("", &[1]));
    assert_eq!(info[1].data, b"\0\x01nix-store");
    for unknown in ["nix-stor", "Web", "web/", "no such"] {
        let answers = client.option(OPT_GO, &wanted(unknown, &[]));
        assert_eq!(answers.last().unwrap().kind, UNKNOWN, "{unknown}");
    }
    client.begin("");
    assert_reads(&mut client, &fixture.image("nix-store"));
}

#[test]
fn without_a_main_disk_clients_must_name_an_export() {
    let fixture = Fixture::new();
    let mut server = fixture.serve(&fixture.exports(), &[]);
    let names: Vec<_> = listed(&server).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["web", "db"]);
    let mut client = Client::connect(&server.socket);
    for option in [OPT_INFO, OPT_GO] {
        for name in ["", "nix-store"] {
            let answers = client.option(option, &wanted(name, &[]));
            assert_eq!(answers.last().unwrap().kind, UNKNOWN, "{name}");
        }
    }
    client.begin("db");
    assert_reads(&mut client, &fixture.image("db"));
    let mut oldest = Client::connect(&server.socket);
    oldest.send_option(OPT_EXPORT_NAME, b"");
    assert!(oldest.is_at_end());
    let mut oldest = Client::connect(&server.socket);
    oldest.send_option(OPT_EXPORT_NAME, b"web");
    let len_bytes = u64::from_be_bytes(oldest.bytes());
    assert_eq!(len_bytes, fixture.image("web").len_bytes());
    kill(server.pid(), Signal::SIGTERM).unwrap();
    server.child.wait().unwrap();
    // The options for QEMU also name an export.
    let text = stderr_of(&mut server.child);
    assert!(text.contains("store.nbd,export=web\n"), "{text}");
}

/// The error of `serve` for invalid arguments.
fn refused(args: &[&str], code: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    let output = command.arg("serve").args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let is_error = |line: &&str| line.starts_with("error: ") || line.starts_with("lazystore: ");
    assert_eq!(text.lines().filter(is_error).count(), 1, "{text}");
    text
}

#[test]
fn invalid_export_names_are_refused() {
    let fixture = Fixture::new();
    let nbd = [
        "--nbd",
        "unix:/nowhere/store.nbd",
        "--store-root",
        fixture.root(),
    ];
    let web = fixture.info("web").display().to_string();
    let longest = "n".repeat(4096);
    for (name, words) in [
        ("", "the name of an export is empty"),
        (&*format!("{longest}n"), "4097 bytes"),
        ("a\nb", "control character"),
    ] {
        let export = format!("--export={name}={web}");
        let text = refused(&[&nbd[..], &[&export]].concat(), 2);
        assert!(text.contains(words), "{text}");
    }
    for export in ["--export=web", "--export=web="] {
        let text = refused(&[&nbd[..], &[export]].concat(), 2);
        assert!(text.contains("write NAME=CLOSURE"), "{text}");
    }
    let (main, of_main) = (fixture.main(), format!("--export=nix-store={web}"));
    let main: Vec<_> = main.iter().map(String::as_str).collect();
    let of_web = format!("--export=web={web}");
    for exports in [&[&*of_web, &of_web][..], &[&main[..], &[&of_main]].concat()] {
        let text = refused(&[&nbd[..], exports].concat(), 2);
        assert!(text.contains("two exports have the name"), "{text}");
    }
    // A long name is valid. So is the main disk's default name, if there is no main disk.
    let exports = [of_main, format!("--export={longest}={web}")];
    let server = fixture.serve(&exports, &[]);
    assert_reads(&mut server.client_of(&longest), &fixture.image("web"));
}

#[test]
fn options_that_need_a_main_disk_or_nbd_are_refused() {
    let fixture = Fixture::new();
    let (main, exports) = (fixture.main(), fixture.exports());
    let main: Vec<_> = main.iter().map(String::as_str).collect();
    let exports: Vec<_> = exports.iter().map(String::as_str).collect();
    let nbd = ["--nbd", "unix:/nowhere/store.nbd"];
    let without_nbd = [&main[..], &exports, &["--vhost-user", "/nowhere/socket"]].concat();
    let text = refused(&without_nbd, 2);
    assert!(text.contains("--nbd <PLACE>"), "{text}");
    for more in [
        ["--vhost-user", "/nowhere/socket"],
        ["--fuse", "/nowhere"],
        ["--fd", "3"],
        ["--record", "/nowhere/file"],
        ["--prefetch", "/nowhere/file"],
        ["--report", "/nowhere/file"],
        ["--expect", "0123456789abcdfghijklmnpqrsvwxyz"],
    ] {
        let text = refused(&[&nbd[..], &exports, &more].concat(), 2);
        assert!(text.contains("<ROOT"), "{text}");
    }
    for other in [
        ["--tree", fixture.root()],
        ["--from", "https://cache.nixos.org"],
    ] {
        let text = refused(&[&nbd[..], &exports, &other].concat(), 2);
        assert!(text.contains("cannot be used with"), "{text}");
        assert!(text.contains(other[0]), "{text}");
    }
    let text = refused(&nbd, 2);
    assert!(text.contains("--export <NAME=CLOSURE>"), "{text}");
    let text = refused(&[&nbd[..], &["--export=web=/nowhere/web"]].concat(), 1);
    assert!(text.contains("/nowhere/web"), "{text}");
}

fn status(socket: &Path, format: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    let args = ["--interval", "0.05", "--format", format];
    let output = command.arg("status").arg(socket).args(args).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// Values of `export` in a log, by message.
fn exports_in(log: &str) -> BTreeMap<String, Vec<Value>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let fields = &line["fields"];
        let message = fields["message"].as_str().unwrap().to_owned();
        found
            .entry(message)
            .or_default()
            .push(fields["export"].clone());
    }
    found
}

#[test]
fn status_metrics_and_log_name_the_export_of_a_client() {
    let fixture = Fixture::new();
    let mut server = fixture.serve_all(&["--log-format", "json"]);
    let mut client = server.client_of("web");
    client.read(0, 0, 4096).unwrap();
    let now = status_json(&server.socket);
    assert_eq!(now["vms"][0]["export"], "web");
    // The shared path is counted once.
    assert_eq!(now["paths"], 4);
    let exports = CLOSURES.map(|(name, paths)| {
        let disk = fixture.image(name).fingerprint().unwrap().to_string();
        json!({"name": name, "disk": disk, "paths": paths.len()})
    });
    assert_eq!(now["exports"], json!(exports));
    assert_eq!(now["disk"], exports[0]["disk"]);
    assert!(status(&server.socket, "text").contains("store.nbd (web)\n"));
    let metrics = status(&server.socket, "prometheus");
    assert!(metrics.contains(",export=\"web\"} 4096\n"), "{metrics}");
    kill(server.pid(), Signal::SIGUSR1).unwrap();
    drop(client);
    wait_for("the client to leave", || {
        (status_json(&server.socket)["left"]["vms"] == 1).then_some(())
    });
    kill(server.pid(), Signal::SIGTERM).unwrap();
    server.child.wait().unwrap();
    let logged = exports_in(&stderr_of(&mut server.child));
    assert_eq!(logged["ready"], CLOSURES.map(|(name, _)| name));
    for message in [
        "a VM has connected",
        "status of a VM",
        "a VM has disconnected",
    ] {
        assert_eq!(logged[message], ["web"], "{message}");
    }
}

#[test]
fn with_one_disk_status_and_log_name_no_export() {
    let fixture = Fixture::new();
    let mut server = fixture.serve(&fixture.main(), &["--log-format", "json"]);
    let client = server.client();
    let now = status_json(&server.socket);
    assert_eq!(
        (&now["exports"], &now["vms"][0]["export"]),
        (&json!([]), &Value::Null)
    );
    assert!(!status(&server.socket, "prometheus").contains("export="));
    drop(client);
    kill(server.pid(), Signal::SIGTERM).unwrap();
    server.child.wait().unwrap();
    let logged = exports_in(&stderr_of(&mut server.child));
    assert!(logged.contains_key("a VM has connected"));
    assert!(logged.values().flatten().all(Value::is_null), "{logged:?}");
}

/// Regression: in a chroot store there is one file of temporary roots per process, and the second closure replaced that
/// of the first.
#[test]
fn the_paths_of_all_closures_are_protected_from_garbage_collection() {
    let fixture = Fixture::new();
    let state = fixture.store.root().join("nix/var/nix");
    fs::create_dir_all(state.join("db")).unwrap();
    fs::write(state.join("db/db.sqlite"), "").unwrap();
    let mut server = fixture.serve_all(&[]);
    let file = state.join(format!("temproots/{}", server.pid()));
    let roots = String::from_utf8(fs::read(&file).unwrap()).unwrap();
    let mut held: Vec<_> = roots.split_terminator('\0').collect();
    held.sort_unstable();
    let paths = ["aaa-shared", "bbb-main", "ccc-web", "ddd-db"];
    assert_eq!(held, paths.map(|name| format!("/nix/store/{name}")));
    kill(server.pid(), Signal::SIGTERM).unwrap();
    assert!(server.child.wait().unwrap().success());
    assert!(!file.exists());
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// It is confined before its client chooses an export, so it needs all closures.
#[test]
#[ignore = "needs root"]
fn workers_see_only_the_paths_of_the_closures() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.store.store().join("eee-not-served")).unwrap();
    let server = fixture.serve_all(&[]);
    let mut client = server.client_of("web");
    assert_reads(&mut client, &fixture.image("web"));
    let worker = PathBuf::from(format!("/proc/{}", server.workers()[0]));
    let served = ["aaa-shared", "bbb-main", "ccc-web", "ddd-db"];
    assert_eq!(names(&worker.join("root")), ["store"]);
    assert_eq!(names(&worker.join("root/store")), served);
    // The disks have descriptors of the store, none of which may lead out of the jail.
    let open = fs::read_dir(worker.join("fd")).unwrap();
    let open = open.map(|entry| entry.unwrap().path());
    let dirs = open.filter(|link| fs::metadata(link).is_ok_and(|file| file.is_dir()));
    let dirs: Vec<_> = dirs.map(|link| fs::read_link(link).unwrap()).collect();
    assert_eq!(dirs, vec![PathBuf::from("/store"); CLOSURES.len()]);
}
