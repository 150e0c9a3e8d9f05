//! `lazystore ranges`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use clap::Args;

use super::closure_args::{ClosureArgs, Loaded};
use super::errors::CliError;

/// Arguments of `lazystore ranges`.
#[derive(Debug, Args)]
pub struct RangesArgs {
    #[command(flatten)]
    closure: ClosureArgs,
}

/// Plans all paths and prints `START LEN`, in bytes, for every run of blocks with file data.
///
/// # Errors
/// The disk cannot be laid out, or a path cannot be planned.
pub fn run(args: &RangesArgs) -> Result<ExitCode, CliError> {
    let Loaded {
        image,
        fetcher: _fetcher,
        ..
    } = args.closure.load_to_read(usize::MAX)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut closed = false;
    image.file_ranges(&mut |start, len_bytes| {
        // Stop writing when the reader has closed the pipe.
        closed |= closed || writeln!(out, "{start} {len_bytes}").is_err();
    })?;
    let failed = closed || out.flush().is_err();
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
