//! The `lazystore` command; see the library for what it does.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    lazystore::cli::run(Instant::now())
}
