use zerocopy::FromBytes;

use super::*;
use crate::erofs::format::BLOCK_LEN_BYTES;

fn fields() -> SuperBlockFields {
    SuperBlockFields {
        label: "nix-store".to_owned(),
        uuid: [0xab; 16],
        build_time_sec: 1,
        inodes: 3,
        blocks: 0x1234,
    }
}

/// Expected bytes, written by hand from `erofs_fs.h`.
#[test]
fn superblock_has_known_bytes() {
    let block = superblock(&fields());
    let sb = &block[1024..1152];
    assert_eq!(&sb[0..4], [0xe2, 0xe1, 0xf5, 0xe0]);
    assert_eq!(&sb[8..12], [3, 0, 0, 0]);
    assert_eq!(&sb[12..16], [12, 0, 128, 0]);
    assert_eq!(&sb[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&sb[24..36], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&sb[36..40], [0x34, 0x12, 0, 0]);
    assert_eq!(&sb[40..48], [0; 8]);
    assert_eq!(&sb[48..64], [0xab; 16]);
    assert_eq!(&sb[64..80], b"nix-store\0\0\0\0\0\0\0");
    assert_eq!(&sb[80..128], [0; 48]);
    assert!(block[..1024].iter().all(|byte| *byte == 0));
    assert!(block[1152..].iter().all(|byte| *byte == 0));
}

/// A bitwise crc32c by definition, compared with the crate that the program uses.
#[test]
fn superblock_checksum_is_crc32c_without_final_inversion() {
    let mut block = superblock(&fields());
    let stored = u32::from_le_bytes(block[1028..1032].try_into().unwrap());
    block[1028..1032].fill(0);
    let mut crc = u32::MAX;
    for byte in &block[1024..] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
        }
    }
    assert_eq!(stored, crc);
}

#[test]
fn compact_inode_has_known_bytes() {
    let mut block = [0; BLOCK_LEN_USIZE];
    let inode_fields = InodeFields {
        mode: 0o100_555,
        nlink: 1,
        size: 0x0102_0304,
        block_addr: 0x0a0b_0c0d,
        ino: 0x11,
        uid: 2,
        gid: 3,
        mtime_sec: 1,
        mtime_nsec: 0,
    };
    let form = Form {
        extended: false,
        inline_len: 0,
    };
    inode(&inode_fields, form, 32, &mut block);
    let expected = [
        0, 0, 0, 0, 0x6d, 0x81, 1, 0, 4, 3, 2, 1, 0, 0, 0, 0, //
        0x0d, 0x0c, 0x0b, 0x0a, 0x11, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0,
    ];
    assert_eq!(block[32..64], expected);
}

#[test]
fn extended_inode_has_known_fields() {
    let mut block = [0; BLOCK_LEN_USIZE];
    let inode_fields = InodeFields {
        mode: 0o040_755,
        nlink: 70_000,
        size: 5 * BLOCK_LEN_BYTES * (1 << 20),
        block_addr: 7,
        ino: 128,
        uid: 100_000,
        gid: 5,
        mtime_sec: 0x1_0000_0001,
        mtime_nsec: 999,
    };
    let form = Form {
        extended: true,
        inline_len: 9,
    };
    inode(&inode_fields, form, 0, &mut block);
    // Extended (bit 0), inline (2 << 1).
    assert_eq!(block[0..2], [5, 0]);
    assert_eq!(block[6..8], [0, 0], "upper half of a 48-bit address");
    let read = InodeExtended::read_from_bytes(&block[..64]).unwrap();
    assert_eq!(read.size.get(), inode_fields.size);
    assert_eq!(read.nlink.get(), 70_000);
    assert_eq!((read.uid.get(), read.gid.get()), (100_000, 5));
    assert_eq!(
        (read.mtime.get(), read.mtime_nsec.get()),
        (0x1_0000_0001, 999)
    );
}

#[test]
fn directory_block_has_known_bytes() {
    let mut block = [0; 64];
    let entries = [
        (0x80, DirentType::Directory, &b"."[..]),
        (0x80, DirentType::Directory, b".."),
        (0x1234, DirentType::Symlink, b"lib"),
    ];
    dirents(entries.into_iter(), &mut block);
    let expected = [
        0x80, 0, 0, 0, 0, 0, 0, 0, 36, 0, 2, 0, //
        0x80, 0, 0, 0, 0, 0, 0, 0, 37, 0, 2, 0, //
        0x34, 0x12, 0, 0, 0, 0, 0, 0, 39, 0, 7, 0, //
        b'.', b'.', b'.', b'l', b'i', b'b',
    ];
    assert_eq!(block[..42], expected);
    assert_eq!(block[42..], [0; 22]);
}
