//! Where a device end that died had got to, read from the ring itself.
//!
//! A packed ring has no index that says so, and its front-end need not know: QEMU sends the place at which the ring was started.
//! But every descriptor tells which of the two wrote it last and in which round, so the place is where the newest used one is
//! followed by something else. Two things make that exact:
//!
//! - A device end writes one used descriptor over a chain's first, and would leave the others of a chain as the driver wrote
//!   them: taken for chains to come. So ours marks them as used, too ([`mark_rest`]); no driver reads them before it has
//!   written them anew. Chains of several descriptors are rare where indirect ones may be used, and the others cost nothing.
//! - Of a burst of used descriptors the first is written last, for that is what shows them to the driver. A device end that
//!   died in between leaves holes, in chains that it has done: [`complete`] writes them, and the driver goes on.
//!
//! A driver fills its chains from the last descriptor to the first, so one that is at it leaves the place alone.

use super::ring::{Position, Ring, Tail};
use crate::desc::DESC_F_NEXT;

/// Marks all but the first of a chain's descriptors as used, the last one first: whatever of it comes to pass, the descriptors
/// between the first one marked and the first of the chain are no chain of their own.
#[cold]
pub(super) fn mark_rest(ring: &Ring, start: Position, slots: u16) {
    for at in (1..slots).rev().map(|n| start.forward(n, ring.size())) {
        let tail = ring.tail(at);
        ring.release_tail(at, tail.with_used_flags(at));
    }
}

/// Where the device end goes on. What the last one left half written is completed.
pub(super) fn recover(ring: &Ring) -> Position {
    let found = find(ring);
    complete(ring, found);
    found
}

/// The place behind the newest used descriptor.
fn find(ring: &Ring) -> Position {
    let size = ring.size();
    let mut newest: Option<Position> = None;
    let mut done = 0_u16;
    for index in 0..size {
        let tail = ring.tail(Position::new(index, true));
        if !tail.is_done() {
            continue;
        }
        if newest.is_some_and(|newest| newest.wrap != tail.round()) {
            // From here on they are of the round before.
            done = size;
            break;
        }
        newest = Some(Position::new(index, tail.round()));
        done += 1;
    }
    let Some(newest) = newest else {
        return oldest(ring);
    };
    let next = newest.forward(1, size);
    let tail = ring.tail(next);
    if done == 1 && size > 2 && !tail.is_done() && tail.round() != next.wrap {
        return behind_filled(ring, newest.forward(size, size));
    }
    next
}

/// The oldest available descriptor of a ring that the driver is filling to the last, where `unwritten` is the one that it writes
/// at the end: behind those that are written already.
fn behind_filled(ring: &Ring, unwritten: Position) -> Position {
    let size = ring.size();
    (1..size)
        .map(|n| unwritten.forward(n, size))
        .find(|at| ring.tail(*at).round() != at.wrap)
        .map_or(unwritten, |at| at.back(size, size))
}

/// The oldest descriptor of a ring all of which is available: there the older round begins.
fn oldest(ring: &Ring) -> Position {
    let round = |index| ring.tail(Position::new(index, true)).round();
    let first = round(0);
    let at = (0..ring.size()).find(|index| round(*index) != first);
    at.map_or(Position::new(0, first), |index| Position::new(index, !first))
}

/// Writes the used descriptors that are missing before `end`. From the first of them on the driver has seen none, and all lose
/// what they say was written: without the first a frame in several buffers would begin in its middle.
fn complete(ring: &Ring, end: Position) {
    let size = ring.size();
    let mut first = None;
    let mut passed = 0;
    while passed < size {
        // The round before, and what of this one lies behind.
        let at = end.forward(passed, size).back(size, size);
        let tail = ring.tail(at);
        if tail.is_done() || tail.round() != at.wrap {
            if tail.is_done() && first.is_some() {
                ring.release_tail(at, Tail { len: 0, ..tail });
            }
            passed += 1;
            continue;
        }
        let (slots, id) = chain(ring, at, size - passed);
        mark_rest(ring, at, slots);
        let used = Tail { len: 0, id, flags: 0 }.with_used_flags(at);
        match first {
            None => first = Some((at, used)),
            Some(_) => ring.release_tail(at, used),
        }
        passed += slots;
    }
    if let Some((at, used)) = first {
        ring.release_tail(at, used);
    }
}

/// How many descriptors a chain has, of at most `limit`, and its buffer id.
fn chain(ring: &Ring, start: Position, limit: u16) -> (u16, u16) {
    let (mut at, mut slots) = (start, 1);
    loop {
        let tail = ring.tail(at);
        if tail.flags & DESC_F_NEXT == 0 || slots >= limit {
            return (slots, tail.id);
        }
        at = at.forward(1, ring.size());
        slots += 1;
    }
}
