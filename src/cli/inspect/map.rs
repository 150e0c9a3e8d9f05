//! The map: superblock, ranges of all paths, and totals.

use std::io::{self, Write};
use std::ops::Range;

use serde::Serialize;
use zerocopy::FromBytes;

use super::super::closure_args::Loaded;
use super::super::errors::CliError;
use super::super::text::{bytes, counted, without_errno};
use super::shown;
use crate::erofs::format::{BLOCK_LEN_BYTES, BLOCK_LEN_USIZE, SUPERBLOCK_OFFSET, SuperBlock};
use crate::image::Image;
use crate::parallel;

/// An overview of the disk. Ranges are in blocks of 4096 bytes, end exclusive.
#[derive(Debug, Serialize)]
pub struct MapView {
    fingerprint: Option<String>,
    superblock: Option<SuperBlockView>,
    len_bytes: u64,
    paths: Vec<PathView>,
    totals: MapTotals,
}

/// The superblock as read from the disk.
#[derive(Debug, Serialize)]
struct SuperBlockView {
    magic: String,
    checksum: String,
    label: String,
    uuid: String,
    feature_compat: u32,
    feature_incompat: u32,
    block_len_bytes: u64,
    blocks: u32,
    inodes: u64,
    root_nid: u16,
    build_time_sec: u64,
}

/// One path.
#[derive(Debug, Serialize)]
struct PathView {
    path: String,
    nid: u64,
    meta: Range<u32>,
    data: Range<u32>,
    /// The ranges are exact; otherwise they are bounds computed from the NAR size.
    exact: bool,
    #[serde(flatten)]
    used: Used,
}

/// The blocks that the path's plan uses, or why it cannot be planned.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Used {
    Planned {
        meta_blocks_used: u32,
        data_blocks_used: u32,
        files: usize,
    },
    Failed {
        error: String,
    },
}

/// Sums over all paths.
#[derive(Debug, Default, Serialize)]
struct MapTotals {
    paths: usize,
    failed: usize,
    files: u64,
    meta_blocks: u64,
    meta_blocks_used: u64,
    data_blocks: u64,
    data_blocks_used: u64,
}

impl MapView {
    /// Plans every path to determine how many blocks it uses.
    pub fn new(loaded: &Loaded) -> Result<Self, CliError> {
        let regions = loaded.image.space().regions();
        let paths = parallel::for_each(regions.len(), || (), |(), index| path_view(loaded, index));
        Ok(Self {
            fingerprint: loaded.image.fingerprint().map(ToString::to_string),
            superblock: superblock(&loaded.image)?,
            len_bytes: loaded.image.len_bytes(),
            totals: MapTotals::of(&paths),
            paths,
        })
    }

    /// Returns whether every path could be planned.
    pub fn is_whole(&self) -> bool {
        self.totals.failed == 0
    }

    /// Prints the map as text.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(superblock) = &self.superblock {
            superblock.print(self.len_bytes, out)?;
        }
        if let Some(fingerprint) = &self.fingerprint {
            writeln!(out, "  identity  {fingerprint}")?;
        }
        writeln!(
            out,
            "\npaths: ranges of {BLOCK_LEN_BYTES}-byte blocks reserved for metadata and data (end exclusive); whether they \
            are exact\nor a bound from the NAR size; blocks of metadata + data used; files"
        )?;
        let heads = ["metadata", "data", "size", "used", "files"];
        let [meta, data, size, used, files] = heads;
        writeln!(
            out,
            "  {meta:>17} {data:>21} {size:>5} {used:>15} {files:>7}  path"
        )?;
        for path in &self.paths {
            path.print(out)?;
        }
        self.totals.print(out)
    }
}

fn superblock(image: &Image) -> Result<Option<SuperBlockView>, CliError> {
    let mut block = [0; BLOCK_LEN_USIZE];
    image.read_exact_at(&mut block, 0)?;
    let parsed = SuperBlock::read_from_prefix(&block[SUPERBLOCK_OFFSET..]);
    Ok(parsed
        .ok()
        .map(|(superblock, _)| SuperBlockView::from(&superblock)))
}

impl From<&SuperBlock> for SuperBlockView {
    fn from(superblock: &SuperBlock) -> Self {
        let label = superblock.volume_name.split(|byte| *byte == 0).next();
        Self {
            magic: format!("{:#x}", superblock.magic),
            checksum: format!("{:#010x}", superblock.checksum),
            label: String::from_utf8_lossy(label.unwrap_or_default()).into_owned(),
            uuid: uuid(superblock.uuid),
            feature_compat: superblock.feature_compat.get(),
            feature_incompat: superblock.feature_incompat.get(),
            block_len_bytes: 1 << superblock.block_bits,
            blocks: superblock.blocks.get(),
            inodes: superblock.inodes.get(),
            root_nid: superblock.root_nid.get(),
            build_time_sec: superblock.build_time.get(),
        }
    }
}

fn uuid(bytes: [u8; 16]) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
    groups.map(|group| &hex[group]).join("-")
}

impl SuperBlockView {
    fn print(&self, len_bytes: u64, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            magic,
            checksum,
            label,
            uuid,
            ..
        } = self;
        writeln!(out, "superblock")?;
        writeln!(out, "  magic     {magic}, checksum {checksum}")?;
        writeln!(out, "  label     {label}")?;
        writeln!(out, "  uuid      {uuid}")?;
        let (compat, incompat) = (self.feature_compat, self.feature_incompat);
        writeln!(
            out,
            "  features  compat {compat:#x}, incompat {incompat:#x}"
        )?;
        writeln!(out, "  root nid  {}", self.root_nid)?;
        writeln!(out, "  mtime     {} s", self.build_time_sec)?;
        let (blocks, len) = (self.blocks, self.block_len_bytes);
        writeln!(
            out,
            "  disk      {len_bytes} bytes ({}), {blocks} blocks of {len}",
            bytes(len_bytes)
        )
    }
}

fn path_view(loaded: &Loaded, index: usize) -> PathView {
    let region = &loaded.image.space().regions()[index];
    let used = u32::try_from(index).map(|index| loaded.image.usage(index));
    PathView {
        path: shown(loaded, &region.name),
        nid: region.nid(),
        meta: region.meta.clone(),
        data: region.data.clone(),
        exact: region.exact,
        used: match used {
            Ok(Ok(usage)) => Used::Planned {
                meta_blocks_used: usage.meta_blocks,
                data_blocks_used: usage.data_blocks,
                files: usage.files,
            },
            Ok(Err(error)) => Used::Failed {
                error: without_errno(&error.to_string()),
            },
            Err(error) => Used::Failed {
                error: error.to_string(),
            },
        },
    }
}

impl PathView {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let range = |range: &Range<u32>| format!("{}..{}", range.start, range.end);
        let (meta, data) = (range(&self.meta), range(&self.data));
        let size = if self.exact { "exact" } else { "bound" };
        write!(out, "  {meta:>17} {data:>21} {size:>5}")?;
        match &self.used {
            Used::Planned {
                meta_blocks_used,
                data_blocks_used,
                files,
            } => {
                let used = format!("{meta_blocks_used} + {data_blocks_used}");
                writeln!(out, " {used:>15} {files:>7}  {}", self.path)
            }
            Used::Failed { error } => {
                writeln!(out, " {:>15} {:>7}  {}: {error}", "-", "-", self.path)
            }
        }
    }
}

impl MapTotals {
    fn of(paths: &[PathView]) -> Self {
        let mut totals = Self {
            paths: paths.len(),
            ..Self::default()
        };
        for path in paths {
            totals.meta_blocks += path.meta.len() as u64;
            totals.data_blocks += path.data.len() as u64;
            match &path.used {
                Used::Planned {
                    meta_blocks_used,
                    data_blocks_used,
                    files,
                } => {
                    totals.meta_blocks_used += u64::from(*meta_blocks_used);
                    totals.data_blocks_used += u64::from(*data_blocks_used);
                    totals.files += *files as u64;
                }
                Used::Failed { .. } => totals.failed += 1,
            }
        }
        totals
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\ntotals")?;
        let (paths, files) = (counted(self.paths, "path"), counted(self.files, "file"));
        writeln!(out, "  {paths}, {files}")?;
        let in_use = |used: u64, all: u64| {
            let len = bytes(used.saturating_mul(BLOCK_LEN_BYTES));
            format!("{used} of {} used, {len}", counted(all, "block"))
        };
        let (used, all) = (self.meta_blocks_used, self.meta_blocks);
        writeln!(out, "  metadata  {}", in_use(used, all))?;
        let (used, all) = (self.data_blocks_used, self.data_blocks);
        writeln!(out, "  data      {}", in_use(used, all))?;
        if self.failed > 0 {
            let paths = counted(self.failed, "path");
            writeln!(out, "  {paths} cannot be planned")?;
        }
        Ok(())
    }
}
