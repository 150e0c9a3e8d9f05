//! `lazystore inspect`: shows the disk's layout as text or JSON.

mod map;
mod spot;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::closure_args::{ClosureArgs, Loaded};
use super::errors::CliError;
use super::help;
use super::numbers::whole;
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::volume::nid_offset;

/// Arguments of `lazystore inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct InspectArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print JSON
    #[arg(long, help_heading = "What to print")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  lazystore inspect ./result
  lazystore inspect ./result --nid 4294967424
  lazystore inspect ./result --block 33554432 --json";

const HELP: &str = "\
Without --at, --block or --nid: the superblock, a line for each path, and totals. The columns of a path: the ranges of \
blocks reserved for its metadata (inodes, directories, small files) and for data of files, end exclusive; whether \
these are exact, or a bound computed from its NAR size; how many blocks of each it uses; how many files it has.

With one of them: what is at that address, which file it belongs to, and its range of bytes on the disk. Kernel \
messages contain nids.";

/// Without any of them, the whole map is shown.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to print")]
#[group(required = false, multiple = false)]
struct PlaceArgs {
    /// Show what is at this byte of the disk
    #[arg(long, value_name = "OFFSET", value_parser = whole::<u64>(0..=u64::MAX))]
    at: Option<u64>,
    /// Show what is at the start of this block of 4096 bytes
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=u64::MAX))]
    block: Option<u64>,
    /// Show the file with this inode, such as the nid in a kernel message
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=u64::MAX))]
    nid: Option<u64>,
}

/// Prints the map or the spot. The exit code is 1 if a path of the map cannot be planned, or the nid is not an inode.
pub fn run(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let loaded = args.closure.load_to_read(usize::MAX)?;
    let clean = match args.place {
        PlaceArgs { at: Some(at), .. } => args.spot(&loaded, at, None)?,
        PlaceArgs {
            block: Some(block), ..
        } => args.spot(&loaded, block.saturating_mul(BLOCK_LEN_BYTES), None)?,
        PlaceArgs { nid: Some(nid), .. } => args.spot(&loaded, nid_offset(nid), Some(nid))?,
        _ => args.map(&loaded)?,
    };
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl InspectArgs {
    fn spot(&self, loaded: &Loaded, at: u64, nid: Option<u64>) -> Result<bool, CliError> {
        let view = spot::SpotView::new(loaded, at, nid)?;
        self.print(&view, |out| view.print(out))?;
        Ok(view.is_as_asked())
    }

    fn map(&self, loaded: &Loaded) -> Result<bool, CliError> {
        let view = map::MapView::new(loaded)?;
        self.print(&view, |out| view.print(out))?;
        Ok(view.is_whole())
    }

    fn print<V: Serialize>(
        &self,
        view: &V,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if self.json {
            serde_json::to_writer_pretty(&mut out, view)?;
            writeln!(out)?;
        } else {
            text(&mut out)?;
        }
        out.flush()
    }
}

/// A path on the disk for output: with the store directory, and invalid UTF-8 replaced.
fn shown(loaded: &Loaded, path: &[u8]) -> String {
    let store_dir = loaded.closure.store_dir.display();
    if path.is_empty() {
        store_dir.to_string()
    } else {
        format!("{store_dir}/{}", String::from_utf8_lossy(path))
    }
}
