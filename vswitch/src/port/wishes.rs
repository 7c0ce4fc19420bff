//! What a port's guest asked for through its control queue.

use std::sync::Arc;

use vhost_net_backend::control::{ReceiveFilter, Steering};

use crate::sync::{ArcSwapOption, AtomicBool, Guard, Ordering};

/// What a guest asked for. A guest that asked for nothing costs a burst one look.
#[derive(Debug, Default)]
pub struct Wishes {
    /// There is something to look at for each frame.
    any: AtomicBool,
    /// Hashes go with frames to the guest.
    hashes: AtomicBool,
    filter: ArcSwapOption<ReceiveFilter>,
    steering: ArcSwapOption<Steering>,
}

impl Wishes {
    /// Whether frames to the guest have to be looked at one by one.
    #[inline]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether hashes go with frames, which have a longer header then, both ways.
    #[inline]
    pub fn hashes(&self) -> bool {
        self.hashes.load(Ordering::Relaxed)
    }

    /// Which frames the guest wants; without one, all.
    pub fn filter(&self) -> Guard<Option<Arc<ReceiveFilter>>> {
        self.filter.load()
    }

    /// How the guest wants frames hashed and spread.
    pub fn steering(&self) -> Guard<Option<Arc<Steering>>> {
        self.steering.load()
    }

    pub(crate) fn set_hashes(&self, hashes: bool) {
        self.hashes.store(hashes, Ordering::Relaxed);
        self.note();
    }

    pub(crate) fn set_filter(&self, filter: Option<Arc<ReceiveFilter>>) {
        self.filter.store(filter);
        self.note();
    }

    pub(crate) fn set_steering(&self, steering: Option<Arc<Steering>>) {
        self.steering.store(steering);
    }

    /// Changes come from one thread, the session's.
    fn note(&self) {
        let any = self.hashes() || self.filter.load().is_some();
        self.any.store(any, Ordering::Relaxed);
    }
}
