/// Why a measurement cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server, or the driver library, refused.
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
        /// What the driver library says.
        errno: i32,
    },
    /// The device has no queue.
    #[error("the device at {path} has no queue")]
    NoQueue {
        /// Its socket.
        path: String,
    },
    /// Latencies could not be counted.
    #[error("latencies cannot be counted: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// No range holds a block.
    #[error(
        "no range is as long as one block: give others with --range or --ranges, or a smaller --bs"
    )]
    NoRange,
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A line that is no range.
    #[error("\"{line}\" is not a range: START LEN or START:LEN, in bytes")]
    Line {
        /// What stands there.
        line: String,
    },
}
