//! `lazystore inspect`: what lies where, for a person or for a program.

mod map;
mod spot;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::closure_args::{ClosureArgs, Loaded};
use super::errors::CliError;
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::volume::nid_offset;

/// Arguments of `lazystore inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    closure: ClosureArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Nothing given means the whole map.
#[derive(Debug, Args)]
#[group(required = false, multiple = false)]
struct PlaceArgs {
    /// Say what lies at this byte of the disk
    #[arg(long, value_name = "OFFSET")]
    at: Option<u64>,
    /// Say what lies at the start of this block of 4096 bytes
    #[arg(long, value_name = "N")]
    block: Option<u64>,
    /// Say whose inode this is, such as the nid in a kernel message
    #[arg(long, value_name = "N")]
    nid: Option<u64>,
}

/// Prints what was asked for. Fails if a path of the map cannot be planned, or the nid is no inode.
pub fn run(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let loaded = args.closure.load(usize::MAX)?;
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

/// A path on the disk as its users know it: beneath the store directory. Bytes that are no UTF-8 are replaced.
fn shown(loaded: &Loaded, path: &[u8]) -> String {
    let store_dir = loaded.closure.store_dir.display();
    if path.is_empty() {
        store_dir.to_string()
    } else {
        format!("{store_dir}/{}", String::from_utf8_lossy(path))
    }
}
