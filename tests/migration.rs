//! Guests that are saved, restored and migrated between QEMUs and servers while they read. They do not notice it.
//!
//! `scripts/test` prepares kernel, initrd and store, and sets variables with their paths.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::common::from_env;
use crate::common::process::wait_long_for;
use crate::common::qemu::{Machine, PATIENCE, Qemu};
use crate::common::server::Server;
use crate::common::vm::{fact, lock_guest, script};

pub fn closure() -> Vec<String> {
    let info = from_env("LAZYSTORE_TEST_CLOSURE_INFO");
    let root = from_env("LAZYSTORE_TEST_STORE");
    ["--closure-info", &info, "--store-root", &root]
        .map(str::to_owned)
        .to_vec()
}

/// The fingerprint that the other server must have.
fn fingerprint() -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lazystore"));
    let output = command.arg("fingerprint").args(closure()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn server() -> Server {
    Server::start_after(&[], &closure(), &["--expect", &fingerprint()])
}

/// Checks that the guest's results equal the host's data in every round of hashing.
pub fn check_results(machine: &Machine) {
    machine.unpack_results();
    let out = &machine.dir;
    let compared = script("compare").arg(out).args(closure()).output().unwrap();
    let text = String::from_utf8_lossy(&compared.stdout);
    assert!(
        compared.status.success() && text.contains("identical"),
        "{text}"
    );
    let fact = |name| fact(out, name);
    println!(
        "{} rounds of hashing, I/O errors in the guest's log: {}",
        fact("hash_rounds"),
        fact("io_errors")
    );
    assert_eq!(
        (fact("different_sums"), fact("io_errors")),
        ("1".to_owned(), "0".to_owned())
    );
}

/// Waits until the guest has completed another round of hashing.
pub fn hash_on(machine: &Machine) {
    let before = machine.rounds();
    wait_long_for("another round of hashing", PATIENCE, || {
        (machine.rounds() > before).then_some(())
    });
}

/// Migrates the guest to a new process with the store at `socket`.
fn migrate(machine: &mut Machine, mut from: Qemu, socket: &Path) -> Qemu {
    let place = format!("unix:{}", machine.dir.join("migration").display());
    let mut to = machine.start(socket, &["-incoming", &place]);
    from.migrate(&place);
    to.wait_until_running();
    from.quit();
    to
}

/// Default number of migrations. `LAZYSTORE_MIGRATIONS` sets another.
fn migrations() -> usize {
    let asked = std::env::var("LAZYSTORE_MIGRATIONS").ok();
    asked.map_or(4, |count| count.parse().unwrap())
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_reads_correctly_while_it_migrates_back_and_forth() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let servers = [server(), server()];
    let seconds = 20 + 10 * migrations();
    let mut machine = Machine::new(dir.path(), &format!("lazystore.hash_s={seconds}"));
    let mut qemu = machine.start(&servers[0].socket, &[]);
    machine.wait_for_words("lazystore: hashed 1");
    let mut kills = 0;
    for count in 1..=migrations() {
        let [here, there] = [&servers[(count - 1) % 2], &servers[count % 2]];
        if count % 3 == 0 {
            kill(here.workers()[0], Signal::SIGKILL).unwrap();
            kills += 1;
        }
        qemu = migrate(&mut machine, qemu, &there.socket);
        println!("migration {count}: {} rounds", machine.rounds());
    }
    // It hashes for a fixed time, regardless of how fast the migrations were.
    let hashing = Duration::from_secs(u64::try_from(seconds).unwrap());
    qemu.wait_at_most(hashing + PATIENCE);
    println!("{} migrations, {kills} workers killed", migrations());
    check_results(&machine);
}

#[test]
#[ignore = "boots a VM"]
fn a_saved_guest_continues_with_a_new_server() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(dir.path(), "lazystore.hash_s=30");
    let first = server();
    let mut qemu = machine.start(&first.socket, &[]);
    machine.wait_for_words("lazystore: hashed 1");
    qemu.monitor("savevm saved");
    // The restored guest does not see what happens after the snapshot.
    hash_on(&machine);
    qemu.quit();
    drop(first);
    let next = server();
    let qemu = machine.start(&next.socket, &["-loadvm", "saved"]);
    hash_on(&machine);
    qemu.wait();
    check_results(&machine);
}

#[test]
#[ignore = "boots a VM"]
fn a_guest_migrated_to_a_file_continues_with_a_new_server() {
    let _lock = lock_guest();
    let dir = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(dir.path(), "lazystore.hash_s=30");
    let file = dir.path().join("state");
    let first = server();
    let mut qemu = machine.start(&first.socket, &[]);
    machine.wait_for_words("lazystore: hashed 1");
    qemu.migrate(&format!("exec:cat > {}", file.display()));
    qemu.quit();
    drop(first);
    let next = server();
    let mut qemu = machine.start(
        &next.socket,
        &["-incoming", &format!("exec:cat {}", file.display())],
    );
    qemu.wait_until_running();
    hash_on(&machine);
    qemu.wait();
    check_results(&machine);
}
