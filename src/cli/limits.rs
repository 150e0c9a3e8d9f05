//! The limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for other purposes than store files: a worker needs two per queue (at most 64), memory regions,
/// event descriptors.
const RESERVED: u64 = 256;

/// Raises the soft limit of open files to the hard limit. Returns how many store files may be open.
pub fn raise_open_files() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    };
    store_files(now)
}

fn store_files(limit: Option<u64>) -> usize {
    /// More open files have no benefit and cost kernel memory.
    const PLENTY: u64 = 65_536;
    let limit = limit.unwrap_or(PLENTY).min(PLENTY);
    let files = limit.saturating_sub(RESERVED).max(limit / 8);
    usize::try_from(files).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::store_files;

    #[test]
    fn leaves_room_for_everything_else() {
        assert_eq!(store_files(Some(20_000)), 19_744);
        assert_eq!(store_files(Some(64)), 8);
        assert_eq!(store_files(None), 65_280);
    }
}
