use std::io::Write;
use std::os::fd::AsFd;

use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};

use super::*;
use crate::device::vhost_blk::testing::memory;

fn buffer(segments: &[(u64, u32)]) -> GuestBuffer {
    let mut buffer = GuestBuffer::default();
    for (address, len) in segments {
        buffer.push(GuestAddress(*address), *len);
    }
    buffer
}

fn bytes_at(memory: &Memory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn file_of(content: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i * 7 % 251).unwrap())
        .collect()
}

#[test]
fn a_buffer_loses_its_last_byte_to_the_status() {
    let mut two = buffer(&[(0x100, 4), (0x200, 1)]);
    assert_eq!(two.pop_byte(), Some(GuestAddress(0x200)));
    assert_eq!(two.pop_byte(), Some(GuestAddress(0x103)));
    assert_eq!(two, buffer(&[(0x100, 3)]));
    assert_eq!(buffer(&[(0x100, 0)]).pop_byte(), None);
    assert_eq!(buffer(&[(u64::MAX, 2)]).pop_byte(), None);
}

#[test]
fn copies_and_zeros_go_across_segments_and_regions() {
    let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
    let memory = Memory::from_ranges(&ranges).unwrap();
    memory
        .write_slice(&[0xee; 0x2000], GuestAddress(0))
        .unwrap();
    let mut writer = buffer(&[(0x10, 3), (0xffe, 6), (0x20, 4)])
        .writer(&memory)
        .unwrap();
    writer.write(b"abcde").unwrap();
    writer.zero(6).unwrap();
    writer.write(b"xy").unwrap();
    assert_eq!(writer.write(b"z"), Err(GuestFault::Full));
    assert_eq!(bytes_at(&memory, 0x0f, 5), b"\xeeabc\xee");
    assert_eq!(bytes_at(&memory, 0xffd, 8), b"\xeede\0\0\0\0\xee");
    assert_eq!(bytes_at(&memory, 0x1f, 6), b"\xee\0\0xy\xee");
}

#[test]
fn a_file_goes_into_more_segments_than_one_call_takes() {
    let memory = memory(0x40000);
    let content = pattern(40_000);
    let segments: Vec<(u64, u32)> = (0..3000).map(|i| (0x1000 + i * 16, 13)).collect();
    let mut writer = buffer(&segments).writer(&memory).unwrap();
    writer
        .read_file(file_of(&content).as_fd(), 5, 3000 * 13, IoMode::Blocking)
        .unwrap();
    for (i, (address, _)) in segments.iter().enumerate() {
        assert_eq!(bytes_at(&memory, *address, 13), content[5 + i * 13..][..13]);
        assert_eq!(bytes_at(&memory, address + 13, 3), [0; 3]);
    }
}

#[test]
fn files_and_copies_alternate() {
    let memory = memory(0x1000);
    let file = file_of(b"0123456789");
    let mut writer = buffer(&[(0, 5), (0x100, 20)]).writer(&memory).unwrap();
    writer.write(b"ab").unwrap();
    writer
        .read_file(file.as_fd(), 1, 4, IoMode::Blocking)
        .unwrap();
    writer.zero(1).unwrap();
    writer
        .read_file(file.as_fd(), 7, 3, IoMode::Blocking)
        .unwrap();
    assert_eq!(bytes_at(&memory, 0, 6), b"ab123\0");
    assert_eq!(bytes_at(&memory, 0x100, 6), b"4\x00789\0");
}

#[test]
fn a_file_that_ends_early_is_an_error() {
    let memory = memory(0x1000);
    let mut writer = buffer(&[(0, 100)]).writer(&memory).unwrap();
    let fault = writer.read_file(file_of(&[1; 50]).as_fd(), 0, 100, IoMode::Blocking);
    assert_eq!(fault, Err(FileFault::Ended));
}

#[test]
fn a_file_never_goes_beyond_the_buffer() {
    let memory = memory(0x1000);
    let mut writer = buffer(&[(0, 10)]).writer(&memory).unwrap();
    let fault = writer.read_file(file_of(&[1; 50]).as_fd(), 0, 50, IoMode::Blocking);
    assert_eq!(fault, Err(FileFault::Guest(GuestFault::Full)));
    assert_eq!(bytes_at(&memory, 9, 3), [1, 0, 0]);
}

#[test]
fn offsets_beyond_the_kernels_are_refused() {
    let memory = memory(0x1000);
    let mut writer = buffer(&[(0, 10)]).writer(&memory).unwrap();
    let fault = writer.read_file(file_of(&[]).as_fd(), u64::MAX, 10, IoMode::Blocking);
    assert_eq!(fault, Err(FileFault::Host(Errno::OVERFLOW)));
}

#[test]
fn buffers_outside_memory_are_refused_as_a_whole() {
    let memory = memory(0x1000);
    for outside in [(0xfff, 2), (0x1000, 1), (u64::MAX, 1), (0, u32::MAX)] {
        let fault = buffer(&[(0, 1), outside]).writer(&memory).unwrap_err();
        let (address, len) = outside;
        let len_bytes = u64::from(len);
        assert_eq!(fault, GuestFault::Outside { address, len_bytes });
    }
}

#[test]
fn memory_that_the_frontend_cut_is_an_error_and_no_signal() {
    let backing = file_of(&[0; 0x2000]);
    let offset = FileOffset::new(backing.try_clone().unwrap(), 0);
    let region = MmapRegion::from_file(offset, 0x2000).unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    let memory = Memory::from_regions(vec![region]).unwrap();
    backing.set_len(0).unwrap();
    let mut writer = buffer(&[(0, 100)]).writer(&memory).unwrap();
    let fault = writer.read_file(file_of(&[1; 100]).as_fd(), 0, 100, IoMode::Blocking);
    assert_eq!(fault, Err(FileFault::Guest(GuestFault::Vanished)));
}

/// The kernel decides what it keeps in memory, so both answers are right; a wrong one is not.
#[test]
fn an_impatient_read_is_whole_or_refused() {
    let content = pattern(200_000);
    let file = file_of(&content);
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let memory = memory(0x100_0000);
    let read = |mode| {
        let mut writer = buffer(&[(0, 200_000)]).writer(&memory).unwrap();
        writer.read_file(file.as_fd(), 0, 200_000, mode)
    };
    if read(IoMode::NoWait) != Err(FileFault::WouldBlock) {
        assert!(bytes_at(&memory, 0, content.len()) == content);
    }
    assert_eq!(read(IoMode::Blocking), Ok(()));
    assert!(bytes_at(&memory, 0, content.len()) == content);
}
