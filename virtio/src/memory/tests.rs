//! Mapping, translating, and going through lists of segments.

use std::os::fd::AsFd;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{
    Cursor, GuestSlice, MAX_REGIONS, MemoryError, MemoryMap, Region, SharedMemory, chain_len, copy_chain,
    read_chain, write_chain,
};

const PAGE: u64 = 4096;

fn region(guest_addr: u64, user_addr: u64, pages: u64) -> Arc<Region> {
    let fd = memfd_create("region", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, pages * PAGE).expect("size");
    Region::map(fd.as_fd(), 0, guest_addr, user_addr, pages * PAGE).expect("a mapping")
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let fd = memfd_create("region", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, 4 * PAGE).expect("size");
    let map = |offset, guest, user, len| Region::map(fd.as_fd(), offset, guest, user, len).map(|_| ());
    assert_eq!(map(0, 0, 0, 4 * PAGE), Ok(()));
    assert_eq!(map(0, 0, 0, 0), Err(MemoryError::Empty));
    let short = |end| Err(MemoryError::FileTooShort { size: 4 * PAGE, end });
    assert_eq!(map(0, 0, 0, 4 * PAGE + 1), short(4 * PAGE + 1));
    assert_eq!(map(PAGE, 0, 0, 4 * PAGE), short(5 * PAGE));
    assert_eq!(map(u64::MAX, 0, 0, PAGE), Err(MemoryError::Wraps));
    assert_eq!(map(0, u64::MAX, 0, PAGE), Err(MemoryError::Wraps));
    assert_eq!(map(0, 0, u64::MAX - 1, PAGE), Err(MemoryError::Wraps));

    let pipe = rustix::pipe::pipe().expect("pipe").0;
    let refused = Region::map(pipe.as_fd(), 0, 0, 0, PAGE);
    assert!(matches!(refused, Err(MemoryError::NotMemory)));
}

#[test]
fn a_region_starts_anywhere_in_its_file() {
    let fd = memfd_create("region", MemfdFlags::CLOEXEC).expect("memfd");
    rustix::io::pwrite(&fd, &[7; 100], PAGE + 10).expect("room");
    ftruncate(&fd, 4 * PAGE).expect("size");
    let region = Region::map(fd.as_fd(), PAGE + 10, 0, 0, 2 * PAGE).expect("a mapping");
    let mut got = [0; 100];
    assert_eq!(region.slice().read_to(0, &mut got), 100);
    assert_eq!(got, [7; 100]);
    assert_eq!(region.len(), 2 * PAGE);
    assert!(!region.is_empty() && !region.is_sealed());
    assert!(
        SharedMemory::new("sealed", 0, PAGE)
            .expect("shared memory")
            .region()
            .is_sealed()
    );
}

#[test]
fn regions_must_not_overlap() {
    let base = region(0x10_0000, 0x7000_0000, 4);
    let map = MemoryMap::new(vec![Arc::clone(&base)]).expect("a map");
    for (guest, user) in [
        (0x10_0000, 0),
        (0x10_3000, 0),
        (0xf_f000, 0),
        (0, 0x7000_3000),
        (0, 0x6fff_f000),
    ] {
        let other = region(guest, user, 4);
        assert!(
            matches!(map.with_region(other), Err(MemoryError::Overlap { .. })),
            "{guest:#x} {user:#x}"
        );
    }
    let both = map
        .with_region(region(0x10_4000, 0x6fff_c000, 4))
        .expect("next to it");
    assert_eq!(both.regions().len(), 2);
    let gone = both
        .without_region(0x10_0000, 0x7000_0000, 4 * PAGE)
        .expect("it was there");
    assert!(gone.slice(0x10_0000, 1).is_none());
    assert!(gone.slice(0x10_4000, 1).is_some());
    for (guest, user, len) in [
        (0x10_4000, 0, 4 * PAGE),
        (0x10_4000, 0x6fff_c000, PAGE),
        (0, 0x6fff_c000, 4 * PAGE),
    ] {
        let error = gone.without_region(guest, user, len).map(|_| ());
        assert_eq!(error, Err(MemoryError::NoSuchRegion { guest_addr: guest }));
    }
    let many = (0..=MAX_REGIONS as u64)
        .map(|i| region(i * PAGE, i * PAGE, 1))
        .collect();
    assert!(matches!(MemoryMap::new(many), Err(MemoryError::TooManyRegions)));
}

#[test]
fn user_addresses_are_found() {
    let map =
        MemoryMap::new(vec![region(0, 0x7000_0000, 2), region(2 * PAGE, 0x5000_0000, 2)]).expect("a map");
    map.slice(2 * PAGE + 5, 4).expect("mapped").write_from(0, b"here");
    let mut got = [0; 4];
    map.user_slice(0x5000_0005, 4)
        .expect("mapped")
        .read_to(0, &mut got);
    assert_eq!(&got, b"here");
    assert!(map.user_slice(0x5000_0000, 8192).is_some());
    for (addr, len) in [
        (0x5000_0000, 8193),
        (0x5000_2000, 1),
        (0x4fff_ffff, 1),
        (u64::MAX, 1),
        (0x7000_1fff, 2),
    ] {
        assert!(map.user_slice(addr, len).is_none(), "{addr:#x}");
    }
}

/// Regions of one page with holes between them as `gaps` (in pages) says.
fn spread(gaps: &[u64]) -> (MemoryMap, Vec<u64>) {
    let mut at = 0x10_0000;
    let mut starts = Vec::new();
    for gap in gaps {
        at += gap * PAGE;
        starts.push(at);
        at += PAGE;
    }
    (
        MemoryMap::new(starts.iter().map(|s| region(*s, *s, 1)).collect()).expect("a map"),
        starts,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn translation_matches_a_plain_search(
        gaps in prop::collection::vec(0u64..3, 1..20),
        queries in prop::collection::vec((0u64..60 * PAGE, 0u64..3 * PAGE), 1..50),
    ) {
        let (map, starts) = spread(&gaps);
        let mut hint = 0;
        for (off, len) in queries {
            let gpa = 0x10_0000 - PAGE + off;
            let inside = starts.iter().any(|s| *s <= gpa && gpa < s + PAGE && gpa + len <= s + PAGE);
            let found = map.translate(&mut hint, gpa, len);
            prop_assert_eq!(found.is_some(), inside, "{:#x}+{:#x}", gpa, len);
            prop_assert_eq!(map.slice(gpa, usize::try_from(len).expect("fits")).is_some(), inside);
            if let Some(start) = starts.iter().find(|s| **s <= gpa && gpa < **s + PAGE) {
                let (piece, rest) = map.first_piece(gpa, u32::try_from(len).expect("fits")).expect("inside");
                prop_assert_eq!(piece.len() as u64, len.min(start + PAGE - gpa));
                prop_assert_eq!(piece.len() as u64 + u64::from(rest), len);
            } else {
                prop_assert!(map.first_piece(gpa, 1).is_none());
            }
            let all_mapped = (0..len).step_by(64).chain(len.checked_sub(1)).all(|o| {
                starts.iter().any(|s| *s <= gpa + o && gpa + o < s + PAGE)
            });
            prop_assert_eq!(map.read(gpa, &mut vec![0; usize::try_from(len).expect("fits")]), all_mapped);
        }
        for edge in [0, u64::MAX, u64::MAX - PAGE] {
            prop_assert!(map.translate(&mut hint, edge, 1).is_none());
        }
    }

    #[test]
    fn lists_behave_like_one_slice(
        from_cuts in prop::collection::vec(0usize..400, 0..6),
        to_cuts in prop::collection::vec(0usize..400, 0..6),
        off in 0usize..1500,
        to_off in 0usize..1500,
        len in 0usize..1500,
        step in 1usize..300,
    ) {
        let shared = SharedMemory::new("lists", 0, PAGE).expect("shared memory");
        let (from, to) = shared.region().slice().split_at(2048);
        let data: Vec<u8> = (0..=255).cycle().take(1200).collect();
        let (src, dst) = (cut(from.take(1200), &from_cuts), cut(to.take(1000), &to_cuts));
        prop_assert_eq!(chain_len(&src), 1200);
        prop_assert_eq!(write_chain(&src, 0, &data), 1200);
        prop_assert_eq!(write_chain(&src, off, &vec![9; len]), len.min(1200_usize.saturating_sub(off)));
        prop_assert_eq!(write_chain(&src, 0, &data), 1200);

        let mut got = vec![0; len];
        let n = read_chain(&src, off, &mut got);
        prop_assert_eq!(n, len.min(1200_usize.saturating_sub(off)));
        prop_assert_eq!(&got[..n], data.get(off..off + n).unwrap_or(&[]));

        let copied = copy_chain(&src, off, &dst, to_off, len);
        prop_assert_eq!(copied, n.min(1000_usize.saturating_sub(to_off)));
        let mut got = vec![0; copied];
        read_chain(&dst, to_off, &mut got);
        prop_assert_eq!(&got[..], data.get(off..off + copied).unwrap_or(&[]));

        // The same in steps.
        let (mut a, mut b) = (Cursor::new(&src, off), Cursor::new(&dst, to_off));
        prop_assert_eq!(a.remaining(), 1200_usize.saturating_sub(off));
        let mut done = 0;
        while done < copied {
            done += a.copy_to(&mut b, step.min(copied - done));
        }
        prop_assert_eq!(done, copied);
    }
}

fn cut<'a>(mut view: GuestSlice<'a>, lens: &[usize]) -> Vec<GuestSlice<'a>> {
    let mut list = Vec::new();
    for len in lens {
        let (piece, rest) = view.split_at(*len);
        list.push(piece);
        view = rest;
    }
    list.push(view);
    list
}

#[test]
fn copies_between_overlapping_views_move_bytes() {
    let shared = SharedMemory::new("overlap", 0, PAGE).expect("shared memory");
    let all = shared.region().slice();
    all.write_from(0, b"abcdef");
    assert_eq!(all.take(6).copy_to(all.skip(2), 6), 6);
    let mut got = [0; 8];
    all.read_to(0, &mut got);
    assert_eq!(&got, b"ababcdef");
}

#[test]
fn prefetching_any_part_of_a_view_changes_nothing() {
    let shared = SharedMemory::new("prefetch", 0, 4096).expect("shared memory");
    let whole = shared.region().slice();
    whole.write_from(0, &[7; 4096]);
    for skip in [0, 1, 63, 4095, 4096] {
        whole.skip(skip).prefetch([0, 63, usize::MAX]);
        whole.skip(skip).prefetch_write([0, 63, usize::MAX]);
    }
    let mut bytes = [0; 4096];
    whole.read_to(0, &mut bytes);
    assert_eq!(bytes, [7; 4096]);
}
