//! `lazystore cache`, `verify`, files and NBD with fetched paths, and killed fetcher processes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::NAMES;
use crate::common::client::Client;
use crate::common::http::HttpServer;
use crate::common::proc::{Status, name, named, parent};
use crate::common::process::wait_for;
use crate::common::remote::{RemoteStore, assert_same, read, used};
use crate::common::server::Server;

fn lazystore(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.args(args).output().unwrap()
}

/// Output of `lazystore cache`, and its exit code.
fn cache(store: &RemoteStore, command: &str, extra: &[&str]) -> (String, i32) {
    let dir = store.cache_dir();
    let args = ["cache", command, "--cache-dir", dir.to_str().unwrap()];
    let output = lazystore(&[&args[..], extra].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    (text, output.status.code().unwrap())
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn cache_commands_list_verify_and_prune_what_is_not_in_use() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let server = store.serve(&[&http.url()], &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
    let (text, code) = cache(&store, "list", &[]);
    assert_eq!(
        (text.matches("in use").count(), code),
        (NAMES.len(), 0),
        "{text}"
    );
    assert!(
        store.paths.iter().all(|path| text.contains(&path.path())),
        "{text}"
    );
    let (text, code) = cache(&store, "prune", &["--cache-size", "0"]);
    assert!(text.contains("left 4 NARs") && code == 0, "{text}");
    drop(server);
    let (text, code) = cache(&store, "verify", &[]);
    assert!(text.contains("4 NARs, unchanged") && code == 0, "{text}");
    let nars = store.cache_dir().join("nars");
    let one = fs::read_dir(&nars).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&one).unwrap();
    bytes[500] ^= 1;
    fs::write(&one, bytes).unwrap();
    let (text, code) = cache(&store, "verify", &[]);
    assert!(
        text.contains("1 changed and removed") && code == 1,
        "{text}"
    );
    // The keeper ends shortly after its server.
    wait_for("nothing to be in use", || {
        let (text, _) = cache(&store, "list", &[]);
        (!text.contains("in use")).then_some(())
    });
    let (text, _) = cache(&store, "prune", &["--cache-size", "0"]);
    assert!(text.contains("left 0 NARs"), "{text}");
    let server = store.serve(&[&http.url()], &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
}

#[test]
fn verify_compares_hashes_of_remote_paths() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let (args, url) = (store.args(&[&http.url()]), http.url());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = lazystore(&[&["verify"], &args[..]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {:?}", output.stderr);
    let output = lazystore(&[&["inspect"], &args[..]].concat());
    assert!(output.status.success(), "{output:?}");
    assert!(!url.is_empty());
}

#[test]
fn a_remote_store_is_served_over_nbd() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.nbd");
    let nbd = format!("unix:{}", socket.display());
    let server = store.serve(&[&http.url()], &["--nbd", &nbd]);
    let image = store.expected();
    let mut client = crate::nbd::client::Client::connect(&socket);
    client.go("nix-store");
    for range in used(&image) {
        let mut expected = vec![0; usize::try_from(range.end - range.start).unwrap()];
        image.read_exact_at(&mut expected, range.start).unwrap();
        assert!(client.read(0, range.start, expected.len()) == Ok(expected));
    }
    drop(server);
}

/// The fetcher process.
pub fn fetcher(server: &Server) -> Option<Pid> {
    named("fetcher", &server.socket)
}

/// A cache of twelve paths that takes 20 ms for each response.
fn twelve_paths() -> (RemoteStore, HttpServer) {
    let names: Vec<String> = (0..12).map(|number| format!("path{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let store = RemoteStore::new(&names);
    let http = HttpServer::start(&store.cache.dir);
    http.latency(std::time::Duration::from_millis(20));
    (store, http)
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn vms_do_not_notice_that_the_fetcher_is_killed() {
    let (store, http) = twelve_paths();
    let server = store.serve(&[&http.url()], &[]);
    let image = store.expected();
    let mut client = Client::start(&server.socket, 1);
    let mut killed = 0;
    for range in used(&image) {
        if killed < 8
            && let Some(pid) = fetcher(&server)
        {
            kill(pid, Signal::SIGKILL).unwrap();
            killed += 1;
        }
        let mut expected = vec![0; usize::try_from(range.end - range.start).unwrap()];
        image.read_exact_at(&mut expected, range.start).unwrap();
        assert!(read(&mut client, range) == Ok(expected));
    }
    assert_eq!(killed, 8);
}

/// Kills the keeper of the server at `socket`, or the spare. Returns whether it has been replaced.
pub fn kill_keeper_or_spare(socket: &Path, kills_keeper: bool) -> impl Fn() -> bool {
    let spare = wait_for("a spare", || named("spare keeper", socket));
    let pid = match kills_keeper {
        true => parent(spare).unwrap(),
        false => spare,
    };
    kill(pid, Signal::SIGKILL).unwrap();
    let socket = socket.to_owned();
    move || match kills_keeper {
        true => name(spare) == "keeper",
        false => named("spare keeper", &socket).is_some_and(|found| found != spare),
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn a_keeper_or_a_spare_that_is_killed_is_replaced_and_reads_go_on() {
    let (store, http) = twelve_paths();
    let server = store.serve(&[&http.url()], &[]);
    let image = store.expected();
    // One connected earlier. The other one uses the keeper that has replaced the first.
    let mut clients = vec![Client::start(&server.socket, 1)];
    for (index, range) in used(&image).into_iter().enumerate() {
        let replaced = kill_keeper_or_spare(&server.socket, index % 2 == 0);
        let mut expected = vec![0; usize::try_from(range.end - range.start).unwrap()];
        image.read_exact_at(&mut expected, range.start).unwrap();
        if index == 3 {
            clients.push(Client::start(&server.socket, 1));
        }
        for client in &mut clients {
            assert!(read(client, range.clone()).as_ref() == Ok(&expected));
        }
        // A server does not survive two deaths at the same time.
        wait_for("another one in its place", || replaced().then_some(()));
    }
    let socket = server.socket.clone();
    drop((clients, server));
    for role in ["keeper", "spare keeper", "fetcher"] {
        wait_for("its end", || named(role, &socket).is_none().then_some(()));
    }
}

#[test]
#[ignore = "needs root: a real client locks memory"]
fn the_process_that_fetches_is_confined() {
    let store = RemoteStore::new(&NAMES);
    let http = HttpServer::start(&store.cache.dir);
    let server = store.serve(&[&http.url()], &[]);
    let is_confined = || {
        let status = Status::of(fetcher(&server)?)?;
        let is_privileged = status.field("NoNewPrivs") == "0" || status.capabilities("CapEff") != 0;
        (status.is_filtered() && !is_privileged).then_some(())
    };
    // It confines itself before its first request.
    wait_for("the fetcher process to be confined", is_confined);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
}
