//! A strict reader of replies. It has its own constants, and uses nothing of the tested code.

/// Takes numbers from the beginning.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len);
        self.0 = later;
        now
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn long(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Flags, type and length of a chunk.
    fn chunk(&mut self, cookie: u64) -> (u16, u16, usize) {
        assert_eq!(self.word(), 0x668e_33ef);
        let word = self.word();
        assert_eq!(self.long(), cookie);
        let len = usize::try_from(self.word()).unwrap();
        let [flags, kind] = [word >> 16, word & 0xffff].map(|half| u16::try_from(half).unwrap());
        (flags, kind, len)
    }
}

/// Checks replies to options. Returns the number of final replies. Before TLS there may be only errors, and with
/// `may_agree` one acknowledgement.
pub fn check_answers(bytes: &[u8], before_tls: bool, may_agree: bool) -> u32 {
    let mut reader = Reader(bytes);
    let mut last = 0;
    while !reader.0.is_empty() {
        assert_eq!(reader.long(), 0x0003_e889_0455_65a9);
        reader.word();
        let kind = reader.word();
        let len = reader.word();
        reader.take(len.try_into().unwrap());
        assert!(
            matches!(kind, 1..=4 | 0x8000_0001..=0x8000_0009),
            "{kind:#x}"
        );
        assert!(!before_tls || kind > 4 || (kind == 1 && len == 0 && may_agree));
        last += u32::from(kind == 1 || kind > 4);
    }
    last
}

/// The data of a simple reply.
pub fn simple(bytes: &[u8], cookie: u64, error: u32) -> &[u8] {
    let mut reader = Reader(bytes);
    assert_eq!(reader.word(), 0x6744_6698);
    assert_eq!(reader.word(), error);
    assert_eq!(reader.long(), cookie);
    reader.0
}

pub fn error_chunk(bytes: &[u8], cookie: u64, error: u32) {
    let mut reader = Reader(bytes);
    assert_eq!(reader.chunk(cookie), (1, 0x8001, 6));
    assert_eq!(reader.word(), error);
    assert_eq!(reader.0, [0, 0]);
}

/// The data of all chunks of a read.
pub fn data_of_chunks(bytes: &[u8], cookie: u64, start: u64, len: usize, whole: bool) -> Vec<u8> {
    let mut reader = Reader(bytes);
    let mut found = Vec::new();
    let mut chunks = 0;
    loop {
        let (flags, kind, chunk_len) = reader.chunk(cookie);
        assert_eq!(reader.long(), start + found.len() as u64);
        match kind {
            1 => {
                assert!(chunk_len > 8);
                found.extend_from_slice(reader.take(chunk_len - 8));
            }
            2 => {
                assert_eq!(chunk_len, 12);
                let hole = reader.word();
                assert_ne!(hole, 0);
                found.resize(found.len() + usize::try_from(hole).unwrap(), 0);
            }
            other => panic!("chunk {other}"),
        }
        chunks += 1;
        if flags == 1 {
            break;
        }
        assert_eq!(flags, 0);
    }
    assert!(reader.0.is_empty());
    assert_eq!(found.len(), len);
    assert!(!whole || chunks == 1);
    found
}

/// Start and length of each extent, and whether it is a hole.
pub fn extents(
    bytes: &[u8],
    cookie: u64,
    start: u64,
    len: u32,
    one: bool,
) -> Vec<(u64, u64, bool)> {
    let mut reader = Reader(bytes);
    let (flags, kind, chunk_len) = reader.chunk(cookie);
    assert_eq!((flags, kind, chunk_len), (1, 5, reader.0.len()));
    assert_eq!(reader.word(), 1);
    let (mut at, mut extents) = (start, Vec::new());
    while !reader.0.is_empty() {
        assert!(at < start + u64::from(len), "an extent after the range");
        let len = u64::from(reader.word());
        let status = reader.word();
        assert_ne!(len, 0);
        assert!([0, 3].contains(&status));
        extents.push((at, len, status == 3));
        at += len;
    }
    assert!(!extents.is_empty());
    assert!(!one || (extents.len() == 1 && at <= start + u64::from(len)));
    extents
}
