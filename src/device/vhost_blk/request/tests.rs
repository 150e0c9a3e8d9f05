use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{Address, Bytes};

use super::*;
use crate::device::vhost_blk::testing::{Part, flags, memory, parse_parts, put_header};

const DISK: u64 = 1 << 20;
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;

fn parsed(kind: u32, sector: u64, parts: &[Part]) -> Parsed {
    let memory = memory(0x20000);
    put_header(&memory, HEADER, kind, sector);
    parse_parts(&memory, parts, DISK)
}

fn ordinary(kind: u32, sector: u64, data_len: u32) -> Parsed {
    let parts = [
        (HEADER, 16, false),
        (DATA, data_len, true),
        (STATUS, 1, true),
    ];
    parsed(kind, sector, &parts)
}

fn buffer(address: u64, len: u32) -> GuestBuffer {
    let mut buffer = GuestBuffer::default();
    buffer.push(GuestAddress(address), len);
    buffer
}

fn refusal(parsed: &Parsed) -> Refusal {
    match &parsed.request {
        Request::Refused(refusal) => *refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_ordinary_read() {
    let read = ordinary(VIRTIO_BLK_T_IN, 3, 1024);
    let data = buffer(DATA, 1024);
    assert_eq!(
        read.request,
        Request::Read {
            offset_bytes: 1536,
            data
        }
    );
    assert_eq!(read.status, Some(GuestAddress(STATUS)));
}

#[test]
fn any_split_into_descriptors_is_accepted() {
    let parts = [
        (HEADER, 3, false),
        (HEADER + 3, 0, false),
        (HEADER + 3, 13, false),
        (DATA, 512, true),
        (DATA + 512, 513, true),
    ];
    let read = parsed(VIRTIO_BLK_T_IN, 0, &parts);
    let mut data = buffer(DATA, 512);
    data.push(GuestAddress(DATA + 512), 512);
    assert_eq!(
        read.request,
        Request::Read {
            offset_bytes: 0,
            data
        }
    );
    assert_eq!(read.status, Some(GuestAddress(DATA + 1024)));
}

#[test]
fn flush_and_id() {
    let parts = [(HEADER, 16, false), (STATUS, 1, true)];
    assert_eq!(
        parsed(VIRTIO_BLK_T_FLUSH, 0, &parts).request,
        Request::Flush
    );
    let data = buffer(DATA, 20);
    assert_eq!(
        ordinary(VIRTIO_BLK_T_GET_ID, 0, 20).request,
        Request::GetId { data }
    );
}

#[test]
fn writes_of_all_kinds_are_refused_and_other_types_are_unknown() {
    let parts = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    for kind in [1, 11, 13, 14] {
        let write = parsed(kind, 0, &parts);
        assert_eq!(refusal(&write), Refusal::Write { kind });
        assert_eq!(write.status, Some(GuestAddress(STATUS)));
    }
    for kind in [2, 3, 5, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(refusal(&ordinary(kind, 0, 512)), Refusal::Unknown { kind });
    }
}

#[test]
fn reads_stay_inside_the_disk() {
    let last = DISK / 512 - 1;
    assert!(matches!(
        ordinary(VIRTIO_BLK_T_IN, last, 512).request,
        Request::Read { .. }
    ));
    for (sector, len) in [
        (last, 1024),
        (last + 1, 512),
        (u64::MAX, 512),
        (u64::MAX / 512, 1024),
    ] {
        let len_bytes = u64::from(len);
        let beyond = Refusal::Beyond { sector, len_bytes };
        assert_eq!(refusal(&ordinary(VIRTIO_BLK_T_IN, sector, len)), beyond);
    }
}

#[test]
fn reads_are_whole_sectors() {
    let partial = refusal(&ordinary(VIRTIO_BLK_T_IN, 0, 511));
    assert_eq!(partial, Refusal::Partial { len_bytes: 511 });
}

#[test]
fn a_readable_descriptor_after_a_writable_one() {
    let parts = [(DATA, 512, true), (HEADER, 16, false), (STATUS, 1, true)];
    let request = parsed(VIRTIO_BLK_T_IN, 0, &parts);
    assert_eq!(refusal(&request), Refusal::Order);
    assert_eq!(request.status, Some(GuestAddress(STATUS)));
}

#[test]
fn a_chain_without_a_status_byte() {
    for parts in [
        &[(HEADER, 16, false)][..],
        &[(HEADER, 16, false), (STATUS, 0, true)],
    ] {
        let request = parsed(VIRTIO_BLK_T_FLUSH, 0, parts);
        assert_eq!(refusal(&request), Refusal::NoStatus);
        assert_eq!(request.status, None);
    }
}

#[test]
fn a_header_that_is_short_or_outside_memory() {
    let short = parsed(
        VIRTIO_BLK_T_IN,
        0,
        &[(HEADER, 15, false), (STATUS, 1, true)],
    );
    assert_eq!(refusal(&short), Refusal::Header(GuestFault::Full));
    let outside = parsed(
        VIRTIO_BLK_T_IN,
        0,
        &[(1 << 40, 16, false), (STATUS, 1, true)],
    );
    assert!(matches!(
        refusal(&outside),
        Refusal::Header(GuestFault::Outside { .. })
    ));
    assert_eq!(outside.status, Some(GuestAddress(STATUS)));
}

#[test]
fn the_number_of_descriptors_is_limited() {
    let chain = |data: usize| {
        let mut parts = vec![(HEADER, 16, false)];
        parts.extend((0..data).map(|_| (DATA, 512, true)));
        parts.push((STATUS, 1, true));
        parsed(VIRTIO_BLK_T_IN, 0, &parts)
    };
    assert!(matches!(chain(126).request, Request::Read { .. }));
    for too_many in [127, 300] {
        let request = chain(too_many);
        assert_eq!(refusal(&request), Refusal::TooLong);
        assert_eq!(request.status, Some(GuestAddress(STATUS)));
    }
}

/// Writes descriptors unchanged, unlike the mock, which corrects them.
fn raw(descriptors: &[Descriptor]) -> Parsed {
    let memory = memory(0x20000);
    put_header(&memory, HEADER, VIRTIO_BLK_T_IN, 0);
    let mock = MockSplitQueue::new(&memory, 16);
    let mut queue: Queue = mock.create_queue().unwrap();
    for (index, descriptor) in descriptors.iter().enumerate() {
        let at = mock.desc_table_addr().0 + 16 * index as u64;
        memory.write_obj(*descriptor, GuestAddress(at)).unwrap();
    }
    memory
        .write_obj(1u16, GuestAddress(mock.avail_addr().0 + 2))
        .unwrap();
    let chain = queue.iter(&memory).unwrap().next().unwrap();
    parse(chain, DISK)
}

#[test]
fn endless_chains() {
    let header = Descriptor::new(HEADER, 16, flags(true, false), 1);
    let to_itself = Descriptor::new(STATUS, 1, flags(true, true), 1);
    let out_of_the_table = Descriptor::new(STATUS, 1, flags(true, true), 16);
    for second in [to_itself, out_of_the_table] {
        let request = raw(&[header, second]);
        assert_eq!(refusal(&request), Refusal::Endless);
        assert_eq!(request.status, None);
    }
}

#[test]
fn an_indirect_table_outside_memory() {
    let indirect = Descriptor::new(1 << 40, 48, 4, 0);
    let request = raw(&[indirect]);
    assert_eq!(refusal(&request), Refusal::Endless);
}

/// A complete request in an indirect table at `table` with the declared length `len`.
fn indirect(table: u64, len: u32) -> Parsed {
    let memory = memory(0x20000);
    put_header(&memory, HEADER, VIRTIO_BLK_T_IN, 0);
    let mock = MockSplitQueue::new(&memory, 16);
    let mut queue: Queue = mock.create_queue().unwrap();
    let parts = [
        Descriptor::new(HEADER, 16, flags(true, false), 1),
        Descriptor::new(DATA, 512, flags(true, true), 2),
        Descriptor::new(STATUS, 1, flags(false, true), 0),
    ];
    for (index, part) in parts.into_iter().enumerate() {
        // The table is outside memory.
        let _ = memory.write_obj(part, GuestAddress(table + 16 * index as u64));
    }
    let head = Descriptor::new(table, len, 4, 0);
    memory.write_obj(head, mock.desc_table_addr()).unwrap();
    memory
        .write_obj(1u16, mock.avail_addr().unchecked_add(2))
        .unwrap();
    let chain = queue.iter(&memory).unwrap().next().unwrap();
    parse(chain, DISK)
}

#[test]
fn an_indirect_table_may_be_anywhere_in_memory() {
    // Aligned to nothing, in the data, and at the very end.
    for table in [0xb000, 0xb003, DATA, DATA + 1, 0x20000 - 48] {
        let request = indirect(table, 48);
        assert!(
            matches!(request.request, Request::Read { .. }),
            "{table:#x}"
        );
        assert_eq!(request.status, Some(GuestAddress(STATUS)));
    }
}

#[test]
fn invalid_indirect_tables() {
    // Empty, not a whole number of descriptors, too short, longer than any chain, and partly outside memory.
    for (table, len) in [
        (0xb000, 0),
        (0xb000, 47),
        (0xb000, 32),
        (0xb000, 16 * 0x10000),
        (0xb000, u32::MAX),
        (0x20000 - 32, 48),
    ] {
        let request = indirect(table, len);
        assert_eq!(refusal(&request), Refusal::Endless, "{table:#x} {len}");
        assert_eq!(request.status, None);
    }
}

#[test]
fn nested_indirect_tables_and_one_within_a_chain() {
    let memory_table = Descriptor::new(0, 16 * 4, 4, 0);
    // The ring's own table, used as an indirect table, refers to itself.
    assert_eq!(refusal(&raw(&[memory_table])), Refusal::Endless);
    let header = Descriptor::new(HEADER, 16, flags(true, false), 1);
    // A table may follow direct descriptors; this one has an empty descriptor.
    let both = Descriptor::new(0xb000, 16, 5, 2);
    assert_eq!(refusal(&raw(&[header, both])), Refusal::NoStatus);
}

#[test]
fn lengths_whose_sum_is_too_large() {
    let header = Descriptor::new(HEADER, 16, flags(true, false), 1);
    let huge = Descriptor::new(DATA, u32::MAX - 15, flags(true, true), 2);
    let status = Descriptor::new(STATUS, 1, flags(false, true), 0);
    assert_eq!(refusal(&raw(&[header, huge, status])), Refusal::Endless);
    let just = Descriptor::new(DATA, u32::MAX - 17, flags(true, true), 2);
    let request = raw(&[header, just, status]);
    assert!(matches!(refusal(&request), Refusal::Partial { .. }));
}

#[test]
fn buffers_that_wrap_around_the_end_of_the_address_space() {
    let parts = [
        (HEADER, 16, false),
        (u64::MAX - 511, 512, true),
        (u64::MAX, 2, true),
    ];
    let request = parsed(VIRTIO_BLK_T_IN, 0, &parts);
    // The status byte would be beyond 2^64.
    assert_eq!(refusal(&request), Refusal::NoStatus);
    assert_eq!(request.status, None);
}

#[test]
fn a_device_writable_header_is_invalid() {
    let parts = [(HEADER, 16, true), (DATA, 512, true), (STATUS, 1, true)];
    let request = parsed(VIRTIO_BLK_T_IN, 0, &parts);
    assert_eq!(refusal(&request), Refusal::Header(GuestFault::Full));
    assert_eq!(request.status, Some(GuestAddress(STATUS)));
}

#[test]
fn a_read_into_device_readable_data_is_invalid() {
    let parts = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    let request = parsed(VIRTIO_BLK_T_IN, 0, &parts);
    let data = GuestBuffer::default();
    let nothing = Request::Read {
        offset_bytes: 0,
        data,
    };
    assert_eq!(request.request, nothing);
}

#[test]
fn a_device_readable_status_byte_is_invalid() {
    let parts = [(HEADER, 16, false), (STATUS, 1, false)];
    let request = parsed(VIRTIO_BLK_T_FLUSH, 0, &parts);
    assert_eq!(refusal(&request), Refusal::NoStatus);
}

#[test]
fn empty_descriptors_are_ignored() {
    let parts = [
        (1 << 40, 0, false),
        (HEADER, 16, false),
        (u64::MAX, 0, true),
        (DATA, 512, true),
        (STATUS, 1, true),
        (1 << 40, 0, true),
    ];
    let request = parsed(VIRTIO_BLK_T_IN, 0, &parts);
    assert_eq!(request.request, ordinary(VIRTIO_BLK_T_IN, 0, 512).request);
    assert_eq!(request.status, Some(GuestAddress(STATUS)));
    let empty = parsed(VIRTIO_BLK_T_IN, 0, &[(HEADER, 0, false), (STATUS, 0, true)]);
    assert_eq!(refusal(&empty), Refusal::NoStatus);
}
