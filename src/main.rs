//! The `lazystore` command. All code is in the library.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    lazystore::cli::run(Instant::now())
}
