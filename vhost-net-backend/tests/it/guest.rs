//! A front-end with a driver: what a VMM and its guest's virtio-net driver are together.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use netyard_testkit::endpoint::{addresses, region_info};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::features as f;
use virtio::memory::{MemoryMap, SharedMemory};
use virtio::net::{HEADER_LEN, NetHeader};
use virtio::split::driver::{Buffer, DriverQueue};
use virtio::split::{QueueConfig, RingLayout};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::LIMIT;

/// Entries of each ring.
pub(crate) const SIZE: u16 = 64;
/// Bytes of each buffer.
pub(crate) const BUFFER: u32 = 2048;
/// Where the guest's memory begins.
pub(crate) const BASE: u64 = 0x4000_0000;
/// Bytes for one ring and its buffers.
const STRIDE: u64 = 0x10_0000;
/// Where the buffers begin within that.
const BUFFERS: u64 = 0x1_0000;

/// What the guest accepts of what is offered.
pub(crate) const FEATURES: u64 = f::VERSION_1
    | f::NET_F_MRG_RXBUF
    | f::NET_F_CSUM
    | f::NET_F_GUEST_CSUM
    | f::RING_F_EVENT_IDX
    | f::RING_F_INDIRECT_DESC
    | f::VHOST_USER_F_PROTOCOL_FEATURES;

/// One ring of the guest.
pub(crate) struct Queue {
    pub(crate) driver: DriverQueue,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    config: QueueConfig,
    /// Buffers that no chain uses.
    free: Vec<u64>,
    /// The buffers of each transmitted chain, by its first.
    chains: HashMap<u64, Vec<u64>>,
}

/// A guest with as many queue pairs as asked for.
pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) memory: SharedMemory,
    pub(crate) queues: Vec<Queue>,
    pub(crate) features: u64,
}

/// Connect, whenever there is somebody listening.
pub(crate) fn connect(path: &Path) -> UnixStream {
    let mut stream = None;
    crate::until("a listening socket", || {
        stream = UnixStream::connect(path).ok();
        stream.is_some()
    });
    stream.unwrap()
}

/// The first half of a handshake, up to and including protocol features.
pub(crate) fn negotiate(stream: UnixStream) -> Frontend {
    let mut frontend = Frontend::from_stream(stream, 2);
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.get_queue_num().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend
}

impl Guest {
    /// Connect and start every ring of `pairs` queue pairs, all enabled.
    pub(crate) fn start(path: &Path, pairs: u16) -> Self {
        let mut guest = Self::connect(path, pairs, FEATURES);
        for index in 0..guest.queues.len() {
            guest.start_ring(index, 0);
            guest.enable(index);
        }
        for pair in 0..pairs {
            guest.post_all(pair);
        }
        guest
    }

    /// Connect, negotiate, and share memory; the rings are built but stopped.
    pub(crate) fn connect(path: &Path, pairs: u16, features: u64) -> Self {
        Self::on_stream(connect(path), pairs, features)
    }

    pub(crate) fn on_stream(stream: UnixStream, pairs: u16, features: u64) -> Self {
        let frontend = negotiate(stream);
        let memory = SharedMemory::new("guest", BASE, u64::from(pairs) * 2 * STRIDE).unwrap();
        frontend.set_features(features).unwrap();
        frontend.set_mem_table(&[region_info(&memory)]).unwrap();
        let mut guest = Self {
            frontend,
            memory,
            queues: Vec::new(),
            features,
        };
        for index in 0..pairs * 2 {
            let queue = guest.queue(u64::from(index), 0);
            guest.queues.push(queue);
        }
        guest
    }

    /// The driver end of one ring.
    fn queue(&self, index: u64, at: u16) -> Queue {
        let base = BASE + index * STRIDE;
        let layout = RingLayout::new(SIZE);
        let config = QueueConfig {
            size: SIZE,
            desc: base + layout.desc,
            avail: base + layout.avail,
            used: base + layout.used,
            event_idx: self.features & f::RING_F_EVENT_IDX != 0,
            indirect: false,
            next_avail: at,
            used_idx: at,
        };
        let map = Arc::new(MemoryMap::new(vec![Arc::clone(self.memory.region())]).unwrap());
        Queue {
            driver: DriverQueue::new(map, &config, None).unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            config,
            free: (0..u64::from(SIZE))
                .map(|at| base + BUFFERS + at * u64::from(BUFFER))
                .collect(),
            chains: HashMap::new(),
        }
    }

    /// Tell the device everything about a ring, which starts it.
    pub(crate) fn start_ring(&self, index: usize, base: u16) {
        let queue = &self.queues[index];
        self.frontend.set_vring_num(index, SIZE).unwrap();
        self.frontend
            .set_vring_addr(index, &self.addresses(index))
            .unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_call(index, &queue.call).unwrap();
        self.frontend.set_vring_kick(index, &queue.kick).unwrap();
    }

    pub(crate) fn addresses(&self, index: usize) -> VringConfigData {
        addresses(&self.queues[index].config)
    }

    /// Give every free receive buffer to the device.
    pub(crate) fn post_all(&mut self, pair: u16) {
        let queue = &mut self.queues[usize::from(pair) * 2];
        while let Some(addr) = queue.free.pop() {
            queue
                .driver
                .push(&[], &[Buffer { addr, len: BUFFER }], addr)
                .unwrap();
        }
        if queue.driver.publish() {
            queue.kick.write(1).unwrap();
        }
    }

    fn fill(&self, addr: u64, bytes: &[u8]) {
        let at = usize::try_from(addr - BASE).unwrap();
        assert_eq!(self.memory.region().slice().write_from(at, bytes), bytes.len());
    }

    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = usize::try_from(addr - BASE).unwrap();
        assert_eq!(self.memory.region().slice().read_to(at, &mut bytes), len);
        bytes
    }

    /// Take transmit buffers back that the device has used.
    fn reap(&mut self, pair: u16) {
        let queue = &mut self.queues[usize::from(pair) * 2 + 1];
        while let Some((first, _)) = queue.driver.pop_used().unwrap() {
            queue.free.extend(queue.chains.remove(&first).unwrap());
        }
    }

    /// Transmit a frame with a plain header. False when the ring is full.
    pub(crate) fn send(&mut self, pair: u16, frame: &[u8]) -> bool {
        self.send_with(pair, &NetHeader::default(), frame)
    }

    pub(crate) fn send_with(&mut self, pair: u16, header: &NetHeader, frame: &[u8]) -> bool {
        self.reap(pair);
        let index = usize::from(pair) * 2 + 1;
        let bytes: Vec<u8> = header
            .to_bytes()
            .into_iter()
            .chain(frame.iter().copied())
            .collect();
        let parts: Vec<&[u8]> = bytes.chunks(BUFFER as usize).collect();
        let free = &mut self.queues[index].free;
        let Some(left) = free.len().checked_sub(parts.len()) else {
            return false;
        };
        let addrs = free.split_off(left);
        let mut chain = Vec::new();
        for (&addr, part) in addrs.iter().zip(parts) {
            self.fill(addr, part);
            chain.push(Buffer {
                addr,
                len: u32::try_from(part.len()).unwrap(),
            });
        }
        let queue = &mut self.queues[index];
        queue.driver.push(&chain, &[], addrs[0]).unwrap();
        queue.chains.insert(addrs[0], addrs);
        if queue.driver.publish() {
            queue.kick.write(1).unwrap();
        }
        true
    }

    /// Chains that the device has not returned yet.
    pub(crate) fn in_flight(&mut self, pair: u16) -> u16 {
        self.reap(pair);
        self.queues[usize::from(pair) * 2 + 1].driver.in_flight()
    }

    /// The next frame received, if there is one by now.
    pub(crate) fn try_receive(&mut self, pair: u16) -> Option<Vec<u8>> {
        let index = usize::from(pair) * 2;
        let (addr, len) = self.queues[index].driver.pop_used().unwrap()?;
        let len = usize::try_from(len).unwrap();
        assert!(len > HEADER_LEN, "a used buffer without a frame");
        let bytes = self.read(addr, len);
        let header = NetHeader::from_bytes(bytes.first_chunk().unwrap());
        let mut frame = bytes[HEADER_LEN..].to_vec();
        self.queues[index].free.push(addr);
        // All buffers of a frame are published together.
        for _ in 1..header.num_buffers {
            let (addr, len) = self.queues[index]
                .driver
                .pop_used()
                .unwrap()
                .expect("the rest of a frame");
            frame.extend(self.read(addr, usize::try_from(len).unwrap()));
            self.queues[index].free.push(addr);
        }
        self.post_all(pair);
        Some(frame)
    }

    /// Wait for a frame as a driver does: asleep until it is interrupted.
    pub(crate) fn receive(&mut self, pair: u16) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(frame) = self.try_receive(pair) {
                return frame;
            }
            let queue = &mut self.queues[usize::from(pair) * 2];
            if queue.driver.enable_interrupts() {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no frame arrived on pair {pair}");
            let sleep = Epoll::new().unwrap();
            let event = EpollEvent::new(EventSet::IN, 0);
            sleep
                .ctl(ControlOperation::Add, queue.call.as_raw_fd(), event)
                .unwrap();
            let time = i32::try_from(left.as_millis()).unwrap();
            sleep.wait(time, &mut [EpollEvent::default()]).unwrap();
            let _ = queue.call.read();
        }
    }

    /// Send a frame and expect it back.
    pub(crate) fn ping(&mut self, pair: u16, text: &str) {
        let frame = frame(text);
        assert!(self.send(pair, &frame), "no room to send");
        assert_eq!(self.receive(pair), frame, "on pair {pair}");
    }
}

/// An Ethernet frame with a text in it.
pub(crate) fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend(text.as_bytes());
    frame
}

impl Guest {
    /// A guest whose memory is somebody else's file.
    pub(crate) fn over(frontend: Frontend, memory: &OwnedFd, features: u64) -> Self {
        let own = SharedMemory::new("own", BASE, 2 * STRIDE).unwrap();
        frontend.set_features(features).unwrap();
        let table = VhostUserMemoryRegionInfo {
            mmap_handle: memory.as_raw_fd(),
            ..region_info(&own)
        };
        frontend.set_mem_table(&[table]).unwrap();
        let mut guest = Self {
            frontend,
            memory: own,
            queues: Vec::new(),
            features,
        };
        for index in 0..2 {
            let queue = guest.queue(index, 0);
            guest.queues.push(queue);
        }
        guest
    }

    pub(crate) fn queues_kick(&self, index: usize) {
        self.queues[index].kick.write(1).unwrap();
    }

    /// Transmit a chain of one buffer with exactly these bytes, header or not.
    pub(crate) fn send_raw(&mut self, pair: u16, bytes: &[u8]) -> bool {
        self.reap(pair);
        let index = usize::from(pair) * 2 + 1;
        let Some(addr) = self.queues[index].free.pop() else {
            return false;
        };
        self.fill(addr, bytes);
        let queue = &mut self.queues[index];
        queue
            .driver
            .push(
                &[Buffer {
                    addr,
                    len: u32::try_from(bytes.len()).unwrap(),
                }],
                &[],
                addr,
            )
            .unwrap();
        queue.chains.insert(addr, vec![addr]);
        if queue.driver.publish() {
            queue.kick.write(1).unwrap();
        }
        true
    }
}

impl Guest {
    /// Whether a frame waits on this pair.
    pub(crate) fn has_frame(&mut self, pair: u16) -> bool {
        let queue = &mut self.queues[usize::from(pair) * 2];
        queue.driver.enable_interrupts()
    }

    pub(crate) fn enable(&mut self, ring: usize) {
        self.frontend.set_vring_enable(ring, true).unwrap();
    }

    pub(crate) fn disable(&mut self, ring: usize) {
        self.frontend.set_vring_enable(ring, false).unwrap();
    }
}
