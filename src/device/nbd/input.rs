//! Buffer for received bytes.

/// Bytes that were received and not yet consumed.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    /// Bytes that one call receives, at most: 146 requests.
    const CAPACITY_BYTES: usize = 4096;

    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; Self::CAPACITY_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// All bytes that are not yet consumed.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Consumes the first `count` bytes, or all if there are fewer.
    pub(super) fn take(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Consumes the next `N` bytes, if there are as many.
    pub(super) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes().first_chunk()?;
        self.start += N;
        Some(taken)
    }

    /// Appends bytes: `fill` writes them to the free space and returns how many.
    pub(super) fn add<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.compact();
        let added = fill(&mut self.bytes[self.end..])?;
        self.end += added;
        Ok(added)
    }

    /// Makes free space after the bytes. The buffer grows up to one message; the length of messages is limited.
    fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.bytes.len() {
            self.bytes.resize(2 * self.end, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(input: &mut ReceiveBuffer, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let fill = |free: &mut [u8]| {
                let count = free.len().min(rest.len());
                free[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok::<_, ()>(count)
            };
            assert_ne!(input.add(fill), Ok(0));
        }
    }

    #[test]
    fn bytes_stay_until_they_are_consumed() {
        let mut input = ReceiveBuffer::new();
        let bytes: Vec<u8> = (0..10_000u32).map(|at| at.to_le_bytes()[0]).collect();
        add(&mut input, &bytes);
        assert_eq!(input.bytes(), bytes);
        input.take(9_998);
        assert_eq!(input.take_array::<3>(), None);
        add(&mut input, &[7]);
        assert_eq!(input.take_array(), Some([bytes[9_998], bytes[9_999], 7]));
        input.take(1);
        assert!(input.bytes().is_empty());
    }
}
