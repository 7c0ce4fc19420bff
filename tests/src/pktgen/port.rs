//! A port of the generator: an endpoint, the way to reach its back-end again, and sending and receiving without copying.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netyard_testkit::endpoint::{Endpoint, EndpointError, Options, Queue};
use virtio::memory::GuestSlice;
use virtio::net::{HEADER_LEN, NetHeader};
use virtio::split::driver::Buffer;

use super::frame::expect_mark;

/// Receive buffers that are posted at once where the ring is long enough.
const BATCH: usize = 64;
/// Received frames that are asked of the cache before the first of them is looked at.
pub const AHEAD: usize = 64;

/// Who opens the socket.
#[derive(Debug)]
pub enum Reach {
    /// The back-end does, and the generator connects to it.
    Connect(PathBuf),
    /// The generator does, and the back-end connects to it.
    Listen(PathBuf, UnixListener),
}

impl Reach {
    /// Opens a socket at `path` for a back-end to connect to.
    pub fn listen(path: &Path) -> Result<Self, PortError> {
        let failed = |source| PortError::Listen {
            socket: path.to_owned(),
            source,
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self::Listen(path.to_owned(), listener))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Connect(path) | Self::Listen(path, _) => path,
        }
    }

    /// A connection, if there is a back-end.
    fn attempt(&self) -> io::Result<UnixStream> {
        match self {
            Self::Connect(path) => UnixStream::connect(path),
            Self::Listen(_, listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok(stream)
            }
        }
    }
}

/// Why a port cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Rings or protocol.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No socket to listen on.
    #[error("{}: cannot listen: {source}; remove it if nothing uses it", socket.display())]
    Listen {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A back-end that forwards nothing.
    #[error("no frame passes between some of {ports} ports: see what the back-end logs")]
    Silent {
        /// How many there are.
        ports: usize,
    },
    /// Nobody at the other end.
    #[error("{}: no back-end within {} s: {source}; start it first", socket.display(), limit.as_secs())]
    Absent {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
        /// What came of the last attempt.
        source: io::Error,
    },
}

/// A port of the generator.
#[derive(Debug)]
pub struct Port {
    reach: Reach,
    options: Options,
    endpoint: Endpoint,
    /// Whether frames may be spread over several receive buffers.
    merges: bool,
    /// Receive buffers that are posted at once.
    batch: usize,
    /// Working memory: chains that came back, and the bytes written to each.
    used: [(u64, u32); AHEAD],
}

impl Port {
    /// Connects within `limit` and starts every queue pair with all receive buffers posted. Frames are no longer than `longest`.
    pub fn open(reach: Reach, options: Options, longest: usize, limit: Duration) -> Result<Self, PortError> {
        let end = Instant::now() + limit;
        let endpoint = loop {
            let failed = match reach.attempt() {
                Ok(stream) => match start(stream, &reach, options) {
                    Ok(endpoint) => break endpoint,
                    // A back-end that still sets itself up may hang up, and come back.
                    Err(error @ EndpointError::Handshake { .. }) => error.into(),
                    Err(error) => return Err(error.into()),
                },
                Err(source) => PortError::Absent {
                    socket: reach.path().to_owned(),
                    limit,
                    source,
                },
            };
            if Instant::now() >= end {
                return Err(failed);
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let room = options.buffer_len.saturating_sub(options.headroom) as usize;
        Ok(Self {
            reach,
            options,
            endpoint,
            batch: usize::from(options.queue_size / 4).clamp(1, BATCH),
            merges: room < longest + HEADER_LEN,
            used: [(0, 0); AHEAD],
        })
    }

    /// Queue pairs.
    pub fn pairs(&self) -> usize {
        self.endpoint.pairs()
    }

    /// Whether the back-end has gone away.
    pub fn is_down(&self) -> bool {
        self.endpoint.is_hung_up()
    }

    /// One attempt to reach the back-end again, with new rings; true when it was there. What was on its way is lost.
    pub fn revive(&mut self) -> Result<bool, PortError> {
        let Ok(stream) = self.reach.attempt() else {
            return Ok(false);
        };
        match start(stream, &self.reach, self.options) {
            Ok(endpoint) => {
                self.endpoint = endpoint;
                Ok(true)
            }
            // It went away again while it was greeted.
            Err(EndpointError::Handshake { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the transmit slots of `pair` that are free.
    pub fn take_slots(&mut self, pair: usize) -> Result<Vec<u16>, PortError> {
        let queue = &mut self.endpoint.queues[pair * 2 + 1];
        queue.reclaim().map_err(EndpointError::from)?;
        let mut slots = std::mem::take(&mut queue.free);
        slots.sort_unstable();
        Ok(slots)
    }

    /// Gives back slots that were taken.
    pub fn return_slots(&mut self, pair: usize, slots: impl IntoIterator<Item = u16>) {
        self.endpoint.queues[pair * 2 + 1].free.extend(slots);
    }

    /// The memory of a transmit slot.
    #[inline]
    pub fn slot(&self, pair: usize, slot: u16) -> Option<GuestSlice<'_>> {
        let buffer = self.endpoint.queues[pair * 2 + 1].buffer(slot);
        self.endpoint.map.slice(buffer.addr, buffer.len as usize)
    }

    /// Calls `free` with each slot that the device is done with, and its memory.
    #[inline]
    pub fn reclaim(
        &mut self,
        pair: usize,
        mut free: impl FnMut(u16, GuestSlice<'_>),
    ) -> Result<(), PortError> {
        let Endpoint { map, queues, .. } = &mut self.endpoint;
        let Queue { driver, places, .. } = &mut queues[pair * 2 + 1];
        let area = places.area(map);
        loop {
            let count = driver.pop_each(&mut self.used).map_err(EndpointError::from)?;
            for (token, _) in self.used.iter().take(count) {
                let slot = slot_of(*token);
                if let Some(memory) = area.get(slot) {
                    free(slot, memory);
                }
            }
            if count < self.used.len() {
                return Ok(());
            }
        }
    }

    /// Whether the device has returned all that was sent.
    pub fn is_idle(&self, pair: usize) -> bool {
        self.endpoint.queues[pair * 2 + 1].driver.in_flight() == 0
    }

    /// Gives the device slots, each after `fill` has written to it and said how many bytes of it to send, to be seen with
    /// [`Port::publish`]. Takes no more of them than the ring has room for; returns how many.
    #[inline]
    pub fn push(
        &mut self,
        pair: usize,
        slots: impl IntoIterator<Item = u16>,
        mut fill: impl FnMut(u16, GuestSlice<'_>) -> u32,
    ) -> usize {
        let Endpoint { map, queues, .. } = &mut self.endpoint;
        let Queue {
            driver,
            places,
            chains,
            ..
        } = &mut queues[pair * 2 + 1];
        let area = places.area(map);
        chains.clear();
        for slot in slots.into_iter().take(usize::from(driver.free_descriptors())) {
            let Some(memory) = area.get(slot) else { continue };
            let mut buffer = places.buffer(slot);
            buffer.len = fill(slot, memory).min(buffer.len);
            chains.push((buffer, u64::from(slot)));
        }
        driver.push_each(false, chains)
    }

    /// How many slots [`Port::push`] has room for.
    pub fn room(&self, pair: usize) -> usize {
        usize::from(self.endpoint.queues[pair * 2 + 1].driver.free_descriptors())
    }

    /// Gives the device a chain of any buffers, whatever they are; for frames with errors.
    pub fn push_raw(&mut self, pair: usize, slot: u16, chain: &[Buffer]) -> bool {
        let queue = &mut self.endpoint.queues[pair * 2 + 1];
        queue.driver.push(chain, &[], u64::from(slot)).is_ok()
    }

    /// The buffer of a transmit slot.
    pub fn buffer(&self, pair: usize, slot: u16) -> Buffer {
        self.endpoint.queues[pair * 2 + 1].buffer(slot)
    }

    /// Shows the device what was pushed.
    #[inline]
    pub fn publish(&mut self, pair: usize) -> Result<(), PortError> {
        let queue = &mut self.endpoint.queues[pair * 2 + 1];
        Ok(queue.publish().map_err(EndpointError::from)?)
    }

    /// Takes at most `limit` received frames of `pair`, and no more than a batch of them; `see` gets the first buffer of each, virtio-net header included, and the
    /// bytes of the whole frame with its header.
    #[inline]
    pub fn receive(
        &mut self,
        pair: usize,
        limit: usize,
        mut see: impl FnMut(GuestSlice<'_>, usize),
    ) -> Result<usize, PortError> {
        let Endpoint { map, queues, .. } = &mut self.endpoint;
        let queue = &mut queues[pair * 2];
        let mut taken = 0;
        if self.merges {
            while taken < limit {
                let Some((buffer, len)) = queue.take().map_err(EndpointError::from)? else {
                    break;
                };
                taken += 1;
                let Some(first) = map.slice(buffer.addr, len as usize) else {
                    continue;
                };
                let mut total = len as usize;
                let mut header = [0; HEADER_LEN];
                first.read_to(0, &mut header);
                for _ in 1..NetHeader::from_bytes(&header).num_buffers {
                    // All buffers of a frame are used at once.
                    let Some((_, len)) = queue.take().map_err(EndpointError::from)? else {
                        break;
                    };
                    total += len as usize;
                }
                see(first, total);
            }
        } else {
            // First all places, then all frames: those come from the cache of another CPU, and should be on their way by then.
            let Queue {
                driver, places, free, ..
            } = queue;
            let area = places.area(map);
            let used = &mut self.used[..limit.min(AHEAD)];
            taken = driver.pop_each(used).map_err(EndpointError::from)?;
            let used = &used[..taken];
            for (token, _) in used {
                let slot = slot_of(*token);
                free.push(slot);
                if let Some(frame) = area.get(slot) {
                    expect_mark(frame);
                }
            }
            for (token, len) in used {
                if let Some(buffer) = area.get(slot_of(*token)) {
                    see(buffer.take(*len as usize), *len as usize);
                }
            }
        }
        // In batches, so that the ring's lines do not go to and fro between the processors for every frame.
        if queue.free.len() >= self.batch {
            queue.post()?;
        }
        Ok(taken)
    }
}

/// The slot that a token stands for: tokens are slots that were pushed.
#[inline]
fn slot_of(token: u64) -> u16 {
    u16::try_from(token).unwrap_or(0)
}

fn start(stream: UnixStream, reach: &Reach, options: Options) -> Result<Endpoint, EndpointError> {
    let mut endpoint = Endpoint::over(stream, reach.path(), options)?;
    endpoint.disable_interrupts();
    Ok(endpoint)
}
