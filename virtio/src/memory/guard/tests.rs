//! Memory that is taken away under its readers.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::fault_count;
use crate::memory::{MemoryError, MemoryMap, Region};

const PAGE: u64 = 4096;

#[test]
fn truncation_poisons_one_region_only() {
    let victim = memfd_create("victim", MemfdFlags::CLOEXEC).expect("memfd");
    let other = memfd_create("other", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&victim, 4 * PAGE).expect("size");
    ftruncate(&other, 4 * PAGE).expect("size");
    let victim_region = Region::map(victim.as_fd(), 0, 0, 0, 4 * PAGE).expect("map");
    let other_region = Region::map(other.as_fd(), 0, 4 * PAGE, 4 * PAGE, 4 * PAGE).expect("map");
    assert!(!victim_region.is_sealed());
    let map = MemoryMap::new(vec![Arc::clone(&victim_region), Arc::clone(&other_region)]).expect("map");
    map.slice(0, 4).expect("mapped").write_from(0, b"live");

    ftruncate(&victim, 0).expect("truncate");
    let before = fault_count();
    let mut got = [1; 4];
    assert_eq!(map.slice(0, 4).expect("mapped").read_to(0, &mut got), 4);
    assert_eq!(got, [0; 4], "a fresh page");
    assert_eq!(map.slice(2 * PAGE, 4).expect("mapped").write_from(0, b"kept"), 4);
    assert!(fault_count() >= before + 2);
    assert!(victim_region.is_poisoned());
    assert!(map.is_poisoned());
    assert!(!other_region.is_poisoned());
}

#[test]
fn a_reader_survives_a_truncation_in_the_middle_of_its_work() {
    let fd = memfd_create("shrinks", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, 64 * PAGE).expect("size");
    let region = Region::map(fd.as_fd(), 0, 0, 0, 64 * PAGE).expect("map");
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut got = vec![0; 64 * 4096];
            while !region.is_poisoned() {
                assert_eq!(region.slice().read_to(0, &mut got), got.len());
                started.store(true, Ordering::Release);
            }
        });
        while !started.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        ftruncate(&fd, PAGE).expect("truncate");
        reader.join().expect("the reader ends when it sees the poison");
    });
}

#[test]
fn a_place_is_given_back_with_its_region() {
    let fd = memfd_create("many", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, PAGE).expect("size");
    for _ in 0..2 * super::MAX_MAPPINGS {
        let region = Region::map(fd.as_fd(), 0, 0, 0, PAGE);
        assert!(!matches!(region, Err(MemoryError::TooManyMappings(_))));
    }
}

#[test]
fn huge_pages_that_run_out_poison_their_region() {
    const HUGE: u64 = 2 << 20;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(fd) = memfd_create("huge", flags) else {
        eprintln!("this kernel has no 2 MiB pages: nothing to see");
        return;
    };
    ftruncate(&fd, 2 * HUGE).expect("size");
    // From the middle of one page into the next: front-ends cut their memory anywhere.
    let region = Region::map(fd.as_fd(), HUGE / 2, 0, 0, HUGE).expect("a mapping needs no free pages");
    let map = MemoryMap::new(vec![Arc::clone(&region)]).expect("map");
    for at in [0, HUGE - 4] {
        let view = map.slice(at, 4).expect("mapped");
        assert_eq!(view.write_from(0, b"here"), 4);
        let mut got = [0; 4];
        assert_eq!(view.read_to(0, &mut got), 4);
        assert_eq!(&got, b"here");
    }
    let mut in_file = [0; 4];
    let pages_left = rustix::io::pread(&fd, &mut in_file, HUGE / 2) == Ok(4) && &in_file == b"here";
    assert_eq!(
        region.is_poisoned(),
        !pages_left,
        "poisoned exactly when the pool had no page"
    );
}
