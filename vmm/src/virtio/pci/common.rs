//! The common configuration registers: feature negotiation, device status, virtqueues.
//!
//! ```text
//!   0 ──ACKNOWLEDGE, DRIVER──► negotiating ──FEATURES_OK──► setting up queues ──DRIVER_OK──► running
//!   ▲                              │ (refused: the bit stays clear)                            │
//!   └───────────────────────── write 0: reset, from every state ───────────────────────────────┘
//! ```
//!
//! A device whose driver is ready runs while its function is a bus master and the VM is not held; else it keeps still.
//!
//! Status bits are only ever added; a queue's registers are frozen once it is enabled, and all of them once
//! `DRIVER_OK` is set. What a driver writes against the rules is ignored.
//!
//! With `VIRTIO_F_RING_RESET`, a driver takes a single queue back by writing 1 to `queue_reset`, which is done when the
//! write returns: both it and `queue_enable` read 0 from then on. The queue's registers may be written again, and enabling
//! it hands it to the device that runs.

use std::sync::Arc;

use tracing::{debug, info};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{NO_VECTOR, QueueRegisters};
use crate::memory::GuestRam;
use crate::pci::msix::Msix;
use crate::pci::registers::{self, Register, RegisterFile};
use crate::virtio::device::{ActivateError, Activation, ConfigIrq, VirtioDevice};
use crate::virtio::irq::DeviceEvents;

pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;
const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
/// The bit of the ISR register that says that the configuration changed.
const ISR_CONFIG: u8 = 2;

#[derive(Clone, Copy, Debug)]
enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    /// Of descriptor table, available and used ring: which, and which half.
    QueueAddress(Ring, bool),
    QueueReset,
}

#[derive(Clone, Copy, Debug)]
enum Ring {
    Desc,
    Avail,
    Used,
}

const fn at(offset: u64, width: u8, id: Field) -> Register<Field> {
    Register { offset, width, id }
}

const MAP: [Register<Field>; 20] = [
    at(0, 4, Field::DeviceFeatureSelect),
    at(4, 4, Field::DeviceFeature),
    at(8, 4, Field::DriverFeatureSelect),
    at(12, 4, Field::DriverFeature),
    at(16, 2, Field::ConfigVector),
    at(18, 2, Field::NumQueues),
    at(20, 1, Field::Status),
    at(21, 1, Field::Generation),
    at(22, 2, Field::QueueSelect),
    at(24, 2, Field::QueueSize),
    at(26, 2, Field::QueueVector),
    at(28, 2, Field::QueueEnable),
    at(30, 2, Field::QueueNotifyOffset),
    at(32, 4, Field::QueueAddress(Ring::Desc, false)),
    at(36, 4, Field::QueueAddress(Ring::Desc, true)),
    at(40, 4, Field::QueueAddress(Ring::Avail, false)),
    at(44, 4, Field::QueueAddress(Ring::Avail, true)),
    at(48, 4, Field::QueueAddress(Ring::Used, false)),
    at(52, 4, Field::QueueAddress(Ring::Used, true)),
    at(58, 2, Field::QueueReset),
];

/// What the device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// Nothing: its driver is not ready, or it did not start.
    Idle,
    Running,
    /// It was started, and keeps still.
    Paused,
}

/// A device and the registers in front of it.
#[derive(Debug)]
pub(super) struct Common {
    device: Box<dyn VirtioDevice>,
    ram: GuestRam,
    events: Arc<DeviceEvents>,
    queues: Vec<QueueRegisters>,
    status: u8,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    activity: Activity,
    /// The function may write to memory.
    bus_master: bool,
    /// The VM is held.
    held: bool,
    /// Queues that were enabled anew while the device was paused.
    late: Vec<u16>,
}

impl Common {
    pub(super) fn new(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Self {
        let queues = device
            .queue_max_sizes()
            .iter()
            .map(|&size| QueueRegisters::new(size))
            .collect();
        Self {
            device,
            ram,
            events: Arc::default(),
            queues,
            status: 0,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            activity: Activity::Idle,
            bus_master: false,
            held: false,
            late: Vec::new(),
        }
    }

    /// Follows the bus master bit: without it the function neither reads nor writes memory.
    pub(super) fn set_bus_master(&mut self, on: bool, kicks: &[EventFd]) {
        self.bus_master = on;
        self.settle(kicks);
    }

    /// Keeps the device from memory, whatever its driver says, for as long as it is `held`.
    pub(super) fn set_held(&mut self, held: bool, kicks: &[EventFd]) {
        self.held = held;
        self.settle(kicks);
    }

    pub(super) fn read(&mut self, msix: &Msix, offset: u64, data: &mut [u8]) {
        registers::read(
            &mut Access {
                common: self,
                msix,
                kicks: &[],
            },
            &MAP,
            offset,
            data,
        );
    }

    pub(super) fn write(&mut self, msix: &Msix, kicks: &[EventFd], offset: u64, data: &[u8]) {
        registers::write(
            &mut Access {
                common: self,
                msix,
                kicks,
            },
            &MAP,
            offset,
            data,
        );
    }

    /// Reading clears. Queues never set their bit: with MSI-X the driver does not look.
    pub(super) fn read_isr(&mut self, offset: u64, data: &mut [u8]) {
        if offset == 0
            && let Some(isr) = data.first_mut()
            && self.events.take_config_changed()
        {
            *isr = ISR_CONFIG;
        }
    }

    pub(super) fn read_device(&mut self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    pub(super) fn write_device(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// Stops the device and forgets all that the driver said.
    pub(super) fn reset(&mut self, kicks: &[EventFd]) {
        self.device.reset();
        self.activity = Activity::Idle;
        self.late.clear();
        for queue in &mut self.queues {
            queue.reset();
        }
        for kick in kicks {
            // Empty is as good: the point is that no old notification is left.
            let _ = kick.read();
        }
        self.events.reset();
        self.status = 0;
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.config_vector = NO_VECTOR;
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn status(&self) -> u8 {
        self.status | if self.events.needs_reset() { NEEDS_RESET } else { 0 }
    }

    fn write_status(&mut self, value: u8, kicks: &[EventFd]) {
        if value == 0 {
            self.reset(kicks);
            return;
        }
        let new = value & !self.status;
        self.status |= new & (ACKNOWLEDGE | DRIVER | FAILED);
        let ready = self.status & (ACKNOWLEDGE | DRIVER | FAILED) == ACKNOWLEDGE | DRIVER;
        if new & FEATURES_OK != 0 && ready && self.negotiate() {
            self.status |= FEATURES_OK;
        }
        if new & DRIVER_OK != 0 && ready && self.status & FEATURES_OK != 0 && !self.events.needs_reset() {
            self.status |= DRIVER_OK;
            self.settle(kicks);
        }
    }

    /// Has the device do what its driver, the bus and the VM let it do.
    fn settle(&mut self, kicks: &[EventFd]) {
        let free = self.bus_master && !self.held;
        let ready = self.status & DRIVER_OK != 0 && !self.events.needs_reset();
        match (self.activity, free) {
            (Activity::Idle, true) if ready => self.start(kicks),
            (Activity::Running, false) => {
                self.device.pause();
                self.activity = Activity::Paused;
            }
            (Activity::Paused, true) => {
                self.device.resume();
                self.activity = Activity::Running;
                for index in std::mem::take(&mut self.late) {
                    self.start_queue(index, kicks);
                }
            }
            _ => {}
        }
    }

    fn start(&mut self, kicks: &[EventFd]) {
        self.activity = Activity::Running;
        if let Err(error) = self.activate(kicks) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &ActivateError) {
        info!(device = self.device.device_type(), %error, "virtio device does not start");
        self.device.reset();
        self.activity = Activity::Idle;
        self.late.clear();
        ConfigIrq::new(Arc::clone(&self.events)).needs_reset();
    }

    /// Takes the selected queue away from the device and forgets what the driver said of it.
    fn reset_queue(&mut self, kicks: &[EventFd]) {
        let index = self.queue_select;
        let at = usize::from(index);
        let negotiated = self.status & FEATURES_OK != 0 && self.driver_features & RING_RESET != 0;
        let Some(queue) = self
            .queues
            .get_mut(at)
            .filter(|queue| negotiated && queue.enabled)
        else {
            return;
        };
        let late = self.late.iter().position(|waiting| *waiting == index);
        if let Some(waiting) = late {
            self.late.remove(waiting);
        } else if self.activity != Activity::Idle {
            self.device.reset_queue(index);
        }
        queue.reset();
        queue.returned = true;
        if let Some(kick) = kicks.get(at) {
            // Empty is as good: the point is that no old notification is left.
            let _ = kick.read();
        }
    }

    /// Hands a queue that was set up anew to the device.
    fn start_queue(&mut self, index: u16, kicks: &[EventFd]) {
        match self.activity {
            // With the others, when it starts.
            Activity::Idle => return,
            Activity::Paused => return self.late.push(index),
            Activity::Running => {}
        }
        let at = usize::from(index);
        let (Some(queue), Some(kick)) = (self.queues.get(at), kicks.get(at)) else {
            return;
        };
        let started = match queue.activate(index, kick) {
            Ok(Some(queue)) => self.device.start_queue(queue),
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = started {
            self.fail(&error);
        }
    }

    fn negotiate(&mut self) -> bool {
        let (offered, wanted) = (self.offered(), self.driver_features);
        let possible = wanted & !offered == 0 && wanted & VERSION_1 != 0;
        let agreed = possible && self.device.ack_features(wanted);
        if !agreed {
            debug!(offered = %format_args!("{offered:#x}"), wanted = %format_args!("{wanted:#x}"), "features refused");
        }
        agreed
    }

    fn activate(&mut self, kicks: &[EventFd]) -> Result<(), ActivateError> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for ((index, queue), kick) in (0..).zip(&self.queues).zip(kicks) {
            queues.extend(queue.activate(index, kick)?);
        }
        let config_irq = ConfigIrq::new(Arc::clone(&self.events));
        let features = self.driver_features;
        self.device.activate(Activation {
            mem: self.ram.clone(),
            queues,
            features,
            config_irq,
        })
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, if its registers can be written.
    fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        let running = self.status & DRIVER_OK != 0;
        self.queues
            .get_mut(usize::from(self.queue_select))
            .filter(|queue| !queue.enabled && (queue.returned || !running))
    }

    fn set_config_vector(&mut self, msix: &Msix, vector: u16) {
        let fd = msix.eventfd(vector);
        self.config_vector = if fd.is_some() { vector } else { NO_VECTOR };
        self.events.config_vector.set(fd);
    }

    /// Possible at any time: vectors may be mapped anew while the device runs.
    fn set_queue_vector(&mut self, msix: &Msix, vector: u16) {
        let index = self.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        let fd = msix.eventfd(vector);
        let vector = if fd.is_some() { vector } else { NO_VECTOR };
        let changed = vector != queue.vector;
        queue.vector = vector;
        queue.cell.set(fd);
        if changed && queue.enabled && self.activity != Activity::Idle {
            self.device.queue_irq_changed(index);
        }
    }

    fn address(&mut self, ring: Ring) -> Option<&mut u64> {
        let queue = self.queue_mut()?;
        Some(match ring {
            Ring::Desc => &mut queue.desc,
            Ring::Avail => &mut queue.avail,
            Ring::Used => &mut queue.used,
        })
    }
}

/// 32 bits of 64, the upper ones if `high`; all others read as zero.
fn window(value: u64, select: u32) -> u32 {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
    match select {
        0 => half(value),
        1 => half(value >> 32),
        _ => 0,
    }
}

/// Writes 32 bits of 64.
fn set_window(value: &mut u64, select: u32, bits: u32) {
    let shift = match select {
        0 => 0,
        1 => 32,
        _ => return,
    };
    *value = *value & !(u64::from(u32::MAX) << shift) | u64::from(bits) << shift;
}

/// An access to the registers, with what their side effects need.
struct Access<'a> {
    common: &'a mut Common,
    msix: &'a Msix,
    kicks: &'a [EventFd],
}

impl RegisterFile for Access<'_> {
    type Id = Field;

    fn get(&mut self, field: Field) -> u32 {
        let common = &*self.common;
        let queue = common.queue();
        match field {
            Field::DeviceFeatureSelect => common.device_feature_select,
            Field::DeviceFeature => window(common.offered(), common.device_feature_select),
            Field::DriverFeatureSelect => common.driver_feature_select,
            Field::DriverFeature => window(common.driver_features, common.driver_feature_select),
            Field::ConfigVector => u32::from(common.config_vector),
            Field::NumQueues => u32::try_from(common.queues.len()).unwrap_or_default(),
            Field::Status => u32::from(common.status()),
            Field::Generation => u32::from(common.events.generation()),
            Field::QueueSelect => u32::from(common.queue_select),
            // A size of zero says that there is no such queue.
            Field::QueueSize => queue.map_or(0, |queue| u32::from(queue.size)),
            Field::QueueVector => queue.map_or(u32::from(NO_VECTOR), |queue| u32::from(queue.vector)),
            Field::QueueEnable => queue.map_or(0, |queue| u32::from(queue.enabled)),
            Field::QueueNotifyOffset => queue.map_or(0, |_| u32::from(common.queue_select)),
            // A reset is over when the write that asked for it returns.
            Field::QueueReset => 0,
            Field::QueueAddress(ring, high) => queue.map_or(0, |queue| {
                let address = match ring {
                    Ring::Desc => queue.desc,
                    Ring::Avail => queue.avail,
                    Ring::Used => queue.used,
                };
                window(address, u32::from(high))
            }),
        }
    }

    fn set(&mut self, field: Field, value: u32) {
        let Self { common, msix, kicks } = self;
        let short = u16::try_from(value & 0xffff).unwrap_or_default();
        let packed = common.driver_features & RING_PACKED != 0;
        match field {
            Field::DeviceFeatureSelect => common.device_feature_select = value,
            Field::DriverFeatureSelect => common.driver_feature_select = value,
            Field::DriverFeature => {
                if common.status & FEATURES_OK == 0 {
                    set_window(&mut common.driver_features, common.driver_feature_select, value);
                }
            }
            Field::ConfigVector => common.set_config_vector(msix, short),
            Field::Status => common.write_status(u8::try_from(value & 0xff).unwrap_or_default(), kicks),
            Field::QueueSelect => common.queue_select = short,
            Field::QueueSize => {
                if let Some(queue) = common.queue_mut() {
                    queue.set_size(short, packed);
                }
            }
            Field::QueueVector => common.set_queue_vector(msix, short),
            Field::QueueEnable => {
                let ram = common.ram.clone();
                if short == 1
                    && let Some(queue) = common.queue_mut()
                {
                    queue.enable(&ram, packed);
                    if queue.enabled && common.status & DRIVER_OK != 0 {
                        common.start_queue(common.queue_select, kicks);
                    }
                }
            }
            Field::QueueReset => {
                if short == 1 {
                    common.reset_queue(kicks);
                }
            }
            Field::QueueAddress(ring, high) => {
                if let Some(address) = common.address(ring) {
                    set_window(address, u32::from(high), value);
                }
            }
            Field::DeviceFeature | Field::NumQueues | Field::Generation | Field::QueueNotifyOffset => {}
        }
    }
}
