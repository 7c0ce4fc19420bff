//! The NIC as its guest set it up: the data rings, and how each of them interrupts.

use std::io;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::features;
use super::link::{Kept, Link, Vring};
use crate::memory::{GuestRam, RamRegion};
use crate::virtio::device::{ActivateError, ActiveQueue, ConfigIrq};

/// Bytes of an event suppression area of a packed ring.
const EVENT_LEN: u64 = virtio::packed::EVENT_LEN as u64;
/// The first descriptor of a packed ring, with the wrap counter set.
const PACKED_START: u16 = virtio::packed::WRAP;

/// A NIC between `DRIVER_OK` and reset.
#[derive(Debug)]
pub(super) struct ActiveNic {
    pub(super) acked: u64,
    pub(super) ram: GuestRam,
    pub(super) config_irq: ConfigIrq,
    /// The control queue among the rings, if the back-end serves that.
    pub(super) control: Option<u16>,
    rings: Vec<Ring>,
    /// Back-ends signal here that a guest broke one of its rings.
    error: EventFd,
    /// A back-end may have run these rings: the next one goes on where it stopped.
    handed_over: bool,
    /// What back-ends keep with us for the next one.
    pub(super) kept: Option<Kept>,
}

/// A data ring, found inside the guest's memory.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) queue: ActiveQueue,
    desc: u64,
    avail: u64,
    used: u64,
    /// Where the back-end interrupts the guest.
    call: EventFd,
    /// Of a packed ring: where a back-end was last known to be, with the wrap counter in bit 15.
    place: Option<u16>,
}

impl Ring {
    /// Finds the ring in memory; `acked` says of which kind it is.
    pub(super) fn new(queue: ActiveQueue, regions: &[RamRegion], acked: u64) -> Result<Self, ActivateError> {
        let size = u64::from(queue.size);
        let packed = acked & features::RING_PACKED != 0;
        let (avail_len, used_len) = if packed {
            (EVENT_LEN, EVENT_LEN)
        } else {
            (6 + 2 * size, 6 + 8 * size)
        };
        let at = |what, addr, len| {
            host_address(regions, addr, len).ok_or(ActivateError::RingOutsideMemory {
                queue: queue.index,
                ring: what,
                addr,
            })
        };
        let desc = at("descriptor table", queue.desc, 16 * size)?;
        let avail = at("available ring", queue.avail, avail_len)?;
        let used = at("used ring", queue.used, used_len)?;
        let call = call_fd(&queue)?;
        Ok(Self {
            queue,
            desc,
            avail,
            used,
            call,
            place: packed.then_some(PACKED_START),
        })
    }
}

impl ActiveNic {
    /// Takes the data rings over, and the control queue if that is the back-end's to serve.
    pub(super) fn new(
        acked: u64,
        ram: GuestRam,
        queues: Vec<ActiveQueue>,
        config_irq: ConfigIrq,
        control: Option<u16>,
    ) -> Result<Self, ActivateError> {
        let rings = queues
            .into_iter()
            .map(|queue| Ring::new(queue, &ram.regions, acked))
            .collect::<Result<Vec<_>, _>>()?;
        let error = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self {
            acked,
            ram,
            config_irq,
            control,
            rings,
            error,
            handed_over: false,
            kept: None,
        })
    }

    /// The rings are about to be given to a back-end; true if one had them before.
    pub(super) fn handed_over(&mut self) -> bool {
        std::mem::replace(&mut self.handed_over, true)
    }

    /// The rings as a back-end is told of them, the first `pairs` queue pairs enabled. It starts them, or goes on
    /// where another left off.
    pub(super) fn vrings(&self, pairs: u16, go_on: bool, link: &Link) -> Vec<Vring<'_>> {
        let base = |ring| {
            if go_on {
                self.resume_index(ring)
            } else {
                start_index(ring)
            }
        };
        self.rings
            .iter()
            .map(|ring| self.vring(ring, pairs, base(ring), link))
            .collect()
    }

    fn vring<'a>(&'a self, ring: &'a Ring, pairs: u16, base: u16, link: &Link) -> Vring<'a> {
        Vring {
            index: self.index_on(link, ring.queue.index),
            size: ring.queue.size,
            desc: ring.desc,
            avail: ring.avail,
            used: ring.used,
            base,
            kick: &ring.queue.kick,
            call: &ring.call,
            error: &self.error,
            // A back-end that serves the control queue knows by itself which pairs are in use.
            enabled: self.control.is_some() || ring.queue.index / 2 < pairs,
        }
    }

    /// What a back-end calls a ring: its control queue comes behind all the pairs that it has.
    pub(super) fn index_on(&self, link: &Link, index: u16) -> u16 {
        link.control()
            .filter(|_| self.control == Some(index))
            .unwrap_or(index)
    }

    /// Takes a ring over that the driver has set up anew.
    pub(super) fn add(&mut self, ring: Ring) {
        self.remove(ring.queue.index);
        let at = self
            .rings
            .partition_point(|other| other.queue.index < ring.queue.index);
        self.rings.insert(at, ring);
    }

    /// One ring as a back-end is told of it that shall begin it at the beginning.
    pub(super) fn new_vring(&self, index: u16, pairs: u16, link: &Link) -> Option<Vring<'_>> {
        let ring = self.rings.iter().find(|ring| ring.queue.index == index)?;
        Some(self.vring(ring, pairs, start_index(ring), link))
    }

    /// Forgets a ring that the driver took back.
    pub(super) fn remove(&mut self, index: u16) {
        self.rings.retain(|ring| ring.queue.index != index);
    }

    /// A back-end has stopped rings, all that it was given of each; these are their numbers on the link and their places.
    pub(super) fn stopped(&mut self, link: &Link, places: &[(u16, u16)]) {
        for (index, place) in places {
            let at = self
                .rings
                .iter()
                .position(|ring| self.index_on(link, ring.queue.index) == *index);
            if let Some(ring) = at.and_then(|at| self.rings.get_mut(at)) {
                ring.place = ring.place.map(|_| *place);
            }
        }
    }

    /// Where a back-end goes on. Back-ends complete in order, so whatever lies behind the used index has not
    /// been done: starting there loses no receive buffer, and repeats at most the burst that the last back-end
    /// died over. A packed ring has no such index; after a back-end that died, the next one has to find out by itself.
    fn resume_index(&self, ring: &Ring) -> u16 {
        if let Some(place) = ring.place {
            return place;
        }
        let index = GuestAddress(ring.queue.used.wrapping_add(2));
        // The ring was found inside the memory when it was activated.
        self.ram.mem.load(index, Ordering::Acquire).unwrap_or_default()
    }

    /// A back-end runs the rings now. Whatever was signalled to one before it is signalled again: it took kicks
    /// that it never served, and may have died between a used buffer and its interrupt.
    pub(super) fn signal_all(&self) {
        for ring in &self.rings {
            // An eventfd that is full is signalled already.
            let _ = ring.queue.kick.write(1);
            let _ = ring.call.write(1);
        }
    }

    /// The driver mapped a ring to another interrupt vector: where the back-end is to signal from now on.
    pub(super) fn renew_call(&mut self, index: u16) -> io::Result<Option<&EventFd>> {
        let Some(ring) = self.rings.iter_mut().find(|ring| ring.queue.index == index) else {
            return Ok(None);
        };
        ring.call = call_fd(&ring.queue)?;
        Ok(Some(&ring.call))
    }

    /// Readable when a back-end has found a ring broken.
    pub(super) fn error(&self) -> &EventFd {
        &self.error
    }

    /// Features of which the guest makes use and that only a back-end can provide.
    pub(super) fn needs(&self) -> u64 {
        match self.control {
            Some(_) => self.acked & (features::BACKEND | features::CONTROL | features::CTRL_VQ),
            None => self.acked & features::BACKEND,
        }
    }
}

/// Where a back-end begins.
fn start_index(ring: &Ring) -> u16 {
    ring.place.map_or(0, |_| PACKED_START)
}

/// The eventfd of the ring's interrupt vector; for a ring without one, an eventfd that nobody listens to, for a
/// back-end cannot be told that there is none.
fn call_fd(queue: &ActiveQueue) -> io::Result<EventFd> {
    match queue.irq.as_irqfd() {
        Some(fd) => Ok(fd),
        None => EventFd::new(EFD_NONBLOCK),
    }
}

/// The address in our address space of `len` bytes of guest memory, if one region holds them all.
fn host_address(regions: &[RamRegion], addr: u64, len: u64) -> Option<u64> {
    let end = addr.checked_add(len)?;
    regions
        .iter()
        .find(|r| addr >= r.guest_addr && end <= r.guest_addr.saturating_add(r.len))
        .map(|r| r.host_addr + (addr - r.guest_addr))
}
