//! A guest's driver, as far as a device can tell.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::fd::borrow;
use crate::memory::{GuestRam, RamRegion};
use crate::virtio::device::{Activation, ActiveQueue, ConfigIrq, QueueIrq};
use crate::virtio::irq::{DeviceEvents, VectorCell};

pub(crate) const RING_SIZE: u16 = 16;
const RAM: u64 = 4 << 20;
/// Each ring has its tables in 64 KiB of its own, and its buffers in another.
const RINGS: u64 = 0x10_0000;
const BUFFERS: u64 = 0x20_0000;
const STEP: u64 = 0x1_0000;

/// How long anything that has to happen may take before a test gives up on it.
pub(crate) const SOON: Duration = Duration::from_secs(20);

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) struct Guest {
    pub(crate) ram: GuestRam,
    pub(crate) events: Arc<DeviceEvents>,
    pub(crate) config_interrupt: EventFd,
    pub(crate) queues: Vec<GuestQueue>,
}

pub(crate) struct GuestQueue {
    index: u16,
    mem: Arc<GuestMemoryMmap<()>>,
    pub(crate) kick: EventFd,
    pub(crate) interrupt: EventFd,
    pub(crate) vector: Arc<VectorCell>,
    next_desc: u16,
}

impl Guest {
    /// A guest with room for `queues` virtqueues.
    pub(crate) fn new(queues: u16) -> Self {
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, RAM).unwrap();
        let file = std::fs::File::from(fd);
        let size = usize::try_from(RAM).unwrap();
        let range = (
            GuestAddress(0),
            size,
            Some(FileOffset::new(file.try_clone().unwrap(), 0)),
        );
        let mem = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap());
        let host_addr = mem
            .find_region(GuestAddress(0))
            .unwrap()
            .get_host_address(MemoryRegionAddress(0))
            .unwrap()
            .addr();
        let region = RamRegion {
            guest_addr: 0,
            len: RAM,
            memfd: Arc::new(file),
            offset: 0,
            host_addr: host_addr as u64,
        };
        let ram = GuestRam {
            mem: Arc::clone(&mem),
            regions: vec![region],
            rings: Arc::default(),
        };
        let events = Arc::new(DeviceEvents::default());
        let config_interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let queues = (0..queues)
            .map(|index| GuestQueue {
                index,
                mem: Arc::clone(&mem),
                kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                interrupt: EventFd::new(EFD_NONBLOCK).unwrap(),
                vector: Arc::new(VectorCell::default()),
                next_desc: 0,
            })
            .collect();
        Self {
            ram,
            events,
            config_interrupt,
            queues,
        }
    }

    /// What the transport hands over at `DRIVER_OK`. The rings are empty again, as after a driver's probe.
    pub(crate) fn activation(&mut self, features: u64) -> Activation {
        self.events
            .config_vector
            .set(Some(self.config_interrupt.try_clone().unwrap()));
        let queues = self.queues.iter_mut().map(GuestQueue::activate).collect();
        Activation {
            mem: self.ram.clone(),
            queues,
            features,
            config_irq: ConfigIrq::new(Arc::clone(&self.events)),
        }
    }
}

impl GuestQueue {
    fn base(&self) -> u64 {
        RINGS + STEP * u64::from(self.index)
    }

    fn avail(&self) -> u64 {
        self.base() + 0x1000
    }

    fn used(&self) -> u64 {
        self.base() + 0x2000
    }

    /// Where this queue's buffers lie.
    pub(crate) fn buffer(&self) -> u64 {
        BUFFERS + STEP * u64::from(self.index)
    }

    /// The ring, empty, as the transport hands it over.
    pub(crate) fn activate(&mut self) -> ActiveQueue {
        self.mem
            .write_slice(&[0; 0x3000], GuestAddress(self.base()))
            .unwrap();
        self.next_desc = 0;
        self.vector.set(Some(self.interrupt.try_clone().unwrap()));
        ActiveQueue {
            index: self.index,
            size: RING_SIZE,
            desc: self.base(),
            avail: self.avail(),
            used: self.used(),
            kick: self.kick.try_clone().unwrap(),
            irq: QueueIrq::new(self.index, Arc::clone(&self.vector)),
        }
    }

    fn descriptor(&self, slot: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.base() + 16 * u64::from(slot % RING_SIZE));
        self.mem.write_obj(addr, at).unwrap();
        self.mem.write_obj(len, at.unchecked_add(8)).unwrap();
        self.mem.write_obj(flags, at.unchecked_add(12)).unwrap();
        self.mem.write_obj(next, at.unchecked_add(14)).unwrap();
    }

    /// Makes a chain of `(address, length, writable)` available and kicks.
    pub(crate) fn post(&mut self, buffers: &[(u64, u32, bool)]) {
        let head = self.next_desc % RING_SIZE;
        for (i, (addr, len, writable)) in buffers.iter().enumerate() {
            let slot = self.next_desc % RING_SIZE;
            self.next_desc = self.next_desc.wrapping_add(1);
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if *writable { WRITE } else { 0 };
            self.descriptor(slot, *addr, *len, flags, self.next_desc % RING_SIZE);
        }
        self.make_available(head);
    }

    /// Makes a chain out of one descriptor that is its own successor.
    pub(crate) fn loop_at(&self, slot: u16, addr: u64, len: u32) {
        self.descriptor(slot, addr, len, NEXT, slot);
    }

    /// Puts a head into the available ring, whatever it is, and kicks.
    pub(crate) fn make_available(&mut self, head: u16) {
        let index: u16 = self.mem.read_obj(GuestAddress(self.avail() + 2)).unwrap();
        let entry = GuestAddress(self.avail() + 4 + 2 * u64::from(index % RING_SIZE));
        self.mem.write_obj(head, entry).unwrap();
        self.set_avail_index(index.wrapping_add(1));
    }

    pub(crate) fn set_avail_index(&mut self, index: u16) {
        self.mem
            .store(index, GuestAddress(self.avail() + 2), Ordering::Release)
            .unwrap();
        self.kick.write(1).unwrap();
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.mem
            .load(GuestAddress(self.used() + 2), Ordering::Acquire)
            .unwrap()
    }

    /// Does as a back-end that has completed `index` buffers.
    pub(crate) fn set_used_index(&self, index: u16) {
        self.mem
            .store(index, GuestAddress(self.used() + 2), Ordering::Release)
            .unwrap();
    }

    /// Waits for the `count`-th used buffer since the start and returns its head and length.
    pub(crate) fn wait_used(&self, count: u16) -> (u32, u32) {
        let used_event = GuestAddress(self.avail() + 4 + 2 * u64::from(RING_SIZE));
        self.mem.store(count - 1, used_event, Ordering::SeqCst).unwrap();
        while self.used_index() != count {
            wait_for(&self.interrupt);
        }
        let at = self.used() + 4 + 8 * u64::from((count - 1) % RING_SIZE);
        (
            self.mem.read_obj(GuestAddress(at)).unwrap(),
            self.mem.read_obj(GuestAddress(at + 4)).unwrap(),
        )
    }
}

/// Waits until an eventfd is signalled and takes the signal.
pub(crate) fn wait_for(fd: &EventFd) {
    let timeout = Timespec::try_from(SOON).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(borrow(fd), PollFlags::IN)];
    assert_eq!(
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap(),
        1,
        "not signalled within {SOON:?}"
    );
    fd.read().unwrap();
}
