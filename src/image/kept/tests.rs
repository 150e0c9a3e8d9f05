use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::format::{open, pack_small_files, seal, unpack_small_files};
use super::tree::{DecodeError, pack, unpack};
use super::*;
use crate::erofs::layout::attributes::{Attributes, Origin};
use crate::erofs::layout::bounds::Limits;
use crate::erofs::layout::planner::Planner;
use crate::source::Mark;
use crate::tree::{FileKind, Listing, Stat};

const MARK: Mark = Mark {
    inode: 7,
    ctime_sec: 1_700_000_000,
    ctime_nsec: 5,
};

fn label() -> Label {
    Label::new(b"aaa-one", &[3; 32], MARK).unwrap()
}

fn attributes() -> Attributes {
    Attributes::new(Origin::Nar)
}

fn stat_of(kind: FileKind, size_bytes: u64, mtime: (i64, u32), is_executable: bool) -> Stat {
    Stat {
        permissions: if is_executable { 0o555 } else { 0o444 },
        size_bytes,
        mtime_sec: mtime.0,
        mtime_nsec: mtime.1,
        ..Stat::of_kind(kind)
    }
}

/// Returns an entry of a store path.
fn entry() -> impl Strategy<Value = (Stat, Vec<u8>)> {
    let mtime = prop_oneof![Just((1, 0)), (any::<i64>(), 0..1_000_000_000_u32)];
    let size = prop_oneof![0..5000_u64, 0..1_u64 << 34];
    let file = (size, mtime, any::<bool>()).prop_map(|(size, mtime, is_executable)| {
        let stat = stat_of(FileKind::Regular, size, mtime, is_executable);
        (stat, Vec::new())
    });
    let target = proptest::collection::vec(1..=u8::MAX, 1..300);
    let link = target.prop_map(|target| (Stat::of_kind(FileKind::Symlink), target));
    let dir = Just((Stat::of_kind(FileKind::Directory), Vec::new()));
    prop_oneof![4 => file, 1 => link, 2 => dir]
}

/// Returns the listings of a path's directories.
fn listings() -> impl Strategy<Value = Vec<Listing>> {
    let name = proptest::collection::vec(b'a'..=b'z', 1..20);
    let entries = proptest::collection::btree_map(name, entry(), 0..40);
    let listing = entries.prop_map(|entries| {
        Listing::new(
            entries
                .into_iter()
                .map(|(name, (stat, target))| (name, stat, target)),
        )
    });
    proptest::collection::vec(listing, 1..12)
}

/// Returns a plan of directories with these listings; further directories are empty.
fn plan(listings: &[Listing]) -> Plan {
    let top = Stat::of_kind(FileKind::Directory);
    let mut planner = Planner::new(b"aaa-one", attributes(), Limits::NONE, &top, b"").unwrap();
    let mut listings = listings.iter();
    while !planner.is_complete() {
        let empty = Listing::default();
        planner.push(listings.next().unwrap_or(&empty)).unwrap();
    }
    planner.into_plan()
}

fn unpacked(bytes: &[u8]) -> Result<Plan, DecodeError> {
    unpack(bytes, b"aaa-one", attributes(), Limits::NONE)
}

fn small_plan() -> Plan {
    let file = (
        b"f".to_vec(),
        stat_of(FileKind::Regular, 9000, (1, 0), true),
        Vec::new(),
    );
    let old = (
        b"g".to_vec(),
        stat_of(FileKind::Regular, 7, (-5, 9), false),
        Vec::new(),
    );
    let link = (
        b"l".to_vec(),
        Stat::of_kind(FileKind::Symlink),
        b"f".to_vec(),
    );
    let dir = (
        b"d".to_vec(),
        Stat::of_kind(FileKind::Directory),
        Vec::new(),
    );
    plan(&[Listing::new([file, old, link, dir])])
}

proptest! {
    #[test]
    fn kept_plans_round_trip(listings in listings()) {
        let before = plan(&listings);
        let packed = pack(&before).unwrap();
        let after = unpacked(&packed).unwrap();
        prop_assert_eq!(after.digests(), before.digests());
        prop_assert_eq!(after.names(), before.names());
        prop_assert_eq!(after.meta_blocks(), before.meta_blocks());
        prop_assert_eq!(after.data_from(0), before.data_from(0));
        prop_assert_eq!(pack(&after), Some(packed));
    }

    /// The checksum does not protect against a faulty writer, so the tree may be any bytes.
    #[test]
    fn any_bytes_are_decoded_or_refused(at in 0_usize..200, bytes in proptest::collection::vec(any::<u8>(), 0..9)) {
        let mut packed = pack(&small_plan()).unwrap();
        let at = at % packed.len();
        packed.splice(at..(at + bytes.len()).min(packed.len()), bytes);
        if let Ok(plan) = unpacked(&packed) {
            let again = unpacked(&pack(&plan).unwrap()).unwrap();
            prop_assert_eq!(again.digests(), plan.digests());
        }
    }

    #[test]
    fn a_file_with_a_changed_byte_is_not_used(at in any::<prop::sample::Index>(), by in 1..=u8::MAX) {
        let tree = pack(&small_plan()).unwrap();
        let mut file = seal(KeptKind::Plan, &label(), &tree);
        prop_assert_eq!(open(KeptKind::Plan, &label(), &file).unwrap().0, &*tree);
        let at = at.index(file.len());
        file[at] ^= by;
        prop_assert!(matches!(open(KeptKind::Plan, &label(), &file), Err(Unusable::Damaged)));
    }
}

#[test]
fn truncated_and_longer_files_are_not_used() {
    let file = seal(KeptKind::Plan, &label(), &pack(&small_plan()).unwrap());
    for len in 0..file.len() {
        assert!(
            open(KeptKind::Plan, &label(), &file[..len]).is_err(),
            "{len}"
        );
    }
    assert!(open(KeptKind::Plan, &label(), &[&file[..], b"\0"].concat()).is_err());
}

#[test]
fn truncated_and_longer_trees_are_refused() {
    let tree = pack(&small_plan()).unwrap();
    for len in 0..tree.len() {
        assert_eq!(unpacked(&tree[..len]).unwrap_err(), DecodeError::Malformed);
    }
    let longer = [&tree[..], b"\0"].concat();
    assert_eq!(unpacked(&longer).unwrap_err(), DecodeError::Malformed);
}

/// Such names would lead outside the path, or nowhere.
#[test]
fn names_that_no_file_can_have_are_refused() {
    let of = |names: &[&[u8]]| {
        let mut tree = vec![b'd', u8::try_from(names.len()).unwrap()];
        for name in names {
            tree.push(u8::try_from(name.len()).unwrap());
            tree.extend_from_slice(name);
            tree.push(b'd');
        }
        // The directories are empty.
        tree.resize(tree.len() + names.len(), 0);
        tree
    };
    assert!(unpacked(&of(&[b"a", b"b"])).is_ok());
    for wrong in [
        &[&b"."[..]][..],
        &[b".."],
        &[b""],
        &[b"a/b"],
        &[b"a\0"],
        &[b"b", b"a"],
        &[b"a", b"a"],
    ] {
        assert_eq!(unpacked(&of(wrong)).unwrap_err(), DecodeError::Malformed);
    }
}

#[test]
fn a_file_is_valid_for_one_path_only() {
    let file = seal(KeptKind::Plan, &label(), b"tree");
    let (other, longer) = (
        Label::new(b"aaa-two", &[3; 32], MARK),
        Label::new(b"aaa-one2", &[3; 32], MARK),
    );
    let rebuilt = Label::new(b"aaa-one", &[4; 32], MARK);
    let with = |mark| Label::new(b"aaa-one", &[3; 32], mark);
    let inode = with(Mark { inode: 8, ..MARK });
    let second = with(Mark {
        ctime_sec: 1,
        ..MARK
    });
    let nanosecond = with(Mark {
        ctime_nsec: 6,
        ..MARK
    });
    for other in [other, longer, rebuilt, inode, second, nanosecond] {
        let other = other.unwrap();
        assert_ne!(
            other.file_name(KeptKind::Plan),
            label().file_name(KeptKind::Plan)
        );
        assert!(matches!(
            open(KeptKind::Plan, &other, &file),
            Err(Unusable::OtherPath)
        ));
    }
}

/// The file as another version of this program would write it.
#[test]
fn a_file_of_another_format_is_not_used() {
    use sha2::{Digest, Sha256};
    let mut file = seal(KeptKind::Plan, &label(), b"tree");
    file.truncate(file.len() - 32);
    let at = file.iter().position(|byte| *byte == b'1').unwrap();
    file[at] = b'2';
    let checksum = Sha256::digest(&file);
    file.extend(checksum);
    assert!(matches!(
        open(KeptKind::Plan, &label(), &file),
        Err(Unusable::OtherFormat)
    ));
}

#[test]
fn small_files_belong_to_one_plan_and_one_layout() {
    let payload = pack_small_files(&[7; 32], b"contents");
    assert_eq!(unpack_small_files(&[7; 32], &payload).unwrap(), b"contents");
    assert!(matches!(
        unpack_small_files(&[8; 32], &payload),
        Err(Unusable::OtherPlan)
    ));
    let mut other_layout = payload.clone();
    other_layout[0] ^= 1;
    assert!(matches!(
        unpack_small_files(&[7; 32], &other_layout),
        Err(Unusable::OtherFormat)
    ));
    for len in 0..36 {
        assert!(unpack_small_files(&[7; 32], &payload[..len]).is_err());
    }
    // A file of one kind is no file of the other.
    let file = seal(KeptKind::Plan, &label(), &payload);
    assert!(matches!(
        open(KeptKind::SmallFiles, &label(), &file),
        Err(Unusable::OtherFormat)
    ));
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn set_age(path: &std::path::Path, age: Duration) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn least_recently_used_plans_are_removed_and_other_files_never() {
    let temp = tempfile::tempdir().unwrap();
    let dir = PlanDir::open(&temp.path().join("plans")).unwrap();
    let at = |name: &str| dir.path().join(name);
    let file = |digit: char| {
        let suffix = if digit == 'b' { "files" } else { "plan" };
        format!("{}.{suffix}", digit.to_string().repeat(32))
    };
    let strange = ["notes", &format!("{}.txt", "a".repeat(32)), "x.plan"];
    for name in strange {
        fs::write(at(name), "mine").unwrap();
    }
    for (age, digit) in ['a', 'b', 'c', 'd'].into_iter().enumerate() {
        dir.write(&file(digit), &[0; 8000]).unwrap();
        set_age(&at(&file(digit)), HOUR * 24 * u32::try_from(age).unwrap());
    }
    let [left, writing] = ["7-1", "7-2"].map(|unique| format!("{}.{unique}.new", file('e')));
    for name in [&left, &writing] {
        fs::write(at(name), "").unwrap();
    }
    set_age(&at(&left), HOUR * 2);
    // A file that was read counts as used.
    assert_eq!(dir.read(&file('d')).unwrap().len(), 8000);
    dir.prune(16384).unwrap();
    let mut expected: Vec<String> = strange.map(str::to_owned).to_vec();
    expected.extend([file('a'), file('d'), writing]);
    expected.sort();
    assert_eq!(names(dir.path()), expected);
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("plans");
    let dir = PlanDir::open(&path).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    dir.write("file", b"plan").unwrap();
    assert_eq!(mode(&path.join("file")), 0o600);
    for wrong in [0o720, 0o702, 0o1777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(wrong)).unwrap();
        let error = PlanDir::open(&path).unwrap_err();
        assert!(
            matches!(error, PlanDirError::WritableByOthers { .. }),
            "{error}"
        );
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    PlanDir::open(&path).unwrap();
    let error = PlanDir::open(&path.join("file")).unwrap_err();
    assert!(matches!(error, PlanDirError::Open { .. }), "{error}");
    let error = PlanDir::open(&temp.path().join("no/plans")).unwrap_err();
    assert!(matches!(error, PlanDirError::Create { .. }), "{error}");
}

/// FIFOs and files outside the directory are not read.
#[test]
fn only_files_in_the_directory_itself_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let dir = PlanDir::open(&temp.path().join("plans")).unwrap();
    fs::write(temp.path().join("elsewhere"), "x").unwrap();
    std::os::unix::fs::symlink("../elsewhere", dir.path().join("link")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["link", "fifo", "../elsewhere", ".", "none"] {
        assert!(dir.read(name).is_err(), "{name}");
    }
}
