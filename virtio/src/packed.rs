//! Packed virtqueues (VIRTIO 1.3 §2.8): the device end, the driver end, and what they share.
//!
//! There is one ring of descriptors. The driver makes them available in order, the device writes used ones over them in order,
//! and each keeps a wrap counter that tells this round's flags from the last one's.

pub mod device;
pub mod driver;
mod recover;
mod ring;

/// A descriptor is available: this flag equals the driver's wrap counter and [`DESC_F_USED`] doesn't.
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// A descriptor is used: this flag and [`DESC_F_AVAIL`] both equal the device's wrap counter.
pub const DESC_F_USED: u16 = 1 << 15;

/// Event suppression: notify always.
pub const EVENT_FLAGS_ENABLE: u16 = 0;
/// Event suppression: never notify.
pub const EVENT_FLAGS_DISABLE: u16 = 1;
/// Event suppression: notify when a certain descriptor is reached (only with `RING_F_EVENT_IDX`).
pub const EVENT_FLAGS_DESC: u16 = 2;

/// The wrap counter in a position, as vhost-user and event suppression write it.
pub const WRAP: u16 = 1 << 15;

/// Bytes of an event suppression area.
pub const EVENT_LEN: usize = 4;
