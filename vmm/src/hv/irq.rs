//! Interrupts from devices to the guest: message-signalled vectors and interrupt lines.
//!
//! Every vector has one eventfd for its whole life. Whoever raises the interrupt, this process or a back-end in
//! another one, writes to it and need not know whether the guest has the vector masked:
//!
//! ```text
//!            ┌────────── mask: irqfd off, then route off ───────────┐
//!            ▼                                                      │
//!   masked: eventfd counts,                              unmasked: KVM takes
//!   `is_pending` shows it                                the eventfd, injects the MSI
//!            │                                                      ▲
//!            └──── unmask: route on, then irqfd on, then what was pending ───┘
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{HvError, doing};

/// Lines of the I/O APIC; message-signalled interrupts take GSIs from here on.
pub const IOAPIC_PINS: u32 = 24;
/// KVM's own limit on routes.
const MAX_GSI: u32 = 4096;

/// A message: what a device would write to memory to raise the interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address of the message.
    pub addr: u64,
    /// Data of the message.
    pub data: u32,
}

/// Keeps KVM's interrupt routing table and hands out its entries.
#[derive(Debug)]
pub struct MsiRouter {
    vm: Arc<VmFd>,
    /// Message of each GSI in use.
    routes: Mutex<BTreeMap<u32, Option<MsiMessage>>>,
}

impl MsiRouter {
    /// A router for `vm`, with the lines of the standard interrupt controllers in place.
    pub fn new(vm: Arc<VmFd>) -> Result<Arc<Self>, HvError> {
        let router = Self {
            vm,
            routes: Mutex::default(),
        };
        router.commit(&router.lock())?;
        Ok(Arc::new(router))
    }

    /// A vector, masked and without a message. It takes a GSI only when it is first unmasked.
    pub fn allocate(self: &Arc<Self>) -> Result<MsiVector, HvError> {
        let irqfd = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|e| HvError::Ioctl("allocate an interrupt vector", errno(&e)))?;
        Ok(MsiVector {
            router: Arc::clone(self),
            irqfd,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Option<MsiMessage>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table; on a refusal by KVM it stays as it was.
    fn change(&self, gsi: u32, message: Option<MsiMessage>) -> Result<(), HvError> {
        let mut routes = self.lock();
        let before = routes.insert(gsi, message);
        if before == Some(message) {
            return Ok(());
        }
        if let Err(error) = self.commit(&routes) {
            match before {
                Some(old) => routes.insert(gsi, old),
                None => routes.remove(&gsi),
            };
            return Err(error);
        }
        Ok(())
    }

    fn take_gsi(&self) -> Result<u32, HvError> {
        let mut routes = self.lock();
        let gsi = (IOAPIC_PINS..MAX_GSI)
            .find(|gsi| !routes.contains_key(gsi))
            .ok_or(HvError::Ioctl(
                "route another interrupt",
                kvm_ioctls::Error::new(libc::ENOSPC),
            ))?;
        routes.insert(gsi, None);
        Ok(gsi)
    }

    fn give_back(&self, gsi: u32) {
        let mut routes = self.lock();
        if routes.remove(&gsi).flatten().is_some()
            && let Err(error) = self.commit(&routes)
        {
            tracing::warn!(gsi, %error, "an unused interrupt route stays in KVM until the next change");
        }
    }

    fn commit(&self, routes: &BTreeMap<u32, Option<MsiMessage>>) -> Result<(), HvError> {
        let mut entries = lines();
        entries.extend(
            routes
                .iter()
                .filter_map(|(gsi, message)| message.map(|m| msi_entry(*gsi, m))),
        );
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| {
            HvError::Ioctl(
                "hold so many interrupt routes",
                kvm_ioctls::Error::new(libc::ENOSPC),
            )
        })?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(doing("set interrupt routes"))
    }
}

/// Both legacy controllers and the I/O APIC, wired as on a PC: line 0 arrives at pin 2 of the I/O APIC.
fn lines() -> Vec<kvm_irq_routing_entry> {
    let line = |gsi: u32, irqchip: u32, pin: u32| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = irqchip;
        entry.u.irqchip.pin = pin;
        entry
    };
    let mut entries = Vec::new();
    for gsi in 0..16 {
        let pic = if gsi < 8 {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        entries.push(line(gsi, pic, gsi % 8));
    }
    for gsi in (0..IOAPIC_PINS).filter(|gsi| *gsi != 2) {
        entries.push(line(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    }
    entries
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the address")]
    {
        entry.u.msi.address_lo = message.addr as u32;
        entry.u.msi.address_hi = (message.addr >> 32) as u32;
    }
    entry.u.msi.data = message.data;
    entry
}

fn errno(error: &std::io::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}

#[derive(Debug, Default)]
struct VectorState {
    gsi: Option<u32>,
    message: Option<MsiMessage>,
    /// The guest wants interrupts; they flow if there is a message too.
    unmasked: bool,
    /// KVM has the eventfd.
    assigned: bool,
    /// Signals that were read from the eventfd while nobody else took them.
    pending: bool,
}

/// One message-signalled interrupt of a device. See the [module](self) for its life.
#[derive(Debug)]
pub struct MsiVector {
    router: Arc<MsiRouter>,
    irqfd: EventFd,
    state: Mutex<VectorState>,
}

impl MsiVector {
    /// The eventfd that raises the interrupt; the same one for the vector's whole life.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// Raises the interrupt, or makes it pending while it is masked.
    pub fn trigger(&self) {
        // A full counter means that the interrupt is pending many times over already.
        let _ = self.irqfd.write(1);
    }

    /// Sets the message. A vector that is unmasked goes on with the new one.
    pub fn set_route(&self, addr: u64, data: u32) -> Result<(), HvError> {
        let mut state = self.lock();
        let message = MsiMessage { addr, data };
        if state.assigned
            && let Some(gsi) = state.gsi
        {
            self.router.change(gsi, Some(message))?;
        }
        state.message = Some(message);
        self.settle(&mut state)
    }

    /// Stops delivery; what is raised from here on is pending.
    pub fn mask(&self) -> Result<(), HvError> {
        let mut state = self.lock();
        state.unmasked = false;
        self.settle(&mut state)
    }

    /// Starts delivery, beginning with what is pending.
    pub fn unmask(&self) -> Result<(), HvError> {
        let mut state = self.lock();
        state.unmasked = true;
        self.settle(&mut state)
    }

    /// True if the guest has the vector masked.
    pub fn is_masked(&self) -> bool {
        !self.lock().unmasked
    }

    /// The pending bit: raised while masked and not delivered yet.
    pub fn is_pending(&self) -> bool {
        let mut state = self.lock();
        if !state.assigned {
            self.collect(&mut state);
        }
        state.pending
    }

    /// Forgets message and pending signals and masks, as a device reset does.
    pub fn reset(&self) -> Result<(), HvError> {
        let mut state = self.lock();
        state.unmasked = false;
        let settled = self.settle(&mut state);
        self.collect(&mut state);
        state.pending = false;
        state.message = None;
        settled
    }

    fn lock(&self) -> MutexGuard<'_, VectorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, state: &mut VectorState) {
        if self.irqfd.read().is_ok() {
            state.pending = true;
        }
    }

    /// Brings KVM to where `state` says it should be.
    fn settle(&self, state: &mut VectorState) -> Result<(), HvError> {
        match (state.unmasked, state.message) {
            (true, Some(message)) if !state.assigned => self.assign(state, message),
            (false, _) if state.assigned => self.deassign(state),
            _ => Ok(()),
        }
    }

    fn assign(&self, state: &mut VectorState, message: MsiMessage) -> Result<(), HvError> {
        let gsi = match state.gsi {
            Some(gsi) => gsi,
            None => *state.gsi.insert(self.router.take_gsi()?),
        };
        self.router.change(gsi, Some(message))?;
        // Whatever is signalled after this read is seen by KVM when it takes the eventfd.
        self.collect(state);
        self.router
            .vm
            .register_irqfd(&self.irqfd, gsi)
            .map_err(doing("take an irqfd"))?;
        state.assigned = true;
        if std::mem::take(&mut state.pending) {
            self.trigger();
        }
        Ok(())
    }

    fn deassign(&self, state: &mut VectorState) -> Result<(), HvError> {
        let Some(gsi) = state.gsi else { return Ok(()) };
        self.router
            .vm
            .unregister_irqfd(&self.irqfd, gsi)
            .map_err(doing("give an irqfd back"))?;
        state.assigned = false;
        self.router.change(gsi, None)
    }
}

impl Drop for MsiVector {
    fn drop(&mut self) {
        let mut state = self.lock();
        if state.assigned
            && let Err(error) = self.deassign(&mut state)
        {
            tracing::warn!(%error, "an interrupt vector that is gone stays in KVM");
        }
        if let Some(gsi) = state.gsi {
            self.router.give_back(gsi);
        }
    }
}

/// An interrupt line of the legacy controllers and the I/O APIC, raised as an edge.
#[derive(Debug)]
pub struct LegacyIrq {
    event: EventFd,
}

impl LegacyIrq {
    /// Connects the line `gsi`.
    pub fn new(vm: &VmFd, gsi: u32) -> Result<Self, HvError> {
        let event = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|e| HvError::Ioctl("allocate an interrupt line", errno(&e)))?;
        vm.register_irqfd(&event, gsi).map_err(doing("take an irqfd"))?;
        Ok(Self { event })
    }

    /// Pulses the line.
    pub fn pulse(&self) {
        let _ = self.event.write(1);
    }
}
