//! A request is a value: a descriptor chain, parsed and checked.
//!
//! Layout (virtio 1.2, section 5.2.6): 16 readable bytes {type u32, reserved u32, sector u64}, data, and a status
//! byte, which is the last byte of the device-writable part. How those are spread over descriptors is up to the
//! driver (section 2.7.4.1: no assumptions on framing).

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

/// Unit of `sector` and of `capacity`, whatever the block size (virtio 1.2, section 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Most data segments of a request. Same as QEMU's `seg-max-adjust` with a queue of 128 (`hw/block/virtio-blk.c`).
pub const SEG_MAX: u32 = 126;

/// Most descriptors of a chain: the data's, one for the header and one for the status byte.
pub const MAX_DESCRIPTORS: usize = SEG_MAX as usize + 2;

/// Length of the answer to `VIRTIO_BLK_T_GET_ID` (virtio 1.2, section 5.2.6).
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Length of a request's header (virtio 1.2, section 5.2.6).
const HEADER_BYTES: usize = 16;

/// What the status byte says (virtio 1.2, section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Not done, by the fault of device or driver.
    IoErr,
    /// The device does not know this type of request.
    Unsupp,
}

impl Status {
    /// The byte that goes to guest memory.
    pub fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoErr => VIRTIO_BLK_S_IOERR,
            Self::Unsupp => VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The guest wants to change a read-only disk.
    #[error("the guest tried to write (request type {kind}): the disk is read-only")]
    Write {
        /// Type of the request.
        kind: u32,
    },
    /// No such type.
    #[error("request type {kind} is unknown")]
    Unknown {
        /// Type of the request.
        kind: u32,
    },
    /// The chain is longer than the device allows.
    #[error("the descriptor chain is longer than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    /// The chain has no end: it loops, or leads out of its table or out of memory.
    #[error("the descriptor chain has no end")]
    Endless,
    /// A readable descriptor follows a writable one (virtio 1.2, section 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// There is no room for the status byte.
    #[error("the request has no room for a status byte")]
    NoStatus,
    /// The header is short or not in memory.
    #[error("the request's header cannot be read: {0}")]
    Header(GuestFault),
    /// The data are not whole sectors.
    #[error("a read of {len_bytes} bytes is not a multiple of {SECTOR_BYTES}")]
    Partial {
        /// Length of the data buffers.
        len_bytes: u64,
    },
    /// The range is not inside the disk.
    #[error("a read of {len_bytes} bytes at sector {sector} is beyond the end of the disk")]
    Beyond {
        /// First sector.
        sector: u64,
        /// Length of the data buffers.
        len_bytes: u64,
    },
}

/// What the guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Fill `data` from `offset_bytes`; the range is inside the disk.
    Read {
        /// First byte of the disk.
        offset_bytes: u64,
        /// Whole sectors.
        data: GuestBuffer,
    },
    /// Tell the serial.
    GetId {
        /// Any length; the driver is supposed to give [`ID_BYTES`].
        data: GuestBuffer,
    },
    /// Make writes durable: there are none.
    Flush,
    /// Nothing that could be done.
    Refused(Refusal),
}

impl Request {
    /// What the device writes to, apart from the status byte.
    pub fn written(&self) -> Option<&GuestBuffer> {
        match self {
            Self::Read { data, .. } | Self::GetId { data } => Some(data),
            Self::Flush | Self::Refused(_) => None,
        }
    }

    /// Where a read begins, and its buffer.
    pub fn as_read(&self) -> Option<(u64, &GuestBuffer)> {
        match self {
            Self::Read { offset_bytes, data } => Some((*offset_bytes, data)),
            _ => None,
        }
    }
}

/// A request and where its answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Index of the chain's first descriptor: how the guest knows the request.
    pub head: u16,
    /// What it asks for.
    pub request: Request,
    /// Where the status byte goes; none when the chain has no such place.
    pub status: Option<GuestAddress>,
}

impl Parsed {
    /// Marks in `log` all that the device may have written to.
    pub fn mark_in(&self, log: &DirtyLog) {
        if let Some(data) = self.request.written() {
            data.mark_in(log);
        }
        if let Some(status) = self.status {
            log.mark(status, 1);
        }
    }
}

/// Reads a descriptor chain. `disk_len_bytes` is the length of the disk.
///
/// Never fails: a chain that makes no sense is a request that is refused.
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

/// A chain, sorted into its readable and its writable part.
#[derive(Debug, Default)]
struct Layout {
    readable: GuestBuffer,
    writable: GuestBuffer,
    /// Descriptors seen, including those that were not kept.
    descriptors: usize,
    /// The last descriptor seen has no successor.
    ended: bool,
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
                // Refused anyway: only the place of the status byte matters.
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

    /// A chain without an end has no last writable byte either.
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

/// The header's fields that matter.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    /// Copies the header once: the guest may change it at any moment.
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
