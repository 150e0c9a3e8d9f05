//! `lazystore fingerprint`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::closure_args::{ClosureArgs, Loaded};
use super::errors::CliError;
use super::help;
use super::text::counted;
use crate::closure::{Closure, Contents};

/// Arguments of `lazystore fingerprint`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct FingerprintArgs {
    #[command(flatten)]
    closure: ClosureArgs,
}

const EXAMPLES: &str = "\
Examples:
  lazystore fingerprint ./result
  lazystore fingerprint ./result --expect $fingerprint
  lazystore serve ./result --expect $fingerprint --vhost-user store.sock";

const HELP: &str = "\
It covers the sorted store paths with their NAR hashes, the options that change the disk's bytes, and the layout version. \
A VM that was saved, or that moves to another host, needs a disk with the same fingerprint. With --from the layout is \
another one, and so is the fingerprint: give --from on both hosts or on none.

The hashes are those that Nix has registered; lazystore verify compares them with what is on the host. Of a path without \
a registered hash only name, type and size count: the fingerprint then begins with \"weak-\", and standard error says so.";

/// Prints the fingerprint; a word on stderr if it is worth less than others.
pub fn run(args: &FingerprintArgs) -> Result<ExitCode, CliError> {
    let Loaded { closure, image, .. } = args.closure.load(usize::MAX, false)?;
    let fingerprint = image.fingerprint().ok_or(CliError::NoFingerprint)?;
    warn_if_weak(&closure);
    writeln!(io::stdout(), "{fingerprint}")?;
    Ok(ExitCode::SUCCESS)
}

fn warn_if_weak(closure: &Closure) {
    let Contents::StorePaths(paths) = &closure.contents else {
        return;
    };
    let unhashed = paths.iter().filter(|path| path.nar_hash.is_none()).count();
    if unhashed > 0 {
        tracing::warn!(
            "no NAR hash is registered of {} of {}, of which only names, types and sizes count: pass --registration for a \
             fingerprint that tells their contents apart",
            unhashed,
            counted(paths.len(), "path")
        );
    }
}
