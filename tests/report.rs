//! The boot report: `--report`, `lazystore report`, and its page in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lazystore::erofs::layout::space::Region;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::common::client::Client;
use crate::common::process::wait_for;
use crate::common::server::Server;
use crate::common::small_store::SmallStore;
use crate::common::tool;

/// A server of a small store with a report.
struct Reported {
    store: SmallStore,
    server: Server,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Reported {
    fn start() -> Self {
        let store = SmallStore::new(&["aaa", "bbb", "ccc", "ddd"]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot.json");
        let options = ["--report", file.to_str().unwrap()];
        let server = Server::start_after(&[], &store.args(), &options);
        Self {
            store,
            server,
            file,
            _dir: dir,
        }
    }

    fn written(&self) -> Value {
        wait_for("the report", || fs::read(&self.file).ok());
        serde_json::from_slice(&fs::read(&self.file).unwrap()).unwrap()
    }
}

fn lazystore(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.args(args).output().unwrap()
}

fn touched(report: &Value) -> Vec<&Value> {
    let paths = report["paths"].as_array().unwrap().iter();
    paths.filter(|path| !path["first_ms"].is_null()).collect()
}

fn event(report: &Value, name: &str) -> f64 {
    let mut events = report["events"].as_array().unwrap().iter();
    let event = events.find(|event| event["name"] == name);
    event.unwrap_or_else(|| panic!("{name} in {report}"))["ms"]
        .as_f64()
        .unwrap()
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_report_lists_what_was_read_of_each_path_and_when() {
    let reported = Reported::start();
    let image = reported.store.image();
    let region = image.space().region(0);
    let mut client = Client::start(&reported.server.socket, 1);
    let at = |block: u32| u64::from(block) * 4096;
    for offset in [
        0,
        4096,
        at(region.meta.start),
        at(region.data.start),
        at(region.data.start),
    ] {
        assert!(client.read(0, &[(offset, 4096)])[0].is_ok());
    }
    kill(reported.server.pid(), Signal::SIGUSR2).unwrap();
    drop(client);
    let report = reported.written();
    let [path] = touched(&report)[..] else {
        panic!("{report}")
    };
    assert_eq!(path["name"].as_str().unwrap().as_bytes(), &*region.name);
    assert_eq!(
        [&path["reads"], &path["meta_bytes"], &path["data_bytes"]],
        [3, 4096, 4096]
    );
    assert!(path["nar_bytes"].as_u64() > Some(0));
    let totals = &report["totals"];
    assert_eq!(
        [
            &totals["requests"],
            &totals["bytes"],
            &totals["touched_paths"]
        ],
        [5, 5 * 4096, 1]
    );
    let times = [
        "start",
        "ready",
        "connected",
        "superblock",
        "mounted",
        "last read",
        "booted",
        "left",
    ];
    let times = times.map(|name| event(&report, name));
    assert!(times.is_sorted(), "{report}");
    assert_eq!(event(&report, "first read"), event(&report, "superblock"));
}

/// Every worker is killed after its reads. The report contains what all of them read.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_report_continues_after_a_worker_is_killed() {
    let reported = Reported::start();
    let image = reported.store.image();
    let regions = image.space().regions();
    for region in &regions[..3] {
        let mut client = Client::start(&reported.server.socket, 1);
        let offset = u64::from(region.meta.start) * 4096;
        assert!(client.read(0, &[(offset, 4096)])[0].is_ok());
        for worker in reported.server.workers() {
            kill(worker, Signal::SIGKILL).unwrap();
        }
        wait_for("the worker to be gone", || {
            reported.server.workers().is_empty().then_some(())
        });
        assert!(!reported.file.exists());
    }
    reported.server.signal(Signal::SIGTERM);
    let report = reported.written();
    let names: Vec<_> = touched(&report)
        .iter()
        .map(|path| path["name"].clone())
        .collect();
    let name = |region: &Region| Value::from(String::from_utf8_lossy(&region.name));
    let expected: Vec<_> = regions[..3].iter().map(name).collect();
    assert_eq!(names, expected);
    assert!(report["totals"]["requests"].as_u64() >= Some(3), "{report}");
    event(&report, "worker replaced");
}

/// The report does not cover clients that read only the superblock or connect later.
#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_report_is_about_the_first_vm_that_reads() {
    let reported = Reported::start();
    let image = reported.store.image();
    let meta = |region: u32| u64::from(image.space().region(region).meta.start) * 4096;
    let mut probe = Client::start(&reported.server.socket, 1);
    assert!(probe.read(0, &[(0, 4096)])[0].is_ok());
    let mut first = Client::start(&reported.server.socket, 1);
    assert!(first.read(0, &[(meta(1), 4096)])[0].is_ok());
    let mut second = Client::start(&reported.server.socket, 1);
    assert!(second.read(0, &[(meta(2), 4096)])[0].is_ok());
    drop((probe, second));
    wait_for("both to be gone", || {
        (reported.server.workers().len() == 1).then_some(())
    });
    assert!(!reported.file.exists());
    drop(first);
    let report = reported.written();
    let [path] = touched(&report)[..] else {
        panic!("{report}")
    };
    assert_eq!(
        path["name"].as_str().unwrap().as_bytes(),
        &*image.space().region(1).name
    );
    assert_eq!(report["totals"]["requests"], 1);
}

#[test]
fn an_unused_server_writes_a_report() {
    let tree = crate::common::server::tree();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("boot.html");
    let server = Server::start(tree.path(), &["--report", file.to_str().unwrap()]);
    assert!(!file.exists());
    server.signal(Signal::SIGTERM);
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .starts_with("<!DOCTYPE html>")
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn path(name: &str, nar_bytes: u64, first_ms: Option<f64>, data_bytes: u64) -> Value {
    json!({
        "name": name, "nar_bytes": nar_bytes, "first_ms": first_ms, "last_ms": first_ms.map(|ms| ms * 1.5),
        "reads": u64::from(first_ms.is_some()), "waits": data_bytes % 3, "meta_bytes": 4096 * u64::from(first_ms.is_some()),
        "data_bytes": data_bytes,
    })
}

fn report(paths: Vec<Value>, read: u64) -> Value {
    json!({
        "format": "lazystore report 1", "version": "0", "paths": paths,
        "events": [
            {"name": "start", "ms": 0.0}, {"name": "ready", "ms": 6.5}, {"name": "connected", "ms": 300.0},
            {"name": "first read", "ms": 620.0}, {"name": "superblock", "ms": 620.0}, {"name": "mounted", "ms": 2000.0},
            {"name": "booted", "ms": 4100.0}, {"name": "last read", "ms": 5000.0},
        ],
        "totals": {
            "requests": 700, "bytes": read + 9000, "errors": 0, "p50_us": 3.5, "p99_us": 410.0, "paths": 3, "touched_paths": 2,
            "nar_bytes": 4_600_000_000_u64, "touched_nar_bytes": 900_000_000, "meta_bytes": 1_000_000,
            "data_bytes": read - 1_000_000,
        },
    })
}

fn write(dir: &Path, name: &str, report: &Value) -> String {
    let file = dir.join(name);
    fs::write(&file, report.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn limits_decide_the_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "a.json", &report(Vec::new(), 100_000_000));
    let run = |limits: &[&str]| lazystore(&[&["report", &*file], limits].concat());
    for limits in [
        ["--max-read", "100MB"],
        ["--max-paths", "2"],
        ["--max-requests", "700"],
        ["--max-mount-ms", "2000"],
    ] {
        assert_eq!(run(&limits).status.code(), Some(0), "{limits:?}");
    }
    for (limits, text) in [
        (
            ["--max-read", "95MiB"],
            "over the limit: read: 100.0 MB, and 99.6 MB are allowed",
        ),
        (
            ["--max-paths", "1"],
            "over the limit: paths read: 2, and 1 are allowed",
        ),
        (
            ["--max-requests", "699"],
            "over the limit: requests: 700, and 699 are allowed",
        ),
        (
            ["--max-mount-ms", "1999"],
            "over the limit: time until mounted: 2000 ms, and 1999 ms are allowed",
        ),
    ] {
        let output = run(&limits);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr, format!("lazystore: {text}\n"));
    }
    assert_eq!(run(&["--max-read", "much"]).status.code(), Some(2));
}

#[test]
fn reports_are_compared_by_names_without_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let hash = |letter: &str| letter.repeat(32);
    let before = vec![
        path(&format!("{}-bash-5", hash("a")), 10, Some(1.0), 4096),
        path(&format!("{}-gone", hash("a")), 10, Some(1.0), 4096),
        path(&format!("{}-idle", hash("a")), 10, None, 0),
    ];
    let after = vec![
        path(&format!("{}-bash-5", hash("b")), 10, Some(1.0), 4096),
        path(&format!("{}-idle", hash("b")), 10, Some(1.0), 8192),
    ];
    let before = write(dir.path(), "before.json", &report(before, 50_000_000));
    let after = write(dir.path(), "after.json", &report(after, 60_000_000));
    let output = lazystore(&["report", &after, "--diff", &before]);
    let text = String::from_utf8(output.stdout).unwrap();
    let now = format!(
        "Read now, and not before: 1 path\n   12.3 kB  {}-idle\n",
        hash("b")
    );
    let then = format!(
        "Read before, and not now: 1 path\n    8.2 kB  {}-gone\n",
        hash("a")
    );
    assert!(text.contains(&now) && text.contains(&then), "{text}");
    let rows: Vec<_> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert!(
        rows.contains(&vec!["files", "49.0", "MB", "59.0", "MB"]),
        "{text}"
    );
}

#[test]
fn an_invalid_report_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = report(Vec::new(), 2_000_000);
    other["format"] = "lazystore report 9".into();
    let other = write(dir.path(), "other.json", &other);
    let text = write(dir.path(), "text", &Value::from("x"));
    let absent = dir.path().join("absent");
    for (file, answer) in [
        (&*other, "is not a report of this version"),
        (&*text, "is not a report that --report FILE.json made"),
        (absent.to_str().unwrap(), "cannot read the report"),
    ] {
        let output = lazystore(&["report", file]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.contains(answer) && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
}

/// A page of 1,000 paths, rendered by a browser.
fn drawn(dir: &Path, scheme: &str) -> (String, PathBuf) {
    let paths = (0..1000_u32).map(|index| {
        let name = format!("{:032}-package-{index}<&\">", index);
        let first = (index % 3 == 0).then(|| 2000.0 + f64::from(index) * 2.5);
        path(
            &name,
            4_600_000 * u64::from(index % 7),
            first,
            u64::from(index) * 4096 * u64::from(first.is_some()),
        )
    });
    let file = write(dir, "a.json", &report(paths.collect(), 100_000_000));
    let page = dir.join("a.html");
    let made = lazystore(&["report", &file, "--html", page.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    let picture = dir.join(format!("{scheme}.png"));
    let features = match scheme {
        "dark" => "--blink-settings=preferredColorScheme=0",
        _ => "--blink-settings=preferredColorScheme=1",
    };
    let run = |arguments: &[&str]| {
        let mut chromium = Command::new(tool("chromium", "chromium"));
        chromium.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1280,1500",
            features,
        ]);
        chromium.arg(format!("--user-data-dir={}", dir.join("profile").display()));
        let output = chromium.args(arguments).arg(&page).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&[&format!("--screenshot={}", picture.display())]);
    (run(&["--dump-dom"]), picture)
}

#[test]
#[ignore = "needs chromium"]
fn a_browser_renders_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let (page, light) = drawn(dir.path(), "light");
    let (_, dark) = drawn(dir.path(), "dark");
    let rows = ["<tr class=\"never\"", "<tr class=\"\""].map(|row| page.matches(row).count());
    assert_eq!(rows, [666, 334]);
    assert_eq!(page.matches("</rect>").count(), 334 + 3);
    assert!(
        page.contains("100 MB") && page.contains("2.2 % of 4.6 GB"),
        "the sums"
    );
    assert!(
        page.contains("booted, 4,100 ms")
            && page.contains("334")
            && page.contains("-package-0&lt;&amp;")
    );
    if let Some(kept) = std::env::var_os("LAZYSTORE_KEEP_PICTURES") {
        for picture in [&light, &dark] {
            fs::copy(picture, Path::new(&kept).join(picture.file_name().unwrap())).unwrap();
        }
    }
    assert_ne!(
        fs::read(light).unwrap(),
        fs::read(dark).unwrap(),
        "two schemes"
    );
}
