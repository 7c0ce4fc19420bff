//! The addresses that a port is held to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use crate::mac::MacAddr;

/// The only addresses that frames from a port may come from; none for any. They may change while frames come: workers go by
/// one list or the other, and a port that is not held costs them one look.
#[derive(Debug)]
pub struct Sources {
    held: AtomicBool,
    macs: ArcSwap<Vec<MacAddr>>,
}

impl Sources {
    /// Held to these addresses, or to none.
    pub fn new(macs: Vec<MacAddr>) -> Self {
        Self {
            held: AtomicBool::new(!macs.is_empty()),
            macs: ArcSwap::from_pointee(macs),
        }
    }

    /// Whether frames from this address may come from the port.
    #[inline]
    pub fn allow(&self, mac: MacAddr) -> bool {
        !self.held.load(Ordering::Acquire) || self.are(mac)
    }

    fn are(&self, mac: MacAddr) -> bool {
        let macs = self.macs.load();
        // None, when the port is just being let go.
        macs.is_empty() || macs.contains(&mac)
    }

    /// Other addresses from now on, or none.
    pub(crate) fn set(&self, macs: Vec<MacAddr>) {
        let held = !macs.is_empty();
        self.macs.store(Arc::new(macs));
        self.held.store(held, Ordering::Release);
    }

    /// The addresses.
    pub fn macs(&self) -> Vec<MacAddr> {
        self.macs.load().to_vec()
    }
}
