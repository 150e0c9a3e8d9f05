//! Independent clients, also over TLS.

use std::process::{Command, Output};

use serde_json::Value;

use super::super::client::*;
use super::super::pki::Pki;
use super::super::program::try_serve_closure;
use super::{CLOSURES, Fixture};
use crate::common::tool;

/// Runs a client, for at most two minutes.
fn output(program: &str, package: &str, args: &[&str]) -> Output {
    let mut command = Command::new(tool("timeout", "coreutils"));
    command.args(["-k", "5", "120"]).arg(tool(program, package));
    command.args(args).output().unwrap()
}

fn run(program: &str, package: &str, args: &[&str]) -> String {
    let output = output(program, package, args);
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn nbdinfo(args: &[&str]) -> Value {
    let text = run("nbdinfo", "libnbd-bin", &[&["--json"], args].concat());
    serde_json::from_str(&text).unwrap()
}

/// Asserts that nbdinfo's list has all disks and their sizes.
fn assert_lists_all(fixture: &Fixture, list: &Value) {
    let exports = list["exports"].as_array().unwrap().iter();
    let found: Vec<_> = exports
        .map(|export| {
            let name = export["export-name"].as_str().unwrap();
            (name, export["export-size"].as_u64().unwrap())
        })
        .collect();
    let expected = CLOSURES.map(|(name, _)| (name, fixture.image(name).len_bytes()));
    assert_eq!(found, expected);
}

#[test]
#[ignore = "needs libnbd and QEMU"]
fn real_clients_choose_by_name() {
    let fixture = Fixture::new();
    let server = fixture.serve_all(&[]);
    assert_lists_all(&fixture, &nbdinfo(&["--list", &server.uri("")]));
    let one = &nbdinfo(&[&server.uri("db")])["exports"][0];
    assert_eq!(one["export-name"], "db");
    let sizes = CLOSURES.map(|(name, _)| {
        let args = ["info", "--output=json", &server.uri(name)];
        let info = run("qemu-img", "qemu-utils", &args);
        let info: Value = serde_json::from_str(&info).unwrap();
        info["virtual-size"].as_u64().unwrap()
    });
    assert_eq!(
        sizes,
        CLOSURES.map(|(name, _)| fixture.image(name).len_bytes())
    );
    let unknown = server.uri("nowhere");
    let unknown_to_nbdinfo = output("nbdinfo", "libnbd-bin", &[&unknown]);
    let unknown_to_qemu = output("qemu-img", "qemu-utils", &["info", &unknown]);
    for (output, words) in [
        (unknown_to_nbdinfo, "No such file or directory for export"),
        (unknown_to_qemu, "there is no export of that name"),
    ] {
        assert!(!output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(words), "{text}");
    }
}

/// The disk of a server with only this closure.
#[test]
#[ignore = "needs libnbd and QEMU"]
fn a_copy_of_an_export_is_a_copy_of_its_closures_disk() {
    let fixture = Fixture::new();
    let server = fixture.serve_all(&[]);
    let dir = tempfile::tempdir().unwrap();
    let copies = CLOSURES.map(|(name, _)| {
        let copy = dir.path().join(name).to_str().unwrap().to_owned();
        run("nbdcopy", "libnbd-bin", &[&server.uri(name), &copy]);
        copy
    });
    let compare = |one: &str, other: &str| {
        let args = ["compare", "-f", "raw", "-F", "raw", one, other];
        output("qemu-img", "qemu-utils", &args).status.code()
    };
    for ((name, _), copy) in CLOSURES.iter().zip(&copies) {
        let closure = [
            "--closure-info".to_owned(),
            fixture.info(name).display().to_string(),
        ];
        let single = fixture.serve(&closure, &[]);
        assert_eq!(compare(&single.uri(""), copy), Some(0), "{name}");
    }
    assert_eq!(compare(&copies[0], &copies[1]), Some(1));
}

#[test]
#[ignore = "needs openssl and libnbd"]
fn over_tls_names_are_told_to_those_who_encrypt_only() {
    let (fixture, pki) = (Fixture::new(), Pki::new());
    let closures = [fixture.main(), fixture.exports()].concat();
    let closures = closures.iter().map(String::as_str);
    let args: Vec<_> = closures.chain(["--store-root", fixture.root()]).collect();
    let (keys, place) = (pki.dir(), ["localhost:0"]);
    let tls = ["--nbd-tls", keys.to_str().unwrap()];
    let program = try_serve_closure(&args, &place, &tls).unwrap();
    let (_, port) = program.places[0].rsplit_once(':').unwrap();
    let uri = |export: &str| {
        let keys = keys.display();
        format!("nbds://localhost:{port}/{export}?tls-certificates={keys}")
    };
    assert_lists_all(&fixture, &nbdinfo(&["--list", &uri("")]));
    assert_eq!(nbdinfo(&[&uri("web")])["exports"][0]["export-name"], "web");
    assert!(
        !output("nbdinfo", "libnbd-bin", &[&uri("nowhere")])
            .status
            .success()
    );
    let mut plain = Client::greet(program.connect(0), 3);
    for answers in [
        plain.option(OPT_LIST, &[]),
        plain.option(OPT_INFO, &wanted("web", &[])),
        plain.option(OPT_INFO, &wanted("nowhere", &[])),
    ] {
        let kinds: Vec<_> = answers.iter().map(|answer| answer.kind).collect();
        assert_eq!(kinds, [TLS_REQD]);
        let text = String::from_utf8_lossy(&answers[0].data);
        assert!(!text.contains("web"), "{text}");
    }
}
