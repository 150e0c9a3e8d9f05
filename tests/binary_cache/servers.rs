//! Independent servers: nginx, Python's with TLS, and one for S3. And a guest that boots from a cache.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::NAMES;
use crate::common::client::Client;
use crate::common::from_env;
use crate::common::nix::{NIX_CONFIG, succeed};
use crate::common::process::wait_for;
use crate::common::remote::{RemoteStore, assert_same};
use crate::common::server::Server;
use crate::common::vm::{fact, lock_guest, script};

/// A server. Dropping it ends it.
pub struct Foreign {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that is free at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn wait_for_port(port: u16) {
    wait_for("a server to listen", || {
        TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
    });
}

/// nginx over `dir`, on `port`.
pub fn nginx(dir: &Path, port: u16) -> Foreign {
    let own = tempfile::tempdir().unwrap();
    let conf = own.path().join("nginx.conf");
    let at = own.path().display();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; user root; events {{}}\n\
         http {{ access_log {at}/access.log; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; root {}; keepalive_requests 100000; }} }}\n",
        dir.display()
    );
    fs::write(&conf, text).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(&conf).arg("-p").arg(own.path());
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    let server = Foreign { child, _dir: own };
    wait_for_port(port);
    server
}

#[test]
#[ignore = "needs nginx"]
fn nginx_serves_a_cache() {
    let store = RemoteStore::new(&NAMES);
    let port = free_port();
    let _nginx = nginx(&store.cache.dir, port);
    let server = store.serve(&[&format!("http://127.0.0.1:{port}/")], &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
}

/// An S3 server with a bucket `store`, which has the files of `dir`.
pub fn s3(dir: &Path, port: u16, access_key: &str, secret_key: &str) -> Foreign {
    let own = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir, own.path().join("store")).unwrap();
    let mut command = Command::new(from_env("LAZYSTORE_TEST_S3"));
    command.args(["--access-key", access_key, "--secret-key", secret_key]);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.arg(own.path());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let server = Foreign {
        child: command.spawn().unwrap(),
        _dir: own,
    };
    wait_for_port(port);
    server
}

#[test]
#[ignore = "needs s3s-fs"]
fn a_bucket_is_read_only_with_the_right_keys() {
    let store = RemoteStore::new(&NAMES);
    let port = free_port();
    let _s3 = s3(&store.cache.dir, port, "AKIDEXAMPLE", "a/secret+key=");
    let url = format!("s3://store?endpoint=127.0.0.1:{port}&scheme=http&region=eu-north-1");
    let args = store.args(&[&url]);
    let keys = |access: &str, secret: &str| {
        [
            "env".to_owned(),
            format!("AWS_ACCESS_KEY_ID={access}"),
            format!("AWS_SECRET_ACCESS_KEY={secret}"),
        ]
    };
    for (access, secret) in [("AKIDEXAMPLE", "wrong"), ("OTHER", "a/secret+key=")] {
        let env = keys(access, secret);
        let env: Vec<&str> = env.iter().map(String::as_str).collect();
        let text = Server::try_start_after(&env, &args, &[]).err().unwrap();
        assert!(text.contains("403") && text.contains(&url), "{text}");
        assert!(!text.contains(secret) && !text.contains("X-Amz"), "{text}");
    }
    let text = Server::try_start_after(&[], &args, &[]).err().unwrap();
    assert!(text.contains("403"), "{text}");
    let env = keys("AKIDEXAMPLE", "a/secret+key=");
    let env: Vec<&str> = env.iter().map(String::as_str).collect();
    let server = Server::start_after(&env, &args, &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
}

/// A key and a self-signed certificate for 127.0.0.1, in one file each.
fn certificate(dir: &Path) -> [PathBuf; 2] {
    let files = ["key", "cert"].map(|name| dir.join(name));
    let mut command = Command::new("openssl");
    command.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ]);
    command.args([
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]);
    command.args(["-addext", "basicConstraints=CA:FALSE"]);
    command
        .arg("-keyout")
        .arg(&files[0])
        .arg("-out")
        .arg(&files[1]);
    assert!(command.output().unwrap().status.success());
    files
}

#[test]
#[ignore = "needs openssl and python3"]
fn an_unknown_authority_is_refused_unless_it_is_given() {
    let store = RemoteStore::new(&NAMES);
    let own = tempfile::tempdir().unwrap();
    let [key, cert] = certificate(own.path());
    let port = free_port();
    let script = format!(
        "import http.server, ssl, functools\n\
         h = functools.partial(http.server.SimpleHTTPRequestHandler, directory={:?})\n\
         s = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), h)\n\
         c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain({:?}, {:?})\n\
         s.socket = c.wrap_socket(s.socket, server_side=True); s.serve_forever()\n",
        store.cache.dir, cert, key
    );
    let mut command = Command::new("python3");
    let child = command.args(["-c", &script]).stderr(Stdio::null()).spawn();
    let _python = Foreign {
        child: child.unwrap(),
        _dir: tempfile::tempdir().unwrap(),
    };
    wait_for_port(port);
    let url = format!("https://127.0.0.1:{port}");
    let args = store.args(&[&url]);
    let text = Server::try_start_after(&[], &args, &[]).err().unwrap();
    assert!(
        text.contains("certificate") && text.contains(&url),
        "{text}"
    );
    let trusted = format!("NIX_SSL_CERT_FILE={}", cert.display());
    let server = Server::start_after(&["env", &trusted], &args, &[]);
    assert_same(&mut Client::start(&server.socket, 1), &store.expected());
}

/// Has Nix write the closure that `scripts/test` prepares as a cache to `dir`. Returns the key to trust.
fn nix_cache(dir: &Path) -> String {
    let key = dir.join("key");
    let mut generate = Command::new("nix-store");
    generate.args(["--generate-binary-cache-key", "test-9"]);
    succeed(generate.arg(&key).arg(dir.join("public")));
    let to = format!(
        "file://{}?compression=xz&write-nar-listing=1&secret-key={}",
        dir.join("cache").display(),
        key.display()
    );
    let mut copy = Command::new("nix");
    copy.args([
        "--extra-experimental-features",
        "nix-command",
        "copy",
        "--all",
    ]);
    copy.args(["--store", &from_env("LAZYSTORE_TEST_STORE"), "--to", &to]);
    succeed(copy.env("NIX_CONFIG", NIX_CONFIG));
    fs::read_to_string(dir.join("public")).unwrap()
}

/// Total size of the files in a directory.
fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum()
}

#[test]
#[ignore = "boots a VM from a cache that Nix writes and nginx serves"]
fn a_guest_boots_from_a_remote_store() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let key = nix_cache(dir.path());
    let port = free_port();
    let _nginx = nginx(&dir.path().join("cache"), port);
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let closure_info = from_env("LAZYSTORE_TEST_CLOSURE_INFO");
    let kept = dir.path().join("kept");
    let args = [
        "--closure-info",
        &closure_info,
        "--store-root",
        &shown(&root),
        "--cache-dir",
        &shown(&kept),
        "--trusted-public-key",
        &key,
        "--from",
        &format!("http://127.0.0.1:{port}"),
    ];
    let server = Server::start_after(&[], &args, &[]);
    let boot = |name: &str, options: &[&str]| {
        let out = dir.path().join(name);
        let mut vm = script("vm");
        vm.arg("--socket").arg(&server.socket);
        vm.arg("--out").arg(&out).args(options);
        assert!(vm.status().unwrap().success(), "scripts/vm {options:?}");
        out
    };
    let run = from_env("LAZYSTORE_TEST_RUN");
    let out = boot("quick", &["--quick", "--run", &run]);
    assert_eq!(fact(&out, "program_status"), "0");
    let [read, all] = [
        bytes_in(&kept.join("nars")),
        bytes_in(&dir.path().join("cache/nar")),
    ];
    println!(
        "a program was run: {read} bytes of NARs were fetched; all of them, compressed, are {all}"
    );

    let out = boot("all", &[]);
    let mut compare = script("compare");
    compare.arg(&out).args(["--closure-info", &closure_info]);
    compare.args(["--store-root", &from_env("LAZYSTORE_TEST_STORE")]);
    let compared = compare.output().unwrap();
    let text = String::from_utf8_lossy(&compared.stdout);
    assert!(
        compared.status.success() && text.contains("identical"),
        "{text}"
    );
}
