//! The control queue of a device that serves it itself: here, on the session's thread, a bounded number of commands at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use vhost::vhost_user::Result;
use virtio::burst::{Burst, Chain};
use virtio::features as f;
use virtio::memory::write_chain;
use virtio::queue::Queue;

use super::{Handler, refused};
use crate::control::{Change, Command, ControlState};
use crate::eventfd::Kick;

/// Commands carried out before the front-end is listened to again.
const BURST: usize = 64;
/// How long the queue is left alone then: a driver that floods it has no more than its share of the session's thread.
const PAUSE: Duration = Duration::from_millis(1);
/// How often a queue is looked at whose driver never kicks.
const NO_KICK: Duration = Duration::from_millis(10);
/// When a driver that goes on under a new back-end is asked to announce itself: its link comes up in the meantime, and an
/// announcement before that is lost.
const ANNOUNCE_AFTER: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_secs(1),
];
/// The device's answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// The control queue while it runs.
pub(super) struct Control {
    pub(super) queue: Queue,
    burst: Burst,
    kick: Option<Kick>,
    /// When it is looked at next, kicked or not.
    at: Option<Instant>,
    /// It is not looked at before, even if it is kicked.
    not_before: Instant,
}

/// What the control queue of one front-end needs besides its ring.
#[derive(Default)]
pub(super) struct ControlPart {
    pub(super) running: Option<Control>,
    /// What the driver has set; `None` before its control queue ran.
    pub(super) state: Option<ControlState>,
    /// Readable when the driver has kicked. Kicks are watched edge-triggered and never read.
    kicks: Option<Arc<OwnedFd>>,
    /// The driver is asked to announce itself.
    pub(super) announcing: bool,
    announce_at: Vec<Instant>,
    /// The device's address, where the front-end gave it one.
    pub(super) mac: Option<[u8; 6]>,
}

/// What the session's thread has to wait for.
pub(in super::super) struct ControlWait {
    pub(in super::super) kicks: Option<Arc<OwnedFd>>,
    pub(in super::super) limit: Option<Duration>,
}

impl Handler {
    /// The control queue comes behind the queue pairs.
    pub(super) fn is_control(&self, index: u16) -> bool {
        self.port.control_queue && index == self.port.queue_pairs * 2
    }

    /// Whether frames may pass through a ring: the front-end has enabled it, and the driver makes use of its pair.
    pub(super) fn is_enabled(&self, index: u16) -> bool {
        let pairs = self.control.state.as_ref().map_or(u16::MAX, |state| state.pairs);
        self.rings[usize::from(index)].enabled && index / 2 < pairs
    }

    /// Tell the plane of rings that the driver, or the front-end, uses or uses no longer.
    pub(super) fn refresh_enabled(&mut self) {
        for index in 0..self.port.queue_pairs * 2 {
            let enabled = self.is_enabled(index);
            let ring = &mut self.rings[usize::from(index)];
            if ring.running && std::mem::replace(&mut ring.told, enabled) != enabled {
                self.plane.ring_enabled(index, enabled);
            }
        }
    }

    /// Serve the control queue from now on. `fresh`: its driver has not used it before.
    pub(super) fn start_control(&mut self, queue: Queue, kick: Option<Kick>, fresh: bool) -> Result<()> {
        if let Some(kick) = &kick {
            self.watch(kick).map_err(refused)?;
        }
        let now = Instant::now();
        self.control.running = Some(Control {
            queue,
            burst: Burst::with_capacity(BURST),
            kick,
            at: Some(now),
            not_before: now,
        });
        if fresh {
            self.control.state = Some(ControlState::new(self.features, self.mac(), 1));
            self.control.announcing = false;
        } else if self.control.state.is_none() {
            let pairs = self.port.queue_pairs;
            let kept = self.inflight.as_ref().and_then(|inflight| inflight.state(pairs));
            // Where what that was told is lost with it, nothing is kept from the driver.
            self.control.state = Some(kept.unwrap_or_else(|| ControlState::unknown(pairs)));
            if self.features & f::NET_F_GUEST_ANNOUNCE != 0 {
                self.control.announce_at = ANNOUNCE_AFTER.iter().map(|after| now + *after).collect();
            }
        }
        self.keep_control();
        self.apply_control();
        Ok(())
    }

    fn watch(&mut self, kick: &Kick) -> io::Result<()> {
        let kicks = match &self.control.kicks {
            Some(kicks) => Arc::clone(kicks),
            None => Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?),
        };
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&*kicks, kick, epoll::EventData::new_u64(0), edge)?;
        self.control.kicks = Some(kicks);
        Ok(())
    }

    /// Stop serving it: where it goes on.
    pub(super) fn stop_control(&mut self) -> Option<u16> {
        let control = self.control.running.take()?;
        if let (Some(kicks), Some(kick)) = (&self.control.kicks, &control.kick) {
            let _ = epoll::delete(&**kicks, kick);
        }
        self.control.announce_at.clear();
        Some(control.queue.next_avail())
    }

    /// The address by which the device knows frames that are for it.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        self.control.mac.or(self.port.mac)
    }

    /// The front-end gave the device its address, by writing it to the configuration space.
    pub(super) fn set_mac(&mut self, mac: [u8; 6]) {
        self.control.mac = Some(mac);
        if let Some(state) = &mut self.control.state {
            state.set_mac(Some(mac));
            let filter = state.filter();
            self.plane.filter_changed(filter);
        }
    }

    /// Everything that the driver has set takes effect.
    pub(super) fn apply_control(&mut self) {
        if let Some(state) = &self.control.state {
            self.plane.filter_changed(state.filter());
            self.plane.steering_changed(state.steering());
            self.plane.offloads_changed(state.features(self.features));
        }
        self.refresh_enabled();
    }

    /// What to wait for on behalf of the control queue.
    pub(in super::super) fn control_wait(&self) -> ControlWait {
        let now = Instant::now();
        let mut wait = ControlWait {
            kicks: None,
            limit: None,
        };
        let Some(control) = &self.control.running else {
            return wait;
        };
        // While it is left alone, its kicks wake nobody.
        let paused = control.not_before > now;
        if !paused {
            wait.kicks.clone_from(&self.control.kicks);
        }
        let at = [control.at, paused.then_some(control.not_before)];
        let first = at
            .into_iter()
            .flatten()
            .chain(self.control.announce_at.first().copied());
        wait.limit = first.min().map(|at| at.saturating_duration_since(now));
        wait
    }

    /// Do what is due: ask for an announcement, carry commands out. `kicked`: the driver has kicked.
    pub(in super::super) fn attend_control(&mut self, kicked: bool) {
        let now = Instant::now();
        if self.control.announce_at.first().is_some_and(|at| *at <= now) {
            self.control.announce_at.remove(0);
            self.control.announcing = true;
            self.back_channel.forget();
        }
        if kicked && let Some(kicks) = &self.control.kicks {
            let mut events = Vec::with_capacity(1);
            let at_once = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let _ = epoll::wait(&**kicks, spare_capacity(&mut events), Some(&at_once));
        }
        let Some(mut control) = self.control.running.take() else {
            return;
        };
        let due = kicked || control.at.is_some_and(|at| at <= now);
        if due && control.not_before <= now {
            control.not_before = now + PAUSE;
            control.at = match self.serve(&mut control) {
                Ok(true) => Some(control.not_before),
                Ok(false) if control.kick.is_none() => Some(now + NO_KICK),
                Ok(false) => None,
                Err(error) => {
                    tracing::warn!(port = %self.port.name, "control queue stopped: {error}");
                    let ring = &self.rings[usize::from(self.port.queue_pairs * 2)];
                    if let Some(err) = &ring.err {
                        err.signal();
                    }
                    control.not_before = now + Duration::from_hours(24);
                    None
                }
            };
        }
        self.control.running = Some(control);
    }

    /// Carry out what is in the queue; true when there is more.
    fn serve(&mut self, control: &mut Control) -> std::result::Result<bool, virtio::queue::RingError> {
        control.queue.disable_notification();
        control.queue.pop_burst(&mut control.burst, BURST)?;
        for chain in control.burst.chains() {
            let written = self.carry_out(&chain);
            control.queue.add_used([(chain.head, written)]);
        }
        control.burst.release();
        let call = &self.rings[usize::from(self.port.queue_pairs * 2)].call;
        if control.queue.publish()
            && let Some(call) = call
        {
            call.signal();
        }
        Ok(control.queue.enable_notification())
    }

    /// Carry one command out and answer it. One without room for an answer is not carried out: its sender could not tell.
    fn carry_out(&mut self, chain: &Chain<'_>) -> u32 {
        if chain.error.is_some() || chain.writable_len == 0 {
            return 0;
        }
        let pairs = self.port.queue_pairs;
        let (acked, len) = (self.features, chain.readable_len as usize);
        let change = Command::read(chain.readable, len).and_then(|mut command| {
            let state = self.control.state.as_mut()?;
            state.apply(&mut command, acked, pairs)
        });
        match change {
            Some(Change::Announced) => {
                self.control.announcing = false;
                self.control.announce_at.clear();
                self.back_channel.forget();
            }
            Some(change) => self.take_effect(change),
            None => {}
        }
        let status = if change.is_some() { OK } else { ERR };
        u32::try_from(write_chain(chain.writable, 0, &[status])).unwrap_or(0)
    }

    fn take_effect(&mut self, change: Change) {
        self.keep_control();
        let Some(state) = &self.control.state else { return };
        match change {
            Change::Filter => self.plane.filter_changed(state.filter()),
            Change::Steering => {
                self.plane.steering_changed(state.steering());
                self.refresh_enabled();
            }
            Change::Offloads => self.plane.offloads_changed(state.features(self.features)),
            Change::Announced => {}
        }
    }
}
