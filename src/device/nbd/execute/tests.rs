use std::sync::Arc;

use super::*;
use crate::device::nbd::wire::chunk;
use crate::image::Image;
use crate::image::testing::{tree_image, with_planning_held};

const DATA: u64 = 128 << 30;

fn image() -> (tempfile::TempDir, Arc<Image>) {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..1_000_001u32)
        .map(|at| at.to_le_bytes()[1] | 1)
        .collect();
    std::fs::write(dir.path().join("file"), content).unwrap();
    let image = Arc::new(tree_image(dir.path()));
    (dir, image)
}

fn request(reply: ReplyKind, offset: u64, len_bytes: u32) -> DiskRequest {
    DiskRequest {
        cookie: 99,
        offset,
        len_bytes,
        reply,
    }
}

#[test]
fn a_read_in_chunks_is_executed_in_segments() {
    let (_dir, image) = image();
    let disk = NbdDisk::new(image);
    let len_bytes = 2 * SEGMENT_BYTES + 1;
    let mut read = request(ReplyKind::Chunks, DATA, len_bytes);
    for (progress, len) in [
        (ReplyProgress::More, SEGMENT_BYTES),
        (ReplyProgress::More, SEGMENT_BYTES),
        (ReplyProgress::Done, 1),
    ] {
        let mut out = ReplyBuffer::default();
        let done = read.advance(&disk, IoMode::Blocking, &mut out).unwrap();
        assert_eq!(done, progress);
        let len = usize::try_from(len).unwrap();
        assert_eq!(out.bytes().len(), 20 + 8 + len);
    }
}

#[test]
fn a_request_that_would_block_writes_nothing_and_can_be_repeated() {
    let (_dir, image) = image();
    let disk = NbdDisk::new(Arc::clone(&image));
    let mut read = request(ReplyKind::Chunks, DATA, 4096);
    let mut out = ReplyBuffer::default();
    out.simple(1, None);
    let before = out.bytes().to_vec();
    with_planning_held(&image, 0, || {
        let error = read.advance(&disk, IoMode::NoWait, &mut out).unwrap_err();
        assert!(error.would_block().is_some());
    });
    assert_eq!(out.bytes(), before);
    let done = read.advance(&disk, IoMode::Blocking, &mut out).unwrap();
    assert_eq!(done, ReplyProgress::Done);
    assert_eq!(out.bytes().len(), before.len() + 28 + 4096);
}

#[test]
fn an_error_is_a_chunk_or_a_simple_reply_like_the_reply_itself() {
    for (reply, is_chunk) in [
        (ReplyKind::Simple, false),
        (ReplyKind::SingleChunk, true),
        (ReplyKind::Chunks, true),
    ] {
        let mut out = ReplyBuffer::default();
        request(reply, 0, 1).fail(&mut out);
        match is_chunk {
            true => assert_eq!(out.bytes()[6..8], chunk::ERROR.to_be_bytes()),
            false => assert_eq!(out.bytes()[4..8], 5u32.to_be_bytes()),
        }
    }
}

#[test]
fn zeros_in_metadata_are_a_hole() {
    let (_dir, image) = image();
    let disk = NbdDisk::new(image);
    // After the only directory's block.
    let mut read = request(ReplyKind::Chunks, 1 << 20, 8192);
    let mut out = ReplyBuffer::default();
    let done = read.advance(&disk, IoMode::Blocking, &mut out).unwrap();
    assert_eq!(done, ReplyProgress::Done);
    assert_eq!(out.bytes()[6..8], chunk::OFFSET_HOLE.to_be_bytes());
    assert_eq!(out.bytes().len(), 32);
}
