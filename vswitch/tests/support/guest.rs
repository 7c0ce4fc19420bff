//! A guest as a port sees it: the `vhost` crate's front-end and the driver end of its virtqueues.

#![allow(dead_code, reason = "each test and the benchmark use a part of it")]

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVringAddrFlags};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::features as f;
use virtio::memory::{MemoryMap, SharedMemory};
use virtio::net::{HEADER_LEN, NetHeader};
use virtio::split::driver::{Buffer, DriverQueue};
use virtio::split::{QueueConfig, RingLayout};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long anything may take that has to happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Where the guest's memory starts.
const GUEST_BASE: u64 = 0x1_0000_0000;

/// What a guest is made of.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) features: u64,
    pub(crate) pairs: usize,
    pub(crate) queue_size: u16,
    /// Bytes in one receive buffer.
    pub(crate) buffer_len: u32,
    /// Bytes for one transmitted frame.
    pub(crate) slot_len: u32,
    /// Receive buffers posted at the start.
    pub(crate) post: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: f::VERSION_1 | f::NET_F_MRG_RXBUF | f::RING_F_EVENT_IDX,
            pairs: 1,
            queue_size: 256,
            buffer_len: 2048,
            slot_len: 2048,
            post: true,
        }
    }
}

/// One virtqueue with its eventfds and its buffers.
pub(crate) struct Queue {
    pub(crate) driver: DriverQueue,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    layout: QueueConfig,
    buffers: u64,
    buffer_len: u32,
    pub(crate) free: Vec<u16>,
    /// Bytes of the frame in every slot, for those who fill them.
    pub(crate) frame_len: u32,
}

/// A frame that the guest received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) header: NetHeader,
    pub(crate) frame: Vec<u8>,
}

pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) memory: SharedMemory,
    pub(crate) map: Arc<MemoryMap>,
    /// Even numbers receive, odd ones transmit.
    pub(crate) queues: Vec<Queue>,
    pub(crate) options: Options,
}

impl Guest {
    /// Connects to a port's socket and starts every queue pair.
    pub(crate) fn connect(socket: &Path, options: Options) -> Self {
        let mut guest = Self::prepare(socket, options);
        for index in 0..guest.queues.len() {
            guest.start(index);
        }
        if guest.options.post {
            for pair in 0..guest.options.pairs {
                guest.post_all(pair);
            }
        }
        guest
    }

    /// Connects, negotiates and shares memory; starts nothing.
    pub(crate) fn prepare(socket: &Path, options: Options) -> Self {
        let size = options.queue_size;
        let ring_len = RingLayout::new(size).len.next_multiple_of(4096);
        let area = |len: u32| ring_len + u64::from(len) * u64::from(size);
        let pair_len = area(options.buffer_len) + area(options.slot_len);
        let total = (pair_len * options.pairs as u64).next_multiple_of(2 << 20);
        let memory = SharedMemory::new("guest", GUEST_BASE, total).unwrap();
        let map = Arc::new(MemoryMap::new(vec![Arc::clone(memory.region())]).unwrap());
        let mut at = GUEST_BASE;
        let mut queues = Vec::new();
        for index in 0..options.pairs * 2 {
            let len = if index % 2 == 0 {
                options.buffer_len
            } else {
                options.slot_len
            };
            queues.push(Queue::new(&map, at, len, &options));
            at += area(len);
        }
        let frontend = connect(socket, queues.len() as u64);
        let guest = Self {
            frontend,
            memory,
            map,
            queues,
            options,
        };
        guest.negotiate();
        guest
    }

    fn negotiate(&self) {
        let mut frontend = self.frontend.clone();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let wanted = self.options.features | f::VHOST_USER_F_PROTOCOL_FEATURES;
        assert_eq!(wanted & !offered, 0, "the port lacks features");
        let protocol = frontend.get_protocol_features().unwrap();
        let known = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(protocol & known).unwrap();
        frontend.set_features(wanted).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: self.memory.region().len(),
            userspace_addr: GUEST_BASE,
            mmap_offset: 0,
            mmap_handle: self.memory.fd().as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
    }

    /// Starts and enables one ring.
    pub(crate) fn start(&mut self, index: usize) {
        let queue = &self.queues[index];
        let frontend = &mut self.frontend;
        let config = VringConfigData {
            queue_max_size: queue.layout.size,
            queue_size: queue.layout.size,
            flags: VhostUserVringAddrFlags::empty().bits(),
            desc_table_addr: queue.layout.desc,
            used_ring_addr: queue.layout.used,
            avail_ring_addr: queue.layout.avail,
            log_addr: None,
        };
        frontend.set_vring_num(index, queue.layout.size).unwrap();
        frontend.set_vring_addr(index, &config).unwrap();
        frontend.set_vring_base(index, queue.layout.next_avail).unwrap();
        frontend.set_vring_call(index, &queue.call).unwrap();
        frontend.set_vring_kick(index, &queue.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// Posts every free receive buffer of a pair.
    pub(crate) fn post_all(&mut self, pair: usize) {
        let queue = &mut self.queues[pair * 2];
        while let Some(slot) = queue.free.pop() {
            let buffer = queue.buffer(slot);
            queue.driver.push(&[], &[buffer], u64::from(slot)).unwrap();
        }
        queue.publish();
    }

    /// Transmits a plain frame on a pair.
    pub(crate) fn send(&mut self, pair: usize, frame: &[u8]) {
        self.send_with(pair, &NetHeader::default(), frame);
    }

    /// Transmits a frame with its virtio-net header on a pair.
    pub(crate) fn send_with(&mut self, pair: usize, header: &NetHeader, frame: &[u8]) {
        self.send_raw(pair, &[&header.to_bytes()[..], frame].concat());
    }

    /// Transmits any bytes on a pair.
    pub(crate) fn send_raw(&mut self, pair: usize, bytes: &[u8]) {
        let map = Arc::clone(&self.map);
        let queue = &mut self.queues[pair * 2 + 1];
        let slot = queue.free_slot();
        let buffer = Buffer {
            len: u32::try_from(bytes.len()).unwrap(),
            ..queue.buffer(slot)
        };
        assert!(buffer.len <= queue.buffer_len, "the frame does not fit the slot");
        map.slice(buffer.addr, bytes.len()).unwrap().write_from(0, bytes);
        queue.driver.push(&[buffer], &[], u64::from(slot)).unwrap();
        queue.publish();
    }

    /// The next frame received on a pair, if there is one; its buffers are posted again.
    pub(crate) fn try_receive(&mut self, pair: usize) -> Option<Received> {
        let received = self.queues[pair * 2].take_frame(&self.map)?;
        self.post_all(pair);
        Some(received)
    }

    /// The next frame received on any pair, with the pair, within the deadline.
    pub(crate) fn receive(&mut self) -> (usize, Received) {
        let end = Instant::now() + DEADLINE;
        loop {
            for pair in 0..self.options.pairs {
                if let Some(received) = self.try_receive(pair) {
                    return (pair, received);
                }
            }
            assert!(Instant::now() < end, "no frame came");
            std::thread::yield_now();
        }
    }

    /// Asserts that the next frame received is this one.
    pub(crate) fn expect(&mut self, frame: &[u8]) -> usize {
        let (pair, received) = self.receive();
        assert_eq!(received.frame, frame);
        pair
    }

    /// Asserts that nothing was received. Something that must have come later has to have been seen before.
    pub(crate) fn expect_nothing(&mut self) {
        for pair in 0..self.options.pairs {
            assert_eq!(self.try_receive(pair), None);
        }
    }

    /// Waits until the switch took everything transmitted.
    pub(crate) fn flush(&mut self) {
        for index in (1..self.queues.len()).step_by(2) {
            let queue = &mut self.queues[index];
            wait_for("transmitted frames to be taken", || {
                queue.reclaim();
                queue.driver.in_flight() == 0
            });
        }
    }
}

impl Queue {
    fn new(map: &Arc<MemoryMap>, at: u64, buffer_len: u32, options: &Options) -> Self {
        let size = options.queue_size;
        let ring = RingLayout::new(size);
        let layout = QueueConfig {
            size,
            desc: at + ring.desc,
            avail: at + ring.avail,
            used: at + ring.used,
            event_idx: options.features & f::RING_F_EVENT_IDX != 0,
            indirect: false,
            next_avail: 0,
            used_idx: 0,
        };
        Self {
            driver: DriverQueue::new(Arc::clone(map), &layout, None).unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            layout,
            buffers: at + ring.len.next_multiple_of(4096),
            buffer_len,
            free: (0..size).rev().collect(),
            frame_len: 0,
        }
    }

    pub(crate) fn buffer(&self, slot: u16) -> Buffer {
        Buffer {
            addr: self.buffers + u64::from(slot) * u64::from(self.buffer_len),
            len: self.buffer_len,
        }
    }

    pub(crate) fn publish(&mut self) {
        if self.driver.publish() {
            self.kick.write(1).unwrap();
        }
    }

    pub(crate) fn reclaim(&mut self) {
        while let Some((slot, _)) = self.driver.pop_used().unwrap() {
            self.free.push(u16::try_from(slot).unwrap());
        }
    }

    fn free_slot(&mut self) -> u16 {
        let end = Instant::now() + DEADLINE;
        loop {
            self.reclaim();
            if let Some(slot) = self.free.pop() {
                return slot;
            }
            assert!(Instant::now() < end, "the switch takes no frames");
            std::thread::yield_now();
        }
    }

    fn take_bytes(&mut self, map: &MemoryMap) -> Option<Vec<u8>> {
        let (slot, len) = self.driver.pop_used().unwrap()?;
        let slot = u16::try_from(slot).unwrap();
        let mut bytes = vec![0; len as usize];
        map.slice(self.buffer(slot).addr, bytes.len().max(1))
            .unwrap()
            .read_to(0, &mut bytes);
        self.free.push(slot);
        Some(bytes)
    }

    fn take_frame(&mut self, map: &MemoryMap) -> Option<Received> {
        let mut bytes = self.take_bytes(map)?;
        let header = NetHeader::from_bytes(bytes.first_chunk::<HEADER_LEN>().expect("a whole header"));
        for _ in 1..header.num_buffers {
            bytes.extend(self.take_bytes(map).expect("all buffers of a frame at once"));
        }
        Some(Received {
            header,
            frame: bytes.split_off(HEADER_LEN),
        })
    }
}

/// Waits until something holds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(socket: &Path, queues: u64) -> Frontend {
    let end = Instant::now() + DEADLINE;
    loop {
        match Frontend::connect(socket, queues) {
            Ok(frontend) => return frontend,
            Err(error) => assert!(
                Instant::now() < end,
                "no connection to {}: {error}",
                socket.display()
            ),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Queue {
    /// Where the available ring is.
    pub(crate) fn avail_address(&self) -> u64 {
        self.layout.avail
    }
}
