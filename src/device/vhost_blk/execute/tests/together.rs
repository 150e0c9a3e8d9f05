//! Merging of adjacent requests.

use super::*;

/// Adjacent reads of `lens` blocks starting at block `first`, each with its own buffer and status byte.
fn continued(memory: &Memory, disk: &BlkDisk, first: u64, lens: &[u32]) -> Vec<Parsed> {
    let mut block = first;
    let mut at = DATA;
    let request = |(index, blocks): (usize, &u32)| {
        let (header, len) = (HEADER + 32 * index as u64, blocks * 4096);
        put_header(memory, header, VIRTIO_BLK_T_IN, block * 8);
        let parts = [
            (header, 16, false),
            (at, len, true),
            (STATUS + index as u64, 1, true),
        ];
        block += u64::from(*blocks);
        at += u64::from(len) + 512;
        parse_parts(memory, &parts, disk.image.len_bytes())
    };
    lens.iter().enumerate().map(request).collect()
}

#[test]
fn only_contiguous_reads_are_merged() {
    let (_tree, disk) = disk();
    let memory = memory(MEMORY);
    let mut requests = continued(&memory, &disk, 0, &[1, 2, 1, 1]);
    assert_eq!(adjacent(&requests), 4);
    requests.remove(1);
    assert_eq!(adjacent(&requests), 1);
    assert_eq!(adjacent(&requests[1..]), 2);
    let (_, flush) = run(&disk, VIRTIO_BLK_T_FLUSH, 0, &read(0));
    assert!(flush.result.is_ok());
    let many = vec![1; 100];
    assert_eq!(adjacent(&continued(&memory, &disk, 0, &many)), 64);
    assert_eq!(adjacent(&[]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Reads across files, padding and generated blocks, with any start: each gets its own bytes and status.
    #[test]
    fn merged_reads_give_the_same_result_as_single_ones(place in 0usize..1000, lens in prop::collection::vec(1u32..9, 2..6)) {
        let (_tree, disk) = disk();
        let sectors = interesting_sectors(&disk.image);
        let blocks = u64::from(lens.iter().sum::<u32>());
        let first = (sectors[place % sectors.len()] / 8).min(disk.image.len_bytes() / 4096 - blocks);
        let memory = memory(MEMORY);
        let requests = continued(&memory, &disk, first, &lens);
        let dirty = || {
            memory.write_slice(&vec![0xee; MEMORY - 0x10000], GuestAddress(0x10000)).unwrap();
            memory.write_slice(&[0xee; 16], GuestAddress(STATUS)).unwrap();
        };
        dirty();
        // The first attempt may have to wait.
        let alone: Vec<u64> = requests.iter().map(|read| disk.execute(read, &View::new(&memory)).result.unwrap()).collect();
        let expected = bytes_at(&memory, 0, MEMORY);
        dirty();
        prop_assert_eq!(adjacent(&requests), requests.len());
        let view = View::new(&memory);
        let together = disk.try_together(&requests, &view).unwrap();
        let together: Vec<u64> = together.map(|outcome| outcome.result.unwrap()).collect();
        prop_assert_eq!(together, alone);
        prop_assert!(bytes_at(&memory, 0, MEMORY) == expected);
    }
}

#[test]
fn a_failed_merged_read_is_repeated_one_by_one() {
    let (tree, disk) = disk();
    let memory = memory(MEMORY);
    let (at, _) = file_extents(&disk.image)
        .into_iter()
        .max_by_key(|(_, len)| *len)
        .unwrap();
    let requests = continued(&memory, &disk, at / 4096, &[1, 1]);
    let view = View::new(&memory);
    assert!(disk.try_together(&requests[..1], &view).is_none());
    assert!(disk.try_together(&requests, &view).is_some());
    std::fs::write(tree.path().join("file7"), b"short").unwrap();
    assert!(disk.try_together(&requests, &view).is_none());
}
