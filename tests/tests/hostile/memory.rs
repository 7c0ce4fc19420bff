//! Memory tables that are none, and memory that is taken away while it is used.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use netyard_testkit::endpoint::{BASE, region_info};
use netyard_testkit::message::message;
use rustix::fs::{FallocateFlags, MemfdFlags};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::arena::Arena;
use crate::attacker::{Attacker, RX, SIZE, TX};
use crate::messages::refused;
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 7] = [
    ("regions that are none", no_regions),
    ("a file on a disk", disk_file),
    ("a region that was never added, removed", stray_removal),
    ("a file cut under the ring that is read", cut_while_read),
    ("a file cut under the ring that is written", cut_while_written),
    ("a hole punched under running rings", hole),
    ("huge pages that are not there", huge_pages),
];

pub(crate) fn memfd(len: u64, flags: MemfdFlags) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", MemfdFlags::CLOEXEC | flags).expect("a file");
    rustix::fs::ftruncate(&fd, len).expect("a length");
    fd
}

/// A memory table of regions, each guest address, size, user address and offset.
fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut words = vec![regions.len() as u64];
    words.extend(regions.iter().flatten());
    message(5, 1, &words)
}

fn no_regions(arena: &mut Arena) {
    let memory = memfd(0x10_0000, MemfdFlags::empty());
    let tables: [&[[u64; 4]]; 8] = [
        &[[0, 0, 0, 0]],
        &[[0, 0x20_0000, 0, 0]],
        &[[0, 0x1000, 0, 0x10_0000]],
        &[[u64::MAX - 4095, 0x2000, 0, 0]],
        &[[0, 0x2000, u64::MAX - 4095, 0]],
        &[[0, 0x2000, 0, u64::MAX - 4095]],
        &[[0, 0x2000, 0, 0], [0x1000, 0x2000, 0x10_0000, 0]],
        &[[0, 0x2000, 0, 0], [0x10_0000, 0x2000, 0x1000, 0]],
    ];
    for regions in tables {
        refused(arena, &table(regions), &vec![memory.as_fd(); regions.len()]);
    }
}

fn disk_file(arena: &mut Arena) {
    const TMPFS: i64 = 0x0102_1994;
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.write_all(&[0; 8192]).expect("room");
    if rustix::fs::fstatfs(&file).expect("a file system").f_type == TMPFS {
        println!("        skipped: the build folder is in memory");
        return;
    }
    refused(arena, &table(&[[0, 4096, 0, 0]]), &[file.as_fd()]);
}

fn stray_removal(arena: &mut Arena) {
    refused(arena, &message(38, 1, &[0, BASE + 4096, 4096, BASE, 0]), &[]);
}

fn share(attacker: &Attacker, file: BorrowedFd<'_>) {
    let table = [VhostUserMemoryRegionInfo {
        mmap_handle: file.as_raw_fd(),
        ..region_info(&attacker.endpoint.memory[0])
    }];
    // One that is refused ends the connection, now or later.
    let _ = attacker.endpoint.frontend.set_mem_table(&table);
}

/// A guest on memory that may shrink; its rings were filled before, and it is known by a frame that it sent.
fn on_unsealed_memory(arena: &mut Arena) -> (Attacker, File) {
    let mut attacker = Attacker::prepare(&arena.socket, 0);
    let len = attacker.endpoint.memory[0].region().len();
    let file = File::from(memfd(len, MemfdFlags::empty()));
    attacker.endpoint.queues[RX].post().expect("a sane ring");
    attacker.transmit();
    attacker.set_avail(0);
    let mut bytes = vec![0; usize::try_from(len).expect("a few megabytes")];
    attacker.endpoint.memory[0]
        .region()
        .slice()
        .read_to(0, &mut bytes);
    file.write_all_at(&bytes, 0).expect("room");
    share(&attacker, file.as_fd());
    attacker.start();
    // Shown only now: what a ring has before it is enabled is discarded.
    let avail = attacker.endpoint.queues[TX].config.avail;
    file.write_all_at(&1_u16.to_le_bytes(), avail - BASE + 2)
        .expect("room");
    attacker.kick();
    arena.peer.expect(&frame(PEER, ATTACKER, 60));
    (attacker, file)
}

fn cut_while_read(arena: &mut Arena) {
    let (attacker, file) = on_unsealed_memory(arena);
    rustix::fs::ftruncate(&file, 0).expect("an unsealed file");
    attacker.kick();
    attacker.is_closed();
}

fn cut_while_written(arena: &mut Arena) {
    let (attacker, file) = on_unsealed_memory(arena);
    rustix::fs::ftruncate(&file, 0).expect("an unsealed file");
    arena.peer.send(0, &frame(ATTACKER, PEER, 60));
    attacker.is_closed();
}

fn hole(arena: &mut Arena) {
    let mut attacker = Attacker::new(&arena.socket);
    for _ in 0..SIZE {
        attacker.transmit();
        attacker.is_given_back();
    }
    let len = attacker.endpoint.memory[0].region().len();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(attacker.endpoint.memory[0].fd(), punch, 0, len).expect("a hole");
    attacker.kick();
    arena.peer.send(0, &frame(ATTACKER, PEER, 60));
    // Zeroes are where the available index was: it went back.
    attacker.is_stopped();
    arena.drain();
}

/// Memory on huge pages that are not in the pool, or are given back while they are used.
fn huge_pages(arena: &mut Arena) {
    let attacker = Attacker::prepare(&arena.socket, 0);
    let len = attacker.endpoint.memory[0].region().len();
    let Ok(file) = rustix::fs::memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) else {
        println!("        skipped: the kernel has no huge pages");
        return;
    };
    rustix::fs::ftruncate(&file, len).expect("a length");
    share(&attacker, file.as_fd());
    let ring = &attacker.endpoint.queues[TX];
    let frontend = &attacker.endpoint.frontend;
    let _ = frontend.set_vring_num(TX, SIZE);
    let _ = frontend.set_vring_addr(TX, &attacker.addresses(TX));
    let _ = frontend.set_vring_kick(TX, &ring.kick);
    rustix::fs::ftruncate(&file, 0).expect("an unsealed file");
    attacker.kick();
    attacker.is_closed();
}
