//! Request value to bytes in guest memory and a status byte.
//!
//! [`RequestError::status`] is the only place where an error becomes a status byte, and `Disk::finish` the only
//! one that writes it.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::dirty::DirtyLog;
use super::guest::{GuestBuffer, GuestFault};
use super::request::{ID_BYTES, Parsed, Refusal, Request, Status};
use crate::image::{Image, ReadError};
use crate::source::{Awaits, Destination, DestinationError, IoMode, SourceError};

/// Most bytes of requests that are carried out as one.
const TOGETHER_BYTES: u64 = 256 << 10;

/// Bytes of a request between two looks at whether it is still wanted, and for which files are held open at once. As much
/// as Linux asks for at once, nearly always; a guest may ask for 4 GiB.
const SLICE_BYTES: u64 = 1 << 20;

/// The same when the host is short of file descriptors: 16 files at most.
const SMALL_SLICE_BYTES: u64 = 64 << 10;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It was never to be carried out.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The data could not be stored in guest memory.
    #[error(transparent)]
    Guest(#[from] GuestFault),
    /// The answer did not fit in guest memory.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The answer is not wanted any more: the ring is being halted, or the frontend has left.
    #[error("the request was abandoned")]
    Abandoned,
}

impl RequestError {
    /// The path of the store that is at fault, if one is.
    pub fn culprit(&self, image: &Image) -> Option<&OsStr> {
        match self {
            Self::Read(error) => image.culprit(error),
            Self::Refused(_) | Self::Guest(_) | Self::Destination(_) | Self::Abandoned => None,
        }
    }

    /// Whether the host has no file descriptors left: fewer reads at once would succeed.
    pub fn is_shortage(&self) -> bool {
        matches!(
            self,
            Self::Read(ReadError::Source(SourceError::Io {
                errno: Errno::MFILE | Errno::NFILE,
                ..
            }))
        )
    }

    /// What the guest gets to know.
    pub fn status(&self) -> Status {
        match self {
            Self::Refused(Refusal::Unknown { .. }) => Status::Unsupp,
            _ => Status::IoErr,
        }
    }
}

/// What is published for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The chain's head.
    pub head: u16,
    /// Bytes written to device-writable buffers, the status byte included.
    pub used_len_bytes: u32,
}

/// What came of a request.
#[derive(Debug)]
pub struct Outcome {
    /// What is published.
    pub completion: Completion,
    /// Data bytes the guest got, or why it got none.
    pub result: Result<u64, RequestError>,
}

/// What came of a request that was not to be waited for. Parts of the data may have been written in any case, which
/// nobody can see before the request is published.
#[derive(Debug)]
pub enum Attempt {
    /// It was carried out.
    Done(Outcome),
    /// The kernel has been asked for the data, and reads them meanwhile.
    Underway,
    /// Something else is not in memory, a plan, a name, a small file; or file descriptors are short.
    Blocked,
    /// It is not wanted any more.
    Abandoned,
}

/// What came of a request that was waited for.
#[derive(Debug)]
pub enum Waited {
    /// It was carried out.
    Done(Outcome),
    /// Something must be fetched first, which takes longer than a disk. It has been asked for.
    Fetching,
    /// It is not wanted any more.
    Abandoned,
}

/// How a request is carried out.
#[derive(Clone, Copy)]
struct Effort<'w> {
    mode: IoMode,
    slice_bytes: u64,
    /// Whether the answer is still wanted.
    wanted: &'w dyn Fn() -> bool,
}

impl<'w> Effort<'w> {
    fn new(mode: IoMode, wanted: &'w dyn Fn() -> bool) -> Self {
        Self {
            mode,
            slice_bytes: SLICE_BYTES,
            wanted,
        }
    }
}

/// What requests are answered from.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The disk's bytes.
    pub image: Arc<Image>,
    /// Answer to `VIRTIO_BLK_T_GET_ID`, padded with NUL.
    pub serial: [u8; ID_BYTES],
    /// Where it is marked what was written to.
    pub log: Arc<DirtyLog>,
}

impl Disk {
    /// Carries a request out and writes its status byte: all but the publishing.
    pub fn execute(&self, parsed: &Parsed, memory: &impl GuestMemory<Bitmap = ()>) -> Outcome {
        let result = self.carry_out(Effort::new(IoMode::Blocking, &|| true), parsed, memory);
        self.finish(parsed, result, memory)
    }

    /// Like [`execute`](Self::execute), as long as `wanted` says so, which is asked after every MiB, and waiting for disks
    /// only. Part of the data may have been written in any case.
    pub fn execute_while(
        &self,
        wanted: &dyn Fn() -> bool,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Waited {
        let result = self.carry_out(Effort::new(IoMode::Local, wanted), parsed, memory);
        self.waited(parsed, result, memory)
    }

    /// Like [`execute_while`](Self::execute_while), with as few files open at once as possible.
    pub fn execute_sparingly(
        &self,
        wanted: &dyn Fn() -> bool,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Waited {
        let effort = Effort {
            slice_bytes: SMALL_SLICE_BYTES,
            ..Effort::new(IoMode::Local, wanted)
        };
        let result = self.carry_out(effort, parsed, memory);
        self.waited(parsed, result, memory)
    }

    /// Like [`execute_while`](Self::execute_while), but does nothing that could block.
    pub fn try_execute(
        &self,
        wanted: &dyn Fn() -> bool,
        parsed: &Parsed,
        memory: &impl GuestMemory<Bitmap = ()>,
    ) -> Attempt {
        let result = self.carry_out(Effort::new(IoMode::NoWait, wanted), parsed, memory);
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

    /// Carries out reads that continue each other on the disk (see [`adjacent`]) as one, and writes their status bytes,
    /// if there are several and nothing has to be waited for or fails; otherwise each is to be tried alone.
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
            Request::GetId { data } => self.tell_serial(data, memory),
            Request::Flush => Ok(0),
            Request::Refused(refusal) => Err((*refusal).into()),
        }
    }

    /// Fills a buffer, a slice at a time.
    fn fill(
        &self,
        effort: Effort<'_>,
        offset_bytes: u64,
        len_bytes: u64,
        mut to: Destination<'_>,
    ) -> Result<u64, RequestError> {
        let mut done = 0;
        while done < len_bytes {
            if done > 0 && !(effort.wanted)() {
                return Err(RequestError::Abandoned);
            }
            let now = (len_bytes - done).min(effort.slice_bytes);
            self.image
                .read_into(&mut to, offset_bytes + done, now, effort.mode)?;
            done += now;
        }
        Ok(len_bytes)
    }

    /// Writes the status byte, after the data: a guest that polls it must not see it first. Then it marks what was written
    /// to, all of it: of a read that failed, some has been.
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
            // What went wrong first says more than the missing status byte.
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

    fn tell_serial(
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

/// How many of `requests`, from the first, are reads that continue each other on the disk and are few bytes together;
/// one at least, unless there is none.
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
