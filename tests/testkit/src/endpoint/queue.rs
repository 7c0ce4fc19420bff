//! One virtqueue of an endpoint, with its eventfds and its buffers.

use std::sync::Arc;

use virtio::features;
use virtio::memory::{GuestSlice, MemoryMap};
use virtio::queue::DriverQueue;
use virtio::split::driver::Buffer;
use virtio::split::{QueueConfig, RingError, RingLayout};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{EndpointError, Options};

/// Where a packed queue starts: at its first descriptor, with the wrap counter set.
const PACKED_START: u16 = virtio::packed::WRAP;

/// One virtqueue with its eventfds and its buffers.
#[derive(Debug)]
pub struct Queue {
    /// The driver end.
    pub driver: DriverQueue,
    /// Tells the device of new chains.
    pub kick: EventFd,
    /// Tells of used chains.
    pub call: EventFd,
    /// Where the rings are.
    pub config: QueueConfig,
    /// Where its buffers are.
    pub places: Places,
    /// Working memory: chains to be made together, each with its token.
    pub chains: Vec<(Buffer, u64)>,
    /// Buffers that the device does not have.
    pub free: Vec<u16>,
}

/// Where the buffers of a queue are.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    first: u64,
    pub(super) buffer_len: u32,
    headroom: u32,
    /// How many there are.
    count: u16,
    regions: u16,
    /// From the start of one region to the start of the next.
    pub(super) region_step: u64,
}

/// The memory of a queue's buffers.
#[derive(Debug, Clone, Copy)]
pub struct Area<'m> {
    map: &'m MemoryMap,
    places: Places,
    /// All of it, where that is in one region.
    whole: Option<GuestSlice<'m>>,
}

impl<'m> Area<'m> {
    /// The memory of the buffer with this number.
    #[inline]
    pub fn get(&self, slot: u16) -> Option<GuestSlice<'m>> {
        let places = &self.places;
        let Some(whole) = self.whole else {
            let buffer = places.buffer(slot);
            return self.map.slice(buffer.addr, buffer.len as usize);
        };
        let at = usize::from(slot) * places.buffer_len as usize + places.headroom as usize;
        Some(
            whole
                .skip(at)
                .take((places.buffer_len - places.headroom) as usize),
        )
    }
}

impl Places {
    /// The memory of all buffers, to find many of them in.
    #[inline]
    pub fn area<'m>(&self, map: &'m MemoryMap) -> Area<'m> {
        let len = self.buffer_len as usize * usize::from(self.count);
        Area {
            map,
            places: *self,
            whole: map.slice(self.first, len).filter(|_| self.regions == 1),
        }
    }

    /// The buffer with this number.
    #[inline]
    pub fn buffer(&self, slot: u16) -> Buffer {
        let (region, place) = if self.regions == 1 {
            (0, slot)
        } else {
            (slot % self.regions, slot / self.regions)
        };
        let at = u64::from(place) * u64::from(self.buffer_len) + u64::from(self.headroom);
        Buffer {
            addr: self.first + u64::from(region) * self.region_step + at,
            len: self.buffer_len - self.headroom,
        }
    }
}

impl Queue {
    pub(super) fn new(
        map: &Arc<MemoryMap>,
        at: u64,
        buffer_len: u32,
        region_step: u64,
        options: &Options,
    ) -> Result<Self, EndpointError> {
        let size = options.queue_size;
        let packed = options.features & features::RING_PACKED != 0;
        let layout = RingLayout::new(size);
        let start = if packed { PACKED_START } else { 0 };
        let config = QueueConfig {
            size,
            desc: at + layout.desc,
            avail: at + layout.avail,
            used: at + layout.used,
            event_idx: options.features & features::RING_F_EVENT_IDX != 0,
            indirect: false,
            next_avail: start,
            used_idx: start,
        };
        let mut driver = DriverQueue::new(Arc::clone(map), &config, None, packed)?;
        if options.features & features::IN_ORDER != 0 {
            driver.set_in_order();
        }
        Ok(Self {
            driver,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            config,
            places: Places {
                first: at + layout.len.next_multiple_of(4096),
                buffer_len,
                headroom: options.headroom.min(buffer_len),
                count: size,
                regions: options.regions.max(1),
                region_step,
            },
            chains: Vec::with_capacity(usize::from(size)),
            free: (0..size).rev().collect(),
        })
    }

    /// The buffer with this number.
    #[inline]
    pub fn buffer(&self, slot: u16) -> Buffer {
        self.places.buffer(slot)
    }

    #[inline]
    fn give_back(&mut self, token: u64) -> u16 {
        // Tokens are slots that this queue handed out.
        let slot = u16::try_from(token).unwrap_or(0);
        self.free.push(slot);
        slot
    }

    /// Takes back what the device has used.
    pub fn reclaim(&mut self) -> Result<(), RingError> {
        while let Some((slot, _)) = self.driver.pop_used()? {
            self.give_back(slot);
        }
        Ok(())
    }

    /// Takes the next used buffer back, and the length the device wrote to it.
    #[inline]
    pub fn take(&mut self) -> Result<Option<(Buffer, u32)>, RingError> {
        let Some((slot, len)) = self.driver.pop_used()? else {
            return Ok(None);
        };
        let slot = self.give_back(slot);
        Ok(Some((self.buffer(slot), len)))
    }

    /// Gives every free buffer to the device, to be written.
    pub fn post(&mut self) -> Result<(), EndpointError> {
        let Self {
            driver,
            free,
            places,
            chains,
            ..
        } = self;
        chains.clear();
        // In the order in which they came back, so that each round of the ring is like the one before.
        chains.extend(free.iter().map(|&slot| (places.buffer(slot), u64::from(slot))));
        let posted = driver.push_each(true, chains);
        free.drain(..posted);
        Ok(self.publish()?)
    }

    /// Shows the device what was pushed, and kicks it if it wants that.
    pub fn publish(&mut self) -> std::io::Result<()> {
        if self.driver.publish() {
            self.kick.write(1)?;
        }
        Ok(())
    }
}
