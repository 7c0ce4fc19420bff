//! A worker's loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use virtio::burst::Burst;
use virtio::memory::guard::fault_count;

use super::BURST;
use super::deliver::{Forwarder, Sent};
use super::shared::{Source, Sources, WAKE, WorkerShared};
use super::source::FrameBuffers;
use super::window::Window;
use super::work::Stopwatch;
use crate::bridge::{Bridge, PortTable};
use crate::counters::DropReason;
use crate::port::IngressQueue;
use crate::published::Reader;

/// Rounds between two looks at what woke up meanwhile: a system call costs as much as many empty ones, or as some short bursts.
const ROUNDS_PER_LOOK: u32 = 16;
/// How often rings are looked at whose guests never kick.
const NO_KICK_PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};
/// Events taken at a time.
const EVENTS: usize = 64;

/// What came of looking at a queue.
enum Served {
    /// A burst of so many frames was forwarded.
    Burst(usize),
    /// Nothing was there.
    Nothing,
    /// The session is changing it.
    Busy,
    /// There is no ring to serve.
    Gone,
}

/// What the worker knows of a queue beyond its ring.
#[derive(Debug, Clone, Copy, Default)]
struct Activity {
    active: bool,
    /// It just became active: its guest may still kick.
    fresh: bool,
    idle_since: Option<Instant>,
    /// It was idle for long, and its guest never kicks.
    never_kicks: bool,
}

/// A worker.
pub(super) struct Round {
    bridge: Arc<Bridge>,
    shared: Arc<WorkerShared>,
    ports: Reader<PortTable>,
    sources: Reader<Sources>,
    activity: Vec<Activity>,
    active: Vec<usize>,
    events: Vec<epoll::Event>,
    forwarder: Forwarder,
    /// Chains taken from the sender.
    sent: Burst,
    /// For frames of the host and such as have to be copied, once there are any.
    own_buffers: Option<FrameBuffers>,
    /// How long an idle queue is polled.
    window: Window,
    faults: usize,
    stopwatch: Stopwatch,
}

impl Round {
    pub(super) fn new(bridge: Arc<Bridge>, shared: Arc<WorkerShared>, window: Window) -> Self {
        Self {
            ports: Reader::new(Arc::clone(bridge.published())),
            sources: Reader::new(Arc::clone(&shared.sources)),
            bridge,
            shared,
            activity: Vec::new(),
            active: Vec::new(),
            events: Vec::with_capacity(EVENTS),
            forwarder: Forwarder::new(),
            sent: Burst::with_capacity(BURST),
            own_buffers: None,
            window,
            faults: fault_count(),
            stopwatch: Stopwatch::start(),
        }
    }

    pub(super) fn run(mut self) {
        let mut rounds = 0_u32;
        while !self.shared.is_stopped() {
            let worked = self.serve_active();
            if self.active.is_empty() {
                self.release();
                self.stopwatch.skip();
                self.wait(None);
                self.window.slept(self.stopwatch.skip());
            } else if !worked && self.only_never_kicking() {
                self.release();
                self.wait(Some(&NO_KICK_PERIOD));
                self.stopwatch.skip();
            } else {
                rounds = rounds.wrapping_add(1);
                if rounds.is_multiple_of(ROUNDS_PER_LOOK) {
                    // Of ports that went away, too, whoever served them.
                    self.release();
                    self.wait(Some(&AT_ONCE));
                } else if !worked {
                    // Not `sched_yield`: on a CPU that is wanted by others it costs a whole slice of theirs. Who polls for a
                    // bounded time gives way by sleeping, and is back as soon as there is something to do.
                    std::hint::spin_loop();
                }
            }
        }
    }

    /// Serves every active queue once; true if any had frames.
    fn serve_active(&mut self) -> bool {
        let mut worked = false;
        let mut place = 0;
        while let Some(&number) = self.active.get(place) {
            let stays = match self.serve(number) {
                Served::Burst(frames) => {
                    worked = true;
                    let work = self.shared.work();
                    work.frames.add(frames as u64);
                    work.bursts.add(1);
                    work.busy_ns.add(self.stopwatch.lap());
                    let activity = &mut self.activity[number];
                    activity.idle_since = None;
                    activity.never_kicks = false;
                    true
                }
                Served::Busy => {
                    // Whoever changes it may be waiting for this CPU.
                    std::thread::yield_now();
                    self.stopwatch.skip();
                    true
                }
                Served::Nothing => {
                    let work = self.shared.work();
                    work.empty_looks.add(1);
                    work.polling_ns.add(self.stopwatch.lap());
                    !self.is_idle_long(number) || self.arm(number)
                }
                Served::Gone => false,
            };
            if stays {
                place += 1;
            } else {
                self.active.swap_remove(place);
                self.activity[number] = Activity::default();
            }
        }
        worked
    }

    fn serve(&mut self, number: usize) -> Served {
        let Self {
            forwarder,
            sent,
            sources,
            ports,
            bridge,
            activity,
            faults,
            shared,
            own_buffers: own,
            ..
        } = self;
        let Some(Some(source)) = sources.load().get(number) else {
            return Served::Gone;
        };
        let Some(queue) = source.queue() else {
            return Served::Gone;
        };
        if source.port.is_tap() {
            return self.serve_tap(number);
        }
        let Some(mut guard) = queue.ring.try_enter() else {
            return Served::Busy;
        };
        let ours = queue.worker() == shared.number();
        let Some(ring) = guard.as_mut().filter(|ring| ours && !ring.state.broken) else {
            return Served::Gone;
        };
        if std::mem::take(&mut activity[number].fresh) {
            ring.queue.disable_notification();
        }
        match ring.queue.pop_burst(sent, BURST) {
            Ok(0) => return Served::Nothing,
            Ok(_) => {}
            Err(error) => {
                ring.fail(error);
                return Served::Gone;
            }
        }
        if ring.state.enabled {
            if let Some(taken) = &ring.taken {
                taken.note(ring.queue.next_avail());
            }
            let mut forward = |frames: &Sent<'_>| {
                forwarder.forward(bridge, ports.load(), &source.port, source.pair, frames);
            };
            match own_buffers(own, source.port.wishes().hashes()) {
                Some(buffers) => buffers.without_hashes(sent, forward),
                None => forward(&Sent::Guest(sent)),
            }
        } else {
            queue
                .counters()
                .drops
                .add(DropReason::QueueDisabled, sent.len() as u64);
        }
        ring.queue.add_used(sent.heads().map(|head| (head, 0)));
        if ring.queue.publish() {
            queue.counters().notifications.add(1);
            forwarder.notify_later(ring.state.call.as_ref());
        }
        let now = fault_count();
        if *faults != now {
            *faults = now;
            forwarder.stop_poisoned(ports.load());
            if ring.queue.memory().is_poisoned() {
                ring.state.fail(&"its memory was truncated");
            }
        }
        drop(guard);
        forwarder.notify();
        Served::Burst(sent.len())
    }

    /// Lets go of all guest memory.
    fn release(&mut self) {
        self.sent.release();
        self.forwarder.release();
    }

    fn serve_tap(&mut self, number: usize) -> Served {
        let Self {
            forwarder,
            sources,
            ports,
            bridge,
            own_buffers: own,
            ..
        } = self;
        let Some(Some(source)) = sources.load().get(number) else {
            return Served::Gone;
        };
        let Some(pair) = source.port.pairs().get(source.pair) else {
            return Served::Gone;
        };
        // There is no ring behind it. Whoever changes something waits here for the burst to end; at the gate of the interface it
        // would keep those away that deliver to the host.
        let Some(_at_work) = pair.ingress.ring.try_enter() else {
            return Served::Busy;
        };
        let Some(guard) = pair.tap.try_enter() else {
            return Served::Busy;
        };
        let Some(tap) = guard.clone() else {
            return Served::Gone;
        };
        drop(guard);
        let Some(buffers) = own_buffers(own, true) else {
            return Served::Gone;
        };
        let taken = buffers.read(&tap, |frames| {
            forwarder.forward(bridge, ports.load(), &source.port, source.pair, frames);
        });
        forwarder.notify();
        match taken {
            None => {
                source.port.set_ready(source.pair, false);
                Served::Gone
            }
            Some(0) => Served::Nothing,
            Some(frames) => Served::Burst(frames),
        }
    }

    fn is_idle_long(&mut self, number: usize) -> bool {
        let Some(window) = self.window.now() else {
            return false;
        };
        if window.is_zero() {
            return true;
        }
        let now = self.stopwatch.read_at();
        let since = *self.activity[number].idle_since.get_or_insert(now);
        now.duration_since(since) >= window
    }

    /// Asks the guest to kick, and looks once more; true if the queue stays active after all.
    fn arm(&mut self, number: usize) -> bool {
        let Some(Some(source)) = self.sources.load().get(number) else {
            return false;
        };
        let Some(queue) = source.queue() else { return false };
        let Some(mut guard) = queue.ring.try_enter() else {
            return true;
        };
        let ours = queue.worker() == self.shared.number();
        let Some(ring) = guard.as_mut().filter(|ring| ours && !ring.state.broken) else {
            return false;
        };
        let activity = &mut self.activity[number];
        if ring.kick.is_none() {
            activity.never_kicks = true;
            return true;
        }
        activity.never_kicks = false;
        let more = ring.queue.enable_notification();
        // If frames came meanwhile, kicks are unwanted again.
        activity.fresh = more;
        activity.idle_since = None;
        more
    }

    fn only_never_kicking(&self) -> bool {
        self.active
            .iter()
            .all(|&number| self.activity[number].never_kicks)
    }

    /// Waits for kicks and wishes, and makes their queues active.
    fn wait(&mut self, timeout: Option<&Timespec>) {
        self.events.clear();
        if let Err(error) = epoll::wait(&self.shared.epoll, spare_capacity(&mut self.events), timeout)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!("a worker cannot wait for kicks: {error}");
            std::thread::sleep(Duration::from_millis(100));
        }
        if timeout.is_none() {
            self.shared.work().wakeups.add(1);
        }
        let shared = Arc::clone(&self.shared);
        let _hold = shared.hold();
        for place in 0..self.events.len() {
            match self.events[place].data.u64() {
                WAKE => self.attend(),
                number => self.activate(usize::try_from(number).unwrap_or(usize::MAX)),
            }
        }
    }

    /// Looks at the queues that the control plane changed.
    fn attend(&mut self) {
        self.shared.drain_wake();
        self.release();
        let sources = Arc::clone(self.sources.load());
        for (number, source) in sources.iter().enumerate() {
            if source
                .as_ref()
                .and_then(Source::queue)
                .is_some_and(IngressQueue::take_attention)
            {
                self.activate(number);
            }
        }
    }

    fn activate(&mut self, number: usize) {
        if number >= self.sources.load().len() {
            return;
        }
        if number >= self.activity.len() {
            self.activity.resize(number + 1, Activity::default());
        }
        let activity = &mut self.activity[number];
        if !activity.active {
            *activity = Activity {
                active: true,
                fresh: true,
                ..Activity::default()
            };
            self.active.push(number);
        }
    }
}

/// The worker's own buffers, made when they are first needed; `None` when they are not, or there is no memory for them.
#[inline]
fn own_buffers(buffers: &mut Option<FrameBuffers>, needed: bool) -> Option<&FrameBuffers> {
    if !needed {
        return None;
    }
    if buffers.is_none() {
        match FrameBuffers::new() {
            Ok(new) => *buffers = Some(new),
            Err(error) => tracing::error!("no memory for frames that have to be copied: {error}"),
        }
    }
    buffers.as_ref()
}
