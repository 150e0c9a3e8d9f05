use super::*;
use crate::device::vhost_blk::testing::memory;

fn buffer(segments: &[(u64, u32)]) -> GuestBuffer {
    let mut buffer = GuestBuffer::default();
    for (address, len) in segments {
        buffer.push(GuestAddress(*address), *len);
    }
    buffer
}

#[test]
fn the_last_byte_of_a_buffer_is_the_status() {
    let mut two = buffer(&[(0x100, 4), (0x200, 1)]);
    assert_eq!(two.pop_byte(), Some(GuestAddress(0x200)));
    assert_eq!(two.pop_byte(), Some(GuestAddress(0x103)));
    assert_eq!(two, buffer(&[(0x100, 3)]));
    assert_eq!(buffer(&[(0x100, 0)]).pop_byte(), None);
    assert_eq!(buffer(&[(u64::MAX, 2)]).pop_byte(), None);
}

#[test]
fn a_buffer_is_found_across_regions() {
    let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
    let memory = Memory::from_ranges(&ranges).unwrap();
    let view = View::new(&memory);
    let mut to = buffer(&[(0x10, 3), (0xffe, 6)]).writer(&view).unwrap();
    to.write(b"abcdefghi").unwrap();
    let mut bytes = [0; 8];
    memory.read_slice(&mut bytes, GuestAddress(0xffd)).unwrap();
    assert_eq!(bytes, *b"\0defghi\0");
}

#[test]
fn buffers_outside_memory_are_refused_as_a_whole() {
    let memory = memory(0x1000);
    for outside in [(0xfff, 2), (0x1000, 1), (u64::MAX, 1), (0, u32::MAX)] {
        let fault = buffer(&[(0, 1), outside])
            .writer(&View::new(&memory))
            .unwrap_err();
        let (address, len) = outside;
        let len_bytes = u64::from(len);
        assert_eq!(fault, GuestFault::Outside { address, len_bytes });
    }
}
