//! What was received and not yet looked at.

/// Bytes that were received and not yet taken.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// Room for as much as one call receives: 146 requests.
    const ROOM_BYTES: usize = 4096;

    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; Self::ROOM_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// All that is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// The first `count` bytes are done with, or all there are.
    pub(super) fn take(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// The next `N` bytes, which are done with then.
    pub(super) fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes().first_chunk()?;
        self.start += N;
        Some(taken)
    }

    /// Has `fill` put further bytes after those that are there; how many it returns.
    pub(super) fn add<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.make_room();
        let added = fill(&mut self.bytes[self.end..])?;
        self.end += added;
        Ok(added)
    }

    /// There is always some: the reader bounds what comes in.
    fn make_room(&mut self) {
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

    fn add(input: &mut Input, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let fill = |room: &mut [u8]| {
                let count = room.len().min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                Ok::<_, ()>(count)
            };
            assert_ne!(input.add(fill), Ok(0));
        }
    }

    #[test]
    fn input_keeps_what_is_not_taken() {
        let mut input = Input::new();
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
