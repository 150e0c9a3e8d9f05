//! The dirty log: which pages of guest memory this device has written to. A frontend that saves or moves a running VM asks
//! for it, and copies those pages again.
//!
//! A page is marked after it was written to and before the request is published. Marked before, it could be copied before
//! the write, and not again; and a request that was not published is carried out again by whoever goes on. The used ring
//! is marked when it is published, and when a ring is looked at: a worker that was killed may have written to it last.
//!
//! The frontend hands over shared memory with a bit for each page of guest memory (SET_LOG_BASE), and switches the log on
//! and off with a feature bit. `vhost-user-backend` 0.24 gives that memory to a bitmap of each memory region, loses it with
//! the next memory table, and ignores the switch. So the bitmap of a region, [`RegionLog`], only passes on what it is
//! given, to the one [`DirtyLog`] of the device. What is marked goes there, by guest address, whichever regions there are.
//!
//! A frontend that cuts the file behind the log ends its own worker by SIGBUS, as with the memory of a ring.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};

use vhost_user_backend::bitmap::{
    AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace, MemRegionBitmap, MmapLogReg,
};
use vm_memory::bitmap::{BS, Bitmap, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize};

/// Guest memory that one byte of a log stands for: eight pages (`VHOST_LOG_PAGE`, linux/vhost_types.h).
const BYTES_PER_LOG_BYTE: u64 = 8 * 4096;

/// The log of one device.
#[derive(Debug, Default)]
pub struct DirtyLog {
    is_on: AtomicBool,
    /// Locked for reading while pages are marked: once a new one is in place, nothing is marked in the old one.
    bitmap: BitmapMmapRegion,
}

impl DirtyLog {
    /// Switches it. What is on without memory from the frontend marks nothing.
    pub fn switch(&self, on: bool) {
        self.is_on.store(on, Ordering::Release);
    }

    /// Whether pages are to be marked. A thread that has not seen the switch yet wrote before it, or is halted when the
    /// frontend sets its ring's addresses anew, which comes with it.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// Marks the pages of a range that has been written to.
    pub fn mark(&self, address: GuestAddress, len_bytes: u64) {
        // The frontend takes the bit, and then reads what was written before it was set.
        fence(Ordering::Release);
        if let (Ok(start), Ok(len)) = (address.0.try_into(), len_bytes.try_into()) {
            self.bitmap.mark_dirty(start, len);
        }
    }
}

/// What a memory region has for a bitmap: it knows the device's.
#[derive(Debug, Default, Clone)]
pub struct RegionLog(OnceLock<Arc<DirtyLog>>);

impl RegionLog {
    /// Names the log that memory for a log is given to.
    pub fn attach(&self, log: &Arc<DirtyLog>) {
        self.0.get_or_init(|| Arc::clone(log));
    }
}

/// Slices carry no bitmap: what is written through them is marked by who knows when it is published.
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

/// All of the memory that a frontend gave for its log, whichever region it was given for.
#[derive(Debug)]
pub struct WholeLog(AtomicBitmapMmap);

impl MemRegionBitmap for WholeLog {
    /// Fails if the log has no room for `region`.
    fn new<R: GuestMemoryRegion>(region: &R, memory: Arc<MmapLogReg>) -> io::Result<Self> {
        let covering = |log_bytes: u64| {
            let len_bytes = log_bytes.checked_mul(BYTES_PER_LOG_BYTE)?;
            AtomicBitmapMmap::new(&Prefix { len_bytes }, Arc::clone(&memory)).ok()
        };
        let needed = (region.last_addr().0 / BYTES_PER_LOG_BYTE).saturating_add(1);
        let mut largest = covering(needed).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the frontend's dirty log has no room for all of its memory",
            )
        })?;
        // It does not tell its length, and a later memory table may need more of it.
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

/// Guest memory from address 0 on: what the library wants to be told about a bitmap for it.
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
