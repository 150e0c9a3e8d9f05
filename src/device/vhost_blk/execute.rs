//! Executes requests: writes data and a status byte to guest memory.
//!
//! Only [`RequestError::status`] converts an error to a status, and only `BlkDisk::finish` writes it.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::dirty::DirtyLog;
use super::guest::{GuestBuffer, GuestFault};
use super::request::{ID_BYTES, Parsed, Refusal, Request, Status};
use crate::image::{Image, ReadError};
use crate::source::{Awaits, Destination, DestinationError, IoMode, SourceError};

/// Maximum number of bytes of merged requests.
const TOGETHER_BYTES: u64 = 256 << 10;

/// A request is executed in slices of this size. Between slices we check whether it is still wanted. The size also bounds
/// how many files are held open at the same time. Nearly all requests of Linux fit into one slice, but a guest may
/// request 4 GiB.
const SLICE_BYTES: u64 = 1 << 20;

/// The slice size when the host is short of file descriptors: it contains at most 16 files.
const SMALL_SLICE_BYTES: u64 = 64 << 10;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request is invalid.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The data could not be stored in guest memory.
    #[error(transparent)]
    Guest(#[from] GuestFault),
    /// The buffers in guest memory are too short.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The request is not wanted any more: the ring is being halted, or the frontend has disconnected.
    #[error("the request was abandoned")]
    Abandoned,
}

impl RequestError {
    /// The store path at fault, if the error is caused by one.
    pub fn culprit(&self, image: &Image) -> Option<&OsStr> {
        match self {
            Self::Read(error) => image.culprit(error),
            Self::Refused(_) | Self::Guest(_) | Self::Destination(_) | Self::Abandoned => None,
        }
    }

    /// Whether the host has run out of file descriptors. With fewer concurrent reads, this read would succeed.
    pub fn is_shortage(&self) -> bool {
        matches!(
            self,
            Self::Read(ReadError::Source(SourceError::Io {
                errno: Errno::MFILE | Errno::NFILE,
                ..
            }))
        )
    }

    /// The status that the guest receives.
    pub fn status(&self) -> Status {
        match self {
            Self::Refused(Refusal::Unknown { .. }) => Status::Unsupp,
            _ => Status::IoErr,
        }
    }
}

/// What is published for a request in the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The chain's head.
    pub head: u16,
    /// Bytes written to device-writable buffers, including the status byte.
    pub used_len_bytes: u32,
}

/// The result of a request.
#[derive(Debug)]
pub struct Outcome {
    /// What is published.
    pub completion: Completion,
    /// Number of data bytes delivered, or the error.
    pub result: Result<u64, RequestError>,
}

/// The result of an attempt to execute a request without blocking. In all cases, parts of the data may have been
/// written. The guest does not see them before the request is published.
#[derive(Debug)]
pub enum Attempt {
    /// It was executed.
    Done(Outcome),
    /// It would wait for data, which the kernel has started to read.
    Underway,
    /// It would wait for something else that is not in memory (a plan, a directory, a small file), or file descriptors
    /// are short.
    Blocked,
    /// It is not wanted any more.
    Abandoned,
}

/// The result of a request that may wait for the host's disk.
#[derive(Debug)]
pub enum Waited {
    /// It was executed.
    Done(Outcome),
    /// It needs something from a binary cache, whose fetch has been started.
    Fetching,
    /// It is not wanted any more.
    Abandoned,
}

/// How to execute a request.
#[derive(Clone, Copy)]
struct Effort<'w> {
    mode: IoMode,
    slice_bytes: u64,
    /// Whether the result is still wanted.
    is_wanted: &'w dyn Fn() -> bool,
}

impl<'w> Effort<'w> {
    fn new(mode: IoMode, is_wanted: &'w dyn Fn() -> bool) -> Self {
        Self {
            mode,
            slice_bytes: SLICE_BYTES,
            is_wanted,
        }
    }
}

/// The disk as requests see it.
#[derive(Debug, Clone)]
pub struct BlkDisk {
    /// The disk's contents.
    pub image: Arc<Image>,
    /// The serial number, padded with NUL.
    pub serial: [u8; ID_BYTES],
    /// Marks guest memory that was written to.
    pub log: Arc<DirtyLog>,
}

impl BlkDisk {
    /// Executes a request, waiting for everything it needs, and writes its status byte. The caller publishes it.
    pub fn execute(&self, parsed: &Parsed, memory: &impl GuestMemory<Bitmap = ()>) -> Outcome {
        let result = self.carry_out(Effort::new(IoMode::Blocking, &|| true), parsed, memory);
        self.finish(parsed, result, memory)
    }

    /// Like [`execute`](Self::execute), but waits only for disks, and stops when `is_wanted`, which is called after
    /// every MiB, returns false. In all cases, parts of the data may have been written.
    pub fn execute_while(
        &self,
        is_wanted: &dyn Fn() -> bool,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Waited {
        let result = self.carry_out(Effort::new(IoMode::Local, is_wanted), parsed, memory);
        self.waited(parsed, result, memory)
    }

    /// Like [`execute_while`](Self::execute_while), with as few files open at the same time as possible.
    pub fn execute_sparingly(
        &self,
        is_wanted: &dyn Fn() -> bool,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Waited {
        let effort = Effort {
            slice_bytes: SMALL_SLICE_BYTES,
            ..Effort::new(IoMode::Local, is_wanted)
        };
        let result = self.carry_out(effort, parsed, memory);
        self.waited(parsed, result, memory)
    }

    /// Like [`execute_while`](Self::execute_while), but does nothing that could block.
    pub fn try_execute(
        &self,
        is_wanted: &dyn Fn() -> bool,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Attempt {
        let result = self.carry_out(Effort::new(IoMode::NoWait, is_wanted), parsed, memory);
        let waits = match &result {
            Err(RequestError::Read(error)) => error.would_block(),
            _ => None,
        };
        match result {
            _ if waits == Some(Awaits::Data) => Attempt::Underway,
            _ if waits.is_some() => Attempt::Blocked,
            Err(error) if error.is_shortage() => Attempt::Blocked,
            Err(RequestError::Abandoned) => Attempt::Abandoned,
            result => Attempt::Done(self.finish(parsed, result, memory)),
        }
    }

    /// Merges reads that are adjacent on the disk (see [`adjacent`]) into one read, and writes their status bytes.
    /// `None` if there are fewer than two, or if the merged read would block or fails; then each one should be tried
    /// alone.
    pub fn try_together<'r, M: GuestMemory<Bitmap = ()>>(
        &'r self,
        reads: &'r [Parsed],
        memory: &'r M,
    ) -> Option<impl Iterator<Item = Outcome> + use<'r, M>> {
        let [first, _, ..] = reads else {
            return None;
        };
        let (offset_bytes, _) = first.request.as_read()?;
        let buffers = reads.iter().filter_map(|read| read.request.as_read());
        let writer = GuestBuffer::writer_of(buffers.map(|(_, data)| data), memory).ok()?;
        let len_bytes = reads.iter().map(data_bytes).sum();
        let effort = Effort::new(IoMode::NoWait, &|| true);
        self.fill(effort, offset_bytes, len_bytes, writer).ok()?;
        let finish = move |read| self.finish(read, Ok(data_bytes(read)), memory);
        Some(reads.iter().map(finish))
    }

    fn carry_out(
        &self,
        effort: Effort<'_>,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Result<u64, RequestError> {
        match &parsed.request {
            Request::Read { offset_bytes, data } => {
                let writer = data.writer(memory)?;
                self.fill(effort, *offset_bytes, data.len_bytes(), writer)
            }
            Request::GetId { data } => self.write_serial(data, memory),
            Request::Flush => Ok(0),
            Request::Refused(refusal) => Err((*refusal).into()),
        }
    }

    /// Fills a buffer, one slice at a time.
    fn fill(
        &self,
        effort: Effort<'_>,
        offset_bytes: u64,
        len_bytes: u64,
        mut to: Destination<'_>,
    ) -> Result<u64, RequestError> {
        let mut done = 0;
        while done < len_bytes {
            if done > 0 && !(effort.is_wanted)() {
                return Err(RequestError::Abandoned);
            }
            let now = (len_bytes - done).min(effort.slice_bytes);
            self.image
                .read_into(&mut to, offset_bytes + done, now, effort.mode)?;
            done += now;
        }
        Ok(len_bytes)
    }

    /// Writes the status byte after the data, because a guest may poll it. Then marks all buffers as dirty, even after
    /// an error, because a failed read may have written a part.
    fn finish(
        &self,
        parsed: &Parsed,
        result: Result<u64, RequestError>,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Outcome {
        let status = result
            .as_ref()
            .map_or_else(RequestError::status, |_| Status::Ok);
        let data_bytes = *result.as_ref().unwrap_or(&0);
        let (written, result) = match write_status(parsed.status, status, memory) {
            Ok(()) => (data_bytes + 1, result),
            // If there already was an error, it is more informative than this one.
            Err(fault) => (data_bytes, result.and(Err(fault))),
        };
        if self.log.is_on() {
            parsed.mark_in(&self.log);
        }
        let completion = Completion {
            head: parsed.head,
            used_len_bytes: u32::try_from(written).unwrap_or(u32::MAX),
        };
        Outcome { completion, result }
    }

    fn waited(
        &self,
        parsed: &Parsed,
        result: Result<u64, RequestError>,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Waited {
        match result {
            Err(RequestError::Abandoned) => Waited::Abandoned,
            Err(RequestError::Read(error)) if error.would_block().is_some() => Waited::Fetching,
            result => Waited::Done(self.finish(parsed, result, memory)),
        }
    }

    fn write_serial(
        &self,
        data: &GuestBuffer,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Result<u64, RequestError> {
        let len_bytes = data.len_bytes();
        let mut writer = data.writer(memory)?;
        let told = usize::try_from(len_bytes).unwrap_or(ID_BYTES).min(ID_BYTES);
        let (serial, _) = self.serial.split_at(told);
        writer.write(serial)?;
        writer.zero(len_bytes - told as u64)?;
        Ok(len_bytes)
    }
}

/// The number of requests at the start of `requests` that are reads adjacent on the disk and small enough to be merged.
/// At least one, unless `requests` is empty.
pub fn adjacent(requests: &[Parsed]) -> usize {
    let Some((mut end, data)) = requests.first().and_then(|first| first.request.as_read()) else {
        return requests.len().min(1);
    };
    end += data.len_bytes();
    let mut len_bytes = data.len_bytes();
    let continues = |read: &&Parsed| match read.request.as_read() {
        Some((offset_bytes, data)) if offset_bytes == end => {
            end += data.len_bytes();
            len_bytes += data.len_bytes();
            len_bytes <= TOGETHER_BYTES
        }
        _ => false,
    };
    1 + requests[1..].iter().take_while(continues).count()
}

fn data_bytes(parsed: &Parsed) -> u64 {
    parsed
        .request
        .as_read()
        .map_or(0, |(_, data)| data.len_bytes())
}

fn write_status(
    place: Option<GuestAddress>,
    status: Status,
    memory: &impl GuestMemory<Bitmap = ()>,
) -> Result<(), RequestError> {
    let address = place.ok_or(Refusal::NoStatus)?;
    memory
        .write_obj(status.byte(), address)
        .map_err(|_| GuestFault::Outside {
            address: address.0,
            len_bytes: 1,
        })?;
    Ok(())
}

#[cfg(test)]
mod tests;
