//! One port's driver: a vhost-user front-end with its memory and queue pairs.

mod error;
mod queue;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio::features;
use virtio::memory::{GuestSlice, MemoryMap, SharedMemory};
use virtio::net::HEADER_LEN;
use virtio::split::driver::Buffer;
use virtio::split::{QueueConfig, RingLayout};

pub use error::EndpointError;
pub use queue::{Area, Places, Queue};

/// Where an endpoint's memory starts, for itself and for the back-end.
pub const BASE: u64 = 0x1_0000_0000;
/// Unmapped addresses between two regions.
const GAP: u64 = 2 << 20;

/// What an endpoint is made of.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Queue pairs.
    pub pairs: u16,
    /// Entries of each virtqueue.
    pub queue_size: u16,
    /// Room for one transmitted frame and its virtio-net header.
    pub slot_len: u32,
    /// Bytes of each receive buffer.
    pub buffer_len: u32,
    /// Bytes left free at the start of each slot and each receive buffer.
    pub headroom: u32,
    /// Memory regions that slots and buffers are spread over; the rings are in the first.
    pub regions: u16,
    /// Whether receive buffers are posted at the start.
    pub post: bool,
    /// Feature bits to take of those that are offered.
    pub features: u64,
    /// Whether there is a control queue behind the queue pairs.
    pub control: bool,
    /// Whether it keeps what the back-end wants to find again (`INFLIGHT_SHMFD`).
    pub inflight: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pairs: 1,
            queue_size: 256,
            slot_len: 2048,
            buffer_len: 2048,
            headroom: 0,
            regions: 1,
            post: true,
            features: features::VERSION_1 | features::NET_F_MRG_RXBUF | features::RING_F_EVENT_IDX,
            control: false,
            inflight: false,
        }
    }
}

/// A connected endpoint.
pub struct Endpoint {
    /// The vhost-user connection.
    pub frontend: Frontend,
    /// The same connection, to see whether it still is one, and for messages of one's own.
    pub stream: UnixStream,
    /// The memory shared with the back-end, region by region.
    pub memory: Vec<SharedMemory>,
    /// The same memory by guest address.
    pub map: Arc<MemoryMap>,
    /// Even numbers receive, odd ones transmit.
    pub queues: Vec<Queue>,
    /// What it keeps for the back-end, and how that was described.
    pub inflight: Option<(VhostUserInflight, File)>,
    /// What it was made of.
    pub options: Options,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Connects to the back-end at `socket`, starts every queue pair, and posts all receive buffers unless that is not wanted.
    pub fn connect(socket: &Path, options: Options) -> Result<Self, EndpointError> {
        Self::prepare(socket, options)?.started(socket)
    }

    /// The same on a connection that is there already, to or from `socket`.
    pub fn over(stream: UnixStream, socket: &Path, options: Options) -> Result<Self, EndpointError> {
        Self::prepare_over(stream, socket, options)?.started(socket)
    }

    fn started(mut self, socket: &Path) -> Result<Self, EndpointError> {
        for index in 0..self.queues.len() {
            self.start(index)
                .map_err(|source| EndpointError::handshake(socket, "starting a ring", source))?;
        }
        if self.options.post {
            for pair in 0..self.pairs() {
                self.queues[pair * 2].post()?;
            }
        }
        self.synchronise(socket)?;
        Ok(self)
    }

    /// Connects to the back-end that came after one that died, and has it go on with the rings as they are. It is told no more
    /// of them than where they were started, which is all that some front-ends know of a packed ring.
    pub fn reconnect(&mut self, socket: &Path) -> Result<(), EndpointError> {
        let connect = |source| EndpointError::Connect {
            socket: socket.display().to_string(),
            source,
        };
        self.stream = UnixStream::connect(socket).map_err(connect)?;
        self.frontend = Frontend::from_stream(self.stream.try_clone()?, self.queues.len() as u64);
        self.negotiate(socket)?;
        for index in 0..self.queues.len() {
            // Enabled first: what waits in a ring that is started and not enabled is discarded.
            self.frontend
                .set_vring_enable(index, true)
                .and_then(|()| self.start(index))
                .map_err(|source| EndpointError::handshake(socket, "starting a ring", source))?;
            // What was told to the one that died may never have been heard.
            self.queues[index].kick.write(1)?;
        }
        self.synchronise(socket)
    }

    /// Messages are handled in order: with this answer all rings are enabled.
    fn synchronise(&self, socket: &Path) -> Result<(), EndpointError> {
        self.frontend
            .get_features()
            .map(drop)
            .map_err(|source| EndpointError::handshake(socket, "GET_FEATURES", source))
    }

    /// Connects, negotiates and shares memory; starts nothing.
    pub fn prepare(socket: &Path, options: Options) -> Result<Self, EndpointError> {
        let stream = UnixStream::connect(socket).map_err(|source| EndpointError::Connect {
            socket: socket.display().to_string(),
            source,
        })?;
        Self::prepare_over(stream, socket, options)
    }

    fn prepare_over(stream: UnixStream, socket: &Path, options: Options) -> Result<Self, EndpointError> {
        let size = u64::from(options.queue_size);
        let ring_len = RingLayout::new(options.queue_size).len.next_multiple_of(4096);
        let regions = options.regions.max(1);
        let area = |len: u32| {
            let buffers = u64::from(len) * size.div_ceil(u64::from(regions));
            (ring_len + buffers).next_multiple_of(4096)
        };
        let pair_len = area(options.buffer_len) + area(options.slot_len);
        let control_len = if options.control {
            area(options.slot_len)
        } else {
            0
        };
        let region_len = (pair_len * u64::from(options.pairs) + control_len).next_multiple_of(2 << 20);
        let memory = (0..regions)
            .map(|index| {
                SharedMemory::new(
                    "endpoint",
                    BASE + u64::from(index) * (region_len + GAP),
                    region_len,
                )
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mapped = memory.iter().map(|memory| Arc::clone(memory.region())).collect();
        let map = Arc::new(MemoryMap::new(mapped)?);
        let mut at = BASE;
        let mut queues = Vec::new();
        for index in 0..options.pairs * 2 + u16::from(options.control) {
            let len = if index % 2 == 0 && index < options.pairs * 2 {
                options.buffer_len
            } else {
                options.slot_len
            };
            queues.push(Queue::new(&map, at, len, region_len + GAP, &options)?);
            at += area(len);
        }
        let mut endpoint = Self {
            frontend: Frontend::from_stream(stream.try_clone()?, queues.len() as u64),
            stream,
            memory,
            map,
            queues,
            inflight: None,
            options,
        };
        endpoint.negotiate(socket)?;
        Ok(endpoint)
    }

    /// Whether the back-end has closed the connection.
    pub fn is_hung_up(&self) -> bool {
        let mut byte = [0];
        let peeked = rustix::net::recv(
            &self.stream,
            &mut byte,
            rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT,
        );
        matches!(peeked, Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET))
    }

    fn negotiate(&mut self, socket: &Path) -> Result<(), EndpointError> {
        let options = self.options;
        let failed = |step| move |source| EndpointError::handshake(socket, step, source);
        self.frontend.set_owner().map_err(failed("SET_OWNER"))?;
        let offered = self.frontend.get_features().map_err(failed("GET_FEATURES"))?;
        let missing = options.features & !offered;
        if missing != 0 {
            return Err(EndpointError::Features {
                socket: socket.display().to_string(),
                offered,
                missing,
            });
        }
        let protocol = self
            .frontend
            .get_protocol_features()
            .map_err(failed("GET_PROTOCOL_FEATURES"))?;
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        self.frontend
            .set_protocol_features(protocol & known)
            .map_err(failed("SET_PROTOCOL_FEATURES"))?;
        self.frontend
            .set_features(options.features | features::VHOST_USER_F_PROTOCOL_FEATURES)
            .map_err(failed("SET_FEATURES"))?;
        let regions: Vec<_> = self.memory.iter().map(region_info).collect();
        self.frontend
            .set_mem_table(&regions)
            .map_err(failed("SET_MEM_TABLE"))?;
        if options.inflight {
            let kept = if let Some(kept) = self.inflight.take() {
                kept
            } else {
                let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
                let asked = VhostUserInflight::new(0, 0, queues, options.queue_size);
                let made = self.frontend.get_inflight_fd(&asked);
                made.map_err(failed("GET_INFLIGHT_FD"))?
            };
            let (described, file) = self.inflight.insert(kept);
            self.frontend
                .set_inflight_fd(described, file.as_raw_fd())
                .map_err(failed("SET_INFLIGHT_FD"))?;
        }
        Ok(())
    }

    /// Starts and enables one ring.
    pub fn start(&mut self, index: usize) -> Result<(), vhost::Error> {
        self.restart(index, self.queues[index].config.next_avail)
    }

    /// Starts and enables one ring that stopped at `base`.
    pub fn restart(&mut self, index: usize, base: u16) -> Result<(), vhost::Error> {
        let queue = &self.queues[index];
        let config = queue.config;
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, config.size)?;
        frontend.set_vring_addr(index, &addresses(&config))?;
        frontend.set_vring_base(index, base)?;
        frontend.set_vring_call(index, &queue.call)?;
        // First: what a ring has to send that runs and is not enabled is discarded.
        frontend.set_vring_enable(index, true)?;
        frontend.set_vring_kick(index, &queue.kick)
    }

    /// Stops one ring and starts it anew with `size` entries, as a driver does that resets it (`RING_RESET`).
    pub fn reset(&mut self, index: usize, size: u16) -> Result<(), EndpointError> {
        let failed = |source| EndpointError::Handshake {
            socket: "a running port".to_owned(),
            step: "resetting a ring",
            source,
        };
        self.frontend.get_vring_base(index).map_err(failed)?;
        self.frontend.set_vring_enable(index, false).map_err(failed)?;
        let Queue { config, places, .. } = &self.queues[index];
        let (at, buffer_len, region_step) = (config.desc, places.buffer_len, places.region_step);
        let len = usize::try_from(RingLayout::new(config.size).len).unwrap_or(0);
        if let Some(ring) = self.map.slice(at, len) {
            ring.write_from(0, &vec![0; len]);
        }
        let options = Options {
            queue_size: size,
            ..self.options
        };
        self.queues[index] = Queue::new(&self.map, at, buffer_len, region_step, &options)?;
        self.start(index).map_err(failed)?;
        // Messages are handled in order: with this answer the ring is enabled, and takes what is sent.
        self.frontend.get_features().map_err(failed)?;
        Ok(())
    }

    /// Queue pairs.
    pub fn pairs(&self) -> usize {
        self.queues.len() / 2
    }

    /// Has the device signal no used buffers: this end polls.
    pub fn disable_interrupts(&mut self) {
        for queue in &mut self.queues {
            queue.driver.disable_interrupts();
        }
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
        let ring = &mut self.queues[pair * 2 + 1];
        ring.reclaim()?;
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
        let ring = &mut self.queues[pair * 2];
        let mut taken = 0;
        while taken < limit {
            let Some((buffer, len)) = ring.take()? else {
                break;
            };
            if let Some(memory) = map.slice(buffer.addr, len as usize)
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
    pub fn in_flight(&mut self, pair: usize) -> Result<usize, EndpointError> {
        let ring = &mut self.queues[pair * 2 + 1];
        ring.reclaim()?;
        Ok(ring.driver.in_flight())
    }
}

/// What a memory table says of memory that is shared whole.
pub fn region_info(memory: &SharedMemory) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: memory.region().guest_addr(),
        memory_size: memory.region().len(),
        userspace_addr: memory.region().user_addr(),
        mmap_offset: 0,
        mmap_handle: memory.fd().as_raw_fd(),
    }
}

/// Where a ring is, as `SET_VRING_ADDR` says it.
pub fn addresses(config: &QueueConfig) -> VringConfigData {
    VringConfigData {
        queue_max_size: config.size,
        queue_size: config.size,
        flags: 0,
        desc_table_addr: config.desc,
        used_ring_addr: config.used,
        avail_ring_addr: config.avail,
        log_addr: None,
    }
}
