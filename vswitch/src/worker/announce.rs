//! Telling the network that a station is now behind a port, on behalf of a guest that cannot.

use virtio::memory::{MemoryError, SharedMemory};
use virtio::net::HEADER_LEN;

use super::deliver::{Forwarder, Sent};
use crate::bridge::Bridge;
use crate::counters::DropReason;
use crate::mac::MacAddr;
use crate::port::Port;

/// The shortest Ethernet frame, without its checksum.
const FRAME_LEN: usize = 60;

/// The station could not be announced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnnounceError {
    /// No station has such an address.
    #[error("{0} is no station's address: announce that of one NIC")]
    Address(MacAddr),
    /// The port may not send from there.
    #[error("{0} is none of the addresses that the port may send from")]
    Spoofed(MacAddr),
    /// There is no memory to put the frame in.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A reverse ARP request (RFC 903) by which `mac` asks for its own address: what switches learn from, and what nobody
/// has to answer.
fn rarp(mac: MacAddr) -> [u8; FRAME_LEN] {
    let mac = mac.octets();
    let mut frame = [0; FRAME_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // Reverse ARP for IPv4 over Ethernet: request reverse.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

/// Learns that `mac` is behind `port`, and tells whoever is behind the other ports. To be called by no worker: it takes
/// the gate of every receive queue that it delivers to, as workers do.
pub(crate) fn announce(bridge: &Bridge, port: &Port, mac: MacAddr) -> Result<(), AnnounceError> {
    if !mac.is_valid_source() {
        return Err(AnnounceError::Address(mac));
    }
    if !port.sources().allow(mac) {
        port.drops().add_shared(DropReason::Spoofed, 1);
        return Err(AnnounceError::Spoofed(mac));
    }
    let memory = SharedMemory::new("announcement", 0, 4096)?;
    let frame = memory.region().slice().take(HEADER_LEN + FRAME_LEN);
    frame.write_from(HEADER_LEN, &rarp(mac));
    bridge.fdb().learn(mac, 0, port.id(), bridge.clock().now());
    Forwarder::new().flood(&bridge.ports(), port, &Sent::Own(&[frame]));
    Ok(())
}
