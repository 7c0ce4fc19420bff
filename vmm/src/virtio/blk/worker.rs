//! The thread of one virtqueue.

use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use tracing::warn;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::engine::{Done, Engine, Pending, Work};
use super::request::{Range, Request, Segment, Status, parse};
use super::transfer::{Direction, Transfer};
use super::{EVENT_IDX, EngineKind, FLUSH};
use crate::fd::borrow;
use crate::virtio::device::{ActivateError, ActiveQueue, ConfigIrq, QueueIrq};
use crate::virtio::queue::split_queue;
use crate::virtio::worker::{Orders, Worker};

/// What all queues of an active disk have in common.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) features: u64,
    pub(super) engine: EngineKind,
    pub(super) disk: Arc<Disk>,
    pub(super) mem: Arc<GuestMemoryMmap>,
    pub(super) config_irq: ConfigIrq,
}

/// Serves `queue` in a thread of its own. The thread keeps still, and ends, with no transfer under way.
pub(super) fn start(queue: ActiveQueue, terms: Terms) -> Result<Worker, ActivateError> {
    let ring = split_queue(&queue, terms.features & EVENT_IDX != 0)?;
    let ActiveQueue { index, kick, irq, .. } = queue;
    let run = move |orders| {
        let engine = Engine::new(terms.engine, Arc::clone(&terms.disk));
        Service {
            ring,
            kick,
            irq,
            orders,
            engine,
            terms,
            ended: Vec::new(),
            unannounced: false,
        }
        .run();
    };
    Ok(Worker::spawn_plain(&format!("blk-{index}"), run)?)
}

/// Why a worker ends before it is stopped.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("the driver broke the ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error("{0}")]
    Os(#[from] io::Error),
}

struct Service {
    ring: Queue,
    kick: EventFd,
    irq: QueueIrq,
    orders: Orders,
    engine: Engine,
    terms: Terms,
    ended: Vec<Done>,
    /// Chains went back since the driver was last told.
    unannounced: bool,
}

impl Service {
    fn run(mut self) {
        let result = self.serve();
        self.settle();
        if let Err(e) = result {
            warn!(
                "disk {}: a queue has stopped: {e}; its driver has to be reset",
                self.terms.disk.path()
            );
            self.terms.config_irq.needs_reset();
        }
    }

    fn serve(&mut self) -> Result<(), WorkerError> {
        loop {
            let more = self.pass()?;
            if !more {
                self.sleep()?;
            }
            // A guest that never stops asking is no reason not to obey.
            if self.orders.pending() {
                self.settle();
                if self.orders.obey() {
                    return Ok(());
                }
            }
        }
    }

    /// Takes new requests and completes old ones; true if there is more to do.
    fn pass(&mut self) -> Result<bool, WorkerError> {
        let mem = Arc::clone(&self.terms.mem);
        self.ring.disable_notification(&*mem)?;
        for _ in 0..self.ring.size() {
            if !self.engine.has_room() {
                break;
            }
            let Some(chain) = self.ring.iter(&*mem)?.next() else {
                break;
            };
            let head = chain.head_index();
            match parse(chain, &mem, &self.terms.disk, self.terms.features) {
                Some(parsed) => self.carry_out(head, parsed.status, parsed.request)?,
                None => self.give_back(head, 0)?,
            }
        }
        self.engine.submit()?;
        self.complete()?;
        self.announce()?;
        // With no room for more, the next completion makes some and wakes us.
        Ok(self.engine.has_room() && self.ring.enable_notification(&*mem)?)
    }

    fn carry_out(
        &mut self,
        head: u16,
        status: GuestAddress,
        request: Result<Request, Status>,
    ) -> Result<(), WorkerError> {
        let disk = Arc::clone(&self.terms.disk);
        let mut pending = Pending { head, status, len: 0 };
        let work = match request {
            Err(refusal) => return self.answer(pending, refusal),
            Ok(Request::GetId { to }) => {
                pending.len = self.copy_out(disk.serial(), &to);
                return self.answer(pending, Status::Ok);
            }
            Ok(Request::Discard(ranges)) => {
                return self.answer(pending, each(&ranges, |r| disk.discard(r.offset, r.len)));
            }
            Ok(Request::WriteZeroes(ranges)) => {
                let done = each(&ranges, |r| disk.write_zeroes(r.offset, r.len, r.unmap));
                return self.answer(pending, done);
            }
            Ok(Request::Flush) => Some(Work::Flush),
            Ok(Request::Read { offset, to }) => {
                pending.len = to.iter().map(|(_, len)| *len).fold(0, u32::saturating_add);
                self.transfer(Direction::Read, offset, &to)
            }
            Ok(Request::Write { offset, from }) => {
                // A driver that cannot flush is promised that what is written stays written.
                let sync = self.terms.features & FLUSH == 0;
                self.transfer(Direction::Write { sync }, offset, &from)
            }
        };
        match work.map(|work| self.engine.start(pending, work)) {
            Some(Ok(())) => Ok(()),
            _ => self.answer(pending, Status::IoErr),
        }
    }

    fn transfer(&self, direction: Direction, offset: u64, segments: &[Segment]) -> Option<Work> {
        Transfer::new(direction, offset, segments, &self.terms.mem).map(Work::Transfer)
    }

    /// Copies to the guest what fits; returns how much.
    fn copy_out(&self, mut bytes: &[u8], to: &[Segment]) -> u32 {
        let mut copied = 0;
        for (addr, len) in to {
            let part = bytes.len().min(*len as usize);
            if self.terms.mem.write_slice(&bytes[..part], *addr).is_err() {
                break;
            }
            bytes = &bytes[part..];
            copied += u32::try_from(part).unwrap_or(0);
        }
        copied
    }

    fn complete(&mut self) -> Result<(), WorkerError> {
        let mut ended = std::mem::take(&mut self.ended);
        self.engine.reap(&mut ended);
        let result = self.answer_all(&mut ended);
        self.ended = ended;
        result
    }

    fn answer_all(&mut self, ended: &mut Vec<Done>) -> Result<(), WorkerError> {
        for done in ended.drain(..) {
            self.answer(done.pending, if done.ok { Status::Ok } else { Status::IoErr })?;
        }
        Ok(())
    }

    fn answer(&mut self, pending: Pending, status: Status) -> Result<(), WorkerError> {
        let data = if status == Status::Ok { pending.len } else { 0 };
        let written = match self.terms.mem.write_obj(status as u8, pending.status) {
            Ok(()) => data.saturating_add(1),
            Err(_) => 0,
        };
        self.give_back(pending.head, written)
    }

    fn give_back(&mut self, head: u16, written: u32) -> Result<(), WorkerError> {
        self.ring.add_used(&*self.terms.mem, head, written)?;
        self.unannounced = true;
        Ok(())
    }

    fn announce(&mut self) -> Result<(), WorkerError> {
        if std::mem::take(&mut self.unannounced) && self.ring.needs_notification(&*self.terms.mem)? {
            self.irq.notify();
        }
        Ok(())
    }

    /// Waits for something to happen.
    fn sleep(&self) -> io::Result<()> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(borrow(self.orders.wake()), PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(&self.kick), PollFlags::IN),
        ];
        if let Some(completed) = self.engine.completed() {
            fds.push(PollFd::from_borrowed_fd(borrow(completed), PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, None) {
            Err(e) if e != rustix::io::Errno::INTR => return Err(e.into()),
            _ => {}
        }
        // Read to rearm it; the ring says what there is to do.
        let _ = self.kick.read();
        Ok(())
    }

    /// Answers what is under way, so that nothing uses guest memory any more.
    fn settle(&mut self) {
        if let Err(e) = self.answer_under_way() {
            warn!(
                "disk {}: requests are left unanswered: {e}",
                self.terms.disk.path()
            );
        }
    }

    fn answer_under_way(&mut self) -> Result<(), WorkerError> {
        let mut ended = Vec::new();
        self.engine.drain(&mut ended)?;
        self.answer_all(&mut ended)?;
        self.announce()
    }
}

fn each(ranges: &[Range], mut work: impl FnMut(&Range) -> io::Result<()>) -> Status {
    match ranges.iter().try_for_each(&mut work) {
        Ok(()) => Status::Ok,
        Err(_) => Status::IoErr,
    }
}
