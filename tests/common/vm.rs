//! Guests, booted by `scripts/vm`.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Arguments for the kernel of a guest with our own init: log to the console, little of it, and reboot at once after a panic.
pub const CONSOLE_ARGS: &str = "console=ttyS0 quiet panic=-1";

/// Only one guest runs at a time, because an emulated guest uses a whole core.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until no other guest runs. The result must be held while a guest runs.
pub fn lock_guest() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A script of this project.
pub fn script(name: &str) -> Command {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    Command::new(scripts.join(name))
}

/// A fact that a guest has reported.
pub fn fact(out: &Path, name: &str) -> String {
    let facts = std::fs::read_to_string(out.join("facts")).unwrap();
    let mut values = facts.lines().rev().filter_map(|line| line.split_once('='));
    let found = values.find(|(key, _)| *key == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {facts}"))
        .1
        .to_owned()
}
