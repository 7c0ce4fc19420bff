//! What a front-end keeps for the next back-end (vhost-user, "Inflight I/O tracking"), where it is not what the switch left there.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use crate::arena::Arena;
use crate::attacker::{Attacker, RX, SIZE, TX};
use crate::memory::memfd;
use crate::mutation::{Random, any_word, beside};
use crate::{ATTACKER, Case, PEER, frame};

pub(crate) const CASES: [Case; 3] = [
    ("regions to keep things in that are none", no_regions),
    ("regions to keep things in, again and again", again_and_again),
    ("what is kept rewritten while it is read", kept_rewritten),
];

/// A region that the switch made.
fn made(attacker: &mut Attacker) -> (VhostUserInflight, File) {
    let asked = VhostUserInflight::new(0, 0, 2, SIZE);
    let made = attacker.endpoint.frontend.get_inflight_fd(&asked);
    made.expect("a region")
}

/// The switch ends the connection on which it is told to keep things in another region than the one it made.
fn refused(arena: &Arena, other: Option<OwnedFd>, change: impl Fn(&mut VhostUserInflight)) {
    let mut attacker = Attacker::prepare(&arena.socket, 0);
    let (mut described, file) = made(&mut attacker);
    change(&mut described);
    let file = other.unwrap_or(file.into());
    // It ends now or later.
    let _ = attacker
        .endpoint
        .frontend
        .set_inflight_fd(&described, file.as_raw_fd());
    attacker.is_closed();
    drop(attacker);
    arena.rests();
}

fn no_regions(arena: &mut Arena) {
    refused(arena, None, |described| described.mmap_size = 4096);
    refused(arena, None, |described| described.mmap_offset = 1 << 30);
    refused(arena, None, |described| described.mmap_offset = u64::MAX - 5);
    let loose = memfd(1 << 20, MemfdFlags::ALLOW_SEALING);
    refused(arena, Some(loose), |_| {});
    let short = memfd(4096, MemfdFlags::ALLOW_SEALING);
    refused(arena, Some(short), |_| {});
    let event = rustix::event::eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    refused(arena, Some(event), |_| {});
}

fn again_and_again(arena: &mut Arena) {
    let mut attacker = Attacker::prepare(&arena.socket, 0);
    let mut replace = || {
        let (described, file) = made(&mut attacker);
        let frontend = &mut attacker.endpoint.frontend;
        frontend
            .set_inflight_fd(&described, file.as_raw_fd())
            .expect("an open connection");
        attacker.round_trip();
    };
    replace();
    let one = arena.descriptors();
    (0..1000).for_each(|_| replace());
    let many = arena.descriptors();
    assert!(many <= one, "{one} descriptors for one region, {many} for many");
}

fn kept_rewritten(arena: &mut Arena) {
    for seed in 1..=20 {
        let mut attacker = Attacker::prepare(&arena.socket, 0);
        let (described, file) = made(&mut attacker);
        let rewrite = |random: &mut Random| rewrite(&file, described.mmap_size, random);
        beside(seed, rewrite, || {
            let frontend = &mut attacker.endpoint.frontend;
            frontend
                .set_inflight_fd(&described, file.as_raw_fd())
                .expect("an open connection");
            attacker.start();
            attacker.endpoint.queues[RX].post().expect("a sane ring");
            for _ in 0..20 {
                attacker.transmit();
                arena.peer.send(0, &frame(ATTACKER, PEER, 200));
                arena.drain();
                // The ring goes on from where the region says that it was.
                let base = attacker.endpoint.frontend.get_vring_base(TX);
                let base = u16::try_from(base.expect("an open connection")).expect("an index");
                attacker.endpoint.restart(TX, base).expect("an open connection");
            }
            attacker.round_trip();
        });
        arena.peer.flush();
    }
}

/// Changes what is kept of the transmit ring, of what the driver has set, or anything.
fn rewrite(file: &File, len: u64, random: &mut Random) {
    const HALF: u64 = 16 << 10;
    let [low, high] = any_word(random).to_le_bytes();
    let (at, bytes) = match random.below(3) {
        // As the switch notes how far it has come.
        0 => (64, [b'N', b'Y', b't', b'1', low, high, 0, 0]),
        1 => (
            128 + random.below(2) * HALF + random.below(16) * 8,
            [low, high, 0, 0, 0, 0, 0, 0],
        ),
        _ => (
            random.below(len - 8),
            [low, high, low, high, low, high, low, high],
        ),
    };
    file.write_all_at(&bytes, at).expect("memory of ours");
}
