//! The control queue. It ends here: the back-end knows only which of its rings are enabled.

use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use tracing::warn;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::features;
use super::shared::Shared;
use crate::fd::borrow;
use crate::virtio::device::{ActivateError, ActiveQueue, ConfigIrq, QueueIrq};
use crate::virtio::queue::split_queue;
use crate::virtio::worker::{Orders, Worker};

/// Classes and commands, from the standard's section on the control virtqueue.
const CLASS_ANNOUNCE: u8 = 3;
const ANNOUNCE_ACK: u8 = 0;
const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;

/// The device's answers.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Class, command and the longest argument that any known command takes. Longer ones are cut off: their
/// commands are refused whatever follows.
const REQUEST_LEN: usize = 4;

/// What the guest asks for, decided on a copy of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    SetPairs(u16),
    AnnounceAck,
    Refused,
}

impl Request {
    fn parse(request: &[u8], acked: u64, max_pairs: u16) -> Self {
        match *request {
            [CLASS_MQ, MQ_VQ_PAIRS_SET, low, high] if acked & features::MQ != 0 => {
                match u16::from_le_bytes([low, high]) {
                    pairs if (1..=max_pairs).contains(&pairs) => Self::SetPairs(pairs),
                    _ => Self::Refused,
                }
            }
            [CLASS_ANNOUNCE, ANNOUNCE_ACK, ..] if acked & features::GUEST_ANNOUNCE != 0 => Self::AnnounceAck,
            _ => Self::Refused,
        }
    }
}

/// Serves the control queue between `DRIVER_OK` and reset, in a thread of its own.
pub(super) struct ControlQueue {
    name: String,
    queue: Queue,
    mem: Arc<GuestMemoryMmap>,
    kick: EventFd,
    irq: QueueIrq,
    config_irq: ConfigIrq,
    orders: Orders,
    shared: Arc<Shared>,
    acked: u64,
    max_pairs: u16,
}

impl ControlQueue {
    pub(super) fn start(
        name: &str,
        queue: ActiveQueue,
        mem: Arc<GuestMemoryMmap>,
        acked: u64,
        max_pairs: u16,
        shared: Arc<Shared>,
        config_irq: ConfigIrq,
    ) -> Result<Worker, ActivateError> {
        let ring = split_queue(&queue, acked & features::EVENT_IDX != 0)?;
        let (thread, name) = (format!("{name}-ctrl"), name.to_owned());
        let run = move |orders| {
            Self {
                name,
                queue: ring,
                mem,
                kick: queue.kick,
                irq: queue.irq,
                config_irq,
                orders,
                shared,
                acked,
                max_pairs,
            }
            .run();
        };
        Ok(Worker::spawn_plain(&thread, run)?)
    }

    fn run(mut self) {
        while !(self.orders.pending() && self.orders.obey()) {
            match self.serve() {
                Ok(true) => {}
                Ok(false) => {
                    if let Err(e) = self.sleep() {
                        warn!("{}: control queue: {e}", self.name);
                        return;
                    }
                }
                Err(e) => {
                    warn!(
                        "{}: the guest broke its control queue: {e}; its driver has to be reset",
                        self.name
                    );
                    self.config_irq.needs_reset();
                    return;
                }
            }
        }
    }

    fn sleep(&self) -> io::Result<()> {
        let mut fds = [
            PollFd::from_borrowed_fd(borrow(&self.kick), PollFlags::IN),
            PollFd::from_borrowed_fd(borrow(self.orders.wake()), PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Err(e) if e != rustix::io::Errno::INTR => return Err(e.into()),
            _ => {}
        }
        // Read to rearm it; the ring says what there is to do.
        let _ = self.kick.read();
        Ok(())
    }

    /// Answers what is in the queue, one queue's worth at most; true if there may be more.
    fn serve(&mut self) -> Result<bool, virtio_queue::Error> {
        let mem = Arc::clone(&self.mem);
        self.queue.disable_notification(&*mem)?;
        let mut done = 0;
        while done < self.queue.size() && !self.orders.pending() {
            let Some(chain) = self.queue.iter(&*mem)?.next() else {
                break;
            };
            let head = chain.head_index();
            let mut request = [0; REQUEST_LEN];
            let mut filled = 0;
            let mut ack = None;
            for descriptor in chain {
                if descriptor.is_write_only() {
                    if descriptor.len() > 0 {
                        ack = Some(descriptor.addr());
                        break;
                    }
                } else if filled < REQUEST_LEN {
                    let len = (REQUEST_LEN - filled).min(descriptor.len() as usize);
                    match mem.read_slice(&mut request[filled..filled + len], descriptor.addr()) {
                        Ok(()) => filled += len,
                        Err(_) => break,
                    }
                }
            }
            let written = self.answer(&mem, &request[..filled], ack);
            self.queue.add_used(&*mem, head, written)?;
            done += 1;
        }
        if done > 0 && self.queue.needs_notification(&*mem)? {
            self.irq.notify();
        }
        self.queue.enable_notification(&*mem)
    }

    /// Does what is asked and acknowledges it. A request without room for an answer is not carried out: its
    /// sender could not tell.
    fn answer(&self, mem: &GuestMemoryMmap, request: &[u8], ack: Option<GuestAddress>) -> u32 {
        let Some(ack) = ack else { return 0 };
        let status = match Request::parse(request, self.acked, self.max_pairs) {
            Request::SetPairs(pairs) => {
                self.shared.set_pairs(pairs);
                OK
            }
            Request::AnnounceAck => {
                self.shared.announced();
                OK
            }
            Request::Refused => ERR,
        };
        u32::from(mem.write_obj(status, ack).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = features::MQ | features::CTRL_VQ | features::GUEST_ANNOUNCE;

    #[test]
    fn pairs_are_those_that_exist() {
        for (request, expected) in [
            ([4, 0, 1, 0], Request::SetPairs(1)),
            ([4, 0, 4, 0], Request::SetPairs(4)),
            ([4, 0, 0, 0], Request::Refused),
            ([4, 0, 5, 0], Request::Refused),
            ([4, 0, 1, 1], Request::Refused),
        ] {
            assert_eq!(Request::parse(&request, ALL, 4), expected, "{request:?}");
        }
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        assert_eq!(
            Request::parse(&[4, 0, 1, 0], ALL & !features::MQ, 4),
            Request::Refused
        );
        assert_eq!(Request::parse(&[3, 0], ALL, 4), Request::AnnounceAck);
        assert_eq!(
            Request::parse(&[3, 0], ALL & !features::GUEST_ANNOUNCE, 4),
            Request::Refused
        );
    }

    #[test]
    fn short_and_unknown_requests_are_refused() {
        for request in [
            &[][..],
            &[4],
            &[4, 0],
            &[4, 0, 1],
            &[4, 1, 1, 0],
            &[0, 0, 1, 0],
            &[255, 255, 0, 0],
        ] {
            assert_eq!(Request::parse(request, ALL, 4), Request::Refused, "{request:?}");
        }
    }
}
