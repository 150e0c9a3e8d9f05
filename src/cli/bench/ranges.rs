//! Ranges to read from, and offsets drawn from them.

use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use crate::cli::errors::BenchError;

/// Unit of a virtio-blk request.
const SECTOR_BYTES: usize = 512;

/// A part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// First byte.
    pub start: u64,
    /// Its length.
    pub len_bytes: u64,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_range(text).ok_or_else(|| "a range is START:LEN, in bytes".to_owned())
    }
}

fn parse_range(text: &str) -> Option<Range> {
    let (start, len) = text.trim().split_once([':', ' ', '\t'])?;
    let range = Range {
        start: start.parse().ok()?,
        len_bytes: len.trim().parse().ok()?,
    };
    let aligned = range.start.is_multiple_of(SECTOR_BYTES as u64);
    (aligned && range.start.checked_add(range.len_bytes).is_some()).then_some(range)
}

/// Reads a list of ranges, ignoring empty lines.
pub(super) fn read(path: &Path) -> Result<Vec<Range>, BenchError> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|source| BenchError::File {
        path: path.display().to_string(),
        source,
    })?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| parse_range(line).ok_or_else(|| BenchError::Line { line: line.into() }))
        .collect()
}

/// Parses a block size such as `4096`, `4k` or `1M`.
pub(super) fn parse_block(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => (text.strip_suffix('M').unwrap_or(text), 1 << 20),
    };
    let unit = if digits == text { 1 } else { unit };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .filter(|bytes| (1..=1 << 20).contains(bytes) && bytes.is_multiple_of(SECTOR_BYTES))
        .ok_or_else(|| "a block is a multiple of 512 bytes, at most 1M".to_owned())
}

/// Parses a number of seconds.
pub(super) fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds))
        .ok_or_else(|| "seconds are a number from 0 to 86400".to_owned())
}

/// An endless sequence of offsets.
#[derive(Debug, Clone)]
pub(super) struct Offsets {
    /// Start of each range, and the number of blocks in the ranges before it.
    ranges: Vec<(u64, u64)>,
    blocks: u64,
    block_bytes: u64,
    next: u64,
    random: Option<u64>,
}

impl Offsets {
    /// Returns the whole blocks in `ranges`, sequentially, or at random with a seed. `None` if there are none.
    pub(super) fn new(ranges: &[Range], block_bytes: usize, random: Option<u64>) -> Option<Self> {
        let block_bytes = block_bytes as u64;
        let mut blocks = 0;
        let mut found = Vec::new();
        for range in ranges {
            let here = range.len_bytes / block_bytes;
            if here > 0 {
                found.push((range.start, blocks));
                blocks += here;
            }
        }
        (blocks > 0).then_some(Self {
            ranges: found,
            blocks,
            block_bytes,
            next: 0,
            random,
        })
    }

    /// Returns `count` sequences over the same blocks: with other seeds, or starting at equal distances.
    pub(super) fn split(&self, count: u16) -> Vec<Self> {
        let part = |index| Self {
            next: self.blocks * index / u64::from(count),
            random: self.random.map(|seed| seed.wrapping_add(index)),
            ..self.clone()
        };
        (0..u64::from(count)).map(part).collect()
    }

    /// Each block once, in order.
    pub(super) fn each(&self) -> impl Iterator<Item = u64> {
        (0..self.blocks).map(|block| self.offset(block))
    }

    /// Returns the next offset.
    pub(super) fn draw(&mut self) -> u64 {
        let block = match &mut self.random {
            Some(state) => splitmix(state) % self.blocks,
            None => {
                self.next = (self.next + 1) % self.blocks;
                self.next
            }
        };
        self.offset(block)
    }

    fn offset(&self, block: u64) -> u64 {
        let after = self.ranges.partition_point(|(_, before)| *before <= block);
        let (start, before) = self.ranges[after - 1];
        start + (block - before) * self.block_bytes
    }
}

/// `SplitMix64` (Steele, Lea and Flood 2014), which is random enough for offsets.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len_bytes: u64) -> Range {
        Range { start, len_bytes }
    }

    #[test]
    fn blocks_have_units() {
        assert_eq!(parse_block("4k"), Ok(4096));
        assert_eq!(parse_block("512"), Ok(512));
        assert_eq!(parse_block("1M"), Ok(1 << 20));
        for wrong in ["", "k", "0", "100", "2M", "-1", "4kk"] {
            assert!(parse_block(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_are_two_numbers() {
        assert_eq!("512:7".parse(), Ok(range(512, 7)));
        assert_eq!("512\t 7".parse(), Ok(range(512, 7)));
        for wrong in ["", "5", "1:5", "512:-1", "512:18446744073709551615"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn offsets_are_those_of_whole_blocks_in_the_ranges() {
        let ranges = [range(4096, 9000), range(1 << 40, 100), range(1 << 43, 4096)];
        let offsets = Offsets::new(&ranges, 4096, None).unwrap();
        assert_eq!(offsets.each().collect::<Vec<_>>(), [4096, 8192, 1 << 43]);
        let mut random = Offsets::new(&ranges, 4096, Some(3)).unwrap();
        let drawn: std::collections::BTreeSet<u64> = (0..100).map(|_| random.draw()).collect();
        assert_eq!(drawn, offsets.each().collect());
        assert!(Offsets::new(&[range(0, 4095)], 4096, None).is_none());
    }

    #[test]
    fn the_sequences_of_several_queues_differ() {
        let blocks = [range(0, 4096 * 100)];
        let first = |random| {
            let all = Offsets::new(&blocks, 4096, random).unwrap().split(4);
            all.into_iter()
                .map(|mut part| part.draw() / 4096)
                .collect::<Vec<_>>()
        };
        assert_eq!(first(None), [1, 26, 51, 76]);
        let drawn: std::collections::BTreeSet<u64> = first(Some(1)).into_iter().collect();
        assert_eq!(drawn.len(), 4);
    }
}
