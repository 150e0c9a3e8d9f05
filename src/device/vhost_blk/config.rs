//! The device's features and configuration space.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::request::{SECTOR_BYTES, SEG_MAX};

/// Number of queues offered. QEMU requires one per virtual CPU. 64 is the width of the masks in `vhost-user-backend`.
pub const QUEUES: u16 = 64;

/// Maximum queue size: the limit in virtio 1.2, section 2.7, which crosvm uses.
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// Logical block size. SeaBIOS cannot boot from disks with larger blocks.
const BLOCK_BYTES: u32 = 512;

/// log2 of logical blocks per physical block. A physical block is 4096 bytes, like a block of EROFS.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// Optimal I/O size. Linux sets the readahead to twice this value (`blk_apply_bdi_limits`).
pub const OPT_IO_BYTES: u32 = 128 * 1024;

/// Length of `struct virtio_blk_config` up to and including the zoned fields (virtio 1.2, section 5.2.4).
const CONFIG_BYTES: usize = 96;

/// Virtio features offered. A frontend may acknowledge any subset.
pub fn features() -> u64 {
    let bits = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
    ];
    let virtio = bits.iter().fold(0, |all, bit| all | 1u64 << bit);
    virtio | (VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL).bits()
}

/// vhost-user protocol features offered.
///
/// `INFLIGHT_SHMFD` and `STATUS` are not offered: `vhost-user-backend` 0.24 does not implement them, and crash recovery
/// does not need them.
pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::LOG_SHMFD
}

/// The device's configuration space (virtio 1.2, section 5.2.4), little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
}

impl ConfigSpace {
    /// For a disk of `disk_len_bytes` (rounded down to whole sectors) with `queues` queues.
    pub fn new(disk_len_bytes: u64, queues: u16) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
        };
        space.put(0, &(disk_len_bytes / SECTOR_BYTES).to_le_bytes()); // capacity
        space.put(12, &SEG_MAX.to_le_bytes());
        space.put(20, &BLOCK_BYTES.to_le_bytes());
        space.put(24, &[PHYSICAL_BLOCK_EXP]);
        space.put(26, &(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes()); // min_io_size, in logical blocks
        space.put(28, &(OPT_IO_BYTES / BLOCK_BYTES).to_le_bytes()); // opt_io_size, in logical blocks
        space.put(34, &queues.to_le_bytes());
        space
    }

    fn put(&mut self, offset: usize, field: &[u8]) {
        let place = self.bytes.iter_mut().skip(offset);
        place.zip(field).for_each(|(to, from)| *to = *from);
    }

    /// `size` bytes from `offset`, padded with zeros, because frontends request different lengths.
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let known = self.bytes.iter().copied().skip(offset as usize);
        known
            .chain(std::iter::repeat(0))
            .take(size as usize)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_offsets_of_virtio() {
        let space = ConfigSpace::new(16 << 40, QUEUES);
        assert_eq!(space.read(0, 8), (32u64 << 30).to_le_bytes());
        assert_eq!(space.read(12, 4), 126u32.to_le_bytes());
        assert_eq!(space.read(20, 4), 512u32.to_le_bytes());
        assert_eq!(space.read(24, 8), [3, 0, 8, 0, 0, 1, 0, 0]);
        assert_eq!(space.read(34, 2), 64u16.to_le_bytes());
    }

    #[test]
    fn every_range_of_the_configuration_can_be_read() {
        let space = ConfigSpace::new(1 << 30, QUEUES);
        assert_eq!(space.read(0, 57).len(), 57);
        assert_eq!(space.read(0, 60).len(), 60);
        assert_eq!(space.read(90, 256), [0; 256]);
        assert_eq!(space.read(u32::MAX, 4), [0; 4]);
        assert_eq!(space.read(1, 3), space.read(0, 4)[1..]);
    }

    #[test]
    fn the_disk_is_read_only_and_all_offered_features_are_served() {
        assert_ne!(features() & 1 << VIRTIO_BLK_F_RO, 0);
        let unserved =
            VhostUserProtocolFeatures::INFLIGHT_SHMFD | VhostUserProtocolFeatures::STATUS;
        assert!(!protocol_features().intersects(unserved));
    }
}
