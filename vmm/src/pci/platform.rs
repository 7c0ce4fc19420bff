//! What functions need of the hypervisor, as traits, so that their state machines are tested without one.

use std::fmt::Debug;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::hv::device_memory::DeviceMemory;
use crate::hv::irq::MsiVector;
use crate::hv::{HvError, Vm, doing};

/// One message-signalled interrupt. Everybody who raises it writes to the same eventfd for the vector's whole life.
pub trait Vector: Debug + Send + Sync {
    /// The eventfd that raises the interrupt.
    fn irqfd(&self) -> &EventFd;
    /// Sets the message; while unmasked, delivery goes on with the new one.
    fn set_route(&self, addr: u64, data: u32) -> Result<(), HvError>;
    /// Starts delivery, beginning with what is pending: first the route, then the irqfd.
    fn unmask(&self) -> Result<(), HvError>;
    /// Stops delivery: first the irqfd, then the route. What is raised from here on is pending.
    fn mask(&self) -> Result<(), HvError>;
    /// Raised while masked, and not delivered yet.
    fn is_pending(&self) -> bool;
    /// Masks, and forgets the message and what is pending.
    fn reset(&self) -> Result<(), HvError>;
}

/// What a function gets from the machine that it is in.
pub trait Platform: Debug + Send + Sync {
    /// A masked interrupt vector.
    fn new_vector(&self) -> Result<Box<dyn Vector>, HvError>;
    /// From here on a guest write to the memory address `addr` signals `event`.
    fn register_ioeventfd(&self, event: &EventFd, addr: u64) -> Result<(), HvError>;
    /// Undoes `register_ioeventfd`.
    fn unregister_ioeventfd(&self, event: &EventFd, addr: u64) -> Result<(), HvError>;
    /// From here on guest accesses at `addr` go to `memory` and not to the bus.
    fn map_memory(&self, addr: u64, memory: &Arc<DeviceMemory>) -> Result<(), HvError>;
    /// Undoes `map_memory`.
    fn unmap_memory(&self, addr: u64) -> Result<(), HvError>;
    /// Connects a level-triggered interrupt line: a signal of `event` raises it; when the guest has served it, it goes down
    /// and `served` is signalled.
    fn connect_line(&self, event: &EventFd, served: &EventFd, gsi: u32) -> Result<(), HvError>;
    /// Undoes `connect_line`.
    fn disconnect_line(&self, event: &EventFd, gsi: u32) -> Result<(), HvError>;
}

impl Vector for MsiVector {
    fn irqfd(&self) -> &EventFd {
        self.irqfd()
    }

    fn set_route(&self, addr: u64, data: u32) -> Result<(), HvError> {
        self.set_route(addr, data)
    }

    fn unmask(&self) -> Result<(), HvError> {
        self.unmask()
    }

    fn mask(&self) -> Result<(), HvError> {
        self.mask()
    }

    fn is_pending(&self) -> bool {
        self.is_pending()
    }

    fn reset(&self) -> Result<(), HvError> {
        self.reset()
    }
}

impl Platform for Vm {
    fn new_vector(&self) -> Result<Box<dyn Vector>, HvError> {
        Ok(Box::new(self.msi().allocate()?))
    }

    fn register_ioeventfd(&self, event: &EventFd, addr: u64) -> Result<(), HvError> {
        self.register_ioeventfd(event, addr)
    }

    fn unregister_ioeventfd(&self, event: &EventFd, addr: u64) -> Result<(), HvError> {
        self.unregister_ioeventfd(event, addr)
    }

    fn map_memory(&self, addr: u64, memory: &Arc<DeviceMemory>) -> Result<(), HvError> {
        self.map_memory(addr, memory)
    }

    fn unmap_memory(&self, addr: u64) -> Result<(), HvError> {
        self.unmap_memory(addr)
    }

    fn connect_line(&self, event: &EventFd, served: &EventFd, gsi: u32) -> Result<(), HvError> {
        self.fd()
            .register_irqfd_with_resample(event, served, gsi)
            .map_err(doing("take a level-triggered irqfd"))
    }

    fn disconnect_line(&self, event: &EventFd, gsi: u32) -> Result<(), HvError> {
        self.fd()
            .unregister_irqfd(event, gsi)
            .map_err(doing("give an irqfd back"))
    }
}
