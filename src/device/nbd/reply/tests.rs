use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A part to write.
#[derive(Debug, Clone)]
enum Piece {
    Data(usize),
    Zeros(usize),
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let len = prop_oneof![1usize..20, 4090usize..4100, 1usize..20_000];
    let piece = prop_oneof![
        len.clone().prop_map(Piece::Data),
        len.prop_map(Piece::Zeros)
    ];
    vec(piece, 1..12)
}

/// Flags, type and payload of each chunk.
fn chunks(mut bytes: &[u8]) -> Vec<(u16, u16, &[u8])> {
    let mut chunks = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<CHUNK_LEN_BYTES>() {
        assert_eq!(header[..4], STRUCTURED_REPLY_MAGIC.to_be_bytes());
        assert_eq!(header[8..16], 99u64.to_be_bytes());
        let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let len = u32::from_be_bytes(header[16..].try_into().unwrap());
        let (payload, later) = rest.split_at(usize::try_from(len).unwrap());
        chunks.push((half(4), half(6), payload));
        bytes = later;
    }
    assert!(bytes.is_empty());
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_contain_what_was_written(pieces in pieces(), done: bool) {
        let start = 1 << 40;
        let mut out = ReplyBuffer::default();
        // Bytes of an earlier reply must not appear.
        out.reserve(50_000).fill(0xee);
        out.clear(usize::MAX);
        let mut written = Vec::new();
        let mut writer = ChunkWriter::new(&mut out, 99, start);
        for piece in pieces {
            match piece {
                Piece::Data(len) => {
                    writer.data(len).fill(7);
                    written.extend(vec![7; len]);
                }
                Piece::Zeros(len) => {
                    writer.zeros(len);
                    written.extend(vec![0; len]);
                }
            }
        }
        writer.end(done);
        let chunks = chunks(out.bytes());
        let mut read = Vec::new();
        for (index, (flags, kind, payload)) in chunks.iter().enumerate() {
            let is_last = index + 1 == chunks.len();
            prop_assert_eq!(*flags, u16::from(is_last && done));
            let (offset, rest) = payload.split_at(8);
            prop_assert_eq!(offset, (start + read.len() as u64).to_be_bytes());
            prop_assert!(!rest.is_empty());
            match *kind {
                chunk::OFFSET_DATA => read.extend_from_slice(rest),
                chunk::OFFSET_HOLE => {
                    let len = u32::from_be_bytes(rest.try_into().unwrap());
                    let len = usize::try_from(len).unwrap();
                    prop_assert!(len >= HOLE_MIN_BYTES);
                    read.extend(vec![0; len]);
                }
                other => panic!("{other}"),
            }
        }
        prop_assert!(read == written);
    }
}

#[test]
fn neighbouring_parts_of_one_kind_share_a_chunk() {
    let mut out = ReplyBuffer::default();
    let mut writer = ChunkWriter::new(&mut out, 99, 0);
    writer.data(10);
    writer.data(10);
    writer.zeros(4096);
    writer.zeros(1);
    writer.zeros(5000);
    writer.data(1);
    writer.zeros(4095);
    writer.end(true);
    let kinds: Vec<u16> = chunks(out.bytes()).iter().map(|chunk| chunk.1).collect();
    assert_eq!(kinds, [1, 2, 1]);
}

#[test]
fn truncating_removes_only_the_last_reply() {
    let mut out = ReplyBuffer::default();
    out.simple(1, None);
    let before = out.bytes().to_vec();
    let position = out.position();
    out.single_chunk_data(2, 0, 100_000).fill(1);
    out.truncate_to(position);
    assert_eq!(out.bytes(), before);
    out.simple(3, Some(ErrorCode::Io));
    assert_eq!(out.bytes().len(), 32);
}

#[test]
fn memory_for_a_long_reply_is_freed() {
    let mut out = ReplyBuffer::default();
    out.simple_data(1, 32 << 20);
    out.clear(4096);
    assert!(out.bytes.capacity() <= 4096);
}
