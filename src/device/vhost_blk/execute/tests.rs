mod together;

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};

use super::*;
use crate::device::vhost_blk::guest::{Memory, View};
use crate::device::vhost_blk::request::parse;
use crate::device::vhost_blk::testing::{Part, flags, memory, parse_parts, put_header};
use crate::image::Piece;
use crate::image::testing::tree_image;

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x20000;
const STATUS: u64 = 0x9000;
const MEMORY: usize = 0x100_0000;

/// A disk with files of many sizes; the directory must outlive it.
fn disk() -> (tempfile::TempDir, BlkDisk) {
    let tree = tempfile::tempdir().unwrap();
    for (index, len) in [0, 1, 700, 4095, 4096, 4097, 100_000, 300_000]
        .into_iter()
        .enumerate()
    {
        let content: Vec<u8> = (0..len)
            .map(|i| u8::try_from((i * 31 + index) % 251).unwrap())
            .collect();
        std::fs::write(tree.path().join(format!("file{index}")), content).unwrap();
    }
    let serial = *b"nix-store-0123456789";
    let image = Arc::new(tree_image(tree.path()));
    (
        tree,
        BlkDisk {
            image,
            serial,
            log: Arc::default(),
        },
    )
}

/// Executes one request made of `parts`. All memory except the header is filled with 0xee before.
fn run(disk: &BlkDisk, kind: u32, sector: u64, parts: &[Part]) -> (Memory, Outcome) {
    let memory = memory(MEMORY);
    memory
        .write_slice(&vec![0xee; MEMORY], GuestAddress(0))
        .unwrap();
    put_header(&memory, HEADER, kind, sector);
    let parsed = parse_parts(&memory, parts, disk.image.len_bytes());
    let outcome = disk.execute(&parsed, &View::new(&memory));
    (memory, outcome)
}

fn bytes_at(memory: &Memory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn status_of(memory: &Memory) -> u8 {
    memory.read_obj(GuestAddress(STATUS)).unwrap()
}

fn read(len: u32) -> [Part; 3] {
    [(HEADER, 16, false), (DATA, len, true), (STATUS, 1, true)]
}

/// Address and length of a range with file data.
fn file_extents(image: &Image) -> Vec<(u64, u64)> {
    // Start of the data arena (design, address space); visiting the whole disk would take a minute.
    let from = 128 << 30;
    let mut extents = Vec::new();
    let mut at = from;
    let note = &mut |piece: Piece<'_>| -> Result<(), ReadError> {
        at += match piece {
            Piece::Metadata(bytes) => bytes.len() as u64,
            Piece::Zeros { len_bytes } => len_bytes as u64,
            Piece::File { len_bytes, .. } => {
                extents.push((at, len_bytes as u64));
                len_bytes as u64
            }
        };
        Ok(())
    };
    image.visit(from, 16 << 20, note).unwrap();
    assert!(
        extents.len() >= 5,
        "files of the test disk are not inline: {extents:?}"
    );
    extents
}

/// First sectors of the disk, its last one, and those around every file's first and last byte.
fn interesting_sectors(image: &Image) -> Vec<u64> {
    let mut sectors = vec![0, 2, 7, 8, 9, 16, image.len_bytes() / 512 - 1];
    for (start, len) in file_extents(image) {
        sectors.extend([start / 512 - 1, start / 512, (start + len) / 512]);
    }
    sectors
}

#[test]
fn reads_return_the_images_bytes() {
    let (_tree, disk) = disk();
    for sector in interesting_sectors(&disk.image) {
        for len in [512, 4096, 65536 + 512] {
            let room = disk.image.len_bytes() - sector * 512;
            let len = len.min(room);
            let mut expected = vec![0; usize::try_from(len).unwrap()];
            disk.image
                .read_exact_at(&mut expected, sector * 512)
                .unwrap();
            let (memory, outcome) = run(
                &disk,
                VIRTIO_BLK_T_IN,
                sector,
                &read(u32::try_from(len).unwrap()),
            );
            assert_eq!(outcome.result.unwrap(), len);
            assert_eq!(u64::from(outcome.completion.used_len_bytes), len + 1);
            assert_eq!(status_of(&memory), 0);
            assert!(
                bytes_at(&memory, DATA, expected.len()) == expected,
                "sector {sector}"
            );
            assert_eq!(bytes_at(&memory, DATA + len, 1), [0xee]);
        }
    }
}

#[test]
fn the_id_has_twenty_bytes_for_any_buffer() {
    let (_tree, disk) = disk();
    for (len, told) in [(20, 20), (7, 7), (512, 20)] {
        let (memory, outcome) = run(&disk, VIRTIO_BLK_T_GET_ID, 0, &read(len));
        assert_eq!(outcome.completion.used_len_bytes, len + 1);
        assert_eq!(bytes_at(&memory, DATA, told), disk.serial[..told]);
        assert!(
            bytes_at(&memory, DATA, len as usize)[told..]
                .iter()
                .all(|byte| *byte == 0)
        );
        assert_eq!(bytes_at(&memory, DATA + u64::from(len), 1), [0xee]);
        assert_eq!(status_of(&memory), 0);
    }
}

#[test]
fn flush_succeeds_and_writes_fail() {
    let (_tree, disk) = disk();
    let status_only = [(HEADER, 16, false), (STATUS, 1, true)];
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_FLUSH, 0, &status_only);
    assert_eq!(
        (status_of(&memory), outcome.completion.used_len_bytes),
        (0, 1)
    );
    let write = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_OUT, 0, &write);
    assert_eq!(
        (status_of(&memory), outcome.completion.used_len_bytes),
        (1, 1)
    );
    assert_eq!(bytes_at(&memory, DATA, 512), [0xee; 512]);
    let (memory, _) = run(&disk, 99, 0, &read(512));
    assert_eq!(status_of(&memory), 2);
}

#[test]
fn data_outside_memory_fail_with_a_status() {
    let (_tree, disk) = disk();
    let parts = [
        (HEADER, 16, false),
        (DATA, 512, true),
        (1 << 40, 512, true),
        (STATUS, 1, true),
    ];
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_IN, 0, &parts);
    assert!(matches!(
        outcome.result,
        Err(RequestError::Guest(GuestFault::Outside { .. }))
    ));
    assert_eq!(
        (status_of(&memory), outcome.completion.used_len_bytes),
        (1, 1)
    );
    assert_eq!(bytes_at(&memory, DATA, 512), [0xee; 512]);
}

#[test]
fn a_status_byte_outside_memory_is_only_an_error() {
    let (_tree, disk) = disk();
    let parts = [(HEADER, 16, false), (DATA, 512, true), (1 << 40, 1, true)];
    let (_, outcome) = run(&disk, VIRTIO_BLK_T_IN, 0, &parts);
    assert!(outcome.result.is_err());
    assert_eq!(outcome.completion.used_len_bytes, 512);
}

#[test]
fn a_file_that_shrank_is_an_error_that_names_it() {
    let (tree, disk) = disk();
    // The first has a byte, and keeps it.
    let (start, _) = file_extents(&disk.image)[1];
    for entry in std::fs::read_dir(tree.path()).unwrap() {
        std::fs::File::options()
            .write(true)
            .open(entry.unwrap().path())
            .unwrap()
            .set_len(1)
            .unwrap();
    }
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_IN, start / 512, &read(4096));
    assert_eq!(status_of(&memory), 1);
    assert!(outcome.result.unwrap_err().to_string().contains("file"));
}

#[test]
fn a_buffer_that_overlaps_its_header_is_filled() {
    let (_tree, disk) = disk();
    let mut expected = [0; 512];
    disk.image.read_exact_at(&mut expected, 1024).unwrap();
    let parts = [(HEADER, 16, false), (HEADER, 512, true), (STATUS, 1, true)];
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_IN, 2, &parts);
    assert_eq!(outcome.result.unwrap(), 512);
    assert_eq!(bytes_at(&memory, HEADER, 512), expected);
}

/// If buffers overlap, the last one wins, and the status byte is written after the data.
#[test]
fn overlapping_buffers_are_filled_in_order() {
    let (_tree, disk) = disk();
    let mut expected = vec![0; 1536];
    disk.image.read_exact_at(&mut expected, 1024).unwrap();
    let parts = [
        (HEADER, 16, false),
        (DATA, 1024, true),
        (DATA + 512, 512, true),
        (DATA, 1, true),
    ];
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_IN, 2, &parts);
    assert_eq!(outcome.result.unwrap(), 1536);
    assert_eq!(bytes_at(&memory, DATA, 1), [0]);
    assert_eq!(bytes_at(&memory, DATA + 1, 511), expected[1..512]);
    assert_eq!(bytes_at(&memory, DATA + 512, 512), expected[1024..]);
}

#[test]
fn a_buffer_longer_than_memory_is_refused_before_anything_is_read() {
    let (_tree, disk) = disk();
    let (memory, outcome) = run(&disk, VIRTIO_BLK_T_IN, 0, &read(u32::MAX - 511));
    assert!(matches!(
        outcome.result,
        Err(RequestError::Guest(GuestFault::Outside { .. }))
    ));
    assert_eq!(status_of(&memory), 1);
    assert_eq!(bytes_at(&memory, DATA, 512), [0xee; 512]);
}

#[test]
fn reads_past_the_end_do_not_change_the_buffer() {
    let (_tree, disk) = disk();
    let sectors = disk.image.len_bytes() / 512;
    for sector in [sectors, sectors - 1, u64::MAX, u64::MAX / 512] {
        let (memory, outcome) = run(&disk, VIRTIO_BLK_T_IN, sector, &read(1024));
        assert!(outcome.result.is_err());
        assert_eq!(
            (status_of(&memory), outcome.completion.used_len_bytes),
            (1, 1)
        );
        assert_eq!(bytes_at(&memory, DATA, 1024), [0xee; 1024]);
    }
}

/// A large request is abandoned between two slices, and nothing is written afterwards.
#[test]
fn a_cancelled_request_is_abandoned() {
    let (_tree, disk) = disk();
    for asked_for in 0..3 {
        let memory = memory(MEMORY);
        put_header(&memory, HEADER, VIRTIO_BLK_T_IN, 8);
        memory
            .write_slice(&vec![0xee; MEMORY - 0x10000], GuestAddress(0x10000))
            .unwrap();
        let parsed = parse_parts(&memory, &read(3 << 20), disk.image.len_bytes());
        let asked = std::cell::Cell::new(0);
        let wanted = || asked.replace(asked.get() + 1) < asked_for;
        let outcome = disk.execute_while(&wanted, &parsed, &View::new(&memory));
        let written = DATA + (asked_for + 1) * (1 << 20);
        let is_done = matches!(outcome, Waited::Done(_));
        assert_eq!(is_done, asked_for == 2, "asked {asked_for} times");
        assert_eq!(bytes_at(&memory, written - 1, 1), [0]);
        assert_eq!(bytes_at(&memory, written, 1), [0xee]);
    }
}

/// Two regions with a gap between them; addresses are drawn from below 0x30000.
const REGIONS: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 0x10000), (GuestAddress(0x18000), 0x10000)];

const QUEUE: u16 = 16;

const TABLE: usize = QUEUE as usize;

/// A descriptor as a hostile guest would write it.
fn descriptors() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        6 => 0x1000u64..0x30000,
        1 => any::<u64>(),
        1 => Just(HEADER),
        1 => Just(0u64),
    ];
    let len = prop_oneof![4 => 0u32..1600, 2 => Just(16u32), 2 => Just(512u32), 1 => (1u32..20).prop_map(|n| 16 * n), 1 => any::<u32>()];
    // NEXT often, WRITE often, INDIRECT sometimes, invalid flags rarely.
    let flags = prop_oneof![4 => 0u16..4, 4 => Just(1u16), 4 => Just(3u16), 1 => Just(4u16), 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..QUEUE, 1 => any::<u16>()];
    (address, len, flags, next)
        .prop_map(|(address, len, flags, next)| Descriptor::new(address, len, flags, next))
}

/// A table that starts with a valid chain, except for the data's addresses.
fn plausible() -> impl Strategy<Value = Vec<Descriptor>> {
    let data = prop::collection::vec((0x5000u64..0x26000, 1u32..8), 0..12);
    let status = 0x5000u64..0x26000;
    (data, status).prop_map(|(data, status)| {
        let mut table = vec![Descriptor::new(HEADER, 16, flags(true, false), 1)];
        for (address, sectors) in data {
            let next = u16::try_from(table.len() + 1).unwrap();
            table.push(Descriptor::new(
                address,
                512 * sectors,
                flags(true, true),
                next,
            ));
        }
        table.push(Descriptor::new(status, 1, flags(false, true), 0));
        table.resize(TABLE, Descriptor::new(0, 0, 0, 0));
        table
    })
}

/// Valid and invalid tables; the first descriptor is usually a valid header.
fn tables() -> impl Strategy<Value = Vec<Descriptor>> {
    let hostile = || prop::collection::vec(descriptors(), TABLE);
    let with_one_flaw = (plausible(), 0..TABLE, descriptors()).prop_map(|(mut table, at, flaw)| {
        table[at] = flaw;
        table
    });
    let with_header = hostile().prop_map(|mut table| {
        table[0] = Descriptor::new(HEADER, 16, flags(true, false), 1);
        table
    });
    prop_oneof![plausible(), with_one_flaw, with_header, hostile()]
}

/// The ranges that a chain allows the device to write, determined independently of the code under test.
struct Allowed {
    ranges: Vec<(u64, u64)>,
    ended: bool,
}

/// Follows a chain according to virtio 1.2, sections 2.7.5 and 2.7.7.
fn allowed(memory: &Memory, head: u16) -> Allowed {
    let mut allowed = Allowed {
        ranges: Vec::new(),
        ended: false,
    };
    let (mut table, mut entries, mut index) = (0u64, u64::from(QUEUE), u64::from(head));
    let (mut indirect, mut steps, mut total) = (false, 0, 0u64);
    while index < entries && steps < entries {
        let Some(at) = table.checked_add(16 * index) else {
            return allowed;
        };
        let Ok(found) = memory.read_obj::<Descriptor>(GuestAddress(at)) else {
            return allowed;
        };
        let (len, flags) = (u64::from(found.len()), found.flags());
        if flags & 4 != 0 {
            if indirect || len % 16 != 0 || len / 16 > 0xffff {
                return allowed;
            }
            (table, entries, index, indirect, steps) = (found.addr().0, len / 16, 0, true, 0);
            continue;
        }
        total += len;
        if total > u64::from(u32::MAX) {
            return allowed;
        }
        if flags & 2 != 0 && len > 0 {
            allowed.ranges.push((found.addr().0, len));
        }
        allowed.ended = flags & 1 == 0;
        if allowed.ended {
            return allowed;
        }
        index = u64::from(found.next());
        steps += 1;
    }
    allowed
}

fn may_write(ranges: &[(u64, u64)], address: u64) -> bool {
    ranges
        .iter()
        .any(|(start, len)| address >= *start && address - start < *len)
}

fn snapshot(memory: &Memory) -> Vec<(u64, Vec<u8>)> {
    let bytes = |&(start, len): &(GuestAddress, usize)| (start.0, bytes_at(memory, start.0, len));
    REGIONS.iter().map(bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_chains_change_no_other_memory(
        table in tables(),
        indirect in any::<bool>(),
        kind in prop_oneof![4 => Just(0u32), 1 => 0u32..16, 1 => any::<u32>()],
        sector in prop_oneof![4 => 0u64..64, 1 => any::<u64>()],
    ) {
        thread_local! { static DISK: (tempfile::TempDir, BlkDisk) = disk(); }
        let memory = Memory::from_ranges(&REGIONS).unwrap();
        for (start, len) in REGIONS {
            memory.write_slice(&vec![0xee; len], start).unwrap();
        }
        let mock = MockSplitQueue::new(&memory, QUEUE);
        let mut queue: Queue = mock.create_queue().unwrap();
        put_header(&memory, HEADER, kind, sector);
        let table_at = if indirect { 0x4000 } else { 0 };
        for (index, descriptor) in table.iter().enumerate() {
            memory.write_obj(*descriptor, GuestAddress(table_at + 16 * index as u64)).unwrap();
        }
        if indirect {
            memory.write_obj(Descriptor::new(0x4000, 16 * u32::from(QUEUE), 4, 0), GuestAddress(0)).unwrap();
        }
        // The mock does not change the ring's elements.
        memory.write_obj(0u16, GuestAddress(mock.avail_addr().0 + 4)).unwrap();
memory.write_obj(1u16, GuestAddress(mock.avail_addr().0 + 2)).unwrap();

        let allowed = allowed(&memory, 0);
        let before = snapshot(&memory);
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        let outcome = DISK.with(|(_, disk)| disk.execute(&parse(chain, disk.image.len_bytes()), &View::new(&memory)));
        let after = snapshot(&memory);

        for ((start, old), (_, new)) in before.iter().zip(&after) {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                let address = start + index as u64;
                prop_assert!(old == new || may_write(&allowed.ranges, address), "wrote to {address:#x}");
            }
        }
        let total: u64 = allowed.ranges.iter().map(|(_, len)| len).sum();
        prop_assert!(u64::from(outcome.completion.used_len_bytes) <= total);
        if let Some((start, len)) = allowed.ranges.last().filter(|_| allowed.ended)
            && let Some(place) = start.checked_add(len - 1)
            && let Ok(status) = memory.read_obj::<u8>(GuestAddress(place))
        {
            let expected = outcome.result.as_ref().map_or_else(RequestError::status, |_| Status::Ok);
            prop_assert_eq!(status, expected.byte());
        }
    }
}
