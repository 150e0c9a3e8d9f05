//! The file format of recordings: the blocks that a guest touched, in order, to be prefetched next time.
//!
//! It is a text file. Block numbers are relative to the path's range, so a recording is valid independently of the
//! path's address on the disk, and for every closure that has the path:
//!
//! ```text
//! lazystore recording 1
//! # disk 5c7w…                the fingerprint of the disk; lines that begin with "# " are comments
//! + 0c1ikxj...-glibc-2.40     defines path 0; the next such line defines path 1
//! m 0 0 3                     3 blocks of metadata of path 0, from its first block
//! d 0 12 32                   32 blocks of data of path 0, from block 12
//! ```
//!
//! Lines are written completely or not at all, so a killed writer leaves a valid recording of what was touched so far.
//! A last line without newline is ignored. A repeated first line starts a new part, in which path numbers start at 0
//! again.

use std::fmt;
use std::ops::Range;

use crate::erofs::layout::space::Region;

/// First line of a recording, and of every further part.
pub(super) const FIRST_LINE: &str = "lazystore recording 1";

/// Prefix of comments.
pub(super) const REMARK: &str = "# ";

/// One of the two ranges of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionPart {
    /// Inodes, directories, inlined data.
    Meta,
    /// Contents of files.
    Data,
}

impl RegionPart {
    /// Returns the block range of this part of a region.
    pub(super) fn range(self, region: &Region) -> &Range<u32> {
        match self {
            Self::Meta => &region.meta,
            Self::Data => &region.data,
        }
    }
}

/// A contiguous range of blocks of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// Index of the path in the recording.
    pub path: usize,
    /// The part of the path.
    pub part: RegionPart,
    /// Blocks, relative to the start of the part.
    pub blocks: Range<u32>,
}

/// A parsed recording.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// Names of paths in the store; empty for a tree.
    pub paths: Vec<Box<[u8]>>,
    /// In the order in which they were touched.
    pub touches: Vec<Touch>,
}

/// Why a file is not a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not part of a recording: expected {expected}")]
pub struct NotARecording {
    /// Line number, counted from 1.
    pub line: usize,
    /// What was expected.
    pub expected: &'static str,
}

impl Recording {
    /// Parses a recording.
    ///
    /// # Errors
    /// [`NotARecording`] with the first malformed line.
    pub fn parse(text: &[u8]) -> Result<Self, NotARecording> {
        let mut recording = Self::default();
        // Index in `paths` of path 0 of the current part; `None` before the first line.
        let mut base = None;
        for (number, line) in (1..).zip(whole_lines(text)) {
            let wrong = |expected| NotARecording {
                line: number,
                expected,
            };
            if line == FIRST_LINE.as_bytes() {
                base = Some(recording.paths.len());
                continue;
            }
            if line.starts_with(REMARK.as_bytes()) {
                continue;
            }
            let base = base.ok_or(wrong("\"lazystore recording 1\""))?;
            if let Some(name) = line.strip_prefix(b"+ ") {
                recording.paths.push(name.into());
            } else {
                let touch = parse_touch(line, base, recording.paths.len());
                let touch = touch.ok_or(wrong("\"m\" or \"d\", a path, a block and a count"))?;
                recording.touches.push(touch);
            }
        }
        match base {
            Some(_) => Ok(recording),
            None => Err(NotARecording {
                line: 1,
                expected: "\"lazystore recording 1\"",
            }),
        }
    }
}

/// Returns the lines that end with a newline.
fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_suffix(b"\n"))
}

/// Parses a touch. Path number n means path `base + n`, which must be less than `paths`.
fn parse_touch(line: &[u8], base: usize, paths: usize) -> Option<Touch> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let part = match words.next()? {
        "m" => RegionPart::Meta,
        "d" => RegionPart::Data,
        _ => return None,
    };
    let path = base.checked_add(words.next()?.parse().ok()?)?;
    let start: u32 = words.next()?.parse().ok()?;
    let count: u32 = words.next()?.parse().ok()?;
    let blocks = start..start.checked_add(count)?;
    let good = path < paths && !blocks.is_empty() && words.next().is_none();
    good.then_some(Touch { path, part, blocks })
}

impl fmt::Display for Touch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.part {
            RegionPart::Meta => 'm',
            RegionPart::Data => 'd',
        };
        let Range { start, end } = self.blocks;
        write!(out, "{letter} {} {start} {}", self.path, end - start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn touch(path: usize, part: RegionPart, blocks: Range<u32>) -> Touch {
        Touch { path, part, blocks }
    }

    fn wrong_line(text: &str) -> usize {
        Recording::parse(text.as_bytes()).unwrap_err().line
    }

    #[test]
    fn a_recording_of_two_parts_is_parsed() {
        let text = "lazystore recording 1\n# disk x\n+ a-x\nm 0 0 3\n+ b-y\nd 1 7 1\n\
                    lazystore recording 1\n+ c-z\nd 0 0 2\nd 0 9 9";
        let recording = Recording::parse(text.as_bytes()).unwrap();
        let paths: Vec<&[u8]> = recording.paths.iter().map(|name| &**name).collect();
        assert_eq!(paths, [b"a-x", b"b-y", b"c-z"]);
        let touches = [
            touch(0, RegionPart::Meta, 0..3),
            touch(1, RegionPart::Data, 7..8),
            touch(2, RegionPart::Data, 0..2),
        ];
        assert_eq!(recording.touches, touches);
    }

    #[test]
    fn errors_name_the_malformed_line() {
        assert_eq!(wrong_line(""), 1);
        assert_eq!(wrong_line("lazystore recording 1"), 1);
        assert_eq!(wrong_line("something else\n"), 1);
        let begin = "lazystore recording 1\n+ a\n";
        for line in [
            "m 1 0 1",
            "m 0 0 0",
            "x 0 0 1",
            "d 0 4294967295 2",
            "d 0 1 1 1",
            "d -1 1 1",
            "",
            "\u{fffd}",
        ] {
            assert_eq!(wrong_line(&format!("{begin}{line}\n")), 3, "{line}");
        }
    }

    proptest! {
        #[test]
        fn written_recordings_are_parsed(
            touches in proptest::collection::vec((0..3_usize, any::<bool>(), 0..1000_u32, 1..1000_u32), 0..50)
        ) {
            let touches: Vec<Touch> = touches
                .into_iter()
                .map(|(path, meta, start, count)| {
                    touch(path, if meta { RegionPart::Meta } else { RegionPart::Data }, start..start + count)
                })
                .collect();
            let lines: String = touches.iter().map(|touch| format!("{touch}\n")).collect();
            let text = format!("{FIRST_LINE}\n+ a\n+ b\n+ \n{lines}");
            prop_assert_eq!(Recording::parse(text.as_bytes()).unwrap().touches, touches);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>) {
            let _ = Recording::parse(&bytes);
            let _ = Recording::parse(&[b"lazystore recording 1\n", &bytes[..]].concat());
        }
    }
}
