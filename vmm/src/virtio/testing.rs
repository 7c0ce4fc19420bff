//! The driver's side of a transport, for tests: registers by name, and a device that writes down what happens to it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::{GuestRam, RamConfig};
use crate::pci::testing::FakePlatform;
use crate::pci::{ConfigSpace, Function};
use crate::virtio::device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::virtio::pci::VirtioPci;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const NO_VECTOR: u16 = 0xffff;

pub(crate) const ACKNOWLEDGE: u8 = 1;
pub(crate) const DRIVER: u8 = 2;
pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 64;

pub(crate) fn ram() -> GuestRam {
    GuestRam::new(RamConfig {
        size: 4 << 20,
        hugepages: false,
    })
    .unwrap()
}

/// A guest's view of one virtio function.
pub(crate) struct Guest {
    pub(crate) function: VirtioPci,
    pub(crate) platform: Arc<FakePlatform>,
    pub(crate) config: ConfigSpace,
    pub(crate) ram: GuestRam,
}

impl Guest {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let platform = Arc::new(FakePlatform::default());
        let ram = ram();
        let function = VirtioPci::new(device, ram.clone(), Arc::clone(&platform) as _).unwrap();
        let mut config = function.config_space();
        // Memory decoding and bus master, as a driver's probe leaves them.
        function.write_config(&mut config, 4, &[6, 0]);
        Self {
            function,
            platform,
            config,
            ram,
        }
    }

    pub(crate) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_bar(0, offset, &mut data);
        data
    }

    pub(crate) fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(0, offset, data);
    }

    pub(crate) fn write16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u8 {
        let [status] = self.read(20);
        status
    }

    pub(crate) fn set_status(&self, status: u8) -> u8 {
        self.write(20, &[status]);
        self.status()
    }

    pub(crate) fn offered(&self) -> u64 {
        let half = |select| {
            self.write32(0, select);
            u64::from(self.read32(4))
        };
        half(0) | half(1) << 32
    }

    /// Resets and negotiates `features`; true if the device agrees.
    pub(crate) fn negotiate(&self, features: u64) -> bool {
        assert_eq!(self.set_status(0), 0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.write32(8, select);
            self.write32(12, u32::try_from(half & 0xffff_ffff).unwrap());
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK != 0
    }

    /// Sets a queue up with its three parts and enables it; the addresses come back.
    pub(crate) fn set_up_queue(&self, index: u16, size: u16, base: u64) -> QueueAddresses {
        let entries = u64::from(size);
        let avail = base + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        self.write16(22, index);
        self.write16(24, size);
        self.write16(26, index);
        for (offset, value) in [(32, base), (40, avail), (48, used)] {
            self.write(offset, &value.to_le_bytes());
        }
        self.write16(28, 1);
        QueueAddresses {
            size,
            desc: base,
            avail,
            used,
        }
    }

    pub(crate) fn driver_ok(&self) -> u8 {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    }

    /// Makes the function a bus master, or not.
    pub(crate) fn set_bus_master(&mut self, on: bool) {
        let command = if on { 6 } else { 2 };
        self.function.write_config(&mut self.config, 4, &[command, 0]);
    }

    /// Writes to a queue's notification address.
    pub(crate) fn kick(&self, queue: u16) {
        self.write16(0x3000 + 4 * u64::from(queue), queue);
    }
}

/// A driver's end of a queue that was set up: one descriptor for each buffer, at the place of its chain.
#[derive(Debug)]
pub(crate) struct DriverRing {
    mem: Arc<GuestMemoryMmap>,
    at: QueueAddresses,
    next_descriptor: u16,
    avail_index: u16,
    used_index: u16,
}

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

impl DriverRing {
    pub(crate) fn new(ram: &GuestRam, at: QueueAddresses) -> Self {
        Self {
            mem: Arc::clone(&ram.mem),
            at,
            next_descriptor: 0,
            avail_index: 0,
            used_index: 0,
        }
    }

    pub(crate) fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.at.desc + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write_slice(&bytes, at).unwrap();
    }

    /// Gives the chain that starts at descriptor `head`.
    pub(crate) fn give(&mut self, head: u16) {
        let slot = self.at.avail + 4 + 2 * u64::from(self.avail_index % self.at.size);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail_index = self.avail_index.wrapping_add(1);
        self.set_avail_index(self.avail_index);
    }

    pub(crate) fn set_avail_index(&self, index: u16) {
        self.mem
            .store(index, GuestAddress(self.at.avail + 2), Ordering::Release)
            .unwrap();
    }

    /// Gives one buffer.
    pub(crate) fn give_buffer(&mut self, addr: u64, len: u32, flags: u16) {
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.at.size;
        self.descriptor(head, addr, len, flags, 0);
        self.give(head);
    }

    /// Has the device interrupt when it is done with the `index`-th buffer since the start, and not before
    /// (`VIRTIO_F_EVENT_IDX`).
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.at.avail + 4 + 2 * u64::from(self.at.size);
        self.mem
            .store(index, GuestAddress(at), Ordering::Release)
            .unwrap();
    }

    /// True if the device asks to be told of the buffer that was given last (`VIRTIO_F_EVENT_IDX`).
    pub(crate) fn wants_kick(&self) -> bool {
        let at = self.at.used + 4 + 8 * u64::from(self.at.size);
        let event: u16 = self.mem.load(GuestAddress(at), Ordering::SeqCst).unwrap();
        event == self.avail_index.wrapping_sub(1)
    }

    /// The next used buffer, if there is one: its head and length.
    pub(crate) fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self
            .mem
            .load(GuestAddress(self.at.used + 2), Ordering::Acquire)
            .unwrap();
        if index == self.used_index {
            return None;
        }
        let slot = self.at.used + 4 + 8 * u64::from(self.used_index % self.at.size);
        self.used_index = self.used_index.wrapping_add(1);
        let [head, len]: [u32; 2] =
            [0, 4].map(|offset| self.mem.read_obj(GuestAddress(slot + offset)).unwrap());
        Some((head, len))
    }

    /// Waits for the next used buffer.
    pub(crate) fn wait_for_used(&mut self, platform: &FakePlatform, vector: u16) -> (u32, u32) {
        // Without the feature nobody reads it.
        self.set_used_event(self.used_index);
        loop {
            match self.used() {
                Some(used) => return used,
                None => drop(platform.wait_for_interrupt(vector)),
            }
        }
    }
}

/// Where a queue is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueAddresses {
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

/// What happened to a [`FakeDevice`].
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) acked: Vec<u64>,
    pub(crate) active: Option<Activation>,
    pub(crate) resets: usize,
    pub(crate) irq_changes: Vec<u16>,
    pub(crate) queue_resets: Vec<u16>,
    pub(crate) config: [u8; 8],
    pub(crate) refuse_features: bool,
    pub(crate) refuse_start: bool,
    pub(crate) paused: bool,
}

#[derive(Debug)]
pub(crate) struct FakeDevice {
    pub(crate) queues: Vec<u16>,
    pub(crate) features: u64,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

impl FakeDevice {
    pub(crate) fn boxed(queues: &[u16], features: u64) -> (Box<dyn VirtioDevice>, Arc<Mutex<Seen>>) {
        let seen = Arc::<Mutex<Seen>>::default();
        let device = Self {
            queues: queues.to_vec(),
            features,
            seen: Arc::clone(&seen),
        };
        (Box::new(device), seen)
    }
}

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u32 {
        1
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn ack_features(&mut self, features: u64) -> bool {
        let mut seen = self.seen.lock().unwrap();
        seen.acked.push(features);
        !seen.refuse_features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let seen = self.seen.lock().unwrap();
        for (byte, at) in data.iter_mut().zip(usize::try_from(offset).unwrap()..) {
            *byte = seen.config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut seen = self.seen.lock().unwrap();
        for (byte, at) in data.iter().zip(usize::try_from(offset).unwrap()..) {
            if let Some(slot) = seen.config.get_mut(at) {
                *slot = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = self.seen.lock().unwrap();
        if seen.refuse_start {
            return Err(ActivateError::MissingQueue(0));
        }
        seen.active = Some(activation);
        Ok(())
    }

    fn pause(&mut self) {
        self.seen.lock().unwrap().paused = true;
    }

    fn resume(&mut self) {
        self.seen.lock().unwrap().paused = false;
    }

    fn reset(&mut self) {
        let mut seen = self.seen.lock().unwrap();
        seen.resets += 1;
        seen.active = None;
        seen.paused = false;
    }

    fn queue_irq_changed(&mut self, index: u16) {
        self.seen.lock().unwrap().irq_changes.push(index);
    }

    fn reset_queue(&mut self, index: u16) {
        let mut seen = self.seen.lock().unwrap();
        seen.queue_resets.push(index);
        if let Some(active) = &mut seen.active {
            active.queues.retain(|queue| queue.index != index);
        }
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let mut seen = self.seen.lock().unwrap();
        if seen.refuse_start {
            return Err(ActivateError::MissingQueue(queue.index));
        }
        if let Some(active) = &mut seen.active {
            active.queues.push(queue);
        }
        Ok(())
    }
}
