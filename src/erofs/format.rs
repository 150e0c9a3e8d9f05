//! On-disk structs and constants of EROFS.
//!
//! All fields are defined in Linux `fs/erofs/erofs_fs.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Block size (`blkszbits` 12). Every kernel since 5.4 supports 4 KiB blocks.
pub const BLOCK_LEN: u16 = 4096;
/// [`BLOCK_LEN`] as `u64`, for byte addresses.
pub const BLOCK_LEN_BYTES: u64 = BLOCK_LEN as u64;
/// [`BLOCK_LEN`] as `usize`, for buffers.
pub const BLOCK_LEN_USIZE: usize = BLOCK_LEN as usize;
/// log2 of the block size.
pub const BLOCK_BITS: u8 = 12;
/// Unit of a nid: the byte address of an inode is `meta_blkaddr * 4096 + nid * 32`.
pub const SLOT_LEN: u16 = 32;
/// Slots in a block.
pub const SLOTS_PER_BLOCK: u32 = 128;
/// Offset of the superblock in block 0.
pub const SUPERBLOCK_OFFSET: usize = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
pub const MAGIC: u32 = 0xE0F5_E1E2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the superblock carries a checksum.
pub const FEATURE_COMPAT_SB_CHKSUM: u32 = 0x1;
/// `EROFS_FEATURE_COMPAT_MTIME`: timestamps are mtimes, not ctimes.
pub const FEATURE_COMPAT_MTIME: u32 = 0x2;
/// Longest name (`EROFS_NAME_LEN`).
pub const NAME_LEN_MAX: usize = 255;
/// Longest label: `volume_name` has 16 bytes and ends with a NUL.
pub const LABEL_LEN_MAX: usize = 15;
/// `i_format` bit 0: the inode is extended.
pub const FORMAT_EXTENDED: u16 = 1;
/// `i_format` bits 1 to 3 for `EROFS_INODE_FLAT_PLAIN`.
pub const FORMAT_FLAT_PLAIN: u16 = 0;
/// `i_format` bits 1 to 3 for `EROFS_INODE_FLAT_INLINE`.
pub const FORMAT_FLAT_INLINE: u16 = 2 << 1;

/// `struct erofs_super_block`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    /// [`MAGIC`].
    pub magic: U32,
    /// crc32c over bytes 1024..4096 of block 0, this field zero.
    pub checksum: U32,
    /// Features that a reader may ignore.
    pub feature_compat: U32,
    /// log2 of the block size.
    pub block_bits: u8,
    /// Extra slots of 16 bytes after the superblock.
    pub ext_slots: u8,
    /// Nid of the root directory.
    pub root_nid: U16,
    /// Number of inodes, for statfs.
    pub inodes: U64,
    /// Seconds of the mtime of every compact inode.
    pub build_time: U64,
    /// Nanoseconds of `build_time`.
    pub build_time_nsec: U32,
    /// Number of blocks, for statfs.
    pub blocks: U32,
    /// Block address of nid 0.
    pub meta_block_addr: U32,
    /// Block address of shared extended attributes.
    pub xattr_block_addr: U32,
    /// File system UUID.
    pub uuid: [u8; 16],
    /// Label, NUL-padded.
    pub volume_name: [u8; 16],
    /// Features that a reader must support.
    pub feature_incompat: U32,
    /// Compression; unused.
    pub compression: U16,
    /// Further devices; none.
    pub extra_devices: U16,
    /// Offset of the table of extra devices; unused.
    pub devices_offset: U16,
    /// log2 of the directory block size divided by the block size.
    pub dir_block_bits: u8,
    /// Long extended attribute prefixes; none.
    pub xattr_prefix_count: u8,
    /// Offset of the extended attribute prefixes; unused.
    pub xattr_prefix_start: U32,
    /// Nid of the inode that packs fragments; none.
    pub packed_nid: U64,
    /// Reserved.
    pub reserved: [u8; 24],
}

/// `struct erofs_inode_compact`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeCompact {
    /// Layout and version.
    pub format: U16,
    /// Extended attributes; none.
    pub xattr_count: U16,
    /// Type and permissions.
    pub mode: U16,
    /// Links.
    pub nlink: U16,
    /// Length in bytes.
    pub size: U32,
    /// Zero.
    pub reserved: U32,
    /// First data block, or device number.
    pub block_addr: U32,
    /// Inode number for 32-bit stat.
    pub ino: U32,
    /// Owner.
    pub uid: U16,
    /// Group.
    pub gid: U16,
    /// Zero.
    pub reserved2: U32,
}

/// `struct erofs_inode_extended`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeExtended {
    /// Layout and version.
    pub format: U16,
    /// Extended attributes; none.
    pub xattr_count: U16,
    /// Type and permissions.
    pub mode: U16,
    /// Zero (the upper half of a block address in 48-bit images).
    pub reserved: U16,
    /// Length in bytes.
    pub size: U64,
    /// First data block, or device number.
    pub block_addr: U32,
    /// Inode number for 32-bit stat.
    pub ino: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Seconds of the mtime.
    pub mtime: U64,
    /// Nanoseconds of the mtime.
    pub mtime_nsec: U32,
    /// Links.
    pub nlink: U32,
    /// Zero.
    pub reserved2: [u8; 16],
}

/// `struct erofs_dirent`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// Nid of the file.
    pub nid: U64,
    /// Offset of its name in the directory block.
    pub name_offset: U16,
    /// A [`DirentType`].
    pub file_type: u8,
    /// Zero.
    pub reserved: u8,
}

/// Length of a [`Dirent`].
pub const DIRENT_LEN: u16 = 12;
/// Length of an [`InodeCompact`].
pub const COMPACT_LEN: u16 = 32;
/// Length of an [`InodeExtended`].
pub const EXTENDED_LEN: u16 = 64;

const _: () = {
    assert!(size_of::<SuperBlock>() == 128);
    assert!(size_of::<InodeCompact>() == COMPACT_LEN as usize);
    assert!(size_of::<InodeExtended>() == EXTENDED_LEN as usize);
    assert!(size_of::<Dirent>() == DIRENT_LEN as usize);
    assert!(SLOT_LEN as u32 * SLOTS_PER_BLOCK == BLOCK_LEN as u32);
    assert!(1 << BLOCK_BITS == BLOCK_LEN);
};

/// File type in a directory entry (`FT_*`, Linux `include/linux/fs_types.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DirentType {
    /// `FT_UNKNOWN`: the type is only in the inode.
    Unknown = 0,
    /// `FT_REG_FILE`
    Regular = 1,
    /// `FT_DIR`
    Directory = 2,
    /// `FT_CHRDEV`
    CharDevice = 3,
    /// `FT_BLKDEV`
    BlockDevice = 4,
    /// `FT_FIFO`
    Fifo = 5,
    /// `FT_SOCK`
    Socket = 6,
    /// `FT_SYMLINK`
    Symlink = 7,
}

/// Type bits of a mode (`S_IFMT` of inode(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ModeType {
    /// `S_IFIFO`
    Fifo = 0o010_000,
    /// `S_IFCHR`
    CharDevice = 0o020_000,
    /// `S_IFDIR`
    Directory = 0o040_000,
    /// `S_IFBLK`
    BlockDevice = 0o060_000,
    /// `S_IFREG`
    Regular = 0o100_000,
    /// `S_IFLNK`
    Symlink = 0o120_000,
    /// `S_IFSOCK`
    Socket = 0o140_000,
}
