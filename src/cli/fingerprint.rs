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
It covers the sorted store paths with their NAR hashes, the options that change the disk's bytes, and the layout \
version. A VM that was saved, or that moves to another host, needs a disk with the same fingerprint. --from changes \
the layout and the fingerprint: use it on both hosts or on neither.

The hashes are those registered with Nix; lazystore verify compares them with the files on the host. For a path \
without a registered hash, only name, type and size are covered: the fingerprint then begins with \"weak-\", and a \
warning is printed.";

/// Prints the fingerprint, with a warning on stderr if it does not cover all contents.
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
            "no NAR hash is registered for {} of {}, so the fingerprint covers only their names, types and sizes: pass --registration to \
             cover their contents",
            unhashed,
            counted(paths.len(), "path")
        );
    }
}
