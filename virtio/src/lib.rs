//! The data path's foundation: guest memory, virtqueues (device end and driver end), and the virtio-net header.
//!
//! Everything a peer wrote is read once, into a local copy, and checked on that copy. Every guest address becomes a
//! (pointer, length) pair inside one mapped region, or an error. All methods outside this crate's `unsafe` core are safe
//! whatever a guest writes, at any time, from any thread.
//!
//! - [`memory`]: regions of shared memory and the map that translates guest addresses;
//! - [`split`]: split virtqueues: [`split::device::DeviceQueue`] and [`split::driver::DriverQueue`];
//! - [`packed`]: packed virtqueues, with the same two ends; [`queue::Queue`] is a device end of either layout;
//! - [`burst`]: the reusable buffer that a device end pops chains into;
//! - [`net`], [`features`]: the virtio-net header and the feature bits;
//! - [`checksum`], [`segment`]: completing checksums and segmenting super-frames for receivers that lack the offloads.

mod atomic;
pub mod burst;
pub mod checksum;
mod collect;
pub mod desc;
pub mod features;
pub mod memory;
pub mod net;
pub mod packed;
pub mod queue;
pub mod rss;
pub mod segment;
pub mod split;
