//! Writes down what is read from a disk, while it is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rangemap::RangeSet;

use super::recording::{FIRST_LINE, Part, Touch};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::space::{Area, Space};

/// Where to write, and what is there already.
#[derive(Debug)]
pub(super) struct Recorder {
    /// None once writing has failed.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// What the file held is thrown away with the first line.
    replace: bool,
    /// Whether there has been a first line.
    begun: bool,
    seen: RangeSet<u32>,
    /// What a region is called in the file.
    numbers: HashMap<u32, usize>,
}

impl Recorder {
    /// Writes to `file`, which is open for appending; with `replace`, instead of what is in it, once there is something
    /// to write.
    pub(super) fn new(file: File, replace: bool) -> Self {
        let state = State {
            file,
            replace,
            begun: false,
            seen: RangeSet::new(),
            numbers: HashMap::new(),
        };
        Self {
            state: Mutex::new(Some(state)),
        }
    }

    /// Notes that bytes were asked for. Each block is written down once.
    pub(super) fn note(&self, space: &Space, bytes: Range<u64>) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = guard.as_mut() else {
            return;
        };
        if let Err(error) = state.note(space, bytes) {
            tracing::warn!("cannot write the recording any further: {error}");
            *guard = None;
        }
    }
}

impl State {
    fn note(&mut self, space: &Space, bytes: Range<u64>) -> io::Result<()> {
        let block = |bytes: u64| u32::try_from(bytes / BLOCK_LEN_BYTES).unwrap_or(u32::MAX);
        let blocks = block(bytes.start)..block(bytes.end.next_multiple_of(BLOCK_LEN_BYTES));
        if blocks.is_empty() {
            return Ok(());
        }
        let fresh: Vec<Range<u32>> = self.seen.gaps(&blocks).collect();
        let mut lines = Vec::new();
        for blocks in fresh {
            self.describe(space, blocks, &mut lines);
        }
        self.seen.insert(blocks);
        self.write(&lines)
    }

    /// Appends what is to be written about some blocks; nothing about the superblock, the root directory and gaps.
    fn describe(&mut self, space: &Space, mut blocks: Range<u32>, lines: &mut Vec<u8>) {
        while !blocks.is_empty() {
            let (region, part, first) = match space.area(blocks.start) {
                Area::Meta { region, block } => (region, Part::Meta, block),
                Area::Data { region, block } => (region, Part::Data, block),
                Area::Unused { end } => {
                    blocks.start = end;
                    continue;
                }
                Area::Superblock | Area::Root(_) => {
                    blocks.start += 1;
                    continue;
                }
            };
            let end = blocks.end.min(part.range(space.region(region)).end);
            let touch = Touch {
                path: self.number(space, region, lines),
                part,
                blocks: first..first + (end - blocks.start),
            };
            lines.extend_from_slice(format!("{touch}\n").as_bytes());
            blocks.start = end;
        }
    }

    /// What a region is called; a line that says so comes first.
    fn number(&mut self, space: &Space, region: u32, lines: &mut Vec<u8>) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(region).or_insert_with(|| {
            lines.extend_from_slice(b"+ ");
            lines.extend_from_slice(&space.region(region).name);
            lines.push(b'\n');
            next
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.begun {
            return self.file.write_all(lines);
        }
        self.begun = true;
        if self.replace {
            self.file.set_len(0)?;
        }
        let first_line = format!("{FIRST_LINE}\n");
        self.file
            .write_all(&[first_line.as_bytes(), lines].concat())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::recording::Recording;
    use super::super::testing::store_image;
    use super::super::{Image, ImageOptions};
    use super::*;

    fn append_to(path: &std::path::Path) -> File {
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap()
    }

    fn read(image: &Image, blocks: Range<u32>) {
        let bytes = |block: u32| u64::from(block) * BLOCK_LEN_BYTES;
        let len = usize::try_from(bytes(blocks.end - blocks.start)).unwrap();
        image
            .read_exact_at(&mut vec![0; len], bytes(blocks.start))
            .unwrap();
    }

    fn store() -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join("a")).unwrap();
        fs::write(store.path().join("a/file"), vec![1; 10 * 4096]).unwrap();
        fs::write(store.path().join("b"), vec![2; 3 * 4096]).unwrap();
        store
    }

    #[test]
    fn each_block_is_written_down_once_and_in_order() {
        let store = store();
        let out = tempfile::NamedTempFile::new().unwrap();
        fs::write(out.path(), "of old").unwrap();
        let image = store_image(store.path(), &ImageOptions::default());
        image.record_to(append_to(out.path()), true);
        let [a, b] = [image.space().region(0), image.space().region(1)];
        read(&image, 0..2);
        assert_eq!(
            fs::read(out.path()).unwrap(),
            b"of old",
            "nothing of a path was read"
        );
        read(&image, b.data.start + 1..b.data.start + 2);
        read(&image, a.data.start + 2..a.data.start + 4);
        // From the end of one path into the other.
        read(&image, a.data.start..b.data.end);
        read(&image, b.meta.clone());
        let text = fs::read_to_string(out.path()).unwrap();
        let wanted = [
            FIRST_LINE, "+ b", "d 0 1 1", "+ a", "d 1 2 2", "d 1 0 2", "d 1 4 6", "d 0 0 1",
            "d 0 2 1", "m 0 0 1", "",
        ];
        assert_eq!(text, wanted.join("\n"));
        Recording::parse(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_part_is_appended() {
        let store = store();
        let out = tempfile::NamedTempFile::new().unwrap();
        for replace in [true, false] {
            let image = store_image(store.path(), &ImageOptions::default());
            image.record_to(append_to(out.path()), replace);
            read(&image, image.space().region(1).data.clone());
        }
        let part = format!("{FIRST_LINE}\n+ b\nd 0 0 3\n");
        assert_eq!(fs::read_to_string(out.path()).unwrap(), part.repeat(2));
    }
}
