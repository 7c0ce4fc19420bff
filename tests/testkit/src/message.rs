//! vhost-user messages as bytes and descriptors, right or wrong.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// The most descriptors that the kernel takes with one message.
const MOST_FDS: usize = 253;

/// A message in the form of the wire: header, then payload.
pub fn message(request: u32, flags: u32, payload: &[u64]) -> Vec<u8> {
    let size = u32::try_from(payload.len() * 8).expect("a short payload");
    let mut bytes = header(request, flags, size);
    bytes.extend(payload.iter().flat_map(|word| word.to_ne_bytes()));
    bytes
}

/// A message's header alone.
pub fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// Sends bytes with descriptors attached to the first of them.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(
            control.push(SendAncillaryMessage::ScmRights(fds)),
            "no more than {MOST_FDS} descriptors"
        );
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
