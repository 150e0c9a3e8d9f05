//! `lazystore serve --nbd HOST:PORT --nbd-tls DIR`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::client::*;
use super::pki::{Pki, lock_key};
use super::program::{Program, serve_at, try_serve_at};
use super::server::tree;
use crate::common::process::{stderr_of, wait_for};
use crate::common::{self, tool};

type Encrypted = StreamOwned<ClientConnection, TcpStream>;

fn serve(pki: &Pki, extra: &[&str]) -> (tempfile::TempDir, Program) {
    let tree = tree();
    let dir = pki.dir();
    let tls = ["--nbd-tls", dir.to_str().unwrap()];
    let program = serve_at(tree.path(), &["127.0.0.1:0"], &[&tls, extra].concat());
    (tree, program)
}

/// The client's side of TLS. With `own`, it sends a certificate.
fn tls(pki: &Pki, own: bool) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(&pki.read("ca-cert.pem")).unwrap();
    roots.add(authority).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        true => {
            let certificate = CertificateDer::from_pem_slice(&pki.read("client-cert.pem"));
            let key = PrivateKeyDer::from_pem_slice(&pki.read("client-key.pem"));
            builder.with_client_auth_cert(vec![certificate.unwrap()], key.unwrap())
        }
        false => Ok(builder.with_no_client_auth()),
    };
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::new(config.unwrap()), name).unwrap()
}

/// A client that has sent STARTTLS but has not started the TLS handshake.
fn after_starttls(program: &Program) -> Client<TcpStream> {
    let mut client = Client::greet(program.connect(0), 3);
    assert_eq!(client.option(OPT_STARTTLS, &[])[0].kind, ACK);
    client
}

/// A client after the TLS handshake, before its first option.
fn encrypted(program: &Program, tls: ClientConnection) -> Client<Encrypted> {
    Client {
        stream: StreamOwned::new(tls, after_starttls(program).stream),
        len_bytes: 0,
        flags: 0,
    }
}

#[test]
#[ignore = "needs openssl"]
fn a_client_reads_the_disk_over_tls() {
    let pki = Pki::new();
    let (tree, program) = serve(&pki, &[]);
    let image = common::tree_image(tree.path());
    let mut client = encrypted(&program, tls(&pki, false));
    client.begin("nix-store");
    for (offset, len) in [(0, 4096), (1024, 1), (128 << 30, 3_000_000)] {
        let mut expected = vec![0; len];
        image.read_exact_at(&mut expected, offset).unwrap();
        assert!(client.read(0, offset, len).unwrap() == expected, "{offset}");
        assert!(
            client.read(DF, offset, len).unwrap() == expected,
            "{offset}"
        );
    }
    // Many concurrent requests, some of which the pool answers.
    for cookie in 0..100 {
        client.request(READ, DF, cookie, 128 << 30, 300_000);
        client.request(READ, 0, cookie, 0, 4096);
    }
    let mut done = 0;
    while done < 200 {
        let (_, reply) = client.reply(0);
        done += match reply {
            Reply::Data { done, .. } | Reply::Hole { done, .. } => usize::from(done),
            other => panic!("{other:?}"),
        };
    }
}

#[test]
#[ignore = "needs openssl"]
fn before_tls_the_client_gets_no_information() {
    let pki = Pki::new();
    let (_tree, program) = serve(&pki, &[]);
    let mut client = Client::greet(program.connect(0), 3);
    for (option, data) in [
        (OPT_LIST, Vec::new()),
        (OPT_INFO, wanted("nix-store", &[])),
        (OPT_GO, wanted("nix-store", &[])),
        (OPT_STRUCTURED, Vec::new()),
        (OPT_SET_CONTEXT, query("nix-store", &["base:allocation"])),
        (99, Vec::new()),
    ] {
        let answers = client.option(option, &data);
        let kinds: Vec<_> = answers.iter().map(|answer| answer.kind).collect();
        assert_eq!(kinds, [TLS_REQD], "{option}");
        assert!(!String::from_utf8_lossy(&answers[0].data).contains("nix"));
    }
    assert_eq!(client.option(OPT_ABORT, &[])[0].kind, ACK);
    assert!(client.is_at_end());
    let mut oldest = Client::greet(program.connect(0), 3);
    oldest.send_option(OPT_EXPORT_NAME, b"nix-store");
    assert!(oldest.is_at_end());
    let mut none = Client::greet(program.connect(0), 0);
    none.send_option(OPT_STARTTLS, &[]);
    assert!(none.is_at_end());
}

/// An attacker on the network could add options that would count as encrypted.
#[test]
#[ignore = "needs openssl"]
fn unencrypted_bytes_after_starttls_end_the_connection() {
    let pki = Pki::new();
    let (_tree, mut program) = serve(&pki, &[]);
    let mut client = Client::greet(program.connect(0), 3);
    let start_tls = option_bytes(OPT_STARTTLS, &[]);
    client.send(&[start_tls, option_bytes(OPT_STRUCTURED, &[])].concat());
    let mut answer = Vec::new();
    let _ = client.stream.read_to_end(&mut answer);
    assert_eq!(answer.len(), 20, "the acknowledgement and nothing else");
    wait_for("its worker to end", || {
        program.workers().is_empty().then_some(())
    });
    program.child.kill().unwrap();
    let text = stderr_of(&mut program.child);
    assert!(
        text.contains("unencrypted data after NBD_OPT_STARTTLS"),
        "{text}"
    );
    assert!(text.contains("(from 127.0.0.1:"), "{text}");
}

#[test]
#[ignore = "needs openssl"]
fn an_incomplete_tls_handshake_times_out() {
    let pki = Pki::new();
    let (_tree, program) = serve(&pki, &["--first-message-timeout", "1"]);
    let mut silent = after_starttls(&program);
    let mut half = after_starttls(&program);
    let mut hello = Vec::new();
    tls(&pki, false).write_tls(&mut hello).unwrap();
    half.send(&hello[..hello.len() / 2]);
    for client in [&mut silent, &mut half] {
        assert!(client.is_at_end());
    }
    // A handshake that arrives byte by byte is complete.
    let mut client = after_starttls(&program);
    let mut tls = tls(&pki, false);
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    for byte in hello {
        client.send(&[byte]);
    }
    while tls.is_handshaking() {
        tls.complete_io(&mut client.stream).unwrap();
    }
}

#[test]
#[ignore = "needs openssl"]
fn bytes_that_are_not_tls_end_the_connection() {
    let pki = Pki::new();
    let (tree, mut program) = serve(&pki, &[]);
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &option_bytes(OPT_LIST, &[]),
        &[0x16, 3, 1, 0xff, 0xff],
        &[0xff; 70_000],
    ] {
        let mut client = after_starttls(&program);
        let _ = client.stream.write_all(bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest);
        assert!(rest.len() <= 7, "an alert at most: {rest:?}");
    }
    // The same after the handshake.
    let mut client = encrypted(&program, tls(&pki, false));
    client.begin("nix-store");
    client.stream.sock.write_all(&[0x17, 3, 3, 0, 17]).unwrap();
    client.stream.sock.write_all(&[0; 17]).unwrap();
    assert!(client.is_at_end());
    let mut client = encrypted(&program, tls(&pki, false));
    client.begin("nix-store");
    let mut expected = vec![0; 4096];
    common::tree_image(tree.path())
        .read_exact_at(&mut expected, 128 << 30)
        .unwrap();
    assert!(client.read(0, 128 << 30, 4096).unwrap() == expected);
    program.child.kill().unwrap();
    let text = stderr_of(&mut program.child);
    assert!(
        text.contains("the TLS handshake with the NBD client failed"),
        "{text}"
    );
}

/// A client that requests key updates all the time still gets its replies.
#[test]
#[ignore = "needs openssl"]
fn keys_can_be_updated_during_transmission() {
    let pki = Pki::new();
    let (_tree, program) = serve(&pki, &[]);
    let mut client = encrypted(&program, tls(&pki, false));
    client.begin("nix-store");
    for _ in 0..50 {
        client.stream.conn.refresh_traffic_keys().unwrap();
        assert_eq!(client.read(0, 1024, 4).unwrap(), [0xe2, 0xe1, 0xf5, 0xe0]);
    }
}

#[test]
#[ignore = "needs openssl"]
fn with_verify_peer_only_clients_with_a_certificate_are_served() {
    let (pki, other) = (Pki::new(), Pki::new());
    let (_tree, program) = serve(&pki, &["--nbd-verify-peer"]);
    encrypted(&program, tls(&pki, true)).begin("nix-store");
    // No certificate, and one signed by another authority.
    let mut without = encrypted(&program, tls(&pki, false));
    assert!(
        without
            .stream
            .write_all(&option_bytes(OPT_LIST, &[]))
            .is_err()
            || without.is_at_end()
    );
    std::fs::copy(other.path("client-cert.pem"), pki.path("client-cert.pem")).unwrap();
    std::fs::copy(other.path("client-key.pem"), pki.path("client-key.pem")).unwrap();
    let mut wrong = encrypted(&program, tls(&pki, true));
    assert!(
        wrong
            .stream
            .write_all(&option_bytes(OPT_LIST, &[]))
            .is_err()
            || wrong.is_at_end()
    );
}

#[test]
#[ignore = "needs openssl"]
fn a_revoked_certificate_is_refused() {
    let pki = Pki::new();
    pki.revoke_client();
    let (_tree, program) = serve(&pki, &["--nbd-verify-peer"]);
    let mut revoked = encrypted(&program, tls(&pki, true));
    assert!(
        revoked
            .stream
            .write_all(&option_bytes(OPT_LIST, &[]))
            .is_err()
            || revoked.is_at_end()
    );
}

/// The server's error for the files in `dir`.
fn refused(dir: &Path, extra: &[&str]) -> String {
    let tree = tree();
    let options = [&["--nbd-tls", dir.to_str().unwrap()], extra].concat();
    let text = try_serve_at(tree.path(), &["127.0.0.1:0"], &options)
        .err()
        .unwrap();
    let errors: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("lazystore: "))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

#[test]
#[ignore = "needs openssl"]
fn unusable_files_are_named_in_one_sentence() {
    let (pki, other) = (Pki::new(), Pki::new());
    let names = ["server-cert.pem", "server-key.pem"];
    let nothing = tempfile::tempdir().unwrap();
    let stderr = refused(nothing.path(), &[]);
    assert!(stderr.contains("server-cert.pem: No such file"), "{stderr}");
    for (name, text, words) in [
        (
            "server-cert.pem",
            "nothing".into(),
            "server-cert.pem has no certificate in PEM format",
        ),
        (
            "server-key.pem",
            String::new(),
            "server-key.pem has no private key without a password",
        ),
        (
            "server-cert.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            "cannot use",
        ),
        (
            "server-key.pem",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".into(),
            "cannot use",
        ),
        (
            "server-key.pem",
            String::from_utf8(other.read("server-key.pem")).unwrap(),
            "is not the key of the certificate",
        ),
    ] {
        let part = pki.part(&names);
        std::fs::write(part.path().join(name), text).unwrap();
        let stderr = refused(part.path(), &[]);
        assert!(stderr.contains(words) && stderr.contains(name), "{stderr}");
    }
    let part = pki.part(&names);
    lock_key(
        &pki.path("server-key.pem"),
        &part.path().join("server-key.pem"),
    );
    let stderr = refused(part.path(), &[]);
    assert!(stderr.contains("without a password"), "{stderr}");
    let part = pki.part(&names);
    let stderr = refused(part.path(), &["--nbd-verify-peer"]);
    assert!(stderr.contains("ca-cert.pem: No such file"), "{stderr}");
    std::fs::write(part.path().join("ca-cert.pem"), pki.read("ca-cert.pem")).unwrap();
    std::fs::write(part.path().join("ca-crl.pem"), "nothing").unwrap();
    let stderr = refused(part.path(), &["--nbd-verify-peer"]);
    assert!(
        stderr.contains("ca-crl.pem has no revocation list"),
        "{stderr}"
    );
}

#[test]
fn tls_without_a_port_is_refused() {
    let tree = tree();
    let text = try_serve_at(
        tree.path(),
        &["unix:/nowhere/store.nbd"],
        &["--nbd-tls", "/nowhere"],
    );
    let text = text.err().unwrap();
    assert!(text.contains("add --nbd HOST:PORT"), "{text}");
}

fn output(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(tool("timeout", "coreutils"));
    command.args(["-k", "5", "120"]).arg(program);
    command.args(arguments).output().unwrap()
}

#[test]
#[ignore = "needs openssl, libnbd and QEMU"]
fn real_clients_read_over_tls_if_they_are_allowed_to() {
    let (pki, other) = (Pki::new(), Pki::new());
    let (_tree, program) = serve(&pki, &["--nbd-verify-peer"]);
    let (_tree, open) = serve(&pki, &[]);
    let port = |program: &Program| program.places[0].rsplit_once(':').unwrap().1.to_owned();
    let uri = |scheme: &str, port: &str, dir: &Path| {
        format!(
            "{scheme}://localhost:{port}/?tls-certificates={}",
            dir.display()
        )
    };
    let nbdinfo = tool("nbdinfo", "libnbd-bin");
    let without = pki.part(&["ca-cert.pem"]);
    let (own, port, open) = (pki.dir(), port(&program), port(&open));
    let fine = output(&nbdinfo, &[&uri("nbds", &port, &own)]);
    let text = String::from_utf8_lossy(&fine.stdout);
    assert!(
        text.contains("with TLS, using structured packets"),
        "{fine:?}"
    );
    for uri in [uri("nbds", &open, &own), uri("nbds", &open, without.path())] {
        let fine = output(&nbdinfo, &["--list", &uri]);
        assert!(fine.status.success(), "{fine:?}");
    }
    let plain = format!("nbd://localhost:{open}");
    for uri in [
        uri("nbds", &port, without.path()),
        uri("nbds", &port, &other.dir()),
        uri("nbds", &open, &other.dir()),
        plain.clone(),
    ] {
        let refused = output(&nbdinfo, &[&uri]);
        assert!(!refused.status.success(), "{uri}: {refused:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let copied = output(
        &tool("nbdcopy", "libnbd-bin"),
        &[&uri("nbds", &port, &own), copy.to_str().unwrap()],
    );
    assert!(copied.status.success(), "{copied:?}");
    compare_with_qemu(&own, &port, &copy);
}

/// QEMU's TLS client, which is independent of libnbd's.
fn compare_with_qemu(certificates: &Path, port: &str, copy: &Path) {
    let object = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        certificates.display()
    );
    let at = format!("driver=nbd,host=localhost,port={port},tls-creds=tls");
    let file = format!("driver=raw,file.filename={}", copy.display());
    let arguments = ["compare", "--object", &object, "--image-opts", &at, &file];
    let compared = output(&tool("qemu-img", "qemu-utils"), &arguments);
    assert!(compared.status.success(), "{compared:?}");
}
