//! A hypervisor that writes down what it is asked for, and functions to put into slots.

use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::platform::{Platform, Vector};
use crate::fd;
use crate::hv::HvError;
use crate::hv::device_memory::DeviceMemory;

/// What was asked for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Route(usize, u64, u32),
    Unmask(usize),
    Mask(usize),
    Reset(usize),
    Ioeventfd(u64),
    NoIoeventfd(u64),
    Map(u64, u64),
    Unmap(u64),
    Line(u32),
    NoLine(u32),
}

pub(crate) type Calls = Arc<Mutex<Vec<Call>>>;

#[derive(Debug, Default)]
pub(crate) struct FakePlatform {
    pub(crate) calls: Calls,
    /// The eventfd of each vector made.
    vectors: Mutex<Vec<EventFd>>,
    /// Addresses that cannot have an ioeventfd.
    pub(crate) refused: Mutex<Vec<u64>>,
}

impl FakePlatform {
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Waits until `vector` is raised; returns how often it was since the last call.
    pub(crate) fn wait_for_interrupt(&self, vector: u16) -> u64 {
        let fd = self.vectors.lock().unwrap()[usize::from(vector)]
            .try_clone()
            .unwrap();
        let deadline = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::from_borrowed_fd(fd::borrow(&fd), PollFlags::IN)];
        assert_eq!(
            poll(&mut fds, Some(&deadline)).unwrap(),
            1,
            "vector {vector} is not raised"
        );
        fd.read().unwrap()
    }

    /// True if `vector` was raised since the last look.
    pub(crate) fn was_raised(&self, vector: u16) -> bool {
        self.vectors.lock().unwrap()[usize::from(vector)].read().is_ok()
    }
}

impl Platform for FakePlatform {
    fn new_vector(&self) -> Result<Box<dyn Vector>, HvError> {
        let fd = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut vectors = self.vectors.lock().unwrap();
        vectors.push(fd.try_clone().unwrap());
        let vector = FakeVector {
            id: vectors.len() - 1,
            fd,
            calls: Arc::clone(&self.calls),
        };
        Ok(Box::new(vector))
    }

    fn register_ioeventfd(&self, _event: &EventFd, addr: u64) -> Result<(), HvError> {
        if self.refused.lock().unwrap().contains(&addr) {
            return Err(HvError::Missing("room"));
        }
        self.calls.lock().unwrap().push(Call::Ioeventfd(addr));
        Ok(())
    }

    fn unregister_ioeventfd(&self, _event: &EventFd, addr: u64) -> Result<(), HvError> {
        self.calls.lock().unwrap().push(Call::NoIoeventfd(addr));
        Ok(())
    }

    fn map_memory(&self, addr: u64, memory: &Arc<DeviceMemory>) -> Result<(), HvError> {
        if self.refused.lock().unwrap().contains(&addr) {
            return Err(HvError::Missing("room"));
        }
        self.calls.lock().unwrap().push(Call::Map(addr, memory.len()));
        Ok(())
    }

    fn unmap_memory(&self, addr: u64) -> Result<(), HvError> {
        self.calls.lock().unwrap().push(Call::Unmap(addr));
        Ok(())
    }

    fn connect_line(&self, _event: &EventFd, _served: &EventFd, gsi: u32) -> Result<(), HvError> {
        self.calls.lock().unwrap().push(Call::Line(gsi));
        Ok(())
    }

    fn disconnect_line(&self, _event: &EventFd, gsi: u32) -> Result<(), HvError> {
        self.calls.lock().unwrap().push(Call::NoLine(gsi));
        Ok(())
    }
}

#[derive(Debug)]
struct FakeVector {
    id: usize,
    fd: EventFd,
    calls: Calls,
}

impl FakeVector {
    fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Vector for FakeVector {
    fn irqfd(&self) -> &EventFd {
        &self.fd
    }

    fn set_route(&self, addr: u64, data: u32) -> Result<(), HvError> {
        self.record(Call::Route(self.id, addr, data));
        Ok(())
    }

    fn unmask(&self) -> Result<(), HvError> {
        self.record(Call::Unmask(self.id));
        Ok(())
    }

    fn mask(&self) -> Result<(), HvError> {
        self.record(Call::Mask(self.id));
        Ok(())
    }

    fn is_pending(&self) -> bool {
        let Ok(count) = self.fd.read() else { return false };
        self.fd.write(count).unwrap();
        true
    }

    fn reset(&self) -> Result<(), HvError> {
        let _ = self.fd.read();
        self.record(Call::Reset(self.id));
        Ok(())
    }
}
