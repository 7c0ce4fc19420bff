//! A front-end whose transmit ring is written descriptor by descriptor, right or wrong.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use netyard_testkit::endpoint::{BASE, Endpoint, EndpointError, Options, addresses};
use netyard_testkit::guest::wait_for;
use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio::features as f;
use virtio::net::{HEADER_LEN, NetHeader};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{ATTACKER, PEER, frame};

pub(crate) use virtio::desc::{DESC_F_INDIRECT as INDIRECT, DESC_F_NEXT as NEXT, DESC_F_WRITE as WRITE};

/// Entries of each ring.
pub(crate) const SIZE: u16 = 64;
/// The ring that the switch writes to.
pub(crate) const RX: usize = 0;
/// The ring that the switch reads from.
pub(crate) const TX: usize = 1;
/// Where its memory has room for tables, after rings and buffers.
pub(crate) const TABLES: u64 = BASE + 0x18_0000;
/// Where [`Attacker::in_two_regions`] cuts the memory.
pub(crate) const CUT: u64 = BASE + 0x10_0000;
/// An address that is nowhere.
pub(crate) const NOWHERE: u64 = 0xdead_0000;

/// A descriptor: address, length, flags, next.
pub(crate) type Desc = (u64, u32, u16, u16);

pub(crate) struct Attacker {
    pub(crate) endpoint: Endpoint,
    err: [EventFd; 2],
    avail: [u16; 2],
}

impl Attacker {
    /// Connected, with both rings running and all receive buffers posted.
    pub(crate) fn new(socket: &Path) -> Self {
        Self::with(socket, f::RING_F_INDIRECT_DESC)
    }

    pub(crate) fn with(socket: &Path, features: u64) -> Self {
        let mut attacker = Self::prepare(socket, features);
        attacker.start();
        attacker.endpoint.queues[RX].post().expect("a sane ring");
        attacker
    }

    /// Connected, with memory shared and no ring running.
    pub(crate) fn prepare(socket: &Path, features: u64) -> Self {
        let options = Options {
            queue_size: SIZE,
            features: f::VERSION_1 | f::NET_F_MRG_RXBUF | features,
            ..Options::default()
        };
        let mut endpoint = None;
        wait_for("a connection", || match Endpoint::prepare(socket, options) {
            Ok(connected) => {
                endpoint = Some(connected);
                true
            }
            // The former front-end may not be gone yet.
            Err(EndpointError::Connect { .. } | EndpointError::Handshake { .. }) => false,
            Err(error) => panic!("{error}"),
        });
        let event = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Self {
            endpoint: endpoint.expect("it was waited for"),
            err: [event(), event()],
            avail: [0; 2],
        }
    }

    /// Starts both rings.
    pub(crate) fn start(&mut self) {
        for ring in [RX, TX] {
            self.endpoint
                .frontend
                .set_vring_err(ring, &self.err[ring])
                .expect("an open connection");
            self.endpoint.start(ring).expect("an open connection");
        }
        self.round_trip();
    }

    /// Has the switch handle what was sent to it.
    pub(crate) fn round_trip(&mut self) {
        self.endpoint.frontend.get_features().expect("an open connection");
    }

    /// Shares the memory anew, as two regions side by side.
    pub(crate) fn in_two_regions(&mut self) {
        let len = self.endpoint.memory[0].region().len();
        let part = |from: u64, until: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: from,
            memory_size: until - from,
            userspace_addr: from,
            mmap_offset: from - BASE,
            mmap_handle: self.endpoint.memory[0].fd().as_raw_fd(),
        };
        let table = [part(BASE, CUT), part(CUT, BASE + len)];
        self.endpoint
            .frontend
            .set_mem_table(&table)
            .expect("an open connection");
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let view = self.endpoint.map.slice(at, bytes.len()).expect("memory of ours");
        view.write_from(0, bytes);
    }

    pub(crate) fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let view = self.endpoint.map.slice(at, N).expect("memory of ours");
        view.read_to(0, &mut bytes);
        bytes
    }

    /// A buffer of the transmit ring.
    pub(crate) fn buffer(&self, slot: u16) -> u64 {
        self.endpoint.queues[TX].buffer(slot).addr
    }

    /// Puts a frame for the peer, header first, where a buffer is; gives its length.
    pub(crate) fn frame_at(&self, at: u64) -> u32 {
        self.packet_at(at, &NetHeader::default(), &frame(PEER, ATTACKER, 60))
    }

    pub(crate) fn packet_at(&self, at: u64, header: &NetHeader, frame: &[u8]) -> u32 {
        self.write(at, &[&header.to_bytes()[..], frame].concat());
        u32::try_from(HEADER_LEN + frame.len()).expect("a short frame")
    }

    /// Writes a descriptor of the transmit ring's table.
    pub(crate) fn desc(&self, index: u16, desc: Desc) {
        self.entry(self.endpoint.queues[TX].config.desc, index, desc);
    }

    /// Writes a descriptor of a table anywhere.
    pub(crate) fn entry(&self, table: u64, index: u16, (addr, len, flags, next): Desc) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    /// Makes chains available on the transmit ring, and kicks.
    pub(crate) fn offer(&mut self, heads: &[u16]) {
        let ring = self.endpoint.queues[TX].config.avail;
        for head in heads {
            let slot = u64::from(self.avail[TX] % SIZE);
            self.write(ring + 4 + slot * 2, &head.to_le_bytes());
            self.avail[TX] = self.avail[TX].wrapping_add(1);
        }
        self.set_avail(self.avail[TX]);
        self.kick();
    }

    pub(crate) fn set_avail(&self, index: u16) {
        self.write(self.endpoint.queues[TX].config.avail + 2, &index.to_le_bytes());
    }

    pub(crate) fn kick(&self) {
        // A full counter has been kicked enough.
        let _ = self.endpoint.queues[TX].kick.write(1);
    }

    /// How many chains the switch gave back.
    pub(crate) fn used(&self) -> u16 {
        u16::from_le_bytes(self.read(self.endpoint.queues[TX].config.used + 2))
    }

    /// The chain given back in a place of the used ring, and the length said to be written.
    pub(crate) fn used_element(&self, place: u16) -> (u32, u32) {
        let at = self.endpoint.queues[TX].config.used + 4 + u64::from(place % SIZE) * 8;
        (
            u32::from_le_bytes(self.read(at)),
            u32::from_le_bytes(self.read(at + 4)),
        )
    }

    /// Transmits one frame for the peer, as it should be.
    pub(crate) fn transmit(&mut self) {
        let at = self.buffer(SIZE - 1);
        let len = self.frame_at(at);
        self.desc(SIZE - 1, (at, len, 0, 0));
        self.offer(&[SIZE - 1]);
    }

    /// Asserts that every chain offered so far comes back with nothing written, and that the ring goes on.
    pub(crate) fn is_given_back(&mut self) {
        let offered = self.avail[TX];
        wait_for("the chains to come back", || self.used() == offered);
        assert_eq!(self.used_element(offered.wrapping_sub(1)).1, 0);
        assert!(
            !self.ring_is_stopped(TX),
            "the ring was stopped, which is too much"
        );
    }

    pub(crate) fn ring_is_stopped(&self, ring: usize) -> bool {
        self.err[ring].read().is_ok()
    }

    /// Asserts that the switch gives the transmit ring up, and keeps the connection.
    pub(crate) fn is_stopped(&mut self) {
        wait_for("the ring to be stopped", || self.ring_is_stopped(TX));
        self.round_trip();
    }

    /// Asserts that the switch ends the connection.
    pub(crate) fn is_closed(&self) {
        wait_for("the connection to be ended", || closed(&self.endpoint.stream));
    }

    /// What `SET_VRING_ADDR` says of a ring.
    pub(crate) fn addresses(&self, ring: usize) -> vhost::VringConfigData {
        addresses(&self.endpoint.queues[ring].config)
    }
}

/// Whether the other end of a socket is closed.
pub(crate) fn closed(stream: &std::os::unix::net::UnixStream) -> bool {
    let mut poll = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec::try_from(Duration::ZERO).expect("no time at all");
    rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|ready| ready == 1)
}
