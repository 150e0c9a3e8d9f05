//! Takes values from the input's bytes. Each target uses a part of it.
#![allow(dead_code)]

/// Bytes of the input, followed by zeros.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    pub fn take(&mut self, len: usize) -> &[u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    pub fn word16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn word32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub fn word64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}
