//! What is kept in a front-end's memory for the next back-end, should this one die (vhost-user, "Inflight I/O tracking").
//!
//! What is in the region is up to the back-end. A device that completes in order needs no list of chains: the rings themselves
//! say what was used. Two things they do not say:
//!
//! - How far a transmit ring had been taken when its back-end died. The frames behind the used place may have been delivered
//!   already, and would be delivered again. So the data plane notes the place before it delivers a burst ([`Taken`]): one store
//!   a burst. What lies between goes back to the driver as it is; a frame lost is better than one that comes twice.
//! - What the driver has set through the control queue.
//!
//! A front-end could write anything into it, and gains no more by that than by its messages and rings: what is read is bounded
//! and checked as those are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio::burst::Burst;
use virtio::memory::{GuestSlice, Region, SharedMemory};
use virtio::queue::Queue;

use crate::control::ControlState;

/// Bytes for each ring: a line of its own, so that no worker takes another's from it.
const RING_LEN: usize = 64;
/// What marks a ring's part as written by a back-end that goes by this description of it.
const WRITTEN: [u8; 4] = *b"NYt1";
/// Bytes for what the driver has set, twice: one is valid while the other is written.
const CONTROL_LEN: usize = 16 << 10;
/// Sequence number and length, before the text.
const CONTROL_HEAD: usize = 16;

/// The region, where a front-end gave one.
#[derive(Debug)]
pub(super) struct Inflight {
    region: Arc<Region>,
    file: OwnedFd,
    offset: u64,
    rings: usize,
    /// Of what was kept last.
    number: u64,
}

/// Where the data plane notes how far it has taken a transmit ring.
#[derive(Debug)]
pub struct Taken {
    region: Arc<Region>,
    at: usize,
}

impl Taken {
    fn part(&self) -> GuestSlice<'_> {
        self.region.slice().skip(self.at).take(RING_LEN)
    }

    /// The chains before `place` ([`Queue::next_avail`]) are about to be delivered.
    #[inline]
    pub fn note(&self, place: u16) {
        let [m0, m1, m2, m3] = WRITTEN;
        let [p0, p1] = place.to_le_bytes();
        self.part().write_array(0, &[m0, m1, m2, m3, p0, p1, 0, 0]);
    }

    /// The place noted, if any was.
    fn place(&self) -> Option<u16> {
        let mut noted = [0; 8];
        self.part().read_to(0, &mut noted);
        match noted {
            [m0, m1, m2, m3, p0, p1, ..] if [m0, m1, m2, m3] == WRITTEN => Some(u16::from_le_bytes([p0, p1])),
            _ => None,
        }
    }

    /// Returns what was delivered already. Nothing is noted from then on until the data plane does.
    fn go_on(&self, queue: &mut Queue) {
        if let Some(place) = self.place() {
            return_taken(queue, place);
        }
        self.forget();
    }

    fn forget(&self) {
        self.part().write_array(0, &[0; 8]);
    }
}

/// Returns the chains before `place`, unused. A burst at most was under way; a place farther off was noted of another ring.
fn return_taken(queue: &mut Queue, place: u16) {
    let mut burst = Burst::new();
    let capacity = burst.capacity();
    let Ok(mut taken) = queue.pop_burst(&mut burst, capacity) else {
        // Whoever serves the ring finds out what is wrong with it.
        return;
    };
    while taken > 0 && queue.next_avail() != place {
        queue.unpop(1);
        taken -= 1;
    }
    queue.add_used(burst.heads().take(taken).map(|head| (head, 0)));
    queue.publish();
}

impl Inflight {
    /// Bytes for a device of so many rings.
    fn len(rings: usize) -> usize {
        rings * RING_LEN + 2 * CONTROL_LEN
    }

    /// A region for a front-end to keep: its file, and its length.
    pub(super) fn make(rings: u16) -> io::Result<(File, u64)> {
        let len = Self::len(usize::from(rings)).next_multiple_of(4096) as u64;
        let memory = SharedMemory::new("vhost-inflight", 0, len).map_err(io::Error::other)?;
        Ok((memory.fd().try_clone_to_owned()?.into(), len))
    }

    /// Maps a region that a front-end kept.
    pub(super) fn map(file: OwnedFd, offset: u64, len: u64, rings: u16) -> io::Result<Self> {
        let rings = usize::from(rings);
        let needed = Self::len(rings) as u64;
        if len < needed {
            return Err(io::Error::other(format!(
                "inflight region of {len} bytes refused: {rings} rings need {needed}; give back what was given"
            )));
        }
        let region = Region::map(file.as_fd(), offset, 0, 0, needed).map_err(io::Error::other)?;
        if !region.is_sealed() {
            return Err(io::Error::other(
                "inflight region refused: its file can be shortened; give back what was given",
            ));
        }
        let mut inflight = Self {
            region,
            file,
            offset,
            rings,
            number: 0,
        };
        inflight.number = inflight.newest().map_or(0, |(number, _)| number);
        Ok(inflight)
    }

    /// What another process needs to map it.
    pub(super) fn save(&self) -> io::Result<(u64, OwnedFd)> {
        Ok((self.offset, self.file.try_clone()?))
    }

    /// Its length, as [`Inflight::map`] wants it.
    pub(super) fn region_len(&self) -> u64 {
        self.region.len()
    }

    fn taken(&self, ring: u16) -> Taken {
        Taken {
            region: Arc::clone(&self.region),
            at: usize::from(ring) * RING_LEN,
        }
    }

    /// A transmit ring starts: what its last device had delivered is returned, and the place noted from now on.
    pub(super) fn start(&self, ring: u16, queue: &mut Queue) -> Taken {
        let taken = self.taken(ring);
        taken.go_on(queue);
        taken
    }

    /// A ring was stopped with nothing under way: it may be another when it starts again.
    pub(super) fn forget(&self, ring: u16) {
        self.taken(ring).forget();
    }

    fn control(&self, half: u64) -> GuestSlice<'_> {
        let at = self.rings * RING_LEN + usize::from(half % 2 == 1) * CONTROL_LEN;
        self.region.slice().skip(at).take(CONTROL_LEN)
    }

    /// The newest of the two that make sense, with its number.
    fn newest(&self) -> Option<(u64, ControlState)> {
        let read = |half| {
            let slice = self.control(half);
            let (mut number, mut len) = ([0; 8], [0; 8]);
            slice.read_to(0, &mut number);
            slice.read_to(8, &mut len);
            let len = usize::try_from(u64::from_le_bytes(len)).ok()?;
            if len > CONTROL_LEN - CONTROL_HEAD {
                return None;
            }
            let mut text = vec![0; len];
            slice.read_to(CONTROL_HEAD, &mut text);
            let state = serde_json::from_slice(&text).ok()?;
            Some((u64::from_le_bytes(number), state))
        };
        read(0)
            .into_iter()
            .chain(read(1))
            .max_by_key(|(number, _)| *number)
    }

    /// What the driver had set, if that is something which a device of so many pairs can have.
    pub(super) fn state(&self, max_pairs: u16) -> Option<ControlState> {
        let (_, state) = self.newest()?;
        state.is_sane(max_pairs).then_some(state)
    }

    /// Keeps what the driver has set; what was kept before stays until that is done.
    pub(super) fn keep(&mut self, state: &ControlState) {
        let Ok(text) = serde_json::to_vec(state) else {
            return;
        };
        if text.len() > CONTROL_LEN - CONTROL_HEAD {
            return;
        }
        // The other half from now on; only for what is written, or the next would be written over the one that is valid.
        self.number = self.number.wrapping_add(1);
        let slice = self.control(self.number);
        // Without a length it is nothing, until all of it is there.
        slice.write_array(8, &[0; 8]);
        fence(Ordering::Release);
        slice.write_from(CONTROL_HEAD, &text);
        slice.write_array(0, &self.number.to_le_bytes());
        fence(Ordering::Release);
        slice.write_array(8, &(text.len() as u64).to_le_bytes());
    }
}
