//! The concurrent parts of the data path, compiled over a model checker's atomics and locks.
//!
//! The modules of the virtqueues, of the forwarding database, of the gate, of what is published and of what a guest asked for are the
//! files that the switch is built from. Only what they take from `crate::atomic` and `crate::sync` is `loom`'s here, which tries every order of accesses that the memory model allows,
//! stale reads of relaxed loads included.

pub mod atomic;
pub mod swap;
pub mod sync;

#[path = "../../../virtio/src"]
mod rings {
    pub mod burst;
    pub(crate) mod collect;
    pub mod desc;
    pub mod memory;
    pub mod packed;
    pub mod queue;
    pub mod split;
}

#[path = "../../../vswitch/src"]
mod switch {
    pub mod fdb;
    pub mod gate;
    pub mod mac;
    pub(crate) mod port {
        pub mod sources;
        pub mod wishes;
    }
    pub mod port_id;
    pub mod published;
}

pub(crate) use rings::collect;
pub use rings::{burst, desc, memory, packed, queue, split};
pub use switch::port::{sources, wishes};
pub use switch::{fdb, gate, mac, port_id, published};

use std::sync::Arc;

use vhost_net_backend::control::ReceiveFilter;

use fdb::Fdb;
use mac::MacAddr;
use port_id::PortId;
use sources::Sources;
use wishes::Wishes;

/// The port with this number.
///
/// # Panics
/// When there is no such port.
pub fn port(number: usize) -> PortId {
    PortId::from_index(number).expect("a port's number")
}

/// Two station addresses that a table keeps in the same two sets, so that one is given the other's entry.
///
/// # Panics
/// When there are none among the first few thousand.
pub fn rivals(fdb: &Fdb) -> [MacAddr; 2] {
    let sets = |number: u64| fdb.sets_of(0x0200_0000_0000 + number);
    let other = (1..4096)
        .find(|number| sets(*number) == sets(0))
        .expect("a table with few sets");
    [0, other].map(|number| MacAddr::from_bits(0x0200_0000_0000 + number))
}

/// The control plane holds a port to an address, or lets it go.
pub fn hold(sources: &Sources, mac: Option<MacAddr>) {
    sources.set(mac.into_iter().collect());
}

/// A session's thread has other frames filtered for its guest, or none.
pub fn ask_for(wishes: &Wishes, filter: Option<Arc<ReceiveFilter>>) {
    wishes.set_filter(filter);
}

/// A session's thread has a driver that has asked for nothing yet, and negotiated that hashes go with frames, or not.
pub fn start_over(wishes: &Wishes, hashes: bool) {
    wishes.set_filter(None);
    wishes.set_steering(None);
    wishes.set_hashes(hashes);
}
