use std::io::Write;

use vm_memory::{FileOffset, MmapRegion};

use super::*;
use crate::source::{Awaits, File, HostFile, SourceError};

fn file_of(content: &[u8]) -> (std::fs::File, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let open = HostFile::for_tests(file.try_clone().unwrap());
    (file, File::Host(open.into()))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i * 7 % 251).unwrap())
        .collect()
}

/// Segments of `buffer` with these offsets and lengths.
fn segments<'m>(buffer: &'m mut [u8], ranges: &[(usize, usize)]) -> Destination<'m> {
    let whole = VolatileSlice::from(buffer);
    let segment = |(start, len): &(usize, usize)| whole.subslice(*start, *len).unwrap();
    ranges.iter().map(segment).collect()
}

fn read(to: &mut Destination<'_>, file: &File, offset: u64, len: u64) -> Result<(), SourceError> {
    file.read_into(to, offset, len, IoMode::Blocking)
}

#[test]
fn copies_and_zeros_span_segments() {
    let mut buffer = [0xee; 0x40];
    let mut to = segments(&mut buffer, &[(0x10, 3), (0x20, 6), (0x30, 4)]);
    to.write(b"abcde").unwrap();
    to.zero(6).unwrap();
    to.write(b"xy").unwrap();
    assert_eq!(to.write(b"z"), Err(DestinationError::Full));
    drop(to);
    assert_eq!(buffer[0x0f..0x14], *b"\xeeabc\xee");
    assert_eq!(buffer[0x1f..0x27], *b"\xeede\0\0\0\0\xee");
    assert_eq!(buffer[0x2f..0x35], *b"\xee\0\0xy\xee");
}

#[test]
fn a_file_fills_more_segments_than_one_call_takes() {
    let content = pattern(40_000);
    let ranges: Vec<(usize, usize)> = (0..3000).map(|i| (0x1000 + i * 16, 13)).collect();
    let mut buffer = vec![0; 0x40000];
    let (_, file) = file_of(&content);
    read(&mut segments(&mut buffer, &ranges), &file, 5, 3000 * 13).unwrap();
    for (i, (start, _)) in ranges.iter().enumerate() {
        assert_eq!(buffer[*start..][..13], content[5 + i * 13..][..13]);
        assert_eq!(buffer[start + 13..][..3], [0; 3]);
    }
}

#[test]
fn files_and_copies_alternate() {
    let mut buffer = [0; 0x200];
    let on_host = file_of(b"0123456789").1;
    for file in [on_host, File::Memory(b"0123456789"[..].into())] {
        let mut to = segments(&mut buffer, &[(0, 5), (0x100, 20)]);
        to.write(b"ab").unwrap();
        read(&mut to, &file, 1, 4).unwrap();
        to.zero(1).unwrap();
        read(&mut to, &file, 7, 3).unwrap();
        drop(to);
        assert_eq!(buffer[..6], *b"ab123\0");
        assert_eq!(buffer[0x100..0x106], *b"4\x00789\0");
        buffer.fill(0);
    }
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    let on_host = file_of(&[1; 50]).1;
    for file in [on_host, File::Memory([1; 50][..].into())] {
        let fault = read(&mut (&mut [0; 100][..]).into(), &file, 0, 100);
        assert!(matches!(fault, Err(SourceError::Shrank { .. })));
    }
}

#[test]
fn a_file_is_never_read_past_the_segments() {
    let mut buffer = [0; 16];
    let (_, file) = file_of(&[1; 50]);
    let fault = read(&mut segments(&mut buffer, &[(0, 10)]), &file, 0, 50);
    assert!(matches!(
        fault,
        Err(SourceError::Destination(DestinationError::Full))
    ));
    assert_eq!(buffer[9..12], [1, 0, 0]);
}

#[test]
fn offsets_over_the_kernels_limit_are_refused() {
    let (_, file) = file_of(&[]);
    let fault = read(&mut (&mut [0; 10][..]).into(), &file, u64::MAX, 10);
    assert!(matches!(
        fault,
        Err(SourceError::Io {
            errno: Errno::OVERFLOW,
            ..
        })
    ));
}

#[test]
fn memory_truncated_by_the_frontend_is_an_error_and_no_signal() {
    let (backing, _) = file_of(&[0; 0x2000]);
    let offset = FileOffset::new(backing.try_clone().unwrap(), 0);
    let region: MmapRegion = MmapRegion::from_file(offset, 0x2000).unwrap();
    backing.set_len(0).unwrap();
    let slice = vm_memory::VolatileMemory::get_slice(&region, 0, 100).unwrap();
    let mut to = std::iter::once(slice).collect();
    let (_, file) = file_of(&[1; 100]);
    let fault = read(&mut to, &file, 0, 100);
    assert!(matches!(
        fault,
        Err(SourceError::Destination(DestinationError::Vanished))
    ));
    // The file can still be read.
    read(&mut (&mut [0; 100][..]).into(), &file, 0, 100).unwrap();
}

/// Whether data is in the page cache is up to the kernel, so both results are accepted, but never wrong bytes.
#[test]
fn a_read_without_waiting_is_complete_or_refused() {
    let content = pattern(200_000);
    let (on_disk, file) = file_of(&content);
    on_disk.sync_all().unwrap();
    rustix::fs::fadvise(&on_disk, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut buffer = vec![0; content.len()];
    let now = file.read_into(&mut (&mut buffer[..]).into(), 0, 200_000, IoMode::NoWait);
    match now {
        Err(SourceError::WouldBlock(Awaits::Data)) => {}
        done => {
            done.unwrap();
            assert!(buffer == content);
        }
    }
    read(&mut (&mut buffer[..]).into(), &file, 0, 200_000).unwrap();
    assert!(buffer == content);
}
