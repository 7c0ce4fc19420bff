//! What a well-behaved driver asks for.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::virtio::blk::DiskError;

#[test]
fn sectors_are_read_and_written_where_they_belong() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let before = pattern(usize::try_from(SECTORS * 512).unwrap());
        assert_eq!(rig.read(0, 512), before[..512]);
        assert_eq!(rig.read(17, 4096), before[17 * 512..][..4096]);
        assert_eq!(rig.read(SECTORS - 1, 512), before[before.len() - 512..]);
        let new = vec![0xa5; 1536];
        rig.write(100, &new);
        assert_eq!(rig.on_disk(100, 1536), new);
        assert_eq!(rig.on_disk(99, 512), before[99 * 512..][..512]);
        assert_eq!(rig.on_disk(103, 512), before[103 * 512..][..512]);
        assert_eq!(rig.read(100, 1536), new);
        assert_eq!(rig.request(FLUSH, 0, None), (1, OK));
    }
}

#[test]
fn any_framing_will_do() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let at = rig.buffer(0);
        let (header, ..) = rig.header(0, IN, 3);
        // The header in three pieces, the data in three, the last of them with the status behind it.
        let chain = [
            (header, 1, false),
            (header + 1, 14, false),
            (header + 15, 1, false),
            (at + DATA, 100, true),
            (at + DATA + 100, 0, true),
            (at + DATA + 100, 413, true),
        ];
        assert_eq!(rig.post(0, &chain).0, 513);
        assert_eq!(rig.read_guest(at + DATA, 512), rig.on_disk(3, 512));
        assert_eq!(rig.read_guest(at + DATA + 512, 1), [OK]);
        // Header and data of a write in one buffer.
        let data = [0x5a; 512];
        rig.header(0, OUT, 9);
        rig.write_guest(at + 16, &data);
        let status = at + DATA;
        rig.write_guest(status, &[UNTOUCHED]);
        rig.post(0, &[(at, 16 + 512, false), (status, 1, true)]);
        assert_eq!(rig.read_guest(status, 1), [OK]);
        assert_eq!(rig.on_disk(9, 512), data);
    }
}

#[test]
fn a_paused_disk_leaves_memory_and_file_alone() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let at = rig.buffer(0);
        let chain = [
            rig.header(0, IN, 3),
            (at + DATA, 512, true),
            (at + STATUS, 1, true),
        ];
        rig.write_guest(at + DATA, &[0; 512]);
        rig.blk.pause();
        rig.guest.queues[0].post(&chain);
        // Others have served whatever was asked of them later.
        for _ in 0..20 {
            Rig::new(engine).read(0, 512);
        }
        assert_eq!(rig.guest.queues[0].used_index(), 0);
        assert_eq!(rig.read_guest(at + DATA, 512), [0; 512]);
        rig.blk.resume();
        rig.guest.queues[0].wait_used(1);
        assert_eq!(rig.read_guest(at + DATA, 512), rig.on_disk(3, 512));
        // A disk that is paused can be reset.
        rig.blk.pause();
        rig.blk.reset();
        let features = rig.blk.features();
        rig.blk.activate(rig.guest.activation(features)).unwrap();
        rig.done = vec![0];
        assert_eq!(rig.read(3, 512), rig.on_disk(3, 512));
    }
}

#[test]
fn the_serial_id_is_told() {
    let mut rig = Rig::new(EngineKind::Auto);
    assert_eq!(rig.request(GET_ID, 0, Some((20, true))), (21, OK));
    assert_eq!(
        rig.read_guest(rig.buffer(0) + DATA, 20),
        b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(rig.request(GET_ID, 0, Some((4, true))), (5, OK));
}

#[test]
fn discarded_space_is_given_back() {
    let mut rig = Rig::new(EngineKind::Auto);
    let blocks = |rig: &Rig| rig.file.as_file().metadata().unwrap().blocks();
    rig.file.as_file().sync_all().unwrap();
    let before = blocks(&rig);
    assert_eq!(rig.ranges(DISCARD, &[(0, 512, 0), (1024, 512, 0)]), OK);
    assert_eq!(rig.on_disk(0, 512 * 512), vec![0; 512 * 512]);
    assert_eq!(rig.on_disk(512, 512), pattern(513 * 512)[512 * 512..]);
    assert!(
        blocks(&rig) <= before - 1024,
        "{before} blocks before, {} after",
        blocks(&rig)
    );
}

#[test]
fn zeroes_are_written_with_and_without_space() {
    for unmap in [0, 1] {
        let mut rig = Rig::new(EngineKind::Auto);
        assert_eq!(
            rig.ranges(WRITE_ZEROES, &[(5, 3, unmap), (0, 0, unmap), (100, 1, unmap)]),
            OK
        );
        assert_eq!(rig.on_disk(5, 3 * 512), [0; 3 * 512]);
        assert_eq!(rig.on_disk(100, 512), [0; 512]);
        assert_eq!(rig.on_disk(8, 512), pattern(9 * 512)[8 * 512..]);
        assert_eq!(rig.file.as_file().metadata().unwrap().len(), SECTORS * 512);
    }
}

#[test]
fn every_queue_serves_the_disk() {
    for engine in ENGINES {
        let mut rig = Rig::with(engine, |options| options.queues = 4);
        for queue in 0..4 {
            let at = rig.buffer(queue);
            rig.write_guest(at + DATA, &[u8::try_from(queue).unwrap() + 1; 512]);
            let header = rig.header(queue, OUT, queue as u64);
            let chain = [header, (at + DATA, 512, false), (at + STATUS, 1, true)];
            assert_eq!(rig.post(queue, &chain), (1, OK));
        }
        for queue in 0..4_u8 {
            assert_eq!(rig.on_disk(u64::from(queue), 512), [queue + 1; 512]);
        }
    }
}

#[test]
fn many_requests_at_once_are_all_answered() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let at = rig.buffer(0);
        // Five requests fill the ring; each reads sectors of its own, all are kicked for before any is waited for.
        for round in 0..40_u16 {
            for n in 0..5_u64 {
                let own = at + n * 0x2000;
                let sector = u64::from(round) * 5 + n;
                let header = [&IN.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
                rig.write_guest(own, &header);
                rig.write_guest(own + STATUS, &[UNTOUCHED]);
                let chain = [(own, 16, false), (own + DATA, 512, true), (own + STATUS, 1, true)];
                rig.guest.queues[0].post(&chain);
            }
            rig.guest.queues[0].wait_used((round + 1) * 5);
            for n in 0..5 {
                let own = at + n * 0x2000;
                assert_eq!(rig.read_guest(own + STATUS, 1), [OK]);
                let sector = u64::from(round) * 5 + n;
                assert_eq!(rig.read_guest(own + DATA, 512), rig.on_disk(sector, 512));
            }
        }
    }
}

#[test]
fn a_reset_waits_for_what_is_under_way() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        for _ in 0..50 {
            let at = rig.buffer(0);
            let header = rig.header(0, IN, 0);
            rig.write_guest(at + DATA, &vec![0xcc; 32768]);
            rig.guest.queues[0].post(&[header, (at + DATA, 32768, true), (at + STATUS, 1, true)]);
            rig.blk.reset();
            // Whether or not it was taken, from here on nothing touches this memory.
            rig.write_guest(at + DATA, &vec![0xdd; 32768]);
            assert_eq!(rig.read_guest(at + DATA, 32768), vec![0xdd; 32768]);
            let features = rig.blk.features();
            rig.blk.activate(rig.guest.activation(features)).unwrap();
        }
        rig.done = vec![0];
        assert_eq!(rig.read(1, 512), pattern(1024)[512..]);
    }
}

#[test]
fn a_driver_that_cannot_flush_writes_through() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        rig.blk.reset();
        let features = rig.blk.features() & !super::super::FLUSH;
        rig.blk.activate(rig.guest.activation(features)).unwrap();
        rig.write(7, &[9; 512]);
        assert_eq!(rig.on_disk(7, 512), [9; 512]);
    }
}

#[test]
fn the_configuration_is_that_of_the_file() {
    let rig = Rig::with(EngineKind::Auto, |options| options.queues = 3);
    let mut config = [0xff; 64];
    rig.blk.read_config(0, &mut config[..60]);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), SECTORS);
    assert_eq!((word(12), word(20)), (254, 512));
    assert_eq!(
        1_u64 << config[24],
        rig.file.as_file().metadata().unwrap().blksize() / 512
    );
    assert_eq!(config[34..36], [3, 0]);
    assert!(word(36) > 0 && word(40) > 0 && word(48) > 0 && word(52) > 0);
    let mut behind = [0; 4];
    rig.blk.read_config(59, &mut behind);
    rig.blk.read_config(u64::MAX, &mut behind);
    assert_eq!(behind, [0; 4]);
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let rig = Rig::new(EngineKind::Auto);
    let path = rig.file.path();
    let readonly = DiskOptions {
        readonly: true,
        ..DiskOptions::new(path)
    };
    assert!(matches!(
        Blk::new(DiskOptions::new(path)),
        Err(DiskError::InUse(_))
    ));
    assert!(matches!(Blk::new(readonly.clone()), Err(DiskError::InUse(_))));
    drop(rig.blk);
    let readers = [Blk::new(readonly.clone()).unwrap(), Blk::new(readonly).unwrap()];
    assert!(matches!(
        Blk::new(DiskOptions::new(path)),
        Err(DiskError::InUse(_))
    ));
    drop(readers);
    Blk::new(DiskOptions::new(path)).unwrap();
}

#[test]
fn what_is_no_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let new = |path: &std::path::Path| {
        Blk::new(DiskOptions {
            readonly: true,
            ..DiskOptions::new(path)
        })
    };
    assert!(matches!(
        new(&dir.path().join("none")),
        Err(DiskError::Open { .. })
    ));
    assert!(matches!(new(dir.path()), Err(DiskError::NotADisk(_))));
    let short = dir.path().join("short");
    std::fs::write(&short, [0; 511]).unwrap();
    assert!(matches!(new(&short), Err(DiskError::Empty(_))));
    let options = DiskOptions {
        queues: 0,
        ..DiskOptions::new(&short)
    };
    assert!(matches!(Blk::new(options), Err(DiskError::Queues { .. })));
    let options = DiskOptions {
        serial: "x".repeat(21),
        ..DiskOptions::new(&short)
    };
    assert!(matches!(Blk::new(options), Err(DiskError::Serial { .. })));
}

#[test]
fn a_queue_that_is_reset_starts_anew_beside_the_others() {
    for engine in ENGINES {
        let mut rig = Rig::with(engine, |options| options.queues = 2);
        rig.write(3, &[0x11; 512]);
        rig.blk.reset_queue(0);
        let chain = [
            rig.header(1, IN, 3),
            (rig.buffer(1) + DATA, 512, true),
            (rig.buffer(1) + STATUS, 1, true),
        ];
        assert_eq!(rig.post(1, &chain), (513, OK), "the other one runs on");
        let queue = rig.guest.queues[0].activate();
        rig.blk.start_queue(queue).unwrap();
        rig.done[0] = 0;
        rig.write(4, &[0x22; 512]);
        assert_eq!(rig.on_disk(4, 512), [0x22; 512]);
    }
}
