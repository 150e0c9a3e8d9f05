//! Reads a disk at a socket or as a file.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::common::client::Client;
use crate::common::direct::aligned;
use crate::common::small_store::FileOnDisk;

/// Length of a request.
const READ: u64 = 64 << 10;

/// A reader of the disk that bypasses the kernel's caches.
pub enum Reader {
    Socket(RefCell<Client>),
    File(File),
}

/// The result of reading a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Right,
    Error,
}

impl Reader {
    pub fn socket(socket: &Path) -> Self {
        Self::Socket(RefCell::new(Client::start(socket, 1)))
    }

    pub fn file(image: &Path) -> Self {
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(image);
        Self::File(direct.unwrap())
    }

    fn read(&self, at: u64, len: u64) -> Result<Vec<u8>, i32> {
        let len = usize::try_from(len).unwrap();
        match self {
            Self::Socket(client) => client.borrow_mut().read(0, &[(at, len)]).remove(0),
            Self::File(file) => {
                let mut buffer = vec![0; len + 4096];
                let bytes = aligned(&mut buffer, len);
                let read = file.read_exact_at(bytes, at);
                read.map_err(|error| error.raw_os_error().unwrap_or(0))?;
                Ok(bytes.to_vec())
            }
        }
    }

    /// The bytes of a range, read in whole blocks.
    pub fn range(&self, range: &Range<u64>) -> Result<Vec<u8>, i32> {
        let (start, end) = (range.start / 4096 * 4096, range.end.next_multiple_of(4096));
        let mut bytes = Vec::new();
        let mut at = start;
        while at < end {
            let len = READ.min(end - at);
            bytes.extend(self.read(at, len)?);
            at += len;
        }
        let from = usize::try_from(range.start - start).unwrap();
        let to = usize::try_from(range.end - start).unwrap();
        Ok(bytes[from..to].to_vec())
    }

    /// Reads a file. Its bytes must be right, unless the read fails.
    pub fn look(&self, file: &FileOnDisk) -> Found {
        match self.range(&file.range) {
            Ok(bytes) => {
                assert!(bytes == file.content, "wrong bytes of {}", file.path);
                Found::Right
            }
            Err(errno) => {
                assert_eq!(errno.abs(), libc::EIO, "{}", file.path);
                Found::Error
            }
        }
    }
}
