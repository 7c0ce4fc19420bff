//! The ioctls of `/dev/net/tun`, one function each.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// An `ifreq` of which only name and flags are used.
fn request(name: &str, flags: libc::c_int) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(flags).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `TUNSETIFF`: attach the descriptor to a tap interface with vnet headers, creating it if need be.
pub(super) fn attach(fd: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let request = request(name, flags)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw const request) })
}

/// `TUNGETIFF`: the name of the interface that the descriptor is attached to.
pub(super) fn interface(fd: BorrowedFd<'_>) -> io::Result<String> {
    let mut found = request("", 0)?;
    // SAFETY: TUNGETIFF writes one ifreq, which lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut found) })?;
    let name = found.ifr_name.map(libc::c_char::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(name.to_string_lossy().into_owned())
}

/// `TUNSETVNETHDRSZ`.
pub(super) fn set_vnet_header_size(fd: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    let size = libc::c_int::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

/// `TUNSETOFFLOAD`.
pub(super) fn set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// `TUNSETQUEUE`: attach or detach one queue of a multi-queue device.
pub(super) fn set_queue(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let request = request(
        "",
        if attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        },
    )?;
    // SAFETY: TUNSETQUEUE reads one ifreq, which lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// `TUNSETCARRIER`.
pub(super) fn set_carrier(fd: BorrowedFd<'_>, carrier: bool) -> io::Result<()> {
    let carrier = libc::c_int::from(carrier);
    // SAFETY: TUNSETCARRIER reads one int, which lives across the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETCARRIER, &raw const carrier) })
}

/// Take over a descriptor that this process inherited under a number it was told.
pub(super) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD takes no further argument and fails on a number that is no open descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open, and whoever passed its number on the command line handed it over.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
