//! Parses and checks descriptor chains.
//!
//! Layout (virtio 1.2, section 5.2.6): 16 readable bytes {type u32, reserved u32, sector u64}, data, and a status
//! byte, which is the last byte of the device-writable part. The driver may distribute them over descriptors in any way
//! (section 2.7.4.1: no assumptions on framing).

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_SECURE_ERASE, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory};

use super::dirty::DirtyLog;
use super::guest::{GuestBuffer, GuestFault};

/// Unit of `sector` and of `capacity`, independent of the block size (virtio 1.2, section 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Maximum number of data segments of a request. Same as with QEMU's `seg-max-adjust` and a queue size of 128
/// (`hw/block/virtio-blk.c`).
pub const SEG_MAX: u32 = 126;

/// Maximum number of descriptors of a chain: data segments, header and status byte.
pub const MAX_DESCRIPTORS: usize = SEG_MAX as usize + 2;

/// Length of the data of `VIRTIO_BLK_T_GET_ID` (virtio 1.2, section 5.2.6).
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Length of a request's header (virtio 1.2, section 5.2.6).
const HEADER_BYTES: usize = 16;

/// Status of a request (virtio 1.2, section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Success.
    Ok,
    /// Error of the device or the driver.
    IoErr,
    /// The type of request is not supported.
    Unsupp,
}

impl Status {
    /// The status byte in guest memory.
    pub fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoErr => VIRTIO_BLK_S_IOERR,
            Self::Unsupp => VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A request that would change the read-only disk.
    #[error("the guest tried to write (request type {kind}): the disk is read-only")]
    Write {
        /// Type of the request.
        kind: u32,
    },
    /// An unknown type of request.
    #[error("request type {kind} is unknown")]
    Unknown {
        /// Type of the request.
        kind: u32,
    },
    /// The chain is longer than the device allows.
    #[error("the descriptor chain is longer than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    /// The chain has no end: it loops, or leaves its table or guest memory.
    #[error("the descriptor chain has no end")]
    Endless,
    /// A readable descriptor follows a writable one (virtio 1.2, section 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// There is no room for the status byte.
    #[error("the request has no room for a status byte")]
    NoStatus,
    /// The header is too short or not in memory.
    #[error("the request's header cannot be read: {0}")]
    Header(GuestFault),
    /// The length of the data is not a multiple of the sector size.
    #[error("a read of {len_bytes} bytes is not a multiple of {SECTOR_BYTES}")]
    Partial {
        /// Length of the data buffers.
        len_bytes: u64,
    },
    /// The range is beyond the end of the disk.
    #[error("a read of {len_bytes} bytes at sector {sector} is beyond the end of the disk")]
    Beyond {
        /// First sector.
        sector: u64,
        /// Length of the data buffers.
        len_bytes: u64,
    },
}

/// A request of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read into `data`. The range has been checked to be inside the disk.
    Read {
        /// First byte on the disk.
        offset_bytes: u64,
        /// Destination; a multiple of the sector size.
        data: GuestBuffer,
    },
    /// Return the serial number.
    GetId {
        /// Destination of any length, although drivers should use [`ID_BYTES`].
        data: GuestBuffer,
    },
    /// Flush writes; there are none.
    Flush,
    /// Invalid or not supported.
    Refused(Refusal),
}

impl Request {
    /// The buffer that the device writes to, apart from the status byte.
    pub fn written(&self) -> Option<&GuestBuffer> {
        match self {
            Self::Read { data, .. } | Self::GetId { data } => Some(data),
            Self::Flush | Self::Refused(_) => None,
        }
    }

    /// Offset and buffer of a read.
    pub fn as_read(&self) -> Option<(u64, &GuestBuffer)> {
        match self {
            Self::Read { offset_bytes, data } => Some((*offset_bytes, data)),
            _ => None,
        }
    }
}

/// A request with its location in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Index of the chain's first descriptor, which identifies the request to the guest.
    pub head: u16,
    /// The request.
    pub request: Request,
    /// Address of the status byte; `None` if the chain has no room for it.
    pub status: Option<GuestAddress>,
}

impl Parsed {
    /// Marks everything that the device may have written to in `log`.
    pub fn mark_in(&self, log: &DirtyLog) {
        if let Some(data) = self.request.written() {
            data.mark_in(log);
        }
        if let Some(status) = self.status {
            log.mark(status, 1);
        }
    }
}

/// Parses a descriptor chain. `disk_len_bytes` is the length of the disk.
///
/// Never fails: an invalid chain becomes [`Request::Refused`].
pub fn parse<M: GuestMemory>(chain: DescriptorChain<&M>, disk_len_bytes: u64) -> Parsed {
    let head = chain.head_index();
    let memory = chain.memory();
    let mut layout = Layout::of(chain.clone());
    let status = layout.take_status();
    let request = layout
        .check(status)
        .and_then(|()| Header::read(&layout.readable, memory))
        .and_then(|header| header.request(layout.writable, disk_len_bytes))
        .unwrap_or_else(Request::Refused);
    Parsed {
        head,
        request,
        status,
    }
}

/// A chain, divided into its readable and its writable part.
#[derive(Debug, Default)]
struct Layout {
    readable: GuestBuffer,
    writable: GuestBuffer,
    /// Number of descriptors seen, including those that were not stored.
    descriptors: usize,
    /// The last descriptor seen has no successor.
    ended: bool,
    /// A readable descriptor followed a writable one.
    disordered: bool,
}

impl Layout {
    fn of(descriptors: impl Iterator<Item = Descriptor>) -> Self {
        let mut layout = Self::default();
        for descriptor in descriptors {
            layout.add(descriptor);
        }
        layout
    }

    fn add(&mut self, descriptor: Descriptor) {
        self.descriptors += 1;
        self.ended = !descriptor.has_next();
        if descriptor.is_write_only() {
            if self.descriptors > MAX_DESCRIPTORS && descriptor.len() > 0 {
                // The request will be refused; only the address of the status byte is still needed.
                self.writable = GuestBuffer::default();
            }
            self.writable.push(descriptor.addr(), descriptor.len());
        } else {
            self.disordered |= !self.writable.is_empty();
            if self.descriptors <= MAX_DESCRIPTORS {
                self.readable.push(descriptor.addr(), descriptor.len());
            }
        }
    }

    /// Removes the status byte from the writable part. A chain without end has no last byte.
    fn take_status(&mut self) -> Option<GuestAddress> {
        if self.ended {
            self.writable.pop_byte()
        } else {
            None
        }
    }

    fn check(&self, status: Option<GuestAddress>) -> Result<(), Refusal> {
        if !self.ended {
            Err(Refusal::Endless)
        } else if self.descriptors > MAX_DESCRIPTORS {
            Err(Refusal::TooLong)
        } else if self.disordered {
            Err(Refusal::Order)
        } else if status.is_none() {
            Err(Refusal::NoStatus)
        } else {
            Ok(())
        }
    }
}

/// The relevant fields of the header.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    /// Copies the header once, because the guest may change it at any time.
    fn read(readable: &GuestBuffer, memory: &impl GuestMemory) -> Result<Self, Refusal> {
        let mut bytes = [0; HEADER_BYTES];
        readable
            .read_front(memory, &mut bytes)
            .map_err(Refusal::Header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes(sector),
        })
    }

    fn request(self, data: GuestBuffer, disk_len_bytes: u64) -> Result<Request, Refusal> {
        match self.kind {
            VIRTIO_BLK_T_IN => self.read_request(data, disk_len_bytes),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId { data }),
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_OUT
            | VIRTIO_BLK_T_DISCARD
            | VIRTIO_BLK_T_WRITE_ZEROES
            | VIRTIO_BLK_T_SECURE_ERASE => Err(Refusal::Write { kind: self.kind }),
            kind => Err(Refusal::Unknown { kind }),
        }
    }

    fn read_request(self, data: GuestBuffer, disk_len_bytes: u64) -> Result<Request, Refusal> {
        let len_bytes = data.len_bytes();
        if !len_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refusal::Partial { len_bytes });
        }
        let sector = self.sector;
        let beyond = Refusal::Beyond { sector, len_bytes };
        let offset_bytes = sector.checked_mul(SECTOR_BYTES).ok_or(beyond)?;
        let end = offset_bytes.checked_add(len_bytes).ok_or(beyond)?;
        if end > disk_len_bytes {
            return Err(beyond);
        }
        Ok(Request::Read { offset_bytes, data })
    }
}

#[cfg(test)]
mod tests;
