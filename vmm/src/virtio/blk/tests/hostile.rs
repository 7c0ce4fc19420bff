//! What no well-behaved driver asks for.

use super::*;
use crate::virtio::test_driver::{RING_SIZE, wait_for};

#[test]
fn sectors_that_the_disk_has_not_are_refused() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        for kind in [IN, OUT] {
            let writable = kind == IN;
            for (sector, len) in [
                (SECTORS, 512),
                (SECTORS - 1, 1024),
                (u64::MAX, 512),
                (u64::MAX / 512, 512),
                (u64::MAX - 1, 1024),
                (1 << 55, 4096),
            ] {
                assert_eq!(
                    rig.request(kind, sector, Some((len, writable))),
                    (1, IOERR),
                    "{sector} {len}"
                );
            }
            for len in [1, 511, 513] {
                assert_eq!(
                    rig.request(kind, 0, Some((len, writable))),
                    (1, IOERR),
                    "{len} bytes"
                );
            }
            // No bytes are no sectors; that much there is anywhere on the disk.
            assert_eq!(rig.request(kind, SECTORS, None), (1, OK));
            assert_eq!(rig.request(kind, SECTORS + 1, None), (1, IOERR));
        }
        assert_eq!(rig.on_disk(0, 2048), pattern(2048));
    }
}

#[test]
fn ranges_are_checked_before_any_is_touched() {
    let mut rig = Rig::new(EngineKind::Auto);
    let limit = super::super::MAX_RANGE_SECTORS;
    for kind in [DISCARD, WRITE_ZEROES] {
        for bad in [
            (SECTORS, 1, 0),
            (u64::MAX, 1, 0),
            (0, limit + 1, 0),
            (0, u32::MAX, 0),
            (u64::MAX - 7, 8, 0),
        ] {
            assert_eq!(rig.ranges(kind, &[(0, 1, 0), bad]), IOERR, "{kind} {bad:?}");
        }
        assert_eq!(rig.ranges(kind, &[(0, 1, 0), (1, 1, 2)]), UNSUPP);
        assert_eq!(rig.ranges(kind, &[(0, 1, 0); 9]), IOERR);
        assert_eq!(rig.ranges(kind, &[]), IOERR);
        assert_eq!(rig.request(kind, 0, Some((15, false))), (1, IOERR));
        assert_eq!(rig.request(kind, 0, Some((17, false))), (1, IOERR));
    }
    assert_eq!(
        rig.ranges(DISCARD, &[(0, 1, 1)]),
        UNSUPP,
        "discarding has no flags"
    );
    assert_eq!(rig.on_disk(0, 512), pattern(512));
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut rig = Rig::new(EngineKind::Auto);
    for kind in [2, 3, 5, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(rig.request(kind, 0, Some((512, true))), (1, UNSUPP), "{kind}");
    }
    rig.blk.reset();
    let features = rig.blk.features() & !(super::super::DISCARD | super::super::WRITE_ZEROES);
    rig.blk.activate(rig.guest.activation(features)).unwrap();
    rig.done = vec![0];
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(rig.ranges(kind, &[(0, 1, 0)]), UNSUPP, "not negotiated");
    }
}

#[test]
fn a_readonly_disk_stays_as_it_is() {
    for engine in ENGINES {
        let mut rig = Rig::with(engine, |options| options.readonly = true);
        let features = rig.blk.features();
        assert_ne!(features & super::super::RO, 0);
        assert_eq!(features & (super::super::DISCARD | super::super::WRITE_ZEROES), 0);
        assert_eq!(rig.request(OUT, 0, Some((512, false))), (1, IOERR));
        assert_eq!(rig.ranges(DISCARD, &[(0, 1, 0)]), UNSUPP);
        // Even if the driver pretends to have negotiated them.
        rig.blk.reset();
        let features = features | super::super::DISCARD | super::super::WRITE_ZEROES;
        rig.blk.activate(rig.guest.activation(features)).unwrap();
        rig.done = vec![0];
        assert_eq!(rig.ranges(DISCARD, &[(0, 1, 0)]), IOERR);
        assert_eq!(rig.ranges(WRITE_ZEROES, &[(0, 1, 0)]), IOERR);
        assert_eq!(rig.request(FLUSH, 0, None), (1, OK));
        assert_eq!(rig.read(1, 512), pattern(1024)[512..]);
        assert_eq!(rig.on_disk(0, 512), pattern(512));
    }
}

#[test]
fn chains_without_a_place_for_the_status_are_given_back() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let at = rig.buffer(0);
        let header = rig.header(0, IN, 0);
        assert_eq!(rig.post(0, &[header]), (0, UNTOUCHED));
        assert_eq!(rig.post(0, &[header, (at + STATUS, 0, true)]), (0, UNTOUCHED));
        assert_eq!(rig.post(0, &[header, (1 << 40, 1, true)]), (0, UNTOUCHED));
        assert_eq!(rig.post(0, &[header, (u64::MAX, 1, true)]), (0, UNTOUCHED));
        // A chain that never ends.
        rig.guest.queues[0].loop_at(0, at, 16);
        rig.guest.queues[0].make_available(0);
        rig.done[0] += 1;
        assert_eq!(rig.guest.queues[0].wait_used(rig.done[0]), (0, 0));
        assert_eq!(rig.read(0, 512), pattern(512));
    }
}

#[test]
fn short_headers_and_misplaced_buffers_are_errors() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let at = rig.buffer(0);
        let status = (at + STATUS, 1, true);
        let header = rig.header(0, IN, 0);
        assert_eq!(rig.post(0, &[status]), (1, IOERR));
        assert_eq!(rig.post(0, &[(at, 15, false), status]), (1, IOERR));
        assert_eq!(rig.post(0, &[(1 << 40, 16, false), status]), (1, IOERR));
        assert_eq!(rig.post(0, &[(u64::MAX - 3, 16, false), status]), (1, IOERR));
        // Data outside of memory, across its end, and wrapping around.
        for (addr, len) in [
            (1 << 40, 512),
            ((4 << 20) - 256, 512),
            (u64::MAX - 100, 512),
            (0, 0xffff_fe00),
        ] {
            assert_eq!(
                rig.post(0, &[header, (addr, len, true), status]),
                (1, IOERR),
                "{addr:#x}"
            );
        }
        let header = rig.header(0, OUT, 0);
        for addr in [1 << 40, (4 << 20) - 256, u64::MAX - 100] {
            assert_eq!(
                rig.post(0, &[header, (addr, 512, false), status]),
                (1, IOERR),
                "{addr:#x}"
            );
        }
        // Readable behind writable; the last writable byte is the status all the same.
        assert_eq!(
            rig.post(0, &[header, status, (at + DATA, 512, false)]),
            (1, IOERR)
        );
        assert_eq!(rig.on_disk(0, 512), pattern(512));
        assert_eq!(rig.read(0, 512), pattern(512));
    }
}

#[test]
fn a_broken_ring_stops_its_queue_until_a_reset() {
    for engine in ENGINES {
        for index in [RING_SIZE + 1, 0x8000, 0xffff] {
            let mut rig = Rig::new(engine);
            rig.guest.queues[0].set_avail_index(index);
            while !rig.guest.events.needs_reset() {
                wait_for(&rig.guest.config_interrupt);
            }
            rig.blk.reset();
            let features = rig.blk.features();
            rig.blk.activate(rig.guest.activation(features)).unwrap();
            assert_eq!(rig.read(0, 512), pattern(512));
        }
    }
}

#[test]
fn a_file_that_shrinks_under_the_disk_is_an_error_of_its_reads() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        rig.file.as_file().set_len(100 * 512 + 256).unwrap();
        assert_eq!(rig.request(IN, 100, Some((512, true))), (1, IOERR));
        assert_eq!(rig.request(IN, 500, Some((512, true))), (1, IOERR));
        assert_eq!(rig.read(99, 512), pattern(100 * 512)[99 * 512..]);
    }
}
