//! QEMU guests that read the disk over NBD and share no memory.

use super::pki::Pki;
use super::program::{Program, try_serve_closure};
use crate::common::qemu::Machine;
use crate::common::vm::lock_guest;
use crate::migration::{check_results, closure, hash_on};

fn serve(place: &str, extra: &[&str]) -> Program {
    let closure = closure();
    let closure: Vec<&str> = closure.iter().map(String::as_str).collect();
    try_serve_closure(&closure, &[place], extra).unwrap()
}

/// QEMU's options for the disk at the socket `server`.
fn node(server: &str) -> Option<String> {
    let node = "driver=nbd,node-name=store,read-only=on,reconnect-delay=60";
    Some(format!("{node},{server}"))
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_saved_over_nbd_continues_with_another_server_over_tls() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(dir.path(), "lazystore.hash_s=30");
    let socket = dir.path().join("store.nbd");
    let first = serve(&format!("unix:{}", socket.display()), &[]);
    machine.node = node(&format!(
        "server.type=unix,server.path={}",
        socket.display()
    ));
    let mut qemu = machine.start(&socket, &[]);
    machine.wait_for_words("lazystore: hashed 1");
    qemu.monitor("savevm saved");
    hash_on(&machine);
    qemu.quit();
    drop(first);

    let pki = Pki::new();
    let own = pki.dir();
    let tls = ["--nbd-tls", own.to_str().unwrap(), "--nbd-verify-peer"];
    let next = serve("127.0.0.1:0", &tls);
    let (_, port) = next.places[0].rsplit_once(':').unwrap();
    machine.node = node(&format!(
        "server.type=inet,server.host=localhost,server.port={port},tls-creds=tls"
    ));
    let creds = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        own.display()
    );
    let qemu = machine.start(&socket, &["-loadvm", "saved", "-object", &creds]);
    hash_on(&machine);
    qemu.wait();
    check_results(&machine);
}
