//! Guest memory between canaries.

use lazystore::device::vhost_blk::dirty::RegionLog;
use lazystore::device::vhost_blk::guest::Memory;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion, VolatileMemory};

const PAGE: usize = 4096;
const CANARY: u8 = 0xc5;

/// Address of a well-behaved guest's data. Before a request this memory is zero and the disk's data are not, so that
/// missing data are noticed.
pub const DATA: u64 = 0x1400;

/// Guest physical addresses and lengths of regions.
type Regions = &'static [(u64, usize)];

/// Small, because all of it is compared after each step.
const SHAPES: [Regions; 3] = [
    &[(0, 0x4000)],
    // Regions that are adjacent for the guest but not for the host, then a hole.
    &[(0, 0x2000), (0x2000, 0x1000), (0x4000, 0x1000)],
    &[(0, 0x3000), (0xffff_ffff_ffff_0000, 0x1000)],
];

/// Memory with one of the layouts.
pub struct Layout {
    pub regions: Regions,
    pub memory: Memory,
    /// Contains the regions, with a page of canaries before, between and after them. Must outlive `memory`.
    arena: MmapRegion,
    /// Start of each region in the arena.
    places: Vec<usize>,
    /// Contents of the arena with empty memory.
    fresh: Vec<u8>,
}

/// All layouts.
pub fn layouts() -> Vec<Layout> {
    SHAPES.into_iter().map(Layout::new).collect()
}

impl Layout {
    fn new(regions: Regions) -> Self {
        let mut len = PAGE;
        let mut places = Vec::new();
        for (_, region_len) in regions {
            places.push(len);
            len += region_len + PAGE;
        }
        let arena = MmapRegion::new(len).unwrap();
        let mut fresh = vec![CANARY; len];
        for (place, (start, region_len)) in places.iter().zip(regions) {
            fresh[*place..place + region_len].fill(0);
            let used = usize::try_from(DATA.saturating_sub(*start)).unwrap();
            fresh[(place + used).min(place + region_len)..place + region_len].fill(0xee);
        }
        let mapped = places
            .iter()
            .zip(regions)
            .map(|(place, (start, region_len))| part(&arena, *place, *region_len, *start))
            .collect();
        Self {
            regions,
            memory: Memory::from_regions(mapped).unwrap(),
            arena,
            places,
            fresh,
        }
    }

    pub fn reset(&self) {
        self.arena.as_volatile_slice().copy_from(&self.fresh);
    }

    /// The whole arena.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.fresh.len()];
        self.arena.as_volatile_slice().copy_to(&mut bytes);
        bytes
    }

    /// Checks that nothing but guest memory was written.
    pub fn check_outside(&self, bytes: &[u8]) {
        let mut from = 0;
        for (place, (_, len)) in self.places.iter().zip(self.regions) {
            assert!(bytes[from..*place] == self.fresh[from..*place]);
            from = place + len;
        }
        assert!(bytes[from..] == self.fresh[from..]);
    }

    /// Calls `see` with the guest physical address of every changed byte.
    pub fn for_changes(&self, before: &[u8], after: &[u8], mut see: impl FnMut(u64)) {
        for (place, (start, len)) in self.places.iter().zip(self.regions) {
            let range = *place..place + len;
            let pairs = before[range.clone()]
                .chunks(64)
                .zip(after[range].chunks(64));
            for (chunk, (old, new)) in pairs.enumerate().filter(|(_, (old, new))| old != new) {
                for (at, _) in old.iter().zip(new).enumerate().filter(|(_, (a, b))| a != b) {
                    see(start + (64 * chunk + at) as u64);
                }
            }
        }
    }
}

/// A part of the arena as guest memory.
#[allow(unsafe_code)]
fn part(arena: &MmapRegion, place: usize, len: usize, start: u64) -> GuestRegionMmap<RegionLog> {
    // SAFETY: the part is inside the arena, which is mapped as long as the layout exists.
    let region = unsafe {
        let address = arena.as_ptr().add(place);
        MmapRegionBuilder::new(len)
            .with_raw_mmap_pointer(address)
            .with_mmap_prot(arena.prot())
            .with_mmap_flags(arena.flags())
            .build()
    };
    GuestRegionMmap::new(region.unwrap(), GuestAddress(start)).unwrap()
}
