//! Evaluates the module for hosts, and has systemd read its drop-ins together with the package's units.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::evaluator::{ROOT, evaluated, printed};
use crate::common::tool;

const USER: &str = "{ services.lazystore.disks = {
    web = { closure = [ (import ./tests/nix/pkgs.nix { }).guest ]; };
    db = { closure = [ (import ./tests/nix/pkgs.nix { }).guest ]; socket = \"/run/vms/db.sock\"; group = \"vms\";
           mode = \"0600\"; registration = false; keepPlans = false; extraArgs = [ \"--label\" \"a $b %c\" ]; }; }; }";

fn host(user: &str) -> Value {
    evaluated("host", &[("hostUser", user)])
}

#[test]
fn each_disk_has_a_socket_and_a_service() {
    let host = host(USER);
    assert_eq!(host["failedAssertions"], json!([]));
    let package = host["packages"][0].as_str().unwrap();
    assert_eq!(host["services"].as_object().unwrap().len(), 2);
    for (name, socket, group, mode) in [
        ("web", "/run/lazystore/web.sock", "kvm", "0660"),
        ("db", "/run/vms/db.sock", "vms", "0600"),
    ] {
        let unit = format!("lazystore@{name}");
        let service = &host["services"][&unit];
        assert_eq!(service["overrideStrategy"], "asDropin");
        assert_eq!(service["restartIfChanged"], false);
        let start = service["serviceConfig"]["ExecStart"][1].as_str().unwrap();
        let begin = format!("{package}/bin/lazystore \"serve\" \"--closure-info\" \"/");
        assert!(start.starts_with(&begin), "{start}");
        assert_eq!(
            start.contains("--with-registration"),
            name == "web",
            "{start}"
        );
        let plans = format!("\"--plan-dir\" \"/var/cache/lazystore/{name}\"");
        assert_eq!(start.contains(&plans), name == "web", "{start}");
        let listens = &host["sockets"][&unit];
        assert_eq!(listens["overrideStrategy"], "asDropin");
        assert_eq!(listens["wantedBy"], json!(["sockets.target"]));
        let config =
            json!({ "ListenStream": ["", socket], "SocketGroup": group, "SocketMode": mode });
        assert_eq!(listens["socketConfig"], config);
    }
    // Characters with a meaning in units are escaped.
    let start = host["services"]["lazystore@db"]["serviceConfig"]["ExecStart"][1].to_string();
    assert!(start.ends_with(r#"\"--label\" \"a $$b %%c\"""#), "{start}");
}

#[test]
fn invalid_options_fail_with_an_explanation() {
    for (disk, text) in [
        (
            "\"a/b\".closure = [ (import ./tests/nix/pkgs.nix { }).guest ];",
            "a name has only letters",
        ),
        ("web.closure = [ ];", "closure is empty"),
    ] {
        let host = host(&format!("{{ services.lazystore.disks = {{ {disk} }}; }}"));
        let failed = host["failedAssertions"].to_string();
        assert!(failed.contains(text), "{failed}");
    }
    let long = format!(
        "{{ services.lazystore.disks.web = {{ closure = [ (import ./tests/nix/pkgs.nix {{ }}).guest ];
            socket = \"/{}\"; }}; }}",
        "x".repeat(107)
    );
    let failed = host(&long)["failedAssertions"].to_string();
    assert!(failed.contains("107 bytes"), "{failed}");
}

#[test]
fn nothing_is_defined_without_disks() {
    let host = host("{ }");
    assert_eq!(host["services"], json!({}));
    assert_eq!(host["packages"], json!([]));
}

/// A section of a drop-in as NixOS writes it: a list becomes one line per value.
fn section(name: &str, values: &Value) -> String {
    let mut text = format!("[{name}]\n");
    for (key, value) in values.as_object().unwrap() {
        let values = value.as_array().cloned();
        for value in values.unwrap_or_else(|| vec![value.clone()]) {
            writeln!(text, "{key}={}", value.as_str().unwrap()).unwrap();
        }
    }
    text
}

/// A drop-in changes what is served and where. The confinement comes from the package's unit and does not change.
#[test]
fn systemd_reads_the_drop_ins_and_the_service_is_as_confined_as_the_packages() {
    let host = host(USER);
    let dir = tempfile::tempdir().unwrap();
    for (kind, section_name, config) in [
        ("service", "Service", "serviceConfig"),
        ("socket", "Socket", "socketConfig"),
    ] {
        let from = Path::new(ROOT).join(format!("scripts/systemd/lazystore@.{kind}"));
        let text = fs::read_to_string(from).unwrap();
        let text = text.replace("/usr/bin/lazystore", env!("CARGO_BIN_EXE_lazystore"));
        fs::write(dir.path().join(format!("lazystore@web.{kind}")), text).unwrap();
        let drop_in = dir.path().join(format!("lazystore@web.{kind}.d"));
        fs::create_dir(&drop_in).unwrap();
        let unit = &host[format!("{kind}s")]["lazystore@web"][config];
        let text = section(section_name, unit);
        let package = host["packages"][0].as_str().unwrap();
        let program = format!("{package}/bin/lazystore");
        let text = text.replace(&program, env!("CARGO_BIN_EXE_lazystore"));
        fs::write(drop_in.join("overrides.conf"), text).unwrap();
    }
    let unit = |kind: &str| dir.path().join(format!("lazystore@web.{kind}"));
    let analyze = || Command::new(tool("systemd-analyze", "systemd"));
    let verify = analyze()
        .arg("verify")
        .args([unit("service"), unit("socket")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&verify.stderr), "");
    assert!(verify.status.success());
    let exposure = |file: &Path| {
        let mut security = analyze();
        security
            .args(["security", "--offline=true", "--json=short"])
            .arg(file);
        printed(&security.output().unwrap())
    };
    let with_drop_in = exposure(&unit("service"));
    fs::remove_dir_all(dir.path().join("lazystore@web.service.d")).unwrap();
    assert_eq!(with_drop_in, exposure(&unit("service")));
}
