//! The addresses that a port is held to.

use std::sync::Arc;

use crate::mac::MacAddr;
use crate::sync::{ArcSwapOption, AtomicBool, Ordering};

/// The only addresses that frames from a port may come from, if it is held to any. They may change while frames come: workers go by
/// one list or the other, and a port that is not held costs them one look.
#[derive(Debug, Default)]
pub struct Sources {
    held: AtomicBool,
    macs: ArcSwapOption<Vec<MacAddr>>,
}

impl Sources {
    /// Whether frames from this address may come from the port.
    #[inline]
    pub fn allow(&self, mac: MacAddr) -> bool {
        // There is no list when the port is just being let go.
        !self.held.load(Ordering::Relaxed) || self.macs.load().as_ref().is_none_or(|macs| macs.contains(&mac))
    }

    /// Held to these addresses from now on, or to none.
    pub(crate) fn set(&self, macs: Vec<MacAddr>) {
        let held = !macs.is_empty();
        self.macs.store(held.then(|| Arc::new(macs)));
        self.held.store(held, Ordering::Release);
    }

    /// The addresses; none for any.
    pub fn macs(&self) -> Vec<MacAddr> {
        self.macs
            .load()
            .as_ref()
            .map(|macs| macs.to_vec())
            .unwrap_or_default()
    }
}
