//! Records which blocks of a disk are read.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rangemap::RangeSet;

use super::recording::{FIRST_LINE, REMARK, RegionPart, Touch};
use crate::erofs::format::BLOCK_LEN_BYTES;
use crate::erofs::layout::space::{Area, Space};

/// Maximum length of a recording, since its length depends on the guest. A million touches are more than is worth
/// prefetching. It also bounds the memory for `seen`.
const LIMIT_BYTES: u64 = 16 << 20;

/// Where to start writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordStart {
    /// Truncate the file first.
    Anew,
    /// Append to the file.
    AtItsEnd,
}

/// Called once, before the first write. Returns `None` if another process records.
struct TakeTurn(Box<dyn FnOnce() -> Option<RecordStart> + Send>);

impl fmt::Debug for TakeTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TakeTurn")
    }
}

/// Why recording ends early.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error("cannot write the recording any further: {0}")]
    Io(#[from] io::Error),
    #[error(
        "the recording ends at its limit of {LIMIT_BYTES} bytes: the VM reads more than is worth prefetching"
    )]
    Full,
    #[error("another process is recording")]
    NotItsTurn,
}

/// Records reads to a file.
#[derive(Debug)]
pub(super) struct Recorder {
    /// `None` after recording has ended.
    log: Mutex<Option<Log>>,
}

#[derive(Debug)]
struct Log {
    file: File,
    /// Length of the file.
    len_bytes: u64,
    /// The disk's fingerprint.
    disk: Option<String>,
    /// `None` after the first write.
    take_turn: Option<TakeTurn>,
    /// Blocks that are already in the file.
    seen: RangeSet<u32>,
    /// The number of each region in the file.
    numbers: HashMap<u32, usize>,
}

impl Recorder {
    /// Records to `file`, which must be opened for appending. `take_turn` is called before the first write. `disk` is
    /// the disk's fingerprint, for a remark in the recording.
    pub(super) fn new(
        file: File,
        disk: Option<String>,
        take_turn: impl FnOnce() -> Option<RecordStart> + Send + 'static,
    ) -> Self {
        let log = Log {
            file,
            len_bytes: 0,
            disk,
            take_turn: Some(TakeTurn(Box::new(take_turn))),
            seen: RangeSet::new(),
            numbers: HashMap::new(),
        };
        Self {
            log: Mutex::new(Some(log)),
        }
    }

    /// Records a read. Each block is written to the file only once.
    pub(super) fn note(&self, space: &Space, bytes: Range<u64>) {
        let mut guard = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(log) = guard.as_mut() else {
            return;
        };
        if let Err(error) = log.note(space, bytes) {
            if !matches!(error, RecordError::NotItsTurn) {
                tracing::warn!("{error}");
            }
            *guard = None;
        }
    }
}

impl Log {
    fn note(&mut self, space: &Space, bytes: Range<u64>) -> Result<(), RecordError> {
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
        // Do not add blocks to `seen` for which there is nothing to write: that would use memory without limit.
        if lines.is_empty() {
            return Ok(());
        }
        self.seen.insert(blocks);
        self.write(&lines)
    }

    /// Appends the lines for some blocks to `lines`. The superblock, the root directory and gaps are left out.
    fn describe(&mut self, space: &Space, mut blocks: Range<u32>, lines: &mut Vec<u8>) {
        while !blocks.is_empty() {
            let (region, part, first) = match space.area(blocks.start) {
                Area::Meta { region, block } => (region, RegionPart::Meta, block),
                Area::Data { region, block } => (region, RegionPart::Data, block),
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

    /// Returns the number of a region in the file. Appends the line that defines it if it is new.
    fn number(&mut self, space: &Space, region: u32, lines: &mut Vec<u8>) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(region).or_insert_with(|| {
            lines.extend_from_slice(b"+ ");
            lines.extend_from_slice(&space.region(region).name);
            lines.push(b'\n');
            next
        })
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), RecordError> {
        let first_line = match self.take_turn.take() {
            Some(TakeTurn(take_turn)) => self.begin(take_turn())?,
            None => String::new(),
        };
        let lines = [first_line.as_bytes(), lines].concat();
        self.len_bytes += lines.len() as u64;
        if self.len_bytes > LIMIT_BYTES {
            return Err(RecordError::Full);
        }
        Ok(self.file.write_all(&lines)?)
    }

    /// Prepares the file; returns its first lines.
    fn begin(&mut self, start: Option<RecordStart>) -> Result<String, RecordError> {
        match start.ok_or(RecordError::NotItsTurn)? {
            RecordStart::Anew => self.file.set_len(0)?,
            RecordStart::AtItsEnd => self.len_bytes = self.file.metadata()?.len(),
        }
        let disk = self
            .disk
            .take()
            .map(|disk| format!("{REMARK}disk {disk}\n"));
        Ok(format!("{FIRST_LINE}\n{}", disk.unwrap_or_default()))
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
    fn each_block_is_recorded_once_and_in_order() {
        let store = store();
        let out = tempfile::NamedTempFile::new().unwrap();
        fs::write(out.path(), "of old").unwrap();
        let image = store_image(store.path(), &ImageOptions::default());
        image.record_to(append_to(out.path()), || Some(RecordStart::Anew));
        let [a, b] = [image.space().region(0), image.space().region(1)];
        read(&image, 0..2);
        assert_eq!(
            fs::read(out.path()).unwrap(),
            b"of old",
            "nothing of a path was read"
        );
        read(&image, b.data.start + 1..b.data.start + 2);
        read(&image, a.data.start + 2..a.data.start + 4);
        // A read that spans both paths.
        read(&image, a.data.start..b.data.end);
        read(&image, b.meta.clone());
        let text = fs::read_to_string(out.path()).unwrap();
        let disk = format!("# disk {}", image.fingerprint().unwrap());
        let wanted = [
            FIRST_LINE, &disk, "+ b", "d 0 1 1", "+ a", "d 1 2 2", "d 1 0 2", "d 1 4 6", "d 0 0 1",
            "d 0 2 1", "m 0 0 1", "",
        ];
        assert_eq!(text, wanted.join("\n"));
        Recording::parse(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_recording_does_not_grow_without_limit() {
        let store = tempfile::tempdir().unwrap();
        let big = File::create(store.path().join("a")).unwrap();
        big.set_len(1 << 40).unwrap();
        let image = store_image(store.path(), &ImageOptions::default());
        let space = image.space();
        let data = space.region(0).data.clone();
        let out = tempfile::NamedTempFile::new().unwrap();
        let len_bytes = || out.as_file().metadata().unwrap().len();
        let note = |recorder: &Recorder, block: u32| {
            let at = u64::from(block) * BLOCK_LEN_BYTES;
            recorder.note(space, at..at + BLOCK_LEN_BYTES);
        };
        let recorder = Recorder::new(append_to(out.path()), None, || Some(RecordStart::Anew));
        // Every other block, so that each needs a separate line.
        for block in data.clone().step_by(2).take(2_000_000) {
            note(&recorder, block);
        }
        let cut = len_bytes();
        assert!((LIMIT_BYTES - 100..=LIMIT_BYTES).contains(&cut), "{cut}");
        Recording::parse(&fs::read(out.path()).unwrap()).unwrap();
        // The next worker, which appends, finds the file full.
        for block in [1, 3] {
            let next = Recorder::new(append_to(out.path()), None, || Some(RecordStart::AtItsEnd));
            note(&next, data.start + block);
        }
        assert!(len_bytes() <= LIMIT_BYTES);
    }

    #[test]
    fn only_the_process_with_the_token_appends_a_part() {
        let store = store();
        let out = tempfile::NamedTempFile::new().unwrap();
        for start in [Some(RecordStart::Anew), None, Some(RecordStart::AtItsEnd)] {
            let image = store_image(store.path(), &ImageOptions::default());
            image.record_to(append_to(out.path()), move || start);
            read(&image, image.space().region(1).data.clone());
        }
        let disk = store_image(store.path(), &ImageOptions::default());
        let disk = disk.fingerprint().unwrap();
        let part = format!("{FIRST_LINE}\n# disk {disk}\n+ b\nd 0 0 3\n");
        assert_eq!(fs::read_to_string(out.path()).unwrap(), part.repeat(2));
    }
}
