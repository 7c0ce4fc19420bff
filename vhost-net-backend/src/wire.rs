//! What a NIC's queue pair is wired to: the far end of its frames.

pub mod tap;
pub mod user;

use std::io;
use std::os::fd::BorrowedFd;

use virtio::memory::GuestSlice;
use virtio::net::NetHeader;

use crate::nic::Receiver;

/// What became of a frame that was handed to a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Done,
    /// There is no room now: offer it again after the next event.
    Full,
    /// The far end cannot have it.
    Refused,
}

/// One queue pair's connection to the world. Used by one thread at a time; no call may block.
pub trait Wire: Send {
    /// Descriptors that become readable (or writable) when there is something to do; watched edge-triggered.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
    /// One of the descriptors has news.
    fn event(&mut self);
    /// The driver's features are settled.
    fn features_acked(&mut self, acked: u64) -> io::Result<()>;
    /// The guest wants frames from this pair, or no more.
    fn set_enabled(&mut self, enabled: bool) -> io::Result<()>;
    /// Transmit a frame: a validated header, and the bytes of `chain` from `off` on.
    fn send(&mut self, header: &NetHeader, chain: &[GuestSlice<'_>], off: usize) -> Sent;
    /// End of a burst of [`Wire::send`].
    fn flush(&mut self);
    /// Hand frames that came in to `receiver` until there are no more, the receiver is full, or it has had its
    /// share.
    fn receive(&mut self, receiver: &mut Receiver<'_>);
    /// Whether frames may be waiting.
    fn is_ready(&mut self) -> bool;
}
