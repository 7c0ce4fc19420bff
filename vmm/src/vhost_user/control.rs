//! The control queue. It ends here: the back-end knows only which of its rings are enabled.

use std::io;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use tracing::warn;
use virtio::burst::{Burst, Chain};
use virtio::memory::{read_chain, write_chain};
use virtio::queue::{Queue, QueueConfig, RingError};
use vmm_sys_util::eventfd::EventFd;

use super::features;
use super::shared::Shared;
use crate::fd::borrow;
use crate::memory::GuestRam;
use crate::virtio::device::{ActivateError, ActiveQueue, ConfigIrq, QueueIrq};
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
    burst: Burst,
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
        ram: &GuestRam,
        acked: u64,
        max_pairs: u16,
        shared: Arc<Shared>,
        config_irq: ConfigIrq,
    ) -> Result<Worker, ActivateError> {
        let ring = ring(&queue, ram, acked)?;
        let burst = Burst::with_capacity(usize::from(queue.size));
        let (thread, name) = (format!("{name}-ctrl"), name.to_owned());
        let run = move |orders| {
            Self {
                name,
                queue: ring,
                burst,
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
    fn serve(&mut self) -> Result<bool, RingError> {
        self.queue.disable_notification();
        let size = usize::from(self.queue.size());
        self.queue.pop_burst(&mut self.burst, size)?;
        for chain in self.burst.chains() {
            let written = self.answer(&chain);
            self.queue.add_used([(chain.head, written)]);
        }
        if self.queue.publish() {
            self.irq.notify();
        }
        Ok(self.queue.enable_notification())
    }

    /// Does what is asked and acknowledges it. A request without room for an answer is not carried out: its
    /// sender could not tell.
    fn answer(&self, chain: &Chain<'_>) -> u32 {
        if chain.error.is_some() || chain.writable_len == 0 {
            return 0;
        }
        let mut request = [0; REQUEST_LEN];
        let filled = read_chain(chain.readable, 0, &mut request);
        let status = match Request::parse(&request[..filled], self.acked, self.max_pairs) {
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
        u32::try_from(write_chain(chain.writable, 0, &[status])).unwrap_or(0)
    }
}

/// The device's end of the queue, at its beginning.
fn ring(queue: &ActiveQueue, ram: &GuestRam, acked: u64) -> Result<Queue, ActivateError> {
    let packed = acked & features::RING_PACKED != 0;
    let start = if packed { virtio::packed::WRAP } else { 0 };
    let config = QueueConfig {
        size: queue.size,
        desc: queue.desc,
        avail: queue.avail,
        used: queue.used,
        event_idx: acked & features::EVENT_IDX != 0,
        indirect: acked & features::INDIRECT_DESC != 0,
        next_avail: start,
        used_idx: start,
    };
    Ok(Queue::new(ram.for_rings()?, &config, packed).map_err(io::Error::other)?)
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
