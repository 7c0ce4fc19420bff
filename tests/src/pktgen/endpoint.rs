//! One port's driver: a vhost-user front-end with its memory and queue pairs.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::features;
use virtio::memory::{GuestSlice, MemoryMap, SharedMemory};
use virtio::net::HEADER_LEN;
use virtio::split::driver::{Buffer, DriverQueue};
use virtio::split::{QueueConfig, RingLayout};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where an endpoint's memory starts, for itself and for the back-end.
const BASE: u64 = 0x1_0000_0000;

/// What an endpoint is made of.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Queue pairs.
    pub pairs: u16,
    /// Entries of each virtqueue.
    pub queue_size: u16,
    /// Room for one frame and its virtio-net header.
    pub slot_len: u32,
    /// Feature bits to take of those that are offered.
    pub features: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pairs: 1,
            queue_size: 1024,
            slot_len: 2048,
            features: features::VERSION_1 | features::NET_F_MRG_RXBUF | features::RING_F_EVENT_IDX,
        }
    }
}

/// What went wrong between the generator and the back-end.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The handshake failed.
    #[error("{socket}: {step} failed: {source}")]
    Handshake {
        /// The back-end's socket.
        socket: String,
        /// Which message.
        step: &'static str,
        /// What the protocol said.
        source: vhost::Error,
    },
    /// The back-end lacks a feature that the generator needs.
    #[error("{socket}: the back-end offers {offered:#x} and lacks {missing:#x} of the features asked for")]
    Features {
        /// The back-end's socket.
        socket: String,
        /// What it offers.
        offered: u64,
        /// What is missing.
        missing: u64,
    },
    /// The memory could not be made.
    #[error("no memory for the rings: {0}")]
    Memory(#[from] virtio::memory::MemoryError),
    /// The rings could not be made.
    #[error("no rings: {0}")]
    Queue(#[from] virtio::split::QueueError),
    /// The back-end broke a ring.
    #[error("the back-end broke a ring: {0}")]
    Ring(#[from] virtio::split::RingError),
    /// The machine refused an eventfd.
    #[error("no eventfd: {0}")]
    EventFd(#[from] std::io::Error),
}

/// A connected endpoint.
pub struct Endpoint {
    frontend: Frontend,
    memory: SharedMemory,
    map: Arc<MemoryMap>,
    /// Receive and transmit queue of each pair.
    rings: Vec<[Ring; 2]>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("pairs", &self.rings.len())
            .finish_non_exhaustive()
    }
}

struct Ring {
    driver: DriverQueue,
    kick: EventFd,
    call: EventFd,
    config: QueueConfig,
    slots: u64,
    slot_len: u32,
    free: Vec<u16>,
}

impl Endpoint {
    /// Connects to the back-end at `socket` and starts every queue pair, with all receive buffers posted.
    pub fn connect(socket: &Path, options: Options) -> Result<Self, EndpointError> {
        let ring_len = RingLayout::new(options.queue_size).len.next_multiple_of(4096);
        let area = ring_len + u64::from(options.slot_len) * u64::from(options.queue_size);
        let total = (area * 2 * u64::from(options.pairs)).next_multiple_of(2 << 20);
        let memory = SharedMemory::new("pktgen", BASE, total)?;
        let map = Arc::new(MemoryMap::new(vec![Arc::clone(memory.region())])?);
        let mut areas = (0..).map(|index| BASE + area * index);
        let mut ring = || Ring::new(&map, areas.next().unwrap_or(BASE), options);
        let rings = (0..options.pairs)
            .map(|_| Ok([ring()?, ring()?]))
            .collect::<Result<Vec<_>, EndpointError>>()?;
        let step = |step| {
            let socket = socket.display().to_string();
            move |source| EndpointError::Handshake { socket, step, source }
        };
        let frontend = Frontend::connect(socket, u64::from(options.pairs) * 2).map_err(step("connect"))?;
        let mut endpoint = Self {
            frontend,
            memory,
            map,
            rings,
        };
        endpoint.negotiate(socket, options)?;
        for index in 0..endpoint.rings.len() * 2 {
            endpoint.start(index).map_err(step("starting a ring"))?;
        }
        endpoint.post()?;
        Ok(endpoint)
    }

    fn negotiate(&mut self, socket: &Path, options: Options) -> Result<(), EndpointError> {
        let shown = || socket.display().to_string();
        let failed = |step| {
            move |source| EndpointError::Handshake {
                socket: shown(),
                step,
                source,
            }
        };
        self.frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let offered = self.frontend.get_features().map_err(failed("GET_FEATURES"))?;
        let missing = options.features & !offered;
        if missing != 0 {
            return Err(EndpointError::Features {
                socket: shown(),
                offered,
                missing,
            });
        }
        let protocol = self
            .frontend
            .get_protocol_features()
            .map_err(failed("GET_PROTOCOL_FEATURES"))?;
        let known = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        self.frontend
            .set_protocol_features(protocol & known)
            .map_err(failed("SET_PROTOCOL_FEATURES"))?;
        self.frontend
            .set_features(options.features | features::VHOST_USER_F_PROTOCOL_FEATURES)
            .map_err(failed("SET_FEATURES"))?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: self.memory.region().len(),
            userspace_addr: BASE,
            mmap_offset: 0,
            mmap_handle: self.memory.fd().as_raw_fd(),
        };
        self.frontend
            .set_mem_table(&[region])
            .map_err(failed("SET_MEM_TABLE"))?;
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<(), vhost::Error> {
        let ring = &self.rings[index / 2][index % 2];
        let config = ring.config;
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, config.size)?;
        let addresses = VringConfigData {
            queue_max_size: config.size,
            queue_size: config.size,
            flags: 0,
            desc_table_addr: config.desc,
            used_ring_addr: config.used,
            avail_ring_addr: config.avail,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &addresses)?;
        frontend.set_vring_base(index, 0)?;
        frontend.set_vring_call(index, &ring.call)?;
        frontend.set_vring_kick(index, &ring.kick)?;
        frontend.set_vring_enable(index, true)
    }

    /// Queue pairs.
    pub fn pairs(&self) -> usize {
        self.rings.len()
    }

    /// Gives every free receive buffer to the device.
    fn post(&mut self) -> Result<(), EndpointError> {
        for [receive, _] in &mut self.rings {
            receive.driver.disable_interrupts();
            receive.post()?;
        }
        Ok(())
    }

    /// Sends at most `count` frames on queue pair `pair`: `fill` writes each into its slot, header first, and gives its whole length.
    /// Gives how many there was room for.
    pub fn transmit(
        &mut self,
        pair: usize,
        count: usize,
        mut fill: impl FnMut(GuestSlice<'_>) -> usize,
    ) -> Result<usize, EndpointError> {
        let map = &self.map;
        let ring = &mut self.rings[pair][1];
        while let Some((slot, _)) = ring.driver.pop_used()? {
            ring.give_back(slot);
        }
        let mut sent = 0;
        while sent < count {
            let Some(slot) = ring.free.pop() else { break };
            let buffer = ring.buffer(slot);
            let Some(memory) = map.slice(buffer.addr, buffer.len as usize) else {
                break;
            };
            let len = u32::try_from(fill(memory)).unwrap_or(buffer.len).min(buffer.len);
            if ring
                .driver
                .push(&[Buffer { len, ..buffer }], &[], u64::from(slot))
                .is_err()
            {
                ring.free.push(slot);
                break;
            }
            sent += 1;
        }
        ring.publish()?;
        Ok(sent)
    }

    /// Takes at most `limit` used receive buffers of queue pair `pair`; `see` gets each with its length, virtio-net header included.
    pub fn receive(
        &mut self,
        pair: usize,
        limit: usize,
        mut see: impl FnMut(GuestSlice<'_>),
    ) -> Result<usize, EndpointError> {
        let map = &self.map;
        let ring = &mut self.rings[pair][0];
        let mut taken = 0;
        while taken < limit {
            let Some((slot, len)) = ring.driver.pop_used()? else {
                break;
            };
            let slot = ring.give_back(slot);
            if let Some(memory) = map.slice(ring.buffer(slot).addr, len as usize)
                && memory.len() > HEADER_LEN
            {
                see(memory);
            }
            taken += 1;
        }
        if taken > 0 {
            ring.post()?;
        }
        Ok(taken)
    }

    /// How many transmitted frames the device has not returned yet.
    pub fn in_flight(&mut self, pair: usize) -> Result<u16, EndpointError> {
        let ring = &mut self.rings[pair][1];
        while let Some((slot, _)) = ring.driver.pop_used()? {
            ring.give_back(slot);
        }
        Ok(ring.driver.in_flight())
    }
}

impl Ring {
    fn new(map: &Arc<MemoryMap>, at: u64, options: Options) -> Result<Self, EndpointError> {
        let size = options.queue_size;
        let layout = RingLayout::new(size);
        let config = QueueConfig {
            size,
            desc: at + layout.desc,
            avail: at + layout.avail,
            used: at + layout.used,
            event_idx: options.features & features::RING_F_EVENT_IDX != 0,
            indirect: false,
            next_avail: 0,
            used_idx: 0,
        };
        let mut driver = DriverQueue::new(Arc::clone(map), &config, None)?;
        driver.disable_interrupts();
        Ok(Self {
            driver,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            config,
            slots: at + layout.len.next_multiple_of(4096),
            slot_len: options.slot_len,
            free: (0..size).rev().collect(),
        })
    }

    fn buffer(&self, slot: u16) -> Buffer {
        Buffer {
            addr: self.slots + u64::from(slot) * u64::from(self.slot_len),
            len: self.slot_len,
        }
    }

    fn give_back(&mut self, token: u64) -> u16 {
        // Tokens are slots that this queue handed out.
        let slot = u16::try_from(token).unwrap_or(0);
        self.free.push(slot);
        slot
    }

    fn post(&mut self) -> Result<(), EndpointError> {
        while let Some(slot) = self.free.pop() {
            let buffer = self.buffer(slot);
            if self.driver.push(&[], &[buffer], u64::from(slot)).is_err() {
                self.free.push(slot);
                break;
            }
        }
        self.publish()
    }

    fn publish(&mut self) -> Result<(), EndpointError> {
        if self.driver.publish() {
            self.kick.write(1)?;
        }
        Ok(())
    }
}
