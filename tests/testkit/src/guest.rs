//! A guest as a port sees it, for tests: everything that has to happen is waited for, and panics when it does not.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio::features::NET_F_HASH_REPORT;
use virtio::net::{HASH_HEADER_LEN, HEADER_LEN, NetHeader};
use virtio::split::driver::Buffer;

use crate::endpoint::{Endpoint, EndpointError, Options};

/// How long anything may take that has to happen.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How often is looked for something that mostly comes at once.
const SPIN: u32 = 100;

/// A frame that the guest received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Its virtio-net header.
    pub header: NetHeader,
    /// Its hash and of what that is, where hashes are reported.
    pub hash: (u32, u16),
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// A guest on one port.
#[derive(Debug)]
pub struct Guest {
    /// Its front-end and its rings.
    pub endpoint: Endpoint,
}

impl Deref for Guest {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }
}

impl Guest {
    /// Connects to a port's socket, as soon as there is somebody listening, and starts every queue pair.
    ///
    /// # Panics
    /// When the back-end does not take it.
    pub fn connect(socket: &Path, options: Options) -> Self {
        let end = Instant::now() + DEADLINE;
        loop {
            match Endpoint::connect(socket, options) {
                Ok(endpoint) => return Self { endpoint },
                Err(EndpointError::Connect { .. }) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("no guest: {error}"),
            }
        }
    }

    /// Connects again, as soon as there is somebody listening, and goes on with its rings as they are.
    ///
    /// # Panics
    /// When the back-end does not take it.
    pub fn reconnect(&mut self, socket: &Path) {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.endpoint.reconnect(socket) {
                Ok(()) => return,
                Err(EndpointError::Connect { .. }) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("no guest: {error}"),
            }
        }
    }

    /// The link state that the port shows.
    pub fn link_is_up(&mut self) -> bool {
        let flags = VhostUserConfigFlags::empty();
        let read = self.endpoint.frontend.get_config(0, 12, flags, &[0; 12]);
        read.expect("the configuration").1[6] & 1 == 1
    }

    /// Posts every free receive buffer of a pair.
    ///
    /// # Panics
    /// When the eventfd is full.
    pub fn post_all(&mut self, pair: usize) {
        self.queues[pair * 2].post().expect("a sane ring");
    }

    /// Transmits a plain frame on a pair.
    pub fn send(&mut self, pair: usize, frame: &[u8]) {
        self.send_with(pair, &NetHeader::default(), frame);
    }

    /// Transmits a frame with its virtio-net header on a pair.
    pub fn send_with(&mut self, pair: usize, header: &NetHeader, frame: &[u8]) {
        let hash = vec![0xee; self.header_len() - HEADER_LEN];
        self.send_raw(pair, &[&header.to_bytes()[..], &hash, frame].concat());
    }

    /// Transmits any bytes on a pair.
    pub fn send_raw(&mut self, pair: usize, bytes: &[u8]) {
        let slot = self.free_slot(pair);
        let Endpoint { map, queues, .. } = &mut self.endpoint;
        let queue = &mut queues[pair * 2 + 1];
        let room = queue.buffer(slot);
        assert!(
            bytes.len() <= room.len as usize,
            "the frame does not fit the slot"
        );
        let buffer = Buffer {
            len: u32::try_from(bytes.len()).unwrap(),
            ..room
        };
        map.slice(buffer.addr, bytes.len()).unwrap().write_from(0, bytes);
        queue.driver.push(&[buffer], &[], u64::from(slot)).unwrap();
        queue.publish().unwrap();
    }

    /// The next frame received on a pair, if there is one; its buffers are posted again.
    pub fn try_receive(&mut self, pair: usize) -> Option<Received> {
        let received = self.take_frame(pair)?;
        self.post_all(pair);
        Some(received)
    }

    /// The next frame received on any pair, with the pair, within the deadline.
    pub fn receive(&mut self) -> (usize, Received) {
        let end = Instant::now() + DEADLINE;
        let mut looks = 0;
        loop {
            for pair in 0..self.pairs() {
                if let Some(received) = self.try_receive(pair) {
                    return (pair, received);
                }
            }
            assert!(Instant::now() < end, "no frame came");
            give_way(&mut looks);
        }
    }

    /// Asserts that the next frame received is this one.
    pub fn expect(&mut self, frame: &[u8]) -> usize {
        let (pair, received) = self.receive();
        assert_eq!(received.frame, frame);
        pair
    }

    /// Asserts that nothing was received. Something that must have come later has to have been seen before.
    pub fn expect_nothing(&mut self) {
        for pair in 0..self.pairs() {
            assert_eq!(self.try_receive(pair), None);
        }
    }

    /// Waits until the switch took everything transmitted.
    pub fn flush(&mut self) {
        for index in (1..self.pairs() * 2).step_by(2) {
            let queue = &mut self.queues[index];
            wait_for("transmitted frames to be taken", || {
                queue.reclaim().unwrap();
                queue.driver.in_flight() == 0
            });
        }
    }

    fn free_slot(&mut self, pair: usize) -> u16 {
        let queue = &mut self.queues[pair * 2 + 1];
        let end = Instant::now() + DEADLINE;
        let mut looks = 0;
        loop {
            queue.reclaim().expect("a sane ring");
            if let Some(slot) = queue.free.pop() {
                return slot;
            }
            assert!(Instant::now() < end, "the switch takes no frames");
            give_way(&mut looks);
        }
    }

    fn take_bytes(&mut self, pair: usize) -> Option<Vec<u8>> {
        let (buffer, len) = self.queues[pair * 2].take().expect("a sane ring")?;
        let mut bytes = vec![0; len as usize];
        self.map
            .slice(buffer.addr, bytes.len().max(1))
            .expect("a buffer of ours")
            .read_to(0, &mut bytes);
        Some(bytes)
    }

    fn take_frame(&mut self, pair: usize) -> Option<Received> {
        let mut bytes = self.take_bytes(pair)?;
        let header = NetHeader::from_bytes(bytes.first_chunk::<HEADER_LEN>().expect("a whole header"));
        for _ in 1..header.num_buffers {
            bytes.extend(self.take_bytes(pair).expect("all buffers of a frame at once"));
        }
        let hash = match bytes.get(HEADER_LEN..self.header_len()) {
            Some(&[v0, v1, v2, v3, r0, r1, ..]) => {
                (u32::from_le_bytes([v0, v1, v2, v3]), u16::from_le_bytes([r0, r1]))
            }
            _ => (0, 0),
        };
        Some(Received {
            header,
            hash,
            frame: bytes.split_off(self.header_len()),
        })
    }

    fn header_len(&self) -> usize {
        if self.options.features & NET_F_HASH_REPORT == 0 {
            HEADER_LEN
        } else {
            HASH_HEADER_LEN
        }
    }

    /// Sends a command through the control queue, in the pieces in which drivers do; whether the device carried it out.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn control(&mut self, class: u8, command: u8, data: &[u8]) -> bool {
        let request = [&[class, command], data].concat();
        let ack = self.control_chain(&request, &[2, data.len()], 1);
        assert_eq!(ack.0, 1, "an answer is one byte");
        ack.1 == 0
    }

    /// Puts a chain into the control queue: the request, cut into readable buffers of these lengths, and room for an answer.
    /// The length used, and the first byte of the answer, which is 0xee where there is none.
    ///
    /// # Panics
    /// When the chain does not come back.
    pub fn control_chain(&mut self, request: &[u8], cuts: &[usize], room: u32) -> (u32, u8) {
        let index = self.pairs() * 2;
        let Endpoint { map, queues, .. } = &mut self.endpoint;
        let queue = &mut queues[index];
        let slot = queue.free.pop().expect("a free chain");
        let whole = queue.buffer(slot);
        let memory = map.slice(whole.addr, whole.len as usize).expect("memory of ours");
        memory.write_from(0, request);
        let answer = request.len();
        memory.write_from(answer, &[0xee]);
        let mut at = whole.addr;
        let mut readable = Vec::new();
        for &len in cuts.iter().filter(|len| **len > 0) {
            readable.push(Buffer {
                addr: at,
                len: u32::try_from(len).unwrap(),
            });
            at += len as u64;
        }
        let writable = Buffer {
            addr: whole.addr + answer as u64,
            len: room,
        };
        let writable = if room == 0 { &[][..] } else { &[writable] };
        queue
            .driver
            .push(&readable, writable, u64::from(slot))
            .expect("room in the ring");
        queue.publish().expect("a kick");
        let mut used = None;
        wait_for("the control queue", || {
            used = queue.driver.pop_used().expect("a sane ring");
            used.is_some()
        });
        queue.free.push(slot);
        let mut ack = [0];
        memory.read_to(answer, &mut ack);
        (used.map_or(0, |(_, len)| len), ack[0])
    }
}

/// Between two looks: at first another thread may run, later this one sleeps, for on a busy machine who spins waits longest.
fn give_way(looks: &mut u32) {
    *looks += 1;
    if *looks < SPIN {
        std::thread::yield_now();
    } else {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Waits until something holds.
///
/// # Panics
/// When it does not in time.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
