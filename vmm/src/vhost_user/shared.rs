//! What the threads of a NIC know in common: the device model answers the guest from it, the supervisor writes it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::config::{ANNOUNCE, LINK_UP, NetConfig, REST_LEN};
use super::features;
use super::link::Link;

/// What one back-end has to offer to a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) features: u64,
    pub(super) pairs: u16,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: Option<u16>,
    /// It serves the control queue itself.
    pub(super) control: bool,
    rest: [u8; REST_LEN],
}

impl Offer {
    pub(super) fn of(link: &Link) -> Self {
        Self {
            features: link.features(),
            pairs: link.pairs(),
            mac: link.mac(),
            mtu: link.mtu(),
            control: link.control().is_some(),
            rest: link.rest(),
        }
    }
}

/// A NIC's state as a person sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicStatus {
    /// The guest sees its link up.
    pub link_up: bool,
    /// A back-end is connected.
    pub connected: bool,
    /// How often a back-end went away.
    pub disconnects: u64,
    /// Queue pairs that the guest uses.
    pub queue_pairs: u16,
    /// Why the link is down, if it is.
    pub last_error: Option<String>,
}

#[derive(Debug)]
pub(super) struct State {
    /// What the guest reads.
    pub(super) config: NetConfig,
    pub(super) offered: u64,
    /// The offer includes a control queue that the back-end serves.
    pub(super) forwards: bool,
    /// What the back-end seen last had to offer.
    pub(super) seen: Option<Offer>,
    pub(super) status: NicStatus,
    /// A back-end may be using the guest's memory.
    pub(super) rings_running: bool,
    /// Queue pairs that the guest asked for, counted so that one asks once and waits for its own answer.
    pub(super) pairs: u16,
    pub(super) pairs_asked: u64,
    pub(super) pairs_done: u64,
}

/// Shared by the device model, the supervisor and the control queue.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the supervisor.
    pub(super) wake: EventFd,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) max_pairs: u16,
}

impl Shared {
    pub(super) fn new(mac: Option<[u8; 6]>, max_pairs: u16, wake: EventFd) -> Self {
        let mut state = State {
            config: NetConfig::default(),
            offered: 0,
            forwards: false,
            seen: None,
            status: NicStatus {
                queue_pairs: 1,
                ..NicStatus::default()
            },
            rings_running: false,
            pairs: 1,
            pairs_asked: 0,
            pairs_done: 0,
        };
        state.renew_offer(mac, max_pairs);
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            wake,
            mac,
            max_pairs,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for something to come true.
    pub(super) fn notify_waiters(&self) {
        self.changed.notify_all();
    }

    /// Waits until `done` holds; false if it does not in time.
    pub(super) fn wait_until(&self, limit: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if done(&state) {
                return true;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return false;
            };
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Makes the newest back-end's offer the one that the guest sees. Only before the guest looks: an offer
    /// that changes under a driver's feet ends in a refused negotiation.
    pub(super) fn renew_offer(&self) {
        self.lock().renew_offer(self.mac, self.max_pairs);
    }

    /// Has the guest's choice of queue pairs reach the back-end. It waits for a moment only: a back-end that is
    /// slow or away gets the choice when it is back.
    pub(super) fn set_pairs(&self, pairs: u16) {
        let ticket = {
            let mut state = self.lock();
            state.pairs = pairs;
            state.status.queue_pairs = pairs;
            state.pairs_asked += 1;
            state.pairs_asked
        };
        // The counter of an eventfd that is read by its only reader never overflows.
        let _ = self.wake.write(1);
        self.wait_until(Duration::from_secs(1), |state| state.pairs_done >= ticket);
    }

    /// The guest has announced itself.
    pub(super) fn announced(&self) {
        self.lock().config.status &= !ANNOUNCE;
    }
}

impl State {
    fn renew_offer(&mut self, mac: Option<[u8; 6]>, max_pairs: u16) {
        let (mut offered, pairs) = match &self.seen {
            Some(seen) => {
                let own = if seen.control {
                    features::FRONTEND & !features::CONTROL
                } else {
                    features::FRONTEND
                };
                (seen.features | own, seen.pairs.min(max_pairs))
            }
            None => (features::WITHOUT_BACKEND, max_pairs),
        };
        let mac = mac.or(self.seen.and_then(|seen| seen.mac));
        let mtu = self.seen.and_then(|seen| seen.mtu);
        self.forwards = self.seen.is_some_and(|seen| seen.control);
        if mac.is_some() {
            offered |= features::MAC;
        }
        if pairs < 2 {
            offered &= !features::MQ;
        }
        self.offered = features::with_requirements(offered);
        self.config = NetConfig {
            mac: mac.unwrap_or_default(),
            status: self.config.status & LINK_UP,
            pairs,
            mtu: mtu.unwrap_or_default(),
            rest: self.seen.map(|seen| seen.rest).unwrap_or_default(),
        };
    }

    /// Sets whether the guest is asked to announce itself; true if that is news.
    pub(super) fn set_announce(&mut self, announce: bool) -> bool {
        let before = self.config.status;
        if announce {
            self.config.status |= ANNOUNCE;
        } else {
            self.config.status &= !ANNOUNCE;
        }
        self.config.status != before
    }

    /// Sets what the guest reads as its link state; true if that is news.
    pub(super) fn set_link(&mut self, up: bool) -> bool {
        let news = self.status.link_up != up;
        self.status.link_up = up;
        if up {
            self.config.status |= LINK_UP;
        } else {
            self.config.status &= !(LINK_UP | ANNOUNCE);
        }
        news
    }
}
