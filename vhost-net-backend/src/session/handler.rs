//! The requests of one front-end, and what they do to its device.
//!
//! A ring starts when its size, addresses and kick are known and its memory is mapped; it does not wait for the
//! first kick, because a front-end that reconnects after its driver filled the ring may have none to give. It
//! stops with `GET_VRING_BASE`, after which it needs a new kick to start again.

mod control;
mod handover;
mod inflight;
mod memory;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio::features as f;
use virtio::memory::guard::fault_count;
use virtio::memory::{MAX_REGIONS, MemoryMap};
use virtio::queue::Queue;

use control::ControlPart;
use memory::{map, place};

use super::Shared;
use super::back_channel::BackChannel;
use super::handover::RegionState;
use super::inflight::Inflight;
use super::rings::{Addresses, Kicking, RingState};
use crate::config::{PortConfig, STATUS, Status};
use crate::eventfd::{Call, Kick};
use crate::plane::{DevicePlane, Ring};

/// Protocol features offered by every device; the `vhost` crate adds `REPLY_ACK`, which it implements.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::MTU)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// A request refused, in words.
fn refused(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(why))
}

/// The device as one front-end sees it.
pub(super) struct Handler {
    port: Arc<PortConfig>,
    plane: Arc<dyn DevicePlane>,
    shared: Arc<Shared>,
    features: u64,
    protocol: u64,
    /// The front-end sent its protocol features.
    negotiated: bool,
    memory: Option<Arc<MemoryMap>>,
    /// The files of its regions, in the order in which they came.
    files: Vec<(RegionState, OwnedFd)>,
    rings: Vec<RingState>,
    back_channel: BackChannel,
    control: ControlPart,
    inflight: Option<Inflight>,
    /// Pages that vanished in this process when it was last asked.
    faults: usize,
    /// The request just refused leaves nothing behind: a front-end that is told may stay.
    pub(super) keep: bool,
}

impl Handler {
    pub(super) fn new(port: Arc<PortConfig>, plane: Arc<dyn DevicePlane>, shared: Arc<Shared>) -> Self {
        let rings = (0..port.vrings()).map(|_| RingState::default()).collect();
        Self {
            port,
            plane,
            shared,
            features: 0,
            protocol: 0,
            negotiated: false,
            memory: None,
            files: Vec::new(),
            rings,
            back_channel: BackChannel::default(),
            control: ControlPart::default(),
            inflight: None,
            faults: fault_count(),
            keep: false,
        }
    }

    /// Whether the front-end negotiated replies to any request.
    pub(super) fn replies(&self) -> bool {
        self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// `NET_SET_MTU`: whether the value is one the device can have.
    pub(super) fn set_mtu(&mut self, mtu: u64) -> Result<bool> {
        if self.protocol & VhostUserProtocolFeatures::MTU.bits() == 0 {
            return Err(Error::InactiveOperation(VhostUserProtocolFeatures::MTU));
        }
        let accepted = self.port.accepts_mtu(mtu);
        if accepted.is_some() {
            self.shared.status().mtu = accepted;
        }
        Ok(accepted.is_some())
    }

    /// `SEND_RARP`: the network is to learn where this address is now.
    pub(super) fn send_rarp(&mut self, mac: [u8; 6]) -> Result<()> {
        if self.protocol & VhostUserProtocolFeatures::RARP.bits() == 0 {
            return Err(Error::InactiveOperation(VhostUserProtocolFeatures::RARP));
        }
        self.plane.announce(mac);
        Ok(())
    }

    /// The protocol features offered: `RARP` where the plane has a network to tell.
    fn offered_protocol(&self) -> VhostUserProtocolFeatures {
        if self.plane.can_announce() {
            PROTOCOL_FEATURES.union(VhostUserProtocolFeatures::RARP)
        } else {
            PROTOCOL_FEATURES
        }
    }

    /// `SET_VRING_ENABLE`, which needs protocol features negotiated, by whichever message came first. Disabling a ring
    /// that is new is let pass: DPDK's driver, connected anew, stops its device before it negotiates.
    pub(super) fn set_vring_state(&mut self, index: u32, state: u32) -> Result<()> {
        let negotiated = self.negotiated || self.features & f::VHOST_USER_F_PROTOCOL_FEATURES != 0;
        if !negotiated && state != 0 {
            return Err(Error::InactiveFeature(VhostUserVirtioFeatures::PROTOCOL_FEATURES));
        }
        match state {
            0 | 1 => self.set_vring_enable(index, state == 1),
            _ => Err(Error::InvalidParam),
        }
    }

    /// `SET_BACKEND_REQ_FD`: the channel to tell of changes on.
    pub(super) fn set_back_channel(&mut self, socket: OwnedFd) -> Result<()> {
        if self.protocol & VhostUserProtocolFeatures::BACKEND_REQ.bits() == 0 {
            return Err(Error::InactiveOperation(VhostUserProtocolFeatures::BACKEND_REQ));
        }
        self.back_channel
            .open(socket, self.shared.link_up())
            .map_err(Error::ReqHandlerError)
    }

    /// Tell the front-end of a link state that it does not know. True when that is to be tried again.
    pub(super) fn tell_link(&mut self) -> bool {
        // A front-end that cannot read the configuration has no use for it: QEMU's NICs are such.
        let both = VhostUserProtocolFeatures::BACKEND_REQ | VhostUserProtocolFeatures::CONFIG;
        self.protocol & both.bits() == both.bits() && self.back_channel.tell(self.shared.link_up())
    }

    fn index(&self, index: u32) -> Result<(u16, usize)> {
        u16::try_from(index)
            .ok()
            .filter(|index| *index < self.port.vrings())
            .map_or_else(
                || {
                    let pairs = self.port.queue_pairs;
                    Err(refused(format!(
                        "virtqueue {index}: the device has {pairs} queue pairs; use no more"
                    )))
                },
                |index| Ok((index, usize::from(index))),
            )
    }

    /// A ring whose parameters may be changed.
    fn stopped_ring(&mut self, index: u32) -> Result<&mut RingState> {
        let (_, at) = self.index(index)?;
        let ring = &mut self.rings[at];
        if ring.running {
            return Err(refused(format!(
                "virtqueue {index} runs; stop it first (GET_VRING_BASE)"
            )));
        }
        Ok(ring)
    }

    fn publish_status(&self) {
        let data = usize::from(self.port.queue_pairs * 2);
        let bits = |of: fn(&RingState) -> bool| {
            self.rings[..data]
                .iter()
                .enumerate()
                .fold(0, |bits, (at, ring)| bits | u32::from(of(ring)) << at)
        };
        let mut status = self.shared.status();
        status.features = self.features;
        status.started_rings = bits(|ring| ring.running);
        status.enabled_rings = bits(|ring| ring.enabled);
        status.regions = self.memory.as_ref().map_or(0, |memory| memory.regions().len());
    }

    /// Start the ring if nothing is missing.
    fn try_start(&mut self, index: u16) -> Result<()> {
        let (enabled, is_control) = (self.is_enabled(index), self.is_control(index));
        let ring = &mut self.rings[usize::from(index)];
        let Some(memory) = &self.memory else { return Ok(()) };
        let packed = self.features & f::RING_PACKED != 0;
        let Some(mut config) = ring.config(memory, packed) else {
            return Ok(());
        };
        if self.features & f::VERSION_1 == 0 {
            return Err(refused(
                "the driver did not accept VERSION_1; this device serves modern drivers only",
            ));
        }
        config.event_idx = self.features & f::RING_F_EVENT_IDX != 0;
        config.indirect = self.features & f::RING_F_INDIRECT_DESC != 0;
        let mut queue = Queue::new(Arc::clone(memory), &config, packed).map_err(refused)?;
        // What the front-end says of a packed ring may be where it was started once: QEMU sends that after the device died.
        queue.recover();
        let transmits = !is_control && !index.is_multiple_of(2);
        let inflight = self.inflight.as_ref().filter(|_| transmits);
        let taken = inflight.map(|inflight| inflight.start(index, &mut queue));
        let kick = match std::mem::take(&mut ring.kick) {
            Kicking::Fd(kick) => Some(kick),
            Kicking::Never | Kicking::Unknown => None,
        };
        let watched = kick.as_ref().map(Kick::try_clone).transpose();
        ring.watched = watched.map_err(Error::ReqHandlerError)?;
        let again = |call: &Option<Call>| call.as_ref().map(Call::try_clone).transpose();
        let call = again(&ring.call).map_err(Error::ReqHandlerError)?;
        let err = again(&ring.err).map_err(Error::ReqHandlerError)?;
        let started = Ring {
            queue,
            kick,
            call,
            err,
            enabled,
            taken,
        };
        // The device before us may have died between using buffers and saying so.
        started.notify();
        ring.running = true;
        ring.told = enabled;
        if is_control {
            let fresh = started.queue.next_avail() == if packed { virtio::packed::WRAP } else { 0 };
            self.start_control(started.queue, started.kick, fresh)?;
        } else {
            self.plane.ring_started(index, started);
        }
        self.publish_status();
        Ok(())
    }

    fn start_all(&mut self) -> Result<()> {
        (0..self.port.vrings()).try_for_each(|index| self.try_start(index))
    }

    fn stop(&mut self, index: u16) {
        let control = self.is_control(index).then(|| self.stop_control()).flatten();
        let ring = &mut self.rings[usize::from(index)];
        if std::mem::take(&mut ring.running) {
            ring.base = control.unwrap_or_else(|| self.plane.ring_stopped(index));
        }
        // Kicks that are still on their way must not start it again.
        ring.kick = Kicking::Unknown;
        ring.watched = None;
        if let Some(inflight) = &self.inflight {
            inflight.forget(index);
        }
    }

    fn enable(&mut self, index: u16, enabled: bool) {
        self.rings[usize::from(index)].enabled = enabled;
        self.refresh_enabled();
    }

    fn enable_all(&mut self, enabled: bool) {
        (0..self.port.vrings()).for_each(|index| self.enable(index, enabled));
        self.publish_status();
    }

    fn vring_fd<T, E>(
        &mut self,
        index: u8,
        fd: Option<File>,
        make: impl Fn(File) -> std::result::Result<T, E>,
    ) -> Result<(u16, Option<T>)>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let (index, _) = self.index(u32::from(index))?;
        Ok((index, fd.map(make).transpose().map_err(refused)?))
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated; some front-ends use it to disable all rings.
    fn reset_owner(&mut self) -> Result<()> {
        self.enable_all(false);
        Ok(())
    }

    /// All rings stopped and disabled, everything about them forgotten; the connection and the memory stay.
    fn reset_device(&mut self) -> Result<()> {
        (0..self.port.vrings()).for_each(|index| self.stop(index));
        self.rings.fill_with(RingState::default);
        self.features = 0;
        self.control.state = None;
        self.publish_status();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.port.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.port.offered();
        if unknown != 0 {
            return Err(refused(format!(
                "feature bits {unknown:#x} were not offered; acknowledge offered ones"
            )));
        }
        if features != self.features {
            if self.rings.iter().any(|ring| ring.running) {
                return Err(refused("features cannot change while rings run; stop them first"));
            }
            self.features = features;
            self.control.state = None;
            self.plane.features_acked(features);
        }
        if features & f::VHOST_USER_F_PROTOCOL_FEATURES == 0 {
            self.enable_all(true);
        }
        self.publish_status();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mapped = regions.iter().zip(&files).map(|(region, file)| map(region, file));
        let memory = MemoryMap::new(mapped.collect::<Result<_>>()?).map_err(refused)?;
        self.change_memory(memory)?;
        let files = files.into_iter().map(OwnedFd::from);
        self.files = regions.iter().map(place).zip(files).collect();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let packed = self.features & f::RING_PACKED != 0;
        let size = u16::try_from(num)
            .ok()
            .filter(|size| (1..=32768).contains(size) && (packed || size.is_power_of_two()));
        let ring = self.stopped_ring(index)?;
        ring.size = Some(size.ok_or_else(|| {
            refused(format!(
                "virtqueue {index} of {num} entries: use 1 to 32768, a power of two unless the ring is packed"
            ))
        })?);
        self.try_start(u16::try_from(index).unwrap_or(0))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(refused("logging of a ring was not offered"));
        }
        self.stopped_ring(index)?.addresses = Some(Addresses { desc, avail, used });
        self.try_start(u16::try_from(index).unwrap_or(0))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        // The upper half is where a packed ring's used descriptors go on. A device that uses in order and stopped with
        // nothing in flight goes on at the same place, and not every front-end fills it in.
        self.stopped_ring(index)?.base = u16::try_from(base & 0xffff).unwrap_or(0);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (at, ring) = self.index(index)?;
        self.stop(at);
        self.publish_status();
        let next = u32::from(self.rings[ring].base);
        let packed = self.features & f::RING_PACKED != 0;
        // Both positions of a packed ring, each with its wrap counter; nothing is in flight, so they are the same.
        Ok(VhostUserVringState::new(
            index,
            if packed { next << 16 | next } else { next },
        ))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (at, kick) = self.vring_fd(index, fd, Kick::new)?;
        self.stopped_ring(u32::from(index))?.kick = kick.map_or(Kicking::Never, Kicking::Fd);
        self.try_start(at)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (at, call) = self.vring_fd(index, fd, Call::new)?;
        let ring = &mut self.rings[usize::from(at)];
        if ring.running {
            // What was signalled on the old one may not have been heard.
            if let Some(call) = &call {
                call.signal();
            }
            let again = call
                .as_ref()
                .map(Call::try_clone)
                .transpose()
                .map_err(Error::ReqHandlerError)?;
            self.plane.call_changed(at, again);
        }
        ring.call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (at, err) = self.vring_fd(index, fd, Call::new)?;
        self.rings[usize::from(at)].err = err;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.offered_protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered_protocol().bits();
        if unknown != 0 {
            return Err(refused(format!(
                "protocol feature bits {unknown:#x} were not offered"
            )));
        }
        self.protocol = features;
        self.negotiated = true;
        Ok(())
    }

    /// Virtqueues, not pairs: front-ends that mean pairs ask for half as many, so both kinds get what they need.
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.port.vrings()))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (index, _) = self.index(index)?;
        self.enable(index, enable);
        self.publish_status();
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let status = Status {
            link_up: self.shared.link_up(),
            announce: self.control.announcing,
        };
        // The crate has checked that the window ends within 4 KiB.
        let (offset, size) = (offset as usize, size as usize);
        if offset <= STATUS.start && offset + size >= STATUS.end {
            self.back_channel.read(status.link_up);
        }
        Ok(self.port.config_space(status, offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        if self.port.control_queue
            && offset == 0
            && let Ok(mac) = <[u8; 6]>::try_from(buf)
        {
            self.set_mac(mac);
            return Ok(());
        }
        self.keep = true;
        Err(refused(
            "the configuration space of a modern virtio-net device is read-only, but for the address of one that filters",
        ))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let mapped = map(region, &fd)?;
        let memory = match &self.memory {
            Some(memory) => memory.with_region(mapped),
            None => MemoryMap::new(vec![mapped]),
        };
        self.change_memory(memory.map_err(refused)?)?;
        self.files.push((place(region), fd.into()));
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let VhostUserMemoryRegion {
            guest_phys_addr,
            memory_size,
            user_addr,
            ..
        } = **region;
        let Some(memory) = &self.memory else {
            return Err(refused("there is no memory to remove a region from"));
        };
        let memory = memory
            .without_region(guest_phys_addr, user_addr, memory_size)
            .map_err(refused)?;
        self.change_memory(memory)?;
        self.files.retain(|(there, _)| {
            (there.guest_addr, there.user_addr, there.len) != (guest_phys_addr, user_addr, memory_size)
        });
        Ok(())
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.make_inflight(*asked)
    }

    fn set_inflight_fd(&mut self, described: &VhostUserInflight, file: File) -> Result<()> {
        self.take_inflight(*described, file)
    }

    // What follows belongs to protocol features that are not offered; the crate refuses most of it by itself.

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(Error::InvalidMessage)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidMessage)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidMessage)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidMessage)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidMessage)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidMessage)
    }
}
