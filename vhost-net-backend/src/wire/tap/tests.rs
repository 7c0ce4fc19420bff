//! Receiving, with a datagram socket in the place of a tap: it too gives one frame per read and cuts what finds no room.

use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use virtio::burst::Burst;
use virtio::features as f;
use virtio::memory::{MemoryMap, SharedMemory, read_chain};
use virtio::queue::Queue;
use virtio::split::driver::{Buffer, DriverQueue};
use virtio::split::{QueueConfig, RingLayout};

use super::*;
use crate::nic::Counters;
use crate::plane::Ring;

const SIZE: u16 = 256;
const BASE: u64 = 0x10_0000;
const BUFFERS: u64 = BASE + 0x1_0000;

/// A guest that posts receive buffers, and the far end of the "tap".
struct Rig {
    memory: Arc<MemoryMap>,
    driver: DriverQueue,
    ring: Ring,
    wire: TapWire,
    far: std::os::fd::OwnedFd,
    counters: Counters,
    next: u64,
}

impl Rig {
    fn new() -> Self {
        let shared = SharedMemory::new("guest", BASE, 0x40_0000).unwrap();
        let memory = Arc::new(MemoryMap::new(vec![Arc::clone(shared.region())]).unwrap());
        let layout = RingLayout::new(SIZE);
        let config = QueueConfig {
            size: SIZE,
            desc: BASE + layout.desc,
            avail: BASE + layout.avail,
            used: BASE + layout.used,
            ..QueueConfig::default()
        };
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        Self {
            driver: DriverQueue::new(Arc::clone(&memory), &config, None).unwrap(),
            ring: Ring {
                taken: None,
                queue: Queue::new(Arc::clone(&memory), &config, false).unwrap(),
                kick: None,
                call: None,
                err: None,
                enabled: true,
            },
            wire: TapWire::all(vec![Arc::new(TapQueue::stand_in(near))]).remove(0),
            memory,
            far,
            counters: Counters::default(),
            next: BUFFERS,
        }
    }

    /// Post `count` buffers of `len` bytes.
    fn post(&mut self, count: u64, len: u32) {
        for _ in 0..count {
            self.driver
                .push(&[], &[Buffer { addr: self.next, len }], self.next)
                .unwrap();
            self.next += u64::from(len);
        }
        self.driver.publish();
    }

    /// A frame from the host: `len` bytes after a header that says "checksum known to be good".
    fn host_sends(&self, len: usize) -> Vec<u8> {
        let mut frame = vec![0; HEADER_LEN];
        frame[0] = 2;
        frame.extend((0..len).map(|at| u8::try_from(at % 251).unwrap()));
        assert_eq!(rustix::io::write(&self.far, &frame).unwrap(), frame.len());
        frame
    }

    fn receive(&mut self, acked: u64) {
        let mut burst = Burst::with_capacity(usize::from(SIZE));
        let mut receiver = Receiver::new(&mut self.ring, &mut burst, acked, &self.counters);
        self.wire.event();
        self.wire.receive(&mut receiver);
    }

    /// The next frame as the guest finds it: its bytes, and the buffers it came in.
    fn taken(&mut self) -> Option<(Vec<u8>, usize)> {
        let (mut bytes, mut count) = (Vec::new(), 0);
        loop {
            let (addr, len) = self.driver.pop_used().unwrap()?;
            let mut part = vec![0; len as usize];
            let slice = self.memory.slice(addr, part.len()).unwrap();
            read_chain(&[slice], 0, &mut part);
            bytes.extend(part);
            count += 1;
            if count == usize::from(u16::from_le_bytes([bytes[10], bytes[11]])) {
                return Some((bytes, count));
            }
        }
    }
}

const MERGEABLE: u64 = f::NET_F_MRG_RXBUF | f::NET_F_GUEST_CSUM;

#[test]
fn a_frame_is_read_into_as_many_buffers_as_it_needs_and_the_rest_stay_posted() {
    let mut rig = Rig::new();
    rig.post(100, 2048);
    let lens = [60, 2036, 2037, 9000, 65_000, 14];
    let sent: Vec<_> = lens.iter().map(|&len| rig.host_sends(len)).collect();
    rig.receive(MERGEABLE);
    for frame in sent {
        let (got, count) = rig.taken().unwrap();
        assert_eq!(count, frame.len().div_ceil(2048));
        assert_eq!((got[0], &got[HEADER_LEN..]), (2, &frame[HEADER_LEN..]));
    }
    let counts = rig.counters.read();
    assert_eq!((counts.rx_frames, counts.rx_copied), (6, 0), "{counts:?}");
    assert_eq!(rig.ring.queue.next_avail(), 1 + 1 + 2 + 5 + 32 + 1);
}

#[test]
fn a_frame_that_exceeds_the_buffers_at_hand_waits_for_more() {
    let mut rig = Rig::new();
    rig.post(3, 2048);
    let big = rig.host_sends(20_000);
    let small = rig.host_sends(60);
    rig.receive(MERGEABLE);
    assert!(rig.taken().is_none());
    rig.post(20, 2048);
    rig.receive(MERGEABLE);
    assert_eq!(rig.taken().unwrap().0[HEADER_LEN..], big[HEADER_LEN..]);
    assert_eq!(rig.taken().unwrap().0[HEADER_LEN..], small[HEADER_LEN..]);
    let counts = rig.counters.read();
    assert_eq!((counts.rx_frames, counts.rx_copied), (2, 1), "{counts:?}");
}

#[test]
fn a_frame_stays_in_the_host_while_there_are_no_buffers() {
    let mut rig = Rig::new();
    let frame = rig.host_sends(60);
    rig.receive(MERGEABLE);
    assert!(rig.wire.is_ready(), "it is forgotten");
    rig.post(1, 2048);
    rig.receive(MERGEABLE);
    assert_eq!(rig.taken().unwrap().0[HEADER_LEN..], frame[HEADER_LEN..]);
    assert_eq!(rig.counters.read().rx_copied, 0);
}

#[test]
fn without_mergeable_buffers_one_has_to_hold_the_frame() {
    let mut rig = Rig::new();
    rig.post(2, 1526);
    rig.host_sends(3000);
    let fits = rig.host_sends(1514);
    rig.receive(0);
    let (got, count) = rig.taken().unwrap();
    // The driver knows nothing of checksums.
    assert_eq!((got[0], count, &got[HEADER_LEN..]), (0, 1, &fits[HEADER_LEN..]));
    let counts = rig.counters.read();
    assert_eq!((counts.rx_frames, counts.rx_dropped), (1, 1), "{counts:?}");
}

#[test]
fn a_super_frame_after_many_short_ones_is_whole_too() {
    let mut rig = Rig::new();
    rig.post(200, 2048);
    for _ in 0..2 * TREND {
        rig.host_sends(60);
        rig.receive(MERGEABLE);
        assert_eq!(rig.taken().unwrap().1, 1);
    }
    for copied in [1, 1] {
        let frame = rig.host_sends(40_000);
        rig.receive(MERGEABLE);
        assert_eq!(rig.taken().unwrap().0[HEADER_LEN..], frame[HEADER_LEN..]);
        assert_eq!(rig.counters.read().rx_copied, copied);
    }
}
