/// Why a benchmark cannot run.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server or the driver library returned an error.
    #[error("the device at {path} failed: {source}")]
    Device {
        /// Its socket.
        path: String,
        /// Why.
        source: blkio::Error,
    },
    /// A read failed.
    #[error("a read of {len_bytes} bytes at {offset} failed with errno {errno}")]
    Read {
        /// First byte.
        offset: u64,
        /// Its length.
        len_bytes: usize,
        /// The errno from the driver library.
        errno: i32,
    },
    /// The device has no queue.
    #[error("the device at {path} has no queue")]
    NoQueue {
        /// Its socket.
        path: String,
    },
    /// The histogram of latencies could not be created.
    #[error("cannot record latencies: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// No range is as long as a block.
    #[error(
        "every range is shorter than one block: pass other ranges with --range or --ranges, or a smaller --bs"
    )]
    NoRange,
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not a range.
    #[error("\"{line}\" is not a range: START LEN or START:LEN, in bytes")]
    Line {
        /// The line.
        line: String,
    },
}

impl BenchError {
    /// The device at the socket `path` failed.
    pub fn device(path: &str, source: blkio::Error) -> Self {
        Self::Device {
            path: path.to_owned(),
            source,
        }
    }

    /// The file `path` could not be read.
    pub fn file(path: &str, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}
