//! The thread that keeps a NIC connected, for as long as its VM lives.
//!
//! ```text
//!              ┌────────── back-off ◄──────────┐
//!              ▼                               │ any error, at any step
//!   away ── connect ── negotiate ── (hand over rings, if the guest runs any) ──► link up
//!              ▲                                                                   │
//!              └───────────────────── link down ◄── back-end closes ───────────────┘
//! ```
//!
//! All messages to the back-end are sent from here, so that no other thread ever waits on it without a bound.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use tracing::{debug, info, warn};

use super::config::ANNOUNCE;
use super::features::{self, FeatureNames};
use super::link::{Link, LinkError, Timeouts};
use super::rings::{ActiveNic, Ring};
use super::shared::{Offer, Shared};
use super::socket::Connector;
use super::watchdog::Watchdog;
use crate::fd::borrow;
use crate::memory::RamRegion;

/// What the device model asks of the supervisor.
#[derive(Debug)]
pub(super) enum Command {
    /// The guest's driver is ready.
    Activate(Box<ActiveNic>),
    /// The guest's driver is gone: answer when no ring is in use any more.
    Reset(SyncSender<()>),
    /// The guest's driver is kept from its rings for a while: answer when none of them is in use any more.
    Pause(SyncSender<()>),
    /// The rings may be used again.
    Resume,
    /// The guest's driver takes this ring back: answer when it is in use no more.
    ResetRing(u16, SyncSender<()>),
    /// The guest's driver has set a ring up anew that it had taken back.
    StartRing(Box<Ring>),
    /// The guest's driver mapped a queue to another interrupt vector.
    RenewCall(u16),
    /// The VM got memory.
    AddMemory(RamRegion),
    /// The VM loses memory: answer when the back-end has let go of it.
    RemoveMemory(RamRegion, SyncSender<()>),
    /// The VM ends.
    Close,
}

/// First pause between two attempts, and the longest while nobody listens.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE_ABSENT: Duration = Duration::from_millis(100);
/// A link that lived this long was a good one: the next attempt starts with the first pause again.
const GOOD_LINK: Duration = Duration::from_secs(1);

/// How often a back-end whose own link is down is asked whether it still is.
const RECHECK: Duration = Duration::from_secs(1);

/// When the guest is asked to announce itself after the link came back: a driver brings its link up in the
/// background, and announcements made before that are lost.
const ANNOUNCE_AFTER: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_secs(1),
];

pub(super) struct Supervisor {
    name: String,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    connector: Connector,
    watchdog: Watchdog,
    timeouts: Timeouts,
    link: Option<Link>,
    nic: Option<Box<ActiveNic>>,
    /// The guest's memory, as of its last activation and every change since.
    regions: Vec<RamRegion>,
    /// Queue pairs enabled on the present link.
    enabled: u16,
    pause: Duration,
    retry_at: Instant,
    up_since: Option<Instant>,
    announcements: Vec<Instant>,
    /// When to look at the back-end's own link state again.
    recheck_at: Option<Instant>,
    /// The back-end may not have the rings now.
    paused: bool,
    closing: bool,
}

impl Supervisor {
    pub(super) fn new(
        name: String,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        connector: Connector,
        watchdog: Watchdog,
        timeouts: Timeouts,
    ) -> Self {
        let now = Instant::now();
        Self {
            name,
            shared,
            commands,
            connector,
            watchdog,
            timeouts,
            link: None,
            nic: None,
            regions: Vec::new(),
            enabled: 0,
            pause: FIRST_PAUSE,
            retry_at: now,
            up_since: None,
            announcements: Vec::new(),
            recheck_at: None,
            paused: false,
            closing: false,
        }
    }

    /// Runs until the VM ends.
    pub(super) fn run(mut self) {
        loop {
            self.obey();
            if self.closing {
                break;
            }
            if self.link.is_none() {
                self.try_connect();
            }
            self.apply_pairs();
            self.recheck_carrier();
            self.announce();
            self.wait();
        }
        self.stop_rings();
    }

    fn obey(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Activate(nic)) => self.activate(nic),
                Ok(Command::Reset(done)) => {
                    self.reset();
                    // Whoever asked has stopped waiting only if the VM is ending.
                    let _ = done.send(());
                }
                Ok(Command::Pause(done)) => {
                    self.paused = true;
                    self.stop_rings();
                    let _ = done.send(());
                }
                Ok(Command::Resume) => {
                    self.paused = false;
                    self.bring_up();
                }
                Ok(Command::ResetRing(index, done)) => {
                    self.reset_ring(index);
                    let _ = done.send(());
                }
                Ok(Command::StartRing(ring)) => self.start_ring(*ring),
                Ok(Command::RenewCall(index)) => self.renew_call(index),
                Ok(Command::AddMemory(region)) => {
                    self.regions.retain(|r| r.guest_addr != region.guest_addr);
                    self.regions.push(region);
                    self.change_memory();
                }
                Ok(Command::RemoveMemory(region, done)) => {
                    self.regions.retain(|r| r.guest_addr != region.guest_addr);
                    self.change_memory();
                    let _ = done.send(());
                }
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => {
                    self.closing = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    fn activate(&mut self, nic: Box<ActiveNic>) {
        self.regions.clone_from(&nic.ram.regions);
        let config_irq = nic.config_irq.clone();
        self.nic = Some(nic);
        self.bring_up();
        // The driver may have read the link state before the link changed, and there was nobody to tell then.
        config_irq.notify();
    }

    /// Takes the rings away from the back-end and forgets them. The guest may negotiate anew, so it is offered
    /// what the back-end has now.
    fn reset(&mut self) {
        self.stop_rings();
        self.nic = None;
        self.paused = false;
        self.announcements.clear();
        {
            let mut state = self.shared.lock();
            state.pairs = 1;
            state.status.queue_pairs = 1;
        }
        self.shared.renew_offer();
        if self.link.is_some() {
            self.bring_up();
        }
    }

    fn stop_rings(&mut self) {
        let Some(link) = &mut self.link else { return };
        match link.stop(&self.watchdog) {
            Ok(places) => {
                self.shared.lock().rings_running = false;
                if let Some(nic) = &mut self.nic {
                    nic.stopped(link, &places);
                }
            }
            Err(e) => self.lose_link(&e),
        }
    }

    fn reset_ring(&mut self, index: u16) {
        if self.shared.lock().rings_running
            && let (Some(link), Some(nic)) = (&mut self.link, &self.nic)
            && let Err(e) = link.stop_ring(&self.watchdog, nic.index_on(link, index))
        {
            self.lose_link(&e);
        }
        if let Some(nic) = &mut self.nic {
            nic.remove(index);
        }
    }

    fn start_ring(&mut self, ring: Ring) {
        let Some(nic) = &mut self.nic else { return };
        let index = ring.queue.index;
        nic.add(ring);
        if self.shared.lock().rings_running
            && let Some(link) = &mut self.link
            && let Some(vring) = nic.new_vring(index, self.enabled, link)
            && let Err(e) = link.start_ring(&self.watchdog, &vring)
        {
            self.lose_link(&e);
        }
    }

    fn renew_call(&mut self, index: u16) {
        let Some(nic) = &mut self.nic else { return };
        let control = nic.control;
        let call = match nic.renew_call(index) {
            Ok(Some(call)) => call,
            Ok(None) => return,
            Err(e) => {
                warn!("{}: queue {index} keeps its old interrupt: {e}", self.name);
                return;
            }
        };
        if !self.shared.lock().rings_running {
            return;
        }
        let Some(link) = &mut self.link else { return };
        let index = link.control().filter(|_| control == Some(index)).unwrap_or(index);
        match link.set_call(&self.watchdog, index, call) {
            // What was signalled to the old vector meanwhile is signalled to the new one.
            Ok(()) => drop(call.write(1)),
            Err(e) => self.lose_link(&e),
        }
    }

    fn change_memory(&mut self) {
        let Some(link) = &mut self.link else { return };
        if let Err(e) = link.change_memory(&self.watchdog, &self.regions) {
            self.lose_link(&e);
        }
    }

    fn try_connect(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        match self.connector.connection() {
            Ok(None) => {}
            Err(source) => {
                self.report(&LinkError::Connect {
                    path: self.connector.path().to_owned(),
                    source,
                });
                self.back_off(LONGEST_PAUSE_ABSENT.min(self.timeouts.longest_pause));
            }
            Ok(Some(stream)) => {
                match Link::open(stream, self.shared.max_pairs, &self.watchdog, self.timeouts) {
                    Err(e) => {
                        self.report(&e);
                        self.back_off(self.timeouts.longest_pause);
                    }
                    Ok(link) => self.adopt(link),
                }
            }
        }
    }

    fn adopt(&mut self, link: Link) {
        let offer = Offer::of(&link);
        self.shared.lock().status.connected = true;
        self.link = Some(link);
        self.bring_up();
        // Last: who waits for a back-end wants to see its link as well.
        self.shared.lock().seen = Some(offer);
        self.shared.notify_waiters();
    }

    fn back_off(&mut self, longest: Duration) {
        self.retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(longest);
    }

    /// Starts the rings on the link if there are any, and tells the guest what became of it.
    fn bring_up(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(nic) = &mut self.nic else {
            let carrier = link.carrier();
            self.set_link(carrier);
            return;
        };
        if self.paused {
            // The link stays as the guest saw it last.
            return;
        }
        let offered_pairs = self.shared.lock().config.pairs;
        if let Err(e) = fits(link, nic, offered_pairs) {
            // The connection is kept: after a reset the guest can be offered what this back-end has.
            self.report(&e);
            self.set_link(false);
            return;
        }
        let pairs = {
            let mut state = self.shared.lock();
            state.rings_running = true;
            state.pairs
        };
        if let (Some(_), Some(mac)) = (nic.control, self.shared.mac)
            && let Err(e) = link.set_mac(&self.watchdog, mac)
        {
            self.lose_link(&e);
            return;
        }
        let again = nic.handed_over();
        let returned = again && !self.shared.lock().status.link_up;
        let mut kept = nic.kept.take();
        let vrings = nic.vrings(pairs, again, link);
        let started = link.start(&self.watchdog, nic.acked, &self.regions, &mut kept, &vrings);
        nic.kept = kept;
        if let Err(e) = started {
            self.lose_link(&e);
            return;
        }
        let carrier = link.carrier();
        nic.signal_all();
        self.enabled = pairs;
        let ours = nic.control.is_none();
        if ours && returned && carrier && nic.acked & features::GUEST_ANNOUNCE != 0 {
            let now = Instant::now();
            self.announcements = ANNOUNCE_AFTER.iter().map(|after| now + *after).collect();
        }
        self.set_link(carrier);
    }

    /// Drops the link; the guest sees it down until a back-end serves it again.
    fn lose_link(&mut self, why: &LinkError) {
        self.link = None;
        self.announcements.clear();
        {
            let mut state = self.shared.lock();
            state.status.connected = false;
            state.rings_running = false;
            state.status.disconnects += 1;
        }
        self.report(why);
        self.set_link(false);
        if self
            .up_since
            .take()
            .is_some_and(|since| since.elapsed() >= GOOD_LINK)
        {
            self.pause = FIRST_PAUSE;
        }
        self.back_off(self.timeouts.longest_pause);
    }

    fn set_link(&mut self, up: bool) {
        let news = {
            let mut state = self.shared.lock();
            if up {
                state.status.last_error = None;
            }
            state.set_link(up)
        };
        self.shared.notify_waiters();
        if !news {
            return;
        }
        if up {
            self.up_since = Some(Instant::now());
            info!("{}: link up", self.name);
        } else {
            info!("{}: link down", self.name);
        }
        if let Some(nic) = &self.nic {
            nic.config_irq.notify();
        }
    }

    /// Says what is wrong, once for as long as it stays the same.
    fn report(&self, error: &LinkError) {
        let text = error.to_string();
        let mut state = self.shared.lock();
        if state.status.last_error.as_ref() == Some(&text) {
            return;
        }
        warn!("{}: {text}; trying again for as long as it takes", self.name);
        state.status.last_error = Some(text);
        drop(state);
        self.shared.notify_waiters();
    }

    /// Has the guest's choice of queue pairs reach the back-end, one pair at a time.
    fn apply_pairs(&mut self) {
        let (pairs, ticket, running) = {
            let state = self.shared.lock();
            (state.pairs, state.pairs_asked, state.rings_running)
        };
        if running {
            let on = self.enabled..pairs;
            let off = pairs..self.enabled;
            let changes = on.map(|pair| (pair, true)).chain(off.map(|pair| (pair, false)));
            for (pair, enable) in changes {
                let Some(link) = &mut self.link else { break };
                if let Err(e) = link.enable_pair(&self.watchdog, pair, enable) {
                    self.lose_link(&e);
                }
            }
            self.enabled = pairs;
        }
        self.shared.lock().pairs_done = ticket;
        self.shared.notify_waiters();
    }

    /// Looks at the link state that the back-end reports when that may have changed. Not every back-end can say
    /// so by itself: one that is down is asked now and then, one that is up costs nothing.
    fn recheck_carrier(&mut self) {
        let Some(link) = &mut self.link else {
            self.recheck_at = None;
            return;
        };
        if self.recheck_at.is_some_and(|at| at <= Instant::now()) {
            self.recheck_at = None;
            if let Err(e) = link.refresh(&self.watchdog) {
                self.lose_link(&e);
                return;
            }
            let carrier = link.carrier();
            if let Some(nic) = self.nic.as_ref().filter(|nic| nic.control.is_some())
                && self.shared.lock().set_announce(link.announces())
            {
                nic.config_irq.notify();
            }
            if self.nic.is_none() || self.shared.lock().rings_running {
                self.set_link(carrier);
            }
        }
        if self.recheck_at.is_none() && self.link.as_ref().is_some_and(|link| !link.carrier()) {
            self.recheck_at = Some(Instant::now() + RECHECK);
        }
    }

    fn announce(&mut self) {
        let now = Instant::now();
        if self.announcements.first().is_none_or(|at| *at > now) {
            return;
        }
        self.announcements.remove(0);
        if let Some(nic) = &self.nic {
            self.shared.lock().config.status |= ANNOUNCE;
            nic.config_irq.notify();
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) {
        let pausing = self.retry_at > Instant::now();
        let peer: Option<BorrowedFd<'_>> = match &self.link {
            Some(link) => Some(link.as_fd()),
            None if pausing => None,
            None => self.connector.readiness(),
        };
        let until = match peer {
            Some(_) => self
                .announcements
                .first()
                .copied()
                .into_iter()
                .chain(self.recheck_at)
                .min(),
            None => Some(self.retry_at),
        };
        let timeout = until.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up, or the last fraction of a millisecond is spent spinning.
            Timespec::try_from(left + Duration::from_millis(1)).unwrap_or(Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            })
        });
        let mut fds = vec![PollFd::from_borrowed_fd(borrow(&self.shared.wake), PollFlags::IN)];
        if let Some(fd) = peer {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::RDHUP));
        }
        if let Some(fd) = self.link.as_ref().and_then(Link::back_channel) {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        if let Some(nic) = &self.nic {
            fds.push(PollFd::from_borrowed_fd(borrow(nic.error()), PollFlags::IN));
        }
        if let Err(e) = rustix::event::poll(&mut fds, timeout.as_ref())
            && e != rustix::io::Errno::INTR
        {
            debug!("{}: poll: {e}", self.name);
        }
        // A back-end says nothing unasked on this socket: whatever there is to read is its end.
        let peer_gone = self.link.is_some() && fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        // Only to rearm it; what there is to do is looked up, not counted.
        let _ = self.shared.wake.read();
        if let Some(nic) = &self.nic
            && nic.error().read().is_ok()
        {
            warn!(
                "{}: the back-end found a ring broken; the guest's driver has to reset the device",
                self.name
            );
            nic.config_irq.needs_reset();
        }
        if peer_gone {
            self.lose_link(&LinkError::Closed);
        } else if self.link.as_mut().is_some_and(Link::config_changed) {
            self.recheck_at = Some(Instant::now());
        }
    }
}

/// Whether a back-end can go on where another left off.
fn fits(link: &Link, nic: &ActiveNic, offered_pairs: u16) -> Result<(), LinkError> {
    let control = link.control().map_or(0, |_| features::CTRL_VQ);
    let missing = nic.needs() & !(link.features() | control);
    if missing != 0 {
        return Err(LinkError::MissingFeatures(FeatureNames(missing)));
    }
    if nic.acked & features::MQ != 0 && link.pairs() < offered_pairs {
        return Err(LinkError::MissingPairs {
            has: link.pairs(),
            offered: offered_pairs,
        });
    }
    Ok(())
}
