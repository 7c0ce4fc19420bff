//! `VFIO_DEVICE_SET_IRQS` for single vectors: which eventfd each interrupt of a device signals (`linux/vfio.h`).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ptr;

/// What an eventfd is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The kernel signals it when the device interrupts.
    Trigger,
    /// The kernel unmasks the interrupt when it is signalled.
    Unmask,
}

/// `_IO(';', 100 + 10)`.
const SET_IRQS: libc::c_ulong = 0x3b6e;
/// Words before the descriptors: size, flags, index, start, count.
const HEADER: usize = 5;

/// The request: `struct vfio_irq_set`, with a descriptor, or -1 for none, for each of the vectors from `start` on.
fn request(index: u32, start: u32, events: &[Option<&EventFd>], for_what: Use) -> Vec<u32> {
    let count = u32::try_from(events.len()).unwrap_or(u32::MAX);
    let action = match for_what {
        Use::Trigger => VFIO_IRQ_SET_ACTION_TRIGGER,
        Use::Unmask => VFIO_IRQ_SET_ACTION_UNMASK,
    };
    let words = HEADER + events.len();
    let bytes = u32::try_from(words * size_of::<u32>()).unwrap_or(u32::MAX);
    let mut request = vec![bytes, VFIO_IRQ_SET_DATA_EVENTFD | action, index, start, count];
    let descriptor = |event: Option<&EventFd>| -> RawFd { event.map_or(-1, AsRawFd::as_raw_fd) };
    request.extend(events.iter().map(|event| descriptor(*event).cast_unsigned()));
    request
}

/// Sets the eventfds of the interrupts from `start` on of the kind `index`.
pub(super) fn set(
    device: &impl AsRawFd,
    index: u32,
    start: u32,
    events: &[Option<&EventFd>],
    for_what: Use,
) -> io::Result<()> {
    let request = request(index, start, events, for_what);
    // SAFETY: the kernel reads as many bytes as the first word says, which is the request's length, and checks each descriptor.
    let result = unsafe { ioctl_with_ptr(device, SET_IRQS, request.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_descriptor_or_minus_one_for_each_vector() {
        let event = EventFd::new(0).unwrap();
        let words = request(2, 3, &[None, Some(&event)], Use::Trigger);
        let fd = event.as_raw_fd().cast_unsigned();
        assert_eq!(words, [28, 4 | 32, 2, 3, 2, u32::MAX, fd]);
        assert_eq!(request(0, 0, &[Some(&event)], Use::Unmask)[1], 4 | 16);
    }
}
