//! The dirty log records which pages of guest memory this device has written to. A frontend that saves or migrates a
//! running VM enables it and copies those pages again.
//!
//! A page is marked after it was written to and before the request is published. If it were marked before the write,
//! the frontend could copy it too early and not again. If the request is never published, another worker executes it
//! again. The used ring is marked when requests are published, and also when requests are taken, because a killed
//! worker may have written to it.
//!
//! The frontend passes shared memory with one bit per page of guest memory (SET_LOG_BASE), and enables the log with a
//! feature bit. `vhost-user-backend` 0.24 attaches that memory to a bitmap of each memory region, loses it with the
//! next memory table, and ignores the feature bit. So a region's bitmap, [`RegionLog`], only forwards the memory to the
//! device's single [`DirtyLog`], where pages are marked by guest address, independently of regions.
//!
//! A frontend that truncates the log's file kills its own worker with SIGBUS, as with guest memory.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};

use vhost_user_backend::bitmap::{
    AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace, MemRegionBitmap, MmapLogReg,
};
use vm_memory::bitmap::{BS, Bitmap, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize};

/// Bytes of guest memory per byte of the log: eight pages (`VHOST_LOG_PAGE`, linux/vhost_types.h).
const BYTES_PER_LOG_BYTE: u64 = 8 * 4096;

/// The dirty log of one device.
#[derive(Debug, Default)]
pub struct DirtyLog {
    is_on: AtomicBool,
    /// Its lock is held shared while pages are marked, so that nothing is marked in an old bitmap after it was
    /// replaced.
    bitmap: BitmapMmapRegion,
}

impl DirtyLog {
    /// Enables or disables it. Without memory from the frontend, marking has no effect.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Release);
    }

    /// Whether pages must be marked. A thread that does not see the change yet either wrote before it, or is halted
    /// when the frontend sets the ring's addresses again, which it does when it enables the log.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// Marks the pages of a range that has been written to.
    pub fn mark(&self, address: GuestAddress, len_bytes: u64) {
        // The frontend clears the bit and then reads the page, so the data must be visible before the bit.
        fence(Ordering::Release);
        if let (Ok(start), Ok(len)) = (address.0.try_into(), len_bytes.try_into()) {
            self.bitmap.mark_dirty(start, len);
        }
    }
}

/// The bitmap of a memory region: only a reference to the device's log.
#[derive(Debug, Default, Clone)]
pub struct RegionLog(OnceLock<Arc<DirtyLog>>);

impl RegionLog {
    /// Sets the log to which the frontend's memory is forwarded.
    pub fn attach(&self, log: &Arc<DirtyLog>) {
        self.0.get_or_init(|| Arc::clone(log));
    }
}

/// Slices have no bitmap: the code that publishes requests marks what was written.
impl WithBitmapSlice<'_> for RegionLog {
    type S = ();
}

impl Bitmap for RegionLog {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) {}
}

impl NewBitmap for RegionLog {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl BitmapReplace for RegionLog {
    type InnerBitmap = WholeLog;

    fn replace(&self, WholeLog(bitmap): WholeLog) {
        if let Some(log) = self.0.get() {
            log.bitmap.replace(bitmap);
        }
    }
}

/// The whole memory that the frontend passed for its log, independent of the region it is attached to.
#[derive(Debug)]
pub struct WholeLog(AtomicBitmapMmap);

impl MemRegionBitmap for WholeLog {
    /// Fails if the log is too small for `region`.
    fn new<R: GuestMemoryRegion>(region: &R, memory: Arc<MmapLogReg>) -> io::Result<Self> {
        let covering = |log_bytes: u64| {
            let len_bytes = log_bytes.checked_mul(BYTES_PER_LOG_BYTE)?;
            AtomicBitmapMmap::new(&Prefix { len_bytes }, Arc::clone(&memory)).ok()
        };
        let needed = (region.last_addr().0 / BYTES_PER_LOG_BYTE).saturating_add(1);
        let mut largest = covering(needed).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the frontend's dirty log is too small for its memory",
            )
        })?;
        // Find the largest bitmap that fits by binary search: the memory's length is not accessible, and a later memory
        // table may need more of it.
        let (mut fits, mut step) = (needed, 1 << 40);
        while step > 0 {
            match covering(fits.saturating_add(step)) {
                Some(bitmap) => (fits, largest) = (fits + step, bitmap),
                None => step /= 2,
            }
        }
        Ok(Self(largest))
    }
}

/// A pretended region that starts at guest address 0, for the library's bitmap constructor.
struct Prefix {
    len_bytes: u64,
}

impl GuestMemoryRegion for Prefix {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len_bytes
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(0)
    }

    fn bitmap(&self) -> BS<'_, ()> {}
}

impl GuestMemoryRegionBytes for Prefix {}
