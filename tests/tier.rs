//! Prints which tier ran. This program has no tests, so its output is not captured. It runs after `main`.

use std::env::args;

fn main() {
    let has = |flag: &str| args().any(|arg| arg == flag);
    // `--list` must print nothing.
    if has("--list") {
        return;
    }
    let filtered = args().skip(1).any(|arg| !arg.starts_with('-'));
    let tier = if has("--include-ignored") {
        "the full tier: nothing was left out"
    } else if has("--ignored") {
        "only what the bare tier leaves out"
    } else {
        "the bare tier: ignored were the tests that need root, a tool or a VM; scripts/test runs them all"
    };
    let selected = if filtered {
        ", as far as the name matches"
    } else {
        ""
    };
    println!("\nThis was {tier}{selected}.\n");
}
