//! One connection to a back-end, from its first message to its last.
//!
//! ```text
//!   open ──► idle ──start──► running ──stop──► idle ──start──► …
//!              │                │
//!              └── any error: the connection is dropped, the supervisor makes a new one ──┘
//! ```

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Error as ProtocolError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::back_channel::BackChannel;
use super::config::{CONFIG_LEN, NetConfig, REST_LEN};
use super::features::{self, FeatureNames};
use super::watchdog::Watchdog;
use crate::memory::RamRegion;

mod kept;
mod step;

pub(super) use kept::Kept;
use step::Step;
pub use step::{LinkError, Timeouts};

/// Virtqueues that a back-end may have for a NIC to make use of them all.
const MAX_QUEUES: u64 = 2 * super::net::MAX_QUEUE_PAIRS as u64 + 1;
/// What a `SET_MEM_TABLE` message has room for.
const TABLE_REGIONS: usize = 8;

/// One virtqueue as the back-end is told of it.
#[derive(Debug)]
pub(super) struct Vring<'a> {
    pub(super) index: u16,
    pub(super) size: u16,
    /// User-space addresses, as vhost-user wants them.
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    /// The next available descriptor that the back-end shall take.
    pub(super) base: u16,
    pub(super) kick: &'a EventFd,
    pub(super) call: &'a EventFd,
    pub(super) error: &'a EventFd,
    pub(super) enabled: bool,
}

/// A negotiated connection.
#[derive(Debug)]
pub(super) struct Link {
    requests: Requests,
    stream: UnixStream,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    pairs: u16,
    /// The virtqueue that is the control queue, if the back-end serves that itself.
    control: Option<u16>,
    config: Option<NetConfig>,
    /// Where the back-end says that its configuration has changed, if it can.
    back_channel: Option<BackChannel>,
    /// The guest memory that the back-end has.
    memory: Vec<RamRegion>,
    started: Vec<u16>,
    timeouts: Timeouts,
}

struct Requests(Frontend);

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Frontend").field(&self.0.as_raw_fd()).finish()
    }
}

impl Link {
    /// Takes ownership of the back-end and learns what it offers. `pairs` is what the NIC has room for.
    pub(super) fn open(
        stream: UnixStream,
        pairs: u16,
        watchdog: &Watchdog,
        timeouts: Timeouts,
    ) -> Result<Self, LinkError> {
        let step = Step::begin(watchdog, &stream, timeouts.negotiate)?;
        let socket = stream.try_clone().map_err(LinkError::Watch)?;
        let frontend = Frontend::from_stream(socket, MAX_QUEUES);

        step.check("SET_OWNER", frontend.set_owner())?;
        let features = step.check("GET_FEATURES", frontend.get_features())?;
        if features & features::VERSION_1 == 0 {
            return Err(LinkError::MissingFeatures(FeatureNames(features::VERSION_1)));
        }
        let mut link = Self {
            requests: Requests(frontend),
            stream,
            features,
            protocol: VhostUserProtocolFeatures::empty(),
            pairs: 1,
            control: None,
            config: None,
            back_channel: None,
            memory: Vec::new(),
            started: Vec::new(),
            timeouts,
        };
        if features & features::PROTOCOL_FEATURES != 0 {
            link.negotiate_protocol(&step, pairs)?;
        }
        Ok(link)
    }

    fn negotiate_protocol(&mut self, step: &Step, pairs: u16) -> Result<(), LinkError> {
        let frontend = &mut self.requests.0;
        let known = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let offered = step.check("GET_PROTOCOL_FEATURES", frontend.get_protocol_features())?;
        self.protocol = offered & known;
        step.check(
            "SET_PROTOCOL_FEATURES",
            frontend.set_protocol_features(self.protocol),
        )?;
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            let queues = step.check("GET_QUEUE_NUM", frontend.get_queue_num())?;
            self.pairs = u16::try_from(queues / 2).unwrap_or(u16::MAX).clamp(1, pairs);
            // The queue behind the last pair: there is no other word for it in the protocol.
            let serves = self.features & features::SERVES_CONTROL == features::SERVES_CONTROL;
            if serves && queues % 2 == 1 && queues <= MAX_QUEUES {
                self.control = u16::try_from(queues - 1).ok();
            }
        }
        if self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let (ours, theirs) = BackChannel::pair().map_err(LinkError::Watch)?;
            step.check("SET_BACKEND_REQ_FD", frontend.set_backend_request_fd(&theirs))?;
            self.back_channel = Some(ours);
        }
        let has_config = self.protocol.contains(VhostUserProtocolFeatures::CONFIG);
        if !has_config {
            // Without it the back-end could not be told which address is the guest's.
            self.control = None;
        }
        if has_config {
            self.config = read_config(frontend, step, self.control.is_some())?;
        }
        Ok(())
    }

    /// The virtio features that the back-end offers, as far as a front-end can use them.
    pub(super) fn features(&self) -> u64 {
        let mut features = self.features & features::BACKEND;
        if self.control.is_some() {
            features |= self.features & features::CONTROL;
        }
        if self.pairs < 2 {
            features &= !features::MQ;
        }
        if self.mtu().is_none() {
            features &= !features::MTU;
        }
        if !self.keeps() {
            features &= !features::RING_PACKED;
        }
        features
    }

    /// Queue pairs that the back-end serves, at most what the NIC has room for.
    pub(super) fn pairs(&self) -> u16 {
        self.pairs
    }

    /// The virtqueue that is the control queue, if the back-end serves that itself.
    pub(super) fn control(&self) -> Option<u16> {
        self.control
    }

    /// What the configuration space says of receive-side scaling.
    pub(super) fn rest(&self) -> [u8; REST_LEN] {
        self.config.map(|c| c.rest).unwrap_or_default()
    }

    /// Whether the back-end asks the guest to announce itself.
    pub(super) fn announces(&self) -> bool {
        self.config
            .is_some_and(|c| c.status & super::config::ANNOUNCE != 0)
    }

    /// Tells a back-end that filters by address which one is the guest's.
    pub(super) fn set_mac(&mut self, watchdog: &Watchdog, mac: [u8; 6]) -> Result<(), LinkError> {
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        self.ask_for_acks();
        let answer = self
            .requests
            .0
            .set_config(0, VhostUserConfigFlags::WRITABLE, &mac);
        step.check("SET_CONFIG", answer)
    }

    /// The MAC address that the back-end wants the NIC to have.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        self.config
            .filter(|_| self.features & features::MAC != 0)
            .map(|c| c.mac)
    }

    /// The MTU that the back-end asks the guest to keep to.
    pub(super) fn mtu(&self) -> Option<u16> {
        self.config
            .filter(|c| self.features & features::MTU != 0 && c.mtu >= super::config::MIN_MTU)
            .map(|c| c.mtu)
    }

    /// The back-end's own link state; one without a say is up.
    pub(super) fn carrier(&self) -> bool {
        self.config
            .filter(|_| self.features & features::STATUS != 0)
            .is_none_or(|c| c.status & super::config::LINK_UP != 0)
    }

    /// Where the back-end speaks unasked.
    pub(super) fn back_channel(&self) -> Option<BorrowedFd<'_>> {
        self.back_channel.as_ref().map(AsFd::as_fd)
    }

    /// Whether the back-end has said that its configuration is another.
    pub(super) fn config_changed(&mut self) -> bool {
        let Some(channel) = &mut self.back_channel else {
            return false;
        };
        channel.changes().unwrap_or_else(|_| {
            self.back_channel = None;
            false
        })
    }

    /// Reads the back-end's configuration again.
    pub(super) fn refresh(&mut self, watchdog: &Watchdog) -> Result<(), LinkError> {
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        let whole = self.control.is_some();
        self.config = self.plain(|frontend| read_config(frontend, &step, whole))?;
        Ok(())
    }

    /// Hands the guest's memory and rings over, and lets the enabled rings run.
    pub(super) fn start(
        &mut self,
        watchdog: &Watchdog,
        acked: u64,
        memory: &[RamRegion],
        kept: &mut Option<Kept>,
        rings: &[Vring<'_>],
    ) -> Result<(), LinkError> {
        let step = Step::begin(watchdog, &self.stream, self.timeouts.start)?;
        self.ask_for_acks();
        // The back-end is told of its own features only: bits that the front-end serves mean nothing to it.
        let told = acked & self.features & !features::PROTOCOL_FEATURES;
        let protocol = self.features & features::PROTOCOL_FEATURES;
        step.check("SET_FEATURES", self.requests.0.set_features(told | protocol))?;
        self.send_memory(&step, memory)?;
        self.hand_kept_over(&step, kept, rings)?;
        // Every ring is described before the first is enabled: some back-ends start a device at the first
        // enabled pair and then look at all of its rings.
        for ring in rings {
            self.describe(&step, ring)?;
        }
        if protocol != 0 {
            for ring in rings {
                self.enable(&step, ring.index, ring.enabled)?;
            }
        }
        // Last: what a ring has to send that runs before it is enabled is discarded.
        rings.iter().try_for_each(|ring| self.run(&step, ring))
    }

    /// Starts a single ring beside those that run.
    pub(super) fn start_ring(&mut self, watchdog: &Watchdog, ring: &Vring<'_>) -> Result<(), LinkError> {
        let step = Step::begin(watchdog, &self.stream, self.timeouts.start)?;
        self.describe(&step, ring)?;
        if self.features & features::PROTOCOL_FEATURES != 0 {
            self.enable(&step, ring.index, ring.enabled)?;
        }
        self.run(&step, ring)
    }

    fn describe(&mut self, step: &Step, ring: &Vring<'_>) -> Result<(), LinkError> {
        let frontend = &self.requests.0;
        let index = usize::from(ring.index);
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: ring.desc,
            used_ring_addr: ring.used,
            avail_ring_addr: ring.avail,
            log_addr: None,
        };
        step.check("SET_VRING_NUM", frontend.set_vring_num(index, ring.size))?;
        step.check("SET_VRING_ADDR", frontend.set_vring_addr(index, &addresses))?;
        step.check("SET_VRING_BASE", frontend.set_vring_base(index, ring.base))?;
        step.check("SET_VRING_CALL", frontend.set_vring_call(index, ring.call))?;
        step.check("SET_VRING_ERR", frontend.set_vring_err(index, ring.error))
    }

    fn run(&mut self, step: &Step, ring: &Vring<'_>) -> Result<(), LinkError> {
        let index = usize::from(ring.index);
        // From here on the back-end may touch the guest's memory for this ring: it counts as started even if
        // the answer is lost.
        self.started.push(ring.index);
        step.check("SET_VRING_KICK", self.requests.0.set_vring_kick(index, ring.kick))
    }

    /// Makes the back-end's view of the guest's memory `memory`.
    fn send_memory(&mut self, step: &Step, memory: &[RamRegion]) -> Result<(), LinkError> {
        let has = |list: &[RamRegion], r: &RamRegion| {
            list.iter()
                .any(|o| (o.guest_addr, o.len) == (r.guest_addr, r.len))
        };
        let added: Vec<_> = memory
            .iter()
            .filter(|r| !has(&self.memory, r))
            .map(region_info)
            .collect();
        let gone: Vec<_> = self
            .memory
            .iter()
            .filter(|r| !has(memory, r))
            .map(region_info)
            .collect();
        if added.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let slots = self
            .protocol
            .contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
        let room = if slots {
            let slots = self.plain(VhostUserFrontend::get_max_mem_slots);
            step.check("GET_MAX_MEM_SLOTS", slots)?
        } else {
            TABLE_REGIONS as u64
        };
        if room < memory.len() as u64 {
            return Err(LinkError::MemorySlots {
                has: room,
                needed: memory.len(),
            });
        }
        let frontend = &mut self.requests.0;
        if !slots || (self.memory.is_empty() && memory.len() <= TABLE_REGIONS) {
            let table: Vec<_> = memory.iter().map(region_info).collect();
            step.check("SET_MEM_TABLE", frontend.set_mem_table(&table))?;
        } else {
            for region in &gone {
                step.check("REM_MEM_REG", frontend.remove_mem_region(region))?;
            }
            for region in &added {
                step.check("ADD_MEM_REG", frontend.add_mem_region(region))?;
            }
        }
        self.memory = memory.to_vec();
        Ok(())
    }

    /// Tells a back-end that has the guest's memory already what it is now.
    pub(super) fn change_memory(
        &mut self,
        watchdog: &Watchdog,
        memory: &[RamRegion],
    ) -> Result<(), LinkError> {
        if self.memory.is_empty() {
            return Ok(());
        }
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        self.send_memory(&step, memory)
    }

    /// Enables or disables both rings of a queue pair.
    pub(super) fn enable_pair(
        &mut self,
        watchdog: &Watchdog,
        pair: u16,
        enabled: bool,
    ) -> Result<(), LinkError> {
        if self.features & features::PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        for index in [pair * 2, pair * 2 + 1] {
            if self.started.contains(&index) {
                self.enable(&step, index, enabled)?;
            }
        }
        Ok(())
    }

    fn enable(&mut self, step: &Step, index: u16, enabled: bool) -> Result<(), LinkError> {
        let answer = self.requests.0.set_vring_enable(usize::from(index), enabled);
        step.check("SET_VRING_ENABLE", answer)
    }

    /// Has the back-end interrupt for a ring by another eventfd.
    pub(super) fn set_call(
        &mut self,
        watchdog: &Watchdog,
        index: u16,
        call: &EventFd,
    ) -> Result<(), LinkError> {
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        step.check(
            "SET_VRING_CALL",
            self.requests.0.set_vring_call(usize::from(index), call),
        )
    }

    /// Stops every ring: when it returns without error, the back-end uses no guest memory any more. Tells where each stopped.
    pub(super) fn stop(&mut self, watchdog: &Watchdog) -> Result<Vec<(u16, u16)>, LinkError> {
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        let mut places = Vec::with_capacity(self.started.len());
        while !self.started.is_empty() {
            let index = self.started.remove(0);
            places.push((index, self.take_back(&step, index)?));
        }
        Ok(places)
    }

    /// Stops one ring, as [`stop`](Self::stop) does all of them.
    pub(super) fn stop_ring(&mut self, watchdog: &Watchdog, index: u16) -> Result<(), LinkError> {
        let Some(at) = self.started.iter().position(|started| *started == index) else {
            return Ok(());
        };
        let step = Step::begin(watchdog, &self.stream, self.timeouts.change)?;
        self.started.remove(at);
        self.take_back(&step, index).map(drop)
    }

    fn take_back(&mut self, step: &Step, index: u16) -> Result<u16, LinkError> {
        let stopped = self.plain(|frontend| frontend.get_vring_base(usize::from(index)));
        let place = step.check("GET_VRING_BASE", stopped)?;
        if self.features & features::PROTOCOL_FEATURES != 0 {
            self.enable(step, index, false)?;
        }
        // The next available descriptor; above it, in a packed ring, the next to be used: with nothing under way the same.
        Ok(u16::try_from(place & 0xffff).unwrap_or_default())
    }

    /// Asks for an answer to every message from now on, if the back-end can give one.
    fn ask_for_acks(&self) {
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.requests.0.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }

    /// A request with an answer of its own, which must not ask for another.
    fn plain<T>(&mut self, request: impl FnOnce(&mut Frontend) -> T) -> T {
        self.requests.0.set_hdr_flags(VhostUserHeaderFlag::empty());
        let result = request(&mut self.requests.0);
        self.ask_for_acks();
        result
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn region_info(region: &RamRegion) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_addr,
        memory_size: region.len,
        userspace_addr: region.host_addr,
        mmap_offset: region.offset,
        mmap_handle: region.memfd.as_raw_fd(),
    }
}

/// The back-end's configuration space, or what is common to all of them; a back-end that says it has none is taken at its
/// word.
fn read_config(frontend: &mut Frontend, step: &Step, whole: bool) -> Result<Option<NetConfig>, LinkError> {
    let Some(bytes) = read_part(frontend, step, 0)? else {
        return Ok(None);
    };
    let mut config = NetConfig::from_bytes(&bytes);
    if whole && let Some(rest) = read_part(frontend, step, CONFIG_LEN)? {
        config.rest = rest;
    }
    Ok(Some(config))
}

fn read_part(
    frontend: &mut Frontend,
    step: &Step,
    offset: usize,
) -> Result<Option<[u8; CONFIG_LEN]>, LinkError> {
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let flags = VhostUserConfigFlags::empty();
    match frontend.get_config(word(offset), word(CONFIG_LEN), flags, &[0; CONFIG_LEN]) {
        Err(vhost::Error::VhostUserProtocol(ProtocolError::BackendInternalError)) => Ok(None),
        answer => {
            let (_, bytes) = step.check("GET_CONFIG", answer)?;
            Ok(<[u8; CONFIG_LEN]>::try_from(bytes.as_slice()).ok())
        }
    }
}
